//! Lanes that wait for a receipt that is missing in them. Over a network a receipt can come behind its successors: its publisher did not hear
//! of it, and sends it again. So a lane with a gap is held for a while, by the bus's time in the log, and then goes on without. A function of the
//! log: no clock of this process decides. Promises that no tenant's gaps end the wait of another's lanes, but where memory ends.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use aegis_bus::Delivered;
use aegis_model::{Reading, SecurityEvent, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::follow::Running;
use crate::wire::read;

/// What is held at most of all tenants; past it the lane that waits longest, of the tenant of whom most is held, goes on without what is missing.
const MOST: Weight = Weight { messages: 50_000, bytes: 64 << 20 };
/// The same of one tenant.
const MOST_OF_TENANT: Weight = Weight { messages: 12_500, bytes: 16 << 20 };

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weight {
    messages: usize,
    bytes: usize,
}

impl Weight {
    const fn is_over(self, bound: Self) -> bool {
        self.messages > bound.messages || self.bytes > bound.bytes
    }

    fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
    }

    fn take_off(&mut self, other: Self) {
        self.messages -= other.messages;
        self.bytes -= other.bytes;
    }
}

impl<'a> FromIterator<&'a Delivered> for Weight {
    fn from_iter<T: IntoIterator<Item = &'a Delivered>>(messages: T) -> Self {
        let mut weight = Self::default();
        messages.into_iter().for_each(|message| weight.add(Self { messages: 1, bytes: message.payload.len() }));
        weight
    }
}

#[derive(Debug)]
struct Waiting {
    tenant: TenantId,
    until: Timestamp,
    /// By seq in the lane; the first of a seq stands for it.
    held: BTreeMap<i64, Delivered>,
}

/// What is held of a tenant.
#[derive(Debug, Default)]
struct OfTenant {
    /// Its lanes by the time until which they wait.
    by_time: BTreeSet<(Timestamp, String)>,
    weight: Weight,
}

/// A lane that is held, as a checkpoint has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldLane {
    /// The time of the bus until which it waits.
    pub(crate) until: Timestamp,
    /// The messages' sequences in the stream.
    pub(crate) seqs: Vec<u64>,
}

/// What is held.
#[derive(Debug)]
pub(crate) struct Hold {
    hold_ms: i64,
    lanes: BTreeMap<String, Waiting>,
    /// The lanes by the time until which they wait.
    by_time: BTreeSet<(Timestamp, String)>,
    tenants: BTreeMap<TenantId, OfTenant>,
    /// Tenants of whom too much may be held.
    heavy: BTreeSet<TenantId>,
    weight: Weight,
}

/// What becomes of a message that would be held.
#[derive(Debug)]
pub(crate) enum Kept {
    Held,
    /// The same message is held already.
    Again,
    /// Another message of this place in its lane is held: to be taken at once.
    Not(Box<Delivered>),
}

impl Hold {
    pub(crate) const fn new(hold_ms: i64) -> Self {
        Self {
            hold_ms,
            lanes: BTreeMap::new(),
            by_time: BTreeSet::new(),
            tenants: BTreeMap::new(),
            heavy: BTreeSet::new(),
            weight: Weight { messages: 0, bytes: 0 },
        }
    }

