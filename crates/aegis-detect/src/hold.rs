//! Lanes that wait for a receipt that is missing in them. Over a network a receipt can come behind its successors: its publisher did not hear
//! of it, and sends it again. So a lane with a gap is held for a while, by the bus's time in the log, and then goes on without. A function of the
//! log: no clock of this process decides.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use aegis_bus::Delivered;
use aegis_model::Timestamp;

/// Messages and bytes that are held at most; past it the lane that waits longest goes on without what is missing.
const MAX_HELD: usize = 50_000;
const MAX_HELD_BYTES: usize = 64 << 20;

/// As many times the hold, something may be held without a break; then everything goes on, and for one hold nothing is held: a producer whose
/// lanes always miss something must not keep the reader from writing down how far it is.
const MOST_HOLDS: i64 = 4;

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
    /// The lanes by the time until which they wait.
    by_time: BTreeSet<(Timestamp, String)>,
    count: usize,
    bytes: usize,
    /// Since when something is held, by the bus's time.
    since: Option<Timestamp>,
    /// Until then nothing is.
    rests_until: Timestamp,
}

/// What becomes of a message that would be held.
#[derive(Debug)]
pub(crate) enum Kept {
    Held,
    /// The same message is held already.
    Again,
    /// Another message of this place in its lane is held, or nothing is held now: to be taken at once.
    Not(Box<Delivered>),
}

impl Hold {
    pub(crate) const fn new(hold_ms: i64) -> Self {
        let rests_until = Timestamp::from_micros(i64::MIN);
        Self { hold_ms, lanes: BTreeMap::new(), by_time: BTreeSet::new(), count: 0, bytes: 0, since: None, rests_until }
    }

    /// Whether a lane is held at all where something is missing.
    pub(crate) const fn is_on(&self) -> bool {
        self.hold_ms > 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Holds a message before which something is missing in its lane.
    pub(crate) fn keep(&mut self, lane: &str, seq: i64, delivered: Delivered) -> Kept {
        if delivered.bus_ts < self.rests_until {
            return Kept::Not(Box::new(delivered));
        }
        let until = delivered.bus_ts.plus_micros(self.hold_ms.saturating_mul(1000));
        self.since.get_or_insert(delivered.bus_ts);
        let by_time = &mut self.by_time;
        let waiting = self.lanes.entry(lane.to_owned()).or_insert_with(|| {
            by_time.insert((until, lane.to_owned()));
            Waiting { until, held: BTreeMap::new() }
        });
        match waiting.held.entry(seq) {
            Entry::Occupied(held) if held.get().payload == delivered.payload => Kept::Again,
            // A fork must not hide behind what is missing before it.
            Entry::Occupied(_) => Kept::Not(Box::new(delivered)),
            Entry::Vacant(place) => {
                self.count += 1;
                self.bytes += delivered.payload.len();
                place.insert(delivered);
                Kept::Held
            }
        }
    }

    /// The message of a lane that is held first, if nothing is missing before it any more: the next, or one that was taken meanwhile.
    pub(crate) fn next(&mut self, lane: &str, head: i64) -> Option<Delivered> {
        let waiting = self.lanes.get_mut(lane)?;
        let due = waiting.held.first_key_value().is_some_and(|(seq, _)| *seq <= head + 1);
        let next = if due { waiting.held.pop_first().map(|(_, delivered)| delivered) } else { None };
        if waiting.held.is_empty() {
            self.by_time.remove(&(waiting.until, lane.to_owned()));
            self.lanes.remove(lane);
        }
        self.forget(next.as_slice());
        next
    }

    /// What has waited long enough at `now` of the bus, or has to go: by lane, in order of seq.
    pub(crate) fn release(&mut self, now: Timestamp) -> Vec<Delivered> {
        if self.lanes.is_empty() {
            return Vec::new();
        }
        let mut released = Vec::new();
        let longest = self.hold_ms.saturating_mul(1000 * MOST_HOLDS);
        if self.since.is_some_and(|since| since.plus_micros(longest) <= now) {
            self.rests_until = now.plus_micros(self.hold_ms.saturating_mul(1000));
            return self.release_all();
        }
        while let Some((until, lane)) = self.by_time.first() {
            if *until > now && self.count <= MAX_HELD && self.bytes <= MAX_HELD_BYTES {
                break;
            }
            let lane = lane.clone();
            released.extend(self.give_up(&lane));
        }
        released
    }

    /// The lanes that are held, with the first seq that each has.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = (&str, i64)> {
        let first = |waiting: &Waiting| waiting.held.first_key_value().map(|(seq, _)| *seq);
        self.lanes.iter().filter_map(move |(lane, waiting)| Some((lane.as_str(), first(waiting)?)))
    }

