//! Events that matter to rules, and which of them are of one bucket. Rules with the same filter and key have one list of those of a batch.
//! Promises that a list says the same to whoever has it: who wants fewer events makes a list of their own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;

use crate::name::{BucketName, Relevant};

/// Mostly one.
type Few<T> = SmallVec<[T; 1]>;

/// Some events that matter, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Matter {
    events: Vec<Relevant>,
    /// The places of those of each bucket, once somebody asked.
    buckets: OnceLock<Vec<(Few<usize>, Stands)>>,
}

/// Where a bucket stands among its tenant's, for the last rule that kept its events of this list: mostly it stands there for the next one too. It is where that
/// looks first, and nothing else follows from it.
#[derive(Debug, Default)]
pub(crate) struct Stands(AtomicUsize);

impl Stands {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, place: usize) {
        self.0.store(place, Ordering::Relaxed);
    }
}

impl Matter {
    pub(crate) const fn of(events: Vec<Relevant>) -> Self {
        Self { events, buckets: OnceLock::new() }
    }

    pub(crate) fn events(&self) -> &[Relevant] {
        &self.events
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The events of each bucket, in the order in which the first of each came. Those whose key has a null are left out.
    pub(crate) fn by_bucket(&self) -> Vec<(&BucketName, &Stands, impl Iterator<Item = &Relevant>)> {
        let all = &self.events;
        let buckets = self.buckets.get_or_init(|| by_bucket(all));
        let mut found = Vec::with_capacity(buckets.len());
        for (places, stands) in buckets {
            if let Some(name) = places.first().and_then(|place| all.get(*place)?.bucket.as_ref()) {
                found.push((name, stands, places.iter().filter_map(move |place| all.get(*place))));
            }
        }
        found
    }

    /// The events without those of which this is true; itself, if it is of none.
    pub(crate) fn without(self: &Arc<Self>, is_out: impl Fn(&Relevant) -> bool) -> Arc<Self> {
        if !self.events.iter().any(&is_out) {
            return Arc::clone(self);
        }
        Arc::new(Self::of(self.events.iter().filter(|one| !is_out(one)).cloned().collect()))
    }

    /// Its events, taken out where nobody else has it.
    fn into_events(self: Arc<Self>) -> Vec<Relevant> {
        match Arc::try_unwrap(self) {
            Ok(own) => own.events,
            Err(shared) => shared.events.clone(),
        }
    }

    /// Takes those events out of some lists of which this is true.
    pub(crate) fn take(lists: &mut Vec<Arc<Self>>, is_taken: impl Fn(&Relevant) -> bool) -> Vec<Arc<Self>> {
        let mut taken = Vec::new();
        for list in std::mem::take(lists) {
            if list.events.iter().all(&is_taken) {
                taken.push(list);
                continue;
            }
            if !list.events.iter().any(&is_taken) {
                lists.push(list);
                continue;
            }
            let (own, others): (Vec<Relevant>, Vec<Relevant>) = list.into_events().into_iter().partition(&is_taken);
            taken.push(Arc::new(Self::of(own)));
            lists.push(Arc::new(Self::of(others)));
        }
        taken
    }

    /// The events of some lists, so many at a time at most: lists that fit together as one, and one that fits with no other as it is.
    pub(crate) fn at_a_time(lists: Vec<Arc<Self>>, most: usize) -> Vec<Arc<Self>> {
        let (mut parts, mut some): (Vec<Arc<Self>>, Vec<Arc<Self>>) = (Vec::new(), Vec::new());
        // Added up as they come: there may be as many lists as events.
        let mut count = 0;
        for list in lists {
            if count + list.events.len() > most {
                Self::cut(std::mem::take(&mut some), most, &mut parts);
                count = 0;
            }
            count += list.events.len();
            some.push(list);
        }
        Self::cut(some, most, &mut parts);
        parts
    }

    fn cut(lists: Vec<Arc<Self>>, most: usize, parts: &mut Vec<Arc<Self>>) {
        if lists.len() == 1 && Self::count(&lists) <= most {
            parts.extend(lists);
            return;
        }
        let mut all = lists.into_iter().flat_map(Self::into_events).peekable();
        while all.peek().is_some() {
            parts.push(Arc::new(Self::of(all.by_ref().take(most.max(1)).collect())));
        }
    }

    /// How many events some lists have.
    pub(crate) fn count(lists: &[Arc<Self>]) -> usize {
        lists.iter().map(|list| list.events.len()).sum()
    }
}

fn by_bucket(events: &[Relevant]) -> Vec<(Few<usize>, Stands)> {
    let mut buckets: Vec<(&BucketName, Few<usize>)> = Vec::with_capacity(events.len());
    // Of each hash the first bucket that has it: hardly ever is there another.
    let mut places: HashMap<u64, usize, ahash::RandomState> =
        HashMap::with_capacity_and_hasher(events.len(), ahash::RandomState::default());
    for (place, one) in events.iter().enumerate() {
        let Some(name) = &one.bucket else { continue };
        let first = *places.entry(name.whole_hash()).or_insert(buckets.len());
        let known = match buckets.get(first) {
            Some((other, _)) if !other.is(name) => buckets.iter().position(|(other, _)| other.is(name)),
            there => there.map(|_| first),
        };
        match known {
            Some(known) => buckets[known].1.push(place),
            None => buckets.push((name, Few::from_iter([place]))),
        }
    }
    buckets.into_iter().map(|(_, places)| (places, Stands::default())).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::{EventKind, SecurityEvent, TenantId, Timestamp};

    fn relevant(second: i64, bucket: Option<BucketName>) -> Relevant {
        let (tenant, ts) = (TenantId::new("t").unwrap(), Timestamp::from_micros(second));
        let event = SecurityEvent::new(tenant, "e", "edge", EventKind::AuthorizeDecision, ts);
        Relevant::of(&Arc::new(event), bucket)
    }

    fn list(seconds: std::ops::Range<i64>) -> Arc<Matter> {
        Arc::new(Matter::of(seconds.map(|second| relevant(second, None)).collect()))
    }

    fn seconds(lists: &[Arc<Matter>]) -> Vec<Vec<i64>> {
        let second = |one: &Relevant| one.event.ts.as_micros();
        lists.iter().map(|list| list.events().iter().map(second).collect()).collect()
    }

    #[test]
    fn buckets_of_one_hash_are_several() {
        let [a, b] = ["a", "b"].map(|name| TenantId::new(name).unwrap());
        let names = [(&a, "x"), (&a, "y"), (&b, "x"), (&a, "y"), (&b, "x"), (&a, "x")]
            .map(|(tenant, text)| BucketName::hashed(tenant, text, None, 7));
        let mut events: Vec<Relevant> = names.into_iter().map(|name| relevant(0, Some(name))).collect();
        events.push(relevant(0, None));
        let matter = Matter::of(events);
        let found = matter.by_bucket().into_iter();
        let found: Vec<_> = found.map(|(name, _, events)| (name.tenant().as_str(), name.text(), events.count())).collect();
        assert_eq!(found, [("a", "x", 2), ("a", "y", 2), ("b", "x", 2)]);
    }

    #[test]
    fn who_wants_fewer_events_changes_nothing_of_what_others_have() {
        let shared = [list(0..3), list(3..6), list(6..9)];
        let mut waiting = shared.to_vec();
        let taken = Matter::take(&mut waiting, |one| one.event.ts.as_micros() < 5);
        assert_eq!(seconds(&taken), [vec![0, 1, 2], vec![3, 4]]);
        assert_eq!(seconds(&waiting), [vec![5], vec![6, 7, 8]]);
        assert_eq!(seconds(&[shared[0].without(|one| one.event.ts.as_micros() == 1)]), [[0, 2]]);
        assert!(Arc::ptr_eq(&shared[0].without(|_| false), &shared[0]) && Arc::ptr_eq(&taken[0], &shared[0]));
        assert_eq!(seconds(&shared), [[0, 1, 2], [3, 4, 5], [6, 7, 8]]);
    }

    #[test]
    fn lists_are_looked_at_so_many_events_at_a_time_and_one_that_fits_alone_as_it_is() {
        let shared = [list(0..3), list(3..8)];
        assert_eq!(seconds(&Matter::at_a_time(shared.to_vec(), 3)), [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7]]);
        assert_eq!(seconds(&Matter::at_a_time(vec![Arc::clone(&shared[1])], 4)), [vec![3, 4, 5, 6], vec![7]]);
        let one = Matter::at_a_time(vec![Arc::clone(&shared[0])], 3);
        assert!(one.len() == 1 && Arc::ptr_eq(&one[0], &shared[0]));
        let small = [list(0..1), list(1..2), list(2..5)];
        let parts = Matter::at_a_time(small.to_vec(), 4);
        assert_eq!(seconds(&parts), [vec![0, 1], vec![2, 3, 4]]);
        assert!(Arc::ptr_eq(&parts[1], &small[2]));
        assert_eq!(Matter::at_a_time(Vec::new(), 3).len(), 0);
        assert_eq!((Matter::count(&shared), seconds(&shared)), (8, vec![vec![0, 1, 2], vec![3, 4, 5, 6, 7]]));
    }
}
