//! When there is something to settle of a tenant: most rules have nothing of most tenants, or nothing whose time is over, and are not asked.
//! Promises that who has matches that can still change, or is new, is asked each time.

use aegis_model::{TenantId, Timestamp};
use indexmap::IndexSet;

use super::{EXPIRE_AT_LEAST, EXPIRE_AT_MOST, EXPIRE_PART, Hasher, RuleState, TenantState};

/// A number for each tenant, which it has as long as the engine lives.
#[derive(Debug, Default)]
pub(crate) struct Numbers(IndexSet<TenantId, Hasher>);

impl Numbers {
    /// The tenant's number.
    pub(crate) fn of(&mut self, tenant: &TenantId) -> usize {
        self.0.get_index_of(tenant).unwrap_or_else(|| self.0.insert_full(tenant.clone()).0)
    }
}

/// Of each tenant's number, up to which time of the tenant's nothing is to be settled. Of rules that every tenant has alone: of those of
/// tenants' own there are as many as there are tenants.
#[derive(Debug, Default)]
pub(super) struct Due {
    rests_to: Vec<Timestamp>,
    /// Of whom there is something, where before was nothing.
    new: Vec<TenantId>,
}

const NOW: Timestamp = Timestamp::from_micros(i64::MIN);
const NEVER: Timestamp = Timestamp::from_micros(i64::MAX);

impl Due {
    /// There is something of this tenant that has to be looked at the next time. Noted once, until that was done: nobody makes this long. Of a tenant's
    /// own rule, which is looked at each time, nobody takes it away, though its state may come and go.
    pub(super) fn note(&mut self, tenant: &TenantId, state: &mut TenantState) {
        if !std::mem::replace(&mut state.is_noted, true) && self.new.last() != Some(tenant) {
            self.new.push(tenant.clone());
        }
    }

    #[cfg(test)]
    pub(super) const fn noted(&self) -> usize {
        self.new.len()
    }

    fn set(&mut self, number: usize, to: Timestamp) {
        if self.rests_to.len() <= number {
            self.rests_to.resize(number + 1, NOW);
        }
        self.rests_to[number] = to;
    }
}

/// A window's events are dropped once so much of the tenant's time has passed since the last time.
pub(super) fn expire_step(window_micros: i64) -> i64 {
    (window_micros / EXPIRE_PART).clamp(EXPIRE_AT_LEAST, EXPIRE_AT_MOST)
}

impl RuleState {
    /// True if there is nothing to settle of the tenant where its time has come to `to`.
    pub(crate) fn rests(&mut self, numbers: &mut Numbers, number: usize, to: Timestamp) -> bool {
        let Due { rests_to, new } = &mut self.due;
        for tenant in new.drain(..) {
            if let Some(rests_to) = rests_to.get_mut(numbers.of(&tenant)) {
                *rests_to = NOW;
            }
        }
        self.due.rests_to.get(number).is_some_and(|rests_to| to < *rests_to)
    }

    /// What was to be settled of the tenant was, by a rule with a window of so many microseconds.
    pub(crate) fn settled(&mut self, tenant: &TenantId, number: usize, window_micros: i64) {
        let next = match self.tenants.get_mut(tenant) {
            None => NEVER,
            Some(state) => {
                state.is_noted = false;
                state.rests_to(window_micros)
            }
        };
        self.due.set(number, next);
    }
}

impl TenantState {
    /// Up to which time of the tenant's there is nothing to settle, unless something new comes that is older than all there is.
    fn rests_to(&self, window_micros: i64) -> Timestamp {
        let Some(last) = self.expired_to.filter(|_| self.keyed.is_empty()) else { return NOW };
        let by_step = last.plus_micros(window_micros).plus_micros(expire_step(window_micros));
        match self.oldest {
            // Until then no event of it leaves the window.
            Some(oldest) if self.refused.is_empty() => by_step.max(oldest.plus_micros(window_micros).plus_micros(1)),
            _ => by_step,
        }
    }
}
