//! Messages whose payload is durable elsewhere, in the same process: the file remembers runs of them, and whoever keeps them gives them
//! back. Promises that a run never yields another message than the one that was published: what a keeper no longer has as it was, because
//! its file was replaced or restored from a backup, is lost, visibly (see `commit::admit`).

use std::collections::HashMap;
use std::sync::Arc;

use aegis_model::{Reading, Timestamp};
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use sqlx::SqlitePool;

use super::schema::{pos, seq_of, signed, unsigned};
use crate::{BusError, Delivered, Kept, Stream};

/// Subject under which a reader gets what is lost: no tenant's.
const LOST: &str = "ase.00.unknown.lost";

/// The number of no keeper: of runs that nobody has any more.
pub(super) const NOBODY: i64 = 0;

/// A message as its keeper has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub position: i64,
    pub msg_id: String,
    pub subject: String,
    pub payload: Bytes,
    /// Shared by all whom the keeper gives the message, where it remembers it.
    pub reading: Reading,
}

/// Whoever keeps messages for the bus.
#[async_trait]
pub trait Keeper: Send + Sync + std::fmt::Debug {
    /// What stands at `first` and behind it, up to `first + count - 1`, in order of position. A position without a message, or whose message
    /// can never be read again, is left out: an error is for what may go away.
    async fn read(&self, first: i64, count: usize) -> Result<Vec<Held>, BusError>;

    /// The last position that was given to a message, readable or not.
    fn last(&self) -> i64;
}

/// A keeper as the file knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) name: String,
    /// The last position that was published, and the id of the message there; 0 and empty before the first.
    pub(super) last_position: i64,
    pub(super) last_id: String,
}

/// The keepers of this start, by their number in the file and by name.
#[derive(Debug, Default)]
pub(super) struct Keepers {
    by_number: HashMap<i64, (Arc<str>, Arc<dyn Keeper>)>,
    by_name: HashMap<String, i64>,
}

impl Keepers {
    pub(super) fn add(&mut self, name: &str, number: i64, keeper: Arc<dyn Keeper>) {
        self.by_number.insert(number, (name.into(), keeper));
        self.by_name.insert(name.to_owned(), number);
    }

    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.by_name.get(name).copied()
    }

    pub(super) fn get(&self, number: i64) -> Option<(Arc<str>, Arc<dyn Keeper>)> {
        self.by_number.get(&number).cloned()
    }
}

/// Consecutive messages of consecutive positions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) first_seq: u64,
    pub(super) source: i64,
    pub(super) first_position: i64,
    pub(super) count: u64,
    pub(super) bus_ts: Timestamp,
}

impl Run {
    /// The part from `from_seq` to `to_seq`; None if it has none of them.
    pub(super) fn between(self, from_seq: u64, to_seq: u64) -> Option<Self> {
        let first_seq = self.first_seq.max(from_seq);
        let end = (self.first_seq + self.count).min(to_seq.saturating_add(1));
        let skipped = signed(first_seq - self.first_seq);
        (first_seq < end).then(|| Self {
            first_seq,
            first_position: self.first_position + skipped,
            count: end - first_seq,
            ..self
        })
    }
}

/// The runs of a stream that have a message from `from_seq` to `to_seq`, cut to them, in order.
pub(super) async fn runs(readers: &SqlitePool, stream: Stream, from_seq: u64, to_seq: u64) -> Result<Vec<Run>, BusError> {
    let rows: Vec<(i64, i64, i64, i64, i64)> = sqlx::query_as(
        "SELECT pos, source, first_position, count, bus_ts FROM runs
         WHERE pos >= coalesce((SELECT max(pos) FROM runs WHERE pos <= ?1 AND pos > ?2), ?1) AND pos <= ?3 ORDER BY pos",
    )
    .bind(pos(stream, from_seq))
    .bind(pos(stream, 0))
    .bind(pos(stream, to_seq))
    .fetch_all(readers)
    .await?;
    let runs = rows.into_iter().map(|(pos, source, first_position, count, bus_ts)| Run {
        first_seq: seq_of(pos),
        source,
        first_position,
        count: unsigned(count),
        bus_ts: Timestamp::from_micros(bus_ts),
    });
    Ok(runs.filter_map(|run| run.between(from_seq, to_seq)).collect())
}

/// The messages of a run. What its keeper does not have any more comes as one message for each stretch of it, which says so: a reader sets it
/// aside and goes on.
pub(super) async fn read(run: Run, keeper: Option<(Arc<str>, Arc<dyn Keeper>)>) -> Result<Vec<Delivered>, BusError> {
    let Some((by, keeper)) = keeper else { return Ok(vec![lost(run)]) };
    let count = usize::try_from(run.count).unwrap_or(usize::MAX);
    let mut messages = Vec::with_capacity(count);
    let mut next_seq = run.first_seq;
    for held in keeper.read(run.first_position, count).await? {
        let seq = run.first_seq + unsigned(held.position - run.first_position);
        messages.extend(seq.checked_sub(1).and_then(|before| run.between(next_seq, before)).map(lost));
        next_seq = seq + 1;
        let kept = Some(Kept { by: Arc::clone(&by), position: held.position });
        let Held { subject, payload, reading, .. } = held;
        messages.push(Delivered { seq, subject, payload, bus_ts: run.bus_ts, kept, reading });
    }
    messages.extend(run.between(next_seq, u64::MAX).map(lost));
    Ok(messages)
}

/// Stands for a run that is lost, at its last place.
fn lost(run: Run) -> Delivered {
    let said = json!({"lost": {"source": run.source, "position": run.first_position, "count": run.count}});
    Delivered {
        seq: run.first_seq + run.count - 1,
        subject: LOST.to_owned(),
        payload: Bytes::from(said.to_string()),
        bus_ts: run.bus_ts,
        kept: None,
        reading: Reading::default(),
    }
}
