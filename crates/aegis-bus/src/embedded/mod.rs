//! The embedded driver: a durable SQLite log with sequence, dedup and KV, for deployments without a NATS server.
//! One writer task commits what all publishers queued in one transaction and answers after it; readers never wait for it.
//! Nothing is visible to a reader, and nothing acknowledged, before it is durable, here or with whoever keeps it; where that is, its place here is settled
//! with the next commit of anything else, or when it is asked for (docs/adr/0049).

mod commit;
mod file;
mod kept;
mod kv;
mod limits;
mod schema;
mod subscription;
mod tail;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aegis_model::Clock;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use sqlx::Connection;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePoolOptions};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};

pub use kept::{Held, Keeper};
pub use limits::{BucketLimits, EmbeddedLimits, StreamLimits};

use crate::check::consumer_name;
use crate::{
    Bucket, Bus, BusError, Heard, Hearing, KvWatch, MAX_PAYLOAD, Message, PubAck, Stream, StreamState, Subscription, subject,
};
use kept::Keepers;
use kv::{EmbeddedWatch, KvBucket};
use schema::Loaded;
use subscription::EmbeddedSubscription;
use tail::Tail;
use writer::{Request, Writer};

/// Requests that wait for the writer at most; more makes callers wait.
const QUEUE_REQUESTS: usize = 1024;

/// A permit of the queue stands for this many bytes.
const PERMIT_BYTES: usize = 1024;

/// Payload bytes of one request to the writer at most; a larger publish goes in pieces.
const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;

/// Connections that readers share.
const READER_CONNECTIONS: u32 = 3;

/// Notices that a listener may lag behind before it misses some.
const HEARD: usize = 1024;

/// How far a stream, or a bucket, has come.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    last: u64,
    closed: bool,
}

/// What readers see: only what is durable, here or with whoever keeps it.
#[derive(Debug)]
struct Shared {
    tails: [Arc<Mutex<Tail>>; 6],
    heads: [watch::Sender<Head>; 6],
    buckets: [Arc<Mutex<KvBucket>>; 4],
    bucket_heads: [watch::Sender<Head>; 4],
    state: Mutex<schema::WriterState>,
    told: broadcast::Sender<Heard>,
    keepers: RwLock<Keepers>,
}

impl Shared {
    fn new(limits: &EmbeddedLimits, loaded: &Loaded) -> Self {
        Self {
            tails: Stream::ALL.map(|stream| Arc::new(Mutex::new(Tail::new(stream, limits)))),
            heads: std::array::from_fn(|_| watch::Sender::new(Head::default())),
            buckets: std::array::from_fn(|_| Arc::new(Mutex::new(KvBucket::default()))),
            bucket_heads: std::array::from_fn(|_| watch::Sender::new(Head::default())),
            state: Mutex::new(loaded.state.clone()),
            told: broadcast::Sender::new(HEARD),
            keepers: RwLock::default(),
        }
    }

    /// Takes over what the file says: at the start, and after a commit whose outcome is unknown.
    fn reset(&self, loaded: Loaded) {
        for (i, state) in loaded.state.streams.iter().enumerate() {
            self.tails[i].lock().clear();
            self.heads[i].send_modify(|head| head.last = state.last_seq);
        }
        for (i, entries) in loaded.kv.into_iter().enumerate() {
            self.buckets[i].lock().replace_all(entries);
            self.bucket_heads[i].send_modify(|head| head.last = loaded.state.revisions[i]);
        }
        *self.state.lock() = loaded.state;
    }

    fn close(&self) {
        for head in self.heads.iter().chain(&self.bucket_heads) {
            head.send_modify(|head| head.closed = true);
        }
    }
}

/// The embedded bus. Cheap to share; dropping the last handle stops the writer.
#[derive(Debug)]
pub struct EmbeddedBus {
    path: PathBuf,
    limits: EmbeddedLimits,
    identities: [String; 6],
    shared: Arc<Shared>,
    readers: SqlitePool,
    queue: mpsc::Sender<Request>,
    queue_room: Arc<Semaphore>,
}

