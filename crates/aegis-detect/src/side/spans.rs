//! When something was used, without a pause that is too long: since when it is, as of each time. Promises that the order in which times come makes no
//! difference.

use aegis_model::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smallvec::SmallVec;

use super::PAUSE;

/// Times of use without a pause between them, as first and last of each; ascending, in microseconds. Mostly one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spans(SmallVec<[(i64, i64); 1]>);

impl Serialize for Spans {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<'de> Deserialize<'de> for Spans {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(SmallVec::from_slice(&Vec::<(i64, i64)>::deserialize(deserializer)?)))
    }
}

impl Spans {
    /// Takes in a time of use. Answers from when on something else is said than before, if it is.
    pub(super) fn add(&mut self, at: i64) -> Option<i64> {
        // Those that are within a pause of it: two at most, with nothing but it between them.
        let from = self.0.partition_point(|(_, last)| last.saturating_add(PAUSE) < at);
        let to = self.0.partition_point(|(first, _)| first.saturating_sub(PAUSE) <= at);
        let Some((first, last)) = self.0[from..to].first().copied() else {
            self.0.insert(from, (at, at));
            return Some(at);
        };
        if first <= at && at <= last {
            return None;
        }
        let newest = self.0[from..to].last().map_or(last, |(_, last)| *last);
        self.0.drain(from + 1..to);
        self.0[from] = (first.min(at), newest.max(at));
        Some(if at < first { at } else { last.saturating_add(PAUSE).saturating_add(1) })
    }

    /// Takes in all of another's: what there was together, less what is a pause of neither.
    pub(super) fn join(&mut self, other: &Self) {
        let mut each: Vec<(i64, i64)> = self.0.iter().chain(&other.0).copied().collect();
        each.sort_unstable();
        self.0.clear();
        for (first, last) in each {
            match self.0.last_mut() {
                Some((_, newest)) if first.saturating_sub(PAUSE) <= *newest => *newest = last.max(*newest),
                _ => self.0.push((first, last)),
            }
        }
    }

    /// Since when it is used at a time, without a pause up to then.
    pub(super) fn first(&self, at: Timestamp) -> Option<Timestamp> {
        let at = at.as_micros();
        let behind = self.0.partition_point(|(first, _)| *first <= at);
        let (first, last) = self.0[behind.checked_sub(1)?];
        (at.saturating_sub(last) <= PAUSE).then(|| Timestamp::from_micros(first))
    }

    pub(super) fn forget(&mut self, before: i64) {
        self.0.retain(|(_, last)| *last >= before);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ninth of a pause.
    const STEP: i64 = PAUSE / 9;

    /// Since when something is used at a time, told from all times of use.
    fn first_of(times: &[i64], at: i64) -> Option<i64> {
        let mut before: Vec<i64> = times.iter().copied().filter(|time| *time <= at).collect();
        before.sort_unstable();
        let (mut first, mut next) = (None, at);
        while let Some(time) = before.pop().filter(|time| next - time <= PAUSE) {
            (first, next) = (Some(time), time);
        }
        first
    }

    proptest! {
        #[test]
        fn what_is_said_is_that_of_all_times_in_whatever_order_and_each_change_is_told(
            steps in prop::collection::vec((0..60i64, -1..2i64), 0..14),
        ) {
            let mut spans = Spans::default();
            let mut times: Vec<i64> = Vec::new();
            // Around each step and a pause after it, to the microsecond.
            let asked: Vec<i64> = (0..80).flat_map(|step| (-2..=2).map(move |off| step * STEP + off)).collect();
            let said = |spans: &Spans| -> Vec<Option<i64>> {
                asked.iter().map(|at| spans.first(Timestamp::from_micros(*at)).map(Timestamp::as_micros)).collect()
            };
            for (step, off) in steps {
                let (at, before) = (step * STEP + off, said(&spans));
                let changed = spans.add(at);
                times.push(at);
                let after = said(&spans);
                for ((asked, before), after) in asked.iter().zip(before).zip(&after) {
                    prop_assert_eq!(*after, first_of(&times, *asked), "at {} of {:?}", asked, times);
                    prop_assert!(before == *after || changed.is_some_and(|from| from <= *asked), "{} changed untold", asked);
                }
            }
            prop_assert!(spans.0.windows(2).all(|pair| pair[0].1 + PAUSE < pair[1].0), "{:?}", spans);
        }
    }
    proptest! {
        #[test]
        fn two_that_are_joined_are_what_all_their_times_make(
            one in prop::collection::vec(0..60i64, 0..8),
            other in prop::collection::vec((0..60i64, -1..2i64), 0..8),
        ) {
            let of = |times: &[i64]| {
                let mut spans = Spans::default();
                for at in times {
                    let _changed = spans.add(*at);
                }
                spans
            };
            let one: Vec<i64> = one.into_iter().map(|step| step * STEP).collect();
            let other: Vec<i64> = other.into_iter().map(|(step, off)| step * STEP + off).collect();
            let mut joined = of(&one);
            joined.join(&of(&other));
            prop_assert_eq!(joined, of(&[one, other].concat()));
        }
    }
}
