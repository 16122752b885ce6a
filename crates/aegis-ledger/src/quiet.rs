//! Lanes that have little to ship while others have much: so that a tenant that says little does not wait behind one that says a lot.

use crate::error::read_error;
use crate::{Ledger, LedgerError};

/// What one lane has to ship, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuietLane {
    pub lane: String,
    /// Its first receipt behind the row that was asked for, and its last; all between are there.
    pub first_seq: i64,
    pub last_seq: i64,
}

/// Of each lane the last few receipts, by index alone. Lanes that have ended take their turn with everybody.
const QUIET: &str = "SELECT lane, first_seq, last_seq FROM (
  SELECT lane,
    (SELECT min(seq) FROM (SELECT seq, row FROM receipts WHERE lane_no = l.lane_no ORDER BY seq DESC LIMIT ?2) WHERE row > ?1) AS first_seq,
    (SELECT max(seq) FROM receipts WHERE lane_no = l.lane_no) AS last_seq
  FROM lanes l WHERE state = 'open')
WHERE first_seq IS NOT NULL AND last_seq - first_seq + 1 < ?2 ORDER BY last_seq - first_seq LIMIT ?3";

impl Ledger {
    /// The last receipt up to `up_to_row` of each lane, or of each open one, `limit` lanes after `after`, by name.
    pub async fn lane_ends(
        &self,
        up_to_row: i64,
        only_open: bool,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, i64)>, LedgerError> {
        let ends = "SELECT lane, (SELECT seq FROM receipts r WHERE r.lane_no = l.lane_no AND r.row <= ? ORDER BY seq DESC LIMIT 1) AS last
                    FROM lanes l WHERE lane > ? AND (state = 'open' OR NOT ?) AND last IS NOT NULL ORDER BY lane LIMIT ?";
        let found = sqlx::query_as(ends)
            .bind(up_to_row)
            .bind(after)
            .bind(only_open)
            .bind(limit as i64)
            .fetch_all(&self.inner.kept_reader)
            .await;
        found.map_err(|e| read_error(&e))
    }

    /// Open lanes with less than `rows` receipts behind `after_row`, and at least one; those with the fewest first.
    pub async fn quiet_lanes(&self, after_row: i64, rows: usize, limit: usize) -> Result<Vec<QuietLane>, LedgerError> {
        let found: Vec<(String, i64, i64)> = sqlx::query_as(QUIET)
            .bind(after_row)
            .bind(rows as i64)
            .bind(limit as i64)
            .fetch_all(&self.inner.kept_reader)
            .await
            .map_err(|e| read_error(&e))?;
        Ok(found.into_iter().map(|(lane, first_seq, last_seq)| QuietLane { lane, first_seq, last_seq }).collect())
    }
}
