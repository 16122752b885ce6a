//! Follows the control feed: watches the buckets `control` and `containment`, applies what verifies, counts and tells what does not, and keeps a copy
//! on disk for a start without a reachable control plane. A watch can stall silently, so both buckets are also read whole on a timer.

mod deaf;
mod known;
mod labels;
mod tell;
mod trouble;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bucket, Bus, BusError, subject};
use aegis_ledger::Ledger;
use aegis_model::{Clock, ContainmentState, EntryKind, SignedEntry, TargetType, TenantId};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::deaf::Hearing;
use self::known::Known;
use self::tell::Teller;
use self::trouble::{OVERTAKEN, Reason, Refused, Trouble};
use crate::EdgeError;
use crate::metrics::EdgeMetrics;
use crate::pulse::Pulse;
use crate::snapshot::{Restored, Snapshot};
use crate::told::LabelCopy;
use crate::view::{Applied, EdgeView, RefusedEntry};

/// How often the buckets are read whole.
const REREAD_EVERY: Duration = Duration::from_secs(5);
/// Entries that are applied before the thread is given to others: it answers calls too.
const APPLIED_AT_ONCE: usize = 8;
/// How long to wait after the bus failed.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long a start waits for the feed before it looks for its own copy, and then for what other edges made of runs.
const START_WAIT: Duration = Duration::from_secs(8);

/// What of the feed an edge follows, and where it keeps a copy.
#[derive(Clone, Debug, Default)]
pub struct FeedConfig {
    /// Its tenants; None: all there are.
    pub tenants: Option<Vec<TenantId>>,
    /// The folder of the copy; None: none is kept, and without a reachable feed there is no start.
    pub snapshot: Option<PathBuf>,
    /// Whether other edges serve the same tenants, so that what they make of a run counts here.
    pub has_others: bool,
    /// For an edge whose control plane is another process: who tells it what is enforced, and whose clock follows it.
    pub pulse: Option<Arc<Pulse>>,
    /// How old the feed may be before its tenants are told, seconds; 0: they are told nothing of its age.
    pub stale_after_s: i64,
}

impl FeedConfig {
    /// Which keys of the bucket `trust`.
    fn runs(&self) -> Vec<String> {
        match &self.tenants {
            _ if !self.has_others => vec![],
            Some(tenants) => tenants.iter().map(|tenant| format!("{tenant}.>")).collect(),
            None => vec!["*.*".to_owned()],
        }
    }

    /// Which keys of which bucket.
    fn places(&self) -> Vec<(Bucket, String)> {
        let filters: Vec<String> = match &self.tenants {
            Some(tenants) => tenants.iter().map(|tenant| format!("{tenant}.>")).collect(),
            None => vec!["*.*.>".to_owned()],
        };
        let both = |filter: String| [(Bucket::Control, filter.clone()), (Bucket::Containment, filter)];
        let beat = self.pulse.is_some().then(|| (Bucket::Control, subject::BEAT.to_owned()));
        // Control's sign of life last: the feed is as young as that once all of it was read.
        filters.into_iter().flat_map(both).chain(beat).collect()
    }
}

/// The tasks that follow the feed.
#[derive(Debug)]
pub struct FeedFollower {
    follower: Arc<Follower>,
    tasks: Vec<JoinHandle<()>>,
}

/// What all of them share.
#[derive(Debug)]
struct Follower {
    bus: Arc<dyn Bus>,
    view: Arc<EdgeView>,
    metrics: EdgeMetrics,
    clock: Arc<dyn Clock>,
    known: Known,
    hearing: Hearing,
    places: Vec<(Bucket, String)>,
    /// Whose feed it is; None: of whomever control has signed something.
    tenants: Option<BTreeSet<TenantId>>,
    /// What was refused and is to be told.
    trouble: Trouble,
    /// An older entry that comes within this time of the newer says nothing.
    overtaken: Duration,
    stale_after_s: i64,
    snapshot: Option<Snapshot>,
    labels: Option<LabelCopy>,
    /// The places of labels.
    runs: Vec<String>,
    /// Those of them that were not read since the start.
    unread: Mutex<Vec<String>>,
    pulse: Option<Arc<Pulse>>,
    /// What is enforced, and is not on the disk yet.
    unacknowledged: Mutex<Vec<ContainmentState>>,
}

