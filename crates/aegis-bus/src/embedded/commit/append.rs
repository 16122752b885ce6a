//! Messages: what a publisher is told, in JetStream's order of checks, and the statements that write what was taken.

use std::collections::{HashMap, HashSet};

use super::{Last, Staged, Work, json};
use crate::embedded::schema::{pos, seq_of, signed};
use crate::{BusError, Delivered, MAX_MSG_ID, MAX_PAYLOAD, Message, PubAck, Stream, subject};

/// Messages of one stream, runs of those that somebody else keeps, their ids, the last of each subject, and the stream's counters. One text, because each takes a way to the
/// connection's thread and back, which costs more than a row does.
macro_rules! write_messages {
    ($end:literal) => {
        concat!(
            "INSERT INTO messages (pos, subject, payload, bus_ts)
               SELECT ? + (value ->> 0), value ->> 1, substr(?, value ->> 2, value ->> 3), ? FROM json_each(?);
             INSERT INTO runs (pos, source, first_position, count, bytes, bus_ts)
               SELECT ? + (value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, ? FROM json_each(?);
             INSERT INTO sources (source, name, last_position, last_id)
               SELECT value ->> 0, '', value ->> 1, value ->> 2 FROM json_each(?) WHERE true
               ON CONFLICT (source) DO UPDATE SET last_position = excluded.last_position, last_id = excluded.last_id;
             INSERT INTO msg_ids (pos, stream, msg_id, bus_ts)
               SELECT ? + (value ->> 0), ?, value ->> 1, ? FROM json_each(?);
             INSERT INTO subjects (stream, subject, last_seq, cost)
               SELECT ?, value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE true
               ON CONFLICT (stream, subject) DO UPDATE SET last_seq = excluded.last_seq, cost = excluded.cost;
             UPDATE streams SET first_seq = ?, last_seq = ?, messages = ?, bytes = ?, dropped = ? WHERE stream = ?",
            $end
        )
    };
}
pub(super) const WRITE: &str = write_messages!("");
pub(super) const WRITE_AND_COMMIT: &str = write_messages!("; COMMIT");

/// Counted per message beside subject and payload, for the row and its indexes.
pub(super) const MESSAGE_COST: u64 = 64;

impl Work<'_> {
    pub(super) async fn publish(
        &mut self,
        stream: Stream,
        messages: Vec<Message>,
    ) -> Result<Vec<Result<PubAck, BusError>>, BusError> {
        let count = messages.len();
        let mut results = Vec::with_capacity(count);
        for message in messages {
            let result = self.stage(stream, message).await?;
            let full = matches!(result, Err(BusError::Full { .. }));
            results.push(result);
            if full {
                // A smaller message behind must not overtake.
                results.resize(count, Err(BusError::Full { stream }));
                break;
            }
        }
        Ok(results)
    }

    /// Decides about one message in JetStream's order: form, duplicate, expected sequence, room.
    async fn stage(&mut self, stream: Stream, message: Message) -> Result<Result<PubAck, BusError>, BusError> {
        let i = stream.index();
        if let Err(refusal) = check_form(stream, &message) {
            return Ok(Err(refusal));
        }
        let kept = self.keeper_of(stream, &message).zip(message.kept.as_ref().map(|kept| kept.position));
        let known = match (kept, &message.msg_id) {
            (Some((source, position)), _) => self.seq_of_kept(stream, source, position).await?,
            (None, Some(id)) => self.ids[i].get(id).copied(),
            (None, None) => None,
        };
        if let Some(seq) = known {
            return Ok(Ok(PubAck { seq, duplicate: true }));
        }
        let last_seq = self.last_of(stream, &message.subject).map_or(0, |last| last.seq);
        if message.expected_last_subject_seq.is_some_and(|expected| expected != last_seq) {
            return Ok(Err(BusError::WrongLastSequence { subject: message.subject, actual: last_seq }));
        }
        let cost = message.subject.len() as u64 + message.payload.len() as u64 + MESSAGE_COST;
        let max = self.limits.stream(stream).max_bytes;
        if cost > max {
            return Ok(Err(BusError::TooLarge { bytes: message.payload.len(), max: usize::try_from(max).unwrap_or(usize::MAX) }));
        }
        if !self.fits(stream, &message.subject, cost) {
            self.flush(stream).await?;
            self.make_room(stream, cost).await?;
            if !self.fits(stream, &message.subject, cost) {
                return Ok(Err(BusError::Full { stream }));
            }
        }

        if stream.keeps_latest_per_subject()
            && let Some(previous) = self.last_of(stream, &message.subject)
        {
            self.superseded[i].push(pos(stream, previous.seq));
            self.state.streams[i].messages -= 1;
            self.state.streams[i].bytes -= previous.cost;
        }
        let counters = &mut self.state.streams[i];
        let seq = counters.last_seq + 1;
        counters.last_seq = seq;
        counters.messages += 1;
        counters.bytes += cost;
        match (kept, &message.msg_id) {
            (Some((source, position)), id) => self.published(source, position, id.as_deref().unwrap_or_default()),
            (None, Some(id)) => _ = self.ids[i].insert(id.clone(), seq),
            (None, None) => {}
        }
        if stream.keeps_latest_per_subject()
            || message.expected_last_subject_seq.is_some()
            || self.subjects[i].contains_key(&message.subject)
        {
            self.subjects[i].insert(message.subject.clone(), Last { seq, cost });
        }
        let whose = message.kept.filter(|_| kept.is_some());
        let delivered = Delivered { seq, subject: message.subject, payload: message.payload, bus_ts: self.now, kept: whose };
        self.staged[i].push(Staged { message: delivered, msg_id: message.msg_id, cost, kept });
        Ok(Ok(PubAck { seq, duplicate: false }))
    }

    /// The sequence of a kept message that was published before. Positions ascend, so only one that does not is looked for.
    async fn seq_of_kept(&mut self, stream: Stream, source: i64, position: i64) -> Result<Option<u64>, BusError> {
        if self.state.sources.get(&source).is_none_or(|known| position > known.last_position) {
            return Ok(None);
        }
        // What this commit has taken is not in the file yet.
        let staged = self.staged[stream.index()].iter().find(|staged| staged.kept == Some((source, position)));
        if let Some(staged) = staged {
            return Ok(Some(staged.message.seq));
        }
        let run: Option<(i64, i64, i64)> = sqlx::query_as(
            "SELECT pos, first_position, count FROM runs WHERE source = ?1 AND first_position <= ?2
             ORDER BY first_position DESC LIMIT 1",
        )
        .bind(source)
        .bind(position)
        .fetch_optional(&mut *self.conn)
        .await?;
        Ok(run.filter(|(_, first, count)| position < first + count).map(|(pos, first, _)| seq_of(pos + (position - first))))
    }

    fn published(&mut self, source: i64, position: i64, id: &str) {
        if let Some(source) = self.state.sources.get_mut(&source)
            && position > source.last_position
        {
            source.last_position = position;
            id.clone_into(&mut source.last_id);
        }
    }

    /// The last message of a subject, if retention left it.
    fn last_of(&self, stream: Stream, subject: &str) -> Option<Last> {
        let i = stream.index();
        self.subjects[i].get(subject).copied().filter(|last| last.seq >= self.state.streams[i].first_seq)
    }

    fn fits(&self, stream: Stream, subject: &str, cost: u64) -> bool {
        let limits = self.limits.stream(stream);
        let counters = self.state.streams[stream.index()];
        let replaced = if stream.keeps_latest_per_subject() { self.last_of(stream, subject) } else { None };
        let messages = counters.messages + 1 - u64::from(replaced.is_some());
        let bytes = counters.bytes + cost - replaced.map_or(0, |last| last.cost);
        messages <= limits.max_messages && bytes <= limits.max_bytes
    }

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

    /// Writes what is staged with `sql`, which is `WRITE` or `WRITE_AND_COMMIT`.
    pub(super) async fn write_staged(&mut self, stream: Stream, sql: &'static str) -> Result<(), BusError> {
        let i = stream.index();
        let staged = std::mem::take(&mut self.staged[i]);
        let Some(first) = staged.first() else { return Ok(()) };
        // All payloads in one blob, cut apart again by SQLite: a constant statement with few values to bind.
        let mut payloads = Vec::new();
        let mut rows = Vec::new();
        let mut ids = Vec::new();
        let mut runs: Vec<StagedRun> = Vec::new();
        let mut subjects: HashMap<&str, (u64, u64)> = HashMap::new();
        for (offset, Staged { message, msg_id, cost, kept }) in staged.iter().enumerate() {
            subjects.insert(&message.subject, (message.seq, *cost));
            if let Some((source, position)) = *kept {
                match runs.last_mut().filter(|run| run.goes_on_with(offset, source, position)) {
                    Some(run) => run.add(*cost),
                    None => runs.push(StagedRun(offset, source, position, 1, *cost)),
                }
                continue;
            }
            rows.push((offset, message.subject.as_str(), payloads.len() + 1, message.payload.len()));
            payloads.extend_from_slice(&message.payload);
            if let Some(id) = msg_id {
                ids.push((offset, id.as_str()));
            }
        }
        let sources: HashSet<i64> = runs.iter().map(|run| run.1).collect();
        let sources: Vec<(i64, i64, &str)> = sources
            .into_iter()
            .filter_map(|number| {
                self.state.sources.get(&number).map(|source| (number, source.last_position, source.last_id.as_str()))
            })
            .collect();
        let subjects: Vec<(&str, u64, u64)> = subjects.into_iter().map(|(subject, (seq, cost))| (subject, seq, cost)).collect();
        let counters = self.state.streams[i];
        let (first_pos, stream_index, now) = (pos(stream, first.message.seq), signed(i as u64), self.now.as_micros());
        let messages = sqlx::query(sql).bind(first_pos).bind(payloads).bind(now).bind(json(&rows)?);
        let with_runs = messages.bind(first_pos).bind(now).bind(json(&runs)?).bind(json(&sources)?);
        let with_ids = with_runs.bind(first_pos).bind(stream_index).bind(now).bind(json(&ids)?);
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

/// A run in the making: offset of its first message, keeper, first position, how many, and what they cost.
#[derive(serde::Serialize)]
struct StagedRun(usize, i64, i64, u64, u64);

impl StagedRun {
    fn goes_on_with(&self, offset: usize, source: i64, position: i64) -> bool {
        let Self(first_offset, of, first_position, count, _) = self;
        let next = usize::try_from(*count).unwrap_or(usize::MAX);
        first_offset.saturating_add(next) == offset && *of == source && first_position + signed(*count) == position
    }

    fn add(&mut self, cost: u64) {
        self.3 += 1;
        self.4 += cost;
    }
}

fn check_form(stream: Stream, message: &Message) -> Result<(), BusError> {
    subject::check_subject(stream, &message.subject)?;
    if message.payload.len() > MAX_PAYLOAD {
        return Err(BusError::TooLarge { bytes: message.payload.len(), max: MAX_PAYLOAD });
    }
    match &message.msg_id {
        Some(id) if id.is_empty() || id.len() > MAX_MSG_ID => {
            Err(BusError::invalid("message id", format!("it must have 1 to {MAX_MSG_ID} bytes")))
        }
        Some(id) if id.chars().any(char::is_control) => Err(BusError::invalid("message id", "a control character")),
        _ => Ok(()),
    }
}
