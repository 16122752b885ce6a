//! L-INCREMENTAL for row patterns: one that is followed has the alerts, with their evidence, fields and retractions, that its query has when it is run for
//! each instant over all of its window.

use std::sync::Arc;

use aegis_detect::{
    Engine, EngineConfig, IMPAIRED_RULE, LintReport, PatternMeasures, PatternReads, PatternRun, Quotas, RuleSet, RuleStats,
    Shape, TickOutput, lint_file,
};
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

/// The same where conditions read more than the row: other variables, aggregates of what is mapped, rows before; and measures rows around the match.
const DEPENDENT: [&str; 10] = [
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids, count(d.*) AS n \
     PATTERN (d+ a) DEFINE d AS d.decision = 'deny' AND count(d.*) < 4, a AS a.decision = 'allow' AND a.run_id = d.run_id)",
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
     PATTERN (y{2,}) DEFINE y AS y.decision <> PREV(y.decision))",
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES FIRST(d.tool) AS tool, array_agg(event_id) AS event_ids \
     AFTER MATCH SKIP TO NEXT ROW PATTERN (d x*? a) DEFINE d AS d.decision = 'deny', \
       a AS a.decision = 'allow' AND a.ts <= FIRST(d.ts) + INTERVAL '4' SECOND AND a.tool IS NOT DISTINCT FROM d.tool)",
    "SELECT agent_id, event_ids, tools FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts \
       MEASURES array_agg(event_id) AS event_ids, count(DISTINCT tool) AS tools \
     PATTERN (r+) DEFINE r AS count(DISTINCT r.tool) <= 2 AND sum(r.seq) < 90) WHERE tools >= 2",
    // Finer than the key, and looking back among its own.
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id, tool ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
     PATTERN (d{2,} a?) DEFINE d AS d.decision = 'deny' AND (d.seq > PREV(d.seq) OR PREV(d.seq, 2) IS NULL), \
       a AS a.decision = 'allow' AND count(d.*) > 2)",
    "SELECT * FROM events MATCH_RECOGNIZE (ORDER BY ts MEASURES LAST(agent_id) AS agent_id, array_agg(d.event_id) AS event_ids \
     PATTERN (a d+?) DEFINE d AS d.decision = 'deny' AND d.agent_id = a.agent_id, a AS a.decision = 'allow')",
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
     PATTERN (d a* $) DEFINE d AS d.decision = 'deny', a AS a.run_id = FIRST(run_id))",
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids, \
       upper(PREV(FIRST(tool), 2)) AS before, NEXT(LAST(run_id)) AS next_run \
     PATTERN (d a) DEFINE d AS d.decision = 'deny', a AS a.decision = 'allow')",
    "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
     AFTER MATCH SKIP TO LAST d PATTERN (a d+) DEFINE d AS d.decision = 'deny' AND max(seq) - min(seq) < 9)",
    "WITH calls AS (SELECT ts, lane, seq, event_id AS id, agent_id AS who, tool, run_id, decision = 'deny' AS denied FROM events \
       WHERE decision <> 'require_approval') \
     SELECT who AS agent_id, ids AS event_ids, coalesce(last_tool, 'none') AS tool FROM (SELECT * FROM calls MATCH_RECOGNIZE ( \
       PARTITION BY who ORDER BY ts MEASURES array_agg(id) AS ids, LAST(d.tool) AS last_tool, count(*) AS n \
       PATTERN ((d | a){2,5}) DEFINE d AS denied AND coalesce(PREV(CLASSIFIER()), 'a') = 'a', a AS NOT denied AND a.run_id = FIRST(run_id))) \
     WHERE n >= 2 AND who <> 'Agent-1'",
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

fn lint(query: &str) -> LintReport {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rule.sql");
    std::fs::write(&file, rule_text("P-0", query)).unwrap();
    lint_file(&file).unwrap_or_else(|error| panic!("{error}\n{query}"))
}

