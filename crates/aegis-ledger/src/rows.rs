//! Rows to and from the disk: the transaction that writes a sealed batch, and the reads that give sealed events back.
//! Promises that a batch is written whole or not at all, and that a wire text is spliced from the very bytes that were hashed, or not at all.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use aegis_model::{EventId, EventKind, FrozenAction, Repeated, SealedEvent, SecurityEvent, TenantId, Timestamp};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, SqliteConnection};

use crate::body::{Held, body_of};
use crate::draft::Draft;
use crate::recovery::UncleanLane;
use crate::seal::{Commit, SealedBatch, SealedRow};

/// A receipt as the shipper gets it.
#[derive(Clone, Debug)]
pub struct OutboxItem {
    /// Position in the outbox: ascending, not gapless.
    pub row: i64,
    pub sealed: SealedEvent,
    /// The frozen action committed with it, while it can still be approved.
    pub frozen: Option<FrozenAction>,
    /// What a reader of the wire text would read, where it is at hand: of what was just sealed. Nobody else has it yet.
    pub event: Option<Arc<SecurityEvent>>,
}

impl OutboxItem {
    /// Bytes that it takes in memory at most, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        let text_of = |frozen: &FrozenAction| serde_json::to_vec(frozen).unwrap_or_default();
        let frozen = self.frozen.as_ref().map_or(0, |frozen| text_of(frozen).len());
        self.sealed.wire.len() + FROZEN_WEIGHT * frozen + self.event.as_ref().map_or(0, |event| event.weight())
    }
}

/// What a frozen action takes in memory for each byte of its text at most, about: a number of two characters is a value of its own.
pub(crate) const FROZEN_WEIGHT: usize = 40;

const INSERT_COLUMNS: usize = 14;
/// OR ROLLBACK: an event that has a receipt already ends the whole transaction. Ending the one statement would take a copy of each page before
/// it is changed.
const INSERT: &str = "INSERT OR ROLLBACK INTO receipts (row, tenant_id, event_id, kind, ts, lane_no, seq, receipt_hash, prev_hash, event, \
                      receipt, commit_id, leaf, path) VALUES ";

const INSERT_COMMIT: &str =
    "INSERT INTO commits (commit_id, first_row, size, root, key_id, signature, max_ts) VALUES (?, ?, ?, ?, ?, ?, ?)";

/// Receipts of one INSERT: the groups of some hundred callers who each wait for the last. A larger group goes to the connection's thread several
/// times, and waits there for its turn each time. Each number of rows is a statement of its own, of a kilobyte a row.
const MOST_ROWS: usize = 128;

/// The INSERT of 1 to `MOST_ROWS` receipts, by their number: each text is prepared once per connection.
static INSERTS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let one = format!("({})", vec!["?"; INSERT_COLUMNS].join(","));
    (0..=MOST_ROWS).map(|rows| format!("{INSERT}{}", vec![one.as_str(); rows].join(","))).collect()
});

/// The same behind the start of the transaction and its commit row. Each text costs one way to the connection's thread and back,
/// however many statements it holds, and that way costs more than a row.
static FIRST_INSERTS: LazyLock<Vec<String>> =
    LazyLock::new(|| INSERTS.iter().map(|insert| format!("BEGIN IMMEDIATE; {INSERT_COMMIT}; {insert}")).collect());

/// The same with the end of the transaction: all of a small batch.
static WHOLE: LazyLock<Vec<String>> = LazyLock::new(|| FIRST_INSERTS.iter().map(|first| format!("{first}; COMMIT")).collect());

/// Statements that stay prepared: all kinds, of every number of rows, and the others.
pub(crate) const STATEMENTS: usize = 3 * MOST_ROWS + 64;

/// True for a batch of receipts and nothing else, few enough for one statement.
pub(crate) fn is_plain(batch: &SealedBatch) -> bool {
    let nothing_else =
        batch.opened.is_empty() && batch.new_keys.is_empty() && batch.abandoned.is_empty() && batch.closed.is_empty();
    nothing_else && batch.rows.len() <= MOST_ROWS && batch.rows.iter().all(|row| row.frozen.is_none())
}

/// Writes and commits a plain batch in one go. An error says nothing of whether it is on the disk.
pub(crate) async fn commit_plain(connection: &mut SqliteConnection, batch: &SealedBatch) -> Result<(), sqlx::Error> {
    debug_assert!(is_plain(batch), "a batch with more than receipts needs more than their statement");
    let sql: &'static str = WHOLE[batch.rows.len()].as_str();
    let query = bind_commit(sqlx::query(sql), batch);
    bind_rows(query, &batch.rows, 0, batch.commit.commit_id).execute(connection).await.map(drop)
}

