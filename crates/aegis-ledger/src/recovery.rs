//! What a start finds on the disk: where the counters stand, which lanes ended without a `close`, and whether their tails are sound.
//! Reads only. What has to change is written by the writer in the same transaction as the receipts that tell it.

use std::collections::HashMap;
use std::path::Path;

use aegis_keys::{KeyRing, SigningKey};
use aegis_model::TenantId;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use crate::LedgerError;
use crate::commitment::{CommitmentKey, CommitmentKeys};
use crate::error::{is_corruption, open_error};
use crate::lane::{Damage, Predecessor};
use crate::rows::{RowError, item_of, select_items};
use crate::schema::start_error;
use crate::verify::verify_wire;

/// Rows checked at the end of each lane that has no `close`, and the most that one start checks in all.
const TAIL_ROWS: usize = 64;
const TAIL_BUDGET: usize = 16_384;

/// A lane that ended without a `close`.
#[derive(Debug)]
pub(crate) struct UncleanLane {
    pub(crate) tenant_id: TenantId,
    pub(crate) lane_no: i64,
    pub(crate) damage: Vec<Damage>,
    /// Rows to set aside, with the reason.
    pub(crate) quarantine: Vec<(i64, String)>,
}

/// What the last start left.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) predecessors: HashMap<TenantId, Predecessor>,
    pub(crate) unclean: Vec<UncleanLane>,
    pub(crate) commitment_keys: CommitmentKeys,
    pub(crate) next_row: i64,
    pub(crate) next_commit_id: i64,
    pub(crate) next_lane_no: i64,
    pub(crate) shipped: i64,
}

/// Reads the state, behind the write lock: a transaction that a dying predecessor still has under way ends before this begins.
pub(crate) async fn recover(connection: &mut SqliteConnection, path: &Path, key: &SigningKey) -> Result<Recovered, LedgerError> {
    let failed = |e: sqlx::Error| open_error(path, &e);
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await.map_err(failed)?;
    let recovered = read(connection, key).await;
    let ended = sqlx::query("ROLLBACK").execute(&mut *connection).await;
    match recovered {
        Ok(recovered) => ended.map(|_| recovered).map_err(failed),
        // Where the disk gave the error, SQLite has ended the transaction by itself: that it cannot be ended again says nothing.
        Err(error) => Err(start_error(connection, path, &error).await),
    }
}

async fn read(connection: &mut SqliteConnection, key: &SigningKey) -> Result<Recovered, sqlx::Error> {
    let shipped = one_number(connection, "SELECT shipped FROM outbox_position").await?;
    let last_row = one_number(
        connection,
        "SELECT max(coalesce((SELECT max(row) FROM receipts), 0), coalesce((SELECT max(row) FROM quarantined_rows), 0))",
    )
    .await?;
    let mut recovered = Recovered {
        predecessors: predecessors(connection).await?,
        unclean: Vec::new(),
        commitment_keys: commitment_keys(connection).await?,
        // Past the shipped position too: a row below it would never be shipped.
        next_row: last_row.max(shipped) + 1,
        next_commit_id: one_number(connection, "SELECT coalesce(max(commit_id), 0) + 1 FROM commits").await?,
        next_lane_no: one_number(connection, "SELECT coalesce(max(lane_no), 0) + 1 FROM lanes").await?,
        shipped,
    };
    let unclean = sqlx::query("SELECT lane_no, lane, tenant_id FROM lanes WHERE state = 'open' ORDER BY lane_no")
        .fetch_all(&mut *connection)
        .await?;
    let rows_a_lane = (TAIL_BUDGET / unclean.len().max(1)).clamp(2, TAIL_ROWS);
    for lane in unclean {
        let Some(tenant_id) = tenant_of(&lane)? else { continue };
        let lane_no: i64 = lane.try_get("lane_no")?;
        let lane_id: String = lane.try_get("lane")?;
        let tail = Tail::check(connection, key, &tenant_id, lane_no, &lane_id, rows_a_lane).await?;
        match tail.head {
            Some(head) => recovered.predecessors.insert(tenant_id.clone(), head),
            None => recovered.predecessors.remove(&tenant_id),
        };
        recovered.unclean.push(UncleanLane { tenant_id, lane_no, damage: tail.damage, quarantine: tail.quarantine });
    }
    Ok(recovered)
}

async fn one_number(connection: &mut SqliteConnection, sql: &'static str) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(sql).fetch_one(connection).await
}

fn tenant_of(row: &SqliteRow) -> Result<Option<TenantId>, sqlx::Error> {
    let tenant: &str = row.try_get("tenant_id")?;
    let parsed = TenantId::new(tenant).ok();
    if parsed.is_none() {
        tracing::error!("the ledger names a tenant that cannot exist; its rows stay where they are");
    }
    Ok(parsed)
}

async fn predecessors(connection: &mut SqliteConnection) -> Result<HashMap<TenantId, Predecessor>, sqlx::Error> {
    // A cross join, which SQLite takes in the order in which it stands: the other way round it reads every receipt there is, at every start.
    let rows = sqlx::query(
        "SELECT l.tenant_id, l.lane, r.seq, r.receipt_hash FROM lanes l \
         CROSS JOIN receipts r ON r.lane_no = l.lane_no AND r.seq = (SELECT max(seq) FROM receipts WHERE lane_no = l.lane_no) \
         WHERE l.lane_no = (SELECT max(lane_no) FROM lanes WHERE tenant_id = l.tenant_id)",
    )
    .fetch_all(connection)
    .await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in rows {
        let Some(tenant) = tenant_of(&row)? else { continue };
        let predecessor =
            Predecessor { lane: row.try_get("lane")?, seq: row.try_get("seq")?, receipt_hash: row.try_get("receipt_hash")? };
        found.insert(tenant, predecessor);
    }
    Ok(found)
}

