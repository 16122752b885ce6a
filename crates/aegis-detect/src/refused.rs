//! Which keys a full quota refused events of, and of what time the newest was: a key that finds room later knows what it lacks. Bounded, and what is
//! forgotten is said of every key: a row is then not decided that could have been, and never decided without what was refused.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use aegis_model::Timestamp;

/// Keys that are remembered of a rule and tenant; past it those whose newest refusal lies furthest back are forgotten, half of them at a time.
const MOST_KEYS: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Refused {
    /// By the hash of the bucket's name: names are the caller's to choose, and of any length. Two of one hash share the later time.
    by_bucket: BTreeMap<u64, Timestamp>,
    /// The newest of those that are forgotten.
    beyond: Option<Timestamp>,
}

impl Refused {
    /// An event of this time had no room in a bucket that is not there.
    pub(crate) fn note(&mut self, bucket: &str, ts: Timestamp) {
        let newest = self.by_bucket.entry(hash_of(bucket)).or_insert(ts);
        *newest = ts.max(*newest);
        if self.by_bucket.len() > MOST_KEYS {
            let mut times: Vec<Timestamp> = self.by_bucket.values().copied().collect();
            let (_, middle, _) = times.select_nth_unstable(MOST_KEYS / 2);
            let middle = *middle;
            self.by_bucket.retain(|_, ts| *ts > middle);
            self.beyond = self.beyond.max(Some(middle));
        }
    }

    /// The newest event of the bucket that may have been refused.
    pub(crate) fn newest(&self, bucket: &str) -> Option<Timestamp> {
        if self.is_empty() {
            return None;
        }
        self.by_bucket.get(&hash_of(bucket)).copied().max(self.beyond)
    }

    /// The newest event of any bucket that may have been refused.
    pub(crate) fn newest_of_all(&self) -> Option<Timestamp> {
        self.by_bucket.values().copied().max().max(self.beyond)
    }

    /// Events up to then may have been refused, of any bucket that is not there.
    pub(crate) fn note_all(&mut self, to: Option<Timestamp>) {
        self.beyond = self.beyond.max(to);
    }

    /// Forgets what was refused of before `before`: no row looks so far back any more.
    pub(crate) fn forget(&mut self, before: Timestamp) {
        self.by_bucket.retain(|_, ts| *ts >= before);
        self.beyond = self.beyond.filter(|ts| *ts >= before);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_bucket.is_empty() && self.beyond.is_none()
    }
}

/// The hash of a name: the same in every process, so that what follows from two names of one hash does too.
pub(crate) fn hash_of(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: usize) -> Timestamp {
        Timestamp::from_micros(0).plus_seconds(i64::try_from(second).unwrap_or(i64::MAX))
    }

    #[test]
    fn of_a_key_the_newest_refusal_is_known_until_nothing_looks_so_far_back() {
        let mut refused = Refused::default();
        assert!(refused.is_empty() && refused.newest("a").is_none());
        refused.note("a", at(20));
        refused.note("a", at(10));
        assert_eq!((refused.newest("a"), refused.newest("b")), (Some(at(20)), None));
        refused.forget(at(20));
        assert_eq!((refused.newest("a"), refused.newest_of_all()), (Some(at(20)), Some(at(20))));
        refused.forget(at(21));
        assert!(refused.is_empty());
        // What is known of all of them alone.
        refused.note_all(Some(at(30)));
        refused.note_all(None);
        assert_eq!((refused.newest("b"), refused.newest_of_all()), (Some(at(30)), Some(at(30))));
    }

    #[test]
    fn of_too_many_keys_what_is_forgotten_counts_for_all_and_the_newest_are_known() {
        let mut refused = Refused::default();
        for n in 1..=3 * MOST_KEYS {
            refused.note(&n.to_string(), at(n));
            assert!(refused.by_bucket.len() <= MOST_KEYS);
        }
        for n in 1..=3 * MOST_KEYS {
            assert!(refused.newest(&n.to_string()) >= Some(at(n)), "key {n} lacks what was refused");
        }
        // Another key lacks nothing of the last ones.
        assert!(refused.newest("another") < Some(at(3 * MOST_KEYS - MOST_KEYS / 4)));
        refused.forget(at(4 * MOST_KEYS));
        assert!(refused.is_empty(), "what is over is over");
    }
}
