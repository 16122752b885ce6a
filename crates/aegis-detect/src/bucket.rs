//! The events of one bucket within a rule's window, what an incremental query knows of them, and the keys whose matches they make.
//! Promises the order of events, each once, the proved one of those in one place, within the bounds of `Quotas`; what a bound takes is the oldest.

mod seldom;
#[cfg(test)]
mod tests;

use std::num::NonZeroU64;
use std::sync::Arc;

use aegis_model::{SecurityEvent, Timestamp};
use smallvec::SmallVec;

use crate::known::Known;
use crate::least::{Least, Takes};
use crate::refused::hash_of;
use seldom::Seldom;

/// How much state one rule may keep.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    /// Events kept per tenant and rule; at the bound no new key is taken.
    pub events_per_tenant: usize,
    /// Buckets (keys) kept per tenant and rule; a quarter of them at most are made by one agent's events.
    pub keys_per_tenant: usize,
    /// Events kept of one key: a key beyond it loses its own oldest events.
    pub events_per_key: usize,
    /// Bytes of text in the events of one key, and of a tenant's; beyond them it is as with the events.
    pub bytes_per_key: usize,
    pub bytes_per_tenant: usize,
    /// Bytes of the texts of keys that have matches, per tenant and rule; those of the buckets that one agent's events make are a quarter at most.
    pub key_bytes_per_tenant: usize,
    /// Matches kept of one key that a late event could still change; of more, the oldest stand as they are.
    pub matches_per_key: usize,
    /// Bytes of a tenant's part of the side tables, whatever the rules; a quarter of them at most are of one agent.
    pub seen_bytes_per_tenant: usize,
    /// The same of what is registered of its agents.
    pub registry_bytes_per_tenant: usize,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            events_per_tenant: 200_000,
            keys_per_tenant: 50_000,
            events_per_key: 20_000,
            bytes_per_key: 32 << 20,
            bytes_per_tenant: 512 << 20,
            key_bytes_per_tenant: 64 << 20,
            matches_per_key: 2_000,
            seen_bytes_per_tenant: 16 << 20,
            registry_bytes_per_tenant: 16 << 20,
        }
    }
}

/// One agent's part of a tenant's buckets is at most one of so many: what a rule keys on can be the caller's to choose.
const AGENTS_PART: usize = 4;

impl Quotas {
    pub(crate) fn keys_per_agent(self) -> usize {
        (self.keys_per_tenant / AGENTS_PART).max(1)
    }

    pub(crate) fn key_bytes_per_agent(self) -> usize {
        (self.key_bytes_per_tenant / AGENTS_PART).max(1)
    }

    pub(crate) fn seen_bytes_per_agent(self) -> usize {
        (self.seen_bytes_per_tenant / AGENTS_PART).max(1)
    }

    pub(crate) fn registry_bytes_per_agent(self) -> usize {
        (self.registry_bytes_per_tenant / AGENTS_PART).max(1)
    }
}

/// What an event's texts take.
#[must_use]
pub fn bytes_of(event: &SecurityEvent) -> usize {
    let texts = [
        &event.agent_id,
        &event.token_id,
        &event.user_id,
        &event.run_id,
        &event.trace_id,
        &event.environment,
        &event.tool,
        &event.action,
        &event.resource,
        &event.target,
        &event.reason,
        &event.approver,
        &event.attributes,
    ];
    texts.into_iter().flatten().map(String::len).sum::<usize>() + event.matched_policies.iter().map(String::len).sum::<usize>()
}

/// What is asked of an event again and again: the event itself is somewhere else, and with very many keys seldom at hand.
#[derive(Clone, Copy, Debug)]
struct Mark {
    ts: Timestamp,
    /// What its texts take.
    bytes: usize,
}

/// Beside one another where there are few: most keys come, have an event or two, and go.
type Few<T> = SmallVec<[T; 2]>;

/// Which agent: by the hash of its name, which is the caller's to choose, and of any length. Two of one hash have one part together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Maker(NonZeroU64);

