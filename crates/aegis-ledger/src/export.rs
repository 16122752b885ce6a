//! A tenant's receipts as lines of an export, in the order of their rows. It goes lane by lane, for a tenant's lanes follow one another, and
//! so needs no index by tenant. Promises that a damaged row hides no other: a line that no verifier accepts stands in its place.

use aegis_canon::MAX_SAFE_INTEGER;
use aegis_model::{EventId, RECEIPT_SCHEMA, TenantId};
use serde_json::json;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection, SqlitePool};

use crate::error::read_error;
use crate::rows::{item_of, select_items};
use crate::{LedgerError, MAX_READ};

/// One line of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportLine {
    /// Position in the outbox, which a following call goes on from.
    pub row: i64,
    /// The event with its receipt and proof as they were published; of a damaged row what is known of its place.
    pub text: String,
    /// False where the row is not what was sealed.
    pub is_sealed: bool,
}

/// The tenant's lines after `after_row`, at most `limit` (and `MAX_READ`); none at the end.
pub(crate) async fn lines(
    pool: &SqlitePool,
    tenant: &TenantId,
    after_row: i64,
    limit: usize,
) -> Result<Vec<ExportLine>, LedgerError> {
    read_lines(pool, tenant, after_row, limit.min(MAX_READ)).await.map_err(|error| read_error(&error))
}

async fn read_lines(pool: &SqlitePool, tenant: &TenantId, after_row: i64, limit: usize) -> Result<Vec<ExportLine>, sqlx::Error> {
    // One snapshot: what is sealed meanwhile in a lane that was read to its end must not be passed over.
    let mut snapshot = pool.begin().await?;
    let mut lines = Vec::new();
    let mut before = 0;
    while lines.len() < limit
        && let Some(lane_no) = next_lane(&mut snapshot, tenant, before, after_row).await?
    {
        let from_seq = first_behind(&mut snapshot, lane_no, after_row).await?;
        // The plus keeps a file of an earlier schema from going over its index by tenant.
        let rows = sqlx::query(select_items!("WHERE r.lane_no = ? AND r.seq >= ? AND +r.tenant_id = ? ORDER BY r.seq LIMIT ?"))
            .bind(lane_no)
            .bind(from_seq)
            .bind(tenant.as_str())
            .bind((limit - lines.len()) as i64)
            .fetch_all(&mut *snapshot)
            .await?;
        for row in &rows {
            lines.push(line_of(row, tenant)?);
        }
        before = lane_no;
    }
    snapshot.rollback().await?;
    Ok(lines)
}

/// The tenant's first lane behind `before` that has a receipt behind `after_row`.
async fn next_lane(
    connection: &mut SqliteConnection,
    tenant: &TenantId,
    before: i64,
    after_row: i64,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT lane_no FROM lanes l WHERE tenant_id = ? AND lane_no > ? \
         AND (SELECT row FROM receipts WHERE lane_no = l.lane_no ORDER BY seq DESC LIMIT 1) > ? ORDER BY lane_no LIMIT 1",
    )
    .bind(tenant.as_str())
    .bind(before)
    .bind(after_row)
    .fetch_optional(connection)
    .await
}

/// From which seq on the receipts of a lane are behind `after_row`. Its last one is: rows rise with seq.
async fn first_behind(connection: &mut SqliteConnection, lane_no: i64, after_row: i64) -> Result<i64, sqlx::Error> {
    // Where an earlier page ended.
    let ended: Option<i64> = sqlx::query_scalar("SELECT seq FROM receipts WHERE row = ? AND lane_no = ?")
        .bind(after_row)
        .bind(lane_no)
        .fetch_optional(&mut *connection)
        .await?;
    if let Some(seq) = ended {
        return Ok(seq.saturating_add(1));
    }
    let (mut low, mut high): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT seq FROM receipts WHERE lane_no = ?1 ORDER BY seq LIMIT 1), \
                (SELECT seq FROM receipts WHERE lane_no = ?1 ORDER BY seq DESC LIMIT 1)",
    )
    .bind(lane_no)
    .fetch_one(&mut *connection)
    .await?;
    // INVARIANT: the receipt at `high` is behind `after_row`, and none before `low` is.
    while low < high {
        let middle = low.saturating_add_unsigned(high.abs_diff(low) / 2);
        // The next one that is there: some may be pruned or set aside.
        let row: i64 = sqlx::query_scalar("SELECT row FROM receipts WHERE lane_no = ? AND seq >= ? ORDER BY seq LIMIT 1")
            .bind(lane_no)
            .bind(middle)
            .fetch_one(&mut *connection)
            .await?;
        if row > after_row {
            high = middle;
        } else {
            low = middle.saturating_add(1);
        }
    }
    Ok(low)
}

fn line_of(row: &SqliteRow, tenant: &TenantId) -> Result<ExportLine, sqlx::Error> {
    let number: i64 = row.try_get("row")?;
    match item_of(row) {
        Ok(item) => Ok(ExportLine { row: number, text: item.sealed.wire, is_sealed: true }),
        Err(error) => {
            tracing::error!(%error, row = number, %tenant, "a row of the ledger is damaged; an export says so in its place");
            Ok(ExportLine { row: number, text: damaged_line(row, tenant), is_sealed: false })
        }
    }
}

/// What is known of a damaged row's place. Its receipt has a hash that is of no such body, so that a verifier names the place.
fn damaged_line(row: &SqliteRow, tenant: &TenantId) -> String {
    let text = |column: &str| row.try_get::<String, _>(column).ok();
    let event_id = row.try_get::<&[u8], _>("event_id").ok().and_then(|id| EventId::from_slice(id).ok());
    let seq = row.try_get::<i64, _>("seq").ok().filter(|seq| seq.unsigned_abs() <= MAX_SAFE_INTEGER);
    let (lane, receipt_hash) = (text("lane"), text("receipt_hash"));
    let receipt = json!({
        "schema": RECEIPT_SCHEMA, "event_id": event_id, "tenant_id": tenant, "lane": lane, "seq": seq, "receipt_hash": receipt_hash,
    });
    let line = json!({
        "event_id": event_id, "tenant_id": tenant, "kind": text("kind"), "lane": lane, "seq": seq, "receipt_hash": receipt_hash,
        "verified": false, "evidence": "damaged", "receipt": receipt,
    });
    line.to_string()
}
