//! Writes the copy of the feed behind those who apply it, on a thread that answers nobody, one writing at a time: what came while one was under way is
//! in the next. Promises that a containment is acknowledged only once it would outlive this process: an edge that died and forgot it must not have said so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::Bucket;
use aegis_model::{ContainmentState, TargetType, TenantId, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Follower;
use crate::pulse::Pulse;
use crate::snapshot::Snapshot;

/// How long to wait after a writing that failed: the next makes all of the file again, and what is heard meanwhile asks for no more.
pub(super) const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Who is contained.
type Target = (TenantId, TargetType, String);

/// What is to be written, and then acknowledged.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    snapshot: Option<Snapshot>,
    /// What is enforced, and may not be on the disk yet: of each target the newest state, which is what control goes by.
    unacknowledged: Mutex<BTreeMap<Target, ContainmentState>>,
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
        self.await_writing([state]);
        self.wake.notify_one();
    }

    /// The whole feed was as old as that.
    pub(super) fn confirm(&self, at: Option<Timestamp>) {
        *self.confirmed_at.lock() = at;
        self.wake.notify_one();
    }

    fn await_writing(&self, states: impl IntoIterator<Item = ContainmentState>) {
        let mut waiting = self.unacknowledged.lock();
        for state in states {
            let target = (state.tenant_id.clone(), state.target_type, state.target_id.clone());
            if waiting.get(&target).is_none_or(|known| known.revision < state.revision) {
                waiting.insert(target, state);
            }
        }
    }

    /// Writes, and acknowledges, what there is; false where it is still to be written.
    fn write(&self, pulse: Option<&Pulse>) -> bool {
        let enforced = std::mem::take(&mut *self.unacknowledged.lock());
        let confirmed_at = self.confirmed_at.lock().take();
        if enforced.is_empty() && confirmed_at.is_none() {
            return true;
        }
        if let Some(Err(error)) = self.snapshot().map(Snapshot::save_entries) {
            if !enforced.is_empty() {
                tracing::error!(%error, "a containment is enforced and not acknowledged: the copy of the control feed cannot be written");
            }
            self.await_writing(enforced.into_values());
            let mut later = self.confirmed_at.lock();
            *later = later.or(confirmed_at);
            drop(later);
            cannot_be_written(&error);
            return false;
        }
        if let Some(pulse) = pulse {
            enforced.values().for_each(|state| pulse.enforces(state));
        }
        if let Some((snapshot, confirmed_at)) = self.snapshot().zip(confirmed_at)
            && let Err(error) = snapshot.save_confirmed(confirmed_at)
        {
            cannot_be_written(&error);
        }
        true
    }
}

fn cannot_be_written(error: &std::io::Error) {
    tracing::warn!(%error, "the copy of the control feed cannot be written; a start without the control plane would not have it");
}

/// Writes what there is now; false where it is still to be written.
pub(super) async fn write(follower: &Arc<Follower>) -> bool {
    let writer = Arc::clone(follower);
    let writing = tokio::task::spawn_blocking(move || writer.keeper.write(writer.pulse.as_deref()));
    writing.await.unwrap_or_else(|error| {
        tracing::error!(%error, "the copy of the control feed was not written");
        false
    })
}

/// Writes whatever comes, and what could not be written after a pause.
pub(super) async fn keep(follower: Arc<Follower>, again_after: Duration) {
    loop {
        follower.keeper.wake.notified().await;
        while !write(&follower).await {
            tokio::time::sleep(again_after).await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aegis_bus::{EmbeddedBus, EmbeddedLimits};
    use aegis_keys::{KeyRing, SigningKey};
    use aegis_model::ManualClock;

    use super::super::bare;
    use super::*;
    use crate::view::EdgeView;

    const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
    /// How long a test waits for what must come.
    const DEADLINE: Duration = Duration::from_secs(30);

    fn state(agent: &str, revision: i64) -> ContainmentState {
        ContainmentState {
            tenant_id: TenantId::new("acme").unwrap(),
            target_type: TargetType::Agent,
            target_id: agent.to_owned(),
            holds: Vec::new(),
            revoked: true,
            revision,
            issued_at: NOW,
        }
    }

    fn waiting(keeper: &Keeper) -> Vec<(String, i64)> {
        keeper.unacknowledged.lock().values().map(|state| (state.target_id.clone(), state.revision)).collect()
    }

    async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let wait = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "{what}");
    }

    #[test]
    fn of_each_target_the_newest_state_waits_for_the_disk() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("missing");
        let keeper = Keeper::new(Some(Snapshot::new(folder.clone())));
        [1, 3, 2].into_iter().for_each(|revision| keeper.acknowledge(state("a", revision)));
        keeper.acknowledge(state("b", 4));
        keeper.confirm(Some(NOW));
        assert!(!keeper.write(None));
        [2, 5].into_iter().for_each(|revision| keeper.acknowledge(state("a", revision)));
        assert!(!keeper.write(None));
        assert_eq!(waiting(&keeper), [("a".to_owned(), 5), ("b".to_owned(), 4)]);
        std::fs::create_dir(&folder).unwrap();
        assert!(keeper.write(None));
        assert!(waiting(&keeper).is_empty());
        assert!(folder.join("feed.confirmed").exists(), "what was read is not forgotten for that");
    }

    #[tokio::test]
    async fn a_copy_that_cannot_be_written_is_tried_again_after_a_pause_and_not_with_each_containment() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(NOW));
        let bus = EmbeddedBus::open(&folder.path().join("bus.db"), EmbeddedLimits::default(), clock.clone()).await.unwrap();
        let control = SigningKey::from_seed(&[1; 32]);
        let view = Arc::new(EdgeView::new(KeyRing::new([control.verifying_key()])).unwrap());
        let keeper = Keeper::new(Some(Snapshot::new(folder.path().to_owned())));
        let follower = Arc::new(Follower { keeper, ..bare(bus, view, clock) });
        let (file, tried) = (folder.path().join("feed.jsonl"), folder.path().join("feed.partial"));
        let enforce = |agent: &str| {
            follower.keeper.hold(Bucket::Containment, agent, b"{}", 1);
            follower.keeper.acknowledge(state(agent, 1));
        };
        // Where it is to stand, something else does.
        std::fs::create_dir(&file).unwrap();
        let keeping = tokio::spawn(keep(follower.clone(), Duration::from_secs(3600)));
        enforce("first");
        until("it was tried", || tried.exists() && !waiting(&follower.keeper).is_empty()).await;
        std::fs::remove_dir(&file).unwrap();
        enforce("second");
        // Long enough for a writing that nobody holds up.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!file.exists() && waiting(&follower.keeper).len() == 2, "the pause is not over");
        keeping.abort();

        std::fs::remove_file(&tried).unwrap();
        std::fs::create_dir(&file).unwrap();
        let keeping = tokio::spawn(keep(follower.clone(), Duration::from_millis(5)));
        enforce("third");
        until("it was tried again", || tried.exists()).await;
        std::fs::remove_dir(&file).unwrap();
        until("all of it is written, though nothing more came", || waiting(&follower.keeper).is_empty() && file.exists()).await;
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(["first", "second", "third"].iter().all(|agent| text.contains(agent)), "{text}");
        keeping.abort();
    }
}
