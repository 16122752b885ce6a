//! What the handles of a ledger and its writer share, and what they say to each other.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use aegis_model::{TenantId, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::LedgerError;
use crate::gather::Hurry;
use crate::loss::Losses;
use crate::prune::Prunable;
use crate::ring::{RingWeight, Slot};
use crate::stats::Counters;

/// The time of a handle's clock is noted no oftener than this: all that answer would write one word.
const NOTED_MICROS: i64 = 100_000;

#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) counters: Counters,
    pub(crate) losses: Losses,
    /// Wakes an idle writer: a loss to tell, or a shipped position to write.
    pub(crate) wake: Notify,
    /// Set while what is in the queue is not to wait for more.
    pub(crate) hurry: Hurry,
    /// Wakes the checkpointer: the log has grown.
    pub(crate) log_grown: Notify,
    /// Set by the checkpointer: what is left of the log to copy is short.
    pub(crate) tail_left: AtomicBool,
    /// Set by a checkpoint that met an error of the disk: nothing is committed until the writer's own has succeeded.
    pub(crate) checkpoint_refused: AtomicBool,
    /// Set once somebody of this process names rows instead of copying them.
    pub(crate) rows_are_kept: AtomicBool,
    /// Set once a row was pruned, in this process or before.
    pub(crate) was_pruned: AtomicBool,
    /// Where sealed events go once somebody has taken the receiving end.
    pub(crate) ring: Mutex<Option<mpsc::Sender<Slot>>>,
    /// Bytes of the commits that the ring holds on to.
    pub(crate) ring_weight: RingWeight,
    /// The latest time that the clock said when a draft was handed in, microseconds: what is made while it is ahead may be sealed after it was set
    /// back, and the writer would not know.
    latest: AtomicI64,
}

impl Shared {
    /// Takes note of what the clock says as a draft is handed in.
    pub(crate) fn note_time(&self, now: Timestamp) {
        if now.as_micros() > self.latest.load(Ordering::Relaxed).saturating_add(NOTED_MICROS) {
            self.latest.fetch_max(now.as_micros(), Ordering::Release);
        }
    }

    /// Counts a checkpoint that failed. After an error of the disk the ledger does not write, and its writer is woken to try it again.
    pub(crate) fn checkpoint_failed(&self, by_the_disk: bool) {
        self.counters.failed_checkpoints.fetch_add(1, Ordering::Relaxed);
        if by_the_disk && !self.checkpoint_refused.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "the disk refused what a ledger's checkpoint wrote; the ledger does not write until another succeeds"
            );
            self.counters.writable.store(false, Ordering::Release);
            self.wake.notify_one();
        }
    }

    pub(crate) fn latest(&self) -> Timestamp {
        Timestamp::from_micros(self.latest.load(Ordering::Acquire))
    }
}

/// What a handle asks of the writer besides sealing.
#[derive(Debug)]
pub(crate) enum Command {
    Close(oneshot::Sender<Result<(), LedgerError>>),
    Shred(TenantId, oneshot::Sender<Result<(), LedgerError>>),
    Prune(Prunable, oneshot::Sender<Result<u64, LedgerError>>),
}
