//! Rules that compare times as texts find the last event before a row whatever the number of digits of its time.

use std::path::PathBuf;
use std::sync::Arc;

use aegis_detect::{Engine, EngineConfig, RuleSet};
use aegis_model::{Alert, Decision, EventId, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};

fn shipped(name: &str) -> RuleSet {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../rules").join(name).join("rule.sql");
    let text = std::fs::read_to_string(&file).unwrap();
    RuleSet::from_texts([(file, text)]).unwrap()
}

fn call(agent: &str, decision: Decision, micros: i64) -> SecurityEvent {
    let tenant = TenantId::new("acme").unwrap();
    let mut event = SecurityEvent::new(tenant, "edge-1", "edge", EventKind::AuthorizeDecision, Timestamp::from_micros(micros));
    event.lane = Some("acme.edge-1.1".into());
    event.seq = Some(micros);
    event.verified = true;
    event.agent_id = Some(agent.into());
    event.decision = Some(decision);
    event.reason = (decision == Decision::Deny).then(|| "agent_frozen".into());
    event.tool = Some("github".into());
    event.action = Some("merge".into());
    event.action_hash = Some("ab".repeat(32));
    event.mutates_state = Some(true);
    event
}

fn alerts(rule: &str, log: Vec<SecurityEvent>) -> Vec<Alert> {
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(0)));
    let mut engine = Engine::new(shipped(rule), EngineConfig::new(clock));
    let mut alerts = engine.tick(log).alerts;
    let last = engine.finish();
    alerts.extend(last.alerts);
    assert!(last.retractions.is_empty());
    alerts
}

#[test]
fn what_was_denied_is_found_whatever_the_number_of_digits_of_its_time() {
    // The last has more digits after the deny than before it.
    for denied_at in [7_000_000, 100_000_000_000, 1_767_225_600_000_000, 999_999_999_000_000] {
        let log = vec![call("frozen", Decision::Deny, denied_at), call("other", Decision::Allow, denied_at + 2_000_000)];
        let expected: Vec<EventId> = log.iter().map(|event| event.event_id).collect();
        let found = alerts("freeze-evasion", log);
        assert_eq!(found.len(), 1, "denied at {denied_at} us");
        assert_eq!(found[0].event_ids, expected);
        assert_eq!(found[0].fields["contained_agent_id"], "frozen");
    }
}
