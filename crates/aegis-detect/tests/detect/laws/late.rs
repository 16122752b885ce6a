//! L-LATE: what live told, and what is found when late events are caught up, is together what live told and what would have been told had all of it been
//! in time; in whatever parts they are caught up, one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use aegis_detect::{Engine, EngineConfig, IMPAIRED_NAME, LateFound, LatePart, LateRule, RuleSet, Watermarks, alert_id};
use aegis_model::{Alert, Clock, ManualClock, SecurityEvent, TenantId, Timestamp};
use proptest::prelude::*;

use super::logs::{LATENESS_S, RULES, START, Step, log_of, rule_text, run_on};

/// Their window, microseconds.
const WINDOW: i64 = 10_000_000;
/// Rules that a late event adds to, and such that one takes away from; the last waits for what follows.
const ASKED: [&str; 7] =
    ["stateless", "sliding", "sliding-one-bucket", "stepped-group", "pattern", "stepped-absence", "deferred"];

/// The rules that wait for what follows, or the others. Without episodes: of one that begins earlier, both beginnings are told.
fn texts(waits: bool) -> Vec<String> {
    let asked = RULES.iter().enumerate().filter(|(_, (name, ..))| ASKED.contains(name) && (*name == "deferred") == waits);
    let without = |text: String, extra: &str| if extra.is_empty() { text } else { text.replace(extra, "") };
    asked.map(|(index, (_, extra, _))| without(rule_text(index), extra)).collect()
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(ManualClock::new(Timestamp::from_micros(START).plus_seconds(3 * 86_400)))
}

/// Each a receipt of its lane, which the bus stored at a time of its own.
fn receipts_of(steps: &[Step]) -> Vec<SecurityEvent> {
    let mut log = log_of(steps);
    for (place, event) in log.iter_mut().enumerate() {
        event.seq = Some(place as i64 + 1);
        event.bus_ts = event.bus_ts.map(|bus_ts| bus_ts.plus_micros(place as i64));
    }
    log
}

/// The same as a lake has it, in the order of events.
fn in_the_lake(log: &[SecurityEvent]) -> Vec<SecurityEvent> {
    let mut watermarks = Watermarks::default();
    let late = |event: &SecurityEvent| SecurityEvent { late: !watermarks.admit(event, LATENESS_S * 1_000_000), ..event.clone() };
    let mut lake: Vec<SecurityEvent> = log.iter().map(late).collect();
    lake.sort_by(|a, b| a.order_key().cmp(&b.order_key()));
    lake
}

/// The alerts that stand of these events, as each says whether it was late.
fn standing(texts: &[String], lake: &[SecurityEvent]) -> BTreeSet<String> {
    let rules = RuleSet::from_texts(texts.iter().map(|text| ("rule.sql".into(), text.clone()))).unwrap();
    let config = EngineConfig { lateness_s: LATENESS_S, ..EngineConfig::new(clock()) };
    let all = run_on(Engine::new(rules, config).in_order(), lake, &[]);
    all.into_iter().filter(|(rule, _)| rule != IMPAIRED_NAME).map(|(_, alert_id)| alert_id).collect()
}

fn part(texts: &[String], (from, to): (Timestamp, Timestamp), bus: (Timestamp, Timestamp)) -> LatePart {
    let always = Timestamp::from_micros(i64::MIN);
    LatePart {
        tenant: TenantId::new("a").unwrap(),
        from,
        to,
        beside: WINDOW,
        final_before: Timestamp::from_micros(START).plus_seconds(2 * 86_400),
        first_bus: bus.0,
        last_bus: bus.1,
        receipts: BTreeMap::new(),
        rules: texts.iter().map(|text| LateRule { text: text.clone(), since: always }).collect(),
        clock: clock(),
    }
}

fn find(part: &LatePart, lake: &[SecurityEvent]) -> LateFound {
    let found = part.find(lake.to_vec(), &|| true).unwrap().unwrap();
    assert!(found.failed.is_empty(), "{:?}", found.failed);
    found
}

/// The instants that some late events touch, and when the bus stored the first and the last of them.
fn touched(late: &[&SecurityEvent], waits: bool) -> ((Timestamp, Timestamp), (Timestamp, Timestamp)) {
    let times = |of: fn(&SecurityEvent) -> Timestamp| {
        let all: BTreeSet<Timestamp> = late.iter().map(|event| of(event)).collect();
        (*all.first().unwrap(), *all.last().unwrap())
    };
    let (oldest, newest) = times(|event| event.ts);
    let ahead = if waits { WINDOW } else { 0 };
    ((oldest.plus_micros(-ahead), newest.plus_micros(WINDOW + 1)), times(|event| event.bus_ts.unwrap()))
}

