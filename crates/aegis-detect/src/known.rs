//! What a query that is followed knows of a bucket's events: the rows so far, of each part of the bucket by itself. They can be taken back from the end, for
//! an event that comes late, and are dropped at the front with the events that they are of.

use std::collections::HashMap;

use aegis_match::Walk;
use smallvec::SmallVec;

use crate::sliding::Partition;

/// Rows of one part, in the order of events.
pub(crate) trait InOrder {
    /// Takes back the rows of `ts` and later.
    fn take_back(&mut self, ts: i64);

    /// Drops the rows before `ts`, and those of the first `taken` events of that time.
    fn drop_before(&mut self, ts: i64, taken: u32);

    fn is_empty(&self) -> bool;
}

impl InOrder for Partition {
    fn take_back(&mut self, ts: i64) {
        Partition::take_back(self, ts);
    }

    fn drop_before(&mut self, ts: i64, taken: u32) {
        Partition::drop_before(self, ts, taken);
    }

    fn is_empty(&self) -> bool {
        Partition::is_empty(self)
    }
}

impl InOrder for Walk {
    fn take_back(&mut self, ts: i64) {
        Walk::take_back(self, ts);
    }

    fn drop_before(&mut self, ts: i64, taken: u32) {
        Walk::drop_before(self, ts, taken);
    }

    fn is_empty(&self) -> bool {
        Walk::is_empty(self)
    }
}

/// Keys that are looked through one beside the other at most.
const FEW: usize = 4;

/// Where the partition of each key is.
#[derive(Debug)]
enum Places {
    /// The keys, in the order of their partitions: mostly there is one.
    Few(SmallVec<[Box<[u8]>; 2]>),
    Many(Box<PlaceOf>),
}

type PlaceOf = HashMap<Box<[u8]>, usize, ahash::RandomState>;

impl Default for Places {
    fn default() -> Self {
        Self::Few(SmallVec::new())
    }
}

impl Places {
    fn get(&self, key: &[u8]) -> Option<usize> {
        match self {
            Self::Few(keys) => keys.iter().position(|known| **known == *key),
            Self::Many(places) => places.get(key).copied(),
        }
    }

    /// Adds a key that is not there; its partition comes behind all others.
    fn add(&mut self, key: &[u8], place: usize) {
        if let Self::Few(keys) = self
            && keys.len() >= FEW
        {
            let places: PlaceOf = keys.drain(..).enumerate().map(|(place, key)| (key, place)).collect();
            *self = Self::Many(Box::new(places));
        }
        match self {
            Self::Few(keys) => keys.push(key.into()),
            Self::Many(places) => {
                places.insert(key.into(), place);
            }
        }
    }

    /// Where each partition is now, in the same order as before, or that it is gone.
    fn follow(&mut self, now: &[Option<usize>]) {
        match self {
            Self::Few(keys) => {
                let mut now = now.iter();
                keys.retain(|_| now.next().is_some_and(Option::is_some));
            }
            Self::Many(places) => places.retain(|_, place| match now.get(*place).copied().flatten() {
                Some(now) => {
                    *place = now;
                    true
                }
                None => false,
            }),
        }
    }
}

/// A bucket's rows, split further or not.
#[derive(Debug)]
pub(crate) struct Split<P> {
    /// Of a bucket that is split further, where each key's partition is.
    places: Option<Box<Places>>,
    pub(crate) partitions: SmallVec<[P; 1]>,
}

impl<P> Default for Split<P> {
    fn default() -> Self {
        Self { places: None, partitions: SmallVec::new() }
    }
}

impl<P: InOrder> Split<P> {
    /// The only partition of a bucket that is split no further, or that of a key.
    pub(crate) fn place(&mut self, key: Option<&[u8]>, fresh: impl FnOnce() -> P) -> usize {
        let Some(key) = key else {
            if self.partitions.is_empty() {
                self.partitions.push(fresh());
            }
            return 0;
        };
        let places = self.places.get_or_insert_default();
        if let Some(place) = places.get(key) {
            return place;
        }
        let place = self.partitions.len();
        places.add(key, place);
        self.partitions.push(fresh());
        place
    }

    fn take_back(&mut self, ts: i64) {
        self.partitions.iter_mut().for_each(|partition| partition.take_back(ts));
    }

