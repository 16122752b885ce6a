//! The outbox: a change and the draft of its receipt commit together in the store, and the draft is sealed before the reply.
//! Promises that every change gets exactly one receipt, whatever dies in between; never seals a draft twice.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use aegis_ledger::{Committed, Draft, Durability, LedgerError, SubmitError};
use aegis_model::{EventId, EventKind, Phase, TenantId};
use aegis_store::{HistoryRow, OutboxRow};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, watch};

use crate::control::Control;
use crate::fleet::edge_of;
use crate::problem::Problem;

/// How long a request waits for a place in the ledger's queue, in steps of `QUEUE_STEP`.
const QUEUE_STEPS: u32 = 40;
const QUEUE_STEP: Duration = Duration::from_millis(25);
/// How many leftovers are looked at in one pass.
const PASS: u32 = 500;

/// Which drafts requests are sealing now, so that the background pass leaves them alone.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    in_flight: Arc<Mutex<HashSet<EventId>>>,
    wake: Notify,
}

/// A draft that is about to be written with its change.
#[derive(Debug)]
pub(crate) struct Pending {
    draft: Draft,
    rows: [OutboxRow; 1],
    event_id: EventId,
    in_flight: Arc<Mutex<HashSet<EventId>>>,
}

impl Pending {
    /// What the store writes in the transaction of the change.
    pub(crate) fn rows(&self) -> &[OutboxRow] {
        &self.rows
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.in_flight.lock().remove(&self.event_id);
    }
}

fn receipt_unavailable() -> Problem {
    Problem::unavailable("receipt_unavailable", "the ledger cannot be written, so that nothing may be changed; try again")
}

fn not_sealed(failure: &LedgerError) -> Problem {
    tracing::error!(%failure, "receipt was not sealed");
    receipt_unavailable()
}

impl Control {
    /// Prepares a change. Refused while the ledger cannot be written: what cannot be receipted is not done.
    pub(crate) fn prepare(&self, draft: Draft) -> Result<Pending, Problem> {
        if !self.ledger.is_writable() {
            return Err(receipt_unavailable());
        }
        self.prepare_anyway(draft)
    }

    /// Prepares a change that only takes something away: it is made even while the ledger cannot be written, and its receipt comes later.
    pub(crate) fn prepare_anyway(&self, draft: Draft) -> Result<Pending, Problem> {
        let event_id = draft.event.event_id;
        let payload = serde_json::to_string(&draft).map_err(Problem::internal)?;
        let rows = [OutboxRow { event_id, tenant_id: draft.event.tenant_id.clone(), payload }];
        let in_flight = Arc::clone(&self.outbox.in_flight);
        in_flight.lock().insert(event_id);
        Ok(Pending { draft, rows, event_id, in_flight })
    }

    /// Seals a change that the store has taken, and forgets its outbox row.
    pub(crate) async fn seal(&self, pending: Pending) -> Result<Committed, Problem> {
        match self.record(pending.draft.clone()).await {
            Ok(committed) => {
                if let Err(error) = self.store.delete_outbox(pending.event_id).await {
                    tracing::warn!(%error, "sealed outbox row could not be deleted; the next pass finds it sealed");
                }
                Ok(committed)
            }
            Err(_) => {
                self.outbox.wake.notify_one();
                Err(Problem::receipt_pending())
            }
        }
    }

    /// Seals a draft that no stored change goes with, and waits until it is durable.
    pub(crate) async fn record(&self, draft: Draft) -> Result<Committed, Problem> {
        self.submit(draft).await.map_err(|failure| not_sealed(&failure))
    }

    /// Seals a draft whose event id follows from what it is about; None if its receipt was there already.
    pub(crate) async fn record_once(&self, draft: Draft) -> Result<Option<Committed>, Problem> {
        for _ in 0..QUEUE_STEPS {
            if self.is_sealed(&draft.event.tenant_id, draft.event.event_id).await? {
                return Ok(None);
            }
            match self.submit(draft.clone()).await {
                Ok(committed) => return Ok(Some(committed)),
                // The same one is being written beside it, and may still fail.
                Err(LedgerError::Duplicate { .. }) => tokio::time::sleep(QUEUE_STEP).await,
                Err(failure) => return Err(not_sealed(&failure)),
            }
        }
        Err(receipt_unavailable())
    }

    /// Whether an event of ours has its receipt: in the ledger, or pruned from there, which the history has.
    pub(crate) async fn is_sealed(&self, tenant: &TenantId, event_id: EventId) -> Result<bool, Problem> {
        if self.ledger.contains(tenant, event_id).await.map_err(Problem::internal)? {
            return Ok(true);
        }
        Ok(self.pruned_receipt(tenant, event_id).await?.is_some())
    }

    /// A receipt of ours as published, and its hash.
    pub(crate) async fn receipt_of(&self, tenant: &TenantId, event_id: EventId) -> Result<Option<(Arc<str>, String)>, Problem> {
        if let Some(sealed) = self.ledger.receipt(tenant, event_id).await.map_err(Problem::internal)? {
            return Ok(Some((sealed.wire.into(), sealed.receipt_hash)));
        }
        let Some(row) = self.pruned_receipt(tenant, event_id).await? else { return Ok(None) };
        let hash = row.receipt_hash.clone().unwrap_or_default();
        Ok(Some((self.wire(&row).await?, hash)))
    }

