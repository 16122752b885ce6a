//! What bounds matching, and where it is said that a bound was run into. Nothing is ever left out without being said here.

use std::fmt;
use std::sync::Arc;

use aegis_pattern::Bound;
use parking_lot::Mutex;

/// Bounds of one query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the search from one start row.
    pub attempt: aegis_pattern::Limits,
    /// Most operations of a search through what is known of one partition: of all its start rows together.
    pub partition_steps: u64,
    /// Most rows that conditions' aggregates take in again because the search went back, from one start row.
    pub aggregated_rows: u64,
    /// Longest time from the first row of a match to its last, in microseconds. The first column of ORDER BY must then be a time.
    pub span_micros: Option<i64>,
    /// While streaming: most rows kept, of all partitions together.
    pub kept_rows: usize,
    /// While streaming: most partitions that rows are kept of.
    pub kept_partitions: usize,
}

impl Default for Limits {
    /// 16 million operations for a partition, a million rows aggregated again, 200,000 rows and 50,000 partitions kept, no span.
    fn default() -> Self {
        Self {
            attempt: aegis_pattern::Limits::default(),
            partition_steps: 1 << 24,
            aggregated_rows: 1 << 20,
            span_micros: None,
            kept_rows: 200_000,
            kept_partitions: 50_000,
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
    /// Rows that conditions aggregate, from one start row: the same.
    Aggregates,
    /// Operations of a partition: the start row and all that were known after it were given up.
    Partition,
    /// Rows kept: this row and those that came with it were refused.
    Rows,
    /// Partitions kept: the rows of a new one were refused.
    Partitions,
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
            Self::Aggregates => "aggregated rows of one start row",
            Self::Partition => "steps of the partition",
            Self::Rows => "rows kept",
            Self::Partitions => "partitions kept",
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

/// Where a query's overruns are collected. Clones are the same report.
#[derive(Clone, Debug, Default)]
pub struct Report(Arc<Mutex<Overruns>>);

/// What was collected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overruns {
    /// How many there were.
    pub count: u64,
    /// The first of them.
    pub first: Vec<Overrun>,
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
}
