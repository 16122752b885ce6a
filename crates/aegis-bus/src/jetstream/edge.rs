//! The bus as an edge has it: it publishes what its tenants did, and hears what control says. It has no right to the server's streams: a user
//! that may make consumers or publish with any reply could have the server write where it may not itself. So the feed's entries are asked of
//! control, and changes are heard as they are published.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Client, RequestErrorKind, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::elsewhere::Answers;
use super::{JetStreamBus, JetStreamOptions, kv, unavailable};
use crate::feed::{ConfirmRequest, FeedPage, FeedRequest, LaneRequest};
use crate::{
    Acks, Bucket, Bus, BusError, Hearing, KvWatch, MAX_PAYLOAD, Message, PubAck, Servers, Stream, StreamState, Subscription,
    subject,
};

/// How often a watch looks whether the connection is still the one that it subscribed on.
const LOOK: Duration = Duration::from_millis(250);
/// Before a feed that could not be read is asked for again.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// The bus of one edge. Cheap to share.
#[derive(Debug)]
pub struct EdgeBus {
    bus: Arc<JetStreamBus>,
    /// What is shipped has a connection of its own, on a thread behind those that answer agents and enforce.
    ships: Arc<JetStreamBus>,
    /// Where control answers this edge.
    feed: String,
    timeout: Duration,
    /// Control answers an edge so many requests at a time; the others wait here.
    turns: Arc<Semaphore>,
}

/// Requests of an edge that are under way at a time.
const ASKING: usize = 3;

impl EdgeBus {
    /// Connects as the edge `edge_id`, and answers at once, like `JetStreamBus::connect`.
    pub async fn connect(options: &JetStreamOptions, edge_id: &str) -> Result<Arc<Self>, BusError> {
        let bus = JetStreamBus::connect(options).await?;
        let of_ships = JetStreamOptions { name: format!("{}-ship", options.name), ..options.clone() };
        let ships = bus.connect_behind(&of_ships).await?;
        Ok(Arc::new(Self {
            bus,
            ships,
            feed: subject::feed(edge_id),
            timeout: options.timeout,
            turns: Arc::new(Semaphore::new(ASKING)),
        }))
    }

    /// How far control's history has these lanes, at most `MOST_LANES`; an error where it cannot say.
    pub async fn lane_heads(&self, lanes: &[String]) -> Result<Vec<(String, i64)>, BusError> {
        let page = self.asker().ask(&LaneRequest { lanes: lanes.to_vec() }, "its lanes").await?;
        let head = |value: &Bytes| std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        Ok(page.entries.into_iter().filter_map(|(lane, value, _)| Some((lane, head(&value)?))).collect())
    }

    /// Has control confirm how far history and lake have these lanes, at most `MOST_LANES`; an error where it cannot say. What it confirms is told on
    /// `lake.<edge>`, with this nonce: whoever waits for it listens before.
    pub async fn confirm(&self, lanes: &[String], nonce: &str) -> Result<(), BusError> {
        let request = ConfirmRequest { confirm: lanes.to_vec(), nonce: nonce.to_owned() };
        self.asker().ask(&request, "what is confirmed").await.map(drop)
    }

    /// Waits until what was told has gone out: a process that ends takes with it what has not.
    pub async fn flush(&self) -> Result<(), BusError> {
        let flushed = timeout(self.timeout, self.bus.client().flush()).await;
        flushed.map_err(|_elapsed| unavailable("the connection takes nothing"))?.map_err(unavailable)
    }

    fn asker(&self) -> Asker {
        Asker {
            client: self.bus.client(),
            answers: Arc::clone(&self.bus.answers),
            feed: self.feed.clone(),
            timeout: self.timeout,
            turns: Arc::clone(&self.turns),
        }
    }
}

/// Asks control for what a bucket holds.
#[derive(Clone, Debug)]
struct Asker {
    client: Client,
    answers: Arc<Answers>,
    feed: String,
    timeout: Duration,
    turns: Arc<Semaphore>,
}

