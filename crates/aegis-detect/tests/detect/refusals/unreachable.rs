//! What no event can meet.

use aegis_detect::RuleCode;
use aegis_model::{ApprovalStatus, DataAccess, Decision, Destination, EventKind, RiskLevel, SourceTrust};

use super::{At, CONTAINS, load, refused, refuses, rule};

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