    /// Whether a lane is held at all where something is missing.
    pub(crate) const fn is_on(&self) -> bool {
        self.hold_ms > 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Holds a message before which something is missing in its lane.
    pub(crate) fn keep(&mut self, tenant: &TenantId, lane: &str, seq: i64, delivered: Delivered) -> Kept {
        let until = delivered.bus_ts.plus_micros(self.hold_ms.saturating_mul(1000));
        self.keep_until(until, tenant, lane, seq, delivered)
    }

    /// The same, where the lane waits until then, if it does not wait already.
    pub(crate) fn keep_until(&mut self, until: Timestamp, tenant: &TenantId, lane: &str, seq: i64, delivered: Delivered) -> Kept {
        let fresh = || Waiting { tenant: tenant.clone(), until, held: BTreeMap::new() };
        let waiting = self.lanes.entry(lane.to_owned()).or_insert_with(fresh);
        let place = match waiting.held.entry(seq) {
            Entry::Occupied(held) if held.get().payload == delivered.payload => return Kept::Again,
            // A fork must not hide behind what is missing before it.
            Entry::Occupied(_) => return Kept::Not(Box::new(delivered)),
            Entry::Vacant(place) => place,
        };
        let weight: Weight = std::iter::once(&delivered).collect();
        // What it may wait for is longer than others have the message.
        place.insert(Delivered { reading: Reading::default(), ..delivered });
        let of_tenant = self.tenants.entry(waiting.tenant.clone()).or_default();
        of_tenant.by_time.insert((waiting.until, lane.to_owned()));
        of_tenant.weight.add(weight);
        if of_tenant.weight.is_over(MOST_OF_TENANT) {
            self.heavy.insert(waiting.tenant.clone());
        }
        self.by_time.insert((waiting.until, lane.to_owned()));
        self.weight.add(weight);
        Kept::Held
    }

    /// The message of a lane that is held first, if nothing is missing before it any more: the next, or one that was taken meanwhile.
    pub(crate) fn next(&mut self, lane: &str, head: i64) -> Option<Delivered> {
        let waiting = self.lanes.get_mut(lane)?;
        if waiting.held.first_key_value().is_none_or(|(seq, _)| *seq > head.saturating_add(1)) {
            return None;
        }
        let (_, next) = waiting.held.pop_first()?;
        let tenant = waiting.tenant.clone();
        if waiting.held.is_empty() {
            self.give_up(lane);
        }
        self.forget(&tenant, std::iter::once(&next).collect());
        Some(next)
    }

    /// What has waited long enough at `now` of the bus, or has to go: by lane, in order of seq.
    pub(crate) fn release(&mut self, now: Timestamp) -> Vec<Delivered> {
        let mut released = Vec::new();
        let hold_us = self.hold_ms.max(0).saturating_mul(1000);
        while let Some((until, lane)) = self.by_time.last() {
            // No lane waits as long as that, unless it began to by a clock that was set back since: by the time that is now it begins again.
            if *until <= now.plus_micros(hold_us.saturating_mul(2)) {
                break;
            }
            let lane = lane.clone();
            self.wait_until(&lane, now.plus_micros(hold_us));
        }
        while let Some((until, lane)) = self.by_time.first() {
            if *until > now {
                break;
            }
            let lane = lane.clone();
            released.extend(self.give_up(&lane));
        }
        for tenant in std::mem::take(&mut self.heavy) {
            while let Some(lane) = self.longest_waiting(&tenant, MOST_OF_TENANT) {
                released.extend(self.give_up(&lane));
            }
        }
        while self.weight.is_over(MOST) {
            let heaviest =
                self.tenants.iter().max_by_key(|(_, of_tenant)| of_tenant.weight.bytes).map(|(tenant, _)| tenant.clone());
            let nothing = Weight::default();
            let Some(lane) = heaviest.and_then(|tenant| self.longest_waiting(&tenant, nothing)) else { break };
            released.extend(self.give_up(&lane));
        }
        released
    }

    /// A lane waits until then, and no longer until what was said before.
    fn wait_until(&mut self, lane: &str, until: Timestamp) {
        let Some(waiting) = self.lanes.get_mut(lane) else { return };
        let before = (std::mem::replace(&mut waiting.until, until), lane.to_owned());
        let place = (until, lane.to_owned());
        self.by_time.remove(&before);
        self.by_time.insert(place.clone());
        if let Some(of_tenant) = self.tenants.get_mut(&waiting.tenant) {
            of_tenant.by_time.remove(&before);
            of_tenant.by_time.insert(place);
        }
    }

    /// The lane of a tenant that waits longest, if more than the bound is held of it.
    fn longest_waiting(&self, tenant: &TenantId, bound: Weight) -> Option<String> {
        let of_tenant = self.tenants.get(tenant).filter(|of_tenant| of_tenant.weight.is_over(bound))?;
        of_tenant.by_time.first().map(|(_, lane)| lane.clone())
    }

    /// So many of the lanes that are held, with the first seq that each has: of each tenant those that wait longest, and of none more than of
    /// another that has more.
    pub(crate) fn longest_waiting_of_each(&self, most: usize) -> Vec<(&str, i64)> {
        let mut of_tenants: Vec<_> = self.tenants.values().map(|of_tenant| of_tenant.by_time.iter()).collect();
        let mut chosen: Vec<&str> = Vec::new();
        while chosen.len() < most {
            // The next of each; where not all have room, those that wait longest.
            let mut next: Vec<&(Timestamp, String)> = of_tenants.iter_mut().filter_map(Iterator::next).collect();
            if next.is_empty() {
                break;
            }
            next.sort_unstable();
            chosen.extend(next.into_iter().take(most - chosen.len()).map(|(_, lane)| lane.as_str()));
        }
        let first = |lane: &str| self.lanes.get(lane)?.held.first_key_value().map(|(seq, _)| *seq);
        chosen.into_iter().filter_map(|lane| Some((lane, first(lane)?))).collect()
    }

    /// What is held, for a checkpoint.
    pub(crate) fn held(&self) -> Vec<HeldLane> {
        let of_lane = |waiting: &Waiting| HeldLane {
            until: waiting.until,
            seqs: waiting.held.values().map(|delivered| delivered.seq).collect(),
        };
        self.lanes.values().map(of_lane).collect()
    }

    /// The first message of the stream that is held; `next` if none is.
    pub(crate) fn first_seq(&self, next: u64) -> u64 {
        let all = self.lanes.values().flat_map(|waiting| waiting.held.values());
        all.map(|delivered| delivered.seq).min().unwrap_or(next)
    }

    /// Everything that is held, by lane, in order of seq.
    pub(crate) fn release_all(&mut self) -> Vec<Delivered> {
        let all: Vec<String> = self.lanes.keys().cloned().collect();
        all.iter().flat_map(|lane| self.give_up(lane)).collect()
    }

    fn give_up(&mut self, lane: &str) -> Vec<Delivered> {
        let Some(waiting) = self.lanes.remove(lane) else { return Vec::new() };
        let place = (waiting.until, lane.to_owned());
        self.by_time.remove(&place);
        if let Some(of_tenant) = self.tenants.get_mut(&waiting.tenant) {
            of_tenant.by_time.remove(&place);
        }
        let given_up: Vec<Delivered> = waiting.held.into_values().collect();
        self.forget(&waiting.tenant, given_up.iter().collect());
        given_up
    }

    fn forget(&mut self, tenant: &TenantId, gone: Weight) {
        self.weight.take_off(gone);
        let Some(of_tenant) = self.tenants.get_mut(tenant) else { return };
        of_tenant.weight.take_off(gone);
        if of_tenant.by_time.is_empty() && of_tenant.weight == Weight::default() {
            self.tenants.remove(tenant);
        }
    }
}

impl Running {
    /// What waited when the checkpoint was written waits on.
    pub(crate) fn hold_again(&mut self, until: Timestamp, delivered: Delivered) {
        let read = read(&delivered).ok();
        let Some(SecurityEvent { tenant_id, lane: Some(lane), seq: Some(seq), .. }) = read.as_deref().map(|read| &**read.event())
        else {
            tracing::error!(seq = delivered.seq, "a message whose lane waited is not what it was");
            return;
        };
        let _it_is_the_only_one_of_its_place = self.hold.keep_until(until, tenant_id, lane, *seq, delivered);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message(seq: u64, text: &str, at_s: i64) -> Delivered {
        let bus_ts = Timestamp::from_micros(0).plus_seconds(at_s);
        let (subject, payload) = ("ase.00.t.x".to_owned(), text.to_owned().into());
        Delivered { seq, subject, payload, bus_ts, kept: None, reading: Reading::default() }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(0).plus_seconds(seconds)
    }

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    fn seqs(released: &[Delivered]) -> Vec<u64> {
        released.iter().map(|delivered| delivered.seq).collect()
    }

    fn is_clear(hold: &Hold) -> bool {
        hold.is_empty() && hold.by_time.is_empty() && hold.tenants.is_empty() && hold.weight == Weight::default()
    }

    #[test]
    fn a_lane_is_given_up_at_its_time_in_order_and_what_it_weighed_is_forgotten() {
        let (mut hold, t) = (Hold::new(15_000), tenant("t"));
        assert!(matches!(hold.keep(&t, "a", 4, message(1, "four", 0)), Kept::Held));
        assert!(matches!(hold.keep(&t, "a", 3, message(2, "three", 1)), Kept::Held));
        assert!(matches!(hold.keep(&t, "a", 3, message(3, "three", 1)), Kept::Again));
        assert!(matches!(hold.keep(&t, "a", 3, message(4, "a fork", 1)), Kept::Not(_)), "a fork is not held");
        assert!(hold.next("a", 1).is_none() && hold.release(at(14)).is_empty());
        assert_eq!(seqs(&hold.release(at(15))), [2, 1]);
        assert!(is_clear(&hold));
    }

    #[test]
    fn a_lane_that_began_to_wait_by_a_clock_that_is_set_back_waits_no_longer_for_it() {
        let (mut hold, t) = (Hold::new(15_000), tenant("t"));
        assert!(matches!(hold.keep(&t, "a", 3, message(1, "x", 7200)), Kept::Held));
        assert!(hold.release(at(7190)).is_empty(), "a server's clock a little behind another's is none");
        assert_eq!(hold.held()[0].until, at(7215));
        assert!(hold.release(at(100)).is_empty(), "what is missing may come yet");
        assert_eq!(hold.held()[0].until, at(115));
        assert!(hold.release(at(114)).is_empty());
        assert_eq!(seqs(&hold.release(at(115))), [1]);
        assert!(is_clear(&hold));
    }

    #[test]
    fn what_was_missing_lets_its_lane_go_on_message_by_message() {
        let (mut hold, t) = (Hold::new(15_000), tenant("t"));
        for (seq, n) in [(3, 1), (4, 2), (7, 3)] {
            assert!(matches!(hold.keep(&t, "a", seq, message(n, "x", 0)), Kept::Held));
        }
        let held = hold.held();
        assert_eq!(held, [HeldLane { until: at(15), seqs: vec![1, 2, 3] }]);
        assert_eq!((hold.next("a", 2).unwrap().seq, hold.next("a", 3).unwrap().seq), (1, 2));
        assert!(hold.next("a", 4).is_none());
        assert_eq!((hold.first_seq(9), hold.next("a", 6).unwrap().seq, hold.first_seq(9)), (3, 3, 9));
        assert!(is_clear(&hold));
    }

    #[test]
    fn past_the_bound_of_a_tenant_its_own_lanes_go_on_and_each_message_once() {
        let mut hold = Hold::new(15_000);
        assert!(matches!(hold.keep(&tenant("other"), "quiet", 2, message(1_000_000, "x", 0)), Kept::Held));
        let (mut taken, mut released) = (0usize, Vec::new());
        for n in 0..MOST_OF_TENANT.messages + 10 {
            let message = message(n as u64, "x", i64::try_from(n / 5000).unwrap());
            assert!(matches!(hold.keep(&tenant("noisy"), &format!("lane {n}"), 2, message), Kept::Held));
            taken += 1;
            released.extend(seqs(&hold.release(at(5))));
        }
        assert_eq!((released.len(), hold.lanes.len()), (10, MOST_OF_TENANT.messages + 1));
        assert!(released.iter().all(|seq| *seq < 5000), "the first ones wait longest");
        assert!(hold.next("lane 10000", 1).is_some());
        released.extend(seqs(&hold.release(at(20))));
        assert_eq!(released.len() + 1, taken + 1, "with the other tenant's");
        assert!(is_clear(&hold));
    }

    #[test]
    fn of_each_tenant_the_lanes_that_wait_longest_are_asked_for() {
        let mut hold = Hold::new(15_000);
        let mut n = 0;
        let mut keep = |name: &str, lane: &str, at_s: i64| {
            n += 1;
            assert!(matches!(hold.keep(&tenant(name), lane, 2, message(n, "x", at_s)), Kept::Held));
        };
        for lane in 0..1000 {
            keep("aaa", &format!("aaa.rogue.{lane:04}"), 999 - lane);
        }
        keep("b", "b.edge.1", 2000);
        keep("b", "b.edge.2", 1000);
        keep("c", "c.edge.1", 1500);
        assert_eq!(hold.longest_waiting_of_each(2), [("aaa.rogue.0999", 2), ("b.edge.2", 2)]);
        let asked = hold.longest_waiting_of_each(256);
        assert_eq!(asked.len(), 256);
        assert_eq!(
            asked[..4].iter().map(|(lane, _)| *lane).collect::<Vec<_>>(),
            ["aaa.rogue.0999", "b.edge.2", "c.edge.1", "aaa.rogue.0998"]
        );
        assert_eq!(asked.iter().filter(|(lane, _)| lane.starts_with("aaa")).count(), 253);
        assert_eq!(hold.longest_waiting_of_each(2000).len(), 1003);
        assert!(Hold::new(15_000).longest_waiting_of_each(256).is_empty());
    }

    #[test]
    fn past_the_bound_of_all_it_is_the_heaviest_tenant_that_goes_on() {
        let mut hold = Hold::new(15_000);
        let mut n = 0;
        for (name, count) in [("a", 12_000), ("b", 12_000), ("c", 12_000), ("d", 12_400), ("small", 1600)] {
            for _ in 0..count {
                n += 1;
                assert!(matches!(hold.keep(&tenant(name), &format!("lane {n}"), 2, message(n, name, 0)), Kept::Held));
            }
        }
        assert!(hold.release(at(5)).is_empty());
        n += 1;
        assert!(matches!(hold.keep(&tenant("small"), "one more", 2, message(n, "x", 0)), Kept::Held));
        let released = hold.release(at(5));
        assert_eq!((released.len(), released[0].payload.as_ref()), (1, &b"d"[..]));
    }

    #[test]
    fn whoever_always_misses_something_waits_for_itself_alone() {
        let mut hold = Hold::new(15_000);
        // A new gap every ten seconds: never is nothing of this tenant held.
        for n in 0..100 {
            let of_others = hold.release(at(10 * n)).iter().filter(|released| released.payload != "hostile").count();
            assert_eq!(of_others, 0, "at {} s", 10 * n);
            assert!(matches!(
                hold.keep(&tenant("hostile"), &n.to_string(), 2, message(n.unsigned_abs(), "hostile", 10 * n)),
                Kept::Held
            ));
            assert!(matches!(hold.keep(&tenant("other"), "lane", 2, message(1000, "other", 10 * n)), Kept::Held));
            assert!(hold.release(at(10 * n + 9)).iter().all(|released| released.payload == "hostile"));
            // What was missing comes after nine seconds, and is in time.
            assert!(hold.next("lane", 1).is_some());
        }
    }
}
