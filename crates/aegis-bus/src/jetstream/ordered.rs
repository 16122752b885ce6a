//! An ordered reader of one of the server's streams: an ephemeral consumer that acknowledges nothing, made again behind the last message
//! whenever the server or the connection lost it. A stream that is another one by then, or has lost its end, is not read on: its sequences mean
//! nothing any more.

use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_model::Timestamp;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::stream::ConsumerErrorKind;
use async_nats::jetstream::{Context, ErrorCode};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout};

use super::{place, unavailable};
use crate::{BusError, Place};

/// Messages that one request to the server asks for.
const MAX_BATCH: i64 = 2048;

/// Bytes that one request asks for.
const MAX_BYTES: i64 = 16 * 1024 * 1024;

/// How long the server keeps a request open, with a heartbeat at half of it: a consumer that went away with its node is missed after two
/// heartbeats that did not come.
const EXPIRES: Duration = Duration::from_secs(2);

/// How often a waiting reader looks whether the connection is still the one that its consumer was made on.
const LOOK: Duration = Duration::from_millis(250);

/// How often a reader looks whether the stream is still the one it reads.
const LOOK_AT_STREAM: Duration = Duration::from_secs(5);

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// At a sequence.
    At(u64),
    /// With the last message of each subject, then what follows. Begins so again whenever the consumer is made again: what it misses is no loss,
    /// as long as the last of each comes.
    LastOfEach,
}

/// A message as the server gave it.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) seq: u64,
    pub(super) message: async_nats::Message,
    /// When the server stored it, microseconds.
    pub(super) stored_us: i64,
    /// Messages behind it that match.
    pub(super) pending: u64,
}

/// Reads one stream.
pub(super) struct OrderedReader {
    context: Context,
    stream: String,
    filter: String,
    start: Start,
    messages: Option<Ordered>,
    /// How often the client had connected when the consumer was made: a server that was started again has lost it.
    connects: u64,
    /// Messages that were there and matched when the consumer was made.
    pub(super) pending_at_start: u64,
    /// Consumers that were made so far.
    pub(super) made: u64,
    last_seq: u64,
    /// When the server stored that one, if a message was read.
    last_stored_us: Option<i64>,
    /// What was read from, for a reader that begins at a sequence.
    place: Option<Place>,
    looked: Instant,
    /// The consumer as the server calls it: the client makes one anew by itself too.
    consumer: String,
}

impl std::fmt::Debug for OrderedReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stream, filter, start, last_seq, .. } = self;
        f.debug_struct("OrderedReader")
            .field("stream", stream)
            .field("filter", filter)
            .field("start", start)
            .field("last_seq", last_seq)
            .finish_non_exhaustive()
    }
}

impl OrderedReader {
    pub(super) fn new(context: Context, stream: String, filter: &str, start: Start) -> Self {
        // Everything, whatever the stream's subjects are.
        let filter = if filter == ">" { String::new() } else { filter.to_owned() };
        Self {
            context,
            stream,
            filter,
            start,
            messages: None,
            connects: 0,
            pending_at_start: 0,
            made: 0,
            last_seq: 0,
            last_stored_us: None,
            place: None,
            looked: Instant::now(),
            consumer: String::new(),
        }
    }

    /// Makes the consumer if there is none, or if the connection is another one than it was made on.
    pub(super) async fn open(&mut self) -> Result<(), BusError> {
        while self.messages.is_none() || self.connects() != self.connects {
            self.messages = None;
            self.connects = self.connects();
            self.make().await?;
        }
        Ok(())
    }

    /// Looks, now and then, whether the stream is still the one that is read. To be called before a caller's own time begins to run: a look takes
    /// what two answers take, and one that is dropped each time is never done.
    pub(super) async fn look_again(&mut self) -> Result<(), BusError> {
        if self.looked.elapsed() < LOOK_AT_STREAM {
            return Ok(());
        }
        let looked = self.look().await;
        if looked.is_err() {
            self.messages = None;
        }
        looked
    }

    /// How often the client has connected.
    fn connects(&self) -> u64 {
        self.context.client().statistics().connects.load(Ordering::Acquire)
    }

