//! Who may decide: neither whom the action is of, nor anybody twice, whatever key, name or token they come with.

use aegis_keys::{AgentClaims, mint_agent_token};
use aegis_model::{EventKind, RiskLevel, SourceTrust};
use aegis_store::{RegisteredBy, Role, same_person};
use serde_json::{Value, json};

use super::{approve, consume_body, house_with_agent};
use crate::house::House;

/// A key of somebody who may approve.
async fn approver(house: &House, name: &str) -> String {
    let groups = ["security".to_owned()];
    let (_, key) = house.store.create_key(&house.acme.id, Role::Approver, name, &groups, None).await.unwrap();
    key.expose().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_approves_what_they_asked_for() {
    let (house, _, token) = house_with_agent().await;
    let (id, _) = house.held(&token, json!({"version": "1"})).await;
    // Whom the agent claims to be asked by: they may not, and are accused of nothing that anybody could claim.
    for name in ["mallory", "Mallory", "m\u{430}llory"] {
        approve(&house, &id, &approver(&house, name).await).await.refused(403, "self_approval");
    }
    let claimed = house.event(&house.acme.id, EventKind::TamperAttempt, "self_approval_claimed").await;
    assert_eq!((&claimed["approver"], &claimed["agent_id"]), (&Value::Null, &Value::Null));
    assert_eq!((&claimed["user_id"], &claimed["receipt"]["detail"]["by"]["role"]), (&json!("mallory"), &json!("approver")));
    // Another key of the person who registered the agent, however the name is written or drawn.
    for name in ["rita", " RITA", "r\u{456}ta", "\u{ff32}ita"] {
        approve(&house, &id, &approver(&house, name).await).await.refused(403, "self_approval");
    }
    let own = house.event(&house.acme.id, EventKind::TamperAttempt, "self_approval").await;
    assert!(own["approver"].as_str().is_some_and(|who| same_person(who, "rita")), "{own}");
    approve(&house, &id, &house.acme.outsider).await.refused(403, "wrong_group");
    approve(&house, &id, &house.acme.admin).await.refused(403, "wrong_role");
    approve(&house, &id, &token).await.refused(403, "wrong_role");
    approve(&house, &id, &house.other.approver).await.refused(404, "approval_not_found");
    assert_eq!(house.get(&format!("/v1/approvals/{id}"), &house.acme.auditor).await.body["status"], "PENDING");
    approve(&house, &id, &house.acme.approver_two).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_keys_registered_an_agent_or_gave_it_its_token_stays_known_when_they_are_revoked() {
    let (house, _, _) = house_with_agent().await;
    let again = json!({"agent_key": "bot", "name": "bot", "environment": "production", "risk_tier": "low"});
    let reply = house.post("/v1/agents/register", &house.acme.admin, again).await.expect(200);
    let token = reply.body["agent_token"].as_str().unwrap().to_owned();
    let (id, hash) = house.held(&token, json!({"version": "1"})).await;
    for key in house.store.list_keys(&house.acme.id).await.unwrap() {
        if matches!(key.role, Role::Registrar | Role::Admin) {
            assert!(house.store.revoke_key(&house.acme.id, &key.key_id, &[]).await.unwrap());
        }
    }
    for name in ["rita", "Rita", "ada", "ADA"] {
        let own = approver(&house, name).await;
        approve(&house, &id, &own).await.refused(403, "self_approval");
        house.post(&format!("/v1/approvals/{id}/reject"), &own, json!({})).await.refused(403, "self_approval");
    }
    approve(&house, &id, &house.acme.approver).await.expect(200);
    house.post(&format!("/v1/approvals/{id}/consume"), &token, consume_body(&hash)).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_approved_an_action_does_not_run_it_with_a_token_of_their_own() {
    let (house, _, token) = house_with_agent().await;
    let (id, hash) = house.held(&token, json!({"version": "1"})).await;
    approve(&house, &id, &approver(&house, "Ada").await).await.expect(200);
    let again = json!({"agent_key": "bot", "name": "bot", "environment": "production", "risk_tier": "low"});
    let reply = house.post("/v1/agents/register", &house.acme.admin, again).await.expect(200);
    let own = reply.body["agent_token"].as_str().unwrap().to_owned();
    let consume = format!("/v1/approvals/{id}/consume");
    house.post(&consume, &own, consume_body(&hash)).await.refused(409, "self_approval");
    let attempt = house.event(&house.acme.id, EventKind::TamperAttempt, "self_approval").await;
    assert_eq!((&attempt["approver"], &attempt["agent_id"]), (&json!("ada"), &Value::Null), "it is not the agent's");
    house.post(&consume, &token, consume_body(&hash)).await.expect(200);
}

/// A token of an earlier version, which did not keep who handed out which.
fn unnoted_token(house: &House, agent: &str, issued_by: &str) -> String {
    let claims = AgentClaims {
        token_id: "of-an-earlier-version".to_owned(),
        tenant_id: house.acme.id.clone(),
        agent_id: agent.to_owned(),
        agent_key: "bot".to_owned(),
        environment: "production".to_owned(),
        owner_team: None,
        risk_tier: RiskLevel::Low,
        trust_ceiling: SourceTrust::TrustedInternalSigned,
        issued_by: issued_by.to_owned(),
        issued_at: house.now(),
        expires_at: house.now().plus_seconds(600),
    };
    mint_agent_token(&house.control_key, &claims).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_approved_an_action_does_not_run_it_with_a_token_of_theirs_that_nobody_noted() {
    let (house, agent, token) = house_with_agent().await;
    let (id, hash) = house.held(&token, json!({"version": "1"})).await;
    approve(&house, &id, &approver(&house, "Ada").await).await.expect(200);
    let keys = house.store.list_keys(&house.acme.id).await.unwrap();
    let of_ada = keys.iter().find(|key| key.role == Role::Admin).unwrap();
    assert_eq!(of_ada.name, "ada");
    let own = unnoted_token(&house, &agent, &of_ada.key_id);
    let consume = format!("/v1/approvals/{id}/consume");
    house.post(&consume, &own, consume_body(&hash)).await.refused(409, "self_approval");
    assert!(house.store.revoke_key(&house.acme.id, &of_ada.key_id, &[]).await.unwrap());
    house.post(&consume, &own, consume_body(&hash)).await.refused(409, "self_approval");
    house.post(&consume, &token, consume_body(&hash)).await.expect(200);
}

/// The agent was registered again since, so that somebody's token is noted.
#[tokio::test(flavor = "multi_thread")]
async fn who_gave_the_token_that_asked_does_not_approve_although_nobody_noted_it() {
    let (house, agent, _) = house_with_agent().await;
    let keys = house.store.list_keys(&house.acme.id).await.unwrap();
    let of_ada = keys.iter().find(|key| key.name == "ada").unwrap();
    let (id, _) = house.held(&unnoted_token(&house, &agent, &of_ada.key_id), json!({"version": "1"})).await;
    let ada = approver(&house, "Ada").await;
    approve(&house, &id, &ada).await.refused(403, "self_approval");
    assert!(house.store.revoke_key(&house.acme.id, &of_ada.key_id, &[]).await.unwrap());
    approve(&house, &id, &ada).await.refused(403, "self_approval");
    approve(&house, &id, &house.acme.approver).await.expect(200);
    let (id, _) = house.held(&unnoted_token(&house, &agent, "key_of_nobody"), json!({"version": "2"})).await;
    approve(&house, &id, &house.acme.approver).await.refused(403, "agent_side_unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_knows_whose_key_an_agent_is_under_nobody_approves() {
    let (house, agent, token) = house_with_agent().await;
    let record = house.store.agent(&house.acme.id, &agent).await.unwrap().unwrap();
    let by = RegisteredBy { registrar: "key_of_nobody", issuer: "key_of_nobody", token_until: house.now().plus_seconds(60) };
    house.store.upsert_agent(&house.acme.id, &record, by, &[]).await.unwrap();
    let (id, _) = house.held(&token, json!({"version": "1"})).await;
    approve(&house, &id, &house.acme.approver).await.refused(403, "agent_side_unknown");
    assert_eq!(house.get(&format!("/v1/approvals/{id}"), &token).await.body["status"], "PENDING");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_means_two_people() {
    let (house, _, token) = house_with_agent().await;
    let two = "@id(\"two\")\n@decision(\"require_approval\")\n@approvals(\"2\")\n@reason(\"two people\")\n\
               permit (principal, action == Action::\"deploy/rollout\", resource);";
    house.put("/v1/policies", &house.acme.admin, json!({"policies": two})).await.expect(200);
    let (id, hash) = house.held(&token, json!({"version": "1"})).await;
    assert_eq!(approve(&house, &id, &house.acme.approver).await.expect(200).body["status"], "PENDING");
    approve(&house, &id, &house.acme.approver).await.refused(409, "already_voted");
    // Another key of the same person is the same person, however the name is written.
    for name in ["paul", "Paul", " PAUL", "p\u{430}ul", "PAU1", "pa\u{200b}ul"] {
        approve(&house, &id, &approver(&house, name).await).await.refused(409, "already_voted");
    }
    assert_eq!(approve(&house, &id, &house.acme.approver_two).await.expect(200).body["status"], "APPROVED");
    house.post(&format!("/v1/approvals/{id}/consume"), &token, consume_body(&hash)).await.expect(200);
}
