//! What happened, as the bus delivered it: one row an event, found by id, kind, agent or run, and exported lane by lane.
//! Filled by one consumer in batches; never changed. The wire form is kept byte for byte, here or where it stands
//! already, so that it can be verified again.

use std::sync::Arc;

use aegis_model::{Decision, EventId, EventKind, TenantId, Timestamp};
use sqlx::QueryBuilder;
use sqlx::sqlite::SqliteRow;

use crate::{Store, StoreError, page, row};

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

fn history(r: &SqliteRow) -> Result<HistoryRow, StoreError> {
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
        wire: wire(r)?,
    })
}

fn wire(r: &SqliteRow) -> Result<Wire, StoreError> {
    let kept_by: Option<String> = row::get(r, "kept_by")?;
    Ok(match kept_by {
        Some(by) => Wire::Kept { by: by.into(), position: row::get(r, "kept_at")? },
        None => Wire::Text(row::get::<String>(r, "wire")?.into()),
    })
}

/// Rows of one INSERT: as many as fit of these. Few texts, so that each stays prepared; a statement's way to the database costs more
/// than a row does.
const ROWS_PER_STATEMENT: [usize; 7] = [64, 32, 16, 8, 4, 2, 1];

impl Store {
    /// Keeps events, all of them or (on an error) none, in one transaction. An event that is known already is left as it is.
    /// Returns how many were new.
    pub async fn insert_history(&self, rows: &[HistoryRow]) -> Result<u64, StoreError> {
        if rows.is_empty() {
            return Ok(0);
        }
        let mut tx = self.inner.history_writer.begin_with("BEGIN IMMEDIATE").await?;
        let mut new = 0;
        let mut rest = rows;
        while let Some(count) = ROWS_PER_STATEMENT.into_iter().find(|count| *count <= rest.len()) {
            let (group, behind) = rest.split_at(count);
            rest = behind;
            let mut query = QueryBuilder::<sqlx::Sqlite>::new(
                "INSERT INTO history (tenant_id, event_id, kind, ts, lane, seq, agent_id, run_id, decision, receipt_hash, bus_seq, wire, kept_by, kept_at) ",
            );
            query.push_values(group, |mut values, event| {
                let (text, kept_by, kept_at) = match &event.wire {
                    Wire::Text(text) => (Arc::clone(text), None, None),
                    Wire::Kept { by, position } => (Arc::from(""), Some(Arc::clone(by)), Some(*position)),
                };
                values
                    .push_bind(event.tenant_id.as_str())
                    .push_bind(event.event_id.as_bytes().as_slice())
                    .push_bind(event.kind.as_str())
                    .push_bind(event.ts.as_micros())
                    .push_bind(event.lane.as_deref())
                    .push_bind(event.seq)
                    .push_bind(event.agent_id.as_deref())
                    .push_bind(event.run_id.as_deref())
                    .push_bind(event.decision.map(Decision::as_str))
                    .push_bind(event.receipt_hash.as_deref())
                    .push_bind(event.bus_seq.cast_signed())
                    .push_bind(text)
                    .push_bind(kept_by)
                    .push_bind(kept_at);
            });
            query.push(" ON CONFLICT (tenant_id, event_id) DO NOTHING");
            new += query.build().execute(&mut *tx).await?.rows_affected();
        }
        tx.commit().await?;
        Ok(new)
    }

    /// True for a history that was made anew, or restored without its rows.
    pub async fn history_is_empty(&self) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar("SELECT NOT EXISTS (SELECT 1 FROM history)").fetch_one(&self.inner.history_readers).await?)
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
        let mut query = QueryBuilder::<sqlx::Sqlite>::new("SELECT * FROM history WHERE tenant_id = ");
        query.push_bind(tenant.as_str().to_owned());
        if !filter.kinds.is_empty() {
            query.push(" AND kind IN (");
            let mut words = query.separated(", ");
            for kind in filter.kinds {
                words.push_bind(kind.as_str());
            }
            query.push(")");
        }
        if filter.receipts_only {
            query.push(" AND receipt_hash IS NOT NULL");
        }
        if let Some(agent_id) = filter.agent_id {
            query.push(" AND agent_id = ").push_bind(agent_id.to_owned());
        }
        if let Some(run_id) = filter.run_id {
            query.push(" AND run_id = ").push_bind(run_id.to_owned());
        }
        query.push(" ORDER BY ts DESC, place DESC LIMIT ").push_bind(limit).push(" OFFSET ").push_bind(offset);
        let rows = query.build().fetch_all(&self.inner.history_readers).await?;
        rows.iter().map(history).collect()
    }

    /// How far a lane is known: its greatest `seq`, 0 for one that is not.
    pub async fn lane_head(&self, tenant: &TenantId, lane: &str) -> Result<i64, StoreError> {
        let head: Option<i64> = sqlx::query_scalar("SELECT max(seq) FROM history WHERE tenant_id = $1 AND lane = $2")
            .bind(tenant.as_str())
            .bind(lane)
            .fetch_one(&self.inner.history_readers)
            .await?;
        Ok(head.unwrap_or(0))
    }

    /// The tenant's receipts lane by lane in order of `seq`, after the given one (none: from the start): what a verifier reads.
    pub async fn export_lanes(
        &self,
        tenant: &TenantId,
        after: Option<(&str, i64)>,
        limit: u32,
    ) -> Result<Vec<HistoryRow>, StoreError> {
        let (lane, seq) = after.unwrap_or(("", 0));
        let rows = sqlx::query(
            "SELECT * FROM history WHERE tenant_id = $1 AND lane IS NOT NULL AND (lane, seq) > ($2, $3)
             ORDER BY lane, seq, place LIMIT $4",
        )
        .bind(tenant.as_str())
        .bind(lane)
        .bind(seq)
        .bind(page(limit, 0).0)
        .fetch_all(&self.inner.history_readers)
        .await?;
        rows.iter().map(history).collect()
    }
}
