//! A whole house in a temporary folder: control, an edge, the bus between them, each with its real store, ledger and keys.

#![allow(unreachable_pub)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aegis_bus::{AskForMissing, Bus, EmbeddedBus, EmbeddedLimits};
use aegis_control::{
    AppliedWatch, Control, ControlConfig, FollowedLanes, NoLocalEdge, RuleTest, RuleTrialError, RuleTrials, router,
};
use aegis_edge::{Edge, EdgeConfig, EdgeMetrics, EdgeView, FeedConfig, FeedFollower};
use aegis_keys::{KeyRing, SigningKey, TrustTokenKey};
use aegis_ledger::{Draft, Ledger, LedgerConfig};
use aegis_model::{Clock, EntryKind, EventKind, ManualClock, RuleInSet, RuleMode, SealedEvent, SystemClock, TenantId, Timestamp};
use aegis_shipper::{Shipper, ShipperConfig};
use aegis_store::{HistoryFilter, HistoryRow, NewRuleVersion, Role, Store};
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tower::ServiceExt;

/// How long a test waits for something that must happen.
const DEADLINE: Duration = Duration::from_secs(60);

/// Asks the edge's view whether an entry is enforced.
#[derive(Debug)]
struct EdgeApplied(Arc<EdgeView>);

#[async_trait::async_trait]
impl AppliedWatch for EdgeApplied {
    async fn wait_applied(&self, revision: i64, _kind: EntryKind, timeout: Duration) -> bool {
        self.0.wait_applied(revision, timeout).await
    }
}

/// Answers for detection, of texts like `OWN-1 2 log_only`. A trial with a test begins, and waits until it is let go.
#[derive(Debug, Default)]
pub struct Trials {
    pub began: tokio::sync::Notify,
    pub let_go: tokio::sync::Notify,
}

#[async_trait::async_trait]
impl RuleTrials for Trials {
    async fn read(&self, text: &str) -> Result<NewRuleVersion, RuleTrialError> {
        rule_version(text).ok_or(RuleTrialError::Refused { code: "invalid_rule", message: "it is none".into() })
    }

    async fn try_out(
        &self,
        _tenant: &TenantId,
        version: NewRuleVersion,
        tests: &[RuleTest],
    ) -> Result<NewRuleVersion, RuleTrialError> {
        if !tests.is_empty() {
            self.began.notify_one();
            self.let_go.notified().await;
        }
        Ok(NewRuleVersion { backtest: Some(json!({"events": 9, "alerts": 3, "alerts_per_day": 1.5})), ..version })
    }
}

/// Answers for detection with what it was asked, and of the edge `gone` not at all.
#[derive(Debug)]
struct Lanes;

#[async_trait::async_trait]
impl FollowedLanes for Lanes {
    async fn of(&self, tenant: &TenantId, edge_id: Option<&str>, offset: u32, limit: u32) -> Option<Value> {
        let asked = json!([{"tenant": tenant.as_str(), "edge_id": edge_id, "offset": offset, "limit": limit}]);
        (edge_id != Some("gone")).then_some(asked)
    }
}

/// For the edge in control's process, whose bus loses nothing.
#[derive(Debug)]
struct ShipsNothing;

impl AskForMissing for ShipsNothing {
    fn ask(&self, _lane: &str, _from_seq: i64, _to_seq: i64) {}
}

fn control_config(trials: &Arc<Trials>) -> ControlConfig {
    ControlConfig {
        expiry_interval: Duration::from_millis(50),
        prune_interval: Duration::from_millis(50),
        outbox_interval: Duration::from_millis(50),
        callback_interval: Duration::from_millis(50),
        callback_loopback: true,
        beat_every: Duration::from_millis(100),
        edge_silent_after: Duration::from_secs(6),
        edge_trust_key: Some(TrustTokenKey::from_bytes([9; 32])),
        rule_trials: Some(trials.clone()),
        followed_lanes: Some(Arc::new(Lanes)),
        ships_again: HashMap::from([("edge-1".to_owned(), Arc::new(ShipsNothing) as Arc<dyn AskForMissing>)]),
        ..ControlConfig::default()
    }
}

