//! One receipt alone: its hash, the digest of its event, the facts that both name, and its proof. No link: that needs the lane.

use aegis_keys::KeyRing;
use aegis_model::{DIGEST_EXCLUDED, RECEIPT_SCHEMA, Timestamp};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::proof::{self, CommitCache, hash_from_hex};
use super::{FailureCode, VerifyFailure};
use crate::merkle::Hash;

/// A receipt whose own parts agree, as far as they were there to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedReceipt {
    pub tenant_id: String,
    pub event_id: String,
    pub lane: String,
    pub seq: i64,
    pub phase: String,
    pub ts: Timestamp,
    pub receipt_hash: String,
    /// Empty for seq 1.
    pub prev_receipt_hash: String,
    pub key_id: String,
    /// The lane that this one succeeds, on an `open` that names one.
    pub predecessor: Option<String>,
    /// True if a pinned key's signature covers it.
    pub signed: bool,
}

/// The facts that stand both in the event and in the body, and must agree: consumers read the event, evidence is the body. In the order
/// of a canonical text.
pub(super) const SHARED: [&str; 21] = [
    "action",
    "action_hash",
    "agent_id",
    "approval_id",
    "approver",
    "decision",
    "event_id",
    "lane",
    "matched_policies",
    "mutates_state",
    "policy_digest",
    "ref_event_id",
    "resource",
    "run_id",
    "seq",
    "source_trust",
    "tenant_id",
    "tool",
    "trace_id",
    "ts",
    "user_id",
];

fn fail<T>(code: FailureCode, message: impl Into<String>) -> Result<T, VerifyFailure> {
    Err(VerifyFailure::new(code, message))
}

/// Verifies a published event or an export line (the event's columns with `receipt_hash`, `receipt` and `proof`): hash, event
/// digest, shared facts and proof. With a ring the commit must be signed by one of its keys.
pub fn verify_wire(wire: &Value, ring: Option<&KeyRing>) -> Result<VerifiedReceipt, VerifyFailure> {
    verify_wire_cached(wire, ring, &mut CommitCache::default())
}

pub(super) fn verify_wire_cached(
    wire: &Value,
    ring: Option<&KeyRing>,
    cache: &mut CommitCache,
) -> Result<VerifiedReceipt, VerifyFailure> {
    let Some(event) = wire.as_object() else { return fail(FailureCode::Malformed, "it is not a JSON object") };
    let Some(body) = event.get("receipt").and_then(Value::as_object) else {
        return Err(VerifyFailure::new(FailureCode::MissingReceipt, "it has no receipt").about(event));
    };
    check_wire(event, body, ring, cache).map_err(|failure| failure.about(body))
}

fn check_wire(
    event: &Map<String, Value>,
    body: &Map<String, Value>,
    ring: Option<&KeyRing>,
    cache: &mut CommitCache,
) -> Result<VerifiedReceipt, VerifyFailure> {
    let (mut receipt, receipt_hash) = read_body(body, &["receipt_hash"])?;
    if event.get("receipt_hash").and_then(Value::as_str) != Some(receipt.receipt_hash.as_str()) {
        return fail(FailureCode::HashMismatch, "the event's receipt_hash is not its receipt's");
    }
    let digest = hash_of(event, |key, value| !value.is_null() && !DIGEST_EXCLUDED.contains(&key))?;
    if body.get("event_digest").and_then(Value::as_str).and_then(hash_from_hex) != Some(digest) {
        return fail(FailureCode::DigestMismatch, "event_digest is not the digest of the event's columns");
    }
    for key in SHARED {
        if event.get(key).unwrap_or(&Value::Null) != body.get(key).unwrap_or(&Value::Null) {
            return fail(FailureCode::ColumnMismatch, format!("event and receipt name different values of {key}"));
        }
    }
    let Some(proof) = event.get("proof").and_then(Value::as_object) else {
        return fail(FailureCode::MissingProof, "it has no proof");
    };
    proof::check(proof, &receipt_hash, proof::Maker::of(&receipt), ring, cache)?;
    receipt.signed = ring.is_some();
    Ok(receipt)
}

/// Verifies a bare body with its `receipt_hash`, and its `proof` if it has one. There is no event to digest.
pub(super) fn verify_bare(
    line: &Map<String, Value>,
    ring: Option<&KeyRing>,
    cache: &mut CommitCache,
) -> Result<VerifiedReceipt, VerifyFailure> {
    check_bare(line, ring, cache).map_err(|failure| failure.about(line))
}

fn check_bare(
    line: &Map<String, Value>,
    ring: Option<&KeyRing>,
    cache: &mut CommitCache,
) -> Result<VerifiedReceipt, VerifyFailure> {
    let (mut receipt, receipt_hash) = read_body(line, &["receipt_hash", "proof"])?;
    match line.get("proof") {
        Some(Value::Object(proof)) => {
            proof::check(proof, &receipt_hash, proof::Maker::of(&receipt), ring, cache)?;
            receipt.signed = ring.is_some();
        }
        Some(_) => return fail(FailureCode::Malformed, "its proof is not an object"),
        None if ring.is_some() => return fail(FailureCode::MissingProof, "it has no proof, and a key is pinned"),
        None => {}
    }
    Ok(receipt)
}

