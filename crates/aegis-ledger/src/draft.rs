//! What callers hand in and what they wait for. A draft is an event that has no lane, seq or receipt yet.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use aegis_model::{EventId, FrozenAction, Phase, SecurityEvent, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::LedgerError;

/// An event that asks for a receipt. The writer sets its lane, seq and (if the lane or the draft itself is ahead) ts.
#[derive(Clone, Serialize, Deserialize)]
pub struct Draft {
    pub event: SecurityEvent,
    pub phase: Phase,
    /// The hash of the action that was executed, on an outcome.
    pub executed_hash: Option<String>,
    /// What went in, as canonical bytes. Only its HMAC under the tenant's commitment key is ever stored.
    #[serde(skip)]
    pub input: Option<Vec<u8>>,
    /// What came out, likewise.
    #[serde(skip)]
    pub output: Option<Vec<u8>>,
    /// Phase-specific facts, never a raw parameter, secret or payload.
    pub detail: Option<Value>,
    /// The action to be approved; it is committed in the same transaction as the receipt. Boxed: few drafts have one, and all are moved about.
    pub frozen: Option<Box<FrozenAction>>,
}

impl Draft {
    /// A draft with nothing but its event and phase.
    #[must_use]
    pub fn new(event: SecurityEvent, phase: Phase) -> Self {
        Self { event, phase, executed_hash: None, input: None, output: None, detail: None, frozen: None }
    }
}

// Written by hand: input, output and the frozen action hold raw parameters, which no log may show.
impl std::fmt::Debug for Draft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draft")
            .field("event_id", &self.event.event_id)
            .field("tenant_id", &self.event.tenant_id)
            .field("kind", &self.event.kind)
            .field("phase", &self.phase)
            .field("input_bytes", &self.input.as_ref().map(Vec::len))
            .field("output_bytes", &self.output.as_ref().map(Vec::len))
            .field("frozen", &self.frozen.as_ref().map(|frozen| &frozen.approval_id))
            .finish_non_exhaustive()
    }
}

/// What becomes of a draft when the ledger cannot write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The waiter is told, and the draft is discarded for good.
    Required,
    /// The draft is kept in a bounded buffer and written later; what is lost is counted and told by a `gap` receipt.
    BestEffort,
}

/// A receipt that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub event_id: EventId,
    pub lane: String,
    pub seq: i64,
    pub receipt_hash: String,
    /// Empty for seq 1.
    pub prev_receipt_hash: String,
    /// The event's time as sealed: the draft's, or the lane's if that was later; of a draft ahead of a clock that was set back, the clock's.
    pub ts: Timestamp,
}

/// A receipt on its way to the disk. Dropping it changes nothing about the receipt.
#[derive(Debug)]
pub struct PendingReceipt {
    pub(crate) reply: oneshot::Receiver<Result<Committed, LedgerError>>,
}

impl Future for PendingReceipt {
    type Output = Result<Committed, LedgerError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The sender goes away unanswered only when the writer does: then nobody can say that the receipt is durable.
        Pin::new(&mut self.reply).poll(context).map(|answer| answer.unwrap_or(Err(LedgerError::Closed)))
    }
}

/// A draft in the writer's queue.
#[derive(Debug)]
pub(crate) struct Submission {
    /// Boxed: it is large, and moves through the queue and the writer's groups.
    pub(crate) draft: Box<Draft>,
    pub(crate) durability: Durability,
    pub(crate) reply: oneshot::Sender<Result<Committed, LedgerError>>,
}
