//! Any bytes at the strict door: no panic, no disagreement between the two paths, nothing accepted that another parser
//! refuses, and no canonical form that reads back as something else.
#![no_main]

use aegis_canon::{canonicalize_bytes, canonicalize_value, parse_strict};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let value = match parse_strict(input) {
        Ok(value) => value,
        Err(rejection) => {
            assert!(rejection.offset().is_some_and(|offset| offset <= input.len()));
            assert_eq!(canonicalize_bytes(input), Err(rejection));
            return;
        }
    };
    // Not read as a serde_json::Value, which gives some keys a meaning of its own.
    let other: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(input);
    assert!(other.is_ok(), "only the strict door takes it");

    let from_bytes = canonicalize_bytes(input);
    assert_eq!(from_bytes, canonicalize_value(&value));
    let Ok(canonical) = from_bytes else { return };
    match canonicalize_bytes(&canonical) {
        Ok(again) => assert_eq!(again, canonical),
        // A double from 2^53 up to 1e21 is written in plain digits.
        Err(rejection) => assert_eq!(rejection.code(), "integer_out_of_range"),
    }
});
