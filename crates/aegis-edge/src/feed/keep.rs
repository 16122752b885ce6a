//! Writes the copy of the feed behind those who apply it, on a thread that answers nobody, one writing at a time: what came while one was under way is
//! in the next. Promises that a containment is acknowledged only once it would outlive this process: an edge that died and forgot it must not have said so.

use std::sync::Arc;

use aegis_bus::Bucket;
use aegis_model::{ContainmentState, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Follower;
use crate::pulse::Pulse;
use crate::snapshot::Snapshot;

/// What is to be written, and then acknowledged.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    snapshot: Option<Snapshot>,
    /// What is enforced, and may not be on the disk yet.
    unacknowledged: Mutex<Vec<ContainmentState>>,
    /// When the whole feed was read, where that is not written yet.
    confirmed_at: Mutex<Option<Timestamp>>,
    wake: Notify,
}

impl Keeper {
    pub(super) fn new(snapshot: Option<Snapshot>) -> Self {
        Self { snapshot, ..Self::default() }
    }

    pub(super) fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// An entry that holds is in the copy from its next writing.
    pub(super) fn hold(&self, bucket: Bucket, key: &str, bytes: &[u8], revision: i64) {
        if let Some(snapshot) = &self.snapshot {
            snapshot.hold(bucket, key, bytes, revision);
        }
    }

    /// A containment is enforced, and held for the copy: it is written now, and acknowledged then.
    pub(super) fn acknowledge(&self, state: ContainmentState) {
        self.unacknowledged.lock().push(state);
        self.wake.notify_one();
    }

    /// The whole feed was as old as that.
    pub(super) fn confirm(&self, at: Option<Timestamp>) {
        *self.confirmed_at.lock() = at;
        self.wake.notify_one();
    }

    /// Tries again what could not be written.
    pub(super) fn try_again(&self) {
        self.wake.notify_one();
    }

    /// Writes, and acknowledges, what there is.
    fn write(&self, pulse: Option<&Pulse>) {
        let enforced = std::mem::take(&mut *self.unacknowledged.lock());
        let confirmed_at = self.confirmed_at.lock().take();
        if enforced.is_empty() && confirmed_at.is_none() {
            return;
        }
        if let Some(Err(error)) = self.snapshot().map(Snapshot::save_entries) {
            if !enforced.is_empty() {
                tracing::error!(%error, "a containment is enforced and not acknowledged: the copy of the control feed cannot be written");
            }
            let mut waiting = self.unacknowledged.lock();
            let later = std::mem::replace(&mut *waiting, enforced);
            waiting.extend(later);
            cannot_be_written(&error);
            return;
        }
        if let Some(pulse) = pulse {
            enforced.iter().for_each(|state| pulse.enforces(state));
        }
        if let Some((snapshot, confirmed_at)) = self.snapshot().zip(confirmed_at)
            && let Err(error) = snapshot.save_confirmed(confirmed_at)
        {
            cannot_be_written(&error);
        }
    }
}

fn cannot_be_written(error: &std::io::Error) {
    tracing::warn!(%error, "the copy of the control feed cannot be written; a start without the control plane would not have it");
}

/// Writes what there is now.
pub(super) async fn write(follower: &Arc<Follower>) {
    let writer = Arc::clone(follower);
    if let Err(error) = tokio::task::spawn_blocking(move || writer.keeper.write(writer.pulse.as_deref())).await {
        tracing::error!(%error, "the copy of the control feed was not written");
    }
}

/// Writes whatever comes.
pub(super) async fn keep(follower: Arc<Follower>) {
    loop {
        follower.keeper.wake.notified().await;
        write(&follower).await;
    }
}
