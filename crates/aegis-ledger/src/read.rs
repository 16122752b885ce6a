//! What a ledger gives back: to the shipper, to whoever reads the past, to a start that rebuilds its memory, and to exports.
//! Promises that one damaged row, or one page of the file that cannot be read, hides no other row from the shipper or from `read_kept`.

use std::time::Duration;

use aegis_model::{EventId, EventKind, SealedEvent, TenantId, Timestamp};
use futures_util::TryStreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, SqlitePool};

use crate::error::{is_corruption, is_unreadable, read_error};
use crate::rows::{FROZEN_WEIGHT, RowError, item_as_it_stands, item_of, select_items};
use crate::{ExportLine, Ledger, LedgerError, MAX_READ, OutboxItem, export};

/// Bytes of events, receipts and frozen actions that one read for the shipper or of the past takes, about.
const MOST_BYTES: usize = 8 << 20;

/// Rows that are looked for one by one, around a page that cannot be read, before the caller hears of those that were found.
const MOST_SINGLE: i64 = 256;

/// How often a row that cannot be read is tried: a disk's hiccup must not cost evidence.
const TRIES: usize = 3;

/// Between the tries.
const TRY_AGAIN: Duration = Duration::from_millis(20);

impl Ledger {
    /// Receipts after `after_row`, in row order, at most `limit` (and `MAX_READ`), and no more than fit into some MiB. Empty only at the end.
    pub async fn read_outbox(&self, after_row: i64, limit: usize) -> Result<Vec<OutboxItem>, LedgerError> {
        self.read_rows(&self.inner.outbox_reader, after_row, self.last_row(), limit).await
    }

    /// The same up to `last_row`, for whoever reads again what was shipped.
    pub async fn read_kept(&self, after_row: i64, last_row: i64, limit: usize) -> Result<Vec<OutboxItem>, LedgerError> {
        self.read_rows(&self.inner.kept_reader, after_row, last_row, limit).await
    }

    /// A stretch of nothing but damaged rows must not look like the end.
    async fn read_rows(
        &self,
        reader: &SqlitePool,
        after_row: i64,
        last_row: i64,
        limit: usize,
    ) -> Result<Vec<OutboxItem>, LedgerError> {
        let mut after = after_row;
        while after < last_row && limit > 0 {
            let query = sqlx::query(select_items!("WHERE r.row > ? AND r.row <= ? ORDER BY r.row LIMIT ?"))
                .bind(after)
                .bind(last_row)
                .bind(limit.min(MAX_READ) as i64);
            let items = match fetch(query, reader).await {
                Ok(rows) => {
                    let Some(last) = rows.last() else { break };
                    after = sqlx::Row::try_get(last, "row").map_err(|e| read_error(&e))?;
                    readable(&rows, item_of)?
                }
                Err(error) if is_unreadable(&error) => {
                    let end = last_row.min(after.saturating_add(MOST_SINGLE.min(limit.min(MAX_READ) as i64)));
                    tracing::error!(%error, after_row = after, up_to_row = end, "a page of the ledger cannot be read; reading around it");
                    let items = read_singly(reader, after, end).await?;
                    after = end;
                    items
                }
                Err(error) => return Err(read_error(&error)),
            };
            if !items.is_empty() {
                return Ok(items);
            }
        }
        Ok(Vec::new())
    }

    /// Receipts of a lane from `from_seq` to `to_seq`, in order, at most `limit` (and `MAX_READ`), and no more than fit into some MiB: for whoever
    /// lacks them.
    pub async fn read_lane(&self, lane: &str, from_seq: i64, to_seq: i64, limit: usize) -> Result<Vec<OutboxItem>, LedgerError> {
        let query = sqlx::query(select_items!("WHERE l.lane = ? AND r.seq >= ? AND r.seq <= ? ORDER BY r.seq LIMIT ?"))
            .bind(lane)
            .bind(from_seq)
            .bind(to_seq)
            .bind(limit.min(MAX_READ) as i64);
        let rows = fetch(query, &self.inner.kept_reader).await.map_err(|e| read_error(&e))?;
        readable(&rows, item_of)
    }

