//! L-SHARED: rules share the names of keys, what is asked of an event for each, and what they make of events where their queries begin alike; and each tells what it
//! tells alone, whatever quotas take from the others, and whoever of them comes and goes.

use std::ops::Range;

use aegis_detect::{Engine, Quotas, RuleSet};
use aegis_model::{SecurityEvent, TenantId, Timestamp};
use proptest::prelude::*;

use crate::incremental::{Alerts, QUERIES, START, Step, any_step, engine_of, engine_within, log_of, rule_text, run_on, take};

/// Few of everything, so that each of them is full at some time.
fn any_quotas() -> impl Strategy<Value = Quotas> {
    (1..6usize, 1..8usize, 1..30usize).prop_map(|(keys_per_tenant, events_per_key, events_per_tenant)| Quotas {
        keys_per_tenant,
        events_per_key,
        events_per_tenant,
        ..Quotas::default()
    })
}

/// The same rule with every interval so many seconds longer: it begins as the others do, and looks back further.
fn longer(index: usize, seconds: usize) -> String {
    let text = rule_text(index).replace(&format!("-{index}\n"), &format!("-{index}-{seconds}\n"));
    let text = text.replace("window: 10s", &format!("window: {}s", 10 + 4 * seconds));
    let to_longer = |text: String, number: usize| {
        text.replace(&format!("INTERVAL '{number}' SECOND"), &format!("INTERVAL '{}' SECOND", number + seconds))
    };
    // From the longest on: none is made longer twice.
    (1..10).rev().fold(text, to_longer)
}

/// What a side table says is read before the first window; another event can change it.
const OF_SIDES: &str = "SELECT agent_id, event_id, first_seen_agent AS since, count(*) FILTER (WHERE first_seen_agent < ts) OVER w AS n \
     FROM events WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '1' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= 2";

/// A rule that asks a side table, and looks back so far.
fn of_sides(seconds: usize) -> String {
    let query = OF_SIDES.replace("INTERVAL '1'", &format!("INTERVAL '{seconds}'"));
    rule_text(0).replace(QUERIES[0], &query).replace("-0\n", &format!("-0-{seconds}\n"))
}

/// One of a group of rules that differ in constants alone: how many they count up to, of what, and how far they look back.
fn counting((least, seconds, decision): (usize, usize, usize)) -> String {
    let (decision, name) = (["deny", "allow"][decision], format!("-0-{least}-{seconds}-{decision}\n"));
    let query = format!(
        "SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = '{decision}' \
         WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '{seconds}' SECOND PRECEDING AND CURRENT ROW) \
         QUALIFY n >= {least}"
    );
    rule_text(0).replace(QUERIES[0], &query).replace("-0\n", &name)
}

/// Rules that look for two different tools, and for what follows a deny.
const LOOKING_FOR: [&str; 2] = [
    "SELECT agent_id, event_id, low, high FROM (SELECT agent_id, event_id, min(tool) OVER w AS low, max(tool) OVER w AS high FROM events \
     WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '3' SECOND PRECEDING AND CURRENT ROW)) WHERE low <> high",
    "SELECT agent_id, event_id, denies FROM (SELECT agent_id, event_id, decision, \
       count(CASE WHEN decision = 'deny' THEN 1 END) OVER w AS denies FROM events \
     WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '3' SECOND PRECEDING AND CURRENT ROW)) \
     WHERE denies > 0 AND decision = 'allow'",
];

fn looking_for(index: usize) -> String {
    rule_text(0).replace(QUERIES[0], LOOKING_FOR[index]).replace("-0\n", &format!("-0-looking-for-{index}\n"))
}

/// Such a rule, but one that fails on events of one tool.
fn failing() -> String {
    let query = "SELECT agent_id, event_id, count(*) OVER w AS n, max(10 / (CASE WHEN tool = 'tool-2' THEN 0 ELSE 1 END)) OVER w AS top \
         FROM events WHERE decision = 'deny' \
         WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '5' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= 3";
    rule_text(0).replace(QUERIES[0], query).replace("-0\n", "-failing\n")
}

