//! What was heard of one edge. An edge may run more than once, by mistake or by theft: each start of it counts by itself, so that what one
//! enforces is never taken for what all do. Promises that nothing said before is heard again.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use aegis_model::{Enforced, Heartbeat, Target, Timestamp};
use tokio::time::Instant;

/// A start of an edge that was not heard for this long is silent.
pub(crate) const LIVE: Duration = Duration::from_secs(7);
/// Targets whose revision is remembered for each start.
pub(crate) const MOST_TARGETS: usize = 20_000;
/// Starts of an edge that are remembered.
pub(crate) const MOST_STARTS: usize = 16;

/// One edge, by its starts.
#[derive(Debug, Default)]
pub(crate) struct HeardEdge {
    starts: BTreeMap<String, Start>,
}

#[derive(Debug, Default)]
struct Start {
    /// None: another start has taken its place.
    heard: Option<Instant>,
    last: Option<Heartbeat>,
    /// By target: revision, and since when it is enforced.
    enforced: HashMap<Target, (i64, Timestamp)>,
}

impl Start {
    fn is_live(&self) -> bool {
        self.heard.is_some_and(|heard| heard.elapsed() < LIVE)
    }

    fn note(&mut self, enforced: &Enforced) {
        if self.enforced.len() >= MOST_TARGETS && !self.enforced.contains_key(&enforced.target) {
            self.enforced.clear();
        }
        let known = self.enforced.entry(enforced.target.clone()).or_insert((i64::MIN, enforced.applied_at));
        if known.0 < enforced.revision {
            *known = (enforced.revision, enforced.applied_at);
        }
    }
}

impl HeardEdge {
    fn start(&mut self, boot: &str) -> &mut Start {
        if !self.starts.contains_key(boot) && self.starts.len() >= MOST_STARTS {
            let longest_ago = self.starts.iter().min_by_key(|(_, start)| start.heard).map(|(boot, _)| boot.clone());
            longest_ago.and_then(|boot| self.starts.remove(&boot));
        }
        self.starts.entry(boot.to_owned()).or_default()
    }

    /// Takes a heartbeat, with what it says of targets that `its_own` admits.
    pub(crate) fn take(&mut self, heartbeat: Heartbeat, its_own: impl Fn(&Enforced) -> bool) -> Result<(), String> {
        let start = self.start(&heartbeat.boot);
        if start.last.as_ref().is_some_and(|last| last.seq >= heartbeat.seq) {
            return Err("it was heard before".to_owned());
        }
        let is_first = start.last.is_none();
        start.heard = Some(Instant::now());
        heartbeat.enforced.iter().filter(|enforced| its_own(enforced)).for_each(|enforced| start.note(enforced));
        if heartbeat.leaving {
            start.heard = None;
        }
        let ended = heartbeat.after.clone().filter(|_| is_first);
        start.last = Some(heartbeat);
        // Should it live all the same, its next heartbeat says so.
        if let Some(ended) = ended.and_then(|boot| self.starts.get_mut(&boot)) {
            ended.heard = None;
        }
        Ok(())
    }

    /// Takes an acknowledgement of a start that was heard; one that comes before its first heartbeat is told again with that.
    pub(crate) fn acknowledge(&mut self, boot: &str, enforced: &Enforced) {
        if let Some(start) = self.starts.get_mut(boot) {
            start.note(enforced);
        }
    }

    fn live(&self) -> impl Iterator<Item = &Start> {
        self.starts.values().filter(|start| start.is_live())
    }

    /// How many starts of it live: more than one are clones.
    pub(crate) fn live_starts(&self) -> usize {
        self.live().count()
    }

