//! What a rule may not do is refused when it loads, with a code and a line.

use aegis_detect::{RuleCode, RuleError, RuleSet, Shape};
use aegis_model::{ApprovalStatus, DataAccess, Decision, Destination, EventKind, RiskLevel, SourceTrust};

/// A rule with this much of a header changed, and this query.
fn rule(extra: &str, query: &str) -> String {
    format!(
        "/* rule\nid: T-1\nname: t\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: active\n{extra}owner: soc\n\
         description: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-22, note: first}}\n*/\n{query}\n"
    )
}

fn load(text: String) -> Result<RuleSet, RuleError> {
    RuleSet::from_texts([("t/rule.sql".into(), text)]).map_err(|mut e| e.0.remove(0))
}

fn refused(extra: &str, query: &str) -> RuleError {
    match load(rule(extra, query)) {
        Ok(_) => panic!("accepted: {query}"),
        Err(error) => error,
    }
}

const CONTAINS: &str = "respond: [freeze_agent]\n";
/// Lines of the header of `rule("", …)`.
const HEADER_LINES: u64 = 14;

#[test]
fn every_forbidden_thing_has_its_code_and_its_place() {
    let cases: &[(&str, &str, RuleCode, At)] = &[
        ("", "SELECT agent_id, event_id FROM events WHERE ts > now()", RuleCode::RuleFunction, At::Word("now")),
        (
            "",
            "SELECT agent_id, event_id FROM events\nWHERE ts > current_timestamp",
            RuleCode::RuleFunction,
            At::Word("current_timestamp"),
        ),
        ("", "SELECT agent_id, event_id, current_date() d FROM events", RuleCode::RuleFunction, At::Word("current_date")),
        ("", "SELECT agent_id, event_id FROM events WHERE random() < 0.5", RuleCode::RuleFunction, At::Word("random")),
        ("", "SELECT agent_id, event_id, uuid() u FROM events", RuleCode::RuleFunction, At::Word("uuid")),
        (
            "",
            "SELECT agent_id, event_id FROM events WHERE agent_id IN (SELECT agent_id FROM events WHERE ts > now())",
            RuleCode::RuleFunction,
            At::Any,
        ),
        ("", "SELECT agent_id, event_id FROM events WHERE frobnicate(agent_id)", RuleCode::RuleFunction, At::Word("frobnicate")),
        ("", "SELECT agent_id, event_id FROM incidents", RuleCode::RuleTable, At::Word("incidents")),
        ("", "SELECT agent_id, event_id FROM alerts", RuleCode::RuleUnsupported, At::Word("alerts")),
        ("", "SELECT agent_id, event_id FROM alerts WHERE rule_name = 'nobody'", RuleCode::RuleUnreachable, At::Any),
        ("", "SELECT agent_id, event_id FROM alerts WHERE rule_name = 't'", RuleCode::RuleUnsupported, At::Any),
        (
            "",
            "SELECT agent_id, event_id FROM alerts WHERE decision = 'deny' AND rule_id = 'x'",
            RuleCode::RuleSql,
            At::Word("decision"),
        ),
        (
            "",
            "SELECT a.agent_id, a.event_id FROM alerts a JOIN events e ON a.event_id = e.event_id WHERE a.rule_name = 'x'",
            RuleCode::RuleTable,
            At::Word("alerts"),
        ),
        (
            "",
            "SELECT agent_id, event_id FROM alerts WHERE rule_id = 'x' QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts\n\
             RANGE BETWEEN CURRENT ROW AND INTERVAL '5' SECOND FOLLOWING) = 1",
            RuleCode::RuleUnsupported,
            At::Word("alerts"),
        ),
        (CONTAINS, "SELECT agent_id, event_id FROM alerts WHERE rule_name = 'x'", RuleCode::RuleTable, At::Word("alerts")),
        ("", "SELECT agent_id, event_id FROM information_schema.tables", RuleCode::RuleTable, At::Any),
        ("", "SELECT 'a' AS agent_id, 'b' AS event_id", RuleCode::RuleTable, At::Start),
        ("", "SELECT agent_id, event_id FROM events, generate_series(1, 3)", RuleCode::RuleTable, At::Any),
        ("", "INSERT INTO events SELECT * FROM events", RuleCode::RuleNotAQuery, At::Start),
        ("", "DROP TABLE events", RuleCode::RuleNotAQuery, At::Start),
        ("", "CREATE TABLE x AS SELECT * FROM events", RuleCode::RuleNotAQuery, At::Start),
        ("", "COPY events TO '/tmp/x.csv'", RuleCode::RuleNotAQuery, At::Start),
        ("", "SET datafusion.execution.batch_size = 1", RuleCode::RuleNotAQuery, At::Start),
        ("", "EXPLAIN SELECT agent_id, event_id FROM events", RuleCode::RuleNotAQuery, At::Start),
        ("", "SELECT agent_id, event_id FROM events; SELECT 1", RuleCode::RuleNotAQuery, At::Start),
        ("", "", RuleCode::RuleNotAQuery, At::Any),
        ("", "SELECT agent_id, event_id FRM events", RuleCode::RuleSql, At::Any),
        ("", "SELECT agent_id,\n       event_id\nFROM events\nWHERE )", RuleCode::RuleSql, At::Word(")")),
        ("", "SELECT agent_id, event_id, nosuch FROM events", RuleCode::RuleSql, At::Word("nosuch")),
        (
            "",
            "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES event_id AS event_id\n\
             ALL ROWS PER MATCH PATTERN (a) DEFINE a AS true)",
            RuleCode::RuleMatchRecognize,
            At::Word("MATCH_RECOGNIZE"),
        ),
        (
            "",
            "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES event_id AS event_id\n\
             PATTERN (a (b | permute(c, d))) DEFINE a AS true)",
            RuleCode::RuleMatchRecognize,
            At::Word("permute"),
        ),
        (
            "",
            "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES event_id AS event_id\n\
             PATTERN (a b) DEFINE a AS d.tool = 'x')",
            RuleCode::RuleMatchRecognize,
            At::Word("d.tool"),
        ),
        (
            "",
            "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES event_id AS event_id\n\
             AFTER MATCH SKIP TO LAST b PATTERN (a b?) DEFINE a AS true)",
            RuleCode::RuleMatchRecognize,
            At::Word("SKIP"),
        ),
        (
            "",
            "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES event_id AS event_id\n\
             PATTERN (a) DEFINE a AS ts < now())",
            RuleCode::RuleFunction,
            At::Word("now"),
        ),
        (
            "",
            "WITH e AS (SELECT ts, agent_id, tool AS event_id FROM events) SELECT * FROM e\n\
             MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES event_id AS event_id PATTERN (a) DEFINE a AS true)",
            RuleCode::RuleOrder,
            At::Word("MATCH_RECOGNIZE"),
        ),
        (
            // Of one instant, events are in the order of their lanes, which is not that of their ids.
            "",
            "WITH e AS (SELECT ts, event_id, agent_id, decision FROM events) SELECT * FROM e\n\
             MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES event_id AS event_id PATTERN (a) DEFINE a AS true)",
            RuleCode::RuleOrder,
            At::Word("MATCH_RECOGNIZE"),
        ),
        (
            "",
            "WITH e AS (SELECT ts, lower(lane) AS lane, seq, event_id, agent_id FROM events) SELECT * FROM e\n\
             MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES event_id AS event_id PATTERN (a) DEFINE a AS true)",
            RuleCode::RuleOrder,
            At::Word("MATCH_RECOGNIZE"),
        ),
        (
            "",
            "WITH e AS (SELECT ts, agent_id, tool AS event_id FROM events) SELECT * FROM e MATCH_RECOGNIZE\n\
             (PARTITION BY agent_id ORDER BY ts, event_id MEASURES event_id AS event_id PATTERN (a) DEFINE a AS true)",
            RuleCode::RuleOrder,
            At::Word("MATCH_RECOGNIZE"),
        ),
        (
            CONTAINS,
            "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES event_id AS event_id\n\
             PATTERN (a) DEFINE a AS a.risk_score > 90)",
            RuleCode::RuleScore,
            At::Word("risk_score"),
        ),
        (
            CONTAINS,
            "SELECT * FROM events MATCH_RECOGNIZE (ORDER BY ts MEASURES a.agent_id AS agent_id, event_id AS event_id\n\
             PATTERN (a) DEFINE a AS true)",
            RuleCode::RuleCallerKey,
            At::Word("agent_id"),
        ),
        (CONTAINS, "SELECT agent_id, event_id FROM events WHERE risk_score > 90", RuleCode::RuleScore, At::Word("risk_score")),
        (
            CONTAINS,
            "SELECT agent_id, event_id FROM events WHERE first_seen_agent_tool_action = ts",
            RuleCode::RuleScore,
            At::Word("first_seen_agent_tool_action"),
        ),
        (
            CONTAINS,
            "SELECT agent_id, event_id FROM (SELECT *, ts - first_seen_agent AS age FROM events) WHERE age > INTERVAL '1' DAY",
            RuleCode::RuleScore,
            At::Any,
        ),
        (
            CONTAINS,
            "SELECT agent_id, event_id FROM events WHERE baseline_hourly_uses < 10",
            RuleCode::RuleScore,
            At::Word("baseline_hourly_uses"),
        ),
        (
            CONTAINS,
            "SELECT agent_id, event_id FROM events WHERE registry_risk_tier = 'critical'",
            RuleCode::RuleScore,
            At::Word("registry_risk_tier"),
        ),
        ("", "SELECT agent_id, event_id FROM events WHERE registry_owner = 'o'", RuleCode::RuleSql, At::Word("registry_owner")),
        (
            "",
            "SELECT agent_id, event_id FROM events WHERE first_seen_agent_tool = ts",
            RuleCode::RuleSql,
            At::Word("first_seen_agent_tool"),
        ),
        (
            "",
            "SELECT agent_id, event_id FROM (SELECT agent_id, event_id FROM events) WHERE first_seen_agent IS NULL",
            RuleCode::RuleSql,
            At::Word("first_seen_agent"),
        ),
        (
            CONTAINS,
            "SELECT agent_id, event_id FROM (SELECT *, risk_score * 2 AS s FROM events) WHERE s > 90",
            RuleCode::RuleScore,
            At::Any,
        ),
        (
            CONTAINS,
            "SELECT agent_id, event_id FROM events WHERE event_id IN (SELECT event_id FROM events e WHERE e.risk_score > 1)",
            RuleCode::RuleScore,
            At::Any,
        ),
        ("", "SELECT event_id FROM events", RuleCode::RuleKey, At::Header),
        ("", "SELECT agent_id FROM events", RuleCode::RuleEvidence, At::Start),
        ("", "SELECT agent_id, seq AS event_id FROM events", RuleCode::RuleEvidence, At::Any),
        ("", "SELECT agent_id, event_id AS event_ids FROM events", RuleCode::RuleEvidence, At::Any),
        (CONTAINS, "SELECT run_id AS agent_id, event_id FROM events", RuleCode::RuleCallerKey, At::Any),
        (CONTAINS, "SELECT coalesce(agent_id, run_id) AS agent_id, event_id FROM events", RuleCode::RuleCallerKey, At::Any),
        (CONTAINS, "SELECT tool AS agent_id, event_id FROM events", RuleCode::RuleCallerKey, At::Any),
        (
            CONTAINS,
            "SELECT agent_id, event_id FROM (SELECT user_id AS agent_id, event_id FROM events)",
            RuleCode::RuleCallerKey,
            At::Any,
        ),
        (
            "",
            "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '61' SECOND PRECEDING AND CURRENT ROW) > 1",
            RuleCode::RuleWindow,
            At::Any,
        ),
        (
            "",
            "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts\n\
             RANGE BETWEEN INTERVAL '20' SECOND PRECEDING AND INTERVAL '41' SECOND FOLLOWING) = 0",
            RuleCode::RuleWindow,
            At::Word("FOLLOWING"),
        ),
        (
            // On top of each other they add up.
            "",
            "SELECT agent_id, event_id FROM (SELECT *, count(*) OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN CURRENT ROW AND \
             INTERVAL '31' SECOND FOLLOWING) c FROM events) QUALIFY max(c) OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN \
             CURRENT ROW AND INTERVAL '31' SECOND FOLLOWING) = 0",
            RuleCode::RuleWindow,
            At::Word("FOLLOWING"),
        ),
        (
            // Beside what cannot wait it would be cut short, and always match.
            "",
            "SELECT agent_id, event_id, lag(ts) OVER (PARTITION BY agent_id ORDER BY ts, event_id) AS before FROM events\n\
             QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN CURRENT ROW AND INTERVAL '5' SECOND FOLLOWING) = 0",
            RuleCode::RuleUnsupported,
            At::Word("FOLLOWING"),
        ),
        (
            // A month is longer than any window, and would be cut short the same way.
            "",
            "SELECT agent_id, event_id FROM events\n\
             QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN CURRENT ROW AND INTERVAL '1' MONTH FOLLOWING) = 1",
            RuleCode::RuleUnsupported,
            At::Word("FOLLOWING"),
        ),
        (
            "",
            "SELECT agent_id, event_id FROM events\n\
             QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '1' MONTH PRECEDING AND CURRENT ROW) = 1",
            RuleCode::RuleWindow,
            At::Word("PRECEDING"),
        ),
        (
            "",
            "SELECT agent_id, event_id FROM events WHERE agent_id IN (SELECT agent_id FROM events WHERE decision = 'deny')\n\
             QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN CURRENT ROW AND INTERVAL '5' SECOND FOLLOWING) = 1",
            RuleCode::RuleUnsupported,
            At::Word("FOLLOWING"),
        ),
        (
            "",
            "SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events\n\
             WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN CURRENT ROW AND INTERVAL '5' SECOND FOLLOWING) QUALIFY n = 1",
            RuleCode::RuleUnsupported,
            At::Word("array_agg"),
        ),
        (
            "",
            "SELECT agent_id, event_id FROM events QUALIFY row_number() OVER (PARTITION BY agent_id ORDER BY ts) = 1",
            RuleCode::RuleOrder,
            At::Any,
        ),
        (
            "",
            "SELECT agent_id, event_id FROM events QUALIFY lag(kind) OVER (PARTITION BY agent_id ORDER BY ts) = 'x'",
            RuleCode::RuleOrder,
            At::Any,
        ),
        (
            "",
            "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (ORDER BY ts ROWS BETWEEN 3 PRECEDING AND CURRENT ROW) > 1",
            RuleCode::RuleOrder,
            At::Any,
        ),
        ("", "SELECT agent_id, event_id FROM events ORDER BY ts LIMIT 1", RuleCode::RuleUnsupported, At::Any),
        (
            "",
            "SELECT agent_id, event_id FROM events UNION ALL SELECT agent_id, event_id FROM events",
            RuleCode::RuleUnsupported,
            At::Any,
        ),
        ("", "SELECT agent_id, event_id FROM events WHERE ts = (SELECT max(ts) FROM events)", RuleCode::RuleUnsupported, At::Any),
        ("", "SELECT agent_id, $1 AS event_id FROM events", RuleCode::RuleUnsupported, At::Any),
    ];
    refuses(cases);
}

