//! Forgetting approvals that are long over. What happened to them stands in receipts and in the history; what is forgotten is the table's row, with
//! votes, edits and callbacks.
//! Promises that nothing is forgotten that can still be decided, consumed or told of, or whose frozen action the bus may still bring.

use std::sync::Arc;
use std::time::Duration;

use aegis_model::TenantId;
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
            if let Err(error) = control.forget_approvals().await {
                tracing::warn!(%error, "approvals that are over could not be forgotten: the tenants cannot be read");
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
    /// Forgets every approval that has been over for long.
    async fn forget_approvals(&self) -> Result<(), StoreError> {
        let ended_before = self.clock.now().plus_seconds(-KEPT_S);
        let store = &self.store;
        let forget = move |tenant: TenantId| async move { store.prune_approvals(&tenant, ended_before, BATCH).await };
        let pass = forget_each(self.store.list_tenants().await?, forget).await;
        if pass.forgotten > 0 {
            tracing::info!(count = pass.forgotten, "approvals that have been over for a month are forgotten");
        }
        if let Some((tenant, error)) = pass.failed.first() {
            let tenants = pass.failed.len();
            tracing::warn!(%tenant, %error, tenants, "approvals of some tenants that are over could not be forgotten; they are tried again");
        }
        Ok(())
    }
}

/// What came of a pass.
#[derive(Debug, Default)]
struct Pass {
    forgotten: u64,
    failed: Vec<(TenantId, StoreError)>,
}

/// Forgets batch by batch, tenant by tenant: one whose rows cannot be forgotten holds up nobody else's.
async fn forget_each<Done>(tenants: Vec<TenantId>, forget: impl Fn(TenantId) -> Done) -> Pass
where
    Done: Future<Output = Result<u64, StoreError>>,
{
    let mut pass = Pass::default();
    for tenant in tenants {
        loop {
            match forget(tenant.clone()).await {
                Ok(forgotten) => {
                    pass.forgotten += forgotten;
                    if forgotten < u64::from(BATCH) {
                        break;
                    }
                }
                Err(error) => {
                    pass.failed.push((tenant, error));
                    break;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    pass
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[tokio::test]
    async fn a_tenant_whose_approvals_cannot_be_forgotten_holds_up_nobody_else_s() {
        let tenants = ["a", "b", "c"].map(|tenant| TenantId::new(tenant).unwrap());
        // How many batches are left of each.
        let left = Mutex::new(std::collections::BTreeMap::from([("a", 0_u64), ("b", 1), ("c", 2)]));
        let forget = |tenant: TenantId| {
            let mut left = left.lock();
            let result = match left.get_mut(tenant.as_str()) {
                Some(batches) if tenant.as_str() != "b" => {
                    let full = *batches > 0;
                    *batches = batches.saturating_sub(1);
                    Ok(if full { u64::from(BATCH) } else { 3 })
                }
                _ => Err(StoreError::Invalid { what: "a row", why: "is spoiled" }),
            };
            std::future::ready(result)
        };
        let pass = forget_each(tenants.into(), forget).await;
        assert_eq!(pass.forgotten, 3 + 2 * u64::from(BATCH) + 3);
        let failed: Vec<&str> = pass.failed.iter().map(|(tenant, _)| tenant.as_str()).collect();
        assert_eq!(failed, ["b"]);
    }
}
