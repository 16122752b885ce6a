//! The strictest label of each run. It can only tighten while the run lasts; a run ends after idle time. Each tenant has its share of the room.
//! A run that found none counts as `unknown` at best for as long as it may last; one that is held gives way to no other tenant's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use aegis_model::{MAX_RUN_IDLE_S, SourceTrust, TenantId, Timestamp};
use parking_lot::Mutex;

use crate::digest::Key;

/// Shards, so that calls of different runs rarely meet.
const SHARDS: usize = 16;
/// How often a full shard is searched for runs that have ended at most, microseconds.
const SWEEP_EVERY_US: i64 = 1_000_000;
/// A search that lies further ahead than this was at a time that the clock has been set back from, microseconds. What control tells of a run is no older:
/// a day when it tells it, and a day in the bucket.
const SET_BACK_US: i64 = 3 * MAX_RUN_IDLE_S * 1_000_000;
/// How often it is told at most that runs find no room, microseconds.
const WARN_EVERY_US: i64 = 60_000_000;

#[derive(Clone, Copy, Debug)]
struct RunLabel {
    trust: SourceTrust,
    ends: Timestamp,
}

impl RunLabel {
    /// True if it counts as no less strict where it is not held.
    fn may_go(self) -> bool {
        self.trust <= SourceTrust::Unknown
    }
}

/// What is known of a tenant's runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry {
    Label {
        run: Key,
        trust: SourceTrust,
        ends: Timestamp,
    },
    /// Until then it may have runs that are not held.
    Lost {
        until: Timestamp,
    },
}

/// One tenant's runs in a shard.
#[derive(Debug, Default)]
struct Share {
    runs: HashMap<Key, RunLabel>,
    /// How many of them may give way to a stricter one.
    may_go: usize,
    /// Until then a run that is not held may be one that found no room.
    lost_until: Timestamp,
}

#[derive(Debug, Default)]
struct Shard {
    tenants: HashMap<TenantId, Share>,
    held: usize,
    swept: Timestamp,
}

/// The runs an edge knows.
#[derive(Debug)]
pub(crate) struct Runs {
    shards: Vec<Mutex<Shard>>,
    /// A full shard takes in runs of those tenants alone that have less than an equal share of it. So `n` tenants that come one after the other
    /// and take all they can hold `1 + ln n` times the capacity together.
    shard_capacity: usize,
    lost: AtomicU64,
    warned_us: AtomicI64,
}

