//! How lanes begin and end: the successors of those that an earlier start left open, and the `close` of each at a clean stop.

use aegis_model::TenantId;

use crate::LedgerError;
use crate::commit::WriteError;
use crate::recovery::UncleanLane;
use crate::seal::SealedBatch;
use crate::writer::Writer;

/// Tenants whose lanes one transaction opens after an unclean stop, or closes; and losses that one commit tells.
pub(crate) const LANES_PER_COMMIT: usize = 256;

impl Writer {
    /// Opens a new lane, with its gap, for each lane that ended without a `close`. Part of opening the ledger.
    pub(crate) async fn succeed_unclean_lanes(&mut self, unclean: Vec<UncleanLane>) -> Result<(), LedgerError> {
        let mut rest = unclean.into_iter().peekable();
        while rest.peek().is_some() {
            let mut batch = self.sealer.batch(self.clock.now());
            for lane in rest.by_ref().take(LANES_PER_COMMIT) {
                tracing::warn!(tenant = %lane.tenant_id, damaged = lane.damage.len(), "a lane ended without a close; a gap is sealed");
                batch.succeed(lane)?;
            }
            let sealed = batch.finish();
            self.write_own(sealed).await?;
        }
        Ok(())
    }

    /// Seals `close` in every open lane. Can be asked again if the disk refused.
    pub(crate) async fn close(&mut self) -> Result<(), LedgerError> {
        self.drain().await;
        self.catch_up().await;
        if !self.writable() {
            return Err(LedgerError::Unavailable("the lanes could not be closed".to_owned()));
        }
        self.closed = true;
        let mut tenants: Vec<TenantId> = self.sealer.lanes.keys().cloned().collect();
        tenants.sort_unstable();
        for some in tenants.chunks(LANES_PER_COMMIT) {
            let mut batch = self.sealer.batch(self.clock.now());
            for tenant in some {
                batch.close_lane(tenant)?;
            }
            let sealed = batch.finish();
            self.write_own(sealed).await?;
        }
        Ok(())
    }

    /// Writes a batch of the lanes' own receipts.
    async fn write_own(&mut self, sealed: Option<SealedBatch>) -> Result<(), LedgerError> {
        let Some(sealed) = sealed else { return Ok(()) };
        match self.disk.write(Some(&sealed), &self.shared.counters, self.clock.now()).await {
            Ok(()) => {
                self.acknowledge(sealed, Vec::new(), Vec::new());
                Ok(())
            }
            Err(error) => {
                self.set_writable(false);
                let reason = error.to_string();
                if matches!(error, WriteError::InDoubt(_)) {
                    self.in_doubt = Some(sealed);
                }
                Err(LedgerError::Unavailable(reason))
            }
        }
    }
}