    /// A receipt of ours that the history has. Nothing is pruned that it does not have; where nothing was, the ledger has all.
    async fn pruned_receipt(&self, tenant: &TenantId, event_id: EventId) -> Result<Option<HistoryRow>, Problem> {
        if !self.ledger.was_pruned() {
            return Ok(None);
        }
        // Whatever else has its id.
        let rows = self.store.history_events(tenant, event_id, None).await?;
        let is_own = |row: &HistoryRow| row.lane.as_deref().is_some_and(|lane| edge_of(lane) == self.config.edge_id);
        Ok(rows.into_iter().find(|row| row.is_proved() && is_own(row)))
    }

    async fn submit(&self, draft: Draft) -> Result<Committed, LedgerError> {
        for _ in 0..QUEUE_STEPS {
            match self.ledger.try_submit(draft.clone(), Durability::Required) {
                Ok(receipt) => return receipt.await,
                Err(SubmitError::QueueFull) => tokio::time::sleep(QUEUE_STEP).await,
                Err(SubmitError::Unavailable) => return Err(LedgerError::Unavailable("its last commit failed".to_owned())),
                Err(SubmitError::Closed) => return Err(LedgerError::Closed),
            }
        }
        Err(LedgerError::Unavailable("its queue is full".to_owned()))
    }

    /// Seals every leftover that no request is sealing. Returns how many are left because the ledger cannot take them now.
    pub(crate) async fn settle_outbox(&self) -> Result<usize, Problem> {
        loop {
            let rows = self.store.pending_outbox(PASS).await?;
            let (mut settled, mut left) = (0, 0);
            for row in &rows {
                if self.outbox.in_flight.lock().contains(&row.event_id) {
                    continue;
                }
                if self.settle_row(row).await? {
                    settled += 1;
                } else {
                    left += 1;
                }
            }
            // A pass that settled nothing, or that saw everything, ends it.
            if left > 0 || settled == 0 || rows.len() < PASS as usize {
                return Ok(left);
            }
        }
    }

    /// True once the row's receipt is sealed and the row is gone.
    async fn settle_row(&self, row: &OutboxRow) -> Result<bool, Problem> {
        // Asked after the look at `in_flight`: a row whose request ended in between is found sealed here.
        if !self.is_sealed(&row.tenant_id, row.event_id).await? {
            if !self.seal_leftover(row).await {
                return Ok(false);
            }
            // Whoever made the change may have had no answer from the store, and told neither edges nor detection of it.
            self.feed.mark_behind();
            self.rules.mark_behind();
        }
        self.store.delete_outbox(row.event_id).await?;
        Ok(true)
    }

    async fn seal_leftover(&self, row: &OutboxRow) -> bool {
        let draft = match serde_json::from_str::<Draft>(&row.payload) {
            Ok(draft) => draft,
            Err(error) => {
                tracing::error!(%error, event_id = %row.event_id, "outbox row cannot be read; sealing that it was there");
                self.unreadable_leftover(row)
            }
        };
        match self.submit(draft).await {
            Ok(_) | Err(LedgerError::Duplicate { .. }) => true,
            // These never succeed as they are: what is sealed instead says so.
            Err(LedgerError::TooLarge { .. } | LedgerError::Rejected(_)) => {
                matches!(self.submit(self.unreadable_leftover(row)).await, Ok(_) | Err(LedgerError::Duplicate { .. }))
            }
            Err(failure) => {
                tracing::warn!(%failure, event_id = %row.event_id, "outbox row waits for the ledger");
                false
            }
        }
    }

    /// Stands for a draft that cannot be sealed: same id, and the hash of what it was.
    fn unreadable_leftover(&self, row: &OutboxRow) -> Draft {
        let mut event = self.event(&row.tenant_id, EventKind::ConfigChanged);
        event.event_id = row.event_id;
        event.reason = Some("receipt_reduced".to_owned());
        let mut draft = Draft::new(event, Phase::Config);
        draft.detail = Some(json!({"change": "receipt_reduced", "draft_hash": aegis_canon::sha256_hex(row.payload.as_bytes())}));
        draft
    }
}

/// Settles leftovers until stopped: at once when a request could not seal, otherwise every `outbox_interval`.
pub(crate) async fn run(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    loop {
        // A ledger that cannot be written counts every draft it refuses; it says when it can be again.
        match if control.ledger.is_writable() { control.settle_outbox().await } else { Ok(0) } {
            Ok(0) => {}
            Ok(left) => tracing::warn!(left, "outbox rows wait for the ledger"),
            Err(problem) => tracing::warn!(code = problem.code, "outbox could not be read"),
        }
        tokio::select! {
            () = control.outbox.wake.notified() => tokio::time::sleep(QUEUE_STEP).await,
            () = tokio::time::sleep(control.config.outbox_interval) => {}
            _ = stop.changed() => return,
        }
    }
}
