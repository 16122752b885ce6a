//! What is allowed, and the shape in which it runs.

use std::sync::Arc;

use aegis_detect::{Engine, EngineConfig, Shape};
use aegis_model::{EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};

use super::{CONTAINS, load, rule};

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
            Shape::Pattern,
        ),
        (
            // A condition that depends on the mapping.
            "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
             PATTERN (r x*? w) DEFINE r AS r.data_access = 'sensitive', w AS w.target = r.target)",
            Shape::Pattern,
        ),
        (
            // One that reads what comes later.
            "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
             PATTERN (r x*? w) DEFINE r AS r.data_access = 'sensitive' AND r.target = NEXT(r.target), w AS w.mutates_state)",
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
fn a_containing_rule_may_select_everything_and_still_has_no_score() {
    assert!(load(rule(CONTAINS, "SELECT * FROM events WHERE decision = 'deny'")).is_ok());
}

#[test]
fn what_two_aggregates_ask_alike_both_are_answered() {
    let start = Timestamp::from_micros(1_767_225_600_000_000);
    let call = |(second, mutates_state): (i64, Option<bool>)| {
        let ts = start.plus_seconds(second);
        let mut event = SecurityEvent::new(TenantId::new("acme").unwrap(), "edge-1", "edge", EventKind::AuthorizeDecision, ts);
        (event.lane, event.seq, event.verified) = (Some("acme.edge-1.1".into()), Some(second), true);
        (event.agent_id, event.mutates_state) = (Some("bot".into()), mutates_state);
        event
    };
    let log: Vec<SecurityEvent> = [(1, Some(true)), (2, Some(false)), (3, None)].into_iter().map(call).collect();
    let cases = [("TRUE", 1), ("NOT TRUE", 2), ("FALSE", 1), ("NOT FALSE", 2), ("UNKNOWN", 1), ("NOT UNKNOWN", 2)];
    for (asked, count) in cases {
        let asked = format!("mutates_state IS {asked}");
        for query in [
            // Shared by the engine, and by whoever wrote it.
            format!(
                "SELECT agent_id, array_agg(event_id) AS event_ids, count(*) FILTER (WHERE {asked}) AS n, \
                count(tool) FILTER (WHERE {asked}) AS tools FROM events GROUP BY agent_id HAVING count(*) = 3"
            ),
            format!(
                "SELECT agent_id, array_agg(event_id) AS event_ids, sum(CASE WHEN asked THEN 1 ELSE 0 END) AS n, \
                count(CASE WHEN asked THEN tool END) AS tools FROM (SELECT agent_id, event_id, tool, {asked} AS asked FROM events) \
                GROUP BY agent_id HAVING count(*) = 3"
            ),
        ] {
            let set = load(rule("", &query)).unwrap_or_else(|error| panic!("{query}: {error}"));
            let mut engine = Engine::new(set, EngineConfig::new(Arc::new(ManualClock::new(start))));
            let mut alerts = engine.tick(log.clone()).alerts;
            alerts.extend(engine.finish().alerts);
            let told: Vec<_> = alerts.iter().map(|alert| (alert.fields["n"].as_i64(), alert.fields["tools"].as_i64())).collect();
            assert_eq!(told, [(Some(count), Some(0))], "{query}");
        }
    }
}
