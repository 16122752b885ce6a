//! How a checkpoint stands in the stream CKPT: as one message where it fits, else compressed and in parts, with a head that names them and is
//! written last. Promises that the checkpoint before it can be read until then, wherever the writing was cut off: parts stand under one of two
//! sets of subjects, and never under those that the head speaks of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aegis_bus::{Bus, BusError, Message, Stream, StreamState, Subscription, subject};
use aegis_canon::sha256_hex;
use serde::{Deserialize, Serialize};

/// Largest payload that is written: below the bus's bound, with room for a server's headers.
const PART_BYTES: usize = 768 * 1024;
/// Parts that one publish has: a server has to take them within one wait for its answer.
const PARTS_AT_ONCE: usize = 8;
/// Largest checkpoint, compressed: two of them fit into the stream.
pub(crate) const MAX_PACKED: usize = 64 << 20;
/// The same before it is compressed: what a start has to hold in memory.
const MAX_BYTES: usize = 512 << 20;
/// How long a message that must be there is waited for.
const READ_WAIT: Duration = Duration::from_secs(10);
/// Messages that are read at once.
const READ_BATCH: usize = 16;

/// Stands in a checkpoint's place, and says where it is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    /// Which of the two sets of subjects the parts have.
    slot: u32,
    /// The parts' sequences in the stream, in their order.
    parts: Vec<u64>,
    /// Size before it was compressed.
    bytes: usize,
    /// Of all parts together, hex.
    sha256: String,
}

/// What the head speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    /// To be asked of the bus: a write of it had no answer.
    #[default]
    Unknown,
    /// Nothing, or a checkpoint that is one message.
    NoParts,
    /// Parts under the subjects of this slot.
    Parts(u32),
}

/// The place of one partition's checkpoint.
#[derive(Debug)]
pub(crate) struct Shelf {
    partition: u32,
    standing: Standing,
    /// How long the bus is waited for.
    wait: Duration,
    /// Largest checkpoint, compressed.
    most: usize,
}

impl Shelf {
    pub(crate) const fn new(partition: u32) -> Self {
        Self { partition, standing: Standing::Unknown, wait: READ_WAIT, most: MAX_PACKED }
    }

