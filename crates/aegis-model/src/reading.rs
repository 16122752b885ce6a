//! A message read as an event once, for all in a process who read the message. What is shared is a function of its bytes and of when the bus stored them:
//! nothing that a reader decides. Promises that what is shared is what a fresh reading gives, and that it takes no more memory than was said before.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::wire::Parts;
use crate::{SecurityEvent, Timestamp, WireError, WireEvent};

/// What a message's event may take beside one and a half times its text, bytes: fields, places, and what an allocator adds.
const FIXED_ROOM: usize = 2560;

/// An event as its message has it.
#[derive(Debug)]
pub struct ReadEvent {
    text: Bytes,
    parts: Option<Parts>,
    event: Arc<SecurityEvent>,
    /// The same with `verified` set, made for the first who found that it is.
    as_verified: OnceLock<Arc<SecurityEvent>>,
}

impl ReadEvent {
    /// Reads a message's bytes through the strict door. What is added behind the seal (`verified`, `late`) is not the sender's to say, and is not set.
    pub fn read(text: &Bytes, bus_ts: Timestamp) -> Result<Self, WireError> {
        let wire = WireEvent::read(text)?;
        let event = SecurityEvent { verified: false, late: false, bus_ts: Some(bus_ts), ..wire.event()? };
        Ok(Self { text: text.clone(), parts: wire.into_parts(), event: Arc::new(event), as_verified: OnceLock::new() })
    }

    /// The event, not verified.
    #[must_use]
    pub const fn event(&self) -> &Arc<SecurityEvent> {
        &self.event
    }

    /// The event with `verified` as the caller found it to be: nobody learns by it what others found.
    #[must_use]
    pub fn marked(&self, verified: bool) -> Arc<SecurityEvent> {
        if !verified {
            return Arc::clone(&self.event);
        }
        let mark = || Arc::new(SecurityEvent { verified: true, ..SecurityEvent::clone(&self.event) });
        if self.event.lane.is_none() {
            // Nobody proves what is of no lane: no room is kept for it.
            return mark();
        }
        Arc::clone(self.as_verified.get_or_init(mark))
    }

    /// Its text, to verify it.
    #[must_use]
    pub fn wire(&self) -> WireEvent<'_> {
        // It was read as text before.
        WireEvent::again(std::str::from_utf8(&self.text).unwrap_or_default(), self.parts.as_ref())
    }

    /// What it takes in memory beside the text, once somebody found it verified too; about.
    #[must_use]
    pub fn weight(&self) -> usize {
        let events = if self.event.lane.is_some() { 2 } else { 1 };
        size_of::<Self>() + self.parts.as_ref().map_or(0, Parts::weight) + events * self.event.weight()
    }

    /// True if these very bytes, not just equal ones, were read, stored at that time.
    fn is_of(&self, text: &Bytes, bus_ts: Timestamp) -> bool {
        self.text.as_ptr() == text.as_ptr() && self.text.len() == text.len() && self.event.bus_ts == Some(bus_ts)
    }
}

/// A place beside a message's bytes for the event that they are, filled by whoever reads it first. Copies of the message share it.
#[derive(Clone, Debug, Default)]
pub struct Reading(Option<Arc<OnceLock<Arc<ReadEvent>>>>);

impl Reading {
    /// A place that keeps what is read. One by default keeps nothing: for a message that one reader has.
    #[must_use]
    pub fn kept() -> Self {
        Self(Some(Arc::default()))
    }

    /// The most that is kept for a text of so many bytes, beside the text, bytes: to be counted before anybody has read it.
    #[must_use]
    pub const fn room(&self, text_bytes: usize) -> usize {
        match self.0 {
            Some(_) => text_bytes.saturating_add(text_bytes / 2).saturating_add(FIXED_ROOM),
            None => 0,
        }
    }

    /// The event of the message that has these bytes and that time. Two who read it at once both do: none waits for the other. What is no event, or takes
    /// more than its room, is read by each.
    pub fn event(&self, text: &Bytes, bus_ts: Timestamp) -> Result<Arc<ReadEvent>, WireError> {
        let Some(place) = &self.0 else { return Ok(Arc::new(ReadEvent::read(text, bus_ts)?)) };
        if let Some(known) = place.get().filter(|known| known.is_of(text, bus_ts)) {
            return Ok(Arc::clone(known));
        }
        let read = Arc::new(ReadEvent::read(text, bus_ts)?);
        if read.weight() > self.room(text.len()) {
            return Ok(read);
        }
        let known = place.get_or_init(|| Arc::clone(&read));
        Ok(if known.is_of(text, bus_ts) { Arc::clone(known) } else { read })
    }
}