impl Maker {
    pub(crate) fn of(agent: &str) -> Self {
        // With a number that none has, it takes no more where there is none.
        Self(NonZeroU64::new(hash_of(agent)).unwrap_or(NonZeroU64::MIN))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Bucket {
    /// In event order, one in each place; those before `given_up` are only still there because moving the others costs.
    events: Few<Arc<SecurityEvent>>,
    /// Of each event, in the same order.
    marks: Few<Mark>,
    given_up: usize,
    /// What the texts of its events take.
    pub(crate) bytes: usize,
    /// None where no query follows it, or none did yet.
    following: Option<Following>,
    /// The agent whose event made it, if that is known.
    pub(crate) made_by: Option<Maker>,
    seldom: Option<Box<Seldom>>,
}

/// How far an incremental query has come in a bucket's events, and what it knows of them.
#[derive(Debug, Default)]
struct Following {
    /// None while it is shown events, or where it failed.
    known: Option<Known>,
    /// The time of the last event that it was shown; none: it has seen none.
    shown: Option<Timestamp>,
    /// The newest event that a quota has taken since it was shown events of that time: it is to know nothing of it any more.
    taken: Option<Taken>,
}

/// The newest of the events that a quota has taken.
#[derive(Clone, Copy, Debug)]
struct Taken {
    ts: Timestamp,
    /// How many of that time; others of it may be there still.
    count: u32,
    /// The query knows nothing of them any more.
    is_told: bool,
}

impl Following {
    /// A quota takes these, the oldest that there are.
    fn take(&mut self, taken: &[Arc<SecurityEvent>]) {
        let Some(ts) = taken.last().map(|newest| newest.ts) else { return };
        let of_its_time = taken.iter().rev().take_while(|event| event.ts == ts).count();
        let of_its_time = u32::try_from(of_its_time).unwrap_or(u32::MAX);
        self.taken = match self.taken {
            // One that came late; it is shown nothing of so long ago any more.
            Some(before) if before.ts > ts => Some(Taken { is_told: false, ..before }),
            Some(before) if before.ts == ts => {
                Some(Taken { ts, count: before.count.saturating_add(of_its_time), is_told: false })
            }
            _ => Some(Taken { ts, count: of_its_time, is_told: false }),
        };
    }
}

impl Bucket {
    /// An empty one, made for the event of an agent.
    pub(crate) fn made_by(made_by: Option<Maker>) -> Self {
        Self { made_by, ..Self::default() }
    }

    pub(crate) fn events(&self) -> &[Arc<SecurityEvent>] {
        &self.events[self.given_up..]
    }

    fn marks(&self) -> &[Mark] {
        &self.marks[self.given_up..]
    }

    /// Something of all that a look goes through first, wherever that is. Nothing follows from it.
    pub(crate) fn glance(&self) -> usize {
        let known = self.following.as_ref().and_then(|following| following.known.as_ref());
        self.bytes ^ self.marks.len() ^ known.map_or(0, Known::glance)
    }

    /// The time of its oldest event.
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.marks().first().map(|mark| mark.ts)
    }

    /// The time of its newest event.
    fn newest(&self) -> Option<Timestamp> {
        self.marks().last().map(|mark| mark.ts)
    }

    /// Keeps an event whose texts take so much.
    pub(crate) fn keep(&mut self, event: &Arc<SecurityEvent>, bytes: usize, quotas: Quotas) -> Kept {
        // Events mostly come in order, so look at the end first.
        let at = match self.marks().last() {
            Some(last) if last.ts >= event.ts => match self.place_of(event) {
                // Whoever reaches the bus can name the place of another's event. There stands what proved itself, whichever came first.
                Ok(at) if event.verified && !self.events()[at].verified => {
                    let at = self.given_up + at;
                    drop(self.events.remove(at));
                    self.bytes -= self.marks.remove(at).bytes;
                    at
                }
                Ok(_) => return Kept::Known,
                Err(at) => self.given_up + at,
            },
            _ => self.events.len(),
        };
        if at == self.given_up && self.events().len() >= quotas.events_per_key.max(1) {
            self.lose_to(Some(event.ts));
            return Kept::GivenUp;
        }
        self.events.insert(at, Arc::clone(event));
        self.marks.insert(at, Mark { ts: event.ts, bytes });
        self.bytes += bytes;
        let surplus = self.surplus(quotas);
        if surplus == 0 {
            return Kept::Added;
        }
        let taken = Some(self.marks()[surplus - 1].ts);
        if let Some(following) = &mut self.following {
            following.take(&self.events[self.given_up..][..surplus]);
        }
        self.lose_to(taken);
        self.give_up(surplus);
        Kept::AddedOverQuota(surplus)
    }

    /// Where an event stands among the events in their order, or would stand.
    fn place_of(&self, event: &SecurityEvent) -> Result<usize, usize> {
        let first = self.count_before(event.ts);
        let of_its_time = self.marks()[first..].partition_point(|mark| mark.ts == event.ts);
        let of_its_time = &self.events()[first..first + of_its_time];
        let place = of_its_time.binary_search_by(|other| other.order_key().cmp(&event.order_key()));
        place.map(|place| first + place).map_err(|place| first + place)
    }

    /// How many of its events are before `ts`.
    fn count_before(&self, ts: Timestamp) -> usize {
        self.marks().partition_point(|mark| mark.ts < ts)
    }

    /// Its events before `to`.
    pub(crate) fn before(&self, to: Timestamp) -> &[Arc<SecurityEvent>] {
        &self.events()[..self.count_before(to)]
    }

    /// Its events with `from <= ts <= to`.
    pub(crate) fn within(&self, from: Timestamp, to: Timestamp) -> &[Arc<SecurityEvent>] {
        let start = self.count_before(from);
        let end = self.marks().partition_point(|mark| mark.ts <= to);
        &self.events()[start..end.max(start)]
    }

    /// The time of its first event at or after `from`.
    pub(crate) fn first_from(&self, from: Timestamp) -> Option<Timestamp> {
        self.marks().get(self.count_before(from)).map(|mark| mark.ts)
    }

    /// Forgets its oldest events; the others are moved once for many of them.
    fn give_up(&mut self, count: usize) {
        let bytes: usize = self.marks()[..count].iter().map(|mark| mark.bytes).sum();
        self.bytes -= bytes;
        self.given_up += count;
        if self.given_up * 2 > self.events.len() {
            self.events.drain(..self.given_up);
            self.marks.drain(..self.given_up);
            self.given_up = 0;
        }
    }

    /// True if at no time from `from` on there is what a match there takes, with what is before.
    fn lacks(&self, takes: Takes, from: Timestamp) -> bool {
        let has_no_seed = |span: i64| self.seed().is_none_or(|seed| seed < from.plus_micros(-span));
        let has_one_value = |span: i64| self.differed().is_none_or(|differed| differed < from.plus_micros(-span));
        takes.seed_span.is_some_and(has_no_seed)
            || takes.differing_span.is_some_and(has_one_value)
            || takes.least.is_some_and(|least| self.lacks_events(least, from))
    }

    /// The same of so many events.
    fn lacks_events(&self, least: Least, from: Timestamp) -> bool {
        let (marks, before) = (self.marks(), least.count.saturating_sub(1));
        let first = self.count_before(from).max(before);
        let Some(last) = marks.get(first..) else { return true };
        // Each beside the one that is so many before it. Of those of one time the last has all of them behind it.
        let mut spans = last.iter().zip(&marks[first - before..]);
        !spans.any(|(at, back)| at.ts.as_micros().saturating_sub(back.ts.as_micros()) <= least.span)
    }

    /// Whether an incremental query need not be shown what is new from `oldest` on, for nothing there can be a match. It is shown it with what comes later, if
    /// that can; of what it was shown of that time before it knows nothing any more.
    pub(crate) fn puts_off(&mut self, takes: Takes, oldest: Timestamp) -> bool {
        if !self.lacks(takes, oldest) {
            return false;
        }
        let is_told = |following: &Following| following.shown.is_some_and(|shown| oldest <= shown);
        if self.following.as_ref().is_some_and(is_told) {
            let place = self.count_before(oldest).checked_sub(1);
            let last = place.and_then(|place| self.marks().get(place)).map(|mark| mark.ts);
            match (&mut self.following, last) {
                (Some(Following { known: Some(known), shown, .. }), Some(last)) => {
                    known.take_back(oldest.as_micros());
                    *shown = Some(last);
                }
                (following, _) => *following = None,
            }
        }
        true
    }

    /// What an incremental query knows, and the events that it is to be shown next: those from `oldest` on, the oldest that is new to it, and what was put off.
    /// What it knew of them is taken back.
    pub(crate) fn follow(&mut self, oldest: Timestamp, fresh: impl FnOnce() -> Known) -> (Known, &[Arc<SecurityEvent>]) {
        let Following { known, shown, taken } = self.following.get_or_insert_default();
        let marks = &self.marks[self.given_up..];
        let put_off = shown.and_then(|shown| marks.get(marks.partition_point(|mark| mark.ts <= shown)));
        let oldest = put_off.map_or(oldest, |first| first.ts.min(oldest));
        let (mut known, from) = match (*shown, known.take()) {
            (Some(shown), Some(mut known)) => {
                if oldest <= shown {
                    known.take_back(oldest.as_micros());
                }
                (known, marks.partition_point(|mark| mark.ts < oldest))
            }
            _ => {
                *taken = None;
                (fresh(), 0)
            }
        };
        if let Some(newest) = taken.as_mut().filter(|newest| !newest.is_told) {
            // Of the time of what it is shown again it knows nothing yet, and what it is shown is there.
            let count = if oldest <= newest.ts { 0 } else { newest.count };
            known.drop_before(newest.ts.as_micros(), count);
            newest.is_told = true;
        }
        // From now on those of that time are counted anew.
        *taken = taken.filter(|newest| newest.ts < oldest);
        *shown = (*shown).max(marks.last().map(|last| last.ts));
        (known, &self.events[self.given_up..][from..])
    }

    /// Puts back what an incremental query knows now; without it, it is shown everything again.
    pub(crate) fn followed(&mut self, known: Option<Known>) {
        match known {
            Some(known) => self.following.get_or_insert_default().known = Some(known),
            None => self.following = None,
        }
    }

    /// Its events from the one on that an incremental query was shown as the `place`th of its time.
    pub(crate) fn events_from(&self, ts: Timestamp, place: u32) -> &[Arc<SecurityEvent>] {
        // Of those that a quota took since, the places are there still.
        let taken = self.following.as_ref().and_then(|following| following.taken).filter(|taken| taken.ts == ts);
        let place = place.saturating_sub(taken.map_or(0, |taken| taken.count));
        let events = self.events();
        let first = self.count_before(ts).saturating_add(place as usize);
        &events[first.min(events.len())..]
    }

    /// Forgets the events before `before`.
    pub(crate) fn expire(&mut self, before: Timestamp) {
        if self.oldest().is_none_or(|oldest| oldest >= before) {
            return;
        }
        self.forget_seed(before);
        // Of a key that fell silent nothing is left: that is told by its last event, and not looked for row by row.
        if self.marks().last().is_some_and(|newest| newest.ts < before) {
            (self.events, self.marks, self.given_up) = (Few::new(), Few::new(), 0);
            (self.bytes, self.following) = (0, None);
            self.forget_values();
            return;
        }
        let expired = self.count_before(before);
        if expired > 0 {
            self.give_up(expired);
            if let Some(known) = self.following.as_mut().and_then(|following| following.known.as_mut()) {
                known.drop_before(before.as_micros(), 0);
            }
        }
    }

    /// How many of its oldest events a quota takes.
    fn surplus(&self, quotas: Quotas) -> usize {
        let mut surplus = self.events().len().saturating_sub(quotas.events_per_key);
        let mut bytes = self.bytes;
        for (place, mark) in self.marks().iter().enumerate() {
            if bytes <= quotas.bytes_per_key {
                break;
            }
            bytes -= mark.bytes;
            surplus = surplus.max(place + 1);
        }
        surplus
    }
}

/// What came of offering an event to the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Added,
    /// It was there: a redelivery changes nothing.
    Known,
    /// Added, and as many of the oldest events of the same key were given up.
    AddedOverQuota(usize),
    /// It is the oldest of a key that has as many as it may have.
    GivenUp,
    /// A quota is full and the key is new.
    Refused,
}
