//! The clock of approvals: past its time an approval is EXPIRED, which is a deny, and the log says so.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use aegis_model::{ApprovalStatus, EventKind, Phase, TenantId};
use serde_json::json;
use tokio::sync::watch;

use crate::control::Control;
use crate::problem::Problem;

/// How many approvals one pass expires.
const PASS: u32 = 500;

/// Expires what is due until stopped, and keeps the gauge of open incidents current.
pub(crate) async fn run(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    loop {
        if let Err(problem) = control.expire_due().await {
            tracing::warn!(code = problem.code, "approvals could not be expired");
        }
        match control.store.open_incidents_total().await {
            Ok(open) => control.metrics.incidents_open.inner().store(i64::try_from(open).unwrap_or(i64::MAX), Ordering::Relaxed),
            Err(error) => tracing::warn!(%error, "open incidents could not be counted"),
        }
        tokio::select! {
            () = tokio::time::sleep(control.config.expiry_interval) => {}
            _ = stop.changed() => return,
        }
    }
}

impl Control {
    /// Expires every approval that is due. Returns how many there were.
    pub(crate) async fn expire_due(&self) -> Result<usize, Problem> {
        let due = self.store.due_approvals(self.clock.now(), PASS).await?;
        let mut expired = 0;
        for (tenant, id) in &due {
            expired += usize::from(self.expire(tenant, id).await?);
        }
        Ok(expired)
    }

    async fn expire(&self, tenant: &TenantId, id: &str) -> Result<bool, Problem> {
        let Some(row) = self.store.approval(tenant, id).await? else { return Ok(false) };
        let mut draft = self.approval_draft(&row.frozen, EventKind::ApprovalDecided, Phase::Approval);
        draft.event.status = Some(ApprovalStatus::Expired.to_string());
        draft.event.action_hash = Some(row.current_hash.clone());
        draft.detail = Some(json!({"change": "expired", "approved_by": row.approved_by, "by": {"type": "timer"}}));
        let pending = self.prepare(draft)?;
        if !self.store.expire_approval(tenant, id, self.clock.now(), pending.rows()).await? {
            return Ok(false);
        }
        self.seal(pending).await?;
        self.callback_queued.notify_one();
        Ok(true)
    }
}
