//! Callbacks about approvals: what is to be delivered, written with the change it tells of, and the secrets it is signed with.

use std::fmt;
use std::str::FromStr;

use aegis_model::{ApprovalStatus, EventId, TenantId, Timestamp, new_event_id};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use sqlx::any::AnyRow;

use crate::approvals::Tx;
use crate::error::on_insert;
use crate::tenants::{MAX_SECRET, Secret, check_len};
use crate::{MAX_PAGE, OutboxRow, Store, StoreError, outbox, row};

/// No callback is left alone for longer than this, seconds: what is to be tried later was noted by a clock that was ahead and was set back since.
const LONGEST_WAIT_S: i64 = 3600;

/// How far a callback is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallbackState {
    /// To be tried, first or again, when it is due.
    Waiting,
    /// The receiver took it.
    Delivered,
    /// Nobody tries any more.
    GivenUp,
}

impl CallbackState {
    /// The word in the table and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::GivenUp => "given_up",
        }
    }
}

impl fmt::Display for CallbackState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CallbackState {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "waiting" => Ok(Self::Waiting),
            "delivered" => Ok(Self::Delivered),
            "given_up" => Ok(Self::GivenUp),
            _ => Err("no state of a callback"),
        }
    }
}

/// One callback: a change of an approval, to be told to the URL that its request named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    pub tenant_id: TenantId,
    pub callback_id: EventId,
    pub approval_id: String,
    /// Which change of the approval this is, from 1.
    pub version: i64,
    pub url: String,
    /// What the approval changed to; PENDING after an edit.
    pub status: ApprovalStatus,
    /// The hash of the action that is up for approval since this change.
    pub action_hash: String,
    /// The event of the change, whose receipt may not be sealed yet.
    pub event_id: Option<EventId>,
    pub changed_at: Timestamp,
    pub state: CallbackState,
    /// How often it was tried.
    pub attempts: i64,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// When it is tried next.
    pub due_at: Timestamp,
}

/// The part of a frozen action that matters here.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    callback_url: Option<String>,
}

fn callback(r: &AnyRow) -> Result<Callback, StoreError> {
    Ok(Callback {
        tenant_id: row::tenant(r)?,
        callback_id: row::event_id(r, "callback_id")?,
        approval_id: row::get(r, "approval_id")?,
        version: row::get(r, "version")?,
        url: row::get(r, "url")?,
        status: row::word(r, "status")?,
        action_hash: row::get(r, "action_hash")?,
        event_id: row::optional_word(r, "event_id")?,
        changed_at: row::time(r, "changed_at")?,
        state: row::word(r, "state")?,
        attempts: row::get(r, "attempts")?,
        last_error: row::get(r, "last_error")?,
        due_at: row::time(r, "due_at")?,
    })
}

