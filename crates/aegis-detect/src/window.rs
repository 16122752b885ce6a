//! The bounded state of one rule: per tenant, per bucket, the events of the window and the matches that can still change.
//! Promises that a full quota refuses new keys loudly (counted) and never touches another tenant's state, and that no agent fills it alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use aegis_model::{SecurityEvent, TenantId, Timestamp};

use crate::bucket::Bucket;
pub(crate) use crate::bucket::Kept;
pub use crate::bucket::Quotas;
use crate::episode::{KeyState, json_bytes};
use crate::pipeline::Frames;
use crate::refused::Refused;

/// Keyed anew in each process, as the standard library's is: what stands in a key is the caller's to choose.
type Hasher = ahash::RandomState;

/// Events whose time is over are dropped once a quarter of the window has passed since the last time, and no more often and no more seldom than this:
/// what is left of them until then is not looked at.
const EXPIRE_PART: i64 = 4;
const EXPIRE_AT_LEAST: i64 = 5_000_000;
const EXPIRE_AT_MOST: i64 = 60_000_000;

/// State of one rule.
#[derive(Debug, Default)]
pub(crate) struct RuleState {
    pub(crate) tenants: HashMap<TenantId, TenantState, Hasher>,
    /// Of all tenants: it is asked for with every tick.
    events: usize,
}

#[derive(Debug, Default)]
pub(crate) struct TenantState {
    pub(crate) buckets: HashMap<String, Bucket, Hasher>,
    /// The buckets that have keys: few of them.
    keyed: HashSet<String, Hasher>,
    /// Up to where events were dropped.
    expired_to: Option<Timestamp>,
    events: usize,
    bytes: usize,
    /// In all buckets, and what their texts take.
    keys: usize,
    key_bytes: usize,
    made_by: HashMap<Arc<str>, Made, Hasher>,
    /// The buckets of which instants wait for their decision, by the first of them.
    awaiting: BTreeSet<(Timestamp, String)>,
    /// What a full quota did not let in.
    refused: Refused,
}

/// How many buckets an agent's events have made, and what the texts of the keys in them take.
#[derive(Debug, Default)]
struct Made {
    buckets: usize,
    key_bytes: usize,
}

/// What the texts of a key take: its own, which is there as its columns too, and its part of the bucket's.
fn bytes_of_key(bucket: &str, text: &str) -> usize {
    bucket.len() + 2 * text.len()
}

impl TenantState {
    /// The keys there are, each with what it may change in it.
    pub(crate) fn each_key(&mut self, mut work: impl FnMut(&mut KeyState)) {
        for name in &self.keyed {
            if let Some(bucket) = self.buckets.get_mut(name) {
                bucket.keys.values_mut().for_each(&mut work);
            }
        }
    }

    /// The bucket of this name, if it has keys.
    pub(crate) fn keyed_mut(&mut self, name: &str) -> Option<&mut Bucket> {
        // Most tenants have none.
        let has_keys = !self.keyed.is_empty() && self.keyed.contains(name);
        if has_keys { self.buckets.get_mut(name) } else { None }
    }

    /// True if an event of this agent may make one more bucket. Those of no agent have no share of their own.
    fn has_share(&self, agent: Option<&str>, quotas: Quotas) -> bool {
        let made = agent.and_then(|agent| self.made_by.get(agent));
        made.is_none_or(|made| made.buckets < quotas.keys_per_agent() && made.key_bytes < quotas.key_bytes_per_agent())
    }

    /// Makes a bucket that is not there.
    fn make(&mut self, name: &str, agent: Option<&str>) {
        let made_by = agent.map(|agent| match self.made_by.get_key_value(agent) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::from(agent),
        });
        if let Some(agent) = &made_by {
            self.made_by.entry(Arc::clone(agent)).or_default().buckets += 1;
        }
        let mut bucket = Bucket::made_by(made_by);
        bucket.lost_to = self.refused.newest(name);
        self.buckets.insert(name.to_owned(), bucket);
    }
}

