//! What happened, as the bus delivered it: one row an event, found by id, kind, agent or run, and exported lane by lane.
//! Filled by one consumer in batches; never changed. The wire form is kept byte for byte, here or where it stands
//! already, so that it can be verified again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use aegis_model::{Decision, EventId, EventKind, LaneReach, TenantId, Timestamp};
use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;

use crate::pool::Transaction;
use crate::text::keyed;
use crate::{Dialect, Store, StoreError, page, row};

/// One event of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryRow {
    pub tenant_id: TenantId,
    pub event_id: EventId,
    pub kind: EventKind,
    pub ts: Timestamp,
    pub lane: Option<String>,
    pub seq: Option<i64>,
    pub agent_id: Option<String>,
    pub run_id: Option<String>,
    pub decision: Option<Decision>,
    pub receipt_hash: Option<String>,
    /// Its sequence number in the stream ASE.
    pub bus_seq: u64,
    /// When the bus stored it; None for what was kept before that was noted.
    pub bus_ts: Option<Timestamp>,
    /// A receipt that proves itself. What claims a lane and does not, gives way to one that does and has the same id.
    pub proved: bool,
    pub wire: Wire,
}

/// An event as published, one JSON object: its text, or who else on this machine keeps it, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wire {
    Text(Arc<str>),
    Kept { by: Arc<str>, position: i64 },
}

impl Wire {
    /// The text, where it is here.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Kept { .. } => None,
        }
    }
}

/// Stretches of a lane that are kept; of more, those that came first.
const MOST_MISSING: usize = 256;

fn lane_of(r: &AnyRow) -> Result<LaneReach, StoreError> {
    let missing: String = row::get(r, "missing")?;
    let stretch = |text: &str| text.split_once('-').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    Ok(LaneReach {
        tenant_id: row::tenant(r)?,
        lane: row::get(r, "lane")?,
        head: row::get(r, "head")?,
        missing: missing.split(',').filter_map(stretch).collect(),
    })
}

/// What became of events that were to be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// How many were new.
    pub new: u64,
    /// Proved receipts, by their places among the events, that are not kept, since the history has something else under their id.
    pub displaced: Vec<usize>,
}

/// Which events to list. The default lists all.
#[derive(Clone, Copy, Debug, Default)]
pub struct HistoryFilter<'a> {
    /// Empty: every kind.
    pub kinds: &'a [EventKind],
    /// Only events that have a receipt.
    pub receipts_only: bool,
    pub agent_id: Option<&'a str>,
    pub run_id: Option<&'a str>,
}

fn history(r: &AnyRow) -> Result<HistoryRow, StoreError> {
    Ok(HistoryRow {
        tenant_id: row::tenant(r)?,
        event_id: row::event_id_bytes(r, "event_id")?,
        kind: row::word(r, "kind")?,
        ts: row::time(r, "ts")?,
        lane: row::get(r, "lane")?,
        seq: row::get(r, "seq")?,
        agent_id: row::get(r, "agent_id")?,
        run_id: row::get(r, "run_id")?,
        decision: row::optional_word(r, "decision")?,
        receipt_hash: row::get(r, "receipt_hash")?,
        bus_seq: row::get::<i64>(r, "bus_seq")?.cast_unsigned(),
        bus_ts: row::get::<Option<i64>>(r, "bus_ts")?.map(Timestamp::from_micros),
        proved: row::get::<i64>(r, "proved")? != 0,
        wire: wire(r)?,
    })
}

fn wire(r: &AnyRow) -> Result<Wire, StoreError> {
    let kept_by: Option<String> = row::get(r, "kept_by")?;
    Ok(match kept_by {
        Some(by) => Wire::Kept { by: by.into(), position: row::get(r, "kept_at")? },
        None => Wire::Text(row::get::<String>(r, "wire")?.into()),
    })
}

/// Rows of one INSERT: as many as fit of these. Few texts, so that each stays prepared; a statement's way to the database costs more
/// than a row does.
const ROWS_PER_STATEMENT: [usize; 7] = [64, 32, 16, 8, 4, 2, 1];

/// Columns of a row that are written.
const COLUMNS: usize = 16;

/// What a proved receipt puts in the place of something else that has its id.
const REPLACED: [&str; 14] = [
    "kind",
    "ts",
    "lane",
    "seq",
    "agent_id",
    "run_id",
    "decision",
    "receipt_hash",
    "bus_seq",
    "wire",
    "kept_by",
    "kept_at",
    "proved",
    "bus_ts",
];

