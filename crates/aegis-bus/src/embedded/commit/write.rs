//! The statements that write what was taken. One text for all of a commit, because each text takes a way to the connection's thread and
//! back, which costs more than a row does.

use std::collections::{HashMap, HashSet};

use sqlx::Sqlite;

use super::{Work, json};
use crate::embedded::schema::{pos, signed};
use crate::{BusError, Delivered, Stream};

/// Runs of messages that somebody else keeps, and how far their keepers are.
macro_rules! write_runs {
    () => {
        "INSERT INTO runs (pos, source, first_position, count, bytes, last_id, bus_ts)
           SELECT ? + (value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, ? FROM json_each(?);
         INSERT INTO sources (source, name, last_position, last_id)
           SELECT value ->> 0, '', value ->> 1, value ->> 2 FROM json_each(?) WHERE true
           ON CONFLICT (source) DO UPDATE SET last_position = excluded.last_position, last_id = excluded.last_id;"
    };
}

/// The last of each subject, and the stream's counters.
macro_rules! write_counters {
    ($end:literal) => {
        concat!(
            "INSERT INTO subjects (stream, subject, last_seq, cost)
               SELECT ?, value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE true
               ON CONFLICT (stream, subject) DO UPDATE SET last_seq = excluded.last_seq, cost = excluded.cost;
             UPDATE streams SET first_seq = ?, last_seq = ?, messages = ?, bytes = ?, dropped = ? WHERE stream = ?",
            $end
        )
    };
}

/// Messages of one stream, runs of those that somebody else keeps, their ids, and how far the stream is.
macro_rules! write_messages {
    ($end:literal) => {
        concat!(
            "INSERT INTO messages (pos, subject, payload, bus_ts)
               SELECT ? + (value ->> 0), value ->> 1, substr(?, value ->> 2, value ->> 3), ? FROM json_each(?);",
            write_runs!(),
            "INSERT INTO msg_ids (pos, stream, msg_id, bus_ts)
               SELECT ? + (value ->> 0), ?, value ->> 1, ? FROM json_each(?);",
            write_counters!($end)
        )
    };
}

/// The same where somebody else keeps all of them: each statement wakes who waits for the last.
macro_rules! write_kept {
    ($end:literal) => {
        concat!(write_runs!(), write_counters!($end))
    };
}

/// The texts that write what was taken: the whole, and where all of it is kept elsewhere.
pub(super) struct Texts {
    whole: &'static str,
    kept: &'static str,
}

const WRITE: Texts = Texts { whole: write_messages!(""), kept: write_kept!("") };
pub(super) const WRITE_AND_COMMIT: Texts = Texts { whole: write_messages!("; COMMIT"), kept: write_kept!("; COMMIT") };

/// A message that was taken and is not in the file yet.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) message: Delivered,
    pub(super) msg_id: Option<String>,
    pub(super) cost: u64,
    /// The number of its keeper, and its position there.
    pub(super) kept: Option<(i64, i64)>,
}

/// A run in the making.
struct StagedRun<'a> {
    /// Of its first message among the staged ones.
    offset: usize,
    source: i64,
    first_position: i64,
    count: u64,
    cost: u64,
    last_id: &'a str,
}

impl<'a> StagedRun<'a> {
    fn goes_on_with(&self, offset: usize, source: i64, position: i64) -> bool {
        let next = self.offset.saturating_add(usize::try_from(self.count).unwrap_or(usize::MAX));
        next == offset && self.source == source && self.first_position + signed(self.count) == position
    }

    fn add(&mut self, cost: u64, id: &'a str) {
        self.count += 1;
        self.cost += cost;
        self.last_id = id;
    }

    /// In the order of the statement.
    fn columns(&self) -> (usize, i64, i64, u64, u64, &'a str) {
        (self.offset, self.source, self.first_position, self.count, self.cost, self.last_id)
    }
}

