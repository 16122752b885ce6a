//! What of a tenant's state few tenants have: keys with matches, what a full quota refused, instants that wait, and whose buckets are whose. Promises to take no
//! memory where there is nothing of it.

use std::collections::BTreeSet;

use aegis_model::Timestamp;

use super::TenantState;
use super::share::Makers;
use crate::refused::Refused;

#[derive(Debug, Default)]
pub(super) struct Seldom {
    /// The buckets that have keys: few of them.
    pub(super) keyed: BTreeSet<String>,
    /// In all buckets, and what their texts take.
    pub(super) keys: usize,
    pub(super) key_bytes: usize,
    /// What each agent made. None: all buckets together are less than one agent may make, and nobody has to know whose they are.
    pub(super) made_by: Option<Box<Makers>>,
    /// The buckets of which instants wait for their decision, by the first of them.
    pub(super) awaiting: BTreeSet<(Timestamp, String)>,
    /// What a full quota did not let in.
    pub(super) refused: Refused,
}

impl Seldom {
    fn is_empty(&self) -> bool {
        let has_keys = !self.keyed.is_empty() || self.keys > 0 || self.key_bytes > 0;
        !has_keys && self.made_by.is_none() && self.awaiting.is_empty() && self.refused.is_empty()
    }
}

impl TenantState {
    /// To be added to.
    pub(super) fn seldom(&mut self) -> &mut Seldom {
        self.seldom.get_or_insert_default()
    }

    /// Lets go of it where it has come to nothing.
    pub(super) fn tidy(&mut self) {
        if self.seldom.as_deref().is_some_and(Seldom::is_empty) {
            self.seldom = None;
        }
    }

    /// True if there are keys.
    pub(super) fn has_keys(&self) -> bool {
        self.seldom.as_ref().is_some_and(|seldom| !seldom.keyed.is_empty())
    }

    /// True if a bucket has keys.
    pub(super) fn is_keyed(&self, bucket: &str) -> bool {
        self.seldom.as_ref().is_some_and(|seldom| seldom.keyed.contains(bucket))
    }

    /// How many keys there are, and what their texts take.
    pub(super) fn weight_of_keys(&self) -> (usize, usize) {
        self.seldom.as_ref().map_or((0, 0), |seldom| (seldom.keys, seldom.key_bytes))
    }

    /// True if a full quota did not let something in.
    pub(super) fn has_refused(&self) -> bool {
        self.seldom.as_ref().is_some_and(|seldom| !seldom.refused.is_empty())
    }

    /// The first instant that waits for its decision.
    pub(super) fn first_awaiting(&self) -> Option<Timestamp> {
        self.seldom.as_ref()?.awaiting.first().map(|(first, _)| *first)
    }
}