    /// The same, with room for no larger ones than this.
    pub(crate) const fn with_most(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// The text of the last checkpoint. None if there is none, or none that is whole. A bus that does not answer in time is an error: it says
    /// nothing of what is there.
    pub(crate) async fn read(&mut self, bus: &dyn Bus) -> Result<Option<Vec<u8>>, BusError> {
        let Some(text) = self.head_text(bus).await? else {
            self.standing = Standing::NoParts;
            return Ok(None);
        };
        let Ok(head) = serde_json::from_slice::<Head>(&text) else {
            self.standing = Standing::NoParts;
            return Ok(Some(text));
        };
        self.standing = Standing::Parts(head.slot);
        let packed = read_parts(bus, &head).await?;
        let text = packed.filter(|packed| sha256_hex(packed) == head.sha256).and_then(|packed| unpack(&packed, head.bytes));
        if text.is_none() {
            tracing::warn!(parts = head.parts.len(), "parts of the checkpoint are missing, or are others");
        }
        Ok(text)
    }

    /// Puts a checkpoint into the place of the last one. `TooLarge` and `Full`: the last one stands.
    pub(crate) async fn write(&mut self, bus: &dyn Bus, text: Vec<u8>) -> Result<(), BusError> {
        let (head, becomes) = if text.len() <= PART_BYTES {
            (text, Standing::NoParts)
        } else {
            let slot = self.free_slot(bus).await?;
            (self.write_parts(bus, slot, &text).await?, Standing::Parts(slot))
        };
        // Until the answer is there, the head speaks of this one or of the one before.
        self.standing = Standing::Unknown;
        for result in bus.publish(Stream::Ckpt, vec![Message::new(subject::ckpt(self.partition), head)]).await {
            result?;
        }
        self.standing = becomes;
        Ok(())
    }

    /// The message in the checkpoint's place.
    async fn head_text(&self, bus: &dyn Bus) -> Result<Option<Vec<u8>>, BusError> {
        let state = bus.stream_state(Stream::Ckpt).await?;
        if state.messages == 0 {
            return Ok(None);
        }
        let place = subject::ckpt(self.partition);
        let mut subscription = bus.subscribe(Stream::Ckpt, &place, 0).await?;
        if let Some(newest) = subscription.next_batch(READ_BATCH, self.wait).await?.pop() {
            return Ok(Some(newest.payload.to_vec()));
        }
        // Nothing is there, or it does not come. That shows in what else is there.
        let mut whole = bus.subscribe(Stream::Ckpt, subject::CKPT_ALL, 0).await?;
        find(whole.as_mut(), &state, &place, self.wait).await
    }

    /// The slot whose parts the head does not speak of.
    async fn free_slot(&mut self, bus: &dyn Bus) -> Result<u32, BusError> {
        if self.standing == Standing::Unknown {
            let head = self.head_text(bus).await?.and_then(|text| serde_json::from_slice::<Head>(&text).ok());
            self.standing = head.map_or(Standing::NoParts, |head| Standing::Parts(head.slot));
        }
        Ok(if self.standing == Standing::Parts(0) { 1 } else { 0 })
    }

    /// Writes the parts, and answers the head that names them.
    async fn write_parts(&self, bus: &dyn Bus, slot: u32, text: &[u8]) -> Result<Vec<u8>, BusError> {
        if text.len() > MAX_BYTES {
            return Err(BusError::TooLarge { bytes: text.len(), max: MAX_BYTES });
        }
        let packed = lz4_flex::block::compress(text);
        if packed.len() > self.most {
            return Err(BusError::TooLarge { bytes: packed.len(), max: self.most });
        }
        let part = |(n, part): (usize, &[u8])| Message::new(subject::ckpt_part(self.partition, slot, n), part.to_vec());
        let messages: Vec<Message> = packed.chunks(PART_BYTES).enumerate().map(part).collect();
        let mut parts = Vec::with_capacity(messages.len());
        for some in messages.chunks(PARTS_AT_ONCE) {
            for result in bus.publish(Stream::Ckpt, some.to_vec()).await {
                parts.push(result?.seq);
            }
        }
        let head = Head { slot, parts, bytes: text.len(), sha256: sha256_hex(&packed) };
        serde_json::to_vec(&head).map_err(|error| BusError::Unavailable { reason: format!("the head of a checkpoint: {error}") })
    }
}

/// The newest message of a subject among all that a stream has. None only if all of it was read.
async fn find(
    whole: &mut dyn Subscription,
    state: &StreamState,
    subject: &str,
    wait: Duration,
) -> Result<Option<Vec<u8>>, BusError> {
    let (mut seen, mut last, mut found) = (0, 0, None);
    // By number too: the last message may have been removed by hand.
    while seen < state.messages && last < state.last_seq {
        let batch = whole.next_batch(READ_BATCH, wait).await?;
        if batch.is_empty() {
            let reason = format!("of {} messages of the stream CKPT {seen} come", state.messages);
            return Err(BusError::Unavailable { reason });
        }
        for delivered in batch {
            seen += 1;
            last = delivered.seq;
            if delivered.subject == subject {
                found = Some(delivered.payload.to_vec());
            }
        }
    }
    Ok(found)
}

/// All parts together; None if one is not there any more.
async fn read_parts(bus: &dyn Bus, head: &Head) -> Result<Option<Vec<u8>>, BusError> {
    let wanted: BTreeSet<u64> = head.parts.iter().copied().collect();
    let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else { return Ok(None) };
    let mut found = BTreeMap::new();
    let mut subscription = bus.subscribe(Stream::Ckpt, subject::CKPT_ALL, *first).await?;
    let mut next = *first;
    // The head itself stands behind its parts, so that something comes in any case.
    while next <= *last {
        let batch = subscription.next_batch(READ_BATCH, READ_WAIT).await?;
        if batch.is_empty() {
            return Err(BusError::Unavailable { reason: format!("message {next} of the stream CKPT does not come") });
        }
        for delivered in batch {
            next = delivered.seq + 1;
            if wanted.contains(&delivered.seq) {
                found.insert(delivered.seq, delivered.payload);
            }
        }
    }
    let mut packed = Vec::new();
    for seq in &head.parts {
        let Some(part) = found.get(seq) else { return Ok(None) };
        packed.extend_from_slice(part);
    }
    Ok(Some(packed))
}

/// The text again; None if it is none of that size.
fn unpack(packed: &[u8], bytes: usize) -> Option<Vec<u8>> {
    if bytes > MAX_BYTES {
        return None;
    }
    let mut text = vec![0; bytes];
    let length = lz4_flex::block::decompress_into(packed, &mut text).ok()?;
    (length == bytes).then_some(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use aegis_bus::{Delivered, EmbeddedBus, EmbeddedLimits, StreamLimits};
    use aegis_model::{SystemClock, Timestamp};
    use async_trait::async_trait;

    use super::*;

    async fn open(folder: &Path, limits: EmbeddedLimits) -> Arc<EmbeddedBus> {
        EmbeddedBus::open(&folder.join("bus.db"), limits, Arc::new(SystemClock)).await.unwrap()
    }

    /// A text that no compression makes much smaller, other than any with another seed.
    fn text(seed: u32, bytes: usize) -> Vec<u8> {
        let mut text = String::new();
        let mut last = seed.to_string();
        while text.len() < bytes {
            last = sha256_hex(last.as_bytes());
            text.push_str(&last);
        }
        text.truncate(bytes);
        text.into_bytes()
    }

    async fn read(bus: &EmbeddedBus) -> Option<Vec<u8>> {
        Shelf::new(0).read(bus).await.unwrap()
    }

    #[tokio::test]
    async fn small_and_large_checkpoints_come_back_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let bus = open(folder.path(), EmbeddedLimits::default()).await;
        assert_eq!(read(&bus).await, None);
        let mut shelf = Shelf::new(0);
        let sizes = [10, 3_000_000, 2_000_000, 100, 1_500_000, PART_BYTES, PART_BYTES + 1];
        for (seed, bytes) in (1..).zip(sizes) {
            shelf.write(bus.as_ref(), text(seed, bytes)).await.unwrap();
            assert_eq!(read(&bus).await, Some(text(seed, bytes)), "{bytes} bytes");
        }
        bus.close().await;
        let bus = open(folder.path(), EmbeddedLimits::default()).await;
        assert_eq!(read(&bus).await, Some(text(7, PART_BYTES + 1)));
    }

    #[tokio::test]
    async fn a_crash_between_parts_leaves_the_checkpoint_before() {
        let folder = tempfile::tempdir().unwrap();
        let bus = open(folder.path(), EmbeddedLimits::default()).await;
        Shelf::new(0).write(bus.as_ref(), text(99, 2_500_000)).await.unwrap();
        let mut before = Some(text(99, 2_500_000));
        for seed in 0..5 {
            // A life that dies before its head is written, whatever it found; then one that writes all of it.
            let mut dies = Shelf::new(0);
            let slot = dies.free_slot(bus.as_ref()).await.unwrap();
            let _head_that_is_never_written = dies.write_parts(bus.as_ref(), slot, &text(100 + seed, 2_000_000)).await.unwrap();
            assert_eq!(read(&bus).await, before);
            let mut lives = Shelf::new(0);
            assert_eq!(lives.read(bus.as_ref()).await.unwrap(), before);
            lives.write(bus.as_ref(), text(seed, 2_500_000)).await.unwrap();
            before = Some(text(seed, 2_500_000));
            assert_eq!(read(&bus).await, before);
        }
    }

    #[tokio::test]
    async fn a_head_whose_parts_are_others_is_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let bus = open(folder.path(), EmbeddedLimits::default()).await;
        let mut shelf = Shelf::new(0);
        shelf.write(bus.as_ref(), text(1, 2_000_000)).await.unwrap();
        let other = Message::new(subject::ckpt_part(0, 0, 1), "other");
        bus.publish(Stream::Ckpt, vec![other]).await.pop().unwrap().unwrap();
        assert_eq!(read(&bus).await, None);
        shelf.write(bus.as_ref(), text(2, 2_000_000)).await.unwrap();
        assert_eq!(read(&bus).await, Some(text(2, 2_000_000)));
    }

