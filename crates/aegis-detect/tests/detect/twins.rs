//! Two events of a tenant with one id: neither hides what the other is evidence of. Of two in one place of a lane the proved one counts.

use std::sync::Arc;

use aegis_detect::{Engine, EngineConfig, RuleSet};
use aegis_model::{Alert, Decision, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};

const START: i64 = 1_767_225_600_000_000;
const ONE_DENY: &str = "SELECT agent_id, event_id FROM events WHERE decision = 'deny'";
const TWO_DENIES: &str = "SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = 'deny' \
    WINDOW w AS (PARTITION BY tool ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= 2";

fn rules(query: &str) -> RuleSet {
    let text = format!(
        "/* rule\nid: T-1\nname: t\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: active\nowner: soc\n\
         description: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-26, note: first}}\n*/\n{query}\n"
    );
    RuleSet::from_texts([("t/rule.sql".into(), text)]).unwrap()
}

fn deny(edge: &str, agent: &str, second: i64, id: u128) -> SecurityEvent {
    let tenant = TenantId::new("acme").unwrap();
    let ts = Timestamp::from_micros(START + second * 1_000_000);
    let mut event = SecurityEvent::new(tenant, edge, "edge", EventKind::AuthorizeDecision, ts);
    event.event_id = uuid::Uuid::from_u128(id);
    event.lane = Some(format!("acme.{edge}.1"));
    event.seq = Some(second);
    event.verified = true;
    event.agent_id = Some(agent.into());
    event.tool = Some("github".into());
    event.decision = Some(Decision::Deny);
    event
}

fn alerts(query: &str, log: &[SecurityEvent]) -> Vec<Alert> {
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(START)));
    let mut engine = Engine::new(rules(query), EngineConfig::new(clock));
    let mut alerts = engine.tick(log.to_vec()).alerts;
    alerts.extend(engine.finish().alerts);
    alerts.sort_by_key(|alert| alert.last_ts);
    alerts
}

#[test]
fn an_event_under_the_id_of_another_hides_no_match() {
    let (first, second) = (deny("edge-1", "one", 10, 7), deny("edge-2", "two", 20, 7));
    for log in [[first.clone(), second.clone()], [second, first]] {
        let found = alerts(ONE_DENY, &log);
        let said: Vec<_> = found.iter().map(|alert| (alert.key["agent_id"].as_str().unwrap(), alert.last_ts)).collect();
        let at = |second: i64| Timestamp::from_micros(START + second * 1_000_000);
        assert_eq!(said, [("one", at(10)), ("two", at(20))]);
    }
}

#[test]
fn nor_does_one_that_comes_later_or_before_all() {
    let log = [deny("edge-1", "one", 10, 1), deny("edge-1", "one", 20, 2)];
    let without = alerts(TWO_DENIES, &log);
    assert_eq!(without.len(), 1);
    for twin_at in [5, 15, 30] {
        let twin = deny("edge-2", "other", twin_at, 2);
        let with: Vec<SecurityEvent> = log.iter().cloned().chain([twin]).collect();
        let found = alerts(TWO_DENIES, &with);
        let ids = |alert: &Alert| alert.event_ids.clone();
        assert!(
            found.iter().any(|alert| alert.key["agent_id"] == "one"
                && alert.last_ts == without[0].last_ts
                && ids(alert).contains(&log[1].event_id)),
            "a twin at {twin_at} s: {found:#?}"
        );
    }
}

/// What each alert lists, where the log comes so many events at a time.
fn listed(query: &str, log: &[SecurityEvent], size: usize) -> Vec<Vec<u128>> {
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(START)));
    let mut engine = Engine::new(rules(query), EngineConfig::new(clock));
    let mut alerts: Vec<Alert> = log.chunks(size).flat_map(|part| engine.tick(part.to_vec()).alerts).collect();
    alerts.extend(engine.finish().alerts);
    alerts.sort_by_key(|alert| alert.last_ts);
    alerts.iter().map(|alert| alert.event_ids.iter().map(|id| id.as_u128()).collect()).collect()
}

#[test]
fn what_a_row_names_but_does_not_see_is_no_evidence_however_the_log_is_cut() {
    let about = |id: u128, event: SecurityEvent| SecurityEvent { ref_event_id: Some(uuid::Uuid::from_u128(id)), ..event };
    let log = [
        deny("edge-1", "other", 10, 1),
        // Of another key, of its own, and of its own before the window.
        about(1, deny("edge-1", "one", 20, 2)),
        about(2, deny("edge-1", "one", 30, 3)),
        about(2, deny("edge-1", "one", 100, 4)),
    ];
    let alone = "SELECT agent_id, make_array(ref_event_id, event_id) AS event_ids FROM events";
    let sliding = "SELECT agent_id, make_array(ref_event_id, event_id) AS event_ids, count(*) OVER (PARTITION BY agent_id ORDER BY ts \
                   RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) AS n FROM events";
    for size in 1..=log.len() {
        assert_eq!(listed(alone, &log, size), [vec![1]], "{size} at a time");
        assert_eq!(listed(sliding, &log, size), [vec![1], vec![2, 3]], "{size} at a time");
    }
}

/// Whose alerts stand, and on what evidence, where the log comes so many events at a time.
fn standing(query: &str, log: &[SecurityEvent], size: usize) -> Vec<(String, Vec<u128>)> {
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(START)));
    let mut engine = Engine::new(rules(query), EngineConfig::new(clock));
    let mut outputs: Vec<_> = log.chunks(size).map(|part| engine.tick(part.to_vec())).collect();
    outputs.push(engine.finish());
    let mut alerts: Vec<Alert> = Vec::new();
    for output in outputs {
        alerts.extend(output.alerts);
        for retraction in output.retractions {
            alerts.retain(|alert| alert.alert_id != retraction.alert_id);
        }
    }
    let ids = |alert: &Alert| alert.event_ids.iter().map(|id| id.as_u128()).collect();
    alerts.iter().map(|alert| (alert.key["agent_id"].as_str().unwrap().to_owned(), ids(alert))).collect()
}

/// The attack: whoever writes to the bus puts an event with the place and the id of another's before it, so that it counts as somebody else's.
#[test]
fn what_is_not_proved_takes_no_place_of_what_is_in_whatever_order_and_parts_they_come() {
    let proved = [deny("edge-1", "one", 10, 1), deny("edge-1", "one", 20, 2)];
    let forged = SecurityEvent { agent_id: Some("other".into()), verified: false, ..proved[1].clone() };
    // Where nothing proves itself there, what claims the place counts: the forged one is looked at.
    assert_eq!(standing(TWO_DENIES, &[proved[0].clone(), forged.clone()], 1), [("other".to_owned(), vec![1, 2])]);
    let [first, second] = proved;
    for log in [
        [first.clone(), forged.clone(), second.clone()],
        [first.clone(), second.clone(), forged.clone()],
        [forged.clone(), first.clone(), second.clone()],
        [forged, second, first],
    ] {
        for size in 1..=log.len() {
            assert_eq!(standing(TWO_DENIES, &log, size), [("one".to_owned(), vec![1, 2])], "{size} at a time of {log:#?}");
        }
    }
}
