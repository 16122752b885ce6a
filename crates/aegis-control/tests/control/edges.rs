//! Enrolment of edges: an invitation is used once, keys are believed for their own tenants and lanes only, and never for what control signs.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::house::{House, key_text};
use aegis_bus::{AskForMissing, Bus, Hearing, Message, Stream, subject};
use aegis_keys::{AgentClaims, KeyRing, SigningKey, mint_agent_token, sign_notice, verify_notice};
use aegis_ledger::{Draft, Ledger, LedgerConfig};
use aegis_model::{EventKind, Lost, Missing, Phase, Pruned, RiskLevel, SecurityEvent, SourceTrust, TenantId};
use aegis_store::{EdgeKey, EdgePublicKeys, HistoryRow, OutboxRow};
use serde_json::{Value, json};
use tokio::time::timeout;

fn nkey() -> String {
    format!("U{}", "A".repeat(55))
}

fn body(token: &str, seed: u8) -> Value {
    json!({"token": token, "receipt_key": key_text(seed), "nkey": nkey()})
}

async fn invite(house: &House, id: &str, tenants: &[&TenantId]) -> String {
    let tenants: BTreeSet<TenantId> = tenants.iter().map(|tenant| (*tenant).clone()).collect();
    let until = house.now().plus_seconds(60);
    house.store.invite_edge(id, &tenants, until).await.unwrap().expose().to_owned()
}

