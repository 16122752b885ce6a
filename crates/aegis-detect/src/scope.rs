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
        let others = match self {
            Self::Only(own) => return batch.of_tenant(own).cloned(),
            Self::AllBut(others) => others,
        };
        if others.is_empty() || batch.rows().iter().all(|event| !others.contains(&event.tenant_id)) {
            return Some(Arc::clone(batch));
        }
        let rows: Vec<_> = batch.rows().iter().filter(|event| self.covers(&event.tenant_id)).cloned().collect();
        (!rows.is_empty()).then(|| Arc::new(EventBatch::new(rows)))
    }
}
