//! Messages: what a publisher is told, in JetStream's order of checks.

use aegis_model::Reading;

use super::write::Staged;
use super::{Last, Work};
use crate::check::check_message;
use crate::embedded::schema::{pos, seq_of};
use crate::{BusError, Delivered, Message, PubAck, Stream};

/// Counted per message beside subject and payload, for the row and its indexes.
pub(super) const MESSAGE_COST: u64 = 64;

/// Messages that are taken before others of the runtime have a turn: what a shipper was behind with comes by thousands, and the writer is on a thread that
/// answers agents.
const TAKEN_AT_ONCE: usize = 64;

impl Work<'_> {
    pub(super) async fn publish(
        &mut self,
        stream: Stream,
        messages: Vec<Message>,
    ) -> Result<Vec<Result<PubAck, BusError>>, BusError> {
        let count = messages.len();
        let mut results = Vec::with_capacity(count);
        for (place, message) in messages.into_iter().enumerate() {
            if place % TAKEN_AT_ONCE == TAKEN_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
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
        if let Err(refusal) = check_message(stream, &message) {
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
        // Nobody but a keeper of this process knows what it has sealed.
        let unread = message.event.filter(|_| whose.is_some());
        let reading = unread.map_or_else(Reading::default, |event| Reading::unread(&message.payload, self.now, event));
        let delivered =
            Delivered { seq, subject: message.subject, payload: message.payload, bus_ts: self.now, kept: whose, reading };
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
}