async fn enroll(house: &House, body: &Value) -> crate::house::Reply {
    house.send("POST", "/v1/edges/enroll", None, Some(body.to_string().as_bytes())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invited_edge_learns_whom_to_believe_and_each_tenant_has_a_receipt_of_it() {
    let house = House::build().await;
    let token = invite(&house, "edge-7", &[&house.acme.id, &house.other.id]).await;
    let reply = enroll(&house, &body(&token, 1)).await.expect(200);
    let answer: Value = serde_json::from_str(&reply.text).unwrap();
    assert_eq!(answer["edge_id"], "edge-7");
    assert_eq!(answer["tenants"], json!([house.acme.id, house.other.id]));
    assert_eq!(answer["control_keys"], json!([house.control_key.verifying_key().to_base64()]));
    assert_eq!(answer["trust_key"], "09".repeat(32));
    for tenant in [&house.acme.id, &house.other.id] {
        let event = house.event(tenant, EventKind::ConfigChanged, "edge_enrolled").await;
        assert_eq!(event["approver"], "edge-7");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_is_used_once_in_time_and_by_nobody_else() {
    let house = House::build().await;
    let replaced = invite(&house, "edge-7", &[&house.acme.id]).await;
    let token = invite(&house, "edge-7", &[&house.acme.id]).await;
    for bad in [&replaced, "aegis_edge_AAAA", "", &format!("{token}x")] {
        enroll(&house, &body(bad, 1)).await.refused(401, "invalid_credential");
    }
    // A bad key does not use it up.
    let mut spoiled = body(&token, 1);
    for (field, value) in [("receipt_key", "AAAA"), ("receipt_key", ""), ("nkey", "SUAAAA"), ("nkey", "")] {
        let before = spoiled[field].take();
        spoiled[field] = json!(value);
        let reply = enroll(&house, &spoiled).await;
        assert_eq!(reply.status.as_u16(), 400, "{field} {value:?}: {}", reply.text);
        assert!(!reply.text.contains(&token), "the token is repeated");
        spoiled[field] = before;
    }
    // Nor does a key that somebody else holds: control's own would take its receipts away from everybody.
    for stolen in [house.control_key.verifying_key().to_base64(), house.edge_key.verifying_key().to_base64()] {
        let mut spoiled = body(&token, 1);
        spoiled["receipt_key"] = json!(stolen);
        enroll(&house, &spoiled).await.refused(400, "invalid_field");
    }
    enroll(&house, &body(&token, 1)).await.expect(200);
    enroll(&house, &body(&token, 2)).await.refused(401, "invalid_credential");
    let late = invite(&house, "edge-8", &[&house.acme.id]).await;
    house.clock.advance_seconds(61);
    enroll(&house, &body(&late, 3)).await.refused(401, "invalid_credential");
    assert_eq!(house.store.edge_keys().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_without_a_receipt_does_not_happen() {
    let house = House::build().await;
    let token = invite(&house, "edge-7", &[&house.acme.id]).await;
    house.fill_control_ledger().await;
    let reply = enroll(&house, &body(&token, 1)).await;
    assert_eq!(reply.status.as_u16(), 503, "{}", reply.text);
    assert!(house.store.edge_keys().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_lost_the_answer_asks_again() {
    let house = House::build().await;
    let token = invite(&house, "edge-7", &[&house.acme.id]).await;
    let first = enroll(&house, &body(&token, 1)).await.expect(200).text;
    assert_eq!(enroll(&house, &body(&token, 1)).await.expect(200).text, first);
    // Not with another key, another login or another invitation; and not for ever.
    enroll(&house, &body(&token, 2)).await.refused(401, "invalid_credential");
    let mut other = body(&token, 1);
    other["nkey"] = json!(format!("U{}", "B".repeat(55)));
    enroll(&house, &other).await.refused(401, "invalid_credential");
    let second = invite(&house, "edge-8", &[&house.other.id]).await;
    enroll(&house, &body(&second, 1)).await.refused(400, "invalid_field");
    enroll(&house, &body(&second, 2)).await.expect(200);
    house.clock.advance_seconds(61);
    enroll(&house, &body(&token, 1)).await.refused(401, "invalid_credential");
    house.event(&house.other.id, EventKind::ConfigChanged, "edge_enrolled").await;
    let receipts = house.events(&house.acme.id, EventKind::ConfigChanged).await;
    let of_edge = receipts.iter().filter(|row| row.wire.text().is_some_and(|wire| wire.contains("edge_enrolled")));
    assert_eq!(of_edge.count(), 1, "one receipt: {receipts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_enrolment_and_receipt_loses_neither() {
    let house = House::build().await;
    let token = invite(&house, "edge-7", &[&house.acme.id]).await;
    let key = SigningKey::from_seed(&[1; 32]).verifying_key();
    let text = key.to_base64();
    let keys = EdgePublicKeys { key_id: key.key_id(), public_key: &text, nkey: &nkey() };
    let draft = Draft::new(
        SecurityEvent::new(house.acme.id.clone(), "control", "control", EventKind::ConfigChanged, house.now()),
        Phase::Config,
    );
    let facts = move |_: &EdgeKey| {
        let payload = serde_json::to_string(&draft).unwrap();
        Ok(vec![OutboxRow { event_id: draft.event.event_id, tenant_id: draft.event.tenant_id.clone(), payload }])
    };
    // As a process left it that died behind the commit.
    house.store.enroll_edge(&token, keys, &facts).await.unwrap().unwrap();
    assert!(house.ring.get(key.key_id()).is_none(), "not believed yet");
    enroll(&house, &body(&token, 1)).await.expect(200);
    assert!(house.ring.get(key.key_id()).is_some());
    assert!(house.store.pending_outbox(10).await.unwrap().is_empty(), "its receipt is sealed");
}

/// An edge's ledger with one receipt of `tenant`, as its wire.
async fn receipt_of(house: &House, edge_id: &str, key: &SigningKey, tenant: &TenantId) -> Value {
    let event = SecurityEvent::new(tenant.clone(), edge_id, "edge", EventKind::AuthorizeDecision, house.now());
    sealed_by(house, edge_id, key, event).await
}

async fn sealed_by(house: &House, edge_id: &str, key: &SigningKey, event: SecurityEvent) -> Value {
    let sealed = house.sealed_by(edge_id, key, Draft::new(event, Phase::Decision)).await;
    serde_json::from_str(&sealed.wire).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_speaks_for_its_tenants_and_its_own_lanes_only() {
    let house = House::build().await;
    let key = SigningKey::from_seed(&[1; 32]);
    let verified = async |edge_id: &str, tenant: &TenantId| {
        let wire = receipt_of(&house, edge_id, &key, tenant).await;
        aegis_ledger::verify::verify_wire(&wire, Some(&house.ring))
    };
    assert!(verified("edge-7", &house.acme.id).await.is_err(), "nobody has enrolled it");
    let token = invite(&house, "edge-7", &[&house.acme.id]).await;
    enroll(&house, &body(&token, 1)).await.expect(200);
    verified("edge-7", &house.acme.id).await.unwrap();
    for (edge_id, tenant) in [("edge-7", &house.other.id), ("edge-8", &house.acme.id), ("control", &house.acme.id)] {
        let refused = verified(edge_id, tenant).await.unwrap_err();
        assert!(refused.to_string().contains("not pinned for its tenant and lane"), "{edge_id} {tenant}: {refused}");
    }
}

/// An edge that is enrolled for a tenant writes what it likes about another's lane: it cannot say that receipts of it have come, nor keep
/// one out of the history by taking its id first.
#[tokio::test(flavor = "multi_thread")]
async fn the_history_believes_proved_receipts_only_about_how_far_a_lane_is() {
    let house = House::build().await;
    let tenant = &house.acme.id;
    let publish = async |wire: &Value| {
        let message = Message::new(subject::ase(tenant, EventKind::AuthorizeDecision), wire.to_string());
        house.bus.publish(Stream::Ase, vec![message]).await.pop().unwrap().unwrap();
    };
    let row = async |id: &Value| {
        let id = uuid::Uuid::parse_str(id.as_str().unwrap()).unwrap();
        house.store.history_event(tenant, id).await.unwrap()
    };
    let wire = receipt_of(&house, "edge-1", &house.edge_key, tenant).await;
    let lane = wire["lane"].as_str().unwrap().to_owned();
    let seq = wire["seq"].as_i64().unwrap();
    let mut further = wire.clone();
    further["seq"] = json!(seq + 1000);
    further["event_id"] = json!(aegis_model::new_event_id());
    let mut squatter = wire.clone();
    squatter["decision"] = json!("allow");
    for forged in [&further, &squatter] {
        publish(forged).await;
        house.until("it is in the history", async || row(&forged["event_id"]).await.is_some_and(|row| !row.is_proved())).await;
    }
    assert_eq!(house.store.history_lane(tenant, &lane).await.unwrap(), None);
    publish(&wire).await;
    house.until("the receipt has its place", async || row(&wire["event_id"]).await.is_some_and(|row| row.is_proved())).await;
    assert_eq!(row(&wire["event_id"]).await.unwrap().wire.text(), Some(wire.to_string().as_str()));
    let known = house.store.history_lane(tenant, &lane).await.unwrap().unwrap();
    assert_eq!(known.head, seq);
    assert_eq!(known.missing, (seq > 1).then_some((1, seq - 1)).into_iter().collect::<Vec<_>>());
}

/// Who learns a receipt's id before the receipt arrives, and has the key of another edge of the tenant, seals something under it first. The receipt has its
/// place in its lane all the same, and who asks for the id is told that there are two.
#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_has_its_place_in_its_lane_whoever_took_its_id() {
    let house = House::build().await;
    let tenant = &house.acme.id;
    let publish = async |kind: EventKind, wire: String| {
        house.bus.publish(Stream::Ase, vec![Message::new(subject::ase(tenant, kind), wire)]).await.pop().unwrap().unwrap();
    };
    let wire = receipt_of(&house, "edge-1", &house.edge_key, tenant).await;
    let (lane, seq) = (wire["lane"].as_str().unwrap().to_owned(), wire["seq"].as_i64().unwrap());
    // An observation under it is none.
    let mut seen = SecurityEvent::new(tenant.clone(), "github", "github", EventKind::ExternalGithubWebhook, house.now());
    seen.event_id = uuid::Uuid::parse_str(wire["event_id"].as_str().unwrap()).unwrap();
    publish(seen.kind, serde_json::to_string(&seen).unwrap()).await;

    let token = invite(&house, "edge-7", &[tenant]).await;
    enroll(&house, &body(&token, 1)).await.expect(200);
    let mut event = SecurityEvent::new(tenant.clone(), "edge-7", "edge", EventKind::AuthorizeDecision, house.now());
    event.event_id = seen.event_id;
    let other = sealed_by(&house, "edge-7", &SigningKey::from_seed(&[1; 32]), event).await;
    publish(EventKind::AuthorizeDecision, other.to_string()).await;
    let rows = async || house.store.history_events(tenant, seen.event_id, None).await.unwrap();
    house.until("another's receipt has the id", async || rows().await.len() == 1).await;

    publish(EventKind::AuthorizeDecision, wire.to_string()).await;
    house.until("both are there", async || rows().await.len() == 2).await;
    let known = house.store.history_lane(tenant, &lane).await.unwrap().unwrap();
    assert_eq!((known.head, known.missing), (seq, (seq > 1).then_some((1, seq - 1)).into_iter().collect::<Vec<_>>()));

    let id = seen.event_id;
    let reader = &house.acme.auditor;
    let first = house.get(&format!("/v1/receipts/{id}"), reader).await.expect(200);
    assert_eq!((&first.body, first.headers["aegis-same-id"].to_str().unwrap()), (&other, "1"));
    let own = house.get(&format!("/v1/receipts/{id}?lane={lane}"), reader).await.expect(200);
    assert_eq!((&own.body, own.headers["aegis-same-id"].to_str().unwrap()), (&wire, "1"));
    let verdict = house.get(&format!("/v1/receipts/{id}/verify?lane={lane}"), reader).await.expect(200).body;
    assert_eq!((&verdict["receipt_hash"], &verdict["same_id"][0]["lane"]), (&wire["receipt_hash"], &other["lane"]));
    assert_eq!(verdict["same_id"][0]["proved"], true);
    let decision = house.get(&format!("/v1/decisions/{id}?lane={lane}"), reader).await.expect(200).body;
    assert_eq!((&decision["lane"], &decision["same_id"][0]["receipt_hash"]), (&wire["lane"], &other["receipt_hash"]));
    house.get(&format!("/v1/receipts/{id}?lane=acme.edge-9.1"), reader).await.refused(404, "not_found");
    let listed = house.get("/v1/decisions", reader).await.expect(200).body;
    assert_eq!(listed.as_array().unwrap().iter().filter(|row| row["event_id"] == json!(id)).count(), 2);
    // What is alone of its id says nothing of others.
    let alone = receipt_of(&house, "edge-1", &house.edge_key, tenant).await;
    publish(EventKind::AuthorizeDecision, alone.to_string()).await;
    let reply = house.get(&format!("/v1/receipts/{}", alone["event_id"].as_str().unwrap()), reader).await.expect(200);
    assert!(reply.headers.get("aegis-same-id").is_none());
}

/// Control derives ids of what it seals, so that doing the work twice is the same event: whoever knows the approval can tell them ahead.
#[tokio::test(flavor = "multi_thread")]
async fn what_control_seals_is_what_its_id_stands_for_whatever_an_edge_sealed_under_it_before() {
    let house = House::build().await;
    let tenant = &house.acme.id;
    let mut event = SecurityEvent::new(tenant.clone(), "control", "control", EventKind::ConfigChanged, house.now());
    event.event_id = aegis_model::external_event_id(tenant, "test", "derived");
    event.reason = Some("by control".to_owned());
    let id = event.event_id;
    // Of a kind that is an edge's to seal, so that nothing but the lane is wrong about it.
    let mut forged = SecurityEvent::new(tenant.clone(), "edge-1", "edge", EventKind::AuthorizeDecision, house.now());
    forged.event_id = id;
    let forged = sealed_by(&house, "edge-1", &house.edge_key, forged).await;
    let message = Message::new(subject::ase(tenant, EventKind::AuthorizeDecision), forged.to_string());
    house.bus.publish(Stream::Ase, vec![message]).await.pop().unwrap().unwrap();
    let first = async || house.store.history_event(tenant, id).await.unwrap();
    house.until("the edge was first", async || first().await.is_some_and(|row| row.is_proved())).await;

    house.control_ledger.submit(Draft::new(event, Phase::Config)).await.unwrap();
    let is_control_s = async || first().await.is_some_and(|row| row.kind == EventKind::ConfigChanged);
    house.until("control's event is what the id stands for", is_control_s).await;
    let shown = house.get(&format!("/v1/receipts/{id}"), &house.acme.auditor).await.expect(200);
    assert_eq!((&shown.body["reason"], shown.headers["aegis-same-id"].to_str().unwrap()), (&json!("by control"), "1"));
    let verdict = house.get(&format!("/v1/receipts/{id}/verify"), &house.acme.auditor).await.expect(200).body;
    assert_eq!((&verdict["verdict"], &verdict["same_id"][0]["lane"]), (&json!("valid"), &forged["lane"]));
}

/// An edge that is taken over seals what control alone says. Its lane has no gap for that, and nothing of it is called verified or stands in the way
/// of what control says.
#[tokio::test(flavor = "multi_thread")]
async fn the_history_takes_from_an_edge_nothing_that_control_alone_seals() {
    let house = House::build().await;
    let tenant = &house.acme.id;
    let mut event = SecurityEvent::new(tenant.clone(), "control", "control", EventKind::ConfigChanged, house.now());
    event.reason = Some("by an edge".to_owned());
    let folder = tempfile::tempdir().unwrap();
    let config = LedgerConfig::new(folder.path().join("ledger.db"), "edge-1", "edge");
    let ledger = Ledger::open(config, house.edge_key.clone(), house.clock.clone()).await.unwrap();
    let forged = ledger.submit(Draft::new(event.clone(), Phase::Config)).await.unwrap();
    let items = ledger.read_outbox(0, 10).await.unwrap();
    let messages = items.iter().map(|item| Message::new(subject::ase(tenant, item.sealed.kind), item.sealed.wire.clone()));
    for stored in house.bus.publish(Stream::Ase, messages.collect()).await {
        stored.unwrap();
    }
    let wire = house.event(tenant, EventKind::ConfigChanged, "by an edge").await;
    assert_eq!((&wire["lane"], &wire["seq"]), (&json!(forged.lane), &json!(forged.seq)));
    aegis_ledger::verify::verify_wire(&wire, Some(&house.ring)).unwrap();
    let known = house.store.history_lane(tenant, &forged.lane).await.unwrap().unwrap();
    assert_eq!((known.head, known.missing), (forged.seq, Vec::new()), "the receipt has its place");

    let shown = house.get("/v1/audit/events?kind=config_changed", &house.acme.auditor).await.expect(200);
    let is_forged = |event: &&Value| event["event_id"] == wire["event_id"];
    assert_eq!(shown.body.as_array().unwrap().iter().find(is_forged).unwrap()["verified"], false);
    let id = wire["event_id"].as_str().unwrap();
    let verdict = house.get(&format!("/v1/receipts/{id}/verify"), &house.acme.auditor).await.expect(200);
    assert_eq!(verdict.body["verdict"], "invalid");
    assert!(verdict.body["failure"].as_str().unwrap().starts_with("foreign_kind"), "{}", verdict.text);

    // It took an id that control was to use.
    event.reason = Some("by control".to_owned());
    house.control_ledger.submit(Draft::new(event, Phase::Config)).await.unwrap();
    let wire = house.event(tenant, EventKind::ConfigChanged, "by control").await;
    let shown = house.get("/v1/audit/events?kind=config_changed", &house.acme.auditor).await.expect(200);
    let of_id = shown.body.as_array().unwrap().iter().filter(|event| event["event_id"] == wire["event_id"]);
    let said: BTreeSet<(&str, bool)> =
        of_id.map(|event| (event["reason"].as_str().unwrap(), event["verified"].as_bool().unwrap())).collect();
    assert_eq!(said, BTreeSet::from([("by control", true), ("by an edge", false)]));
    let shown = house.get(&format!("/v1/receipts/{id}"), &house.acme.auditor).await.expect(200);
    assert_eq!(shown.body["reason"], "by control");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_s_key_signs_no_agent_in() {
    let house = House::build().await;
    let token = invite(&house, "edge-7", &[&house.acme.id]).await;
    enroll(&house, &body(&token, 1)).await.expect(200);
    let claims = AgentClaims {
        token_id: "t".to_owned(),
        tenant_id: house.acme.id.clone(),
        agent_id: "anybody".to_owned(),
        agent_key: "anybody".to_owned(),
        environment: "production".to_owned(),
        owner_team: None,
        risk_tier: RiskLevel::Low,
        trust_ceiling: SourceTrust::TrustedInternalSigned,
        issued_by: "nobody".to_owned(),
        issued_at: house.now(),
        expires_at: house.now().plus_seconds(600),
    };
    let forged = |key: &SigningKey| mint_agent_token(key, &claims).unwrap();
    house.get("/v1/approvals/x", &forged(&house.control_key)).await.refused(404, "approval_not_found");
    // Of an enrolled edge, and of the edge in control's own process, whose receipts are believed.
    for key in [SigningKey::from_seed(&[1; 32]), house.edge_key.clone()] {
        house.get("/v1/approvals/x", &forged(&key)).await.refused(401, "invalid_credential");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_has_no_name_that_control_s_own_process_has_and_its_invitation_holds() {
    let house = House::build().await;
    let token = invite(&house, "edge-1", &[&house.acme.id]).await;
    for _ in 0..2 {
        let reply = enroll(&house, &body(&token, 1)).await.refused(400, "invalid_field");
        assert!(reply.text.contains("edge.id"), "{}", reply.text);
    }
    assert!(house.store.edge_keys().await.unwrap().is_empty());
    let until = house.now().plus_seconds(60);
    for reserved in ["soc", "control", "admin"] {
        let refused = house.store.invite_edge(reserved, &BTreeSet::from([house.acme.id.clone()]), until).await.unwrap_err();
        assert!(refused.to_string().contains(reserved), "{refused}");
    }
}

/// The next receipts that an edge is asked for, if it is asked soon.
async fn asked_for(house: &House, hearing: &mut Box<dyn Hearing>) -> Option<(String, i64, i64)> {
    let heard = timeout(Duration::from_secs(1), hearing.next()).await.ok()?.unwrap();
    let ring = KeyRing::new([house.control_key.verifying_key()]);
    let (missing, _) = verify_notice::<Missing>(&ring, &heard.payload).unwrap();
    Some((missing.lane, missing.from_seq, missing.to_seq))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_is_not_asked_again_for_what_it_says_that_it_has_pruned() {
    let house = House::build().await;
    let key = SigningKey::from_seed(&[1; 32]);
    let token = invite(&house, "edge-7", &[&house.acme.id]).await;
    enroll(&house, &body(&token, 1)).await.expect(200);
    let lane = format!("{}.edge-7.1", house.acme.id);
    let mut hearing = house.bus.hear(&subject::backfill("edge-7")).await.unwrap();
    house.control.ask(&lane, 1, 5);
    assert_eq!(asked_for(&house, &mut hearing).await, Some((lane.clone(), 1, 5)));
    let say = async |key: &SigningKey, lane: &str, through_seq: i64| {
        let pruned = Pruned { edge_id: "edge-7".to_owned(), lane: lane.to_owned(), through_seq };
        house.bus.tell(&subject::ack("edge-7"), sign_notice(key, &pruned).unwrap().into()).await.unwrap();
    };
    let of_another = format!("{}.edge-8.1", house.acme.id);
    house
        .until("it is asked for the rest alone", async || {
            // By nobody that it pins for the edge, and of a lane that is not its own; each time, since control may not have listened yet.
            say(&SigningKey::from_seed(&[3; 32]), &lane, 5).await;
            say(&house.edge_key, &lane, 5).await;
            say(&key, &of_another, 5).await;
            say(&key, &lane, 3).await;
            house.control.ask(&lane, 1, 5);
            asked_for(&house, &mut hearing).await == Some((lane.clone(), 4, 5))
        })
        .await;
    house.control.ask(&lane, 1, 3);
    house.control.ask(&lane, 7, 8);
    house
        .until("the next that it is asked for is what it has", async || {
            let asked = asked_for(&house, &mut hearing).await;
            assert_ne!(asked, Some((lane.clone(), 1, 3)));
            asked == Some((lane.clone(), 7, 8))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_told_once_an_hour_of_what_its_edge_lost_and_of_nothing_that_others_say() {
    let house = House::build().await;
    let key = SigningKey::from_seed(&[1; 32]);
    let token = invite(&house, "edge-7", &[&house.acme.id]).await;
    enroll(&house, &body(&token, 1)).await.expect(200);
    let say = async |key: &SigningKey, lane: String, seq: i64| {
        let lost = Lost { edge_id: "edge-7".to_owned(), lane, seq };
        house.bus.tell(&subject::ack("edge-7"), sign_notice(key, &lost).unwrap().into()).await.unwrap();
    };
    let lane = format!("{}.edge-7.1", house.acme.id);
    let told = async |tenant: &TenantId| {
        let events = house.events(tenant, EventKind::ConfigChanged).await;
        let read = |row: &HistoryRow| serde_json::from_str::<Value>(row.wire.text().unwrap()).unwrap();
        events.iter().map(read).filter(|event| event["reason"] == "receipts_lost").collect::<Vec<_>>()
    };
    house
        .until("it is told", async || {
            // By nobody that it pins for the edge, of another's lane, and of a tenant that it does not serve; each time, since control may not have listened yet.
            say(&SigningKey::from_seed(&[3; 32]), lane.clone(), 2).await;
            say(&house.edge_key, lane.clone(), 2).await;
            say(&key, format!("{}.edge-8.1", house.acme.id), 2).await;
            say(&key, format!("{}.edge-7.1", house.other.id), 2).await;
            say(&key, lane.clone(), 4).await;
            !told(&house.acme.id).await.is_empty()
        })
        .await;
    house.clock.advance_seconds(3600);
    house
        .until("it is told again an hour later", async || {
            say(&key, lane.clone(), 4).await;
            told(&house.acme.id).await.len() == 2
        })
        .await;
    for event in told(&house.acme.id).await {
        assert_eq!(event["resource"], json!(lane));
        assert_eq!(event["attributes"], json!({"edge_id": "edge-7", "seq": 4}).to_string());
        assert_eq!(event["receipt"]["detail"]["lane"], json!(lane));
    }
    assert!(told(&house.other.id).await.is_empty());
}
