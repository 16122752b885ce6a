//! How much may be under way at once: so many events and bytes, and never so many publishes that one stands long behind the others: more of them
//! than the bus takes in that time would only wait longer, until nobody waits for their acknowledgements any more.

use std::time::Duration;

/// Publishes under way at most.
const MOST_PUBLISHES: usize = 64;

/// What is under way, or is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weight {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

impl Weight {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self { events: self.events + other.events, bytes: self.bytes + other.bytes }
    }
}

#[derive(Debug)]
pub(crate) struct Window {
    most: Weight,
    /// A publish that is acknowledged this late stood behind others.
    late: Duration,
    /// Publishes that may be under way now; 0 behind a refusal, until all that were are acknowledged.
    open: usize,
}

impl Window {
    /// Begins with one publish: nothing is known of the bus yet.
    pub(crate) const fn new(most: Weight, late: Duration) -> Self {
        Self { most, late, open: 1 }
    }

    /// Whether `next` may begin beside what is under way. Alone, any may: how large one is, its batch bounds.
    pub(crate) fn has_room(&self, publishes: usize, under_way: Weight, next: Weight) -> bool {
        let sum = under_way.plus(next);
        publishes == 0 || (publishes < self.open && sum.events <= self.most.events && sum.bytes <= self.most.bytes)
    }

    /// One of so many publishes under way was acknowledged. Opens further only where what is open was used: else nothing is known of more.
    pub(crate) fn acknowledged(&mut self, publishes: usize, took: Duration) {
        if self.open == 0 {
            self.open = usize::from(publishes == 1);
        } else if took >= self.late {
            self.open = self.open.min(publishes).saturating_sub(1).max(1);
        } else if publishes >= self.open {
            self.open = (self.open + 1).min(MOST_PUBLISHES);
        }
    }

    /// One was refused: nothing may begin beside those that are under way, each of which may be refused too.
    pub(crate) fn refused(&mut self) {
        self.open = 0;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST: Weight = Weight { events: 40, bytes: 400 };
    const AT_ONCE: Duration = Duration::from_millis(5);
    const LATE: Duration = Duration::from_secs(1);

    /// Begins publishes of `each` until there is no room; how many those are.
    fn fill(window: &Window, each: Weight) -> usize {
        let (mut publishes, mut under_way) = (0, Weight::default());
        while window.has_room(publishes, under_way, each) {
            publishes += 1;
            under_way = under_way.plus(each);
        }
        publishes
    }

    #[test]
    fn it_opens_by_acknowledgements_up_to_its_bounds_and_closes_at_a_refusal() {
        let mut window = Window::new(MOST, LATE);
        let each = Weight { events: 10, bytes: 1 };
        for open in [1, 2, 3, 4, 4, 4] {
            assert_eq!(fill(&window, each), open);
            window.acknowledged(open, AT_ONCE);
        }
        assert_eq!(fill(&window, Weight { events: 1, bytes: 200 }), 2, "bytes are bounded too");
        assert_eq!(fill(&window, Weight { events: 1, bytes: 1000 }), 1, "what is larger than the window goes alone");
        window.refused();
        for publishes in [3, 2] {
            window.acknowledged(publishes, AT_ONCE);
            assert!(!window.has_room(publishes - 1, Weight::default(), each), "another one may have been refused too");
        }
        window.acknowledged(1, AT_ONCE);
        assert_eq!(fill(&window, each), 1);
        window.acknowledged(1, AT_ONCE);
        assert_eq!(fill(&window, each), 2, "it opens again");
    }

    #[test]
    fn one_that_is_late_closes_it_and_what_was_not_used_opens_nothing() {
        let mut window = Window::new(MOST, LATE);
        let each = Weight { events: 1, bytes: 1 };
        for _ in 0..10 {
            window.acknowledged(1, AT_ONCE);
        }
        assert_eq!(fill(&window, each), 2, "more than one was never tried");
        for publishes in 2..8 {
            window.acknowledged(publishes, AT_ONCE);
        }
        assert_eq!(fill(&window, each), 8);
        window.acknowledged(5, LATE);
        assert_eq!(fill(&window, each), 4, "five at once were too many");
        for _ in 0..9 {
            window.acknowledged(1, LATE);
        }
        assert_eq!(fill(&window, each), 1, "one always may");
    }

    proptest! {
        #[test]
        fn whatever_happens_its_bounds_hold(happens in prop::collection::vec((0..3u8, 1..80usize), 0..200), events in 1..10usize, bytes in 1..100usize) {
            let mut window = Window::new(MOST, LATE);
            let each = Weight { events, bytes };
            for (what, publishes) in happens {
                match what {
                    0 => window.acknowledged(publishes, AT_ONCE),
                    1 => window.acknowledged(publishes, LATE),
                    _ => window.refused(),
                }
                let most = (MOST.events / events).min(MOST.bytes / bytes).max(1);
                prop_assert!((1..=most.min(MOST_PUBLISHES)).contains(&fill(&window, each)));
            }
        }
    }
}
