//! The parts of the action path by themselves: action hash, policy evaluation, handing an event to the ledger.

use std::hint::black_box;
use std::sync::Arc;

use aegis_keys::SigningKey;
use aegis_ledger::{Draft, Durability, Ledger, LedgerConfig};
use aegis_model::{
    DataAccess, Decision, Destination, EventId, EventKind, Phase, RiskLevel, SecurityEvent, SourceTrust, SystemClock, TenantId,
    Timestamp, new_event_id,
};
use aegis_policy::{PolicyBundle, PolicyInput, default_pack, github_pack, github_tool};
use anyhow::Context;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

const SAMPLES: usize = 20_000;

/// Microseconds, sorted.
#[derive(Debug, Serialize)]
pub(crate) struct Parts {
    pub(crate) action_hash_1kib_us: Vec<f64>,
    /// Every call differs in something the policies read, so that Cedar is asked each time.
    pub(crate) policy_eval_us: Vec<f64>,
    /// Calls that policies cannot tell apart.
    pub(crate) policy_recall_us: Vec<f64>,
    pub(crate) emit_us: Vec<f64>,
}

pub(crate) fn measure() -> anyhow::Result<Parts> {
    Ok(Parts {
        action_hash_1kib_us: action_hash()?,
        policy_eval_us: policy(SAMPLES * 2)?,
        policy_recall_us: policy(1)?,
        emit_us: emit()?,
    })
}

fn sample(mut once: impl FnMut(usize) -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
    for warm in 0..SAMPLES / 10 {
        once(warm)?;
    }
    let mut taken = Vec::with_capacity(SAMPLES);
    for index in 0..SAMPLES {
        let started = Instant::now();
        once(index)?;
        taken.push(started.elapsed().as_secs_f64() * 1e6);
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken)
}

fn action_hash() -> anyhow::Result<Vec<f64>> {
    let parameters: Value = json!({
        "title": "Café ☕ déjà vu", "body": "x".repeat(600), "labels": ["bug", "billing", "p1"], "count": 482, "ratio": 0.125,
        "nested": {"z": 1, "a": {"m": true, "n": null}, "list": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}, "branch": "feature/long-branch-name", "sha": "d".repeat(40),
        "reviewers": ["alice", "bob", "carol"], "draft": false, "milestone": "2026-Q4", "description": "y".repeat(120)
    });
    let size = parameters.to_string().len();
    anyhow::ensure!((1000..1200).contains(&size), "the parameters should be about 1 KiB, they are {size} bytes");
    sample(|_| {
        black_box(aegis_canon::action_hash("github", "create_pull_request", Some("acme/website"), true, black_box(&parameters))?);
        Ok(())
    })
}

fn policy(different: usize) -> anyhow::Result<Vec<f64>> {
    let bundle = PolicyBundle::load(&[default_pack(), github_pack()], &[github_tool()])?;
    let tenant = TenantId::new("bench")?;
    let parameters: Vec<Map<String, Value>> = (0..different)
        .map(|n| {
            Map::from_iter([("base_branch".to_owned(), json!("main")), ("source_repository".to_owned(), json!(n.to_string()))])
        })
        .collect();
    let mut next = parameters.iter().cycle();
    sample(|_| {
        let parameters = next.next().context("no parameters")?;
        let input = PolicyInput {
            tenant_id: &tenant,
            agent_id: "agent",
            agent_risk_tier: RiskLevel::Medium,
            tool: "github",
            action: "merge_pull_request",
            registered_mutates: true,
            resource: Some("acme/payments#482"),
            resource_record: None,
            trust_level: SourceTrust::TrustedInternalUnsigned,
            root_trust: SourceTrust::TrustedInternalUnsigned,
            mutates_state: true,
            contains_sensitive_data: false,
            environment: "production",
            risk_level: RiskLevel::High,
            data_access: DataAccess::Internal,
            destination: Destination::Internal,
            user_id: Some("u-1"),
            user_role: None,
            parameters,
        };
        black_box(bundle.evaluate(black_box(&input)));
        Ok(())
    })
}

