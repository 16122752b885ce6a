//! An edge with a real ledger and real packs, and the entries that control signs for it.

pub(crate) use std::sync::Arc;

pub(crate) use aegis_bus::{EmbeddedBus, EmbeddedLimits};
pub(crate) use aegis_edge::{Alarm, Edge, EdgeConfig, EdgeMetrics, EdgeView, RefusedEntry};
pub(crate) use aegis_keys::{AgentClaims, KeyRing, SigningKey, TrustTokenKey, mint_agent_token, sign_entry};
pub(crate) use aegis_ledger::{Ledger, LedgerConfig};
pub(crate) use aegis_model::{
    Clock, ContainmentKind, ContainmentState, EntryKind, EventKind, Hold, ManualClock, RiskLevel, SourceTrust, TargetType,
    TenantId, TenantSettings, Timestamp,
};
pub(crate) use axum::body::Body;
pub(crate) use axum::http::Request;
pub(crate) use bytes::Bytes;
pub(crate) use http_body_util::BodyExt;
pub(crate) use prometheus_client::registry::Registry;
pub(crate) use serde_json::{Value, json};
pub(crate) use tower::ServiceExt;

pub(crate) const START: i64 = 1_800_000_000_000_000;

pub(crate) struct House {
    pub(crate) edge: Arc<Edge>,
    pub(crate) router: axum::Router,
    pub(crate) view: Arc<EdgeView>,
    pub(crate) ledger: Ledger,
    pub(crate) control: SigningKey,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) tenant: TenantId,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) revision: std::cell::Cell<i64>,
}

