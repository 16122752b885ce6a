//! What the ledger counts, for metrics. Counters only rise; nothing here is ever read by a decision but `writable`.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Upper bounds of the buckets of `aegis_ledger_commit_seconds`, in seconds; one more bucket takes the rest.
pub const COMMIT_SECONDS_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// A snapshot of the counters.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LedgerStats {
    /// Transactions that became durable.
    pub commits: u64,
    /// Receipts in them.
    pub receipts: u64,
    /// Transactions that failed.
    pub failed_commits: u64,
    /// Checkpoints of the log that failed.
    pub failed_checkpoints: u64,
    /// How long the durable ones took, not cumulative: one count per bucket of `COMMIT_SECONDS_BUCKETS`, then the rest.
    pub commit_seconds: [u64; COMMIT_SECONDS_BUCKETS.len() + 1],
    pub commit_seconds_sum: f64,
    /// Drafts waiting for the writer.
    pub queue_depth: u64,
    /// Best-effort drafts lost for good.
    pub dropped_total: u64,
    /// False from a failed commit until the next that succeeds.
    pub writable: bool,
    /// Receipts not yet marked as shipped.
    pub backlog: u64,
}

/// The live counters, shared by the writer and the handles.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commits: AtomicU64,
    pub(crate) receipts: AtomicU64,
    pub(crate) failed_commits: AtomicU64,
    pub(crate) failed_checkpoints: AtomicU64,
    commit_seconds: [AtomicU64; COMMIT_SECONDS_BUCKETS.len() + 1],
    commit_micros_sum: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) writable: AtomicBool,
    /// The last durable row, and the last row marked as shipped.
    pub(crate) last_row: AtomicI64,
    pub(crate) shipped_row: AtomicI64,
}

impl Counters {
    pub(crate) fn committed(&self, receipts: u64, took: Duration) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.receipts.fetch_add(receipts, Ordering::Relaxed);
        let seconds = took.as_secs_f64();
        let bucket = COMMIT_SECONDS_BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(COMMIT_SECONDS_BUCKETS.len());
        self.commit_seconds[bucket].fetch_add(1, Ordering::Relaxed);
        self.commit_micros_sum.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn backlog(&self) -> u64 {
        let behind = self.last_row.load(Ordering::Acquire) - self.shipped_row.load(Ordering::Acquire);
        u64::try_from(behind).unwrap_or(0)
    }

    pub(crate) fn snapshot(&self, queue_depth: usize) -> LedgerStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LedgerStats {
            commits: read(&self.commits),
            receipts: read(&self.receipts),
            failed_commits: read(&self.failed_commits),
            failed_checkpoints: read(&self.failed_checkpoints),
            commit_seconds: std::array::from_fn(|bucket| read(&self.commit_seconds[bucket])),
            commit_seconds_sum: read(&self.commit_micros_sum) as f64 / 1e6,
            queue_depth: queue_depth as u64,
            dropped_total: read(&self.dropped),
            writable: self.writable.load(Ordering::Acquire),
            backlog: self.backlog(),
        }
    }
}
