//! What becomes of a lane when the clock was ahead and is set back. Its `ts` never decreases, so that it would stand still until the clock has
//! caught up, and detection looks at nothing that far ahead: the lane is closed, with the reason, and another opened at the corrected time.
//! Each tenant's at its own next receipt: a tenant that is silent has nothing that could be ahead.

use aegis_model::{TenantId, Timestamp};

use crate::LedgerError;
use crate::lane::{LaneHead, Predecessor};
use crate::seal::{Batch, Sealer};

/// A lane that is ahead of a clock that was set back by no more than this goes on, and stands still for as long. More is what an edge's clock
/// calls a step; less is a clock that is corrected a little, as every clock is.
const STEP_MICROS: i64 = 2_000_000;

impl Sealer {
    /// Takes note of what the clock says.
    pub(crate) fn note_time(&mut self, now: Timestamp) {
        self.latest = self.latest.max(now);
    }
}

impl Batch<'_> {
    /// True for a time that the clock has said, and that is ahead of it now. What a caller makes up is none.
    pub(crate) fn is_ahead(&self, ts: Timestamp) -> bool {
        ts.min(self.sealer.latest) > self.now.plus_micros(STEP_MICROS)
    }

    /// The time of a draft: of one that was made before the clock was set back, the corrected clock's. It cannot have happened later than that, and
    /// would take its new lane ahead again.
    pub(crate) fn corrected(&self, ts: Timestamp) -> Timestamp {
        if self.is_ahead(ts) { self.now } else { ts }
    }

    /// Closes the tenant's lane, and opens one that begins at `ts`. On an error the batch is as it was.
    pub(crate) fn open_anew(&mut self, tenant: &TenantId, ts: Timestamp) -> Result<(), LedgerError> {
        let Some(last_ts) = self.head(tenant).map(|head| head.ts) else { return Ok(()) };
        let (now, rows, before) = (self.now, self.rows.len(), self.heads.get(tenant).cloned());
        let sealer = &mut *self.sealer;
        let epoch = sealer.entropy.boot_epoch(now)?;
        let close = sealer.identity.close_ahead(tenant, last_ts, now, &mut sealer.entropy)?;
        self.push(&close)?;
        let Some(ended) = self.heads.get(tenant).cloned() else { return Ok(()) };
        let opened = self.open_after(tenant, &epoch, &ended, ts);
        match opened {
            Ok(()) => {
                let (ahead, lane) = (last_ts.as_micros() - now.as_micros(), &ended.lane);
                tracing::warn!(%tenant, %lane, ahead_us = ahead, "the clock was set back; the lane is closed and another opened");
                self.closed.push((tenant.clone(), ended));
            }
            Err(_) => {
                self.rows.truncate(rows);
                self.put_back(tenant, before);
            }
        }
        opened
    }

    fn open_after(&mut self, tenant: &TenantId, epoch: &str, ended: &LaneHead, ts: Timestamp) -> Result<(), LedgerError> {
        let predecessor = Predecessor { lane: ended.lane.to_string(), seq: ended.seq, receipt_hash: str::to_owned(&ended.hash) };
        let sealer = &mut *self.sealer;
        let lane = sealer.identity.lane_id(tenant, epoch);
        let open = sealer.identity.open_after_set_back(tenant, sealer.key.key_id(), &predecessor, ts, &mut sealer.entropy)?;
        self.open_lane(tenant, lane, ts, &open)
    }
}
