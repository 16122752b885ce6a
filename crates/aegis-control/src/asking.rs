//! What edges are to be asked for and were not told yet, tenant by tenant in turn.
//! Promises that no tenant's requests take the place, or the turn, of another's; whoever misses something asks again.

use aegis_bus::Turns;
use aegis_model::Missing;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Requests that wait at most; past it the tenant that has the most gives up its newest for one that has fewer.
const MOST: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Asking {
    /// By tenant.
    turns: Mutex<Turns<String, Missing>>,
    rung: Notify,
}

impl Asking {
    /// Takes a request; forgotten if its tenant has its share already.
    pub(crate) fn put(&self, missing: Missing) {
        if put(&mut self.turns.lock(), missing) {
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

fn put(turns: &mut Turns<String, Missing>, missing: Missing) -> bool {
    // The tenant stands first in a lane's name, and only what proved itself has made a lane known.
    let tenant = missing.lane.split('.').next().unwrap_or_default().to_owned();
    if turns.of(&tenant).is_some_and(|own| own.contains(&missing)) || (turns.left() >= MOST && !turns.make_place(&tenant)) {
        return false;
    }
    turns.put(tenant, missing);
    true
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
        let of = |turns: &Turns<String, Missing>, tenant: &str| {
            turns.of(&tenant.to_owned()).map_or(0, std::collections::VecDeque::len)
        };
        let fill = |turns: &mut Turns<String, Missing>, tenant: &str| {
            (0..2 * MOST as i64).filter(|n| put(turns, missing(tenant, *n))).count()
        };
        assert_eq!(fill(&mut turns, "a"), MOST);
        assert_eq!(fill(&mut turns, "b"), MOST / 2, "half of the places are given up for it");
        assert_eq!((turns.left(), of(&turns, "a")), (MOST, MOST / 2));
        assert!(put(&mut turns, missing("z", 7)) && !put(&mut turns, missing("z", 7)), "once is enough");
        let first: Vec<String> = turns.by_ref().take(6).map(|missing| missing.lane).collect();
        assert_eq!(first, ["a.edge.1", "b.edge.1", "z.edge.1", "a.edge.1", "b.edge.1", "a.edge.1"]);
        assert_eq!(turns.next(), Some(missing("b", 2)), "in the order in which they came");
        let left = turns.left();
        assert_eq!((left, turns.by_ref().count()), (MOST - 7, MOST - 7));
        assert_eq!(turns.left(), 0);
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
