//! Rows that need not be kept any more: what somebody else has for good, and is old. Promises that a lane keeps its end, by which the next start knows what it
//! follows, that what is kept verifies by itself, and that a prune is short: the writer, and whoever waits for a receipt, waits for it. What was pruned is marked
//! with the rows that go: whatever else is missing is lost, by whatever hand.

use std::sync::atomic::Ordering;

use aegis_model::Timestamp;
use sqlx::{Connection, SqliteConnection};

use crate::error::read_error;
use crate::{Ledger, LedgerError, MAX_READ};

/// Rows that one prune deletes at most.
pub const PRUNE_ROWS: u32 = 256;

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
RETURNING commit_id, seq";

/// Marks up to where a lane is pruned; never back.
const MARK: &str = "INSERT INTO pruned_lanes (lane_no, through_seq) SELECT lane_no, ?2 FROM lanes WHERE lane = ?1
  ON CONFLICT (lane_no) DO UPDATE SET through_seq = max(through_seq, excluded.through_seq)";

/// Where the marks stand. Made where a file has none: of what an earlier program pruned, what is missing at a lane's beginning is all that is known.
const MARKS: &str = "
CREATE TABLE pruned_lanes (lane_no INTEGER PRIMARY KEY, through_seq INTEGER NOT NULL) STRICT;
INSERT INTO pruned_lanes SELECT lane_no, first - 1 FROM
  (SELECT lane_no, (SELECT min(seq) FROM receipts r WHERE r.lane_no = l.lane_no) AS first FROM lanes l) WHERE first > 1;
";

/// Makes the table of marks, if the file has none. Whether anything was ever pruned.
pub(crate) async fn take_up_marks(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let found: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'pruned_lanes'")
        .fetch_one(&mut *connection)
        .await?;
    if found == 0 {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::raw_sql(MARKS).execute(&mut *transaction).await?;
        transaction.commit().await?;
    }
    let marks: i64 =
        sqlx::query_scalar("SELECT count(*) FROM (SELECT 1 FROM pruned_lanes LIMIT 1)").fetch_one(connection).await?;
    Ok(marks > 0)
}

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

/// Deletes some of what may go, none behind the shipped position. By statements of its own, as the writer begins and ends everything: where SQLite takes a
/// transaction of sqlx's back by itself, as on a full disk, sqlx goes on taking it for open, and would begin none on this connection any more.
pub(crate) async fn prune(connection: &mut SqliteConnection, what: &Prunable, shipped: i64) -> Result<u64, sqlx::Error> {
    let pruned = prune_and_commit(connection, what, shipped).await;
    if pruned.is_err() {
        let _ = sqlx::query("ROLLBACK").execute(connection).await;
    }
    pruned
}

async fn prune_and_commit(connection: &mut SqliteConnection, what: &Prunable, shipped: i64) -> Result<u64, sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    let gone: Vec<(i64, i64)> = sqlx::query_as(DELETE)
        .bind(&what.lane)
        .bind(what.through_seq)
        .bind(what.before.as_micros())
        .bind(shipped)
        .bind(KEPT_OF_OPEN)
        .bind(i64::from(PRUNE_ROWS))
        .fetch_all(&mut *connection)
        .await?;
    if let Some(through_seq) = gone.iter().map(|(_, seq)| *seq).max() {
        sqlx::query(MARK).bind(&what.lane).bind(through_seq).execute(&mut *connection).await?;
    }
    let list: Vec<String> = gone.iter().map(|(commit, _)| commit.to_string()).collect();
    sqlx::query(DELETE_COMMITS).bind(format!("[{}]", list.join(","))).execute(&mut *connection).await?;
    sqlx::query("COMMIT").execute(connection).await?;
    Ok(gone.len() as u64)
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

    /// Up to where a lane of this ledger was pruned by the program: 0 where nothing of it was. None of a lane that it never had.
    pub async fn pruned_through(&self, lane: &str) -> Result<Option<i64>, LedgerError> {
        sqlx::query_scalar(
            "SELECT coalesce((SELECT through_seq FROM pruned_lanes p WHERE p.lane_no = l.lane_no), 0) FROM lanes l WHERE lane = ?",
        )
        .bind(lane)
        .fetch_optional(&self.inner.kept_reader)
        .await
        .map_err(|e| read_error(&e))
    }

    /// Whether the program ever pruned anything of this ledger: what it does not contain may be somewhere else then.
    #[must_use]
    pub fn was_pruned(&self) -> bool {
        self.inner.shared.was_pruned.load(Ordering::Acquire)
    }

    /// The first `seq` of a lane from `from_seq` to `to_seq` of which no receipt is there, if there is one: pruned, lost, or never sealed here. Looks at no more
    /// than `MAX_READ` of them.
    pub async fn first_missing(&self, lane: &str, from_seq: i64, to_seq: i64) -> Result<Option<i64>, LedgerError> {
        let to_seq = to_seq.min(from_seq.saturating_add(MAX_READ as i64 - 1));
        // The first row that does not stand where it would if none before it were missing.
        let (count, displaced): (i64, Option<i64>) = sqlx::query_as(
            "SELECT count(*), min(CASE WHEN seq <> place THEN place END) FROM (
               SELECT r.seq, ?2 - 1 + row_number() OVER (ORDER BY r.seq) AS place
               FROM receipts r JOIN lanes l ON l.lane_no = r.lane_no WHERE l.lane = ?1 AND r.seq >= ?2 AND r.seq <= ?3)",
        )
        .bind(lane)
        .bind(from_seq)
        .bind(to_seq)
        .fetch_one(&self.inner.kept_reader)
        .await
        .map_err(|e| read_error(&e))?;
        let behind = from_seq.saturating_add(count);
        Ok(displaced.or_else(|| (behind <= to_seq).then_some(behind)))
    }
}