/// Says nothing of a message that its bytes do not.
impl PartialEq for Reading {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Reading {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{EventKind, TenantId};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const BUS_TS: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    /// An event as a ledger writes it, but for its hashes, which nobody checks here.
    fn sealed(text: &str, seq: i64) -> Vec<u8> {
        let ts = Timestamp::from_micros(5);
        let mut event = SecurityEvent::new(TenantId::new("acme").unwrap(), "e", "edge", EventKind::ToolOutcome, ts);
        (event.lane, event.seq) = (Some("acme.e.1".to_owned()), Some(seq));
        event.reason = Some(text.to_owned());
        event.matched_policies = vec![text.to_owned()];
        let mut columns = serde_json::to_value(&event).unwrap();
        columns.as_object_mut().unwrap().retain(|key, _| key != "verified");
        let columns = String::from_utf8(aegis_canon::canonicalize_value(&columns).unwrap()).unwrap();
        let body = json!({"a": text, "b": {"c": seq}});
        let body = String::from_utf8(aegis_canon::canonicalize_value(&body).unwrap()).unwrap();
        let proof = r#"{"key_id":"k","size":1,"index":0,"path":[],"signature":"s"}"#;
        let open = |object: &str| object.strip_suffix('}').unwrap().to_owned();
        let whole = format!(
            r#"{},"receipt_hash":"00","receipt":{},"receipt_hash":"00"}},"proof":{proof}}}"#,
            open(&columns),
            open(&body)
        );
        whole.into_bytes()
    }