fn recognize(measures: &str, pattern: &str, define: &str) -> String {
    format!(
        "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES {measures} PATTERN ({pattern}) DEFINE {define})"
    )
}

#[test]
fn the_patterns_here_can_all_be_followed() {
    for (queries, conditions) in [(PATTERNS, PatternReads::Row), (DEPENDENT, PatternReads::Mapping)] {
        for query in queries {
            let lint = lint(query);
            // One of them has measures alone that read more.
            let conditions = if query.contains("upper(PREV(") { PatternReads::Row } else { conditions };
            let run = PatternRun { conditions, measures: PatternMeasures::Rows };
            assert_eq!((lint.shape, lint.pattern, lint.stepped_for), (Shape::Pattern, Some(run), None), "{query}");
        }
    }
    let said = serde_json::to_value(lint(DEPENDENT[0])).unwrap();
    assert_eq!(said["pattern"], serde_json::json!({"conditions": "mapping", "measures": "rows"}));
    assert!(said.get("stepped_for").is_none());
}

#[test]
fn a_pattern_that_cannot_be_followed_is_run_for_each_instant() {
    let ids = "array_agg(event_id) AS event_ids";
    let queries = [
        // What decides comes later, or depends on where the window begins.
        ("NEXT", recognize(ids, "d a", "d AS d.tool = NEXT(d.tool)")),
        ("`^`", recognize(ids, "^ d a", "d AS d.decision = 'deny'")),
        ("MATCH_NUMBER", recognize(&format!("MATCH_NUMBER() AS n, {ids}"), "d a", "d AS d.decision = 'deny'")),
        // The evidence may be another event than one of the match's.
        ("evidence", recognize("a.ref_event_id AS event_id", "d a", "d AS d.decision = 'deny'")),
        ("evidence", recognize("lower(a.event_id) AS event_id", "d a", "d AS d.decision = 'deny'")),
        ("evidence", recognize("array_append(array_agg(d.event_id), a.event_id) AS event_ids", "d a", "d AS d.decision = 'deny'")),
        // Rows in another order, or more than the pattern decides.
        ("order", recognize(ids, "d a", "d AS d.decision = 'deny'").replace("ORDER BY ts", "ORDER BY ts, event_id")),
        ("order", recognize(ids, "d a", "d AS d.decision = 'deny'").replace("ORDER BY ts", "ORDER BY ts DESC")),
        ("single", "SELECT agent_id, array_agg(id) AS event_ids FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES event_id AS id \
         PATTERN (d a) DEFINE d AS d.decision = 'deny') GROUP BY agent_id"
            .to_owned()),
    ];
    for (word, query) in queries {
        let lint = lint(&query);
        assert_eq!((lint.shape, lint.pattern), (Shape::Stepped, None), "{query}");
        assert!(lint.stepped_for.is_some_and(|why| why.contains(word)), "{:?}, {query}", lint.stepped_for);
    }
}

proptest! {
    // As many as in laws.rs, and more in `make test-full`: each case runs every pattern, twice in two ways.
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn l_incremental_a_row_pattern_that_is_followed_finds_what_the_plain_plan_finds(
        steps in prop::collection::vec(any_step(), 1..50),
        size in 1..20usize,
        events_per_key in prop_oneof![3 => Just(20_000usize), 1 => 2..8usize],
    ) {
        let log = log_of(&steps);
        let quotas = Quotas { events_per_key, ..Quotas::default() };
        // What an alert says is what was known when it was raised, which depends on how the log is cut.
        for (queries, size) in [(PATTERNS, 1), (PATTERNS, size), (DEPENDENT, 1), (DEPENDENT, size)] {
            let [followed, plain] = [true, false].map(|followed| run_on(engine(followed, quotas, &queries), &log, size));
            prop_assert_eq!(followed, plain, "{} at a time", size);
        }
    }
}

