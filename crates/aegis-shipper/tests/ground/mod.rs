//! What the tests stand on: a real ledger, and events that it seals.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::Delivered;
use aegis_keys::SigningKey;
use aegis_ledger::{Draft, Durability, Ledger, LedgerConfig};
use aegis_model::{
    Clock, EventId, EventKind, FrozenAction, Phase, RiskLevel, SecurityEvent, SourceTrust, SystemClock, TenantId, ToolCall,
};
use aegis_shipper::ShipperConfig;
use serde_json::Value;

pub fn tenant() -> TenantId {
    TenantId::new("acme").unwrap()
}

pub async fn ledger(folder: &Path, ring_capacity: usize) -> Ledger {
    ledger_of("edge-1", folder, ring_capacity).await
}

pub async fn ledger_of(producer: &str, folder: &Path, ring_capacity: usize) -> Ledger {
    let key = SigningKey::load_or_create(&folder.join("key")).unwrap();
    let config = LedgerConfig { ring_capacity, ..LedgerConfig::new(folder.join("ledger.db"), producer, "edge") };
    Ledger::open(config, key, Arc::new(SystemClock)).await.unwrap()
}

pub fn quick() -> ShipperConfig {
    ShipperConfig { min_backoff: Duration::from_millis(1), max_backoff: Duration::from_millis(20), ..ShipperConfig::default() }
}

pub fn draft() -> Draft {
    draft_of(tenant())
}

pub fn draft_of(tenant: TenantId) -> Draft {
    let mut event = SecurityEvent::new(tenant, "edge-1", "edge", EventKind::AuthorizeDecision, SystemClock.now());
    event.agent_id = Some("agent-1".to_owned());
    Draft::new(event, Phase::Decision)
}

/// Seals `count` events and returns their ids in the order of their commit.
pub async fn seal(ledger: &Ledger, count: usize) -> Vec<EventId> {
    let mut pending = Vec::new();
    for _ in 0..count {
        pending.push(ledger.try_submit(draft(), Durability::Required).unwrap());
    }
    let mut ids = Vec::new();
    for receipt in pending {
        ids.push(receipt.await.unwrap().event_id);
    }
    ids
}

/// Lets the draft ask for an approval.
pub fn freeze(draft: &mut Draft) -> FrozenAction {
    let now = SystemClock.now();
    let frozen = FrozenAction {
        approval_id: "approval-1".to_owned(),
        tenant_id: tenant(),
        event_id: draft.event.event_id,
        agent_id: "agent-1".to_owned(),
        token_id: None,
        issued_by: None,
        user_id: None,
        user_role: None,
        run_id: None,
        environment: "production".to_owned(),
        tool_call: ToolCall {
            tool: "github".to_owned(),
            action: "merge_pull_request".to_owned(),
            resource: None,
            mutates_state: true,
            parameters: serde_json::Map::new(),
        },
        action_hash: "0".repeat(64),
        source_trust: SourceTrust::Unknown,
        root_trust: SourceTrust::Unknown,
        contains_sensitive_data: false,
        risk_level: RiskLevel::High,
        reason: "a person must approve".to_owned(),
        matched_policies: Vec::new(),
        policy_digest: "0".repeat(64),
        approver_group: "security".to_owned(),
        approvals_needed: 1,
        requested_at: now,
        expires_at: now.plus_seconds(900),
        callback_url: None,
    };
    draft.event.approval_id = Some(frozen.approval_id.clone());
    draft.frozen = Some(Box::new(frozen.clone()));
    frozen
}

pub fn decisions_of(messages: Vec<Delivered>) -> Vec<EventId> {
    let parsed = messages.into_iter().map(|d| serde_json::from_slice::<Value>(&d.payload).unwrap());
    let decisions = parsed.filter(|event| event["kind"] == "authorize_decision");
    decisions.map(|event| event["event_id"].as_str().unwrap().parse().unwrap()).collect()
}

pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
