//! A map that forgets: entries end after a time. When it is full, room is made by whoever has at least an equal share of it, among tenants
//! and then among the tenant's agents, and the oldest goes first: nobody loses an entry to others before it has more than its share.

use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use aegis_model::{TenantId, Timestamp};

use crate::digest::{Key, key_of};

/// Owners that are looked at, with each entry that comes, for one that has ended.
const LOOKS: usize = 2;

/// What an agent named, and whose it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named<'a> {
    tenant: &'a TenantId,
    agent_id: &'a str,
    pub(crate) key: Key,
}

impl<'a> Named<'a> {
    pub(crate) fn new(tenant: &'a TenantId, agent_id: &'a str, name: &str) -> Self {
        Self { tenant, agent_id, key: key_of(&[tenant.as_str(), agent_id, name]) }
    }
}

/// A bounded map with one time to live. Not synchronised.
#[derive(Debug)]
pub(crate) struct ExpiringMap<V> {
    entries: HashMap<Key, (V, Timestamp)>,
    lines: Shared<TenantId, Shared<String, Line>>,
    capacity: usize,
    ttl_s: i64,
}

impl<V> ExpiringMap<V> {
    pub(crate) fn new(capacity: usize, ttl_s: i64) -> Self {
        Self { entries: HashMap::new(), lines: Shared::default(), capacity: capacity.max(1), ttl_s }
    }

    /// The live entry of `key`.
    pub(crate) fn get_mut(&mut self, key: &Key, now: Timestamp) -> Option<&mut V> {
        match self.entries.get_mut(key) {
            Some((value, until)) if *until > now => Some(value),
            _ => None,
        }
    }

    /// Adds or replaces the entry of `named`; it ends `ttl_s` after `now`.
    pub(crate) fn insert(&mut self, named: &Named<'_>, value: V, now: Timestamp) {
        let until = now.plus_seconds(self.ttl_s);
        self.entries.insert(named.key, (value, until));
        let of_tenant = self.lines.line(named.tenant);
        of_tenant.line(named.agent_id).push_back((named.key, until));
        of_tenant.held += 1;
        self.lines.held += 1;
        for _ in 0..LOOKS {
            let ended = self.lines.take_ended(now);
            self.forget(ended);
        }
        if self.lines.held > self.capacity {
            let oldest = self.lines.take();
            self.forget(oldest);
        }
        debug_assert!(self.entries.len() <= self.lines.held && self.lines.held <= self.capacity);
    }

    fn forget(&mut self, taken: Option<(Key, Timestamp)>) {
        let Some((key, until)) = taken else { return };
        // A key that was replaced since stands again further back, with a later end.
        if self.entries.get(&key).is_some_and(|(_, current)| *current == until) {
            self.entries.remove(&key);
        }
    }
}

/// Entries in the order in which they came.
type Line = VecDeque<(Key, Timestamp)>;

/// What entries are taken from when they are to be forgotten.
trait Forgets: Default {
    fn held(&self) -> usize;

    /// Takes out one that has ended, if it is at the place that is looked at next.
    fn take_ended(&mut self, now: Timestamp) -> Option<(Key, Timestamp)>;

    /// Takes out the oldest of one that has its share.
    fn take(&mut self) -> Option<(Key, Timestamp)>;
}

impl Forgets for Line {
    fn held(&self) -> usize {
        self.len()
    }

    fn take_ended(&mut self, now: Timestamp) -> Option<(Key, Timestamp)> {
        match self.front() {
            Some((_, until)) if *until <= now => self.pop_front(),
            _ => None,
        }
    }

    fn take(&mut self) -> Option<(Key, Timestamp)> {
        self.pop_front()
    }
}

/// Lines of several owners. None of them is empty.
#[derive(Debug)]
struct Shared<O, L> {
    places: HashMap<O, usize>,
    lines: Vec<(O, L)>,
    held: usize,
    /// Whose line was looked at last for what has ended.
    looked_at: usize,
    /// Who gave last of those that have their share.
    gave: usize,
}

impl<O, L> Default for Shared<O, L> {
    fn default() -> Self {
        Self { places: HashMap::new(), lines: Vec::new(), held: 0, looked_at: 0, gave: 0 }
    }
}

impl<O: Eq + Hash, L: Forgets> Shared<O, L> {
    /// The owner's line. Whoever asks for it puts something in, and counts it in `held`.
    fn line<B>(&mut self, owner: &B) -> &mut L
    where
        O: Borrow<B>,
        B: Eq + Hash + ToOwned<Owned = O> + ?Sized,
    {
        let place = match self.places.get(owner) {
            Some(place) => *place,
            None => {
                self.places.insert(owner.to_owned(), self.lines.len());
                self.lines.push((owner.to_owned(), L::default()));
                self.lines.len() - 1
            }
        };
        &mut self.lines[place].1
    }

    /// One was taken out of the line at `place`.
    fn settle(&mut self, place: usize) {
        self.held -= 1;
        if self.lines[place].1.held() > 0 {
            return;
        }
        let (owner, _) = self.lines.swap_remove(place);
        self.places.remove(&owner);
        if let Some((moved, _)) = self.lines.get(place)
            && let Some(at) = self.places.get_mut(moved)
        {
            *at = place;
        }
    }
}