impl EmbeddedBus {
    /// Opens or creates the bus file. One process at a time: a lock file beside it says so.
    pub async fn open(path: &Path, limits: EmbeddedLimits, clock: Arc<dyn Clock>) -> Result<Arc<Self>, BusError> {
        Self::opening(path, limits, clock).await
    }

    /// A function that is no future itself, so that everything behind it is compiled in this crate, and not in every program that opens a bus.
    #[inline(never)]
    fn opening(path: &Path, limits: EmbeddedLimits, clock: Arc<dyn Clock>) -> BoxFuture<'_, Result<Arc<Self>, BusError>> {
        Box::pin(Self::open_here(path, limits, clock))
    }

    async fn open_here(path: &Path, limits: EmbeddedLimits, clock: Arc<dyn Clock>) -> Result<Arc<Self>, BusError> {
        let lock = file::take(path).await?;
        let options = schema::connect_options(path);
        let has_log = file::has_log(path);
        let (mut conn, loaded, readers) = connect(path, &options).await.map_err(file::at(path))?;
        let mut log_in_doubt = false;
        // What an earlier start left in the log may have been refused by the disk without anybody having been told.
        if has_log && let Err(error) = schema::begin_log_anew(&mut conn, path).await.map_err(file::at(path)) {
            tracing::warn!(%error, "the log of the bus file is not worked into it yet");
            log_in_doubt = file::is_disk_error(&error);
        }

        let identities = loaded.identities.clone();
        let shared = Arc::new(Shared::new(&limits, &loaded));
        shared.reset(loaded);
        let (queue, requests) = mpsc::channel(QUEUE_REQUESTS);
        let queue_room = Arc::new(Semaphore::new(limits.queue_bytes.div_ceil(PERMIT_BYTES).max(1)));
        let writer = Writer {
            conn,
            options,
            limits: limits.clone(),
            clock,
            shared: Arc::clone(&shared),
            requests,
            healthy: !log_in_doubt,
            log_in_doubt,
            tried_at: None,
            leaves_sync: false,
            unsynced: 0,
            _lock: lock,
        };
        tokio::spawn(writer.run());
        Ok(Arc::new(Self { path: path.to_owned(), limits, identities, shared, readers, queue, queue_room }))
    }

    /// Commits what is queued, then stops: later calls answer `Closed`. The file may be opened again at once.
    pub async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.queue.send(Request::Close { reply }).await.is_ok() {
            // A writer that is gone already has nothing left to do.
            let _ = done.await;
        }
        self.readers.close().await;
    }

    /// Lets `keeper` keep the payloads of messages that name it: the file then holds their places only. To be called before anything is
    /// read or published; a message that names an unknown keeper is stored whole. What was published of it and is not there any more as it was
    /// is lost from then on. Answers the last position that the file knows of this keeper, from which on whoever publishes has to begin again: what came behind
    /// it was lost with the power. None of a keeper that it knows nothing of: a new one, or a file that was made anew.
    pub async fn keep_with(&self, name: &str, keeper: Arc<dyn Keeper>) -> Result<Option<i64>, BusError> {
        let (named, admitted) = (name.to_owned(), Arc::clone(&keeper));
        let number = schema::signed(self.ask(|reply| Request::Admit { name: named, keeper: admitted, reply }).await??);
        self.shared.keepers.write().add(name, number, keeper);
        let last = self.shared.state.lock().sources.get(&number).map(|source| source.last_position);
        Ok(last.filter(|last| *last > 0))
    }

    /// The bus file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bounds it was opened with.
    #[must_use]
    pub const fn limits(&self) -> &EmbeddedLimits {
        &self.limits
    }

    /// Registered consumers of a stream with their positions, sorted by name.
    #[must_use]
    pub fn consumers(&self, stream: Stream) -> Vec<(String, u64)> {
        let state = self.shared.state.lock();
        let mut consumers: Vec<_> = state
            .consumers
            .iter()
            .filter(|((s, _), _)| *s == stream)
            .map(|((_, name), position)| (name.clone(), *position))
            .collect();
        consumers.sort();
        consumers
    }

    /// Hands a request to the writer and waits for its answer.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, BusError> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(request(reply)).await.map_err(|_| BusError::Closed)?;
        answer.await.map_err(|_| BusError::Closed)
    }

    async fn publish_piece(&self, stream: Stream, messages: Vec<Message>) -> Vec<Result<PubAck, BusError>> {
        let count = messages.len();
        let bytes: usize = messages.iter().map(|m| m.subject.len() + m.payload.len()).sum();
        let all_permits = self.limits.queue_bytes.div_ceil(PERMIT_BYTES).max(1);
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES).clamp(1, all_permits)).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.queue_room).acquire_many_owned(permits).await else {
            return vec![Err(BusError::Closed); count];
        };
        match self.ask(|reply| Request::Publish { stream, messages, room, reply }).await {
            Ok(results) => results,
            Err(error) => vec![Err(error); count],
        }
    }
}

