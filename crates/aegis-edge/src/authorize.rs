//! One authorize call, from body to answer, with the checks in the order of CONTRACTS §3: the earlier one wins.
//! Reads memory only; the single thing it waits for is its own receipt, and while it does it holds its answer and nothing else.

use std::time::Duration;

use aegis_keys::AgentClaims;
use aegis_ledger::{Committed, Durability, PendingReceipt};
use aegis_model::{
    ActionRecord, ApprovalRef, ApprovalStatus, AuthorizeResponse, DataAccess, Decision, DefaultDecision, EventKind, FrozenAction,
    ReceiptView, RiskLevel, SourceTrust, TargetType, TenantSettings, Timestamp, Verdict,
};
use aegis_policy::PolicyInput;
use tokio::time::Instant;

use crate::bounded::Named;
use crate::call::{Call, nonce_hash, request_named};
use crate::error::Refusal;
use crate::evidence::{Frozen, freeze};
use crate::replay::Seen;
use crate::trust::EffectiveTrust;
use crate::view::{CallFacts, MCP_PREFIX, unclassified_action};
use crate::{Alarm, Edge};

/// The risk of what nobody registered.
const UNKNOWN_RISK: RiskLevel = RiskLevel::High;

/// What the checks came to.
#[derive(Debug)]
pub(crate) struct Judgement {
    pub(crate) decision: Decision,
    pub(crate) reason: String,
    pub(crate) matched_policies: Vec<String>,
    pub(crate) approver_group: Option<String>,
    pub(crate) approvals: u32,
}

impl Judgement {
    fn deny(code: &str) -> Self {
        Self {
            decision: Decision::Deny,
            reason: code.to_owned(),
            matched_policies: Vec::new(),
            approver_group: None,
            approvals: 1,
        }
    }

    fn tighten(&mut self, decision: Decision, reason: &str) {
        if decision > self.decision {
            self.decision = decision;
            reason.clone_into(&mut self.reason);
        }
    }
}

/// A call that is decided. Held while its receipt is waited for, so nothing is in it that only the decision needed.
#[derive(Debug)]
pub(crate) struct Decided {
    /// The answer, but for the hashes of its receipt.
    answer: AuthorizeResponse,
    receipt: Receipt,
    /// True if its source is untrusted.
    untrusted: bool,
    started: Instant,
}

/// The receipt of a decided call.
#[derive(Debug)]
enum Receipt {
    /// A harmless read's, and a dry run's that there is none.
    NotAwaited,
    Awaited(PendingReceipt),
    /// Being waited for, or not to be had.
    Unavailable,
}

impl Decided {
    /// The receipt to wait for, once.
    pub(crate) fn pending(&mut self) -> Option<PendingReceipt> {
        match std::mem::replace(&mut self.receipt, Receipt::Unavailable) {
            Receipt::Awaited(pending) => Some(pending),
            other => {
                self.receipt = other;
                None
            }
        }
    }
}

/// The registered facts of a call, tightened by what the caller said.
pub(crate) struct Profile<'a> {
    pub(crate) action: Option<&'a ActionRecord>,
    pub(crate) mutates_state: bool,
    pub(crate) risk: RiskLevel,
    pub(crate) data_access: DataAccess,
}

