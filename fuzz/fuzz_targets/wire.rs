//! An event's text by the short way and by the long one: both read the same event, and nothing that is canonical in its parts differs.
#![no_main]

use aegis_canon::{canonicalize_bytes, is_canonical, parse_strict};
use aegis_model::WireEvent;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input)
        && is_canonical(text)
    {
        assert_eq!(canonicalize_bytes(input).as_deref(), Ok(input));
    }
    let wire = WireEvent::read(input);
    assert_eq!(wire.is_ok(), parse_strict(input).is_ok());
    if let Ok(wire) = wire {
        let value = wire.to_value().unwrap();
        assert_eq!(value, parse_strict(input).unwrap());
        let long = serde_json::from_value::<aegis_model::SecurityEvent>(value).ok();
        assert_eq!(wire.event().ok(), long);
    }
});
