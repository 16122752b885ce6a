//! A map that forgets: entries end after a time, and the oldest go first when it is full.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use aegis_model::Timestamp;

/// A bounded map with one time to live. Not synchronised.
#[derive(Debug)]
pub(crate) struct ExpiringMap<K, V> {
    entries: HashMap<K, (V, Timestamp)>,
    order: VecDeque<(K, Timestamp)>,
    capacity: usize,
    ttl_s: i64,
}

impl<K: Eq + Hash + Clone, V> ExpiringMap<K, V> {
    pub(crate) fn new(capacity: usize, ttl_s: i64) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), capacity: capacity.max(1), ttl_s }
    }

    /// The live entry of `key`.
    pub(crate) fn get_mut(&mut self, key: &K, now: Timestamp) -> Option<&mut V> {
        match self.entries.get_mut(key) {
            Some((value, until)) if *until > now => Some(value),
            _ => None,
        }
    }

    /// Adds or replaces the entry of `key`; it ends `ttl_s` after `now`.
    pub(crate) fn insert(&mut self, key: K, value: V, now: Timestamp) {
        self.forget_expired(now);
        while self.order.len() >= self.capacity {
            self.forget_oldest();
        }
        let until = now.plus_seconds(self.ttl_s);
        self.entries.insert(key.clone(), (value, until));
        self.order.push_back((key, until));
        debug_assert!(self.entries.len() <= self.capacity);
    }

    fn forget_expired(&mut self, now: Timestamp) {
        while self.order.front().is_some_and(|(_, until)| *until <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((key, until)) = self.order.pop_front() else { return };
        // A key that was replaced since stands again further back, with a later end.
        if self.entries.get(&key).is_some_and(|(_, current)| *current == until) {
            self.entries.remove(&key);
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn entries_end_and_the_oldest_go_first() {
        let mut map = ExpiringMap::new(2, 10);
        map.insert("a", 1, at(0));
        map.insert("b", 2, at(1));
        map.insert("c", 3, at(2));
        assert_eq!(map.get_mut(&"a", at(2)), None);
        assert_eq!(map.get_mut(&"b", at(2)).copied(), Some(2));
        assert_eq!(map.get_mut(&"b", at(11)), None);
        assert_eq!(map.get_mut(&"c", at(11)).copied(), Some(3));
        map.insert("d", 4, at(100));
        assert_eq!(map.len(), 1);
    }
}
