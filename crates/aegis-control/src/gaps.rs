//! Receipts that the history lacks: a lane went on without them. They are asked for again, and a gap that nobody fills is told of. What is open
//! is kept with the history's rows; of a lane that is new to the process, the history says how far it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aegis_bus::AskForMissing;
use aegis_model::{TenantId, Timestamp};
use aegis_store::HistoryLane;

/// Lanes that are followed at most; past it all of them are looked up again.
const MOST_LANES: usize = 100_000;
/// Stretches of one lane, as many as the history keeps, and of all. A lane with more goes on when some have come: its edge ships again what
/// lies behind its head.
const MOST_OF_A_LANE: usize = 256;
const MOST_GAPS: usize = 65_536;
/// How long a gap is left alone at first, and between two requests, microseconds: what comes out of order comes soon.
const FIRST_US: i64 = 2_000_000;
const AGAIN_US: i64 = 5_000_000;
/// After so many requests a gap is asked for less often, and for as long as the process lives.
const MANY_TRIES: u32 = 24;
const SELDOM_US: i64 = 60_000_000;
/// A lane does not go on as far at once: who says so is not believed, and nothing is asked for.
const MOST_MISSING: i64 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    to_seq: i64,
    ask_at: Timestamp,
    tries: u32,
}

/// The gaps of all lanes.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    heads: HashMap<String, (TenantId, i64)>,
    /// By lane and first missing seq.
    open: BTreeMap<(String, i64), Gap>,
    /// Lanes that the history does not have as they are here.
    changed: BTreeSet<String>,
}

impl Gaps {
    /// Whether the lane was seen; else `begin` says how far it is.
    pub(crate) fn knows(&self, lane: &str) -> bool {
        self.heads.contains_key(lane)
    }

    /// A lane as the history has it.
    pub(crate) fn begin(&mut self, lane: HistoryLane, now: Timestamp) {
        // Not while some of them are still to be written.
        if self.heads.len() >= MOST_LANES && self.changed.is_empty() {
            self.heads.clear();
        }
        for (from_seq, to_seq) in lane.missing {
            let gap = Gap { to_seq, ask_at: now.plus_micros(FIRST_US), tries: 0 };
            if self.open.len() < MOST_GAPS {
                self.open.entry((lane.lane.clone(), from_seq)).or_insert(gap);
            }
        }
        self.heads.insert(lane.lane, (lane.tenant_id, lane.head));
    }

    /// A receipt of the lane, proved, is to be kept.
    pub(crate) fn took(&mut self, lane: &str, seq: i64, now: Timestamp) {
        let Some(head) = self.heads.get(lane).map(|(_, head)| *head) else { return };
        if seq <= head {
            self.fill(lane, seq);
            return;
        }
        let from_seq = head + 1;
        if seq - head > MOST_MISSING || (seq > from_seq && !self.has_room(lane)) {
            return;
        }
        if let Some((_, head)) = self.heads.get_mut(lane) {
            *head = seq;
        }
        if !self.changed.contains(lane) {
            self.changed.insert(lane.to_owned());
        }
        if seq > from_seq {
            self.open.insert((lane.to_owned(), from_seq), Gap { to_seq: seq - 1, ask_at: now.plus_micros(FIRST_US), tries: 0 });
        }
    }

    /// The lanes that are to be written with the rows that changed them.
    pub(crate) fn changed(&self) -> Vec<HistoryLane> {
        let state = |lane: &String| {
            let (tenant_id, head) = self.heads.get(lane)?.clone();
            let open = self.open.range((lane.clone(), i64::MIN)..=(lane.clone(), i64::MAX));
            let missing = open.map(|((_, from_seq), gap)| (*from_seq, gap.to_seq)).collect();
            Some(HistoryLane { tenant_id, lane: lane.clone(), head, missing })
        };
        self.changed.iter().filter_map(state).collect()
    }

    /// They were written.
    pub(crate) fn written(&mut self) {
        self.changed.clear();
    }

    fn has_room(&self, lane: &str) -> bool {
        let own = self.open.range((lane.to_owned(), i64::MIN)..=(lane.to_owned(), i64::MAX));
        self.open.len() < MOST_GAPS && own.take(MOST_OF_A_LANE).count() < MOST_OF_A_LANE
    }

    fn fill(&mut self, lane: &str, seq: i64) {
        let Some((place, gap)) = self.open.range(..=(lane.to_owned(), seq)).next_back().map(|(place, gap)| (place.clone(), *gap))
        else {
            return;
        };
        if place.0 != lane || seq > gap.to_seq {
            return;
        }
        self.open.remove(&place);
        self.changed.insert(lane.to_owned());
        if place.1 < seq {
            self.open.insert(place, Gap { to_seq: seq - 1, ..gap });
        }
        if seq < gap.to_seq {
            self.open.insert((lane.to_owned(), seq + 1), gap);
        }
    }

