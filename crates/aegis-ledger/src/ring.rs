//! The ring between the writer and whoever ships: what was just committed, without a way over the disk. Holds the sealed rows as they
//! are; their wire form is made where they are taken out, so that the writer is free for the next group.

use std::sync::Arc;

use aegis_model::FrozenAction;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::rows::{OutboxItem, outbox_item};
use crate::seal::{Commit, SealedRow};

/// The rows of one durable commit.
#[derive(Debug)]
pub(crate) struct Durable {
    pub(crate) commit: Commit,
    pub(crate) rows: Vec<SealedRow>,
}

/// One row of a commit, in the ring.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) of: Arc<Durable>,
    pub(crate) place: usize,
    pub(crate) frozen: Option<FrozenAction>,
}

impl Slot {
    fn open(self) -> Option<OutboxItem> {
        let row = self.of.rows.get(self.place)?;
        Some(outbox_item(row, self.place as u64, &self.of.commit, self.frozen))
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

    /// The next sealed event, if there is one now.
    pub fn try_recv(&mut self) -> Result<OutboxItem, TryRecvError> {
        self.slots.try_recv()?.open().ok_or(TryRecvError::Empty)
    }
}