/// What stands of what is found, where late events are caught up in these groups, and of each group in two pieces. Where groups join, all of them come
/// while the second piece of the first one waits, and are looked at before it.
fn caught_up(
    texts: &[String],
    waits: bool,
    lake: &[SecurityEvent],
    groups: &[&[&SecurityEvent]],
    (split, join): (i64, bool),
) -> BTreeSet<String> {
    let mut pieces = Vec::new();
    let mut last_of_all = None;
    for group in groups.iter().filter(|group| !group.is_empty()) {
        let ((from, to), bus) = touched(group, waits);
        let middle = from.plus_micros((to.as_micros() - from.as_micros()) * split / 10);
        pieces.extend([((from, middle), bus), ((middle, to), bus)]);
        last_of_all = last_of_all.max(Some(bus.1));
    }
    if join && pieces.len() > 2 {
        pieces[1..].reverse();
        pieces[1..].iter_mut().for_each(|(_, bus)| bus.1 = last_of_all.unwrap());
    }
    let mut found_late = BTreeSet::new();
    for (span, bus) in pieces {
        let LateFound { alerts, again, retractions, .. } = find(&part(texts, span, bus), lake);
        for alert in alerts.into_iter().chain(again) {
            assert!(alert.found_late && alert.respond.is_empty() && !alert.event_ids.is_empty());
            found_late.insert(alert.alert_id);
        }
        for retraction in retractions {
            assert!(found_late.remove(&retraction.alert_id) || join, "it was found late before");
        }
    }
    found_late
}

