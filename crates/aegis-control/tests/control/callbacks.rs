//! Callbacks: what became of an approval is told to a receiver over real HTTP, signed, again until it is taken, and nowhere else.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::house::{House, tool_call};
use aegis_model::EventKind;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use sha2::Sha256;

const SECRET: &str = "the callback secret of acme, 32 bytes and more";
const NEXT_SECRET: &str = "the next callback secret of acme, as long as that";

/// What came to a receiver, and what it answers next; 200 once that has run out.
#[derive(Clone, Debug, Default)]
struct Receiver {
    url: String,
    came: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    answers: Arc<Mutex<VecDeque<(StatusCode, String)>>>,
}

type Answer = (StatusCode, [(header::HeaderName, String); 1]);

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> Answer {
    receiver.came.lock().push((headers, body));
    let (status, location) = receiver.answers.lock().pop_front().unwrap_or((StatusCode::OK, String::new()));
    (status, [(header::LOCATION, location)])
}

impl Receiver {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/approvals?of=acme", listener.local_addr().unwrap());
        let receiver = Self { url, ..Self::default() };
        let router = Router::new().fallback(take).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        receiver
    }

    fn answer(&self, status: u16, location: &str) {
        self.answers.lock().push_back((StatusCode::from_u16(status).unwrap(), location.to_owned()));
    }

    fn count(&self) -> usize {
        self.came.lock().len()
    }

    fn body(&self, place: usize) -> Value {
        serde_json::from_slice(&self.came.lock()[place].1).unwrap()
    }

    /// The signatures of one callback, and those that these secrets make of what came.
    fn signatures(&self, place: usize, secrets: &[&str]) -> (Vec<String>, Vec<String>) {
        let (headers, body) = self.came.lock()[place].clone();
        let timestamp = headers["aegisagent-timestamp"].to_str().unwrap().to_owned();
        let sent = headers["aegisagent-signature"].to_str().unwrap().split(',').map(str::to_owned).collect();
        let sign = |secret: &&str| {
            let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
            let mac = mac.chain_update(&timestamp).chain_update(b".").chain_update(&body).finalize().into_bytes();
            format!("v1={}", mac.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        };
        (sent, secrets.iter().map(sign).collect())
    }
}

struct Asking {
    house: House,
    receiver: Receiver,
    token: String,
}

impl Asking {
    /// A house whose tenant `acme` lists a receiver.
    async fn new() -> Self {
        let (house, receiver) = (House::build().await, Receiver::start().await);
        house.tool(&house.acme).await;
        let (_, token) = house.agent(&house.acme, "bot").await;
        let asking = Self { house, receiver, token };
        asking.allow(&[&asking.receiver.url]).await;
        asking
    }

    async fn allow(&self, urls: &[&str]) {
        let settings = json!({"callback_allow_list": urls, "approval_ttl_s": 600});
        self.house.put("/v1/settings", &self.house.acme.admin, settings).await.expect(200);
    }

    async fn set_secret(&self, secret: &str) -> Value {
        let reply = self.house.put("/v1/callbacks/secret", &self.house.acme.admin, json!({"secret": secret})).await;
        reply.expect(200).body
    }

    /// An approval whose request named the receiver.
    async fn held(&self, version: &str) -> String {
        self.held_at(&self.token, &self.receiver.url, version).await
    }

    async fn held_at(&self, token: &str, url: &str, version: &str) -> String {
        let body = json!({
            "agent": {"id": "bot"},
            "tool_call": tool_call(json!({"version": version})),
            "context": {"source_trust": "semi_trusted_customer"},
            "callback": {"url": url},
        });
        let answer = Mutex::new(Value::Null);
        self.house
            .until("the edge knows the list", async || {
                let reply = self.house.post("/v1/authorize", token, body.clone()).await;
                *answer.lock() = reply.body;
                reply.status == StatusCode::OK
            })
            .await;
        let id = answer.lock()["approval"]["approval_id"].as_str().unwrap().to_owned();
        self.house.until("the approval is shown", async || self.callback_of(token, &id).await.is_some()).await;
        id
    }

    async fn decide(&self, id: &str, verb: &str) {
        let path = format!("/v1/approvals/{id}/{verb}");
        self.house.send("POST", &path, Some(&self.house.acme.approver), None).await.expect(200);
    }

    /// What the approval's view says of its callback; None while there is no view.
    async fn callback(&self, id: &str) -> Option<Value> {
        self.callback_of(&self.token, id).await
    }

    async fn callback_of(&self, token: &str, id: &str) -> Option<Value> {
        let reply = self.house.get(&format!("/v1/approvals/{id}"), token).await;
        (reply.status == StatusCode::OK).then(|| reply.body["callback"].clone())
    }