    /// Asks for what is due.
    pub(crate) fn ask(&mut self, from: &dyn AskForMissing, now: Timestamp) {
        for ((lane, from_seq), gap) in self.open.iter_mut().filter(|(_, gap)| now >= gap.ask_at) {
            if gap.tries == MANY_TRIES {
                tracing::error!(
                    lane,
                    from_seq,
                    to_seq = gap.to_seq,
                    "receipts are missing in the history, and nobody has sent them yet"
                );
            }
            from.ask(lane, *from_seq, gap.to_seq);
            gap.tries = gap.tries.saturating_add(1);
            gap.ask_at = now.plus_micros(if gap.tries > MANY_TRIES { SELDOM_US } else { AGAIN_US });
        }
    }

    /// Stretches that are missing now.
    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[derive(Debug, Default)]
    struct Asked(Mutex<Vec<(String, i64, i64)>>);

    impl AskForMissing for Asked {
        fn ask(&self, lane: &str, from_seq: i64, to_seq: i64) {
            self.0.lock().push((lane.to_owned(), from_seq, to_seq));
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::default().plus_seconds(seconds)
    }

    #[test]
    fn what_is_missing_is_asked_for_until_it_comes() {
        let (mut gaps, asked) = (Gaps::default(), Asked::default());
        assert!(!gaps.knows("a"));
        let tenant = TenantId::new("a").unwrap();
        let lane = |head, missing: &[(i64, i64)]| HistoryLane {
            tenant_id: tenant.clone(),
            lane: "a".into(),
            head,
            missing: missing.to_vec(),
        };
        gaps.begin(lane(3, &[]), at(0));
        assert!(gaps.changed().is_empty());
        [4, 5, 9, 12].into_iter().for_each(|seq| gaps.took("a", seq, at(0)));
        gaps.took("unknown", 7, at(0));
        assert_eq!(gaps.changed(), [lane(12, &[(6, 8), (10, 11)])]);
        gaps.written();
        gaps.ask(&asked, at(1));
        assert!(asked.0.lock().is_empty(), "not at once");
        gaps.ask(&asked, at(2));
        assert_eq!(*asked.0.lock(), [("a".to_owned(), 6, 8), ("a".to_owned(), 10, 11)]);
        asked.0.lock().clear();
        // The middle comes, and one edge.
        [7, 10].into_iter().for_each(|seq| gaps.took("a", seq, at(3)));
        assert_eq!(gaps.changed(), [lane(12, &[(6, 6), (8, 8), (11, 11)])]);
        gaps.ask(&asked, at(7));
        assert_eq!(*asked.0.lock(), [("a".to_owned(), 6, 6), ("a".to_owned(), 8, 8), ("a".to_owned(), 11, 11)]);
        [6, 8, 11].into_iter().for_each(|seq| gaps.took("a", seq, at(8)));
        assert_eq!(gaps.open(), 0);
        gaps.took("a", 14, at(8));
        asked.0.lock().clear();
        (0..1000).for_each(|seconds| gaps.ask(&asked, at(10 + seconds)));
        assert_eq!((asked.0.lock().len(), gaps.open()), (39, 1), "24 times often, then once a minute");
        // Another process goes on with what is open.
        let mut next = Gaps::default();
        gaps.changed().into_iter().for_each(|lane| next.begin(lane, at(1000)));
        asked.0.lock().clear();
        next.ask(&asked, at(1002));
        assert_eq!(*asked.0.lock(), [("a".to_owned(), 13, 13)]);
        // Nobody makes it believe that a lane has gone on beyond all measure.
        gaps.took("a", i64::MAX, at(2000));
        assert_eq!(gaps.open(), 1);
        gaps.took("a", 16, at(2000));
        assert_eq!(gaps.open(), 2);
    }

    #[test]
    fn a_lane_full_of_gaps_takes_no_room_from_others_and_says_no_more_than_is_known() {
        let mut gaps = Gaps::default();
        let tenant = TenantId::new("a").unwrap();
        for lane in ["hostile", "honest"] {
            gaps.begin(HistoryLane { tenant_id: tenant.clone(), lane: lane.into(), head: 0, missing: Vec::new() }, at(0));
        }
        (1..10_000).for_each(|n| gaps.took("hostile", 2 * n, at(0)));
        gaps.took("honest", 3, at(0));
        let states = gaps.changed();
        let of = |name: &str| states.iter().find(|lane| lane.lane == name).unwrap();
        assert_eq!((of("hostile").head, of("hostile").missing.len()), (512, MOST_OF_A_LANE));
        assert_eq!(of("honest").missing, [(1, 2)]);
    }
}
