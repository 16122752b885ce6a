//! Whose events a rule is shown: a rule that every tenant has those of all but the tenants that have one of their own in its place, a tenant's own
//! rule that tenant's alone. What a tenant makes of its rules is nothing to another.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_model::TenantId;

use crate::schema::EventBatch;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    AllBut(BTreeSet<TenantId>),
    Only(TenantId),
}

impl Default for Scope {
    fn default() -> Self {
        Self::AllBut(BTreeSet::new())
    }
}

impl Scope {
    pub(crate) fn covers(&self, tenant: &TenantId) -> bool {
        match self {
            Self::AllBut(others) => !others.contains(tenant),
            Self::Only(own) => own == tenant,
        }
    }

    /// The tenant whose own rule it is.
    pub(crate) const fn owner(&self) -> Option<&TenantId> {
        match self {
            Self::AllBut(_) => None,
            Self::Only(own) => Some(own),
        }
    }

    /// The events of a batch that the rule is shown; None where that is not one of them.
    pub(crate) fn of(&self, batch: &Arc<EventBatch>) -> Option<Arc<EventBatch>> {
        if matches!(self, Self::AllBut(others) if others.is_empty()) {
            return Some(Arc::clone(batch));
        }
        let shown = batch.rows().iter().filter(|event| self.covers(&event.tenant_id)).count();
        if shown == batch.rows().len() {
            return Some(Arc::clone(batch));
        }
        let rows = || batch.rows().iter().filter(|event| self.covers(&event.tenant_id)).cloned().collect();
        (shown > 0).then(|| Arc::new(EventBatch::new(rows())))
    }
}
