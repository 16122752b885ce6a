//! Receipts that a consumer (the history, the lake) lacks: a lane went on without them. They are asked for again, and a gap that nobody fills is told
//! of. What is open is kept by the consumer with its rows; of a lane that is new to the process, the consumer says how far it is. Promises that no
//! tenant's gaps take the room, or the turn, of another's.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aegis_model::{LaneReach, TenantId, Timestamp};

use crate::AskForMissing;

/// Lanes that are followed at most; past it all of them are looked up again.
const MOST_LANES: usize = 100_000;
/// Stretches of one lane, as many as a consumer keeps, and of all. A lane with more goes on when some have come: its edge ships again what
/// lies behind its head. Where all places are taken, the tenant that has the most gives up its newest for one that has fewer.
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

/// Requests at once: not more than whoever ships again takes. After so many nobody looks for more within this time, microseconds: it takes a look at all
/// that are open, and the consumer waits for it.
const AT_ONCE: usize = 64;
const REST_US: i64 = 100_000;

/// A lane and the first seq that is missing.
type Place = (String, i64);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Gap {
    tenant: TenantId,
    to_seq: i64,
    ask_at: Timestamp,
    tries: u32,
}

/// The gaps of all lanes.
#[derive(Debug, Default)]
pub struct Gaps {
    heads: HashMap<String, (TenantId, i64)>,
    open: BTreeMap<Place, Gap>,
    /// Whose they are.
    of_tenant: BTreeMap<TenantId, BTreeSet<Place>>,
    /// Whose turn it was last.
    asked_last: Option<TenantId>,
    /// When as many were asked for as may be at once.
    full_at: Option<Timestamp>,
    /// Lanes that the consumer does not have as they are here.
    changed: BTreeSet<String>,
}

impl Gaps {
    /// Whether the lane was seen; else `begin` says how far it is.
    #[must_use]
    pub fn knows(&self, lane: &str) -> bool {
        self.heads.contains_key(lane)
    }

    /// A lane as the consumer has it. What there is no place for is behind its head from now on, and comes again with what goes on from there.
    pub fn begin(&mut self, lane: LaneReach, now: Timestamp) {
        // Not while some of them are still to be written.
        if self.heads.len() >= MOST_LANES && self.changed.is_empty() {
            self.heads.clear();
        }
        let LaneReach { tenant_id, lane, mut head, missing } = lane;
        for (from_seq, to_seq) in missing {
            let place = (lane.clone(), from_seq);
            if self.open.contains_key(&place) {
                continue;
            }
            if !self.make_place(&tenant_id) {
                head = from_seq - 1;
                break;
            }
            self.put(place, Gap { tenant: tenant_id.clone(), to_seq, ask_at: now.plus_micros(FIRST_US), tries: 0 });
        }
        self.heads.insert(lane, (tenant_id, head));
    }

    /// Whether the consumer has this receipt of the lane, or is about to.
    #[must_use]
    pub fn has(&self, lane: &str, seq: i64) -> bool {
        if self.heads.get(lane).is_none_or(|(_, head)| seq > *head) {
            return false;
        }
        let before = self.open.range(..=(lane.to_owned(), seq)).next_back();
        before.is_none_or(|(place, gap)| place.0 != lane || seq > gap.to_seq)
    }

    /// A receipt of the lane, proved, is to be kept.
    pub fn took(&mut self, lane: &str, seq: i64, now: Timestamp) {
        let Some(head) = self.heads.get(lane).map(|(_, head)| *head) else { return };
        if seq <= head {
            self.fill(lane, seq);
            return;
        }
        let from_seq = head + 1;
        if seq - head > MOST_MISSING {
            return;
        }
        if seq > from_seq && !self.open_gap(lane, (from_seq, seq - 1), now) {
            return;
        }
        if let Some((_, head)) = self.heads.get_mut(lane) {
            *head = seq;
        }
        if !self.changed.contains(lane) {
            self.changed.insert(lane.to_owned());
        }
    }

