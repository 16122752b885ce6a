//! Lanes: tenant × edge × boot epoch. Owns lane ids, heads, and the drafts of a lane's own life: open, gap, close.
//! A lane has one writer and one life: no start ever continues a lane of an earlier one.

use std::sync::Arc;

use aegis_model::{EventKind, Phase, SecurityEvent, TenantId, Timestamp};
use serde_json::{Value, json};

use crate::LedgerError;
use crate::draft::Draft;
use crate::entropy::Entropy;
use crate::loss::Loss;

/// Damaged rows that a gap receipt lists one by one; it counts the rest, so that it stays within the size limit.
const MAX_DAMAGE_LISTED: usize = 16;

/// Where a lane stands: what the next receipt links to.
#[derive(Clone, Debug)]
pub(crate) struct LaneHead {
    /// The lane's number in this ledger's tables.
    pub(crate) lane_no: i64,
    pub(crate) lane: Arc<str>,
    pub(crate) seq: i64,
    /// Hex; empty while seq is 0.
    pub(crate) hash: String,
    pub(crate) ts: Timestamp,
}

/// The last lane of a tenant before this start, as the new lane's `open` names it.
#[derive(Clone, Debug)]
pub(crate) struct Predecessor {
    pub(crate) lane: String,
    pub(crate) seq: i64,
    pub(crate) receipt_hash: String,
}

impl Predecessor {
    fn to_json(&self) -> Value {
        json!({"lane": self.lane, "seq": self.seq, "receipt_hash": self.receipt_hash})
    }
}

/// A row that recovery found damaged at the end of a lane and set aside.
#[derive(Clone, Debug)]
pub(crate) struct Damage {
    pub(crate) seq: i64,
    pub(crate) receipt_hash: String,
    pub(crate) reason: String,
    /// True: moved to `quarantined_rows`. False: it stands before sound rows and stays where it is.
    pub(crate) quarantined: bool,
}

/// Who writes the lanes of this process.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) edge_id: String,
    pub(crate) source: String,
    pub(crate) epoch: String,
}

impl Identity {
    pub(crate) fn lane_id(&self, tenant: &TenantId) -> Arc<str> {
        format!("{tenant}.{}.{}", self.edge_id, self.epoch).into()
    }

    fn lifecycle(
        &self,
        tenant: &TenantId,
        kind: EventKind,
        ts: Timestamp,
        ids: &mut Entropy,
    ) -> Result<SecurityEvent, LedgerError> {
        let mut event = SecurityEvent::new(tenant.clone(), &self.edge_id, &self.source, kind, ts);
        event.event_id = ids.event_id(ts)?;
        Ok(event)
    }

    /// The first receipt of a lane: its key, the place of its certificate, and where the tenant's chain came from.
    pub(crate) fn open(
        &self,
        tenant: &TenantId,
        key_id: &str,
        predecessor: Option<&Predecessor>,
        ts: Timestamp,
        ids: &mut Entropy,
    ) -> Result<Draft, LedgerError> {
        let mut draft = Draft::new(self.lifecycle(tenant, EventKind::LaneOpen, ts, ids)?, Phase::Open);
        draft.detail = Some(json!({
            "key_id": key_id,
            "certificate": null,
            "predecessor": predecessor.map(Predecessor::to_json),
        }));
        Ok(draft)
    }

    /// The last receipt of a lane that was stopped cleanly.
    pub(crate) fn close(&self, tenant: &TenantId, ts: Timestamp, ids: &mut Entropy) -> Result<Draft, LedgerError> {
        Ok(Draft::new(self.lifecycle(tenant, EventKind::LaneClose, ts, ids)?, Phase::Close))
    }

    /// The receipt that says that the lane before this one ended without a `close`.
    pub(crate) fn gap_after_unclean_stop(
        &self,
        tenant: &TenantId,
        predecessor: Option<&Predecessor>,
        damage: &[Damage],
        ts: Timestamp,
        ids: &mut Entropy,
    ) -> Result<Draft, LedgerError> {
        let reason = if damage.is_empty() { "unclean_stop" } else { "corrupt_tail" };
        let damaged: Vec<Value> = damage
            .iter()
            .take(MAX_DAMAGE_LISTED)
            .map(|row| json!({"seq": row.seq, "receipt_hash": row.receipt_hash, "why": row.reason, "quarantined": row.quarantined}))
            .collect();
        let detail = json!({
            "reason": reason,
            "predecessor": predecessor.map(Predecessor::to_json),
            "damaged_rows": damage.len(),
            "damaged": damaged,
        });
        self.gap(tenant, reason, detail, ts, ids)
    }

    /// The receipt that says what a lane lost while the ledger could not write or keep up.
    pub(crate) fn gap_after_loss(
        &self,
        tenant: &TenantId,
        loss: &Loss,
        ts: Timestamp,
        ids: &mut Entropy,
    ) -> Result<Draft, LedgerError> {
        let reason = loss.reason();
        let detail = json!({
            "reason": reason,
            "dropped": loss.dropped,
            "refused": loss.refused,
            "since": loss.since,
            "until": loss.until,
        });
        self.gap(tenant, reason, detail, ts, ids)
    }

    fn gap(
        &self,
        tenant: &TenantId,
        reason: &str,
        detail: Value,
        ts: Timestamp,
        ids: &mut Entropy,
    ) -> Result<Draft, LedgerError> {
        let mut event = self.lifecycle(tenant, EventKind::LaneGap, ts, ids)?;
        // In the event too, so that a detection rule can read them: rules see columns, not receipts.
        event.reason = Some(reason.to_owned());
        event.attributes = Some(detail.to_string());
        let mut draft = Draft::new(event, Phase::Gap);
        draft.detail = Some(detail);
        Ok(draft)
    }
}