/// Consecutive messages of consecutive positions.
fn runs_of(staged: &[Staged]) -> Vec<StagedRun<'_>> {
    let mut runs: Vec<StagedRun<'_>> = Vec::new();
    for (offset, Staged { msg_id, cost, kept, .. }) in staged.iter().enumerate() {
        let Some((source, position)) = *kept else { continue };
        let id = msg_id.as_deref().unwrap_or_default();
        match runs.last_mut().filter(|run| run.goes_on_with(offset, source, position)) {
            Some(run) => run.add(*cost, id),
            None => runs.push(StagedRun { offset, source, first_position: position, count: 1, cost: *cost, last_id: id }),
        }
    }
    runs
}

impl Work<'_> {
    /// Writes what is staged, and removes what it replaces.
    pub(super) async fn flush(&mut self, stream: Stream) -> Result<(), BusError> {
        let i = stream.index();
        if !self.staged[i].is_empty() {
            self.write_staged(stream, WRITE).await?;
        }
        let superseded = std::mem::take(&mut self.superseded[i]);
        if !superseded.is_empty() {
            sqlx::query(
                "UPDATE msg_ids SET retired = 1 WHERE pos IN (SELECT value FROM json_each(?1));
                 DELETE FROM messages WHERE pos IN (SELECT value FROM json_each(?1))",
            )
            .bind(json(&superseded)?)
            .execute(&mut *self.conn)
            .await?;
        }
        Ok(())
    }

    /// Writes what is staged with `texts`, which are `WRITE` or `WRITE_AND_COMMIT`.
    pub(super) async fn write_staged(&mut self, stream: Stream, texts: Texts) -> Result<(), BusError> {
        let i = stream.index();
        let staged = std::mem::take(&mut self.staged[i]);
        let Some(first) = staged.first() else { return Ok(()) };
        // All payloads in one blob, cut apart again by SQLite: a constant statement with few values to bind.
        let mut payloads = Vec::new();
        let mut rows = Vec::new();
        let mut ids = Vec::new();
        let mut subjects: HashMap<&str, (u64, u64)> = HashMap::new();
        for (offset, Staged { message, msg_id, cost, kept }) in staged.iter().enumerate() {
            subjects.insert(&message.subject, (message.seq, *cost));
            if kept.is_some() {
                continue;
            }
            rows.push((offset, message.subject.as_str(), payloads.len() + 1, message.payload.len()));
            payloads.extend_from_slice(&message.payload);
            if let Some(id) = msg_id {
                ids.push((offset, id.as_str()));
            }
        }
        let runs = runs_of(&staged);
        let sources: HashSet<i64> = runs.iter().map(|run| run.source).collect();
        let sources: Vec<(i64, i64, &str)> = sources
            .into_iter()
            .filter_map(|number| {
                self.state.sources.get(&number).map(|source| (number, source.last_position, source.last_id.as_str()))
            })
            .collect();
        let runs: Vec<_> = runs.iter().map(StagedRun::columns).collect();
        let subjects: Vec<(&str, u64, u64)> = subjects.into_iter().map(|(subject, (seq, cost))| (subject, seq, cost)).collect();
        let counters = self.state.streams[i];
        let (first_pos, stream_index, now) = (pos(stream, first.message.seq), signed(i as u64), self.now.as_micros());
        let all_kept = rows.is_empty();
        let messages = if all_kept {
            sqlx::query::<Sqlite>(texts.kept)
        } else {
            sqlx::query::<Sqlite>(texts.whole).bind(first_pos).bind(payloads).bind(now).bind(json(&rows)?)
        };
        let with_runs = messages.bind(first_pos).bind(now).bind(json(&runs)?).bind(json(&sources)?);
        let with_ids =
            if all_kept { with_runs } else { with_runs.bind(first_pos).bind(stream_index).bind(now).bind(json(&ids)?) };
        with_ids
            .bind(stream_index)
            .bind(json(&subjects)?)
            .bind(signed(counters.first_seq))
            .bind(signed(counters.last_seq))
            .bind(signed(counters.messages))
            .bind(signed(counters.bytes))
            .bind(signed(counters.dropped_total))
            .bind(stream_index)
            .execute(&mut *self.conn)
            .await?;
        self.appended[i].extend(staged.into_iter().map(|s| s.message));
        Ok(())
    }
}
