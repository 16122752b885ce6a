//! The bounded state of one rule: per tenant, per bucket, the events of the window and the matches that can still change.
//! Promises that a full quota refuses new keys loudly (counted) and never touches another tenant's state, and that no agent fills it alone.

mod buckets;
mod due;
mod far;
mod places;
mod saved;
mod seldom;
mod share;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aegis_model::{SecurityEvent, TenantId, Timestamp};
use indexmap::IndexMap;

use crate::bucket::Bucket;
pub(crate) use crate::bucket::Kept;
pub use crate::bucket::Quotas;
use crate::episode::KeyState;
use crate::known::Known;
use crate::least::Takes;
use crate::name::{BucketName, Relevant};
use buckets::Buckets;
pub(crate) use due::Numbers;
use due::{Due, expire_step};
pub(crate) use far::{Far, FarMost, FarTo, share_of};
pub(crate) use saved::SavedKeys;
use seldom::Seldom;
use share::{bytes_of_key, give_back};

/// Keyed anew in each process, as the standard library's is: what stands in a key is the caller's to choose.
pub(crate) type Hasher = ahash::RandomState;

/// Events whose time is over are dropped once a quarter of the window has passed since the last time, and no more often and no more seldom than this:
/// what is left of them until then is not looked at.
const EXPIRE_PART: i64 = 4;
const EXPIRE_AT_LEAST: i64 = 5_000_000;
const EXPIRE_AT_MOST: i64 = 60_000_000;

/// State of one rule.
#[derive(Debug, Default)]
pub(crate) struct RuleState {
    /// Each by itself: where many come and go, none of them is moved.
    pub(crate) tenants: IndexMap<TenantId, Box<TenantState>, Hasher>,
    /// Of all tenants: it is asked for with every tick.
    events: usize,
    /// When there is something to settle of each.
    due: Due,
}

#[derive(Debug)]
pub(crate) struct TenantState {
    pub(crate) buckets: Buckets,
    /// The tenant's number, once it is known.
    number: Option<usize>,
    /// Up to where events were dropped.
    expired_to: Option<Timestamp>,
    /// No event in its buckets is older.
    oldest: Option<Timestamp>,
    /// `Due` knows that there is something new of it.
    is_noted: bool,
    events: usize,
    bytes: usize,
    seldom: Option<Box<Seldom>>,
}

impl TenantState {
    /// One without anything: that of a tenant comes and goes with its events.
    fn new(number: Option<usize>) -> Self {
        Self {
            buckets: Buckets::default(),
            number,
            expired_to: None,
            oldest: None,
            is_noted: false,
            events: 0,
            bytes: 0,
            seldom: None,
        }
    }

    /// True if nothing of it is from before `before`, as is known without looking into its buckets.
    fn keeps_all(&self, before: Timestamp) -> bool {
        !self.has_keys() && !self.has_refused() && self.oldest.is_some_and(|oldest| oldest >= before)
    }

    /// The keys there are, each with what it may change in it.
    pub(crate) fn each_key(&mut self, mut work: impl FnMut(&mut KeyState)) {
        let Self { buckets, seldom, .. } = self;
        for name in seldom.iter().flat_map(|seldom| &seldom.keyed) {
            if let Some(bucket) = buckets.get_mut(name) {
                bucket.keys_mut().for_each(|(_, key)| work(key));
            }
        }
    }
}

/// Where a bucket stood when it was last looked at: it is looked for there first, and by its names where it stands there no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    tenant: usize,
    bucket: usize,
}

impl Place {
    /// Where it stands for another rule, among the buckets of its tenant.
    const fn of_another(bucket: usize) -> Self {
        Self { tenant: usize::MAX, bucket }
    }

    /// Where it stands among the buckets of its tenant.
    pub(crate) const fn bucket(self) -> usize {
        self.bucket
    }
}

/// A bucket by its names, and where it may stand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) bucket: &'a str,
    place: Option<Place>,
}

impl<'a> Named<'a> {
    /// One that is looked for by its names.
    pub(crate) const fn new(tenant: &'a TenantId, bucket: &'a str) -> Self {
        Self { tenant, bucket, place: None }
    }
}

