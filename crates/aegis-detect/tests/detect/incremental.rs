//! L-INCREMENTAL: a query that is followed has the alerts, with their evidence and fields, that it has when it is run over all of its window.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use aegis_detect::{Engine, EngineConfig, Quotas, RuleSet, Shape, TickOutput, lint_file};
use aegis_model::{DataAccess, Decision, Destination, EventKind, ManualClock, SecurityEvent, SourceTrust, TenantId, Timestamp};
use proptest::prelude::*;
use serde_json::Value;

pub(crate) const START: i64 = 1_767_225_600_000_000;

/// Queries with every function that can be followed, in frames of every kind, one upon another.
pub(crate) const QUERIES: [&str; 9] = [
    "SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = 'deny' \
     WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '5' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= 2",
    // What is left for the outer window depends on the inner one: a late event can take rows away from it.
    "WITH counted AS (SELECT ts, event_id, agent_id, count(*) OVER (PARTITION BY agent_id ORDER BY ts \
       RANGE BETWEEN INTERVAL '4' SECOND PRECEDING AND INTERVAL '1 microsecond' PRECEDING) AS before FROM events WHERE decision = 'deny') \
     SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM counted WHERE before < 3 \
     WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '4' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= 2",
    "SELECT agent_id, event_id, count(DISTINCT tool) OVER w AS tools, count(tool) OVER w AS named, min(tool) OVER w AS first_tool, \
       max(tool) OVER w AS last_tool, max(ts) OVER earlier AS last_call, min(seq) OVER w AS low FROM events \
     WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '6' SECOND PRECEDING AND CURRENT ROW), \
       earlier AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '6' SECOND PRECEDING AND INTERVAL '2' SECOND PRECEDING) \
     QUALIFY tools >= 2",
    "SELECT agent_id, event_id, count(*) FILTER (WHERE decision = 'deny') OVER w AS denies, \
       array_agg(run_id) FILTER (WHERE decision = 'deny') OVER w AS runs, max(mutates_state) OVER w AS writes FROM events \
     WINDOW w AS (PARTITION BY agent_id, tool ORDER BY ts RANGE BETWEEN INTERVAL '7' SECOND PRECEDING AND CURRENT ROW) QUALIFY denies > 0",
    // Partitions finer than the key, and others than the key's.
    "SELECT agent_id, tool, event_id, max(CASE WHEN decision = 'deny' THEN CAST(CAST(ts AS BIGINT) AS VARCHAR) || event_id END) OVER w AS last, \
       count(*) OVER own AS calls FROM events \
     WINDOW w AS (PARTITION BY tool ORDER BY ts RANGE BETWEEN INTERVAL '5' SECOND PRECEDING AND CURRENT ROW), \
       own AS (PARTITION BY tool, agent_id, run_id ORDER BY ts RANGE BETWEEN INTERVAL '5' SECOND PRECEDING AND CURRENT ROW) \
     QUALIFY calls >= 2 AND last IS NOT NULL",
    // Nothing splits the state, and the partition is an expression.
    "SELECT lower(agent_id) AS agent_id, event_id, count(*) OVER w AS n FROM events \
     WINDOW w AS (PARTITION BY upper(tool), decision ORDER BY ts RANGE BETWEEN INTERVAL '3' SECOND PRECEDING AND CURRENT ROW) QUALIFY n = 2",
    "SELECT agent_id, event_id FROM (SELECT *, count(*) OVER (PARTITION BY agent_id ORDER BY ts \
       RANGE BETWEEN CURRENT ROW AND CURRENT ROW) AS n FROM events) WHERE n >= 2",
    "SELECT agent_id, event_id, count(*) OVER (ORDER BY ts RANGE BETWEEN INTERVAL '2' SECOND PRECEDING AND CURRENT ROW) AS n, \
       count(DISTINCT source_trust) OVER (ORDER BY ts RANGE BETWEEN INTERVAL '9' SECOND PRECEDING AND CURRENT ROW) AS labels \
     FROM events WHERE agent_id IS NOT NULL QUALIFY n >= 3",
    // Conditions that read a list, beside some that read none.
    "SELECT agent_id, event_id, runs FROM (SELECT *, array_agg(run_id) OVER w AS runs, count(*) OVER w AS n FROM events \
       WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '5' SECOND PRECEDING AND CURRENT ROW)) \
     WHERE array_has(runs, 'run-0') AND n >= 2 AND decision <> 'deny'",
];

