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

type Places = HashMap<Box<[u8]>, usize, ahash::RandomState>;

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
            return *place;
        }
        self.partitions.push(fresh());
        places.insert(key.into(), self.partitions.len() - 1);
        self.partitions.len() - 1
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
        let places = &mut self.places;
        let partitions = std::mem::take(&mut self.partitions);
        let mut kept = vec![None; partitions.len()];
        for (place, partition) in partitions.into_iter().enumerate().filter(|(_, partition)| !partition.is_empty()) {
            kept[place] = Some(self.partitions.len());
            self.partitions.push(partition);
        }
        let Some(places) = places else { return };
        places.retain(|_, place| match kept.get(*place).copied().flatten() {
            Some(now) => {
                *place = now;
                true
            }
            None => false,
        });
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
