//! Containment: holds side by side on a target, `revoked`, which absorbs everything, and the cap on what rules may cause.
//! Every change takes the next revision; the state at a revision never changes afterwards.

use aegis_model::{ContainmentKind, ContainmentState, Hold, TargetType, TenantId, Timestamp, Verdict};
use sqlx::any::AnyRow;

use crate::error::on_insert;
use crate::tenants::check_name;
use crate::{OutboxRow, Store, StoreError, next_revision, outbox, row};

/// `by` of a hold that a rule caused starts with this.
pub const AUTOMATIC_PREFIX: &str = "rule:";

/// Holds of one kind that a target may have at a time: those of the other kind do not use up its room.
const MAX_HOLDS: i64 = 500;
/// Most bytes of their texts, and of what stands around each: a target's state is one entry of the control feed, and no more than a MiB reaches an edge.
const MAX_HOLDS_BYTES: i64 = 500_000;
const HOLD_BYTES: i64 = 256;
/// Most bytes of a character.
const CHAR_BYTES: i64 = 4;
/// The span over which automatic holds are capped, in seconds.
const CAP_SPAN_S: i64 = 3600;

/// What came of an automatic hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AutomaticHold {
    Applied(ContainmentState),
    /// The command was applied before.
    AlreadyApplied,
    /// The tenant's automatic holds of the last hour have reached the cap; nothing changed, and the command may come again.
    CapReached,
}

pub(crate) fn hold(r: &AnyRow) -> Result<Hold, StoreError> {
    Ok(Hold {
        hold_id: row::get(r, "hold_id")?,
        kind: row::word(r, "kind")?,
        reason: row::get(r, "reason")?,
        by: row::get(r, "held_by")?,
        since: row::time(r, "since")?,
        until: row::optional_time(r, "until")?,
    })
}

pub(crate) fn state(r: &AnyRow, holds: Vec<Hold>) -> Result<ContainmentState, StoreError> {
    Ok(ContainmentState {
        tenant_id: row::tenant(r)?,
        target_type: row::word(r, "target_type")?,
        target_id: row::get(r, "target_id")?,
        holds,
        revoked: row::flag(r, "revoked")?,
        revision: row::get(r, "revision")?,
        issued_at: row::time(r, "issued_at")?,
    })
}

/// A target, as bind values.
#[derive(Clone, Copy)]
struct Target<'a> {
    tenant: &'a TenantId,
    kind: TargetType,
    id: &'a str,
}

type Tx = crate::pool::Transaction;