impl Edge {
    /// Decides one call of the agent named by `claims`, and hands its receipt to the ledger: all that an answer takes but the waiting.
    pub(crate) fn decide(&self, claims: &AgentClaims, mut call: Call) -> Result<Decided, Refusal> {
        let started = Instant::now();
        let now = self.clock.now();
        let tenant = &claims.tenant_id;
        let channel = call.request.context.channel.as_deref();
        let facts = self.view.facts((tenant, &claims.agent_id), &call.request.tool_call, channel, now);
        let settings = &*facts.settings;
        let trust = self.effective_trust(claims, &call.request, facts.channel.as_deref(), settings, now);

        let request = request_named(claims, &call);
        let contained = containment_code(facts.verdict);
        if contained.is_none()
            && let Err((refusal, reason)) = self.check_replay(claims, &call, request.as_ref(), now)
        {
            self.report_attempt(claims, &mut call, &trust, EventKind::ReplayAttempt, reason, now);
            return Err(refusal);
        }
        let unclassified = facts.mcp_server.is_some().then(|| unclassified_action(&call.request.tool_call.action));
        let profile = profile(&call, facts.action.as_deref().or(unclassified.as_ref()));
        let mut judgement = match contained {
            Some(code) => Judgement::deny(code),
            None => self.judge(claims, &call, &facts, &trust, &profile, settings, now),
        };
        if let Some(request) = &request {
            let strictest = self.replay.tighten_answer(request, judgement.decision, now);
            judgement.tighten(strictest, "an earlier answer to this request_id was stricter");
        }
        let policy_digest = facts.bundle.digest();
        let mut frozen = None;
        if judgement.decision == Decision::RequireApproval {
            frozen = freeze(claims, &call, &trust, &profile, settings, policy_digest, &judgement, now);
            if frozen.is_none() {
                judgement.tighten(Decision::Deny, "approval_too_large");
                if let Some(request) = &request {
                    self.replay.tighten_answer(request, Decision::Deny, now);
                }
            }
        }
        let (answer, receipt) = self.submit(claims, call, &trust, &profile, policy_digest, judgement, frozen, now);
        Ok(Decided { answer, receipt, untrusted: trust.effective >= SourceTrust::UntrustedExternal, started })
    }

    /// Timestamp, request id and nonce; what is wrong, and what it is reported as. A dry run binds nothing.
    fn check_replay(
        &self,
        claims: &AgentClaims,
        call: &Call,
        request: Option<&Named<'_>>,
        now: Timestamp,
    ) -> Result<(), (Refusal, &'static str)> {
        if let Some(timestamp) = call.request.timestamp {
            let skew_s = (timestamp.as_micros().saturating_sub(now.as_micros())).unsigned_abs() / 1_000_000;
            if skew_s > self.config.timestamp_skew_s.unsigned_abs() {
                return Err((Refusal::TimestampExpired, "replay_timestamp_expired"));
            }
        }
        let Some(content) = call.content_hash.as_deref().filter(|_| !call.request.dry_run) else { return Ok(()) };
        if let Some(request) = request
            && self.replay.bind_request(request, content, now) == Seen::Other
        {
            return Err((Refusal::IdempotencyMismatch, "idempotency_payload_mismatch"));
        }
        if let Some(nonce_hash) = nonce_hash(claims, call)
            && self.replay.bind_nonce(&Named::new(&claims.tenant_id, &claims.agent_id, &nonce_hash), content, now) == Seen::Other
        {
            return Err((Refusal::NonceReused, "replay_nonce_reused"));
        }
        Ok(())
    }

