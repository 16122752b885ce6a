//! The receipt: the tamper-evident record of one event (CONTRACTS §4), and its commit proof.
//! The body is hashed whole, keys this version does not know included.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::decision::{Decision, wire_words};
use crate::{EventId, SourceTrust, TenantId, Timestamp};

/// The `schema` of receipts written by this version.
pub const RECEIPT_SCHEMA: &str = "aegis-receipt-1";

/// What part of an action's life, or of its lane's, a receipt records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Open,
    Decision,
    Approval,
    Consume,
    Attempt,
    Outcome,
    Containment,
    Config,
    Gap,
    Close,
}
wire_words!(Phase {
    Open = "open",
    Decision = "decision",
    Approval = "approval",
    Consume = "consume",
    Attempt = "attempt",
    Outcome = "outcome",
    Containment = "containment",
    Config = "config",
    Gap = "gap",
    Close = "close",
});

/// A receipt's body: all keys present, null where absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceiptBody {
    pub schema: String,
    pub event_id: EventId,
    pub ref_event_id: Option<EventId>,
    pub tenant_id: TenantId,
    pub lane: String,
    /// 1-based and gapless within the lane.
    pub seq: i64,
    pub phase: Phase,
    pub ts: Timestamp,
    pub agent_id: Option<String>,
    pub user_id: Option<String>,
    pub run_id: Option<String>,
    pub trace_id: Option<String>,
    pub tool: Option<String>,
    pub action: Option<String>,
    pub resource: Option<String>,
    pub mutates_state: Option<bool>,
    pub source_trust: Option<SourceTrust>,
    pub decision: Option<Decision>,
    pub matched_policies: Vec<String>,
    pub policy_digest: Option<String>,
    pub approval_id: Option<String>,
    pub approver: Option<String>,
    pub action_hash: Option<String>,
    pub executed_hash: Option<String>,
    pub input_hash: Option<String>,
    pub output_hash: Option<String>,
    pub event_digest: String,
    /// Phase-specific facts, never a raw parameter, secret or payload.
    pub detail: Option<Value>,
    pub key_id: String,
    /// Empty for seq 1.
    pub prev_receipt_hash: String,
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A commit proof: an RFC 6962 inclusion path from one receipt hash to the root that a commit signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    pub key_id: String,
    /// Number of receipts in the commit.
    pub size: u64,
    /// This receipt's place in it, 0-based.
    pub index: u64,
    /// Sibling hashes, hex, leaf to root.
    pub path: Vec<String>,
    /// Ed25519 over the commit statement, base64 (standard alphabet, padded).
    pub signature: String,
}

/// What the ledger hands out after a commit: the event as it goes on the wire (with `receipt` and `proof`), and what routes it.
#[derive(Clone, Debug, PartialEq)]
pub struct SealedEvent {
    pub tenant_id: TenantId,
    pub event_id: EventId,
    pub kind: crate::EventKind,
    pub lane: String,
    pub seq: i64,
    pub ts: Timestamp,
    pub receipt_hash: String,
    pub prev_receipt_hash: String,
    /// One JSON object: the event's columns plus `receipt` and `proof`.
    pub wire: String,
}
