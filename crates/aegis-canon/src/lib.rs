//! aegis-jcs-1: the one canonical JSON form that hashes, signatures and receipts are computed over.
//!
//! Owns the strict door (bytes to a value, with nothing silently repaired), the RFC 8785 writer (a value to canonical
//! bytes) and the hashes over it. Promises: what the door accepts has exactly one canonical form, whichever path it took;
//! any other input is a [`CanonError`], and no input panics or overflows the stack. Never does I/O, never normalises.
//!
//! The scheme is RFC 8785 (JCS) over I-JSON (RFC 7493). These are always rejected: duplicate keys at any depth, lone
//! surrogates, NaN and infinities, integer literals outside ±(2^53 − 1), containers nested over [`MAX_DEPTH`], and an input
//! or a canonical form over the size limit.
//!
//! ```
//! let canonical = aegis_canon::canonicalize_bytes(br#"{"b": 1.0, "a": "\u00e9"}"#)?;
//! assert_eq!(canonical, r#"{"a":"é","b":1}"#.as_bytes());
//! let rejection = aegis_canon::canonicalize_bytes(br#"{"a": 1, "a": 2}"#).unwrap_err();
//! assert_eq!((rejection.code(), rejection.offset()), ("duplicate_key", Some(9)));
//! # Ok::<(), aegis_canon::CanonError>(())
//! ```

mod direct;
mod error;
mod members;
mod number;
mod object;
mod plain;
mod read;
mod scan;
mod write;

pub use direct::read_as;
pub use error::CanonError;
pub use members::{Members, Outline, Place, RawMember};
pub use object::ObjectText;
pub use scan::{is_canonical, outline};
pub use write::write_string;

use std::ops::Range;

use serde_json::Value;
use sha2::{Digest, Sha256};
use write::Writer;

/// The name of this scheme, as receipts and requests carry it. A change of the scheme is a new name.
pub const CANON_VERSION: &str = "aegis-jcs-1";

/// How many containers may be open at once: `[[]]` has depth 2, a scalar has depth 0.
pub const MAX_DEPTH: usize = 128;

/// The size limit, in bytes, where the caller sets none. It holds for the input and for the canonical form, which may be
/// longer (`1e20` is written with 21 digits), so that a canonical form is never too large to be read again.
pub const DEFAULT_MAX_BYTES: usize = 1 << 20;

/// 2^53 − 1: beyond it neighbouring integers are one double, and languages disagree about which integer was meant.
pub const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// What a caller allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest input and largest canonical form, in bytes.
    pub max_bytes: usize,
    /// Deepest nesting. It can only tighten: a value over [`MAX_DEPTH`] counts as [`MAX_DEPTH`].
    pub max_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_bytes: DEFAULT_MAX_BYTES, max_depth: MAX_DEPTH }
    }
}

impl Limits {
    fn depth(self) -> usize {
        self.max_depth.min(MAX_DEPTH)
    }
}

/// Reads one JSON text through the strict door, with the default limits.
///
/// Use this, not `serde_json::from_slice`, for whatever is hashed later: `serde_json` keeps the last of two equal keys,
/// turns long integers into doubles, and may read a double one unit in the last place away from the nearest.
/// Nor pass the result through `serde_json::from_value` into a type that holds a `Value`: with its feature `raw_value`,
/// `serde_json` replaces an object whose first key is `$serde_json::private::RawValue` by what that key's text means.
pub fn parse_strict(input: &[u8]) -> Result<Value, CanonError> {
    parse_strict_with(input, Limits::default())
}

/// Reads one JSON text through the strict door, within `limits`.
///
/// Checks run in a fixed order, so that every implementation names the same reason: size, then UTF-8, then the first
/// offence in reading order.
pub fn parse_strict_with(input: &[u8], limits: Limits) -> Result<Value, CanonError> {
    read::document(input, limits)
}

/// The canonical form of a JSON text, with the default limits.
pub fn canonicalize_bytes(input: &[u8]) -> Result<Vec<u8>, CanonError> {
    canonicalize_bytes_with(input, Limits::default())
}

