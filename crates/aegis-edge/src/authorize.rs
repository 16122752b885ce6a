//! One authorize call, from body to answer, with the checks in the order of CONTRACTS §3: the earlier one wins.
//! Reads memory only; the single thing it waits for is its own receipt.

use std::time::Duration;

use aegis_keys::AgentClaims;
use aegis_ledger::{Draft, Durability};
use aegis_model::{
    ActionRecord, ApprovalRef, ApprovalStatus, AuthorizeRequest, AuthorizeResponse, DataAccess, Decision, DefaultDecision,
    EventId, EventKind, FrozenAction, Phase, ReceiptView, RiskLevel, SecurityEvent, SourceTrust, TargetType, TenantSettings,
    Timestamp, Verdict, new_event_id,
};
use aegis_policy::PolicyInput;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::Edge;
use crate::error::Refusal;
use crate::replay::Seen;
use crate::trust::EffectiveTrust;
use crate::view::{CallFacts, MCP_PREFIX, unclassified_action};

/// The risk of what nobody registered.
const UNKNOWN_RISK: RiskLevel = RiskLevel::High;
/// Longest `target` kept in an event, characters.
const MAX_TARGET: usize = 512;

/// A parsed request with its hashes.
pub(crate) struct Call {
    pub(crate) request: AuthorizeRequest,
    /// The parameters, taken out of the request.
    parameters: Value,
    action_hash: String,
    /// Canonical hash of the request less nonce and timestamp; only where a request id or nonce binds it.
    content_hash: Option<String>,
    event_id: EventId,
}

/// What the checks came to.
#[derive(Debug)]
struct Judgement {
    decision: Decision,
    reason: String,
    matched_policies: Vec<String>,
    approver_group: Option<String>,
    approvals: u32,
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

/// The registered facts of a call, tightened by what the caller said.
struct Profile<'a> {
    action: Option<&'a ActionRecord>,
    mutates_state: bool,
    risk: RiskLevel,
    data_access: DataAccess,
}

impl Edge {
    /// Answers one call of the agent named by `claims`.
    pub(crate) async fn authorize(&self, claims: &AgentClaims, mut call: Call) -> Result<AuthorizeResponse, Refusal> {
        let started = Instant::now();
        let now = self.clock.now();
        let tenant = &claims.tenant_id;
        let settings = self.view.settings(tenant);
        let tool_call = &call.request.tool_call;
        let channel = call.request.context.channel.as_deref();
        let facts = self.view.facts(tenant, &tool_call.tool, &tool_call.action, tool_call.resource.as_deref(), channel);
        let trust = self.effective_trust(claims, &call.request, facts.channel.as_deref(), now);

        let contained = self.containment_code(claims, now);
        if contained.is_none() {
            self.check_replay(claims, &call, &trust, now)?;
        }
        let unclassified = facts.mcp_server.is_some().then(|| unclassified_action(&tool_call.action));
        let profile = profile(&call, facts.action.as_deref().or(unclassified.as_ref()));
        let mut judgement = match contained {
            Some(code) => Judgement::deny(code),
            None => self.judge(claims, &call, &facts, &trust, &profile, &settings, now),
        };
        if !call.request.dry_run
            && let Some(key) = request_key(claims, &call)
        {
            let strictest = self.replay.tighten_answer(&key, judgement.decision, now);
            judgement.tighten(strictest, "an earlier answer to this request_id was stricter");
        }
        let response = self.conclude(claims, &mut call, &trust, &profile, &settings, facts.bundle.digest(), judgement, now).await;
        self.metrics.count_decision(response.decision);
        if response.decision == Decision::Deny && trust.effective >= SourceTrust::UntrustedExternal {
            self.metrics.provenance_denials.inc();
        }
        self.metrics.authorize_seconds.observe(started.elapsed().as_secs_f64());
        Ok(response)
    }

