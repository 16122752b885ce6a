//! What the detector writes down so that a restart goes on where it stopped: the engine's checkpoint, the lane heads, and the
//! part of the stream that its windows still need. Without one it replays the whole stream, which gives the same alerts.

use std::collections::{BTreeMap, HashMap, VecDeque};

use aegis_bus::Place;
use aegis_ledger::verify::LaneHeads;
use aegis_model::{EventId, SecurityEvent, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::common::KnownCommon;
use crate::distrust::RefusedRecord;
use crate::engine::{Engine, EngineCheckpoint};
use crate::hold::HeldLane;
use crate::late::{Late, Whose};
use crate::own::KnownRule;
use crate::verify::{ChainBreak, is_ahead_of_time};

/// Most messages that a restart reads again to rebuild its windows.
pub(crate) const MAX_REWIND: usize = 500_000;
/// Of a tenant's messages that failed verification so many, the newest, have words of why in a checkpoint, and the others the code alone: whoever
/// reaches the bus writes as many as he wants, and it must have room for everybody else.
const MOST_WORDED: usize = 1_000;

/// A checkpoint of the detector, as it stands in the stream CKPT.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) version: u32,
    /// Everything up to here has been taken, but what is `held`.
    pub(crate) place: Place,
    /// The windows need the messages from here on.
    pub(crate) rewind: u64,
    pub(crate) heads: LaneHeads,
    pub(crate) engine: EngineCheckpoint,
    /// Messages within `rewind ..= seq` that no rule was shown: late, repeated, malformed.
    pub(crate) skipped: Ranges,
    /// Messages within `rewind ..= seq` that failed verification, and why: rules were shown what is said about them, also of those that came late.
    pub(crate) broken: BTreeMap<u64, ChainBreak>,
    /// Messages up to `seq` that were not taken yet: their lanes wait. Some may stand before `rewind`.
    pub(crate) held: Vec<HeldLane>,
    /// Tenants whose windows need messages before `rewind` too, more than are read again: of each the time of the newest of those.
    pub(crate) cut: BTreeMap<TenantId, Timestamp>,
    /// What tenants have of their own; one of before has none.
    #[serde(default)]
    pub(crate) own: Vec<KnownRule>,
    /// What operators changed of the rules that every tenant has; one of before has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) changed: Vec<KnownCommon>,
    /// Where the stream of alerts ended: all that is told of what was taken up to here stands before. One of before does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) alerts: Option<Place>,
    /// What late events touched and is not caught up; one of before has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) late: Vec<(Whose, Late)>,
    /// Records of rules that were refused, and of which no tenant could be told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) untold: Vec<RefusedRecord>,
    /// While the stream is read again behind a checkpoint of another version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) before: Option<Before>,
}

impl Checkpoint {
    pub(crate) const VERSION: u32 = 7;
}

/// How far lanes were followed in a life whose checkpoint says nothing else that is read.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Before {
    pub(crate) heads: LaneHeads,
    /// Up to this sequence of the stream.
    pub(crate) to: u64,
}

/// What every version of a checkpoint has.
#[derive(Debug, Deserialize)]
pub(crate) struct Heads {
    version: u32,
    pub(crate) place: Place,
    heads: LaneHeads,
    #[serde(default)]
    before: Option<Before>,
}

impl Heads {
    pub(crate) fn into_before(self) -> Before {
        let Self { place, heads, before, .. } = self;
        before.unwrap_or(Before { heads, to: place.seq })
    }
}

/// What a start reads of the last checkpoint.
#[derive(Debug)]
pub(crate) enum Saved {
    Whole(Box<Checkpoint>),
    /// It is of an older version, or has a part that cannot be read.
    Heads(Heads),
}

impl Saved {
    /// None where nothing of it can be read, or it is of a version that is not yet.
    pub(crate) fn read(text: &[u8]) -> Option<Self> {
        let reason = match serde_json::from_slice::<Checkpoint>(text) {
            Ok(checkpoint) if checkpoint.version == Checkpoint::VERSION => return Some(Self::Whole(Box::new(checkpoint))),
            Ok(checkpoint) => format!("it is of version {}", checkpoint.version),
            Err(error) => error.to_string(),
        };
        let heads = serde_json::from_slice::<Heads>(text).ok().filter(|saved| saved.version <= Checkpoint::VERSION);
        let lanes = heads.as_ref().map_or(0, |saved| saved.heads.len());
        tracing::warn!(
            reason,
            lanes,
            "nothing of the checkpoint is read but how far lanes were followed; replaying the whole stream"
        );
        heads.map(Self::Heads)
    }
}

