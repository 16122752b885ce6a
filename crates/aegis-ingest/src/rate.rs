//! A token bucket per tenant. Only deliveries with a valid signature draw from it, so nobody else can use a tenant's up.

use std::collections::HashMap;

use aegis_model::{TenantId, Timestamp};
use parking_lot::Mutex;

/// Tenants whose bucket is remembered; beyond it, full buckets are forgotten, which changes nothing for them.
const MAX_TENANTS: usize = 10_000;

const MICROS_PER_S: i64 = 1_000_000;

#[derive(Debug)]
pub(crate) struct Rates {
    per_s: i64,
    buckets: Mutex<HashMap<TenantId, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    /// Millionths of a delivery.
    tokens: i64,
    at: Timestamp,
}

impl Rates {
    pub(crate) fn new(per_s: u32) -> Self {
        Self { per_s: i64::from(per_s), buckets: Mutex::new(HashMap::new()) }
    }

    /// Takes one delivery, or says that there is none left.
    pub(crate) fn take(&self, tenant: &TenantId, now: Timestamp) -> bool {
        let full = 2 * self.per_s * MICROS_PER_S;
        let mut buckets = self.buckets.lock();
        if buckets.len() >= MAX_TENANTS && !buckets.contains_key(tenant) {
            buckets.retain(|_, bucket| bucket.level(self.per_s, full, now) < full);
        }
        let bucket = buckets.entry(tenant.clone()).or_insert(Bucket { tokens: full, at: now });
        bucket.tokens = bucket.level(self.per_s, full, now);
        bucket.at = now;
        if bucket.tokens < MICROS_PER_S {
            return false;
        }
        bucket.tokens -= MICROS_PER_S;
        true
    }
}

impl Bucket {
    fn level(&self, per_s: i64, full: i64, now: Timestamp) -> i64 {
        // A clock that was set back earns nothing.
        let elapsed = now.as_micros().saturating_sub(self.at.as_micros()).max(0);
        self.tokens.saturating_add(elapsed.saturating_mul(per_s)).min(full)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_gets_its_burst_then_its_rate_and_takes_nothing_from_others() {
        let rates = Rates::new(2);
        let (a, b) = (TenantId::new("a").unwrap(), TenantId::new("b").unwrap());
        let at = |micros: i64| Timestamp::from_micros(1_000_000_000 + micros);
        assert!((0..4).all(|_| rates.take(&a, at(0))));
        assert!(!rates.take(&a, at(0)));
        assert!(rates.take(&b, at(0)));
        assert!(!rates.take(&a, at(499_999)));
        assert!(rates.take(&a, at(500_000)));
        assert!(!rates.take(&a, at(-5_000_000)), "setting the clock back earns nothing");
    }
}
