//! Identifiers: tenants, events, partitions. One `event_id` is decision id, receipt id, ASE id and message id alike.

use std::cell::RefCell;
use std::time::UNIX_EPOCH;

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

/// Random bytes of a UUIDv7.
const RANDOM_BYTES: usize = 10;

/// Ids whose randomness one question to the system gives: asking for each costs more than all else about an id.
const IDS_PER_QUESTION: usize = 32;

/// Randomness that has been asked for and not used: never used twice, because what is taken is taken off.
#[derive(Default)]
struct Randomness(Vec<[u8; RANDOM_BYTES]>);

impl Randomness {
    fn take(&mut self) -> Option<[u8; RANDOM_BYTES]> {
        if self.0.is_empty() {
            let mut bytes = [0u8; RANDOM_BYTES * IDS_PER_QUESTION];
            getrandom::fill(&mut bytes).ok()?;
            self.0.extend(bytes.as_chunks::<RANDOM_BYTES>().0);
        }
        self.0.pop()
    }
}

thread_local! {
    static RANDOMNESS: RefCell<Randomness> = RefCell::default();
}

/// A fresh event id (UUIDv7): ordered by time to the millisecond, at random within one.
#[must_use]
pub fn new_event_id() -> EventId {
    let millis = UNIX_EPOCH.elapsed().ok().and_then(|since| u64::try_from(since.as_millis()).ok());
    match (millis, RANDOMNESS.with_borrow_mut(Randomness::take)) {
        (Some(millis), Some(random)) => uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid(),
        // It asks again, and says what is wrong if that fails too.
        _ => Uuid::now_v7(),
    }
}

/// The namespace of derived event ids.
const EXTERNAL_NAMESPACE: Uuid = Uuid::from_u128(0x6165_6769_732d_6578_7465_726e_616c_3031);

/// The version of the ids that are made where an event is made.
const MADE: usize = 7;

/// True for an id that follows from something, as those of observations do, and of what control seals some: not made at random and for one event alone, as
/// an edge makes those of all its receipts.
#[must_use]
pub fn is_derived(id: EventId) -> bool {
    id.get_version_num() != MADE
}

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
    fn fresh_ids_are_of_version_7_of_now_and_never_alike_on_any_thread() {
        let before = u64::try_from(UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
        let make = || (0..IDS_PER_QUESTION * 50).map(|_| new_event_id()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(make)).collect();
        let ids: Vec<EventId> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let after = u64::try_from(UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
        for id in &ids {
            let millis = (id.as_u128() >> 80) as u64;
            assert!(
                id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122 && (before..=after).contains(&millis)
            );
        }
        let random: std::collections::HashSet<u128> = ids.iter().map(|id| id.as_u128() & ((1 << 62) - 1)).collect();
        assert_eq!(random.len(), ids.len(), "no randomness is used twice");
    }

    #[test]
    fn a_redelivery_is_the_same_event_and_only_that() {
        let (a, b) = (TenantId::new("a").unwrap(), TenantId::new("b").unwrap());
        assert_eq!(external_event_id(&a, "github", "1"), external_event_id(&a, "github", "1"));
        assert_ne!(external_event_id(&a, "github", "1"), external_event_id(&b, "github", "1"));
        assert_ne!(external_event_id(&a, "github", "1"), external_event_id(&a, "otlp", "1"));
        assert!(is_derived(external_event_id(&a, "github", "1")) && !is_derived(new_event_id()));
    }

    #[test]
    fn partitions_follow_the_published_fnv1a_values() {
        // FNV-1a 32 of "a" is 0xe40c292c (the reference vectors of the FNV authors).
        assert_eq!(partition_of(&TenantId::new("a").unwrap()), 0xe40c_292c % 64);
        assert_eq!(partition_of(&TenantId::new("foobar").unwrap()), 0xbf9c_f968 % 64);
    }
}
