//! A reader of one of the bus's streams.

use std::time::Duration;

use aegis_model::{Reading, Timestamp};
use async_nats::jetstream::Context;
use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout_at};

use super::ordered::{OrderedReader, Start};
use crate::{BusError, Delivered, Stream, Subscription, subject};

/// Messages that a batch has at most, whatever the caller asks for.
const MAX_BATCH: usize = 8192;

/// Payload bytes after which a batch ends.
const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct JetStreamSubscription {
    reader: OrderedReader,
    filter: String,
    start_seq: u64,
}

impl JetStreamSubscription {
    pub(super) fn new(context: Context, stream: Stream, filter: &str, start_seq: u64) -> Self {
        let start_seq = start_seq.max(1);
        let reader = OrderedReader::new(context, stream.as_str().to_owned(), filter, Start::At(start_seq));
        Self { reader, filter: filter.to_owned(), start_seq }
    }

    /// The next message that matches.
    async fn next(&mut self) -> Result<Delivered, BusError> {
        loop {
            let read = self.reader.next().await?;
            let subject = read.message.subject.to_string();
            if read.seq < self.start_seq || !subject::matches(&self.filter, &subject) {
                continue;
            }
            return Ok(Delivered {
                seq: read.seq,
                subject,
                payload: read.message.payload,
                bus_ts: Timestamp::from_micros(read.stored_us),
                kept: None,
                reading: Reading::default(),
            });
        }
    }
}

#[async_trait]
impl Subscription for JetStreamSubscription {
    async fn next_batch(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivered>, BusError> {
        let max = max.clamp(1, MAX_BATCH);
        // The consumer is made even for a caller that does not wait: it gets what is there the next time. What the server has to answer for that is
        // bounded by the client's own wait for an answer, and not by the caller's, which may be shorter than a slow server needs each time.
        self.reader.open().await?;
        self.reader.look_again().await?;
        let deadline = Instant::now() + wait;
        let Ok(first) = timeout_at(deadline, self.next()).await else { return Ok(Vec::new()) };
        let mut batch = vec![first?];
        let mut bytes = batch[0].payload.len();
        while batch.len() < max && bytes < MAX_BATCH_BYTES {
            // Beyond the scheduler's budget, which is used up after some fifty messages and would end every batch there: this ends by itself.
            match unconstrained(self.next()).now_or_never() {
                Some(Ok(message)) => {
                    bytes += message.payload.len();
                    batch.push(message);
                }
                // An error comes again, with the next call.
                Some(Err(_)) | None => break,
            }
        }
        Ok(batch)
    }
}
