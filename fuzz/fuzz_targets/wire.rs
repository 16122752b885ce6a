//! An event's text by the short way and by the long one: both read the same event, and nothing that is canonical in its parts differs.
#![no_main]

use aegis_canon::{canonicalize_bytes, is_canonical, parse_strict};
use aegis_model::{Reading, ReadingRoom, Timestamp, WireEvent};
use bytes::Bytes;
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

    // Read once for all it is what each would read.
    let (text, bus_ts, reading) =
        (Bytes::copy_from_slice(input), Timestamp::from_micros(1), Reading::kept_in(&ReadingRoom::new(usize::MAX)));
    for _ in 0..2 {
        let shared = reading.event(&text, bus_ts);
        let fresh = WireEvent::read(input).and_then(|wire| Ok((wire.event()?, format!("{:?}", wire.sealed_parts()))));
        assert_eq!(shared.as_ref().err(), fresh.as_ref().err());
        if let (Ok(shared), Ok((event, parts))) = (shared, fresh) {
            assert_eq!(shared.wire().event().as_ref(), Ok(&event));
            assert_eq!(format!("{:?}", shared.wire().sealed_parts()), parts);
        }
    }
});