pub(crate) fn rule_text(index: usize) -> String {
    format!(
        "/* rule\nid: I-{index}\nname: i-{index}\nversion: 1\nseverity: low\nwindow: 10s\nkey: [agent_id]\nmode: active\nrequires: any\n\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-22, note: first}}\n*/\n{}\n",
        QUERIES[index]
    )
}

fn engine(incremental: bool) -> Engine {
    engine_within(incremental, Quotas::default(), 0..QUERIES.len())
}

/// One that has these of the queries, and not more than so much state.
pub(crate) fn engine_within(incremental: bool, quotas: Quotas, queries: Range<usize>) -> Engine {
    engine_of(incremental, quotas, queries.map(rule_text))
}

/// One that has these rules.
pub(crate) fn engine_of(incremental: bool, quotas: Quotas, texts: impl Iterator<Item = String>) -> Engine {
    let mut config = EngineConfig::new(Arc::new(ManualClock::new(Timestamp::from_micros(START))));
    config.lateness_s = 6;
    config.incremental = incremental;
    config.quotas = quotas;
    let texts = texts.enumerate().map(|(i, text)| (format!("{i}/rule.sql").into(), text));
    Engine::new(RuleSet::from_texts(texts).unwrap(), config)
}

#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) forward: i64,
    pub(crate) late: i64,
    pub(crate) tenant: u8,
    pub(crate) agent: Option<u8>,
    pub(crate) tool: Option<u8>,
    pub(crate) decision: u8,
    pub(crate) run: u8,
}

pub(crate) fn any_step() -> impl Strategy<Value = Step> {
    let late = prop_oneof![4 => Just(0i64), 1 => 0..7i64];
    (0..3i64, late, 0..2u8, prop::option::weighted(0.9, 0..2u8), prop::option::weighted(0.8, 0..3u8), 0..3u8, 0..2u8).prop_map(
        |(forward, late, tenant, agent, tool, decision, run)| Step { forward, late, tenant, agent, tool, decision, run },
    )
}

pub(crate) fn log_of(steps: &[Step]) -> Vec<SecurityEvent> {
    let mut second = 100;
    let event = |(index, step): (usize, &Step)| {
        second += step.forward;
        let tenant = TenantId::new(["a", "b"][usize::from(step.tenant)]).unwrap();
        let ts = Timestamp::from_micros(START + (second - step.late) * 1_000_000);
        let mut event = SecurityEvent::new(tenant, "edge", "edge", EventKind::AuthorizeDecision, ts);
        event.event_id = uuid::Uuid::from_u128(index as u128 + 1);
        event.lane = Some(format!("{}.edge.1", event.tenant_id));
        event.seq = Some(index as i64);
        event.verified = true;
        event.agent_id = step.agent.map(|agent| format!("Agent-{agent}"));
        event.tool = step.tool.map(|tool| format!("tool-{tool}"));
        event.action = Some("use".into());
        event.run_id = Some(format!("run-{}", step.run));
        event.decision = Some([Decision::Deny, Decision::Allow, Decision::RequireApproval][usize::from(step.decision)]);
        event.source_trust = Some([SourceTrust::Unknown, SourceTrust::UntrustedExternal][usize::from(step.run)]);
        event.mutates_state = step.tool.map(|tool| tool == 0);
        event.data_access = Some(DataAccess::None);
        event.destination = Some(Destination::External);
        event.bus_ts = Some(Timestamp::from_micros(START + second * 1_000_000));
        event
    };
    steps.iter().enumerate().map(event).collect()
}

/// Rule and first evidence → evidence and fields. A list of values that is no evidence has them in the order of rows, in which the query
/// engine's own operator leaves ties.
pub(crate) type Alerts = BTreeMap<String, (Vec<String>, BTreeMap<String, Value>)>;

pub(crate) fn take(output: TickOutput, alerts: &mut Alerts) {
    assert!(output.quarantined.is_empty(), "{:?}", output.quarantined);
    for alert in output.alerts {
        let sorted = |value: &Value| match value {
            Value::Array(items) => {
                let mut items = items.clone();
                items.sort_by_key(Value::to_string);
                Value::Array(items)
            }
            other => other.clone(),
        };
        let fields = alert.fields.iter().map(|(name, value)| (name.clone(), sorted(value))).collect();
        let ids = alert.event_ids.iter().map(ToString::to_string).collect();
        alerts.insert(format!("{} {}", alert.rule_name, alert.alert_id), (ids, fields));
    }
    for retraction in output.retractions {
        alerts.retain(|name, _| !name.ends_with(&retraction.alert_id));
    }
}

