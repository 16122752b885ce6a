//! The endpoint over the real bus: who is let in, what is stored, and what the sender is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, EmbeddedBus, EmbeddedLimits, Stream, StreamLimits};
use aegis_ingest::{IngestLimits, IngestState, NotRegistered, ResourceSink, SecretsUnavailable, WebhookSecrets, router};
use aegis_model::{ManualClock, ResourceRecord, SecurityEvent, SystemClock, TenantId, Timestamp, Visibility};
use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::put;
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::Sha256;
use tower::ServiceExt;

const SECRET: &[u8] = b"a secret of acme";
/// A repository that cannot be registered.
const REGISTRY_DOWN: &str = "acme/unregistrable";

#[derive(Debug)]
struct Secrets;

#[async_trait]
impl WebhookSecrets for Secrets {
    async fn secret(&self, tenant: &TenantId, adapter: &str) -> Result<Option<Vec<u8>>, SecretsUnavailable> {
        match (tenant.as_str(), adapter) {
            ("acme" | "secret", "github") => Ok(Some(SECRET.to_vec())),
            ("other", "github") => Ok(Some(b"a secret of other".to_vec())),
            ("empty", "github") => Ok(Some(Vec::new())),
            ("broken", _) => Err(SecretsUnavailable { reason: "the store is down".to_owned() }),
            _ => Ok(None),
        }
    }
}

#[derive(Debug, Default)]
struct Seen(Mutex<Vec<(String, ResourceRecord)>>);

#[async_trait]
impl ResourceSink for Seen {
    async fn observed(&self, tenant: &TenantId, record: ResourceRecord) -> Result<(), NotRegistered> {
        if record.resource == REGISTRY_DOWN {
            return Err(NotRegistered { reason: "the store is away".to_owned() });
        }
        self.0.lock().push((tenant.to_string(), record));
        Ok(())
    }
}

struct Fixture {
    bus: Arc<EmbeddedBus>,
    app: axum::Router,
    seen: Arc<Seen>,
    _folder: tempfile::TempDir,
}

async fn fixture(limits: IngestLimits, bus_limits: EmbeddedLimits) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let bus = EmbeddedBus::open(&folder.path().join("bus.db"), bus_limits, Arc::new(SystemClock)).await.unwrap();
    let seen = Arc::new(Seen::default());
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_700_000_000_000_000)));
    let state = IngestState::new(Arc::new(Secrets), bus.clone(), clock).with_limits(limits).with_resources(seen.clone());
    Fixture { bus, app: router(state), seen, _folder: folder }
}

async fn plain() -> Fixture {
    fixture(IngestLimits::default(), EmbeddedLimits::default()).await
}

fn sign(secret: &[u8], body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

/// A delivery as GitHub sends it; tests change one thing of it.
struct Post {
    tenant: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Post {
    fn new(delivery: &str, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("x-github-event", "issues".to_owned()),
            ("x-github-delivery", delivery.to_owned()),
            ("x-hub-signature-256", sign(SECRET, &body)),
        ];
        Self { tenant: "acme", headers, body }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(n, _)| *n != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(n, _)| *n != name);
        self
    }

    fn to(mut self, tenant: &'static str) -> Self {
        self.tenant = tenant;
        self
    }
}

impl Fixture {
    async fn send(&self, post: Post) -> (StatusCode, Value, Option<String>) {
        let mut request = Request::post(format!("/v1/webhooks/github/{}", post.tenant));
        for (name, value) in &post.headers {
            request = request.header(*name, value);
        }
        let response = self.app.clone().oneshot(request.body(Body::from(post.body)).unwrap()).await.unwrap();
        let status = response.status();
        let retry_after = response.headers().get("retry-after").map(|v| v.to_str().unwrap().to_owned());
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap(), retry_after)
    }

    /// Sends what must be refused, and checks that nothing was stored.
    async fn refused(&self, post: Post) -> (u16, String) {
        let before = self.bus.last_seq(Stream::Ase).await.unwrap();
        let (status, body, _) = self.send(post).await;
        assert_eq!(self.bus.last_seq(Stream::Ase).await.unwrap(), before, "{body}");
        assert!(body["error"]["message"].as_str().is_some_and(|m| !m.is_empty()));
        (status.as_u16(), body["error"]["code"].as_str().unwrap().to_owned())
    }

    async fn stored(&self) -> Vec<(String, SecurityEvent)> {
        let mut subscription = self.bus.subscribe(Stream::Ase, "ase.>", 1).await.unwrap();
        let stored = subscription.next_batch(1000, Duration::ZERO).await.unwrap();
        stored.into_iter().map(|d| (d.subject, serde_json::from_slice(&d.payload).unwrap())).collect()
    }
}

