//! What edges are to be asked for and were not told yet, tenant by tenant in turn.
//! Promises that no tenant's requests take the place, or the turn, of another's; whoever misses something asks again.

use std::collections::{BTreeMap, VecDeque};

use aegis_model::Missing;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Requests that wait at most; past it the tenant that has the most gives up its newest for one that has fewer.
const MOST: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Asking {
    turns: Mutex<Turns>,
    rung: Notify,
}

#[derive(Debug, Default)]
struct Turns {
    /// By tenant; none is empty.
    waiting: BTreeMap<String, VecDeque<Missing>>,
    count: usize,
    /// Whose turn it was last.
    last: String,
}

impl Asking {
    /// Takes a request; forgotten if its tenant has its share already.
    pub(crate) fn put(&self, missing: Missing) {
        if self.turns.lock().put(missing) {
            self.rung.notify_one();
        }
    }

    /// The next one, as soon as there is one. For one waiter.
    pub(crate) async fn next(&self) -> Missing {
        loop {
            let next = self.turns.lock().next();
            if let Some(missing) = next {
                return missing;
            }
            self.rung.notified().await;
        }
    }
}

impl Turns {
    fn put(&mut self, missing: Missing) -> bool {
        // The tenant stands first in a lane's name, and only what proved itself has made a lane known.
        let tenant = missing.lane.split('.').next().unwrap_or_default().to_owned();
        let own = self.waiting.get(&tenant);
        if own.is_some_and(|own| own.contains(&missing)) {
            return false;
        }
        let own = own.map_or(0, VecDeque::len);
        if self.count >= MOST {
            let Some(fullest) = self.waiting.values_mut().max_by_key(|waiting| waiting.len()) else { return false };
            if fullest.len() <= own + 1 {
                return false;
            }
            fullest.pop_back();
            self.count -= 1;
        }
        self.waiting.entry(tenant).or_default().push_back(missing);
        self.count += 1;
        true
    }

    fn next(&mut self) -> Option<Missing> {
        let behind = self.waiting.keys().find(|tenant| **tenant > self.last);
        let tenant = behind.or_else(|| self.waiting.keys().next())?.clone();
        let waiting = self.waiting.get_mut(&tenant)?;
        let missing = waiting.pop_front()?;
        self.count -= 1;
        if waiting.is_empty() {
            self.waiting.remove(&tenant);
        }
        self.last = tenant;
        Some(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(tenant: &str, from_seq: i64) -> Missing {
        Missing { edge_id: "edge".to_owned(), lane: format!("{tenant}.edge.1"), from_seq, to_seq: from_seq }
    }

    #[test]
    fn no_tenant_s_requests_take_the_place_or_the_turn_of_another() {
        let mut turns = Turns::default();
        let fill = |turns: &mut Turns, tenant: &str| (0..2 * MOST as i64).filter(|n| turns.put(missing(tenant, *n))).count();
        assert_eq!(fill(&mut turns, "a"), MOST);
        assert_eq!(fill(&mut turns, "b"), MOST / 2, "half of the places are given up for it");
        assert_eq!((turns.count, turns.waiting["a"].len()), (MOST, MOST / 2));
        assert!(turns.put(missing("z", 7)) && !turns.put(missing("z", 7)), "once is enough");
        let first: Vec<String> = (0..6).filter_map(|_| turns.next()).map(|missing| missing.lane).collect();
        assert_eq!(first, ["a.edge.1", "b.edge.1", "z.edge.1", "a.edge.1", "b.edge.1", "a.edge.1"]);
        assert_eq!(turns.next(), Some(missing("b", 2)), "in the order in which they came");
        let rest = std::iter::from_fn(|| turns.next()).count();
        assert_eq!(rest, MOST - 7);
        assert_eq!((turns.count, turns.waiting.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_request_wakes_whoever_waits_for_it() {
        let asking = std::sync::Arc::new(Asking::default());
        let waiter = tokio::spawn({
            let asking = std::sync::Arc::clone(&asking);
            async move { (asking.next().await, asking.next().await) }
        });
        tokio::task::yield_now().await;
        asking.put(missing("a", 1));
        asking.put(missing("b", 2));
        assert_eq!(waiter.await.ok(), Some((missing("a", 1), missing("b", 2))));
    }
}