/// A rule of a tenant's own, over the same keys as the others.
fn set_own(engine: &mut Engine, mode: &str, since: Timestamp, events: Vec<SecurityEvent>, alerts: &mut Alerts) {
    let text = rule_text(0).replace("id: I-0", "id: OWN-1").replace("name: i-0", "name: own");
    let text = text.replace("mode: active", &format!("mode: {mode}"));
    let common = RuleSet::from_texts([("0/rule.sql".into(), rule_text(0))]).unwrap().common();
    let own = common.own(&TenantId::new("a").unwrap(), &text).unwrap();
    take(engine.set_own(own, since, events), alerts);
}

/// What stands of a log during a part of which one of the tenants has a rule of its own.
fn run_with_own(mut engine: Engine, log: &[SecurityEvent], there: Range<usize>, size: usize) -> Alerts {
    let mut alerts = Alerts::new();
    let since = Timestamp::from_micros(START);
    for (n, part) in log.chunks(size).enumerate() {
        if n == there.start {
            let before = log[..n * size].iter().filter(|event| event.tenant_id.as_str() == "a").cloned().collect();
            set_own(&mut engine, "active", since, before, &mut alerts);
        }
        if n == there.end {
            set_own(&mut engine, "disabled", since, Vec::new(), &mut alerts);
        }
        take(engine.tick(part.to_vec()), &mut alerts);
    }
    take(engine.finish(), &mut alerts);
    alerts
}

proptest! {
    // As many as in laws.rs, and more in `make test-full`: each case runs every rule.
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn l_shared_a_rule_tells_beside_others_what_it_tells_alone_whatever_quotas_take(
        steps in prop::collection::vec(any_step(), 1..60),
        quotas in any_quotas(),
        size in 1..20usize,
    ) {
        let log = log_of(&steps);
        let beside = run_on(engine_within(true, quotas, 0..QUERIES.len()), &log, size);
        let mut alone = Alerts::new();
        for query in 0..QUERIES.len() {
            alone.extend(run_on(engine_within(true, quotas, query..query + 1), &log, size));
        }
        prop_assert_eq!(beside, alone);
    }

    #[test]
    fn l_shared_rules_that_begin_alike_tell_together_what_each_tells_alone(
        steps in prop::collection::vec(any_step(), 1..60),
        quotas in any_quotas(),
        size in 1..20usize,
        of in prop::collection::btree_set((0..QUERIES.len(), 0..4usize), 2..8),
    ) {
        let (log, texts) = (log_of(&steps), || of.iter().map(|(index, seconds)| longer(*index, *seconds)));
        let together = run_on(engine_of(true, quotas, texts()), &log, size);
        let mut alone = Alerts::new();
        for text in texts() {
            alone.extend(run_on(engine_of(true, quotas, std::iter::once(text)), &log, size));
        }
        prop_assert_eq!(together, alone);
    }

    #[test]
    fn l_shared_rules_that_begin_alike_with_what_side_tables_say_tell_together_what_each_tells_alone(
        steps in prop::collection::vec(any_step(), 1..60),
        size in 1..20usize,
    ) {
        let (log, engine) = (log_of(&steps), |seconds: &[usize]| {
            engine_of(true, Quotas::default(), seconds.iter().map(|seconds| of_sides(*seconds)))
        });
        let mut alone = run_on(engine(&[2]), &log, size);
        alone.extend(run_on(engine(&[5]), &log, size));
        prop_assert_eq!(run_on(engine(&[2, 5]), &log, size), alone);
    }

    /// L-LEAST: whoever of them is shown nothing yet.
    #[test]
    fn l_shared_rules_that_count_up_to_other_numbers_tell_together_what_the_plain_plan_of_each_tells(
        steps in prop::collection::vec(any_step(), 1..80),
        size in 1..20usize,
        of in prop::collection::btree_set((1..6usize, 1..9usize, 0..2usize), 2..6),
    ) {
        let (log, texts) = (log_of(&steps), || of.iter().copied().map(counting).chain((0..LOOKING_FOR.len()).map(looking_for)));
        let together = run_on(engine_of(true, Quotas::default(), texts()), &log, size);
        let mut alone = Alerts::new();
        for text in texts() {
            alone.extend(run_on(engine_of(false, Quotas::default(), std::iter::once(text)), &log, size));
        }
        prop_assert_eq!(together, alone);
    }

    #[test]
    fn l_shared_a_rule_that_fails_changes_nothing_of_the_others_of_its_group(
        steps in prop::collection::vec(any_step(), 1..60),
        size in 1..20usize,
    ) {
        let (log, group) = (log_of(&steps), || [(2, 5, 0), (3, 5, 0), (3, 4, 0), (2, 5, 1)].into_iter().map(counting));
        let mut engine = engine_of(true, Quotas::default(), group().chain([failing()]));
        let mut outputs: Vec<_> = log.chunks(size).map(|part| engine.tick(part.to_vec())).collect();
        outputs.push(engine.finish());
        let mut beside = Alerts::new();
        for mut output in outputs {
            output.quarantined.clear();
            take(output, &mut beside);
        }
        // What is told of itself, and that it is set aside.
        beside.retain(|name, _| !name.starts_with("i-failing ") && !name.starts_with("detection-impaired "));
        prop_assert_eq!(beside, run_on(engine_of(true, Quotas::default(), group()), &log, size));
    }

    #[test]
    fn l_shared_a_rule_that_comes_and_goes_changes_nothing_of_the_others(
        steps in prop::collection::vec(any_step(), 2..60),
        size in 1..6usize,
        (from, long) in (0..10usize, 1..10usize),
    ) {
        let log = log_of(&steps);
        let engine = || engine_within(true, Quotas::default(), 0..QUERIES.len());
        let mut with_own = run_with_own(engine(), &log, from..from + long, size);
        with_own.retain(|name, _| !name.starts_with("own "));
        // What is told of itself does not depend on it either.
        prop_assert_eq!(with_own, run_on(engine(), &log, size));
    }
}

