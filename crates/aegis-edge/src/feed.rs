//! Follows the control feed: watches the buckets `control` and `containment`, applies what verifies, counts and tells what does not, and keeps a copy
//! on disk for a start without a reachable control plane. A watch can stall silently, so both buckets are also read whole on a timer. Nothing of it that
//! takes long, and nothing that waits for a disk, is done on a thread that answers agents (docs/adr/0057).

mod deaf;
mod entries;
mod keep;
mod known;
mod labels;
mod tell;
mod trouble;
mod watch;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bucket, Bus, BusError, subject};
use aegis_ledger::Ledger;
use aegis_model::{Clock, TenantId, Timestamp};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::deaf::Hearing;
use self::keep::Keeper;
use self::known::Known;
use self::tell::Teller;
use self::trouble::{OVERTAKEN, Trouble};
use crate::EdgeError;
use crate::metrics::EdgeMetrics;
use crate::pulse::Pulse;
use crate::snapshot::{Restored, Snapshot};
use crate::told::LabelCopy;
use crate::view::EdgeView;

/// How often the buckets are read whole.
const REREAD_EVERY: Duration = Duration::from_secs(5);
/// How long to wait after the bus failed.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long a start waits for the feed while nothing comes of it.
const START_WAIT: Duration = Duration::from_secs(8);
/// And so many tries in a row that bring nothing it takes at least: a large feed over a slow connection may break off once, late.
const LEAST_TRIES: u32 = 2;

/// What of the feed an edge follows, and where it keeps a copy.
#[derive(Clone, Debug)]
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
    /// How long a start waits for the feed before it looks for its own copy, for as long as nothing comes: a feed that is large, or slow to come, is
    /// read to its end. And then for what other edges made of runs.
    pub start_wait: Duration,
}

