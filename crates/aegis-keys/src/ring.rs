//! The public keys a process trusts, by id, and for whom each may speak. A ring is shared: what is pinned later holds for all its clones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::{KeyError, VerifyingKey};

/// For whom a key's receipts may speak.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// For every tenant, in any lane: control, and a key that a person pins.
    #[default]
    Any,
    /// An enrolled edge: its own lanes, and its tenants.
    Edge { edge_id: String, tenants: BTreeSet<String> },
}

/// A key that is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    pub key: VerifyingKey,
    pub scope: Scope,
}

impl Pinned {
    /// True if receipts of this tenant in this lane (`<tenant>.<edge>.<epoch>`) may be signed by the key.
    #[must_use]
    pub fn speaks_for(&self, tenant: &str, lane: &str) -> bool {
        match &self.scope {
            Scope::Any => true,
            Scope::Edge { edge_id, tenants } => tenants.contains(tenant) && is_lane_of(lane, tenant, edge_id),
        }
    }
}

/// Longest name of a start in a lane, bytes.
const MAX_EPOCH: usize = 64;

/// True of the lanes of one edge and tenant. Each start of an edge has one, so whoever counts lanes by their edge finds all of them.
fn is_lane_of(lane: &str, tenant: &str, edge_id: &str) -> bool {
    let mut labels = lane.split('.');
    let is_its_own = labels.next() == Some(tenant) && labels.next() == Some(edge_id);
    is_its_own && labels.next().is_some_and(|epoch| (1..=MAX_EPOCH).contains(&epoch.len())) && labels.next().is_none()
}

/// Pinned public keys.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    keys: Arc<RwLock<BTreeMap<String, Arc<Pinned>>>>,
}

impl KeyRing {
    /// A ring of `keys`, each for everybody.
    pub fn new(keys: impl IntoIterator<Item = VerifyingKey>) -> Self {
        let ring = Self::default();
        keys.into_iter().for_each(|key| ring.pin(key, Scope::Any));
        ring
    }

    /// Trusts one more key, or the same edge's key for other tenants. A key for everybody stays one: nobody takes it away by enrolling it.
    pub fn pin(&self, key: VerifyingKey, scope: Scope) {
        let mut keys = self.keys.write();
        if keys.get(key.key_id()).is_none_or(|known| known.scope != Scope::Any) {
            keys.insert(key.key_id().to_owned(), Arc::new(Pinned { key, scope }));
        }
    }

    /// The key with this id.
    #[must_use]
    pub fn get(&self, key_id: &str) -> Option<Arc<Pinned>> {
        self.keys.read().get(key_id).cloned()
    }

    /// The same for what control alone signs: no edge's key will do.
    pub(crate) fn control_key(&self, key_id: &str) -> Result<Arc<Pinned>, KeyError> {
        let pinned = self.get(key_id).filter(|pinned| pinned.scope == Scope::Any);
        pinned.ok_or_else(|| KeyError::UnknownKey(key_id.chars().take(32).collect()))
    }

    /// All keys, by id.
    #[must_use]
    pub fn keys(&self) -> Vec<Arc<Pinned>> {
        self.keys.read().values().cloned().collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::SigningKey;

    #[test]
    fn a_key_for_everybody_is_not_narrowed() {
        let key = SigningKey::from_seed(&[7; 32]).verifying_key();
        let ring = KeyRing::new([key.clone()]);
        ring.pin(key.clone(), Scope::Edge { edge_id: "edge-1".to_owned(), tenants: BTreeSet::new() });
        assert!(ring.get(key.key_id()).unwrap().speaks_for("acme", "acme.control.0123"));
    }

    #[test]
    fn an_edge_speaks_for_its_tenants_in_its_own_lanes_only() {
        let ring = KeyRing::default();
        let clone = ring.clone();
        let key = SigningKey::from_seed(&[7; 32]).verifying_key();
        let scope = Scope::Edge { edge_id: "edge-1".to_owned(), tenants: ["acme".to_owned()].into() };
        ring.pin(key.clone(), scope);
        let pinned = clone.get(key.key_id()).unwrap();
        assert!(pinned.speaks_for("acme", "acme.edge-1.0123"));
        for (tenant, lane) in [
            ("beta", "beta.edge-1.0123"),
            ("acme", "acme.edge-2.0123"),
            ("acme", "acme.control.0123"),
            ("acme", "acme"),
            ("acme", ""),
            ("beta", "acme.edge-1.0123"),
            ("acme", "acme.edge-1"),
            ("acme", "acme.edge-1."),
            ("acme", "acme.edge-1.0123.4"),
            ("acme", &format!("acme.edge-1.{}", "0".repeat(65))),
        ] {
            assert!(!pinned.speaks_for(tenant, lane), "{tenant} {lane}");
        }
    }
}
