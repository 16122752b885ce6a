//! The JetStream driver: the same promises over a NATS server or cluster. Streams and buckets are made by `aegis streams apply`, never by
//! a publisher: a process has no right to it. What the server acknowledged is on its disk as often as it syncs (two minutes by default);
//! publishers keep theirs until the lake has confirmed it.

mod connect;
pub mod definitions;
mod kv;
mod ordered;
mod publish;
mod retention;
mod subscription;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use async_trait::async_trait;
use bytes::Bytes;

pub use connect::{JetStreamOptions, Login};

use self::retention::Retention;
use crate::{Bucket, Bus, BusError, KvWatch, Message, PubAck, Stream, StreamState, Subscription, subject};

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
}

impl JetStreamBus {
    /// Connects, and answers at once: while no server can be reached, calls fail as `Unavailable` and the client goes on trying.
    pub async fn connect(options: &JetStreamOptions) -> Result<Arc<Self>, BusError> {
        let client = connect::connect(options).await?;
        let context = jetstream::ContextBuilder::new()
            .timeout(options.timeout)
            // Our own window bounds what is in flight; waiting inside the client would hide who waits.
            .backpressure_on_inflight(false)
            .max_ack_inflight(publish::WINDOW * publish::MOST_PUBLISHERS)
            .build(client);
        Ok(Arc::new(Self { context, timeout: options.timeout, retention: Retention::default() }))
    }

    /// The connection, for what is not on a stream.
    #[must_use]
    pub fn client(&self) -> async_nats::Client {
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
            unavailable(format!("the server has no stream {name}; make it with `aegis streams apply`"))
        }
        _ => unavailable(error),
    }
}

#[async_trait]
impl Bus for JetStreamBus {
    async fn publish(&self, stream: Stream, messages: Vec<Message>) -> Vec<Result<PubAck, BusError>> {
        publish::publish(&self.context, self.timeout, stream, messages).await
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
        let created = self.info(stream.as_str()).await?.created;
        Ok(format!("{}.{}", stream.as_str(), created.unix_timestamp_nanos()))
    }

    async fn consumer_position(&self, stream: Stream, name: &str) -> Result<u64, BusError> {
        kv::position(&self.context, stream, name).await
    }

    async fn set_consumer_position(&self, stream: Stream, name: &str, seq: u64) -> Result<(), BusError> {
        let key = kv::position_key(stream, name)?;
        let state = self.stream_state(stream).await?;
        if seq > state.last_seq {
            return Err(BusError::invalid(
                "consumer position",
                format!("{seq} is past the last sequence of {stream}, {}", state.last_seq),
            ));
        }
        kv::put(&self.context, Bucket::Leases, &key, Bytes::from(seq.to_string()), None).await?;
        self.retention.make_room(&self.context, stream).await;
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
}