/// The buckets that a tick touched, each once, with the time of its oldest and newest new event.
#[derive(Debug, Default)]
pub(crate) struct Touched(Vec<(BucketName, Option<Place>, Span)>);

/// From one time to another, both included.
type Span = (Timestamp, Timestamp);

impl Touched {
    /// None, with room for so many.
    pub(crate) fn of(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    /// Adds a bucket that is not there.
    pub(crate) fn add(&mut self, name: BucketName, place: Option<Place>, span: Span) {
        self.0.push((name, place, span));
    }

    /// Those of each tenant.
    pub(crate) fn by_tenant(&self) -> BTreeMap<TenantId, Self> {
        let mut all: BTreeMap<TenantId, Self> = BTreeMap::new();
        for (name, place, span) in &self.0 {
            all.entry(name.tenant().clone()).or_default().add(name.clone(), *place, *span);
        }
        all
    }

    /// Bucket, oldest and newest new event.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Named<'_>, Timestamp, Timestamp)> {
        self.0.iter().map(|(name, place, (oldest, newest))| {
            (Named { tenant: name.tenant(), bucket: name.text(), place: *place }, *oldest, *newest)
        })
    }

    /// To look many of them up.
    pub(crate) fn spans(&self) -> HashMap<(&TenantId, &str), Span, Hasher> {
        self.0.iter().map(|(name, _, span)| ((name.tenant(), name.text()), *span)).collect()
    }
}

impl RuleState {
    /// Keeps events of one bucket, which may stand at a place, for later evaluations, and says of each what came of it. Answers where the bucket stands, if
    /// there is one.
    pub(crate) fn keep<'a>(
        &mut self,
        (name, place): (&BucketName, Option<Place>),
        events: impl IntoIterator<Item = &'a Relevant>,
        quotas: Quotas,
        mut each: impl FnMut(&'a Relevant, Kept),
    ) -> Option<Place> {
        let tenant = name.tenant();
        let (number, is_new) = self.place_or_new(tenant, name.number());
        let Self { tenants, events: of_all, due } = self;
        let (_, state) = tenants.get_index_mut(number)?;
        let mut events = events.into_iter().peekable();
        let known = match place {
            Some(place) => state.buckets.place_by(name, place.bucket),
            None => state.buckets.place_of(name),
        };
        let mut made = None;
        if known.is_none() {
            let is_full = state.events >= quotas.events_per_tenant
                || state.bytes >= quotas.bytes_per_tenant
                || state.buckets.len() >= quotas.keys_per_tenant;
            // The first whose agent may make one more makes it.
            while let Some(one) = events.next_if(|one| is_full || !state.has_share(one.event.agent_id.as_deref(), quotas)) {
                state.seldom().refused.note(name.text(), one.event.ts);
                each(one, Kept::Refused);
            }
            let Some(first) = events.peek() else {
                if is_new {
                    due.note(tenant, state);
                }
                return None;
            };
            made = Some(state.make(name, first.event.agent_id.as_deref()));
            if is_new && state.has_refused() {
                due.note(tenant, state);
            }
        }
        let place = Place { tenant: number, bucket: known.or(made)? };
        let TenantState { buckets, events: count, bytes, .. } = &mut **state;
        let entry = buckets.at_mut(place.bucket)?;
        let mut earliest: Option<Timestamp> = None;
        for one in events {
            let (events_before, bytes_before) = (entry.events().len(), entry.bytes);
            each(one, entry.keep(&one.event, one.bytes, quotas));
            *count = *count + entry.events().len() - events_before;
            *of_all = *of_all + entry.events().len() - events_before;
            *bytes = *bytes + entry.bytes - bytes_before;
            earliest = Some(earliest.map_or(one.event.ts, |earliest| earliest.min(one.event.ts)));
        }
        if let Some(ts) = earliest
            && state.oldest.is_none_or(|oldest| ts < oldest)
        {
            state.oldest = Some(ts);
            due.note_oldest(tenant, state, ts);
        }
        Some(place)
    }

    /// The bucket that stands there has an event of this time without one of which there is no match.
    pub(crate) fn sow(&mut self, place: Place, seed: Timestamp) {
        let Some((_, state)) = self.tenants.get_index_mut(place.tenant) else { return };
        if let Some(bucket) = state.buckets.at_mut(place.bucket) {
            bucket.sow(seed);
        }
    }