/// The rows, of those with the same id one: a statement changes no row twice.
fn one_of_each(rows: &[HistoryRow]) -> Vec<&HistoryRow> {
    let mut places = HashMap::with_capacity(rows.len());
    let mut each: Vec<&HistoryRow> = Vec::with_capacity(rows.len());
    for row in rows {
        match places.entry((&row.tenant_id, row.event_id)) {
            Entry::Vacant(place) => {
                place.insert(each.len());
                each.push(row);
            }
            // An observation claims no lane, and is nobody's to replace.
            Entry::Occupied(place) if row.proved && each[*place.get()].lane.is_some() && !each[*place.get()].proved => {
                each[*place.get()] = row;
            }
            Entry::Occupied(_) => {}
        }
    }
    each
}

/// An INSERT of so many rows.
fn insert_of(rows: usize, dialect: Dialect) -> String {
    // To SQLite `$7` is a name. It looks names up one after the other, each time: with a thousand of them that took half the time of an INSERT.
    let value = |number: usize| match dialect {
        Dialect::Sqlite => "?".to_owned(),
        Dialect::Postgres => format!("${number}"),
    };
    let row = |row: usize| {
        let values: Vec<_> = (1..=COLUMNS).map(|column| value(row * COLUMNS + column)).collect();
        format!("({})", values.join(", "))
    };
    let rows: Vec<_> = (0..rows).map(row).collect();
    format!(
        "INSERT INTO history (tenant_id, event_id, kind, ts, lane, seq, agent_id, run_id, decision, receipt_hash, bus_seq, wire, kept_by, kept_at, proved, bus_ts)
         VALUES {} ON CONFLICT (tenant_id, event_id) DO UPDATE SET {} WHERE excluded.proved > history.proved AND history.lane IS NOT NULL",
        rows.join(", "),
        REPLACED.map(|column| format!("{column} = excluded.{column}")).join(", ")
    )
}

/// A SELECT of what is kept under so many ids.
fn select_of(ids: usize, dialect: Dialect) -> String {
    let id = |id: usize| match dialect {
        Dialect::Sqlite => "(tenant_id = ? AND event_id = ?)".to_owned(),
        Dialect::Postgres => format!("(tenant_id = ${} AND event_id = ${})", 2 * id + 1, 2 * id + 2),
    };
    let ids: Vec<_> = (0..ids).map(id).collect();
    format!("SELECT tenant_id, event_id, lane, seq FROM history WHERE {}", ids.join(" OR "))
}

/// Those of the events, by place, that are proved receipts and not what is kept under their id: who knew an id ahead has taken it.
async fn displaced_of(tx: &mut Transaction, events: &[HistoryRow], dialect: Dialect) -> Result<Vec<usize>, StoreError> {
    let sealed: Vec<(usize, &HistoryRow)> =
        events.iter().enumerate().filter(|(_, event)| event.proved && event.lane.is_some()).collect();
    let mut displaced = Vec::new();
    let mut rest = sealed.as_slice();
    while let Some(count) = ROWS_PER_STATEMENT.into_iter().find(|count| *count <= rest.len()) {
        let (group, behind) = rest.split_at(count);
        rest = behind;
        let mut query = sqlx::query(AssertSqlSafe(select_of(count, dialect)));
        for (_, event) in group {
            query = query.bind(event.tenant_id.as_str()).bind(event.event_id.as_bytes().as_slice());
        }
        let mut kept: HashMap<(TenantId, EventId), (Option<String>, Option<i64>)> = HashMap::with_capacity(count);
        for found in query.fetch_all(&mut **tx).await? {
            let place = (row::get(&found, "lane")?, row::get(&found, "seq")?);
            kept.insert((row::tenant(&found)?, row::event_id_bytes(&found, "event_id")?), place);
        }
        for (place, event) in group {
            let there = kept.get(&(event.tenant_id.clone(), event.event_id));
            if there.is_none_or(|(lane, seq)| *lane != event.lane || *seq != event.seq) {
                displaced.push(*place);
            }
        }
    }
    Ok(displaced)
}

