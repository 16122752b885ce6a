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
    agents: Mutex<Agents>,
    capacity: usize,
}

/// Those of agents.
#[derive(Debug, Default)]
struct Agents {
    of: HashMap<TenantId, HashMap<String, Bucket>>,
    held: usize,
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
        let agent_may = self.agents.lock().take(tenant, agent_id, agent_rate, self.capacity, now);
        agent_may && take(&mut self.tenants.lock(), tenant, tenant_rate, self.capacity, now)
    }
}

impl Bucket {
    fn full(rate_per_s: f64, now: Timestamp) -> Self {
        Self { tokens: rate_per_s * BURST_SECONDS, refilled: now }
    }

    /// A bucket that has had time to fill up again says nothing; dropping it changes no answer.
    fn says_something(&self, now: Timestamp) -> bool {
        now.as_micros() - self.refilled.as_micros() < (BURST_SECONDS * 1e6) as i64
    }
}

impl Agents {
    fn take(&mut self, tenant: &TenantId, agent_id: &str, rate_per_s: f64, capacity: usize, now: Timestamp) -> bool {
        if let Some(bucket) = self.of.get_mut(tenant).and_then(|agents| agents.get_mut(agent_id)) {
            return bucket.take(rate_per_s, now);
        }
        if self.held >= capacity {
            self.of.values_mut().for_each(|agents| agents.retain(|_, bucket| bucket.says_something(now)));
            self.of.retain(|_, agents| !agents.is_empty());
            self.held = self.of.values().map(HashMap::len).sum();
            if self.held >= capacity {
                return false;
            }
        }
        let mut bucket = Bucket::full(rate_per_s, now);
        let admitted = bucket.take(rate_per_s, now);
        self.of.entry(tenant.clone()).or_default().insert(agent_id.to_owned(), bucket);
        self.held += 1;
        admitted
    }
}

fn take(tenants: &mut HashMap<TenantId, Bucket>, tenant: &TenantId, rate_per_s: f64, capacity: usize, now: Timestamp) -> bool {
    if let Some(bucket) = tenants.get_mut(tenant) {
        return bucket.take(rate_per_s, now);
    }
    if tenants.len() >= capacity {
        tenants.retain(|_, bucket| bucket.says_something(now));
        if tenants.len() >= capacity {
            return false;
        }
    }
    let mut bucket = Bucket::full(rate_per_s, now);
    let admitted = bucket.take(rate_per_s, now);
    tenants.insert(tenant.clone(), bucket);
    admitted
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
    fn the_agents_of_a_tenant_share_its_limit_and_take_nothing_from_another() {
        let limits = RateLimits::new(100);
        let (acme, other) = (TenantId::new("acme").unwrap(), TenantId::new("other").unwrap());
        let settings = TenantSettings { agent_rate_per_s: 10, tenant_rate_per_s: 2, ..TenantSettings::default() };
        let now = Timestamp::from_micros(0);
        let admitted = |tenant: &TenantId, agent: &str, now: Timestamp| {
            (0..10).filter(|_| limits.admit(tenant, agent, &settings, now)).count()
        };
        assert_eq!(admitted(&acme, "a", now), 4, "two seconds' worth of the tenant's, where the agent's own would be twenty");
        assert_eq!(admitted(&acme, "b", now), 0, "it is used up for each agent of the tenant");
        assert_eq!(admitted(&other, "a", now), 4, "another tenant has its own");
        assert_eq!(admitted(&acme, "b", now.plus_seconds(1)), 2, "what a second brings");
    }

    #[test]
    fn a_full_memory_takes_in_nobody_until_a_bucket_says_nothing_any_more() {
        let limits = RateLimits::new(3);
        let (acme, other) = (TenantId::new("acme").unwrap(), TenantId::new("other").unwrap());
        let settings = TenantSettings { agent_rate_per_s: 1, tenant_rate_per_s: 10, ..TenantSettings::default() };
        let now = Timestamp::from_micros(0);
        for (tenant, agent) in [(&acme, "a"), (&acme, "b"), (&other, "a")] {
            assert!(limits.admit(tenant, agent, &settings, now), "{tenant} {agent}");
        }
        assert!(!limits.admit(&other, "b", &settings, now), "it would be the fourth");
        assert!(limits.admit(&acme, "a", &settings, now), "who is held goes on");
        assert!(!limits.admit(&acme, "a", &settings, now), "to its own limit");
        let later = now.plus_seconds(2);
        assert!(limits.admit(&other, "b", &settings, later));
        let agents = limits.agents.lock();
        assert_eq!((agents.held, agents.of.len()), (1, 1));
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
