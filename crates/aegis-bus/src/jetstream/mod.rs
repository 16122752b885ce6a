//! The JetStream driver: the same promises over a NATS server or cluster. Streams and buckets are made by `aegis streams apply`, never by
//! a publisher: a process has no right to it. What the server acknowledged is on its disk as often as it syncs (two minutes by default);
//! publishers keep theirs until the lake has confirmed it.

mod behind;
mod connect;
pub mod definitions;
mod edge;
mod elsewhere;
mod finder;
mod kv;
mod ordered;
mod place;
mod publish;
mod retention;
mod servers;
mod subscription;
mod ttl;
pub mod users;

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream::{self, Context};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::Instant;

pub use connect::{JetStreamOptions, Login};
pub use edge::EdgeBus;
pub use servers::{Feature, Servers, Version};

use self::behind::Kept;
use self::elsewhere::Answers;
use self::finder::Finder;
use self::retention::Retention;
use self::ttl::Ttls;
use crate::{
    Acks, Bucket, Bus, BusError, Heard, Hearing, KvWatch, MAX_PAYLOAD, Message, Place, PubAck, Stream, StreamState, Subscription,
    subject,
};

/// Why a server's answer makes a request try again later.
fn unavailable(error: impl std::fmt::Display) -> BusError {
    BusError::Unavailable { reason: error.to_string() }
}

/// A bus on a NATS server. Cheap to share.
#[derive(Debug)]
pub struct JetStreamBus {
    context: Context,
    /// How long an acknowledgement is waited for.
    timeout: Duration,
    retention: Retention,
    /// Whether it makes room whenever a position moves.
    makes_room: bool,
    finder: Arc<Finder>,
    ttls: Arc<Ttls>,
    answers: Arc<Answers>,
    /// Of a connection that works on a thread of its own.
    _thread: Option<Kept>,
}

impl JetStreamBus {
    /// Connects, and answers at once: while no server can be reached, calls fail as `Unavailable` and the client goes on trying.
    pub async fn connect(options: &JetStreamOptions) -> Result<Arc<Self>, BusError> {
        let (client, answers) = connect::connect(options).await?;
        let finder = Arc::new(Finder::spawn(client.clone(), options.servers.clone()));
        Ok(Arc::new(Self::over(client, answers, options, finder, Arc::default())))
    }

    /// Connects as another user of the same servers, and answers at once: what the servers are is found by one connection for all.
    pub async fn connect_beside(&self, options: &JetStreamOptions) -> Result<Arc<Self>, BusError> {
        let (client, answers) = connect::connect(options).await?;
        Ok(Arc::new(Self::over(client, answers, options, Arc::clone(&self.finder), Arc::clone(&self.ttls))))
    }

    /// The same, with a connection that works on a thread of its own, behind those that answer agents.
    pub async fn connect_behind(&self, options: &JetStreamOptions) -> Result<Arc<Self>, BusError> {
        let (client, answers, thread) = behind::connect_behind(options).await?;
        let bus = Self::over(client, answers, options, Arc::clone(&self.finder), Arc::clone(&self.ttls));
        Ok(Arc::new(Self { _thread: Some(thread), ..bus }))
    }

    fn over(client: Client, answers: Arc<Answers>, options: &JetStreamOptions, finder: Arc<Finder>, ttls: Arc<Ttls>) -> Self {
        let context = jetstream::ContextBuilder::new()
            .timeout(options.timeout)
            // Our own window bounds what is in flight; waiting inside the client would hide who waits.
            .backpressure_on_inflight(false)
            .max_ack_inflight(publish::WINDOW * publish::MOST_PUBLISHERS)
            .build(client);
        let retention = Retention::default();
        let (timeout, makes_room) = (options.timeout, options.makes_room);
        Self { context, timeout, retention, makes_room, finder, ttls, answers, _thread: None }
    }