impl Runs {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_capacity: capacity.div_ceil(SHARDS).max(1),
            lost: AtomicU64::new(0),
            warned_us: AtomicI64::new(i64::MIN),
        }
    }

    /// The run's label so far, if it lasts at `now`; `unknown` for one that found no room, or finds none.
    pub(crate) fn label(&self, tenant: &TenantId, run: &Key, now: Timestamp) -> Option<SourceTrust> {
        let mut shard = self.shard(run).lock();
        let share = shard.tenants.get(tenant)?;
        if let Some(label) = share.runs.get(run) {
            return (label.ends > now).then_some(label.trust);
        }
        // What a full memory does not hold, it cannot vouch for: policy must see that before it decides.
        let is_unknown = share.lost_until > now || !shard.has_room(tenant, self.shard_capacity, now);
        is_unknown.then_some(SourceTrust::Unknown)
    }

    /// Tightens the run's label by `trust` and returns the label from now on.
    pub(crate) fn tighten(&self, tenant: &TenantId, run: Key, trust: SourceTrust, idle_s: i64, now: Timestamp) -> SourceTrust {
        self.take(tenant, run, trust, now.plus_seconds(idle_s), now)
    }

    /// The same for a label of which it is known when it ends.
    pub(crate) fn take(&self, tenant: &TenantId, run: Key, trust: SourceTrust, ends: Timestamp, now: Timestamp) -> SourceTrust {
        let mut shard = self.shard(&run).lock();
        let label = match shard.tighten_held(tenant, &run, RunLabel { trust, ends }, now) {
            Some(label) => label,
            None if shard.has_room(tenant, self.shard_capacity, now) => shard.hold(tenant, run, RunLabel { trust, ends }),
            None => {
                let label = shard.hold_for_another(tenant, run, RunLabel { trust, ends });
                drop(shard);
                self.note_lost(tenant, now);
                label
            }
        };
        debug_assert!(label >= trust, "a run's label is never looser than its last call's");
        label
    }

    /// Until then the tenant may have runs that are not held.
    pub(crate) fn lose(&self, tenant: &TenantId, until: Timestamp) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let share = shard.tenants.entry(tenant.clone()).or_default();
            share.lost_until = share.lost_until.max(until);
        }
    }

    /// False if the run is held and this label says no more of it than is known.
    pub(crate) fn is_news(&self, tenant: &TenantId, run: &Key, trust: SourceTrust, ends: Timestamp) -> bool {
        let shard = self.shard(run).lock();
        let held = shard.tenants.get(tenant).and_then(|share| share.runs.get(run));
        held.is_none_or(|held| held.trust < trust || held.ends < ends)
    }

    /// What is held and lasts, by tenant.
    pub(crate) fn entries(&self, now: Timestamp) -> Vec<(TenantId, Entry)> {
        let mut entries = Vec::new();
        for shard in &self.shards {
            for (tenant, share) in &shard.lock().tenants {
                let lasting = share.runs.iter().filter(|(_, label)| label.ends > now);
                let labels = lasting.map(|(run, label)| Entry::Label { run: *run, trust: label.trust, ends: label.ends });
                let lost = (share.lost_until > now).then_some(Entry::Lost { until: share.lost_until });
                entries.extend(labels.chain(lost).map(|entry| (tenant.clone(), entry)));
            }
        }
        entries
    }

    /// How many runs lost their label to a full memory since this was asked last.
    pub(crate) fn take_lost(&self) -> u64 {
        if self.lost.load(Ordering::Relaxed) == 0 { 0 } else { self.lost.swap(0, Ordering::Relaxed) }
    }

    fn note_lost(&self, tenant: &TenantId, now: Timestamp) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        let (now_us, warned_us) = (now.as_micros(), self.warned_us.load(Ordering::Relaxed));
        let is_due = now_us.saturating_sub(warned_us) >= WARN_EVERY_US;
        if is_due && self.warned_us.compare_exchange(warned_us, now_us, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::warn!(%tenant, "the memory for labels of runs is full: runs of this tenant that it cannot hold count as unknown");
        }
    }

    fn shard(&self, run: &Key) -> &Mutex<Shard> {
        &self.shards[usize::from(run[0]) % SHARDS]
    }
}

impl Shard {
    /// Whether one more run of the tenant may be taken in.
    fn has_room(&mut self, tenant: &TenantId, capacity: usize, now: Timestamp) -> bool {
        if self.held < capacity {
            return true;
        }
        let since_us = now.as_micros().saturating_sub(self.swept.as_micros());
        if !(-SET_BACK_US..SWEEP_EVERY_US).contains(&since_us) {
            self.sweep(now);
        }
        let its_own = self.tenants.get(tenant).map_or(0, |share| share.runs.len());
        self.held < capacity || its_own < (capacity / self.tenants.len().max(1)).max(1)
    }

    /// Forgets what has ended.
    fn sweep(&mut self, now: Timestamp) {
        self.swept = now;
        for share in self.tenants.values_mut() {
            share.runs.retain(|_, label| label.ends > now);
            share.may_go = share.runs.values().filter(|label| label.may_go()).count();
        }
        self.tenants.retain(|_, share| !share.runs.is_empty() || share.lost_until > now);
        self.held = self.tenants.values().map(|share| share.runs.len()).sum();
    }

    /// Tightens the label of a run that is held.
    fn tighten_held(&mut self, tenant: &TenantId, run: &Key, said: RunLabel, now: Timestamp) -> Option<SourceTrust> {
        let share = self.tenants.get_mut(tenant)?;
        let label = share.runs.get_mut(run)?;
        let could_go = label.may_go();
        label.trust = if label.ends > now { label.trust.combine(said.trust) } else { said.trust };
        label.ends = label.ends.max(said.ends);
        match (could_go, label.may_go()) {
            (true, false) => share.may_go -= 1,
            (false, true) => share.may_go += 1,
            _ => {}
        }
        Some(label.trust)
    }

    /// Takes in a run.
    fn hold(&mut self, tenant: &TenantId, run: Key, label: RunLabel) -> SourceTrust {
        let share = self.tenants.entry(tenant.clone()).or_default();
        share.may_go += usize::from(label.may_go());
        share.runs.insert(run, label);
        self.held += 1;
        label.trust
    }

