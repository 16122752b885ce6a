//! What bounds matching, and where it is said that a bound was run into. Nothing is ever left out without being said here (L-MATCH-BOUNDS).

use std::fmt;
use std::sync::Arc;

use aegis_pattern::Bound;
use parking_lot::Mutex;

/// Bounds of one query.
///
/// *Work* is counted in operations of the search, about 20 to 50 nanoseconds each: a condition that depends on the mapping is as much as
/// [`CONDITION_WORK`] of them each time it is evaluated, a row that an aggregate takes in as much as [`ROW_WORK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the search from one start row.
    pub attempt: aegis_pattern::Limits,
    /// Most work of the conditions from one start row.
    pub attempt_work: u64,
    /// Most work of one search through what is known of one partition, measures included.
    pub partition_work: u64,
    /// Most work of all partitions together, until the report is taken.
    pub query_work: u64,
    /// Longest time from the first row of a match to its last, in microseconds. The first column of ORDER BY must then be a time.
    pub span_micros: Option<i64>,
}

/// What the evaluation of one condition by itself costs, in operations of the search.
pub const CONDITION_WORK: u64 = 64;

/// What one row costs that an aggregate takes in.
pub const ROW_WORK: u64 = 4;

impl Default for Limits {
    /// Four million units of work from one start row, 16 million in a partition, any amount in a query; no span.
    fn default() -> Self {
        Self {
            attempt: aegis_pattern::Limits::default(),
            attempt_work: 1 << 22,
            partition_work: 1 << 24,
            query_work: u64::MAX,
            span_micros: None,
        }
    }
}

/// Which bound was run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Operations of the search from one start row: whether a match begins there is not known.
    Steps,
    /// Memory of the search from one start row: the same.
    Memory,
    /// Work of the conditions from one start row: the same.
    Work,
    /// Work of a partition: the start row and all that were known after it were given up.
    Partition,
    /// Work of the query: the same, and so it will be until the report is taken.
    Query,
}

impl From<Bound> for Budget {
    fn from(bound: Bound) -> Self {
        match bound {
            Bound::Steps => Self::Steps,
            Bound::Memory => Self::Memory,
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Steps => "steps of one start row",
            Self::Memory => "memory of one start row",
            Self::Work => "work of one start row",
            Self::Partition => "work of the partition",
            Self::Query => "work of the query",
        })
    }
}

/// One time that a bound was run into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overrun {
    /// The partition's columns as text, joined by commas.
    pub partition: String,
    /// The start row, counted from 0 in its partition.
    pub row: u64,
    pub budget: Budget,
}

impl fmt::Display for Overrun {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "partition ({}), row {}: the bound on {} was run into", self.partition, self.row, self.budget)
    }
}

/// Most overruns that are told one by one; the others are counted.
const TOLD: usize = 64;

/// Where a query's overruns and its work are collected. Clones are the same report.
#[derive(Clone, Debug, Default)]
pub struct Report(Arc<Mutex<Overruns>>);

/// What was collected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overruns {
    /// How many there were.
    pub count: u64,
    /// The first of them.
    pub first: Vec<Overrun>,
    /// The work that was done.
    pub work: u64,
}

impl Report {
    /// What was collected since the last time, which is then forgotten.
    #[must_use]
    pub fn take(&self) -> Overruns {
        std::mem::take(&mut *self.0.lock())
    }

    pub(crate) fn add(&self, overrun: Overrun) {
        let mut overruns = self.0.lock();
        overruns.count += 1;
        if overruns.first.len() < TOLD {
            overruns.first.push(overrun);
        }
    }

    pub(crate) fn work(&self) -> u64 {
        self.0.lock().work
    }

    pub(crate) fn add_work(&self, work: u64) {
        let mut overruns = self.0.lock();
        overruns.work = overruns.work.saturating_add(work);
    }
}