/// The version that a text like `OWN-1 2 log_only` is.
pub fn rule_version(text: &str) -> Option<NewRuleVersion> {
    let mut words = text.split(' ');
    let (id, version, mode) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse::<RuleMode>().ok()?);
    Some(NewRuleVersion {
        rule_id: id.to_owned(),
        name: id.to_lowercase(),
        version,
        mode,
        hash: aegis_canon::sha256_hex(text.as_bytes()),
        text: text.to_owned(),
        note: format!("note {version}"),
        backtest: None,
        common: None,
    })
}

/// Credentials of one tenant, one key per role, and two more approvers.
#[derive(Clone, Debug)]
pub struct Tenant {
    pub id: TenantId,
    pub admin: String,
    pub registrar: String,
    pub approver: String,
    pub approver_two: String,
    pub outsider: String,
    pub analyst: String,
    pub auditor: String,
}

impl Tenant {
    pub fn key(&self, role: Role) -> &str {
        match role {
            Role::Admin => &self.admin,
            Role::Registrar => &self.registrar,
            Role::Approver => &self.approver,
            Role::Analyst => &self.analyst,
            Role::Auditor => &self.auditor,
        }
    }
}

pub struct House {
    pub folder: tempfile::TempDir,
    pub clock: Arc<ManualClock>,
    pub store: Store,
    pub bus: Arc<EmbeddedBus>,
    pub control: Arc<Control>,
    pub control_ledger: Ledger,
    pub control_key: SigningKey,
    pub edge_key: SigningKey,
    /// Whose receipts control believes.
    pub ring: KeyRing,
    pub edge_ledger: Ledger,
    /// Pages that control's ledger may have; 0: no limit. A full disk, as SQLite sees it.
    pub ledger_pages: Arc<AtomicU32>,
    pub api: Router,
    pub acme: Tenant,
    pub other: Tenant,
    pub trials: Arc<Trials>,
    _shippers: Vec<Shipper>,
    _follower: Option<FeedFollower>,
}

/// A reply: status and JSON body.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub body: Value,
    pub text: String,
    pub headers: axum::http::HeaderMap,
}

impl Reply {
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or("")
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }

    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status.as_u16(), self.code()), (status, code), "{}", self.text);
        self
    }
}

