//! Which buckets have instants that wait for their decision, and from when on: for rules whose frames end after their row.

use std::collections::BTreeSet;

use aegis_model::{TenantId, Timestamp};

use super::{RuleState, TenantState};
use crate::bucket::Bucket;

impl RuleState {
    /// A bucket's instants from `from` on wait for their decision, beside those that do so already.
    pub(crate) fn wait_for(&mut self, tenant: &TenantId, bucket: &str, from: Timestamp) {
        let Some(state) = self.tenants.get_mut(tenant) else { return };
        let TenantState { buckets, seldom, .. } = &mut **state;
        let Some(entry) = buckets.get_mut(bucket) else { return };
        let Some(first) = entry.first_from(from) else { return };
        if entry.awaits().is_some_and(|known| known <= first) {
            return;
        }
        let awaiting = &mut seldom.get_or_insert_default().awaiting;
        if let Some(later) = entry.awaits() {
            awaiting.remove(&(later, bucket.to_owned()));
        }
        entry.wait_from(Some(first));
        awaiting.insert((first, bucket.to_owned()));
    }

    /// A tenant's buckets of which instants before `before` wait, each with the first of them. Those instants wait no longer.
    pub(crate) fn take_due(&mut self, tenant: &TenantId, before: Timestamp) -> Vec<(String, Timestamp)> {
        let Some(state) = self.tenants.get_mut(tenant) else { return Vec::new() };
        let TenantState { buckets, seldom, .. } = &mut **state;
        let Some(awaiting) = seldom.as_mut().map(|seldom| &mut seldom.awaiting) else { return Vec::new() };
        let mut due = Vec::new();
        while awaiting.first().is_some_and(|(first, _)| *first < before) {
            let Some((first, name)) = awaiting.pop_first() else { break };
            due.push((name, first));
        }
        for (name, _) in &due {
            let Some(bucket) = buckets.get_mut(name) else { continue };
            let next = bucket.first_from(before);
            bucket.wait_from(next);
            if let Some(next) = next {
                awaiting.insert((next, name.clone()));
            }
        }
        due
    }

    /// True if instants of a tenant's before `before` wait for their decision.
    pub(crate) fn has_due(&self, tenant: &TenantId, before: Timestamp) -> bool {
        self.tenants.get(tenant).and_then(|state| state.first_awaiting()).is_some_and(|first| first < before)
    }

    /// The tenants of whom instants wait for their decision, each with the first of them.
    pub(crate) fn awaiting(&self) -> impl Iterator<Item = (&TenantId, Timestamp)> {
        self.tenants.iter().filter_map(|(tenant, state)| Some((tenant, state.first_awaiting()?)))
    }

    /// How many events of these tenants are at instants that wait for their decision.
    pub(crate) fn awaiting_count(&self, tenants: &BTreeSet<TenantId>) -> usize {
        let buckets = tenants.iter().filter_map(|tenant| self.tenants.get(tenant)).flat_map(|state| state.buckets.values());
        let of_bucket = |bucket: &Bucket| {
            let events = bucket.events();
            bucket.awaits().map_or(0, |from| events.len() - events.partition_point(|event| event.ts < from))
        };
        buckets.map(of_bucket).sum()
    }
}
