//! Any bytes at the strict door: no panic, no disagreement between its ways, nothing accepted that another parser
//! refuses, and no canonical form that reads back as something else.
#![no_main]

use aegis_canon::{Limits, canonicalize_bytes, canonicalize_value, parse_strict, read_as};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
    let value = match parse_strict(input) {
        Ok(value) => value,
        Err(rejection) => {
            assert!(rejection.offset().is_some_and(|offset| offset <= input.len()));
            assert_eq!(canonicalize_bytes(input), Err(rejection));
            assert_eq!(read_as::<Value>(input, Limits::default()), None);
            return;
        }
    };
    if let Some(short) = read_as::<Value>(input, Limits::default()) {
        assert_eq!(short.to_string(), value.to_string());
    }
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
