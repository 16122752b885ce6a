//! How people decide approvals: votes (one a person), rejections, edits. Every decision happens in one transaction with its
//! facts and its callback.

use aegis_model::{ApprovalStatus, TenantId, Timestamp, ToolCall};

use crate::approvals::{DecideResult, Tx, VoteResult, standing, voters};
use crate::tenants::check_name;
use crate::{OutboxRow, Store, StoreError, callbacks, outbox, row, same_person};

/// Whether this person ever edited the action.
async fn has_edited(tx: &mut Tx, tenant: &TenantId, id: &str, person: &str) -> Result<bool, StoreError> {
    let editors: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT editor FROM approval_edits WHERE tenant_id = $1 AND approval_id = $2")
            .bind(tenant.as_str())
            .bind(id)
            .fetch_all(&mut **tx)
            .await?;
    Ok(editors.iter().any(|editor| same_person(editor, person)))
}

impl Store {
    /// Counts one person's approval of the action with `expected_hash`: the one that was shown to them. A person counts once; the
    /// facts are written with a vote that counts. Who edited the action may be one of several approvers, never the sole one.
    pub async fn record_approval_vote(
        &self,
        tenant: &TenantId,
        id: &str,
        approver: &str,
        expected_hash: &str,
        now: Timestamp,
        facts: &[OutboxRow],
    ) -> Result<VoteResult, StoreError> {
        check_name("approver", approver)?;
        let mut tx = self.begin_write().await?;
        let Some(found) = standing(&mut tx, tenant, id, now).await? else { return Ok(VoteResult::NotFound) };
        match found.status {
            ApprovalStatus::Pending => {}
            ApprovalStatus::Expired => return Ok(VoteResult::Expired),
            other => return Ok(VoteResult::Conflict(other)),
        }
        if found.current_hash != expected_hash {
            return Ok(VoteResult::HashChanged);
        }
        if found.needed <= 1 && has_edited(&mut tx, tenant, id, approver).await? {
            return Ok(VoteResult::SelfEdited);
        }
        // No other writer comes between this look and the vote.
        let before = voters(&mut tx, tenant, id).await?;
        let have = u32::try_from(before.len()).unwrap_or(u32::MAX);
        if before.iter().any(|voter| same_person(voter, approver)) {
            return Ok(VoteResult::NeedsMore { have, need: found.needed });
        }
        sqlx::query("INSERT INTO approval_votes (tenant_id, approval_id, approver, voted_at) VALUES ($1, $2, $3, $4)")
            .bind(tenant.as_str())
            .bind(id)
            .bind(approver)
            .bind(now.as_micros())
            .execute(&mut *tx)
            .await?;
        let have = have.saturating_add(1);
        let complete = have >= found.needed;
        if complete {
            sqlx::query(
                "UPDATE approvals SET status = 'APPROVED', decided_at = $3, decided_by = $4 WHERE tenant_id = $1 AND approval_id = $2",
            )
            .bind(tenant.as_str())
            .bind(id)
            .bind(now.as_micros())
            .bind(approver)
            .execute(&mut *tx)
            .await?;
            callbacks::queue(&mut tx, tenant, id, now, facts).await?;
        }
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(if complete { VoteResult::Approved } else { VoteResult::NeedsMore { have, need: found.needed } })
    }

    /// Rejects a pending approval for good.
    pub async fn reject_approval(
        &self,
        tenant: &TenantId,
        id: &str,
        by: &str,
        now: Timestamp,
        facts: &[OutboxRow],
    ) -> Result<DecideResult, StoreError> {
        let mut tx = self.begin_write().await?;
        let Some(found) = standing(&mut tx, tenant, id, now).await? else { return Ok(DecideResult::NotFound) };
        match found.status {
            ApprovalStatus::Pending => {}
            ApprovalStatus::Expired => return Ok(DecideResult::Expired),
            other => return Ok(DecideResult::Conflict(other)),
        }
        sqlx::query(
            "UPDATE approvals SET status = 'REJECTED', decided_at = $3, decided_by = $4 WHERE tenant_id = $1 AND approval_id = $2",
        )
        .bind(tenant.as_str())
        .bind(id)
        .bind(now.as_micros())
        .bind(by)
        .execute(&mut *tx)
        .await?;
        callbacks::queue(&mut tx, tenant, id, now, facts).await?;
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(DecideResult::Done)
    }

    /// Puts another action in the place of a pending or approved one: a new hash, judged under `policy_digest`, no votes, PENDING.
    #[allow(clippy::too_many_arguments, reason = "the values of one edit, each of its own kind")]
    pub async fn edit_approval(
        &self,
        tenant: &TenantId,
        id: &str,
        by: &str,
        call: &ToolCall,
        new_hash: &str,
        policy_digest: &str,
        facts: &[OutboxRow],
    ) -> Result<DecideResult, StoreError> {
        check_name("editor", by)?;
        let now = self.now();
        let mut tx = self.begin_write().await?;
        let Some(found) = standing(&mut tx, tenant, id, now).await? else { return Ok(DecideResult::NotFound) };
        match found.status {
            ApprovalStatus::Pending | ApprovalStatus::Approved => {}
            ApprovalStatus::Expired => return Ok(DecideResult::Expired),
            other => return Ok(DecideResult::Conflict(other)),
        }
        sqlx::query(
            "UPDATE approvals SET status = 'PENDING', edited = $3, edited_by = $4, current_hash = $5, policy_digest = $6,
                                  decided_at = NULL, decided_by = NULL
             WHERE tenant_id = $1 AND approval_id = $2",
        )
        .bind(tenant.as_str())
        .bind(id)
        .bind(row::to_json(call, "edited")?)
        .bind(by)
        .bind(new_hash)
        .bind(policy_digest)
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM approval_votes WHERE tenant_id = $1 AND approval_id = $2")
            .bind(tenant.as_str())
            .bind(id)
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "INSERT INTO approval_edits (tenant_id, approval_id, place, editor, action_hash, policy_digest, edited_at)
             SELECT $1, $2, COUNT(*), $3, $4, $5, $6 FROM approval_edits WHERE tenant_id = $1 AND approval_id = $2",
        )
        .bind(tenant.as_str())
        .bind(id)
        .bind(by)
        .bind(new_hash)
        .bind(policy_digest)
        .bind(now.as_micros())
        .execute(&mut *tx)
        .await?;
        callbacks::queue(&mut tx, tenant, id, now, facts).await?;
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(DecideResult::Done)
    }
}