#[async_trait]
impl Bus for EmbeddedBus {
    async fn publish(&self, stream: Stream, messages: Vec<Message>) -> Vec<Result<PubAck, BusError>> {
        let count = messages.len();
        let mut results = Vec::with_capacity(count);
        for piece in pieces(messages, self.limits.commit_messages) {
            results.extend(self.publish_piece(stream, piece).await);
            if let Some(Err(refusal)) = results.last()
                && refusal.is_retryable()
            {
                // Order is kept: nothing after the first refusal is taken.
                let refusal = refusal.clone();
                results.resize(count, Err(refusal));
                break;
            }
        }
        results
    }

    async fn subscribe(&self, stream: Stream, filter: &str, start_seq: u64) -> Result<Box<dyn Subscription>, BusError> {
        subject::check_filter(filter)?;
        let i = stream.index();
        Ok(Box::new(EmbeddedSubscription {
            stream,
            filter: filter.to_owned(),
            subject_range: subscription::subject_range(filter),
            next_seq: start_seq.max(1),
            cursor: self.shared.tails[i].lock().join(start_seq.max(1)),
            tail: Arc::clone(&self.shared.tails[i]),
            head: self.shared.heads[i].subscribe(),
            shared: Arc::clone(&self.shared),
            readers: self.readers.clone(),
        }))
    }

    async fn last_seq(&self, stream: Stream) -> Result<u64, BusError> {
        Ok(self.shared.heads[stream.index()].borrow().last)
    }

    async fn stream_state(&self, stream: Stream) -> Result<StreamState, BusError> {
        Ok(self.shared.state.lock().streams[stream.index()])
    }

    async fn stream_identity(&self, stream: Stream) -> Result<String, BusError> {
        Ok(self.identities[stream.index()].clone())
    }

    async fn settle(&self) -> Result<(), BusError> {
        self.ask(|reply| Request::Settle { reply }).await?
    }

    async fn consumer_position(&self, stream: Stream, name: &str) -> Result<u64, BusError> {
        Ok(self.shared.state.lock().consumers.get(&(stream, name.to_owned())).copied().unwrap_or(0))
    }

    async fn set_consumer_position(&self, stream: Stream, name: &str, seq: u64) -> Result<(), BusError> {
        let name = consumer_name(name)?;
        self.ask(|reply| Request::SetPosition { stream, name, position: Some(seq), reply }).await?
    }

    async fn forget_consumer(&self, stream: Stream, name: &str) -> Result<(), BusError> {
        let name = consumer_name(name)?;
        self.ask(|reply| Request::SetPosition { stream, name, position: None, reply }).await?
    }

