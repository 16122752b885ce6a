use std::path::PathBuf;

use aegis_model::ManualClock;

use super::*;
use crate::engine::{Engine, EngineConfig};
use crate::ruleset::RuleSet;

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

fn event(tenant: &str, seq: i64, ts: i64, bus: i64) -> LateEvent {
    let lane = format!("{tenant}.e.1");
    LateEvent { tenant_id: TenantId::new(tenant).unwrap(), lane, seq: Some(seq), ts: at(ts), bus_ts: at(bus) }
}

#[derive(Debug)]
struct Nowhere;

impl PastEvents for Nowhere {
    fn consumer(&self) -> &'static str {
        "nowhere"
    }

    fn ask(&self, _asked: crate::warm::PastAsked) -> tokio::sync::oneshot::Receiver<crate::warm::Past> {
        tokio::sync::oneshot::channel().1
    }
}

fn with_a_lake() -> CatchUp {
    CatchUp::new(Some(Arc::new(Nowhere)))
}

/// A late event of the hundredth second and one of the 110th, for rules of a minute.
fn work() -> Work {
    let mut late = Late::new(&event("a", 1, 100, 1000));
    assert!(late.take(&event("a", 1, 100, 1000), MOST_RECEIPTS) && late.take(&event("a", 2, 110, 1001), MOST_RECEIPTS));
    Work::new(Whose { tenant_id: TenantId::new("a").unwrap(), waits: false, own: false }, vec![late])
}

const MINUTE: i64 = 60_000_000;

fn next(work: &Work, windows: &[i64], ahead: i64, final_before: Timestamp) -> Next {
    work.next(&Reach { windows, ahead, final_before })
}

/// A piece for the late events of the first hour.
fn piece(from: Timestamp, to: Timestamp, final_before: Timestamp) -> Piece {
    Piece { from, to, final_before, batch: 0, hour: 0, newest: at(110), first_bus: at(1000), longest_window: None }
}

#[test]
fn pieces_go_through_all_instants_that_late_events_touch_and_through_none_that_can_still_change() {
    let mut work = work();
    assert_eq!(next(&work, &[], 0, at(10_000)), Next::Done, "nobody asks");
    assert_eq!(next(&work, &[MINUTE], 0, at(100)), Next::Waits);
    assert_eq!(next(&work, &[MINUTE], 0, at(159)), Next::Waits, "less than a minute of it is final");
    let first = piece(at(100), at(160), at(160));
    assert_eq!(next(&work, &[MINUTE], 0, at(160)), Next::Piece(first));
    work.ready = Some((first, 0));
    work.pass();
    assert_eq!(next(&work, &[MINUTE], 0, at(160)), Next::Waits);
    // The last instant that sees the second one is that of its window's end.
    let to = at(170).plus_micros(1);
    let rest = piece(at(160), to, at(9999));
    assert_eq!(next(&work, &[MINUTE, 1_000_000], 0, at(9999)), Next::Piece(rest));
    work.ready = Some((rest, 0));
    work.pass();
    assert_eq!(next(&work, &[MINUTE], 0, at(9999)), Next::Done);
    assert!(matches!(next(&work, &[2 * MINUTE], 0, at(9999)), Next::Piece(_)), "a rule that looks back further still sees it");
}

#[test]
fn rows_that_wait_for_what_follows_are_looked_at_from_before_a_late_event_on_and_later() {
    let work = work();
    let (window, ahead) = (3 * MINUTE, 2 * MINUTE);
    // From two minutes before the first on.
    assert_eq!(next(&work, &[window], ahead, at(100)), Next::Waits);
    assert_eq!(next(&work, &[window], ahead, at(200)), Next::Piece(piece(at(-20), at(80), at(200))));
}

#[test]
fn a_piece_is_an_hour_at_most_and_those_that_wait_are_as_long_as_all_before() {
    let mut work = work();
    let day = 24 * 60 * MINUTE;
    let Next::Piece(first) = next(&work, &[day], 0, at(1_000_000)) else { unreachable!() };
    assert_eq!((first.from, first.to), (at(100), at(3700)));
    work.batches[0].touched.get_mut(&0).unwrap().done_to = Some(at(400));
    assert_eq!(next(&work, &[day], 0, at(699)), Next::Waits, "five minutes are done, and the next piece is as long");
    assert!(matches!(next(&work, &[day], 0, at(700)), Next::Piece(_)));
}

