//! Fills the history: one consumer, in batches, each whole or not at all.
//! Promises that a receipt which proves itself comes into its place in its lane, whatever else has its id or claims its place, and that nothing that
//! proved itself is ever replaced. No statement says what came twice: the keys do.

use std::sync::{Arc, LazyLock};

use aegis_model::{LaneReach, Repeated, Timestamp};

use crate::bulk::BulkTransaction;
use crate::history::{HistoryRow, Standing, Wire, mark_of};
use crate::text::keyed;
use crate::{Dialect, Store, StoreError};

/// Rows of one statement: as many as fit of these. Few texts, so that each stays prepared; a statement's way to the database costs more than a row does.
const ROWS_PER_STATEMENT: [usize; 9] = [256, 128, 64, 32, 16, 8, 4, 2, 1];

/// Columns of a row that are written.
const COLUMNS: [&str; 16] = [
    "tenant_id",
    "event_id",
    "kind",
    "ts",
    "lane",
    "seq",
    "agent_id",
    "run_id",
    "decision",
    "receipt_hash",
    "bus_seq",
    "bus_ts",
    "proved",
    "kept_by",
    "kept_at",
    "wire",
];

/// Columns of a lane.
const LANE_COLUMNS: [&str; 4] = ["tenant_id", "lane", "head", "missing"];

/// Stretches of a lane that are kept; of more, those that came first.
const MOST_MISSING: usize = 256;

/// Characters of a hash that are in a row's key.
const MARK: usize = 32;

/// A text for each number of rows.
type Texts = Vec<(usize, Arc<str>)>;

/// What is said to a database, made once: making a text takes as long as some of its rows do.
struct Statements {
    insert: Texts,
    give_way: Texts,
    lanes: Texts,
}

impl Statements {
    fn of(dialect: Dialect) -> Self {
        let texts = |text: fn(usize, Dialect) -> String| -> Texts {
            ROWS_PER_STATEMENT.into_iter().map(|rows| (rows, Arc::from(text(rows, dialect)))).collect()
        };
        Self { insert: texts(insert_of), give_way: texts(give_way_of), lanes: texts(lanes_of) }
    }

    fn for_dialect(dialect: Dialect) -> &'static Self {
        static SQLITE: LazyLock<Statements> = LazyLock::new(|| Statements::of(Dialect::Sqlite));
        static POSTGRES: LazyLock<Statements> = LazyLock::new(|| Statements::of(Dialect::Postgres));
        match dialect {
            Dialect::Sqlite => &SQLITE,
            Dialect::Postgres => &POSTGRES,
        }
    }
}

/// The place of a value, counted from 0. To SQLite `$7` is a name. It looks names up one after the other, each time: with a thousand of them that took half the
/// time of an INSERT.
fn value(number: usize, dialect: Dialect) -> String {
    match dialect {
        Dialect::Sqlite => "?".to_owned(),
        Dialect::Postgres => format!("${}", number + 1),
    }
}

/// The head of an INSERT of so many rows. `into`: its first words, up to the table's name.
fn insert_into(into: &str, columns: &[&str], rows: usize, dialect: Dialect) -> String {
    let row = |row: usize| {
        let values: Vec<String> = (0..columns.len()).map(|column| value(row * columns.len() + column, dialect)).collect();
        format!("({})", values.join(", "))
    };
    let rows: Vec<String> = (0..rows).map(row).collect();
    format!("{into} ({}) VALUES {}", columns.join(", "), rows.join(", "))
}

/// What is there under the key of a row stays: it is that row, or it proved itself where this one does not, or the row comes again behind `give_way_of`.
pub(crate) fn insert_of(rows: usize, dialect: Dialect) -> String {
    // SQLite keeps a copy of each page that a statement changes, to take back the statement alone where it fails. Behind an error here all is taken back.
    let into = match dialect {
        Dialect::Sqlite => "INSERT OR FAIL INTO history",
        Dialect::Postgres => "INSERT INTO history",
    };
    format!("{} ON CONFLICT DO NOTHING", insert_into(into, &COLUMNS, rows, dialect))
}

