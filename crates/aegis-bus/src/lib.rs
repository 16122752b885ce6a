//! How events and state move between the rooms: streams with sequence and dedup, and key-value buckets with revisions.
//! Promises that what was acknowledged is durable, once, and in order; never drops a message silently and never blocks an edge
//! (an edge only knows its ledger). The trait keeps to what JetStream can do; `EmbeddedBus` is the driver that needs no server, `JetStreamBus`
//! the one for many processes.

mod check;
pub mod conformance;
mod embedded;
mod error;
pub mod feed;
pub mod gaps;
mod jetstream;
pub mod message_id;
pub mod subject;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use aegis_model::{LaneReach, ReadEvent, Reading, SecurityEvent, TenantId, Timestamp, WireError};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use embedded::{BucketLimits, EmbeddedBus, EmbeddedLimits, Held, Keeper, StreamLimits};
pub use error::BusError;
pub use jetstream::{EdgeBus, Feature, JetStreamBus, JetStreamOptions, Login, Servers, Version, definitions, users};
pub use turns::Turns;

/// Largest payload of a message or value, in bytes: JetStream's default `max_payload`.
pub const MAX_PAYLOAD: usize = 1024 * 1024;

/// Largest frozen action as it travels, in bytes. A server counts a message's headers towards `MAX_PAYLOAD`, so some room is left for them.
/// Control would never see a larger one: an edge denies what would need its approval.
pub const MAX_FROZEN_ACTION: usize = MAX_PAYLOAD - 16 * 1024;

/// Longest message id, in bytes.
pub const MAX_MSG_ID: usize = 256;

/// The streams (CONTRACTS §6). The names are those of the JetStream streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Security events, ticks and ruleset changes.
    Ase,
    /// Frozen actions; control alone reads them.
    Approvals,
    /// Alerts and retractions.
    Alerts,
    /// Episodes: the latest message of each subject only.
    Episodes,
    /// Checkpoints of detection, fenced: the latest message of each subject only.
    Ckpt,
    /// Dead letters; the only stream that drops its oldest messages when full, and counts them.
    Dlq,
}

impl Stream {
    /// Every stream.
    pub const ALL: [Self; 6] = [Self::Ase, Self::Approvals, Self::Alerts, Self::Episodes, Self::Ckpt, Self::Dlq];

    /// The stream's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ase => "ASE",
            Self::Approvals => "APPROVALS",
            Self::Alerts => "ALERTS",
            Self::Episodes => "EPISODES",
            Self::Ckpt => "CKPT",
            Self::Dlq => "DLQ",
        }
    }

    /// The first tokens of the subjects that belong to the stream.
    #[must_use]
    pub const fn subject_roots(self) -> &'static [&'static str] {
        match self {
            Self::Ase => &["ase", "tick", "ruleset"],
            Self::Approvals => &["approval"],
            Self::Alerts => &["alert", "retract"],
            Self::Episodes => &["episode"],
            Self::Ckpt => &["ckpt"],
            Self::Dlq => &["dlq"],
        }
    }

    /// True where a new message replaces the earlier one of its subject (JetStream: `max_msgs_per_subject = 1`).
    #[must_use]
    pub const fn keeps_latest_per_subject(self) -> bool {
        matches!(self, Self::Episodes | Self::Ckpt)
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Ase => 0,
            Self::Approvals => 1,
            Self::Alerts => 2,
            Self::Episodes => 3,
            Self::Ckpt => 4,
            Self::Dlq => 5,
        }
    }
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The key-value buckets (CONTRACTS §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bucket {
    /// Signed containment states.
    Containment,
    /// Signed control feed: agents, tools, policies, settings.
    Control,
    /// The strictest trust label of each run; entries end by age.
    Trust,
    /// Partition leases with their fencing epochs.
    Leases,
}

impl Bucket {
    /// Every bucket.
    pub const ALL: [Self; 4] = [Self::Containment, Self::Control, Self::Trust, Self::Leases];

    /// The bucket's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Containment => "containment",
            Self::Control => "control",
            Self::Trust => "trust",
            Self::Leases => "leases",
        }
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Containment => 0,
            Self::Control => 1,
            Self::Trust => 2,
            Self::Leases => 3,
        }
    }
}

