//! What proves something, and what proves nothing: sealed, ahead of time, altered, forged, malformed.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, EmbeddedLimits, Message, Stream, subject};
use aegis_detect::{RuleSet, Worker, WorkerConfig};
use aegis_keys::{KeyRing, Scope, SigningKey};
use aegis_ledger::{Draft, Ledger, LedgerConfig};
use aegis_model::{CONTROL, Decision, EventKind, ManualClock, Phase, SecurityEvent, TenantId, Timestamp};
use serde_json::Value;
use tokio::time::Instant;

use super::{DEADLINE, Line};

#[tokio::test]
async fn sealed_denies_become_one_alert_with_their_receipts() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let worker = line.worker();
    let wires = line.seal_denies("acme", "prober", 6).await;
    line.publish(&wires).await;
    // The shipper may send again what it is not sure of: a lane's place counts once.
    line.publish(&wires).await;
    let stats = line.caught_up(&worker).await;
    let alerts = line.alerts(1).await;
    assert_eq!(alerts[0].rule_name, "deny-storm");
    assert_eq!(alerts[0].key["agent_id"], "prober");
    assert_eq!(alerts[0].respond, ["freeze_agent"]);
    assert_eq!((alerts[0].event_ids.len(), alerts[0].receipt_hashes.len()), (5, 5));
    assert_eq!((stats.broken, stats.malformed), (0, 0));
    assert_eq!(stats.repeated, wires.len() as u64);
    assert_eq!(stats.verified, wires.len() as u64);
    worker.stop().await;
}

#[tokio::test]
async fn what_is_ahead_of_the_bus_by_more_than_five_minutes_proves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let start = Timestamp::from_micros(1_767_225_600_000_000);
    let (of_edge, of_bus) = (Arc::new(ManualClock::new(start.plus_seconds(300))), Arc::new(ManualClock::new(start)));
    let mut line = Line::open_apart(folder.path(), EmbeddedLimits::default(), of_edge.clone(), of_bus.clone()).await;
    let worker = line.worker();
    // Five minutes are a clock that is off; these are a storm.
    let wires = line.seal_denies("acme", "prober", 5).await;
    line.publish(&wires).await;
    assert_eq!(line.alerts(1).await[0].rule_name, "deny-storm");
    assert_eq!(line.caught_up(&worker).await.broken, 0);
    of_edge.advance_micros(1);
    let ahead = line.seal_denies("acme", "victim", 5).await;
    line.publish(&ahead).await;
    let alerts = line.alerts(2).await;
    let broken = alerts.iter().find(|alert| alert.rule_name == "receipt-chain-broken").unwrap();
    assert_eq!(broken.fields["failure"], "ahead_of_time");
    let stats = line.caught_up(&worker).await;
    assert_eq!((stats.broken, stats.verified), (5, wires.len() as u64));
    // Nor did they move the tenant's time, and the lane goes on: a minute later the same time is one that may be.
    of_bus.advance_seconds(60);
    let right = line.seal_denies("acme", "prober-2", 5).await;
    line.publish(&right).await;
    let stats = line.caught_up(&worker).await;
    assert_eq!((stats.broken, stats.late), (5, 0));
    let alerts = line.alerts(3).await;
    assert!(alerts.iter().any(|alert| alert.key.get("agent_id").is_some_and(|agent| agent == "prober-2")), "{alerts:#?}");
    assert!(alerts.iter().all(|alert| alert.key.get("agent_id").is_none_or(|agent| agent != "victim")), "{alerts:#?}");
    worker.stop().await;
}