    /// Purges, where a stream is nearly full, what every registered consumer has passed. For who may; seldom, however often it is called.
    pub async fn make_room(&self, stream: Stream) {
        self.retention.make_room(&self.context, stream).await;
    }

    /// What the servers are: waits until one was reached and those that it names were asked.
    pub async fn find_servers(&self) -> Result<Servers, BusError> {
        self.finder.wait(self.timeout).await
    }

    /// The connection, for what is not on a stream.
    #[must_use]
    pub fn client(&self) -> Client {
        self.context.client()
    }

    async fn info(&self, name: &str) -> Result<jetstream::stream::Info, BusError> {
        let stream = self.context.get_stream(name).await.map_err(|error| missing(name, &error))?;
        Ok(stream.cached_info().clone())
    }
}

/// A stream that cannot be asked for: mostly one that nobody has made.
fn missing(name: &str, error: &async_nats::jetstream::context::GetStreamError) -> BusError {
    use async_nats::jetstream::{ErrorCode, context::GetStreamErrorKind};
    match error.kind() {
        GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            BusError::NoStream { stream: name.to_owned() }
        }
        _ => unavailable(error),
    }
}

#[async_trait]
impl Bus for JetStreamBus {
    async fn publish(&self, stream: Stream, messages: Vec<Message>) -> Vec<Result<PubAck, BusError>> {
        self.begin_publish(stream, messages).await.await
    }

    async fn begin_publish(&self, stream: Stream, mut messages: Vec<Message>) -> Acks {
        self.ttls.fit(stream, &mut messages, self.finder.have(Feature::MessageTtl), Instant::now());
        let asked = Instant::now();
        let acks = publish::begin(&self.context, self.timeout, stream, messages).await;
        let (ttls, answers) = (Arc::clone(&self.ttls), Arc::clone(&self.answers));
        Box::pin(async move {
            let results = acks.await;
            ttls.learn(stream, &results, Instant::now());
            if let Some(outcome) = publish::outcome(&results) {
                answers.came_of(outcome, asked).await;
            }
            results
        })
    }

    async fn subscribe(&self, stream: Stream, filter: &str, start_seq: u64) -> Result<Box<dyn Subscription>, BusError> {
        subject::check_filter(filter)?;
        Ok(Box::new(subscription::JetStreamSubscription::new(self.context.clone(), stream, filter, start_seq)))
    }

    async fn last_seq(&self, stream: Stream) -> Result<u64, BusError> {
        Ok(self.info(stream.as_str()).await?.state.last_sequence)
    }

    async fn stream_state(&self, stream: Stream) -> Result<StreamState, BusError> {
        let state = self.info(stream.as_str()).await?.state;
        let first_seq = if state.messages == 0 { state.last_sequence + 1 } else { state.first_sequence };
        Ok(StreamState {
            first_seq,
            last_seq: state.last_sequence,
            messages: state.messages,
            bytes: state.bytes,
            // Nobody waits for dead letters, so whatever is gone was dropped.
            dropped_total: if stream == Stream::Dlq { first_seq - 1 } else { 0 },
        })
    }

    async fn stream_identity(&self, stream: Stream) -> Result<String, BusError> {
        Ok(place::identity(&self.info(stream.as_str()).await?))
    }

    async fn place(&self, stream: Stream, seq: u64) -> Result<Place, BusError> {
        Ok(place::find(&self.context, stream.as_str(), seq).await?.0)
    }

    async fn is_still(&self, stream: Stream, place: &Place) -> Result<bool, BusError> {
        let (now, last_seq) = place::find(&self.context, stream.as_str(), place.seq).await?;
        Ok(place.is_at(&now, last_seq))
    }

    async fn consumer_position(&self, stream: Stream, name: &str) -> Result<u64, BusError> {
        let Some(place) = kv::position(&self.context, stream, name).await? else { return Ok(0) };
        if self.is_still(stream, &place).await? {
            return Ok(place.seq);
        }
        tracing::warn!(%stream, name, position = place.seq, "the stream is not the one that was read; its consumer begins again");
        Ok(0)
    }