/// What the event of a call takes from it.
struct Brought {
    event_id: EventId,
    user_id: String,
    run_id: String,
    trace_id: String,
    tool: String,
    action: String,
    resource: String,
    input: Vec<u8>,
}

impl Brought {
    fn new() -> Self {
        Self {
            event_id: new_event_id(),
            user_id: "u-4711".to_owned(),
            run_id: "run-2026-11-22-0001".to_owned(),
            trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
            tool: "crm".to_owned(),
            action: "update_note".to_owned(),
            resource: "customer/4711".to_owned(),
            input: vec![b'x'; 160],
        }
    }
}

/// What the edge keeps, and copies into each event.
struct Kept {
    tenant: TenantId,
    agent_id: String,
    token_id: String,
    environment: String,
    action_hash: String,
    reason: String,
    matched_policies: Vec<String>,
    policy_digest: String,
}

/// Event and draft as the edge makes them of an allowed change (`decision_draft`): what is the call's is moved, all else is copied.
fn draft_of(kept: &Kept, brought: Brought) -> Draft {
    let now = Timestamp::from_micros(0);
    let mut event =
        SecurityEvent::with_id(brought.event_id, kept.tenant.clone(), "bench", "edge", EventKind::AuthorizeDecision, now);
    event.agent_id = Some(kept.agent_id.clone());
    event.token_id = Some(kept.token_id.clone());
    event.user_id = Some(brought.user_id);
    event.run_id = Some(brought.run_id);
    event.trace_id = Some(brought.trace_id);
    event.environment = Some(kept.environment.clone());
    event.tool = Some(brought.tool);
    event.action = Some(brought.action);
    event.resource = Some(brought.resource);
    event.destination = Some(Destination::Internal);
    event.data_access = Some(DataAccess::Internal);
    event.mutates_state = Some(true);
    event.contains_sensitive_data = Some(false);
    event.source_trust = Some(SourceTrust::TrustedInternalUnsigned);
    event.root_trust = Some(SourceTrust::TrustedInternalUnsigned);
    event.decision = Some(Decision::Allow);
    event.reason = Some(kept.reason.clone());
    event.risk_level = Some(RiskLevel::Medium);
    event.risk_score = Some(RiskLevel::Medium.display_score());
    event.matched_policies.clone_from(&kept.matched_policies);
    event.policy_digest = Some(kept.policy_digest.clone());
    event.action_hash = Some(kept.action_hash.clone());
    let mut draft = Draft::new(event, Phase::Decision);
    draft.input = Some(brought.input);
    draft
}

/// Event, draft and `try_submit` while the writer works: what the action path pays to emit an event and its receipt.
fn emit() -> anyhow::Result<Vec<f64>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let folder = tempfile::Builder::new().prefix("aegis-bench-").tempdir_in(".")?;
    let mut config = LedgerConfig::new(folder.path().join("ledger.db"), "bench", "edge");
    config.queue_capacity = SAMPLES * 2;
    let ledger = runtime.block_on(Ledger::open(config, SigningKey::generate()?, Arc::new(SystemClock)))?;
    let kept = Kept {
        tenant: TenantId::new("bench")?,
        agent_id: new_event_id().to_string(),
        token_id: new_event_id().to_string(),
        environment: "production".to_owned(),
        action_hash: "a".repeat(64),
        reason: "a trusted internal source may change state".to_owned(),
        matched_policies: vec!["default-allow-trusted-write".to_owned()],
        policy_digest: "d".repeat(64),
    };
    let mut calls: Vec<Brought> = (0..SAMPLES + SAMPLES / 10).map(|_| Brought::new()).collect();
    let taken = sample(|_| {
        let draft = draft_of(&kept, calls.pop().context("no call left")?);
        let _not_awaited = black_box(ledger.try_submit(draft, Durability::Required)).context("the queue is full")?;
        Ok(())
    })?;
    runtime.block_on(ledger.close())?;
    Ok(taken)
}