#[test]
fn what_no_event_can_meet_is_refused() {
    let cases: &[(&str, &str, RuleCode, At)] = &[
        ("", "SELECT agent_id, event_id FROM events WHERE decision = 'denied'", RuleCode::RuleUnreachable, At::Word("'denied'")),
        ("", "SELECT agent_id, event_id FROM events\nWHERE 'Deny' <> decision", RuleCode::RuleUnreachable, At::Word("'Deny'")),
        (
            "",
            "SELECT agent_id, event_id FROM events WHERE tool = 'severe' AND risk_level IN ('low', 'severe')",
            RuleCode::RuleUnreachable,
            At::Word("'severe')"),
        ),
        (
            "",
            "SELECT agent_id, event_id FROM (SELECT *, data_access AS reads FROM events) WHERE reads = 'secret'",
            RuleCode::RuleUnreachable,
            At::Word("'secret'"),
        ),
        (
            "",
            "SELECT agent_id, event_id, CASE source_trust WHEN 'internal' THEN 1 END AS n FROM events",
            RuleCode::RuleUnreachable,
            At::Word("'internal'"),
        ),
        (
            "",
            "SELECT agent_id, event_id FROM events w WHERE NOT EXISTS \
             (SELECT 1 FROM events d WHERE d.agent_id = w.agent_id AND d.kind = 'decision')",
            RuleCode::RuleUnreachable,
            At::Word("'decision'"),
        ),
        (
            "",
            "SELECT agent_id, event_id, count(*) FILTER (WHERE root_trust = 'none') OVER (PARTITION BY agent_id ORDER BY ts \
             RANGE BETWEEN INTERVAL '1' MINUTE PRECEDING AND CURRENT ROW) AS n FROM events",
            RuleCode::RuleUnreachable,
            At::Word("'none'"),
        ),
        (
            "",
            "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES event_id AS event_id\n\
             PATTERN (a) DEFINE a AS a.mutates_state AND a.destination = 'outside')",
            RuleCode::RuleUnreachable,
            At::Word("'outside'"),
        ),
        (
            "",
            "SELECT agent_id, event_id FROM events e WHERE kind = 'approval_decided' AND status = 'approved'",
            RuleCode::RuleUnreachable,
            At::Word("'approved'"),
        ),
        ("", "SELECT agent_id, event_id FROM events WHERE decision = NULL", RuleCode::RuleUnreachable, At::Word("WHERE")),
        ("", "SELECT agent_id, event_id FROM events WHERE 1 = 2", RuleCode::RuleUnreachable, At::Word("WHERE")),
        ("", "SELECT agent_id, event_id FROM events WHERE event_id IS NULL", RuleCode::RuleUnreachable, At::Word("WHERE")),
        (
            "",
            "SELECT agent_id, event_id FROM events WHERE kind = 'tool_attempt' AND kind = 'tool_outcome'",
            RuleCode::RuleUnreachable,
            At::Word("WHERE"),
        ),
        (
            "",
            "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts \
             RANGE BETWEEN INTERVAL '1' MINUTE PRECEDING AND CURRENT ROW) < NULL",
            RuleCode::RuleUnreachable,
            At::Word("QUALIFY"),
        ),
        (
            "",
            "SELECT agent_id, event_id FROM events WHERE agent_id IN (SELECT agent_id FROM events WHERE false)",
            RuleCode::RuleUnreachable,
            At::Word("WHERE"),
        ),
        (
            "",
            "SELECT agent_id, event_id FROM events a WHERE NOT EXISTS (SELECT 1 FROM events b WHERE b.agent_id = a.agent_id AND 1 = 2)",
            RuleCode::RuleUnreachable,
            At::Word("WHERE"),
        ),
        // A rule that contains sees what is verified.
        (CONTAINS, "SELECT agent_id, event_id FROM events WHERE NOT verified", RuleCode::RuleUnreachable, At::Word("WHERE")),
    ];
    refuses(cases);
}

