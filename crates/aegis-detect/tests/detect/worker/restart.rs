//! What a start knows of the life before it.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, EmbeddedLimits, Stream};
use aegis_detect::{CONSUMER, RuleSet};
use aegis_model::{Clock, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};
use serde_json::Value;
use tokio::time::Instant;

use super::{DEADLINE, Line, fell_silent};

#[tokio::test]
async fn what_did_not_follow_is_told_though_nothing_else_comes() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_767_225_600_000_000)));
    let mut line = Line::open_with(folder.path(), EmbeddedLimits::default(), clock.clone()).await;
    let worker = line.worker_of(fell_silent(), 0, None);
    let wires = line.seal_denies("acme", "prober", 1).await;
    line.publish(&wires).await;
    line.caught_up(&worker).await;
    // The row waits in what the next life reads again.
    worker.stop().await;
    let worker = line.worker_of(fell_silent(), 0, None);
    let (start, events) = (Instant::now(), line.bus.last_seq(Stream::Ase).await.unwrap());
    while line.bus.last_seq(Stream::Alerts).await.unwrap() == 0 {
        assert!(start.elapsed() < DEADLINE, "nothing is told: {:?}", worker.stats());
        // As much as one pause of the bus counts, about as often as the worker looks.
        clock.advance_seconds(5);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let alerts = line.alerts(1).await;
    assert_eq!((alerts[0].rule_name.as_str(), &alerts[0].key["agent_id"]), ("fell-silent", &Value::from("prober")));
    // Once all is decided, nobody needs the time.
    line.caught_up(&worker).await;
    let told = line.read_stream(Stream::Ase, "tick.>").await.len() as u64;
    assert!(told > 0 && line.bus.last_seq(Stream::Ase).await.unwrap() == events + told);
    assert_eq!(worker.stats().malformed, 0);
    worker.stop().await;
}

/// The shipped rule for the first use of an action, alone.
fn first_use() -> RuleSet {
    let text = include_str!("../../../../../rules/first-use-of-a-tool/rule.sql");
    RuleSet::from_texts([("first-use-of-a-tool/rule.sql".into(), text.to_owned())]).unwrap()
}

#[tokio::test]
async fn what_was_used_before_is_known_after_a_restart_however_long_ago() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_767_225_600_000_000)));
    let mut line = Line::open_with(folder.path(), EmbeddedLimits::default(), clock.clone()).await;
    let worker = line.worker_of(first_use(), 0, None);
    let wires = line.seal_calls("acme", "clerk", &["read", "pay"]).await;
    line.publish(&wires).await;
    line.caught_up(&worker).await;
    worker.stop().await;
    // A day later those calls are in no window any more: what is known of them is in the checkpoint.
    clock.advance_seconds(25 * 3600);
    let worker = line.worker_of(first_use(), 0, None);
    let wires = line.seal_calls("acme", "clerk", &["pay", "refund"]).await;
    line.publish(&wires).await;
    line.caught_up(&worker).await;
    worker.stop().await;
    let alerts = line.alerts(1).await;
    assert_eq!((alerts[0].rule_name.as_str(), &alerts[0].key["action"]), ("first-use-of-a-tool", &Value::from("refund")));
}

#[tokio::test]
async fn a_restart_goes_on_with_its_windows_and_repeats_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let first_part = line.seal_denies("acme", "prober", 3).await;
    let worker = line.worker();
    line.publish(&first_part).await;
    let stats = line.caught_up(&worker).await;
    assert_eq!(stats.alerts, 0);
    worker.stop().await;
    assert!(line.bus.consumer_position(Stream::Ase, CONSUMER).await.unwrap() < 3, "the window still needs its events");

    // Two more while nobody listens: only together with the three from before are they a storm.
    let second_part = line.seal_denies("acme", "prober", 2).await;
    line.publish(&second_part).await;
    let worker = line.worker();
    let stats = line.caught_up(&worker).await;
    assert_eq!(stats.events, 2, "what the checkpoint counts is not taken again");
    assert_eq!(stats.broken, 0, "the lane heads came back with the checkpoint");
    let alerts = line.alerts(1).await;
    let first_deny = first_part.iter().find(|w| w["kind"] == "authorize_decision").unwrap();
    assert_eq!(alerts[0].event_ids[0].to_string(), first_deny["event_id"].as_str().unwrap());
    worker.stop().await;

    // Started without its checkpoint's help it would find the same: the alert's id is there already.
    let worker = line.worker();
    line.caught_up(&worker).await;
    line.alerts(1).await;
    worker.stop().await;
}

#[tokio::test]
async fn what_is_told_of_a_late_forged_event_stands_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_767_225_600_000_000)));
    let mut line = Line::open_with(folder.path(), EmbeddedLimits::default(), clock.clone()).await;
    let worker = line.worker();
    let wires = line.seal_denies("acme", "prober", 2).await;
    line.publish(&wires).await;
    line.caught_up(&worker).await;
    let an_hour_ago = clock.now().plus_seconds(-3600);
    let tenant = TenantId::new("acme").unwrap();
    let forged = SecurityEvent::new(tenant, "edge-9", "edge", EventKind::AuthorizeDecision, an_hour_ago);
    line.publish(&[serde_json::to_value(forged).unwrap()]).await;
    assert_eq!(line.alerts(1).await[0].rule_name, "receipt-chain-broken");
    assert_eq!(line.caught_up(&worker).await.late, 1);
    worker.stop().await;

    let worker = line.worker();
    line.caught_up(&worker).await;
    clock.advance_seconds(2 * 24 * 3600);
    let wires = line.seal_denies("acme", "prober", 1).await;
    line.publish(&wires).await;
    let stats = line.caught_up(&worker).await;
    assert_eq!((stats.events, stats.retractions), (1, 0), "nothing contradicts it");
    assert!(line.read_stream(Stream::Alerts, "retract.>").await.is_empty());
    worker.stop().await;
}
