//! Edges that fall silent, and that are back: each of their tenants is told once, by an event with a receipt. Promises that what was told outlives
//! this process, that no clock has a say in it (what is counted are this process's own signs of life that the bus took), and that nobody waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aegis_ledger::Draft;
use aegis_model::{EventKind, Heartbeat, Phase, SecurityEvent, TenantId, Timestamp};
use aegis_store::{EdgeLife, OutboxRow};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::control::{Control, ControlError};
use crate::fleet::edge_of;
use crate::input::MAX_ID;
use crate::outbox::Pending;
use crate::problem::Problem;

/// What is said of an edge that is not heard, and of one that is again.
const NOT_HEARD: &str = "not_heard";
const HEARD_AGAIN: &str = "heard_again";

/// Looks at the edges between two signs of life of control's own: at most one of them counts.
const LOOKS_PER_BEAT: u32 = 2;

/// What is known of the lives of the edges, by edge id. Whoever is in it was enrolled: nobody else is believed.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    of: Mutex<BTreeMap<String, Life>>,
    /// Control is subscribed to what edges say.
    listens: AtomicBool,
    /// The bus took a sign of life of control's own since the last look.
    beat_taken: AtomicBool,
    /// The log said that an edge stopped, and it may not be kept yet.
    leaver_read: AtomicBool,
}

/// Starts of an edge whose lanes have ended, of which late heartbeats are known as such.
const MOST_ENDED: usize = 16;

/// One edge.
#[derive(Debug, Default)]
struct Life {
    /// What its tenants were told last; None: it was never heard.
    told: Option<EdgeLife>,
    /// The last that came of it was that it stops.
    has_left: bool,
    /// Control's own signs of life since the edge's last.
    missed: u32,
    /// Its last sign of life, as far as this process heard one.
    last: Option<LastHeard>,
    /// Epochs of its lanes that ended with their start, the newest last.
    ended: VecDeque<String>,
}

/// What an edge said last.
#[derive(Clone, Debug)]
pub(crate) struct LastHeard {
    boot: String,
    at: Timestamp,
    backlog: u64,
    epoch: Option<String>,
}

/// What is to be told of an edge.
#[derive(Debug)]
struct Change {
    edge_id: String,
    from: Option<EdgeLife>,
    to: EdgeLife,
    last: Option<LastHeard>,
}

impl LastHeard {
    pub(crate) fn of(heartbeat: &Heartbeat) -> Self {
        Self { boot: heartbeat.boot.clone(), at: heartbeat.at, backlog: heartbeat.backlog, epoch: heartbeat.epoch.clone() }
    }
}

impl Life {
    fn has_ended(&self, epoch: &str) -> bool {
        self.ended.iter().any(|ended| ended == epoch)
    }

    fn ends(&mut self, epoch: &str) {
        if epoch.len() > MAX_ID || self.has_ended(epoch) {
            return;
        }
        if self.ended.len() >= MOST_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(epoch.to_owned());
    }

    /// What its tenants should know now, if they do not.
    fn change(&self, most_missed: u32) -> Option<EdgeLife> {
        match self.told {
            None | Some(EdgeLife::Left) => (!self.has_left).then_some(EdgeLife::Live),
            Some(EdgeLife::Live) if self.has_left => Some(EdgeLife::Left),
            Some(EdgeLife::Live) => (self.missed >= most_missed).then_some(EdgeLife::Silent),
            // That it takes its leave ends its silence too.
            Some(EdgeLife::Silent) => (self.missed < most_missed).then_some(EdgeLife::Live),
        }
    }
}

impl Lives {
    /// A heartbeat came that an enrolled edge signed.
    pub(crate) fn heard(&self, edge_id: &str, is_leaving: bool, last: LastHeard) {
        let mut lives = self.of.lock();
        let life = lives.entry(edge_id.to_owned()).or_default();
        // It was sent before the lanes of that start ended, and is read behind their end.
        if !is_leaving && last.epoch.as_deref().is_some_and(|epoch| life.has_ended(epoch)) {
            return;
        }
        (life.has_left, life.missed, life.last) = (is_leaving, 0, Some(last));
    }

    /// Reads from the log how an edge's lanes begin and end: what it did while nobody was there to hear it. For what the history does not have yet.
    pub(crate) fn read(&self, event: &SecurityEvent, is_proved: bool) {
        // With a reason, one lane ended for another and the edge goes on.
        let is_whole_life = matches!(event.kind, EventKind::LaneOpen | EventKind::LaneClose) && event.reason.is_none();
        if !is_whole_life || !is_proved {
            return;
        }
        // Whose lane it is was proved; `edge_id` says who claims to have made the event.
        let lane = event.lane.as_deref().unwrap_or_default();
        let mut lives = self.of.lock();
        let Some(life) = lives.get_mut(edge_of(lane)) else { return };
        life.has_left = event.kind == EventKind::LaneClose;
        if life.has_left {
            life.ends(lane.rsplit_once('.').map_or("", |(_, epoch)| epoch));
            self.leaver_read.store(true, Ordering::SeqCst);
        } else if life.told == Some(EdgeLife::Left) {
            // It began again. Of one that is silent only a heartbeat says that it is back.
            life.missed = 0;
        }
    }

