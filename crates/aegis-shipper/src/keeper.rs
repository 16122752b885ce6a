//! A ledger as the keeper of what was shipped from it: an embedded bus then need not store an event that stands on the same disk already.
//! The ledger prunes none of its rows from then on, unless nothing more is named. What was read last is remembered: several follow the bus, one closely behind the other.

use std::collections::VecDeque;
use std::sync::Arc;

use aegis_bus::{BusError, Held, Keeper, message_id, subject};
use aegis_ledger::Ledger;
use aegis_model::{Reading, ReadingRoom};
use async_trait::async_trait;
use parking_lot::Mutex;

/// Bytes of payload that are remembered, about.
const REMEMBERED: usize = 16 << 20;
/// What the remembered may take besides, bytes, once somebody has read them as events.
const READ: usize = 24 << 20;

/// Gives shipped events back, by their row.
#[derive(Clone, Debug)]
pub struct LedgerKeeper {
    ledger: Ledger,
    recent: Arc<Mutex<Recent>>,
    room: Arc<ReadingRoom>,
}

impl LedgerKeeper {
    /// What `ledger` has, which keeps its rows from now on.
    #[must_use]
    pub fn new(ledger: Ledger) -> Self {
        ledger.keep_rows();
        Self::of_earlier(ledger)
    }

    /// What `ledger` has, and may prune: where nobody names rows of it any more, and whoever prunes passes over those that somebody named.
    #[must_use]
    pub fn of_earlier(ledger: Ledger) -> Self {
        Self { ledger, recent: Arc::default(), room: ReadingRoom::new(READ) }
    }

    async fn read_ledger(&self, first: i64, last: i64, count: usize) -> Result<Vec<Held>, BusError> {
        let mut held = Vec::new();
        let mut after = first.saturating_sub(1);
        loop {
            let items = self.ledger.read_kept(after, last, count).await;
            let items = items.map_err(|e| BusError::Unavailable { reason: e.to_string() })?;
            let Some(item) = items.last() else { return Ok(held) };
            after = item.row;
            held.extend(items.into_iter().map(|item| Held {
                position: item.row,
                msg_id: message_id::of_sealed(&item.sealed),
                subject: subject::ase(&item.sealed.tenant_id, item.sealed.kind),
                payload: item.sealed.wire.into(),
                reading: Reading::kept_in(&self.room),
            }));
        }
    }
}

#[async_trait]
impl Keeper for LedgerKeeper {
    async fn read(&self, first: i64, count: usize) -> Result<Vec<Held>, BusError> {
        let last = first.saturating_add(i64::try_from(count).unwrap_or(i64::MAX)).saturating_sub(1);
        let (mut held, next) = self.recent.lock().get(first, last);
        if next <= last {
            let read = self.read_ledger(next, last, count).await?;
            self.recent.lock().add(next, &read, REMEMBERED);
            held.extend(read);
        }
        Ok(held)
    }

    fn last(&self) -> i64 {
        self.ledger.last_row()
    }
}

/// The messages of the positions `from..next`: those that there are.
#[derive(Debug, Default)]
struct Recent {
    from: i64,
    next: i64,
    held: VecDeque<Held>,
    bytes: usize,
}

impl Recent {
    /// Those from `first` to `last`, and the first position of which nothing is known.
    fn get(&self, first: i64, last: i64) -> (Vec<Held>, i64) {
        if first < self.from || first >= self.next {
            return (Vec::new(), first);
        }
        let start = self.held.partition_point(|held| held.position < first);
        let end = self.held.partition_point(|held| held.position <= last);
        (self.held.range(start..end).cloned().collect(), self.next.min(last.saturating_add(1)))
    }

    /// Remembers what was read from `first` on, up to the last of it; what is behind that may come yet. Older messages than it has it leaves out.
    fn add(&mut self, first: i64, read: &[Held], most_bytes: usize) {
        let Some(last) = read.last().map(|held| held.position).filter(|last| *last >= self.next) else { return };
        if first > self.next || self.held.is_empty() {
            *self = Self { from: first, ..Self::default() };
        }
        let known = read.partition_point(|held| held.position < self.next);
        for held in &read[known..] {
            self.bytes += held.payload.len();
            self.held.push_back(held.clone());
        }
        self.next = last.saturating_add(1);
        while self.bytes > most_bytes
            && let Some(oldest) = self.held.pop_front()
        {
            self.bytes -= oldest.payload.len();
            self.from = oldest.position.saturating_add(1);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every third position has no message.
    fn there_are(first: i64, last: i64) -> Vec<Held> {
        let held = |position: i64| Held {
            position,
            msg_id: position.to_string(),
            subject: "ase.00.t.k".to_owned(),
            payload: vec![0; 10].into(),
            reading: Reading::default(),
        };
        (first..=last).filter(|position| position % 3 != 0).map(held).collect()
    }

    proptest! {
        /// Whatever was asked for before, by whom and in which order: together with what is read for the rest, it is what there is.
        #[test]
        fn what_is_remembered_is_what_there_is(asked in prop::collection::vec((1..80i64, 1..40i64), 1..40), most in 0..500usize) {
            let mut recent = Recent::default();
            for (first, count) in asked {
                // Rows come while others read.
                let last = first + count - 1;
                let (mut held, next) = recent.get(first, last);
                if next <= last {
                    let read = there_are(next, last);
                    recent.add(next, &read, most);
                    held.extend(read);
                }
                prop_assert_eq!(held, there_are(first, last));
                prop_assert!(recent.bytes <= most);
                prop_assert_eq!(recent.bytes, recent.held.len() * 10);
            }
        }
    }

    #[test]
    fn those_that_follow_one_another_read_once() {
        let mut recent = Recent::default();
        recent.add(1, &there_are(1, 8), 1000);
        assert_eq!(recent.get(1, 8), (there_are(1, 8), 9));
        assert_eq!(recent.get(4, 20), (there_are(4, 8), 9), "the rest is to be read");
        assert_eq!(recent.get(9, 20), (Vec::new(), 9));
    }
}
