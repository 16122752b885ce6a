//! Rate limits: one token bucket per agent and one per tenant. Generous by default, per tenant by setting.

use std::collections::HashMap;

use aegis_model::{TenantId, TenantSettings, Timestamp};
use parking_lot::Mutex;

/// How many seconds of the average rate a bucket may hold.
const BURST_SECONDS: f64 = 2.0;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    refilled: Timestamp,
}

impl Bucket {
    /// Takes one token; false where there is none.
    fn take(&mut self, rate_per_s: f64, now: Timestamp) -> bool {
        let elapsed_s = (now.as_micros() - self.refilled.as_micros()).max(0) as f64 / 1e6;
        self.tokens = (self.tokens + elapsed_s * rate_per_s).min(rate_per_s * BURST_SECONDS);
        let was_set_back = self.refilled > now.plus_seconds(1);
        // Nobody waits until a clock that was set back has caught up. Calls overtake each other by less.
        self.refilled = if was_set_back { now } else { self.refilled.max(now) };
        let available = self.tokens >= 1.0;
        if available {
            self.tokens -= 1.0;
        }
        available
    }
}

/// The buckets of one edge.
#[derive(Debug)]
pub(crate) struct RateLimits {
    tenants: Mutex<HashMap<TenantId, Bucket>>,
    agents: Mutex<HashMap<(TenantId, String), Bucket>>,
    capacity: usize,
}

impl RateLimits {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { tenants: Mutex::default(), agents: Mutex::default(), capacity }
    }

    /// True if the agent and its tenant may make one more call at `now`.
    pub(crate) fn admit(&self, tenant: &TenantId, agent_id: &str, settings: &TenantSettings, now: Timestamp) -> bool {
        let agent_rate = f64::from(settings.agent_rate_per_s);
        let tenant_rate = f64::from(settings.tenant_rate_per_s);
        // The agent's own bucket first, so that one agent over its limit takes nothing from its tenant.
        take(&mut self.agents.lock(), (tenant.clone(), agent_id.to_owned()), agent_rate, self.capacity, now)
            && take(&mut self.tenants.lock(), tenant.clone(), tenant_rate, self.capacity, now)
    }
}

fn take<K: Eq + std::hash::Hash>(
    buckets: &mut HashMap<K, Bucket>,
    key: K,
    rate_per_s: f64,
    capacity: usize,
    now: Timestamp,
) -> bool {
    if buckets.len() >= capacity && !buckets.contains_key(&key) {
        // A bucket that has had time to fill up again says nothing; dropping it changes no answer.
        buckets.retain(|_, bucket| now.as_micros() - bucket.refilled.as_micros() < (BURST_SECONDS * 1e6) as i64);
        if buckets.len() >= capacity {
            return false;
        }
    }
    buckets.entry(key).or_insert(Bucket { tokens: rate_per_s * BURST_SECONDS, refilled: now }).take(rate_per_s, now)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_over_its_limit_does_not_starve_its_tenant() {
        let limits = RateLimits::new(100);
        let tenant = TenantId::new("acme").unwrap();
        let settings = TenantSettings { agent_rate_per_s: 1, tenant_rate_per_s: 10, ..TenantSettings::default() };
        let now = Timestamp::from_micros(0);
        let admitted = (0..50).filter(|_| limits.admit(&tenant, "greedy", &settings, now)).count();
        assert_eq!(admitted, 2);
        assert!(limits.admit(&tenant, "modest", &settings, now));
        assert!(limits.admit(&tenant, "greedy", &settings, now.plus_seconds(1)));
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_nobody_waiting_and_gives_nothing_away() {
        let limits = RateLimits::new(100);
        let tenant = TenantId::new("acme").unwrap();
        let settings = TenantSettings { agent_rate_per_s: 1, tenant_rate_per_s: 10, ..TenantSettings::default() };
        let ahead = Timestamp::from_micros(0).plus_seconds(3600);
        let admitted = |now: Timestamp| (0..10).filter(|_| limits.admit(&tenant, "a", &settings, now)).count();
        assert_eq!(admitted(ahead), 2);
        let now = Timestamp::from_micros(0);
        assert_eq!((admitted(now), admitted(now.plus_seconds(1)), admitted(now.plus_seconds(3))), (0, 1, 2));
    }
}
