//! What other edges made of runs, as the follower of the feed reads, hears and keeps it. Read whole at a start only: there are many runs.

use std::sync::Arc;

use aegis_bus::{Bucket, BusError};
use aegis_model::Timestamp;

use super::{Follower, RETRY_AFTER};

/// Labels that are taken before others have a turn.
const LABELS_AT_ONCE: usize = 128;

impl Follower {
    pub(super) fn apply_label(&self, key: &str, bytes: &[u8]) {
        match self.view.take_run_label(bytes) {
            Ok(Some(taken)) => {
                if let Some(labels) = &self.labels {
                    labels.hold(&taken.tenant, taken.run, taken.trust, taken.ends);
                }
            }
            Ok(None) => {}
            Err(refused) => {
                self.metrics.feed_refused.inc();
                tracing::warn!(%refused, key, "a label of a run that is not control's; ignored");
            }
        }
    }

    /// Takes what other edges made of runs from the copy on disk. Spoiled, it is as good as none, but for what could be read.
    pub(super) fn restore_labels(&self) {
        let Some(labels) = &self.labels else { return };
        match labels.load(&self.view.told.runs, self.clock.now()) {
            Ok(Some(as_of)) => self.view.told.restored(as_of),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the copy of what other edges made of runs is of no use"),
        }
    }

    /// Reads what other edges made of runs, where that was not done since the start.
    async fn read_labels(&self) -> Result<(), BusError> {
        let unread = self.unread.lock().clone();
        for filter in unread {
            let entries = self.bus.kv_all(Bucket::Trust, &filter).await?;
            for some in entries.chunks(LABELS_AT_ONCE) {
                some.iter().for_each(|(key, value, _)| self.apply_label(key, value));
                tokio::task::yield_now().await;
            }
            self.unread.lock().retain(|other| *other != filter);
        }
        self.view.told.finish_reading();
        Ok(())
    }

    /// Writes to the copy what was heard of runs. `as_of`: when all of it had been.
    fn save_labels(&self, as_of: Option<Timestamp>) {
        let Some(labels) = &self.labels else { return };
        let as_of = as_of.filter(|_| self.view.told.was_read());
        if let Err(error) = labels.save(&self.view.told.runs, as_of, self.clock.now()) {
            tracing::warn!(%error, "the copy of what other edges made of runs cannot be written; a start without the control plane would not have it");
        }
    }
}

/// Reads what other edges made of runs, until that is done.
pub(super) async fn read(follower: Arc<Follower>) {
    let unread = |is_unread: bool| follower.metrics.run_labels_unread.set(i64::from(is_unread));
    unread(!follower.view.told.was_read());
    loop {
        let began = follower.view.confirmed_at();
        match follower.read_labels().await {
            Ok(()) => {
                unread(false);
                save(&follower, began).await;
                return;
            }
            Err(error) => tracing::debug!(%error, "what other edges made of runs cannot be read"),
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// The file may be large: nothing else waits for it.
pub(super) async fn save(follower: &Arc<Follower>, as_of: Option<Timestamp>) {
    let writer = follower.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || writer.save_labels(as_of)).await {
        tracing::error!(%error, "the copy of what other edges made of runs was not written");
    }
}