    /// Since when every start that lives enforces this revision; None while one does not, or none lives.
    pub(crate) fn enforces(&self, target: &Target, revision: i64) -> Option<Timestamp> {
        let since =
            self.live().map(|start| start.enforced.get(target).filter(|(enforced, _)| *enforced >= revision).map(|(_, at)| *at));
        since.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// Its newest heartbeat.
    pub(crate) fn last(&self) -> Option<&Heartbeat> {
        self.starts
            .values()
            .filter(|start| start.heard.is_some())
            .max_by_key(|start| start.heard)
            .and_then(|start| start.last.as_ref())
    }

    /// True if a start that lives says that its clock is off.
    pub(crate) fn clock_is_suspect(&self) -> bool {
        self.live().any(|start| start.last.as_ref().is_some_and(|last| last.clock_suspect))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::{TargetType, TenantId};

    fn enforced(revision: i64) -> Enforced {
        let target = Target { tenant_id: TenantId::new("acme").unwrap(), target_type: TargetType::Agent, target_id: "a".into() };
        Enforced { target, revision, applied_at: Timestamp::from_micros(revision) }
    }

    fn heartbeat(boot: &str, seq: u64, after: Option<&str>) -> Heartbeat {
        Heartbeat {
            edge_id: "edge-1".into(),
            boot: boot.into(),
            after: after.map(str::to_owned),
            epoch: None,
            seq,
            at: Timestamp::default(),
            clock_offset_us: None,
            clock_suspect: false,
            feed_age_s: None,
            backlog: 0,
            enforced: vec![],
            leaving: false,
        }
    }

    #[test]
    fn what_one_clone_enforces_is_not_what_both_do() {
        let mut edge = HeardEdge::default();
        let target = enforced(3).target;
        edge.take(heartbeat("one", 0, Some("before")), |_| true).unwrap();
        edge.acknowledge("one", &enforced(3));
        assert_eq!(edge.enforces(&target, 3), Some(Timestamp::from_micros(3)));
        edge.take(heartbeat("two", 0, Some("before")), |_| true).unwrap();
        assert_eq!((edge.live_starts(), edge.enforces(&target, 3)), (2, None));
        // An acknowledgement of a start that was never heard makes nothing whole.
        edge.acknowledge("three", &enforced(3));
        assert_eq!(edge.enforces(&target, 3), None);
        edge.acknowledge("two", &enforced(4));
        assert_eq!(edge.enforces(&target, 3), Some(Timestamp::from_micros(4)));
        assert_eq!(edge.enforces(&target, 4), None);
        // Both go on being heard, each for itself; nothing is heard twice.
        edge.take(heartbeat("one", 1, Some("before")), |_| true).unwrap();
        edge.take(heartbeat("two", 1, Some("before")), |_| true).unwrap();
        edge.take(heartbeat("one", 1, Some("before")), |_| true).unwrap_err();
        assert_eq!(edge.live_starts(), 2);
    }

    #[test]
    fn a_start_takes_the_place_of_the_one_before_it_unless_that_lives() {
        let mut edge = HeardEdge::default();
        edge.take(heartbeat("one", 0, None), |_| true).unwrap();
        edge.take(heartbeat("two", 0, Some("one")), |_| true).unwrap();
        assert_eq!(edge.live_starts(), 1);
        edge.take(heartbeat("one", 0, None), |_| true).unwrap_err();
        edge.take(heartbeat("two", 1, Some("one")), |_| true).unwrap();
        edge.take(heartbeat("one", 1, None), |_| true).unwrap();
        assert_eq!(edge.live_starts(), 2, "it lives after all");
        edge.take(heartbeat("two", 2, Some("one")), |_| true).unwrap();
        assert_eq!(edge.live_starts(), 2, "only the first heartbeat ends another start");
    }

    #[test]
    fn a_start_that_takes_its_leave_lives_no_longer_and_others_do() {
        let mut edge = HeardEdge::default();
        edge.take(heartbeat("one", 0, None), |_| true).unwrap();
        edge.take(heartbeat("two", 0, None), |_| true).unwrap();
        edge.take(Heartbeat { leaving: true, ..heartbeat("one", 1, None) }, |_| true).unwrap();
        assert_eq!(edge.live_starts(), 1);
        edge.take(Heartbeat { leaving: true, ..heartbeat("two", 1, None) }, |_| true).unwrap();
        assert_eq!(edge.live_starts(), 0);
    }

    #[test]
    fn starts_are_forgotten_from_the_one_heard_longest_ago_and_those_of_others_are_not_believed() {
        let mut edge = HeardEdge::default();
        for boot in 0..200 {
            edge.take(heartbeat(&format!("{boot}"), 0, None), |_| true).unwrap();
            edge.acknowledge(&format!("never heard {boot}"), &enforced(1));
        }
        assert!(edge.starts.len() <= MOST_STARTS && edge.starts.contains_key("199"));
        let mut one = HeardEdge::default();
        let mut beat = heartbeat("one", 0, None);
        beat.enforced = vec![enforced(2)];
        one.take(beat, |_| false).unwrap();
        assert_eq!(one.enforces(&enforced(2).target, 2), None);
    }
}
