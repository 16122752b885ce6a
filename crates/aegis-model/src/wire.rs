//! An event as it stands on the bus or in an export, read through the strict door. What a ledger wrote is canonical in its parts and
//! is read as it stands; everything else takes the long way. Both ways read the same event, or neither does.

use std::borrow::Cow;
use std::ops::Range;

use aegis_canon::{DEFAULT_MAX_BYTES, Members, Outline, Place, RawMember, outline, parse_strict};
use serde::Deserialize;
use serde_json::Value;

use crate::columns::event_of;
use crate::{DIGEST_EXCLUDED, SecurityEvent};

/// What a ledger adds behind the columns, in this order.
const SEALED_KEYS: [&str; 3] = ["receipt_hash", "receipt", "proof"];

/// The keys of a proof, as a ledger writes them.
pub const PROOF_KEYS: [&str; 5] = ["key_id", "size", "index", "path", "signature"];

/// Why a text is no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("{code}: {0}", code = .0.code())]
    Canon(#[from] aegis_canon::CanonError),
    #[error("not a security event: {0}")]
    NotAnEvent(String),
}

/// A text that passed the strict door.
#[derive(Debug)]
pub struct WireEvent<'text> {
    text: &'text str,
    form: Form<'text>,
}

#[derive(Debug)]
enum Form<'text> {
    Sealed(Cow<'text, Parts>),
    Other(Value),
    /// It passed before, and what it read as was not kept.
    Passed {
        is_observation: bool,
    },
}

/// What is kept of a text that passed, to go on from it later.
#[derive(Debug)]
pub(crate) enum Passed {
    Sealed(Parts),
    Other { is_observation: bool },
}

impl Passed {
    /// What it takes in memory beside itself.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Sealed(parts) => parts.places.capacity() * size_of::<Place>(),
            Self::Other { .. } => 0,
        }
    }
}

/// The parts of an event as a ledger writes it, as slices of its text. No key stands twice, and every value is canonical.
#[derive(Clone, Copy, Debug)]
pub struct SealedParts<'a> {
    /// Ascending by key, none null: what the digest covers.
    pub columns: Members<'a>,
    /// The text up to the end of the last column: with a closing brace, the canonical form of the columns.
    pub columns_text: &'a str,
    /// As it stands beside the columns, in quotes.
    pub receipt_hash: &'a str,
    /// The receipt's body, ascending by key.
    pub body: Members<'a>,
    /// The receipt's text up to the end of its body: with a closing brace, the canonical form of the body.
    pub body_text: &'a str,
    /// The receipt's own `receipt_hash`, in quotes.
    pub body_hash: &'a str,
    /// In the order of `PROOF_KEYS`.
    pub proof: Members<'a>,
}

impl<'text> WireEvent<'text> {
    /// Reads one event. Refuses what `aegis_canon::parse_strict` refuses.
    pub fn read(bytes: &'text [u8]) -> Result<Self, WireError> {
        let Ok(text) = std::str::from_utf8(bytes) else {
            // The door says whether it is that, or the size, that comes first.
            parse_strict(bytes)?;
            return Err(WireError::NotAnEvent("not UTF-8".to_owned()));
        };
        let form = match Parts::find(text) {
            Some(parts) => Form::Sealed(Cow::Owned(parts)),
            None => Form::Other(parse_strict(bytes)?),
        };
        Ok(Self { text, form })
    }

    /// A text that was read before, with what `into_passed` answered then.
    pub(crate) const fn again(text: &'text str, passed: &'text Passed) -> Self {
        let form = match passed {
            Passed::Sealed(parts) => Form::Sealed(Cow::Borrowed(parts)),
            Passed::Other { is_observation } => Form::Passed { is_observation: *is_observation },
        };
        Self { text, form }
    }

    /// With the text all that there is to know of it, in little room.
    pub(crate) fn into_passed(self) -> Passed {
        let is_observation = self.is_observation();
        match self.form {
            Form::Sealed(parts) => Passed::Sealed(parts.into_owned()),
            Form::Other(_) | Form::Passed { .. } => Passed::Other { is_observation },
        }
    }

