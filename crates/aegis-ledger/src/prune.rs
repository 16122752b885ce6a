//! Rows that need not be kept any more: what somebody else has for good, and is old. Promises that a lane keeps its end, by which the next start knows what it
//! follows, that what is kept verifies by itself, and that a prune is short: the writer, and whoever waits for a receipt, waits for it.

use aegis_model::Timestamp;
use sqlx::{Connection, SqliteConnection};

use crate::error::read_error;
use crate::{Ledger, LedgerError};

/// Rows that one prune deletes at most.
const PRUNE_ROWS: i64 = 256;

/// The last receipts of a lane that is open, which stay: a start checks as many of one that was not closed, and goes back to the last sound one.
const KEPT_OF_OPEN: i64 = 64;

/// What may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prunable {
    pub(crate) lane: String,
    pub(crate) through_seq: i64,
    pub(crate) before: Timestamp,
}

const DELETE: &str = "DELETE FROM receipts WHERE row IN (
  SELECT r.row FROM receipts r JOIN lanes l ON l.lane_no = r.lane_no
  WHERE l.lane = ?1 AND r.seq <= ?2 AND r.ts < ?3 AND r.row <= ?4
    AND r.seq <= (SELECT max(seq) FROM receipts WHERE lane_no = l.lane_no) - CASE l.state WHEN 'open' THEN ?5 ELSE 1 END
  ORDER BY r.seq LIMIT ?6)
RETURNING commit_id";

/// Of the commits that lost a row: those that have none any more say nothing.
const DELETE_COMMITS: &str = "DELETE FROM commits WHERE commit_id IN (SELECT value FROM json_each(?))
  AND NOT EXISTS (SELECT 1 FROM receipts WHERE row BETWEEN first_row AND first_row + size - 1)
  AND NOT EXISTS (SELECT 1 FROM quarantined_rows WHERE row BETWEEN first_row AND first_row + size - 1)";

/// Of each lane the oldest receipt that may go, by index alone: times never decrease within a lane.
const OLD: &str = "SELECT lane FROM lanes l WHERE lane > ?1 AND (
    SELECT ts FROM receipts r WHERE r.lane_no = l.lane_no
      AND r.seq <= (SELECT max(seq) FROM receipts WHERE lane_no = l.lane_no) - CASE l.state WHEN 'open' THEN ?2 ELSE 1 END
    ORDER BY r.seq LIMIT 1) < ?3
  ORDER BY lane LIMIT ?4";

/// Deletes some of what may go, none behind the shipped position.
pub(crate) async fn prune(connection: &mut SqliteConnection, what: &Prunable, shipped: i64) -> Result<u64, sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let commits: Vec<i64> = sqlx::query_scalar(DELETE)
        .bind(&what.lane)
        .bind(what.through_seq)
        .bind(what.before.as_micros())
        .bind(shipped)
        .bind(KEPT_OF_OPEN)
        .bind(PRUNE_ROWS)
        .fetch_all(&mut *transaction)
        .await?;
    let list: Vec<String> = commits.iter().map(i64::to_string).collect();
    sqlx::query(DELETE_COMMITS).bind(format!("[{}]", list.join(","))).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(commits.len() as u64)
}

impl Ledger {
    /// Lanes with receipts from before a time that may be pruned once somebody else has them for good, `limit` of them after `after`, by name.
    pub async fn old_lanes(&self, before: Timestamp, after: &str, limit: usize) -> Result<Vec<String>, LedgerError> {
        let found = sqlx::query_scalar(OLD)
            .bind(after)
            .bind(KEPT_OF_OPEN)
            .bind(before.as_micros())
            .bind(limit as i64)
            .fetch_all(&self.inner.kept_reader)
            .await;
        found.map_err(|e| read_error(&e))
    }

    /// Up to where a lane of this ledger was pruned: 0 where its first receipt is there. None of a lane that it never had.
    pub async fn pruned_through(&self, lane: &str) -> Result<Option<i64>, LedgerError> {
        let first: Option<Option<i64>> = sqlx::query_scalar(
            "SELECT (SELECT min(seq) FROM receipts r WHERE r.lane_no = l.lane_no) FROM lanes l WHERE lane = ?",
        )
        .bind(lane)
        .fetch_optional(&self.inner.kept_reader)
        .await
        .map_err(|e| read_error(&e))?;
        Ok(first.map(|first| first.map_or(0, |first| first - 1)))
    }
}
