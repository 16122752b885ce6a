//! Retention: what makes room when a stream's bound is reached, and what is remembered of what is gone.

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
    /// Drops the oldest messages that every consumer has passed (dead letters: passed or not), with some slack.
    pub(super) async fn make_room(&mut self, stream: Stream, cost: u64) -> Result<(), BusError> {
        let i = stream.index();
        let limits = self.limits.stream(stream);
        let consumed = self.state.consumed(stream);
        let droppable_to =
            if stream == Stream::Dlq { self.state.streams[i].last_seq } else { consumed.min(self.state.streams[i].last_seq) };
        let want_messages = limits.max_messages.saturating_sub(1 + SLACK_MESSAGES.min(limits.max_messages / 20));
        let want_bytes = limits.max_bytes.saturating_sub(cost + SLACK_BYTES.min(limits.max_bytes / 20));
        while self.state.streams[i].first_seq <= droppable_to
            && (self.state.streams[i].messages > want_messages || self.state.streams[i].bytes > want_bytes)
        {
            let first_pos = pos(stream, self.state.streams[i].first_seq);
            let oldest: Vec<(i64, i64)> = sqlx::query_as(
                "SELECT pos, length(subject) + length(payload) FROM messages WHERE pos >= ?1 AND pos <= ?2 ORDER BY pos LIMIT ?3",
            )
            .bind(first_pos)
            .bind(pos(stream, droppable_to))
            .bind(RETENTION_CHUNK)
            .fetch_all(&mut *self.conn)
            .await?;
            let counters = &mut self.state.streams[i];
            // Without a row in the range (all replaced by later ones), the whole range is passed over.
            let mut dropped_to = pos(stream, droppable_to);
            for (pos, size) in oldest {
                dropped_to = pos;
                counters.messages -= 1;
                counters.bytes -= unsigned(size) + MESSAGE_COST;
                counters.dropped_total += u64::from(seq_of(pos) > consumed);
                if counters.messages <= want_messages && counters.bytes <= want_bytes {
                    break;
                }
            }
            counters.first_seq = seq_of(dropped_to) + 1;
            self.delete(stream, first_pos, dropped_to).await?;
        }
        Ok(())
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
        Ok(())
    }
}