/// Sequences of a stream, as the ranges that they make: first and last of each, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    pub(crate) fn contains(&self, seq: u64) -> bool {
        let behind = self.0.partition_point(|(first, _)| *first <= seq);
        behind.checked_sub(1).is_some_and(|at| seq <= self.0[at].1)
    }
}

impl FromIterator<u64> for Ranges {
    /// From sequences in ascending order.
    fn from_iter<T: IntoIterator<Item = u64>>(seqs: T) -> Self {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for seq in seqs {
            match ranges.last_mut() {
                Some((_, last)) if seq <= *last + 1 => *last = seq.max(*last),
                _ => ranges.push((seq, seq)),
            }
        }
        Self(ranges)
    }
}

/// Messages by their sequence: whether rules were shown the event itself, and why it failed verification, if it did.
pub(crate) type Wanted = BTreeMap<u64, (bool, Option<ChainBreak>)>;

/// One message that was taken.
#[derive(Debug)]
struct Taken {
    seq: u64,
    /// The event; None if no rule was shown it.
    shown: Option<EventId>,
    /// Whose windows need the message, and of what time it is for them: for the event, or for what is said about one that failed verification.
    needed: Option<(TenantId, Timestamp)>,
    broken: Option<ChainBreak>,
}

impl Taken {
    fn is_needed(&self, engine: &Engine) -> bool {
        let Some((tenant, needed_at)) = &self.needed else { return false };
        engine.horizon(tenant).is_none_or(|horizon| *needed_at >= horizon)
    }
}

/// The messages that some window may still need, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    taken: VecDeque<Taken>,
    /// Of each tenant the time of the newest one that some window may still need, and that is not here any more.
    cut: HashMap<TenantId, Timestamp>,
}

impl Tail {
    pub(crate) fn skip(&mut self, seq: u64) {
        self.push(Taken { seq, shown: None, needed: None, broken: None });
    }

    /// Of an event that no rule was shown, they were shown what is said about it.
    pub(crate) fn say(&mut self, seq: u64, tenant: &TenantId, needed_at: Timestamp, broken: ChainBreak) {
        self.push(Taken { seq, shown: None, needed: Some((tenant.clone(), needed_at)), broken: Some(broken) });
    }

    /// An event as it comes out of verification, with what is said about it. One that is ahead of its time no rule is shown: it is of no time
    /// but that at which the bus stored it.
    pub(crate) fn take(&mut self, seq: u64, event: &SecurityEvent, said: Option<&SecurityEvent>, broken: Option<ChainBreak>) {
        match (said, broken) {
            (Some(said), Some(broken)) if is_ahead_of_time(event) => self.say(seq, &event.tenant_id, said.ts, broken),
            _ if is_ahead_of_time(event) => self.skip(seq),
            (said, broken) => {
                let needed_at = said.map_or(event.ts, |said| said.ts.max(event.ts));
                self.show(seq, &event.tenant_id, event.event_id, needed_at, broken);
            }
        }
    }

    fn show(&mut self, seq: u64, tenant: &TenantId, event_id: EventId, needed_at: Timestamp, broken: Option<ChainBreak>) {
        self.push(Taken { seq, shown: Some(event_id), needed: Some((tenant.clone(), needed_at)), broken });
    }

    /// In order of the stream, also where a lane was held and its messages are taken later.
    fn push(&mut self, taken: Taken) {
        let place = if self.taken.back().is_none_or(|last| last.seq < taken.seq) {
            self.taken.len()
        } else {
            self.taken.partition_point(|before| before.seq < taken.seq)
        };
        self.taken.insert(place, taken);
        if self.taken.len() > MAX_REWIND {
            let oldest = self.taken.pop_front();
            self.give_up(oldest.and_then(|taken| taken.needed));
        }
    }

    /// Marks events that turned out to be late. Of an event that came twice it is the later one. What is said about one that failed verification is
    /// in time all the same: the bus says when.
    pub(crate) fn mark_late(&mut self, late: &[EventId]) {
        for id in late {
            if let Some(taken) = self.taken.iter_mut().rev().find(|taken| taken.shown.as_ref() == Some(id)) {
                taken.shown = None;
                if taken.broken.is_none() {
                    taken.needed = None;
                }
            }
        }
    }

