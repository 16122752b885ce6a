//! What edges say of themselves, between the bus and whoever checks it. Promises that a flood by one edge costs that edge alone: what comes is put
//! aside by edge, bounded and without a look into it, and edges take turns at what is slow. Holds nothing for who is not enrolled.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{BusError, Heard, Hearing};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep};

use crate::control::Control;
use crate::fleet::edge_of;
use crate::heard::{MOST_STARTS, MOST_TARGETS};

/// Between two rounds: with what an edge has checked in one, the most that its flood takes of the processor.
const ROUND: Duration = Duration::from_millis(20);
/// Bytes that wait of one edge and kind.
const MOST_BYTES: usize = 16 << 20;
/// How often it is told of each edge at most that its notices are not taken.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What an edge says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Heartbeat,
    Ack,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Heartbeat, Self::Ack];

    /// How many wait of one edge; past it the oldest go. Of heartbeats one of each start that is remembered; of acknowledgements what a start
    /// with every target that is remembered of it says at once.
    const fn most_waiting(self) -> usize {
        match self {
            Self::Heartbeat => MOST_STARTS,
            Self::Ack => MOST_TARGETS,
        }
    }

    /// How many of one edge are checked in a round.
    const fn at_once(self) -> usize {
        match self {
            Self::Heartbeat => 1,
            Self::Ack => 64,
        }
    }
}

/// What was heard and is not checked yet.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    heartbeats: Mutex<Queues>,
    acks: Mutex<Queues>,
    came: Notify,
    /// By edge: when it was told last that its notices are not taken.
    warned: Mutex<BTreeMap<String, Instant>>,
}

/// By edge; between two rounds none is empty.
type Queues = BTreeMap<String, Queue>;

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Heard>,
    bytes: usize,
}

impl Queue {
    /// Returns how many went for it.
    fn put(&mut self, heard: Heard, most: usize) -> u64 {
        self.bytes += heard.payload.len();
        self.waiting.push_back(heard);
        let mut gone = 0;
        while self.waiting.len() > most || self.bytes > MOST_BYTES {
            let Some(oldest) = self.waiting.pop_front() else { break };
            self.bytes -= oldest.payload.len();
            gone += 1;
        }
        gone
    }

    fn take(&mut self, most: usize) -> Vec<Heard> {
        let count = most.min(self.waiting.len());
        let taken: Vec<Heard> = self.waiting.drain(..count).collect();
        self.bytes -= taken.iter().map(|heard| heard.payload.len()).sum::<usize>();
        taken
    }
}

impl Notices {
    fn queues(&self, kind: Kind) -> &Mutex<Queues> {
        match kind {
            Kind::Heartbeat => &self.heartbeats,
            Kind::Ack => &self.acks,
        }
    }

    /// Puts a notice aside for the turn of its edge. Returns how many older ones of that edge went for it.
    fn put(&self, kind: Kind, edge_id: String, heard: Heard) -> u64 {
        let gone = self.queues(kind).lock().entry(edge_id).or_default().put(heard, kind.most_waiting());
        self.came.notify_one();
        gone
    }

    /// What is to be checked next: some of every edge, in the order in which the edge said it.
    fn round(&self) -> Vec<(Kind, Heard)> {
        let mut round = Vec::new();
        for kind in Kind::ALL {
            self.queues(kind).lock().retain(|_, queue| {
                round.extend(queue.take(kind.at_once()).into_iter().map(|heard| (kind, heard)));
                !queue.waiting.is_empty()
            });
        }
        round
    }

    pub(crate) fn may_warn(&self, edge_id: &str) -> bool {
        let mut warned = self.warned.lock();
        let is_due = warned.get(edge_id).is_none_or(|at| at.elapsed() >= WARN_EVERY);
        if is_due {
            warned.insert(edge_id.to_owned(), Instant::now());
        }
        is_due
    }
}

impl Control {
    fn put_aside(&self, kind: Kind, heard: Heard) {
        let edge_id = edge_of(&heard.subject).to_owned();
        if !self.is_enrolled(&edge_id) {
            self.refuse_notices(&edge_id, 1, "no such edge is enrolled");
            return;
        }
        let gone = self.fleet.notices.put(kind, edge_id.clone(), heard);
        if gone > 0 {
            self.refuse_notices(&edge_id, gone, "it says more than is taken of one edge; its oldest notices are lost");
        }
    }

    /// Counts notices that are not taken, and tells of it, of each edge now and then: a flood of them must not become one of the log.
    pub(crate) fn refuse_notices(&self, edge_id: &str, count: u64, reason: &str) {
        self.metrics.notices_refused.inc_by(count);
        // Whoever is not enrolled has as many names as it likes.
        let known = if self.is_enrolled(edge_id) { edge_id } else { "" };
        if self.fleet.notices.may_warn(known) {
            tracing::warn!(edge_id, reason, "a notice of an edge is not believed");
        }
    }
}