/// What proves nothing and claims the places and the hashes of so many receipts goes.
pub(crate) fn give_way_of(rows: usize, dialect: Dialect) -> String {
    let mark = mark_of(dialect);
    let row = |row: usize| {
        let [tenant, lane, seq, of_hash] = [0, 1, 2, 3].map(|column| value(row * 4 + column, dialect));
        format!("(tenant_id = {tenant} AND lane = {lane} AND seq = {seq} AND {mark} = {of_hash})")
    };
    let rows: Vec<String> = (0..rows).map(row).collect();
    format!("DELETE FROM history WHERE proved = 0 AND lane IS NOT NULL AND ({})", rows.join(" OR "))
}

fn lanes_of(rows: usize, dialect: Dialect) -> String {
    format!(
        "{} ON CONFLICT (tenant_id, lane) DO UPDATE SET head = excluded.head, missing = excluded.missing",
        insert_into("INSERT INTO history_lanes", &LANE_COLUMNS, rows, dialect)
    )
}

/// The rows in groups, each with the text that takes as many.
fn groups<'a, T>(texts: &'a [(usize, Arc<str>)], mut rows: &'a [T]) -> impl Iterator<Item = (Arc<str>, &'a [T])> {
    std::iter::from_fn(move || {
        let (count, text) = texts.iter().find(|(count, _)| *count <= rows.len())?;
        let (group, behind) = rows.split_at(*count);
        rows = behind;
        Some((Arc::clone(text), group))
    })
}

/// The beginning of a hash, as the database cuts it off.
fn mark(hash: Option<&str>) -> &str {
    let hash = hash.unwrap_or("");
    hash.char_indices().nth(MARK).map_or(hash, |(end, _)| &hash[..end])
}

/// How many were new.
async fn insert(tx: &mut BulkTransaction, rows: &[&HistoryRow], dialect: Dialect) -> Result<u64, StoreError> {
    let mut new = 0;
    let (mut tenant, mut kind, mut lane, mut decision) =
        (Repeated::default(), Repeated::default(), Repeated::default(), Repeated::default());
    for (text, group) in groups(&Statements::for_dialect(dialect).insert, rows) {
        let mut statement = tx.statement(group.len() * COLUMNS.len());
        for event in group {
            let (wire, kept_by, kept_at) = match &event.wire {
                Wire::Text(text) => (Some(Arc::clone(text)), None, None),
                Wire::Kept { by, position } => (None, Some(Arc::clone(by)), Some(*position)),
            };
            statement = statement
                .shared(Some(tenant.of(event.tenant_id.as_str())))
                .bytes(event.event_id.as_bytes())
                .shared(Some(kind.of(event.kind.as_str())))
                .number(Some(event.ts.as_micros()))
                .shared(event.lane.as_deref().map(|name| lane.of(name)))
                .number(event.seq)
                .text(event.agent_id.as_deref().map(keyed).as_deref())
                .text(event.run_id.as_deref().map(keyed).as_deref())
                .shared(event.decision.map(|word| decision.of(word.as_str())))
                .text(event.receipt_hash.as_deref())
                .number(Some(event.bus_seq.cast_signed()))
                .number(event.bus_ts.map(Timestamp::as_micros))
                .number(Some(event.standing.as_number()))
                .shared(kept_by)
                .number(kept_at)
                .shared(wire);
        }
        new += statement.execute(text).await?;
    }
    Ok(new)
}

/// How many rows gave way to these receipts.
async fn give_way(tx: &mut BulkTransaction, sealed: &[&HistoryRow], dialect: Dialect) -> Result<u64, StoreError> {
    let mut gone = 0;
    for (text, group) in groups(&Statements::for_dialect(dialect).give_way, sealed) {
        let mut statement = tx.statement(group.len() * 4);
        for event in group {
            statement = statement
                .text(Some(event.tenant_id.as_str()))
                .text(event.lane.as_deref())
                .number(event.seq)
                .text(Some(mark(event.receipt_hash.as_deref())));
        }
        gone += statement.execute(text).await?;
    }
    Ok(gone)
}

