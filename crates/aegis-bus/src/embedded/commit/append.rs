//! Messages: what a publisher is told, in JetStream's order of checks, and the statements that write what was taken.

use std::collections::HashMap;

use super::{Last, Staged, Work, json};
use crate::embedded::schema::{pos, signed};
use crate::{BusError, Delivered, MAX_MSG_ID, MAX_PAYLOAD, Message, PubAck, Stream, subject};

/// Messages of one stream, their ids, the last of each subject, and the stream's counters. One text, because each takes a way to the
/// connection's thread and back, which costs more than a row does.
macro_rules! write_messages {
    ($end:literal) => {
        concat!(
            "INSERT INTO messages (pos, subject, payload, bus_ts)
               SELECT ? + key, value ->> 0, substr(?, value ->> 1, value ->> 2), ? FROM json_each(?);
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
        if let Some(id) = &message.msg_id
            && let Some(seq) = self.ids[i].get(id)
        {
            return Ok(Ok(PubAck { seq: *seq, duplicate: true }));
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
        if let Some(id) = &message.msg_id {
            self.ids[i].insert(id.clone(), seq);
        }
        if stream.keeps_latest_per_subject()
            || message.expected_last_subject_seq.is_some()
            || self.subjects[i].contains_key(&message.subject)
        {
            self.subjects[i].insert(message.subject.clone(), Last { seq, cost });
        }
        let delivered = Delivered { seq, subject: message.subject, payload: message.payload, bus_ts: self.now };
        self.staged[i].push(Staged { message: delivered, msg_id: message.msg_id, cost });
        Ok(Ok(PubAck { seq, duplicate: false }))
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
        let mut payloads = Vec::with_capacity(staged.iter().map(|s| s.message.payload.len()).sum());
        let mut rows = Vec::with_capacity(staged.len());
        let mut ids = Vec::with_capacity(staged.len());
        let mut subjects: HashMap<&str, (u64, u64)> = HashMap::new();
        for (offset, Staged { message, msg_id, cost }) in staged.iter().enumerate() {
            rows.push((message.subject.as_str(), payloads.len() + 1, message.payload.len()));
            payloads.extend_from_slice(&message.payload);
            subjects.insert(&message.subject, (message.seq, *cost));
            if let Some(id) = msg_id {
                ids.push((offset, id.as_str()));
            }
        }
        let subjects: Vec<(&str, u64, u64)> = subjects.into_iter().map(|(subject, (seq, cost))| (subject, seq, cost)).collect();
        let counters = self.state.streams[i];
        let (first_pos, stream_index, now) = (pos(stream, first.message.seq), signed(i as u64), self.now.as_micros());
        let messages = sqlx::query(sql).bind(first_pos).bind(payloads).bind(now).bind(json(&rows)?);
        let with_ids = messages.bind(first_pos).bind(stream_index).bind(now).bind(json(&ids)?);
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