    /// A receipt that was taken is not kept, and will not be when it comes again: the lane lacks it. It is asked for, seldom.
    pub fn lacks(&mut self, lane: &str, seq: i64, now: Timestamp) {
        let Some(tenant) = self.heads.get(lane).map(|(tenant, _)| tenant.clone()).filter(|_| self.has(lane, seq)) else { return };
        self.changed.insert(lane.to_owned());
        if self.has_room(lane) && self.make_place(&tenant) {
            let gap = Gap { tenant, to_seq: seq, ask_at: now.plus_micros(SELDOM_US), tries: MANY_TRIES + 1 };
            self.put((lane.to_owned(), seq), gap);
            return;
        }
        // It stands before that one, and nothing is said of what came behind it.
        let behind = (lane.to_owned(), seq)..=(lane.to_owned(), i64::MAX);
        let behind: Vec<Place> = self.open.range(behind).map(|(place, _)| place.clone()).collect();
        behind.iter().for_each(|place| self.remove(place));
        if let Some((_, head)) = self.heads.get_mut(lane) {
            *head = seq - 1;
        }
    }

    /// The lanes that are to be written with the rows that changed them.
    #[must_use]
    pub fn changed(&self) -> Vec<LaneReach> {
        let state = |lane: &String| {
            let (tenant_id, head) = self.heads.get(lane)?.clone();
            let open = self.open.range((lane.clone(), i64::MIN)..=(lane.clone(), i64::MAX));
            let missing = open.map(|((_, from_seq), gap)| (*from_seq, gap.to_seq)).collect();
            Some(LaneReach { tenant_id, lane: lane.clone(), head, missing })
        };
        self.changed.iter().filter_map(state).collect()
    }

    /// They were written.
    pub fn written(&mut self) {
        self.changed.clear();
    }

    /// False if there is no place for it.
    fn open_gap(&mut self, lane: &str, (from_seq, to_seq): (i64, i64), now: Timestamp) -> bool {
        let Some(tenant) = self.heads.get(lane).map(|(tenant, _)| tenant.clone()) else { return false };
        if !self.has_room(lane) || !self.make_place(&tenant) {
            return false;
        }
        self.put((lane.to_owned(), from_seq), Gap { tenant, to_seq, ask_at: now.plus_micros(FIRST_US), tries: 0 });
        true
    }

    fn has_room(&self, lane: &str) -> bool {
        let own = self.open.range((lane.to_owned(), i64::MIN)..=(lane.to_owned(), i64::MAX));
        own.take(MOST_OF_A_LANE).count() < MOST_OF_A_LANE
    }

    /// Whether the tenant may have one more. What another gives up for it is behind the head of its lane from then on.
    fn make_place(&mut self, tenant: &TenantId) -> bool {
        if self.open.len() < MOST_GAPS {
            return true;
        }
        let own = self.of_tenant.get(tenant).map_or(0, BTreeSet::len);
        let Some((_, of_fullest)) = self.of_tenant.iter().max_by_key(|(_, places)| places.len()) else { return false };
        if of_fullest.len() <= own + 1 {
            return false;
        }
        let Some(place) = of_fullest.last().cloned() else { return false };
        if !self.changed.contains(&place.0) {
            tracing::warn!(lane = place.0, "its tenant has more gaps than any other, and gives up some for another's");
        }
        self.remove(&place);
        if let Some((_, head)) = self.heads.get_mut(&place.0) {
            *head = place.1 - 1;
            self.changed.insert(place.0);
        }
        true
    }

    fn put(&mut self, place: Place, gap: Gap) {
        self.of_tenant.entry(gap.tenant.clone()).or_default().insert(place.clone());
        self.open.insert(place, gap);
    }

    fn remove(&mut self, place: &Place) {
        let Some(gap) = self.open.remove(place) else { return };
        if let Some(places) = self.of_tenant.get_mut(&gap.tenant) {
            places.remove(place);
            if places.is_empty() {
                self.of_tenant.remove(&gap.tenant);
            }
        }
    }

