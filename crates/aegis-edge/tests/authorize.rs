//! The action path over its HTTP surface, with a real ledger, real Cedar packs and entries as control signs them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use aegis_edge::{Edge, EdgeConfig, EdgeMetrics, EdgeView, RefusedEntry};
use aegis_keys::{AgentClaims, KeyRing, SigningKey, TrustTokenKey, mint_agent_token, sign_entry};
use aegis_ledger::{Ledger, LedgerConfig};
use aegis_model::{
    Clock, ContainmentKind, ContainmentState, EntryKind, EventKind, Hold, ManualClock, RiskLevel, SourceTrust, TargetType,
    TenantId, TenantSettings, Timestamp,
};
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tower::ServiceExt;

const START: i64 = 1_800_000_000_000_000;

struct House {
    router: axum::Router,
    view: Arc<EdgeView>,
    ledger: Ledger,
    control: SigningKey,
    clock: Arc<ManualClock>,
    tenant: TenantId,
    folder: tempfile::TempDir,
    revision: std::cell::Cell<i64>,
}

impl House {
    async fn new() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), START).await
    }

    async fn in_folder(folder: tempfile::TempDir, start: i64) -> Self {
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
        let house = Self { router: aegis_edge::router(edge), view, ledger, control, clock, tenant, folder, revision: 0.into() };
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
    async fn restarted(self) -> Self {
        self.ledger.close().await.unwrap();
        let now = self.clock.now().as_micros();
        let Self { router, view, ledger, folder, .. } = self;
        drop((router, view, ledger));
        Self::in_folder(folder, now).await
    }

    fn put(&self, kind: EntryKind, name: &str, body: &Value) {
        self.revision.set(self.revision.get() + 1);
        let entry =
            sign_entry(&self.control, &self.tenant, kind, name, self.revision.get(), self.clock.now(), Some(body.clone()));
        self.view.apply(&entry.unwrap()).unwrap();
    }

    fn contain(&self, target_type: TargetType, target: &str, holds: Vec<Hold>, revoked: bool) {
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

    fn token(&self, agent: &str, ceiling: SourceTrust) -> String {
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

    async fn send(&self, token: &str, body: impl Into<Body>) -> (u16, Value) {
        let request = Request::post("/v1/authorize")
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json");
        let response = self.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// A call of agent `a` that must be answered 200.
    async fn ask(&self, change: impl FnOnce(&mut Value)) -> Value {
        let mut body = call("crm", "update_note", true, "trusted_internal_unsigned");
        change(&mut body);
        let (status, answer) = self.send(&self.token("a", SourceTrust::TrustedInternalSigned), body.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    async fn kinds(&self) -> Vec<EventKind> {
        let items = self.ledger.recent(Timestamp::from_micros(0), &[], 0, 1000).await.unwrap();
        items.iter().map(|item| item.sealed.kind).collect()
    }
}

fn call(tool: &str, action: &str, mutates: bool, trust: &str) -> Value {
    json!({
        "agent": {"id": "whoever"},
        "tool_call": {"tool": tool, "action": action, "resource": "r-1", "mutates_state": mutates, "parameters": {"note": "n"}},
        "context": {"source_trust": trust},
        "trace": {"run_id": "run-1"}
    })
}

fn hold(kind: ContainmentKind, until: Option<Timestamp>) -> Hold {
    Hold { hold_id: "h".into(), kind, reason: "r".into(), by: "ada".into(), since: Timestamp::from_micros(0), until }
}

fn decided(answer: &Value) -> (&str, &str) {
    (answer["decision"].as_str().unwrap(), answer["reason"].as_str().unwrap())
}

#[tokio::test]
async fn an_answer_that_matters_carries_a_durable_receipt() {
    let house = House::new().await;
    let answer = house.ask(|_| ()).await;
    assert_eq!(answer["decision"], "allow");
    let hash = answer["receipt"]["receipt_hash"].as_str().unwrap();
    let event_id = answer["decision_id"].as_str().unwrap().parse().unwrap();
    let sealed = house.ledger.receipt(&house.tenant, event_id).await.unwrap().unwrap();
    assert_eq!(sealed.receipt_hash, hash);
    let wire: Value = serde_json::from_str(&sealed.wire).unwrap();
    assert_eq!(wire["action_hash"], answer["action_hash"]);
    assert!(!sealed.wire.contains("\"note\""), "no raw parameter in an event: {}", sealed.wire);
    let read = house
        .ask(|b| b["tool_call"] = json!({"tool": "crm", "action": "read_note", "mutates_state": false, "parameters": {}}))
        .await;
    assert_eq!((read["decision"].as_str(), read["receipt"]["receipt_hash"].is_null()), (Some("allow"), true));
}

#[tokio::test]
async fn the_action_hash_is_over_what_the_caller_sent() {
    let house = House::new().await;
    let answer = house.ask(|b| b["tool_call"]["parameters"] = json!({"a": 1.0, "é": "x"})).await;
    let expected = aegis_canon::action_hash("crm", "update_note", Some("r-1"), true, &json!({"é": "x", "a": 1})).unwrap();
    assert_eq!(answer["action_hash"], json!(expected));
}

#[tokio::test]
async fn a_caller_may_only_tighten_what_is_registered() {
    let house = House::new().await;
    let lied = house
        .ask(|b| {
            b["tool_call"]["mutates_state"] = json!(false);
            b["context"]["source_trust"] = json!("untrusted_external");
        })
        .await;
    assert_eq!(lied["decision"], "deny");
    let tightened = house
        .ask(|b| {
            b["tool_call"] = json!({"tool": "crm", "action": "read_note", "mutates_state": true, "parameters": {}});
            b["context"]["source_trust"] = json!("untrusted_external");
        })
        .await;
    assert_eq!(tightened["decision"], "deny");
}

#[tokio::test]
async fn unknown_is_deny() {
    let house = House::new().await;
    for (tool, action) in [("crm", "nope"), ("nope", "read_note"), ("mcp:nope", "x")] {
        let answer = house
            .ask(|b| {
                b["tool_call"]["tool"] = json!(tool);
                b["tool_call"]["action"] = json!(action);
            })
            .await;
        assert_eq!(decided(&answer), ("deny", "unknown_action"), "{tool}/{action}");
    }
}

#[tokio::test]
async fn overrides_only_tighten() {
    let house = House::new().await;
    let with_action = async |action: &str, trust: &str| {
        house
            .ask(|b| {
                b["tool_call"]["action"] = json!(action);
                b["context"]["source_trust"] = json!(trust);
                b["trace"]["run_id"] = json!(format!("{action}-{trust}"));
            })
            .await
    };
    assert_eq!(with_action("refund", "trusted_internal_unsigned").await["decision"], "require_approval");
    assert_eq!(with_action("erase", "trusted_internal_unsigned").await["decision"], "require_approval");
    assert_eq!(with_action("refund", "untrusted_external").await["decision"], "deny");
    assert_eq!(decided(&with_action("forbidden", "trusted_internal_unsigned").await), ("deny", "registered_deny"));
    let settings = TenantSettings { force_approval_agents: vec!["a".into()], ..TenantSettings::default() };
    house.put(EntryKind::Settings, "settings", &serde_json::to_value(settings).unwrap());
    assert_eq!(decided(&with_action("update_note", "trusted_internal_unsigned").await), ("require_approval", "force_approval"));
}

#[tokio::test]
async fn a_run_s_label_only_tightens_and_survives_a_restart() {
    let house = House::new().await;
    assert_eq!(house.ask(|_| ()).await["decision"], "allow");
    let tainted = house.ask(|b| b["context"]["source_trust"] = json!("untrusted_external")).await;
    assert_eq!(tainted["decision"], "deny");
    assert_eq!(house.ask(|_| ()).await["decision"], "deny");
    let house = house.restarted().await;
    let after = house.ask(|_| ()).await;
    assert_eq!((after["decision"].as_str(), after["root_trust_level"].as_str()), (Some("deny"), Some("untrusted_external")));
    // Another edge knows nothing of the run, but the token that the SDK echoes does.
    let elsewhere = House::new().await;
    let token = after["trust_token"].clone();
    assert_eq!(elsewhere.ask(|b| b["trace"]["trust_token"] = token).await["decision"], "deny");
    // A child inherits its parent's label.
    let child = house.ask(|b| b["trace"] = json!({"run_id": "child", "parent_run_id": "run-1"})).await;
    assert_eq!(child["decision"], "deny");
    house.clock.advance_seconds(24 * 3600 + 1);
    assert_eq!(house.ask(|_| ()).await["decision"], "allow");
}

#[tokio::test]
async fn calls_without_a_run_share_their_agent_s() {
    let house = House::new().await;
    house
        .ask(|b| {
            b["trace"] = Value::Null;
            b["context"]["source_trust"] = json!("malicious_suspected");
        })
        .await;
    assert_eq!(house.ask(|b| b["trace"] = Value::Null).await["decision"], "deny");
    assert_eq!(house.ask(|_| ()).await["decision"], "allow", "a named run is another one");
}

#[tokio::test]
async fn no_caller_claims_more_than_channel_token_and_signature_allow() {
    let house = House::new().await;
    house.put(EntryKind::Channel, "issues", &json!({"channel": "issues", "source_trust": "untrusted_external"}));
    let channel = house
        .ask(|b| {
            b["context"]["channel"] = json!("issues");
            b["trace"]["run_id"] = json!("c1");
        })
        .await;
    assert_eq!(channel["decision"], "deny");
    let unregistered = house
        .ask(|b| {
            b["context"]["channel"] = json!("elsewhere");
            b["trace"]["run_id"] = json!("c2");
        })
        .await;
    assert_eq!(unregistered["decision"], "require_approval");
    let signed = house
        .ask(|b| {
            b["context"]["source_trust"] = json!("trusted_internal_signed");
            b["trace"]["run_id"] = json!("c3");
        })
        .await;
    assert_eq!(signed["root_trust_level"], "trusted_internal_unsigned");
    let capped = house.token("b", SourceTrust::SemiTrustedCustomer);
    let (_, answer) = house.send(&capped, call("crm", "update_note", true, "trusted_internal_unsigned").to_string()).await;
    assert_eq!(answer["decision"], "require_approval");

    let source = SigningKey::from_seed(&[9; 32]);
    let record =
        json!({"channel": "jobs", "source_trust": "trusted_internal_signed", "public_key": source.verifying_key().to_base64()});
    house.put(EntryKind::Channel, "jobs", &record);
    let statement =
        aegis_canon::canonicalize_value(&json!({"run_id": "c4", "source": "jobs", "source_trust": "trusted_internal_signed"}))
            .unwrap();
    let signature = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(source.sign(&statement))
    };
    let context = json!({"source_trust": "trusted_internal_signed", "channel": "jobs", "source_signature": signature});
    let proven = house
        .ask(|b| {
            b["context"] = context.clone();
            b["trace"]["run_id"] = json!("c4");
        })
        .await;
    assert_eq!(proven["root_trust_level"], "trusted_internal_signed");
    let replayed = house
        .ask(|b| {
            b["context"] = context;
            b["trace"]["run_id"] = json!("c5");
        })
        .await;
    assert_eq!(replayed["root_trust_level"], "trusted_internal_unsigned", "a signature is for one run");
}

#[tokio::test]
async fn a_frozen_agent_never_gets_an_old_allow() {
    let house = House::new().await;
    let body = |b: &mut Value| b["request_id"] = json!("r1");
    assert_eq!(house.ask(body).await["decision"], "allow");
    let until = house.clock.now().plus_seconds(60);
    house.contain(
        TargetType::Agent,
        "a",
        vec![hold(ContainmentKind::Freeze, Some(until)), hold(ContainmentKind::Quarantine, None)],
        false,
    );
    assert_eq!(decided(&house.ask(body).await), ("deny", "agent_frozen"));
    house.clock.advance_seconds(60);
    assert_eq!(decided(&house.ask(|b| b["request_id"] = json!("r2")).await), ("deny", "agent_quarantined"));
    house.contain(TargetType::Agent, "a", vec![], true);
    assert_eq!(decided(&house.ask(|_| ()).await), ("deny", "agent_revoked"));
    let (_, other) = house
        .send(
            &house.token("b", SourceTrust::TrustedInternalSigned),
            call("crm", "update_note", true, "trusted_internal_unsigned").to_string(),
        )
        .await;
    assert_eq!(other["decision"], "allow", "another agent is not touched");
}

#[tokio::test]
async fn an_edge_believes_only_control_and_never_an_older_revision() {
    let house = House::new().await;
    house.contain(TargetType::Agent, "a", vec![hold(ContainmentKind::Freeze, None)], false);
    let state = |revision| ContainmentState {
        tenant_id: house.tenant.clone(),
        target_type: TargetType::Agent,
        target_id: "a".into(),
        holds: vec![],
        revoked: false,
        revision,
        issued_at: house.clock.now(),
    };
    let entry = |key: &SigningKey, name: &str, revision: i64, of: i64| {
        sign_entry(
            key,
            &house.tenant,
            EntryKind::Containment,
            name,
            revision,
            house.clock.now(),
            Some(serde_json::to_value(state(of)).unwrap()),
        )
        .unwrap()
    };
    let forged = entry(&SigningKey::from_seed(&[66; 32]), "agent/a", 99, 99);
    assert!(matches!(house.view.apply(&forged), Err(RefusedEntry::Signature(_))));
    let older = entry(&house.control, "agent/a", 1, 1);
    assert!(matches!(house.view.apply(&older), Err(RefusedEntry::Older { .. })));
    let renamed = entry(&house.control, "agent/other-name", 2, 2);
    assert!(
        matches!(house.view.apply(&renamed), Err(RefusedEntry::Older { .. })),
        "a name that lies about its target releases nobody"
    );
    let mismatched = entry(&house.control, "agent/a", 99, 98);
    assert!(matches!(house.view.apply(&mismatched), Err(RefusedEntry::Body { .. })));
    assert_eq!(decided(&house.ask(|_| ()).await), ("deny", "agent_frozen"));
}

#[tokio::test]
async fn a_bad_policy_entry_leaves_the_running_bundle() {
    let house = House::new().await;
    let bad = json!({"policies": "permit(principal, action, resource) when { context.nonsense };"});
    let entry =
        sign_entry(&house.control, &house.tenant, EntryKind::Policies, "policies", 500, house.clock.now(), Some(bad)).unwrap();
    assert!(matches!(house.view.apply(&entry), Err(RefusedEntry::Policies(_))));
    assert_eq!(house.ask(|_| ()).await["decision"], "allow");
    house.put(EntryKind::Tool, "late", &json!({"tool": "late", "name": "Late", "actions": []}));
}

#[tokio::test]
async fn the_same_request_is_one_request_and_another_under_its_id_is_refused() {
    let house = House::new().await;
    let token = house.token("a", SourceTrust::TrustedInternalSigned);
    let mut refund = call("crm", "refund", true, "trusted_internal_unsigned");
    refund["request_id"] = json!("req-1");
    refund["nonce"] = json!("n-1");
    let (_, first) = house.send(&token, refund.to_string()).await;
    let (_, again) = house.send(&token, refund.to_string()).await;
    assert_eq!(first["approval"]["approval_id"], again["approval"]["approval_id"]);
    let house = house.restarted().await;
    let (_, restarted) = house.send(&token, refund.to_string()).await;
    assert_eq!(first["approval"]["approval_id"], restarted["approval"]["approval_id"], "{restarted}");
    let mut other = refund.clone();
    other["tool_call"]["parameters"] = json!({"amount": 9});
    let (status, answer) = house.send(&token, other.to_string()).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (409, Some("idempotency_payload_mismatch")));
    other["request_id"] = json!("req-2");
    let (status, answer) = house.send(&token, other.to_string()).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (409, Some("replay_nonce_reused")));
    other["nonce"] = json!("n-2");
    other["timestamp"] = json!(house.clock.now().plus_seconds(-301).to_rfc3339());
    let (status, answer) = house.send(&token, other.to_string()).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (409, Some("replay_timestamp_expired")));
    house.ledger.close().await.unwrap();
    assert_eq!(house.kinds().await.iter().filter(|kind| **kind == EventKind::ReplayAttempt).count(), 3);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let house = House::new().await;
    let before = house
        .ask(|b| {
            b["dry_run"] = json!(true);
            b["context"]["source_trust"] = json!("untrusted_external");
            b["nonce"] = json!("n");
            b["request_id"] = json!("q");
        })
        .await;
    assert_eq!((before["decision"].as_str(), before["receipt"]["receipt_hash"].is_null()), (Some("deny"), true));
    assert_eq!(
        house
            .ask(|b| {
                b["nonce"] = json!("n");
                b["request_id"] = json!("q");
            })
            .await["decision"],
        "allow"
    );
    house.ledger.close().await.unwrap();
    let decisions = house.kinds().await.iter().filter(|kind| **kind == EventKind::AuthorizeDecision).count();
    assert_eq!(decisions, 1);
}

#[tokio::test]
async fn mcp_gates_stand_before_policy() {
    let house = House::new().await;
    let server = |drifted: bool| json!({"key": "files", "name": "Files", "tools": [{"name": "write", "manifest_hash": "00"}], "drifted": drifted});
    house.put(EntryKind::McpServer, "files", &server(false));
    let ask = async |action: &str| {
        house
            .ask(|b| {
                b["tool_call"]["tool"] = json!("mcp:files");
                b["tool_call"]["action"] = json!(action);
            })
            .await
    };
    assert_eq!(ask("write").await["decision"], "allow");
    assert_eq!(decided(&ask("other").await), ("deny", "mcp_unknown_tool"));
    house.put(EntryKind::McpServer, "files", &server(true));
    assert_eq!(decided(&ask("write").await), ("deny", "mcp_manifest_drift"));
    house.contain(TargetType::McpServer, "files", vec![hold(ContainmentKind::Quarantine, None)], false);
    assert_eq!(decided(&ask("write").await), ("deny", "mcp_server_quarantined"));
}

#[tokio::test]
async fn bad_input_is_a_clear_4xx_and_leaves_no_trace() {
    let house = House::new().await;
    let token = house.token("a", SourceTrust::TrustedInternalSigned);
    let valid = call("crm", "update_note", true, "trusted_internal_unsigned");
    let with = |pointer: &str, value: Value| {
        let mut body = valid.clone();
        *body.pointer_mut(pointer).unwrap() = value;
        body.to_string()
    };
    let nested = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    let bodies = [
        (String::new(), 400),
        ("[]".to_owned(), 400),
        ("{\"a\":1,\"a\":2}".to_owned(), 400),
        (nested, 400),
        (format!("{}{}", "[".repeat(100_000), "]"), 400),
        (with("/tool_call/parameters", json!([1])), 400),
        (with("/tool_call/mutates_state", json!("yes")), 400),
        (with("/context/source_trust", json!(7)), 400),
        (with("/tool_call/tool", json!("")), 400),
        (with("/tool_call/tool", json!("a\u{0}b")), 400),
        (with("/trace/run_id", json!("x".repeat(257))), 400),
        (valid.to_string().replace("\"n\"", "9007199254740993"), 400),
        (valid.to_string().replace("\"n\"", "\"\\ud800\""), 400),
        (format!("{}{}", valid, " ".repeat(1 << 20)), 413),
    ];
    for (body, expected) in bodies {
        let shown: String = body.chars().take(60).collect();
        let (status, answer) = house.send(&token, body).await;
        assert_eq!(status, expected, "{shown}: {answer}");
        assert!(answer["error"]["code"].is_string() && answer["error"]["message"].is_string(), "{shown}: {answer}");
    }
    for bad_token in ["", "x", "a.b.c", &token[..token.len() - 4]] {
        assert_eq!(house.send(bad_token, valid.to_string()).await.0, 401);
    }
    let (status, answer) = house
        .send(&token, {
            let mut b = valid.clone();
            b["canon_version"] = json!("aegis-jcs-9");
            b.to_string()
        })
        .await;
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("canonicalization_skew")));
    let (status, _) = house
        .send(&token, {
            let mut b = valid.clone();
            b["callback"] = json!({"url": "http://169.254.169.254/"});
            b.to_string()
        })
        .await;
    assert_eq!(status, 400);
    house.ledger.close().await.unwrap();
    let kinds = house.kinds().await;
    assert_eq!(kinds.iter().filter(|kind| **kind == EventKind::AuthorizeDecision).count(), 0);
    assert_eq!(kinds.iter().filter(|kind| **kind == EventKind::CanonicalizationSkew).count(), 1);
}

#[tokio::test]
async fn without_a_ledger_nothing_that_matters_is_allowed() {
    let house = House::new().await;
    house.ledger.close().await.unwrap();
    let answer = house.ask(|_| ()).await;
    assert_eq!(decided(&answer), ("deny", "receipt_unavailable"));
    let read = house
        .ask(|b| b["tool_call"] = json!({"tool": "crm", "action": "read_note", "mutates_state": false, "parameters": {}}))
        .await;
    assert_eq!(read["decision"], "allow", "a low-risk read is still answered");
}