#[tokio::test]
async fn a_lane_is_seen_again_as_soon_as_a_clock_that_was_ahead_is_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let start = Timestamp::from_micros(1_767_225_600_000_000);
    let (of_edge, of_bus) = (Arc::new(ManualClock::new(start.plus_seconds(3600))), Arc::new(ManualClock::new(start)));
    let mut line = Line::open_apart(folder.path(), EmbeddedLimits::default(), of_edge.clone(), of_bus.clone()).await;
    let worker = line.worker();
    let ahead = line.seal_denies("acme", "unseen", 5).await;
    let of_beta = line.seal_denies("beta", "unseen", 5).await;
    line.publish(&ahead).await;
    line.publish(&of_beta).await;
    assert!(line.alerts(2).await.iter().all(|alert| alert.rule_name == "receipt-chain-broken"));
    of_edge.advance_seconds(-3600);
    // What is told of a lane's end comes behind what was told of it before: at one and the same time their ids, which are anything, would order them.
    of_bus.advance_seconds(1);
    // Both tenants' lanes.
    for tenant in ["acme", "beta"] {
        let right = line.seal_denies(tenant, "prober", 5).await;
        assert_eq!(right.iter().filter(|wire| wire["clock_suspect"] == true).count(), 2, "the close, and the open behind it");
        line.publish(&right).await;
    }
    let alerts = line.alerts(6).await;
    for tenant in ["acme", "beta"] {
        let of_tenant = alerts.iter().filter(|alert| alert.tenant_id.as_str() == tenant);
        let mut names: Vec<&str> = of_tenant.map(|alert| alert.rule_name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["clock-suspect", "deny-storm", "receipt-chain-broken"]);
    }
    assert!(alerts.iter().all(|alert| alert.key.get("agent_id").is_none_or(|agent| agent == "prober")), "{alerts:#?}");
    let stats = line.caught_up(&worker).await;
    // Of each lane ahead the open, the denies and the close; of each that follows the open and the denies.
    assert_eq!((stats.broken, stats.verified, stats.late), (14, 12, 0));
    // Its own clock is the same: it stood still, was set back, and what it does from time to time does not wait for it.
    let begun = Instant::now();
    while worker.stats().checkpoints == 0 {
        assert!(begun.elapsed() < DEADLINE, "nothing is written down: {:?}", worker.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    worker.stop().await;
}

/// Seals approvals of one person in a ledger, and answers what is to be shipped of them, the lane's opening left out where it was shipped.
async fn seal_approvals(line: &Line, ledger: &Ledger, count: usize) -> Vec<Value> {
    let before = ledger.read_outbox(0, 1000).await.unwrap().last().map_or(0, |item| item.row);
    for _ in 0..count {
        // What it says of its producer is what everybody can say.
        let tenant = TenantId::new("acme").unwrap();
        let mut event = SecurityEvent::new(tenant, CONTROL, CONTROL, EventKind::ApprovalDecided, line.clock.now());
        (event.agent_id, event.approver) = (Some("helper".into()), Some("victim".into()));
        event.status = Some("APPROVED".into());
        ledger.submit(Draft::new(event, Phase::Approval)).await.unwrap();
    }
    let items = ledger.read_outbox(before, 1000).await.unwrap();
    items.iter().map(|item| serde_json::from_str(&item.sealed.wire).unwrap()).collect()
}

/// The attack: who holds an edge's key seals in its own lane what control alone says. It accuses an approver of nothing, and joins no true
/// approvals to a false episode, also behind a restart; and it is told of.
#[tokio::test]
async fn an_edge_s_key_proves_nothing_that_control_alone_seals() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::open(folder.path()).await;
    let control_key = SigningKey::from_seed(&[8; 32]);
    let config = LedgerConfig::new(folder.path().join("control.db"), CONTROL, CONTROL);
    let control = Ledger::open(config, control_key.clone(), Arc::clone(&line.clock)).await.unwrap();
    // As control pins them: its own key for everybody, an enrolled edge's for its tenants and its lanes.
    let ring = KeyRing::new([control_key.verifying_key()]);
    let of_edge = Scope::Edge { edge_id: "edge-1".to_owned(), tenants: ["acme".to_owned()].into() };
    ring.pin(line.key.verifying_key(), of_edge);
    let worker = || {
        let mut config = WorkerConfig::new(Arc::clone(&line.clock));
        (config.checkpoint_ms, config.hold_ms) = (50, 0);
        let bus: Arc<dyn Bus> = Arc::clone(&line.bus) as Arc<dyn Bus>;
        Worker::spawn(bus, ring.clone(), RuleSet::shipped().unwrap(), Arc::clone(&line.clock), config).unwrap()
    };
    let first = worker();
    let forged = seal_approvals(&line, &line.ledger, 10).await;
    line.publish(&forged).await;
    let stats = line.caught_up(&first).await;
    // The lane's opening is the edge's to say, and the lane goes on: each is told of for itself.
    assert_eq!((forged.len(), stats.verified, stats.broken), (11, 1, 10));
    let alerts = line.alerts(1).await;
    assert_eq!(alerts[0].rule_name, "receipt-chain-broken");
    assert_eq!((&alerts[0].key["chain"], &alerts[0].fields["failure"]), (&forged[0]["lane"], &Value::from("foreign_kind")));

    // Nine that are true are no ten, whatever stands beside them.
    let mut approvals = seal_approvals(&line, &control, 9).await;
    line.publish(&approvals).await;
    assert_eq!(line.caught_up(&first).await.verified, 1 + 10);
    let begun = Instant::now();
    while first.stats().checkpoints == 0 {
        assert!(begun.elapsed() < DEADLINE, "nothing is written down: {:?}", first.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    first.stop().await;
    let second = worker();
    line.caught_up(&second).await;
    assert_eq!(line.alerts(1).await[0].rule_name, "receipt-chain-broken");

    // The tenth is one, and none but control's are its evidence.
    let tenth = seal_approvals(&line, &control, 1).await;
    line.publish(&tenth).await;
    approvals.extend(tenth);
    let alerts = line.alerts(2).await;
    let stamp = alerts.iter().find(|alert| alert.rule_name == "rubber-stamp").unwrap();
    let mut evidence: Vec<String> = stamp.event_ids.iter().map(ToString::to_string).collect();
    let is_approval = |wire: &&Value| wire["kind"] == "approval_decided";
    let mut expected: Vec<String> =
        approvals.iter().filter(is_approval).map(|wire| wire["event_id"].as_str().unwrap().to_owned()).collect();
    evidence.sort_unstable();
    expected.sort_unstable();
    assert_eq!(evidence, expected);
    second.stop().await;
}

/// The other way round, and what nobody seals.
#[tokio::test]
async fn control_decides_no_calls_and_nobody_seals_an_observation() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::open(folder.path()).await;
    let config = LedgerConfig::new(folder.path().join("control.db"), CONTROL, CONTROL);
    let control = Ledger::open(config, line.key.clone(), Arc::clone(&line.clock)).await.unwrap();
    let worker = line.worker();
    for kind in
        [EventKind::AuthorizeDecision, EventKind::ExternalGithubWebhook, EventKind::ReceiptChainBroken, EventKind::ReplayAttempt]
    {
        let tenant = TenantId::new("acme").unwrap();
        let event = SecurityEvent::new(tenant, CONTROL, CONTROL, kind, line.clock.now());
        control.submit(Draft::new(event, Phase::Attempt)).await.unwrap();
    }
    let items = control.read_outbox(0, 1000).await.unwrap();
    let wires: Vec<Value> = items.iter().map(|item| serde_json::from_str(&item.sealed.wire).unwrap()).collect();
    line.publish(&wires).await;
    let stats = line.caught_up(&worker).await;
    assert_eq!((stats.verified, stats.broken), (2, 3), "the lane's opening and the repeated call are control's to say");
    worker.stop().await;
}

#[tokio::test]
async fn an_altered_event_breaks_the_chain_and_freezes_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let worker = line.worker();
    let mut wires = line.seal_denies("acme", "victim", 5).await;
    let altered = wires.last_mut().unwrap();
    altered["agent_id"] = "somebody-else".into();
    line.publish(&wires).await;
    line.caught_up(&worker).await;
    let alerts = line.alerts(1).await;
    assert_eq!(alerts[0].rule_name, "receipt-chain-broken");
    assert_eq!(alerts[0].key["chain"], wires[1]["lane"]);
    assert!(alerts[0].respond.is_empty());
    worker.stop().await;
}