impl Asker {
    /// One request, about `what`.
    async fn ask(&self, request: &impl Serialize, what: &str) -> Result<FeedPage, BusError> {
        let request = serde_json::to_vec(request).map_err(unavailable)?;
        let _turn = self.turns.acquire().await.map_err(unavailable)?;
        let reply = self.answer(Bytes::from(request)).await?;
        let page = FeedPage::read(&reply.payload).map_err(unavailable)?;
        match page.refused {
            Some(refused) => Err(unavailable(format!("control does not tell this edge of {what}: {refused}"))),
            None => Ok(page),
        }
    }

    /// What comes of one request. Where none is answered, another server is asked.
    async fn answer(&self, request: Bytes) -> Result<async_nats::Message, BusError> {
        let asked = Instant::now();
        let answer = timeout(self.timeout, self.client.request(self.feed.clone(), request));
        let answer = tokio::select! {
            answer = answer => answer,
            () = self.answers.until_left() => return Err(unavailable("no answer came over this server; trying another")),
        };
        match answer {
            Ok(Ok(reply)) => {
                self.answers.came();
                Ok(reply)
            }
            Ok(Err(error)) if error.kind() != RequestErrorKind::TimedOut => {
                // Nobody listens, which the server says.
                self.answers.came();
                Err(unavailable(format!("control does not answer: {error}")))
            }
            Ok(Err(_)) | Err(_) => {
                self.answers.missed(asked).await;
                Err(unavailable("control does not answer"))
            }
        }
    }

    async fn all(&self, bucket: Bucket, filter: &str) -> Result<Vec<(String, Bytes, u64)>, BusError> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let request = FeedRequest { bucket: bucket.as_str().to_owned(), filter: filter.to_owned(), after };
            let page = self.ask(&request, filter).await?;
            let last = page.entries.last().map(|(key, ..)| key.clone());
            all.extend(page.entries);
            match last {
                Some(last) if page.more => after = last,
                _ => return Ok(all),
            }
        }
    }
}

/// What an edge has no right to, and no use for.
fn not_an_edge_s<T>() -> Result<T, BusError> {
    Err(BusError::invalid("request", "an edge publishes and hears; it reads no stream"))
}

#[async_trait]
impl Bus for EdgeBus {
    async fn publish(&self, stream: Stream, messages: Vec<Message>) -> Vec<Result<PubAck, BusError>> {
        self.ships.publish(stream, messages).await
    }

    async fn begin_publish(&self, stream: Stream, messages: Vec<Message>) -> Acks {
        self.ships.begin_publish(stream, messages).await
    }

    async fn subscribe(&self, _stream: Stream, _filter: &str, _start_seq: u64) -> Result<Box<dyn Subscription>, BusError> {
        not_an_edge_s()
    }

    async fn last_seq(&self, _stream: Stream) -> Result<u64, BusError> {
        not_an_edge_s()
    }

    async fn stream_state(&self, _stream: Stream) -> Result<StreamState, BusError> {
        not_an_edge_s()
    }

    async fn stream_identity(&self, _stream: Stream) -> Result<String, BusError> {
        not_an_edge_s()
    }

    async fn consumer_position(&self, _stream: Stream, _name: &str) -> Result<u64, BusError> {
        not_an_edge_s()
    }

    async fn set_consumer_position(&self, _stream: Stream, _name: &str, _seq: u64) -> Result<(), BusError> {
        not_an_edge_s()
    }

    async fn forget_consumer(&self, _stream: Stream, _name: &str) -> Result<(), BusError> {
        not_an_edge_s()
    }

    async fn kv_put(&self, _bucket: Bucket, _key: &str, _value: Bytes) -> Result<u64, BusError> {
        not_an_edge_s()
    }

    async fn kv_update(&self, _bucket: Bucket, _key: &str, _value: Bytes, _expected: u64) -> Result<u64, BusError> {
        not_an_edge_s()
    }

    async fn kv_get(&self, _bucket: Bucket, _key: &str) -> Result<Option<(Bytes, u64)>, BusError> {
        not_an_edge_s()
    }

    async fn kv_all(&self, bucket: Bucket, filter: &str) -> Result<Vec<(String, Bytes, u64)>, BusError> {
        subject::check_filter(filter)?;
        self.asker().all(bucket, filter).await
    }