    /// Answers with these, one at a time, and then with nothing.
    #[derive(Debug)]
    struct Slow(Vec<Delivered>);

    #[async_trait]
    impl Subscription for Slow {
        async fn next_batch(&mut self, _: usize, _: Duration) -> Result<Vec<Delivered>, BusError> {
            let next = if self.0.is_empty() { None } else { Some(self.0.remove(0)) };
            Ok(next.into_iter().collect())
        }
    }

    #[tokio::test]
    async fn a_bus_that_is_slow_is_not_one_without_a_checkpoint() {
        let message = |seq: u64, subject: &str| Delivered {
            seq,
            subject: subject.to_owned(),
            payload: subject.to_owned().into(),
            bus_ts: Timestamp::from_micros(0),
            kept: None,
            reading: aegis_model::Reading::default(),
        };
        let all = [message(3, "ckpt.00-0-000"), message(7, "ckpt.01"), message(9, "ckpt.00")];
        let state = StreamState { first_seq: 3, last_seq: 9, messages: 3, ..StreamState::default() };
        for came in 0..3 {
            let mut whole = Slow(all[..came].to_vec());
            let error = find(&mut whole, &state, "ckpt.00", READ_WAIT).await.unwrap_err();
            assert!(matches!(error, BusError::Unavailable { .. }), "{error}");
        }
        let found = find(&mut Slow(all.to_vec()), &state, "ckpt.00", READ_WAIT).await.unwrap();
        assert_eq!(found, Some(b"ckpt.00".to_vec()));
        assert_eq!(find(&mut Slow(all.to_vec()), &state, "ckpt.02", READ_WAIT).await.unwrap(), None);
        // The head was removed: everything else was read.
        let state = StreamState { messages: 2, ..state };
        assert_eq!(find(&mut Slow(all[..2].to_vec()), &state, "ckpt.00", READ_WAIT).await.unwrap(), None);
    }