/// Keys of so many bytes are gone from one of an agent's buckets, and the bucket too, or not.
fn give_back(made_by: &mut HashMap<Arc<str>, Made, Hasher>, agent: &Arc<str>, key_bytes: usize, bucket_too: bool) {
    if let Some(made) = made_by.get_mut(agent) {
        made.key_bytes -= key_bytes;
        made.buckets -= usize::from(bucket_too);
        if made.buckets == 0 {
            made_by.remove(agent);
        }
    }
}

/// The buckets that a tick touched, each once, with the time of its oldest and newest new event.
#[derive(Debug, Default)]
pub(crate) struct Touched(Vec<(TenantId, String, Span)>);

/// From one time to another, both included.
type Span = (Timestamp, Timestamp);

impl Touched {
    /// Adds a bucket that is not there.
    pub(crate) fn add(&mut self, tenant: &TenantId, bucket: String, span: Span) {
        self.0.push((tenant.clone(), bucket, span));
    }

    /// Those of each tenant.
    pub(crate) fn by_tenant(&self) -> BTreeMap<TenantId, Self> {
        let mut all: BTreeMap<TenantId, Self> = BTreeMap::new();
        for (tenant, bucket, span) in &self.0 {
            all.entry(tenant.clone()).or_default().add(tenant, bucket.clone(), *span);
        }
        all
    }

    /// Tenant, bucket, oldest and newest new event.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&TenantId, &str, Timestamp, Timestamp)> {
        self.0.iter().map(|(tenant, bucket, (oldest, newest))| (tenant, bucket.as_str(), *oldest, *newest))
    }

    /// To look many of them up.
    pub(crate) fn spans(&self) -> HashMap<(&TenantId, &str), Span, Hasher> {
        self.0.iter().map(|(tenant, bucket, span)| ((tenant, bucket.as_str()), *span)).collect()
    }
}

impl RuleState {
    /// Keeps events of one bucket for later evaluations, and says of each what came of it.
    pub(crate) fn keep<'a>(
        &mut self,
        tenant: &TenantId,
        bucket: &str,
        events: impl IntoIterator<Item = &'a Arc<SecurityEvent>>,
        quotas: Quotas,
        mut each: impl FnMut(&'a Arc<SecurityEvent>, Kept),
    ) {
        let Self { tenants, events: of_all } = self;
        let state = tenants.entry(tenant.clone()).or_default();
        let mut events = events.into_iter().peekable();
        if !state.buckets.contains_key(bucket) {
            let is_full = state.events >= quotas.events_per_tenant
                || state.bytes >= quotas.bytes_per_tenant
                || state.buckets.len() >= quotas.keys_per_tenant;
            // The first whose agent may make one more makes it.
            while let Some(event) = events.next_if(|event| is_full || !state.has_share(event.agent_id.as_deref(), quotas)) {
                state.refused.note(bucket, event.ts);
                each(event, Kept::Refused);
            }
            let Some(first) = events.peek() else { return };
            state.make(bucket, first.agent_id.as_deref());
        }
        let TenantState { buckets, events: count, bytes, .. } = state;
        let Some(entry) = buckets.get_mut(bucket) else { return };
        for event in events {
            let (events_before, bytes_before) = (entry.events().len(), entry.bytes);
            each(event, entry.keep(event, quotas));
            *count = *count + entry.events().len() - events_before;
            *of_all = *of_all + entry.events().len() - events_before;
            *bytes = *bytes + entry.bytes - bytes_before;
        }
    }