    /// Refuses to go on over a stream that is not the one which was read so far.
    async fn look(&mut self) -> Result<(), BusError> {
        let Start::At(start) = self.start else { return Ok(()) };
        let last = self.last_seq.max(start.saturating_sub(1));
        let (now, last_seq) = place::find(&self.context, &self.stream, last).await?;
        self.looked = Instant::now();
        let Some(place) = &mut self.place else {
            self.place = Some(now);
            return Ok(());
        };
        place.seq = last;
        place.stored = self.last_stored_us.map(Timestamp::from_micros).or(place.stored);
        if place.is_at(&now, last_seq) {
            return Ok(());
        }
        let reason = if place.stream != now.stream {
            "it was made anew".to_owned()
        } else if last_seq < last {
            format!("it ends at {last_seq}, and was read up to {last}")
        } else {
            format!("message {last} is another one")
        };
        Err(BusError::Rewound { stream: self.stream.clone(), reason })
    }

    async fn make(&mut self) -> Result<(), BusError> {
        self.look().await?;
        if self.start == Start::LastOfEach {
            self.last_seq = 0;
        }
        self.consumer.clear();
        let deliver_policy = match self.start {
            _ if self.last_seq > 0 => DeliverPolicy::ByStartSequence { start_sequence: self.last_seq + 1 },
            Start::At(seq) => DeliverPolicy::ByStartSequence { start_sequence: seq.max(1) },
            Start::LastOfEach => DeliverPolicy::LastPerSubject,
        };
        // A name that nobody can guess, and a filter in the subject of the request: permissions speak of both.
        let inbox = self.context.client().new_inbox();
        let mut config = OrderedConfig {
            name: inbox.rsplit('.').next().map(str::to_owned),
            filter_subject: self.filter.clone(),
            deliver_policy,
            replay_policy: ReplayPolicy::Instant,
            max_batch: MAX_BATCH,
            max_bytes: MAX_BYTES,
            max_expires: EXPIRES,
            ..OrderedConfig::default()
        };
        let made = self.context.create_consumer_on_stream(config.clone(), self.stream.as_str()).await;
        let consumer = match made {
            Ok(consumer) => consumer,
            // A filter across the stream's subjects: everything comes, and the reader filters.
            Err(error) if is_not_subset(&error.kind()) => {
                config.filter_subject.clear();
                self.context.create_consumer_on_stream(config, self.stream.as_str()).await.map_err(|e| self.no_consumer(&e))?
            }
            Err(error) => return Err(self.no_consumer(&error)),
        };
        self.made += 1;
        self.pending_at_start = consumer.cached_info().num_pending;
        self.messages = Some(consumer.messages().await.map_err(unavailable)?);
        Ok(())
    }

    fn no_consumer(&self, error: &impl std::fmt::Display) -> BusError {
        unavailable(format!("stream {} cannot be read: {error}", self.stream))
    }

    /// The next message. Safe to drop while it waits; what it must ask the server first is to be done by `open`, where that matters.
    pub(super) async fn next(&mut self) -> Result<Read, BusError> {
        loop {
            self.open().await?;
            let Some(messages) = &mut self.messages else { continue };
            let Ok(message) = timeout(LOOK, messages.next()).await else { continue };
            let message = match message {
                Some(Ok(message)) => message,
                Some(Err(error)) => {
                    self.messages = None;
                    return Err(unavailable(error));
                }
                None => {
                    self.messages = None;
                    continue;
                }
            };
            let info = message.info().map_err(|error| unavailable(format!("a message without its place: {error}")))?;
            let (seq, pending) = (info.stream_sequence, info.pending);
            let stored_us = i64::try_from(info.published.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX);
            if self.consumer != info.consumer {
                let is_another = !self.consumer.is_empty();
                info.consumer.clone_into(&mut self.consumer);
                if is_another {
                    // The client made it anew, and asked for what follows by number alone.
                    self.messages = None;
                    continue;
                }
            }
            if seq <= self.last_seq {
                continue;
            }
            self.last_seq = seq;
            self.last_stored_us = Some(stored_us);
            return Ok(Read { seq, message: message.message, stored_us, pending });
        }
    }
}

fn is_not_subset(kind: &ConsumerErrorKind) -> bool {
    matches!(kind, ConsumerErrorKind::JetStream(error) if error.error_code() == ErrorCode::CONSUMER_FILTER_NOT_SUBSET)
}
