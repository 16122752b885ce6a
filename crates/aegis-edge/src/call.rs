//! One authorize call as it was sent: parsed through the strict door, bounded, and with the hashes that bind it.

use aegis_keys::AgentClaims;
use aegis_model::{AuthorizeRequest, EventId, EventKind, new_event_id};
use serde_json::Value;

use crate::Edge;
use crate::bounded::Named;
use crate::error::Refusal;

/// A parsed request with its hashes.
pub(crate) struct Call {
    pub(crate) request: AuthorizeRequest,
    /// The parameters, taken out of the request.
    pub(crate) parameters: Value,
    /// Their canonical form.
    pub(crate) input: Vec<u8>,
    pub(crate) action_hash: String,
    /// Canonical hash of the request less nonce and timestamp; only where a request id or nonce binds it.
    pub(crate) content_hash: Option<String>,
    pub(crate) event_id: EventId,
}

impl Edge {
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
        let (action_hash, input) = aegis_canon::action_hash_and_parameters(
            &call.tool,
            &call.action,
            call.resource.as_deref(),
            call.mutates_state,
            &parameters,
        )
        .map_err(canon)?;
        let call = Call { request, parameters, input, action_hash, content_hash, event_id: new_event_id() };
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

/// The call's request id, unless it is a dry run, which binds nothing.
pub(crate) fn request_named<'a>(claims: &'a AgentClaims, call: &Call) -> Option<Named<'a>> {
    let request_id = call.request.request_id.as_ref().filter(|_| !call.request.dry_run)?;
    Some(Named::new(&claims.tenant_id, &claims.agent_id, request_id))
}

/// Hash of the nonce alone, so that reuse shows across agents and edges of a tenant.
pub(crate) fn nonce_hash(claims: &AgentClaims, call: &Call) -> Option<String> {
    let nonce = call.request.nonce.as_ref()?;
    Some(aegis_canon::sha256_hex(format!("aegis-nonce-1\0{}\0{nonce}", claims.tenant_id).as_bytes()))
}
