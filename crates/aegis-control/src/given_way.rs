//! How many runs of one tenant gave way to others within a day, and for which agents: the bucket `trust` has them until then, and it is everybody's.
//! Promises that one agent, however many runs it opens, leaves its tenant's others room to be told of.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Of one tenant's runs, how many may give way within a day to others that are no stricter.
pub(crate) const MOST_GONE: usize = 60_000;

/// Stands for whoever it was, for what an earlier start told of: it has no share of its own.
pub(crate) const WHOEVER: &str = "";

/// What gave way, oldest first, and for whom.
#[derive(Debug, Default)]
pub(crate) struct GivenWay {
    at: VecDeque<(i64, Arc<str>)>,
    of: HashMap<Arc<str>, usize>,
}

impl GivenWay {
    /// Forgets what gave way before this time, microseconds.
    pub(crate) fn forget_before(&mut self, at: i64) {
        while self.at.front().is_some_and(|(gone_at, _)| *gone_at < at) {
            let Some((_, agent)) = self.at.pop_front() else { return };
            if let Some(count) = self.of.get_mut(&agent) {
                *count -= 1;
                if *count == 0 {
                    self.of.remove(&agent);
                }
            }
        }
    }

    /// Whether one more may give way to a run of this agent: it has had less than half of what all others left. So there is something left for
    /// each that comes after it, and no more in all than there is.
    pub(crate) fn has_room_for(&self, agent: &str) -> bool {
        if agent == WHOEVER {
            return self.at.len() < MOST_GONE;
        }
        let own = self.of.get(agent).copied().unwrap_or(0);
        let left_by_others = MOST_GONE.saturating_sub(self.at.len() - own);
        own < left_by_others.div_ceil(2)
    }

    /// Notes that a run gave way to one of this agent.
    pub(crate) fn note(&mut self, agent: &str, at: i64) {
        let known = self.of.get_key_value(agent).map(|(known, _)| Arc::clone(known));
        let named: Arc<str> = known.unwrap_or_else(|| Arc::from(agent));
        *self.of.entry(Arc::clone(&named)).or_default() += 1;
        self.at.push_back((at, named));
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.at.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes all that the agent may have; how many that were.
    fn exhaust(gone: &mut GivenWay, agent: &str, at: i64) -> usize {
        let before = gone.len();
        while gone.has_room_for(agent) {
            gone.note(agent, at);
        }
        gone.len() - before
    }

    #[test]
    fn one_agent_takes_half_of_what_others_leave_and_all_of_them_together_no_more_than_there_is() {
        let mut gone = GivenWay::default();
        assert_eq!(exhaust(&mut gone, "first", 1), MOST_GONE / 2);
        assert_eq!(exhaust(&mut gone, "second", 2), MOST_GONE / 4);
        assert_eq!((exhaust(&mut gone, "first", 3), exhaust(&mut gone, "second", 3)), (0, 0));
        for n in 0..100 {
            exhaust(&mut gone, &n.to_string(), 3);
        }
        assert_eq!(gone.len(), MOST_GONE);
        // A day later what the first took is free again, half of it for whoever comes.
        gone.forget_before(2);
        assert_eq!((gone.len(), exhaust(&mut gone, "new", 4)), (MOST_GONE / 2, MOST_GONE / 4));
        gone.forget_before(5);
        assert_eq!((gone.len(), gone.of.len()), (0, 0));
        // What the bucket has from before is counted whole.
        assert_eq!((exhaust(&mut gone, WHOEVER, 6), exhaust(&mut gone, "first", 6)), (MOST_GONE, 0));
    }
}
