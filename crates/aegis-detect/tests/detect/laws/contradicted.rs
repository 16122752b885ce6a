//! What comes late, or is gone after a restart, and contradicts what was told: whose alert is taken back for it, and whose stands.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_detect::{Engine, EngineConfig, Quotas};
use aegis_model::{Alert, Decision, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};

use super::logs::{START, engine, rules};

#[test]
fn a_late_event_that_contradicts_a_match_retracts_its_alert() {
    let at = |second: i64, id: u128, bus: i64| {
        let ts = Timestamp::from_micros(START + second * 1_000_000);
        let mut event = SecurityEvent::new(TenantId::new("a").unwrap(), "edge", "edge", EventKind::AuthorizeDecision, ts);
        event.lane = Some(format!("{}.edge.1", event.tenant_id));
        event.verified = true;
        event.event_id = uuid::Uuid::from_u128(id);
        event.agent_id = Some("agent".into());
        event.bus_ts = Some(Timestamp::from_micros(START + bus * 1_000_000));
        event
    };
    let with = |decision: Decision, mut event: SecurityEvent| {
        event.decision = Some(decision);
        event
    };
    let mut engine = engine();
    // An allowed call without a deny before it is a match of `stepped-absence`; then the deny before it arrives.
    let first = engine.tick(vec![with(Decision::Allow, at(100, 1, 100))]);
    let alert = first.alerts.iter().find(|a| a.rule_name == "stepped-absence").expect("the match").alert_id.clone();
    let second = engine.tick(vec![with(Decision::Deny, at(98, 2, 101))]);
    assert!(second.retractions.is_empty(), "it could still come back, so it is not retracted yet");
    // Time passes, and with it every event that could bring the match back.
    let third = engine.tick(vec![with(Decision::Deny, at(140, 3, 140))]);
    assert!(third.retractions.iter().any(|r| r.alert_id == alert), "{third:?}");
    // What comes now for that time is late, and says so.
    let late = SecurityEvent { verified: false, ..at(101, 4, 141) };
    let fourth = engine.tick(vec![with(Decision::Allow, late)]);
    assert_eq!(fourth.late.len(), 1);
    assert!(fourth.alerts.is_empty());
}

/// A proved decision about one agent, stored by the bus at another time than its own.
fn event(tenant: &str, decision: Decision, second: i64, id: u128, bus: i64) -> SecurityEvent {
    let ts = Timestamp::from_micros(START + second * 1_000_000);
    let mut event = SecurityEvent::new(TenantId::new(tenant).unwrap(), "edge", "edge", EventKind::AuthorizeDecision, ts);
    event.lane = Some(format!("{}.edge.1", event.tenant_id));
    event.verified = true;
    event.event_id = uuid::Uuid::from_u128(id);
    event.agent_id = Some("agent".into());
    event.decision = Some(decision);
    event.bus_ts = Some(Timestamp::from_micros(START + bus * 1_000_000));
    event
}

#[test]
fn what_one_tenant_lacks_after_a_restart_leaves_the_others_as_they_are() {
    let mut first = engine();
    let told = first.tick(vec![event("a", Decision::Allow, 100, 1, 100), event("b", Decision::Allow, 100, 2, 100)]).alerts;
    let absence_of = |tenant: &str| {
        let is_it = |a: &&Alert| a.rule_name == "stepped-absence" && a.tenant_id.as_str() == tenant;
        told.iter().find(is_it).expect("a match").alert_id.clone()
    };
    // In both, a late event contradicts it.
    let denies = vec![event("a", Decision::Deny, 98, 3, 101), event("b", Decision::Deny, 98, 4, 101)];
    assert!(first.tick(denies).retractions.is_empty());

    let mut second = engine();
    let of_b = vec![event("b", Decision::Allow, 100, 2, 100), event("b", Decision::Deny, 98, 4, 101)];
    second.restore_cut(first.checkpoint(), of_b, &|tenant| tenant.as_str() == "a");
    let output = second.tick(vec![event("a", Decision::Deny, 140, 5, 140), event("b", Decision::Deny, 140, 6, 140)]);
    let retracted: BTreeSet<String> = output.retractions.into_iter().map(|r| r.alert_id).collect();
    assert!(retracted.contains(&absence_of("b")), "all of it is known: {retracted:?}");
    assert!(!retracted.contains(&absence_of("a")), "what said otherwise may be what is gone");
}

#[test]
fn what_a_quota_takes_from_one_tenant_leaves_the_others_as_they_are_after_a_restart() {
    let engine = || {
        let mut config = EngineConfig::new(Arc::new(ManualClock::new(Timestamp::from_micros(START))));
        config.lateness_s = 6;
        config.quotas = Quotas { events_per_key: 5, ..Quotas::default() };
        Engine::new(rules(), config)
    };
    let allowed = ["few", "many"].into_iter().zip(1..).map(|(tenant, id)| event(tenant, Decision::Allow, 100, id, 100));
    let mut log: Vec<SecurityEvent> = allowed.collect();
    let mut first = engine();
    let told = first.tick(log.clone()).alerts;
    let absence_of = |tenant: &str| {
        let is_it = |a: &&Alert| a.rule_name == "stepped-absence" && a.tenant_id.as_str() == tenant;
        told.iter().find(is_it).expect("a match").alert_id.clone()
    };
    // In both, a late event contradicts it; of one there is more than a key may have.
    let mut more = vec![event("few", Decision::Deny, 98, 3, 101), event("many", Decision::Deny, 98, 4, 101)];
    more.extend((5..12).map(|id| event("many", Decision::Allow, 102, id, 102)));
    assert!(first.tick(more.clone()).retractions.is_empty());
    log.extend(more);

    let mut second = engine();
    second.restore(first.checkpoint(), log, true);
    let output = second.tick(vec![event("few", Decision::Deny, 140, 20, 140), event("many", Decision::Deny, 140, 21, 140)]);
    let retracted: BTreeSet<String> = output.retractions.into_iter().map(|r| r.alert_id).collect();
    assert!(retracted.contains(&absence_of("few")), "all of it is known: {retracted:?}");
    assert!(!retracted.contains(&absence_of("many")), "what said otherwise is given up");
}
