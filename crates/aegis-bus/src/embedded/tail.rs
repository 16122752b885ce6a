//! The newest messages of a stream in memory, so that a reader that keeps up never touches the file.
//! Holds a gapless run that ends at the stream's head, bounded by count and bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::Delivered;
use crate::subject;

/// A look at the tail never holds its lock for more messages than this: a reader that is stopped while it holds it stops the writer.
const MAX_SCAN: usize = 512;

#[derive(Debug)]
pub(super) struct Tail {
    /// Shared, so that a reader copies nothing under the lock.
    messages: VecDeque<Arc<Delivered>>,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
}

/// What a look at the tail gave.
#[derive(Debug)]
pub(super) struct TailRead {
    pub(super) messages: Vec<Arc<Delivered>>,
    /// Where to look next.
    pub(super) next_seq: u64,
}

impl Tail {
    pub(super) const fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self { messages: VecDeque::new(), bytes: 0, max_messages, max_bytes }
    }

    pub(super) fn append(&mut self, message: Delivered) {
        if self.messages.back().is_some_and(|last| last.seq + 1 != message.seq) {
            self.clear();
        }
        self.bytes += message.subject.len() + message.payload.len();
        self.messages.push_back(Arc::new(message));
        while self.messages.len() > self.max_messages || self.bytes > self.max_bytes {
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
        self.bytes = 0;
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
        }
    }
}