#[tokio::test]
async fn forged_denies_without_a_receipt_freeze_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::open(folder.path()).await;
    let worker = line.worker();
    let forged: Vec<Value> = (0..6)
        .map(|_| {
            let tenant = TenantId::new("acme").unwrap();
            let mut event = SecurityEvent::new(tenant, "edge-9", "edge", EventKind::AuthorizeDecision, line.clock.now());
            event.agent_id = Some("victim".into());
            event.decision = Some(Decision::Deny);
            event.verified = true;
            serde_json::to_value(event).unwrap()
        })
        .collect();
    line.publish(&forged).await;
    line.caught_up(&worker).await;
    let alerts = line.alerts(1).await;
    assert_eq!(
        (alerts[0].rule_name.as_str(), &alerts[0].fields["failure"]),
        ("receipt-chain-broken", &Value::from("missing_receipt"))
    );
    worker.stop().await;
}

#[tokio::test]
async fn malformed_messages_are_set_aside_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let wires = line.seal_denies("acme", "prober", 5).await;
    let tenant = TenantId::new("acme").unwrap();
    let own = subject::ase(&tenant, EventKind::AuthorizeDecision);
    let foreign = subject::ase(&TenantId::new("other").unwrap(), EventKind::AuthorizeDecision);
    let bad = vec![
        Message::new(own.clone(), "not json"),
        Message::new(own.clone(), r#"{"event_id": 1, "event_id": 2}"#),
        Message::new(own, r#"{"kind": "authorize_decision"}"#),
        Message::new(foreign, wires.last().unwrap().to_string()),
    ];
    for result in line.bus.publish(Stream::Ase, bad).await {
        result.unwrap();
    }
    let worker = line.worker();
    line.publish(&wires).await;
    let stats = line.caught_up(&worker).await;
    assert_eq!(stats.malformed, 4);
    line.alerts(1).await;
    let dead = line.read_stream(Stream::Dlq, "dlq.>").await;
    assert_eq!(dead.len(), 4);
    assert!(dead.iter().all(|d| !d["reason"].as_str().unwrap().is_empty()), "{dead:#?}");
    assert!(dead[1]["reason"].as_str().unwrap().starts_with("duplicate_key"), "{dead:#?}");
    worker.stop().await;
}
