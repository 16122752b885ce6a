//! Who is calling and how far the call may be trusted: verified tokens, and the strictest of all labels that apply.

use std::collections::HashMap;
use std::sync::Arc;

use aegis_keys::{AgentClaims, KeyRing, VerifyingKey, verify_agent_token};
use aegis_model::{AuthorizeRequest, ChannelRecord, SourceTrust, TenantId, TenantSettings, Timestamp};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::RwLock;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::Edge;
use crate::digest::{Key, run_key};
use crate::error::Refusal;

/// Tokens whose signature was verified, by SHA-256, so that a signature is checked once per token and not once per call.
#[derive(Debug)]
pub(crate) struct TokenCache {
    verified: RwLock<HashMap<[u8; 32], Arc<AgentClaims>>>,
    capacity: usize,
}

impl TokenCache {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { verified: RwLock::default(), capacity: capacity.max(1) }
    }

    /// The claims of a token that verifies and has not expired.
    pub(crate) fn claims(&self, ring: &KeyRing, token: &str, now: Timestamp) -> Result<Arc<AgentClaims>, Refusal> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(claims) = self.verified.read().get(&digest) {
            return if claims.expires_at > now { Ok(claims.clone()) } else { Err(Refusal::BadToken) };
        }
        let claims = Arc::new(verify_agent_token(ring, token, now).map_err(|_| Refusal::BadToken)?);
        let mut verified = self.verified.write();
        if verified.len() >= self.capacity {
            verified.retain(|_, claims| claims.expires_at > now);
            if verified.len() >= self.capacity {
                verified.clear();
            }
        }
        verified.insert(digest, claims.clone());
        Ok(claims)
    }
}

/// The labels of one call.
#[derive(Clone, Debug)]
pub(crate) struct EffectiveTrust {
    /// What decides: the strictest of everything that applies.
    pub(crate) effective: SourceTrust,
    /// The run's label before this call, or the label it starts with.
    pub(crate) root: SourceTrust,
    /// The run this call counts for, and what it is known by here.
    pub(crate) run: String,
    pub(crate) run_key: Key,
    pub(crate) run_idle_s: i64,
}

impl Edge {
    /// Combines all labels of a call (CONTRACTS §2). Changes nothing.
    pub(crate) fn effective_trust(
        &self,
        claims: &AgentClaims,
        request: &AuthorizeRequest,
        channel: Option<&ChannelRecord>,
        settings: &TenantSettings,
        now: Timestamp,
    ) -> EffectiveTrust {
        let trace = request.trace.as_ref();
        let (run, run_idle_s) = match trace.and_then(|t| t.run_id.as_deref()) {
            Some(run_id) => (["run:", run_id].concat(), settings.run_idle_s),
            None => (["agent:", &claims.agent_id].concat(), settings.implicit_run_idle_s),
        };
        let said = claimed_label(request, channel);
        let channel_label = match (channel, request.context.channel.as_deref()) {
            (Some(channel), _) => channel.source_trust,
            // A channel nobody registered vouches for nothing.
            (None, Some(_)) => SourceTrust::Unknown,
            (None, None) => SourceTrust::TrustedInternalSigned,
        };
        let root_claim = trace.and_then(|t| t.root_trust_level);
        let echoed = trace
            .and_then(|t| t.trust_token.as_deref())
            .and_then(|token| self.trust_tokens.verify(&claims.tenant_id, &run, token, now));
        // While what other edges made of runs is not known, a run counts as one that they labelled since its token was given.
        let unread = (!self.view.told.is_known(now, self.config.max_snapshot_age_s)).then_some(SourceTrust::Unknown);
        let parent = trace
            .and_then(|t| t.parent_run_id.as_deref())
            .and_then(|parent| self.run_label(&claims.tenant_id, &run_key(&format!("run:{parent}")), now).max(unread));
        let run_key = run_key(&run);
        let run_label = self.run_label(&claims.tenant_id, &run_key, now).max(unread);

        let inherited = [root_claim, echoed, parent, run_label].into_iter().flatten().max();
        let call = said.combine(channel_label).combine(claims.trust_ceiling);
        let effective = inherited.map_or(call, |label| label.combine(call));
        EffectiveTrust { effective, root: inherited.unwrap_or(call), run, run_key, run_idle_s }
    }

    /// The strictest of what this edge and the others have made of a run.
    fn run_label(&self, tenant: &TenantId, run: &Key, now: Timestamp) -> Option<SourceTrust> {
        self.runs.label(tenant, run, now).max(self.view.told.runs.label(tenant, run, now))
    }
}

/// The request's own label; `trusted_internal_signed` only with a signature of the channel's registered key.
fn claimed_label(request: &AuthorizeRequest, channel: Option<&ChannelRecord>) -> SourceTrust {
    let said = request.context.source_trust;
    if said == SourceTrust::TrustedInternalSigned && !has_valid_source_signature(request, channel) {
        return SourceTrust::TrustedInternalUnsigned;
    }
    said
}

fn has_valid_source_signature(request: &AuthorizeRequest, channel: Option<&ChannelRecord>) -> bool {
    let (Some(channel), Some(signature)) = (channel, request.context.source_signature.as_deref()) else { return false };
    let Some(key) = channel.public_key.as_deref().and_then(|key| VerifyingKey::from_base64(key).ok()) else { return false };
    let Some(run_id) = request.trace.as_ref().and_then(|t| t.run_id.as_deref()) else { return false };
    let statement = json!({"run_id": run_id, "source": channel.channel, "source_trust": request.context.source_trust});
    let (Ok(message), Ok(signature)) = (aegis_canon::canonicalize_value(&statement), STANDARD.decode(signature)) else {
        return false;
    };
    key.verify(&message, &signature)
}
