//! Every vector of `corpus/canonical`, on every path of the crate.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use aegis_canon::{
    CANON_VERSION, CanonError, Limits, canonicalize_bytes, canonicalize_bytes_with, canonicalize_value, hash_value,
    parse_strict_with, sha256_hex,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

struct Vector {
    id: String,
    input: Vec<u8>,
    limits: Limits,
    /// Whether the vector brings its own limits.
    limited: bool,
    fields: Value,
}

fn read(file: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../corpus/canonical");
    std::fs::read_to_string(folder.join(file)).unwrap()
}

fn vectors(file: &str) -> Vec<Vector> {
    let lines = read(file);
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
    assert!(vectors.len() >= 10_000, "only {} accepted vectors", vectors.len());
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
    assert!(vectors.len() >= 2_000, "only {} rejected vectors", vectors.len());
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
    for Vector { id, fields, .. } in vectors("accepted.jsonl") {
        let canonical = decoded(&fields["canonical"]);
        match canonicalize_bytes(&canonical) {
            Ok(again) => assert_eq!(again, canonical, "{id}"),
            // A double from 2^53 up to 1e21 is written in plain digits, which read again are an integer out of range.
            Err(rejection) => {
                assert_eq!(rejection.code(), "integer_out_of_range", "{id}: {rejection}");
                assert!(most_digits(&canonical) >= 16, "{id}: {}", canonical.escape_ascii());
            }
        }
    }
}

/// The length of the longest run of digits.
fn most_digits(canonical: &[u8]) -> usize {
    canonical.split(|byte| !byte.is_ascii_digit()).map(<[u8]>::len).max().unwrap_or(0)
}

#[test]
fn no_vector_of_any_release_has_changed() {
    let manifest: Value = serde_json::from_str(&read("manifest.json")).unwrap();
    assert_eq!(manifest["scheme"], CANON_VERSION);
    let releases = manifest["releases"].as_array().unwrap();
    assert!(!releases.is_empty());
    for release in releases {
        for (file, pin) in release["files"].as_object().unwrap() {
            let lines = usize::try_from(pin["lines"].as_u64().unwrap()).unwrap();
            let pinned: String = read(file).split_inclusive('\n').take(lines).collect();
            assert_eq!(pin["sha256"], sha256_hex(pinned.as_bytes()), "{file}, release {}", release["release"]);
        }
    }
}