    /// The state of a key, made if there is none. `agent` is whose event a match was found in. None: a quota of keys is full, or the agent's part
    /// of it.
    pub(crate) fn key_or_new(
        &mut self,
        tenant: &TenantId,
        bucket: &str,
        text: &str,
        agent: Option<&str>,
        quotas: Quotas,
    ) -> Option<&mut KeyState> {
        let state = self.tenants.entry(tenant.clone()).or_default();
        let known = state.buckets.get(bucket);
        if !known.is_some_and(|bucket| bucket.keys.contains_key(text)) {
            let is_new = known.is_none();
            let has_room = !is_new || (state.buckets.len() < quotas.keys_per_tenant && state.has_share(agent, quotas));
            if state.keys >= quotas.keys_per_tenant || state.key_bytes >= quotas.key_bytes_per_tenant || !has_room {
                return None;
            }
            if is_new {
                state.make(bucket, agent);
            }
            let bytes = bytes_of_key(bucket, text);
            if !state.keyed.contains(bucket) {
                state.keyed.insert(bucket.to_owned());
            }
            state.keys += 1;
            state.key_bytes += bytes;
            if let Some(made_by) = state.buckets.get(bucket).and_then(|bucket| bucket.made_by.as_ref())
                && let Some(made) = state.made_by.get_mut(made_by)
            {
                made.key_bytes += bytes;
            }
        }
        Some(state.buckets.entry(bucket.to_owned()).or_default().keys.entry(text.to_owned()).or_default())
    }

    /// The kept events of a bucket with `from <= ts <= to`, in event order.
    pub(crate) fn events(&self, tenant: &TenantId, bucket: &str, from: Timestamp, to: Timestamp) -> &[Arc<SecurityEvent>] {
        let Some(bucket) = self.tenants.get(tenant).and_then(|t| t.buckets.get(bucket)) else { return &[] };
        let events = bucket.events();
        let start = events.partition_point(|e| e.ts < from);
        let end = events.partition_point(|e| e.ts <= to);
        &events[start..end.max(start)]
    }

    /// What an incremental query knows of a bucket, and the events that it is to be shown next: those from `oldest` on, the oldest that is new
    /// to it. What it knew of them is taken back. To be put back with `followed`.
    pub(crate) fn follow(
        &mut self,
        tenant: &TenantId,
        bucket: &str,
        oldest: Timestamp,
        fresh: impl FnOnce() -> Frames,
    ) -> Option<(Frames, &[Arc<SecurityEvent>])> {
        let bucket = self.tenants.get_mut(tenant)?.buckets.get_mut(bucket)?;
        Some(bucket.follow(oldest, fresh))
    }

    /// Puts back what an incremental query knows now; without it, it is shown everything again.
    pub(crate) fn followed(&mut self, tenant: &TenantId, bucket: &str, frames: Option<Frames>) {
        if let Some(bucket) = self.tenants.get_mut(tenant).and_then(|t| t.buckets.get_mut(bucket)) {
            bucket.followed(frames);
        }
    }

    /// A bucket's instants from `from` on wait for their decision, beside those that do so already.
    pub(crate) fn wait_for(&mut self, tenant: &TenantId, bucket: &str, from: Timestamp) {
        let Some(TenantState { buckets, awaiting, .. }) = self.tenants.get_mut(tenant) else { return };
        let Some(entry) = buckets.get_mut(bucket) else { return };
        let Some(first) = entry.first_from(from) else { return };
        if entry.awaits.is_some_and(|known| known <= first) {
            return;
        }
        if let Some(later) = entry.awaits.replace(first) {
            awaiting.remove(&(later, bucket.to_owned()));
        }
        awaiting.insert((first, bucket.to_owned()));
    }

    /// A tenant's buckets of which instants before `before` wait, each with the first of them. Those instants wait no longer.
    pub(crate) fn take_due(&mut self, tenant: &TenantId, before: Timestamp) -> Vec<(String, Timestamp)> {
        let Some(TenantState { buckets, awaiting, .. }) = self.tenants.get_mut(tenant) else { return Vec::new() };
        let mut due = Vec::new();
        while awaiting.first().is_some_and(|(first, _)| *first < before) {
            let Some((first, name)) = awaiting.pop_first() else { break };
            due.push((name, first));
        }
        for (name, _) in &due {
            let Some(bucket) = buckets.get_mut(name) else { continue };
            bucket.awaits = bucket.first_from(before);
            if let Some(next) = bucket.awaits {
                awaiting.insert((next, name.clone()));
            }
        }
        due
    }

