//! Lanes: tenant × edge × boot epoch. Owns lane ids, heads, and the drafts of a lane's own life: open, gap, close.
//! A lane has one writer and one life: no start ever continues a lane of an earlier one, nor does a clock that was set back (see `set_back`).

use std::sync::Arc;

use aegis_model::{EventKind, Phase, SecurityEvent, TenantId, Timestamp};
use serde_json::{Value, json};

use crate::LedgerError;
use crate::draft::Draft;
use crate::entropy::Entropy;
use crate::loss::Loss;

/// Damaged rows that a gap receipt lists one by one; it counts the rest, so that it stays within the size limit.
const MAX_DAMAGE_LISTED: usize = 16;

/// Why a lane was closed and another opened by one process.
const CLOCK_SET_BACK: &str = "clock_set_back";

/// Where a lane stands: what the next receipt links to.
#[derive(Clone, Debug)]
pub(crate) struct LaneHead {
    /// The lane's number in this ledger's tables.
    pub(crate) lane_no: i64,
    pub(crate) lane: Arc<str>,
    pub(crate) seq: i64,
    /// Hex; empty while seq is 0.
    pub(crate) hash: Arc<str>,
    pub(crate) ts: Timestamp,
}

/// The tenant's lane before a new one, as the new lane's `open` names it.
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
    /// The id of a tenant's lane of this epoch.
    pub(crate) fn lane_id(&self, tenant: &TenantId, epoch: &str) -> Arc<str> {
        format!("{tenant}.{}.{epoch}", self.edge_id).into()
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

    /// The last receipt of a lane whose last receipt is of `last_ts`, ahead of a clock that was set back since.
    pub(crate) fn close_ahead(
        &self,
        tenant: &TenantId,
        last_ts: Timestamp,
        now: Timestamp,
        ids: &mut Entropy,
    ) -> Result<Draft, LedgerError> {
        let mut event = self.lifecycle(tenant, EventKind::LaneClose, now, ids)?;
        event.clock_suspect = true;
        let detail = json!({"reason": CLOCK_SET_BACK, "last_ts": last_ts, "clock": now});
        Ok(reasoned(event, Phase::Close, CLOCK_SET_BACK, detail))
    }

    /// The first receipt of the lane that follows it.
    pub(crate) fn open_after_set_back(
        &self,
        tenant: &TenantId,
        key_id: &str,
        predecessor: &Predecessor,
        ts: Timestamp,
        ids: &mut Entropy,
    ) -> Result<Draft, LedgerError> {
        let mut open = self.open(tenant, key_id, Some(predecessor), ts, ids)?;
        // The `close` is of a time that no rule may look at; this one is of the corrected clock's.
        open.event.clock_suspect = true;
        open.event.reason = Some(CLOCK_SET_BACK.to_owned());
        Ok(open)
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
        Ok(reasoned(self.lifecycle(tenant, EventKind::LaneGap, ts, ids)?, Phase::Gap, reason, detail))
    }
}

/// A receipt that says why. In the event too, so that a detection rule can read it: rules see columns, not receipts.
fn reasoned(mut event: SecurityEvent, phase: Phase, reason: &str, detail: Value) -> Draft {
    event.reason = Some(reason.to_owned());
    event.attributes = Some(detail.to_string());
    let mut draft = Draft::new(event, phase);
    draft.detail = Some(detail);
    draft
}