#[test]
fn a_word_that_is_never_there_is_refused_with_those_that_are() {
    let error = refused("", "SELECT agent_id, event_id FROM events WHERE decision = 'denied'");
    assert_eq!(
        error.to_string(),
        "t/rule.sql:15:56: RULE_UNREACHABLE: `decision` is never 'denied'\n  \
         hint: it is null, or one of: allow, require_approval, deny"
    );
}

#[test]
fn every_word_of_the_model_may_be_asked_for() {
    let labels: Vec<&str> = SourceTrust::ALL.iter().map(|trust| trust.as_str()).collect();
    for (column, words) in [
        ("kind", EventKind::WORDS),
        ("decision", Decision::WORDS),
        ("data_access", DataAccess::WORDS),
        ("destination", Destination::WORDS),
        ("risk_level", RiskLevel::WORDS),
        ("source_trust", labels.as_slice()),
        ("root_trust", labels.as_slice()),
        // Of an outcome, of a containment, of what is not verified.
        ("status", ["ok", "cap_reached", "digest_mismatch"].as_slice()),
    ] {
        let words = words.join("', '");
        load(rule("", &format!("SELECT agent_id, event_id FROM events WHERE {column} IN ('{words}')"))).unwrap();
    }
    let statuses = ApprovalStatus::WORDS.join("', '");
    load(rule(
        "",
        &format!("SELECT agent_id, event_id FROM events WHERE kind = 'approval_decided' AND status IN ('{statuses}')"),
    ))
    .unwrap();
    for condition in [
        "kind = 'approval_decided' OR status = 'ok'",
        "kind IN ('approval_decided', 'tool_outcome') AND status = 'ok'",
        "lower(decision) = 'denied'",
        "reason = 'denied'",
        "coalesce(decision, 'none') = 'none'",
        "kind LIKE 'external_event:%' AND decision IS NULL",
    ] {
        load(rule("", &format!("SELECT agent_id, event_id FROM events WHERE {condition}"))).unwrap();
    }
}