    /// The tenants of whom instants wait for their decision, each with the first of them.
    pub(crate) fn awaiting(&self) -> impl Iterator<Item = (&TenantId, Timestamp)> {
        self.tenants.iter().filter_map(|(tenant, state)| Some((tenant, state.awaiting.first()?.0)))
    }

    /// How many events of these tenants are at instants that wait for their decision.
    pub(crate) fn awaiting_count(&self, tenants: &BTreeSet<TenantId>) -> usize {
        let buckets = tenants.iter().filter_map(|tenant| self.tenants.get(tenant)).flat_map(|state| state.buckets.values());
        let of_bucket = |bucket: &Bucket| {
            let events = bucket.events();
            bucket.awaits.map_or(0, |from| events.len() - events.partition_point(|event| event.ts < from))
        };
        buckets.map(of_bucket).sum()
    }

    /// The newest event of a bucket that a quota has taken, or did not let in.
    pub(crate) fn lost_to(&self, tenant: &TenantId, bucket: &str) -> Option<Timestamp> {
        self.tenants.get(tenant)?.buckets.get(bucket)?.lost_to
    }

    /// Forgets a tenant's events before `before`, and buckets that hold nothing any more; of a window of so many microseconds not each time that it
    /// is asked to.
    pub(crate) fn expire(&mut self, tenant: &TenantId, before: Timestamp, window_micros: i64) {
        let Some(state) = self.tenants.get_mut(tenant) else { return };
        let step = (window_micros / EXPIRE_PART).clamp(EXPIRE_AT_LEAST, EXPIRE_AT_MOST);
        let passed = |last: Timestamp| before.as_micros().saturating_sub(last.as_micros());
        if state.expired_to.is_some_and(|last| (0..step).contains(&passed(last))) {
            return;
        }
        state.expired_to = Some(before);
        let (mut dropped, mut bytes, mut keys, mut key_bytes) = (0, 0, 0, 0);
        let TenantState { buckets, keyed, made_by, awaiting, refused, .. } = state;
        refused.forget(before);
        buckets.retain(|name, bucket| {
            let (events_before, bytes_before) = (bucket.events().len(), bucket.bytes);
            bucket.expire(before);
            dropped += events_before - bucket.events().len();
            bytes += bytes_before - bucket.bytes;
            let mut gone = 0;
            bucket.keys.retain(|text, key| {
                gone += if key.is_empty() { bytes_of_key(name, text) } else { 0 };
                !key.is_empty()
            });
            keys += bucket.keys.len();
            key_bytes += gone;
            if gone > 0 && bucket.keys.is_empty() {
                keyed.remove(name);
            }
            let stays = !bucket.events().is_empty() || !bucket.keys.is_empty();
            if let Some(agent) = &bucket.made_by {
                give_back(made_by, agent, gone, !stays);
            }
            if let Some(first) = bucket.awaits.filter(|_| !stays) {
                awaiting.remove(&(first, name.clone()));
            }
            stays
        });
        state.events -= dropped;
        self.events -= dropped;
        state.bytes -= bytes;
        state.keys = keys;
        state.key_bytes -= key_bytes;
        if state.buckets.is_empty() && state.refused.is_empty() {
            self.tenants.remove(tenant);
        }
    }

    /// The names of a tenant's buckets, in order.
    pub(crate) fn buckets(&self) -> Vec<(TenantId, String)> {
        let all = self.tenants.iter().flat_map(|(tenant, t)| t.buckets.keys().map(|name| (tenant.clone(), name.clone())));
        let mut all: Vec<_> = all.collect();
        all.sort_unstable();
        all
    }

    pub(crate) const fn event_count(&self) -> usize {
        self.events
    }

    /// Forgets all of a tenant.
    pub(crate) fn forget(&mut self, tenant: &TenantId) {
        if let Some(state) = self.tenants.remove(tenant) {
            self.events -= state.events;
        }
    }
}

/// What a rule told of its keys, as it stands in a checkpoint: tenant → bucket → key.
pub(crate) type SavedKeys = BTreeMap<TenantId, BTreeMap<String, BTreeMap<String, KeyState>>>;