proptest! {
    // One pattern a case.
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn l_incremental_any_row_pattern_that_is_followed_finds_what_the_plain_plan_finds(
        steps in prop::collection::vec(any_step(), 1..40),
        query in any_query(),
        size in 1..12usize,
        events_per_key in prop_oneof![3 => Just(20_000usize), 1 => 2..8usize],
    ) {
        prop_assert_eq!(lint(&query).shape, Shape::Pattern, "{}", query);
        let log = log_of(&steps);
        let quotas = Quotas { events_per_key, ..Quotas::default() };
        let [followed, plain] = [true, false].map(|followed| run_on(engine(followed, quotas, &[&query]), &log, size));
        prop_assert_eq!(followed, plain, "{} at a time: {}", size, query);
    }
}

/// Any of many row patterns, most of them with conditions that depend on the mapping.
fn any_query() -> impl Strategy<Value = String> {
    let patterns = [
        "a b",
        "a+ b",
        "a b+",
        "a x*? b",
        "(a | b){1,3} b",
        "a{2,3} b?",
        "a b* $",
        "(a b)+",
        "a+? b+",
        "a (b | x)? b",
        "(a | b){1,4}?",
        "x a* b",
    ];
    let conditions = [
        "V.decision = 'deny'",
        "V.decision <> 'deny'",
        "count(V.*) <= 2",
        "V.tool = FIRST(tool)",
        "V.tool IS DISTINCT FROM PREV(V.tool)",
        "PREV(decision, 2) = 'allow' OR PREV(decision, 2) IS NULL",
        "count(DISTINCT run_id) <= 1",
        "a.run_id = V.run_id",
        "sum(V.seq) % 2 = 0",
        "V.ts <= FIRST(ts) + INTERVAL '3' SECOND",
        "max(seq) - min(seq) < 6",
        "coalesce(PREV(CLASSIFIER()), 'none') <> 'b'",
    ];
    let of = move |variable: &'static str| {
        prop::collection::vec(prop::sample::select(conditions.to_vec()), 1..3).prop_map(move |conditions| {
            let all: Vec<String> =
                conditions.iter().map(|one| format!("({})", one.replace("V.", &format!("{variable}.")))).collect();
            format!("{variable} AS {}", all.join(" AND "))
        })
    };
    let partitions = [("PARTITION BY agent_id", ""), ("PARTITION BY agent_id, run_id", ""), ("", "LAST(agent_id) AS agent_id, ")];
    let skips = ["PAST LAST ROW", "TO NEXT ROW"];
    let (partitions, skips) = (prop::sample::select(partitions.to_vec()), prop::sample::select(skips.to_vec()));
    let parts = (prop::sample::select(patterns.to_vec()), of("a"), of("b"), skips, partitions);
    parts.prop_map(|(pattern, a, b, skip, (partition, key))| {
        format!(
            "SELECT * FROM events MATCH_RECOGNIZE ({partition} ORDER BY ts MEASURES {key}array_agg(event_id) AS event_ids, count(a.*) AS n, \
             LAST(b.tool) AS tool, PREV(FIRST(decision)) AS before AFTER MATCH SKIP {skip} PATTERN ({pattern}) DEFINE {a}, {b})"
        )
    })
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
    for queries in [PATTERNS, DEPENDENT] {
        let found = run_on(engine(true, Quotas::default(), &queries), &log_of(&(0..60).map(step).collect::<Vec<_>>()), 3);
        for (index, query) in queries.iter().enumerate() {
            assert!(found.keys().any(|name| name.starts_with(&format!("p-{index} "))), "{query} finds nothing: {found:?}");
        }
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
    for (followed, query) in [(true, PATTERNS[0]), (false, PATTERNS[0]), (true, DEPENDENT[0]), (false, DEPENDENT[0])] {
        let mut engine = engine(followed, Quotas::default(), &[query]);
        // A deny and an allow; then it comes that there was another allow right behind the deny. The one that it comes before is none any more.
        let log = calls(&[(1, 0), (3, 1), (2, 1), (4, 2), (30, 2)]);
        let told: Vec<TickOutput> = log.iter().map(|event| engine.tick(vec![event.clone()])).collect();
        let evidence = |output: &TickOutput| output.alerts.iter().map(|alert| alert.event_ids.clone()).collect::<Vec<_>>();
        assert_eq!(evidence(&told[1]), [[log[0].event_id, log[1].event_id]], "followed: {followed}");
        // It has the same first evidence: the same alert, which stands.
        assert!(evidence(&told[2]).is_empty(), "{told:?}");
        assert!(told.iter().all(|output| output.retractions.is_empty()), "{told:?}");

        let mut engine = self::engine(followed, Quotas::default(), &[query]);
        // What comes between this time is neither: no match is left.
        let log = calls(&[(1, 0), (3, 1), (2, 2), (30, 2)]);
        let told: Vec<TickOutput> = log.iter().map(|event| engine.tick(vec![event.clone()])).collect();
        assert_eq!(evidence(&told[1]), [[log[0].event_id, log[1].event_id]]);
        let retracted: Vec<&String> = told.iter().flat_map(|output| &output.retractions).map(|one| &one.alert_id).collect();
        assert_eq!(retracted, [&told[1].alerts[0].alert_id], "followed: {followed}");
    }
}

