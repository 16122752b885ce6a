//! Control-feed entries: signed by control, checked by every edge before it believes them.

use aegis_model::{EntryKind, SignedEntry, TenantId, Timestamp};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::{KeyError, KeyRing, SigningKey};

/// Signs an entry; `body` None marks it deleted.
pub fn sign_entry(
    key: &SigningKey,
    tenant_id: &TenantId,
    kind: EntryKind,
    name: &str,
    revision: i64,
    issued_at: Timestamp,
    body: Option<Value>,
) -> Result<SignedEntry, KeyError> {
    let mut entry = SignedEntry {
        schema: SignedEntry::SCHEMA.to_owned(),
        tenant_id: tenant_id.clone(),
        kind,
        name: name.to_owned(),
        revision,
        issued_at,
        deleted: body.is_none(),
        body: body.unwrap_or(Value::Null),
        key_id: key.key_id().to_owned(),
        signature: String::new(),
    };
    entry.signature = STANDARD.encode(key.sign(&signed_bytes(&entry)?));
    Ok(entry)
}

/// Checks schema, key and signature. The caller checks revision and meaning.
pub fn verify_entry(ring: &KeyRing, entry: &SignedEntry) -> Result<(), KeyError> {
    if entry.schema != SignedEntry::SCHEMA {
        return Err(KeyError::Malformed("not an entry of a known schema"));
    }
    let key = ring.control_key(&entry.key_id)?;
    let signature = STANDARD.decode(&entry.signature).map_err(|_| KeyError::BadSignature)?;
    if key.key.verify(&signed_bytes(entry)?, &signature) { Ok(()) } else { Err(KeyError::BadSignature) }
}

/// The canonical form of everything but the signature.
fn signed_bytes(entry: &SignedEntry) -> Result<Vec<u8>, KeyError> {
    let mut value = serde_json::to_value(entry).map_err(|_| KeyError::Malformed("entry has no JSON form"))?;
    if let Some(object) = value.as_object_mut() {
        object.remove("signature");
    }
    Ok(aegis_canon::canonicalize_value(&value)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn any_changed_field_breaks_an_entry() {
        let key = SigningKey::from_seed(&[1; 32]);
        let ring = KeyRing::new([key.verifying_key()]);
        let tenant = TenantId::new("acme").unwrap();
        let now = Timestamp::from_micros(1);
        let entry = sign_entry(&key, &tenant, EntryKind::Tool, "github", 3, now, Some(json!({"a": 1}))).unwrap();
        verify_entry(&ring, &entry).unwrap();

        let mut other_tenant = entry.clone();
        other_tenant.tenant_id = TenantId::new("evil").unwrap();
        let mut newer = entry.clone();
        newer.revision = 4;
        let mut body = entry.clone();
        body.body = json!({"a": 2});
        let mut deleted = entry.clone();
        deleted.deleted = true;
        let mut renamed = entry.clone();
        renamed.name = "slack".into();
        for forged in [other_tenant, newer, body, deleted, renamed] {
            assert!(matches!(verify_entry(&ring, &forged), Err(KeyError::BadSignature)), "{forged:?}");
        }
        let stranger = SigningKey::from_seed(&[2; 32]);
        let foreign = sign_entry(&stranger, &tenant, EntryKind::Tool, "github", 9, now, None).unwrap();
        assert!(matches!(verify_entry(&ring, &foreign), Err(KeyError::UnknownKey(_))));
    }
}