impl FeedFollower {
    /// Applies everything the buckets hold now, or what the copy on disk holds if they cannot be read, then follows them.
    pub async fn start(
        bus: Arc<dyn Bus>,
        view: Arc<EdgeView>,
        metrics: EdgeMetrics,
        clock: Arc<dyn Clock>,
        config: FeedConfig,
    ) -> Result<Self, EdgeError> {
        let (places, runs) = (config.places(), config.runs());
        let has_others = !runs.is_empty();
        let labels = config.snapshot.as_deref().filter(|_| has_others).map(LabelCopy::new);
        let follower = Arc::new(Follower {
            bus,
            view,
            metrics,
            clock,
            known: Known::default(),
            hearing: Hearing::default(),
            places,
            tenants: config.tenants.map(|tenants| tenants.into_iter().collect()),
            trouble: Trouble::default(),
            overtaken: OVERTAKEN,
            stale_after_s: config.stale_after_s,
            snapshot: config.snapshot.map(Snapshot::new),
            labels,
            runs: runs.clone(),
            unread: Mutex::new(runs.clone()),
            pulse: config.pulse,
            unacknowledged: Mutex::default(),
        });
        // First what an earlier start knew: a bucket that has lost an entry must not make an edge forget it. Older revisions are refused.
        let restored = follower.restore();
        if has_others {
            follower.view.told.await_reading();
            follower.restore_labels();
        }
        match follower.read_in_time().await {
            Ok(()) => {
                follower.view.begin(follower.clock.now());
                follower.confirm();
                // No call is to be judged without what other edges know, if that can be had.
                let _gone_without = tokio::time::timeout(START_WAIT, labels::read(follower.clone())).await;
            }
            Err(error) => follower.go_on_from(restored, error)?,
        }
        let mut tasks = vec![tokio::spawn(reread(follower.clone()))];
        if !follower.view.told.was_read() {
            tracing::warn!(
                "what other edges made of runs is not read yet: without a copy on disk that is young enough, runs count as unknown"
            );
            tasks.push(tokio::spawn(labels::read(follower.clone())));
        }
        if has_others {
            tasks.push(tokio::spawn(labels::reread(follower.clone(), labels::REREAD_EVERY)));
        }
        let runs = runs.into_iter().map(|filter| (Bucket::Trust, filter));
        for (bucket, filter) in follower.places.iter().cloned().chain(runs) {
            tasks.push(tokio::spawn(follow(follower.clone(), bucket, filter)));
        }
        Ok(Self { follower, tasks })
    }

    /// From now on the edge's tenants are told what is wrong with the feed, what was refused until now included, by events that `ledger` seals.
    pub fn tell_with(&mut self, ledger: Ledger, edge_id: &str) {
        let teller = Teller::new(Arc::clone(&self.follower), ledger, edge_id, Instant::now());
        self.tasks.push(tokio::spawn(teller.run()));
    }

