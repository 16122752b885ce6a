//! Notices: what is signed by who says it and is no entry of the control feed: what edges and control tell each other beside the streams, and control's
//! records of rules in the log.

use std::sync::Arc;

use aegis_model::Notice;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{KeyError, KeyRing, Pinned, SigningKey};

/// A notice as JSON with `schema`, `key_id` and `signature`; the signature is Ed25519 over the canonical form of everything else.
pub fn sign_notice<T: Notice + Serialize>(key: &SigningKey, notice: &T) -> Result<Vec<u8>, KeyError> {
    let Ok(Value::Object(mut object)) = serde_json::to_value(notice) else {
        return Err(KeyError::Malformed("notice is no JSON object"));
    };
    object.insert("schema".to_owned(), T::SCHEMA.into());
    object.insert("key_id".to_owned(), key.key_id().into());
    let signature = STANDARD.encode(key.sign(&aegis_canon::canonicalize_value(&Value::Object(object.clone()))?));
    object.insert("signature".to_owned(), signature.into());
    serde_json::to_vec(&object).map_err(|_| KeyError::Malformed("notice has no JSON form"))
}

/// Checks schema, key and signature, and gives the notice with the key that signed it. For whom the key may speak is the caller's to check.
pub fn verify_notice<T: Notice + DeserializeOwned>(ring: &KeyRing, bytes: &[u8]) -> Result<(T, Arc<Pinned>), KeyError> {
    if bytes.len() > T::MAX_BYTES {
        return Err(KeyError::Malformed("notice is too long"));
    }
    let mut object: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|_| KeyError::Malformed("notice is no JSON object"))?;
    if object.get("schema").and_then(Value::as_str) != Some(T::SCHEMA) {
        return Err(KeyError::Malformed("not a notice of this schema"));
    }
    let Some(Value::String(signature)) = object.remove("signature") else {
        return Err(KeyError::Malformed("notice has no signature"));
    };
    let key_id = object.get("key_id").and_then(Value::as_str).unwrap_or_default();
    let pinned = ring.get(key_id).ok_or_else(|| KeyError::UnknownKey(key_id.chars().take(32).collect()))?;
    let signature = STANDARD.decode(signature).map_err(|_| KeyError::BadSignature)?;
    let object = Value::Object(object);
    if !pinned.key.verify(&aegis_canon::canonicalize_value(&object)?, &signature) {
        return Err(KeyError::BadSignature);
    }
    let notice = serde_json::from_value(object).map_err(|_| KeyError::Malformed("notice is not what its schema says"))?;
    Ok((notice, pinned))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::{Beat, ContainmentAck, Heartbeat, Timestamp};

    #[test]
    fn a_notice_is_what_was_signed_and_nothing_else() {
        let key = SigningKey::from_seed(&[1; 32]);
        let ring = KeyRing::new([key.verifying_key()]);
        let beat = Beat { at: Timestamp::from_micros(5), start: 1, n: 0 };
        let signed = sign_notice(&key, &beat).unwrap();
        assert_eq!(verify_notice::<Beat>(&ring, &signed).unwrap().0, beat);

        let text = String::from_utf8(signed.clone()).unwrap();
        let later = text.replace("1970-01-01T00:00:00.000005Z", "1970-01-01T00:00:00.000006Z");
        assert_ne!(later, text);
        assert!(matches!(verify_notice::<Beat>(&ring, later.as_bytes()), Err(KeyError::BadSignature)));
        // Nor is it a notice of another kind, or of an unknown key.
        verify_notice::<Heartbeat>(&ring, &signed).unwrap_err();
        verify_notice::<ContainmentAck>(&ring, &signed).unwrap_err();
        let stranger = sign_notice(&SigningKey::from_seed(&[2; 32]), &beat).unwrap();
        assert!(matches!(verify_notice::<Beat>(&ring, &stranger), Err(KeyError::UnknownKey(_))));
        for bad in ["", "[]", "{}", "{\"schema\":\"aegis-beat-1\"}", "{\"schema\":\"aegis-beat-1\",\"signature\":7}"] {
            verify_notice::<Beat>(&ring, bad.as_bytes()).unwrap_err();
        }
        verify_notice::<Beat>(&ring, &vec![b' '; Beat::MAX_BYTES + 1]).unwrap_err();
    }
}