    /// Drops what no window needs any more from the front.
    pub(crate) fn trim(&mut self, engine: &Engine) {
        while self.taken.front().is_some_and(|oldest| !oldest.is_needed(engine)) {
            self.taken.pop_front();
        }
        self.cut.retain(|tenant, needed_at| engine.horizon(tenant).is_none_or(|horizon| *needed_at >= horizon));
    }

    /// The stream is another one: what the windows have of it is not in this one.
    pub(crate) fn begin_again(&mut self) {
        for taken in std::mem::take(&mut self.taken) {
            self.give_up(taken.needed);
        }
    }

    fn give_up(&mut self, needed: Option<(TenantId, Timestamp)>) {
        if let Some((tenant, needed_at)) = needed {
            let newest = self.cut.entry(tenant).or_insert(needed_at);
            *newest = needed_at.max(*newest);
        }
    }

    /// Tenants whose windows may need more than is remembered here.
    pub(crate) fn cut(&self) -> BTreeMap<TenantId, Timestamp> {
        self.cut.iter().map(|(tenant, needed_at)| (tenant.clone(), *needed_at)).collect()
    }

    /// The same of one of them.
    pub(crate) fn cut_of(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.cut.get(tenant).copied()
    }

    /// What was cut before a restart is so after it.
    pub(crate) fn stays_cut(&mut self, cut: BTreeMap<TenantId, Timestamp>) {
        self.cut.extend(cut);
    }

    /// Messages that the windows of some tenants need.
    pub(crate) fn of_tenants(&self, is_asked_for: impl Fn(&TenantId) -> bool) -> Wanted {
        let is_needed = |taken: &&Taken| taken.needed.as_ref().is_some_and(|(of, _)| is_asked_for(of));
        let needed = self.taken.iter().filter(is_needed);
        needed.map(|taken| (taken.seq, (taken.shown.is_some(), taken.broken.clone()))).collect()
    }

    /// The first message that is still needed; `next` if none is.
    pub(crate) fn rewind(&self, next: u64) -> u64 {
        self.taken.front().map_or(next, |taken| taken.seq)
    }

    pub(crate) fn skipped(&self) -> Ranges {
        self.taken.iter().filter(|t| t.shown.is_none()).map(|t| t.seq).collect()
    }