    /// Everything that is held, by lane, in order of seq.
    pub(crate) fn release_all(&mut self) -> Vec<Delivered> {
        let all: Vec<String> = self.lanes.keys().cloned().collect();
        all.iter().flat_map(|lane| self.give_up(lane)).collect()
    }

    fn give_up(&mut self, lane: &str) -> Vec<Delivered> {
        let Some(waiting) = self.lanes.remove(lane) else { return Vec::new() };
        self.by_time.remove(&(waiting.until, lane.to_owned()));
        let given_up: Vec<Delivered> = waiting.held.into_values().collect();
        self.forget(&given_up);
        given_up
    }

    fn forget(&mut self, gone: &[Delivered]) {
        self.count -= gone.len();
        self.bytes -= gone.iter().map(|delivered| delivered.payload.len()).sum::<usize>();
        if self.lanes.is_empty() {
            self.since = None;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message(seq: u64, text: &str, at_s: i64) -> Delivered {
        let bus_ts = Timestamp::from_micros(0).plus_seconds(at_s);
        Delivered { seq, subject: "ase.00.t.x".to_owned(), payload: text.to_owned().into(), bus_ts, kept: None }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(0).plus_seconds(seconds)
    }

    #[test]
    fn a_lane_is_given_up_at_its_time_in_order_and_what_it_weighed_is_forgotten() {
        let mut hold = Hold::new(15_000);
        assert!(matches!(hold.keep("a", 4, message(1, "four", 0)), Kept::Held));
        assert!(matches!(hold.keep("a", 3, message(2, "three", 1)), Kept::Held));
        assert!(matches!(hold.keep("a", 3, message(3, "three", 1)), Kept::Again));
        assert!(matches!(hold.keep("a", 3, message(4, "a fork", 1)), Kept::Not(_)), "a fork is not held");
        assert!(hold.next("a", 1).is_none() && hold.release(at(14)).is_empty());
        assert_eq!(hold.release(at(15)).iter().map(|d| d.seq).collect::<Vec<_>>(), [2, 1]);
        assert!(hold.is_empty() && hold.count == 0 && hold.bytes == 0 && hold.since.is_none() && hold.by_time.is_empty());
    }

    #[test]
    fn past_its_bound_the_lanes_that_wait_longest_go_on_and_each_message_once() {
        let mut hold = Hold::new(15_000);
        let (mut taken, mut released) = (0usize, Vec::new());
        for n in 0..MAX_HELD + 10 {
            let message = message(n as u64, "x", i64::try_from(n / 10_000).unwrap());
            assert!(matches!(hold.keep(&format!("lane {n}"), 2, message), Kept::Held));
            taken += 1;
            released.extend(hold.release(at(5)).iter().map(|d| d.seq));
        }
        assert_eq!((released.len(), hold.count, hold.by_time.len()), (10, MAX_HELD, MAX_HELD));
        assert!(released.iter().all(|seq| *seq < 10_000), "the first ones wait longest");
        assert!(hold.next("lane 40000", 1).is_some());
        released.extend(hold.release(at(20)).iter().map(|d| d.seq));
        assert_eq!((released.len() + 1, hold.by_time.len()), (taken, 0));
    }

    #[test]
    fn nobody_can_make_it_hold_without_end() {
        let mut hold = Hold::new(15_000);
        let mut released = 0;
        // A new lane with a gap every ten seconds: never is nothing held.
        for n in 0..6 {
            released += hold.release(at(10 * n)).len();
            assert!(matches!(hold.keep(&n.to_string(), 2, message(n.unsigned_abs(), "x", 10 * n)), Kept::Held));
            assert!(!hold.is_empty());
        }
        released += hold.release(at(60)).len();
        assert_eq!(released, 6, "after four times the hold everything goes on");
        assert!(hold.is_empty());
        assert!(matches!(hold.keep("late", 2, message(9, "x", 74)), Kept::Not(_)), "and for one hold nothing is held");
        assert!(hold.is_empty());
        assert!(matches!(hold.keep("late", 2, message(9, "x", 75)), Kept::Held));
    }
}
