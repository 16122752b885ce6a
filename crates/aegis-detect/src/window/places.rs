//! Where the state of a tenant stands: told by its number, which the names of its buckets have, so that nobody looks for it by a text; and what of many tenants
//! is glanced at before it is worked on. Promises that a place is held against who stands there, and that nothing follows from what is glanced at.

use std::sync::Arc;

use aegis_model::TenantId;
use indexmap::map::Entry;

use super::{Place, RuleState, TenantState};
use crate::name::BucketName;

/// Tenants whose state is at hand whoever of them comes next, about. Tests have few, and are of many.
const NEAR: usize = if cfg!(test) { 2 } else { 64 };

impl RuleState {
    /// Where the buckets of these names stand, as far as it is told by their tenants' numbers, and by where each stands for another rule. Each is glanced at
    /// before it is worked on: of very many tenants all is far away, and this way that of several comes at once.
    pub(crate) fn places<'a>(&self, names: impl Iterator<Item = (&'a BucketName, usize)>) -> Vec<Option<Place>> {
        if self.tenants.len() <= NEAR {
            return names.map(|(_, may_stand)| Some(Place::of_another(may_stand))).collect();
        }
        let mut seen = 0;
        let place_of = |(name, may_stand): (&'a BucketName, usize)| {
            let tenant = self.place_of_number(name.number()?)?;
            let (_, state) = self.tenants.get_index(tenant)?;
            let bucket = state.buckets.place_by(name, may_stand)?;
            seen ^= state.buckets.at(bucket)?.1.glance();
            Some(Place { tenant, bucket })
        };
        let places = names.map(place_of).collect();
        let _seen = std::hint::black_box(seen);
        places
    }

    /// Glances at what is to be settled of the tenants of these numbers, for the same reason: an event is let go of where its count is, and a row where it
    /// lies.
    pub(crate) fn glance(&self, numbers: impl Iterator<Item = usize>) {
        if self.tenants.len() <= NEAR {
            return;
        }
        let states = numbers.filter_map(|number| Some(self.tenants.get_index(self.place_of_number(number)?)?.1));
        let first = states.filter_map(|state| state.buckets.values().next());
        let seen = first.map(|bucket| bucket.glance() ^ bucket.events().first().map_or(0, Arc::strong_count));
        let _seen = std::hint::black_box(seen.fold(0, |all, one| all ^ one));
    }

    /// Where a tenant stands that may have this number, and whether it is new there.
    pub(super) fn place_or_new(&mut self, tenant: &TenantId, number: Option<usize>) -> (usize, bool) {
        if let Some(place) = number.and_then(|number| self.place_of_number(number)) {
            return (place, false);
        }
        let (place, is_new) = match self.tenants.entry(tenant.clone()) {
            Entry::Occupied(mut known) => {
                let state = known.get_mut();
                state.number = state.number.or(number);
                (known.index(), false)
            }
            Entry::Vacant(new) => {
                let place = new.index();
                new.insert(Box::new(TenantState::new(number)));
                (place, true)
            }
        };
        if let Some(number) = number {
            self.due.stands_at(number, place);
        }
        (place, is_new)
    }

    /// Where the tenant of a number stands, if that is known here.
    fn place_of_number(&self, number: usize) -> Option<usize> {
        let place = self.due.place(number)?;
        let (_, state) = self.tenants.get_index(place)?;
        (state.number == Some(number)).then_some(place)
    }

    /// Where a tenant of this number stands, if there is anything of it.
    pub(crate) fn place_of(&self, tenant: &TenantId, number: usize) -> Option<usize> {
        self.place_of_number(number).or_else(|| self.tenants.get_index_of(tenant))
    }

    /// Removes what stands at a place; what stands there then, if anything, is another tenant's.
    pub(super) fn remove_at(&mut self, place: usize) -> Option<Box<TenantState>> {
        let (_, gone) = self.tenants.swap_remove_index(place)?;
        if let Some(number) = self.tenants.get_index(place).and_then(|(_, other)| other.number) {
            self.due.stands_at(number, place);
        }
        Some(gone)
    }
}