    /// Registry, MCP gates, Cedar, overrides.
    #[allow(clippy::too_many_arguments)]
    fn judge(
        &self,
        claims: &AgentClaims,
        call: &Call,
        facts: &CallFacts,
        trust: &EffectiveTrust,
        profile: &Profile<'_>,
        settings: &TenantSettings,
        now: Timestamp,
    ) -> Judgement {
        let tool_call = &call.request.tool_call;
        if profile.mutates_state && self.view.is_stale(now, self.config.max_feed_age_s, self.config.max_snapshot_age_s) {
            return Judgement::deny("control_stale");
        }
        let Some(action) = profile.action else { return Judgement::deny("unknown_action") };
        if tool_call.tool.starts_with(MCP_PREFIX)
            && let Some(code) = self.mcp_gate(claims, &tool_call.action, facts, now)
        {
            return Judgement::deny(code);
        }
        let empty = serde_json::Map::new();
        let input = PolicyInput {
            tenant_id: &claims.tenant_id,
            agent_id: &claims.agent_id,
            agent_risk_tier: claims.risk_tier,
            tool: &tool_call.tool,
            action: &tool_call.action,
            registered_mutates: action.mutates_state,
            resource: tool_call.resource.as_deref(),
            resource_record: facts.resource.as_deref(),
            trust_level: trust.effective,
            root_trust: trust.root,
            mutates_state: profile.mutates_state,
            contains_sensitive_data: call.request.context.contains_sensitive_data,
            environment: &claims.environment,
            risk_level: profile.risk,
            data_access: profile.data_access,
            destination: action.destination,
            user_id: call.request.user.as_ref().map(|u| u.id.as_str()),
            user_role: call.request.user.as_ref().and_then(|u| u.role.as_deref()),
            parameters: call.parameters.as_object().unwrap_or(&empty),
        };
        let started = Instant::now();
        let outcome = facts.bundle.evaluate(&input);
        self.metrics.policy_seconds.observe(started.elapsed().as_secs_f64());
        let mut judgement = Judgement {
            decision: outcome.decision,
            reason: outcome.code.map_or(outcome.reason, str::to_owned),
            matched_policies: outcome.matched_policies,
            approver_group: outcome.approver_group,
            approvals: outcome.approvals.max(1),
        };
        if action.default_decision == DefaultDecision::Deny {
            judgement.tighten(Decision::Deny, "registered_deny");
        }
        if action.approval_required {
            judgement.tighten(Decision::RequireApproval, "registered_approval");
        }
        if profile.risk == RiskLevel::Critical {
            judgement.tighten(Decision::RequireApproval, "critical_risk");
        }
        let forced = settings.force_approval_agents.iter().any(|id| id == "*" || *id == claims.agent_id);
        if forced && profile.mutates_state {
            judgement.tighten(Decision::RequireApproval, "force_approval");
        }
        judgement
    }