#[test]
fn what_is_too_much_is_read_in_less_and_in_the_end_for_shorter_windows() {
    let mut work = work();
    work.asked_window = 8_000_000;
    let mut tried = Vec::new();
    for _ in 0..20 {
        let to = at(100).plus_micros(work.most_micros.min(4 * MINUTE));
        work.ready = Some((piece(at(100), to, at(9999)), 0));
        if work.narrow() == Narrowed::No {
            break;
        }
        assert_eq!(work.ready, None, "it is asked anew");
        let longest = work.batches[0].touched[&0].longest_window.unwrap_or(i64::MAX);
        tried.push((work.reads_beside, work.most_micros, longest));
        work.asked_window = longest.min(work.asked_window);
    }
    let (all, hour) = (i64::MAX, MOST_MICROS);
    let expected = [
        (false, hour, all),
        (false, 2 * MINUTE, all),
        (false, MINUTE, all),
        (false, MINUTE, 4_000_000),
        (false, MINUTE, 2_000_000),
        (false, MINUTE, 1_000_000),
    ];
    assert_eq!(tried, expected);
    work.pass();
    assert!(work.batches[0].touched[&0].done_to.is_some(), "it is given up, and the next piece comes");
}

#[test]
fn what_gathers_is_caught_up_together_and_what_comes_meanwhile_afterwards() {
    let mut late = with_a_lake();
    late.note(&[event("a", 1, 100, 1000), event("b", 1, 100, 1000)], &|_| false);
    late.begin_gathered(Instant::now());
    assert!(late.works.is_empty(), "more may come");
    late.note(&[event("a", 2, 50, 1001)], &|_| false);
    late.begin_gathered(Instant::now() + GATHER);
    let of = |name: &str, waits: bool| Whose { tenant_id: TenantId::new(name).unwrap(), waits, own: false };
    let whose: Vec<Whose> = late.works.iter().map(|work| work.whose.clone()).collect();
    assert_eq!(whose, [of("a", false), of("a", true), of("b", false), of("b", true)]);
    let first = late.works[0].batches[0].clone();
    let Touched { oldest, newest, .. } = first.touched[&0].clone();
    assert_eq!((oldest, newest, first.first_bus, first.last_bus), (at(50), at(100), at(1000), at(1001)));
    assert_eq!((first.count(), late.waiting()), (1, 2));
    // The one under way stays as it is.
    late.note(&[event("a", 3, 70, 1002)], &|_| false);
    late.begin_gathered(Instant::now() + GATHER);
    assert_eq!((late.works.len(), late.gathering.len(), &late.works[0].batches), (4, 2, &vec![first.clone()]));
    // Beside one that is under way for a while it joins, after twice as long; a piece that was to be next has to wait for it.
    late.works[0].ready = Some((piece(at(50), at(160), at(9999)), 7));
    late.begin_gathered(Instant::now() + 2 * GATHER);
    assert_eq!((late.works.len(), late.gathering.len(), late.works[0].ready), (4, 0, None));
    let firsts = |work: &Work| work.batches.iter().map(|late| late.first_bus).collect::<Vec<_>>();
    assert_eq!((firsts(&late.works[0]), late.works[0].last_bus()), (vec![at(1000), at(1002)], at(1002)));
    assert_eq!(late.works[0].receipts()["a.e.1"], Runs::from([(1, 3)]));
    // And a third.
    late.note(&[event("a", 4, 70, 1003)], &|_| false);
    late.begin_gathered(Instant::now() + 2 * GATHER);
    assert_eq!(late.gathering.len(), 2);

    // A restart goes on with both.
    let saved = serde_json::to_string(&late.saved()).unwrap();
    let mut again = with_a_lake();
    again.take_up(serde_json::from_str(&saved).unwrap());
    assert_eq!((again.works.len(), again.gathering.len(), again.receipts), (4, 0, late.receipts));
    assert_eq!((again.works[0].batches[0] == first, firsts(&again.works[0])), (true, vec![at(1000), at(1002), at(1003)]));
    let mut without = CatchUp::new(None);
    without.take_up(serde_json::from_str(&saved).unwrap());
    assert_eq!(without.waiting(), 0);
}

