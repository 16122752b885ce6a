//! Frozen actions that no edge sent: they are shown to nobody, and hold up nobody else's approvals.

use aegis_bus::{Bus, Message, Stream, subject};
use aegis_ledger::Draft;
use aegis_model::{Decision, EventKind, FrozenAction, Phase, SecurityEvent, TenantId};
use serde_json::{Value, json};

use super::house_with_agent;
use crate::house::House;

/// What an attacker on the bus could send: a real frozen action, changed, as another approval.
async fn forge(house: &House, decision: &Value, change: impl FnOnce(&mut FrozenAction)) -> String {
    forge_as_is(house, decision, |frozen| {
        frozen.approval_id = format!("{}x", frozen.approval_id);
        change(frozen);
    })
    .await
}

async fn forge_as_is(house: &House, decision: &Value, change: impl FnOnce(&mut FrozenAction)) -> String {
    let sealed = house.edge_ledger.read_outbox(0, 1000).await.unwrap();
    let id = decision["decision_id"].as_str().unwrap();
    let item = sealed.into_iter().find(|item| item.sealed.event_id.to_string() == id).unwrap();
    let mut frozen = item.frozen.unwrap();
    change(&mut frozen);
    let message = Message::new(subject::approval(&frozen.tenant_id, &frozen.approval_id), serde_json::to_vec(&frozen).unwrap());
    house.bus.publish(Stream::Approvals, vec![message]).await.remove(0).unwrap();
    frozen.approval_id
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_actions_of_eight_tenants_hold_up_nobody_else_s_approvals() {
    let (house, _, token) = house_with_agent().await;
    let decision = house.ask(&token, json!({"version": "1"})).await;
    let sealed = house.edge_ledger.read_outbox(0, 1000).await.unwrap();
    let id = decision["decision_id"].as_str().unwrap();
    let item = sealed.into_iter().find(|item| item.sealed.event_id.to_string() == id).unwrap();
    let mut frozen = item.frozen.unwrap();
    let mut forged = Vec::new();
    for hostile in 0..8 {
        frozen.tenant_id = TenantId::new(&format!("hostile-{hostile}")).unwrap();
        house.store.create_tenant(&frozen.tenant_id, "hostile").await.unwrap();
        for n in 0..200 {
            // Sound in itself, of a decision that nobody made.
            (frozen.approval_id, frozen.event_id) = (format!("approval-{n}"), aegis_model::new_event_id());
            let subject = subject::approval(&frozen.tenant_id, &frozen.approval_id);
            forged.push(Message::new(subject, serde_json::to_vec(&frozen).unwrap()));
        }
    }
    for published in house.bus.publish(Stream::Approvals, forged).await {
        published.unwrap();
    }
    house.held(&token, json!({"version": "2"})).await;
    assert!(house.bus.last_seq(Stream::Dlq).await.unwrap() > 0, "what was set aside is kept aside");
}

#[tokio::test(flavor = "multi_thread")]
async fn not_even_who_may_approve_can_be_changed_on_the_way() {
    let (house, _, token) = house_with_agent().await;
    let decision = house.ask(&token, json!({"version": "1"})).await;
    let id = forge_as_is(&house, &decision, |frozen| frozen.approver_group = "interns".to_owned()).await;
    house.event(&house.acme.id, EventKind::TamperAttempt, "frozen_receipt_mismatch").await;
    // The true one may come behind it.
    let path = format!("/v1/approvals/{id}");
    house.until("the approval is there", async || house.get(&path, &house.acme.approver).await.status == 200).await;
    let shown = house.get(&path, &house.acme.approver).await.expect(200).body;
    assert_eq!(shown["approver_group"], decision["approval"]["approver_group"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_action_that_is_not_the_sealed_one_is_shown_to_nobody() {
    let (house, _, token) = house_with_agent().await;
    let decision = house.ask(&token, json!({"version": "1"})).await;
    let swapped = forge(&house, &decision, |frozen| {
        frozen.tool_call.parameters.insert("version".to_owned(), json!("evil"));
    })
    .await;
    house.event(&house.acme.id, EventKind::TamperAttempt, "frozen_action_mismatch").await;
    let rehashed = forge(&house, &decision, |frozen| {
        let parameters = json!({"version": "evil"});
        frozen.action_hash = aegis_canon::action_hash("deploy", "rollout", Some("payments"), true, &parameters).unwrap();
        frozen.tool_call.parameters = parameters.as_object().unwrap().clone();
    })
    .await;
    let tamper = house.event(&house.acme.id, EventKind::TamperAttempt, "frozen_receipt_mismatch").await;
    assert_eq!(tamper["agent_id"], Value::Null, "a forged message blames nobody");
    for id in [swapped, rehashed] {
        house.get(&format!("/v1/approvals/{id}"), &house.acme.approver).await.refused(404, "approval_not_found");
    }
    // Rubbish is set aside and the honest one still arrives.
    let rubbish = Message::new(subject::approval(&house.acme.id, "rubbish"), &b"{\"a\":1,\"a\":2}"[..]);
    house.bus.publish(Stream::Approvals, vec![rubbish]).await.remove(0).unwrap();
    house.until("the dead letter is there", async || house.bus.last_seq(Stream::Dlq).await.unwrap() == 1).await;
    house.held(&token, json!({"version": "2"})).await;
}

/// An event that an edge of this name sealed, as it is published.
async fn sealed_by(house: &House, edge_id: &str, draft: Draft) -> Message {
    let sealed = house.sealed_by(edge_id, &house.edge_key, draft).await;
    Message::new(subject::ase(&sealed.tenant_id, sealed.kind), sealed.wire)
}

/// Who has the key of another edge of the tenant, and learns a decision's id before it arrives, does not have its approval refused.
#[tokio::test(flavor = "multi_thread")]
async fn an_approval_is_found_by_its_own_decision_whatever_was_sealed_under_that_id_first() {
    let (house, _, token) = house_with_agent().await;
    let asked = house.ask(&token, json!({"version": "1"})).await;
    let items = house.edge_ledger.read_outbox(0, 1000).await.unwrap();
    let id = asked["decision_id"].as_str().unwrap();
    let mut frozen = items.into_iter().find(|item| item.sealed.event_id.to_string() == id).unwrap().frozen.unwrap();
    (frozen.approval_id, frozen.event_id) = ("raced".to_owned(), aegis_model::new_event_id());

    let decision = |edge_id: &str| {
        let tenant = frozen.tenant_id.clone();
        let mut event = SecurityEvent::new(tenant, edge_id, "edge", EventKind::AuthorizeDecision, house.now());
        event.event_id = frozen.event_id;
        event.agent_id = Some(frozen.agent_id.clone());
        event
    };
    let squatter = sealed_by(&house, "edge-2", Draft::new(decision("edge-2"), Phase::Decision)).await;
    let mut event = decision("edge-1");
    event.decision = Some(Decision::RequireApproval);
    event.approval_id = Some(frozen.approval_id.clone());
    event.action_hash = Some(frozen.action_hash.clone());
    let mut draft = Draft::new(event, Phase::Decision);
    draft.detail = Some(json!({"frozen_digest": frozen.digest().unwrap()}));
    let own = sealed_by(&house, "edge-1", draft).await;

    house.bus.publish(Stream::Ase, vec![squatter]).await.remove(0).unwrap();
    let rows = async || house.store.history_events(&house.acme.id, frozen.event_id, None).await.unwrap();
    house.until("the other is there", async || rows().await.iter().any(|row| row.is_proved())).await;
    let message = Message::new(subject::approval(&frozen.tenant_id, &frozen.approval_id), serde_json::to_vec(&frozen).unwrap());
    house.bus.publish(Stream::Approvals, vec![message]).await.remove(0).unwrap();
    house.bus.publish(Stream::Ase, vec![own]).await.remove(0).unwrap();
    let shown = async || house.get("/v1/approvals/raced", &house.acme.approver).await.status == 200;
    house.until("the approval is shown", shown).await;
}