/// Loads each rule (a change of the header, a query), and holds the refusal against the code and the place.
fn refuses(cases: &[(&str, &str, RuleCode, At)]) {
    let mut wrong = Vec::new();
    for (extra, query, code, at) in cases {
        let error = match load(rule(extra, query)) {
            Err(error) => error,
            Ok(_) => {
                wrong.push(format!("accepted, should be {code}: {query}"));
                continue;
            }
        };
        let header = HEADER_LINES + extra.lines().count() as u64;
        let place = error.place.map(|p| (p.line, p.column));
        let as_expected = match at {
            At::Any => true,
            At::Header => place.is_some_and(|(line, _)| line <= header),
            At::Start => place == Some((header + 1, 1)),
            At::Word(word) => {
                let before = &query[..query.find(word).unwrap()];
                let line = header + 1 + before.matches('\n').count() as u64;
                let column = before.rsplit('\n').next().unwrap().len() as u64 + 1;
                place == Some((line, column))
            }
        };
        if error.code != *code || !as_expected {
            wrong.push(format!("should be {code} at {at:?}: {query}\n    is {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where an error must point.
#[derive(Debug)]
enum At {
    Word(&'static str),
    Start,
    Header,
    Any,
}

#[test]
fn what_is_allowed_loads_in_the_shape_that_fits() {
    for (query, shape) in [
        ("SELECT agent_id, event_id FROM events WHERE risk_score > 90", Shape::Stateless),
        ("SELECT * FROM events", Shape::Stateless),
        ("SELECT agent_id, event_id FROM events e ORDER BY ts", Shape::Stateless),
        // What a side table says of an event may change: it is kept.
        ("SELECT agent_id, event_id FROM events WHERE first_seen_agent = ts", Shape::Incremental),
        ("SELECT agent_id, event_id, first_seen_agent AS since FROM events", Shape::Incremental),
        ("SELECT agent_id, event_id, baseline_active_hours AS hours FROM events", Shape::Incremental),
        ("SELECT agent_id, event_id, registry_frozen_siblings AS frozen FROM events", Shape::Incremental),
        (
            "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts \
             RANGE BETWEEN INTERVAL '1' MINUTE PRECEDING AND CURRENT ROW) > 3",
            Shape::Incremental,
        ),
        (
            // No function that can be followed.
            "SELECT agent_id, event_id FROM events QUALIFY sum(seq) OVER (PARTITION BY agent_id ORDER BY ts \
             RANGE BETWEEN INTERVAL '1' MINUTE PRECEDING AND CURRENT ROW) > 3",
            Shape::Sliding,
        ),
        (
            "SELECT agent_id, event_id FROM events QUALIFY kind = 'tool_attempt' AND count(*) FILTER (WHERE kind = 'tool_outcome') \
             OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '20' SECOND PRECEDING AND INTERVAL '40' SECOND FOLLOWING) = 0",
            Shape::Deferred,
        ),
        (
            // Descending time turns FOLLOWING into the past.
            "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts DESC \
             RANGE BETWEEN CURRENT ROW AND INTERVAL '1' MINUTE FOLLOWING) > 3",
            Shape::Stepped,
        ),
        (
            // Two frames on top of each other look back further than the window: each instant is run alone.
            "SELECT agent_id, event_id FROM (SELECT *, count(*) OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '40' \
             SECOND PRECEDING AND CURRENT ROW) c FROM events) QUALIFY max(c) OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN \
             INTERVAL '40' SECOND PRECEDING AND CURRENT ROW) > 3",
            Shape::Stepped,
        ),
        (
            // Descending time turns PRECEDING into the future.
            "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts DESC \
             RANGE BETWEEN INTERVAL '1' MINUTE PRECEDING AND CURRENT ROW) > 3",
            Shape::Stepped,
        ),
        ("SELECT agent_id, array_agg(event_id) AS event_ids FROM events GROUP BY agent_id HAVING count(*) > 2", Shape::Stepped),
        (
            "SELECT a.agent_id, make_array(a.event_id, b.event_id) AS event_ids FROM events a JOIN events b \
             ON a.agent_id = b.agent_id AND a.ts < b.ts WHERE a.kind = 'tool_attempt' AND b.kind = 'tool_outcome'",
            Shape::Stepped,
        ),
        (
            "SELECT agent_id, event_id FROM events w WHERE kind = 'tool_attempt' AND NOT EXISTS \
             (SELECT 1 FROM events d WHERE d.agent_id = w.agent_id AND d.kind = 'authorize_decision')",
            Shape::Stepped,
        ),
        (
            "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
             PATTERN (r x*? w) DEFINE r AS r.data_access = 'sensitive', w AS w.destination = 'external' AND w.mutates_state)",
            Shape::Stepped,
        ),
        (
            "SELECT agent_id, event_id FROM events QUALIFY row_number() OVER (PARTITION BY agent_id ORDER BY ts, event_id) = 3",
            Shape::Stepped,
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rule.sql");
        std::fs::write(&file, rule("", query)).unwrap();
        match aegis_detect::lint_file(&file) {
            Ok(lint) => assert_eq!(lint.shape, shape, "{query}\n{}", lint.plan),
            Err(error) => panic!("{query}\n{error}"),
        }
    }
}

#[test]
fn a_row_pattern_is_ordered_as_events_are_and_may_contain() {
    let query = "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
                 PATTERN (a b) DEFINE a AS decision = 'deny')";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rule.sql");
    std::fs::write(&file, rule(CONTAINS, query)).unwrap();
    let lint = aegis_detect::lint_file(&file).unwrap_or_else(|error| panic!("{error}"));
    let ordered = lint.plan.lines().find(|line| line.contains("MatchExec")).unwrap();
    for column in ["ts@", "lane@", "seq@", "event_id@"] {
        assert!(ordered.contains(column), "{ordered}");
    }
    assert!(lint.plan.contains("verified"), "a rule that contains sees verified events only: {}", lint.plan);
}

#[test]
fn a_row_pattern_needs_the_order_of_events_or_one_of_its_own() {
    let query = |columns: &str, order: &str| {
        format!(
            "WITH e AS (SELECT {columns} FROM events) SELECT * FROM e MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY {order} \
             MEASURES array_agg(event_id) AS event_ids PATTERN (a b) DEFINE a AS true)"
        )
    };
    for (columns, order) in [
        ("ts, lane, seq, event_id, agent_id", "ts"),
        ("ts AS moment, lane, seq, event_id, agent_id", "moment"),
        ("ts, event_id, agent_id", "ts, event_id"),
        ("ts, lane, seq, event_id, agent_id", "ts, lane, seq, event_id"),
    ] {
        let loaded = load(rule("", &query(columns, order)));
        assert!(loaded.is_ok(), "{columns} by {order}: {}", loaded.unwrap_err());
    }
    let error = refused("", &query("ts, event_id, agent_id", "ts"));
    assert_eq!(error.code, RuleCode::RuleOrder);
    assert!(error.message.ends_with("its input has no lane, seq") && error.hint.is_some(), "{error}");
}

#[test]
fn a_containing_rule_may_select_everything_and_still_has_no_score() {
    assert!(load(rule(CONTAINS, "SELECT * FROM events WHERE decision = 'deny'")).is_ok());
}

#[test]
fn two_rules_with_one_id_are_refused() {
    let text = rule("", "SELECT agent_id, event_id FROM events");
    let errors = RuleSet::from_texts([("a/rule.sql".into(), text.clone()), ("b/rule.sql".into(), text)]).unwrap_err();
    assert!(errors.0.iter().all(|e| e.code == RuleCode::RuleDuplicate), "{errors}");
}

#[test]
fn a_word_that_is_almost_a_column_of_a_side_table_is_told_from_the_columns_that_there_are() {
    let error = refused("", "SELECT agent_id, event_id FROM events WHERE first_seen_agnt = ts");
    assert!(error.message.contains("first_seen_agent"), "{error}");
    let error = refused("", "SELECT agent_id, event_id FROM events WHERE agnt = 'x'");
    assert!(!error.message.contains("first_seen_agent"), "{error}");
}

#[test]
fn an_error_reads_well() {
    let error = refused("", "SELECT agent_id, event_id FROM events WHERE ts > now()");
    assert_eq!(
        error.to_string(),
        "t/rule.sql:15:50: RULE_FUNCTION: `now()` is not decided by the events alone\n  \
         hint: a rule has no clock and no chance: use `ts`, and RANGE frames or differences of `ts`"
    );
}
