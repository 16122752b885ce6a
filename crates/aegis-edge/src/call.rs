//! One authorize call as it was sent: parsed through the strict door, bounded, and with the hashes that bind it.

use aegis_canon::{CanonError, Limits};
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
        let limits = Limits { max_bytes: self.config.max_body_bytes, ..Limits::default() };
        let (mut request, content_hash) = read_request(body, limits)?;
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
        .map_err(uncanonical)?;
        let mut call = Call { request, parameters, input, action_hash, content_hash, event_id: new_event_id() };
        if let Some(version) = call.request.canon_version.as_deref().filter(|v| *v != aegis_canon::CANON_VERSION) {
            self.metrics.canonicalization_skew.inc();
            let refusal = Refusal::CanonicalizationSkew(version.chars().take(64).collect());
            let now = self.clock.now();
            let settings = self.view.settings(&claims.tenant_id);
            let trust = self.effective_trust(claims, &call.request, None, &settings, now);
            self.report_attempt(claims, &mut call, &trust, EventKind::CanonicalizationSkew, "canonicalization_skew", now);
            return Err(refusal);
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

/// What binds a request to its content, so that this must be hashed.
const BINDING: [&str; 2] = ["request_id", "nonce"];

/// The request, and the hash of its content where something binds it.
fn read_request(body: &[u8], limits: Limits) -> Result<(AuthorizeRequest, Option<String>), Refusal> {
    let read = match aegis_canon::read_as::<AuthorizeRequest>(body, limits) {
        // Nothing binds it, so nobody asks for its text again: no value is made of what is only checked.
        Some(request) if request.request_id.is_none() && request.nonce.is_none() => return Ok((request, None)),
        read => read,
    };
    let mut value = aegis_canon::parse_strict_with(body, limits).map_err(uncanonical)?;
    let bound = BINDING.iter().any(|key| value.get(key).is_some_and(|v| !v.is_null()));
    let content_hash = if bound { Some(content_hash(&mut value).map_err(uncanonical)?) } else { None };
    let request = match read {
        Some(request) => request,
        None => serde_json::from_value(value).map_err(|e| Refusal::Malformed(e.to_string()))?,
    };
    Ok((request, content_hash))
}

fn uncanonical(error: CanonError) -> Refusal {
    Refusal::Canon { code: error.code(), message: error.to_string() }
}

/// Hash of the canonical request less nonce and timestamp.
fn content_hash(value: &mut Value) -> Result<String, CanonError> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// The way every request took, and the one that says what is wrong.
    fn long_way(body: &[u8]) -> Result<(AuthorizeRequest, Option<String>), Refusal> {
        let mut value = aegis_canon::parse_strict_with(body, Limits::default()).map_err(uncanonical)?;
        let bound = BINDING.iter().any(|key| value.get(key).is_some_and(|v| !v.is_null()));
        let content = bound.then(|| content_hash(&mut value).map_err(uncanonical)).transpose()?;
        Ok((serde_json::from_value(value).map_err(|e| Refusal::Malformed(e.to_string()))?, content))
    }

    fn shown(read: Result<(AuthorizeRequest, Option<String>), Refusal>) -> Result<(String, Option<String>), Refusal> {
        read.map(|(request, content)| (serde_json::to_string(&request).unwrap(), content))
    }

    fn full() -> Value {
        json!({
            "agent": {"id": "a", "environment": "production"},
            "user": {"id": "u", "role": null},
            "tool_call": {"tool": "crm", "action": "update", "resource": "customer/1", "mutates_state": true,
                "parameters": {"z": 1, "a": {"b": [1.5, null, "é\n"]}}},
            "context": {"source_trust": "semi_trusted_customer", "contains_sensitive_data": false},
            "trace": {"run_id": "r", "root_trust_level": "unknown", "trust_token": null},
            "callback": {"url": "https://example.com"},
            "timestamp": "2026-11-22T10:00:00Z", "canon_version": "aegis-jcs-1", "dry_run": false,
            "something_else": {"x": [{}]},
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn a_request_is_read_as_the_long_way_reads_it(
            at in any::<prop::sample::Index>(),
            removed in 0usize..3,
            piece in prop::sample::select(vec![
                "", "", " ", "\"", "{", "}", ",", "null", "1", "-", "\\u0061", "\\ud800", "\"request_id\":\"i\",", "\"nonce\":null,",
                "\"request_id\":null,", "\"nonce\":\"n\",", "\"tool_key\":\"t\",", "\"parameters\":null,", "\"dry_run\":true,", "\"x\":1,",
            ]),
        ) {
            let characters: Vec<char> = full().to_string().chars().collect();
            let at = at.index(characters.len());
            let rest = &characters[(at + removed).min(characters.len())..];
            let body: String = characters[..at].iter().copied().chain(piece.chars()).chain(rest.iter().copied()).collect();
            prop_assert_eq!(shown(read_request(body.as_bytes(), Limits::default())), shown(long_way(body.as_bytes())));
        }
    }

    #[test]
    fn what_binds_nothing_takes_the_short_way_and_what_binds_is_hashed() {
        let plain = full().to_string();
        let short = aegis_canon::read_as::<AuthorizeRequest>(plain.as_bytes(), Limits::default()).unwrap();
        let (request, content) = long_way(plain.as_bytes()).unwrap();
        assert_eq!((json!(short), content), (json!(request), None));
        for key in BINDING {
            let mut bound = full();
            bound[key] = json!("x");
            let (_, content) = read_request(bound.to_string().as_bytes(), Limits::default()).unwrap();
            assert_eq!(content, long_way(bound.to_string().as_bytes()).unwrap().1);
            assert!(content.is_some());
        }
    }
}