    fn containment_code(&self, claims: &AgentClaims, now: Timestamp) -> Option<&'static str> {
        match self.view.verdict(&claims.tenant_id, TargetType::Agent, &claims.agent_id, now) {
            Verdict::Free => None,
            Verdict::Quarantined => Some("agent_quarantined"),
            Verdict::Frozen => Some("agent_frozen"),
            Verdict::Revoked => Some("agent_revoked"),
        }
    }

    /// Timestamp, request id and nonce. A dry run binds nothing.
    fn check_replay(&self, claims: &AgentClaims, call: &Call, trust: &EffectiveTrust, now: Timestamp) -> Result<(), Refusal> {
        if let Some(timestamp) = call.request.timestamp {
            let skew_s = (timestamp.as_micros().saturating_sub(now.as_micros())).unsigned_abs() / 1_000_000;
            if skew_s > self.config.timestamp_skew_s.unsigned_abs() {
                self.report_attempt(claims, call, trust, EventKind::ReplayAttempt, "replay_timestamp_expired", now);
                return Err(Refusal::TimestampExpired);
            }
        }
        let Some(content) = call.content_hash.as_deref().filter(|_| !call.request.dry_run) else { return Ok(()) };
        if let Some(key) = request_key(claims, call)
            && self.replay.bind_request(&key, content, now) == Seen::Other
        {
            self.report_attempt(claims, call, trust, EventKind::ReplayAttempt, "idempotency_payload_mismatch", now);
            return Err(Refusal::IdempotencyMismatch);
        }
        if let Some(nonce_hash) = nonce_hash(claims, call) {
            let key = (claims.tenant_id.clone(), claims.agent_id.clone(), nonce_hash);
            if self.replay.bind_nonce(&key, content, now) == Seen::Other {
                self.report_attempt(claims, call, trust, EventKind::ReplayAttempt, "replay_nonce_reused", now);
                return Err(Refusal::NonceReused);
            }
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

    /// Seals the receipt and makes the answer. A dry run seals nothing and changes nothing.
    #[allow(clippy::too_many_arguments)]
    async fn conclude(
        &self,
        claims: &AgentClaims,
        call: &mut Call,
        trust: &EffectiveTrust,
        profile: &Profile<'_>,
        settings: &TenantSettings,
        policy_digest: &str,
        mut judgement: Judgement,
        now: Timestamp,
    ) -> AuthorizeResponse {
        let tenant = &claims.tenant_id;
        let dry_run = call.request.dry_run;
        // A read that taints its run is answered only when the taint would survive a crash.
        let taints = trust.effective >= SourceTrust::Unknown
            && self.runs.label(tenant, &trust.run, now).is_none_or(|label| label < trust.effective);
        let run_label =
            if dry_run { trust.effective } else { self.runs.tighten(tenant, &trust.run, trust.effective, trust.run_idle_s, now) };
        let frozen = (judgement.decision == Decision::RequireApproval)
            .then(|| freeze(claims, call, trust, profile, settings, policy_digest, &judgement, now));
        let mut receipt = ReceiptView {
            receipt_id: call.event_id,
            receipt_hash: None,
            prev_receipt_hash: None,
            canon_version: aegis_canon::CANON_VERSION.to_owned(),
        };
        if !dry_run {
            let harmless_read = judgement.decision == Decision::Allow
                && !taints
                && !profile.mutates_state
                && profile.risk == RiskLevel::Low
                && profile.data_access != DataAccess::Sensitive
                && !call.request.context.contains_sensitive_data;
            let draft = self.decision_draft(claims, call, trust, profile, policy_digest, &judgement, frozen.clone(), now);
            if harmless_read {
                // Answered at once; the ledger counts what it cannot keep and seals a gap for it.
                let _not_awaited = self.ledger.try_submit(draft, Durability::BestEffort);
            } else {
                match self.seal(draft).await {
                    Some(committed) => {
                        receipt.receipt_hash = Some(committed.receipt_hash);
                        receipt.prev_receipt_hash = Some(committed.prev_receipt_hash);
                    }
                    None => {
                        self.metrics.receipt_unavailable.inc();
                        judgement = Judgement::deny("receipt_unavailable");
                    }
                }
            }
        }
        let approval = frozen.filter(|_| judgement.decision == Decision::RequireApproval).map(|frozen| ApprovalRef {
            approval_id: frozen.approval_id,
            status: ApprovalStatus::Pending,
            approver_group: frozen.approver_group,
            expires_at: frozen.expires_at,
            action_hash: frozen.action_hash,
        });
        AuthorizeResponse {
            decision_id: call.event_id,
            decision: judgement.decision,
            reason: judgement.reason,
            matched_policies: judgement.matched_policies,
            risk_score: profile.risk.display_score(),
            risk_level: profile.risk,
            root_trust_level: run_label,
            trust_token: self.trust_tokens.mint(tenant, &trust.run, run_label, now.plus_seconds(trust.run_idle_s)),
            action_hash: call.action_hash.clone(),
            dry_run,
            approval,
            receipt,
        }
    }

    /// Waits for the receipt to be durable; None where it cannot be, or not in time.
    async fn seal(&self, draft: Draft) -> Option<aegis_ledger::Committed> {
        let pending = match self.ledger.try_submit(draft, Durability::Required) {
            Ok(pending) => pending,
            Err(error) => {
                tracing::warn!(%error, "no receipt can be kept; denying");
                return None;
            }
        };
        match tokio::time::timeout(Duration::from_millis(self.config.commit_wait_ms), pending).await {
            Ok(Ok(committed)) => Some(committed),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the receipt was not kept; denying");
                None
            }
            Err(_) => {
                tracing::warn!(waited_ms = self.config.commit_wait_ms, "the ledger did not answer; denying");
                None
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn decision_draft(
        &self,
        claims: &AgentClaims,
        call: &Call,
        trust: &EffectiveTrust,
        profile: &Profile<'_>,
        policy_digest: &str,
        judgement: &Judgement,
        frozen: Option<FrozenAction>,
        now: Timestamp,
    ) -> Draft {
        let mut event = self.event_of(claims, call, trust, EventKind::AuthorizeDecision, now);
        event.event_id = call.event_id;
        event.mutates_state = Some(profile.mutates_state);
        event.target = target_of(profile.action, &call.parameters);
        event.destination = profile.action.map(|a| a.destination);
        event.data_access = Some(profile.data_access);
        event.decision = Some(judgement.decision);
        event.reason = Some(judgement.reason.clone());
        event.risk_level = Some(profile.risk);
        event.risk_score = Some(profile.risk.display_score());
        event.matched_policies.clone_from(&judgement.matched_policies);
        event.policy_digest = Some(policy_digest.to_owned());
        event.approval_id = frozen.as_ref().map(|f| f.approval_id.clone());
        let mut draft = Draft::new(event, Phase::Decision);
        draft.input = aegis_canon::canonicalize_value(&call.parameters).ok();
        draft.detail =
            call.content_hash.as_ref().map(|hash| json!({"request_hash": hash, "request_id": call.request.request_id}));
        draft.frozen = frozen;
        draft
    }

    /// Reports an attempt that gets no decision. The refusal does not wait for it.
    pub(crate) fn report_attempt(
        &self,
        claims: &AgentClaims,
        call: &Call,
        trust: &EffectiveTrust,
        kind: EventKind,
        reason: &str,
        now: Timestamp,
    ) {
        let mut event = self.event_of(claims, call, trust, kind, now);
        event.reason = Some(reason.to_owned());
        let _not_awaited = self.ledger.try_submit(Draft::new(event, Phase::Attempt), Durability::BestEffort);
    }

    fn event_of(
        &self,
        claims: &AgentClaims,
        call: &Call,
        trust: &EffectiveTrust,
        kind: EventKind,
        now: Timestamp,
    ) -> SecurityEvent {
        let request = &call.request;
        let trace = request.trace.as_ref();
        let mut event = SecurityEvent::new(claims.tenant_id.clone(), &self.config.edge_id, "edge", kind, now);
        event.agent_id = Some(claims.agent_id.clone());
        event.token_id = Some(claims.token_id.clone());
        event.user_id = request.user.as_ref().map(|u| u.id.clone());
        event.run_id = trace.and_then(|t| t.run_id.clone());
        event.trace_id = trace.and_then(|t| t.trace_id.clone());
        event.environment = Some(claims.environment.clone());
        event.tool = Some(request.tool_call.tool.clone());
        event.action = Some(request.tool_call.action.clone());
        event.resource.clone_from(&request.tool_call.resource);
        event.mutates_state = Some(request.tool_call.mutates_state);
        event.contains_sensitive_data = Some(request.context.contains_sensitive_data);
        event.source_trust = Some(trust.effective);
        event.root_trust = Some(trust.root);
        event.action_hash = Some(call.action_hash.clone());
        event.nonce_hash = nonce_hash(claims, call);
        event
    }

    /// Parses a body through the strict door and checks what needs no state.
    pub(crate) fn read_call(&self, claims: &AgentClaims, body: &[u8]) -> Result<Call, Refusal> {
        let limits = aegis_canon::Limits { max_bytes: self.config.max_body_bytes, ..aegis_canon::Limits::default() };
        let canon = |error: aegis_canon::CanonError| Refusal::Canon { code: error.code(), message: error.to_string() };
        let mut value = aegis_canon::parse_strict_with(body, limits).map_err(canon)?;
        let bound = ["request_id", "nonce"].iter().any(|key| value.get(key).is_some_and(|v| !v.is_null()));
        let content_hash = if bound { Some(content_hash(&mut value).map_err(canon)?) } else { None };
        let mut request: AuthorizeRequest = serde_json::from_value(value).map_err(|e| Refusal::Malformed(e.to_string()))?;
        crate::http::check_lengths(&request)?;
        let parameters = Value::Object(std::mem::take(&mut request.tool_call.parameters));
        let call = &request.tool_call;
        let action_hash =
            aegis_canon::action_hash(&call.tool, &call.action, call.resource.as_deref(), call.mutates_state, &parameters)
                .map_err(canon)?;
        let call = Call { request, parameters, action_hash, content_hash, event_id: new_event_id() };
        if let Some(version) = call.request.canon_version.as_deref().filter(|v| *v != aegis_canon::CANON_VERSION) {
            self.metrics.canonicalization_skew.inc();
            let now = self.clock.now();
            let trust = self.effective_trust(claims, &call.request, None, now);
            self.report_attempt(claims, &call, &trust, EventKind::CanonicalizationSkew, "canonicalization_skew", now);
            return Err(Refusal::CanonicalizationSkew(version.chars().take(64).collect()));
        }
        if let Some(callback) = &call.request.callback {
            let settings = self.view.settings(&claims.tenant_id);
            if !settings.callback_allow_list.contains(&callback.url) {
                return Err(Refusal::CallbackNotAllowed);
            }
        }
        Ok(call)
    }
}

/// Hash of the canonical request less nonce and timestamp.
fn content_hash(value: &mut Value) -> Result<String, aegis_canon::CanonError> {
    let Some(object) = value.as_object_mut() else { return aegis_canon::hash_value(value) };
    let kept: Vec<(&str, Option<Value>)> = ["nonce", "timestamp"].into_iter().map(|key| (key, object.remove(key))).collect();
    let hash = aegis_canon::hash_value(value)?;
    if let Some(object) = value.as_object_mut() {
        for (key, part) in kept {
            if let Some(part) = part {
                object.insert(key.to_owned(), part);
            }
        }
    }
    Ok(hash)
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

fn request_key(claims: &AgentClaims, call: &Call) -> Option<(aegis_model::TenantId, String, String)> {
    let request_id = call.request.request_id.as_ref()?;
    Some((claims.tenant_id.clone(), claims.agent_id.clone(), request_id.clone()))
}

/// Hash of the nonce alone, so that reuse shows across agents and edges of a tenant.
fn nonce_hash(claims: &AgentClaims, call: &Call) -> Option<String> {
    let nonce = call.request.nonce.as_ref()?;
    Some(aegis_canon::sha256_hex(format!("aegis-nonce-1\0{}\0{nonce}", claims.tenant_id).as_bytes()))
}

fn target_of(action: Option<&ActionRecord>, parameters: &Value) -> Option<String> {
    let target = parameters.get(action?.target_parameter.as_deref()?)?.as_str()?;
    Some(target.chars().take(MAX_TARGET).collect())
}

#[allow(clippy::too_many_arguments)]
fn freeze(
    claims: &AgentClaims,
    call: &Call,
    trust: &EffectiveTrust,
    profile: &Profile<'_>,
    settings: &TenantSettings,
    policy_digest: &str,
    judgement: &Judgement,
    now: Timestamp,
) -> FrozenAction {
    let mut tool_call = call.request.tool_call.clone();
    tool_call.parameters = call.parameters.as_object().cloned().unwrap_or_default();
    FrozenAction {
        approval_id: approval_id(claims, call),
        tenant_id: claims.tenant_id.clone(),
        event_id: call.event_id,
        agent_id: claims.agent_id.clone(),
        token_id: Some(claims.token_id.clone()),
        user_id: call.request.user.as_ref().map(|u| u.id.clone()),
        run_id: call.request.trace.as_ref().and_then(|t| t.run_id.clone()),
        environment: claims.environment.clone(),
        tool_call,
        action_hash: call.action_hash.clone(),
        source_trust: trust.effective,
        root_trust: trust.root,
        contains_sensitive_data: call.request.context.contains_sensitive_data,
        risk_level: profile.risk,
        reason: judgement.reason.clone(),
        matched_policies: judgement.matched_policies.clone(),
        policy_digest: policy_digest.to_owned(),
        approver_group: judgement.approver_group.clone().unwrap_or_else(|| settings.approver_group.clone()),
        approvals_needed: judgement.approvals,
        requested_at: now,
        expires_at: now.plus_seconds(settings.approval_ttl_s),
        callback_url: call.request.callback.as_ref().map(|c| c.url.clone()),
    }
}

/// Derived, so that a retry on any edge meets the one approval.
fn approval_id(claims: &AgentClaims, call: &Call) -> String {
    let origin = call.request.request_id.clone().unwrap_or_else(|| call.event_id.to_string());
    let mut hasher = Sha256::new();
    for part in ["aegis-approval-1", claims.tenant_id.as_str(), &claims.agent_id, &origin, &call.action_hash] {
        hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    let digest: [u8; 32] = hasher.finalize().into();
    let mut id = [0u8; 16];
    id.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(id).into_uuid().to_string()
}