impl std::fmt::Display for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A message to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub subject: String,
    /// Deduplicates: a second message with this id in the stream is acknowledged as a duplicate and not stored.
    pub msg_id: Option<String>,
    /// At most `MAX_PAYLOAD` bytes.
    pub payload: Bytes,
    /// The sequence that the last message of this subject must have; 0: the subject must be empty. Of a message with an id that is there already,
    /// a retry is answered as a duplicate or as `WrongLastSequence`, by driver.
    pub expected_last_subject_seq: Option<u64>,
    /// Where the payload is durable already, for a driver that can read it there.
    pub kept: Option<Kept>,
    /// After which nobody needs the message any more. A bus that can drops it then; to another it is as any other.
    pub ttl: Option<Duration>,
    /// The event that a reader of the payload would read, where who sealed it has it at hand, and nobody else does. A driver in the same process may
    /// give it to readers beside a payload that is kept; to another it says nothing.
    pub event: Option<Arc<SecurityEvent>>,
}

/// A payload's place with whoever keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The keeper's name.
    pub by: Arc<str>,
    /// Ascending, but for what is published again; a keeper never gives a position to another message.
    pub position: i64,
}

impl Message {
    /// A message without dedup or expectation.
    pub fn new(subject: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self {
            subject: subject.into(),
            msg_id: None,
            payload: payload.into(),
            expected_last_subject_seq: None,
            kept: None,
            ttl: None,
            event: None,
        }
    }

    /// The same, deduplicated by `id`.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.msg_id = Some(id.into());
        self
    }

    /// The same, stored only if the subject's last sequence is `seq` (0: the subject is empty).
    #[must_use]
    pub fn expecting(mut self, seq: u64) -> Self {
        self.expected_last_subject_seq = Some(seq);
        self
    }

    /// The same, which nobody needs after `ttl`, counted in whole seconds from when it is stored.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// The same, of which `by` keeps id, subject and payload at `position`, durable already.
    #[must_use]
    pub fn kept(mut self, by: &Arc<str>, position: i64) -> Self {
        self.kept = Some(Kept { by: Arc::clone(by), position });
        self
    }
}

/// What a publisher gets once its message is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PubAck {
    /// The message's place in its stream, from 1; of a duplicate, the place of the message that was there.
    pub seq: u64,
    pub duplicate: bool,
}

/// What a publish is answered, on its way: one result per message, in the same order. Nobody has to wait for it: what was begun goes on also
/// where this is not polled, or dropped.
pub type Acks = BoxFuture<'static, Vec<Result<PubAck, BusError>>>;

/// A message as a subscriber gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub seq: u64,
    pub subject: String,
    pub payload: Bytes,
    /// When the bus stored it.
    pub bus_ts: Timestamp,
    /// Who keeps it, where the driver does not.
    pub kept: Option<Kept>,
    /// Where it is as an event once somebody has read it as one. By default for one reader alone: then it is not kept.
    pub reading: Reading,
}

impl Delivered {
    /// The event that the payload is, `bus_ts` in it: read once for all in this process whom the driver gives the same message. Whether the event stands
    /// under its subject, proves itself, or is taken at all, is each reader's to judge.
    pub fn event(&self) -> Result<Arc<ReadEvent>, WireError> {
        self.reading.event(&self.payload, self.bus_ts)
    }
}

/// What a stream holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// Sequence of the oldest message that may still be there; `last_seq + 1` when the stream is empty.
    pub first_seq: u64,
    /// Sequence of the newest message, 0 before the first.
    pub last_seq: u64,
    pub messages: u64,
    /// Subjects and payloads, with a fixed cost per message.
    pub bytes: u64,
    /// Messages dropped unread because the stream was full (dead letters only).
    pub dropped_total: u64,
}