    pub(crate) fn listens(&self, listens: bool) {
        self.listens.store(listens, Ordering::SeqCst);
    }

    /// The bus took a sign of life of control's own: it would have brought those of edges too.
    pub(crate) fn beat_taken(&self) {
        self.beat_taken.store(true, Ordering::SeqCst);
    }

    /// True once after the log said that an edge stopped.
    pub(crate) fn take_leaver_read(&self) -> bool {
        self.leaver_read.swap(false, Ordering::SeqCst)
    }

    /// That could not be kept: it is to be tried again.
    pub(crate) fn leaver_not_kept(&self) {
        self.leaver_read.store(true, Ordering::SeqCst);
    }

    /// Counts, if all that edges say comes here: else nobody knows who is silent.
    fn count(&self, history_is_whole: bool) {
        let beat_taken = self.beat_taken.swap(false, Ordering::SeqCst);
        if beat_taken && self.listens.load(Ordering::SeqCst) && history_is_whole {
            self.of.lock().values_mut().for_each(|life| life.missed = life.missed.saturating_add(1));
        }
    }

    fn changes(&self, most_missed: u32) -> Vec<Change> {
        let lives = self.of.lock();
        let changed = lives.iter().filter_map(|(edge_id, life)| {
            let to = life.change(most_missed)?;
            Some(Change { edge_id: edge_id.clone(), from: life.told, to, last: life.last.clone() })
        });
        changed.collect()
    }

    /// Its tenants were told of an edge. What comes of it meanwhile stays noted.
    fn told(&self, edge_id: &str, told: EdgeLife) {
        self.of.lock().entry(edge_id.to_owned()).or_default().told = Some(told);
    }

    /// What an earlier process told. Who lived then is given the whole time again; who did not is heard first.
    fn recall(&self, edge_id: &str, told: EdgeLife) {
        let missed = if told == EdgeLife::Silent { u32::MAX } else { 0 };
        let life = Life { told: Some(told), has_left: told == EdgeLife::Left, missed, ..Life::default() };
        self.of.lock().insert(edge_id.to_owned(), life);
    }

    /// What tenants were told of an edge last.
    pub(crate) fn of_edge(&self, edge_id: &str) -> Option<EdgeLife> {
        self.of.lock().get(edge_id)?.told
    }

    fn silent(&self) -> usize {
        self.of.lock().values().filter(|life| life.told == Some(EdgeLife::Silent)).count()
    }
}

impl Control {
    /// Takes up what an earlier process told.
    pub(crate) async fn recall_lives(&self) -> Result<(), ControlError> {
        for (edge_id, told) in self.store.edge_lives().await? {
            self.lives.recall(&edge_id, told);
        }
        Ok(())
    }

    /// How many of control's own signs of life an edge may miss.
    fn most_missed(&self) -> u32 {
        let beats = self.config.edge_silent_after.as_millis().div_ceil(self.config.beat_every.as_millis().max(1));
        u32::try_from(beats).unwrap_or(u32::MAX).max(1)
    }

    /// Tells what has changed. An edge whose change cannot be told now is looked at again.
    async fn tell_lives(&self) {
        for change in self.lives.changes(self.most_missed()) {
            if let Err(problem) = self.tell_life(&change).await {
                tracing::warn!(edge_id = change.edge_id, code = problem.code, "what became of an edge is not told yet");
            }
        }
    }

    /// Keeps that edges stopped as they should: before the history has what said so.
    pub(crate) async fn keep_leavers(&self) -> Result<(), Problem> {
        for change in self.lives.changes(self.most_missed()) {
            if change.to == EdgeLife::Left {
                self.tell_life(&change).await?;
            }
        }
        Ok(())
    }

