//! Whether what was shipped has arrived: an acknowledgement says that a server had it, and the server may lose it. So control is asked how far its
//! history has each lane, and what it lacks at the end of one is shipped again. What it lacks in between, it asks for itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::feed::MOST_LANES;
use aegis_bus::{AskForMissing, EdgeBus};
use aegis_ledger::Ledger;
use aegis_shipper::ShipAgain;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Time between two rounds.
const EVERY: Duration = Duration::from_secs(10);
/// One round in so many looks at lanes that have ended too; the others at open ones.
const ALL_LANES_EACH: u64 = 30;
/// What was shipped so long ago should have arrived.
const SETTLED: Duration = Duration::from_secs(30);
/// Lanes that are read at a time.
const PAGE: usize = 1000;

/// What is known of a lane.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    /// The history has it up to here.
    confirmed: i64,
    /// It was shipped up to here, as of then.
    noted: Option<(i64, Instant)>,
}

impl Lane {
    /// Notes how far the lane is shipped; the seq that should have arrived by now, if any is to be asked for.
    fn note(&mut self, shipped: i64, now: Instant) -> Option<i64> {
        let (seq, since) = *self.noted.get_or_insert((shipped, now));
        if seq <= self.confirmed {
            self.noted = (shipped > self.confirmed).then_some((shipped, now));
            return None;
        }
        (now.saturating_duration_since(since) >= SETTLED).then_some(seq)
    }

    /// Takes what the history has; the stretch that it lacks.
    fn confirm(&mut self, head: i64, due: i64, now: Instant) -> Option<(i64, i64)> {
        self.confirmed = self.confirmed.max(head);
        if head >= due {
            self.noted = None;
            return None;
        }
        // It is shipped again, and has as long to arrive.
        self.noted = Some((due, now));
        Some((head + 1, due))
    }
}

/// Asks, until aborted.
pub(crate) fn spawn(bus: Arc<EdgeBus>, ledger: Ledger, again: ShipAgain) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut lanes = HashMap::new();
        for n in 0u64.. {
            sleep(EVERY).await;
            // Lanes of earlier starts are noted at once, and again when they should have arrived.
            let only_open = n > 8 && n % ALL_LANES_EACH != 0;
            round(&bus, &ledger, &again, only_open, &mut lanes).await;
        }
    })
}

async fn round(bus: &EdgeBus, ledger: &Ledger, again: &ShipAgain, only_open: bool, lanes: &mut HashMap<String, Lane>) {
    let (mut after, now, shipped) = (String::new(), Instant::now(), ledger.shipped_row().await);
    let mut due = Vec::new();
    loop {
        let ends = match ledger.lane_ends(shipped, only_open, &after, PAGE).await {
            Ok(ends) => ends,
            Err(error) => return tracing::warn!(%error, "the lanes of the ledger cannot be read"),
        };
        let Some((last, _)) = ends.last() else { break };
        after.clone_from(last);
        for (lane, end) in ends {
            if let Some(seq) = lanes.entry(lane.clone()).or_default().note(end, now) {
                due.push((lane, seq));
            }
        }
    }
    for asked in due.chunks(MOST_LANES) {
        let names: Vec<String> = asked.iter().map(|(lane, _)| lane.clone()).collect();
        let heads: HashMap<String, i64> = match bus.lane_heads(&names).await {
            Ok(heads) => heads.into_iter().collect(),
            Err(error) => return tracing::debug!(%error, "control does not say how far its history is"),
        };
        for (lane, seq) in asked {
            let (Some(head), Some(known)) = (heads.get(lane), lanes.get_mut(lane)) else { continue };
            if let Some((from_seq, to_seq)) = known.confirm(*head, *seq, now) {
                tracing::warn!(lane, from_seq, to_seq, "what was acknowledged has not arrived; it is shipped again");
                again.ask(lane, from_seq, to_seq);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_asked_for_when_it_should_have_arrived_and_shipped_again_from_what_is_there() {
        let (mut lane, begun) = (Lane::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(lane.note(5, at(0)), None);
        assert_eq!(lane.note(9, at(29)), None);
        assert_eq!(lane.note(9, at(30)), Some(5), "what was there half a minute ago");
        assert_eq!(lane.confirm(3, 5, at(30)), Some((4, 5)));
        assert_eq!(lane.note(9, at(40)), None, "it has as long to arrive again");
        assert_eq!(lane.note(9, at(60)), Some(5));
        assert_eq!(lane.confirm(9, 5, at(60)), None);
        assert_eq!(lane.note(9, at(70)), None);
        assert_eq!(lane.note(9, at(170)), None, "all of it is confirmed");
        assert_eq!(lane.note(10, at(180)), None);
        assert_eq!(lane.note(10, at(210)), Some(10));
    }
}