impl RuleState {
    /// How many bytes a checkpoint has of what was told of each tenant's keys, about and at most.
    pub(crate) fn told_bytes(&self) -> impl Iterator<Item = (&TenantId, usize)> {
        self.tenants.iter().map(|(tenant, state)| {
            let of_bucket = |(name, bucket): (&String, &Bucket)| {
                let told = bucket.keys.iter().filter(|(_, key)| key.has_told());
                let bytes: usize = told.map(|(text, key)| key.told_bytes(text)).sum();
                if bytes == 0 { 0 } else { bytes + json_bytes(name) }
            };
            (tenant, state.buckets.iter().map(of_bucket).sum::<usize>())
        })
    }

    /// What was told of keys, but for those of the tenants that are left out.
    pub(crate) fn save_keys(&self, left_out: &BTreeSet<TenantId>) -> SavedKeys {
        let mut saved = SavedKeys::new();
        for (tenant, state) in self.tenants.iter().filter(|(tenant, _)| !left_out.contains(tenant)) {
            for (name, bucket) in &state.buckets {
                let keys = bucket.keys.iter().filter(|(_, k)| k.has_told()).map(|(text, key)| (text.clone(), key.told()));
                let keys: BTreeMap<String, KeyState> = keys.collect();
                if !keys.is_empty() {
                    saved.entry(tenant.clone()).or_default().insert(name.clone(), keys);
                }
            }
        }
        saved
    }

    pub(crate) fn load_keys(&mut self, saved: SavedKeys) {
        for (tenant, buckets) in saved {
            let state = self.tenants.entry(tenant).or_default();
            for (name, keys) in buckets {
                state.keys += keys.len();
                if !keys.is_empty() {
                    state.keyed.insert(name.clone());
                }
                state.key_bytes += keys.keys().map(|text| bytes_of_key(&name, text)).sum::<usize>();
                state.buckets.entry(name).or_default().keys = keys;
            }
        }
    }

    pub(crate) fn key_mut(&mut self, tenant: &TenantId, bucket: &str, text: &str) -> Option<&mut KeyState> {
        self.tenants.get_mut(tenant)?.buckets.get_mut(bucket)?.keys.get_mut(text)
    }