impl House {
    pub(crate) async fn new() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), START).await
    }

    pub(crate) async fn in_folder(folder: tempfile::TempDir, start: i64) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_micros(start)));
        let control = SigningKey::from_seed(&[1; 32]);
        let ring = KeyRing::new([control.verifying_key()]);
        let config = LedgerConfig::new(folder.path().join("ledger.db"), "edge-1", "edge");
        let ledger = Ledger::open(config, SigningKey::from_seed(&[2; 32]), clock.clone()).await.unwrap();
        let view = Arc::new(EdgeView::new(ring.clone()).unwrap());
        let metrics = EdgeMetrics::register(&mut Registry::default());
        let trust = TrustTokenKey::from_bytes([3; 32]);
        let tenant = TenantId::new("acme").unwrap();
        let edge = Edge::open(EdgeConfig::new("edge-1"), view.clone(), ledger.clone(), ring, trust, clock.clone(), metrics)
            .await
            .unwrap();
        let router = aegis_edge::router(edge.clone());
        let house = Self { edge, router, view, ledger, control, clock, tenant, folder, revision: 0.into() };
        house.put(EntryKind::Tool, "github", &serde_json::to_value(aegis_policy::github_tool()).unwrap());
        let action = |name: &str, risk: &str, mutates: bool, approval: bool, default: &str| json!({"action": name, "risk": risk, "mutates_state": mutates, "approval_required": approval, "default_decision": default});
        let actions = [
            action("read_note", "low", false, false, "policy"),
            action("update_note", "medium", true, false, "policy"),
            action("refund", "medium", true, true, "policy"),
            action("erase", "critical", true, false, "policy"),
            action("forbidden", "low", false, false, "deny"),
        ];
        house.put(EntryKind::Tool, "crm", &json!({"tool": "crm", "name": "CRM", "actions": actions}));
        house
    }

    /// Stops the ledger cleanly and starts again on the same folder.
    pub(crate) async fn restarted(self) -> Self {
        self.ledger.close().await.unwrap();
        let now = self.clock.now().as_micros();
        let Self { edge, router, view, ledger, folder, .. } = self;
        drop((edge, router, view, ledger));
        Self::in_folder(folder, now).await
    }

    pub(crate) fn put(&self, kind: EntryKind, name: &str, body: &Value) {
        self.revision.set(self.revision.get() + 1);
        let entry =
            sign_entry(&self.control, &self.tenant, kind, name, self.revision.get(), self.clock.now(), Some(body.clone()));
        self.view.apply(&entry.unwrap()).unwrap();
    }

    pub(crate) fn contain(&self, target_type: TargetType, target: &str, holds: Vec<Hold>, revoked: bool) {
        let revision = self.revision.get() + 1;
        let state = ContainmentState {
            tenant_id: self.tenant.clone(),
            target_type,
            target_id: target.to_owned(),
            holds,
            revoked,
            revision,
            issued_at: self.clock.now(),
        };
        self.put(EntryKind::Containment, &format!("{target_type}/{target}"), &serde_json::to_value(state).unwrap());
    }

    pub(crate) fn token(&self, agent: &str, ceiling: SourceTrust) -> String {
        let claims = AgentClaims {
            token_id: format!("token-{agent}"),
            tenant_id: self.tenant.clone(),
            agent_id: agent.to_owned(),
            agent_key: agent.to_owned(),
            environment: "production".to_owned(),
            owner_team: None,
            risk_tier: RiskLevel::Low,
            trust_ceiling: ceiling,
            issued_by: "key-1".to_owned(),
            issued_at: self.clock.now(),
            expires_at: self.clock.now().plus_seconds(86_400 * 30),
        };
        mint_agent_token(&self.control, &claims).unwrap()
    }

    pub(crate) async fn send(&self, token: &str, body: impl Into<Body>) -> (u16, Value) {
        let request = Request::post("/v1/authorize")
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json");
        let response = self.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// A call of agent `a` that must be answered 200.
    pub(crate) async fn ask(&self, change: impl FnOnce(&mut Value)) -> Value {
        let mut body = call("crm", "update_note", true, "trusted_internal_unsigned");
        change(&mut body);
        let (status, answer) = self.send(&self.token("a", SourceTrust::TrustedInternalSigned), body.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    pub(crate) async fn kinds(&self) -> Vec<EventKind> {
        let items = self.ledger.recent(Timestamp::from_micros(0), &[], 0, 1000).await.unwrap();
        items.iter().map(|item| item.sealed.kind).collect()
    }
}

/// What control puts into the bucket `containment` where it freezes the agent `a`.
pub(crate) fn frozen(house: &House, revision: i64) -> Bytes {
    let (now, tenant_id) = (house.clock.now(), house.tenant.clone());
    let state = ContainmentState {
        tenant_id,
        target_type: TargetType::Agent,
        target_id: "a".into(),
        holds: vec![hold(ContainmentKind::Freeze, None)],
        revoked: false,
        revision,
        issued_at: now,
    };
    let body = Some(serde_json::to_value(&state).unwrap());
    let entry = sign_entry(&house.control, &house.tenant, EntryKind::Containment, "agent/a", revision, now, body).unwrap();
    serde_json::to_vec(&entry).unwrap().into()
}

/// A bus in the house's folder.
pub(crate) async fn bus_of(house: &House) -> Arc<EmbeddedBus> {
    EmbeddedBus::open(&house.folder.path().join("bus.db"), EmbeddedLimits::default(), house.clock.clone()).await.unwrap()
}

pub(crate) fn call(tool: &str, action: &str, mutates: bool, trust: &str) -> Value {
    json!({
        "agent": {"id": "whoever"},
        "tool_call": {"tool": tool, "action": action, "resource": "r-1", "mutates_state": mutates, "parameters": {"note": "n"}},
        "context": {"source_trust": trust},
        "trace": {"run_id": "run-1"}
    })
}

pub(crate) fn hold(kind: ContainmentKind, until: Option<Timestamp>) -> Hold {
    Hold { hold_id: "h".into(), kind, reason: "r".into(), by: "ada".into(), since: Timestamp::from_micros(0), until }
}

pub(crate) fn decided(answer: &Value) -> (&str, &str) {
    (answer["decision"].as_str().unwrap(), answer["reason"].as_str().unwrap())
}
