//! Collects events in the order in which the bus has them, hour by hour, and writes each hour's as one sorted file.
//! INVARIANT (L-LAKE-ONCE): an hour's rows up to its manifest's `through` are all in its files, so that events which are taken again behind a
//! crash are known by their sequence, and a receipt that the bus has twice by its place in its lane.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use aegis_detect::EventBatch;
use aegis_model::{SecurityEvent, TenantId};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use crate::error::LakeError;
use crate::expire::Old;
use crate::file::{Encoded, encode};
use crate::layout::Hour;
use crate::manifest::{FileEntry, Manifest};
use crate::recent::Recent;

/// Observations that are remembered to know them again: they have no place in a lane by which a repeated one would be known.
const MOST_RECENT: usize = 65_536;
/// Events that are made columns at a time: so few that they are still near the processor when the last of the columns is made of them.
const AT_ONCE: usize = 512;
/// Manifests that are kept in memory.
const MOST_MANIFESTS: usize = 1024;

/// What may wait in memory. Past either bound all that waits is to be written.
#[derive(Clone, Copy, Debug)]
pub struct WriterLimits {
    pub rows: usize,
    pub bytes: usize,
    /// Of one tenant; past it that tenant's is.
    pub tenant_rows: usize,
    pub tenant_bytes: usize,
}

impl Default for WriterLimits {
    /// 100,000 rows and 64 MiB; of one tenant half of that.
    fn default() -> Self {
        Self { rows: 100_000, bytes: 64 << 20, tenant_rows: 50_000, tenant_bytes: 32 << 20 }
    }
}

#[derive(Clone, Debug)]
struct Waiting {
    /// Its sequence on the bus.
    seq: u64,
    event: Arc<SecurityEvent>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    rows: usize,
    bytes: usize,
}

/// Writes the lake. There should be one for a lake: of two, each is refused what the other was before it with, and has to begin again.
pub struct Writer {
    pub(crate) store: Arc<dyn ObjectStore>,
    limits: WriterLimits,
    stream: String,
    waiting: BTreeMap<Hour, (Vec<Waiting>, Weight)>,
    tenants: HashMap<TenantId, Weight>,
    total: Weight,
    recent: Recent,
    manifests: HashMap<Hour, Manifest>,
    /// Hours with files to merge or to remove.
    pub(crate) unfinished: BTreeSet<Hour>,
    pub(crate) old: Old,
    rows_written: u64,
    files_written: u64,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("store", &self.store).field("waiting", &self.total).finish_non_exhaustive()
    }
}

impl Writer {
    /// Writes to a store what a stream of the bus has; `unfinished`: what the writer before had left to tidy.
    #[must_use]
    pub fn new(
        store: Arc<dyn ObjectStore>,
        stream: &str,
        unfinished: impl IntoIterator<Item = Hour>,
        limits: WriterLimits,
    ) -> Self {
        Self {
            store,
            limits,
            stream: stream.to_owned(),
            waiting: BTreeMap::new(),
            tenants: HashMap::new(),
            total: Weight::default(),
            recent: Recent::new(MOST_RECENT),
            manifests: HashMap::new(),
            unfinished: unfinished.into_iter().collect(),
            old: Old::default(),
            rows_written: 0,
            files_written: 0,
        }
    }

    /// Takes the event at a sequence of the stream, sequences ascending. `bytes`: about its size.
    pub fn take(&mut self, seq: u64, event: impl Into<Arc<SecurityEvent>>, bytes: usize) {
        let event = event.into();
        if event.lane.is_none() && !self.recent.takes(&event.tenant_id, event.event_id) {
            return;
        }
        let hour = Hour::of(&event);
        let of_tenant = self.tenants.entry(event.tenant_id.clone()).or_default();
        let (rows, of_hour) = self.waiting.entry(hour).or_default();
        rows.push(Waiting { seq, event });
        for weight in [of_tenant, of_hour, &mut self.total] {
            weight.rows += 1;
            weight.bytes += bytes;
        }
    }

