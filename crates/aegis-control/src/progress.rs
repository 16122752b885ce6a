//! As of when a reader of a stream has everything that had been published. While more keeps coming it never has all there is, and yet it is not far
//! behind: marks that were put at the stream's end, and that it has passed since, say how far.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How often a mark is put at most.
const EVERY: Duration = Duration::from_secs(1);
/// Marks ahead of the reader; past it no more are put until it has passed some.
const MOST_AHEAD: usize = 600;

/// One reader's marks.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// When a mark was put, and the newest message then; in that order.
    ahead: VecDeque<(Instant, u64)>,
    marked: Option<Instant>,
}

impl Progress {
    /// Whether it is time for a mark.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.ahead.len() < MOST_AHEAD && self.marked.is_none_or(|at| now.duration_since(at) >= EVERY)
    }

    /// Puts a mark: `newest` was the stream's last message at `now`.
    pub(crate) fn mark(&mut self, newest: u64, now: Instant) {
        // A stream that is shorter than it was is another one.
        if self.ahead.back().is_some_and(|(_, seq)| *seq > newest) {
            self.ahead.clear();
        }
        self.ahead.push_back((now, newest));
        self.marked = Some(now);
    }

    /// As of when the reader has everything, having read up to `seq`; None where it has passed no mark since this was asked last.
    pub(crate) fn passed(&mut self, seq: u64) -> Option<Instant> {
        let mut as_of = None;
        while let Some((at, _)) = self.ahead.front().filter(|(_, marked)| *marked <= seq) {
            as_of = Some(*at);
            self.ahead.pop_front();
        }
        as_of
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_never_reaches_the_end_is_up_to_date_as_of_the_last_mark_it_passed() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        assert!(progress.is_due(start));
        assert_eq!(progress.passed(0), None);
        progress.mark(10, start);
        assert!(!progress.is_due(start + EVERY / 2) && progress.is_due(start + EVERY));
        progress.mark(20, start + EVERY);
        progress.mark(30, start + EVERY * 2);
        assert_eq!(progress.passed(9), None);
        assert_eq!(progress.passed(25), Some(start + EVERY));
        assert_eq!(progress.passed(29), None, "that was said");
        assert_eq!(progress.passed(30), Some(start + EVERY * 2));
    }

    #[test]
    fn marks_are_bounded_and_those_of_a_stream_that_was_made_anew_say_nothing() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        let mut now = start;
        for seq in 0..MOST_AHEAD as u64 {
            assert!(progress.is_due(now));
            progress.mark(1_000 + seq, now);
            now += EVERY;
        }
        assert!(!progress.is_due(now));
        progress.mark(5, now);
        assert_eq!(progress.passed(4), None);
        assert_eq!(progress.passed(5), Some(now));
    }
}
