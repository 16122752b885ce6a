//! Reading a stream from a remembered position, and setting aside what cannot be read.
//! Promises to start again where it stopped; never passes a message that was not dealt with.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, BusError, Delivered, Message, Stream, Subscription, subject};
use bytes::Bytes;
use serde_json::json;

use crate::control::Control;

/// How much of a malformed payload is kept, bytes.
const KEPT: usize = 16 * 1024;
/// Digits of a payload's hash in the id of its dead letter.
const HASH_DIGITS: usize = 16;
/// Partition of dead letters whose tenant cannot be told.
const NO_PARTITION: u32 = 0;

/// First and longest pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A consumer's place in a stream.
#[derive(Debug)]
pub(crate) struct Follower {
    bus: Arc<dyn Bus>,
    stream: Stream,
    name: &'static str,
    filter: &'static str,
    subscription: Option<Box<dyn Subscription>>,
    /// Everything up to here has been handed out.
    read: u64,
    /// Everything up to here has been dealt with, as the bus knows it.
    saved: Option<u64>,
    pause: Duration,
}

impl Follower {
    pub(crate) fn new(bus: Arc<dyn Bus>, stream: Stream, name: &'static str, filter: &'static str) -> Self {
        Self { bus, stream, name, filter, subscription: None, read: 0, saved: None, pause: FIRST_PAUSE }
    }

    /// The next messages; empty when none came within `wait`.
    pub(crate) async fn next(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivered>, BusError> {
        if self.subscription.is_none() {
            self.resume().await?;
        }
        let Some(subscription) = &mut self.subscription else { return Ok(Vec::new()) };
        let batch = match subscription.next_batch(max, wait).await {
            Err(error @ BusError::Rewound { .. }) => {
                // What the position was about is gone, whatever stands at that number now.
                self.bus.set_consumer_position(self.stream, self.name, 0).await?;
                return Err(error);
            }
            batch => batch?,
        };
        if let Some(last) = batch.last() {
            self.read = last.seq;
        }
        Ok(batch)
    }

    /// Subscribes behind what was dealt with last.
    async fn resume(&mut self) -> Result<(), BusError> {
        let position = self.bus.consumer_position(self.stream, self.name).await?;
        let newest = self.bus.last_seq(self.stream).await?;
        let start = if position > newest {
            tracing::warn!(stream = %self.stream, position, newest, "stream is shorter than what was read of it; reading it again");
            0
        } else {
            position
        };
        // Written even when nothing was read: a registered consumer holds retention back.
        self.bus.set_consumer_position(self.stream, self.name, start).await?;
        self.subscription = Some(self.bus.subscribe(self.stream, self.filter, start + 1).await?);
        self.read = start;
        self.saved = Some(start);
        Ok(())
    }

    /// The sequence up to which messages have been handed out.
    pub(crate) const fn read_up_to(&self) -> u64 {
        self.read
    }

    /// True while nothing was handed out that is not remembered as dealt with.
    pub(crate) fn is_saved(&self) -> bool {
        self.saved.is_none_or(|saved| saved == self.read)
    }

    /// Remembers that everything up to `seq` has been dealt with.
    pub(crate) async fn save(&mut self, seq: u64) -> Result<(), BusError> {
        if self.saved == Some(seq) {
            return Ok(());
        }
        self.bus.set_consumer_position(self.stream, self.name, seq).await?;
        self.saved = Some(seq);
        Ok(())
    }

    /// After a failure: start again from the remembered position, after a pause that grows.
    pub(crate) async fn back_off(&mut self) {
        self.subscription = None;
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// After a success.
    pub(crate) const fn recovered(&mut self) {
        self.pause = FIRST_PAUSE;
    }
}

impl Control {
    /// Sets a message aside with the reason, counts it, and lets the consumer go on.
    pub(crate) async fn dead_letter(&self, stream: Stream, delivered: &Delivered, reason: &str) -> Result<(), BusError> {
        self.dead_letters(stream, &[delivered], reason).await
    }

    /// The same for several, published together: of many, each alone would hold up what stands behind them.
    pub(crate) async fn dead_letters(&self, stream: Stream, all: &[&Delivered], reason: &str) -> Result<(), BusError> {
        let letters: Vec<Message> = all.iter().map(|delivered| self.letter(stream, delivered, reason)).collect();
        self.bus.publish(Stream::Dlq, letters).await.into_iter().try_for_each(|published| published.map(|_| ()))
    }

    fn letter(&self, stream: Stream, delivered: &Delivered, reason: &str) -> Message {
        self.metrics.dead_letters.inc();
        tracing::warn!(%stream, seq = delivered.seq, subject = delivered.subject, reason, "message set aside");
        // A frozen action has raw parameters, which are to stand nowhere longer than their approval needs them.
        let has_raw_parameters = stream == Stream::Approvals;
        let kept =
            (!has_raw_parameters).then(|| String::from_utf8_lossy(&delivered.payload[..delivered.payload.len().min(KEPT)]));
        let hash = aegis_canon::sha256_hex(&delivered.payload);
        let letter = json!({
            "stream": stream.as_str(),
            "subject": delivered.subject,
            "seq": delivered.seq,
            "bus_ts": delivered.bus_ts,
            "reason": reason,
            "payload": kept,
            "payload_bytes": delivered.payload.len(),
            "sha256": hash,
        });
        let partition = delivered.subject.split('.').nth(1).and_then(|token| token.parse().ok()).unwrap_or(NO_PARTITION);
        // Nobody's to tell ahead: edges write dead letters too, and one that came first under the same id would be all there is.
        let beginning = hash.get(..HASH_DIGITS).unwrap_or(&hash);
        let id = format!("{}:{}:{}:{beginning}", self.config.edge_id, stream.as_str(), delivered.seq);
        Message::new(subject::dlq(partition), Bytes::from(letter.to_string())).with_id(id)
    }
}
