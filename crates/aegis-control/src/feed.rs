//! The control feed: everything an edge believes, signed by control and put where edges watch.
//! Promises that an entry's revision never goes back; never signs what the store does not hold.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aegis_bus::feed::{FeedPage, FeedRequest, MAX_ENTRY, fill};
use aegis_bus::{Bucket, BusError, subject};
use aegis_keys::sign_entry;
use aegis_model::{ContainmentState, EntryKind, SignedEntry, TenantId};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep};

use crate::control::Control;
use crate::fleet::Enforcement;
use crate::problem::Problem;
use crate::record::containment_entry_name;

/// What has been published, by key.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    /// Held while an entry is written, so that two changes of one entry cannot pass each other.
    published: Mutex<BTreeMap<(Bucket, String), Published>>,
    /// All that the store holds was published once: nothing is missing in `published`.
    is_whole: AtomicBool,
    behind: AtomicBool,
}

/// An entry as this process wrote it.
#[derive(Clone, Debug)]
struct Published {
    /// Its own revision, from the store.
    revision: i64,
    /// Where the bucket put it.
    bucket_revision: u64,
    bytes: Bytes,
}

/// How often the buckets are compared with what was written: one may be made anew, rolled back, or overwritten by somebody else.
const COMPARE_EVERY: Duration = Duration::from_secs(10);

/// A comparison that takes longer is begun anew: it may wait on a connection that is gone.
const LONGEST_COMPARISON: Duration = Duration::from_secs(15);

/// How often a feed that is behind is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Most bytes of a record's entry and key. Some room is left: it may be signed by another key later.
const MOST_BYTES: usize = MAX_ENTRY - 1024;

/// A revision with as many digits as any.
const LAST_REVISION: i64 = (1 << 53) - 1;

/// The code where the bus takes nothing at the moment.
const BUS_AWAY: &str = "bus_unavailable";

impl Control {
    /// Refuses a record whose entry no bus or no page of the feed would take. Asked before the store has it: what the store has is tried for good, and an edge of the
    /// tenant could never say that it knows all.
    pub(crate) fn check_entry(
        &self,
        tenant: &TenantId,
        kind: EntryKind,
        name: &str,
        body: &impl Serialize,
    ) -> Result<(), Problem> {
        let body = serde_json::to_value(body).map_err(Problem::internal)?;
        let (_, key) = place_of(tenant, kind, name, &body)?;
        let too_large = |why: String| Problem::unprocessable("record_too_large", format!("no edge could be told of it: {why}"));
        // What is nested as deep as a body may be is one level deeper in its entry.
        let entry = sign_entry(&self.key, tenant, kind, name, LAST_REVISION, self.clock.now(), Some(body))
            .map_err(|error| too_large(error.to_string()))?;
        let text = serde_json::to_vec(&entry).map_err(Problem::internal)?;
        // As an edge reads it.
        serde_json::from_slice::<SignedEntry>(&text).map_err(|error| too_large(error.to_string()))?;
        let bytes = key.len() + text.len();
        if bytes > MOST_BYTES {
            return Err(too_large(format!("it takes {bytes} bytes, of {MOST_BYTES} at most; make it smaller")));
        }
        Ok(())
    }

    /// Signs and publishes an entry, and waits until the local edge enforces it. False: it does not yet (it will be published again
    /// if the bus refused it).
    pub(crate) async fn publish(
        &self,
        tenant: &TenantId,
        kind: EntryKind,
        name: &str,
        revision: i64,
        body: &impl Serialize,
    ) -> bool {
        let written = match serde_json::to_value(body) {
            Ok(body) => self.publish_value(tenant, kind, name, revision, body, false).await,
            Err(error) => Err(Problem::internal(error)),
        };
        if let Err(problem) = written {
            tracing::warn!(code = problem.code, %tenant, %kind, revision, "control feed entry is not published yet");
            self.feed.behind.store(true, Ordering::SeqCst);
            return false;
        }
        self.applied.wait_applied(revision, kind, self.config.applied_wait).await
    }

    /// The same for a target's containment, which edges of their own acknowledge.
    pub(crate) async fn publish_containment(&self, state: &ContainmentState) -> Enforcement {
        let name = containment_entry_name(state);
        let here = self.publish(&state.tenant_id, EntryKind::Containment, &name, state.revision, state).await;
        let edges = self.wait_enforced(state, self.config.applied_wait).await;
        Enforcement { here: self.applied.has_edge().then_some(here), edges }
    }

    async fn publish_value(
        &self,
        tenant: &TenantId,
        kind: EntryKind,
        name: &str,
        revision: i64,
        body: Value,
        rewrite: bool,
    ) -> Result<(), Problem> {
        let (bucket, key) = place_of(tenant, kind, name, &body)?;
        let mut published = self.feed.published.lock().await;
        let place = (bucket, key);
        let newest = published.get(&place).map_or(i64::MIN, |published| published.revision);
        if revision < newest || (revision == newest && !rewrite) {
            return Ok(());
        }
        let entry =
            sign_entry(&self.key, tenant, kind, name, revision, self.clock.now(), Some(body)).map_err(Problem::internal)?;
        let bytes = Bytes::from(serde_json::to_vec(&entry).map_err(Problem::internal)?);
        let bucket_revision = self.bus.kv_put(bucket, &place.1, bytes.clone()).await.map_err(|error| {
            tracing::warn!(%error, %tenant, %kind, revision, "control feed bucket refused an entry");
            match error {
                BusError::Unavailable { .. } | BusError::Closed => {
                    Problem::unavailable(BUS_AWAY, "the control feed cannot be written")
                }
                _ => Problem::unavailable("entry_refused", "the control feed does not take the entry"),
            }
        })?;
        published.insert(place, Published { revision, bucket_revision, bytes });
        Ok(())
    }

