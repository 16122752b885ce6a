//! What was lost, per tenant, until a `gap` receipt has told it: best-effort drafts that found no room, and required ones that
//! were refused because their commit failed. Counting never blocks the action path for longer than a map insert.

use std::collections::BTreeMap;

use aegis_model::{TenantId, Timestamp};
use parking_lot::Mutex;

/// Tenants whose losses are told apart. Past this, losses are still counted in total.
const MAX_TENANTS: usize = 16_384;

/// What one tenant lost since its last gap receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Best-effort drafts that were dropped.
    pub(crate) dropped: u64,
    /// Required drafts whose waiters were told that nothing was written.
    pub(crate) refused: u64,
    /// True if a commit failed; false if only the queue was full.
    pub(crate) outage: bool,
    pub(crate) since: Timestamp,
    pub(crate) until: Timestamp,
}

impl Loss {
    pub(crate) fn reason(&self) -> &'static str {
        if self.outage { "ledger_unavailable" } else { "queue_full" }
    }

    fn join(&mut self, other: &Self) {
        self.dropped += other.dropped;
        self.refused += other.refused;
        self.outage |= other.outage;
        self.since = self.since.min(other.since);
        self.until = self.until.max(other.until);
    }
}

/// Losses that no gap receipt has told yet.
#[derive(Debug, Default)]
pub(crate) struct Losses(Mutex<BTreeMap<TenantId, Loss>>);

impl Losses {
    pub(crate) fn dropped(&self, tenant: &TenantId, outage: bool, at: Timestamp) {
        self.add(tenant, Loss { dropped: 1, refused: 0, outage, since: at, until: at });
    }

    pub(crate) fn refused(&self, tenant: &TenantId, at: Timestamp) {
        self.add(tenant, Loss { dropped: 0, refused: 1, outage: true, since: at, until: at });
    }

    pub(crate) fn add(&self, tenant: &TenantId, loss: Loss) {
        let mut losses = self.0.lock();
        if let Some(known) = losses.get_mut(tenant) {
            known.join(&loss);
        } else if losses.len() < MAX_TENANTS {
            losses.insert(tenant.clone(), loss);
        }
    }

    /// Takes at most `limit` tenants' losses; what could not be sealed goes back with `add`.
    pub(crate) fn take(&self, limit: usize) -> Vec<(TenantId, Loss)> {
        let mut losses = self.0.lock();
        let mut taken = Vec::new();
        while taken.len() < limit {
            match losses.pop_first() {
                Some(entry) => taken.push(entry),
                None => break,
            }
        }
        taken
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn losses_add_up_until_they_are_taken() {
        let (losses, tenant) = (Losses::default(), TenantId::new("a").unwrap());
        losses.dropped(&tenant, false, Timestamp::from_micros(5));
        losses.refused(&tenant, Timestamp::from_micros(3));
        let taken = losses.take(10);
        let expected =
            Loss { dropped: 1, refused: 1, outage: true, since: Timestamp::from_micros(3), until: Timestamp::from_micros(5) };
        assert_eq!(taken, vec![(tenant, expected)]);
        assert!(losses.is_empty());
    }
}
