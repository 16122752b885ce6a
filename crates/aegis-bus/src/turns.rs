//! Turns: what waits of several, a tenant's requests for one, is taken one of each, then another of each, in the order in which it came.
//! Promises that nobody's many keep another's few waiting.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// What waits, by whose it is. As an iterator it gives it away in turn.
#[derive(Clone, Debug)]
pub struct Turns<K, T> {
    /// None is empty.
    waiting: BTreeMap<K, VecDeque<T>>,
    left: usize,
    /// Whose turn it was last.
    last: Option<K>,
}

impl<K: Ord + Clone, T> Turns<K, T> {
    /// Nothing yet; the first turn is that of who comes behind `last`.
    #[must_use]
    pub const fn behind(last: Option<K>) -> Self {
        Self { waiting: BTreeMap::new(), left: 0, last }
    }

    /// One more, behind those of the same.
    pub fn put(&mut self, whose: K, one: T) {
        self.waiting.entry(whose).or_default().push_back(one);
        self.left += 1;
    }

    /// What waits of one.
    #[must_use]
    pub fn of(&self, whose: &K) -> Option<&VecDeque<T>> {
        self.waiting.get(whose)
    }

    /// How much waits of all.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.left
    }

    /// Whoever has the most gives up its newest for one that has fewer. False where nobody has so many more.
    pub fn make_place(&mut self, whose: &K) -> bool {
        let own = self.of(whose).map_or(0, VecDeque::len);
        let Some(fullest) = self.waiting.values_mut().max_by_key(|waiting| waiting.len()) else { return false };
        if fullest.len() <= own + 1 {
            return false;
        }
        fullest.pop_back();
        self.left -= 1;
        true
    }

    /// Who is next.
    fn turn(&self) -> Option<K> {
        let behind = |last: &K| self.waiting.range::<K, _>((Bound::Excluded(last), Bound::Unbounded)).next();
        let next = self.last.as_ref().and_then(behind).or_else(|| self.waiting.first_key_value())?;
        Some(next.0.clone())
    }
}

impl<K: Ord + Clone, T> Default for Turns<K, T> {
    fn default() -> Self {
        Self::behind(None)
    }
}

impl<K: Ord + Clone, T> Iterator for Turns<K, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let whose = self.turn()?;
        let waiting = self.waiting.get_mut(&whose)?;
        let one = waiting.pop_front()?;
        self.left -= 1;
        if waiting.is_empty() {
            self.waiting.remove(&whose);
        }
        self.last = Some(whose);
        Some(one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_is_taken_from_behind_the_last_one_on_and_each_s_own_in_order() {
        let mut turns = Turns::behind(Some("b"));
        for (whose, one) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("c", 6), ("d", 7)] {
            turns.put(whose, one);
        }
        assert_eq!(turns.left(), 7);
        assert_eq!(turns.by_ref().take(4).collect::<Vec<_>>(), [5, 7, 1, 4]);
        // What comes meanwhile has its turn with the others.
        turns.put("b", 8);
        assert_eq!(turns.by_ref().collect::<Vec<_>>(), [6, 2, 8, 3]);
        assert_eq!((turns.left(), turns.of(&"a")), (0, None));
        turns.put("a", 9);
        assert_eq!(turns.next(), Some(9), "alone, it is always its turn");
    }

    #[test]
    fn whoever_has_the_most_gives_up_its_newest_for_one_with_fewer() {
        let mut turns = Turns::default();
        (0..5).for_each(|n| turns.put("a", n));
        turns.put("b", 9);
        assert!(turns.make_place(&"b") && turns.make_place(&"c"));
        assert_eq!(turns.of(&"a").into_iter().flatten().copied().collect::<Vec<_>>(), [0, 1, 2]);
        assert!(!turns.make_place(&"a"), "not for itself");
        assert!(turns.make_place(&"c") && !turns.make_place(&"b"), "not for one with as many but one");
        assert_eq!(turns.left(), 3);
    }
}