async fn commitment_keys(connection: &mut SqliteConnection) -> Result<CommitmentKeys, sqlx::Error> {
    let rows = sqlx::query("SELECT tenant_id, key FROM commitment_keys").fetch_all(connection).await?;
    let mut keys = CommitmentKeys::default();
    for row in rows {
        let Some(tenant) = tenant_of(&row)? else { continue };
        let key: &[u8] = row.try_get("key")?;
        match <[u8; 32]>::try_from(key) {
            Ok(key) => drop(keys.0.insert(tenant, CommitmentKey::new(key))),
            Err(_) => return Err(sqlx::Error::Decode("a commitment key has not 32 bytes".into())),
        }
    }
    Ok(keys)
}

/// What the end of a lane looks like.
#[derive(Debug, Default)]
struct Tail {
    /// The last sound row.
    head: Option<Predecessor>,
    damage: Vec<Damage>,
    quarantine: Vec<(i64, String)>,
}

/// A row of a tail, from the end backwards.
#[derive(Debug)]
struct TailRow {
    row: i64,
    seq: i64,
    /// As the table's column has it.
    receipt_hash: String,
    verdict: Result<LinkEnds, String>,
}

#[derive(Debug)]
struct LinkEnds {
    prev_receipt_hash: String,
}

impl Tail {
    async fn check(
        connection: &mut SqliteConnection,
        key: &SigningKey,
        tenant: &TenantId,
        lane_no: i64,
        lane: &str,
        rows: usize,
    ) -> Result<Self, sqlx::Error> {
        let mut tail = Self::default();
        let mut before = i64::MAX;
        // Goes on backwards until a sound row is found: the new lane's `open` must name one.
        while tail.head.is_none() {
            let found = read_tail(connection, key, tenant, lane_no, lane, before, rows).await?;
            let Some(lowest) = found.last() else { break };
            before = lowest.seq;
            tail.judge(found, lane);
        }
        Ok(tail)
    }

    fn judge(&mut self, rows: Vec<TailRow>, lane: &str) {
        let mut above: Option<(i64, String)> = None;
        for row in rows {
            let link_broken = match &above {
                Some((seq, prev)) => *seq != row.seq + 1 || *prev != row.receipt_hash,
                None => false,
            };
            if link_broken && let Some((seq, prev)) = above.take() {
                let reason = format!("it links to {prev}, which is not the receipt before it");
                self.damage.push(Damage { seq, receipt_hash: String::new(), reason, quarantined: false });
            }
            match row.verdict {
                Ok(ends) => {
                    if self.head.is_none() {
                        self.head =
                            Some(Predecessor { lane: lane.to_owned(), seq: row.seq, receipt_hash: row.receipt_hash.clone() });
                    }
                    above = Some((row.seq, ends.prev_receipt_hash));
                }
                Err(reason) => {
                    let quarantined = self.head.is_none();
                    if quarantined {
                        self.quarantine.push((row.row, reason.clone()));
                    }
                    self.damage.push(Damage { seq: row.seq, receipt_hash: row.receipt_hash, reason, quarantined });
                    above = None;
                }
            }
        }
    }
}

async fn read_tail(
    connection: &mut SqliteConnection,
    key: &SigningKey,
    tenant: &TenantId,
    lane_no: i64,
    lane: &str,
    before: i64,
    limit: usize,
) -> Result<Vec<TailRow>, sqlx::Error> {
    let rows = sqlx::query(select_items!("WHERE r.lane_no = ? AND r.seq < ? ORDER BY r.seq DESC LIMIT ?"))
        .bind(lane_no)
        .bind(before)
        .bind(limit as i64)
        .fetch_all(&mut *connection)
        .await?;
    let mut tail = Vec::with_capacity(rows.len());
    for row in rows {
        let verdict = match item_of(&row) {
            Ok(item) => sound(&item.sealed, key, tenant, lane),
            Err(RowError::Sql(error)) if is_corruption(&error) => return Err(error),
            Err(error) => Err(error.to_string()),
        };
        let receipt_hash = row.try_get::<String, _>("receipt_hash").unwrap_or_default();
        tail.push(TailRow { row: row.try_get("row")?, seq: row.try_get("seq")?, receipt_hash, verdict });
    }
    Ok(tail)
}

/// Checks that a row's wire text verifies and says what the row's columns say.
fn sound(sealed: &aegis_model::SealedEvent, key: &SigningKey, tenant: &TenantId, lane: &str) -> Result<LinkEnds, String> {
    let wire = aegis_canon::parse_strict(sealed.wire.as_bytes()).map_err(|e| format!("its text is not JSON: {e}"))?;
    // A lane of an earlier key proves itself by its path only: this process has no other key's public half.
    let own = wire.pointer("/proof/key_id").and_then(|id| id.as_str()) == Some(key.key_id());
    let ring = own.then(|| KeyRing::new([key.verifying_key()]));
    let verified = verify_wire(&wire, ring.as_ref()).map_err(|failure| failure.to_string())?;
    let columns_agree = verified.tenant_id == tenant.as_str()
        && sealed.tenant_id == *tenant
        && verified.lane == lane
        && verified.seq == sealed.seq
        && verified.event_id == sealed.event_id.to_string()
        && verified.prev_receipt_hash == sealed.prev_receipt_hash;
    if !columns_agree {
        return Err("its columns do not say what its receipt says".to_owned());
    }
    Ok(LinkEnds { prev_receipt_hash: verified.prev_receipt_hash })
}