impl<O: Eq + Hash, L: Forgets> Forgets for Shared<O, L> {
    fn held(&self) -> usize {
        self.held
    }

    fn take_ended(&mut self, now: Timestamp) -> Option<(Key, Timestamp)> {
        self.looked_at = if self.looked_at + 1 < self.lines.len() { self.looked_at + 1 } else { 0 };
        let ended = self.lines.get_mut(self.looked_at)?.1.take_ended(now)?;
        self.settle(self.looked_at);
        Some(ended)
    }

    fn take(&mut self) -> Option<(Key, Timestamp)> {
        let owners = self.lines.len();
        // INVARIANT: somebody has the average or more. Whoever gave last goes on giving while that is so, so few are asked.
        let has_its_share = |place: &usize| self.lines[*place].1.held() * owners >= self.held;
        let place = (0..owners).map(|step| (self.gave + step) % owners).find(has_its_share)?;
        self.gave = place;
        let taken = self.lines[place].1.take()?;
        self.settle(place);
        Some(taken)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn entries_end_and_the_oldest_go_first() {
        let tenant = TenantId::new("acme").unwrap();
        let named = |name: &str| Named::new(&tenant, "agent", name);
        let mut map = ExpiringMap::new(2, 10);
        map.insert(&named("a"), 1, at(0));
        map.insert(&named("b"), 2, at(1));
        map.insert(&named("c"), 3, at(2));
        assert_eq!(map.get_mut(&named("a").key, at(2)), None);
        assert_eq!(map.get_mut(&named("b").key, at(2)).copied(), Some(2));
        assert_eq!(map.get_mut(&named("b").key, at(11)), None);
        assert_eq!(map.get_mut(&named("c").key, at(11)).copied(), Some(3));
        map.insert(&named("d"), 4, at(100));
        map.insert(&named("e"), 5, at(100));
        assert_eq!((map.entries.len(), map.lines.held), (2, 2));
        assert_eq!(map.get_mut(&named("d").key, at(101)).copied(), Some(4));
    }

    #[test]
    fn what_has_ended_goes_before_what_lives_whoever_s_it_is() {
        let (quiet, noisy) = (TenantId::new("quiet").unwrap(), TenantId::new("noisy").unwrap());
        let mut map = ExpiringMap::new(100, 10);
        (0..60).for_each(|n| map.insert(&Named::new(&quiet, "a", &n.to_string()), n, at(0)));
        (0..100).for_each(|n| map.insert(&Named::new(&noisy, "a", &n.to_string()), n, at(20)));
        let live = (0..100).filter(|n| map.get_mut(&Named::new(&noisy, "a", &n.to_string()).key, at(20)).is_some()).count();
        assert_eq!((live, map.entries.len()), (100, 100));
    }

    /// Who is at its full rate, and how long.
    const NOISE: usize = 500;

    #[test]
    fn one_agent_at_its_full_rate_pushes_out_nobody_else_of_its_tenant_and_no_other_tenant() {
        let (acme, other) = (TenantId::new("acme").unwrap(), TenantId::new("other").unwrap());
        let mut map = ExpiringMap::new(100, 1000);
        let mut quiet = Vec::new();
        for n in 0..20 {
            for (tenant, agent) in [(&acme, "quiet"), (&other, "a"), (&other, "b")] {
                quiet.push(Named::new(tenant, agent, &n.to_string()).key);
                map.insert(&Named::new(tenant, agent, &n.to_string()), n, at(0));
            }
        }
        (0..NOISE).for_each(|n| map.insert(&Named::new(&acme, "noisy", &n.to_string()), n, at(1)));
        assert!(quiet.iter().all(|key| map.get_mut(key, at(2)).is_some()));
        assert_eq!(map.entries.len(), 100);
        let newest = Named::new(&acme, "noisy", &(NOISE - 1).to_string()).key;
        assert!(map.get_mut(&newest, at(2)).is_some(), "what it does now is remembered");
    }

    proptest! {
        #[test]
        fn who_has_no_more_than_its_equal_share_loses_nothing(
            calls in prop::collection::vec((0usize..3, 0usize..4), 0..400),
        ) {
            let tenants: Vec<TenantId> = ["a", "b", "c"].iter().map(|id| TenantId::new(id).unwrap()).collect();
            let mut map = ExpiringMap::new(30, 1000);
            let mut keys: HashMap<usize, Vec<Key>> = HashMap::new();
            for (n, (tenant, agent)) in calls.iter().enumerate() {
                let agent = agent.to_string();
                let name = n.to_string();
                let named = Named::new(&tenants[*tenant], &agent, &name);
                keys.entry(*tenant).or_default().push(named.key);
                map.insert(&named, n, at(n as i64 / 10));
                prop_assert!(map.get_mut(&named.key, at(n as i64 / 10)).is_some());
                let by_line: usize = map.lines.lines.iter().map(|(_, line)| line.held).sum();
                prop_assert_eq!(by_line, map.lines.held);
                prop_assert!(map.lines.held <= 30 && map.entries.len() == map.lines.held);
            }
            for of_tenant in keys.values().filter(|of_tenant| of_tenant.len() <= 10) {
                prop_assert!(of_tenant.iter().all(|key| map.get_mut(key, at(41)).is_some()));
            }
        }
    }
}