impl Default for FeedConfig {
    fn default() -> Self {
        Self { tenants: None, snapshot: None, has_others: false, pulse: None, stale_after_s: 0, start_wait: START_WAIT }
    }
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
        let beat = self.pulse.is_some().then(|| (Bucket::Control, subject::BEAT.to_owned()));
        // Containment first: it waits for nobody's policies to be compiled. Control's sign of life last: the feed is as young as that once all of it was read.
        let places = |bucket: Bucket| filters.iter().map(move |filter| (bucket, filter.clone()));
        places(Bucket::Containment).chain(places(Bucket::Control)).chain(beat).collect()
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
    keeper: Keeper,
    labels: Option<LabelCopy>,
    /// The places of labels.
    runs: Vec<String>,
    /// Those of them that were not read since the start.
    unread: Mutex<Vec<String>>,
    pulse: Option<Arc<Pulse>>,
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
        let (places, runs, start_wait) = (config.places(), config.runs(), config.start_wait);
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
            keeper: Keeper::new(config.snapshot.map(Snapshot::new)),
            labels,
            runs: runs.clone(),
            unread: Mutex::new(runs.clone()),
            pulse: config.pulse,
        });
        // First what an earlier start knew: a bucket that has lost an entry must not make an edge forget it. Older revisions are refused.
        let restoring = Arc::clone(&follower);
        let restored = tokio::task::spawn_blocking(move || restoring.restore()).await;
        let restored = restored.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        if has_others {
            follower.view.told.await_reading();
            follower.restore_labels();
        }
        match follower.read_first(start_wait).await {
            Ok(took) => {
                let took_us = i64::try_from(took.as_micros()).unwrap_or(i64::MAX);
                let read_at = follower.clock.now().plus_micros(-took_us);
                follower.view.begin(read_at);
                follower.confirm(read_at);
                keep::write(&follower).await;
                // No call is to be judged without what other edges know, if that can be had.
                let _gone_without = tokio::time::timeout(start_wait, labels::read(follower.clone())).await;
                let _later_by_the_watch = tokio::time::timeout(start_wait, follower.read_containment()).await;
            }
            Err(error) => follower.go_on_from(restored, error)?,
        }
        let mut tasks =
            vec![tokio::spawn(reread(follower.clone())), tokio::spawn(keep::keep(follower.clone(), keep::AGAIN_AFTER))];
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
            tasks.push(tokio::spawn(watch::follow(follower.clone(), bucket, filter)));
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
    /// Reads everything for the first time, and tries again what could not be read until nothing has come for `wait`. How long ago the first of it was
    /// read. A reading that is under way is not broken off: it ends by itself where nothing comes.
    async fn read_first(self: &Arc<Self>, wait: Duration) -> Result<Duration, BusError> {
        let began = Instant::now();
        let mut unread: Vec<&(Bucket, String)> = self.places.iter().collect();
        let (mut last_came, mut tries) = (began, 0);
        loop {
            let mut left = Vec::new();
            for place in unread {
                if let Err(error) = self.read_one(place.0, &place.1).await {
                    tries += 1;
                    if last_came.elapsed() >= wait && tries >= LEAST_TRIES {
                        return Err(error);
                    }
                    left.push(place);
                } else {
                    (last_came, tries) = (Instant::now(), 0);
                }
            }
            if left.is_empty() {
                return Ok(began.elapsed());
            }
            unread = left;
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// Also past a place that cannot be read: what is to be known of one tenant does not wait for another's.
    async fn read_whole(self: &Arc<Self>) -> Result<(), BusError> {
        let mut failed = None;
        for (bucket, filter) in &self.places {
            if let Err(error) = self.read_one(*bucket, filter).await {
                failed = Some(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Reads again what is contained: what came first is old where all that is read behind it took long, and calls are judged now.
    async fn read_containment(self: &Arc<Self>) {
        for (bucket, filter) in &self.places {
            if *bucket == Bucket::Containment
                && let Err(error) = self.read_one(*bucket, filter).await
            {
                tracing::warn!(%error, "what is contained could not be read again at the end of a start; what changed meanwhile comes with the watch");
                return;
            }
        }
    }

    async fn read_one(self: &Arc<Self>, bucket: Bucket, filter: &str) -> Result<(), BusError> {
        let came = Instant::now();
        let entries = self.bus.kv_all(bucket, filter).await?;
        self.take(bucket, entries, came).await
    }

    /// Whom all that concerns the feed as a whole is told.
    fn followed(&self) -> Vec<TenantId> {
        self.tenants.as_ref().map_or_else(|| self.view.known_tenants(), |tenants| tenants.iter().cloned().collect())
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
    async fn look_again(self: &Arc<Self>) -> bool {
        // What is read first is as old as that in the end.
        let began = self.clock.now();
        match self.read_whole().await {
            Ok(()) => self.confirm(began),
            Err(error) => tracing::warn!(%error, "the control feed could not be read again; what is known stays enforced"),
        }
        self.leave_where_deaf().await
    }

    /// The whole feed was read at `read_at`.
    fn confirm(&self, read_at: Timestamp) {
        self.view.confirm(read_at);
        self.keeper.confirm(self.view.confirmed_at());
    }

    /// Takes the feed from the copy on disk, if there is one. Each entry is verified as if it came from the bus.
    fn restore(&self) -> std::io::Result<Option<Restored>> {
        let Some(snapshot) = self.keeper.snapshot() else { return Ok(None) };
        let restored = snapshot.load()?;
        for bucket in Bucket::ALL {
            let of_it = restored.iter().flat_map(|restored| &restored.entries).filter(|(its, ..)| *its == bucket);
            self.apply_all(bucket, of_it.map(|(_, key, bytes)| (key.as_str(), bytes.as_slice())), Instant::now(), false);
        }
        Ok(restored)
    }

    /// Without the bus: with the copy, if it was any good.
    fn go_on_from(&self, restored: std::io::Result<Option<Restored>>, cause: BusError) -> Result<(), EdgeError> {
        if self.keeper.snapshot().is_none() {
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
        keeper: Keeper::default(),
        labels: None,
        runs: Vec::new(),
        unread: Mutex::default(),
        pulse: None,
    }
}