    async fn tell_life(&self, change: &Change) -> Result<(), Problem> {
        let Change { edge_id, from, to, .. } = change;
        let kind = match (from, to) {
            (_, EdgeLife::Silent) => Some(EventKind::EdgeSilent),
            (Some(EdgeLife::Silent), EdgeLife::Live) => Some(EventKind::EdgeBack),
            _ => None,
        };
        let mut pending: Vec<Pending> = Vec::new();
        if let Some(kind) = kind {
            for tenant in self.tenants_of_edge(edge_id) {
                pending.push(self.prepare(self.life_draft(&tenant, kind, change))?);
            }
        }
        let facts: Vec<OutboxRow> = pending.iter().flat_map(|pending| pending.rows().iter().cloned()).collect();
        if !self.store.change_edge_life(edge_id, *from, *to, &facts).await? {
            // It was told already, by somebody else or by a change whose answer was lost: what stands in the store is what was told.
            for (_, told) in self.store.edge_lives().await?.iter().filter(|(known, _)| known == edge_id) {
                self.lives.told(edge_id, *told);
            }
            return Ok(());
        }
        self.lives.told(edge_id, *to);
        if *to == EdgeLife::Silent {
            tracing::warn!(edge_id, tenants = facts.len(), "an edge has fallen silent");
        } else {
            tracing::info!(edge_id, life = %to, "what is known of an edge has changed");
        }
        for pending in pending {
            // What cannot be sealed now is in the outbox.
            self.seal(pending).await?;
        }
        Ok(())
    }

    fn life_draft(&self, tenant: &TenantId, kind: EventKind, change: &Change) -> Draft {
        let mut event = self.event(tenant, kind);
        event.resource = Some(change.edge_id.clone());
        event.reason = Some(if kind == EventKind::EdgeSilent { NOT_HEARD } else { HEARD_AGAIN }.to_owned());
        let mut draft = Draft::new(event, Phase::Config);
        let last = change.last.as_ref().map(|last| {
            let mut said = json!({"boot": last.boot, "at": last.at});
            if self.serves_one_tenant(&change.edge_id) {
                said["backlog"] = json!(last.backlog);
            }
            said
        });
        draft.detail = Some(json!({
            "change": kind.as_str(), "edge_id": change.edge_id, "last_heartbeat": last,
            "silent_after_s": self.config.edge_silent_after.as_secs(), "by": {"type": "timer"},
        }));
        draft
    }
}