    async fn kv_put(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, BusError> {
        subject::check_key(key)?;
        self.ask(|reply| Request::KvPut { bucket, key: key.to_owned(), value, expected: None, reply }).await?
    }

    async fn kv_update(&self, bucket: Bucket, key: &str, value: Bytes, expected: u64) -> Result<u64, BusError> {
        subject::check_key(key)?;
        self.ask(|reply| Request::KvPut { bucket, key: key.to_owned(), value, expected: Some(expected), reply }).await?
    }

    async fn kv_get(&self, bucket: Bucket, key: &str) -> Result<Option<(Bytes, u64)>, BusError> {
        Ok(self.shared.buckets[bucket.index()].lock().get(key).map(|e| (e.value.clone(), e.revision)))
    }

    async fn kv_all(&self, bucket: Bucket, filter: &str) -> Result<Vec<(String, Bytes, u64)>, BusError> {
        subject::check_filter(filter)?;
        let bucket = self.shared.buckets[bucket.index()].lock();
        Ok(bucket
            .iter()
            .filter(|(key, _)| subject::matches(filter, key))
            .map(|(key, e)| (key.clone(), e.value.clone(), e.revision))
            .collect())
    }

    async fn kv_watch(&self, bucket: Bucket, filter: &str) -> Result<Box<dyn KvWatch>, BusError> {
        subject::check_filter(filter)?;
        let i = bucket.index();
        Ok(Box::new(EmbeddedWatch {
            bucket: Arc::clone(&self.shared.buckets[i]),
            head: self.shared.bucket_heads[i].subscribe(),
            filter: filter.to_owned(),
            seen: 0,
        }))
    }

    async fn tell(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        subject::check_told(subject)?;
        if payload.len() > MAX_PAYLOAD {
            return Err(BusError::TooLarge { bytes: payload.len(), max: MAX_PAYLOAD });
        }
        let heard = Heard { subject: subject.to_owned(), payload, reply_to: None };
        let _nobody_may_listen = self.shared.told.send(heard);
        Ok(())
    }

    async fn hear(&self, filter: &str) -> Result<Box<dyn Hearing>, BusError> {
        subject::check_filter(filter)?;
        Ok(Box::new(EmbeddedHearing { told: self.shared.told.subscribe(), filter: filter.to_owned() }))
    }
}

/// Hears what is told in this process.
#[derive(Debug)]
struct EmbeddedHearing {
    told: broadcast::Receiver<Heard>,
    filter: String,
}

#[async_trait]
impl Hearing for EmbeddedHearing {
    async fn next(&mut self) -> Result<Heard, BusError> {
        loop {
            match self.told.recv().await {
                Ok(heard) if subject::matches(&self.filter, &heard.subject) => return Ok(heard),
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Err(BusError::Closed),
            }
        }
    }
}

/// Opens the writer's connection and the readers', and reads what the file holds.
async fn connect(path: &Path, options: &SqliteConnectOptions) -> Result<(SqliteConnection, Loaded, SqlitePool), BusError> {
    let mut conn = SqliteConnection::connect_with(options).await?;
    schema::prepare(&mut conn, path).await?;
    let loaded = schema::load(&mut conn).await?;
    let readers = SqlitePoolOptions::new()
        .max_connections(READER_CONNECTIONS)
        .connect_with(options.clone().read_only(true).create_if_missing(false))
        .await?;
    Ok((conn, loaded, readers))
}

/// Cuts a publish into requests of bounded size, in order.
fn pieces(messages: Vec<Message>, max_messages: usize) -> Vec<Vec<Message>> {
    let mut pieces = Vec::new();
    let mut piece = Vec::new();
    let mut bytes = 0;
    for message in messages {
        let size = message.subject.len() + message.payload.len();
        if !piece.is_empty() && (piece.len() >= max_messages || bytes + size > MAX_REQUEST_BYTES) {
            pieces.push(std::mem::take(&mut piece));
            bytes = 0;
        }
        bytes += size;
        piece.push(message);
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}
