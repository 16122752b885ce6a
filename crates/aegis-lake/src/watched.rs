//! A store for tests that counts what is read of it, and may ignore conditions.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

/// What was read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) bytes: u64,
    /// Objects that were asked for without a range.
    pub(crate) whole: u64,
}

/// The store: objects in memory.
#[derive(Debug)]
pub(crate) struct Watched {
    objects: InMemory,
    seen: Arc<Mutex<Seen>>,
    /// Of which puts it ignores the condition.
    ignores: fn(&PutMode) -> bool,
}

impl Watched {
    pub(crate) fn new() -> (Arc<Self>, Arc<Mutex<Seen>>) {
        let seen = Arc::new(Mutex::new(Seen::default()));
        (Arc::new(Self { objects: InMemory::new(), seen: Arc::clone(&seen), ignores: |_| false }), seen)
    }

    /// One that ignores some conditions.
    pub(crate) fn careless(ignores: fn(&PutMode) -> bool) -> Arc<Self> {
        Arc::new(Self { objects: InMemory::new(), seen: Arc::default(), ignores })
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

#[async_trait]
impl ObjectStore for Watched {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        if (self.ignores)(&opts.mode) {
            opts.mode = PutMode::Overwrite;
        }
        self.objects.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let is_whole = options.range.is_none();
        let found = self.objects.get_opts(location, options).await?;
        let mut seen = self.seen.lock();
        seen.bytes += found.range.end - found.range.start;
        seen.whole += u64::from(is_whole);
        Ok(found)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let parts = self.objects.get_ranges(location, ranges).await?;
        self.seen.lock().bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        Ok(parts)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}