/// The canonical form of a JSON text, within `limits`, which hold for the input and for the result.
pub fn canonicalize_bytes_with(input: &[u8], limits: Limits) -> Result<Vec<u8>, CanonError> {
    let value = read::document(input, limits)?;
    let mut canonical = Vec::with_capacity(input.len());
    Writer::new(&mut canonical, limits).value(&value, 0)?;
    Ok(canonical)
}

/// The canonical form of a value. Depth, size and the range of integers are checked as at the strict door; what only the
/// bytes can show (duplicate keys, lone surrogates) has to be caught where the value was read.
pub fn canonicalize_value(value: &Value) -> Result<Vec<u8>, CanonError> {
    let mut canonical = Vec::new();
    canonicalize_value_into(value, &mut canonical)?;
    Ok(canonical)
}

/// Appends the canonical form of `value` to `out`, so that a hot path can reuse a buffer. On an error `out` is as it was.
pub fn canonicalize_value_into(value: &Value, out: &mut Vec<u8>) -> Result<(), CanonError> {
    let length_before = out.len();
    let written = Writer::new(out, Limits::default()).value(value, 0);
    if written.is_err() {
        out.truncate(length_before);
    }
    written
}

/// Lower-case hex SHA-256 of `bytes`.
pub fn sha256_hex(bytes: &[u8]) -> String {
    let mut text: hex::Buffer<32> = hex::Buffer::new();
    str::to_owned(text.format(&Sha256::digest(bytes).into()))
}

/// Lower-case hex. `hex::encode` writes the same, one character at a time.
pub fn hex_text(bytes: &[u8]) -> String {
    let mut text = vec![b'0'; bytes.len() * 2];
    // The lengths fit, so neither step can fail.
    let _written = hex::encode_to_slice(bytes, &mut text);
    String::from_utf8(text).unwrap_or_default()
}

/// Lower-case hex SHA-256 of the canonical form of `value`.
pub fn hash_value(value: &Value) -> Result<String, CanonError> {
    Ok(sha256_hex(&canonicalize_value(value)?))
}

/// What an approval, a receipt and an execution are bound to: the hash of the canonical form of exactly
/// `{tool, action, resource (null if absent), mutates_state, parameters}`.
///
/// The object around `parameters` is one level of depth and counts towards the size limit.
pub fn action_hash(
    tool: &str,
    action: &str,
    resource: Option<&str>,
    mutates_state: bool,
    parameters: &Value,
) -> Result<String, CanonError> {
    canonical_action(tool, action, resource, mutates_state, parameters).map(|(canonical, _)| sha256_hex(&canonical))
}

/// [`action_hash`] and the canonical form of `parameters`, which is part of what is hashed: for callers that need both.
pub fn action_hash_and_parameters(
    tool: &str,
    action: &str,
    resource: Option<&str>,
    mutates_state: bool,
    parameters: &Value,
) -> Result<(String, Vec<u8>), CanonError> {
    let (mut canonical, place) = canonical_action(tool, action, resource, mutates_state, parameters)?;
    let hash = sha256_hex(&canonical);
    canonical.truncate(place.end);
    canonical.drain(..place.start);
    Ok((hash, canonical))
}

