//! The newest messages of a stream in memory, so that a reader that keeps up never touches the file.
//! Holds a gapless run that ends at the stream's head, bounded by count and bytes; an event that is read while it is there is read once for all who
//! follow, and is gone with its message.

use std::collections::VecDeque;
use std::sync::Arc;

use aegis_model::Reading;

use super::EmbeddedLimits;
use crate::subject;
use crate::{Delivered, Stream};

/// A look at the tail never holds its lock for more messages than this: a reader that is stopped while it holds it stops the writer.
const MAX_SCAN: usize = 512;

#[derive(Debug)]
pub(super) struct Tail {
    /// Shared, so that a reader copies nothing under the lock.
    messages: VecDeque<Arc<Delivered>>,
    bytes: usize,
    /// The most that the messages may take read as events.
    read_bytes: usize,
    max_messages: usize,
    max_bytes: usize,
    max_read_bytes: usize,
}

/// What a look at the tail gave.
#[derive(Debug)]
pub(super) struct TailRead {
    pub(super) messages: Vec<Arc<Delivered>>,
    /// Where to look next.
    pub(super) next_seq: u64,
}

impl Tail {
    pub(super) fn new(stream: Stream, limits: &EmbeddedLimits) -> Self {
        Self {
            messages: VecDeque::new(),
            bytes: 0,
            read_bytes: 0,
            max_messages: limits.tail_messages,
            max_bytes: limits.tail_bytes,
            // No other has events.
            max_read_bytes: if stream == Stream::Ase { limits.tail_read_bytes } else { 0 },
        }
    }

    pub(super) fn append(&mut self, mut message: Delivered) {
        if self.messages.back().is_some_and(|last| last.seq + 1 != message.seq) {
            self.clear();
        }
        if self.max_read_bytes > 0 && subject::is_event(&message.subject) {
            message.reading = Reading::kept();
        }
        self.bytes += message.subject.len() + message.payload.len();
        self.read_bytes += message.reading.room(message.payload.len());
        self.messages.push_back(Arc::new(message));
        while self.messages.len() > self.max_messages || self.bytes > self.max_bytes || self.read_bytes > self.max_read_bytes {
            self.drop_oldest();
        }
    }

    pub(super) fn drop_before(&mut self, first_seq: u64) {
        while self.messages.front().is_some_and(|m| m.seq < first_seq) {
            self.drop_oldest();
        }
    }

    pub(super) fn clear(&mut self) {
        self.messages.clear();
        (self.bytes, self.read_bytes) = (0, 0);
    }

    /// Matching messages from `from_seq` on; None when the tail begins later than that.
    pub(super) fn read(&self, from_seq: u64, max: usize, filter: &str) -> Option<TailRead> {
        let first_seq = self.messages.front()?.seq;
        let offset = usize::try_from(from_seq.checked_sub(first_seq)?).ok()?;
        let mut read = TailRead { messages: Vec::new(), next_seq: from_seq };
        for message in self.messages.iter().skip(offset).take(MAX_SCAN) {
            if read.messages.len() == max {
                break;
            }
            if subject::matches(filter, &message.subject) {
                read.messages.push(Arc::clone(message));
            }
            read.next_seq = message.seq + 1;
        }
        Some(read)
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.messages.pop_front() {
            self.bytes -= oldest.subject.len() + oldest.payload.len();
            self.read_bytes -= oldest.reading.room(oldest.payload.len());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::Timestamp;

    /// An observation of the outside, or what is no event.
    fn message(seq: u64, payload: &str) -> Delivered {
        let bus_ts = Timestamp::from_micros(i64::try_from(seq).unwrap());
        let (subject, payload) = ("ase.00.acme.tool_outcome".to_owned(), payload.to_owned().into());
        Delivered { seq, subject, payload, bus_ts, kept: None, reading: Reading::default() }
    }

    fn event(id: u64) -> String {
        format!(
            r#"{{"event_id":"01a20373-e32e-7670-88c7-{id:012x}","tenant_id":"acme","edge_id":"e","source":"edge","kind":"tool_outcome","ts":"2026-11-22T13:30:56Z"}}"#
        )
    }

    fn first(tail: &Tail, seq: u64) -> Delivered {
        Arc::unwrap_or_clone(tail.read(seq, 1, ">").unwrap().messages.remove(0))
    }

    #[test]
    fn an_event_is_read_once_for_all_who_follow_and_each_refuses_for_itself() {
        let mut tail = Tail::new(Stream::Ase, &EmbeddedLimits::default());
        tail.append(message(1, &event(1)));
        tail.append(message(2, "no event"));
        tail.append(message(3, &event(3)));
        let (one, other) = (first(&tail, 1), first(&tail, 1));
        assert!(Arc::ptr_eq(&one.event().unwrap(), &other.event().unwrap()));
        assert_eq!(one.event().unwrap().event().bus_ts, Some(Timestamp::from_micros(1)));
        // What one sets aside the other reads, or not, as if alone, and what follows is what it was.
        let refused = [first(&tail, 2), first(&tail, 2)].map(|message| message.event().unwrap_err());
        assert_eq!(refused[0], refused[1]);
        assert_eq!(refused[0], aegis_model::WireEvent::read(b"no event").unwrap_err());
        assert!(Arc::ptr_eq(&first(&tail, 3).event().unwrap(), &first(&tail, 3).event().unwrap()));

        // It is gone with its message.
        let read = Arc::downgrade(&first(&tail, 1).event().unwrap());
        drop((one, other));
        assert!(read.upgrade().is_some());
        tail.drop_before(2);
        assert!(read.upgrade().is_none());
    }

    #[test]
    fn what_is_kept_of_events_is_bounded_before_anybody_reads_them() {
        let room = Reading::kept().room(event(1).len());
        let limits = EmbeddedLimits { tail_read_bytes: 3 * room, ..EmbeddedLimits::default() };
        let mut tail = Tail::new(Stream::Ase, &limits);
        for seq in 1..=5 {
            tail.append(message(seq, &event(seq)));
            assert!(tail.read_bytes <= limits.tail_read_bytes);
        }
        assert_eq!(tail.messages.front().map(|oldest| oldest.seq), Some(3));
        tail.append(Delivered { subject: "tick.00".to_owned(), ..message(6, "{}") });
        assert_eq!((tail.messages.len(), tail.read_bytes), (4, 3 * room), "what is no event needs no room");
        tail.clear();
        assert_eq!((tail.bytes, tail.read_bytes), (0, 0));

        // Where nothing is to be kept, and of another stream, each reads for itself, and the tail is as long.
        let none = EmbeddedLimits { tail_read_bytes: 0, ..EmbeddedLimits::default() };
        for mut tail in [Tail::new(Stream::Ase, &none), Tail::new(Stream::Dlq, &limits)] {
            (1..=5).for_each(|seq| tail.append(message(seq, &event(seq))));
            assert_eq!((tail.messages.len(), tail.read_bytes), (5, 0));
            assert!(!Arc::ptr_eq(&first(&tail, 1).event().unwrap(), &first(&tail, 1).event().unwrap()));
        }
    }
}
