//! What a call leaves behind: the event and receipt of its decision, the report of an attempt, and the action frozen for an approval.

use aegis_bus::MAX_FROZEN_ACTION;
use aegis_keys::AgentClaims;
use aegis_ledger::{Draft, Durability};
use aegis_model::{
    ActionRecord, EventId, EventKind, FrozenAction, Phase, SecurityEvent, TenantSettings, Timestamp, new_event_id,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Edge;
use crate::authorize::{Judgement, Profile};
use crate::call::{Call, nonce_hash};
use crate::trust::EffectiveTrust;

/// Longest `target` kept in an event, characters.
const MAX_TARGET: usize = 512;

/// An action frozen for an approval, and the digest by which its receipt vouches for it.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) action: FrozenAction,
    digest: String,
}

impl Edge {
    /// What the call says goes into the draft: nothing is left of it to ask for again.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn decision_draft(
        &self,
        claims: &AgentClaims,
        call: &mut Call,
        trust: &EffectiveTrust,
        profile: &Profile<'_>,
        policy_digest: &str,
        judgement: &Judgement,
        frozen: Option<Frozen>,
        now: Timestamp,
    ) -> Draft {
        let mut event = self.event_of(call.event_id, claims, call, trust, EventKind::AuthorizeDecision, now);
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
        event.approval_id = frozen.as_ref().map(|f| f.action.approval_id.clone());
        event.attributes = claimed_environment(claims, call);
        let mut draft = Draft::new(event, Phase::Decision);
        draft.input = Some(std::mem::take(&mut call.input));
        draft.detail = detail(call, frozen.as_ref());
        draft.frozen = frozen.map(|f| Box::new(f.action));
        draft
    }

    /// Reports an attempt that gets no decision. The refusal does not wait for it.
    pub(crate) fn report_attempt(
        &self,
        claims: &AgentClaims,
        call: &mut Call,
        trust: &EffectiveTrust,
        kind: EventKind,
        reason: &str,
        now: Timestamp,
    ) {
        let mut event = self.event_of(new_event_id(), claims, call, trust, kind, now);
        event.reason = Some(reason.to_owned());
        let _not_awaited = self.ledger.try_submit(Draft::new(event, Phase::Attempt), Durability::BestEffort);
    }

    fn event_of(
        &self,
        event_id: EventId,
        claims: &AgentClaims,
        call: &mut Call,
        trust: &EffectiveTrust,
        kind: EventKind,
        now: Timestamp,
    ) -> SecurityEvent {
        let nonce_hash = nonce_hash(claims, call);
        let request = &mut call.request;
        let trace = request.trace.take().unwrap_or_default();
        let mut event = SecurityEvent::with_id(event_id, claims.tenant_id.clone(), &self.config.edge_id, "edge", kind, now);
        event.agent_id = Some(claims.agent_id.clone());
        event.token_id = Some(claims.token_id.clone());
        event.user_id = request.user.take().map(|user| user.id);
        event.run_id = trace.run_id;
        event.trace_id = trace.trace_id;
        event.environment = Some(claims.environment.clone());
        event.tool = Some(std::mem::take(&mut request.tool_call.tool));
        event.action = Some(std::mem::take(&mut request.tool_call.action));
        event.resource = request.tool_call.resource.take();
        event.mutates_state = Some(request.tool_call.mutates_state);
        event.contains_sensitive_data = Some(request.context.contains_sensitive_data);
        event.source_trust = Some(trust.effective);
        event.root_trust = Some(trust.root);
        event.action_hash = Some(call.action_hash.clone());
        event.nonce_hash = nonce_hash;
        event.clock_suspect = self.clock.is_suspect();
        event
    }
}

/// The environment that the caller says it is in, where it is another than its token's, which is the one that counts.
fn claimed_environment(claims: &AgentClaims, call: &Call) -> Option<String> {
    let claimed = call.request.agent.environment.as_deref().filter(|claimed| *claimed != claims.environment)?;
    Some(json!({"claimed_environment": claimed}).to_string())
}

/// What a decision's receipt says beside the event's columns.
fn detail(call: &Call, frozen: Option<&Frozen>) -> Option<Value> {
    let mut detail = serde_json::Map::new();
    if let Some(hash) = &call.content_hash {
        detail.insert("request_hash".to_owned(), json!(hash));
        detail.insert("request_id".to_owned(), json!(call.request.request_id));
    }
    if let Some(frozen) = frozen {
        detail.insert("frozen_digest".to_owned(), json!(frozen.digest));
    }
    (!detail.is_empty()).then_some(Value::Object(detail))
}

fn target_of(action: Option<&ActionRecord>, parameters: &Value) -> Option<String> {
    let target = parameters.get(action?.target_parameter.as_deref()?)?.as_str()?;
    Some(target.chars().take(MAX_TARGET).collect())
}

/// None where it would never reach control, as it travels or in the canonical form of its digest. Either may be the longer: JSON text has
/// `1000000000000000.0` for `1e15`, the canonical form `100000000000000000000` for `1e20`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn freeze(
    claims: &AgentClaims,
    call: &Call,
    trust: &EffectiveTrust,
    profile: &Profile<'_>,
    settings: &TenantSettings,
    policy_digest: &str,
    judgement: &Judgement,
    now: Timestamp,
) -> Option<Frozen> {
    let mut tool_call = call.request.tool_call.clone();
    tool_call.parameters = call.parameters.as_object().cloned().unwrap_or_default();
    let action = FrozenAction {
        approval_id: approval_id(claims, call),
        tenant_id: claims.tenant_id.clone(),
        event_id: call.event_id,
        agent_id: claims.agent_id.clone(),
        token_id: Some(claims.token_id.clone()),
        issued_by: Some(claims.issued_by.clone()),
        user_id: call.request.user.as_ref().map(|u| u.id.clone()),
        user_role: call.request.user.as_ref().and_then(|u| u.role.clone()),
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
    };
    let fits = serde_json::to_vec(&action).is_ok_and(|json| json.len() <= MAX_FROZEN_ACTION);
    let digest = action.digest().ok().filter(|_| fits)?;
    Some(Frozen { action, digest })
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