    /// In how many hours something waits to be written: so many files will it be.
    #[must_use]
    pub fn hours_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// True if all of it should be written now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.total.rows >= self.limits.rows || self.total.bytes >= self.limits.bytes
    }

    /// Tenants of whom too much waits.
    fn heavy(&self) -> impl Iterator<Item = &TenantId> {
        let WriterLimits { tenant_rows, tenant_bytes, .. } = self.limits;
        let is_heavy = move |weight: &Weight| weight.rows >= tenant_rows || weight.bytes >= tenant_bytes;
        self.tenants.iter().filter(move |(_, weight)| is_heavy(weight)).map(|(tenant, _)| tenant)
    }

    /// True if too much waits of some tenant, and should be written now.
    #[must_use]
    pub fn is_heavy(&self) -> bool {
        self.heavy().next().is_some()
    }

    /// Writes what waits of tenants of whom too much does.
    pub async fn relieve(&mut self) -> Result<(), LakeError> {
        let heavy: HashSet<TenantId> = self.heavy().cloned().collect();
        if heavy.is_empty() {
            return Ok(());
        }
        self.write(|hour| heavy.contains(hour.tenant())).await
    }

    /// Writes all that waits. Behind an error the rest still waits, and the next call tries again.
    pub async fn flush(&mut self) -> Result<(), LakeError> {
        self.write(|_| true).await
    }

    async fn write(&mut self, wanted: impl Fn(&Hour) -> bool) -> Result<(), LakeError> {
        let hours: Vec<Hour> = self.waiting.keys().filter(|hour| wanted(hour)).cloned().collect();
        for hour in hours {
            self.write_hour(&hour).await?;
        }
        Ok(())
    }

    async fn write_hour(&mut self, hour: &Hour) -> Result<(), LakeError> {
        let waiting = self.waiting.get(hour).map(|(rows, _)| rows.clone()).unwrap_or_default();
        let mut manifest = self.manifest(hour).await?;
        let known = if manifest.stream == self.stream { manifest.through } else { 0 };
        let mut fresh = Vec::with_capacity(waiting.len());
        let mut through = known;
        for Waiting { seq, event } in waiting {
            through = through.max(seq);
            if seq > known && is_new_receipt(&mut manifest, &event) {
                fresh.push(event);
            }
        }
        if !fresh.is_empty() {
            fresh.sort_by(|a, b| a.order_key().cmp(&b.order_key()));
            let (first_ts, last_ts) = match (fresh.first(), fresh.last()) {
                (Some(first), Some(last)) => (first.ts.as_micros(), last.ts.as_micros()),
                _ => (i64::MIN, i64::MAX),
            };
            let rows = fresh.len() as u64;
            let file = encode(fresh.chunks(AT_ONCE).map(|some| EventBatch::new(some.to_vec()).to_record_batch()))?;
            let name = manifest.next_name();
            let entry = self.put(hour, name, file, 0, (first_ts, last_ts)).await?;
            manifest.files.push(entry);
            manifest.stream.clone_from(&self.stream);
            manifest.through = through;
            self.commit(hour, manifest).await?;
            self.rows_written += rows;
        } else if !manifest.is_tidy(hour) {
            // Written before a crash, which forgot what was left to tidy.
            self.unfinished.insert(hour.clone());
        }
        self.forget(hour);
        Ok(())
    }

    /// Takes an hour that was written off what waits.
    fn forget(&mut self, hour: &Hour) {
        let Some((_, weight)) = self.waiting.remove(hour) else { return };
        self.total.rows -= weight.rows;
        self.total.bytes -= weight.bytes;
        if let Some(of_tenant) = self.tenants.get_mut(hour.tenant()) {
            of_tenant.rows -= weight.rows;
            of_tenant.bytes -= weight.bytes;
            if of_tenant.rows == 0 {
                self.tenants.remove(hour.tenant());
            }
        }
    }

    /// True if rows of the hour wait to be written.
    pub(crate) fn waits(&self, hour: &Hour) -> bool {
        self.waiting.contains_key(hour)
    }

    /// The stream that it writes.
    pub(crate) fn stream(&self) -> &str {
        &self.stream
    }

    /// Takes an hour that has no files away: what lies there that no manifest names, and last the manifest.
    pub(crate) async fn remove(&mut self, hour: &Hour) -> Result<(), LakeError> {
        self.manifests.remove(hour);
        self.unfinished.remove(hour);
        let manifest = Manifest::place(hour);
        let listed = self.store.list_with_delimiter(Some(&Path::from(hour.folder()))).await?.objects;
        let unnamed = listed.into_iter().map(|object| object.location).filter(|place| *place != manifest);
        for place in unnamed.chain([manifest.clone()]) {
            match self.store.delete(&place).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// An hour's manifest as it is in the store; one that is read for the first time also retires what a crash left in the hour's folder.
    pub(crate) async fn manifest(&mut self, hour: &Hour) -> Result<Manifest, LakeError> {
        if let Some(manifest) = self.manifests.get(hour) {
            return Ok(manifest.clone());
        }
        let mut manifest = Manifest::read(&self.store, hour).await?;
        let there = self.store.list_with_delimiter(Some(&Path::from(hour.folder()))).await?.objects;
        let names = || there.iter().filter_map(|object| object.location.filename());
        if manifest.is_lost(names()) {
            // Another writer's may have come in between.
            manifest = Manifest::read(&self.store, hour).await?;
            if manifest.is_lost(names()) {
                return Err(LakeError::damaged(Manifest::place(hour), "it is gone, and files that it named are there"));
            }
        }
        manifest.retire_unnamed(names());
        Ok(manifest)
    }

    /// What is known of an hour may not be so any more: the next time the store is asked.
    pub(crate) fn ask_again(&mut self, hour: &Hour) {
        self.manifests.remove(hour);
    }

    /// Writes a file of rows in order. It is not part of the hour until a manifest names it.
    pub(crate) async fn put(
        &mut self,
        hour: &Hour,
        name: String,
        Encoded { bytes, rows, weight }: Encoded,
        level: u32,
        (first_ts, last_ts): (i64, i64),
    ) -> Result<FileEntry, LakeError> {
        self.store.put(&hour.object(&name), PutPayload::from(bytes)).await?;
        self.files_written += 1;
        Ok(FileEntry { name, level, rows, weight, first_ts, last_ts })
    }

    /// Makes a manifest the hour's. Behind an error the store is asked which one it is.
    pub(crate) async fn commit(&mut self, hour: &Hour, mut manifest: Manifest) -> Result<(), LakeError> {
        self.manifests.remove(hour);
        manifest.write(&self.store, hour).await?;
        if manifest.is_tidy(hour) {
            self.unfinished.remove(hour);
        } else {
            self.unfinished.insert(hour.clone());
        }
        if self.manifests.len() >= MOST_MANIFESTS {
            self.manifests.clear();
        }
        self.manifests.insert(hour.clone(), manifest);
        Ok(())
    }

    /// Rows and files written since the start.
    #[must_use]
    pub const fn written(&self) -> (u64, u64) {
        (self.rows_written, self.files_written)
    }
}

/// False for a receipt that the hour has. What is not proved is whatever its sender says, and is kept as often as it comes.
fn is_new_receipt(manifest: &mut Manifest, event: &SecurityEvent) -> bool {
    match (&event.lane, event.seq) {
        (Some(lane), Some(seq)) if event.verified => manifest.takes_receipt(lane, seq),
        _ => true,
    }
}