/// Where a consumer stands, in words that outlive it: which incarnation of the stream, and what message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The stream's identity.
    pub stream: String,
    /// Everything up to here has been taken.
    pub seq: u64,
    /// When the bus stored the message at `seq`, if that is still there and the driver can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<Timestamp>,
}

impl Place {
    /// True if what stands at `now` may be what stood here: `last_seq` is the stream's last one now.
    fn is_at(&self, now: &Self, last_seq: u64) -> bool {
        let moved = self.stored.is_some() && now.stored.is_some() && self.stored != now.stored;
        self.stream == now.stream && self.seq <= last_seq && !moved
    }
}

/// The bus. All drivers must pass `conformance`.
#[async_trait]
pub trait Bus: Send + Sync + std::fmt::Debug {
    /// Publishes in order and answers when all are durable or refused: one result per message, in the same order.
    /// Once a message of the call is refused as `Full` or `Unavailable`, the ones after it are refused too, so that a publisher that
    /// sends again from the first refusal keeps its order. Dropping the future does not take the messages back.
    async fn publish(&self, stream: Stream, messages: Vec<Message>) -> Vec<Result<PubAck, BusError>>;

    /// The same, but answers once the messages are on their way, so that the next publish need not wait for their acknowledgements. What a
    /// publisher begins one after the other is stored in that order, except behind a refusal: what follows in other calls may be stored, and then
    /// stands before what is sent again. A driver for which a publish is one local commit is done with it when it answers.
    async fn begin_publish(&self, stream: Stream, messages: Vec<Message>) -> Acks {
        let results = self.publish(stream, messages).await;
        Box::pin(std::future::ready(results))
    }

    /// Reads from `start_seq` (0 and 1: from the oldest), only subjects that match `filter` (`*`: one token, `>`: the rest).
    async fn subscribe(&self, stream: Stream, filter: &str, start_seq: u64) -> Result<Box<dyn Subscription>, BusError>;

    /// Sequence of the newest message, 0 before the first.
    async fn last_seq(&self, stream: Stream) -> Result<u64, BusError>;

    /// What the stream holds now.
    async fn stream_state(&self, stream: Stream) -> Result<StreamState, BusError>;

    /// Names this incarnation of the stream: another value means that sequences remembered from before mean nothing.
    async fn stream_identity(&self, stream: Stream) -> Result<String, BusError>;

    /// Describes a sequence, for whoever must know later whether the stream still is the same up to there.
    async fn place(&self, stream: Stream, seq: u64) -> Result<Place, BusError> {
        Ok(Place { stream: self.stream_identity(stream).await?, seq, stored: None })
    }

    /// False if the stream was made anew or lost its end since `place` was described: then its sequences mean nothing any more. What retention
    /// dropped counts as still there.
    async fn is_still(&self, stream: Stream, place: &Place) -> Result<bool, BusError> {
        Ok(place.is_at(&self.place(stream, place.seq).await?, self.last_seq(stream).await?))
    }

    /// Makes the sequences of all that was read so far stay what they are, whatever happens to the machine: to be asked by whoever is about to write one down
    /// elsewhere than on the bus. Nothing to do for a driver whose messages are durable in their places before they are read.
    async fn settle(&self) -> Result<(), BusError> {
        Ok(())
    }

    /// The sequence up to which the consumer has passed everything; 0 for one that is not registered, or whose place the stream no longer has.
    async fn consumer_position(&self, stream: Stream, name: &str) -> Result<u64, BusError>;

    /// Registers the consumer, or moves it (back too). Retention drops only what every registered consumer has passed; with no
    /// consumer registered, nothing.
    async fn set_consumer_position(&self, stream: Stream, name: &str, seq: u64) -> Result<(), BusError>;

