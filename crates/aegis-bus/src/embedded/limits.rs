//! The bounds of the embedded bus. All hard: reaching one is answered, never absorbed.

use crate::{Bucket, Stream};

/// How much a stream may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLimits {
    pub max_messages: u64,
    /// Subjects and payloads, plus 64 bytes a message.
    pub max_bytes: u64,
}

/// How much a bucket may hold. Buckets live in memory too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketLimits {
    pub max_keys: usize,
    /// Keys and values.
    pub max_bytes: usize,
    /// A key that was not written for this long, in seconds, may be removed; None: never.
    pub max_age_s: Option<i64>,
}

/// All bounds. The defaults suit a small deployment on one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedLimits {
    /// In the order of `Stream::ALL`.
    pub streams: [StreamLimits; 6],
    /// In the order of `Bucket::ALL`.
    pub buckets: [BucketLimits; 4],
    /// An episode's record that was not written for this long, in seconds, may be removed where the stream has no room: nobody has to read it.
    pub episodes_age_s: i64,
    /// A message id is remembered while its message is kept, and at least this long, in seconds.
    pub dedup_window_s: i64,
    /// Messages that one transaction takes at most, of all publishers together.
    pub commit_messages: usize,
    /// Bytes that wait for the writer at most; more makes publishers wait.
    pub queue_bytes: usize,
    /// The newest messages of each stream that are kept in memory, for readers that keep up.
    pub tail_messages: usize,
    /// The same, in bytes.
    pub tail_bytes: usize,
    /// How many it may be while somebody who reads the stream has not read them, so that who lags a little does not go to the file.
    pub unread_messages: usize,
    /// The same, in bytes.
    pub unread_bytes: usize,
    /// What events may take besides, bytes, that are read once for all who follow the stream of events. 0: each reads for itself.
    pub read_bytes: usize,
}

const MIB: u64 = 1024 * 1024;

impl Default for EmbeddedLimits {
    fn default() -> Self {
        let stream = |max_messages, max_mib| StreamLimits { max_messages, max_bytes: max_mib * MIB };
        let bucket = |max_keys, max_age_s| BucketLimits { max_keys, max_bytes: 64 * 1024 * 1024, max_age_s };
        Self {
            streams: [
                stream(20_000_000, 8192), // ASE
                stream(1_000_000, 1024),  // APPROVALS
                stream(5_000_000, 2048),  // ALERTS
                stream(1_000_000, 1024),  // EPISODES
                stream(1024, 256),        // CKPT
                stream(100_000, 128),     // DLQ
            ],
            buckets: [
                bucket(200_000, None), // containment
                bucket(200_000, None), // control
                // A run ends after at most a day without a call: two days forget no label that still counts.
                bucket(200_000, Some(2 * 24 * 3600)), // trust
                bucket(4096, None),                   // leases
            ],
            // As the file of the stream says for a server.
            episodes_age_s: 30 * 24 * 3600,
            dedup_window_s: 600,
            commit_messages: 4096,
            queue_bytes: 64 * 1024 * 1024,
            tail_messages: 16384,
            tail_bytes: 48 * 1024 * 1024,
            unread_messages: 65_536,
            unread_bytes: 160 * 1024 * 1024,
            // Some 16,000 events as edges seal them: as far as one who follows is behind another.
            read_bytes: 64 * 1024 * 1024,
        }
    }
}

impl EmbeddedLimits {
    /// The bounds of a stream.
    #[must_use]
    pub const fn stream(&self, stream: Stream) -> StreamLimits {
        self.streams[stream.index()]
    }

    /// The same limits with other bounds for a stream.
    #[must_use]
    pub const fn with_stream(mut self, stream: Stream, limits: StreamLimits) -> Self {
        self.streams[stream.index()] = limits;
        self
    }

    /// The bounds of a bucket.
    #[must_use]
    pub const fn bucket(&self, bucket: Bucket) -> BucketLimits {
        self.buckets[bucket.index()]
    }

    /// The same limits with other bounds for a bucket.
    #[must_use]
    pub const fn with_bucket(mut self, bucket: Bucket, limits: BucketLimits) -> Self {
        self.buckets[bucket.index()] = limits;
        self
    }
}
