//! What an edge remembers against replays: request ids with the answer given, and nonces, each bound to the request's content.

use aegis_model::{Decision, TenantId, Timestamp};
use parking_lot::Mutex;

use crate::bounded::ExpiringMap;

/// (tenant, agent id, request id or nonce hash)
type Key = (TenantId, String, String);

/// Whether a request id or nonce was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Never, or with this very content.
    Fits,
    /// With other content.
    Other,
}

#[derive(Debug)]
struct Answered {
    content: String,
    strictest: Option<Decision>,
}

/// Request ids and nonces of one edge.
#[derive(Debug)]
pub(crate) struct ReplayMemory {
    requests: Mutex<ExpiringMap<Key, Answered>>,
    nonces: Mutex<ExpiringMap<Key, String>>,
}

impl ReplayMemory {
    pub(crate) fn new(capacity: usize, ttl_s: i64) -> Self {
        Self { requests: Mutex::new(ExpiringMap::new(capacity, ttl_s)), nonces: Mutex::new(ExpiringMap::new(capacity, ttl_s)) }
    }

    /// Binds a request id to `content`, or says that it is bound to other content.
    pub(crate) fn bind_request(&self, key: &Key, content: &str, now: Timestamp) -> Seen {
        let mut requests = self.requests.lock();
        match requests.get_mut(key, now) {
            Some(answered) if answered.content == content => Seen::Fits,
            Some(_) => Seen::Other,
            None => {
                requests.insert(key.clone(), Answered { content: content.to_owned(), strictest: None }, now);
                Seen::Fits
            }
        }
    }

    /// Notes an answer under a request id and returns the strictest of all answers given to it.
    pub(crate) fn tighten_answer(&self, key: &Key, decision: Decision, now: Timestamp) -> Decision {
        let mut requests = self.requests.lock();
        let Some(answered) = requests.get_mut(key, now) else { return decision };
        let strictest = answered.strictest.map_or(decision, |earlier| earlier.tighten(decision));
        answered.strictest = Some(strictest);
        strictest
    }

    /// Binds a nonce to `content`, or says that it is bound to other content.
    pub(crate) fn bind_nonce(&self, key: &Key, content: &str, now: Timestamp) -> Seen {
        let mut nonces = self.nonces.lock();
        match nonces.get_mut(key, now) {
            Some(bound) if bound == content => Seen::Fits,
            Some(_) => Seen::Other,
            None => {
                nonces.insert(key.clone(), content.to_owned(), now);
                Seen::Fits
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_same_request_gets_the_stricter_of_its_answers() {
        let memory = ReplayMemory::new(10, 60);
        let now = Timestamp::from_micros(0);
        let key = (TenantId::new("acme").unwrap(), "a".to_owned(), "r1".to_owned());
        assert_eq!(memory.bind_request(&key, "x", now), Seen::Fits);
        assert_eq!(memory.tighten_answer(&key, Decision::Deny, now), Decision::Deny);
        assert_eq!(memory.bind_request(&key, "x", now), Seen::Fits);
        assert_eq!(memory.tighten_answer(&key, Decision::Allow, now), Decision::Deny);
        assert_eq!(memory.bind_request(&key, "y", now), Seen::Other);
        let other_agent = (key.0.clone(), "b".to_owned(), "r1".to_owned());
        assert_eq!(memory.bind_request(&other_agent, "y", now), Seen::Fits);
    }
}