impl Target<'_> {
    async fn read(self, tx: &mut Tx) -> Result<Option<ContainmentState>, StoreError> {
        let found = sqlx::query("SELECT * FROM containment_states WHERE tenant_id = $1 AND target_type = $2 AND target_id = $3")
            .bind(self.tenant.as_str())
            .bind(self.kind.as_str())
            .bind(self.id)
            .fetch_optional(&mut **tx)
            .await?;
        match found {
            Some(r) => Ok(Some(state(&r, self.holds(tx).await?)?)),
            None => Ok(None),
        }
    }

    /// The holds that have not been ended, the oldest first.
    async fn holds(self, tx: &mut Tx) -> Result<Vec<Hold>, StoreError> {
        let holds = sqlx::query(
            "SELECT * FROM containment_holds WHERE tenant_id = $1 AND target_type = $2 AND target_id = $3 AND ended_at IS NULL
             ORDER BY since, hold_id",
        )
        .bind(self.tenant.as_str())
        .bind(self.kind.as_str())
        .bind(self.id)
        .fetch_all(&mut **tx)
        .await?;
        holds.iter().map(hold).collect()
    }

    /// Takes the next revision for the target, creating its state when it has none, and ends the holds that have expired.
    /// INVARIANT L-REVOKED: `revoked` is only ever set, never cleared.
    async fn touch(self, tx: &mut Tx, revoke: bool, now: Timestamp) -> Result<(), StoreError> {
        let revision = next_revision(tx).await?;
        sqlx::query(
            "INSERT INTO containment_states (tenant_id, target_type, target_id, revoked, revision, issued_at)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (tenant_id, target_type, target_id) DO UPDATE SET
                 revoked = CASE WHEN containment_states.revoked = 1 THEN 1 ELSE excluded.revoked END, revision = excluded.revision, issued_at = excluded.issued_at",
        )
        .bind(self.tenant.as_str())
        .bind(self.kind.as_str())
        .bind(self.id)
        .bind(row::flag_value(revoke))
        .bind(revision)
        .bind(now.as_micros())
        .execute(&mut **tx)
        .await
        .map_err(on_insert(self.tenant, "containment target"))?;
        sqlx::query(
            "UPDATE containment_holds SET ended_at = until
             WHERE tenant_id = $1 AND target_type = $2 AND target_id = $3 AND ended_at IS NULL AND until <= $4",
        )
        .bind(self.tenant.as_str())
        .bind(self.kind.as_str())
        .bind(self.id)
        .bind(now.as_micros())
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    async fn insert_hold(self, tx: &mut Tx, hold: &Hold, now: Timestamp) -> Result<(), StoreError> {
        let found = sqlx::query(
            "SELECT COUNT(*) AS held, CAST(COALESCE(SUM(LENGTH(hold_id) + LENGTH(reason) + LENGTH(held_by)), 0) AS BIGINT) AS chars
             FROM containment_holds
             WHERE tenant_id = $1 AND target_type = $2 AND target_id = $3 AND kind = $4 AND ended_at IS NULL",
        )
        .bind(self.tenant.as_str())
        .bind(self.kind.as_str())
        .bind(self.id)
        .bind(hold.kind.as_str())
        .fetch_one(&mut **tx)
        .await?;
        let (held, chars): (i64, i64) = (row::get(&found, "held")?, row::get(&found, "chars")?);
        let more: i64 = [&hold.hold_id, &hold.reason, &hold.by].iter().map(|text| text.chars().count() as i64).sum();
        if held >= MAX_HOLDS || CHAR_BYTES * (chars + more) + HOLD_BYTES * (held + 1) > MAX_HOLDS_BYTES {
            return Err(StoreError::LimitReached { what: "holds on this target", limit: held });
        }
        sqlx::query(
            "INSERT INTO containment_holds (tenant_id, target_type, target_id, hold_id, kind, reason, held_by, automatic, since, until,
                                            applied_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(self.tenant.as_str())
        .bind(self.kind.as_str())
        .bind(self.id)
        .bind(hold.hold_id.as_str())
        .bind(hold.kind.as_str())
        .bind(hold.reason.as_str())
        .bind(hold.by.as_str())
        .bind(row::flag_value(hold.by.starts_with(AUTOMATIC_PREFIX)))
        .bind(hold.since.as_micros())
        .bind(hold.until.map(Timestamp::as_micros))
        .bind(now.as_micros())
        .execute(&mut **tx)
        .await
        .map_err(on_insert(self.tenant, "hold id"))?;
        Ok(())
    }

    /// Writes the facts, commits, and returns the state that was committed.
    async fn finish(self, mut tx: Tx, facts: &[OutboxRow]) -> Result<ContainmentState, StoreError> {
        outbox::write(&mut tx, self.tenant, facts).await?;
        let state = self.read(&mut tx).await?.ok_or(StoreError::Invalid { what: "containment target", why: "has no state" })?;
        tx.commit().await?;
        Ok(state)
    }
}

/// Whether the target is held or revoked at `now`.
pub(crate) async fn is_held(
    tx: &mut Tx,
    tenant: &TenantId,
    kind: TargetType,
    id: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let state = Target { tenant, kind, id }.read(tx).await?;
    Ok(state.is_some_and(|state| state.verdict_at(now) != Verdict::Free))
}

async fn automatic_since(tx: &mut Tx, tenant: &TenantId, since: Timestamp) -> Result<u32, StoreError> {
    let count: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM containment_holds WHERE tenant_id = $1 AND automatic = 1 AND applied_at > $2")
            .bind(tenant.as_str())
            .bind(since.as_micros())
            .fetch_one(&mut **tx)
            .await?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Records the command. False if it was recorded before.
async fn record_command(tx: &mut Tx, tenant: &TenantId, command_id: &str, now: Timestamp) -> Result<bool, StoreError> {
    let done = sqlx::query("INSERT INTO commands (tenant_id, command_id, applied_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
        .bind(tenant.as_str())
        .bind(command_id)
        .bind(now.as_micros())
        .execute(&mut **tx)
        .await
        .map_err(on_insert(tenant, "command"))?;
    Ok(done.rows_affected() > 0)
}

impl Store {
    /// Adds a hold beside those that are there. `Taken` if the target has had a hold of this id.
    pub async fn add_hold(
        &self,
        tenant: &TenantId,
        target_type: TargetType,
        target_id: &str,
        hold: &Hold,
        facts: &[OutboxRow],
    ) -> Result<ContainmentState, StoreError> {
        check_name("containment target", target_id)?;
        let target = Target { tenant, kind: target_type, id: target_id };
        let now = self.now();
        let mut tx = self.begin_write().await?;
        target.touch(&mut tx, false, now).await?;
        target.insert_hold(&mut tx, hold, now).await?;
        target.finish(tx, facts).await
    }

    /// Ends every hold of this kind; holds of the other kind, and `revoked`, stay.
    pub async fn release_holds(
        &self,
        tenant: &TenantId,
        target_type: TargetType,
        target_id: &str,
        kind: ContainmentKind,
        facts: &[OutboxRow],
    ) -> Result<ContainmentState, StoreError> {
        check_name("containment target", target_id)?;
        let target = Target { tenant, kind: target_type, id: target_id };
        let now = self.now();
        let mut tx = self.begin_write().await?;
        target.touch(&mut tx, false, now).await?;
        sqlx::query(
            "UPDATE containment_holds SET ended_at = $5
             WHERE tenant_id = $1 AND target_type = $2 AND target_id = $3 AND kind = $4 AND ended_at IS NULL",
        )
        .bind(tenant.as_str())
        .bind(target_type.as_str())
        .bind(target_id)
        .bind(kind.as_str())
        .bind(now.as_micros())
        .execute(&mut *tx)
        .await?;
        target.finish(tx, facts).await
    }

    /// Revokes the target for good; no call takes that back.
    pub async fn revoke(
        &self,
        tenant: &TenantId,
        target_type: TargetType,
        target_id: &str,
        facts: &[OutboxRow],
    ) -> Result<ContainmentState, StoreError> {
        check_name("containment target", target_id)?;
        let target = Target { tenant, kind: target_type, id: target_id };
        let mut tx = self.begin_write().await?;
        target.touch(&mut tx, true, self.now()).await?;
        target.finish(tx, facts).await
    }

    /// The target's state; none if nothing was ever done to it. Holds that have expired since the last change are still listed,
    /// with their `until`.
    pub async fn containment(
        &self,
        tenant: &TenantId,
        target_type: TargetType,
        target_id: &str,
    ) -> Result<Option<ContainmentState>, StoreError> {
        let mut tx = self.begin_read().await?;
        Target { tenant, kind: target_type, id: target_id }.read(&mut tx).await
    }

    /// The tenant's targets that are held or revoked at `now`, the newest change first.
    pub async fn contained(&self, tenant: &TenantId, now: Timestamp) -> Result<Vec<ContainmentState>, StoreError> {
        let mut tx = self.begin_read().await?;
        let rows = sqlx::query(
            "SELECT * FROM containment_states s WHERE s.tenant_id = $1 AND (s.revoked = 1 OR EXISTS (
                 SELECT 1 FROM containment_holds h
                 WHERE h.tenant_id = s.tenant_id AND h.target_type = s.target_type AND h.target_id = s.target_id
                   AND h.ended_at IS NULL AND (h.until IS NULL OR h.until > $2)))
             ORDER BY s.revision DESC",
        )
        .bind(tenant.as_str())
        .bind(now.as_micros())
        .fetch_all(&mut *tx)
        .await?;
        let mut contained = Vec::with_capacity(rows.len());
        for r in &rows {
            let target = Target { tenant, kind: row::word(r, "target_type")?, id: row::get(r, "target_id")? };
            contained.push(state(r, target.holds(&mut tx).await?)?);
        }
        Ok(contained)
    }

    /// How many holds rules have caused after `since`, those that have ended included.
    pub async fn automatic_holds_since(&self, tenant: &TenantId, since: Timestamp) -> Result<u32, StoreError> {
        let mut tx = self.begin_read().await?;
        automatic_since(&mut tx, tenant, since).await
    }

    /// INVARIANT L-COMMAND: true the first time, false ever after, for any number of concurrent calls.
    pub async fn apply_command(&self, tenant: &TenantId, command_id: &str) -> Result<bool, StoreError> {
        check_name("command id", command_id)?;
        let mut tx = self.begin_write().await?;
        let first = record_command(&mut tx, tenant, command_id, self.now()).await?;
        tx.commit().await?;
        Ok(first)
    }

    /// Adds a hold that a rule asked for: once per command, and at most `cap_per_hour` a tenant within an hour.
    /// INVARIANT L-CAP: command, count and hold are one transaction, so concurrent calls cannot pass the cap together.
    #[allow(clippy::too_many_arguments, reason = "the values of one command, each of its own kind")]
    pub async fn add_automatic_hold(
        &self,
        tenant: &TenantId,
        command_id: &str,
        target_type: TargetType,
        target_id: &str,
        hold: &Hold,
        cap_per_hour: u32,
        facts: &[OutboxRow],
    ) -> Result<AutomaticHold, StoreError> {
        check_name("command id", command_id)?;
        check_name("containment target", target_id)?;
        if !hold.by.starts_with(AUTOMATIC_PREFIX) {
            return Err(StoreError::Invalid { what: "automatic hold", why: "must be by `rule:<id>`" });
        }
        let target = Target { tenant, kind: target_type, id: target_id };
        let now = self.now();
        let mut tx = self.begin_write().await?;
        if !record_command(&mut tx, tenant, command_id, now).await? {
            return Ok(AutomaticHold::AlreadyApplied);
        }
        if automatic_since(&mut tx, tenant, now.plus_seconds(-CAP_SPAN_S)).await? >= cap_per_hour {
            // Dropping the transaction takes the command back too: it was not applied.
            return Ok(AutomaticHold::CapReached);
        }
        target.touch(&mut tx, false, now).await?;
        target.insert_hold(&mut tx, hold, now).await?;
        Ok(AutomaticHold::Applied(target.finish(tx, facts).await?))
    }
}
