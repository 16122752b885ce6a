//! Retention: what makes room when a stream's bound is reached, and what is remembered of what is gone.

use aegis_model::Timestamp;

use super::Work;
use super::append::MESSAGE_COST;
use crate::embedded::schema::{base, pos, seq_of, signed, unsigned};
use crate::{BusError, Stream};

/// Messages that retention looks at in one query.
const RETENTION_CHUNK: i64 = 1024;

/// Retention frees this much more than is needed (or a twentieth of the bound), so that it does not run for every commit.
const SLACK_MESSAGES: u64 = 4096;
const SLACK_BYTES: u64 = 16 * 1024 * 1024;

impl Work<'_> {
    /// Drops the oldest messages that every consumer has passed (dead letters: passed or not; episodes: also those that are old), with some slack.
    pub(super) async fn make_room(&mut self, stream: Stream, cost: u64) -> Result<(), BusError> {
        let i = stream.index();
        let limits = self.limits.stream(stream);
        let (consumed, last_seq) = (self.state.consumed(stream), self.state.streams[i].last_seq);
        let droppable_to = match stream {
            Stream::Dlq => last_seq,
            Stream::Episodes => {
                let old = self.written_before(stream, self.now.plus_seconds(-self.limits.episodes_age_s)).await?;
                consumed.max(old).min(last_seq)
            }
            Stream::Ase | Stream::Approvals | Stream::Alerts | Stream::Ckpt => consumed.min(last_seq),
        };
        let want_messages = limits.max_messages.saturating_sub(1 + SLACK_MESSAGES.min(limits.max_messages / 20));
        let want_bytes = limits.max_bytes.saturating_sub(cost + SLACK_BYTES.min(limits.max_bytes / 20));
        while self.state.streams[i].first_seq <= droppable_to
            && (self.state.streams[i].messages > want_messages || self.state.streams[i].bytes > want_bytes)
        {
            let first_pos = pos(stream, self.state.streams[i].first_seq);
            // Where each begins, how many it is, and their size: a message, or a whole run of them.
            let oldest: Vec<(i64, i64, i64)> = sqlx::query_as(
                "SELECT pos, 1, length(subject) + length(payload) + ?4 FROM messages WHERE pos >= ?1 AND pos <= ?2
                 UNION ALL
                 SELECT pos, count, bytes FROM runs WHERE pos >= ?1 AND pos <= ?2 AND pos + count - 1 <= ?2
                 ORDER BY pos LIMIT ?3",
            )
            .bind(first_pos)
            .bind(pos(stream, droppable_to))
            .bind(RETENTION_CHUNK)
            .bind(signed(MESSAGE_COST))
            .fetch_all(&mut *self.conn)
            .await?;
            let whole_to = self.end_of_whole_runs(stream, droppable_to).await?;
            let counters = &mut self.state.streams[i];
            // Without a row in the range (all replaced by later ones), the whole range is passed over, but for a run that goes on behind it.
            let mut dropped_to = whole_to;
            for (first, count, size) in oldest {
                let last = first + count - 1;
                dropped_to = last;
                counters.messages -= unsigned(count);
                counters.bytes -= unsigned(size);
                if stream == Stream::Dlq {
                    counters.dropped_total += seq_of(last).saturating_sub(consumed.max(seq_of(last) - unsigned(count)));
                }
                if counters.messages <= want_messages && counters.bytes <= want_bytes {
                    break;
                }
            }
            if dropped_to < first_pos {
                break;
            }
            counters.first_seq = seq_of(dropped_to) + 1;
            self.delete(stream, first_pos, dropped_to).await?;
        }
        Ok(())
    }

    /// The last of a stream's oldest messages that were written before `cutoff`, of those that one query looks at; 0 if there is none.
    async fn written_before(&mut self, stream: Stream, cutoff: Timestamp) -> Result<u64, BusError> {
        let counters = self.state.streams[stream.index()];
        let oldest: Vec<(i64, i64)> =
            sqlx::query_as("SELECT pos, bus_ts FROM messages WHERE pos >= ?1 AND pos <= ?2 ORDER BY pos LIMIT ?3")
                .bind(pos(stream, counters.first_seq))
                .bind(pos(stream, counters.last_seq))
                .bind(RETENTION_CHUNK)
                .fetch_all(&mut *self.conn)
                .await?;
        let old = oldest.iter().take_while(|(_, bus_ts)| *bus_ts < cutoff.as_micros()).last();
        Ok(old.map_or(0, |(pos, _)| seq_of(*pos)))
    }

    /// Up to where nothing is cut in two that is dropped up to `droppable_to`.
    async fn end_of_whole_runs(&mut self, stream: Stream, droppable_to: u64) -> Result<i64, BusError> {
        let end = pos(stream, droppable_to);
        let goes_on: Option<i64> = sqlx::query_scalar(
            "SELECT pos FROM runs WHERE pos > ?1 AND pos <= ?2 AND pos + count - 1 > ?2 ORDER BY pos DESC LIMIT 1",
        )
        .bind(base(stream))
        .bind(end)
        .fetch_optional(&mut *self.conn)
        .await?;
        Ok(goes_on.map_or(end, |first| first - 1))
    }

    /// Deletes a range of messages; their ids are remembered until the dedup window has passed.
    async fn delete(&mut self, stream: Stream, from: i64, to: i64) -> Result<(), BusError> {
        sqlx::query("UPDATE msg_ids SET retired = 1 WHERE pos >= ?1 AND pos <= ?2")
            .bind(from)
            .bind(to)
            .execute(&mut *self.conn)
            .await?;
        sqlx::query(
            "DELETE FROM subjects WHERE stream = ?1 AND last_seq <= ?4
             AND subject IN (SELECT subject FROM messages WHERE pos >= ?2 AND pos <= ?3)",
        )
        .bind(signed(stream.index() as u64))
        .bind(from)
        .bind(to)
        .bind(to - base(stream))
        .execute(&mut *self.conn)
        .await?;
        sqlx::query("DELETE FROM messages WHERE pos >= ?1 AND pos <= ?2").bind(from).bind(to).execute(&mut *self.conn).await?;
        sqlx::query("DELETE FROM runs WHERE pos >= ?1 AND pos <= ?2").bind(from).bind(to).execute(&mut *self.conn).await?;
        Ok(())
    }
}