    pub(crate) fn broken(&self) -> BTreeMap<u64, ChainBreak> {
        let mut of_tenants: HashMap<Option<&TenantId>, usize> = HashMap::new();
        let mut all = BTreeMap::new();
        for taken in self.taken.iter().rev() {
            let Some(ChainBreak { code, message }) = &taken.broken else { continue };
            let of_tenant = of_tenants.entry(taken.needed.as_ref().map(|(tenant, _)| tenant)).or_default();
            *of_tenant += 1;
            let message = if *of_tenant > MOST_WORDED { String::new() } else { message.clone() };
            all.insert(taken.seq, ChainBreak { code: code.clone(), message });
        }
        all
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use aegis_model::EventKind;

    use super::*;
    use crate::verify::chain_broken_event;

    #[test]
    fn of_a_checkpoint_that_cannot_be_read_whole_it_is_known_how_far_lanes_were_followed() {
        let head = serde_json::json!({"seq": 7, "hash": "ab", "ts": Timestamp::from_micros(0), "closed": false});
        let text = |version: u32| {
            let whole = serde_json::json!({"version": version, "place": {"stream": "s", "seq": 9}, "heads": {"a.e.1": head}, "engine": 1});
            serde_json::to_vec(&whole).unwrap()
        };
        for version in [1, Checkpoint::VERSION] {
            let Some(Saved::Heads(saved)) = Saved::read(&text(version)) else { panic!("nothing of version {version}") };
            let before = saved.into_before();
            assert_eq!((before.to, before.heads.get("a.e.1")), (9, Some((7, "ab"))));
        }
        assert!(Saved::read(&text(Checkpoint::VERSION + 1)).is_none(), "nobody knows what another version will mean");
        assert!(Saved::read(b"{}").is_none() && Saved::read(b"nonsense").is_none());
    }

    #[test]
    fn sequences_are_kept_as_the_ranges_that_they_make() {
        let seqs = [3, 4, 5, 9, 11, 12];
        let ranges: Ranges = seqs.into_iter().collect();
        assert_eq!(serde_json::to_string(&ranges).unwrap(), "[[3,5],[9,9],[11,12]]");
        let again: Ranges = serde_json::from_str("[[3,5],[9,9],[11,12]]").unwrap();
        assert!((0..20).all(|seq| again.contains(seq) == seqs.contains(&seq)));
        assert!(!Ranges::default().contains(1));
        let many: Ranges = (1..=120_000).collect();
        assert_eq!(serde_json::to_string(&many).unwrap(), "[[1,120000]]");
    }

    #[test]
    fn what_is_ahead_of_its_time_is_needed_for_what_is_said_about_it_alone() {
        let at = |second: i64| Timestamp::from_micros(0).plus_seconds(second);
        let stored = |kind: EventKind, second: i64| {
            let mut event = SecurityEvent::new(TenantId::new("t").unwrap(), "e", "edge", kind, at(second));
            event.bus_ts = Some(at(100));
            event
        };
        let forged = stored(EventKind::AuthorizeDecision, 1_000_000);
        let broken = ChainBreak { code: "digest_mismatch".into(), message: String::new() };
        let said = chain_broken_event(&forged, &broken);
        let mut tail = Tail::default();
        tail.take(1, &forged, Some(&said), Some(broken));
        tail.take(2, &stored(EventKind::ExternalGithubWebhook, 1_000_000), None, None);
        tail.take(3, &stored(EventKind::ExternalGithubWebhook, 400), None, None);
        assert_eq!(tail.skipped(), Ranges::from_iter([1, 2]));
        assert_eq!(tail.broken().into_keys().collect::<Vec<_>>(), [1]);
        let needed: Vec<Option<Timestamp>> = tail.taken.iter().map(|taken| taken.needed.as_ref().map(|(_, at)| *at)).collect();
        assert_eq!(needed, [Some(at(100)), None, Some(at(400))]);
    }

    #[test]
    fn junk_of_one_tenant_takes_the_words_of_a_checkpoint_from_itself_alone() {
        let tenant = |name: &str| TenantId::new(name).unwrap();
        let (event_id, at) = (uuid::Uuid::from_u128(1), Timestamp::from_micros(0));
        let broken = || Some(ChainBreak { code: "digest_mismatch".into(), message: "x".repeat(300) });
        let mut tail = Tail::default();
        tail.show(1, &tenant("quiet"), event_id, at, broken());
        let loud = tenant("loud");
        let last = 1 + 20 * MOST_WORDED as u64;
        for seq in 2..=last {
            tail.show(seq, &loud, event_id, at, broken());
        }
        let told = tail.broken();
        assert_eq!(told.len() as u64, last, "which they are, and what kind of failure, is known of all");
        assert!(told.values().all(|one| one.code == "digest_mismatch"));
        let worded: Vec<u64> = told.iter().filter(|(_, one)| !one.message.is_empty()).map(|(seq, _)| *seq).collect();
        let newest = last + 1 - MOST_WORDED as u64..=last;
        assert_eq!(worded, [1].into_iter().chain(newest).collect::<Vec<_>>());
        assert!(serde_json::to_vec(&told).unwrap().len() < 100 * told.len());
    }

    #[test]
    fn past_the_bound_only_those_are_cut_whose_messages_are_not_there_any_more() {
        let tenant = |name: &str| TenantId::new(name).unwrap();
        let at = |second: i64| Timestamp::from_micros(0).plus_seconds(second);
        let event_id = uuid::Uuid::from_u128(1);
        let mut tail = Tail::default();
        tail.show(1, &tenant("quiet"), event_id, at(7), None);
        let busy = tenant("busy");
        for seq in 2..=MAX_REWIND as u64 {
            tail.show(seq, &busy, event_id, at(9), None);
        }
        assert!(tail.cut().is_empty());
        tail.show(MAX_REWIND as u64 + 1, &busy, event_id, at(9), None);
        assert_eq!(tail.cut(), BTreeMap::from([(tenant("quiet"), at(7))]));
        let mut restarted = Tail::default();
        restarted.stays_cut(tail.cut());
        assert_eq!(restarted.cut(), tail.cut());
    }
}