/// The canonical form of an action, and where in it that of its parameters stands.
fn canonical_action(
    tool: &str,
    action: &str,
    resource: Option<&str>,
    mutates_state: bool,
    parameters: &Value,
) -> Result<(Vec<u8>, Range<usize>), CanonError> {
    // The five keys are written here in canonical order, so that `parameters` need not be cloned into an object.
    let mut canonical = Vec::with_capacity(1024);
    let mut writer = Writer::new(&mut canonical, Limits::default());
    writer.raw(b"{\"action\":");
    writer.string(action);
    writer.raw(if mutates_state { b",\"mutates_state\":true" } else { b",\"mutates_state\":false" });
    writer.raw(b",\"parameters\":");
    let start = writer.written();
    writer.value(parameters, 1)?;
    let end = writer.written();
    writer.raw(b",\"resource\":");
    match resource {
        Some(resource) => writer.string(resource),
        None => writer.raw(b"null"),
    }
    writer.raw(b",\"tool\":");
    writer.string(tool);
    writer.raw(b"}");
    writer.check_size()?;
    Ok((canonical, start..end))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_interoperability_vectors_hold_on_every_path() {
        let vectors: [(&str, &str); 4] = [
            (
                r#"{"tool":"github","action":"merge_pull_request","resource":"payments-service#482","mutates_state":true,"parameters":{"base_branch":"main"}}"#,
                "6e729c788f908c95e564d246353ceeee0895630175d19ee34b06fdec32f2cc60",
            ),
            (
                r#"{"tool":"github","action":"create_pull_request","resource":null,"mutates_state":true,"parameters":{"title":"Café ☕ déjà vu"}}"#,
                "30ea153603d6576084ec4d431ec3ff9579ba69eff656101fcbbec5a8c22d0be4",
            ),
            (
                r#"{"tool":"t","action":"x","resource":null,"mutates_state":false,"parameters":{"z":1,"a":2,"é":3}}"#,
                "109d964419d41d68dec2667a0e42b1d105c42a8df389b2ffab7b4e0e7c502743",
            ),
            (
                r#"{"tool":"github","action":"merge_pull_request","resource":"r","mutates_state":true,"parameters":{"pr_number":482,"draft":false}}"#,
                "3781fa8f7d8a5cd13c2686a3e71bdb2fc52d2fd376a67b6e520ce7358eb55bf6",
            ),
        ];
        for (input, sha256) in vectors {
            assert_eq!(sha256_hex(&canonicalize_bytes(input.as_bytes()).unwrap()), sha256);
            let value = parse_strict(input.as_bytes()).unwrap();
            assert_eq!(hash_value(&value).unwrap(), sha256);
            let from_parts = action_hash(
                value["tool"].as_str().unwrap(),
                value["action"].as_str().unwrap(),
                value["resource"].as_str(),
                value["mutates_state"].as_bool().unwrap(),
                &value["parameters"],
            );
            assert_eq!(from_parts.unwrap(), sha256);
            let both = action_hash_and_parameters(
                value["tool"].as_str().unwrap(),
                value["action"].as_str().unwrap(),
                value["resource"].as_str(),
                value["mutates_state"].as_bool().unwrap(),
                &value["parameters"],
            );
            assert_eq!(both.unwrap(), (sha256.to_owned(), canonicalize_value(&value["parameters"]).unwrap()));
        }
    }

    #[test]
    fn action_hash_counts_its_own_object_towards_the_depth() {
        let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        let hash = |parameters: &Value| action_hash("t", "x", None, false, parameters);
        assert!(hash(&nested(MAX_DEPTH - 1)).is_ok());
        assert_eq!(hash(&nested(MAX_DEPTH)).unwrap_err().code(), "depth_exceeded");
        assert!(canonicalize_value(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(canonicalize_value(&nested(MAX_DEPTH + 1)).unwrap_err().code(), "depth_exceeded");
    }

    #[test]
    fn action_hash_counts_every_part_towards_the_size() {
        let long = "x".repeat(DEFAULT_MAX_BYTES);
        let hashes = [
            action_hash(&long, "x", None, false, &json!({})),
            action_hash("t", &long, None, false, &json!({})),
            action_hash("t", "x", Some(&long), false, &json!({})),
            action_hash("t", "x", None, false, &json!(long)),
        ];
        for hash in hashes {
            assert_eq!(hash.unwrap_err().code(), "size_exceeded");
        }
    }

    #[test]
    fn a_failed_append_leaves_the_buffer_as_it_was() {
        let mut buffer = b"before".to_vec();
        let rejected = canonicalize_value_into(&json!(["written first", u64::MAX]), &mut buffer);
        assert_eq!(rejected.unwrap_err().code(), "integer_out_of_range");
        assert_eq!(buffer, b"before");
        canonicalize_value_into(&json!({"b": 1, "a": 2}), &mut buffer).unwrap();
        assert_eq!(buffer, br#"before{"a":2,"b":1}"#);
    }
}