/// Hears what edges say of themselves, until the bus ends it.
pub(crate) async fn listen(control: &Arc<Control>) -> Result<(), BusError> {
    let heartbeats = control.bus.hear("hb.*").await?;
    let acks = control.bus.hear("ack.*").await?;
    control.lives.listens(true);
    // Apart from each other: whoever reads the bus waits for nobody who checks a signature.
    let mut tasks = JoinSet::new();
    tasks.spawn(read(Arc::clone(control), Kind::Heartbeat, heartbeats));
    tasks.spawn(read(Arc::clone(control), Kind::Ack, acks));
    tasks.spawn(check(Arc::clone(control)));
    match tasks.join_next().await {
        Some(Ok(ended)) => ended,
        Some(Err(error)) => Err(BusError::Unavailable { reason: error.to_string() }),
        None => Ok(()),
    }
}

async fn read(control: Arc<Control>, kind: Kind, mut hearing: Box<dyn Hearing>) -> Result<(), BusError> {
    loop {
        let heard = hearing.next().await?;
        control.put_aside(kind, heard);
    }
}

/// Checks what was put aside, round by round.
async fn check(control: Arc<Control>) -> Result<(), BusError> {
    loop {
        let round = control.fleet.notices.round();
        if round.is_empty() {
            control.fleet.notices.came.notified().await;
            continue;
        }
        for (kind, heard) in round {
            let taken = match kind {
                Kind::Heartbeat => control.take_heartbeat(&heard),
                Kind::Ack => control.take_ack(&heard),
            };
            if let Err(reason) = taken {
                control.refuse_notices(edge_of(&heard.subject), 1, &reason);
            }
            yield_now().await;
        }
        sleep(ROUND).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn heard(edge_id: &str, said: impl Into<Bytes>) -> Heard {
        Heard { subject: format!("any.{edge_id}"), payload: said.into(), reply_to: None }
    }

    fn put(notices: &Notices, kind: Kind, edge_id: &str, said: &str) -> u64 {
        notices.put(kind, edge_id.to_owned(), heard(edge_id, said.to_owned()))
    }

    /// What of an edge is checked in a round.
    fn of_edge(round: &[(Kind, Heard)], kind: Kind, edge_id: &str) -> Vec<String> {
        let of_edge = round.iter().filter(|(of, heard)| *of == kind && edge_of(&heard.subject) == edge_id);
        of_edge.map(|(_, heard)| String::from_utf8(heard.payload.to_vec()).unwrap()).collect()
    }

    #[test]
    fn a_flood_by_one_edge_costs_no_other_a_notice_or_its_turn() {
        for kind in Kind::ALL {
            let notices = Notices::default();
            assert_eq!(put(&notices, kind, "edge-2", "before"), 0);
            let lost: u64 = (0..100_000).map(|n| put(&notices, kind, "edge-1", &n.to_string())).sum();
            assert_eq!(put(&notices, kind, "edge-3", "behind"), 0);
            assert_eq!(lost, 100_000 - kind.most_waiting() as u64, "{kind:?}");

            let round = notices.round();
            assert_eq!(of_edge(&round, kind, "edge-2"), ["before"]);
            assert_eq!(of_edge(&round, kind, "edge-3"), ["behind"]);
            assert_eq!(round.len(), kind.at_once() + 2);
            // In every later round the same.
            put(&notices, kind, "edge-2", "again");
            let round = notices.round();
            assert_eq!((of_edge(&round, kind, "edge-2").len(), round.len()), (1, kind.at_once() + 1));
        }
    }

    #[test]
    fn of_a_flood_the_newest_are_kept_in_their_order_and_nothing_when_it_was_checked() {
        let notices = Notices::default();
        for n in 0..1000 {
            put(&notices, Kind::Heartbeat, "edge-1", &n.to_string());
        }
        let rounds: Vec<String> =
            std::iter::repeat_with(|| notices.round()).take_while(|round| !round.is_empty()).flatten().map(said).collect();
        let newest: Vec<String> = (984..1000).map(|n: u32| n.to_string()).collect();
        assert_eq!(rounds, newest);
        assert!(notices.heartbeats.lock().is_empty() && notices.acks.lock().is_empty());
    }

    fn said((_, heard): (Kind, Heard)) -> String {
        String::from_utf8(heard.payload.to_vec()).unwrap()
    }

    #[test]
    fn what_waits_of_an_edge_is_bounded_in_bytes_too() {
        let notices = Notices::default();
        let large = Bytes::from(vec![b'x'; 1 << 20]);
        for _ in 0..100 {
            notices.put(Kind::Ack, "edge-1".to_owned(), heard("edge-1", large.clone()));
        }
        let bytes = |notices: &Notices| notices.acks.lock().values().map(|queue| queue.bytes).sum::<usize>();
        assert_eq!(bytes(&notices), MOST_BYTES);
        assert_eq!(notices.round().len(), MOST_BYTES >> 20);
        assert_eq!(bytes(&notices), 0);
        // One alone that is larger than that.
        let larger = Bytes::from(vec![b'x'; MOST_BYTES + 1]);
        assert_eq!(notices.put(Kind::Ack, "edge-1".to_owned(), heard("edge-1", larger)), 1);
        assert!(notices.round().is_empty());
    }

    #[test]
    fn a_flood_of_notices_is_none_of_the_log_and_hides_nobody_else_s() {
        let notices = Notices::default();
        assert!(notices.may_warn("edge-1"));
        assert!((0..1000).all(|_| !notices.may_warn("edge-1")));
        assert!(notices.may_warn("edge-2"));
    }
}
