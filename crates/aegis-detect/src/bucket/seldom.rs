//! What few buckets have beside their events: keys with matches, instants that wait for their decision, events that a quota took. Promises to take no memory
//! where there is nothing of it.

use std::collections::BTreeMap;

use aegis_model::Timestamp;

use super::Bucket;
use crate::episode::KeyState;

/// Of a longer value it is not known whether others are the same: it stays behind its event, and how long it is, is the caller's to choose.
const LONGEST_VALUE: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Seldom {
    /// Of a deferred rule: the first instant that waits for its decision.
    awaits: Option<Timestamp>,
    /// The newest event that a quota has taken, or did not let in.
    lost_to: Option<Timestamp>,
    /// The newest event without one of which there is no match.
    seed: Option<Timestamp>,
    /// Of a query that wants two different values: the one that all events have that are later than `differed`.
    value: Option<Box<str>>,
    differed: Option<Timestamp>,
    /// By the text of the key. Each by itself: a map has room for eleven at once, and mostly there is one.
    keys: BTreeMap<String, Box<KeyState>>,
}

impl Bucket {
    /// The keys whose matches its events make, by their texts.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&String, &KeyState)> {
        self.seldom.iter().flat_map(|seldom| seldom.keys.iter().map(|(text, key)| (text, &**key)))
    }

    /// The same, to be changed.
    pub(crate) fn keys_mut(&mut self) -> impl Iterator<Item = (&String, &mut KeyState)> {
        self.seldom.iter_mut().flat_map(|seldom| seldom.keys.iter_mut().map(|(text, key)| (text, &mut **key)))
    }

    pub(crate) fn key_count(&self) -> usize {
        self.seldom.as_ref().map_or(0, |seldom| seldom.keys.len())
    }

    pub(crate) fn has_key(&self, text: &str) -> bool {
        self.seldom.as_ref().is_some_and(|seldom| seldom.keys.contains_key(text))
    }

    pub(crate) fn key_mut(&mut self, text: &str) -> Option<&mut KeyState> {
        self.seldom.as_mut()?.keys.get_mut(text).map(|key| &mut **key)
    }

    pub(crate) fn key_or_new(&mut self, text: &str) -> &mut KeyState {
        self.seldom().keys.entry(text.to_owned()).or_default()
    }

    /// These, and no others.
    pub(crate) fn set_keys(&mut self, keys: BTreeMap<String, KeyState>) {
        self.seldom().keys = keys.into_iter().map(|(text, key)| (text, Box::new(key))).collect();
        self.tidy();
    }

    /// Keeps the keys of which `stays` says so.
    pub(crate) fn retain_keys(&mut self, mut stays: impl FnMut(&str, &KeyState) -> bool) {
        let Some(seldom) = &mut self.seldom else { return };
        seldom.keys.retain(|text, key| stays(text, key));
        self.tidy();
    }

    /// Of a deferred rule: the first instant that waits for its decision.
    pub(crate) fn awaits(&self) -> Option<Timestamp> {
        self.seldom.as_ref()?.awaits
    }

    /// From then on instants wait for their decision, and none before.
    pub(crate) fn wait_from(&mut self, first: Option<Timestamp>) {
        if first != self.awaits() {
            self.seldom().awaits = first;
            self.tidy();
        }
    }

    /// The newest event that a quota has taken, or did not let in.
    pub(crate) fn lost_to(&self) -> Option<Timestamp> {
        self.seldom.as_ref()?.lost_to
    }

    /// A quota has taken an event of this time, or did not let it in.
    pub(crate) fn lose_to(&mut self, ts: Option<Timestamp>) {
        if ts > self.lost_to() {
            self.seldom().lost_to = ts;
        }
    }

    /// The newest event without one of which there is no match.
    pub(super) fn seed(&self) -> Option<Timestamp> {
        self.seldom.as_ref()?.seed
    }

    /// It has one of this time.
    pub(crate) fn sow(&mut self, ts: Timestamp) {
        if self.seed().is_none_or(|seed| seed < ts) {
            self.seldom().seed = Some(ts);
        }
    }

    /// When there may have been two different values last.
    pub(super) fn differed(&self) -> Option<Timestamp> {
        self.seldom.as_ref()?.differed
    }

    /// New events of it, which are kept by now, have this value; or some of them, and others have another.
    pub(crate) fn see(&mut self, value: &str, differs: bool) {
        let newest = self.newest();
        let seldom = self.seldom();
        let is_long = value.len() > LONGEST_VALUE;
        let is_other = differs || is_long || seldom.value.as_deref().is_some_and(|known| known != value);
        if is_other {
            // None is later.
            seldom.differed = seldom.differed.max(newest);
        }
        if is_other || seldom.value.is_none() {
            seldom.value = (!is_long).then(|| value.into());
        }
    }

    /// None of its events is there any more.
    pub(super) fn forget_values(&mut self) {
        if let Some(seldom) = &mut self.seldom {
            (seldom.value, seldom.differed) = (None, None);
            self.tidy();
        }
    }

    /// What is before has left the window.
    pub(super) fn forget_seed(&mut self, before: Timestamp) {
        if self.seed().is_some_and(|seed| seed < before) {
            self.seldom().seed = None;
            self.tidy();
        }
    }

    fn seldom(&mut self) -> &mut Seldom {
        self.seldom.get_or_insert_default()
    }

    fn tidy(&mut self) {
        let is_empty = |seldom: &Seldom| {
            let times = [seldom.awaits, seldom.lost_to, seldom.seed, seldom.differed];
            times.iter().all(Option::is_none) && seldom.value.is_none() && seldom.keys.is_empty()
        };
        if self.seldom.as_deref().is_some_and(is_empty) {
            self.seldom = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_kept_and_where_nothing_is_there_is_no_memory() {
        let (mut bucket, now) = (Bucket::default(), Some(Timestamp::from_micros(-5)));
        bucket.lose_to(None);
        bucket.wait_from(None);
        bucket.retain_keys(|_, _| false);
        bucket.set_keys(BTreeMap::new());
        assert!(bucket.seldom.is_none() && !bucket.has_key("a") && bucket.key_mut("a").is_none());
        bucket.key_or_new("a");
        bucket.wait_from(now);
        assert_eq!((bucket.awaits(), bucket.key_count(), bucket.has_key("a")), (now, 1, true));
        bucket.wait_from(None);
        assert_eq!((bucket.awaits(), bucket.keys().count(), bucket.keys_mut().count()), (None, 1, 1));
        bucket.retain_keys(|text, _| text != "a");
        assert!(bucket.seldom.is_none(), "all of it is gone");
        bucket.sow(Timestamp::from_micros(-5));
        bucket.sow(Timestamp::from_micros(-6));
        bucket.forget_seed(Timestamp::from_micros(-5));
        assert_eq!(bucket.seed(), now, "the newest stays");
        bucket.forget_seed(Timestamp::from_micros(-4));
        assert!(bucket.seldom.is_none(), "it is gone");
        bucket.see(&"a".repeat(LONGEST_VALUE + 1), false);
        assert!(bucket.seldom.as_ref().is_some_and(|seldom| seldom.value.is_none()), "it is too long to be kept");
        bucket.see("a", false);
        bucket.forget_values();
        assert!(bucket.seldom.is_none(), "and so are they");
        bucket.lose_to(now);
        bucket.lose_to(Some(Timestamp::from_micros(-6)));
        bucket.retain_keys(|_, _| true);
        assert_eq!(bucket.lost_to(), now, "the newest stays");
    }

    /// There are as many as rules have keys, of all tenants together.
    #[test]
    fn a_bucket_is_little_memory() {
        let bytes = size_of::<Bucket>();
        assert!(bytes <= 168, "a bucket has {bytes} bytes");
    }
}