    /// New events of the bucket that stands there have this value of what a match takes two of; or some of them, and others another.
    pub(crate) fn see(&mut self, place: Place, value: &str, differs: bool) {
        let Some((_, state)) = self.tenants.get_index_mut(place.tenant) else { return };
        if let Some(bucket) = state.buckets.at_mut(place.bucket) {
            bucket.see(value, differs);
        }
    }

    /// Where a tenant stands, of whom there is something from now on that is to be looked at.
    fn tenant_or_new(&mut self, tenant: &TenantId) -> usize {
        let (place, is_new) = self.place_or_new(tenant, None);
        if is_new && let Some((_, state)) = self.tenants.get_index_mut(place) {
            self.due.note(tenant, state);
        }
        place
    }

    /// The place of a bucket, if it stands where it did.
    fn still_at(&self, named: Named<'_>) -> Option<Place> {
        let place = named.place?;
        let (tenant, state) = self.tenants.get_index(place.tenant)?;
        let (name, _) = state.buckets.at(place.bucket)?;
        // A name that is the very same is the same tenant's.
        (name.is_at(named.bucket) || (name.has_text(named.bucket) && tenant == named.tenant)).then_some(place)
    }

    /// A bucket, if it is there.
    fn bucket_mut(&mut self, named: Named<'_>) -> Option<&mut Bucket> {
        match self.still_at(named) {
            Some(place) => self.tenants.get_index_mut(place.tenant)?.1.buckets.at_mut(place.bucket),
            None => self.tenants.get_mut(named.tenant)?.buckets.get_mut(named.bucket),
        }
    }

    /// A bucket that has keys, if it is there.
    pub(crate) fn keyed_mut(&mut self, named: Named<'_>) -> Option<&mut Bucket> {
        let place = self.still_at(named);
        let state = match place {
            Some(place) => self.tenants.get_index_mut(place.tenant)?.1,
            None => self.tenants.get_mut(named.tenant)?,
        };
        // Most tenants have none.
        if !state.is_keyed(named.bucket) {
            return None;
        }
        match place {
            Some(place) => state.buckets.at_mut(place.bucket),
            None => state.buckets.get_mut(named.bucket),
        }
    }

    /// The kept events of a bucket with `from <= ts <= to`, in event order.
    pub(crate) fn events(&self, tenant: &TenantId, bucket: &str, from: Timestamp, to: Timestamp) -> &[Arc<SecurityEvent>] {
        let Some(bucket) = self.tenants.get(tenant).and_then(|t| t.buckets.get(bucket)) else { return &[] };
        bucket.within(from, to)
    }

    /// What an incremental query knows of a bucket, and the events that it is to be shown next: those from `oldest` on, the oldest that is new
    /// to it. What it knew of them is taken back. To be put back with `followed`. None where what a match takes is not there.
    pub(crate) fn follow(
        &mut self,
        bucket: Named<'_>,
        oldest: Timestamp,
        takes: Takes,
        fresh: impl FnOnce() -> Known,
    ) -> Option<(Known, &[Arc<SecurityEvent>])> {
        let bucket = self.bucket_mut(bucket)?;
        if bucket.puts_off(takes, oldest) {
            return None;
        }
        Some(bucket.follow(oldest, fresh))
    }

    /// Puts back what an incremental query knows now; without it, it is shown everything again.
    pub(crate) fn followed(&mut self, bucket: Named<'_>, known: Option<Known>) {
        if let Some(bucket) = self.bucket_mut(bucket) {
            bucket.followed(known);
        }
    }

    /// The kept events of a bucket up to `to`, from the one on that an incremental query was shown as the `place`th of its time.
    pub(crate) fn events_from(
        &self,
        tenant: &TenantId,
        bucket: &str,
        (from, place): (Timestamp, u32),
        to: Timestamp,
    ) -> &[Arc<SecurityEvent>] {
        let Some(bucket) = self.tenants.get(tenant).and_then(|t| t.buckets.get(bucket)) else { return &[] };
        let events = bucket.events_from(from, place);
        &events[..events.partition_point(|event| event.ts <= to)]
    }

