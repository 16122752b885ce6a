//! Forgetting approvals that are long over. What happened to them stands in receipts and in the history; what is forgotten is the table's row, with
//! votes, edits and callbacks.
//! Promises that nothing is forgotten that can still be decided, consumed or told of, or whose frozen action the bus may still bring.

use std::sync::Arc;
use std::time::Duration;

use aegis_store::StoreError;
use tokio::sync::watch;

use crate::control::Control;

/// How long an approval is kept after its end, seconds: several times as long as the stream keeps its frozen action.
pub(crate) const KEPT_S: i64 = 30 * 24 * 3600;
/// How many are forgotten in one transaction, and the pause behind one, in which others write.
const BATCH: u32 = 200;
const PAUSE: Duration = Duration::from_millis(20);

/// Forgets what is over until stopped.
pub(crate) async fn run(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    loop {
        let pass = async {
            match control.forget_approvals().await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "approvals that have been over for a month are forgotten"),
                Err(error) => tracing::warn!(%error, "approvals that are over could not be forgotten"),
            }
            tokio::time::sleep(control.config.prune_interval).await;
        };
        tokio::select! {
            () = pass => {}
            _ = stop.changed() => return,
        }
    }
}

impl Control {
    /// Forgets every approval that has been over for long. Returns how many there were.
    async fn forget_approvals(&self) -> Result<u64, StoreError> {
        let ended_before = self.clock.now().plus_seconds(-KEPT_S);
        let mut total = 0;
        for tenant in self.store.list_tenants().await? {
            loop {
                let forgotten = self.store.prune_approvals(&tenant, ended_before, BATCH).await?;
                total += forgotten;
                if forgotten < u64::from(BATCH) {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(total)
    }
}