async fn note(tx: &mut BulkTransaction, lanes: &[LaneReach], dialect: Dialect) -> Result<(), StoreError> {
    for (text, group) in groups(&Statements::for_dialect(dialect).lanes, lanes) {
        let mut statement = tx.statement(group.len() * LANE_COLUMNS.len());
        for lane in group {
            let missing: Vec<String> = lane.missing.iter().take(MOST_MISSING).map(|(from, to)| format!("{from}-{to}")).collect();
            statement = statement
                .text(Some(lane.tenant_id.as_str()))
                .text(Some(lane.lane.as_str()))
                .number(Some(lane.head))
                .text(Some(missing.join(",").as_str()));
        }
        statement.execute(text).await?;
    }
    Ok(())
}

impl Store {
    /// Keeps events, and how far their lanes (each named once) are with them, all of it or (on an error) nothing, in one transaction. Says how many
    /// rows were added. What is known already is left as it is. What claimed a place and a hash, and proved nothing, goes when the receipt comes.
    ///
    /// # Errors
    /// `Invalid` for an event that has a lane and no place in it, or a place and no lane.
    pub async fn insert_history(&self, events: &[HistoryRow], lanes: &[LaneReach]) -> Result<u64, StoreError> {
        if events.iter().any(|event| event.lane.is_some() != event.seq.is_some()) {
            return Err(StoreError::Invalid { what: "an event", why: "has a lane and no place in it, or a place and no lane" });
        }
        if events.is_empty() && lanes.is_empty() {
            return Ok(0);
        }
        let dialect = self.inner.dialect;
        let mut tx = self.inner.history_writer.begin(dialect.begin_write()).await?;
        let rows: Vec<&HistoryRow> = events.iter().collect();
        let mut new = insert(&mut tx, &rows, dialect).await?;
        if new < rows.len() as u64 {
            let is_sealed = |row: &&HistoryRow| row.standing != Standing::Unproved && row.lane.is_some();
            let sealed: Vec<&HistoryRow> = rows.into_iter().filter(is_sealed).collect();
            if give_way(&mut tx, &sealed, dialect).await? > 0 {
                new += insert(&mut tx, &sealed, dialect).await?;
            }
        }
        note(&mut tx, lanes, dialect).await?;
        tx.commit().await?;
        Ok(new)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aegis_model::{EventKind, ManualClock, TenantId, new_event_id};
    use sqlx::SqlitePool;

    use super::*;

    fn receipt(seq: i64) -> HistoryRow {
        HistoryRow {
            tenant_id: TenantId::new("acme").unwrap(),
            event_id: new_event_id(),
            kind: EventKind::ToolAttempt,
            ts: Timestamp::from_micros(seq),
            lane: Some("acme.edge.1".to_owned()),
            seq: Some(seq),
            agent_id: None,
            run_id: None,
            decision: None,
            receipt_hash: Some(format!("{seq:064x}")),
            bus_seq: 1,
            bus_ts: None,
            standing: Standing::Own,
            wire: Wire::Text("{}".into()),
        }
    }

    /// A statement that fails leaves in the transaction what it did before that.
    #[tokio::test]
    async fn where_one_row_is_refused_none_of_its_batch_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(Timestamp::from_micros(0)));
        let store = Store::open(&folder.path().join("store.db"), clock).await.unwrap();
        let file = folder.path().join("store-history.db");
        let file = SqlitePool::connect(&format!("sqlite://{}", file.display())).await.unwrap();
        let refuse =
            "CREATE TRIGGER refused BEFORE INSERT ON history WHEN NEW.seq = 300 BEGIN SELECT RAISE(FAIL, 'refused'); END";
        sqlx::query(refuse).execute(&file).await.unwrap();
        let rows: Vec<HistoryRow> = (1..=400).map(receipt).collect();
        assert!(store.insert_history(&rows, &[]).await.is_err());
        let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM history").fetch_one(&file).await.unwrap();
        assert_eq!(kept, 0);
        sqlx::query("DROP TRIGGER refused").execute(&file).await.unwrap();
        assert_eq!(store.insert_history(&rows, &[]).await.unwrap(), 400);
        file.close().await;
        store.close().await;
    }
}
