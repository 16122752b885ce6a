//! What becomes of an entry, and why one is refused.

use std::time::Duration;

use aegis_model::{EntryKind, SignedEntry};

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It holds now.
    New,
    /// This very revision held already.
    Known,
}

/// Why an entry was refused.
#[derive(Debug, thiserror::Error)]
pub enum RefusedEntry {
    /// Not signed by a pinned control key.
    #[error("signature: {0}")]
    Signature(#[from] aegis_keys::KeyError),
    /// Older than what is held, which had been so for so long when it came.
    #[error("revision {offered} of {kind} `{name}` is older than {held}, which is held")]
    Older { kind: EntryKind, name: String, offered: i64, held: i64, held_for: Duration },
    /// Not what its kind says.
    #[error("body of {kind} `{name}`: {reason}")]
    Body { kind: EntryKind, name: String, reason: String },
    /// The tenant's policies do not validate; the running ones stay.
    #[error("policies: {0}")]
    Policies(String),
}

impl RefusedEntry {
    pub(super) fn older(entry: &SignedEntry, held: i64, held_for: Duration) -> Self {
        Self::Older { kind: entry.kind, name: entry.name.clone(), offered: entry.revision, held, held_for }
    }

    pub(super) fn body(entry: &SignedEntry, reason: &str) -> Self {
        Self::Body { kind: entry.kind, name: entry.name.clone(), reason: reason.to_owned() }
    }
}
