//! Approvals: one frozen action each, PENDING → APPROVED | REJECTED | EXPIRED, then CONSUMED once. Past `expires_at` an approval
//! reads as EXPIRED whether or not anybody has swept it. Votes and edits are in `approval_votes`, consuming is in `approval_consume`.

use aegis_model::{ApprovalStatus, FrozenAction, TenantId, Timestamp, ToolCall};
use sqlx::any::AnyRow;

use crate::error::on_insert;
use crate::tenants::check_name;
use crate::{MAX_PAGE, OutboxRow, Store, StoreError, callbacks, outbox, page, row};

/// An approval as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct ApprovalRow {
    pub frozen: FrozenAction,
    pub status: ApprovalStatus,
    /// The edited action that is now up for approval.
    pub edited: Option<ToolCall>,
    /// Who edited it last.
    pub edited_by: Option<String>,
    /// The hash a consume must present: the frozen action's, or the edited one's.
    pub current_hash: String,
    /// Digest of the policies that saw the current action.
    pub policy_digest: String,
    /// Who has approved the current action, in the order of their votes.
    pub approved_by: Vec<String>,
    /// When it was approved (last vote) or rejected.
    pub decided_at: Option<Timestamp>,
    /// Who rejected it, or whose vote completed it.
    pub decided_by: Option<String>,
    pub consumed_at: Option<Timestamp>,
    /// The digest of the request that consumed it, if that named one.
    pub consume_request: Option<String>,
}

/// What came of a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VoteResult {
    /// This vote completed it.
    Approved,
    /// Counted (once a person); more are needed.
    NeedsMore {
        have: u32,
        need: u32,
    },
    /// It is not pending.
    Conflict(ApprovalStatus),
    /// The approver edited the action and would be its sole approver.
    SelfEdited,
    /// The action is not the one the approver was shown.
    HashChanged,
    Expired,
    NotFound,
}

/// What came of a rejection or an edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecideResult {
    Done,
    /// Its status does not admit it.
    Conflict(ApprovalStatus),
    Expired,
    NotFound,
}

pub(crate) type Tx = crate::pool::Transaction;

/// What there is of an approval, in an order that leaves nothing without it.
const FORGET: [&str; 4] = [
    "DELETE FROM callbacks WHERE tenant_id = $1 AND approval_id = $2",
    "DELETE FROM approval_votes WHERE tenant_id = $1 AND approval_id = $2",
    "DELETE FROM approval_edits WHERE tenant_id = $1 AND approval_id = $2",
    "DELETE FROM approvals WHERE tenant_id = $1 AND approval_id = $2",
];

/// The status at `now`: time alone turns an undecided or unconsumed approval into an expired one.
pub(crate) fn status_at(stored: ApprovalStatus, expires_at: Timestamp, now: Timestamp) -> ApprovalStatus {
    match stored {
        ApprovalStatus::Pending | ApprovalStatus::Approved if expires_at <= now => ApprovalStatus::Expired,
        other => other,
    }
}

fn approval(r: &AnyRow, approved_by: Vec<String>, now: Timestamp) -> Result<ApprovalRow, StoreError> {
    let frozen: FrozenAction = row::json(r, "frozen")?;
    let status = status_at(row::word(r, "status")?, row::time(r, "expires_at")?, now);
    Ok(ApprovalRow {
        frozen,
        status,
        edited: row::optional_json(r, "edited")?,
        edited_by: row::get(r, "edited_by")?,
        current_hash: row::get(r, "current_hash")?,
        policy_digest: row::get(r, "policy_digest")?,
        approved_by,
        decided_at: row::optional_time(r, "decided_at")?,
        decided_by: row::get(r, "decided_by")?,
        consumed_at: row::optional_time(r, "consumed_at")?,
        consume_request: row::get(r, "consume_request")?,
    })
}

pub(crate) async fn voters(tx: &mut Tx, tenant: &TenantId, id: &str) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT approver FROM approval_votes WHERE tenant_id = $1 AND approval_id = $2 ORDER BY voted_at, approver",
    )
    .bind(tenant.as_str())
    .bind(id)
    .fetch_all(&mut **tx)
    .await?)
}

/// What a decision about an approval looks at first.
pub(crate) struct Standing {
    pub(crate) status: ApprovalStatus,
    pub(crate) current_hash: String,
    pub(crate) needed: u32,
}

pub(crate) async fn standing(tx: &mut Tx, tenant: &TenantId, id: &str, now: Timestamp) -> Result<Option<Standing>, StoreError> {
    let found = sqlx::query(
        "SELECT status, current_hash, approvals_needed, expires_at FROM approvals WHERE tenant_id = $1 AND approval_id = $2",
    )
    .bind(tenant.as_str())
    .bind(id)
    .fetch_optional(&mut **tx)
    .await?;
    let Some(r) = found else { return Ok(None) };
    Ok(Some(Standing {
        status: status_at(row::word(&r, "status")?, row::time(&r, "expires_at")?, now),
        current_hash: row::get(&r, "current_hash")?,
        needed: u32::try_from(row::get::<i64>(&r, "approvals_needed")?).unwrap_or(u32::MAX),
    }))
}

