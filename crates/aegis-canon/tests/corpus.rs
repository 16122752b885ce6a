//! Every vector of `corpus/canonical`, on every path of the crate.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use aegis_canon::{
    CanonError, Limits, canonicalize_bytes, canonicalize_bytes_with, canonicalize_value, hash_value, parse_strict_with,
    sha256_hex,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

struct Vector {
    id: String,
    class: String,
    input: Vec<u8>,
    limits: Limits,
    /// Whether the vector brings its own limits.
    limited: bool,
    fields: Value,
}

fn vectors(file: &str) -> Vec<Vector> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../corpus/canonical");
    let lines = std::fs::read_to_string(folder.join(file)).unwrap();
    let vectors: Vec<Vector> = lines.lines().map(vector).collect();
    let ids: BTreeSet<&str> = vectors.iter().map(|vector| vector.id.as_str()).collect();
    assert_eq!(ids.len(), vectors.len(), "two vectors of {file} have one id");
    vectors
}

fn vector(line: &str) -> Vector {
    let fields: Value = serde_json::from_str(line).unwrap();
    let max_bytes = fields["limits"]["max_bytes"].as_u64();
    let mut limits = Limits::default();
    if let Some(max_bytes) = max_bytes {
        limits.max_bytes = usize::try_from(max_bytes).unwrap();
    }
    Vector {
        id: fields["id"].as_str().unwrap().to_owned(),
        class: fields["class"].as_str().unwrap().to_owned(),
        input: decoded(&fields["input"]),
        limits,
        limited: max_bytes.is_some(),
        fields,
    }
}

fn decoded(field: &Value) -> Vec<u8> {
    STANDARD.decode(field.as_str().unwrap()).unwrap()
}

#[test]
fn every_accepted_vector_has_its_canonical_form_on_every_path() {
    let vectors = vectors("accepted.jsonl");
    assert!(vectors.len() >= 300, "only {} accepted vectors", vectors.len());
    for Vector { id, input, limits, limited, fields, .. } in vectors {
        let expected = decoded(&fields["canonical"]);
        let sha256 = fields["sha256"].as_str().unwrap();
        assert_eq!(sha256_hex(&expected), sha256, "{id}");

        let from_bytes = canonicalize_bytes_with(&input, limits).unwrap_or_else(|error| panic!("{id}: {error}"));
        assert_eq!(from_bytes.escape_ascii().to_string(), expected.escape_ascii().to_string(), "{id}");
        if !limited {
            assert_eq!(canonicalize_bytes(&input).unwrap(), expected, "{id}");
        }
        let value = parse_strict_with(&input, limits).unwrap();
        assert_eq!(canonicalize_value(&value).unwrap(), expected, "{id}");
        assert_eq!(hash_value(&value).unwrap(), sha256, "{id}");
    }
}

#[test]
fn every_rejected_vector_is_rejected_for_its_reason() {
    let vectors = vectors("rejected.jsonl");
    assert!(vectors.len() >= 100, "only {} rejected vectors", vectors.len());
    let mut seen: BTreeMap<&'static str, usize> = BTreeMap::new();
    for Vector { id, input, limits, fields, .. } in vectors {
        let rejection: CanonError = match canonicalize_bytes_with(&input, limits) {
            Ok(canonical) => panic!("{id}: accepted as {}", canonical.escape_ascii()),
            Err(rejection) => rejection,
        };
        assert_eq!(Some(rejection.code()), fields["reason"].as_str(), "{id}: {rejection}");
        assert!(rejection.offset().is_none_or(|offset| offset <= input.len()), "{id}: {rejection}");
        // Only a canonical form that outgrows the limit is refused after the door.
        if rejection.offset().is_some() {
            assert_eq!(parse_strict_with(&input, limits), Err(rejection.clone()), "{id}");
        }
        *seen.entry(rejection.code()).or_default() += 1;
    }
    assert_eq!(seen.len(), 10, "a reason has no vector: {seen:?}");
}

#[test]
fn a_canonical_form_is_its_own_canonical_form() {
    for Vector { id, class, fields, .. } in vectors("accepted.jsonl") {
        let canonical = decoded(&fields["canonical"]);
        match canonicalize_bytes(&canonical) {
            Ok(again) => assert_eq!(again, canonical, "{id}"),
            // A double from 2^53 up to 1e21 is written in plain digits, which read again are an integer out of range.
            Err(rejection) => {
                assert_eq!(rejection.code(), "integer_out_of_range", "{id}: {rejection}");
                let has_doubles = ["actions", "random-documents"].contains(&class.as_str());
                assert!(has_doubles || plain_digits(&canonical) >= 16, "{id}: {}", canonical.escape_ascii());
            }
        }
    }
}

/// The length of a canonical form that is one integer; 0 for any other.
fn plain_digits(canonical: &[u8]) -> usize {
    let digits = canonical.strip_prefix(b"-").unwrap_or(canonical);
    if digits.iter().all(u8::is_ascii_digit) { digits.len() } else { 0 }
}
