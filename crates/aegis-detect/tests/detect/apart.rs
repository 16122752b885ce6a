//! What one tenant's or one agent's events do to a rule, they do to that tenant's or that agent's matches at most: live, and after a restart.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_detect::{Engine, EngineConfig, RuleSet, TickOutput};
use aegis_model::{Decision, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};

const START: i64 = 1_767_225_600_000_000;

/// As an author might write it: each row has the list of all denies of the last minute.
const LISTS: &str = "SELECT agent_id, count(*) OVER w AS denies, array_agg(event_id) OVER w AS event_ids FROM events \
     WHERE decision = 'deny' \
     WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) QUALIFY denies >= 5";
/// Fails on a resource that is no number: where a row is made, and where rows are chosen.
const FAILS_IN_A_ROW: &str = "SELECT agent_id, event_id, CAST(resource AS BIGINT) AS n, count(*) OVER w AS denies FROM events \
     WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) QUALIFY denies >= 1";
const FAILS_IN_WHERE: &str = "SELECT agent_id, event_id FROM events WHERE CAST(resource AS BIGINT) > 5";
/// The same where it is asked whether a row can be one of a match.
const FAILS_IN_DEFINE: &str = "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts \
     MEASURES array_agg(event_id) AS event_ids PATTERN (a) DEFINE a AS CAST(a.resource AS BIGINT) > 5)";
/// An action that nobody approved within a minute.
const UNAPPROVED: &str = "SELECT agent_id, event_id, CAST(resource AS BIGINT) AS n, \
     count(*) FILTER (WHERE tool = 'approval') OVER w AS approvals FROM events \
     WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) \
     QUALIFY tool = 'action' AND approvals = 0";
/// Each row can be taken in two ways, and the end depends on which.
const COSTLY: &str = "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
    PATTERN ((a | b)+ c) DEFINE c AS c.tool = CAST(count(a.*) AS text))";

fn engine(query: &str) -> Engine {
    let text = format!(
        "/* rule\nid: T-1\nname: t\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: active\nrequires: any\n\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-26, note: first}}\n*/\n{query}\n"
    );
    let rules = RuleSet::from_texts([("t/rule.sql".into(), text)]).unwrap();
    Engine::new(rules, EngineConfig::new(Arc::new(ManualClock::new(Timestamp::from_micros(START)))))
}

fn event(tenant: &str, agent: &str, milli: i64) -> SecurityEvent {
    let ts = Timestamp::from_micros(START + milli * 1000);
    let mut event = SecurityEvent::new(TenantId::new(tenant).unwrap(), "edge-1", "edge", EventKind::AuthorizeDecision, ts);
    event.lane = Some(format!("{tenant}.edge-1.1"));
    event.verified = true;
    event.agent_id = Some(agent.into());
    event.tool = Some("github".into());
    event.resource = Some("7".into());
    event.decision = Some(Decision::Deny);
    event.bus_ts = Some(Timestamp::from_micros(START + 120_000_000));
    event
}

fn with(mut event: SecurityEvent, tool: &str, resource: &str) -> SecurityEvent {
    event.tool = Some(tool.into());
    event.resource = Some(resource.into());
    event
}

/// Tenants that got an alert of the rule.
fn alerted(output: &TickOutput) -> BTreeSet<&str> {
    output.alerts.iter().filter(|alert| alert.rule_id == "T-1").map(|alert| alert.tenant_id.as_str()).collect()
}

fn is_in_order(engine: &Engine) -> bool {
    engine.stats().iter().all(|stats| stats.quarantined.is_none() && stats.set_aside.is_empty())
}

fn restarted(engine: &Engine, query: &str, events: Vec<SecurityEvent>) -> Engine {
    let mut second = self::engine(query);
    second.restore(serde_json::from_str(&serde_json::to_string(&engine.checkpoint()).unwrap()).unwrap(), events, true);
    second
}

#[test]
fn long_lists_of_one_agent_stop_nothing_neither_live_nor_at_a_restart() {
    let mut first = engine(LISTS);
    let mut log: Vec<SecurityEvent> = (0..3_000).map(|n| event("a", "agent", 20 * n)).collect();
    log.push(event("b", "other", 59_000));
    let mut alerts = 0;
    for part in log.chunks(100) {
        alerts += first.tick(part.to_vec()).alerts.len();
    }
    assert!(alerts > 0 && is_in_order(&first));
    // Late: all that came after it is looked at again.
    first.tick(vec![event("a", "agent", 1), event("b", "other", 59_001)]);
    assert!(is_in_order(&first));
    let mut second = restarted(&first, LISTS, log);
    assert!(is_in_order(&second));
    let more = (2..6).map(|n| event("b", "other", 59_000 + n)).collect();
    assert_eq!(alerted(&second.tick(more)), BTreeSet::from(["b"]));
}

#[test]
fn what_fails_where_rows_are_chosen_fails_for_its_tenant() {
    for query in [FAILS_IN_WHERE, FAILS_IN_DEFINE] {
        let mut engine = engine(query);
        let output = engine.tick(vec![with(event("a", "agent", 1), "github", "none"), event("b", "agent", 1)]);
        assert_eq!(alerted(&output), BTreeSet::from(["b"]), "{query}");
        assert_eq!(output.quarantined.len(), 1);
        assert_eq!(alerted(&engine.tick(vec![event("a", "agent", 2), event("b", "agent", 2)])), BTreeSet::from(["b"]), "{query}");
    }
}

#[test]
fn what_fails_at_a_restart_fails_for_its_tenant() {
    for query in [FAILS_IN_A_ROW, FAILS_IN_WHERE, FAILS_IN_DEFINE] {
        let mut first = engine(query);
        let log = vec![event("b", "agent", 1), with(event("a", "agent", 1), "github", "none")];
        first.tick(log.clone());
        let mut second = restarted(&first, query, log);
        assert_eq!(alerted(&second.tick(vec![event("a", "agent", 2), event("b", "agent", 2)])), BTreeSet::from(["b"]), "{query}");
    }
}

#[test]
fn who_was_set_aside_is_not_looked_at_again_with_half_of_what_there_was() {
    let mut engine = engine(UNAPPROVED);
    let mut log = vec![with(event("a", "agent", 1), "approval", "1"), with(event("a", "agent", 2), "github", "none")];
    // More than one look has.
    log.extend((3..4_000).map(|n| event("a", "agent", n)));
    log.push(with(event("a", "agent", 4_000), "action", "1"));
    log.push(with(event("b", "agent", 4_000), "action", "1"));
    assert_eq!(alerted(&engine.tick(log)), BTreeSet::from(["b"]));
}

#[test]
fn an_alert_stands_that_a_search_which_costs_too_much_does_not_find_again() {
    let mut engine = engine(COSTLY);
    let told = engine.tick(vec![with(event("a", "agent", 48_000), "0", "1"), with(event("a", "agent", 50_000), "1", "1")]);
    assert_eq!(alerted(&told), BTreeSet::from(["a"]));
    engine.tick((0..40).map(|n| event("a", "agent", 49_000 + n)).collect());
    assert!(engine.stats().iter().any(|stats| stats.overruns > 0), "the search was to cost too much");
    let mut retracted = Vec::new();
    for minute in 1..10 {
        let mut later = event("a", "other", 60_000 * minute + 120_000);
        later.bus_ts = Some(later.ts);
        retracted.extend(engine.tick(vec![later]).retractions);
    }
    retracted.extend(engine.finish().retractions);
    assert!(retracted.is_empty(), "{retracted:?}");
}