fn run(log: &[SecurityEvent], size: usize, incremental: bool) -> Alerts {
    run_on(engine(incremental), log, size)
}

/// What stands after a log that comes so many events at a time.
pub(crate) fn run_on(mut engine: Engine, log: &[SecurityEvent], size: usize) -> Alerts {
    let mut alerts = Alerts::new();
    for part in log.chunks(size) {
        take(engine.tick(part.to_vec()), &mut alerts);
    }
    take(engine.finish(), &mut alerts);
    alerts
}

#[test]
fn the_queries_here_can_all_be_followed() {
    let folder = tempfile::tempdir().unwrap();
    for (index, query) in QUERIES.iter().enumerate() {
        let file = folder.path().join("rule.sql");
        std::fs::write(&file, rule_text(index)).unwrap();
        assert_eq!(lint_file(&file).unwrap().shape, Shape::Incremental, "{query}");
    }
}

#[test]
fn what_cannot_be_followed_is_run_over_its_window() {
    let folder = tempfile::tempdir().unwrap();
    for function in ["sum(seq)", "avg(seq)", "min(CAST(seq AS DOUBLE))"] {
        let query = format!(
            "SELECT agent_id, event_id, {function} OVER (PARTITION BY agent_id ORDER BY ts \
             RANGE BETWEEN INTERVAL '5' SECOND PRECEDING AND CURRENT ROW) AS value FROM events"
        );
        let file = folder.path().join("rule.sql");
        std::fs::write(&file, rule_text(0).replace(QUERIES[0], &query)).unwrap();
        assert_eq!(lint_file(&file).unwrap().shape, Shape::Sliding, "{function}");
    }
}

proptest! {
    // As many as in laws.rs, and more in `make test-full`: each case runs every query, three times in two ways.
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn l_incremental_a_query_that_is_followed_finds_what_the_plain_plan_finds(
        steps in prop::collection::vec(any_step(), 1..60),
        size in 1..20usize,
    ) {
        let log = log_of(&steps);
        // What an alert says is what was known when it was raised, which depends on how the log is cut.
        for size in [1, size, log.len()] {
            prop_assert_eq!(run(&log, size, true), run(&log, size, false), "{} at a time", size);
        }
    }
}

#[test]
fn a_quota_takes_no_event_more_for_those_of_its_microsecond() {
    // Three at once, and then one a second; a key keeps four. The oldest go one by one, also of those at once.
    let deny = |forward| Step { forward, late: 0, tenant: 0, agent: Some(0), tool: None, decision: 0, run: 0 };
    let log = log_of(&[0, 0, 0, 1, 1, 1, 1].map(deny));
    let quotas = Quotas { events_per_key: 4, ..Quotas::default() };
    let found = [true, false].map(|incremental| {
        let mut engine = engine_within(incremental, quotas, 0..1);
        let mut evidence = Vec::new();
        for event in &log {
            let alerts = engine.tick(vec![event.clone()]).alerts.into_iter().filter(|alert| alert.rule_name == "i-0");
            evidence.extend(alerts.map(|alert| alert.event_ids));
        }
        evidence
    });
    let of = |last: usize| log[last.saturating_sub(3)..=last].iter().map(|event| event.event_id).collect::<Vec<_>>();
    // The first two are an alert as soon as there are two; from then on each one that goes makes another of what is left.
    let expected: Vec<_> = [of(1), of(4), of(5), of(6)].into();
    assert_eq!(found, [expected.clone(), expected]);
}

#[test]
fn l_incremental_is_not_kept_by_silence() {
    let step = |i: u8| Step {
        forward: i64::from(i % 2),
        late: if i % 5 == 4 { 3 } else { 0 },
        tenant: 0,
        agent: Some(0),
        tool: Some(i % 3),
        decision: i % 2,
        run: i % 2,
    };
    let found = run(&log_of(&(0..40).map(step).collect::<Vec<_>>()), 3, true);
    for index in 0..QUERIES.len() {
        assert!(found.keys().any(|name| name.starts_with(&format!("i-{index} "))), "query {index} finds nothing: {found:?}");
    }
}
