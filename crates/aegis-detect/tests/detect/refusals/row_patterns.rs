//! The order that a row pattern needs.

use aegis_detect::RuleCode;

use super::{CONTAINS, load, refused, rule};

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