#[test]
fn a_match_is_told_by_its_rows_and_the_query_is_not_run() {
    // Nothing ends with a deny, and an allow without a deny before it ends nothing.
    let log = calls(&[(1, 1), (2, 0), (3, 0), (4, 2), (5, 0), (6, 0), (7, 1), (8, 1), (9, 0), (10, 1)]);
    for query in [PATTERNS[0], DEPENDENT[0]] {
        let mut followed = engine(true, Quotas::default(), &[query]);
        let matches: Vec<u64> = log
            .iter()
            .map(|event| {
                followed.tick(vec![event.clone()]);
                stats(&followed).matches
            })
            .collect();
        assert_eq!(matches, [0, 0, 0, 0, 0, 0, 1, 1, 1, 2], "{query}");
        let told = stats(&followed);
        assert_eq!((told.shape, told.alerts, told.evals), (Some(Shape::Pattern), 2, 0), "{query}");

        let mut plain = engine(false, Quotas::default(), &[query]);
        log.iter().for_each(|event| drop(plain.tick(vec![event.clone()])));
        assert_eq!((stats(&plain).shape, stats(&plain).alerts, stats(&plain).evals), (Some(Shape::Stepped), 2, 10), "{query}");
    }
}

#[test]
fn where_matches_of_one_time_are_many_the_query_tells_them() {
    let query = "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES FIRST(event_id) AS first_id, \
                 array_agg(event_id) AS event_ids AFTER MATCH SKIP TO NEXT ROW PATTERN (d+) DEFINE d AS d.decision = 'deny' AND count(*) < 99)";
    let log = calls(&(0..40).map(|n| (n / 5, 0)).collect::<Vec<_>>());
    let [followed, plain] = [true, false].map(|followed| {
        let mut engine = engine(followed, Quotas::default(), &[query]);
        log.chunks(5).for_each(|part| drop(engine.tick(part.to_vec())));
        let stats = stats(&engine);
        (stats.matches, stats.alerts, stats.overruns, stats.evals)
    });
    assert_eq!((followed.0, followed.1, followed.2), (plain.0, plain.1, plain.2));
    // Five more matches end with each second.
    assert_eq!((followed.3, plain.3), (5, 8), "up to 16 matches are told by their rows");
}

#[test]
fn a_pattern_that_costs_more_than_its_steps_is_run_as_if_nothing_were_known() {
    // Thousands of ways to go on from each row, and none to the end: from each start row the matcher gives up.
    let query = recognize(
        "array_agg(event_id) AS event_ids",
        "((d | x){1,30} y){1,30} h a",
        "d AS d.decision = 'deny', h AS h.decision = 'require_approval', a AS a.decision = 'allow'",
    );
    assert_eq!(lint(&query).shape, Shape::Pattern);
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
