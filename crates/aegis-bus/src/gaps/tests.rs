use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;

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
    let lane =
        |head, missing: &[(i64, i64)]| LaneReach { tenant_id: tenant.clone(), lane: "a".into(), head, missing: missing.to_vec() };
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

/// What the consumer has of a lane: its rows, and how far it says that it is.
#[derive(Debug)]
struct Kept {
    rows: BTreeSet<i64>,
    reach: LaneReach,
}

proptest! {
    /// A batch that fails leaves some of its rows and no note; what is read next is that batch, or less of it, or more.
    #[test]
    fn what_is_noted_of_a_lane_is_there_whatever_failed_before(
        batches in proptest::collection::vec((proptest::collection::vec(1..40i64, 1..8), proptest::option::of(0..8usize)), 1..20),
    ) {
        let mut kept = Kept { rows: BTreeSet::new(), reach: LaneReach::none(TenantId::new("a").unwrap(), "a".to_owned()) };
        let mut gaps = Gaps::default();
        for (batch, fails_behind) in batches {
            if !gaps.knows("a") {
                gaps.begin(kept.reach.clone(), at(0));
            }
            batch.iter().for_each(|seq| gaps.took("a", *seq, at(0)));
            kept.rows.extend(batch.iter().take(fails_behind.unwrap_or(usize::MAX)));
            if fails_behind.is_some() {
                gaps.not_written();
            } else {
                gaps.changed().into_iter().for_each(|reach| kept.reach = reach);
                gaps.written();
            }
            let LaneReach { head, missing, .. } = &kept.reach;
            let is_missing = |seq: &i64| missing.iter().any(|(from_seq, to_seq)| (from_seq..=to_seq).contains(&seq));
            let said: Vec<i64> = (1..=*head).filter(|seq| !is_missing(seq)).collect();
            prop_assert!(said.iter().all(|seq| kept.rows.contains(seq)), "said {:?}, has {:?}", said, kept.rows);
        }
    }
}

#[test]
fn of_what_was_not_written_nothing_is_left() {
    let mut gaps = Gaps::default();
    let tenant = TenantId::new("a").unwrap();
    for lane in ["a", "b"] {
        fresh(&mut gaps, &tenant, lane);
        gaps.took(lane, 3, at(0));
    }
    gaps.written();
    gaps.took("a", 9, at(0));
    gaps.not_written();
    assert_eq!((gaps.knows("a"), gaps.knows("b"), gaps.open(), gaps.of_tenant[&tenant].len()), (false, true, 1, 1));
    assert!(gaps.changed().is_empty());
    // The consumer has it as before, and it goes on from there.
    gaps.begin(LaneReach { tenant_id: tenant, lane: "a".to_owned(), head: 3, missing: vec![(1, 2)] }, at(0));
    gaps.took("a", 4, at(0));
    assert_eq!((gaps.changed()[0].head, gaps.changed()[0].through()), (4, 0));
}