impl Store {
    /// Keeps events and how far their lanes are with them, all of them or (on an error) none, in one transaction. An event that is known already
    /// is left as it is, unless it is not proved and this one is. Where proved receipts are displaced, nothing is noted of the lanes: they have less than was
    /// thought, and are handed in once more by who knows.
    pub async fn insert_history(&self, events: &[HistoryRow], lanes: &[LaneReach]) -> Result<Kept, StoreError> {
        if events.is_empty() && lanes.is_empty() {
            return Ok(Kept::default());
        }
        let mut tx = self.inner.history_writer.begin(self.inner.dialect.begin_write()).await?;
        let mut new = 0;
        let rows = one_of_each(events);
        let mut rest = rows.as_slice();
        while let Some(count) = ROWS_PER_STATEMENT.into_iter().find(|count| *count <= rest.len()) {
            let (group, behind) = rest.split_at(count);
            rest = behind;
            let mut query = sqlx::query(AssertSqlSafe(insert_of(count, self.inner.dialect)));
            for event in group {
                let (text, kept_by, kept_at) = match &event.wire {
                    Wire::Text(text) => (&**text, None, None),
                    Wire::Kept { by, position } => ("", Some(&**by), Some(*position)),
                };
                query = query
                    .bind(event.tenant_id.as_str())
                    .bind(event.event_id.as_bytes().as_slice())
                    .bind(event.kind.as_str())
                    .bind(event.ts.as_micros())
                    .bind(event.lane.as_deref())
                    .bind(event.seq)
                    .bind(event.agent_id.as_deref().map(|name| keyed(name).into_owned()))
                    .bind(event.run_id.as_deref().map(|name| keyed(name).into_owned()))
                    .bind(event.decision.map(Decision::as_str))
                    .bind(event.receipt_hash.as_deref())
                    .bind(event.bus_seq.cast_signed())
                    .bind(text)
                    .bind(kept_by)
                    .bind(kept_at)
                    .bind(i64::from(event.proved))
                    .bind(event.bus_ts.map(Timestamp::as_micros));
            }
            new += query.execute(&mut *tx).await?.rows_affected();
        }
        // Where each came into its place, nothing else has one's id.
        let is_each_there = new == events.len() as u64;
        let displaced = if is_each_there { Vec::new() } else { displaced_of(&mut tx, events, self.inner.dialect).await? };
        let lanes: &[LaneReach] = if displaced.is_empty() { lanes } else { &[] };
        for lane in lanes {
            let missing: Vec<String> = lane.missing.iter().take(MOST_MISSING).map(|(from, to)| format!("{from}-{to}")).collect();
            sqlx::query(
                "INSERT INTO history_lanes (tenant_id, lane, head, missing) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (tenant_id, lane) DO UPDATE SET head = excluded.head, missing = excluded.missing",
            )
            .bind(lane.tenant_id.as_str())
            .bind(&lane.lane)
            .bind(lane.head)
            .bind(missing.join(","))
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(Kept { new, displaced })
    }

    /// True for a history that was made anew, or restored without its rows.
    pub async fn history_is_empty(&self) -> Result<bool, StoreError> {
        let first: Option<i64> =
            sqlx::query_scalar("SELECT place FROM history LIMIT 1").fetch_optional(&self.inner.history_readers).await?;
        Ok(first.is_none())
    }

    /// One event.
    pub async fn history_event(&self, tenant: &TenantId, event_id: EventId) -> Result<Option<HistoryRow>, StoreError> {
        let found = sqlx::query("SELECT * FROM history WHERE tenant_id = $1 AND event_id = $2")
            .bind(tenant.as_str())
            .bind(event_id.as_bytes().as_slice())
            .fetch_optional(&self.inner.history_readers)
            .await?;
        found.as_ref().map(history).transpose()
    }

    /// The tenant's events that pass the filter, newest first by event time.
    pub async fn list_history(
        &self,
        tenant: &TenantId,
        filter: HistoryFilter<'_>,
        limit: u32,
        offset: u32,
    ) -> Result<Vec<HistoryRow>, StoreError> {
        let (limit, offset) = page(limit, offset);
        let mut conditions = vec!["tenant_id = $1".to_owned()];
        let mut values = vec![tenant.as_str().to_owned()];
        let mut bind = |value: String| {
            values.push(value);
            format!("${}", values.len())
        };
        if !filter.kinds.is_empty() {
            let kinds: Vec<String> = filter.kinds.iter().map(|kind| bind(kind.as_str().to_owned())).collect();
            conditions.push(format!("kind IN ({})", kinds.join(", ")));
        }
        if filter.receipts_only {
            conditions.push("receipt_hash IS NOT NULL".to_owned());
        }
        for (column, value) in [("agent_id", filter.agent_id), ("run_id", filter.run_id)] {
            if let Some(value) = value {
                conditions.push(format!("{column} = {}", bind(keyed(value).into_owned())));
            }
        }
        let conditions = conditions.join(" AND ");
        let text = format!("SELECT * FROM history WHERE {conditions} ORDER BY ts DESC, place DESC LIMIT {limit} OFFSET {offset}");
        let query = values.into_iter().fold(sqlx::query(AssertSqlSafe(text)), |query, value| query.bind(value));
        let rows = query.fetch_all(&self.inner.history_readers).await?;
        rows.iter().map(history).collect()
    }

    /// The tenant's events of `[from, to)` after a place of the history, in the order in which they came: each with its place.
    pub async fn history_in_order(
        &self,
        tenant: &TenantId,
        after: i64,
        (from, to): (Timestamp, Timestamp),
        limit: u32,
    ) -> Result<Vec<(i64, HistoryRow)>, StoreError> {
        // Along the places alone: by any index the database would sort all the rest for every page.
        let rows = sqlx::query(
            "SELECT * FROM history WHERE place > $1 AND tenant_id || '' = $2 AND +ts >= $3 AND +ts < $4 ORDER BY place LIMIT $5",
        )
        .bind(after)
        .bind(tenant.as_str())
        .bind(from.as_micros())
        .bind(to.as_micros())
        .bind(page(limit, 0).0)
        .fetch_all(&self.inner.history_readers)
        .await?;
        rows.iter().map(|r| Ok((row::get(r, "place")?, history(r)?))).collect()
    }

    /// How far a lane is known.
    pub async fn history_lane(&self, tenant: &TenantId, lane: &str) -> Result<Option<LaneReach>, StoreError> {
        let found = sqlx::query("SELECT * FROM history_lanes WHERE tenant_id = $1 AND lane = $2")
            .bind(tenant.as_str())
            .bind(lane)
            .fetch_optional(&self.inner.history_readers)
            .await?;
        found.as_ref().map(lane_of).transpose()
    }

    /// Lanes of which something is missing: the first of every tenant, then the second of each, and so on.
    pub async fn lanes_with_gaps(&self) -> Result<Vec<LaneReach>, StoreError> {
        let rows = sqlx::query(
            "SELECT tenant_id, lane, head, missing FROM (
                 SELECT l.*, ROW_NUMBER() OVER (PARTITION BY tenant_id ORDER BY lane) AS turn FROM history_lanes l WHERE missing <> ''
             ) t ORDER BY turn, tenant_id LIMIT 10000",
        )
        .fetch_all(&self.inner.history_readers)
        .await?;
        rows.iter().map(lane_of).collect()
    }

