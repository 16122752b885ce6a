//! L-INCREMENTAL for row patterns: one that is followed has the alerts, with their evidence, fields and retractions, that its query has when it is run for
//! each instant over all of its window.

use std::sync::Arc;

use aegis_detect::{Engine, EngineConfig, IMPAIRED_RULE, Quotas, RuleSet, RuleStats, Shape, TickOutput, lint_file};
use aegis_model::{ManualClock, SecurityEvent, Timestamp};
use proptest::prelude::*;

use crate::incremental::{START, Step, any_step, log_of, run_on};

/// Patterns that are followed: every skip, partitions as the key has them, finer, and none, evidence of all rows and of some.
const PATTERNS: [&str; 10] = [
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids, count(d.*) AS n \
     PATTERN (d+ a) DEFINE d AS d.decision = 'deny', a AS a.decision = 'allow')",
    // Which rows make a pair depends on where the window begins.
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
     PATTERN (x y) DEFINE x AS true)",
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES FIRST(d.tool) AS tool, array_agg(event_id) AS event_ids \
     AFTER MATCH SKIP TO NEXT ROW PATTERN (d x*? a) DEFINE d AS d.decision = 'deny', a AS a.decision = 'allow')",
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
     AFTER MATCH SKIP TO LAST d PATTERN (a d+) DEFINE d AS d.decision = 'deny', a AS a.decision <> 'deny')",
    // Each instant is the end.
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
     PATTERN (d a* $) DEFINE d AS d.decision = 'deny', a AS a.decision = 'allow')",
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id, tool ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
     PATTERN (d{2,} a?) DEFINE d AS d.decision = 'deny', a AS a.decision = 'allow')",
    "SELECT * FROM events MATCH_RECOGNIZE (ORDER BY ts MEASURES LAST(agent_id) AS agent_id, array_agg(d.event_id) AS event_ids \
     PATTERN (a d+?) DEFINE d AS d.decision = 'deny', a AS a.decision = 'allow')",
    // The last of the match is evidence only where it is of the time of the first.
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES FIRST(d.event_id) AS event_id, a.tool AS tool \
     PATTERN (d a) DEFINE d AS d.decision = 'deny', a AS a.decision <> 'deny')",
    "WITH calls AS (SELECT ts, lane, seq, event_id AS id, agent_id AS who, tool, decision = 'deny' AS denied FROM events \
       WHERE decision <> 'require_approval') \
     SELECT who AS agent_id, ids AS event_ids, tools, last_of FROM (SELECT * FROM calls MATCH_RECOGNIZE (PARTITION BY who ORDER BY ts \
       MEASURES array_agg(id) AS ids, count(DISTINCT tool) AS tools, CLASSIFIER() AS last_of \
       PATTERN ((d | a){2,4}) DEFINE d AS denied, a AS NOT denied AND tool IS NOT NULL)) WHERE tools >= 2",
    // A match that goes on is found again with each row.
    "SELECT agent_id, event_id, n FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES event_id AS event_id, count(*) AS n \
     PATTERN (d+) DEFINE d AS d.decision = 'deny') WHERE n >= 2",
];

fn rule_text(id: &str, query: &str) -> String {
    format!(
        "/* rule\nid: {id}\nname: {}\nversion: 1\nseverity: low\nwindow: 10s\nkey: [agent_id]\nmode: active\nrequires: any\n\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-27, note: first}}\n*/\n{query}\n",
        id.to_lowercase()
    )
}

fn engine(followed: bool, quotas: Quotas, queries: &[&str]) -> Engine {
    let mut config = EngineConfig::new(Arc::new(ManualClock::new(Timestamp::from_micros(START))));
    config.lateness_s = 6;
    config.incremental = followed;
    config.quotas = quotas;
    let texts =
        queries.iter().enumerate().map(|(i, query)| (format!("{i}/rule.sql").into(), rule_text(&format!("P-{i}"), query)));
    Engine::new(RuleSet::from_texts(texts).unwrap(), config)
}

fn shape(query: &str) -> Shape {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rule.sql");
    std::fs::write(&file, rule_text("P-0", query)).unwrap();
    lint_file(&file).unwrap_or_else(|error| panic!("{error}\n{query}")).shape
}

