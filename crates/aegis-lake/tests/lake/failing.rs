//! A store that fails at the step it is told to, before it does it or behind, and at every step from then on: a process that dies.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

/// The step that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Changes of the store are counted from 1.
    pub(crate) step: usize,
    /// Whether it is done all the same.
    pub(crate) is_done: bool,
}

#[derive(Debug, Default)]
struct State {
    steps: usize,
    fault: Option<Fault>,
    is_down: bool,
}

impl State {
    fn before(&mut self) -> Result<()> {
        self.up()?;
        self.steps += 1;
        self.fail_if(false)
    }

    fn behind(&mut self) -> Result<()> {
        self.fail_if(true)
    }

    fn fail_if(&mut self, is_done: bool) -> Result<()> {
        self.is_down = self.fault == Some(Fault { step: self.steps, is_done });
        self.up()
    }

    fn up(&self) -> Result<()> {
        if self.is_down { Err(Error::Generic { store: "failing", source: "down".into() }) } else { Ok(()) }
    }
}

/// The store.
#[derive(Debug)]
pub(crate) struct Failing {
    inner: Arc<dyn ObjectStore>,
    state: Arc<Mutex<State>>,
}

impl Failing {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, fault: Fault) -> Arc<Self> {
        let state = State { fault: Some(fault), ..State::default() };
        Arc::new(Self { inner, state: Arc::new(Mutex::new(state)) })
    }

    pub(crate) fn is_down(&self) -> bool {
        self.state.lock().is_down
    }
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failing")
    }
}

#[async_trait]
impl ObjectStore for Failing {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.state.lock().before()?;
        let put = self.inner.put_opts(location, payload, opts).await?;
        self.state.lock().behind()?;
        Ok(put)
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        panic!("the lake writes whole objects")
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.state.lock().up()?;
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.state.lock().up()?;
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, state) = (Arc::clone(&self.inner), Arc::clone(&self.state));
        let deleted = locations.then(move |location| {
            let (inner, state) = (Arc::clone(&inner), Arc::clone(&state));
            async move {
                let location = location?;
                state.lock().before()?;
                inner.delete(&location).await?;
                state.lock().behind()?;
                Ok(location)
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.state.lock().up()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        panic!("the lake copies nothing")
    }
}