/// Starts the transaction and writes everything of a batch in it.
pub(crate) async fn write_batch(connection: &mut SqliteConnection, batch: &SealedBatch) -> Result<(), sqlx::Error> {
    write_receipts(connection, batch).await?;
    for (tenant, lane) in &batch.opened {
        sqlx::query("INSERT INTO lanes (lane_no, lane, tenant_id, state) VALUES (?, ?, ?, 'open')")
            .bind(lane.lane_no)
            .bind(&*lane.lane)
            .bind(tenant.as_str())
            .execute(&mut *connection)
            .await?;
    }
    for (tenant, key) in &batch.new_keys {
        sqlx::query("INSERT INTO commitment_keys (tenant_id, key) VALUES (?, ?)")
            .bind(tenant.as_str())
            .bind(key.as_slice())
            .execute(&mut *connection)
            .await?;
    }
    for row in &batch.rows {
        let Some(frozen) = &row.frozen else { continue };
        sqlx::query("INSERT INTO approval_outbox (row, tenant_id, approval_id, expires_at, frozen) VALUES (?, ?, ?, ?, ?)")
            .bind(row.row)
            .bind(row.tenant_id.as_str())
            .bind(&frozen.approval_id)
            .bind(frozen.expires_at.as_micros())
            .bind(&frozen.json)
            .execute(&mut *connection)
            .await?;
    }
    for lane in &batch.abandoned {
        abandon(connection, lane).await?;
    }
    for (tenant, lane) in &batch.closed {
        sqlx::query("UPDATE lanes SET state = 'closed' WHERE lane_no = ? AND tenant_id = ?")
            .bind(lane.lane_no)
            .bind(tenant.as_str())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn write_receipts(connection: &mut SqliteConnection, batch: &SealedBatch) -> Result<(), sqlx::Error> {
    let commit_id = batch.commit.commit_id;
    let (first, rest) = batch.rows.split_at(batch.rows.len().min(MOST_ROWS));
    let sql: &'static str = FIRST_INSERTS[first.len()].as_str();
    bind_rows(bind_commit(sqlx::query(sql), batch), first, 0, commit_id).execute(&mut *connection).await?;
    for (chunk, rows) in rest.chunks(MOST_ROWS).enumerate() {
        let sql: &'static str = INSERTS[rows.len()].as_str();
        let first_leaf = (chunk + 1) * MOST_ROWS;
        bind_rows(sqlx::query(sql), rows, first_leaf as i64, commit_id).execute(&mut *connection).await?;
    }
    Ok(())
}

type Insert<'q> = sqlx::query::Query<'q, Sqlite, <Sqlite as sqlx::Database>::Arguments>;

fn bind_commit<'q>(query: Insert<'q>, batch: &'q SealedBatch) -> Insert<'q> {
    let Commit { commit_id, size, root, key_id, signature } = &batch.commit;
    let max_ts = batch.rows.iter().map(|row| row.ts.as_micros()).max().unwrap_or_default();
    query
        .bind(commit_id)
        .bind(batch.rows.first().map_or(0, |row| row.row))
        .bind(*size as i64)
        .bind(root.as_slice())
        .bind(key_id)
        .bind(signature)
        .bind(max_ts)
}

/// Shared texts, because of others the statement makes a copy that the connection's thread takes apart.
fn bind_rows<'q>(mut query: Insert<'q>, rows: &'q [SealedRow], first_leaf: i64, commit_id: i64) -> Insert<'q> {
    let (mut tenant, mut kind) = (Repeated::default(), Repeated::default());
    for (row, leaf) in rows.iter().zip(first_leaf..) {
        query = query
            .bind(row.row)
            .bind(tenant.of(row.tenant_id.as_str()))
            .bind(row.event_id.as_bytes().as_slice())
            .bind(kind.of(row.kind.as_str()))
            .bind(row.ts.as_micros())
            .bind(row.lane_no)
            .bind(row.seq)
            .bind(Arc::clone(&row.receipt_hash_hex))
            .bind(Arc::clone(&row.prev_receipt_hash))
            .bind(Arc::clone(&row.event))
            .bind(Arc::clone(row.stored()))
            .bind(commit_id)
            .bind(leaf)
            .bind(row.path.as_flattened());
    }
    query
}

/// Ends a lane of an earlier start, with its damaged last rows set aside: kept, but no longer part of the lane or the outbox.
async fn abandon(connection: &mut SqliteConnection, lane: &UncleanLane) -> Result<(), sqlx::Error> {
    let tenant = lane.tenant_id.as_str();
    sqlx::query("UPDATE lanes SET state = 'abandoned' WHERE lane_no = ? AND tenant_id = ?")
        .bind(lane.lane_no)
        .bind(tenant)
        .execute(&mut *connection)
        .await?;
    for (row, reason) in &lane.quarantine {
        sqlx::query(
            "INSERT INTO quarantined_rows SELECT row, tenant_id, event_id, kind, ts, lane_no, seq, receipt_hash, prev_hash, \
             event, receipt, commit_id, leaf, path, ? FROM receipts WHERE row = ? AND lane_no = ?",
        )
        .bind(reason)
        .bind(row)
        .bind(lane.lane_no)
        .execute(&mut *connection)
        .await?;
        sqlx::query("DELETE FROM receipts WHERE row = ? AND lane_no = ?")
            .bind(row)
            .bind(lane.lane_no)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// A receipt's place in its commit, as the disk has it.
#[derive(Debug)]
struct ProofParts<'a> {
    path: &'a [u8],
    leaf: u64,
    size: u64,
    key_id: &'a str,
    signature: &'a str,
}

/// Splices the wire text: the event's columns, its hash, its receipt and its proof. Every part is put in as it was hashed.
fn wire_text(event: &str, receipt: &str, receipt_hash: &str, proof: &ProofParts<'_>) -> String {
    // Both are JSON objects with at least one key, so each ends in a brace that a further key can take the place of.
    let event = event.strip_suffix('}').unwrap_or(event);
    let body = receipt.strip_suffix('}').unwrap_or(receipt);
    let mut wire = String::with_capacity(event.len() + body.len() + proof.path.len() * 3 + 512);
    wire.push_str(event);
    wire.push_str(",\"receipt_hash\":\"");
    wire.push_str(receipt_hash);
    wire.push_str("\",\"receipt\":");
    wire.push_str(body);
    wire.push_str(",\"receipt_hash\":\"");
    wire.push_str(receipt_hash);
    wire.push_str("\"},\"proof\":{\"key_id\":\"");
    wire.push_str(proof.key_id);
    wire.push_str("\",\"size\":");
    wire.push_str(&proof.size.to_string());
    wire.push_str(",\"index\":");
    wire.push_str(&proof.leaf.to_string());
    wire.push_str(",\"path\":[");
    let mut digits: hex::Buffer<32> = hex::Buffer::new();
    for (position, hash) in proof.path.chunks(32).enumerate() {
        wire.push_str(if position == 0 { "\"" } else { ",\"" });
        match <&[u8; 32]>::try_from(hash) {
            Ok(hash) => wire.push_str(digits.format(hash)),
            // A path that was cut short on the disk: shown as it is, and no verifier takes it.
            Err(_) => wire.push_str(&aegis_canon::hex_text(hash)),
        }
        wire.push('"');
    }
    wire.push_str("],\"signature\":\"");
    wire.push_str(proof.signature);
    wire.push_str("\"}}");
    wire
}

/// The event that was sealed as a row, as it is read from the row's text.
fn event_of(event: SecurityEvent, row: &SealedRow) -> SecurityEvent {
    SecurityEvent {
        ts: row.ts,
        lane: Some(str::to_owned(&row.lane)),
        seq: Some(row.seq),
        receipt_hash: Some(str::to_owned(&row.receipt_hash_hex)),
        verified: false,
        bus_ts: None,
        late: false,
        ..event
    }
}

/// A row of a batch that is now durable, as the shipper gets it. `draft`: what was sealed, where it is at hand.
pub(crate) fn outbox_item(row: &SealedRow, leaf: u64, commit: &Commit, draft: Option<Box<Draft>>) -> OutboxItem {
    let proof = ProofParts {
        path: row.path.as_flattened(),
        leaf,
        size: commit.size,
        key_id: &commit.key_id,
        signature: &commit.signature,
    };
    let wire = wire_text(&row.event, &row.receipt, &row.receipt_hash_hex, &proof);
    let sealed = SealedEvent {
        tenant_id: row.tenant_id.clone(),
        event_id: row.event_id,
        kind: row.kind,
        lane: str::to_owned(&row.lane),
        seq: row.seq,
        ts: row.ts,
        receipt_hash: str::to_owned(&row.receipt_hash_hex),
        prev_receipt_hash: str::to_owned(&row.prev_receipt_hash),
        wire,
    };
    let (event, frozen) = match draft {
        Some(draft) => {
            let Draft { event, frozen, .. } = *draft;
            (Some(Arc::new(event_of(event, row))), frozen.map(|frozen| *frozen))
        }
        None => (None, None),
    };
    OutboxItem { row: row.row, sealed, frozen, event }
}

/// What every read selects; a condition follows it.
macro_rules! select_items {
    ($condition:literal) => {
        concat!(
            "SELECT r.row, r.tenant_id, r.event_id, r.kind, r.ts, l.lane, r.seq, r.receipt_hash, r.prev_hash, r.event, r.receipt, ",
            "r.leaf, r.path, c.size, c.key_id, c.signature, a.frozen FROM receipts r ",
            "JOIN lanes l ON l.lane_no = r.lane_no JOIN commits c ON c.commit_id = r.commit_id ",
            "LEFT JOIN approval_outbox a ON a.row = r.row ",
            $condition
        )
    };
}
pub(crate) use select_items;

/// Why a row of the disk is not a sealed event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowError {
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    #[error("its {0} cannot be read")]
    Column(&'static str),
    #[error("its event and receipt are not those that its hash was made of")]
    NotAsSealed,
}

/// In the place of a receipt of which nothing can be made: its event may still say something.
const NO_BODY: &str = r#"{"schema":null}"#;

/// Reads one row of `select_items!` as it was sealed.
pub(crate) fn item_of(row: &SqliteRow) -> Result<OutboxItem, RowError> {
    let (item, is_sealed) = read_item(row)?;
    if is_sealed { Ok(item) } else { Err(RowError::NotAsSealed) }
}

/// Reads one row as it stands, for whoever only becomes stricter by what it says.
pub(crate) fn item_as_it_stands(row: &SqliteRow) -> Result<OutboxItem, RowError> {
    let (item, is_sealed) = read_item(row)?;
    if !is_sealed {
        tracing::error!(row = item.row, "a row of the ledger is not what was sealed; what it says is remembered nevertheless");
    }
    Ok(item)
}

/// The row, and whether it is what was sealed.
fn read_item(row: &SqliteRow) -> Result<(OutboxItem, bool), RowError> {
    let tenant: &str = row.try_get("tenant_id")?;
    let event_id: &[u8] = row.try_get("event_id")?;
    let kind: &str = row.try_get("kind")?;
    let ts: i64 = row.try_get("ts")?;
    let receipt_hash: String = row.try_get("receipt_hash")?;
    let (leaf, size): (i64, i64) = (row.try_get("leaf")?, row.try_get("size")?);
    let proof = ProofParts {
        path: row.try_get("path")?,
        leaf: u64::try_from(leaf).map_err(|_| RowError::Column("leaf"))?,
        size: u64::try_from(size).map_err(|_| RowError::Column("size"))?,
        key_id: row.try_get("key_id")?,
        signature: row.try_get("signature")?,
    };
    let prev_receipt_hash: String = row.try_get("prev_hash")?;
    let event: &str = row.try_get("event")?;
    let held = Held { event, receipt: row.try_get("receipt")?, prev_receipt_hash: &prev_receipt_hash, key_id: proof.key_id };
    let (body, is_sealed) = body_of(held, &receipt_hash).unwrap_or((Cow::Borrowed(NO_BODY), false));
    let wire = wire_text(event, &body, &receipt_hash, &proof);
    let frozen: Option<&str> = row.try_get("frozen")?;
    let frozen = frozen.map(serde_json::from_str).transpose().map_err(|_| RowError::Column("frozen action"))?;
    let sealed = SealedEvent {
        tenant_id: TenantId::new(tenant).map_err(|_| RowError::Column("tenant_id"))?,
        event_id: EventId::from_slice(event_id).map_err(|_| RowError::Column("event_id"))?,
        kind: kind.parse::<EventKind>().map_err(|_| RowError::Column("kind"))?,
        lane: row.try_get("lane")?,
        seq: row.try_get("seq")?,
        ts: Timestamp::from_micros(ts),
        receipt_hash,
        prev_receipt_hash,
        wire,
    };
    Ok((OutboxItem { row: row.try_get("row")?, sealed, frozen, event: None }, is_sealed))
}
