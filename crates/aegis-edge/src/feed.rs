//! Follows the control feed: watches the buckets `control` and `containment`, applies what verifies, counts what does not.
//! A watch can stall silently, so both buckets are also read whole on a timer.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bucket, Bus};
use aegis_model::SignedEntry;
use tokio::task::JoinHandle;

use crate::EdgeError;
use crate::metrics::EdgeMetrics;
use crate::view::EdgeView;

/// How often the buckets are read whole.
const REREAD_EVERY: Duration = Duration::from_secs(5);
/// How long to wait after the bus failed.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The tasks that follow the feed.
#[derive(Debug)]
pub struct FeedFollower {
    tasks: Vec<JoinHandle<()>>,
}

impl FeedFollower {
    /// Applies everything the buckets hold now, then follows them.
    pub async fn start(bus: Arc<dyn Bus>, view: Arc<EdgeView>, metrics: EdgeMetrics) -> Result<Self, EdgeError> {
        let mut tasks = Vec::new();
        for bucket in [Bucket::Control, Bucket::Containment] {
            read_whole(&*bus, bucket, &view, &metrics).await?;
            tasks.push(tokio::spawn(follow(bus.clone(), bucket, view.clone(), metrics.clone())));
        }
        Ok(Self { tasks })
    }

    /// Stops following; what is held stays.
    pub fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn read_whole(bus: &dyn Bus, bucket: Bucket, view: &EdgeView, metrics: &EdgeMetrics) -> Result<(), EdgeError> {
    for (_, value, _) in bus.kv_all(bucket).await? {
        apply_entry_bytes(view, metrics, &value);
    }
    Ok(())
}

async fn follow(bus: Arc<dyn Bus>, bucket: Bucket, view: Arc<EdgeView>, metrics: EdgeMetrics) {
    loop {
        let Ok(mut watch) = bus.kv_watch(bucket).await else {
            tokio::time::sleep(RETRY_AFTER).await;
            continue;
        };
        loop {
            match tokio::time::timeout(REREAD_EVERY, watch.next()).await {
                Ok(Ok((_, value, _))) => apply_entry_bytes(&view, &metrics, &value),
                Ok(Err(error)) => {
                    tracing::warn!(%error, ?bucket, "the watch on the control feed ended; watching again");
                    tokio::time::sleep(RETRY_AFTER).await;
                    break;
                }
                Err(_) => {
                    if let Err(error) = read_whole(&*bus, bucket, &view, &metrics).await {
                        tracing::warn!(%error, ?bucket, "the control feed could not be read again");
                    }
                }
            }
        }
    }
}

/// Applies one entry as it stands in a bucket; what is refused is counted and logged, and changes nothing.
pub fn apply_entry_bytes(view: &EdgeView, metrics: &EdgeMetrics, bytes: &[u8]) {
    let entry: SignedEntry = match serde_json::from_slice(bytes) {
        Ok(entry) => entry,
        Err(error) => {
            metrics.feed_refused.inc();
            tracing::warn!(%error, "an entry of the control feed is not readable; ignored");
            return;
        }
    };
    if let Err(refused) = view.apply(&entry) {
        metrics.feed_refused.inc();
        tracing::warn!(%refused, tenant = %entry.tenant_id, kind = %entry.kind, revision = entry.revision, "entry of the control feed ignored");
    }
}