    fn mcp_gate(&self, claims: &AgentClaims, action: &str, facts: &CallFacts, now: Timestamp) -> Option<&'static str> {
        let Some(server) = facts.mcp_server.as_deref() else { return Some("mcp_unknown_tool") };
        if !server.tools.iter().any(|tool| tool.name == action) {
            return Some("mcp_unknown_tool");
        }
        if self.view.verdict(&claims.tenant_id, TargetType::McpServer, &server.key, now) != Verdict::Free {
            return Some("mcp_server_quarantined");
        }
        server.drifted.then_some("mcp_manifest_drift")
    }

    /// Hands the receipt to the ledger and makes the answer meanwhile. A dry run seals nothing and changes nothing.
    #[allow(clippy::too_many_arguments)]
    fn submit(
        &self,
        claims: &AgentClaims,
        mut call: Call,
        trust: &EffectiveTrust,
        profile: &Profile<'_>,
        policy_digest: &str,
        judgement: Judgement,
        frozen: Option<Frozen>,
        now: Timestamp,
    ) -> (AuthorizeResponse, Receipt) {
        let tenant = &claims.tenant_id;
        let dry_run = call.request.dry_run;
        // A read that taints its run is answered only when the taint would survive a crash.
        let taints = trust.effective > SourceTrust::TrustedInternalUnsigned
            && self.runs.label(tenant, &trust.run_key, now).is_none_or(|label| label < trust.effective);
        let run_label = if dry_run {
            trust.effective
        } else {
            self.runs.tighten(tenant, trust.run_key, trust.effective, trust.run_idle_s, now)
        };
        let lost = self.runs.take_lost();
        if lost > 0 {
            self.metrics.run_labels_lost.inc_by(lost);
        }
        let approval = frozen.as_ref().map(|frozen| approval_of(&frozen.action));
        let mut receipt = Receipt::NotAwaited;
        if !dry_run {
            let harmless_read = judgement.decision == Decision::Allow
                && !taints
                && !profile.mutates_state
                && profile.risk == RiskLevel::Low
                && profile.data_access != DataAccess::Sensitive
                && !call.request.context.contains_sensitive_data;
            let draft = self.decision_draft(claims, &mut call, trust, profile, policy_digest, &judgement, frozen, now);
            if harmless_read {
                // Answered at once; the ledger counts what it cannot keep and seals a gap for it.
                let _not_awaited = self.ledger.try_submit(draft, Durability::BestEffort);
            } else {
                receipt = match self.ledger.try_submit(draft, Durability::Required) {
                    Ok(pending) => Receipt::Awaited(pending),
                    Err(error) => {
                        tracing::warn!(%error, "no receipt can be kept; denying");
                        Receipt::Unavailable
                    }
                };
            }
        }
        let answer = AuthorizeResponse {
            decision_id: call.event_id,
            decision: judgement.decision,
            reason: judgement.reason,
            matched_policies: judgement.matched_policies,
            risk_score: profile.risk.display_score(),
            risk_level: profile.risk,
            root_trust_level: run_label,
            trust_token: self.trust_tokens.mint(tenant, &trust.run, run_label, now.plus_seconds(trust.run_idle_s)),
            action_hash: call.action_hash,
            dry_run,
            approval,
            receipt: ReceiptView {
                receipt_id: call.event_id,
                receipt_hash: None,
                prev_receipt_hash: None,
                canon_version: aegis_canon::CANON_VERSION.to_owned(),
            },
        };
        (answer, receipt)
    }

    /// Waits for the receipt to be durable; None where it cannot be, or not in time.
    pub(crate) async fn kept(&self, pending: PendingReceipt, alarm: &Alarm) -> Option<Committed> {
        match alarm.within(Duration::from_millis(self.config.commit_wait_ms), pending).await {
            Some(Ok(committed)) => Some(committed),
            Some(Err(error)) => {
                tracing::warn!(%error, "the receipt was not kept; denying");
                None
            }
            None => {
                tracing::warn!(waited_ms = self.config.commit_wait_ms, "the ledger did not answer; denying");
                None
            }
        }
    }

    /// The answer, with the hashes of a receipt that is kept. One that has to be kept and is not makes it a deny.
    pub(crate) fn conclude(&self, decided: Decided, kept: Option<Committed>) -> AuthorizeResponse {
        let Decided { mut answer, receipt, untrusted, started } = decided;
        match (receipt, kept) {
            (Receipt::NotAwaited, _) => {}
            (_, Some(committed)) => {
                answer.receipt.receipt_hash = Some(committed.receipt_hash);
                answer.receipt.prev_receipt_hash = Some(committed.prev_receipt_hash);
            }
            (_, None) => {
                self.metrics.receipt_unavailable.inc();
                let denied = Judgement::deny("receipt_unavailable");
                (answer.decision, answer.reason, answer.matched_policies) =
                    (denied.decision, denied.reason, denied.matched_policies);
                answer.approval = None;
            }
        }
        if let Some(approval) = &mut answer.approval {
            approval.expires_in = self.clock.now().seconds_until(approval.expires_at);
        }
        self.metrics.count_decision(answer.decision, answer.dry_run);
        if answer.decision == Decision::Deny && untrusted {
            self.metrics.provenance_denials.inc();
        }
        self.metrics.authorize_seconds.observe(started.elapsed().as_secs_f64());
        answer
    }
}

/// The approval that an answer points to; how long it may be given is told last.
fn approval_of(action: &FrozenAction) -> ApprovalRef {
    ApprovalRef {
        approval_id: action.approval_id.clone(),
        status: ApprovalStatus::Pending,
        approver_group: action.approver_group.clone(),
        expires_at: action.expires_at,
        expires_in: 0,
        action_hash: action.action_hash.clone(),
    }
}

fn containment_code(agent: Verdict) -> Option<&'static str> {
    match agent {
        Verdict::Free => None,
        Verdict::Quarantined => Some("agent_quarantined"),
        Verdict::Frozen => Some("agent_frozen"),
        Verdict::Revoked => Some("agent_revoked"),
    }
}

fn profile<'a>(call: &Call, action: Option<&'a ActionRecord>) -> Profile<'a> {
    let claimed_mutates = call.request.tool_call.mutates_state;
    Profile {
        action,
        mutates_state: action.map_or(claimed_mutates, |a| a.mutates_state || claimed_mutates),
        risk: action.map_or(UNKNOWN_RISK, |a| a.risk),
        data_access: action.map_or(DataAccess::None, |a| a.data_access),
    }
}