    async fn until_callback(&self, id: &str, status: &str, attempts: i64, last_error: Option<&str>) {
        self.house
            .until(&format!("the callback is {status} after {attempts} attempts, {last_error:?}"), async || {
                let callback = self.callback(id).await.unwrap();
                (&callback["status"], &callback["attempts"], &callback["last_error"])
                    == (&json!(status), &json!(attempts), &json!(last_error))
            })
            .await;
    }

    fn metric(&self, line: &str) -> bool {
        let (mut registry, mut text) = (Registry::default(), String::new());
        self.house.control.metrics().register(&mut registry);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.lines().any(|one| one == line)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_an_approval_is_told_and_the_signature_proves_who_tells() {
    let asking = Asking::new().await;
    assert_eq!(asking.set_secret(SECRET).await, json!({"status": "set", "previous_until": null}));
    let (approved, rejected, expired) = (asking.held("1").await, asking.held("2").await, asking.held("3").await);
    assert_eq!(asking.callback(&approved).await, Some(Value::Null), "nothing became of it yet");
    asking.decide(&approved, "approve").await;
    asking.until_callback(&approved, "delivered", 1, None).await;
    asking.decide(&rejected, "reject").await;
    asking.until_callback(&rejected, "delivered", 1, None).await;
    asking.house.clock.advance_seconds(601);
    asking.until_callback(&expired, "delivered", 1, None).await;
    // What was approved and not used has expired too: the second callback about it.
    asking
        .house
        .until("all of it was told", async || {
            asking.callback(&approved).await.unwrap()["version"] == json!(2) && asking.receiver.count() == 4
        })
        .await;
    asking.until_callback(&approved, "delivered", 1, None).await;

    let bodies: Vec<Value> = (0..4).map(|place| asking.receiver.body(place)).collect();
    let told: Vec<(&Value, &Value)> = bodies.iter().map(|body| (&body["approval_id"], &body["status"])).collect();
    assert_eq!(told[0], (&json!(approved), &json!("APPROVED")));
    assert_eq!(told[1], (&json!(rejected), &json!("REJECTED")));
    assert!(
        told[2..].contains(&(&json!(expired), &json!("EXPIRED"))) && told[2..].contains(&(&json!(approved), &json!("EXPIRED")))
    );
    let shown = asking.house.get(&format!("/v1/approvals/{approved}"), &asking.token).await.expect(200).body;
    assert_eq!((&bodies[0]["action_hash"], &bodies[0]["tenant_id"]), (&shown["action_hash"], &json!("acme")));
    assert_eq!((&bodies[0]["schema"], &bodies[0]["version"]), (&json!("aegis-callback-1"), &json!(1)));
    let keys: Vec<&String> = bodies[0].as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 9, "a callback says no more than it must: {keys:?}");
    let receipt_hash = bodies[0]["receipt_hash"].as_str().unwrap();
    asking
        .house
        .until("the receipt that was told of is there", async || {
            let decided = asking.house.events(&asking.house.acme.id, EventKind::ApprovalDecided).await;
            decided.iter().any(|row| row.receipt_hash.as_deref() == Some(receipt_hash))
        })
        .await;
    for place in 0..4 {
        let (sent, right) = asking.receiver.signatures(place, &[SECRET]);
        assert_eq!(sent, right);
        assert_ne!(sent, asking.receiver.signatures(place, &[NEXT_SECRET]).1, "a forger has another secret");
        let headers = asking.receiver.came.lock()[place].0.clone();
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(headers["host"], asking.receiver.url.split('/').nth(2).unwrap());
    }
    asking.house.until("it is counted", async || asking.metric("aegis_callbacks_total{result=\"delivered\"} 4")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_is_told_again_until_it_is_taken_and_a_redirect_is_not_followed() {
    let asking = Asking::new().await;
    asking.set_secret(SECRET).await;
    let elsewhere = Receiver::start().await;
    asking.receiver.answer(500, "");
    asking.receiver.answer(307, &elsewhere.url);
    let id = asking.held("1").await;
    asking.decide(&id, "reject").await;
    asking.until_callback(&id, "waiting", 1, Some("answered_500")).await;
    asking.house.clock.advance_seconds(2);
    asking.until_callback(&id, "waiting", 2, Some("redirected")).await;
    asking.house.clock.advance_seconds(3);
    asking.until_callback(&id, "delivered", 3, None).await;
    assert_eq!((asking.receiver.count(), elsewhere.count()), (3, 0));
    let ids: Vec<Value> = (0..3).map(|place| asking.receiver.body(place)["callback_id"].clone()).collect();
    assert_eq!((&ids[0], &ids[0]), (&ids[1], &ids[2]), "a receiver knows it again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_off_the_list_is_not_called_any_more() {
    let asking = Asking::new().await;
    asking.set_secret(SECRET).await;
    let id = asking.held("1").await;
    asking.allow(&[]).await;
    asking.decide(&id, "reject").await;
    asking.until_callback(&id, "given_up", 1, Some("not_allowed")).await;
    // On the list again, it stays given up.
    asking.allow(&[&asking.receiver.url]).await;
    asking.house.clock.advance_seconds(60);
    let next = asking.held("2").await;
    asking.decide(&next, "reject").await;
    asking.until_callback(&next, "delivered", 1, None).await;
    asking.until_callback(&id, "given_up", 1, Some("not_allowed")).await;
    assert_eq!((asking.receiver.count(), &asking.receiver.body(0)["approval_id"]), (1, &json!(next)));
    asking.house.until("it is counted", async || asking.metric("aegis_callbacks_total{result=\"given_up\"} 1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_secret_nothing_goes_out_and_after_a_day_nobody_tries() {
    let asking = Asking::new().await;
    let (waits, ends) = (asking.held("1").await, asking.held("2").await);
    asking.decide(&waits, "reject").await;
    asking.until_callback(&waits, "waiting", 1, Some("secret_missing")).await;
    assert_eq!(asking.receiver.count(), 0);
    asking.set_secret(SECRET).await;
    asking.house.clock.advance_seconds(2);
    asking.until_callback(&waits, "delivered", 2, None).await;
    assert_eq!(asking.receiver.signatures(0, &[SECRET]).0, asking.receiver.signatures(0, &[SECRET]).1);

    asking.receiver.answer(503, "");
    asking.receiver.answer(503, "");
    asking.decide(&ends, "reject").await;
    asking.until_callback(&ends, "waiting", 1, Some("answered_503")).await;
    asking.house.until("it is counted", async || asking.metric("aegis_callbacks_waiting 1")).await;
    asking.house.clock.advance_seconds(24 * 3600);
    asking.house.until("it is given up", async || asking.metric("aegis_callbacks_total{result=\"given_up\"} 1")).await;
    asking.house.until("none waits", async || asking.metric("aegis_callbacks_waiting 0")).await;
    let row = asking.house.store.approval_callback(&asking.house.acme.id, &ends).await.unwrap().unwrap();
    assert_eq!((row.state.as_str(), row.attempts, row.last_error.as_deref()), ("given_up", 2, Some("answered_503")));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_secret_is_changed_both_sign() {
    let asking = Asking::new().await;
    asking.set_secret(SECRET).await;
    assert_ne!(asking.set_secret(NEXT_SECRET).await["previous_until"], Value::Null);
    let id = asking.held("1").await;
    asking.decide(&id, "reject").await;
    asking.until_callback(&id, "delivered", 1, None).await;
    let (sent, right) = asking.receiver.signatures(0, &[NEXT_SECRET, SECRET]);
    assert_eq!(sent, right);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_answers_takes_no_turn_of_another_tenant() {
    let asking = Asking::new().await;
    asking.set_secret(SECRET).await;
    // Takes every connection and answers none.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}/", silent.local_addr().unwrap());
    let (house, other) = (&asking.house, &asking.house.other);
    asking.allow(&[&silent_url]).await;
    let mut waiting = Vec::new();
    for version in 0..6 {
        waiting.push(asking.held_at(&asking.token, &silent_url, &version.to_string()).await);
    }
    house.tool(other).await;
    let (_, token) = house.agent(other, "bot").await;
    house.put("/v1/callbacks/secret", &other.admin, json!({"secret": NEXT_SECRET})).await.expect(200);
    house.put("/v1/settings", &other.admin, json!({"callback_allow_list": [asking.receiver.url]})).await.expect(200);
    let served = asking.held_at(&token, &asking.receiver.url, "1").await;
    for id in &waiting {
        asking.decide(id, "reject").await;
    }
    house.send("POST", &format!("/v1/approvals/{served}/reject"), Some(&other.approver), None).await.expect(200);
    house
        .until("the other tenant's is delivered", async || {
            asking.callback_of(&token, &served).await.unwrap()["status"] == json!("delivered")
        })
        .await;
    for id in &waiting {
        assert_eq!(asking.callback(id).await.unwrap()["status"], json!("waiting"));
    }
    assert_eq!(asking.receiver.body(0)["tenant_id"], json!("other"));
    assert_eq!(asking.receiver.signatures(0, &[NEXT_SECRET]).0, asking.receiver.signatures(0, &[NEXT_SECRET]).1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_can_never_be_called_is_not_listed() {
    let asking = Asking::new().await;
    for url in [
        "ftp://hooks.example/",
        "https://user:hush@hooks.example/",
        "hooks.example",
        "https://hooks.example/#x",
        "https://hooks.example:0/",
    ] {
        let body = json!({"callback_allow_list": [url]});
        let reply = asking.house.put("/v1/settings", &asking.house.acme.admin, body).await.refused(400, "invalid_field");
        assert!(!reply.text.contains("hush"), "{}", reply.text);
    }
}