#[test]
fn what_is_remembered_of_a_tenant_is_bounded_and_its_span_is_whole_all_the_same() {
    let mut late = with_a_lake();
    for seq in 0..2 * MOST_RECEIPTS as i64 {
        late.note(&[event("loud", 2 * seq, 100 + seq, 1000 + seq)], &|_| false);
    }
    late.note(&[event("quiet", 1, 100, 1000)], &|_| false);
    let counts: Vec<usize> = late.gathering.values().map(|(late, _)| late.count()).collect();
    assert_eq!(counts, [MOST_RECEIPTS, MOST_RECEIPTS, 1, 1]);
    assert_eq!(late.receipts, 2 * MOST_RECEIPTS + 2);
    let (loud, _) = late.gathering.values().next().unwrap();
    assert_eq!(loud.touched[&0].newest, at(99 + 2 * MOST_RECEIPTS as i64));
    let last = loud.receipts["loud.e.1"].last_key_value().unwrap();
    assert_eq!(*last.1, 4 * MOST_RECEIPTS as i64 - 2, "what comes behind so many is named too");
    late.begin_gathered(Instant::now() + GATHER);
    let nobody = Reach { windows: &[], ahead: 0, final_before: at(9999) };
    let forgotten: usize = late.works.iter_mut().map(|work| work.forget_done(&nobody)).sum();
    assert_eq!((forgotten, late.works[0].next(&nobody)), (late.receipts, Next::Done));
    // Without a lake nothing is remembered, since nothing comes of it.
    let mut without = CatchUp::new(None);
    without.note(&[event("a", 1, 100, 1000)], &|_| false);
    assert_eq!(without.waiting(), 0);
}

/// The attack: one event of long ago would have decades looked at before what it is to hide.
#[test]
fn a_late_event_of_long_ago_has_its_own_hour_looked_at_and_that_last() {
    let mut work = work();
    let hour = HOUR_MICROS / 1_000_000;
    let now = 100_000 * hour;
    for (seq, ts) in [(3, now), (4, now + 10), (5, now + hour)] {
        assert!(work.batches[0].take(&event("a", seq, ts, 2000), MOST_RECEIPTS));
    }
    let mut seen = Vec::new();
    while let Next::Piece(piece) = next(&work, &[MINUTE, 90 * MINUTE], 0, at(2 * now)) {
        seen.push((piece.hour, piece.from, piece.to));
        work.ready = Some((piece, 0));
        work.pass();
    }
    let end = |second: i64| at(second + 90 * 60).plus_micros(1);
    let expected = [
        (100_001, at(now + hour), at(now + 2 * hour)),
        (100_001, at(now + 2 * hour), end(now + hour)),
        // What the hour behind has is not looked at twice.
        (100_000, at(now), at(now + hour)),
        (0, at(100), at(3700)),
        (0, at(3700), end(110)),
    ];
    assert_eq!(seen, expected);
    assert_eq!(next(&work, &[MINUTE, 90 * MINUTE], 0, at(2 * now)), Next::Done);
    // What can still change waits, and what lies before does not wait for it.
    work.batches[0].touched.values_mut().for_each(|touched| touched.done_to = None);
    let Next::Piece(piece) = next(&work, &[MINUTE], 0, at(now)) else { unreachable!() };
    assert_eq!(piece.hour, 0);
}

#[test]
fn of_too_many_hours_the_oldest_are_given_up_and_counted() {
    let mut late = with_a_lake();
    let hour = HOUR_MICROS / 1_000_000;
    late.note(&[event("a", 0, 1000 * hour, 2000)], &|_| false);
    // Older and older ones do not drive out what is new.
    for back in 1..=2 * MOST_HOURS as i64 {
        late.note(&[event("a", back, (1000 - back) * hour, 2000)], &|_| false);
    }
    let hours: Vec<i64> = late.gathering.values().next().unwrap().0.touched.keys().copied().collect();
    assert_eq!(hours, (1001 - MOST_HOURS as i64..=1000).collect::<Vec<_>>());
    // Of rules of either kind.
    assert_eq!(late.given_up, 2 * (MOST_HOURS as u64 + 1));
}

/// What waits for a tenant's time to pass keeps nothing waiting that came since.
#[test]
fn of_several_batches_the_newest_hour_comes_first_and_what_is_done_is_forgotten() {
    let mut work = work();
    let hour = HOUR_MICROS / 1_000_000;
    let late = event("a", 9, 2 * hour, 3000);
    let mut second = Late::new(&late);
    assert!(second.take(&late, MOST_RECEIPTS));
    work.join(second);
    let windows = [30 * MINUTE];
    let asked = |second: i64| Reach { windows: &windows, ahead: 0, final_before: at(second) };
    let Next::Piece(newest) = work.next(&asked(2 * hour + 60)) else { unreachable!() };
    assert_eq!((newest.batch, newest.hour, newest.first_bus, newest.newest), (1, 2, at(3000), at(2 * hour)));
    work.ready = Some((newest, 0));
    work.pass();
    // The rest of it can still change; what came before it cannot.
    let Next::Piece(first) = work.next(&asked(2 * hour + 60)) else { unreachable!() };
    assert_eq!((first.batch, first.hour, first.first_bus), (0, 0, at(1000)));
    work.ready = Some((first, 0));
    work.pass();
    assert_eq!(work.next(&asked(2 * hour + 60)), Next::Waits);
    // Its two receipts follow each other in their lane: one run.
    assert_eq!((work.forget_done(&asked(2 * hour + 60)), work.batches.len()), (1, 1));
    let Next::Piece(rest) = work.next(&asked(4 * hour)) else { unreachable!() };
    assert_eq!((rest.batch, rest.from), (0, at(2 * hour + 60)));
}

