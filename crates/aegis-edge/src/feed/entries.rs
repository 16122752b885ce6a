//! Entries of the control feed as they stand in a bucket: what verifies is applied and kept for the copy on disk, what does not is counted and noted,
//! and changes nothing.

use std::sync::Arc;

use aegis_bus::{Bucket, BusError, subject};
use aegis_model::{ContainmentState, EntryKind, SignedEntry, TargetType, TenantId};
use bytes::Bytes;
use tokio::time::Instant;

use super::Follower;
use super::trouble::{Reason, Refused};
use crate::view::{Applied, RefusedEntry};

impl Follower {
    /// Applies what was read of a bucket at `came`, on a thread that answers nobody: proving thousands of entries takes a while, and so does compiling
    /// policies.
    pub(super) async fn take(
        self: &Arc<Self>,
        bucket: Bucket,
        entries: Vec<(String, Bytes, u64)>,
        came: Instant,
    ) -> Result<(), BusError> {
        let follower = Arc::clone(self);
        let applying = tokio::task::spawn_blocking(move || {
            follower.apply_all(bucket, entries.iter().map(|(key, value, _)| (key.as_str(), &value[..])), came, false);
        });
        let not_applied =
            |error: tokio::task::JoinError| BusError::Unavailable { reason: format!("what was read was not applied: {error}") };
        applying.await.map_err(not_applied)
    }

    /// Applies one entry. `is_news`: it was written just now, and not read from what stood there.
    pub(super) fn apply(&self, bucket: Bucket, key: &str, bytes: &[u8], is_news: bool) {
        self.apply_all(bucket, [(key, bytes)], Instant::now(), is_news);
    }

    /// Applies entries as they stood in a bucket at `came`, in one go; what is refused is counted and logged, and changes nothing.
    pub(super) fn apply_all<'a>(
        &self,
        bucket: Bucket,
        entries: impl IntoIterator<Item = (&'a str, &'a [u8])>,
        came: Instant,
        is_news: bool,
    ) {
        let mut places = Vec::new();
        let mut read = Vec::new();
        for (key, bytes) in entries {
            if let Some(entry) = self.read(bucket, key, bytes, is_news) {
                places.push((key, bytes));
                read.push(entry);
            }
        }
        self.view.apply_all(&read, came, &mut |index, outcome| {
            if let (Some((key, bytes)), Some(entry)) = (places.get(index), read.get(index)) {
                self.note(bucket, key, bytes, entry, outcome);
            }
        });
    }

    /// The entry that is to be proved; none where it is known, none of a feed, or no entry at all.
    fn read(&self, bucket: Bucket, key: &str, bytes: &[u8], is_news: bool) -> Option<SignedEntry> {
        if bucket == Bucket::Control && key == subject::BEAT {
            self.hear_beat(bytes, is_news);
            return None;
        }
        if bucket == Bucket::Trust {
            self.apply_label(key, bytes);
            return None;
        }
        if let Some(revision) = self.known.revision_of(bucket, key, bytes) {
            self.view.note_applied(revision);
            return None;
        }
        let entry: SignedEntry = match serde_json::from_slice(bytes) {
            Ok(entry) => entry,
            Err(error) => {
                self.refuse(bucket, key, Some(Reason::Malformed), None);
                tracing::warn!(%error, key, "an entry of the control feed is not readable; ignored");
                return None;
            }
        };
        if !is_in_its_place(bucket, key, &entry) {
            self.refuse(bucket, key, Some(Reason::Misplaced), None);
            tracing::warn!(key, tenant = %entry.tenant_id, kind = %entry.kind, "an entry of the control feed stands where another belongs; ignored");
            return None;
        }
        Some(entry)
    }

    /// What became of an entry.
    fn note(&self, bucket: Bucket, key: &str, bytes: &[u8], entry: &SignedEntry, outcome: Result<Applied, RefusedEntry>) {
        match outcome {
            Ok(applied) => {
                // For the copy first: others acknowledge what they find, and skip what is known.
                self.keeper.hold(bucket, key, bytes, entry.revision);
                if applied == Applied::New
                    && entry.kind == EntryKind::Containment
                    && self.pulse.is_some()
                    && let Ok(state) = serde_json::from_value::<ContainmentState>(entry.body.clone())
                {
                    self.keeper.acknowledge(state);
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
    pub(super) fn refuse(&self, bucket: Bucket, key: &str, reason: Option<Reason>, refused: Option<&RefusedEntry>) {
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

    /// Control's sign of life: the feed is as young as that, and the clock follows it.
    fn hear_beat(&self, bytes: &[u8], is_news: bool) {
        match self.view.take_beat(bytes) {
            Ok(Some(at)) if is_news => {
                self.hearing.heard();
                if let Some(pulse) = &self.pulse {
                    pulse.clock().heard(at, Instant::now());
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
}

/// Whether control puts this entry there. Under another's key it would take that one's place in the copy, which a start then lacks.
pub(super) fn is_in_its_place(bucket: Bucket, key: &str, entry: &SignedEntry) -> bool {
    if entry.kind != EntryKind::Containment {
        return bucket == Bucket::Control && key == subject::kv_control(&entry.tenant_id, entry.kind, &entry.name);
    }
    let target_type = entry.body["target_type"].as_str().and_then(|word| word.parse::<TargetType>().ok());
    let target = target_type.zip(entry.body["target_id"].as_str());
    let is_at = |(kind, id): (TargetType, &str)| key == subject::kv_containment(&entry.tenant_id, kind, id);
    bucket == Bucket::Containment && target.is_some_and(is_at)
}
