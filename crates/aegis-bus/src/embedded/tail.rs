//! The newest messages of a stream in memory, so that a reader that keeps up never touches the file.
//! Holds a gapless run that ends at the stream's head, bounded by count and bytes: longer where a reader that is there has not read it yet. An event that is
//! read while somebody has still to read it is read once for all who follow; what was made of it is let go of with the last of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aegis_model::{Reading, ReadingRoom};

use super::EmbeddedLimits;
use crate::subject;
use crate::{Delivered, Stream};

/// A look at the tail never holds its lock for more messages than this: a reader that is stopped while it holds it stops the writer.
const MAX_SCAN: usize = 512;

/// How far a reader is: the sequence that it reads next.
pub(super) type Cursor = Arc<AtomicU64>;

#[derive(Debug)]
pub(super) struct Tail {
    /// Shared, so that a reader copies nothing under the lock.
    messages: VecDeque<Arc<Delivered>>,
    bytes: usize,
    /// Kept whoever has read them.
    newest: Bounds,
    /// Kept while somebody has not.
    unread: Bounds,
    /// For what is made of events; None in streams that have none.
    room: Option<Arc<ReadingRoom>>,
    /// Of whoever reads; those that nobody else has any more are of readers that are gone.
    cursors: Vec<Cursor>,
    /// What was made of events before this sequence was let go of.
    read_from: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    messages: usize,
    bytes: usize,
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
        let newest = Bounds { messages: limits.tail_messages, bytes: limits.tail_bytes };
        Self {
            messages: VecDeque::new(),
            bytes: 0,
            newest,
            unread: Bounds {
                messages: limits.unread_messages.max(newest.messages),
                bytes: limits.unread_bytes.max(newest.bytes),
            },
            room: (stream == Stream::Ase && limits.read_bytes > 0).then(|| ReadingRoom::new(limits.read_bytes)),
            cursors: Vec::new(),
            read_from: 0,
        }
    }

    /// Counts a reader that reads `next_seq` next, as long as it has the cursor. It says itself how far it is.
    pub(super) fn join(&mut self, next_seq: u64) -> Cursor {
        self.forget_gone();
        let cursor = Arc::new(AtomicU64::new(next_seq));
        self.cursors.push(Arc::clone(&cursor));
        cursor
    }

    fn forget_gone(&mut self) {
        self.cursors.retain(|cursor| Arc::strong_count(cursor) > 1);
    }

    /// The first sequence that somebody has still to read. None: nobody reads.
    fn unread_from(&mut self) -> Option<u64> {
        self.forget_gone();
        self.cursors.iter().map(|cursor| cursor.load(Ordering::Relaxed)).min()
    }

    pub(super) fn append(&mut self, mut message: Delivered) {
        if self.messages.back().is_some_and(|last| last.seq + 1 != message.seq) {
            self.clear();
        }
        let room = self.room.as_ref().filter(|_| subject::is_event(&message.subject));
        message.reading = room.map_or_else(Reading::default, |room| std::mem::take(&mut message.reading).moved_to(room));
        self.bytes += message.subject.len() + message.payload.len();
        self.messages.push_back(Arc::new(message));
        if self.is_over(self.newest) {
            let unread_from = self.unread_from().unwrap_or(u64::MAX);
            while self.is_over(self.unread)
                || (self.is_over(self.newest) && self.first_seq().is_some_and(|seq| seq < unread_from))
            {
                self.drop_oldest();
            }
        }
    }

    fn is_over(&self, bounds: Bounds) -> bool {
        self.messages.len() > bounds.messages || self.bytes > bounds.bytes
    }

    fn first_seq(&self) -> Option<u64> {
        self.messages.front().map(|message| message.seq)
    }

    pub(super) fn drop_before(&mut self, first_seq: u64) {
        while self.messages.front().is_some_and(|m| m.seq < first_seq) {
            self.drop_oldest();
        }
    }

    pub(super) fn clear(&mut self) {
        self.messages.clear();
        (self.bytes, self.read_from) = (0, 0);
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

    /// Takes out what was made of events that all who are there have read: to be dropped without the lock. Some at a time.
    #[must_use]
    pub(super) fn let_go(&mut self) -> Vec<Reading> {
        if self.room.is_none() {
            return Vec::new();
        }
        let (Some(first_seq), Some(unread_from)) = (self.first_seq(), self.unread_from()) else { return Vec::new() };
        let from = self.read_from.max(first_seq);
        let offset = usize::try_from(from - first_seq).unwrap_or(usize::MAX);
        let mut gone = Vec::new();
        let mut read_from = from;
        for message in self.messages.iter_mut().skip(offset).take(MAX_SCAN).take_while(|message| message.seq < unread_from) {
            read_from = message.seq + 1;
            gone.push(std::mem::take(&mut Arc::make_mut(message).reading));
        }
        self.read_from = read_from;
        gone
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.messages.pop_front() {
            self.bytes -= oldest.subject.len() + oldest.payload.len();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::{ReadEvent, Timestamp};
    use proptest::prelude::*;

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

    fn weight() -> usize {
        ReadEvent::read(&event(1).into(), Timestamp::default()).unwrap().weight()
    }

    /// Reads one message as a subscription does.
    fn next(tail: &mut Tail, cursor: &Cursor) -> Delivered {
        let read = tail.read(cursor.load(Ordering::Relaxed), 1, ">").unwrap();
        cursor.store(read.next_seq, Ordering::Relaxed);
        let message = read.messages.into_iter().next().map(Arc::unwrap_or_clone).unwrap();
        drop(tail.let_go());
        message
    }

    #[test]
    fn an_event_is_read_once_for_all_who_follow_and_each_refuses_for_itself() {
        let mut tail = Tail::new(Stream::Ase, &EmbeddedLimits::default());
        let room = Arc::clone(tail.room.as_ref().unwrap());
        let (first, second) = (tail.join(1), tail.join(1));
        for (seq, payload) in [(1, event(1)), (2, "no event".to_owned()), (3, event(3))] {
            tail.append(message(seq, &payload));
        }
        let one = next(&mut tail, &first);
        let read = one.event().unwrap();
        assert_eq!(read.event().bus_ts, Some(Timestamp::from_micros(1)));
        assert_eq!(room.used(), weight());
        // What one sets aside the other reads, or not, as if alone, and what follows is what it was.
        let refused = next(&mut tail, &first).event().unwrap_err();
        let third = next(&mut tail, &first).event().unwrap();
        drop(one);
        assert!(Arc::ptr_eq(&next(&mut tail, &second).event().unwrap(), &read));
        assert_eq!(next(&mut tail, &second).event().unwrap_err(), refused);
        assert_eq!(refused, aegis_model::WireEvent::read(b"no event").unwrap_err());
        let last = next(&mut tail, &second);
        assert!(Arc::ptr_eq(&last.event().unwrap(), &third));
        // Nobody has it to read any more but the one who has just got it.
        assert_eq!(room.used(), weight());
        drop(last);
        assert_eq!((room.used(), tail.messages.len()), (0, 3));
    }

    #[test]
    fn what_is_made_of_events_is_bounded_and_a_reader_that_is_gone_holds_nothing() {
        let limits = EmbeddedLimits { read_bytes: 3 * weight(), ..EmbeddedLimits::default() };
        let mut tail = Tail::new(Stream::Ase, &limits);
        let room = Arc::clone(tail.room.as_ref().unwrap());
        let (quick, slow) = (tail.join(1), tail.join(1));
        (1..=5).for_each(|seq| tail.append(message(seq, &event(seq))));
        (1..=5).for_each(|_| drop(next(&mut tail, &quick).event().unwrap()));
        assert_eq!(room.used(), 3 * weight());
        drop(slow);
        tail.append(message(6, &event(6)));
        next(&mut tail, &quick);
        assert_eq!(room.used(), 0);
        (0..10).for_each(|_| drop(tail.join(1)));
        assert!(tail.cursors.len() <= 2, "who comes and goes leaves nothing");

        // Where nothing is to be kept, and of another stream, each reads for itself.
        let none = EmbeddedLimits { read_bytes: 0, ..EmbeddedLimits::default() };
        for mut tail in [Tail::new(Stream::Ase, &none), Tail::new(Stream::Dlq, &limits)] {
            let (one, other) = (tail.join(1), tail.join(1));
            tail.append(message(1, &event(1)));
            let both = [next(&mut tail, &one), next(&mut tail, &other)].map(|message| message.event().unwrap());
            assert!(!Arc::ptr_eq(&both[0], &both[1]));
        }
    }

    proptest! {
        /// However readers come, read and go: each reads all in order or is told that the tail begins later, the tail is as long as it may be, and no longer, and
        /// of what all have read nothing is kept but the newest.
        #[test]
        fn it_is_longer_only_for_those_who_have_not_read_it(steps in prop::collection::vec((0usize..4, 0usize..3), 1..120)) {
            let limits = EmbeddedLimits { tail_messages: 3, unread_messages: 8, ..EmbeddedLimits::default() };
            let mut tail = Tail::new(Stream::Ase, &limits);
            let room = Arc::clone(tail.room.as_ref().unwrap());
            let mut readers: [Option<Cursor>; 3] = [None, None, None];
            let mut last = 0;
            for (what, who) in steps {
                match what {
                    0 | 1 => {
                        last += 1;
                        tail.append(message(last, &event(last)));
                        let slowest = readers.iter().flatten().map(|cursor| cursor.load(Ordering::Relaxed)).min();
                        let unread = slowest.map_or(0, |next| last + 1 - next.min(last + 1));
                        let expected = usize::try_from(unread.min(8).max(last.min(3))).unwrap();
                        // What was dropped before somebody came does not come back.
                        prop_assert!(tail.messages.len() <= expected && tail.messages.len() >= usize::try_from(last.min(3)).unwrap());
                        prop_assert_eq!(tail.messages.back().map(|newest| newest.seq), Some(last));
                    }
                    2 => match readers[who].clone() {
                        Some(cursor) => {
                            let from = cursor.load(Ordering::Relaxed);
                            if from > last {
                                continue;
                            }
                            match tail.first_seq().filter(|first| *first <= from) {
                                Some(_) => prop_assert_eq!(next(&mut tail, &cursor).event().unwrap().event().event_id.as_u128() & 0xff, u128::from(from)),
                                // From the file.
                                None => cursor.store(from + 1, Ordering::Relaxed),
                            }
                        }
                        None => readers[who] = Some(tail.join(last + 1)),
                    },
                    _ => readers[who] = None,
                }
            }
            // A reader that is the only one, and has read all.
            drop(readers);
            let alone = tail.join(last + 1);
            tail.append(message(last + 1, &event(last + 1)));
            drop(next(&mut tail, &alone));
            prop_assert_eq!(room.used(), 0);
            prop_assert!(tail.messages.len() <= 3);
        }
    }
}
