//! The ring between the writer and whoever ships: what was just committed, without a way over the disk. Holds the sealed rows as they
//! are; their wire form is made where they are taken out, so that the writer is free for the next group.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::draft::Draft;
use crate::rows::{OutboxItem, outbox_item};
use crate::seal::{Commit, SealedRow};

/// Most bytes of receipts, events (as texts, and as they were handed in) and frozen actions that the ring holds on to; what comes on top is read from the outbox.
const MOST_BYTES: usize = 32 << 20;

/// How much the ring holds on to.
#[derive(Clone, Debug, Default)]
pub(crate) struct RingWeight(Arc<AtomicUsize>);

impl RingWeight {
    /// The weight of a commit for as long as it is held; None if the ring holds enough.
    pub(crate) fn add(&self, bytes: usize) -> Option<Weight> {
        let fits = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= MOST_BYTES);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).ok()?;
        Some(Weight { bytes, of: self.clone() })
    }
}

/// One commit's share.
#[derive(Debug)]
pub(crate) struct Weight {
    bytes: usize,
    of: RingWeight,
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// The rows of one durable commit, kept until all of them were taken out.
#[derive(Debug)]
pub(crate) struct Durable {
    pub(crate) commit: Commit,
    pub(crate) rows: Vec<SealedRow>,
    pub(crate) _weight: Weight,
}

/// One row of a commit, in the ring.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) of: Arc<Durable>,
    pub(crate) place: usize,
    /// What was sealed, where a caller handed it in.
    pub(crate) draft: Option<Box<Draft>>,
}

impl Slot {
    fn open(self) -> Option<OutboxItem> {
        let row = self.of.rows.get(self.place)?;
        Some(outbox_item(row, self.place as u64, &self.of.commit, self.draft))
    }
}

/// The receiving end of the ring.
#[derive(Debug)]
pub struct SealedReceiver {
    pub(crate) slots: mpsc::Receiver<Slot>,
}

impl SealedReceiver {
    /// The next sealed event; None once the writer is gone and the ring is empty. May be cancelled.
    pub async fn recv(&mut self) -> Option<OutboxItem> {
        self.slots.recv().await?.open()
    }

    /// How many can be taken out at once.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.slots.len()
    }

    /// The next sealed event, if there is one now.
    pub fn try_recv(&mut self) -> Result<OutboxItem, TryRecvError> {
        self.slots.try_recv()?.open().ok_or(TryRecvError::Empty)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_makes_room_and_what_does_not_fit_leaves_no_trace() {
        let ring = RingWeight::default();
        let most = ring.add(MOST_BYTES).unwrap();
        assert!(ring.add(1).is_none() && ring.add(usize::MAX).is_none());
        drop(most);
        let half = ring.add(MOST_BYTES / 2).unwrap();
        assert!(ring.add(MOST_BYTES / 2 + 1).is_none());
        drop((half, ring.add(MOST_BYTES / 2).unwrap()));
        assert_eq!(ring.0.load(Ordering::Acquire), 0);
    }
}
