//! A reader of a stream: a cursor, the tail while it keeps up, one SQL query per batch while it does not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_model::{Reading, Timestamp};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use parking_lot::Mutex;
use sqlx::SqlitePool;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::schema::{pos, seq_of};
use super::tail::{Cursor, Tail};
use super::{Head, Shared, kept};
use crate::{BusError, Delivered, Stream, Subscription, subject};

/// Sequences that one query looks through at most, however few match.
const SCAN_SPAN: u64 = 16_384;

/// Messages that a batch has at most, whatever the caller asks for.
const MAX_BATCH: usize = 8192;

/// Payload bytes after which a batch ends.
const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct EmbeddedSubscription {
    pub(super) stream: Stream,
    pub(super) filter: String,
    /// The literal beginning of the filter, and the first text after everything that begins so.
    pub(super) subject_range: (String, String),
    pub(super) next_seq: u64,
    pub(super) tail: Arc<Mutex<Tail>>,
    /// Says the tail how far this has read.
    pub(super) cursor: Cursor,
    pub(super) head: watch::Receiver<Head>,
    pub(super) shared: Arc<Shared>,
    pub(super) readers: SqlitePool,
}

/// The range of subjects that can match the filter.
pub(super) fn subject_range(filter: &str) -> (String, String) {
    let literal: Vec<&str> = filter.split('.').take_while(|t| *t != "*" && *t != ">").collect();
    let from = literal.join(".");
    let to = format!("{from}\u{10FFFF}");
    (from, to)
}

#[async_trait]
impl Subscription for EmbeddedSubscription {
    async fn next_batch(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivered>, BusError> {
        let max = max.clamp(1, MAX_BATCH);
        let deadline = Instant::now() + wait;
        loop {
            let head = *self.head.borrow_and_update();
            if head.closed {
                return Err(BusError::Closed);
            }
            while self.next_seq <= head.last {
                let messages = self.read_once(head.last, max).await?;
                if !messages.is_empty() {
                    return Ok(messages);
                }
            }
            match timeout_at(deadline, self.head.changed()).await {
                Err(_elapsed) => return Ok(Vec::new()),
                Ok(Err(_gone)) => return Err(BusError::Closed),
                Ok(Ok(())) => {}
            }
        }
    }
}

impl EmbeddedSubscription {
    /// Moves the cursor by at least one and returns what matched on the way.
    async fn read_once(&mut self, last_seq: u64, max: usize) -> Result<Vec<Delivered>, BusError> {
        if let Some(read) = self.read_tail(max) {
            return Ok(read);
        }
        let messages = self.read_file(last_seq, max).await?;
        self.cursor.store(self.next_seq, Ordering::Relaxed);
        Ok(messages)
    }

    /// What the tail has; None if it begins later, or has nothing more.
    fn read_tail(&mut self, max: usize) -> Option<Vec<Delivered>> {
        let read = self.tail.lock().read(self.next_seq, max, &self.filter).filter(|read| read.next_seq > self.next_seq)?;
        self.next_seq = read.next_seq;
        self.cursor.store(self.next_seq, Ordering::Relaxed);
        // Before anything is let go of: who is the last to read these has what others made of them.
        let messages = read.messages.into_iter().map(Arc::unwrap_or_clone).collect();
        let gone = self.tail.lock().let_go();
        drop(gone);
        Some(messages)
    }

    async fn read_file(&mut self, last_seq: u64, max: usize) -> Result<Vec<Delivered>, BusError> {
        let to_seq = last_seq.min(self.next_seq + SCAN_SPAN - 1);
        let mut rows = sqlx::query_as::<_, (i64, String, Vec<u8>, i64)>(
            "SELECT pos, subject, payload, bus_ts FROM messages
             WHERE pos >= ?1 AND pos <= ?2 AND subject >= ?3 AND subject < ?4 ORDER BY pos LIMIT ?5",
        )
        .bind(pos(self.stream, self.next_seq))
        .bind(pos(self.stream, to_seq))
        .bind(&self.subject_range.0)
        .bind(&self.subject_range.1)
        .bind(i64::try_from(max).unwrap_or(i64::MAX))
        .fetch(&self.readers);

        let mut messages = Vec::new();
        let mut next_seq = to_seq + 1;
        let (mut row_count, mut bytes) = (0, 0);
        while let Some((pos, subject, payload, bus_ts)) = rows.try_next().await? {
            let seq = seq_of(pos);
            row_count += 1;
            bytes += payload.len();
            if subject::matches(&self.filter, &subject) {
                messages.push(Delivered {
                    seq,
                    subject,
                    payload: Bytes::from(payload),
                    bus_ts: Timestamp::from_micros(bus_ts),
                    kept: None,
                    reading: Reading::default(),
                });
            }
            if row_count == max || bytes > MAX_BATCH_BYTES {
                next_seq = seq + 1;
                break;
            }
        }
        drop(rows);
        let next_seq = self.read_kept(&mut messages, next_seq, max).await?;
        self.next_seq = next_seq;
        Ok(messages)
    }

    /// Adds what others keep of the messages up to `next_seq`, which may come to lie earlier, in order, and `max` at most.
    async fn read_kept(&self, messages: &mut Vec<Delivered>, mut next_seq: u64, max: usize) -> Result<u64, BusError> {
        let runs = kept::runs(&self.readers, self.stream, self.next_seq, next_seq - 1).await?;
        let (mut count, mut bytes) = (0, 0);
        for run in runs {
            if count >= max || bytes > MAX_BATCH_BYTES {
                next_seq = next_seq.min(run.first_seq);
                break;
            }
            // No more of a long run than is asked for: the rest is read when its turn comes.
            let last = run.first_seq + (max - count) as u64 - 1;
            if last + 1 < run.first_seq + run.count {
                next_seq = next_seq.min(last + 1);
            }
            let Some(run) = run.between(run.first_seq, last) else { break };
            let keeper = self.shared.keepers.read().get(run.source);
            let read = kept::read(run, keeper).await?;
            count += read.len();
            bytes += read.iter().map(|message| message.payload.len()).sum::<usize>();
            messages.extend(read.into_iter().filter(|message| subject::matches(&self.filter, &message.subject)));
        }
        messages.retain(|message| message.seq < next_seq);
        messages.sort_unstable_by_key(|message| message.seq);
        if let Some(first_too_many) = messages.get(max) {
            next_seq = first_too_many.seq;
            messages.truncate(max);
        }
        Ok(next_seq)
    }
}
