//! What edges believe, what is kept, and what survives a restart.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::house::House;
use aegis_bus::{Bucket, Bus, JetStreamBus, JetStreamOptions, Message, Stream, subject};
use aegis_control::{ContainmentOutcome, ContainmentRequest, Control, ControlConfig, NoLocalEdge, router};
use aegis_keys::{KeyRing, verify_entry};
use aegis_ledger::{Draft, verify};
use aegis_model::{
    ContainmentKind, ContainmentState, EntryKind, EventKind, Phase, SecurityEvent, SignedEntry, TargetType, TenantSettings,
};
use aegis_store::OutboxRow;
use serde_json::{Value, json};

pub(super) async fn entries(house: &House, bucket: Bucket) -> Vec<SignedEntry> {
    // Control's sign of life has a key of its own.
    let all = house.bus.kv_all(bucket, "*.*.*").await.unwrap();
    all.into_iter().map(|(_, value, _)| serde_json::from_slice(&value).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_entry_of_the_feed_is_signed_by_control() {
    let house = House::build().await;
    house.tool(&house.acme).await;
    let (agent, _) = house.agent(&house.acme, "bot").await;
    house
        .post("/v1/mcp/servers", &house.acme.registrar, json!({"key": "files", "name": "f", "tools": [{"name": "read"}]}))
        .await
        .expect(201);
    house
        .post("/v1/channels", &house.acme.registrar, json!({"channel": "mail", "source_trust": "untrusted_external"}))
        .await
        .expect(201);
    house
        .post("/v1/resources", &house.acme.registrar, json!({"resource": "acme/site", "visibility": "public"}))
        .await
        .expect(201);
    house.put("/v1/settings", &house.acme.admin, json!({"approver_group": "security"})).await.expect(200);
    house.put("/v1/policies", &house.acme.admin, json!({"policies": ""})).await.expect(200);
    let frozen =
        house.post(&format!("/v1/agents/{agent}/freeze"), &house.acme.analyst, json!({"reason": "test"})).await.expect(200).body;
    assert_eq!((&frozen["verdict"], &frozen["enforced"]), (&json!("frozen"), &json!(true)));

    let ring = KeyRing::new([house.control_key.verifying_key()]);
    let mut kinds = Vec::new();
    let mut all = entries(&house, Bucket::Control).await;
    all.extend(entries(&house, Bucket::Containment).await);
    for entry in all {
        verify_entry(&ring, &entry).unwrap();
        let mut forged = entry.clone();
        forged.revision += 1;
        assert!(verify_entry(&ring, &forged).is_err());
        kinds.push(entry.kind);
    }
    for kind in [
        EntryKind::Agent,
        EntryKind::Tool,
        EntryKind::McpServer,
        EntryKind::Channel,
        EntryKind::Resource,
        EntryKind::Settings,
        EntryKind::Policies,
        EntryKind::Containment,
    ] {
        assert!(kinds.contains(&kind), "{kind} is missing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_agent_is_denied_by_the_edge_before_the_reply_and_holds_stand_side_by_side() {
    let house = House::build().await;
    house.tool(&house.acme).await;
    let (agent, token) = house.agent(&house.acme, "bot").await;
    let read = json!({
        "agent": {"id": "bot"},
        "tool_call": {"tool": "deploy", "action": "status", "mutates_state": false, "parameters": {}},
        "context": {"source_trust": "trusted_internal_unsigned"},
    });
    let decision = async || house.post("/v1/authorize", &token, read.clone()).await.expect(200).body;
    assert_eq!(decision().await["decision"], "allow");
    let freeze = format!("/v1/agents/{agent}/freeze");
    house.post(&freeze, &house.acme.analyst, json!({"reason": "", "ttl_s": 60})).await.refused(400, "invalid_field");
    house.post(&freeze, &house.acme.analyst, json!({"reason": "x", "ttl_s": 0})).await.refused(400, "invalid_field");
    house.post(&freeze, &house.acme.analyst, json!({"reason": "short", "ttl_s": 60})).await.expect(200);
    assert_eq!(decision().await["decision"], "deny");
    house.clock.advance_seconds(61);
    assert_eq!(decision().await["decision"], "allow", "the hold has ended by itself");

    house.post(&freeze, &house.acme.analyst, json!({"reason": "again"})).await.expect(200);
    assert_eq!(house.get("/v1/containment", &house.acme.auditor).await.body.as_array().unwrap().len(), 1);
    let free = house
        .post(&format!("/v1/agents/{agent}/unfreeze"), &house.acme.analyst, json!({"reason": "fine"}))
        .await
        .expect(200)
        .body;
    assert_eq!(free["verdict"], "free");
    assert_eq!(decision().await["decision"], "allow");
    house.post(&format!("/v1/agents/{agent}/revoke"), &house.acme.admin, json!({"reason": "gone"})).await.expect(200);
    house.post(&format!("/v1/agents/{agent}/unfreeze"), &house.acme.admin, json!({"reason": "back"})).await.expect(200);
    assert_eq!(decision().await["decision"], "deny", "revoked absorbs everything");
    let again = json!({"agent_key": "bot", "name": "bot", "environment": "production", "risk_tier": "low"});
    house.post("/v1/agents/register", &house.acme.registrar, again).await.refused(409, "agent_revoked");
    house
        .until("the changes are in the log", async || {
            house.events(&house.acme.id, EventKind::ContainmentApplied).await.len() == 5
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_again_keeps_the_agent_and_a_stranger_gets_no_token_for_it() {
    let house = House::build().await;
    let (id, first) = house.agent(&house.acme, "bot").await;
    let body = json!({"agent_key": "bot", "name": "renamed", "environment": "production", "risk_tier": "high"});
    let again = house.post("/v1/agents/register", &house.acme.registrar, body.clone()).await.expect(200).body;
    assert_eq!(again["id"], json!(id));
    assert_ne!(again["agent_token"], json!(first));
    let (_, stranger) = house.store.create_key(&house.acme.id, aegis_store::Role::Registrar, "rob", &[], None).await.unwrap();
    house.post("/v1/agents/register", stranger.expose(), body).await.refused(403, "not_registrar");
    assert_eq!(house.get(&format!("/v1/agents/{id}"), &house.acme.auditor).await.body["name"], "renamed");
}

fn request(house: &House, agent: &str, command: &str, evidence: Vec<uuid::Uuid>) -> ContainmentRequest {
    ContainmentRequest {
        tenant_id: house.acme.id.clone(),
        command_id: command.to_owned(),
        target_type: TargetType::Agent,
        target_id: agent.to_owned(),
        kind: ContainmentKind::Freeze,
        reason: "too many denies".to_owned(),
        by: "rule:AEG-1".to_owned(),
        evidence_ids: evidence,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_contains_once_per_command_and_within_the_cap() {
    let house = House::build().await;
    house.tool(&house.acme).await;
    let settings = TenantSettings { automatic_freezes_per_hour: 2, ..TenantSettings::default() };
    house.put("/v1/settings", &house.acme.admin, serde_json::to_value(settings).unwrap()).await.expect(200);
    let (one, token) = house.agent(&house.acme, "one").await;
    let (two, _) = house.agent(&house.acme, "two").await;
    let (three, _) = house.agent(&house.acme, "three").await;
    let evidence = house.ask(&token, json!({"version": "1"})).await["decision_id"].as_str().unwrap().parse().unwrap();
    let ask = async |agent: &str, command: &str| {
        house.control.request_containment(request(&house, agent, command, vec![evidence])).await.unwrap()
    };
    let ContainmentOutcome::Applied { state, enforced } = ask(&one, "c1").await else { panic!("not applied") };
    assert!(enforced && state.holds.len() == 1);
    assert_eq!(ask(&one, "c1").await, ContainmentOutcome::AlreadyApplied);
    assert!(matches!(ask(&two, "c2").await, ContainmentOutcome::Applied { .. }));
    assert_eq!(ask(&three, "c3").await, ContainmentOutcome::CapReached);
    assert_eq!(ask("nobody", "c4").await, ContainmentOutcome::UnknownTarget);
    house
        .until("applied and capped are in the log", async || {
            let rows = house.events(&house.acme.id, EventKind::ContainmentApplied).await;
            let mut found: Vec<String> = rows
                .iter()
                .map(|row| {
                    serde_json::from_str::<Value>(row.wire.text().unwrap()).unwrap()["status"].as_str().unwrap().to_owned()
                })
                .collect();
            found.sort();
            found == ["applied", "applied", "cap_reached"]
        })
        .await;
    let free: Vec<ContainmentState> =
        serde_json::from_value(house.get("/v1/containment", &house.acme.auditor).await.body).unwrap();
    assert!(free.iter().all(|state| state.target_id != three));
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_verify_one_by_one_and_as_an_export() {
    let house = House::build().await;
    house.tool(&house.acme).await;
    house.tool(&house.other).await;
    let (_, token) = house.agent(&house.acme, "bot").await;
    let answer = house.ask(&token, json!({"version": "1"})).await;
    let id = answer["decision_id"].as_str().unwrap();
    let verdict = house.get(&format!("/v1/receipts/{id}/verify"), &house.acme.auditor).await.expect(200).body;
    assert_eq!((&verdict["verdict"], &verdict["failure"]), (&json!("valid"), &Value::Null), "{verdict}");
    assert_eq!(verdict["receipt_hash"], answer["receipt"]["receipt_hash"]);
    let decision = house.get(&format!("/v1/decisions/{id}"), &token).await.expect(200).body;
    assert_eq!((&decision["decision_id"], &decision["verified"]), (&json!(id), &json!(true)));
    let run = house.get("/v1/runs/run-1/timeline", &house.acme.analyst).await.expect(200).body;
    assert_eq!(run[0]["event_id"], json!(id));

    let export = house.get("/v1/receipts/export", &house.acme.auditor).await.expect(200).text;
    assert!(!export.contains("\"other\""), "another tenant's receipt is in the export");
    let ring = KeyRing::new([house.control_key.verifying_key(), house.edge_key.verifying_key()]);
    let report = verify::verify_export(export.as_bytes(), Some(&ring)).unwrap();
    assert_eq!(report.verdict, verify::ExportVerdict::Valid, "{report:?}");
    let line = export.lines().next().unwrap();
    let changed = export.replacen(line, &line.replacen("acme", "acmf", 1), 1);
    let report = verify::verify_export(changed.as_bytes(), Some(&ring)).unwrap();
    assert_eq!(report.verdict, verify::ExportVerdict::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_s_lanes_can_be_followed_once_more_over_what_was_published() {
    let house = House::build().await;
    house.tool(&house.acme).await;
    house.tool(&house.other).await;
    let (_, token) = house.agent(&house.acme, "bot").await;
    house.ask(&token, json!({"version": "1"})).await;
    let (acme, others) = (&house.acme.id, &house.other.id);
    let an_hour_ago = house.now().plus_seconds(-3600);
    house
        .until("the edge's lane is in the history", async || {
            house.control.lanes_since(acme, an_hour_ago).await.unwrap().len() >= 2
        })
        .await;
    let lanes = house.control.lanes_since(acme, an_hour_ago).await.unwrap();
    let is_acme_s = |lane: &str| lane.starts_with(&format!("{acme}."));
    assert!(lanes.len() >= 2 && lanes.iter().all(|(lane, first)| is_acme_s(lane) && *first == 1), "{lanes:?}");
    let ring = KeyRing::new([house.control_key.verifying_key(), house.edge_key.verifying_key()]);
    let mut verifier = verify::StreamVerifier::new(ring);
    for (lane, _) in &lanes {
        let receipts = house.control.receipts_of_lane(acme, lane, 0).await.unwrap();
        for (seq, receipt) in (1..).zip(&receipts) {
            let wire: Value = serde_json::from_str(&receipt.wire).unwrap();
            assert!(verifier.check(&wire).verified, "{wire}");
            assert_eq!((receipt.seq, receipt.bus_ts.is_some()), (seq, true));
        }
        let last = receipts.last().unwrap().seq;
        assert_eq!(verifier.heads().get(lane).map(|(seq, _)| seq), Some(last));
        let behind = house.control.receipts_of_lane(acme, lane, last - 1).await.unwrap();
        assert_eq!(behind.first(), receipts.last(), "those behind a receipt begin with the next");
        assert!(house.control.receipts_of_lane(others, lane, 0).await.unwrap().is_empty(), "they are nobody else's to ask for");
    }
    assert!(house.control.lanes_since(acme, house.now().plus_seconds(3600)).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_event_is_set_aside_and_the_others_go_on() {
    let house = House::build().await;
    let subject = subject::ase(&house.acme.id, EventKind::AuthorizeDecision);
    let foreign = SecurityEvent::new(house.other.id.clone(), "x", "edge", EventKind::AuthorizeDecision, house.now());
    let bad = [b"not json".to_vec(), b"{}".to_vec(), serde_json::to_vec(&foreign).unwrap()];
    let messages = bad.map(|payload| Message::new(subject.clone(), payload)).to_vec();
    for ack in house.bus.publish(Stream::Ase, messages).await {
        ack.unwrap();
    }
    house.until("all three are dead letters", async || house.bus.last_seq(Stream::Dlq).await.unwrap() == 3).await;
    house.agent(&house.acme, "bot").await;
    house.event(&house.acme.id, EventKind::ConfigChanged, "agent_registered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_registered_and_held_stands_in_the_events_too_where_rules_read_it() {
    let house = House::build().await;
    let registration = json!({"agent_key": "bot", "name": "what nobody needs there", "owner_team": "billing", "environment": "production",
                              "risk_tier": "high", "trust_ceiling": "semi_trusted_customer"});
    let registered = house.post("/v1/agents/register", &house.acme.registrar, registration.clone()).await.expect(201).body;
    let attributes = |event: &Value| -> Value { serde_json::from_str(event["attributes"].as_str().unwrap()).unwrap() };
    let said = |owner: &str| {
        json!({"agent": {"id": registered["id"], "agent_key": "bot", "owner_team": owner, "environment": "production",
                         "risk_tier": "high", "trust_ceiling": "semi_trusted_customer"}})
    };
    let event = house.event(&house.acme.id, EventKind::ConfigChanged, "agent_registered").await;
    assert_eq!(attributes(&event), said("billing"));
    let mut moved = registration;
    moved["owner_team"] = json!("sales");
    house.post("/v1/agents/register", &house.acme.registrar, moved).await.expect(200);
    let event = house.event(&house.acme.id, EventKind::ConfigChanged, "agent_registered_again").await;
    assert_eq!(attributes(&event), said("sales"));

    let path = format!("/v1/agents/{}/freeze", registered["id"].as_str().unwrap());
    let held = house.post(&path, &house.acme.analyst, json!({"reason": "for a while", "ttl_s": 60})).await.expect(200).body;
    let event = house.event(&house.acme.id, EventKind::ContainmentApplied, "for a while").await;
    let until = &held["holds"][0]["until"];
    assert_eq!(attributes(&event), json!({"target_type": "agent", "kind": "freeze", "until": until}));
    assert!(until.is_string(), "{held}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_while_every_role_is_connected_and_says_which_is_not() {
    let mut house = House::build().await;
    house.control.stop().await;
    let own: Arc<dyn Bus> = house.bus.clone();
    // Nobody listens there.
    let cut: Arc<dyn Bus> = JetStreamBus::connect(&JetStreamOptions::new("nats://127.0.0.1:1")).await.unwrap();
    for (lake, is_ready) in [(own.clone(), true), (cut, false)] {
        let config = ControlConfig {
            history_bus: Some(own.clone()),
            connections: vec![("control", own.clone()), ("lake", lake)],
            ..ControlConfig::default()
        };
        let control = Control::start(
            config,
            house.store.clone(),
            house.control_ledger.clone(),
            own.clone(),
            house.control_key.clone(),
            house.ring.clone(),
            house.clock.clone(),
            Arc::new(NoLocalEdge),
        )
        .await
        .unwrap();
        house.api = router(control.clone());
        let runs = |checks: &Value| checks["archive_consumer"] == json!(true) && checks["approvals_consumer"] == json!(true);
        house.until("its consumers run", async || runs(&house.send("GET", "/readyz", None, None).await.body["checks"])).await;
        let reply = house.send("GET", "/readyz", None, None).await;
        assert_eq!(reply.status.is_success(), is_ready, "{}", reply.text);
        assert_eq!(reply.body["connections"], json!({"control": true, "lake": is_ready}));
        control.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_seals_what_was_left_and_rewrites_a_lost_feed() {
    let house = House::build().await;
    house.tool(&house.acme).await;
    house.until("control is ready", async || house.send("GET", "/readyz", None, None).await.status.is_success()).await;
    house.control.stop().await;
    house.send("GET", "/readyz", None, None).await.expect(503);
    house.send("GET", "/health", None, None).await.expect(200);

    // A process that died between the change and its receipt leaves this behind; one row has been sealed already.
    let mut rows = Vec::new();
    for reason in ["unsealed", "sealed"] {
        let mut event = SecurityEvent::new(house.acme.id.clone(), "control", "control", EventKind::ConfigChanged, house.now());
        event.reason = Some(reason.to_owned());
        let draft = Draft::new(event, Phase::Config);
        if reason == "sealed" {
            house.control_ledger.try_submit(draft.clone(), aegis_ledger::Durability::Required).unwrap().await.unwrap();
        }
        let payload = serde_json::to_string(&draft).unwrap();
        rows.push(OutboxRow { event_id: draft.event.event_id, tenant_id: house.acme.id.clone(), payload });
    }
    house.store.put_settings(&house.acme.id, &TenantSettings::default(), &rows).await.unwrap();
    // The bucket holds what was there before the change: an older revision.
    let before = entries(&house, Bucket::Control).await;
    let revision = |entries: &[SignedEntry]| {
        entries.iter().find(|e| e.kind == EntryKind::Settings && e.tenant_id == house.acme.id).map(|e| e.revision).unwrap()
    };

    let ring = KeyRing::new([house.control_key.verifying_key(), house.edge_key.verifying_key()]);
    let bus: Arc<dyn Bus> = house.bus.clone();
    let again = Control::start(
        ControlConfig::default(),
        house.store.clone(),
        house.control_ledger.clone(),
        bus,
        house.control_key.clone(),
        ring,
        house.clock.clone(),
        Arc::new(NoLocalEdge),
    )
    .await
    .unwrap();
    assert!(house.store.pending_outbox(10).await.unwrap().is_empty());
    for row in &rows {
        assert!(house.control_ledger.contains(&house.acme.id, row.event_id).await.unwrap());
    }
    let after = entries(&house, Bucket::Control).await;
    assert!(revision(&after) > revision(&before));
    house.event(&house.acme.id, EventKind::ConfigChanged, "unsealed").await;
    let sealed = house.events(&house.acme.id, EventKind::ConfigChanged).await;
    let twice = sealed.iter().filter(|row| row.wire.text().unwrap().contains(r#""reason":"sealed""#)).count();
    assert!(twice <= 1, "a receipt was sealed twice");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_changes_and_a_change_that_slipped_in_gets_its_one_receipt() {
    let house = House::build().await;
    house.tool(&house.acme).await;
    let (agent, token) = house.agent(&house.acme, "bot").await;
    let (id, hash) = house.held(&token, json!({"version": "1"})).await;
    house.send("POST", &format!("/v1/approvals/{id}/approve"), Some(&house.acme.approver), None).await.expect(200);
    house.ledger_pages.store(1, Ordering::SeqCst);

    // The last pages fill up. Then the ledger does not know yet: the change is made, and owed a receipt.
    let freeze = format!("/v1/agents/{agent}/freeze");
    let mut changes = 1;
    loop {
        let reply = house.post(&freeze, &house.acme.analyst, json!({"reason": "full"})).await;
        if reply.status.is_success() && changes < 1000 {
            changes += 1;
            continue;
        }
        reply.refused(503, "receipt_pending");
        break;
    }
    house.until("the ledger is known to be full", async || !house.control_ledger.is_writable()).await;
    let state = house.get(&format!("/v1/approvals/{id}"), &house.acme.auditor).await.text;
    let consume = json!({"claimed_action_hash": hash});
    house.post(&format!("/v1/approvals/{id}/consume"), &token, consume).await.refused(503, "receipt_unavailable");
    let key = json!({"role": "auditor", "name": "late"});
    house.post("/v1/keys", &house.acme.admin, key).await.refused(503, "receipt_unavailable");
    house
        .post("/v1/tools", &house.acme.registrar, json!({"tool": "late", "name": "l", "actions": []}))
        .await
        .refused(503, "receipt_unavailable");
    assert_eq!(house.get(&format!("/v1/approvals/{id}"), &house.acme.auditor).await.text, state);
    assert!(!house.get("/v1/keys", &house.acme.admin).await.text.contains("late"));
    house.get("/v1/tools/late", &house.acme.admin).await.refused(404, "not_found");
    house.send("GET", "/readyz", None, None).await.expect(503);

    house.ledger_pages.store(0, Ordering::SeqCst);
    house.until("the receipt is sealed after all", async || house.store.pending_outbox(1).await.unwrap().is_empty()).await;
    house.post(&format!("/v1/agents/{agent}/unfreeze"), &house.acme.analyst, json!({"reason": "fine"})).await.expect(200);
    let released = async || {
        house
            .events(&house.acme.id, EventKind::ContainmentApplied)
            .await
            .iter()
            .any(|row| row.wire.text().unwrap().contains("released"))
    };
    house.until("the newest change arrives", released).await;
    assert_eq!(
        house.events(&house.acme.id, EventKind::ContainmentApplied).await.len(),
        changes + 1,
        "one receipt for each change"
    );
}