    /// True if the tenant has a receipt for this event.
    pub async fn contains(&self, tenant: &TenantId, event_id: EventId) -> Result<bool, LedgerError> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM receipts WHERE tenant_id = ? AND event_id = ?")
            .bind(tenant.as_str())
            .bind(event_id.as_bytes().as_slice())
            .fetch_one(&self.inner.readers)
            .await
            .map_err(|e| read_error(&e))?;
        Ok(count > 0)
    }

    /// Receipts of all tenants whose event is of one of `kinds` (all, if empty) and not earlier than `since`, in row order after
    /// `after_row`: what a start rebuilds its memory from. None come back only at the end.
    pub async fn recent(
        &self,
        since: Timestamp,
        kinds: &[EventKind],
        after_row: i64,
        limit: usize,
    ) -> Result<Vec<OutboxItem>, LedgerError> {
        let words = kind_words(kinds)?;
        let mut after = after_row;
        loop {
            // Commits are few and know the latest time in them, so they give the place to start from without an index over `ts`.
            let rows = sqlx::query(select_items!(
                "WHERE r.row > ?1 AND r.row >= (SELECT coalesce(min(first_row), 9223372036854775807) FROM commits WHERE max_ts >= ?2) \
                 AND r.ts >= ?2 AND (?3 = '[]' OR r.kind IN (SELECT value FROM json_each(?3))) ORDER BY r.row LIMIT ?4"
            ))
            .bind(after)
            .bind(since.as_micros())
            .bind(words.as_str())
            .bind(limit.min(MAX_READ) as i64)
            .fetch_all(&self.inner.readers)
            .await
            .map_err(|e| read_error(&e))?;
            let Some(last) = rows.last() else { return Ok(Vec::new()) };
            after = sqlx::Row::try_get(last, "row").map_err(|e| read_error(&e))?;
            // What a damaged row says of a label or a nonce is no reason to forget it.
            let items = readable(&rows, item_as_it_stands)?;
            // Nothing but rows of which nothing can be made is not the end.
            if !items.is_empty() {
                return Ok(items);
            }
        }
    }

    /// The time of the event of the last receipt of one of `kinds`; none without one.
    pub async fn latest(&self, kinds: &[EventKind]) -> Result<Option<Timestamp>, LedgerError> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT ts FROM receipts WHERE kind IN (SELECT value FROM json_each(?)) ORDER BY row DESC LIMIT 1",
        )
        .bind(kind_words(kinds)?)
        .fetch_optional(&self.inner.readers)
        .await
        .map_err(|e| read_error(&e))?;
        Ok(found.map(Timestamp::from_micros))
    }

    /// The tenant's receipt for an event.
    pub async fn receipt(&self, tenant: &TenantId, event_id: EventId) -> Result<Option<SealedEvent>, LedgerError> {
        let row = sqlx::query(select_items!("WHERE r.tenant_id = ? AND r.event_id = ?"))
            .bind(tenant.as_str())
            .bind(event_id.as_bytes().as_slice())
            .fetch_optional(&self.inner.readers)
            .await
            .map_err(|e| read_error(&e))?;
        match row {
            Some(row) => item_of(&row).map(|item| Some(item.sealed)).map_err(|e| LedgerError::Read(e.to_string())),
            None => Ok(None),
        }
    }

    /// The tenant's receipts after `after_row`, in row order, so that each lane's are in seq order.
    pub async fn export(&self, tenant: &TenantId, after_row: i64, limit: usize) -> Result<Vec<ExportLine>, LedgerError> {
        export::lines(&self.inner.readers, tenant, after_row, limit).await
    }
}

type Select<'q> = sqlx::query::Query<'q, Sqlite, <Sqlite as sqlx::Database>::Arguments>;

/// The rows of a query, up to the bound of one read; the first in any case.
async fn fetch(query: Select<'_>, reader: &SqlitePool) -> Result<Vec<SqliteRow>, sqlx::Error> {
    let mut found = query.fetch(reader);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while bytes < MOST_BYTES
        && let Some(row) = found.try_next().await?
    {
        bytes += weight(&row);
        rows.push(row);
    }
    Ok(rows)
}

/// Most of a body is made again from its event.
fn weight(row: &SqliteRow) -> usize {
    let length = |column: &str| sqlx::Row::try_get::<&str, _>(row, column).map_or(0, str::len);
    2 * length("event") + length("receipt") + FROZEN_WEIGHT * length("frozen")
}

/// The kinds as a JSON list.
fn kind_words(kinds: &[EventKind]) -> Result<String, LedgerError> {
    let words: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
    serde_json::to_string(&words).map_err(|e| LedgerError::Read(e.to_string()))
}

/// The rows after `after` up to `end`, each by itself. One that stays unreadable is left out, loudly, if others can be read: consumers will see its
/// gap. Where none can, the disk is to blame and not a page of it, and that may pass: an error, so that nobody passes over rows that are sound.
async fn read_singly(reader: &SqlitePool, after: i64, end: i64) -> Result<Vec<OutboxItem>, LedgerError> {
    let mut items = Vec::new();
    let mut failed = Vec::new();
    for row in after + 1..=end {
        match read_one(reader, row).await {
            Ok(found) => items.extend(found),
            Err(error) if is_unreadable(&error) => failed.push((row, error)),
            Err(error) => return Err(read_error(&error)),
        }
    }
    // Once more, behind all others: what failed while the disk did is there again.
    for (row, first) in failed {
        match read_one(reader, row).await {
            Ok(found) => items.extend(found),
            Err(error) if is_corruption(&error) || (is_unreadable(&error) && !items.is_empty()) => {
                tracing::error!(%error, row, "a row of the ledger cannot be read");
            }
            Err(_) => return Err(read_error(&first)),
        }
    }
    items.sort_unstable_by_key(|item| item.row);
    Ok(items)
}

/// One row, tried a few times; none where the number is not given away or the row is damaged.
async fn read_one(reader: &SqlitePool, row: i64) -> Result<Vec<OutboxItem>, sqlx::Error> {
    let mut tries = 1;
    loop {
        let found = sqlx::query(select_items!("WHERE r.row = ?")).bind(row).fetch_all(reader).await;
        match found {
            Err(error) if is_unreadable(&error) && tries < TRIES => tokio::time::sleep(TRY_AGAIN).await,
            Err(error) => return Err(error),
            Ok(rows) => return Ok(readable(&rows, item_of).unwrap_or_default()),
        }
        tries += 1;
    }
}

/// The readable rows. A damaged one is left out, loudly: consumers will see its gap, and the rest must still be shipped.
fn readable(rows: &[SqliteRow], read: fn(&SqliteRow) -> Result<OutboxItem, RowError>) -> Result<Vec<OutboxItem>, LedgerError> {
    let mut items = Vec::with_capacity(rows.len());
    for row in rows {
        match read(row) {
            Ok(item) => items.push(item),
            Err(RowError::Sql(error)) if error.as_database_error().is_some() => return Err(read_error(&error)),
            Err(error) => {
                let row = sqlx::Row::try_get::<i64, _>(row, "row").unwrap_or_default();
                tracing::error!(%error, row, "a row of the ledger is damaged and cannot be shipped");
            }
        }
    }
    Ok(items)
}
