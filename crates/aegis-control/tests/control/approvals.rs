//! The life of an approval: asked at a real edge, carried by the real bus, decided by people, consumed once.

mod forged;
mod people;

use std::sync::Arc;
use std::time::Duration;

use crate::house::{House, tool_call};
use aegis_bus::{Bus, Message, Stream, subject};
use aegis_model::{EventKind, Phase};
use serde_json::{Value, json};

async fn house_with_agent() -> (House, String, String) {
    let house = House::build().await;
    house.tool(&house.acme).await;
    let (agent, token) = house.agent(&house.acme, "bot").await;
    (house, agent, token)
}

fn consume_body(hash: &str) -> Value {
    json!({"claimed_action_hash": hash})
}

async fn approve(house: &House, id: &str, key: &str) -> crate::house::Reply {
    house.send("POST", &format!("/v1/approvals/{id}/approve"), Some(key), None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approved_action_runs_once_and_only_as_it_was_approved() {
    let (house, agent, token) = house_with_agent().await;
    let (id, hash) = house.held(&token, json!({"version": "1.2"})).await;
    let shown = house.get(&format!("/v1/approvals/{id}"), &token).await.expect(200).body;
    assert_eq!(shown["status"], "PENDING");
    assert_eq!(
        (&shown["action_hash"], &shown["original_action_hash"], &shown["is_edited"]),
        (&json!(hash), &json!(hash), &json!(false))
    );
    assert_eq!(shown["tool_call"], tool_call(json!({"version": "1.2"})));
    assert_eq!(house.get("/v1/approvals?status=PENDING", &house.acme.approver).await.body.as_array().unwrap().len(), 1);

    let consume = format!("/v1/approvals/{id}/consume");
    house.post(&consume, &token, consume_body(&hash)).await.refused(409, "approval_pending");
    let approved = approve(&house, &id, &house.acme.approver).await.expect(200).body;
    assert_eq!((&approved["status"], &approved["approved_by"]), (&json!("APPROVED"), &json!(["paul"])));

    house.post(&consume, &token, consume_body(&"0".repeat(64))).await.refused(409, "action_hash_mismatch");
    let tamper = house.event(&house.acme.id, EventKind::TamperAttempt, "action_hash_mismatch").await;
    assert_eq!((&tamper["agent_id"], &tamper["receipt"]["phase"]), (&json!(agent), &json!("attempt")));

    // The wrong hash has not burnt it.
    let done = house.post(&consume, &token, consume_body(&hash)).await.expect(200).body;
    assert_eq!(done, json!({"status": "consumed", "approval_id": id, "action_hash": hash}));
    house.post(&consume, &token, consume_body(&hash)).await.refused(409, "approval_consumed");
    let replay = house.event(&house.acme.id, EventKind::ReplayAttempt, "approval_consumed").await;
    assert_eq!(replay["approval_id"], json!(id));
    approve(&house, &id, &house.acme.approver_two).await.refused(409, "approval_not_pending");

    for (kind, status, phase) in [
        (EventKind::ApprovalRequested, "PENDING", "approval"),
        (EventKind::ApprovalDecided, "APPROVED", "approval"),
        (EventKind::ApprovalConsumed, "CONSUMED", "consume"),
    ] {
        house.until("the event arrives", async || !house.events(&house.acme.id, kind).await.is_empty()).await;
        let events = house.events(&house.acme.id, kind).await;
        assert_eq!(events.len(), 1, "{kind}");
        let wire: Value = serde_json::from_str(events[0].wire.text().unwrap()).unwrap();
        assert_eq!((&wire["status"], &wire["receipt"]["phase"]), (&json!(status), &json!(phase)));
        let wire_text = events[0].wire.text().unwrap();
        // As a JSON string, or as one inside a JSON text; a time of day may well contain the digits.
        assert!(!wire_text.contains("1.2\"") && !wire_text.contains("1.2\\"), "a parameter stands in {kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_concurrent_consumes_exactly_one_wins() {
    let (house, _, token) = house_with_agent().await;
    let (id, hash) = house.held(&token, json!({"version": "1"})).await;
    approve(&house, &id, &house.acme.approver).await.expect(200);
    let house = Arc::new(house);
    let mut tries = Vec::new();
    for _ in 0..50 {
        let (house, id, hash, token) = (house.clone(), id.clone(), hash.clone(), token.clone());
        tries.push(tokio::spawn(async move {
            house.post(&format!("/v1/approvals/{id}/consume"), &token, consume_body(&hash)).await.status.as_u16()
        }));
    }
    let mut counts = (0, 0);
    for one in tries {
        match one.await.unwrap() {
            200 => counts.0 += 1,
            409 => counts.1 += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!(counts, (1, 49));
    house
        .until("every attempt is in the log", async || house.events(&house.acme.id, EventKind::ReplayAttempt).await.len() == 49)
        .await;
    assert_eq!(house.events(&house.acme.id, EventKind::ApprovalConsumed).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_resource_an_edge_takes_can_be_kept_in_an_edit() {
    let (house, _, token) = house_with_agent().await;
    for (number, resource) in [String::new(), "é".repeat(1024)].into_iter().enumerate() {
        let on = |version: &str| {
            let mut call = tool_call(json!({"version": version}));
            call["resource"] = json!(resource);
            call
        };
        let asked = json!({
            "agent": {"id": "bot"}, "user": {"id": "mallory"}, "tool_call": on("1"),
            "context": {"source_trust": "semi_trusted_customer"}, "trace": {"run_id": format!("run-{number}")},
        });
        let answer = house.post("/v1/authorize", &token, asked).await.expect(200).body;
        assert_eq!(answer["decision"], "require_approval", "{answer}");
        let path = format!("/v1/approvals/{}", answer["approval"]["approval_id"].as_str().unwrap());
        let approver = house.acme.approver.as_str();
        house.until("the approval is shown", async || house.get(&path, approver).await.status.as_u16() == 200).await;
        let edit = format!("{path}/edit");
        let edited = house.post(&edit, approver, json!({"tool_call": on("2")})).await.expect(200).body;
        assert_eq!(edited["edited_tool_call"], on("2"));
        let mut longer = on("3");
        longer["resource"] = json!("x".repeat(1025));
        house.post(&edit, approver, json!({"tool_call": longer})).await.refused(400, "invalid_field");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_is_a_new_action_that_somebody_else_approves() {
    let (house, _, token) = house_with_agent().await;
    let (id, hash) = house.held(&token, json!({"version": "1", "wave": 100})).await;
    approve(&house, &id, &house.acme.approver).await.expect(200);
    let edit = format!("/v1/approvals/{id}/edit");
    let wipe = json!({"tool_call": {"tool": "deploy", "action": "wipe", "mutates_state": true, "parameters": {}}});
    house.post(&edit, &house.acme.approver, wipe).await.refused(409, "denied_by_registry");
    let unknown = json!({"tool_call": {"tool": "deploy", "action": "nuke", "mutates_state": true, "parameters": {}}});
    house.post(&edit, &house.acme.approver, unknown).await.refused(409, "unknown_action");
    assert_eq!(house.get(&format!("/v1/approvals/{id}"), &token).await.body["status"], "APPROVED");

    let smaller = tool_call(json!({"version": "1", "wave": 5}));
    let edited = house.post(&edit, &house.acme.approver, json!({"tool_call": smaller})).await.expect(200).body;
    assert_eq!((&edited["status"], &edited["is_edited"]), (&json!("PENDING"), &json!(true)));
    assert_eq!((&edited["edited_tool_call"], &edited["original_action_hash"]), (&smaller, &json!(hash)));
    let new_hash = edited["action_hash"].as_str().unwrap().to_owned();
    let recomputed = aegis_canon::action_hash("deploy", "rollout", Some("payments"), true, &smaller["parameters"]).unwrap();
    assert_eq!(new_hash, recomputed);

    // Whoever approves an edited action says which one they were shown.
    approve(&house, &id, &house.acme.approver_two).await.refused(409, "action_hash_required");
    let (approve, shown, stale) =
        (format!("/v1/approvals/{id}/approve"), json!({"action_hash": new_hash}), json!({"action_hash": hash}));
    house.post(&approve, &house.acme.approver, shown.clone()).await.refused(403, "self_edited");
    house.post(&approve, &house.acme.approver_two, stale).await.refused(409, "action_changed");
    house.post(&approve, &house.acme.approver_two, shown).await.expect(200);
    let consume = format!("/v1/approvals/{id}/consume");
    house.post(&consume, &token, consume_body(&hash)).await.refused(409, "action_hash_mismatch");
    house.post(&consume, &token, consume_body(&new_hash)).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_or_expired_approval_is_a_deny() {
    let (house, _, token) = house_with_agent().await;
    let (rejected, rejected_hash) = house.held(&token, json!({"version": "1"})).await;
    let (expired, expired_hash) = house.held(&token, json!({"version": "2"})).await;
    let reject = format!("/v1/approvals/{rejected}/reject");
    assert_eq!(house.post(&reject, &house.acme.approver, json!({"reason": "no"})).await.expect(200).body["status"], "REJECTED");
    house
        .post(&format!("/v1/approvals/{rejected}/consume"), &token, consume_body(&rejected_hash))
        .await
        .refused(409, "approval_rejected");

    approve(&house, &expired, &house.acme.approver).await.expect(200);
    house.clock.advance_seconds(15 * 60);
    house
        .post(&format!("/v1/approvals/{expired}/consume"), &token, consume_body(&expired_hash))
        .await
        .refused(409, "approval_expired");
    house
        .until("the expiry is in the log", async || {
            let decided = house.events(&house.acme.id, EventKind::ApprovalDecided).await;
            decided.iter().any(|row| row.wire.text().unwrap().contains(r#""status":"EXPIRED""#))
        })
        .await;
    assert_eq!(house.get(&format!("/v1/approvals/{expired}"), &token).await.body["status"], "EXPIRED");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_that_is_long_over_is_forgotten_and_does_not_come_back() {
    let (house, _, token) = house_with_agent().await;
    let decision = house.ask(&token, json!({"version": "1"})).await;
    let path = format!("/v1/approvals/{}", decision["approval"]["approval_id"].as_str().unwrap());
    let shown = async || house.get(&path, &house.acme.auditor).await.status == 200;
    house.until("the approval is shown", async || shown().await).await;
    let sealed = house.edge_ledger.read_outbox(0, 1000).await.unwrap();
    let frozen = sealed.into_iter().find_map(|item| item.frozen).unwrap();
    house.clock.advance_seconds(29 * 86_400);
    house
        .until("its expiry is in the log", async || !house.events(&house.acme.id, EventKind::ApprovalDecided).await.is_empty())
        .await;
    assert!(shown().await);
    house.clock.advance_seconds(2 * 86_400);
    house.until("it is forgotten", async || !shown().await).await;
    house.get(&path, &house.acme.auditor).await.refused(404, "approval_not_found");
    let again = Message::new(subject::approval(&frozen.tenant_id, &frozen.approval_id), serde_json::to_vec(&frozen).unwrap());
    house.bus.publish(Stream::Approvals, vec![again]).await.remove(0).unwrap();
    house.until("it is set aside", async || house.bus.last_seq(Stream::Dlq).await.unwrap() == 1).await;
    let mut letters = house.bus.subscribe(Stream::Dlq, ">", 0).await.unwrap();
    let letter = letters.next_batch(1, Duration::from_secs(60)).await.unwrap().remove(0);
    let letter: Value = serde_json::from_slice(&letter.payload).unwrap();
    let told = aegis_canon::sha256_hex(&serde_json::to_vec(&frozen).unwrap());
    assert_eq!((&letter["payload"], &letter["sha256"]), (&Value::Null, &json!(told)), "{letter}");
    house.get(&path, &house.acme.auditor).await.refused(404, "approval_not_found");
    let decided = house.events(&house.acme.id, EventKind::ApprovalDecided).await;
    assert_eq!(decided.len(), 1, "what became of it is known as before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contained_agent_another_agent_or_a_changed_policy_stops_a_consume() {
    let (house, agent, token) = house_with_agent().await;
    let (_, stranger) = house.agent(&house.acme, "stranger").await;
    let (id, hash) = house.held(&token, json!({"version": "1"})).await;
    approve(&house, &id, &house.acme.approver).await.expect(200);
    let consume = format!("/v1/approvals/{id}/consume");
    house.get(&format!("/v1/approvals/{id}"), &stranger).await.refused(404, "approval_not_found");
    house.post(&consume, &stranger, consume_body(&hash)).await.refused(409, "wrong_agent");
    house.event(&house.acme.id, EventKind::TamperAttempt, "wrong_agent").await;

    let (freeze, unfreeze) = (format!("/v1/agents/{agent}/freeze"), format!("/v1/agents/{agent}/unfreeze"));
    house.post(&freeze, &house.acme.analyst, json!({"reason": "looking"})).await.expect(200);
    house.post(&consume, &token, consume_body(&hash)).await.refused(409, "agent_frozen");
    house.post(&unfreeze, &house.acme.analyst, json!({"reason": "fine"})).await.expect(200);

    let forbid = "@id(\"stop\")\n@reason(\"stop\")\nforbid (principal, action == Action::\"deploy/rollout\", resource);";
    house.put("/v1/policies", &house.acme.admin, json!({"policies": forbid})).await.expect(200);
    house.post(&consume, &token, consume_body(&hash)).await.refused(409, "policy_denied");
    house.put("/v1/policies", &house.acme.admin, json!({"policies": ""})).await.expect(200);
    // The registrar key that registered the agent may consume for it.
    house.post(&consume, &house.acme.registrar, consume_body(&hash)).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_is_the_deciding_agent_s_and_a_swap_shows() {
    let (house, agent, token) = house_with_agent().await;
    let (_, stranger) = house.agent(&house.acme, "stranger").await;
    let call = json!({
        "agent": {"id": "bot"},
        "tool_call": {"tool": "deploy", "action": "status", "mutates_state": false, "parameters": {}},
        "context": {"source_trust": "trusted_internal_unsigned"},
    });
    let answer = house.post("/v1/authorize", &token, call).await.expect(200).body;
    let (id, hash) = (answer["decision_id"].as_str().unwrap(), answer["action_hash"].as_str().unwrap());
    let path = format!("/v1/decisions/{id}/outcome");
    let output = json!({"status": "ok", "executed_hash": hash, "output": {"secret": "the-output"}});
    house.post(&path, &stranger, output.clone()).await.refused(403, "not_deciding_agent");
    let reply = house.post(&path, &token, output).await.expect(201).body;
    assert_eq!(reply["violation"], Value::Null);
    house.post(&path, &token, json!({"status": "done"})).await.refused(400, "invalid_body");
    let swapped = house.post(&path, &token, json!({"status": "ok", "executed_hash": "0".repeat(64)})).await.expect(201).body;
    assert_eq!(swapped["violation"], "executed_hash_mismatch");
    let tamper = house.event(&house.acme.id, EventKind::TamperAttempt, "executed_hash_mismatch").await;
    assert_eq!(tamper["agent_id"], json!(agent));

    let outcomes = house.events(&house.acme.id, EventKind::ToolOutcome).await;
    assert!(outcomes.iter().all(|row| !row.wire.text().unwrap().contains("the-output")));
    let first: Value = serde_json::from_str(outcomes.last().unwrap().wire.text().unwrap()).unwrap();
    assert_eq!((&first["receipt"]["phase"], &first["receipt"]["executed_hash"]), (&json!(Phase::Outcome), &json!(hash)));
    assert!(first["receipt"]["output_hash"].is_string());

    let held = house.ask(&token, json!({"version": "1"})).await;
    let path = format!("/v1/decisions/{}/outcome", held["decision_id"].as_str().unwrap());
    let early = house.post(&path, &token, json!({"status": "ok"})).await.expect(201).body;
    assert_eq!(early["violation"], "executed_without_approval");
}