    async fn set_consumer_position(&self, stream: Stream, name: &str, seq: u64) -> Result<(), BusError> {
        let key = kv::position_key(stream, name)?;
        let (place, last_seq) = place::find(&self.context, stream.as_str(), seq).await?;
        if seq > last_seq {
            return Err(BusError::invalid(
                "consumer position",
                format!("{seq} is past the last sequence of {stream}, {last_seq}"),
            ));
        }
        let place = serde_json::to_vec(&place).map_err(unavailable)?;
        kv::put(&self.context, Bucket::Leases, &key, Bytes::from(place), None).await?;
        if self.makes_room {
            self.make_room(stream).await;
        }
        Ok(())
    }

    async fn forget_consumer(&self, stream: Stream, name: &str) -> Result<(), BusError> {
        let key = kv::position_key(stream, name)?;
        kv::put(&self.context, Bucket::Leases, &key, Bytes::new(), None).await.map(drop)
    }

    async fn kv_put(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, BusError> {
        kv::check(bucket, key)?;
        kv::put(&self.context, bucket, key, value, None).await
    }

    async fn kv_update(&self, bucket: Bucket, key: &str, value: Bytes, expected: u64) -> Result<u64, BusError> {
        kv::check(bucket, key)?;
        kv::put(&self.context, bucket, key, value, Some(expected)).await
    }

    async fn kv_get(&self, bucket: Bucket, key: &str) -> Result<Option<(Bytes, u64)>, BusError> {
        kv::get(&self.context, bucket, key).await
    }

    async fn kv_all(&self, bucket: Bucket, filter: &str) -> Result<Vec<(String, Bytes, u64)>, BusError> {
        subject::check_filter(filter)?;
        let mut all = kv::all(&self.context, bucket, filter).await?;
        all.retain(|(key, ..)| !kv::is_position(bucket, key));
        Ok(all)
    }

    async fn kv_watch(&self, bucket: Bucket, filter: &str) -> Result<Box<dyn KvWatch>, BusError> {
        subject::check_filter(filter)?;
        Ok(Box::new(kv::JetStreamWatch::new(self.context.clone(), bucket, filter)))
    }

    async fn tell(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        subject::check_told(subject)?;
        if payload.len() > MAX_PAYLOAD {
            return Err(BusError::TooLarge { bytes: payload.len(), max: MAX_PAYLOAD });
        }
        let sent = tokio::time::timeout(self.timeout, self.context.client().publish(subject.to_owned(), payload)).await;
        sent.map_err(|_elapsed| unavailable("the connection takes nothing"))?.map_err(unavailable)
    }

    async fn hear(&self, filter: &str) -> Result<Box<dyn Hearing>, BusError> {
        subject::check_filter(filter)?;
        let subscriber = self.context.client().subscribe(filter.to_owned()).await.map_err(unavailable)?;
        Ok(Box::new(CoreHearing(subscriber)))
    }

    fn servers(&self) -> Option<Servers> {
        self.finder.servers()
    }

    fn is_connected(&self) -> bool {
        self.context.client().connection_state() == State::Connected
    }

    fn servers_left(&self) -> u64 {
        self.answers.servers_left()
    }
}

/// Hears what is told, over the server. The client subscribes again by itself where the connection was lost.
#[derive(Debug)]
struct CoreHearing(async_nats::Subscriber);

#[async_trait]
impl Hearing for CoreHearing {
    async fn next(&mut self) -> Result<Heard, BusError> {
        let message = self.0.next().await.ok_or(BusError::Closed)?;
        let reply_to = message.reply.map(|reply| reply.to_string());
        Ok(Heard { subject: message.subject.to_string(), payload: message.payload, reply_to })
    }
}
