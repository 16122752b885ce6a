//! Frozen actions that no edge sent: they are shown to nobody, and hold up nobody else's approvals.

use aegis_bus::{Bus, Message, Stream, subject};
use aegis_model::{EventKind, FrozenAction, TenantId};
use serde_json::{Value, json};

use crate::house::House;
use crate::house_with_agent;

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