/// Looks at the edges until stopped; what is known then is kept.
pub(crate) async fn run(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    let pause = control.config.beat_every / LOOKS_PER_BEAT;
    loop {
        control.lives.count(control.history_is_whole());
        control.tell_lives().await;
        control.metrics.edges_silent.set(i64::try_from(control.lives.silent()).unwrap_or(i64::MAX));
        tokio::select! {
            () = sleep(pause) => {}
            _ = stop.changed() => break,
        }
    }
    if let Err(problem) = control.keep_leavers().await {
        tracing::warn!(code = problem.code, "what became of edges is not kept for the next start");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MOST: u32 = 3;

    fn last() -> LastHeard {
        LastHeard { boot: "b".into(), at: Timestamp::default(), backlog: 0, epoch: None }
    }

    /// A heartbeat of the start that opens lanes of this epoch.
    fn of_epoch(epoch: usize) -> LastHeard {
        LastHeard { epoch: Some(epoch.to_string()), ..last() }
    }

    fn lane_event(kind: EventKind, lane: &str) -> SecurityEvent {
        let mut event = SecurityEvent::new(TenantId::new("acme").unwrap(), "another", "edge", kind, Timestamp::default());
        event.lane = Some(lane.to_owned());
        event
    }

    /// What is told now, of one edge at most; it is told from then on.
    fn tell(lives: &Lives) -> Option<(Option<EdgeLife>, EdgeLife)> {
        let mut changes = lives.changes(MOST);
        assert!(changes.len() <= 1, "{changes:?}");
        let change = changes.pop()?;
        lives.told(&change.edge_id, change.to);
        Some((change.from, change.to))
    }

    /// A sign of life of control's own, behind which it looks.
    fn beat(lives: &Lives) {
        lives.beat_taken();
        lives.count(true);
    }

    fn heard() -> Lives {
        let lives = Lives::default();
        lives.listens(true);
        lives.heard("edge-1", false, last());
        assert_eq!(tell(&lives), Some((None, EdgeLife::Live)));
        lives
    }

    #[test]
    fn an_edge_is_silent_after_so_many_beats_and_back_with_its_next_heartbeat_each_once() {
        let lives = heard();
        for _ in 1..MOST {
            beat(&lives);
            assert_eq!(tell(&lives), None);
        }
        beat(&lives);
        assert_eq!(tell(&lives), Some((Some(EdgeLife::Live), EdgeLife::Silent)));
        for _ in 0..3 * MOST {
            beat(&lives);
            assert_eq!(tell(&lives), None);
        }
        lives.heard("edge-1", false, last());
        assert_eq!(tell(&lives), Some((Some(EdgeLife::Silent), EdgeLife::Live)));
        for _ in 0..3 * MOST {
            beat(&lives);
            lives.heard("edge-1", false, last());
            assert_eq!(tell(&lives), None);
        }
    }

    #[test]
    fn while_control_itself_is_deaf_nobody_is_silent() {
        let lives = heard();
        for _ in 0..3 * MOST {
            // The bus takes nothing; control is not subscribed; the history lacks what may say that the edge stopped.
            lives.count(true);
            lives.listens(false);
            beat(&lives);
            lives.listens(true);
            lives.beat_taken();
            lives.count(false);
        }
        assert_eq!(tell(&lives), None);
    }

    #[test]
    fn who_takes_leave_or_closes_its_lanes_is_not_missed() {
        for by_log in [false, true] {
            let lives = heard();
            if by_log {
                lives.read(&lane_event(EventKind::LaneClose, "acme.edge-1.1"), true);
                assert!(lives.take_leaver_read() && !lives.take_leaver_read());
            } else {
                lives.heard("edge-1", true, last());
            }
            assert_eq!(tell(&lives), Some((Some(EdgeLife::Live), EdgeLife::Left)));
            for _ in 0..3 * MOST {
                beat(&lives);
                assert_eq!(tell(&lives), None);
            }
            lives.heard("edge-1", false, last());
            assert_eq!(tell(&lives), Some((Some(EdgeLife::Left), EdgeLife::Live)));
        }
    }

    #[test]
    fn what_a_start_said_before_its_lanes_ended_is_no_life_behind_that_end() {
        let lives = heard();
        lives.heard("edge-1", false, of_epoch(1));
        lives.read(&lane_event(EventKind::LaneClose, "acme.edge-1.1"), true);
        lives.heard("edge-1", false, of_epoch(1));
        assert_eq!(tell(&lives), Some((Some(EdgeLife::Live), EdgeLife::Left)));
        for _ in 0..3 * MOST {
            beat(&lives);
            lives.heard("edge-1", false, of_epoch(1));
            assert_eq!(tell(&lives), None);
        }
        // Another start, whose heartbeat is read before the end of the one before it.
        lives.heard("edge-1", false, of_epoch(2));
        assert_eq!(tell(&lives), Some((Some(EdgeLife::Left), EdgeLife::Live)));
        lives.read(&lane_event(EventKind::LaneClose, "other.edge-1.1"), true);
        lives.heard("edge-1", false, of_epoch(2));
        assert_eq!(tell(&lives), None);
        for _ in 0..MOST {
            beat(&lives);
            lives.heard("edge-1", false, of_epoch(1));
        }
        assert_eq!(tell(&lives), Some((Some(EdgeLife::Live), EdgeLife::Silent)), "an ended start's words hide no silence");
        lives.heard("edge-1", false, of_epoch(1));
        assert_eq!(tell(&lives), None, "nor end one");
        for ended in 0..3 * MOST_ENDED {
            lives.read(&lane_event(EventKind::LaneClose, &format!("acme.edge-1.{ended}")), true);
        }
        assert!(lives.of.lock()["edge-1"].ended.len() <= MOST_ENDED);
    }

    #[test]
    fn only_a_proved_and_clean_end_of_an_edge_s_own_lane_is_its_leave() {
        let lives = heard();
        lives.read(&lane_event(EventKind::LaneClose, "acme.edge-1.1"), false);
        lives.read(&lane_event(EventKind::LaneClose, "acme.edge-2.1"), true);
        let mut set_back = lane_event(EventKind::LaneClose, "acme.edge-1.1");
        set_back.reason = Some("clock_set_back".to_owned());
        lives.read(&set_back, true);
        assert!(tell(&lives).is_none() && !lives.take_leaver_read());
        // A start of it after the clean end, told by the log alone: it is missed when it goes on to say nothing.
        lives.read(&lane_event(EventKind::LaneClose, "acme.edge-1.1"), true);
        assert_eq!(tell(&lives), Some((Some(EdgeLife::Live), EdgeLife::Left)));
        lives.read(&lane_event(EventKind::LaneOpen, "acme.edge-1.2"), true);
        assert_eq!(tell(&lives), Some((Some(EdgeLife::Left), EdgeLife::Live)));
        for _ in 0..MOST {
            beat(&lives);
        }
        assert_eq!(tell(&lives), Some((Some(EdgeLife::Live), EdgeLife::Silent)));
        // What an edge wrote into the log before it fell silent is no sign of life.
        lives.read(&lane_event(EventKind::LaneOpen, "acme.edge-1.2"), true);
        assert_eq!(tell(&lives), None);
    }

    #[test]
    fn a_start_of_control_tells_nothing_again_and_misses_who_lived_before() {
        for (told, missed) in [(EdgeLife::Silent, None), (EdgeLife::Left, None), (EdgeLife::Live, Some(EdgeLife::Silent))] {
            let lives = Lives::default();
            lives.listens(true);
            lives.recall("edge-1", told);
            assert_eq!(tell(&lives), None);
            for _ in 0..MOST {
                beat(&lives);
            }
            assert_eq!(tell(&lives).map(|(_, to)| to), missed);
        }
    }
}
