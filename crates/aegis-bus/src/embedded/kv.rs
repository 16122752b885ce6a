//! A bucket in memory: what is durable, by key and by revision. Watchers hold a revision, not a queue, so a slow one costs nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use aegis_model::Timestamp;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Head;
use crate::{BusError, KvWatch, subject};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KvEntry {
    pub(super) value: Bytes,
    pub(super) revision: u64,
    pub(super) updated_at: Timestamp,
}

/// One bucket. The writer alone changes it, after the change is durable.
#[derive(Debug, Default)]
pub(super) struct KvBucket {
    entries: BTreeMap<String, KvEntry>,
    by_revision: BTreeMap<u64, String>,
    bytes: usize,
}

impl KvBucket {
    pub(super) fn replace_all(&mut self, entries: Vec<(String, KvEntry)>) {
        *self = Self::default();
        for (key, entry) in entries {
            self.put(key, entry);
        }
    }

    pub(super) fn put(&mut self, key: String, entry: KvEntry) {
        self.remove(&key);
        self.bytes += key.len() + entry.value.len();
        self.by_revision.insert(entry.revision, key.clone());
        self.entries.insert(key, entry);
    }

    pub(super) fn remove(&mut self, key: &str) {
        if let Some(old) = self.entries.remove(key) {
            self.bytes -= key.len() + old.value.len();
            self.by_revision.remove(&old.revision);
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&KvEntry> {
        self.entries.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &KvEntry)> {
        self.entries.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// At most `max` keys, the longest untouched first, that were last written before `cutoff`.
    pub(super) fn older_than(&self, cutoff: Timestamp, max: usize) -> Vec<String> {
        let oldest_first = self.by_revision.values().filter_map(|key| self.entries.get_key_value(key));
        oldest_first.take_while(|(_, entry)| entry.updated_at < cutoff).take(max).map(|(key, _)| key.clone()).collect()
    }

    /// The first change after `revision` of a key that matches.
    fn after(&self, revision: u64, filter: &str) -> Option<(String, Bytes, u64)> {
        let mut changes = self.by_revision.range(revision + 1..);
        let (found, key) = changes.find(|(_, key)| subject::matches(filter, key))?;
        let entry = self.entries.get(key)?;
        Some((key.clone(), entry.value.clone(), *found))
    }
}

#[derive(Debug)]
pub(super) struct EmbeddedWatch {
    pub(super) bucket: Arc<Mutex<KvBucket>>,
    pub(super) head: watch::Receiver<Head>,
    pub(super) filter: String,
    pub(super) seen: u64,
}

#[async_trait]
impl KvWatch for EmbeddedWatch {
    async fn next(&mut self) -> Result<(String, Bytes, u64), BusError> {
        loop {
            // The head is marked as seen before the bucket is read, so a change in between wakes the wait below.
            let closed = self.head.borrow_and_update().closed;
            if let Some(change) = self.bucket.lock().after(self.seen, &self.filter) {
                self.seen = change.2;
                return Ok(change);
            }
            if closed || self.head.changed().await.is_err() {
                return Err(BusError::Closed);
            }
        }
    }
}