fn issue() -> Vec<u8> {
    json!({
        "action": "opened",
        "issue": {"number": 1, "title": "t", "body": "b", "author_association": "NONE"},
        "repository": {"full_name": "octo/hello", "private": false},
        "sender": {"login": "mona"}
    })
    .to_string()
    .into_bytes()
}

/// Control sets a tenant's secret at this very path, by another method.
#[tokio::test]
async fn a_tenant_whose_name_is_an_endpoint_s_receives_too() {
    let mut f = plain().await;
    f.app = axum::Router::new().route("/v1/webhooks/github/secret", put(|| async { "set" })).merge(f.app);
    let delivery = || Post::new("72d3162e-cc78-11e3-81ab-4c9367dc0958", issue()).to("secret");
    let (status, body, _) = f.send(delivery()).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let forged = delivery().with("x-hub-signature-256", &sign(b"guess", &issue()));
    assert_eq!(f.refused(forged).await.0, 401);
    let stored = f.stored().await;
    assert_eq!(stored.len(), 1);
    assert_eq!((stored[0].1.tenant_id.as_str(), stored[0].0.split('.').nth(2)), ("secret", Some("secret")));
    let set = Request::put("/v1/webhooks/github/secret").body(Body::empty()).unwrap();
    assert_eq!(f.app.oneshot(set).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_signed_delivery_is_stored_once() {
    let f = plain().await;
    let (status, body, _) = f.send(Post::new("72d3162e-cc78-11e3-81ab-4c9367dc0958", issue())).await;
    assert_eq!((status, &body["duplicate"]), (StatusCode::ACCEPTED, &json!(false)));
    let (status, again, _) = f.send(Post::new("72d3162e-cc78-11e3-81ab-4c9367dc0958", issue())).await;
    assert_eq!((status, &again["duplicate"], &again["event_id"]), (StatusCode::OK, &json!(true), &body["event_id"]));
    let stored = f.stored().await;
    assert_eq!(stored.len(), 1);
    let (subject, event) = &stored[0];
    assert!(subject.starts_with("ase.") && subject.ends_with(".acme.external_event-github_webhook"), "{subject}");
    assert_eq!(json!(event.event_id), body["event_id"]);
    assert_eq!(event.resource.as_deref(), Some("octo/hello#1"));
    let seen = f.seen.0.lock();
    assert_eq!(seen.len(), 2, "a redelivery is told again, so that a stop before the first telling loses nothing");
    assert_eq!(
        (seen[0].0.as_str(), seen[0].1.resource.as_str(), seen[0].1.visibility),
        ("acme", "octo/hello", Visibility::Public)
    );
}

#[tokio::test]
async fn whoever_cannot_sign_gets_one_and_the_same_answer() {
    let f = plain().await;
    let by_other = sign(b"a secret of other", &issue());
    let posts = vec![
        Post::new("d", issue()).without("x-hub-signature-256"),
        Post::new("d", issue()).with("x-hub-signature-256", "sha256=00"),
        Post::new("d", issue()).with("x-hub-signature-256", &sign(b"guess", &issue())),
        Post::new("d", issue()).with("x-hub-signature-256", &by_other),
        Post::new("d", issue()).with("x-hub-signature-256", &sign(SECRET, b"{}")),
        Post::new("d", issue()).to("other"),
        Post::new("d", issue()).to("nobody"),
        Post::new("d", issue()).to("Not-A-Tenant"),
        Post::new("d", issue()).to("%ff"),
        Post::new("d", issue()).to("%00"),
        Post::new("d", issue()).to("empty").with("x-hub-signature-256", &sign(b"", &issue())),
        // What else is wrong does not show before the signature is right.
        Post::new("d", issue()).to("nobody").without("x-github-delivery").with("content-type", "text/plain"),
    ];
    let mut answers = Vec::new();
    for post in posts {
        answers.push(f.send(post).await);
    }
    assert!(answers.iter().all(|a| *a == answers[0]), "{answers:?}");
    assert_eq!(answers[0].0, StatusCode::UNAUTHORIZED);
    assert!(f.stored().await.is_empty());
    let mut twice = Post::new("d", issue());
    twice.headers.push(("x-hub-signature-256", by_other));
    assert_eq!(f.refused(twice).await.0, 401, "two signatures are none");
}

#[tokio::test]
async fn bad_input_gets_a_clear_answer_and_changes_nothing() {
    let f = plain().await;
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
    for (post, status, code) in [
        (Post::new("d", issue()).without("x-github-delivery"), 400, "bad_delivery_id"),
        (Post::new("", issue()), 400, "bad_delivery_id"),
        (Post::new("d d", issue()), 400, "bad_delivery_id"),
        (Post::new(&"d".repeat(129), issue()), 400, "bad_delivery_id"),
        (Post::new("d", issue()).without("x-github-event"), 400, "bad_event_name"),
        (Post::new("d", issue()).with("x-github-event", "issues.>"), 400, "bad_event_name"),
        (Post::new("d", issue()).without("content-type"), 415, "unsupported_content_type"),
        (Post::new("d", issue()).with("content-type", "text/plain"), 415, "unsupported_content_type"),
        (Post::new("d", ""), 400, "malformed_payload"),
        (Post::new("d", "{"), 400, "malformed_payload"),
        (Post::new("d", "[]"), 400, "malformed_payload"),
        (Post::new("d", "\"x\""), 400, "malformed_payload"),
        (Post::new("d", vec![0xff, 0xfe]), 400, "malformed_payload"),
        (Post::new("d", deep), 400, "malformed_payload"),
        (Post::new("d", "a=b").with("content-type", "application/x-www-form-urlencoded"), 400, "malformed_payload"),
    ] {
        let shown = format!("{:?}", post.headers);
        assert_eq!(f.refused(post).await, (status, code.to_owned()), "{shown}");
    }
    assert_eq!(f.refused(Post::new("d", issue()).to("broken")).await, (503, "unavailable".to_owned()));
}

#[tokio::test]
async fn both_forms_that_github_offers_are_understood() {
    let f = plain().await;
    let form: String =
        form_urlencoded::Serializer::new(String::new()).append_pair("payload", str::from_utf8(&issue()).unwrap()).finish();
    let post = Post::new("form", form).with("content-type", "application/x-www-form-urlencoded");
    assert_eq!(f.send(post).await.0, StatusCode::ACCEPTED);
    assert_eq!(
        f.send(Post::new("json", issue()).with("content-type", "application/json; charset=utf-8")).await.0,
        StatusCode::ACCEPTED
    );
    let stored = f.stored().await;
    assert_eq!(stored[0].1.resource, stored[1].1.resource);
}

#[tokio::test]
async fn an_event_of_tomorrow_is_kept() {
    let f = plain().await;
    let post = Post::new("d", "{\"hello\":1}").with("x-github-event", "an_event_of_tomorrow");
    assert_eq!(f.send(post).await.0, StatusCode::ACCEPTED);
    let (_, event) = f.stored().await.remove(0);
    assert_eq!((event.action.as_deref(), event.resource), (Some("an_event_of_tomorrow"), None));
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_announced_or_not() {
    let f = fixture(IngestLimits { max_body_bytes: 1000, ..IngestLimits::default() }, EmbeddedLimits::default()).await;
    let body = format!("{{\"a\":\"{}\"}}", "x".repeat(1000));
    assert_eq!(f.refused(Post::new("d", body.clone())).await, (413, "body_too_large".to_owned()));
    assert_eq!(
        f.refused(Post::new("d", body.clone()).with("content-length", "5000000000")).await,
        (413, "body_too_large".to_owned())
    );
    // Without a length: in pieces.
    let pieces = futures_pieces(body.into_bytes());
    let request = Request::post("/v1/webhooks/github/acme").header("content-type", "application/json").body(pieces).unwrap();
    assert_eq!(f.app.clone().oneshot(request).await.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);
}

fn futures_pieces(body: Vec<u8>) -> Body {
    let pieces: Vec<Result<Vec<u8>, std::io::Error>> = body.chunks(100).map(|c| Ok(c.to_vec())).collect();
    Body::from_stream(futures_util::stream::iter(pieces))
}

#[tokio::test]
async fn a_full_log_asks_the_sender_to_come_again() {
    let bus_limits = EmbeddedLimits::default().with_stream(Stream::Ase, StreamLimits { max_messages: 1, max_bytes: 1 << 20 });
    let f = fixture(IngestLimits::default(), bus_limits).await;
    assert_eq!(f.send(Post::new("d-1", issue())).await.0, StatusCode::ACCEPTED);
    let (status, body, retry_after) = f.send(Post::new("d-2", issue())).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some("unavailable")));
    assert!(retry_after.is_some());
    assert_eq!(f.seen.0.lock().len(), 1, "what was not stored is not told");
    assert_eq!(f.send(Post::new("d-1", issue())).await.0, StatusCode::OK, "a duplicate needs no room");
}

#[tokio::test]
async fn a_tenant_s_rate_is_bounded_and_a_stranger_cannot_use_it_up() {
    let f = fixture(IngestLimits { rate_per_s: 1, ..IngestLimits::default() }, EmbeddedLimits::default()).await;
    for _ in 0..20 {
        assert_eq!(f.refused(Post::new("d", issue()).with("x-hub-signature-256", "sha256=00")).await.0, 401);
    }
    let mut statuses = Vec::new();
    for i in 0..10 {
        statuses.push(f.send(Post::new(&format!("d-{i}"), issue())).await.0);
    }
    assert_eq!(statuses[..2], [StatusCode::ACCEPTED; 2], "the burst");
    assert_eq!(statuses[2..], [StatusCode::TOO_MANY_REQUESTS; 8], "the clock stands still");
}

#[tokio::test]
async fn a_delivery_twice_at_once_is_stored_once() {
    let f = plain().await;
    let answers = futures_util::future::join_all((0..8).map(|_| f.send(Post::new("same", issue())))).await;
    assert_eq!(answers.iter().filter(|a| a.0 == StatusCode::ACCEPTED).count(), 1);
    assert_eq!(answers.iter().filter(|a| a.0 == StatusCode::OK).count(), 7);
    assert_eq!(f.stored().await.len(), 1);
}

#[tokio::test]
async fn a_delivery_whose_repository_cannot_be_registered_is_stored_and_asked_for_again() {
    let fixture = plain().await;
    let body = json!({"action": "opened", "repository": {"full_name": REGISTRY_DOWN, "private": true}}).to_string();
    for stored in [1, 1] {
        let (status, reply, retry_after) = fixture.send(Post::new("d-unregistrable", body.clone())).await;
        assert_eq!((status, reply["error"]["code"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some("unavailable")));
        assert!(retry_after.is_some());
        assert_eq!(fixture.bus.last_seq(Stream::Ase).await.unwrap(), stored);
    }
}

#[tokio::test]
async fn the_source_s_own_time_goes_with_what_it_said() {
    let fixture = plain().await;
    for (delivery, updated_at, expected) in [
        ("d-1", json!("2026-11-22T10:00:00Z"), Some("2026-11-22T10:00:00Z")),
        ("d-2", json!(1_795_341_600), Some("2026-11-22T10:00:00Z")),
        ("d-3", json!("yesterday"), None),
    ] {
        let body = json!({"repository": {"full_name": "acme/shop", "private": true, "updated_at": updated_at}}).to_string();
        fixture.send(Post::new(delivery, body)).await;
        let seen = fixture.seen.0.lock().pop().unwrap().1;
        assert_eq!(seen.observed_at, expected.map(|time| Timestamp::parse_rfc3339(time).unwrap()), "{delivery}");
    }
}