    /// The newest event of a bucket that a quota has taken, or did not let in.
    pub(crate) fn lost_to(&self, tenant: &TenantId, bucket: &str) -> Option<Timestamp> {
        self.tenants.get(tenant)?.buckets.get(bucket)?.lost_to()
    }

    /// Forgets the events before `before` of the tenant that stands at a place, and buckets that hold nothing any more; of a window of so many microseconds
    /// not each time that it is asked to. Answers whether the tenant stands there still.
    pub(crate) fn expire(&mut self, place: usize, before: Timestamp, window_micros: i64) -> bool {
        let Some((_, state)) = self.tenants.get_index_mut(place) else { return false };
        let step = expire_step(window_micros);
        let passed = |last: Timestamp| before.as_micros().saturating_sub(last.as_micros());
        if state.expired_to.is_some_and(|last| (0..step).contains(&passed(last))) {
            return true;
        }
        state.expired_to = Some(before);
        if state.keeps_all(before) {
            return true;
        }
        let (mut dropped, mut bytes, mut keys, mut key_bytes) = (0, 0, 0, 0);
        let mut oldest_of_all: Option<Timestamp> = None;
        let TenantState { buckets, seldom, .. } = &mut **state;
        let mut seldom = seldom.as_deref_mut();
        if let Some(seldom) = &mut seldom {
            seldom.refused.forget(before);
        }
        buckets.retain(|name, bucket| {
            let (events_before, bytes_before) = (bucket.events().len(), bucket.bytes);
            bucket.expire(before);
            dropped += events_before - bucket.events().len();
            bytes += bytes_before - bucket.bytes;
            let mut gone = 0;
            bucket.retain_keys(|text, key| {
                gone += if key.is_empty() { bytes_of_key(name.text(), text) } else { 0 };
                !key.is_empty()
            });
            let left = bucket.key_count();
            keys += left;
            key_bytes += gone;
            let stays = !bucket.events().is_empty() || left > 0;
            if let Some(oldest) = bucket.oldest() {
                oldest_of_all = Some(oldest_of_all.map_or(oldest, |other| other.min(oldest)));
            }
            // Where there is none, there were no keys, and nothing waits.
            let Some(seldom) = &mut seldom else { return stays };
            if gone > 0 && left == 0 {
                seldom.keyed.remove(name.text());
            }
            if let (Some(agent), Some(made_by)) = (bucket.made_by, seldom.made_by.as_deref_mut()) {
                give_back(made_by, agent, gone, !stays);
            }
            if let Some(first) = bucket.awaits().filter(|_| !stays) {
                seldom.awaiting.remove(&(first, name.text().to_owned()));
            }
            stays
        });
        state.events -= dropped;
        self.events -= dropped;
        state.bytes -= bytes;
        if let Some(seldom) = &mut state.seldom {
            seldom.keys = keys;
            seldom.key_bytes -= key_bytes;
        }
        state.tidy();
        state.oldest = oldest_of_all;
        let stays = !state.buckets.is_empty() || state.has_refused();
        if !stays {
            self.remove_at(place);
        }
        stays
    }

    /// The names of a tenant's buckets, in order.
    pub(crate) fn buckets(&self) -> Vec<(TenantId, String)> {
        let mut all = Vec::new();
        for (tenant, state) in &self.tenants {
            all.extend(state.buckets.iter().map(|(name, _)| (tenant.clone(), name.text().to_owned())));
        }
        all.sort_unstable();
        all
    }

    pub(crate) const fn event_count(&self) -> usize {
        self.events
    }

    /// Forgets all of a tenant.
    pub(crate) fn forget(&mut self, tenant: &TenantId) {
        if let Some(state) = self.tenants.get_index_of(tenant).and_then(|place| self.remove_at(place)) {
            self.events -= state.events;
        }
    }

    pub(crate) fn key_mut(&mut self, tenant: &TenantId, bucket: &str, text: &str) -> Option<&mut KeyState> {
        self.tenants.get_mut(tenant)?.buckets.get_mut(bucket)?.key_mut(text)
    }

    /// Every key.
    pub(crate) fn keys_mut(&mut self) -> impl Iterator<Item = &mut KeyState> {
        self.tenants.values_mut().flat_map(|t| t.buckets.values_mut()).flat_map(|b| b.keys_mut()).map(|(_, key)| key)
    }
}