    /// The text.
    #[must_use]
    pub const fn text(&self) -> &'text str {
        self.text
    }

    /// The event's columns.
    pub fn event(&self) -> Result<SecurityEvent, WireError> {
        let event = match &self.form {
            Form::Sealed(parts) => match parts.of(self.text).and_then(|parts| sealed_event(&parts)) {
                Some(event) => Ok(event),
                None => serde_json::from_str(self.text),
            },
            Form::Other(value) => SecurityEvent::deserialize(value),
            Form::Passed { .. } => SecurityEvent::deserialize(&self.to_value()?),
        };
        event.map_err(|error| WireError::NotAnEvent(error.to_string()))
    }

    /// The parts, where the text is as a ledger writes it.
    #[must_use]
    pub fn sealed_parts(&self) -> Option<SealedParts<'_>> {
        match &self.form {
            Form::Sealed(parts) => parts.of(self.text),
            Form::Other(_) | Form::Passed { .. } => None,
        }
    }

    /// True for an external event that claims no lane and no receipt; one that claims either must prove it.
    #[must_use]
    pub fn is_observation(&self) -> bool {
        match &self.form {
            Form::Sealed(_) => false,
            Form::Other(value) => is_observation(value),
            Form::Passed { is_observation } => *is_observation,
        }
    }

    /// The whole as a value.
    pub fn to_value(&self) -> Result<Value, WireError> {
        match &self.form {
            Form::Sealed(_) | Form::Passed { .. } => Ok(parse_strict(self.text.as_bytes())?),
            Form::Other(value) => Ok(value.clone()),
        }
    }
}

/// The same of an event as a value.
#[must_use]
pub fn is_observation(wire: &Value) -> bool {
    let external = wire.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.starts_with("external_event:"));
    let absent = |key: &str| wire.get(key).is_none_or(Value::is_null);
    external && ["lane", "seq"].into_iter().chain(SEALED_KEYS).all(absent)
}

/// Where the parts of a sealed event stand in its text: the columns, their `receipt_hash`, the members of the receipt, the receipt, those of the proof,
/// the proof.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    places: Vec<Place>,
    /// Which of them are the receipt's, its own hash last.
    receipt: Range<usize>,
}

impl Parts {
    /// None where the text is not as a ledger writes it.
    fn find(text: &str) -> Option<Self> {
        if text.len() > DEFAULT_MAX_BYTES {
            return None;
        }
        let [_, receipt_key, proof_key] = SEALED_KEYS;
        let Outline { places, within, canonical } = outline(text, &[receipt_key, proof_key])?;
        let [receipt, proof] = within.as_slice() else { return None };
        let in_place = proof.start == receipt.end + 1 && places.len() == proof.end + 1;
        let key = |place: usize| places.get(place)?.member(text).map(|member| member.key);
        let mut named = [receipt.start.checked_sub(1)?, receipt.end, proof.end].into_iter().zip(SEALED_KEYS);
        let is_named = named.all(|(place, name)| key(place) == Some(name));
        let hash_key = key(receipt.end.checked_sub(1)?)?;
        if !canonical || !in_place || !is_named {
            return None;
        }
        let parts = Self { receipt: receipt.clone(), places };
        let as_written = {
            let SealedParts { columns, body, proof, .. } = parts.of(text)?;
            hash_key == SEALED_KEYS[0]
                && proof.iter().map(|member| member.key).eq(PROOF_KEYS)
                && ascending(columns)
                && ascending(body)
                && columns
                    .bytes()
                    .all(|(key, value)| value != b"null" && DIGEST_EXCLUDED.iter().all(|name| name.as_bytes() != key))
                && body.bytes().all(|(key, _)| key != hash_key.as_bytes())
        };
        as_written.then_some(parts)
    }

    /// The parts, in the text in which they were found.
    fn of<'a>(&'a self, text: &'a str) -> Option<SealedParts<'a>> {
        let (receipt_hash, columns) = self.places.get(..self.receipt.start)?.split_last()?;
        let (body_hash, body) = self.places.get(self.receipt.clone())?.split_last()?;
        let (receipt, proof) = self.places.get(self.receipt.end..)?.split_first()?;
        let (_, proof) = proof.split_last()?;
        Some(SealedParts {
            columns: Members::new(text, columns),
            columns_text: text.get(..columns.last()?.end())?,
            receipt_hash: receipt_hash.member(text)?.value,
            body: Members::new(text, body),
            body_text: text.get(receipt.value()..body.last()?.end())?,
            body_hash: body_hash.member(text)?.value,
            proof: Members::new(text, proof),
        })
    }
}

/// The event of sealed parts, where it is read as it stands.
fn sealed_event(parts: &SealedParts<'_>) -> Option<SecurityEvent> {
    let receipt_hash = parts.receipt_hash.strip_prefix('"')?.strip_suffix('"')?;
    let plain = !receipt_hash.contains('\\');
    let columns: Vec<RawMember<'_>> = parts.columns.iter().collect();
    let event = event_of(&columns)?;
    plain.then(|| SecurityEvent { receipt_hash: Some(receipt_hash.to_owned()), ..event })
}

