//! What a ledger is told when it opens: where it is, who writes it, and the bounds of everything it holds in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32};
use std::time::Duration;

use crate::LedgerError;

/// Largest canonical receipt body, and largest canonical event, in bytes.
pub const MAX_RECEIPT_BYTES: usize = 60 * 1024;

/// Longest `edge_id`, in bytes.
const MAX_EDGE_ID: usize = 64;

/// Settings of one ledger.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    /// The SQLite file. Beside it stand `-wal`, `-shm` and `.lock`, and `-wal.kept` while a start writes the log anew.
    pub path: PathBuf,
    /// The process that seals, as lane ids name it: `[A-Za-z0-9._-]{1,64}`.
    pub edge_id: String,
    /// The `source` of the lane's own events: `edge` or `control`.
    pub source: String,
    /// Drafts that may wait for the writer.
    pub queue_capacity: usize,
    /// Drafts that one commit takes at most.
    pub max_batch: usize,
    /// Best-effort drafts that may wait for a ledger that cannot write.
    pub best_effort_capacity: usize,
    /// Sealed events that may wait for the shipper; what does not fit is read from the outbox instead.
    pub ring_capacity: usize,
    /// How often a ledger that cannot write tries again.
    pub retry_interval: Duration,
    /// How long an open waits for the process that holds the lock to go.
    pub lock_wait: Duration,
    /// Faults and fixed randomness for tests.
    #[doc(hidden)]
    pub hooks: TestHooks,
}

impl LedgerConfig {
    /// Settings with defaults for everything but identity and place.
    pub fn new(path: impl Into<PathBuf>, edge_id: &str, source: &str) -> Self {
        Self {
            path: path.into(),
            edge_id: edge_id.to_owned(),
            source: source.to_owned(),
            queue_capacity: 8192,
            max_batch: 512,
            best_effort_capacity: 8192,
            ring_capacity: 8192,
            retry_interval: Duration::from_millis(250),
            lock_wait: Duration::from_secs(1),
            hooks: TestHooks::default(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), LedgerError> {
        let edge_id_is_plain = !self.edge_id.is_empty()
            && self.edge_id.len() <= MAX_EDGE_ID
            && self.edge_id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !edge_id_is_plain {
            return Err(LedgerError::Config(format!("edge_id must match [A-Za-z0-9._-]{{1,{MAX_EDGE_ID}}}")));
        }
        let bounds =
            [("queue_capacity", self.queue_capacity), ("max_batch", self.max_batch), ("ring_capacity", self.ring_capacity)];
        match bounds.into_iter().find(|(_, bound)| *bound == 0) {
            Some((name, _)) => Err(LedgerError::Config(format!("{name} must be at least 1"))),
            None => Ok(()),
        }
    }
}

/// What only tests set: a fixed seed in place of the system's randomness, and faults where a real disk has them.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct TestHooks {
    /// Event ids, boot epoch and commitment keys follow from this instead of the system's randomness.
    pub seed: Option<u64>,
    /// `PRAGMA max_page_count` before every transaction, so that SQLite itself reports a full disk. 0: no limit.
    pub page_limit: Option<Arc<AtomicU32>>,
    /// 1: the next COMMIT succeeds, but its answer is lost. 2: and the disk cannot be asked what happened, at first.
    pub commit_fault: Option<Arc<AtomicU8>>,
}