/// Queues the callback about what an approval has just become, if its request named one.
/// INVARIANT L-OUTBOX: called in the transaction of the change, after it, and only when the change happens.
pub(crate) async fn queue(
    tx: &mut Tx,
    tenant: &TenantId,
    approval_id: &str,
    now: Timestamp,
    facts: &[OutboxRow],
) -> Result<(), StoreError> {
    let found = sqlx::query("SELECT frozen, status, current_hash FROM approvals WHERE tenant_id = $1 AND approval_id = $2")
        .bind(tenant.as_str())
        .bind(approval_id)
        .fetch_optional(&mut **tx)
        .await?;
    let Some(found) = found else { return Ok(()) };
    let Named { callback_url: Some(url) } = row::json(&found, "frozen")? else { return Ok(()) };
    let status: ApprovalStatus = row::word(&found, "status")?;
    let action_hash: String = row::get(&found, "current_hash")?;
    sqlx::query(
        "INSERT INTO callbacks (tenant_id, approval_id, version, callback_id, url, status, action_hash, event_id, changed_at, state,
                                attempts, due_at)
         SELECT $1, $2, COUNT(*) + 1, $3, $4, $5, $6, $7, $8, 'waiting', 0, $8
         FROM callbacks WHERE tenant_id = $1 AND approval_id = $2",
    )
    .bind(tenant.as_str())
    .bind(approval_id)
    .bind(new_event_id().to_string())
    .bind(url)
    .bind(status.as_str())
    .bind(action_hash)
    .bind(facts.first().map(|fact| fact.event_id.to_string()))
    .bind(now.as_micros())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl Store {
    /// Tenants with a callback that is due, by id.
    pub async fn due_callback_tenants(&self, now: Timestamp) -> Result<Vec<TenantId>, StoreError> {
        let rows = sqlx::query(
            "SELECT tenant_id FROM tenants
             WHERE EXISTS (SELECT 1 FROM callbacks c WHERE c.tenant_id = tenants.tenant_id AND c.state = 'waiting' AND c.due_at <= $1)
                OR EXISTS (SELECT 1 FROM callbacks c WHERE c.tenant_id = tenants.tenant_id AND c.state = 'waiting' AND c.due_at > $2)
             ORDER BY tenant_id",
        )
        .bind(now.as_micros())
        .bind(now.plus_seconds(LONGEST_WAIT_S).as_micros())
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter().map(row::tenant).collect()
    }

    /// The tenant's callbacks that are due, the longest due first.
    pub async fn due_callbacks(&self, tenant: &TenantId, now: Timestamp, limit: u32) -> Result<Vec<Callback>, StoreError> {
        let limit = i64::from(limit.min(MAX_PAGE));
        let mut due = self.waiting_callbacks(tenant, (Timestamp::from_micros(i64::MIN), now), limit).await?;
        let left = limit.saturating_sub(i64::try_from(due.len()).unwrap_or(i64::MAX));
        if left > 0 {
            let put_off = (now.plus_seconds(LONGEST_WAIT_S).plus_micros(1), Timestamp::from_micros(i64::MAX));
            due.extend(self.waiting_callbacks(tenant, put_off, left).await?);
        }
        Ok(due)
    }

    /// Those that are due between two moments, both included: a walk along the index, however many wait.
    async fn waiting_callbacks(
        &self,
        tenant: &TenantId,
        (from, to): (Timestamp, Timestamp),
        limit: i64,
    ) -> Result<Vec<Callback>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM callbacks WHERE tenant_id = $1 AND state = 'waiting' AND due_at >= $2 AND due_at <= $3
             ORDER BY due_at, approval_id, version LIMIT $4",
        )
        .bind(tenant.as_str())
        .bind(from.as_micros())
        .bind(to.as_micros())
        .bind(limit)
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter().map(callback).collect()
    }

    /// Keeps what came of an attempt. `due_at`: when the next one is, where the callback goes on waiting. False if it was no longer waiting;
    /// nothing changes then.
    pub async fn note_callback(
        &self,
        tenant: &TenantId,
        callback_id: EventId,
        state: CallbackState,
        last_error: Option<&str>,
        due_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE callbacks SET state = $3, attempts = attempts + 1, last_error = $4, due_at = $5
             WHERE tenant_id = $1 AND callback_id = $2 AND state = 'waiting'",
        )
        .bind(tenant.as_str())
        .bind(callback_id.to_string())
        .bind(state.as_str())
        .bind(last_error)
        .bind(due_at.as_micros())
        .execute(&self.inner.writer)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// The callback about the last change of an approval.
    pub async fn approval_callback(&self, tenant: &TenantId, approval_id: &str) -> Result<Option<Callback>, StoreError> {
        let found =
            sqlx::query("SELECT * FROM callbacks WHERE tenant_id = $1 AND approval_id = $2 ORDER BY version DESC LIMIT 1")
                .bind(tenant.as_str())
                .bind(approval_id)
                .fetch_optional(&self.inner.readers)
                .await?;
        found.as_ref().map(callback).transpose()
    }

    /// How many callbacks wait, of all tenants; counted no further than a hundred thousand, so that no tenant's receiver makes counting slow.
    pub async fn callbacks_waiting(&self) -> Result<i64, StoreError> {
        let counted = "SELECT COUNT(*) FROM (SELECT 1 FROM callbacks WHERE state = 'waiting' LIMIT 100000) AS waiting";
        Ok(sqlx::query_scalar(counted).fetch_one(&self.inner.readers).await?)
    }

    /// Sets the secret that callbacks are signed with. The one before it signs too until `previous_until`. The same secret again changes
    /// nothing but that the one before it ends no later than now asked. Returns until when one before it signs.
    pub async fn put_callback_secret(
        &self,
        tenant: &TenantId,
        secret: &Secret,
        previous_until: Timestamp,
        facts: &[OutboxRow],
    ) -> Result<Option<Timestamp>, StoreError> {
        check_len("callback secret", secret.expose(), MAX_SECRET)?;
        let mut tx = self.begin_write().await?;
        let standing = sqlx::query("SELECT secret, previous, previous_until FROM callback_secrets WHERE tenant_id = $1")
            .bind(tenant.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        let previous = match standing {
            None => None,
            Some(r) => before(&r, secret, previous_until)?,
        };
        let now = self.now();
        let (previous, until) = previous.filter(|(_, until)| *until > now).unzip();
        sqlx::query(
            "INSERT INTO callback_secrets (tenant_id, secret, previous, previous_until, updated_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (tenant_id) DO UPDATE SET secret = excluded.secret, previous = excluded.previous,
                 previous_until = excluded.previous_until, updated_at = excluded.updated_at",
        )
        .bind(tenant.as_str())
        .bind(secret.expose())
        .bind(previous)
        .bind(until.map(Timestamp::as_micros))
        .bind(now.as_micros())
        .execute(&mut *tx)
        .await
        .map_err(on_insert(tenant, "callback secret"))?;
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(until)
    }

    /// The secrets that a callback is signed with now: the newest first; none where none was set.
    pub async fn callback_secrets(&self, tenant: &TenantId) -> Result<Vec<Secret>, StoreError> {
        let found = sqlx::query("SELECT secret, previous, previous_until FROM callback_secrets WHERE tenant_id = $1")
            .bind(tenant.as_str())
            .fetch_optional(&self.inner.readers)
            .await?;
        let Some(r) = found else { return Ok(Vec::new()) };
        let mut secrets = vec![Secret::new(row::get(&r, "secret")?)];
        let now = self.now();
        if let Some((previous, _)) = previous_of(&r)?.filter(|(_, until)| *until > now) {
            secrets.push(Secret::new(previous));
        }
        Ok(secrets)
    }
}

/// The secret before the newest, and until when it signs.
fn previous_of(r: &AnyRow) -> Result<Option<(String, Timestamp)>, StoreError> {
    let previous: Option<String> = row::get(r, "previous")?;
    Ok(previous.zip(row::optional_time(r, "previous_until")?))
}

/// What is the secret before the newest once `secret` is that.
fn before(r: &AnyRow, secret: &Secret, previous_until: Timestamp) -> Result<Option<(String, Timestamp)>, StoreError> {
    let newest: String = row::get(r, "secret")?;
    // By their digests: how long this takes tells nothing of what is kept.
    if Sha256::digest(newest.as_bytes()) == Sha256::digest(secret.expose().as_bytes()) {
        return Ok(previous_of(r)?.map(|(previous, until)| (previous, until.min(previous_until))));
    }
    Ok(Some((newest, previous_until)))
}
