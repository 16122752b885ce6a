//! What an edge remembers against replays: request ids with the answer given, and nonces, each bound to the request's content. Each tenant has
//! its share of that memory, and within it each agent: nobody makes an edge forget what others named.

use aegis_model::{Decision, Timestamp};
use parking_lot::Mutex;

use crate::bounded::{ExpiringMap, Named};
use crate::digest::hash_bytes;

/// Whether a request id or nonce was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Never, or with this very content.
    Fits,
    /// With other content.
    Other,
}

/// The hash of a request's content.
type Content = [u8; 32];

#[derive(Debug)]
struct Answered {
    content: Content,
    strictest: Option<Decision>,
}

/// Request ids and nonces of one edge.
#[derive(Debug)]
pub(crate) struct ReplayMemory {
    requests: Mutex<ExpiringMap<Answered>>,
    nonces: Mutex<ExpiringMap<Content>>,
}

impl ReplayMemory {
    pub(crate) fn new(capacity: usize, ttl_s: i64) -> Self {
        Self { requests: Mutex::new(ExpiringMap::new(capacity, ttl_s)), nonces: Mutex::new(ExpiringMap::new(capacity, ttl_s)) }
    }

    /// Binds a request id to `content`, a hash in hex, or says that it is bound to other content.
    pub(crate) fn bind_request(&self, request: &Named<'_>, content: &str, now: Timestamp) -> Seen {
        let content = hash_bytes(content);
        let mut requests = self.requests.lock();
        match requests.get_mut(&request.key, now) {
            Some(answered) if answered.content == content => Seen::Fits,
            Some(_) => Seen::Other,
            None => {
                requests.insert(request, Answered { content, strictest: None }, now);
                Seen::Fits
            }
        }
    }

    /// Notes an answer under a request id and returns the strictest of all answers given to it.
    pub(crate) fn tighten_answer(&self, request: &Named<'_>, decision: Decision, now: Timestamp) -> Decision {
        let mut requests = self.requests.lock();
        let Some(answered) = requests.get_mut(&request.key, now) else { return decision };
        let strictest = answered.strictest.map_or(decision, |earlier| earlier.tighten(decision));
        answered.strictest = Some(strictest);
        strictest
    }

    /// Binds a nonce to `content`, a hash in hex, or says that it is bound to other content.
    pub(crate) fn bind_nonce(&self, nonce: &Named<'_>, content: &str, now: Timestamp) -> Seen {
        let content = hash_bytes(content);
        let mut nonces = self.nonces.lock();
        match nonces.get_mut(&nonce.key, now) {
            Some(bound) if *bound == content => Seen::Fits,
            Some(_) => Seen::Other,
            None => {
                nonces.insert(nonce, content, now);
                Seen::Fits
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::TenantId;

    #[test]
    fn the_same_request_gets_the_stricter_of_its_answers() {
        let memory = ReplayMemory::new(10, 60);
        let (now, tenant) = (Timestamp::from_micros(0), TenantId::new("acme").unwrap());
        let request = Named::new(&tenant, "a", "r1");
        assert_eq!(memory.bind_request(&request, "x", now), Seen::Fits);
        assert_eq!(memory.tighten_answer(&request, Decision::Deny, now), Decision::Deny);
        assert_eq!(memory.bind_request(&request, "x", now), Seen::Fits);
        assert_eq!(memory.tighten_answer(&request, Decision::Allow, now), Decision::Deny);
        assert_eq!(memory.bind_request(&request, "y", now), Seen::Other);
        assert_eq!(memory.bind_request(&Named::new(&tenant, "b", "r1"), "y", now), Seen::Fits);
    }

    #[test]
    fn a_noisy_agent_makes_an_edge_forget_no_one_else_s_request_or_nonce() {
        let memory = ReplayMemory::new(16, 60);
        let (acme, other) = (TenantId::new("acme").unwrap(), TenantId::new("other").unwrap());
        let now = Timestamp::from_micros(0);
        let quiet = [Named::new(&acme, "quiet", "n"), Named::new(&other, "a", "n")];
        for named in &quiet {
            assert_eq!(memory.bind_request(named, "x", now), Seen::Fits);
            assert_eq!(memory.bind_nonce(named, "x", now), Seen::Fits);
        }
        for n in 0..100 {
            let name = n.to_string();
            memory.bind_request(&Named::new(&acme, "noisy", &name), "x", now);
            memory.bind_nonce(&Named::new(&acme, "noisy", &name), "x", now);
        }
        for named in &quiet {
            assert_eq!(memory.bind_request(named, "y", now), Seen::Other);
            assert_eq!(memory.bind_nonce(named, "y", now), Seen::Other);
        }
    }
}
