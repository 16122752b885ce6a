//! What is allowed, and the shape in which it runs.

use aegis_detect::Shape;

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
