//! What the ledger's tests share: a ledger in a folder of its own, drafts like those of an edge, and a reader of everything sealed.
#![allow(unreachable_pub)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_keys::{KeyRing, SigningKey};
use aegis_ledger::verify::StreamVerifier;
use aegis_ledger::{Draft, Ledger, LedgerConfig, LedgerError, OutboxItem};
use aegis_model::{
    Clock, Decision, EventKind, FrozenAction, ManualClock, Phase, RiskLevel, SecurityEvent, SourceTrust, SystemClock, TenantId,
    Timestamp, ToolCall,
};
use serde_json::Value;
use sqlx::{Connection, SqliteConnection};

pub const START: i64 = 1_795_000_000_000_000;

pub fn key() -> SigningKey {
    SigningKey::from_seed(&[42; 32])
}

pub fn ring() -> KeyRing {
    KeyRing::new([key().verifying_key()])
}

pub fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

pub fn config(folder: &Path) -> LedgerConfig {
    let mut config = LedgerConfig::new(folder.join("ledger.db"), "edge-1", "edge");
    config.retry_interval = Duration::from_millis(20);
    config.lock_wait = Duration::from_secs(20);
    config
}

pub async fn open(folder: &Path) -> Ledger {
    open_with(config(folder)).await.unwrap()
}

pub async fn open_with(config: LedgerConfig) -> Result<Ledger, LedgerError> {
    Ledger::open(config, key(), Arc::new(SystemClock)).await
}

pub fn manual_clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Timestamp::from_micros(START)))
}

/// A denied merge, as an edge decides it.
pub fn draft(tenant: &TenantId, ts: Timestamp) -> Draft {
    let event = SecurityEvent {
        agent_id: Some("triage-bot".into()),
        token_id: Some("token-7".into()),
        user_id: Some("dev@example.test".into()),
        run_id: Some("run-1".into()),
        trace_id: Some("trace-1".into()),
        environment: Some("production".into()),
        tool: Some("github".into()),
        action: Some("merge_pull_request".into()),
        resource: Some("payments-service#482".into()),
        mutates_state: Some(true),
        source_trust: Some(SourceTrust::UntrustedExternal),
        root_trust: Some(SourceTrust::UntrustedExternal),
        decision: Some(Decision::Deny),
        risk_level: Some(RiskLevel::High),
        risk_score: Some(75),
        reason: Some("untrusted context may not change state: “café”\n".into()),
        matched_policies: vec!["untrusted-no-write".into()],
        policy_digest: Some("ab".repeat(32)),
        action_hash: Some("cd".repeat(32)),
        ..SecurityEvent::new(tenant.clone(), "edge-1", "edge", EventKind::AuthorizeDecision, ts)
    };
    Draft::new(event, Phase::Decision)
}

pub fn draft_now(tenant: &TenantId) -> Draft {
    draft(tenant, SystemClock.now())
}

pub fn frozen(draft: &Draft, expires_at: Timestamp) -> FrozenAction {
    let event = &draft.event;
    FrozenAction {
        approval_id: format!("approval-{}", event.event_id),
        tenant_id: event.tenant_id.clone(),
        event_id: event.event_id,
        agent_id: "triage-bot".into(),
        token_id: None,
        issued_by: None,
        user_id: None,
        user_role: None,
        run_id: None,
        environment: "production".into(),
        tool_call: serde_json::from_value::<ToolCall>(serde_json::json!({
            "tool": "github", "action": "merge_pull_request", "resource": "payments-service#482", "mutates_state": true,
            "parameters": {"base_branch": "main"}
        }))
        .unwrap(),
        action_hash: "cd".repeat(32),
        source_trust: SourceTrust::Unknown,
        root_trust: SourceTrust::Unknown,
        contains_sensitive_data: false,
        risk_level: RiskLevel::High,
        reason: "needs a person".into(),
        matched_policies: vec![],
        policy_digest: "ab".repeat(32),
        approver_group: "maintainers".into(),
        approvals_needed: 1,
        requested_at: event.ts,
        expires_at,
        callback_url: None,
    }
}

/// Everything in the outbox, page by page.
pub async fn everything(ledger: &Ledger) -> Vec<OutboxItem> {
    let mut items: Vec<OutboxItem> = Vec::new();
    loop {
        let after = items.last().map_or(0, |item| item.row);
        let page = ledger.read_outbox(after, 100).await.unwrap();
        if page.is_empty() {
            return items;
        }
        items.extend(page);
    }
}

/// A connection of somebody else's to the ledger's file.
pub async fn second_connection(folder: &Path) -> SqliteConnection {
    let path = folder.join("ledger.db");
    SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap()
}

/// Spoils the page of the file that holds a text, as a bad sector would; which one. The log must have been copied back.
pub async fn spoil_page_of(folder: &Path, text: &str) -> u64 {
    let mut other = second_connection(folder).await;
    sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut other).await.unwrap();
    let page_size: i64 = sqlx::query_scalar("PRAGMA page_size").fetch_one(&mut other).await.unwrap();
    other.close().await.unwrap();
    let path = folder.join("ledger.db");
    let bytes = std::fs::read(&path).unwrap();
    let place = bytes.windows(text.len()).rposition(|window| window == text.as_bytes()).unwrap();
    let page_size = usize::try_from(page_size).unwrap();
    let start = place - place % page_size;
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xA5; page_size], start as u64).unwrap();
    (start / page_size) as u64 + 1
}

/// Drops a ledger and waits until its writer has gone.
pub async fn crash(ledger: Ledger, folder: &Path) {
    drop(ledger);
    let lock = std::fs::File::open(folder.join("ledger.db.lock")).unwrap();
    eventually("the writer's end", async || lock.try_lock().is_ok()).await;
}

pub fn parse(wire: &str) -> Value {
    aegis_canon::parse_strict(wire.as_bytes()).unwrap()
}

/// INVARIANT L-LINK: every item verifies, in row order, under the pinned key.
pub fn assert_all_verify(items: &[OutboxItem]) {
    let mut verifier = StreamVerifier::new(ring());
    for item in items {
        let verdict = verifier.check(&parse(&item.sealed.wire));
        assert!(verdict.verified && !verdict.repeated, "{:?} of {}", verdict.failure, item.sealed.wire);
        let receipt = verdict.receipt.unwrap();
        assert_eq!((receipt.lane, receipt.seq), (item.sealed.lane.clone(), item.sealed.seq));
    }
}

pub fn detail(item: &OutboxItem) -> Value {
    parse(&item.sealed.wire)["receipt"]["detail"].clone()
}

pub fn kinds(items: &[OutboxItem]) -> Vec<EventKind> {
    items.iter().map(|item| item.sealed.kind).collect()
}

/// Waits for a condition, with a deadline.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