    /// Every key.
    pub(crate) fn keys_mut(&mut self) -> impl Iterator<Item = &mut KeyState> {
        self.tenants.values_mut().flat_map(|t| t.buckets.values_mut()).flat_map(|b| b.keys.values_mut())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use aegis_model::EventKind;

    fn event(tenant: &str, second: i64) -> Arc<SecurityEvent> {
        let ts = Timestamp::from_micros(second * 1_000_000);
        Arc::new(SecurityEvent::new(TenantId::new(tenant).unwrap(), "e", "edge", EventKind::AuthorizeDecision, ts))
    }

    fn keep(state: &mut RuleState, event: &Arc<SecurityEvent>, bucket: &str, quotas: Quotas) -> Kept {
        let mut kept = None;
        state.keep(&event.tenant_id, bucket, [event], quotas, |_, came| kept = Some(came));
        kept.unwrap()
    }

    #[test]
    fn a_full_quota_refuses_new_keys_and_leaves_other_tenants_alone() {
        let quotas = Quotas { events_per_tenant: 3, keys_per_tenant: 2, events_per_key: 2, ..Quotas::default() };
        let mut state = RuleState::default();
        assert_eq!(keep(&mut state, &event("a", 1), "k1", quotas), Kept::Added);
        assert_eq!(keep(&mut state, &event("a", 2), "k2", quotas), Kept::Added);
        assert_eq!(keep(&mut state, &event("a", 3), "k3", quotas), Kept::Refused);
        assert_eq!(keep(&mut state, &event("b", 3), "k3", quotas), Kept::Added);
        assert_eq!(keep(&mut state, &event("a", 3), "k1", quotas), Kept::Added, "a known key goes on");
        assert_eq!(keep(&mut state, &event("a", 4), "k1", quotas), Kept::AddedOverQuota(1));
        assert_eq!(keep(&mut state, &event("a", 2), "k1", quotas), Kept::GivenUp, "it would be the oldest");
        assert_eq!(state.event_count(), 4);
        state.expire(&TenantId::new("a").unwrap(), Timestamp::from_micros(10_000_000), 0);
        assert_eq!(state.event_count(), 1, "only the other tenant's event is left");
        state.forget(&TenantId::new("b").unwrap());
        assert_eq!((state.event_count(), state.tenants.len()), (0, 0));
    }

    #[test]
    fn an_agent_makes_a_quarter_of_the_buckets_at_most_until_its_own_expire() {
        let quotas = Quotas { keys_per_tenant: 8, ..Quotas::default() };
        let (mut state, tenant) = (RuleState::default(), TenantId::new("a").unwrap());
        let of = |agent: Option<&str>, second: i64| {
            let mut event = (*event("a", second)).clone();
            event.agent_id = agent.map(str::to_owned);
            Arc::new(event)
        };
        let own = |state: &mut RuleState, agent: Option<&str>, second: i64| {
            keep(state, &of(agent, second), &second.to_string(), quotas)
        };
        let kept = [1, 2, 3].map(|second| own(&mut state, Some("loud"), second));
        assert_eq!(kept, [Kept::Added, Kept::Added, Kept::Refused]);
        assert_eq!(own(&mut state, Some("quiet"), 4), Kept::Added, "another agent has its own part");
        let known = keep(&mut state, &of(Some("loud"), 5), "4", quotas);
        assert_eq!(known, Kept::Added, "a bucket that is there takes anybody's");
        let kept = [6, 7].map(|second| own(&mut state, None, second));
        assert_eq!(kept, [Kept::Added, Kept::Added], "nobody's have no bound but the tenant's");
        // A match is as good as an event.
        assert!(state.key_or_new(&tenant, "9", "key", Some("loud"), quotas).is_none());
        assert!(state.key_or_new(&tenant, "9", "key", Some("quiet"), quotas).is_some());
        assert!(state.key_or_new(&tenant, "10", "key", Some("quiet"), quotas).is_none());
        // Of events that come together, the first one that may makes the bucket.
        let together = [of(Some("loud"), 8), of(Some("third"), 8), of(Some("loud"), 8)];
        let mut kept = Vec::new();
        state.keep(&tenant, "8", &together, quotas, |_, came| kept.push(came));
        assert_eq!(kept, [Kept::Refused, Kept::Added, Kept::Added]);
        // The first bucket goes, and with it what it was of the part.
        state.expire(&tenant, Timestamp::from_micros(2_000_000), 0);
        let kept = [11, 12].map(|second| own(&mut state, Some("loud"), second));
        assert_eq!(kept, [Kept::Added, Kept::Refused]);
        state.expire(&tenant, Timestamp::from_micros(100_000_000), 0);
        let kept = [111, 112, 113].map(|second| own(&mut state, Some("loud"), second));
        assert_eq!(kept, [Kept::Added, Kept::Added, Kept::Refused], "all of it is given back");
    }

    #[test]
    fn a_key_over_its_quota_keeps_its_newest_events_wherever_they_come() {
        let quotas = Quotas { events_per_key: 10, ..Quotas::default() };
        let mut state = RuleState::default();
        let tenant = TenantId::new("a").unwrap();
        let kept = |state: &RuleState| {
            let all = state.events(&tenant, "k", Timestamp::from_micros(0), Timestamp::from_micros(i64::MAX));
            all.iter().map(|e| e.ts.as_micros() / 1_000_000).collect::<Vec<_>>()
        };
        // What a list that is sorted and cut each time would keep.
        let mut expected = Vec::new();
        for second in (1..=100).map(|n| if n % 3 == 0 { n - 2 } else { n }) {
            keep(&mut state, &event("a", second), "k", quotas);
            expected.push(second);
            expected.sort_unstable();
            expected = expected.split_off(expected.len().saturating_sub(10));
            assert_eq!(kept(&state), expected);
        }
        state.expire(&tenant, Timestamp::from_micros(98_000_000), 0);
        assert!(kept(&state).iter().all(|second| *second >= 98));
    }

    #[test]
    fn long_texts_are_bounded_as_many_events_are() {
        let quotas = Quotas { bytes_per_key: 3_500, bytes_per_tenant: 6_000, ..Quotas::default() };
        let mut state = RuleState::default();
        let long = |second: i64| {
            let mut event = (*event("a", second)).clone();
            event.resource = Some("x".repeat(1_000));
            Arc::new(event)
        };
        let kept: Vec<Kept> = (1..=5).map(|second| keep(&mut state, &long(second), "k1", quotas)).collect();
        assert_eq!(kept, [Kept::Added, Kept::Added, Kept::Added, Kept::AddedOverQuota(1), Kept::AddedOverQuota(1)]);
        assert_eq!((1..=3).map(|second| keep(&mut state, &long(second), "k2", quotas)).collect::<Vec<_>>(), [Kept::Added; 3]);
        assert_eq!(keep(&mut state, &long(9), "k3", quotas), Kept::Refused, "the tenant has as much as it may have");
        state.expire(&TenantId::new("a").unwrap(), Timestamp::from_micros(100_000_000), 0);
        assert_eq!(keep(&mut state, &long(9), "k3", quotas), Kept::Added, "what is gone takes nothing");
    }

    #[test]
    fn long_keys_are_bounded_as_many_are() {
        let quotas = Quotas { key_bytes_per_tenant: 4_000, ..Quotas::default() };
        let (mut state, tenant) = (RuleState::default(), TenantId::new("a").unwrap());
        // Of about 400 bytes each.
        let key = |state: &mut RuleState, agent: &str, n: usize| {
            let text = format!("{n}{}", "x".repeat(199));
            state.key_or_new(&tenant, &n.to_string(), &text, Some(agent), quotas).is_some()
        };
        assert_eq!([0, 1, 2, 3].map(|n| key(&mut state, "loud", n)), [true, true, true, false], "an agent has a quarter");
        assert!(key(&mut state, "loud", 0), "what is known goes on");
        assert!([4, 5, 6].map(|n| key(&mut state, "second", n)).iter().all(|taken| *taken));
        assert!([7, 8, 9].map(|n| key(&mut state, "third", n)).iter().all(|taken| *taken));
        assert_eq!([10, 11].map(|n| key(&mut state, "fourth", n)), [true, false], "the tenant has as much as it may have");
        // A restart counts the same.
        let mut again = RuleState::default();
        let of = |state: &RuleState| state.tenants[&tenant].key_bytes;
        let told = |bucket: &Bucket| bucket.keys.clone();
        let saved = state.tenants[&tenant].buckets.iter().map(|(name, bucket)| (name.clone(), told(bucket))).collect();
        again.load_keys(SavedKeys::from([(tenant.clone(), saved)]));
        assert_eq!(of(&again), of(&state));
        // Keys of which nothing is remembered go, and with them what they took.
        state.expire(&tenant, Timestamp::from_micros(1), 0);
        assert_eq!([0, 1, 2, 3].map(|n| key(&mut state, "loud", n)), [true, true, true, false]);
    }

    #[test]
    fn a_redelivered_event_is_known() {
        let mut state = RuleState::default();
        let (first, second) = (event("a", 1), event("a", 2));
        assert_eq!(keep(&mut state, &second, "k", Quotas::default()), Kept::Added);
        assert_eq!(keep(&mut state, &first, "k", Quotas::default()), Kept::Added);
        assert_eq!(keep(&mut state, &second, "k", Quotas::default()), Kept::Known);
        let tenant = TenantId::new("a").unwrap();
        let all = state.events(&tenant, "k", Timestamp::from_micros(0), Timestamp::from_micros(i64::MAX));
        assert_eq!(all.iter().map(|e| e.event_id).collect::<Vec<_>>(), [first.event_id, second.event_id]);
    }
}
