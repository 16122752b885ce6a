//! The newest ids of a row of events, to know one that comes again; so many, and no more.

use std::collections::{HashSet, VecDeque};

use aegis_model::{EventId, TenantId};

#[derive(Debug)]
pub(crate) struct Recent {
    most: usize,
    known: HashSet<(TenantId, EventId)>,
    oldest: VecDeque<(TenantId, EventId)>,
}

impl Recent {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, known: HashSet::new(), oldest: VecDeque::new() }
    }

    /// True if a tenant's event was not there; it is then, and the oldest is forgotten where there is one too many.
    pub(crate) fn takes(&mut self, tenant: &TenantId, event: EventId) -> bool {
        let key = (tenant.clone(), event);
        if !self.known.insert(key.clone()) {
            return false;
        }
        self.oldest.push_back(key);
        if self.oldest.len() > self.most
            && let Some(oldest) = self.oldest.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_that_comes_again_is_known_by_its_tenant_and_as_long_as_there_is_room() {
        let mut recent = Recent::new(2);
        let (a, b, id) = (TenantId::new("a").unwrap(), TenantId::new("b").unwrap(), uuid_of);
        assert!(recent.takes(&a, id(1)) && recent.takes(&b, id(1)));
        assert!(!recent.takes(&a, id(1)) && !recent.takes(&b, id(1)));
        assert!(recent.takes(&a, id(2)));
        assert!(!recent.takes(&b, id(1)) && recent.takes(&a, id(1)), "the oldest made room");
    }

    fn uuid_of(number: u128) -> EventId {
        EventId::from_u128(number)
    }
}