    /// The lanes in which a tenant has proved receipts of a time or later, each with the first `seq` of these.
    pub async fn lanes_since(&self, tenant: &TenantId, from: Timestamp) -> Result<Vec<(String, i64)>, StoreError> {
        let rows = sqlx::query(
            "SELECT lane, MIN(seq) AS first_seq FROM history
             WHERE tenant_id = $1 AND ts >= $2 AND lane IS NOT NULL AND seq IS NOT NULL AND proved = 1 GROUP BY lane",
        )
        .bind(tenant.as_str())
        .bind(from.as_micros())
        .fetch_all(&self.inner.history_readers)
        .await?;
        rows.iter().map(|r| Ok((row::get(r, "lane")?, row::get(r, "first_seq")?))).collect()
    }

    /// A tenant's proved receipts of one lane behind a `seq`, in order. What proves nothing is whatever its sender says, as often as he says it, and stands
    /// before none of them.
    pub async fn proved_of_lane(
        &self,
        tenant: &TenantId,
        lane: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<HistoryRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM history WHERE tenant_id = $1 AND lane = $2 AND seq > $3 AND proved = 1 ORDER BY seq, place LIMIT $4",
        )
        .bind(tenant.as_str())
        .bind(lane)
        .bind(after)
        .bind(page(limit, 0).0)
        .fetch_all(&self.inner.history_readers)
        .await?;
        rows.iter().map(history).collect()
    }

    /// The tenant's receipts lane by lane in order of `seq`, after the one of a lane, `seq` and place of the history (none: from the start), each with its
    /// place: what a verifier reads. What claims a lane and no `seq` is no receipt. Of one `seq` there may be any number, whoever sent them.
    pub async fn export_lanes(
        &self,
        tenant: &TenantId,
        after: Option<(&str, i64, i64)>,
        limit: u32,
    ) -> Result<Vec<(i64, HistoryRow)>, StoreError> {
        let (lane, seq, place) = after.unwrap_or(("", 0, 0));
        let rows = sqlx::query(
            "SELECT * FROM history WHERE tenant_id = $1 AND lane IS NOT NULL AND seq IS NOT NULL AND (lane, seq, place) > ($2, $3, $4)
             ORDER BY lane, seq, place LIMIT $5",
        )
        .bind(tenant.as_str())
        .bind(lane)
        .bind(seq)
        .bind(place)
        .bind(page(limit, 0).0)
        .fetch_all(&self.inner.history_readers)
        .await?;
        rows.iter().map(|r| Ok((row::get(r, "place")?, history(r)?))).collect()
    }
}