    fn fill(&mut self, lane: &str, seq: i64) {
        let before = self.open.range(..=(lane.to_owned(), seq)).next_back();
        let Some((place, gap)) = before.map(|(place, gap)| (place.clone(), gap.clone())) else { return };
        if place.0 != lane || seq > gap.to_seq {
            return;
        }
        let parts = place.1 < seq && seq < gap.to_seq;
        if parts && !(self.has_room(lane) && self.make_place(&gap.tenant)) {
            // It stays whole: what came is shipped once more with the rest.
            return;
        }
        self.remove(&place);
        self.changed.insert(lane.to_owned());
        if place.1 < seq {
            self.put(place, Gap { to_seq: seq - 1, ..gap.clone() });
        }
        if seq < gap.to_seq {
            self.put((lane.to_owned(), seq + 1), gap);
        }
    }

    /// Asks for what is due, tenant by tenant in turn, of each what has waited longest first.
    pub fn ask(&mut self, from: &dyn AskForMissing, now: Timestamp) {
        // Not where the clock was set back since.
        if self.full_at.is_some_and(|at| at <= now && now < at.plus_micros(REST_US)) {
            return;
        }
        let due = self.due(now);
        self.full_at = (due.len() >= AT_ONCE).then_some(now);
        for place in due {
            let Some(gap) = self.open.get_mut(&place) else { continue };
            let (lane, from_seq) = &place;
            if gap.tries == MANY_TRIES {
                tracing::error!(
                    lane,
                    from_seq,
                    to_seq = gap.to_seq,
                    "receipts are missing behind the bus, and nobody has sent them yet"
                );
            }
            from.ask(lane, *from_seq, gap.to_seq);
            gap.tries = gap.tries.saturating_add(1);
            gap.ask_at = now.plus_micros(if gap.tries > MANY_TRIES { SELDOM_US } else { AGAIN_US });
            self.asked_last = Some(gap.tenant.clone());
        }
    }

    /// What is to be asked for now. The tenant behind the one whose turn it was last comes first.
    fn due(&self, now: Timestamp) -> Vec<Place> {
        let mut by_tenant: BTreeMap<&TenantId, Vec<(Timestamp, &Place)>> = BTreeMap::new();
        for (place, gap) in self.open.iter().filter(|(_, gap)| now >= gap.ask_at) {
            by_tenant.entry(&gap.tenant).or_default().push((gap.ask_at, place));
        }
        let mut turns: Vec<(&TenantId, Vec<(Timestamp, &Place)>)> = by_tenant.into_iter().collect();
        for (_, of_tenant) in &mut turns {
            if of_tenant.len() > AT_ONCE {
                of_tenant.select_nth_unstable(AT_ONCE);
                of_tenant.truncate(AT_ONCE);
            }
            of_tenant.sort_unstable_by(|one, other| other.cmp(one));
        }
        let first = self.asked_last.as_ref().map_or(0, |last| turns.partition_point(|(tenant, _)| *tenant <= last));
        turns.rotate_left(first);
        let mut due = Vec::with_capacity(AT_ONCE);
        while due.len() < AT_ONCE && !turns.is_empty() {
            for (_, of_tenant) in turns.iter_mut().take(AT_ONCE - due.len()) {
                due.extend(of_tenant.pop().map(|(_, place)| place.clone()));
            }
            turns.retain(|(_, of_tenant)| !of_tenant.is_empty());
        }
        due
    }

