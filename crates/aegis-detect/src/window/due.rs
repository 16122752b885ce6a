//! When there is something to settle of a tenant, and where its state stands: most rules have nothing of most tenants, or nothing whose time is over, and are
//! not asked. Promises that who has matches that can still change is asked each time, and who is new once its oldest event leaves the window.

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

/// By each tenant's number, of rules that every tenant has alone: of those of tenants' own there are as many as there are tenants.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Up to which time of the tenant's nothing is to be settled.
    rests_to: Vec<Timestamp>,
    /// Where its state may stand: it is there if it has the number.
    places: Vec<u32>,
    /// Of whom there is something, where before was nothing, and no number is known.
    new: Vec<TenantId>,
    /// How long the rule's window is.
    window_micros: i64,
}

const NOW: Timestamp = Timestamp::from_micros(i64::MIN);
const NEVER: Timestamp = Timestamp::from_micros(i64::MAX);
const NOWHERE: u32 = u32::MAX;

impl Due {
    /// There is something of this tenant that has to be looked at the next time. Without a number it is noted once, until that was done: nobody makes this
    /// long. Of a tenant's own rule, which is looked at each time, nobody takes it away, though its state may come and go.
    pub(super) fn note(&mut self, tenant: &TenantId, state: &mut TenantState) {
        match state.number {
            // One who is not known here is asked for in any case.
            Some(number) => self.ask_from(number, NOW),
            None if std::mem::replace(&mut state.is_noted, true) || self.new.last() == Some(tenant) => {}
            None => self.new.push(tenant.clone()),
        }
    }

    /// There is an event of this tenant that is older than all others: nothing is to be settled for it before it leaves the window.
    pub(super) fn note_oldest(&mut self, tenant: &TenantId, state: &mut TenantState, oldest: Timestamp) {
        match state.number {
            Some(number) => self.ask_from(number, left_at(oldest, self.window_micros)),
            None => self.note(tenant, state),
        }
    }

    fn ask_from(&mut self, number: usize, from: Timestamp) {
        if let Some(rests_to) = self.rests_to.get_mut(number) {
            *rests_to = from.min(*rests_to);
        }
    }

    /// Where the state of a tenant may stand.
    pub(super) fn place(&self, number: usize) -> Option<usize> {
        self.places.get(number).filter(|place| **place != NOWHERE).map(|place| *place as usize)
    }

    /// The state of a tenant stands there from now on, if the tenant is known here.
    pub(super) fn stands_at(&mut self, number: usize, place: usize) {
        if let Some(known) = self.places.get_mut(number) {
            *known = u32::try_from(place).unwrap_or(NOWHERE);
        }
    }

    #[cfg(test)]
    pub(super) const fn noted(&self) -> usize {
        self.new.len()
    }

    fn set(&mut self, number: usize, to: Timestamp, place: u32) {
        if self.rests_to.len() <= number {
            self.rests_to.resize(number + 1, NOW);
            self.places.resize(number + 1, NOWHERE);
        }
        self.rests_to[number] = to;
        self.places[number] = place;
    }
}

/// A window's events are dropped once so much of the tenant's time has passed since the last time.
pub(super) fn expire_step(window_micros: i64) -> i64 {
    (window_micros / EXPIRE_PART).clamp(EXPIRE_AT_LEAST, EXPIRE_AT_MOST)
}

/// When an event leaves the window.
const fn left_at(ts: Timestamp, window_micros: i64) -> Timestamp {
    ts.plus_micros(window_micros).plus_micros(1)
}

impl RuleState {
    /// Asks for those of whom there is something new, and no number was known.
    pub(crate) fn ask_noted(&mut self, numbers: &mut Numbers) {
        let Due { rests_to, new, .. } = &mut self.due;
        for tenant in new.drain(..) {
            if let Some(rests_to) = rests_to.get_mut(numbers.of(&tenant)) {
                *rests_to = NOW;
            }
        }
    }

    /// True if there is nothing to settle of the tenant where its time has come to `to`.
    pub(crate) fn rests(&self, number: usize, to: Timestamp) -> bool {
        self.due.rests_to.get(number).is_some_and(|rests_to| to < *rests_to)
    }

    /// What was to be settled of the tenant was, by a rule with a window of so many microseconds; its state stands there, if there is any.
    pub(crate) fn settled(&mut self, number: usize, place: Option<usize>, window_micros: i64) {
        let state = place.and_then(|place| Some((place, self.tenants.get_index_mut(place)?.1)));
        let (next, place) = match state {
            None => (NEVER, NOWHERE),
            Some((place, state)) => {
                (state.is_noted, state.number) = (false, Some(number));
                (state.rests_to(window_micros), u32::try_from(place).unwrap_or(NOWHERE))
            }
        };
        self.due.window_micros = window_micros;
        self.due.set(number, next, place);
    }
}

impl TenantState {
    /// Up to which time of the tenant's there is nothing to settle, unless something new comes that is older than all there is.
    fn rests_to(&self, window_micros: i64) -> Timestamp {
        let Some(last) = self.expired_to.filter(|_| !self.has_keys()) else { return NOW };
        let by_step = last.plus_micros(window_micros).plus_micros(expire_step(window_micros));
        match self.oldest {
            // Until then no event of it leaves the window.
            Some(oldest) if !self.has_refused() => by_step.max(left_at(oldest, window_micros)),
            _ => by_step,
        }
    }
}
