//! Consumes and outcomes whose answer was lost: asked again under the same request id, they are told what it was, and nothing is done twice.

use std::sync::Arc;

use crate::house::House;
use aegis_bus::{Bus, Message, Stream, subject};
use aegis_ledger::Draft;
use aegis_model::{EventKind, Phase, SecurityEvent};
use serde_json::{Value, json};

async fn house_with_agent() -> (House, String, String) {
    let house = House::build().await;
    house.tool(&house.acme).await;
    let (agent, token) = house.agent(&house.acme, "bot").await;
    (house, agent, token)
}

/// An approved action: the path of its consume, and its hash.
async fn approved(house: &House, token: &str, version: &str) -> (String, String) {
    let (id, hash) = house.held(token, json!({"version": version})).await;
    house.send("POST", &format!("/v1/approvals/{id}/approve"), Some(&house.acme.approver), None).await.expect(200);
    (format!("/v1/approvals/{id}/consume"), hash)
}

fn body(hash: &str, request_id: &str) -> Value {
    json!({"claimed_action_hash": hash, "request_id": request_id})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consume_that_is_asked_again_gets_the_same_answer_and_one_receipt() {
    let (house, _, token) = house_with_agent().await;
    let (consume, hash) = approved(&house, &token, "1").await;
    house.post(&consume, &token, body(&hash, "")).await.refused(400, "invalid_field");
    house.post(&consume, &token, body(&hash, &"r".repeat(257))).await.refused(400, "invalid_field");
    house.post(&consume, &token, body(&hash, "r\u{0}1")).await.refused(400, "invalid_field");
    let first = house.post(&consume, &token, body(&hash, "r-1")).await.expect(200).body;
    for _ in 0..3 {
        assert_eq!(house.post(&consume, &token, body(&hash, "r-1")).await.expect(200).body, first);
    }
    house
        .until("the consume is in the log", async || !house.events(&house.acme.id, EventKind::ApprovalConsumed).await.is_empty())
        .await;
    assert!(house.events(&house.acme.id, EventKind::ReplayAttempt).await.is_empty(), "who lost an answer attacks nobody");

    house.post(&consume, &token, body(&hash, "r-2")).await.refused(409, "approval_consumed");
    house.post(&consume, &token, json!({"claimed_action_hash": hash})).await.refused(409, "approval_consumed");
    house.post(&consume, &token, body(&"0".repeat(64), "r-1")).await.refused(409, "idempotency_payload_mismatch");
    house.event(&house.acme.id, EventKind::ReplayAttempt, "idempotency_payload_mismatch").await;
    house.clock.advance_seconds(15 * 60);
    house.post(&consume, &token, body(&hash, "r-1")).await.refused(409, "approval_consumed");
    house
        .until("the four attempts are in the log", async || {
            house.events(&house.acme.id, EventKind::ReplayAttempt).await.len() == 4
        })
        .await;
    assert_eq!(house.events(&house.acme.id, EventKind::ApprovalConsumed).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_concurrent_consumes_of_two_requests_one_receipt_comes_and_one_request_is_told() {
    let (house, _, token) = house_with_agent().await;
    let (consume, hash) = approved(&house, &token, "1").await;
    let house = Arc::new(house);
    let mut tries = Vec::new();
    for n in 0..40 {
        let (house, consume, hash, token) = (house.clone(), consume.clone(), hash.clone(), token.clone());
        let request = format!("r-{}", n % 2);
        tries.push(tokio::spawn(async move {
            let reply = house.post(&consume, &token, body(&hash, &request)).await;
            (request, reply.status.as_u16(), reply.body["error"]["code"].as_str().unwrap_or_default().to_owned())
        }));
    }
    let mut told = std::collections::BTreeSet::new();
    for one in tries {
        match one.await.unwrap() {
            (request, 200, _) => _ = told.insert(request),
            // Another's; or one's own, whose receipt was on its way.
            (_, 409, code) => assert_eq!(code, "approval_consumed"),
            (_, 503, code) => assert_eq!(code, "receipt_pending"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told.len(), 1, "{told:?}");
    let request = told.first().unwrap();
    house.post(&consume, &token, body(&hash, request)).await.expect(200);
    house
        .until("the consume is in the log", async || !house.events(&house.acme.id, EventKind::ApprovalConsumed).await.is_empty())
        .await;
    assert_eq!(house.events(&house.acme.id, EventKind::ApprovalConsumed).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_its_credential_s_own() {
    let (house, _, token) = house_with_agent().await;
    let (_, stranger) = house.agent(&house.acme, "stranger").await;
    let (consume, hash) = approved(&house, &token, "1").await;
    house.post(&consume, &token, body(&hash, "r-1")).await.expect(200);
    house.post(&consume, &stranger, body(&hash, "r-1")).await.refused(409, "wrong_agent");
    house.post(&consume, &house.acme.registrar, body(&hash, "r-1")).await.refused(409, "approval_consumed");
    house.post(&consume, &house.other.registrar, body(&hash, "r-1")).await.refused(404, "approval_not_found");
    let again = json!({"agent_key": "bot", "name": "bot", "environment": "production", "risk_tier": "low"});
    let fresh = house.post("/v1/agents/register", &house.acme.registrar, again).await.expect(200).body;
    let fresh = fresh["agent_token"].as_str().unwrap();
    house.post(&consume, fresh, body(&hash, "r-1")).await.refused(409, "approval_consumed");
    house.post(&consume, &token, body(&hash, "r-1")).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_agent_or_a_changed_policy_never_gets_an_old_answer() {
    let (house, agent, token) = house_with_agent().await;
    let (consume, hash) = approved(&house, &token, "1").await;
    house.post(&consume, &token, body(&hash, "r-1")).await.expect(200);
    let (freeze, unfreeze) = (format!("/v1/agents/{agent}/freeze"), format!("/v1/agents/{agent}/unfreeze"));
    house.post(&freeze, &house.acme.analyst, json!({"reason": "looking"})).await.expect(200);
    house.post(&consume, &token, body(&hash, "r-1")).await.refused(409, "agent_frozen");
    house.post(&consume, &token, body(&hash, "r-2")).await.refused(409, "approval_consumed");
    house.post(&unfreeze, &house.acme.analyst, json!({"reason": "fine"})).await.expect(200);
    let forbid = "@id(\"stop\")\n@reason(\"stop\")\nforbid (principal, action == Action::\"deploy/rollout\", resource);";
    house.put("/v1/policies", &house.acme.admin, json!({"policies": forbid})).await.expect(200);
    house.post(&consume, &token, body(&hash, "r-1")).await.refused(409, "policy_denied");
    house.put("/v1/policies", &house.acme.admin, json!({"policies": ""})).await.expect(200);
    house.post(&consume, &token, body(&hash, "r-1")).await.expect(200);
}

/// A read that is allowed at once: the path of its outcome, and its hash.
async fn allowed(house: &House, token: &str) -> (String, String) {
    let call = json!({
        "agent": {"id": "bot"},
        "tool_call": {"tool": "deploy", "action": "status", "mutates_state": false, "parameters": {}},
        "context": {"source_trust": "trusted_internal_unsigned"},
    });
    let answer = house.post("/v1/authorize", token, call).await.expect(200).body;
    let path = format!("/v1/decisions/{}/outcome", answer["decision_id"].as_str().unwrap());
    (path, answer["action_hash"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consume_whose_receipt_is_not_sealed_is_not_told_to_be_done() {
    let (house, agent, token) = house_with_agent().await;
    let (consume, hash) = approved(&house, &token, "1").await;
    let id = consume.split('/').nth(3).unwrap();
    let row = house.store.approval(&house.acme.id, id).await.unwrap().unwrap();
    // As a crash between the store and the ledger leaves it, with the digest that control makes of a request.
    let of = format!("consume\0agent\0{agent}\0{}\0r-1", row.frozen.token_id.unwrap());
    let digest = aegis_canon::sha256_hex(of.as_bytes());
    let consumed = house.store.consume_approval(&house.acme.id, id, &hash, Some(&digest), house.now(), &[]).await.unwrap();
    assert_eq!(consumed, aegis_store::ConsumeResult::Consumed);
    house.post(&consume, &token, body(&hash, "r-1")).await.refused(503, "receipt_pending");
    house.post(&consume, &token, body(&hash, "r-2")).await.refused(409, "approval_consumed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consume_that_cannot_be_receipted_is_not_done_and_may_be_asked_again() {
    let (house, _, token) = house_with_agent().await;
    let (consume, hash) = approved(&house, &token, "1").await;
    house.fill_control_ledger().await;
    house.post(&consume, &token, body(&hash, "r-1")).await.refused(503, "receipt_unavailable");
    house.ledger_pages.store(0, std::sync::atomic::Ordering::SeqCst);
    house.until("the ledger can be written", async || house.control_ledger.is_writable()).await;
    let first = house.post(&consume, &token, body(&hash, "r-1")).await.expect(200).body;
    assert_eq!(house.post(&consume, &token, body(&hash, "r-1")).await.expect(200).body, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_is_reported_again_is_one_receipt_and_one_answer() {
    let (house, _, token) = house_with_agent().await;
    let (path, hash) = allowed(&house, &token).await;
    let report = json!({"status": "ok", "executed_hash": hash, "output": {"secret": "the-output"}, "request_id": "r-1"});
    let first = house.post(&path, &token, report.clone()).await.expect(201).body;
    for _ in 0..3 {
        assert_eq!(house.post(&path, &token, report.clone()).await.expect(201).body, first);
    }
    let others = [
        json!({"status": "error", "executed_hash": hash, "output": {"secret": "the-output"}, "request_id": "r-1"}),
        json!({"status": "ok", "executed_hash": "0".repeat(64), "output": {"secret": "the-output"}, "request_id": "r-1"}),
        json!({"status": "ok", "executed_hash": hash, "output": {"secret": "another"}, "request_id": "r-1"}),
        json!({"status": "ok", "executed_hash": hash, "request_id": "r-1"}),
    ];
    for other in &others {
        house.post(&path, &token, other.clone()).await.refused(409, "idempotency_payload_mismatch");
    }
    house
        .until("every attempt is in the log", async || {
            house.events(&house.acme.id, EventKind::ReplayAttempt).await.len() == others.len()
        })
        .await;
    assert_eq!(house.events(&house.acme.id, EventKind::ToolOutcome).await.len(), 1);
    for event in house.events(&house.acme.id, EventKind::ReplayAttempt).await {
        let wire = event.wire.text().unwrap().to_owned();
        assert!(!wire.contains("the-output") && !wire.contains("another"), "{wire}");
    }
    // Another report is another receipt, and the same request id about another decision is another.
    let second = json!({"status": "ok", "executed_hash": hash, "request_id": "r-2"});
    assert_ne!(house.post(&path, &token, second.clone()).await.expect(201).body["outcome_id"], first["outcome_id"]);
    let (other_path, _) = allowed(&house, &token).await;
    assert_ne!(house.post(&other_path, &token, report).await.expect(201).body["outcome_id"], first["outcome_id"]);
    house.post(&path, &token, json!({"status": "ok", "request_id": ""})).await.refused(400, "invalid_field");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_answered_the_same_when_its_receipt_was_pruned() {
    let (house, _, token) = house_with_agent().await;
    let (consume, hash) = approved(&house, &token, "1").await;
    let consumed = house.post(&consume, &token, body(&hash, "r-1")).await.expect(200).body;
    let (path, executed) = allowed(&house, &token).await;
    let report = json!({"status": "ok", "executed_hash": executed, "output": {"secret": "the-output"}, "request_id": "r-1"});
    let reported = house.post(&path, &token, report.clone()).await.expect(201).body;
    // As many behind them as a lane that is open keeps.
    for n in 0..64 {
        house.agent(&house.acme, &format!("another-{n}")).await;
    }
    let ledger = &house.control_ledger;
    let lane = ledger.lane_of(&house.acme.id);
    house
        .until("the history has the lane, and the ledger knows that it is shipped", async || {
            let known = house.store.history_lane(&house.acme.id, &lane).await.unwrap();
            ledger.backlog() == 0 && known.is_some_and(|known| known.missing.is_empty() && known.head > 64)
        })
        .await;
    let of_both = [EventKind::ApprovalConsumed, EventKind::ToolOutcome];
    let last = async |kind: EventKind| house.events(&house.acme.id, kind).await[0].clone();
    let through = last(EventKind::ToolOutcome).await.seq.unwrap();
    assert!(ledger.prune_confirmed(&lane, through, aegis_model::Timestamp::from_micros(i64::MAX)).await.unwrap() > 0);
    for kind in of_both {
        assert!(!ledger.contains(&house.acme.id, last(kind).await.event_id).await.unwrap(), "{kind} is pruned");
    }
    assert_eq!(house.post(&consume, &token, body(&hash, "r-1")).await.expect(200).body, consumed);
    assert_eq!(house.post(&path, &token, report).await.expect(201).body, reported);
    let other = json!({"status": "error", "executed_hash": executed, "output": {"secret": "the-output"}, "request_id": "r-1"});
    house.post(&path, &token, other).await.refused(409, "idempotency_payload_mismatch");
    house.event(&house.acme.id, EventKind::ReplayAttempt, "idempotency_payload_mismatch").await;
    for kind in of_both {
        assert_eq!(house.events(&house.acme.id, kind).await.len(), 1, "{kind}");
    }
    // What control says of such a lane to the ledger itself: the history has it, and holds it.
    let lanes = [lane.clone(), "nobody.s.lane".to_owned()];
    house
        .until("the history is whole", async || {
            let heads = house.control.heads_here(&lanes).await;
            heads.is_ok_and(|heads| heads[0].0 == lane && heads[0].1 > through && heads[1].1 == 0)
        })
        .await;
    assert_eq!(house.control.history_holds(&lane, 0, through, 5).await, Ok(5));
    assert_eq!(house.control.history_holds(&lane, through - 1, through, 256).await, Ok(through));
    assert!(house.control.confirmed_here("control", &lanes).await.unwrap_err().contains("no lake"));
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_that_come_at_once_are_one_receipt_and_a_violation_is_one_attempt() {
    let (house, _, token) = house_with_agent().await;
    let (path, _) = allowed(&house, &token).await;
    let report = json!({"status": "ok", "executed_hash": "0".repeat(64), "request_id": "r-1"});
    let house = Arc::new(house);
    let mut tries = Vec::new();
    for _ in 0..20 {
        let (house, path, token, report) = (house.clone(), path.clone(), token.clone(), report.clone());
        tries.push(tokio::spawn(async move { house.post(&path, &token, report).await.expect(201).body }));
    }
    let mut answers = Vec::new();
    for one in tries {
        answers.push(one.await.unwrap());
    }
    assert_eq!(answers[0]["violation"], "executed_hash_mismatch");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    house.event(&house.acme.id, EventKind::TamperAttempt, "executed_hash_mismatch").await;
    assert_eq!(house.events(&house.acme.id, EventKind::ToolOutcome).await.len(), 1);
    assert_eq!(house.events(&house.acme.id, EventKind::TamperAttempt).await.len(), 1);
}

/// Whoever has the key of another edge of the tenant seals a decision under the id of one that an agent was answered. Which of them that was nobody can
/// tell: its outcome is not recorded, and that is told once, of no agent.
#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_of_an_id_that_has_two_decisions_is_refused_and_told_once() {
    let (house, agent, token) = house_with_agent().await;
    let (_, stranger) = house.agent(&house.acme, "stranger").await;
    let tenant = &house.acme.id;
    let decided = house.ask(&token, json!({"version": "1"})).await;
    let id = uuid::Uuid::parse_str(decided["decision_id"].as_str().unwrap()).unwrap();
    let path = format!("/v1/decisions/{id}/outcome");
    let report = json!({"status": "error"});
    house.post(&path, &token, report.clone()).await.expect(201);

    let forge = async |agent: &str| {
        let mut event = SecurityEvent::new(tenant.clone(), "edge-2", "edge", EventKind::AuthorizeDecision, house.now());
        event.event_id = id;
        event.agent_id = Some(agent.to_owned());
        let forged = house.sealed_by("edge-2", &house.edge_key, Draft::new(event, Phase::Decision)).await;
        let message = Message::new(subject::ase(tenant, forged.kind), forged.wire);
        house.bus.publish(Stream::Ase, vec![message]).await.remove(0).unwrap();
        forged.lane
    };
    let count = async || house.store.history_events(tenant, id, None).await.unwrap().len();
    forge("another agent").await;
    house.until("both are there", async || count().await == 2).await;
    house.post(&path, &token, report.clone()).await.expect(201);

    let lane = forge(&agent).await;
    house.until("the third is there", async || count().await == 3).await;
    house.post(&path, &stranger, report.clone()).await.refused(403, "not_deciding_agent");
    for _ in 0..3 {
        house.post(&path, &token, report.clone()).await.refused(409, "ambiguous_decision");
    }
    let told = house.event(tenant, EventKind::TamperAttempt, "ambiguous_decision").await;
    assert_eq!((&told["ref_event_id"], &told["resource"]), (&json!(id), &json!("edge-1, edge-2")));
    assert!(told["agent_id"].is_null(), "who reports is not what is wrong");
    let attributes: Value = serde_json::from_str(told["attributes"].as_str().unwrap()).unwrap();
    assert_eq!((&attributes["decisions"], &attributes["lanes"][1]), (&json!(2), &json!(lane)));
    assert_eq!(house.events(tenant, EventKind::TamperAttempt).await.len(), 1);
    let outcomes = async || house.events(tenant, EventKind::ToolOutcome).await.len();
    house.until("what was reported before is there", async || outcomes().await == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_outcome_says_what_was_said_even_if_it_would_be_right_by_now() {
    let (house, _, token) = house_with_agent().await;
    let answer = house.ask(&token, json!({"version": "1"})).await;
    let (id, hash) = (answer["approval"]["approval_id"].as_str().unwrap(), answer["action_hash"].as_str().unwrap());
    let path = format!("/v1/decisions/{}/outcome", answer["decision_id"].as_str().unwrap());
    let report = json!({"status": "ok", "executed_hash": hash, "request_id": "r-1"});
    let early = house.post(&path, &token, report.clone()).await.expect(201).body;
    assert_eq!(early["violation"], "executed_without_approval");
    let shown = format!("/v1/approvals/{id}");
    house.until("the approval is there", async || house.get(&shown, &token).await.status == 200).await;
    house.send("POST", &format!("{shown}/approve"), Some(&house.acme.approver), None).await.expect(200);
    house.post(&format!("{shown}/consume"), &token, body(hash, "r-1")).await.expect(200);
    assert_eq!(house.post(&path, &token, report).await.expect(201).body, early);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_says_how_long_it_stands_by_the_server_s_clock() {
    let (house, _, token) = house_with_agent().await;
    let answer = house.ask(&token, json!({"version": "1"})).await;
    assert_eq!(answer["approval"]["expires_in"], json!(900));
    let shown = format!("/v1/approvals/{}", answer["approval"]["approval_id"].as_str().unwrap());
    house.until("the approval is there", async || house.get(&shown, &token).await.status == 200).await;
    house.clock.advance_seconds(60);
    assert_eq!(house.get(&shown, &token).await.expect(200).body["expires_in"], json!(840));
    assert_eq!(house.get("/v1/approvals", &house.acme.approver).await.expect(200).body[0]["expires_in"], json!(840));
    house.clock.advance_seconds(3600);
    assert_eq!(house.get(&shown, &token).await.expect(200).body["expires_in"], json!(0));
}