    /// Takes in a run in the place of another of the tenant that counts as `unknown` at most, if it is stricter than that. Of whichever is not
    /// held from now on, it is remembered until when it may last.
    fn hold_for_another(&mut self, tenant: &TenantId, run: Key, label: RunLabel) -> SourceTrust {
        let share = self.tenants.entry(tenant.clone()).or_default();
        let has_one_to_go = share.may_go > 0 && !label.may_go();
        let gives_way = has_one_to_go.then(|| share.runs.iter().find(|(_, held)| held.may_go())).flatten();
        let Some((other, ends)) = gives_way.map(|(run, held)| (*run, held.ends)) else {
            share.lost_until = share.lost_until.max(label.ends);
            return label.trust.combine(SourceTrust::Unknown);
        };
        share.runs.remove(&other);
        share.runs.insert(run, label);
        share.may_go -= 1;
        share.lost_until = share.lost_until.max(ends);
        label.trust
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::digest::run_key;
    use proptest::prelude::*;

    fn tenant(id: &str) -> TenantId {
        TenantId::new(id).unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    /// Keys of the same shard.
    fn keys(count: u8) -> impl Iterator<Item = Key> {
        (0..count).map(|n| {
            let mut key = Key::default();
            key[15] = n;
            key
        })
    }

    proptest! {
        #[test]
        fn a_run_s_label_is_the_strictest_of_its_calls(labels in prop::collection::vec(0usize..6, 1..20)) {
            let runs = Runs::new(100);
            let mut strictest = SourceTrust::TrustedInternalSigned;
            for (second, index) in labels.iter().enumerate() {
                strictest = strictest.combine(SourceTrust::ALL[*index]);
                let label = runs.tighten(&tenant("acme"), run_key("r"), SourceTrust::ALL[*index], 60, at(second as i64));
                prop_assert_eq!(label, strictest);
            }
        }

        /// However full the memory is, and whatever comes and ends: a run that lasts counts as its label says, or as `unknown` at best.
        #[test]
        fn a_full_memory_loosens_no_label_to_less_than_unknown(
            calls in prop::collection::vec((0usize..3, 0u8..12, 0usize..6, 0i64..4), 1..200),
        ) {
            let runs = Runs::new(6 * SHARDS);
            let tenants = [tenant("a"), tenant("b"), tenant("c")];
            let all: Vec<Key> = keys(12).collect();
            let mut truth: HashMap<(usize, u8), (SourceTrust, i64)> = HashMap::new();
            let mut second = 0;
            for (whose, run, label, pause) in calls {
                second += pause;
                let said = SourceTrust::ALL[label];
                let (own, key) = (&tenants[whose], all[usize::from(run)]);
                // As an edge does: what it knows of the run is part of what the call counts as.
                let counts_as = runs.label(own, &key, at(second)).map_or(said, |known| known.combine(said));
                runs.tighten(own, key, counts_as, 5, at(second));
                let known = truth.entry((whose, run)).or_insert((said, second + 5));
                known.0 = if known.1 > second { known.0.combine(said) } else { said };
                known.1 = second + 5;
                for ((whose, run), (label, ends)) in &truth {
                    if *ends > second {
                        let shown = runs.label(&tenants[*whose], &all[usize::from(*run)], at(second));
                        prop_assert!(shown >= Some(*label).min(Some(SourceTrust::Unknown)), "{shown:?} for {label}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_run_ends_after_idle_time_and_not_before() {
        let (runs, acme, run) = (Runs::new(100), tenant("acme"), run_key("r"));
        runs.tighten(&acme, run, SourceTrust::UntrustedExternal, 10, at(0));
        runs.tighten(&acme, run, SourceTrust::TrustedInternalSigned, 10, at(9));
        assert_eq!(runs.label(&acme, &run, at(18)), Some(SourceTrust::UntrustedExternal));
        assert_eq!(runs.label(&acme, &run, at(19)), None);
    }

    #[test]
    fn a_full_memory_never_forgets_a_tainted_run_and_trusts_no_new_one() {
        let (runs, acme) = (Runs::new(1), tenant("acme"));
        let tainted: Vec<Key> = (0..200).map(|i| run_key(&format!("tainted-{i}"))).collect();
        for run in &tainted {
            runs.tighten(&acme, *run, SourceTrust::MaliciousSuspected, 60, at(0));
        }
        let malicious = Some(SourceTrust::MaliciousSuspected);
        let held = tainted.iter().filter(|run| runs.label(&acme, run, at(0)) == malicious).count();
        assert_eq!(held, SHARDS);
        assert_eq!(runs.take_lost(), 200 - SHARDS as u64);
        assert_eq!(runs.tighten(&acme, run_key("new"), SourceTrust::TrustedInternalSigned, 60, at(0)), SourceTrust::Unknown);
        assert_eq!(runs.label(&acme, &run_key("new"), at(0)), Some(SourceTrust::Unknown));
    }

    #[test]
    fn a_clock_that_was_ahead_and_is_set_back_leaves_no_memory_full_for_good() {
        let (runs, acme) = (Runs::new(SHARDS), tenant("acme"));
        let [first, second, third]: [Key; 3] = keys(3).collect::<Vec<_>>().try_into().unwrap();
        runs.tighten(&acme, first, SourceTrust::TrustedInternalUnsigned, 5, at(0));
        assert_eq!(runs.label(&acme, &second, at(365 * 86_400)), None, "it was searched then, and the first has ended");
        runs.tighten(&acme, second, SourceTrust::TrustedInternalUnsigned, 5, at(0));
        assert_eq!(runs.label(&acme, &third, at(4)), Some(SourceTrust::Unknown), "full");
        assert_eq!(runs.label(&acme, &third, at(6)), None, "the second has ended, and there is room");
    }

    #[test]
    fn a_run_that_found_no_room_is_not_taken_for_a_new_one_when_there_is_some_again() {
        let (runs, acme) = (Runs::new(2 * SHARDS), tenant("acme"));
        let [first, second, lost]: [Key; 3] = keys(3).collect::<Vec<_>>().try_into().unwrap();
        runs.tighten(&acme, first, SourceTrust::UntrustedExternal, 10, at(0));
        runs.tighten(&acme, second, SourceTrust::UntrustedExternal, 10, at(0));
        runs.tighten(&acme, lost, SourceTrust::UntrustedExternal, 60, at(5));
        assert_eq!(runs.label(&acme, &lost, at(30)), Some(SourceTrust::Unknown));
        assert_eq!(runs.label(&acme, &lost, at(65)), None);
    }

    #[test]
    fn a_tainted_run_takes_the_place_of_one_that_counts_for_no_less_without() {
        let (runs, acme) = (Runs::new(2 * SHARDS), tenant("acme"));
        let [trusted, malicious, untrusted]: [Key; 3] = keys(3).collect::<Vec<_>>().try_into().unwrap();
        runs.tighten(&acme, trusted, SourceTrust::TrustedInternalSigned, 60, at(0));
        runs.tighten(&acme, malicious, SourceTrust::MaliciousSuspected, 60, at(0));
        assert_eq!(runs.tighten(&acme, untrusted, SourceTrust::UntrustedExternal, 60, at(1)), SourceTrust::UntrustedExternal);
        assert_eq!(runs.label(&acme, &untrusted, at(2)), Some(SourceTrust::UntrustedExternal));
        assert_eq!(runs.label(&acme, &malicious, at(2)), Some(SourceTrust::MaliciousSuspected));
        assert_eq!(runs.label(&acme, &trusted, at(2)), Some(SourceTrust::Unknown));
    }

    #[test]
    fn a_noisy_tenant_takes_no_room_from_another() {
        let (runs, noisy, quiet) = (Runs::new(8 * SHARDS), tenant("noisy"), tenant("quiet"));
        for run in keys(200) {
            runs.tighten(&noisy, run, SourceTrust::UntrustedExternal, 60, at(0));
        }
        for run in keys(4) {
            assert_eq!(runs.label(&quiet, &run, at(1)), None, "its first call is a new run's");
            runs.tighten(&quiet, run, SourceTrust::SemiTrustedCustomer, 60, at(1));
        }
        for run in keys(200) {
            runs.tighten(&noisy, run, SourceTrust::UntrustedExternal, 60, at(2));
        }
        assert!(keys(4).all(|run| runs.label(&quiet, &run, at(3)) == Some(SourceTrust::SemiTrustedCustomer)));
        assert_eq!(keys(200).filter(|run| runs.label(&noisy, run, at(3)) == Some(SourceTrust::UntrustedExternal)).count(), 8);
    }
}
