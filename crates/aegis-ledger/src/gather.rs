//! How long receipts gather before they are sealed as one group. A lone receipt never waits; behind a busy group the next one waits for
//! as many to come, or a little while, and longer where nobody waits for any of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use crate::draft::Submission;

/// Commits of a busy ledger are at least this far apart, so that receipts gather: each writes the ends of all indexes anew and waits
/// for the disk. The first after a pause goes at once.
const GATHER: Duration = Duration::from_millis(2);

/// The same while nobody waits for any of them.
const GATHER_UNHURRIED: Duration = Duration::from_millis(10);

/// A group of this many receipts says that the ledger is busy.
const BUSY: usize = 8;

/// Whether somebody waits for what is in the queue.
#[derive(Debug, Default)]
pub(crate) struct Hurry {
    said: AtomicBool,
    /// Wakes a writer that lets receipts gather because nobody waited for them.
    heard: Notify,
}

impl Hurry {
    /// Said behind a receipt that was put into the queue: somebody waits for it, or enough wait already.
    pub(crate) fn say(&self) {
        if !self.said.swap(true, Ordering::AcqRel) {
            self.heard.notify_one();
        }
    }

    pub(crate) fn is_said(&self) -> bool {
        self.said.load(Ordering::Acquire)
    }

    /// A group was taken from the queue: whoever said it before that and is not in the group is in the queue.
    pub(crate) fn taken(&self, queue: &mpsc::Receiver<Submission>) {
        self.said.swap(false, Ordering::AcqRel);
        self.said.fetch_or(!queue.is_empty(), Ordering::AcqRel);
    }
}

/// What the writer remembers of the last group.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    /// When it was taken and how large it was, if it was a busy one.
    busy: Option<(Instant, usize)>,
}

impl Gathering {
    /// A group of `size` receipts was taken.
    pub(crate) fn took(&mut self, size: usize) {
        self.busy = (size >= BUSY).then(|| (Instant::now(), size));
    }

    /// Behind a busy group: until as many wait as it had, or for longer if nobody waits for any.
    pub(crate) async fn wait(&self, hurry: &Hurry, queue: &mpsc::Receiver<Submission>, max_batch: usize) {
        let Some((taken, size)) = self.busy else { return };
        let unhurried = taken + GATHER_UNHURRIED;
        while !hurry.is_said() && queue.len() < max_batch {
            tokio::select! {
                () = hurry.heard.notified() => {}
                () = sleep_until(unhurried) => return,
            }
        }
        if queue.len() < size.min(max_batch) {
            sleep_until(taken + GATHER).await;
        }
    }
}
