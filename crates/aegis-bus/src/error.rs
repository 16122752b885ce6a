//! What can go wrong on the bus. Clonable, because one failed commit answers many publishers.

use crate::{Bucket, Stream};

/// Why a message was not taken, or a read not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The stream's hard bound is reached and some consumer has not passed its oldest messages. Keep the message and try again.
    #[error("stream {stream} is full: its consumers lag or its bound is too small; keep the message and publish it again later")]
    Full { stream: Stream },
    /// The bucket's hard bound is reached.
    #[error("bucket {bucket} is full: raise its bound or remove keys")]
    BucketFull { bucket: Bucket },
    /// The subject's last sequence is not the expected one: somebody else was there first.
    #[error("subject {subject}: last sequence is {actual}, not the expected one")]
    WrongLastSequence { subject: String, actual: u64 },
    /// The key's revision is not the expected one.
    #[error("bucket {bucket}, key {key}: revision is {actual}, not the expected one")]
    WrongRevision { bucket: Bucket, key: String, actual: u64 },
    /// The payload is over the bound; it will never be taken.
    #[error("payload of {bytes} bytes is over the bound of {max} bytes")]
    TooLarge { bytes: usize, max: usize },
    /// The message, subject, filter, key or position has not the required form; it will never be taken.
    #[error("{what} is not valid: {reason}")]
    Invalid { what: &'static str, reason: String },
    /// The stream is no longer the one that was read: it was made anew, or lost its end. Read it from its start.
    #[error("stream {stream} is not what it was: {reason}; it is read again from its start")]
    Rewound { stream: String, reason: String },
    /// The server has no such stream. Waiting does not help, unless somebody makes it.
    #[error("the server has no stream {stream}; make it with `aegis streams apply`")]
    NoStream { stream: String },
    /// The stream was made before its messages could have a time to live. Sent again, they go without.
    #[error(
        "stream {stream} takes no message with a time to live before `aegis streams apply` lets it; sent again, it goes without"
    )]
    NoTtl { stream: Stream },
    /// The bus cannot be reached or cannot write now. Keep the message and try again.
    #[error("the bus is unavailable: {reason}; messages wait with their publishers until it is back")]
    Unavailable { reason: String },
    /// The bus was closed by this process.
    #[error("the bus is closed")]
    Closed,
    /// Another process holds the bus file.
    #[error("bus file {path} is in use by another process; stop that one, or choose another data folder")]
    InUse { path: String },
    /// The file was written by a newer version.
    #[error("bus file {path} has schema {found}, this version knows {known}; upgrade the binary")]
    SchemaTooNew { path: String, found: i64, known: i64 },
}

impl BusError {
    /// True if the same message may be taken later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Full { .. }
                | Self::BucketFull { .. }
                | Self::NoStream { .. }
                | Self::NoTtl { .. }
                | Self::Unavailable { .. }
                | Self::Closed
        )
    }

    pub(crate) fn invalid(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { what, reason: reason.into() }
    }
}

impl From<sqlx::Error> for BusError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable { reason: error.to_string() }
    }
}
