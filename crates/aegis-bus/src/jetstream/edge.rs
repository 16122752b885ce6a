//! The bus as an edge has it: it publishes what its tenants did, and hears what control says. It has no right to the server's streams: a user
//! that may make consumers or publish with any reply could have the server write where it may not itself. So the feed's entries are asked of
//! control, and changes are heard as they are published.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Client, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};

use super::{JetStreamBus, JetStreamOptions, kv, unavailable};
use crate::feed::{FeedPage, FeedRequest};
use crate::{Bucket, Bus, BusError, Hearing, KvWatch, MAX_PAYLOAD, Message, PubAck, Stream, StreamState, Subscription, subject};

/// How often a watch looks whether the connection is still the one that it subscribed on.
const LOOK: Duration = Duration::from_millis(250);
/// Before a feed that could not be read is asked for again.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// The bus of one edge. Cheap to share.
#[derive(Debug)]
pub struct EdgeBus {
    bus: Arc<JetStreamBus>,
    /// Where control answers this edge.
    feed: String,
    timeout: Duration,
}

impl EdgeBus {
    /// Connects as the edge `edge_id`, and answers at once, like `JetStreamBus::connect`.
    pub async fn connect(options: &JetStreamOptions, edge_id: &str) -> Result<Arc<Self>, BusError> {
        let bus = JetStreamBus::connect(options).await?;
        Ok(Arc::new(Self { bus, feed: subject::feed(edge_id), timeout: options.timeout }))
    }

    fn asker(&self) -> Asker {
        Asker { client: self.bus.client(), feed: self.feed.clone(), timeout: self.timeout }
    }
}

/// Asks control for what a bucket holds.
#[derive(Debug)]
struct Asker {
    client: Client,
    feed: String,
    timeout: Duration,
}

impl Asker {
    async fn all(&self, bucket: Bucket, filter: &str) -> Result<Vec<(String, Bytes, u64)>, BusError> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let request = FeedRequest { bucket: bucket.as_str().to_owned(), filter: filter.to_owned(), after };
            let request = serde_json::to_vec(&request).map_err(unavailable)?;
            let asked = self.client.request(self.feed.clone(), Bytes::from(request));
            let reply = timeout(self.timeout, asked).await.map_err(|_elapsed| unavailable("control does not answer"))?;
            let reply = reply.map_err(|error| unavailable(format!("control does not answer: {error}")))?;
            let page = FeedPage::read(&reply.payload).map_err(unavailable)?;
            if let Some(refused) = page.refused {
                return Err(unavailable(format!("control does not tell this edge of {filter}: {refused}")));
            }
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
        self.bus.publish(stream, messages).await
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
        let watch = EdgeWatch { asker, bucket, filter: filter.to_owned(), changes, current: VecDeque::new(), connects: None };
        Ok(Box::new(watch))
    }

    async fn tell(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        self.bus.tell(subject, payload).await
    }

    async fn hear(&self, filter: &str) -> Result<Box<dyn Hearing>, BusError> {
        self.bus.hear(filter).await
    }
}

/// Hears what is written to a bucket, and asks for the whole of it at the start and whenever the connection was another one in between.
#[derive(Debug)]
struct EdgeWatch {
    asker: Asker,
    bucket: Bucket,
    filter: String,
    changes: Subscriber,
    current: VecDeque<(String, Bytes, u64)>,
    /// How often the client had connected when the bucket was asked for.
    connects: Option<u64>,
}

impl EdgeWatch {
    async fn ask_where_needed(&mut self) {
        let connects = self.asker.client.statistics().connects.load(Ordering::Acquire);
        if self.connects == Some(connects) {
            return;
        }
        match self.asker.all(self.bucket, &self.filter).await {
            Ok(all) => {
                self.current = all.into();
                self.connects = Some(connects);
            }
            Err(error) => {
                tracing::debug!(%error, bucket = %self.bucket, "the control feed could not be asked for");
                sleep(TRY_AGAIN).await;
            }
        }
    }
}

#[async_trait]
impl KvWatch for EdgeWatch {
    async fn next(&mut self) -> Result<(String, Bytes, u64), BusError> {
        loop {
            // Changes first: an answer that is slow to come must not hold up a containment.
            match timeout(Duration::ZERO, self.changes.next()).await {
                Ok(Some(change)) => {
                    if let Some(change) = self.entry(change) {
                        return Ok(change);
                    }
                    continue;
                }
                Ok(None) => return Err(BusError::Closed),
                Err(_none_now) => {}
            }
            if let Some(current) = self.current.pop_front() {
                return Ok(current);
            }
            let change = tokio::select! {
                biased;
                change = self.changes.next() => change,
                () = Self::ask_later(&self.asker, self.connects) => {
                    self.ask_where_needed().await;
                    continue;
                }
            };
            match change {
                Some(change) => {
                    if let Some(change) = self.entry(change) {
                        return Ok(change);
                    }
                }
                None => return Err(BusError::Closed),
            }
        }
    }
}

impl EdgeWatch {
    /// Returns when the bucket is to be asked for again.
    async fn ask_later(asker: &Asker, connects: Option<u64>) {
        while connects.is_some_and(|connects| connects == asker.client.statistics().connects.load(Ordering::Acquire)) {
            sleep(LOOK).await;
        }
    }

    fn entry(&self, message: async_nats::Message) -> Option<(String, Bytes, u64)> {
        let key = message.subject.strip_prefix(kv::prefix(self.bucket).as_str())?.to_owned();
        let fits = !message.payload.is_empty() && message.payload.len() <= MAX_PAYLOAD;
        fits.then_some((key, message.payload, 0))
    }
}
