//! What other edges made of runs, as the follower of the feed reads, hears and keeps it. Read whole at a start, and again with long pauses: there
//! are many runs, and a watch can stall silently.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bucket, BusError};
use aegis_model::Timestamp;

use super::trouble::Reason;
use super::{Follower, RETRY_AFTER};

/// How often all of them are read again at most.
pub(super) const REREAD_EVERY: Duration = Duration::from_secs(60);
/// A pause lasts so many times what the reading before it took, at least.
const PAUSES: u32 = 20;
/// And this at most, however long that was: several readings may fail in a row before the copy on disk is too old for a start.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

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
                self.refuse(Bucket::Trust, key, Reason::of(&refused, self.overtaken), Some(&refused));
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
    async fn read_labels(self: &Arc<Self>) -> Result<(), BusError> {
        let unread = self.unread.lock().clone();
        for filter in unread {
            self.read_one(Bucket::Trust, &filter).await?;
            self.unread.lock().retain(|other| *other != filter);
        }
        self.view.told.finish_reading();
        Ok(())
    }

    /// Reads everything again. What is known already costs no signature.
    async fn read_labels_again(self: &Arc<Self>) -> Result<(), BusError> {
        for filter in &self.runs {
            self.read_one(Bucket::Trust, filter).await?;
        }
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

/// Reads what other edges made of runs again and again, at most every `every`.
pub(super) async fn reread(follower: Arc<Follower>, every: Duration) {
    let mut pause = every;
    loop {
        tokio::time::sleep(pause).await;
        let (as_of, began) = (follower.view.confirmed_at(), tokio::time::Instant::now());
        match follower.read_labels_again().await {
            Ok(()) => save(&follower, as_of).await,
            Err(error) => {
                tracing::warn!(%error, "what other edges made of runs cannot be read again; what is known of them stays")
            }
        }
        pause = pause_after(began.elapsed(), every);
    }
}

/// How long to wait after a reading that took so long.
fn pause_after(took: Duration, every: Duration) -> Duration {
    took.saturating_mul(PAUSES).min(LONGEST_PAUSE).max(every)
}

/// The file may be large: nothing else waits for it.
pub(super) async fn save(follower: &Arc<Follower>, as_of: Option<Timestamp>) {
    let writer = follower.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || writer.save_labels(as_of)).await {
        tracing::error!(%error, "the copy of what other edges made of runs was not written");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_bus::{Bus, EmbeddedBus, EmbeddedLimits, subject};
    use aegis_keys::{KeyRing, SigningKey, sign_notice};
    use aegis_model::{Clock, ManualClock, RunLabel, SourceTrust, TenantId};

    use crate::digest::run_key;
    use crate::feed::bare;
    use crate::told::LabelCopy;
    use crate::{EdgeConfig, EdgeView};

    /// How long a test waits for what must come.
    const DEADLINE: Duration = Duration::from_secs(30);

    #[test]
    fn a_pause_follows_the_reading_and_never_lets_the_copy_grow_too_old() {
        let seconds = Duration::from_secs;
        for (took, pause) in [(0, 60), (3, 60), (5, 100), (30, 600), (31, 600), (3000, 600), (u64::MAX, 600)] {
            assert_eq!(pause_after(seconds(took), REREAD_EVERY), seconds(pause), "{took} s");
        }
        let too_old = u64::try_from(EdgeConfig::new("edge-1").max_snapshot_age_s).unwrap();
        assert!(5 * LONGEST_PAUSE.as_secs() < too_old, "{too_old} s");
    }

    #[tokio::test]
    async fn a_label_that_no_watch_brought_is_there_by_the_next_reading_and_in_the_copy() {
        let (folder, control) = (tempfile::tempdir().unwrap(), SigningKey::from_seed(&[1; 32]));
        let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_800_000_000_000_000)));
        let now = clock.now();
        let bus = EmbeddedBus::open(&folder.path().join("bus.db"), EmbeddedLimits::default(), clock.clone()).await.unwrap();
        let view = Arc::new(EdgeView::new(KeyRing::new([control.verifying_key()])).unwrap());
        view.begin(now);
        view.confirm(now);
        let follower = Arc::new(Follower {
            labels: Some(LabelCopy::new(folder.path())),
            runs: vec!["acme.>".to_owned()],
            ..bare(bus.clone(), view.clone(), clock)
        });
        let tenant = TenantId::new("acme").unwrap();
        let label = RunLabel {
            tenant_id: tenant.clone(),
            run: "run:r".to_owned(),
            source_trust: SourceTrust::UntrustedExternal,
            at: now,
        };
        let (key, signed) = (subject::kv_trust(&tenant, &label.run), sign_notice(&control, &label).unwrap());
        // Nobody watches.
        let rereading = tokio::spawn(reread(follower, Duration::from_millis(5)));
        bus.kv_put(Bucket::Trust, &key, signed.into()).await.unwrap();
        let read = async {
            while view.told.runs.label(&tenant, &run_key(&label.run), now) != Some(SourceTrust::UntrustedExternal)
                || !std::fs::read_to_string(folder.path().join("trust.jsonl"))
                    .is_ok_and(|text| text.contains("untrusted_external"))
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, read).await.unwrap();
        rereading.abort();
    }
}
