//! What is known to be gone: up to when events were lost that rules would look back to, over a restart or where the log begins. Promises that it is
//! known until no row looks so far back, also over further restarts; and that nobody is contained for want of it.

use std::collections::BTreeMap;

use aegis_model::{Alert, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::evaluate::RunningRule;

/// Stands in an alert that leads to nothing, though its rule contains.
pub(crate) const NOT_CONTAINED: &str = "not_contained";
/// Stands in any other alert that looks back to where events are gone.
pub(crate) const EVENTS_GONE: &str = "events_gone";
pub(crate) const GONE: &str = "some of the events before a restart were gone: what is missing may have been there";
pub(crate) const GONE_BESIDE: &str = "some of the events that the rule looks back to were gone after a restart";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Lost {
    /// Of these tenants, up to then.
    of_tenant: BTreeMap<TenantId, Timestamp>,
    /// Of all: the log that was read begins here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<Timestamp>,
}

impl Lost {
    /// Up to when events of the tenant may be gone.
    pub(crate) fn to(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.of_tenant.get(tenant).copied().max(self.before)
    }

    /// Up to when events of everybody may be gone.
    pub(crate) const fn before(&self) -> Option<Timestamp> {
        self.before
    }

    /// The tenants of whom it is known by themselves.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &TenantId> {
        self.of_tenant.keys()
    }

    pub(crate) fn add(&mut self, tenant: &TenantId, to: Timestamp) {
        let known = self.of_tenant.entry(tenant.clone()).or_insert(to);
        *known = to.max(*known);
    }

    pub(crate) fn add_all_before(&mut self, to: Timestamp) {
        self.before = self.before.max(Some(to));
    }

    /// No row of the tenant looks back to before `horizon` any more.
    pub(crate) fn forget(&mut self, tenant: &TenantId, horizon: Timestamp) {
        if self.of_tenant.get(tenant).is_some_and(|to| *to < horizon) {
            self.of_tenant.remove(tenant);
        }
    }
}

impl RunningRule {
    /// Alerts of the rule whose rows look back to where events are gone say so; and where it may be only for want of those that there is one at all, it
    /// has no response.
    pub(crate) fn withhold(&self, alerts: &mut [Alert], lost: &Lost) {
        let back = self.plan.back_micros(self.window_micros());
        for alert in alerts.iter_mut().filter(|_| back > 0) {
            if lost.to(&alert.tenant_id).is_none_or(|to| alert.last_ts.plus_micros(-back) > to) {
                continue;
            }
            if self.plan.rests_on_absence && self.rule.header.contains() {
                alert.respond.clear();
                alert.fields.insert(NOT_CONTAINED.to_owned(), GONE.into());
            } else {
                alert.fields.insert(EVENTS_GONE.to_owned(), GONE_BESIDE.into());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_known_of_each_tenant_until_no_row_looks_so_far_back() {
        let (a, b) = (TenantId::new("a").unwrap(), TenantId::new("b").unwrap());
        let at = |second: i64| Timestamp::from_micros(second * 1_000_000);
        let mut lost = Lost::default();
        assert_eq!(lost.to(&a), None);
        lost.add(&a, at(100));
        lost.add(&a, at(50));
        lost.forget(&a, at(100));
        assert_eq!((lost.to(&a), lost.to(&b)), (Some(at(100)), None));
        lost.add_all_before(at(70));
        let again: Lost = serde_json::from_str(&serde_json::to_string(&lost).unwrap()).unwrap();
        for mut lost in [lost, again] {
            assert_eq!((lost.to(&a), lost.to(&b)), (Some(at(100)), Some(at(70))));
            lost.forget(&a, at(101));
            assert_eq!(lost.to(&a), Some(at(70)));
        }
    }
}