    /// Changes come as they are published, with revision 0: nobody orders them but the entries themselves.
    async fn kv_watch(&self, bucket: Bucket, filter: &str) -> Result<Box<dyn KvWatch>, BusError> {
        subject::check_filter(filter)?;
        let asker = self.asker();
        let changes = asker.client.subscribe(format!("{}{filter}", kv::prefix(bucket))).await.map_err(unavailable)?;
        let (filter, current) = (filter.to_owned(), VecDeque::new());
        Ok(Box::new(EdgeWatch { asker, bucket, filter, changes, current, connects: None, asking: None }))
    }

    async fn tell(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        self.bus.tell(subject, payload).await
    }

    async fn hear(&self, filter: &str) -> Result<Box<dyn Hearing>, BusError> {
        self.bus.hear(filter).await
    }

    fn servers(&self) -> Option<Servers> {
        self.bus.servers()
    }

    fn is_connected(&self) -> bool {
        self.bus.is_connected() && self.ships.is_connected()
    }

    fn servers_left(&self) -> u64 {
        self.bus.servers_left().saturating_add(self.ships.servers_left())
    }

    /// What is shipped stays where it is: whether it is taken there is seen by itself.
    async fn leave_server(&self) {
        self.bus.answers.leave().await;
    }
}

/// Hears what is written to a bucket, and asks for the whole of it at the start and whenever the connection was another one in between.
struct EdgeWatch {
    asker: Asker,
    bucket: Bucket,
    filter: String,
    changes: Subscriber,
    current: VecDeque<(String, Bytes, u64)>,
    /// How often the client had connected when the bucket was asked for.
    connects: Option<u64>,
    /// The answer that is under way.
    asking: Option<BoxFuture<'static, Answer>>,
}

/// What a bucket held, and how often the client had connected when it was asked for.
type Answer = (Vec<(String, Bytes, u64)>, u64);

impl std::fmt::Debug for EdgeWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeWatch").field("bucket", &self.bucket).field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl EdgeWatch {
    fn connects_now(&self) -> u64 {
        self.asker.client.statistics().connects.load(Ordering::Acquire)
    }

    /// Begins to ask, where the connection is not the one that was asked on.
    fn ask_where_needed(&mut self) {
        let connects = self.connects_now();
        if self.asking.is_some() || self.connects == Some(connects) {
            return;
        }
        let (asker, bucket, filter) = (self.asker.clone(), self.bucket, self.filter.clone());
        self.asking = Some(Box::pin(async move {
            loop {
                match asker.all(bucket, &filter).await {
                    Ok(all) => return (all, connects),
                    Err(error) => {
                        tracing::debug!(%error, %bucket, "the control feed could not be asked for");
                        sleep(TRY_AGAIN).await;
                    }
                }
            }
        }));
    }

    fn entry(&self, message: async_nats::Message) -> Option<(String, Bytes, u64)> {
        let key = message.subject.strip_prefix(kv::prefix(self.bucket).as_str())?.to_owned();
        let fits = !message.payload.is_empty() && message.payload.len() <= MAX_PAYLOAD;
        fits.then_some((key, message.payload, 0))
    }
}

/// The answer, if one is under way.
async fn answered(asking: &mut Option<BoxFuture<'static, Answer>>) -> Answer {
    match asking {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

#[async_trait]
impl KvWatch for EdgeWatch {
    async fn next(&mut self) -> Result<(String, Bytes, u64), BusError> {
        loop {
            self.ask_where_needed();
            let has_current = !self.current.is_empty();
            // Changes first: neither an answer that is slow to come nor one that is long must hold up a containment.
            tokio::select! {
                biased;
                change = self.changes.next() => {
                    let change = change.ok_or(BusError::Closed)?;
                    if let Some(change) = self.entry(change) {
                        return Ok(change);
                    }
                }
                (all, connects) = answered(&mut self.asking) => {
                    self.asking = None;
                    self.current = all.into();
                    self.connects = Some(connects);
                }
                () = std::future::ready(()), if has_current => {
                    if let Some(current) = self.current.pop_front() {
                        return Ok(current);
                    }
                }
                () = sleep(LOOK) => {}
            }
        }
    }
}