impl House {
    pub async fn build() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(SystemClock.now()));
        let time: Arc<dyn Clock> = clock.clone();
        let store = Store::open(&folder.path().join("control.db"), time.clone()).await.unwrap();
        let bus = EmbeddedBus::open(&folder.path().join("bus.db"), EmbeddedLimits::default(), time.clone()).await.unwrap();
        let control_key = SigningKey::generate().unwrap();
        let edge_key = SigningKey::generate().unwrap();
        let ring = KeyRing::new([control_key.verifying_key(), edge_key.verifying_key()]);
        let acme = tenant(&store, "acme").await;
        let other = tenant(&store, "other").await;

        let ledger_pages = Arc::new(AtomicU32::new(0));
        let mut control_config = LedgerConfig::new(folder.path().join("control-ledger.db"), "control", "control");
        control_config.hooks.page_limit = Some(ledger_pages.clone());
        let control_ledger = Ledger::open(control_config, control_key.clone(), time.clone()).await.unwrap();
        let edge_config = LedgerConfig::new(folder.path().join("edge-ledger.db"), "edge-1", "edge");
        let edge_ledger = Ledger::open(edge_config, edge_key.clone(), time.clone()).await.unwrap();

        let view = Arc::new(EdgeView::new(KeyRing::new([control_key.verifying_key()])).unwrap());
        let dyn_bus: Arc<dyn Bus> = bus.clone();
        let trials = Arc::new(Trials::default());
        let control = Control::start(
            self::control_config(&trials),
            store.clone(),
            control_ledger.clone(),
            dyn_bus.clone(),
            control_key.clone(),
            ring.clone(),
            time.clone(),
            Arc::new(EdgeApplied(view.clone())),
        )
        .await
        .unwrap();
        let metrics = EdgeMetrics::register(&mut Registry::default());
        let follower = FeedFollower::start(dyn_bus.clone(), view.clone(), metrics.clone(), clock.clone(), FeedConfig::default())
            .await
            .unwrap();
        let tokens = TrustTokenKey::load_or_create(&folder.path().join("trust.key")).unwrap();
        let edge =
            Edge::open(EdgeConfig::new("edge-1"), view, edge_ledger.clone(), ring.clone(), tokens, time, metrics).await.unwrap();
        let shippers = vec![
            Shipper::spawn(control_ledger.clone(), dyn_bus.clone(), ShipperConfig::default()).unwrap(),
            Shipper::spawn(edge_ledger.clone(), dyn_bus, ShipperConfig::default()).unwrap(),
        ];
        let api = aegis_edge::router(edge).merge(router(control.clone()));
        Self {
            folder,
            clock,
            store,
            bus,
            control,
            control_ledger,
            control_key,
            edge_key,
            ring,
            edge_ledger,
            ledger_pages,
            api,
            acme,
            other,
            trials,
            _shippers: shippers,
            _follower: Some(follower),
        }
    }

    /// Stops control, and starts another one on what it left. The API is the old one's.
    pub async fn restart_control(&mut self) {
        self.restart_with(control_config(&self.trials)).await;
    }

    /// The same of a program that has these rules for every tenant.
    pub async fn restart_with_rules(&mut self, set: Vec<RuleInSet>) {
        self.restart_with(ControlConfig { rule_set: Some(set), ..control_config(&self.trials) }).await;
    }

    async fn restart_with(&mut self, config: ControlConfig) {
        self.control.stop().await;
        self.control = Control::start(
            config,
            self.store.clone(),
            self.control_ledger.clone(),
            self.bus.clone(),
            self.control_key.clone(),
            self.ring.clone(),
            self.clock.clone(),
            Arc::new(NoLocalEdge),
        )
        .await
        .unwrap();
    }

    pub async fn send(&self, method: &str, path: &str, token: Option<&str>, body: Option<&[u8]>) -> Reply {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Body::empty, |bytes| Body::from(bytes.to_vec()));
        self.run(request.body(body).unwrap()).await
    }

    pub async fn run(&self, request: Request<Body>) -> Reply {
        let response = self.api.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Reply { status: parts.status, body, text, headers: parts.headers }
    }

    pub async fn get(&self, path: &str, token: &str) -> Reply {
        self.send("GET", path, Some(token), None).await
    }

    pub async fn post(&self, path: &str, token: &str, body: Value) -> Reply {
        self.send("POST", path, Some(token), Some(body.to_string().as_bytes())).await
    }

    pub async fn put(&self, path: &str, token: &str, body: Value) -> Reply {
        self.send("PUT", path, Some(token), Some(body.to_string().as_bytes())).await
    }

    /// Registers an agent; returns its id and token.
    pub async fn agent(&self, tenant: &Tenant, key: &str) -> (String, String) {
        let body = json!({"agent_key": key, "name": key, "environment": "production", "risk_tier": "low"});
        let reply = self.post("/v1/agents/register", &tenant.registrar, body).await.expect(201);
        (reply.body["id"].as_str().unwrap().to_owned(), reply.body["agent_token"].as_str().unwrap().to_owned())
    }

    /// Registers the tool that the tests call.
    pub async fn tool(&self, tenant: &Tenant) {
        self.post("/v1/tools", &tenant.registrar, tool_body()).await.expect(201);
    }

    /// Asks the edge for an action that needs approval; returns its reply.
    pub async fn ask(&self, token: &str, parameters: Value) -> Value {
        let body = json!({
            "agent": {"id": "bot"},
            "user": {"id": "mallory"},
            "tool_call": tool_call(parameters),
            "context": {"source_trust": "semi_trusted_customer"},
            "trace": {"run_id": "run-1"},
        });
        self.post("/v1/authorize", token, body).await.expect(200).body
    }

    /// A held action whose approval control shows; returns the approval id and its action hash.
    pub async fn held(&self, token: &str, parameters: Value) -> (String, String) {
        let answer = self.ask(token, parameters).await;
        assert_eq!(answer["decision"], "require_approval", "{answer}");
        let id = answer["approval"]["approval_id"].as_str().unwrap().to_owned();
        let hash = answer["action_hash"].as_str().unwrap().to_owned();
        self.until("the approval is shown", async || {
            self.get(&format!("/v1/approvals/{id}"), &self.acme.approver).await.status == StatusCode::OK
        })
        .await;
        (id, hash)
    }

    /// A draft as an edge of this name and key seals it, in a ledger of its own.
    pub async fn sealed_by(&self, edge_id: &str, key: &SigningKey, draft: Draft) -> SealedEvent {
        let folder = tempfile::tempdir().unwrap();
        let config = LedgerConfig::new(folder.path().join("ledger.db"), edge_id, "edge");
        let ledger = Ledger::open(config, key.clone(), self.clock.clone()).await.unwrap();
        let id = draft.event.event_id;
        ledger.submit(draft).await.unwrap();
        let items = ledger.read_outbox(0, 10).await.unwrap();
        items.into_iter().find(|item| item.sealed.event_id == id).unwrap().sealed
    }

    /// Waits until `done`, or fails naming what did not happen.
    pub async fn until(&self, what: &str, mut done: impl AsyncFnMut() -> bool) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !done().await {
            assert!(tokio::time::Instant::now() < deadline, "it never happened that {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn events(&self, tenant: &TenantId, kind: EventKind) -> Vec<HistoryRow> {
        let filter = HistoryFilter { kinds: &[kind], ..HistoryFilter::default() };
        self.store.list_history(tenant, filter, 500, 0).await.unwrap()
    }

    /// Waits for an event of `kind` with this `reason` in the history; returns its wire form.
    pub async fn event(&self, tenant: &TenantId, kind: EventKind, reason: &str) -> Value {
        let found = parking_lot::Mutex::new(Value::Null);
        self.until(&format!("an event {kind} with reason {reason} arrives"), async || {
            for row in self.events(tenant, kind).await {
                let wire: Value = serde_json::from_str(row.wire.text().unwrap()).unwrap();
                if wire["reason"] == reason {
                    *found.lock() = wire;
                    return true;
                }
            }
            false
        })
        .await;
        found.into_inner()
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// The tenant with one key per role. `approver` and `approver_two` are of the group that is asked, `outsider` is not.
impl House {
    /// Fills control's ledger, as a full disk would, until it knows.
    pub async fn fill_control_ledger(&self) {
        let (agent, _) = self.agent(&self.acme, "filler").await;
        self.ledger_pages.store(1, Ordering::SeqCst);
        while self.control_ledger.is_writable() {
            self.post(&format!("/v1/agents/{agent}/freeze"), &self.acme.analyst, json!({"reason": "full"})).await;
        }
    }
}

/// A public key as an edge sends it.
pub fn key_text(seed: u8) -> String {
    SigningKey::from_seed(&[seed; 32]).verifying_key().to_base64()
}

async fn tenant(store: &Store, name: &str) -> Tenant {
    let id = TenantId::new(name).unwrap();
    store.create_tenant(&id, name).await.unwrap();
    let key = async |role: Role, person: &str, groups: &[&str]| {
        let groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        store.create_key(&id, role, person, &groups, None).await.unwrap().1.expose().to_owned()
    };
    Tenant {
        admin: key(Role::Admin, "ada", &[]).await,
        registrar: key(Role::Registrar, "rita", &[]).await,
        approver: key(Role::Approver, "paul", &["security"]).await,
        approver_two: key(Role::Approver, "petra", &["*"]).await,
        outsider: key(Role::Approver, "otto", &["finance"]).await,
        analyst: key(Role::Analyst, "anna", &[]).await,
        auditor: key(Role::Auditor, "udo", &[]).await,
        id,
    }
}

pub fn tool_body() -> Value {
    json!({
        "tool": "deploy", "name": "Deployments", "default_risk": "medium",
        "actions": [
            {"action": "rollout", "risk": "medium", "mutates_state": true,
             "parameters": {"type": "object", "properties": {"version": {"type": "string"}, "wave": {"type": "integer"}}}},
            {"action": "status", "risk": "low", "mutates_state": false},
            {"action": "wipe", "risk": "high", "mutates_state": true, "default_decision": "deny"},
        ],
    })
}

pub fn tool_call(parameters: Value) -> Value {
    json!({"tool": "deploy", "action": "rollout", "resource": "payments", "mutates_state": true, "parameters": parameters})
}
