//! What an agent usually does in an hour: the hours in which it was used, with how often, and the median of those of a week.
//! Promises a function of the set of uses, whatever their order, and to say from which hour on it is another than before.

use serde::{Deserialize, Serialize};

/// An hour, in microseconds.
const HOUR: i64 = 3_600_000_000;
/// So many hours before an event's own are looked at: a week.
const LOOK_BACK: i64 = 7 * 24;
/// Hours that are kept of one agent at most. Twice a week and more is there only where time is not settled for a week.
const MOST_HOURS: usize = 512;
/// What an hour takes, in bytes.
pub(crate) const BYTES_OF_HOUR: usize = 16;

/// The usual of an agent, as of an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Baseline {
    /// Uses in the median of the hours, PERCENTILE_DISC(0.5).
    pub(crate) uses: i64,
    /// In how many hours of the week before it was used.
    pub(crate) hours: i64,
}

/// The hours in which an agent was used, with how often; ascending.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Hours {
    counts: Vec<(i64, u32)>,
    /// What is said of the hour that was asked for last: mostly that of now.
    #[serde(skip)]
    known: Option<(i64, Option<Baseline>)>,
}

/// The hour of a time, and when an hour begins.
pub(crate) fn hour_of(micros: i64) -> i64 {
    micros.div_euclid(HOUR)
}

pub(crate) fn begin_of(hour: i64) -> i64 {
    hour.saturating_mul(HOUR)
}

impl Hours {
    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }

    /// Takes in a use. Answers from which hour on something else is said, of those up to `newest`.
    pub(crate) fn add(&mut self, hour: i64, newest: i64) -> Option<i64> {
        // Mostly it is the newest hour, and there is none of which it says anything.
        let later = hour + 1..=newest.min(hour + LOOK_BACK);
        let before: Vec<Option<Baseline>> = later.clone().map(|asked| self.told(asked)).collect();
        match self.counts.binary_search_by_key(&hour, |(known, _)| *known) {
            Ok(place) => self.counts[place].1 = self.counts[place].1.saturating_add(1),
            Err(place) => self.counts.insert(place, (hour, 1)),
        }
        if self.counts.len() > MOST_HOURS {
            self.counts.remove(0);
        }
        let changed = later.zip(before).find(|(asked, before)| self.told(*asked) != *before).map(|(asked, _)| asked);
        // A use says something of later hours alone.
        let (now, known) = (hour.max(newest), self.known.filter(|(known, _)| *known <= hour));
        self.known = known.filter(|(known, _)| *known == now).or_else(|| Some((now, self.told(now))));
        changed
    }

    /// The usual, as of an hour. None where the agent was not used in the week before it.
    pub(crate) fn baseline(&self, hour: i64) -> Option<Baseline> {
        match self.known {
            Some((known, baseline)) if known == hour => baseline,
            _ => self.told(hour),
        }
    }

    fn told(&self, hour: i64) -> Option<Baseline> {
        let from = self.counts.partition_point(|(known, _)| *known < hour - LOOK_BACK);
        let to = self.counts.partition_point(|(known, _)| *known < hour);
        let mut counts: Vec<u32> = self.counts[from..to].iter().map(|(_, count)| *count).collect();
        let middle = counts.len().checked_sub(1)? / 2;
        let (_, median, _) = counts.select_nth_unstable(middle);
        Some(Baseline { uses: i64::from(*median), hours: i64::try_from(to - from).unwrap_or(i64::MAX) })
    }

    /// Forgets what no hour from `hour` on asks for.
    pub(crate) fn forget(&mut self, hour: i64) {
        self.counts.retain(|(known, _)| *known >= hour - LOOK_BACK);
        self.known = None;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// The same, told from all uses.
    fn told_from(uses: &[i64], hour: i64) -> Option<Baseline> {
        let mut counts: BTreeMap<i64, i64> = BTreeMap::new();
        for used in uses.iter().filter(|used| (hour - 168..hour).contains(*used)) {
            *counts.entry(*used).or_default() += 1;
        }
        let hours = counts.len();
        let mut counts: Vec<i64> = counts.into_values().collect();
        counts.sort_unstable();
        // The least that half of the hours do not exceed.
        let uses = counts.iter().copied().find(|count| counts.iter().filter(|other| *other <= count).count() * 2 >= hours)?;
        Some(Baseline { uses, hours: i64::try_from(hours).unwrap() })
    }

    proptest! {
        #[test]
        fn what_is_said_is_that_of_all_uses_in_whatever_order_and_each_change_is_told(
            uses in prop::collection::vec(prop_oneof![3 => 190..200i64, 1 => 0..200i64], 1..60),
        ) {
            let mut hours = Hours::default();
            let mut newest = i64::MIN;
            for (place, used) in uses.iter().copied().enumerate() {
                let before: Vec<Option<Baseline>> = (0..=200).map(|hour| hours.baseline(hour)).collect();
                let changed = hours.add(used, newest);
                for (hour, before) in (0..=200).zip(before) {
                    let after = hours.baseline(hour);
                    prop_assert_eq!(after, told_from(&uses[..=place], hour), "at {} of {:?}", hour, &uses[..=place]);
                    let is_told = changed.is_some_and(|from| from <= hour);
                    prop_assert!(hour > newest || before == after || is_told, "{} changed untold by {}", hour, used);
                }
                newest = newest.max(used);
            }
            let asked: Vec<Option<Baseline>> = (195..=200).map(|hour| hours.baseline(hour)).collect();
            hours.forget(195);
            prop_assert_eq!((195..=200).map(|hour| hours.baseline(hour)).collect::<Vec<_>>(), asked);
            prop_assert!(hours.counts.iter().all(|(hour, _)| *hour >= 195 - 168));
        }
    }

    #[test]
    fn one_busy_hour_moves_no_median() {
        let mut hours = Hours::default();
        for hour in 0..5 {
            hours.add(hour, hour);
        }
        for _ in 0..1_000 {
            hours.add(5, 5);
        }
        assert_eq!(hours.baseline(6), Some(Baseline { uses: 1, hours: 6 }));
        assert_eq!(hours.baseline(5), Some(Baseline { uses: 1, hours: 5 }), "its own hour is not in it");
        assert_eq!(hours.baseline(0), None);
        assert_eq!(hours.baseline(5 + 168), Some(Baseline { uses: 1_000, hours: 1 }));
        assert_eq!(hours.baseline(5 + 169), None);
    }

    #[test]
    fn an_agent_has_so_many_hours_at_most() {
        let mut hours = Hours::default();
        for hour in 0..2_000 {
            hours.add(hour, hour);
        }
        assert_eq!(hours.len(), MOST_HOURS);
        assert_eq!(hours.baseline(2_000), Some(Baseline { uses: 1, hours: 168 }));
        assert_eq!(hour_of(-1), -1);
        assert_eq!((hour_of(HOUR - 1), hour_of(HOUR), begin_of(2)), (0, 1, 2 * HOUR));
    }
}
