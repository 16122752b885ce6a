//! The strictest label of each run. It can only tighten while the run lasts; a run ends after idle time.
//! When the memory is full, a new run counts as `unknown` at best, and no label that is held is dropped for it.

use std::collections::HashMap;

use aegis_model::{SourceTrust, TenantId, Timestamp};
use parking_lot::Mutex;

/// Shards, so that calls of different runs rarely meet.
const SHARDS: usize = 16;

#[derive(Debug)]
struct RunLabel {
    trust: SourceTrust,
    ends: Timestamp,
}

type Shard = Mutex<HashMap<(TenantId, String), RunLabel>>;

/// The runs an edge knows.
#[derive(Debug)]
pub(crate) struct Runs {
    shards: Vec<Shard>,
    shard_capacity: usize,
}

impl Runs {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect(), shard_capacity: capacity.div_ceil(SHARDS).max(1) }
    }

    /// The run's label so far, if it lasts at `now`; `unknown` for a new run that a full memory could not hold.
    pub(crate) fn label(&self, tenant: &TenantId, run: &str, now: Timestamp) -> Option<SourceTrust> {
        let key = (tenant.clone(), run.to_owned());
        let shard = self.shard(&key).lock();
        match shard.get(&key) {
            Some(label) if label.ends > now => Some(label.trust),
            // What a full memory cannot hold, it cannot vouch for: policy must see that before it decides.
            None if shard.len() >= self.shard_capacity => Some(SourceTrust::Unknown),
            _ => None,
        }
    }

    /// The label of a run that is held and lasts; of others nothing is said.
    pub(crate) fn held(&self, tenant: &TenantId, run: &str, now: Timestamp) -> Option<SourceTrust> {
        let key = (tenant.clone(), run.to_owned());
        self.shard(&key).lock().get(&key).filter(|label| label.ends > now).map(|label| label.trust)
    }

    /// Tightens the run's label by `trust` and returns the label from now on.
    pub(crate) fn tighten(&self, tenant: &TenantId, run: &str, trust: SourceTrust, idle_s: i64, now: Timestamp) -> SourceTrust {
        let key = (tenant.clone(), run.to_owned());
        let mut shard = self.shard(&key).lock();
        if shard.len() >= self.shard_capacity && !shard.contains_key(&key) {
            shard.retain(|_, label| label.ends > now);
            if shard.len() >= self.shard_capacity {
                return trust.combine(SourceTrust::Unknown);
            }
        }
        let ends = now.plus_seconds(idle_s);
        let label = shard.entry(key).or_insert(RunLabel { trust, ends });
        label.trust = if label.ends > now { label.trust.combine(trust) } else { trust };
        label.ends = label.ends.max(ends);
        debug_assert!(label.trust >= trust, "a run's label is never looser than its last call's");
        label.trust
    }

    fn shard(&self, key: &(TenantId, String)) -> &Shard {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or(0);
        &self.shards[index]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_run_s_label_is_the_strictest_of_its_calls(labels in prop::collection::vec(0usize..6, 1..20)) {
            let (runs, tenant) = (Runs::new(100), TenantId::new("acme").unwrap());
            let mut strictest = SourceTrust::TrustedInternalSigned;
            for (second, index) in labels.iter().enumerate() {
                let now = Timestamp::from_micros(second as i64 * 1_000_000);
                strictest = strictest.combine(SourceTrust::ALL[*index]);
                prop_assert_eq!(runs.tighten(&tenant, "r", SourceTrust::ALL[*index], 60, now), strictest);
            }
        }
    }

    #[test]
    fn a_run_ends_after_idle_time_and_not_before() {
        let (runs, tenant) = (Runs::new(100), TenantId::new("acme").unwrap());
        let at = |s: i64| Timestamp::from_micros(s * 1_000_000);
        runs.tighten(&tenant, "r", SourceTrust::UntrustedExternal, 10, at(0));
        runs.tighten(&tenant, "r", SourceTrust::TrustedInternalSigned, 10, at(9));
        assert_eq!(runs.label(&tenant, "r", at(18)), Some(SourceTrust::UntrustedExternal));
        assert_eq!(runs.label(&tenant, "r", at(19)), None);
    }

    #[test]
    fn a_full_memory_never_forgets_a_tainted_run_and_trusts_no_new_one() {
        let (runs, tenant) = (Runs::new(1), TenantId::new("acme").unwrap());
        let now = Timestamp::from_micros(0);
        for i in 0..200 {
            runs.tighten(&tenant, &format!("tainted-{i}"), SourceTrust::MaliciousSuspected, 60, now);
        }
        let malicious = Some(SourceTrust::MaliciousSuspected);
        let held = (0..200).filter(|i| runs.label(&tenant, &format!("tainted-{i}"), now) == malicious).count();
        assert_eq!(held, SHARDS);
        assert_eq!(runs.tighten(&tenant, "new", SourceTrust::TrustedInternalSigned, 60, now), SourceTrust::Unknown);
        assert_eq!(runs.label(&tenant, "new", now), Some(SourceTrust::Unknown));
    }
}