    /// True if both buckets hold every entry as this process wrote it.
    async fn buckets_stand(&self) -> Result<bool, BusError> {
        let published = self.feed.published.lock().await;
        let before: Vec<_> = published.iter().map(|(place, entry)| (place.clone(), entry.bucket_revision)).collect();
        drop(published);
        for bucket in [Bucket::Control, Bucket::Containment] {
            let held = self.bus.kv_all(bucket, ">").await?;
            let held: HashMap<String, u64> = held.into_iter().map(|(key, _, revision)| (key, revision)).collect();
            let now = self.feed.published.lock().await;
            for (place, entry) in before.iter().filter(|((of, _), _)| *of == bucket) {
                // While the bucket was read, an entry may have been written anew.
                let ours = [Some(*entry), now.get(place).map(|entry| entry.bucket_revision)];
                let found = held.get(&place.1);
                if !ours.into_iter().flatten().any(|revision| found == Some(&revision)) {
                    tracing::warn!(%bucket, key = place.1, "the control feed does not hold an entry as it was written; writing all of it again");
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Writes the feed again if a bucket does not hold it any more.
    async fn compare_buckets(&self) {
        match self.buckets_stand().await {
            Ok(true) => {}
            Ok(false) => {
                self.metrics.feed_rewrites.inc();
                // The next comparison sees what could not be written.
                if let Err(problem) = self.publish_all(true).await {
                    tracing::warn!(code = problem.code, "the control feed cannot be written again yet");
                }
            }
            Err(error) => tracing::warn!(%error, "the control feed cannot be compared now"),
        }
    }

    /// Publishes everything the store holds. `rewrite`: also what this process has published already, for a bucket that was lost. An entry that is refused holds up
    /// none behind it, whoever's they are; the first refusal is told. A bus that is away ends it: each of them would wait for it.
    pub(crate) async fn publish_all(&self, rewrite: bool) -> Result<usize, Problem> {
        let entries = self.store.feed_entries().await?;
        let count = entries.len();
        let mut refused = None;
        for entry in entries {
            let written =
                self.publish_value(&entry.tenant_id, entry.kind, &entry.name, entry.revision, entry.body, rewrite).await;
            match written {
                Err(problem) if problem.code == BUS_AWAY => return Err(problem),
                Err(problem) => _ = refused.get_or_insert(problem),
                Ok(()) => {}
            }
        }
        if let Some(problem) = refused {
            return Err(problem);
        }
        self.feed.is_whole.store(true, Ordering::SeqCst);
        Ok(count)
    }

    /// The page of what this process has published that a request asks for; None where it may not be all, or is not the feed's.
    pub(crate) async fn published_page(&self, request: &FeedRequest) -> Option<FeedPage> {
        let bucket = request.bucket()?;
        let tenant = request.filter.strip_suffix(".>").filter(|tenant| TenantId::new(tenant).is_ok())?;
        if bucket == Bucket::Trust {
            return Some(self.labels.page(&TenantId::new(tenant).ok()?, &request.after));
        }
        if !self.feed.is_whole.load(Ordering::SeqCst) {
            return None;
        }
        let first = format!("{tenant}.");
        let from = if request.after < first {
            Bound::Included((bucket, first.clone()))
        } else {
            Bound::Excluded((bucket, request.after.clone()))
        };
        let published = self.feed.published.lock().await;
        let entries =
            published.range((from, Bound::Unbounded)).take_while(|((of, key), _)| *of == bucket && key.starts_with(&first));
        Some(fill(bucket, entries.map(|((_, key), entry)| (key.as_str(), entry.bytes.clone(), entry.bucket_revision))))
    }
}

fn place_of(tenant: &TenantId, kind: EntryKind, name: &str, body: &Value) -> Result<(Bucket, String), Problem> {
    if kind != EntryKind::Containment {
        return Ok((Bucket::Control, subject::kv_control(tenant, kind, name)));
    }
    let target_type = body["target_type"].as_str().and_then(|word| word.parse().ok());
    match (target_type, body["target_id"].as_str()) {
        (Some(target_type), Some(target)) => Ok((Bucket::Containment, subject::kv_containment(tenant, target_type, target))),
        _ => Err(Problem::internal("a containment state names no target")),
    }
}

/// Publishes again, while the feed is behind, what the bus refused.
/// Looks, now and then, whether the buckets still hold what was written.
pub(crate) async fn run(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    let mut compared = Instant::now();
    loop {
        if compared.elapsed() >= COMPARE_EVERY {
            if tokio::time::timeout(LONGEST_COMPARISON, control.compare_buckets()).await.is_err() {
                tracing::warn!("the control feed could not be compared in time; trying again");
            }
            compared = Instant::now();
        }
        if control.feed.behind.swap(false, Ordering::SeqCst)
            && let Err(problem) = control.publish_all(false).await
        {
            tracing::warn!(code = problem.code, "control feed is behind");
            control.feed.behind.store(true, Ordering::SeqCst);
        }
        tokio::select! {
            () = sleep(RETRY) => {}
            _ = stop.changed() => return,
        }
    }
}

impl Feed {
    /// Marks the feed as behind, so that the background task publishes what is missing.
    pub(crate) fn mark_behind(&self) {
        self.behind.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_behind(&self) -> bool {
        self.behind.load(Ordering::SeqCst)
    }
}