fn any_late_step() -> impl Strategy<Value = Step> {
    (0..4i64, prop_oneof![2 => Just(0i64), 1 => 8..30i64], 0..2u8, any::<bool>()).prop_map(|(forward, late, agent, deny)| Step {
        forward,
        late,
        tenant: 0,
        agent,
        deny,
        repeat: false,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn l_late_what_is_caught_up_is_what_would_have_been_told_in_time(
        steps in prop::collection::vec(any_late_step(), 4..24),
        cuts in (0..12usize, 0..12usize),
        split in 0..11i64,
        join in any::<bool>(),
    ) {
        let log = receipts_of(&steps);
        let lake = in_the_lake(&log);
        let mut late: Vec<&SecurityEvent> = lake.iter().filter(|event| event.late).collect();
        late.sort_by_key(|event| event.bus_ts);
        let (first, second) = (cuts.0.min(cuts.1).min(late.len()), cuts.0.max(cuts.1).min(late.len()));
        let groups = [&late[..first], &late[first..second], &late[second..]];
        let in_time: Vec<SecurityEvent> = lake.iter().map(|event| SecurityEvent { late: false, ..event.clone() }).collect();
        for waits in [false, true] {
            let texts = texts(waits);
            let live = standing(&texts, &lake);
            let expected: BTreeSet<String> = standing(&texts, &in_time).union(&live).cloned().collect();
            for groups in [&groups[..], &[&late[..]][..]] {
                let found = caught_up(&texts, waits, &lake, groups, (split, join));
                prop_assert!(found.is_disjoint(&live), "what live told is not told again");
                let all: BTreeSet<String> = found.union(&live).cloned().collect();
                prop_assert_eq!(&all, &expected);
            }
        }
    }
}

fn step(forward: i64, late: i64, deny: bool) -> Step {
    Step { forward, late, tenant: 0, agent: 0, deny, repeat: false }
}

/// Two denies, and a minute later a third one that is of their time, and an allowed call of an earlier one; and then, of just before that, a deny.
fn a_log() -> Vec<SecurityEvent> {
    receipts_of(&[
        step(40, 0, true),
        step(1, 0, true),
        step(60, 0, true),
        step(1, 60, true),
        step(1, 90, false),
        step(1, 92, true),
    ])
}

fn names(alerts: &[Alert]) -> BTreeSet<&str> {
    alerts.iter().map(|alert| alert.rule_name.as_str()).collect()
}

#[test]
fn a_late_event_is_told_of_and_a_later_one_takes_that_back_and_nothing_that_live_told() {
    let (texts, lake) = (texts(false), in_the_lake(&a_log()));
    let mut late: Vec<&SecurityEvent> = lake.iter().filter(|event| event.late).collect();
    late.sort_by_key(|event| event.bus_ts);
    assert_eq!(late.len(), 3);
    let (span, bus) = touched(&late[..2], false);
    let first = find(&part(&texts, span, bus), &lake);
    assert!(names(&first.alerts).is_superset(&BTreeSet::from(["sliding", "stateless", "stepped-absence"])), "{first:?}");
    assert!(first.retractions.is_empty());
    let allowed = first.alerts.iter().find(|alert| alert.rule_name == "stepped-absence").unwrap();
    let (span, bus) = touched(&late[2..], false);
    let second = find(&part(&texts, span, bus), &lake);
    let taken_back: Vec<&str> = second.retractions.iter().map(|retraction| retraction.alert_id.as_str()).collect();
    assert!(taken_back.contains(&allowed.alert_id.as_str()), "{second:?}");
    assert!(standing(&texts, &lake).iter().all(|live| !taken_back.contains(&live.as_str())));
}

/// T-D4: who can ship late makes nobody be frozen; and T-D3: nor keeps live from freezing whom it finds.
#[test]
fn nobody_is_contained_on_what_came_late_and_live_s_own_alert_keeps_its_id() {
    let text = texts(false).into_iter().find(|text| text.contains("name: sliding\n")).unwrap();
    let text = text.replace("requires: any\n", "respond: [freeze_agent]\n");
    let lake = in_the_lake(&a_log());
    let late: Vec<&SecurityEvent> = lake.iter().filter(|event| event.late).collect();
    let (span, bus) = touched(&late, false);
    let found = find(&part(&[text], span, bus), &lake);
    let [alert] = found.alerts.as_slice() else { unreachable!("{found:?}") };
    assert!(alert.found_late && alert.respond.is_empty() && alert.fields.contains_key("not_contained"), "{alert:?}");
    assert_eq!(alert.event_ids.len(), 3);
    let of_live = alert_id(&alert.tenant_id, &alert.rule_id, &alert.key, alert.event_ids[0]).unwrap();
    assert_ne!(alert.alert_id, of_live);
}

/// The machine is so busy that a moment's work takes this thread eleven seconds.
#[derive(Debug, Default)]
struct Starved(AtomicI64);

impl Clock for Starved {
    fn now(&self) -> Timestamp {
        clock().now()
    }

    fn steady_micros(&self) -> i64 {
        self.0.fetch_add(11_000_000, Ordering::Relaxed)
    }
}

#[test]
fn on_a_busy_machine_rules_are_not_stopped_for_what_others_take() {
    let (texts, lake) = (texts(false), in_the_lake(&a_log()));
    let late: Vec<&SecurityEvent> = lake.iter().filter(|event| event.late).collect();
    let (span, bus) = touched(&late, false);
    let starved = LatePart { clock: Arc::new(Starved::default()), ..part(&texts, span, bus) };
    let told = |found: LateFound| -> BTreeSet<String> { found.alerts.into_iter().map(|alert| alert.alert_id).collect() };
    assert_eq!(told(find(&starved, &lake)), told(find(&part(&texts, span, bus), &lake)));
}

/// Whoever reaches the bus writes what he wants, of any time.
#[test]
fn what_did_not_prove_itself_is_not_caught_up() {
    let texts = texts(false);
    let mut lake = in_the_lake(&a_log());
    lake.iter_mut().filter(|event| event.late).for_each(|event| event.verified = false);
    let late: Vec<&SecurityEvent> = lake.iter().filter(|event| event.late).collect();
    let (span, bus) = touched(&late, false);
    let found = find(&part(&texts, span, bus), &lake);
    assert!(found.alerts.is_empty() && found.retractions.is_empty(), "{found:?}");
}

/// Detection holds lanes that wait, and the lake does not: it may have in time what was late.
#[test]
fn what_was_late_for_detection_alone_is_caught_up_too() {
    let texts = texts(false);
    let mut lake = in_the_lake(&a_log());
    let late: Vec<SecurityEvent> = lake.iter().filter(|event| event.late).cloned().collect();
    let (span, bus) = touched(&late.iter().collect::<Vec<_>>(), false);
    let told = |lake: &[SecurityEvent], receipts: BTreeMap<String, BTreeMap<i64, i64>>| -> BTreeSet<String> {
        let found = find(&LatePart { receipts, ..part(&texts, span, bus) }, lake);
        found.alerts.into_iter().map(|alert| alert.alert_id).collect()
    };
    let expected = told(&lake, BTreeMap::new());
    assert!(!expected.is_empty());
    lake.iter_mut().for_each(|event| event.late = false);
    assert!(told(&lake, BTreeMap::new()).is_empty(), "as if live had seen it");
    let mut receipts: BTreeMap<String, BTreeMap<i64, i64>> = BTreeMap::new();
    for event in &late {
        receipts.entry(event.lane.clone().unwrap()).or_default().insert(event.seq.unwrap(), event.seq.unwrap());
    }
    assert_eq!(told(&lake, receipts), expected);
}

/// A rule that came or changed since: what was before it is not its own to tell.
#[test]
fn a_match_of_before_a_rule_is_none_also_where_it_is_found_late() {
    let (texts, lake) = (texts(false), in_the_lake(&a_log()));
    let late: Vec<&SecurityEvent> = lake.iter().filter(|event| event.late).collect();
    let (span, bus) = touched(&late, false);
    let mut part = part(&texts, span, bus);
    part.rules.iter_mut().for_each(|rule| rule.since = span.1);
    assert!(find(&part, &lake).alerts.is_empty());
}