fn ascending(members: Members<'_>) -> bool {
    members.bytes().is_sorted_by(|(one, _), (next, _)| one < next)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    const SEALED: &str = r#"{"agent_id":"é","clock_suspect":false,"edge_id":"e","event_id":"01a20373-e32e-7670-88c7-11fb33861258","kind":"lane_gap","lane":"acme.e.1","matched_policies":["p"],"seq":7,"source":"edge","tenant_id":"acme","ts":"2026-11-22T13:30:56.174765Z","receipt_hash":"00","receipt":{"a":1,"b":{"c":1,"d":2},"receipt_hash":"00"},"proof":{"key_id":"k","size":1,"index":0,"path":[],"signature":"s"}}"#;

    #[test]
    fn both_ways_read_the_same_event() {
        let short = WireEvent::read(SEALED.as_bytes()).unwrap();
        let parts = short.sealed_parts().unwrap();
        assert_eq!((parts.receipt_hash, parts.body_hash, parts.proof.len()), (r#""00""#, r#""00""#, 5));
        assert_eq!(parts.body_text, r#"{"a":1,"b":{"c":1,"d":2}"#);
        let columns = format!("{}}}", parts.columns_text);
        assert!(aegis_canon::is_canonical(&columns) && parts.columns.len() == 11);

        // The same with a space takes the long way.
        let spaced = SEALED.replacen(':', ": ", 1);
        let long = WireEvent::read(spaced.as_bytes()).unwrap();
        assert!(long.sealed_parts().is_none());
        assert_eq!(short.event().unwrap(), long.event().unwrap());
        assert_eq!(short.to_value().unwrap(), long.to_value().unwrap());
        assert_eq!(short.event().unwrap().agent_id.as_deref(), Some("é"));
    }

    #[test]
    fn what_is_not_as_a_ledger_writes_it_takes_the_long_way_or_none() {
        let change = |from: &str, to: &str| SEALED.replacen(from, to, 1);
        let long_way = [
            change(r#""agent_id":"é","#, r#""agent_id":null,"#),
            change(r#""agent_id":"é","#, r#""late":true,"#),
            change(r#""edge_id":"e","#, r#""zone":"e","#),
            SEALED.split_once(r#","proof""#).unwrap().0.to_owned() + "}",
            change(r#""path":[]"#, r#""paths":[]"#),
            change(r#""c":1,"d":2"#, r#""d":2,"c":1"#),
            change(r#","receipt_hash":"00"},"#, "},"),
            change(r#""seq":7"#, r#""seq":7.0"#),
        ];
        for text in long_way {
            assert!(WireEvent::read(text.as_bytes()).unwrap().sealed_parts().is_none(), "{text}");
        }
        let refused = [
            (change(r#""seq":7"#, r#""seq":7,"seq":8"#), "duplicate_key"),
            (change(r#""proof":"#, r#""seq":8,"proof":"#), "duplicate_key"),
            (change(r#""receipt_hash":"00","#, r#""receipt_hash":"00","receipt_hash":"11","#), "duplicate_key"),
            (change(r#"{"a":1,"#, r#"{"a":1,"a":2,"#), "duplicate_key"),
            (change(r#"{"c":1,"#, r#"{"c":1,"c":1,"#), "duplicate_key"),
            (change(r#"{"a":1,"#, r#"{"a":1,"receipt_hash":"11","#), "duplicate_key"),
            (change(r#""path":[]"#, r#""path":[{"x":1,"x":1}]"#), "duplicate_key"),
            (change(r#""index":0,"#, r#""index":0,"index":1,"#), "duplicate_key"),
            (format!("{SEALED}x"), "trailing_data"),
        ];
        for (text, code) in refused {
            assert!(matches!(WireEvent::read(text.as_bytes()), Err(WireError::Canon(e)) if e.code() == code), "{text}");
        }
        let large = [b"\xff", vec![b' '; DEFAULT_MAX_BYTES].as_slice()].concat();
        for (bytes, code) in [(b"\"\xff\"".as_slice(), "invalid_utf8"), (&large, "size_exceeded")] {
            assert!(matches!(WireEvent::read(bytes), Err(WireError::Canon(e)) if e.code() == code));
        }
        let no_event = change(r#""kind":"lane_gap""#, r#""kind":"no_such_kind""#);
        assert!(matches!(WireEvent::read(no_event.as_bytes()).unwrap().event(), Err(WireError::NotAnEvent(_))));
        assert_eq!(WireEvent::read(json!([1]).to_string().as_bytes()).unwrap().to_value().unwrap(), json!([1]));
    }
}