    #[tokio::test]
    async fn parts_and_checkpoints_of_others_are_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let bus = open(folder.path(), EmbeddedLimits::default()).await;
        Shelf::new(1).write(bus.as_ref(), text(1, 10)).await.unwrap();
        let _head_that_is_never_written = Shelf::new(0).write_parts(bus.as_ref(), 0, &text(2, 2_000_000)).await.unwrap();
        let mut shelf = Shelf::new(0);
        shelf.wait = Duration::from_millis(200);
        assert_eq!(shelf.read(bus.as_ref()).await.unwrap(), None);
        assert_eq!(shelf.standing, Standing::NoParts);
    }

    #[tokio::test]
    async fn what_finds_no_room_leaves_the_checkpoint_before() {
        let folder = tempfile::tempdir().unwrap();
        let bound = StreamLimits { max_messages: 100, max_bytes: 5 << 20 };
        let bus = open(folder.path(), EmbeddedLimits::default().with_stream(Stream::Ckpt, bound)).await;
        let mut shelf = Shelf::new(0);
        shelf.write(bus.as_ref(), text(1, 2_000_000)).await.unwrap();
        let refused = shelf.write(bus.as_ref(), text(2, 20_000_000)).await.unwrap_err();
        assert_eq!(refused, BusError::Full { stream: Stream::Ckpt });
        assert_eq!(read(&bus).await, Some(text(1, 2_000_000)));
    }
}
