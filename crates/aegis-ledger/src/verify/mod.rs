//! Verification: pure functions of receipts, their lane heads and pinned keys. Works on raw JSON, so that keys and columns of a
//! newer version are covered by the hashes too. No I/O but the lines it is given; never trusts a field that no hash vouches for.
//!
//! Read texts through `aegis_canon::parse_strict`, not `serde_json`: a reader that keeps the last of two equal keys can be shown
//! another event than the one that was sealed.

mod export;
mod heads;
mod proof;
mod short;
mod stream;
mod wire;

pub use export::{ExportError, ExportFailure, ExportReport, ExportVerdict, LaneSpan, MAX_LINE_BYTES, verify_export};
pub use heads::{LaneHead, LaneHeads, Link};
pub use stream::{Prover, StreamVerifier, Verdict};
pub use wire::{VerifiedReceipt, verify_wire};

use serde::{Deserialize, Serialize};

/// The rule that a receipt breaks. The word is stable: exports, events and corpora name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// Not the shape of a receipt, or a key of the wrong type.
    Malformed,
    /// A `schema` that this version cannot verify.
    UnknownSchema,
    /// No receipt where there must be one.
    MissingReceipt,
    /// `receipt_hash` is not the hash of the body.
    HashMismatch,
    /// `event_digest` is not the digest of the event.
    DigestMismatch,
    /// Event and body name different facts.
    ColumnMismatch,
    /// No proof where there must be one.
    MissingProof,
    /// A path that no tree of that size has, or a proof by another key than the body names.
    InvalidProof,
    /// Signed by a key that is not pinned.
    UnknownKey,
    /// The signature does not verify.
    BadSignature,
    /// `prev_receipt_hash` is not the hash of the receipt before.
    BrokenLink,
    /// One or more receipts before this one are missing.
    MissingSeq,
    /// A receipt that was missing, and came after its lane had gone on without it.
    LateSeq,
    /// A seq that the lane already has, with the same receipt.
    RepeatedSeq,
    /// A seq that the lane already has, with another receipt.
    ForkedSeq,
    /// A lane that does not begin with `open` at seq 1, or that goes on after its `close`.
    LaneRule,
    /// `ts` is earlier than that of the receipt before.
    TimeReversed,
    /// An older-form receipt where signatures are asked for.
    Unsigned,
}

impl FailureCode {
    /// The stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownSchema => "unknown_schema",
            Self::MissingReceipt => "missing_receipt",
            Self::HashMismatch => "hash_mismatch",
            Self::DigestMismatch => "digest_mismatch",
            Self::ColumnMismatch => "column_mismatch",
            Self::MissingProof => "missing_proof",
            Self::InvalidProof => "invalid_proof",
            Self::UnknownKey => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::BrokenLink => "broken_link",
            Self::MissingSeq => "missing_seq",
            Self::LateSeq => "late_seq",
            Self::RepeatedSeq => "repeated_seq",
            Self::ForkedSeq => "forked_seq",
            Self::LaneRule => "lane_rule",
            Self::TimeReversed => "time_reversed",
            Self::Unsigned => "unsigned",
        }
    }
}

impl std::fmt::Display for FailureCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a receipt does not verify, and what it says it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct VerifyFailure {
    pub code: FailureCode,
    pub message: String,
    /// As the receipt claims, where it can be read.
    pub event_id: Option<String>,
    pub lane: Option<String>,
    pub seq: Option<i64>,
}

impl VerifyFailure {
    fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), event_id: None, lane: None, seq: None }
    }

    fn about(mut self, body: &serde_json::Map<String, serde_json::Value>) -> Self {
        // Bounded: what fails may be hostile, and this goes into reports and logs.
        let text = |key: &str| body.get(key).and_then(|v| v.as_str()).map(|v| v.chars().take(200).collect::<String>());
        self.event_id = self.event_id.or_else(|| text("event_id"));
        self.lane = self.lane.or_else(|| text("lane"));
        self.seq = self.seq.or_else(|| body.get("seq").and_then(serde_json::Value::as_i64));
        self
    }

    fn of(mut self, receipt: &VerifiedReceipt) -> Self {
        self.event_id = Some(receipt.event_id.clone());
        self.lane = Some(receipt.lane.clone());
        self.seq = Some(receipt.seq);
        self
    }
}
