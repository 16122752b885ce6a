//! What a side table of its own knows of each tenant: found by the tenant, tidied now and then, and forgotten with it.

use std::collections::{BTreeSet, HashMap};

use aegis_model::{TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use super::TIDY_STEP;
use crate::window::Hasher;

/// What is known of one tenant.
pub(super) trait Known {
    fn is_empty(&self) -> bool;

    /// What it takes.
    fn bytes(&self) -> usize;

    /// Up to where it was looked for what is over.
    fn tidied(&mut self) -> &mut Option<i64>;

    /// Forgets what no event asks for that comes in time, or is in a window.
    fn forget(&mut self, now: i64);
}

/// What is known of all tenants.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct ByTenant<T> {
    pub(super) tenants: HashMap<TenantId, T, Hasher>,
}

impl<T> Default for ByTenant<T> {
    fn default() -> Self {
        Self { tenants: HashMap::default() }
    }
}

impl<T: Known + Clone> ByTenant<T> {
    /// Forgets what is over, once in a while.
    pub(super) fn forget(&mut self, tenant: &TenantId, final_before: Timestamp) {
        let Some(known) = self.tenants.get_mut(tenant) else { return };
        let now = final_before.as_micros();
        if known.tidied().is_none_or(|tidied| now.saturating_sub(tidied) >= TIDY_STEP) {
            *known.tidied() = Some(now);
            known.forget(now);
        }
    }

    /// Forgets all of a tenant.
    pub(super) fn forget_all(&mut self, tenant: &TenantId) {
        self.tenants.remove(tenant);
    }

    pub(super) fn knows(&self, tenant: &TenantId) -> bool {
        self.tenants.get(tenant).is_some_and(|known| !known.is_empty())
    }

    pub(super) fn bytes(&self) -> impl Iterator<Item = (&TenantId, usize)> {
        self.tenants.iter().map(|(tenant, known)| (tenant, known.bytes()))
    }

    pub(super) fn without(&self, left_out: &BTreeSet<TenantId>) -> Self {
        let kept = self.tenants.iter().filter(|(tenant, _)| !left_out.contains(*tenant));
        Self { tenants: kept.map(|(tenant, known)| (tenant.clone(), known.clone())).collect() }
    }
}