    /// Stops following; what is held stays.
    pub fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Follower {
    /// Reads everything, and tries again until `START_WAIT` has passed.
    async fn read_in_time(&self) -> Result<(), BusError> {
        let mut last = BusError::Unavailable { reason: "no answer in time".to_owned() };
        let trying = async {
            while let Err(error) = self.read_whole().await {
                last = error;
                tokio::time::sleep(RETRY_AFTER).await;
            }
        };
        let read = tokio::time::timeout(START_WAIT, trying).await;
        read.map_err(|_elapsed| last)
    }

    /// Also past a place that cannot be read: what is to be known of one tenant does not wait for another's.
    async fn read_whole(&self) -> Result<(), BusError> {
        let mut failed = None;
        for (bucket, filter) in &self.places {
            match self.bus.kv_all(*bucket, filter).await {
                Ok(entries) => {
                    for (index, (key, value, _)) in entries.iter().enumerate() {
                        self.apply(*bucket, key, value, false);
                        if index % APPLIED_AT_ONCE == APPLIED_AT_ONCE - 1 {
                            tokio::task::yield_now().await;
                        }
                    }
                }
                Err(error) => failed = Some(error),
            }
        }
        self.acknowledge();
        failed.map_or(Ok(()), Err)
    }

    /// Applies one entry as it stands in a bucket; what is refused is counted and logged, and changes nothing.
    /// `is_news`: it was written just now, and not read from what stood there.
    fn apply(&self, bucket: Bucket, key: &str, bytes: &[u8], is_news: bool) {
        if bucket == Bucket::Control && key == subject::BEAT {
            self.hear_beat(bytes, is_news);
            return;
        }
        if bucket == Bucket::Trust {
            self.apply_label(key, bytes);
            return;
        }
        if let Some(revision) = self.known.revision_of(bucket, key, bytes) {
            self.view.note_applied(revision);
            return;
        }
        let entry: SignedEntry = match serde_json::from_slice(bytes) {
            Ok(entry) => entry,
            Err(error) => {
                self.refuse(bucket, key, Some(Reason::Malformed), None);
                tracing::warn!(%error, key, "an entry of the control feed is not readable; ignored");
                return;
            }
        };
        if !is_in_its_place(bucket, key, &entry) {
            self.refuse(bucket, key, Some(Reason::Misplaced), None);
            tracing::warn!(key, tenant = %entry.tenant_id, kind = %entry.kind, "an entry of the control feed stands where another belongs; ignored");
            return;
        }
        match self.view.apply(&entry) {
            Ok(applied) => {
                // In the copy first: others acknowledge what they find, and skip what is known.
                if let Some(snapshot) = &self.snapshot {
                    snapshot.hold(bucket, key, bytes, entry.revision);
                }
                if applied == Applied::New && entry.kind == EntryKind::Containment && self.pulse.is_some() {
                    self.unacknowledged.lock().extend(serde_json::from_value::<ContainmentState>(entry.body.clone()).ok());
                }
                self.known.note(bucket, key, bytes, entry.revision);
            }
            Err(refused) => {
                self.refuse(bucket, key, Reason::of(&refused, self.overtaken), Some(&refused));
                tracing::warn!(%refused, tenant = %entry.tenant_id, kind = %entry.kind, revision = entry.revision, "entry of the control feed ignored");
            }
        }
    }

    /// Counts what is refused, and notes it for the tenant under whose key it stands: what is in it is nobody's word. Under another key than a tenant's
    /// that is followed here it stands for nobody, and would have lanes made for tenants that there are not.
    fn refuse(&self, bucket: Bucket, key: &str, reason: Option<Reason>, refused: Option<&RefusedEntry>) {
        self.metrics.feed_refused.inc();
        let Some(reason) = reason else { return };
        let whom = match key.split('.').next().map(TenantId::new) {
            _ if key == subject::BEAT => None,
            Some(Ok(tenant)) if self.follows(&tenant) => Some(tenant),
            _ => return,
        };
        self.trouble.note(whom, reason, Refused::new(bucket, key, refused));
    }

    fn follows(&self, tenant: &TenantId) -> bool {
        self.tenants.as_ref().map_or_else(|| self.view.knows(tenant), |tenants| tenants.contains(tenant))
    }

    /// Whom all that concerns the feed as a whole is told.
    fn followed(&self) -> Vec<TenantId> {
        self.tenants.as_ref().map_or_else(|| self.view.known_tenants(), |tenants| tenants.iter().cloned().collect())
    }

    /// Acknowledges what is enforced, once it would outlive this process: an edge that died and forgot it must not have said so.
    fn acknowledge(&self) {
        let Some(pulse) = &self.pulse else { return };
        let mut unacknowledged = self.unacknowledged.lock();
        if unacknowledged.is_empty() {
            return;
        }
        if let Some(Err(error)) = self.snapshot.as_ref().map(Snapshot::save_entries) {
            tracing::error!(%error, "a containment is enforced and not acknowledged: the copy of the control feed cannot be written");
            return;
        }
        unacknowledged.drain(..).for_each(|state| pulse.enforces(&state));
    }

    /// Control's sign of life: the feed is as young as that, and the clock follows it.
    fn hear_beat(&self, bytes: &[u8], is_news: bool) {
        match self.view.take_beat(bytes) {
            Ok(Some(at)) if is_news => {
                self.hearing.heard();
                if let Some(pulse) = &self.pulse {
                    pulse.clock().heard(at, tokio::time::Instant::now());
                }
            }
            Ok(Some(_)) => self.hearing.read(),
            Ok(None) => {}
            Err(refused) => {
                self.refuse(Bucket::Control, subject::BEAT, Reason::of(&refused, self.overtaken), Some(&refused));
                tracing::warn!(%refused, "a sign of life that is not control's; ignored");
            }
        }
    }

    /// What is read and not heard comes seconds late, and over a server that control does not reach nothing does. True where it is left.
    async fn leave_where_deaf(&self) -> bool {
        // An edge beside control hears of it otherwise.
        let is_cut_off = self.pulse.is_some() && self.hearing.is_cut_off();
        if self.hearing.is_deaf() {
            tracing::warn!("what control writes is read, and not heard as it is written; trying another server");
        } else if is_cut_off {
            tracing::warn!("control has given no sign of life for a while over this server; trying another");
        } else {
            return false;
        }
        self.bus.leave_server().await;
        true
    }

    /// Reads the whole feed again; true where the server is left, behind a reading that failed too.
    async fn look_again(&self) -> bool {
        match self.read_whole().await {
            Ok(()) => self.confirm(),
            Err(error) => {
                tracing::warn!(%error, "the control feed could not be read again; what is known stays enforced");
            }
        }
        self.leave_where_deaf().await
    }

    /// The whole feed was read just now.
    fn confirm(&self) {
        self.acknowledge();
        self.view.confirm(self.clock.now());
        if let Some(snapshot) = &self.snapshot
            && let Some(confirmed_at) = self.view.confirmed_at()
            && let Err(error) = snapshot.save(confirmed_at)
        {
            tracing::warn!(%error, "the copy of the control feed cannot be written; a start without the control plane would not have it");
        }
    }

    /// Takes the feed from the copy on disk, if there is one. Each entry is verified as if it came from the bus.
    fn restore(&self) -> std::io::Result<Option<Restored>> {
        let Some(snapshot) = &self.snapshot else { return Ok(None) };
        let restored = snapshot.load()?;
        for (bucket, key, bytes) in restored.iter().flat_map(|restored| &restored.entries) {
            self.apply(*bucket, key, bytes, false);
        }
        Ok(restored)
    }

    /// Without the bus: with the copy, if it was any good.
    fn go_on_from(&self, restored: std::io::Result<Option<Restored>>, cause: BusError) -> Result<(), EdgeError> {
        if self.snapshot.is_none() {
            return Err(cause.into());
        }
        let restored = restored.map_err(|error| EdgeError::Snapshot { reason: error.to_string(), cause: cause.clone() })?;
        let Some(restored) = restored else {
            return Err(EdgeError::Snapshot { reason: "there is none".to_owned(), cause });
        };
        self.view.restored(restored.confirmed_at, self.clock.now());
        tracing::warn!(
            %cause,
            entries = restored.entries.len(),
            confirmed_at = %restored.confirmed_at,
            "the control feed cannot be read; starting from the copy on disk"
        );
        Ok(())
    }
}

/// Whether control puts this entry there. Under another's key it would take that one's place in the copy, which a start then lacks.
fn is_in_its_place(bucket: Bucket, key: &str, entry: &SignedEntry) -> bool {
    if entry.kind != EntryKind::Containment {
        return bucket == Bucket::Control && key == subject::kv_control(&entry.tenant_id, entry.kind, &entry.name);
    }
    let target_type = entry.body["target_type"].as_str().and_then(|word| word.parse::<TargetType>().ok());
    let target = target_type.zip(entry.body["target_id"].as_str());
    let is_at = |(kind, id): (TargetType, &str)| key == subject::kv_containment(&entry.tenant_id, kind, id);
    bucket == Bucket::Containment && target.is_some_and(is_at)
}

async fn reread(follower: Arc<Follower>) {
    loop {
        tokio::time::sleep(REREAD_EVERY).await;
        let _is_left = follower.look_again().await;
        // What was heard of runs; that it is all there was, only a reading of all of it says.
        labels::save(&follower, None).await;
        follower.metrics.run_labels_lost.inc_by(follower.view.told.runs.take_lost());
        let age_s = follower.view.feed_age_s(follower.clock.now()).unwrap_or(i64::MAX);
        follower.metrics.feed_age_seconds.set(age_s);
    }
}

async fn follow(follower: Arc<Follower>, bucket: Bucket, filter: String) {
    loop {
        let watch = follower.bus.kv_watch(bucket, &filter).await;
        if let Ok(mut watch) = watch {
            loop {
                match watch.next().await {
                    // A change that was heard has no revision.
                    Ok((key, value, revision)) => {
                        follower.apply(bucket, &key, &value, revision == 0);
                        follower.acknowledge();
                    }
                    Err(error) => {
                        tracing::warn!(%error, ?bucket, "the watch on the control feed ended; watching again");
                        break;
                    }
                }
            }
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// A follower of nothing.
#[cfg(test)]
fn bare(bus: Arc<dyn Bus>, view: Arc<EdgeView>, clock: Arc<dyn Clock>) -> Follower {
    Follower {
        bus,
        view,
        metrics: EdgeMetrics::register(&mut prometheus_client::registry::Registry::default()),
        clock,
        known: Known::default(),
        hearing: Hearing::default(),
        places: Vec::new(),
        tenants: None,
        trouble: Trouble::default(),
        overtaken: OVERTAKEN,
        stale_after_s: 0,
        snapshot: None,
        labels: None,
        runs: Vec::new(),
        unread: Mutex::default(),
        pulse: None,
        unacknowledged: Mutex::default(),
    }
}
