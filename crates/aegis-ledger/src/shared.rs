//! What the handles of a ledger and its writer share, and what they say to each other.

use std::sync::atomic::AtomicBool;

use aegis_model::TenantId;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::LedgerError;
use crate::gather::Hurry;
use crate::loss::Losses;
use crate::ring::{RingWeight, Slot};
use crate::stats::Counters;

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
    /// Set once somebody of this process names rows instead of copying them.
    pub(crate) rows_are_kept: AtomicBool,
    /// Where sealed events go once somebody has taken the receiving end.
    pub(crate) ring: Mutex<Option<mpsc::Sender<Slot>>>,
    /// Bytes of the commits that the ring holds on to.
    pub(crate) ring_weight: RingWeight,
}

/// What a handle asks of the writer besides sealing.
#[derive(Debug)]
pub(crate) enum Command {
    Close(oneshot::Sender<Result<(), LedgerError>>),
    Shred(TenantId, oneshot::Sender<Result<(), LedgerError>>),
    Prune(i64, oneshot::Sender<Result<u64, LedgerError>>),
}