fn recognize(measures: &str, pattern: &str, define: &str) -> String {
    format!(
        "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES {measures} PATTERN ({pattern}) DEFINE {define})"
    )
}

#[test]
fn the_patterns_here_can_all_be_followed() {
    for query in PATTERNS {
        assert_eq!(shape(query), Shape::Pattern, "{query}");
    }
}

#[test]
fn a_pattern_that_cannot_be_followed_is_run_for_each_instant() {
    let ids = "array_agg(event_id) AS event_ids";
    let queries = [
        // What decides is not the row alone, or depends on where the window begins.
        recognize(ids, "d a", "a AS a.tool = d.tool"),
        recognize(ids, "d a", "a AS count(*) > 1"),
        recognize(ids, "d a", "a AS a.ts > PREV(a.ts)"),
        recognize(ids, "^ d a", "d AS d.decision = 'deny'"),
        recognize(&format!("MATCH_NUMBER() AS n, {ids}"), "d a", "d AS d.decision = 'deny'"),
        recognize(&format!("NEXT(a.tool) AS n, {ids}"), "d a", "d AS d.decision = 'deny'"),
        // The evidence may be another event than one of the match's.
        recognize("a.ref_event_id AS event_id", "d a", "d AS d.decision = 'deny'"),
        recognize("lower(a.event_id) AS event_id", "d a", "d AS d.decision = 'deny'"),
        recognize("array_append(array_agg(d.event_id), a.event_id) AS event_ids", "d a", "d AS d.decision = 'deny'"),
        // Rows in another order, or more than the pattern decides.
        recognize(ids, "d a", "d AS d.decision = 'deny'").replace("ORDER BY ts", "ORDER BY ts, event_id"),
        recognize(ids, "d a", "d AS d.decision = 'deny'").replace("ORDER BY ts", "ORDER BY ts DESC"),
        "SELECT agent_id, array_agg(id) AS event_ids FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES event_id AS id \
         PATTERN (d a) DEFINE d AS d.decision = 'deny') GROUP BY agent_id"
            .to_owned(),
    ];
    for query in queries {
        assert_eq!(shape(&query), Shape::Stepped, "{query}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn l_incremental_a_row_pattern_that_is_followed_finds_what_the_plain_plan_finds(
        steps in prop::collection::vec(any_step(), 1..50),
        size in 1..20usize,
        events_per_key in prop_oneof![3 => Just(20_000usize), 1 => 2..8usize],
    ) {
        let log = log_of(&steps);
        let quotas = Quotas { events_per_key, ..Quotas::default() };
        // What an alert says is what was known when it was raised, which depends on how the log is cut.
        for size in [1, size] {
            let [followed, plain] = [true, false].map(|followed| run_on(engine(followed, quotas, &PATTERNS), &log, size));
            prop_assert_eq!(followed, plain, "{} at a time", size);
        }
    }
}

#[test]
fn l_incremental_of_row_patterns_is_not_kept_by_silence() {
    let step = |i: u8| Step {
        forward: i64::from(i % 2),
        late: if i % 5 == 4 { 3 } else { 0 },
        tenant: 0,
        agent: Some(0),
        tool: Some(i % 3 % 2),
        decision: [0, 0, 1, 0, 1, 2, 1][usize::from(i % 7)],
        run: i % 2,
    };
    let found = run_on(engine(true, Quotas::default(), &PATTERNS), &log_of(&(0..60).map(step).collect::<Vec<_>>()), 3);
    for index in 0..PATTERNS.len() {
        assert!(found.keys().any(|name| name.starts_with(&format!("p-{index} "))), "pattern {index} finds nothing: {found:?}");
    }
}

/// One call of the same agent at each of these seconds: 0 is a deny, 1 an allow, 2 held for approval.
fn calls(calls: &[(i64, u8)]) -> Vec<SecurityEvent> {
    let mut before = 0;
    let step = |(second, decision): &(i64, u8)| {
        let latest = before.max(*second);
        let step = Step {
            forward: latest - before,
            late: latest - *second,
            tenant: 0,
            agent: Some(0),
            tool: None,
            decision: *decision,
            run: 0,
        };
        before = latest;
        step
    };
    log_of(&calls.iter().map(step).collect::<Vec<_>>())
}

fn stats(engine: &Engine) -> RuleStats {
    engine.stats().remove(0)
}

#[test]
fn a_late_event_between_a_match_s_rows_takes_its_alert_back_and_one_that_completes_another_tells_it() {
    for followed in [true, false] {
        let mut engine = engine(followed, Quotas::default(), &PATTERNS[..1]);
        // A deny and an allow; then it comes that there was another allow right behind the deny. The one that it comes before is none any more.
        let log = calls(&[(1, 0), (3, 1), (2, 1), (4, 2), (30, 2)]);
        let told: Vec<TickOutput> = log.iter().map(|event| engine.tick(vec![event.clone()])).collect();
        let evidence = |output: &TickOutput| output.alerts.iter().map(|alert| alert.event_ids.clone()).collect::<Vec<_>>();
        assert_eq!(evidence(&told[1]), [[log[0].event_id, log[1].event_id]], "followed: {followed}");
        // It has the same first evidence: the same alert, which stands.
        assert!(evidence(&told[2]).is_empty(), "{told:?}");
        assert!(told.iter().all(|output| output.retractions.is_empty()), "{told:?}");

        let mut engine = self::engine(followed, Quotas::default(), &PATTERNS[..1]);
        // What comes between this time is neither: no match is left.
        let log = calls(&[(1, 0), (3, 1), (2, 2), (30, 2)]);
        let told: Vec<TickOutput> = log.iter().map(|event| engine.tick(vec![event.clone()])).collect();
        assert_eq!(evidence(&told[1]), [[log[0].event_id, log[1].event_id]]);
        let retracted: Vec<&String> = told.iter().flat_map(|output| &output.retractions).map(|one| &one.alert_id).collect();
        assert_eq!(retracted, [&told[1].alerts[0].alert_id], "followed: {followed}");
    }
}

#[test]
fn the_query_is_run_where_a_match_ends_and_nowhere_else() {
    let mut followed = engine(true, Quotas::default(), &PATTERNS[..1]);
    // Nothing ends with a deny, and an allow without a deny before it ends nothing.
    let log = calls(&[(1, 1), (2, 0), (3, 0), (4, 2), (5, 0), (6, 0), (7, 1), (8, 1), (9, 0), (10, 1)]);
    let runs: Vec<u64> = log
        .iter()
        .map(|event| {
            followed.tick(vec![event.clone()]);
            stats(&followed).evals
        })
        .collect();
    assert_eq!(runs, [0, 0, 0, 0, 0, 0, 1, 1, 1, 2]);
    assert_eq!((stats(&followed).shape, stats(&followed).alerts), (Some(Shape::Pattern), 2));

    let mut plain = engine(false, Quotas::default(), &PATTERNS[..1]);
    log.iter().for_each(|event| drop(plain.tick(vec![event.clone()])));
    assert_eq!((stats(&plain).shape, stats(&plain).alerts, stats(&plain).evals), (Some(Shape::Stepped), 2, 10));
}

#[test]
fn a_pattern_that_costs_more_than_its_steps_is_run_as_if_nothing_were_known() {
    // Thousands of ways to go on from each row, and none to the end: from each start row the matcher gives up.
    let query = recognize(
        "array_agg(event_id) AS event_ids",
        "((d | x){1,30} y){1,30} h a",
        "d AS d.decision = 'deny', h AS h.decision = 'require_approval', a AS a.decision = 'allow'",
    );
    assert_eq!(shape(&query), Shape::Pattern);
    let log = calls(&(0..400).map(|n| (1, u8::from(n == 399))).collect::<Vec<_>>());
    for followed in [true, false] {
        let mut engine = engine(followed, Quotas::default(), &[&query]);
        let output = engine.tick(log.clone());
        assert!(output.quarantined.is_empty(), "{:?}", output.quarantined);
        let told: Vec<&str> = output.alerts.iter().map(|alert| alert.rule_id.as_str()).collect();
        assert_eq!(told, [IMPAIRED_RULE], "followed: {followed}");
        assert!(stats(&engine).overruns > 0, "followed: {followed}");
    }
}