#[test]
fn l_shared_is_not_kept_by_silence() {
    let step = |n: u8| Step {
        forward: 1,
        late: if n % 7 == 3 { 4 } else { 0 },
        tenant: 0,
        agent: Some(n % 2),
        tool: Some(n % 3),
        decision: n % 2,
        run: n % 2,
    };
    let log = log_of(&(0..40).map(step).collect::<Vec<_>>());
    let of_sides = [2, 5].into_iter().map(of_sides);
    let found = run_on(engine_of(true, Quotas::default(), of_sides), &log, 4);
    assert!([2, 5].iter().all(|seconds| found.keys().any(|name| name.starts_with(&format!("i-0-{seconds} ")))), "{found:?}");
    let quotas = Quotas { keys_per_tenant: 1, events_per_key: 3, ..Quotas::default() };
    let engine = || engine_within(true, quotas, 0..QUERIES.len());
    let found = run_with_own(engine(), &log, 2..6, 4);
    assert!(found.keys().any(|name| name.starts_with("own ")), "{found:?}");
    let mut full = engine();
    full.tick(log);
    assert!(full.stats().iter().any(|stats| stats.refused > 0) && full.stats().iter().any(|stats| stats.given_up > 0));
}

#[test]
fn l_least_is_not_kept_by_silence() {
    let step = |n: u8| Step {
        forward: 1,
        late: 0,
        tenant: 0,
        agent: Some(0),
        tool: Some(n / 10 % 2),
        decision: u8::from(!n.is_multiple_of(9)),
        run: 0,
    };
    let log = log_of(&(0..40).map(step).collect::<Vec<_>>());
    let texts = || (0..LOOKING_FOR.len()).map(looking_for);
    let found = run_on(engine_of(true, Quotas::default(), texts()), &log, 4);
    assert!(
        (0..LOOKING_FOR.len()).all(|n| found.keys().any(|name| name.starts_with(&format!("i-0-looking-for-{n} ")))),
        "{found:?}"
    );
}

/// Though a match takes three events: what fails is not put off.
#[test]
fn a_rule_that_fails_on_an_event_is_set_aside_as_soon_as_it_comes() {
    let denied = |tool| Step { forward: 1, late: 0, tenant: 0, agent: Some(0), tool: Some(tool), decision: 0, run: 0 };
    let log = log_of(&[denied(0), denied(2)]);
    for incremental in [true, false] {
        let mut engine = engine_of(incremental, Quotas::default(), std::iter::once(failing()));
        let failures: Vec<usize> = log.iter().map(|event| engine.tick(vec![event.clone()]).quarantined.len()).collect();
        assert_eq!(failures, [0, 1]);
    }
}
