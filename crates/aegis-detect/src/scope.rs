//! Whose events a rule is shown: a rule that every tenant has those of all but the tenants that have one of their own in its place, in the partitions in
//! which it stands; a tenant's own rule that tenant's alone. What a tenant makes of its rules is nothing to another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aegis_model::{PARTITIONS, TenantId, Timestamp, partition_of};
use serde::{Deserialize, Serialize};

use crate::schema::EventBatch;

/// Some of a log's partitions, each a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partitions(u64);

const _: () = assert!(PARTITIONS == u64::BITS, "each partition has its bit");

impl Partitions {
    pub(crate) const ALL: Self = Self(u64::MAX);
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn has(self, partition: u32) -> bool {
        partition < PARTITIONS && self.0 & (1 << partition) != 0
    }

    pub(crate) fn has_tenant(self, tenant: &TenantId) -> bool {
        self == Self::ALL || self.has(partition_of(tenant))
    }

    pub(crate) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl FromIterator<u32> for Partitions {
    /// What is no partition is left out.
    fn from_iter<T: IntoIterator<Item = u32>>(partitions: T) -> Self {
        let bits = partitions.into_iter().filter(|partition| *partition < PARTITIONS).map(|partition| 1_u64 << partition);
        Self(bits.fold(0, |all, bit| all | bit))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Of what every tenant has: where it stands, and who has one of its own in its place.
    AllBut {
        of: Partitions,
        others: BTreeSet<TenantId>,
    },
    Only(TenantId),
}

impl Default for Scope {
    fn default() -> Self {
        Self::AllBut { of: Partitions::ALL, others: BTreeSet::new() }
    }
}

impl Scope {
    pub(crate) fn covers(&self, tenant: &TenantId) -> bool {
        match self {
            Self::AllBut { of, others } => of.has_tenant(tenant) && !others.contains(tenant),
            Self::Only(own) => own == tenant,
        }
    }

    /// The tenant whose own rule it is.
    pub(crate) const fn owner(&self) -> Option<&TenantId> {
        match self {
            Self::AllBut { .. } => None,
            Self::Only(own) => Some(own),
        }
    }

    /// Of what every tenant has: in which partitions it stands.
    pub(crate) const fn partitions(&self) -> Partitions {
        match self {
            Self::AllBut { of, .. } => *of,
            Self::Only(_) => Partitions::NONE,
        }
    }

    /// The events of a batch that the rule is shown; None where that is not one of them.
    pub(crate) fn of(&self, batch: &Arc<EventBatch>) -> Option<Arc<EventBatch>> {
        let is_everybody_s = match self {
            Self::Only(own) => return batch.of_tenant(own).cloned(),
            Self::AllBut { of, others } => *of == Partitions::ALL && others.is_empty(),
        };
        if is_everybody_s || batch.rows().iter().all(|event| self.covers(&event.tenant_id)) {
            return Some(Arc::clone(batch));
        }
        let rows: Vec<_> = batch.rows().iter().filter(|event| self.covers(&event.tenant_id)).cloned().collect();
        (!rows.is_empty()).then(|| Arc::new(EventBatch::new(rows)))
    }
}

/// From when on a rule's matches count: one of before is none. A rule that was there from the start of the log has no such time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Since {
    /// Of a tenant's own rule, or of the tenants of whom events were gone when the rule came.
    pub(crate) of_tenant: BTreeMap<TenantId, Timestamp>,
    /// Of the tenants of these partitions else.
    pub(crate) of_partition: BTreeMap<u32, Timestamp>,
}

impl Since {
    pub(crate) fn of_owner(tenant: &TenantId, since: Timestamp) -> Self {
        Self { of_tenant: BTreeMap::from([(tenant.clone(), since)]), of_partition: BTreeMap::new() }
    }

    pub(crate) fn of(&self, tenant: &TenantId) -> Timestamp {
        let always = Timestamp::from_micros(i64::MIN);
        if self.of_tenant.is_empty() && self.of_partition.is_empty() {
            return always;
        }
        let of_partition = || self.of_partition.get(&partition_of(tenant)).copied();
        self.of_tenant.get(tenant).copied().or_else(of_partition).unwrap_or(always)
    }

    /// Of a partition, but for tenants of whom something else is known.
    pub(crate) fn of_partition(&self, partition: u32) -> Timestamp {
        self.of_partition.get(&partition).copied().unwrap_or(Timestamp::from_micros(i64::MIN))
    }

    pub(crate) fn partitions(&self) -> Partitions {
        self.of_partition.keys().copied().collect()
    }

    /// After this time there is nobody of whom matches do not count yet.
    pub(crate) fn latest(&self) -> Option<Timestamp> {
        self.of_tenant.values().chain(self.of_partition.values()).max().copied()
    }

    /// Nothing is known of these partitions any more.
    pub(crate) fn leave(&mut self, partitions: Partitions) {
        self.of_tenant.retain(|tenant, _| !partitions.has_tenant(tenant));
        self.of_partition.retain(|partition, _| !partitions.has(*partition));
    }

    /// The same rule came to further partitions.
    pub(crate) fn join(&mut self, other: Self) {
        self.leave(other.partitions());
        self.of_tenant.extend(other.of_tenant);
        self.of_partition.extend(other.of_partition);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_a_set_and_what_is_none_is_in_none() {
        let some: Partitions = [0, 63, 64, 4000].into_iter().collect();
        assert!(some.has(0) && some.has(63) && !some.has(1) && !some.has(64) && !Partitions::ALL.has(64));
        assert_eq!(some.without([0].into_iter().collect()), [63].into_iter().collect());
        assert_eq!((0..PARTITIONS).collect::<Partitions>(), Partitions::ALL);
        assert_eq!(some.without(some), Partitions::NONE);
        assert!(some.meets(Partitions::ALL) && !some.meets(Partitions::ALL.without(some)));
        assert_eq!(some.and(Partitions::ALL.without(some)), Partitions::ALL);
    }

    #[test]
    fn a_tenant_of_whom_events_were_gone_has_a_time_of_its_own_until_its_partition_has_another() {
        let at = |second: i64| Timestamp::from_micros(second * 1_000_000);
        let (a, b) = (TenantId::new("acme").unwrap(), TenantId::new("beta").unwrap());
        assert_ne!(partition_of(&a), partition_of(&b));
        let mut since = Since::default();
        assert_eq!(since.of(&a), Timestamp::from_micros(i64::MIN));
        since.join(Since {
            of_tenant: BTreeMap::from([(a.clone(), at(9))]),
            of_partition: (0..PARTITIONS).map(|pp| (pp, at(5))).collect(),
        });
        assert_eq!((since.of(&a), since.of(&b), since.of_partition(partition_of(&a))), (at(9), at(5), at(5)));
        since.join(Since { of_tenant: BTreeMap::new(), of_partition: BTreeMap::from([(partition_of(&a), at(12))]) });
        assert_eq!((since.of(&a), since.of(&b)), (at(12), at(5)));
        since.leave([partition_of(&a)].into_iter().collect());
        assert_eq!((since.of(&a), since.of(&b)), (Timestamp::from_micros(i64::MIN), at(5)));
    }
}
