//! The control feed: everything an edge believes, signed by control and put where edges watch.
//! Promises that an entry's revision never goes back; never signs what the store does not hold.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aegis_bus::{Bucket, subject};
use aegis_keys::sign_entry;
use aegis_model::{ContainmentState, EntryKind, TenantId};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Mutex, watch};

use crate::control::Control;
use crate::problem::Problem;
use crate::record::containment_entry_name;

/// What has been published, by key.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    /// Held while an entry is written, so that two changes of one entry cannot pass each other.
    published: Mutex<HashMap<String, i64>>,
    behind: AtomicBool,
}

/// How often a feed that is behind is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Control {
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

    /// The same for a target's containment.
    pub(crate) async fn publish_containment(&self, state: &ContainmentState) -> bool {
        self.publish(&state.tenant_id, EntryKind::Containment, &containment_entry_name(state), state.revision, state).await
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
        let newest = published.get(&key).copied().unwrap_or(i64::MIN);
        if revision < newest || (revision == newest && !rewrite) {
            return Ok(());
        }
        let entry =
            sign_entry(&self.key, tenant, kind, name, revision, self.clock.now(), Some(body)).map_err(Problem::internal)?;
        let bytes = serde_json::to_vec(&entry).map_err(Problem::internal)?;
        self.bus.kv_put(bucket, &key, Bytes::from(bytes)).await.map_err(|error| {
            tracing::warn!(%error, "control feed bucket refused an entry");
            Problem::unavailable("bus_unavailable", "the control feed cannot be written")
        })?;
        published.insert(key, revision);
        Ok(())
    }

    /// Publishes everything the store holds. `rewrite`: also what this process has published already, for a bucket that was lost.
    pub(crate) async fn publish_all(&self, rewrite: bool) -> Result<usize, Problem> {
        let entries = self.store.feed_entries().await?;
        let count = entries.len();
        for entry in entries {
            self.publish_value(&entry.tenant_id, entry.kind, &entry.name, entry.revision, entry.body, rewrite).await?;
        }
        Ok(count)
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
pub(crate) async fn run(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    loop {
        if control.feed.behind.swap(false, Ordering::SeqCst)
            && let Err(problem) = control.publish_all(false).await
        {
            tracing::warn!(code = problem.code, "control feed is behind");
            control.feed.behind.store(true, Ordering::SeqCst);
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
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
