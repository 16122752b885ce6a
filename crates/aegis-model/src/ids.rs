//! Identifiers: tenants, events, partitions. One `event_id` is decision id, receipt id, ASE id and message id alike.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// An event id: a UUIDv7 made where the event is made, or derived for external events.
pub type EventId = Uuid;

/// Number of partitions of a deployment. Fixed: changing it would reorder every tenant's log.
pub const PARTITIONS: u32 = 64;

/// A tenant's id: `[a-z0-9_-]{1,64}`, so that it can stand in subjects, paths and policy ids as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(std::sync::Arc<str>);

/// An identifier that has not the required form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The tenant id does not match `[a-z0-9_-]{1,64}`.
    #[error("tenant id must match [a-z0-9_-]{{1,64}}")]
    Tenant,
}

impl TenantId {
    /// Longest tenant id, in bytes.
    pub const MAX_LEN: usize = 64;

    /// Checks the form `[a-z0-9_-]{1,64}`.
    pub fn new(id: &str) -> Result<Self, IdError> {
        let well_formed = !id.is_empty()
            && id.len() <= Self::MAX_LEN
            && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        if well_formed { Ok(Self(id.into())) } else { Err(IdError::Tenant) }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for TenantId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for TenantId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        Self::new(s)
    }
}

impl Serialize for TenantId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TenantId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// A fresh, time-ordered event id (UUIDv7).
#[must_use]
pub fn new_event_id() -> EventId {
    Uuid::now_v7()
}

/// The namespace of derived event ids.
const EXTERNAL_NAMESPACE: Uuid = Uuid::from_u128(0x6165_6769_732d_6578_7465_726e_616c_3031);

/// The id of an external event, derived (UUIDv5) from tenant, adapter and delivery id, so that a redelivery is the same event.
#[must_use]
pub fn external_event_id(tenant: &TenantId, adapter: &str, delivery_id: &str) -> EventId {
    // NUL cannot stand in a tenant id or an adapter name, so no two triples share a text.
    Uuid::new_v5(&EXTERNAL_NAMESPACE, format!("{tenant}\0{adapter}\0{delivery_id}").as_bytes())
}

/// The partition of a tenant: `fnv1a32(tenant_id) % 64` (FNV-1a, 32 bit).
#[must_use]
pub fn partition_of(tenant: &TenantId) -> u32 {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in tenant.as_str().bytes() {
        hash ^= u32::from(byte);
        hash = hash.wrapping_mul(0x0100_0193);
    }
    hash % PARTITIONS
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tenant_ids_keep_their_alphabet() {
        assert!(TenantId::new("acme_1-x").is_ok());
        for bad in ["", "Acme", "a.b", "a*", "a>", "a b", "ä", &"a".repeat(65)] {
            assert!(TenantId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_redelivery_is_the_same_event_and_only_that() {
        let (a, b) = (TenantId::new("a").unwrap(), TenantId::new("b").unwrap());
        assert_eq!(external_event_id(&a, "github", "1"), external_event_id(&a, "github", "1"));
        assert_ne!(external_event_id(&a, "github", "1"), external_event_id(&b, "github", "1"));
        assert_ne!(external_event_id(&a, "github", "1"), external_event_id(&a, "otlp", "1"));
    }

    #[test]
    fn partitions_follow_the_published_fnv1a_values() {
        // FNV-1a 32 of "a" is 0xe40c292c (the reference vectors of the FNV authors).
        assert_eq!(partition_of(&TenantId::new("a").unwrap()), 0xe40c_292c % 64);
        assert_eq!(partition_of(&TenantId::new("foobar").unwrap()), 0xbf9c_f968 % 64);
    }
}