    /// Drops rows, and partitions that have none any more.
    fn drop_before(&mut self, ts: i64, taken: u32) {
        self.partitions.iter_mut().for_each(|partition| partition.drop_before(ts, taken));
        if self.partitions.iter().all(|partition| !partition.is_empty()) {
            return;
        }
        let partitions = std::mem::take(&mut self.partitions);
        let mut kept = vec![None; partitions.len()];
        for (place, partition) in partitions.into_iter().enumerate().filter(|(_, partition)| !partition.is_empty()) {
            kept[place] = Some(self.partitions.len());
            self.partitions.push(partition);
        }
        if let Some(places) = &mut self.places {
            places.follow(&kept);
        }
    }
}

/// What is known for every window of a query: all in one piece, for there are very many.
pub(crate) type Frames = Box<[Split<Partition>]>;

/// What is known for a row pattern.
pub(crate) type Walks = Box<Split<Walk>>;

/// What a bucket knows, of whatever kind its query is.
#[derive(Debug)]
pub(crate) enum Known {
    Windows(Frames),
    Pattern(Walks),
}

impl Known {
    /// Takes back the rows of `ts` and later.
    pub(crate) fn take_back(&mut self, ts: i64) {
        match self {
            Self::Windows(frames) => frames.iter_mut().for_each(|split| split.take_back(ts)),
            Self::Pattern(walks) => walks.take_back(ts),
        }
    }

    /// Drops the rows before `ts`, and those of the first `taken` events of that time.
    pub(crate) fn drop_before(&mut self, ts: i64, taken: u32) {
        match self {
            Self::Windows(frames) => frames.iter_mut().for_each(|split| split.drop_before(ts, taken)),
            Self::Pattern(walks) => walks.drop_before(ts, taken),
        }
    }

    /// Something of what is looked at first. Nothing follows from it.
    pub(crate) fn glance(&self) -> usize {
        match self {
            Self::Windows(frames) => {
                frames.iter().filter(|split| split.partitions.first().is_some_and(Partition::glance)).count()
            }
            Self::Pattern(walks) => walks.partitions.len(),
        }
    }

    pub(crate) fn into_frames(self) -> Frames {
        match self {
            Self::Windows(frames) => frames,
            Self::Pattern(_) => Frames::default(),
        }
    }

    pub(crate) fn into_walks(self) -> Walks {
        match self {
            Self::Windows(_) => Walks::default(),
            Self::Pattern(walks) => walks,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    /// The times of some rows.
    #[derive(Debug, Default)]
    struct Rows(Vec<i64>);

    impl InOrder for Rows {
        fn take_back(&mut self, ts: i64) {
            self.0.retain(|row| *row < ts);
        }

        fn drop_before(&mut self, ts: i64, _: u32) {
            self.0.retain(|row| *row >= ts);
        }

        fn is_empty(&self) -> bool {
            self.0.is_empty()
        }
    }

    proptest! {
        /// L-SPLIT: few keys or many, each has the rows that are its own, whatever is taken back and dropped; and who has none any more is gone.
        #[test]
        fn l_split_each_key_has_its_own_rows(steps in prop::collection::vec((0..8u8, 0..8u8), 1..80)) {
            let (mut split, mut expected) = (Split::<Rows>::default(), BTreeMap::<u8, Vec<i64>>::new());
            for (now, (key, what)) in (0_i64..).zip(steps) {
                match what {
                    0 => {
                        split.drop_before(now - 9, 0);
                        expected.values_mut().for_each(|rows| rows.retain(|row| *row >= now - 9));
                        expected.retain(|_, rows| !rows.is_empty());
                    }
                    1 => {
                        split.take_back(now - 3);
                        expected.values_mut().for_each(|rows| rows.retain(|row| *row < now - 3));
                    }
                    _ => {
                        let place = split.place(Some(&[key, 1]), Rows::default);
                        split.partitions[place].0.push(now);
                        expected.entry(key).or_default().push(now);
                    }
                }
                prop_assert_eq!(split.partitions.len(), expected.len());
                for (key, rows) in &expected {
                    let place = split.place(Some(&[*key, 1]), Rows::default);
                    prop_assert_eq!(&split.partitions[place].0, rows);
                }
                prop_assert_eq!(split.partitions.len(), expected.len(), "all were there");
            }
        }
    }
}
