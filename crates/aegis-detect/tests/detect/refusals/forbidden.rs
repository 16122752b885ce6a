//! What is forbidden, each with its code and its place.

use aegis_detect::RuleCode;

use super::{At, CONTAINS, refuses};

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
            "SELECT agent_id, event_id FROM events WHERE mutates_state IS DISTINCT FROM true AND decision = 'allow'",
            RuleCode::RuleSql,
            At::Word("mutates_state"),
        ),
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
fn a_rule_on_rules_says_whose_alerts_it_reads_and_reads_nothing_else() {
    refuses(&[
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
    ]);
}