/// Reads what every rule needs from a body, and checks its hash over everything but `beside`.
fn read_body(body: &Map<String, Value>, beside: &[&str]) -> Result<(VerifiedReceipt, Hash), VerifyFailure> {
    let text = |key: &str| match body.get(key).and_then(Value::as_str) {
        Some(text) => Ok(text.to_owned()),
        None => fail(FailureCode::Malformed, format!("its {key} is not a string")),
    };
    let schema = text("schema")?;
    if schema != RECEIPT_SCHEMA {
        let shown: String = schema.chars().take(40).collect();
        return fail(FailureCode::UnknownSchema, format!("schema `{shown}` is not {RECEIPT_SCHEMA}"));
    }
    let hash = hash_of(body, |key, _| !beside.contains(&key))?;
    let claimed = text("receipt_hash")?;
    if hash_from_hex(&claimed) != Some(hash) {
        return fail(FailureCode::HashMismatch, "receipt_hash is not the hash of the body");
    }
    let Some(seq) = body.get("seq").and_then(Value::as_i64).filter(|seq| *seq >= 1) else {
        return fail(FailureCode::Malformed, "its seq is not a number from 1");
    };
    let ts = match Timestamp::parse_rfc3339(&text("ts")?) {
        Ok(ts) => ts,
        Err(_) => return fail(FailureCode::Malformed, "its ts is not an RFC 3339 time"),
    };
    let (tenant_id, lane) = (text("tenant_id")?, text("lane")?);
    if lane.split_once('.').map(|(tenant, _)| tenant) != Some(tenant_id.as_str()) {
        return fail(FailureCode::ColumnMismatch, "its lane belongs to another tenant");
    }
    text("event_digest")?;
    let receipt = VerifiedReceipt {
        tenant_id,
        event_id: text("event_id")?,
        lane,
        seq,
        phase: text("phase")?,
        ts,
        receipt_hash: claimed,
        prev_receipt_hash: text("prev_receipt_hash")?,
        key_id: text("key_id")?,
        predecessor: predecessor_of(body),
        signed: false,
    };
    Ok((receipt, hash))
}

fn predecessor_of(body: &Map<String, Value>) -> Option<String> {
    if body.get("phase")?.as_str()? != "open" {
        return None;
    }
    Some(body.get("detail")?.get("predecessor")?.get("lane")?.as_str()?.to_owned())
}

/// SHA-256 of the canonical form of `object` with only the members that `kept` accepts.
pub(super) fn hash_of(object: &Map<String, Value>, kept: impl Fn(&str, &Value) -> bool) -> Result<Hash, VerifyFailure> {
    let mut members: Vec<(&String, &Value)> = object.iter().filter(|(key, value)| kept(key, value)).collect();
    // Among ASCII keys byte order is the order of RFC 8785. Other keys take the long way.
    let canonical = if members.iter().all(|(key, _)| key.is_ascii()) {
        members.sort_unstable_by_key(|(key, _)| *key);
        canonical_members(&members)
    } else {
        let copy = members.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        aegis_canon::canonicalize_value(&Value::Object(copy))
    };
    match canonical {
        Ok(canonical) => Ok(Sha256::digest(canonical).into()),
        Err(error) => fail(FailureCode::Malformed, format!("it has no canonical form: {error}")),
    }
}

fn canonical_members(members: &[(&String, &Value)]) -> Result<Vec<u8>, aegis_canon::CanonError> {
    let mut out = Vec::with_capacity(1536);
    out.push(b'{');
    for (position, (key, value)) in members.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        let plain = key.bytes().all(|b| b >= b' ' && b != b'"' && b != b'\\');
        if plain {
            out.push(b'"');
            out.extend_from_slice(key.as_bytes());
            out.push(b'"');
        } else {
            aegis_canon::canonicalize_value_into(&Value::String((*key).clone()), &mut out)?;
        }
        out.push(b':');
        aegis_canon::canonicalize_value_into(value, &mut out)?;
    }
    out.push(b'}');
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_member_wise_hash_is_the_canonical_hash(keys in prop::collection::vec(any::<String>(), 0..8), number in any::<i32>()) {
            let object: Map<String, Value> =
                keys.into_iter().map(|key| (key.clone(), serde_json::json!({"n": number, "k": key}))).collect();
            let expected = aegis_canon::hash_value(&Value::Object(object.clone())).unwrap();
            prop_assert_eq!(hex::encode(hash_of(&object, |_, _| true).unwrap()), expected);
        }
    }
}