    /// Sealed events, other ones, and both with bytes changed, left out and put in; and any bytes.
    fn messages() -> impl Strategy<Value = Vec<u8>> {
        let text = prop_oneof![any::<String>(), "[a-z\"\\\\é]{0,40}", "x{0,3000}"];
        let sealed = (text.clone(), any::<i32>()).prop_map(|(text, seq)| sealed(&text, i64::from(seq)));
        let observed = (text, any::<bool>()).prop_map(|(text, late)| {
            let ts = Timestamp::from_micros(7);
            let mut event = SecurityEvent::new(TenantId::new("acme").unwrap(), "i", "i", EventKind::ExternalOtlp, ts);
            event.attributes = Some(text);
            (event.verified, event.late) = (late, late);
            serde_json::to_vec(&event).unwrap()
        });
        let whole = prop_oneof![3 => sealed, 2 => observed];
        let piece = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..3),
            prop::sample::select(vec![",", "\"", "}", "{", " ", "null", "\"seq\":1,", "\\u0041", "\u{e9}"])
                .prop_map(|piece| piece.as_bytes().to_vec()),
        ];
        let changed = (whole.clone(), any::<prop::sample::Index>(), 0usize..3, piece).prop_map(|(bytes, at, removed, piece)| {
            let at = at.index(bytes.len());
            [&bytes[..at], piece.as_slice(), &bytes[(at + removed).min(bytes.len())..]].concat()
        });
        prop_oneof![2 => whole, 4 => changed, 1 => prop::collection::vec(any::<u8>(), 0..200)]
    }

    /// All that can be asked of a text that was read.
    fn said(wire: &WireEvent<'_>) -> (Result<SecurityEvent, WireError>, Result<Value, WireError>, String) {
        (wire.event(), wire.to_value(), format!("{:?}", wire.sealed_parts()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        /// L-READ-ONCE: whoever reads after others has what a fresh reading gives, or its refusal, and nothing of what they found.
        #[test]
        fn what_is_shared_is_what_a_fresh_reading_gives(bytes in messages(), found in prop::collection::vec(any::<bool>(), 1..5)) {
            let text = Bytes::from(bytes.clone());
            let fresh = WireEvent::read(&bytes).and_then(|wire| {
                let event = SecurityEvent { bus_ts: Some(BUS_TS), verified: false, late: false, ..wire.event()? };
                Ok((event, wire))
            });
            let reading = Reading::kept();
            for verified in found {
                // Each reader has a copy of the message.
                let read = reading.clone().event(&text.clone(), BUS_TS);
                match (&fresh, read) {
                    (Ok((event, wire)), Ok(read)) => {
                        prop_assert_eq!(&**read.event(), event);
                        prop_assert_eq!(said(&read.wire()), said(wire));
                        prop_assert_eq!(read.wire().text().as_bytes(), &bytes[..]);
                        let marked = SecurityEvent { verified, ..event.clone() };
                        prop_assert_eq!(SecurityEvent::clone(&read.marked(verified)), marked);
                        prop_assert_eq!(&**read.event(), event);
                    }
                    (Err(error), Err(refused)) => prop_assert_eq!(error, &refused),
                    (fresh, read) => {
                        let said = format!("a fresh reading {:?}, a shared one {:?}", fresh.is_ok(), read.map(|_| ()));
                        return Err(TestCaseError::fail(said));
                    }
                }
            }
            let kept = reading.0.as_ref().and_then(|place| place.get());
            let within = kept.is_none_or(|read| read.weight() <= reading.room(bytes.len()));
            prop_assert!(within, "it takes more than the tail counts for it");
        }
    }

    #[test]
    fn an_event_is_read_once_and_marked_once() {
        let (text, reading) = (Bytes::from(sealed("x", 1)), Reading::kept());
        let (one, other) = (reading.event(&text, BUS_TS).unwrap(), reading.clone().event(&text.clone(), BUS_TS).unwrap());
        assert!(Arc::ptr_eq(&one, &other));
        assert!(Arc::ptr_eq(&one.marked(true), &other.marked(true)));
        assert!(Arc::ptr_eq(&one.marked(false), other.event()));
        assert!(one.marked(true).verified && !one.marked(false).verified);
        assert!(one.wire().sealed_parts().is_some());
        // Usual ones have room.
        assert!(one.weight() <= reading.room(text.len()), "{} of {}", one.weight(), reading.room(text.len()));

        let alone = Reading::default();
        assert_eq!(alone.room(text.len()), 0);
        assert!(!Arc::ptr_eq(&alone.event(&text, BUS_TS).unwrap(), &alone.event(&text, BUS_TS).unwrap()));
    }

    #[test]
    fn a_place_gives_nothing_for_other_bytes_or_another_time() {
        let (text, reading) = (Bytes::from(sealed("x", 1)), Reading::kept());
        reading.event(&text, BUS_TS).unwrap();
        let other = Bytes::from(sealed("y", 1));
        assert_eq!(reading.event(&other, BUS_TS).unwrap().event().reason.as_deref(), Some("y"));
        let equal = Bytes::from(text.to_vec());
        assert!(!Arc::ptr_eq(&reading.event(&equal, BUS_TS).unwrap(), &reading.event(&text, BUS_TS).unwrap()));
        let later = BUS_TS.plus_seconds(1);
        assert_eq!(reading.event(&text, later).unwrap().event().bus_ts, Some(later));
        assert!(reading.event(&text.slice(..text.len() - 1), BUS_TS).is_err(), "the beginning of a text is another text");
        assert_eq!(reading.event(&text, BUS_TS).unwrap().event().reason.as_deref(), Some("x"));
    }

    #[test]
    fn what_takes_more_than_its_room_is_read_by_each() {
        let large = "x".repeat(20_000);
        let (text, reading) = (Bytes::from(sealed(&large, 1)), Reading::kept());
        // Texts of a sealed event stand in the receipt too, but lists of short ones take far more than their text.
        let many = json!({"event_id": "01a20373-e32e-7670-88c7-11fb33861258", "tenant_id": "acme", "edge_id": "e", "source": "edge",
            "kind": "tool_outcome", "ts": "2026-11-22T13:30:56.174765Z", "matched_policies": vec![""; 10_000]});
        let many = Bytes::from(serde_json::to_vec(&many).unwrap());
        assert_eq!(reading.event(&many, BUS_TS).unwrap().event().matched_policies.len(), 10_000);
        assert!(reading.0.as_ref().unwrap().get().is_none());
        assert_eq!(reading.event(&text, BUS_TS).unwrap().event().reason.as_deref(), Some(large.as_str()));
    }
}
