//! What happened, as the bus delivered it: a row of the history, and what makes two events the same row.
//! A sealed receipt is known by its lane, its `seq` and its hash: no other producer can take its place, whatever id it has. What claims a lane and
//! proves nothing is known by the same, and gives way to the receipt whose hash it named. What claims no lane, an observation, is known by its id
//! among observations. The wire form is kept byte for byte, here or where it stands already, so that it can be verified again.

use std::sync::Arc;

use aegis_model::{Decision, EventId, EventKind, TenantId, Timestamp};
use sqlx::any::AnyRow;

use crate::{Dialect, StoreError, row};

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
    pub standing: Standing,
    pub wire: Wire,
}

impl HistoryRow {
    /// True for a receipt of a lane that proves itself, and is for its producer to say.
    #[must_use]
    pub fn is_proved(&self) -> bool {
        self.standing == Standing::Own && self.lane.is_some()
    }
}

/// What a receipt proved when it came. Of an event without a lane it says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does not prove itself, or is none.
    Unproved,
    /// It proves itself, and has its place in the lane.
    Own,
    /// The same, and its kind is not for the lane's producer to say.
    Foreign,
}

impl Standing {
    /// As a column.
    pub(crate) const fn as_number(self) -> i64 {
        match self {
            Self::Unproved => 0,
            Self::Own => 1,
            Self::Foreign => 2,
        }
    }

    const fn from_number(number: i64) -> Option<Self> {
        match number {
            0 => Some(Self::Unproved),
            1 => Some(Self::Own),
            2 => Some(Self::Foreign),
            _ => None,
        }
    }
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

pub(crate) fn history(r: &AnyRow) -> Result<HistoryRow, StoreError> {
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
        standing: standing(r)?,
        wire: wire(r)?,
    })
}

fn standing(r: &AnyRow) -> Result<Standing, StoreError> {
    let number: i64 = row::get(r, "proved")?;
    Standing::from_number(number).ok_or_else(|| StoreError::Unreadable { column: "proved", detail: number.to_string() })
}

fn wire(r: &AnyRow) -> Result<Wire, StoreError> {
    let kept_by: Option<String> = row::get(r, "kept_by")?;
    Ok(match kept_by {
        Some(by) => Wire::Kept { by: by.into(), position: row::get(r, "kept_at")? },
        None => Wire::Text(row::get::<String>(r, "wire")?.into()),
    })
}

/// The beginning of the hash that a row has in its key: in SQLite a column, in Postgres an expression, since a column of it would have all rows written anew.
pub(crate) const fn mark_of(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Sqlite => "mark",
        Dialect::Postgres => "substr(coalesce(receipt_hash, ''), 1, 32)",
    }
}
