//! Lanes that wait for a receipt that is missing in them. Over a network a receipt can come behind its successors: its publisher did not hear
//! of it, and sends it again. So a lane with a gap is held for a while, by the bus's time in the log, and then goes on without. A function of the
//! log: no clock of this process decides.

use std::collections::BTreeMap;

use aegis_bus::Delivered;
use aegis_model::Timestamp;

/// Messages that are held at most; past it the lane that waits longest goes on without what is missing.
const MAX_HELD: usize = 50_000;

#[derive(Debug)]
struct Waiting {
    until: Timestamp,
    /// By seq in the lane; the first of a seq stands for it.
    held: BTreeMap<i64, Delivered>,
}

/// What is held.
#[derive(Debug)]
pub(crate) struct Hold {
    hold_ms: i64,
    lanes: BTreeMap<String, Waiting>,
    count: usize,
}

impl Hold {
    pub(crate) const fn new(hold_ms: i64) -> Self {
        Self { hold_ms, lanes: BTreeMap::new(), count: 0 }
    }

    /// Whether a lane is held at all where something is missing.
    pub(crate) const fn is_on(&self) -> bool {
        self.hold_ms > 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Holds a message before which something is missing in its lane; false if one of this seq is held already.
    pub(crate) fn keep(&mut self, lane: &str, seq: i64, delivered: Delivered) -> bool {
        let until = delivered.bus_ts.plus_micros(self.hold_ms.saturating_mul(1000));
        let waiting = self.lanes.entry(lane.to_owned()).or_insert_with(|| Waiting { until, held: BTreeMap::new() });
        let std::collections::btree_map::Entry::Vacant(place) = waiting.held.entry(seq) else { return false };
        place.insert(delivered);
        self.count += 1;
        true
    }

    /// The message of a lane that is held first, if nothing is missing before it any more: the next, or one that was taken meanwhile.
    pub(crate) fn next(&mut self, lane: &str, head: i64) -> Option<Delivered> {
        let waiting = self.lanes.get_mut(lane)?;
        let due = waiting.held.first_key_value().is_some_and(|(seq, _)| *seq <= head + 1);
        let next = if due { waiting.held.pop_first().map(|(_, delivered)| delivered) } else { None };
        self.count -= usize::from(next.is_some());
        if waiting.held.is_empty() {
            self.lanes.remove(lane);
        }
        next
    }

    /// What has waited long enough at `now` of the bus, or has to go: by lane, in order of seq.
    pub(crate) fn release(&mut self, now: Timestamp) -> Vec<Delivered> {
        if self.lanes.is_empty() {
            return Vec::new();
        }
        let mut released = Vec::new();
        let due: Vec<String> =
            self.lanes.iter().filter(|(_, waiting)| waiting.until <= now).map(|(lane, _)| lane.clone()).collect();
        for lane in due {
            released.extend(self.give_up(&lane));
        }
        while self.count > MAX_HELD {
            let oldest = self.lanes.iter().min_by_key(|(_, waiting)| waiting.until).map(|(lane, _)| lane.clone());
            let Some(lane) = oldest else { break };
            released.extend(self.give_up(&lane));
        }
        released
    }

    fn give_up(&mut self, lane: &str) -> Vec<Delivered> {
        let Some(waiting) = self.lanes.remove(lane) else { return Vec::new() };
        self.count -= waiting.held.len();
        waiting.held.into_values().collect()
    }
}