/// The attack: an hour is filled until it cannot be read for rules that look back far, to have these left out of what was done in another one.
#[test]
fn who_fills_an_hour_has_rules_left_out_of_that_hour_alone() {
    let mut work = work();
    let hour = HOUR_MICROS / 1_000_000;
    let later = event("a", 9, 10 * hour, 2000);
    assert!(work.batches[0].take(&later, MOST_RECEIPTS));
    let windows = [MINUTE, 30 * MINUTE];
    let mut seen = Vec::new();
    while let Next::Piece(piece) = next(&work, &windows, 0, at(100 * hour)) {
        work.asked_window = if piece.longest_window.is_none() { windows[1] } else { windows[0] };
        work.ready = Some((piece, 0));
        let is_too_much = piece.hour == 10 && work.asked_window > MINUTE;
        let is_narrowed = is_too_much && work.narrow() != Narrowed::No;
        if !is_narrowed {
            seen.push((piece.hour, piece.to));
            work.pass();
        }
    }
    let of_hour = |hour: i64| seen.iter().filter(|(of, _)| *of == hour).map(|(_, to)| *to).max().unwrap();
    assert_eq!(work.batches[0].touched[&10].longest_window, Some(15 * MINUTE));
    assert_eq!(of_hour(10), at(10 * hour).plus_micros(MINUTE + 1), "the rule that looks back half an hour is left out there");
    assert_eq!(of_hour(0), at(110).plus_micros(30 * MINUTE + 1), "and not here");
}

/// The attack: many late events, behind which one is hidden that the lake had in time, since it waits for no lane.
#[test]
fn late_events_are_remembered_as_the_runs_that_they_are() {
    let mut late = Late::new(&event("a", 1, 100, 1000));
    for seq in (1..=5000).chain([4, 9000, 9001]) {
        assert!(late.take(&event("a", seq, 100, 1000), 2));
    }
    assert_eq!(late.receipts["a.e.1"], Runs::from([(1, 5000), (9000, 9001)]));
    assert!(late.take(&event("a", 9500, 100, 1000), 2));
    assert_eq!(late.receipts["a.e.1"], Runs::from([(1, 5000), (9000, 9500)]), "without room what lies between is taken for late");
    assert!(late.take(&event("b", 1, 100, 1000), 2));
    assert_eq!(late.count(), 2);
    let all = joined(vec![(9000, 9500), (5, 7), (1, 10), (11, 12), (20, 30), (25, 26)]);
    assert_eq!(all, Runs::from([(1, 12), (20, 30), (9000, 9500)]));
}

/// The attack: a tenant's admin has a rule of its own take so long that nothing is left for the program's.
#[test]
fn a_tenants_own_rules_are_caught_up_by_themselves() {
    let text = |id: &str, name: &str| {
        format!(
            "/* rule\nid: {id}\nname: {name}\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: active\nrequires: any\nowner: soc\n\
             description: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-27, note: n}}\n*/\n\
             SELECT agent_id, event_id FROM events WHERE decision = 'deny'\n"
        )
    };
    let rules = RuleSet::from_texts([(PathBuf::from("shipped/rule.sql"), text("T-1", "shipped"))]).unwrap();
    let tenant = TenantId::new("a").unwrap();
    let own = rules.common().own(&tenant, &text("OWN-1", "own-denies")).unwrap();
    let mut engine = Engine::new(rules, EngineConfig::new(Arc::new(ManualClock::new(at(0)))));
    assert!(!engine.windows.has_own(&tenant));
    let _nothing_of_before = engine.set_own(own, at(0), Vec::new());
    assert!(engine.windows.has_own(&tenant));
    let asked = |own: bool| {
        let work = Work::new(Whose { tenant_id: tenant.clone(), waits: false, own }, Vec::new());
        engine.rules_over_late(&work).map(|running| running.rule.header.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!((asked(false), asked(true)), (vec!["T-1".to_owned()], vec!["OWN-1".to_owned()]));
    let mut late = with_a_lake();
    late.note(&[event("a", 1, 100, 1000), event("b", 1, 100, 1000)], &|of| *of == tenant);
    let kinds: Vec<(&str, bool)> = late.gathering.keys().map(|whose| (whose.tenant_id.as_str(), whose.own)).collect();
    assert_eq!(kinds, [("a", false), ("a", true), ("a", false), ("a", true), ("b", false), ("b", false)]);
}