impl Store {
    /// Keeps a frozen action as a pending approval. False if it is known already; nothing changes then.
    pub async fn insert_approval(&self, frozen: &FrozenAction) -> Result<bool, StoreError> {
        check_name("approval id", &frozen.approval_id)?;
        let tenant = &frozen.tenant_id;
        let done = sqlx::query(
            "INSERT INTO approvals (tenant_id, approval_id, agent_id, status, frozen, current_hash, policy_digest, approvals_needed,
                                    requested_at, expires_at)
             VALUES ($1, $2, $3, 'PENDING', $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
        )
        .bind(tenant.as_str())
        .bind(frozen.approval_id.as_str())
        .bind(frozen.agent_id.as_str())
        .bind(row::to_json(frozen, "frozen")?)
        .bind(frozen.action_hash.as_str())
        .bind(frozen.policy_digest.as_str())
        .bind(i64::from(frozen.approvals_needed.max(1)))
        .bind(frozen.requested_at.as_micros())
        .bind(frozen.expires_at.as_micros())
        .execute(&self.inner.writer)
        .await
        .map_err(on_insert(tenant, "approval"))?;
        Ok(done.rows_affected() > 0)
    }

    /// An approval as it stands now.
    pub async fn approval(&self, tenant: &TenantId, id: &str) -> Result<Option<ApprovalRow>, StoreError> {
        let mut tx = self.begin_read().await?;
        let found = sqlx::query("SELECT * FROM approvals WHERE tenant_id = $1 AND approval_id = $2")
            .bind(tenant.as_str())
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?;
        let Some(found) = found else { return Ok(None) };
        let approved_by = voters(&mut tx, tenant, id).await?;
        Ok(Some(approval(&found, approved_by, self.now())?))
    }

    /// The tenant's approvals, newest first, of one status or of all.
    pub async fn list_approvals(
        &self,
        tenant: &TenantId,
        status: Option<ApprovalStatus>,
        limit: u32,
        offset: u32,
    ) -> Result<Vec<ApprovalRow>, StoreError> {
        let (limit, offset) = page(limit, offset);
        let now = self.now();
        let mut tx = self.begin_read().await?;
        let rows = sqlx::query(
            "SELECT * FROM approvals
             WHERE tenant_id = $1 AND ($2 IS NULL OR $2 =
                 CASE WHEN status IN ('PENDING', 'APPROVED') AND expires_at <= $3 THEN 'EXPIRED' ELSE status END)
             ORDER BY requested_at DESC, approval_id DESC LIMIT $4 OFFSET $5",
        )
        .bind(tenant.as_str())
        .bind(status.map(ApprovalStatus::as_str))
        .bind(now.as_micros())
        .bind(limit)
        .bind(offset)
        .fetch_all(&mut *tx)
        .await?;
        let mut listed = Vec::with_capacity(rows.len());
        for r in &rows {
            let approved_by = voters(&mut tx, tenant, row::get(r, "approval_id")?).await?;
            listed.push(approval(r, approved_by, now)?);
        }
        Ok(listed)
    }

    /// What is past its time and not marked yet, oldest first: for a caller that writes a fact with each expiry
    /// (`expire_approval`).
    pub async fn due_approvals(&self, now: Timestamp, limit: u32) -> Result<Vec<(TenantId, String)>, StoreError> {
        let rows = sqlx::query(
            "SELECT tenant_id, approval_id FROM approvals WHERE status IN ('PENDING', 'APPROVED') AND expires_at <= $1
             ORDER BY expires_at LIMIT $2",
        )
        .bind(now.as_micros())
        .bind(i64::from(limit.min(MAX_PAGE)))
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter().map(|r| Ok((row::tenant(r)?, row::get(r, "approval_id")?))).collect()
    }

    /// Marks one approval that is past its time as EXPIRED, with its facts. False if there was nothing to mark.
    pub async fn expire_approval(
        &self,
        tenant: &TenantId,
        id: &str,
        now: Timestamp,
        facts: &[OutboxRow],
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin_write().await?;
        let done = sqlx::query(
            "UPDATE approvals SET status = 'EXPIRED'
             WHERE tenant_id = $1 AND approval_id = $2 AND status IN ('PENDING', 'APPROVED') AND expires_at <= $3",
        )
        .bind(tenant.as_str())
        .bind(id)
        .bind(now.as_micros())
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        callbacks::queue(&mut tx, tenant, id, now, facts).await?;
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Forgets approvals of the tenant that are over, and whose time and whose asking lie before `ended_before`, with votes, edits and callbacks; at
    /// most `limit`, the oldest first. One with a callback that waits stays. Returns how many: fewer than `limit` where no more are left.
    pub async fn prune_approvals(&self, tenant: &TenantId, ended_before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let mut tx = self.begin_write().await?;
        let over: Vec<String> = sqlx::query_scalar(
            "SELECT approval_id FROM approvals
             WHERE tenant_id = $1 AND requested_at < $2 AND expires_at < $2 AND status IN ('REJECTED', 'EXPIRED', 'CONSUMED')
               AND NOT EXISTS (SELECT 1 FROM callbacks c
                   WHERE c.tenant_id = approvals.tenant_id AND c.approval_id = approvals.approval_id AND c.state = 'waiting')
             ORDER BY requested_at LIMIT $3",
        )
        .bind(tenant.as_str())
        .bind(ended_before.as_micros())
        .bind(i64::from(limit.min(MAX_PAGE)))
        .fetch_all(&mut *tx)
        .await?;
        for id in &over {
            for statement in FORGET {
                sqlx::query(statement).bind(tenant.as_str()).bind(id.as_str()).execute(&mut *tx).await?;
            }
        }
        tx.commit().await?;
        Ok(over.len() as u64)
    }
}