    /// Unregisters a consumer, so that it no longer holds messages back.
    async fn forget_consumer(&self, stream: Stream, name: &str) -> Result<(), BusError>;

    /// Writes a value and answers its revision, which only grows within the bucket.
    async fn kv_put(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, BusError>;

    /// The same, only if the key's revision is `expected` (0: the key is absent); else `BusError::WrongRevision`.
    async fn kv_update(&self, bucket: Bucket, key: &str, value: Bytes, expected: u64) -> Result<u64, BusError>;

    /// The value and its revision.
    async fn kv_get(&self, bucket: Bucket, key: &str) -> Result<Option<(Bytes, u64)>, BusError>;

    /// Every key that matches the filter, with its value and revision, sorted by key.
    async fn kv_all(&self, bucket: Bucket, filter: &str) -> Result<Vec<(String, Bytes, u64)>, BusError>;

    /// Current values of the keys that match the filter first, then changes. A slow watcher misses intermediate values of a key, never its last.
    async fn kv_watch(&self, bucket: Bucket, filter: &str) -> Result<Box<dyn KvWatch>, BusError>;

    /// Tells whoever listens now; kept by nobody, and lost where the connection is.
    async fn tell(&self, subject: &str, payload: Bytes) -> Result<(), BusError>;

    /// Hears what is told on matching subjects from now on.
    async fn hear(&self, filter: &str) -> Result<Box<dyn Hearing>, BusError>;

    /// What the servers are that carry it, as far as that is known; none of a bus without any.
    fn servers(&self) -> Option<Servers> {
        None
    }

    /// False while there is no connection to the server that carries it. One that is connected may hang all the same.
    fn is_connected(&self) -> bool {
        true
    }

    /// How often one of its connections left a server over which nothing came of what was asked or published, or was told to leave it.
    fn servers_left(&self) -> u64 {
        0
    }

    /// Goes to another of the servers that carry it, where there are several: what others write is not heard over this one.
    async fn leave_server(&self) {}
}

/// Whom to ask for receipts that are missing in a lane: whoever sealed them ships them again. Never waits, and may forget: whoever misses
/// something asks again.
pub trait AskForMissing: Send + Sync + std::fmt::Debug {
    /// The receipts of `from_seq` to `to_seq`, both included.
    fn ask(&self, lane: &str, from_seq: i64, to_seq: i64);
}

/// How far a lake has lanes, for good: what is published in its manifests, not what waits to be.
pub trait LanesInLake: Send + Sync + std::fmt::Debug {
    /// How far it has a lane of a tenant; a lane that it never saw it has not begun. None where that cannot be said.
    fn reach(&self, tenant: &TenantId, lane: &str) -> Option<LaneReach>;

    /// How long ago it had everything that was published then. None if it never had since the start.
    fn behind(&self) -> Option<Duration>;
}

/// Something that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub subject: String,
    pub payload: Bytes,
    /// Where an answer is waited for. Chosen by whoever told: not to be believed.
    pub reply_to: Option<String>,
}

/// Hears what is told.
#[async_trait]
pub trait Hearing: Send + std::fmt::Debug {
    /// The next; waits until there is one. Who is too slow misses some.
    async fn next(&mut self) -> Result<Heard, BusError>;
}

/// A reader of a stream. Acks nothing: where to start again is the consumer's own checkpoint. After `BusError::Rewound` it reads nothing more:
/// the stream is another one, to be read from its start; what was seen before is dropped by id.
#[async_trait]
pub trait Subscription: Send + std::fmt::Debug {
    /// At most `max` messages in sequence order; waits up to `wait` for the first, once a driver has asked what it must ask before; empty when none
    /// came.
    async fn next_batch(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivered>, BusError>;
}

/// A watcher of a bucket.
#[async_trait]
pub trait KvWatch: Send + std::fmt::Debug {
    /// The next value: key, value, revision; in order of revision. Waits until there is one.
    async fn next(&mut self) -> Result<(String, Bytes, u64), BusError>;
}