    /// Stretches that are missing now.
    #[must_use]
    pub fn open(&self) -> usize {
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
        let lane = |head, missing: &[(i64, i64)]| LaneReach {
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
        let has = |seq: &i64| gaps.has("a", *seq);
        assert_eq!((0..14).filter(has).collect::<Vec<i64>>(), [0, 1, 2, 3, 4, 5, 9, 12]);
        assert!(!gaps.has("unknown", 7));
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
    fn what_was_taken_and_is_not_kept_is_lacking_and_asked_for_seldom() {
        let (mut gaps, asked) = (Gaps::default(), Asked::default());
        let tenant = TenantId::new("a").unwrap();
        fresh(&mut gaps, &tenant, "a");
        for round in 0..3 {
            (1..=5).for_each(|seq| gaps.took("a", seq, at(round * 60)));
            gaps.lacks("a", 3, at(round * 60));
            assert_eq!(gaps.changed()[0].through(), 2);
            gaps.written();
            gaps.ask(&asked, at(round * 60 + 59));
            assert!(asked.0.lock().is_empty(), "it would only come again");
            gaps.ask(&asked, at(round * 60 + 60));
            assert_eq!(asked.0.lock().drain(..).collect::<Vec<_>>(), [("a".to_owned(), 3, 3)]);
        }
        // Of what it does not have it lacks nothing more.
        for (lane, seq) in [("a", 3), ("a", 6), ("b", 1)] {
            gaps.lacks(lane, seq, at(200));
        }
        assert!(gaps.changed().is_empty());
        // Where there is no room, it stands before that one.
        (6..=900).filter(|seq| seq % 2 == 1).for_each(|seq| gaps.took("a", seq, at(200)));
        assert_eq!(gaps.changed()[0].missing.len(), MOST_OF_A_LANE);
        gaps.lacks("a", 101, at(200));
        let cut = gaps.changed()[0].clone();
        assert_eq!((cut.head, cut.through()), (100, 2));
        assert!(cut.missing.iter().all(|(_, to_seq)| *to_seq <= 100), "{cut:?}");
        assert!(!gaps.has("a", 101) && gaps.has("a", 99));
    }

    #[test]
    fn a_lane_full_of_gaps_takes_no_room_from_others_and_says_no_more_than_is_known() {
        let mut gaps = Gaps::default();
        let tenant = TenantId::new("a").unwrap();
        for lane in ["hostile", "honest"] {
            gaps.begin(LaneReach { tenant_id: tenant.clone(), lane: lane.into(), head: 0, missing: Vec::new() }, at(0));
        }
        (1..10_000).for_each(|n| gaps.took("hostile", 2 * n, at(0)));
        gaps.took("honest", 3, at(0));
        let states = gaps.changed();
        let of = |name: &str| states.iter().find(|lane| lane.lane == name).unwrap();
        assert_eq!((of("hostile").head, of("hostile").missing.len()), (512, MOST_OF_A_LANE));
        assert_eq!(of("honest").missing, [(1, 2)]);
    }

    fn fresh(gaps: &mut Gaps, tenant: &TenantId, lane: &str) {
        gaps.begin(LaneReach { tenant_id: tenant.clone(), lane: lane.to_owned(), head: 0, missing: Vec::new() }, at(0));
    }

    /// A tenant with so many lanes, each of which lacks every other receipt.
    fn riddle(gaps: &mut Gaps, name: &str, lanes: usize) -> TenantId {
        let tenant = TenantId::new(name).unwrap();
        for n in 0..lanes {
            let lane = format!("{name}.edge.{n:04}");
            fresh(gaps, &tenant, &lane);
            (1..=256).for_each(|gap| gaps.took(&lane, 2 * gap, at(0)));
        }
        tenant
    }

    #[test]
    fn hostile_tenants_take_no_place_and_no_turn_of_another() {
        let (mut gaps, asked) = (Gaps::default(), Asked::default());
        let hostile: Vec<TenantId> = (0..8).map(|n| riddle(&mut gaps, &format!("hostile-{n}"), 300)).collect();
        let held = |gaps: &Gaps, tenant: &TenantId| gaps.of_tenant.get(tenant).map_or(0, BTreeSet::len);
        assert!(hostile.iter().all(|tenant| held(&gaps, tenant).abs_diff(MOST_GAPS / 8) <= 2), "equal shares");
        assert_eq!((gaps.open(), gaps.of_tenant.values().map(BTreeSet::len).sum::<usize>()), (MOST_GAPS, MOST_GAPS));
        // Behind all others by name, and last to come.
        let honest = TenantId::new("z-honest").unwrap();
        fresh(&mut gaps, &honest, "z-honest.edge.1");
        gaps.took("z-honest.edge.1", 4, at(0));
        assert_eq!(held(&gaps, &honest), 1);
        gaps.ask(&asked, at(2));
        let (mut of_honest, mut others) = (0, 0);
        for (lane, ..) in asked.0.lock().drain(..) {
            *(if lane.starts_with("z-honest") { &mut of_honest } else { &mut others }) += 1;
        }
        assert_eq!((of_honest, others), (1, AT_ONCE - 1));
        // Whoever was not asked for has the next turn.
        let mut seen: BTreeSet<(String, i64)> = BTreeSet::new();
        gaps.ask(&asked, at(2));
        assert!(asked.0.lock().is_empty(), "all that are open are not looked through again at once");
        for n in 1..=8 {
            gaps.ask(&asked, at(2).plus_micros(n * REST_US));
            assert!(asked.0.lock().drain(..).all(|(lane, from, _)| seen.insert((lane, from))), "asked for twice at once");
        }
        assert_eq!(seen.len(), 8 * AT_ONCE);
    }

    #[test]
    fn what_has_no_place_at_a_start_is_behind_the_head_and_comes_again() {
        let mut gaps = Gaps::default();
        let hostile = riddle(&mut gaps, "hostile", 300);
        let lane = |tenant: &TenantId, name: &str| LaneReach {
            tenant_id: tenant.clone(),
            lane: name.to_owned(),
            head: 9,
            missing: vec![(2, 3), (6, 7)],
        };
        let honest = TenantId::new("honest").unwrap();
        gaps.begin(lane(&honest, "honest.edge.1"), at(0));
        gaps.begin(lane(&hostile, "hostile.edge.more"), at(0));
        for name in ["honest.edge.1", "hostile.edge.more"] {
            gaps.took(name, 10, at(0));
        }
        let states = gaps.changed();
        let of = |name: &str| states.iter().find(|lane| lane.lane == name).map(|lane| (lane.head, lane.missing.clone()));
        assert_eq!(of("honest.edge.1"), Some((10, vec![(2, 3), (6, 7)])));
        assert_eq!(of("hostile.edge.more"), None, "it stands before the first that is missing");
        gaps.took("hostile.edge.more", 2, at(0));
        assert_eq!(gaps.heads["hostile.edge.more"].1, 2, "what is shipped again takes it on");
        // However far back that is: an edge may delete what somebody is said to have.
        let long = LaneReach { head: MOST_MISSING, ..lane(&hostile, "hostile.edge.long") };
        gaps.begin(long, at(0));
        gaps.took("hostile.edge.long", MOST_MISSING + 1, at(0));
        gaps.took("hostile.edge.long", 2, at(0));
        assert_eq!(gaps.changed().iter().find(|lane| lane.lane == "hostile.edge.long").unwrap().through(), 2);
    }

    #[test]
    fn whose_gap_is_given_up_far_behind_its_head_has_nothing_from_there_on() {
        let mut gaps = Gaps::default();
        let full = riddle(&mut gaps, "full", 255);
        // The last of all by name, and two receipts are enough for it.
        let lane = LaneReach { tenant_id: full, lane: "full.edge.z".into(), head: 0, missing: Vec::new() };
        gaps.begin(lane, at(0));
        gaps.took("full.edge.z", MOST_MISSING, at(0));
        gaps.written();
        assert_eq!(gaps.open(), 255 * 256 + 1);
        let other = riddle(&mut gaps, "other", 1);
        assert_eq!((gaps.open(), gaps.of_tenant[&other].len()), (MOST_GAPS, 256));
        let given_up = gaps.changed().into_iter().find(|lane| lane.lane == "full.edge.z").unwrap();
        assert_eq!((given_up.head, given_up.through()), (0, 0));
        assert!(!gaps.has("full.edge.z", MOST_MISSING / 2));
    }

    #[test]
    fn a_gap_is_not_parted_beyond_a_lane_s_share() {
        let mut gaps = Gaps::default();
        let tenant = TenantId::new("a").unwrap();
        fresh(&mut gaps, &tenant, "a");
        gaps.took("a", 10_000, at(0));
        (1..5_000).for_each(|n| gaps.took("a", 2 * n, at(0)));
        assert_eq!(gaps.open(), MOST_OF_A_LANE);
        // All of it comes again, in order.
        (1..10_000).for_each(|seq| gaps.took("a", seq, at(0)));
        assert_eq!((gaps.open(), gaps.of_tenant.len()), (0, 0));
    }
}
