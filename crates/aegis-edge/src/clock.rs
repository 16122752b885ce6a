//! The edge's time: its machine's clock, corrected by what control's signs of life say. Promises that a sign of life which comes late makes
//! the clock no worse than it was, and that a clock which is off after correction is called suspect.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use aegis_model::{Clock, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};

/// Signs of life that are looked at together: the one that was under way the shortest time counts.
const SAMPLES: usize = 5;
/// A correction that changes by less is noise of the way.
const NOISE_US: i64 = 10_000;
/// Signs of life are further apart than this, unless they were held up.
const SPACED: Duration = Duration::from_secs(1);
/// A correction by more than this is a step, and needs several signs of life that agree: control's own clock may be wrong for a moment.
const STEP_US: u64 = 2_000_000;
/// How many must agree on a step ahead. One back looks like signs of life that are late, and needs all of `SAMPLES`.
const AGREEING: usize = 3;
/// Off by more than this after correction: suspect.
const SUSPECT_US: i64 = 1_000_000;

#[derive(Debug, Default)]
struct Samples {
    offsets: VecDeque<i64>,
    /// When the last was heard.
    heard: Option<Instant>,
}

impl Samples {
    /// What to correct by, after `offset` so far.
    fn truest(&mut self, offset: i64) -> i64 {
        if let Some(stepped) = self.stepped(offset) {
            return stepped;
        }
        let near = self.offsets.iter().copied().filter(|sample| sample.abs_diff(offset) <= STEP_US);
        near.max().unwrap_or(offset)
    }

    /// The end of a step that enough of the last agree on. What was heard before it says nothing any more.
    fn stepped(&mut self, offset: i64) -> Option<i64> {
        let is_ahead = *self.offsets.back()? > offset;
        let needed = if is_ahead { AGREEING } else { SAMPLES };
        let before = self.offsets.len().checked_sub(needed)?;
        let last = self.offsets.iter().skip(before).copied();
        let (least, greatest) = (last.clone().min()?, last.max()?);
        if greatest.abs_diff(least) > SUSPECT_US.unsigned_abs() || greatest.abs_diff(offset) <= STEP_US {
            return None;
        }
        self.offsets.drain(..before);
        Some(greatest)
    }
}

/// A clock that follows control's.
#[derive(Debug)]
pub struct CorrectedClock {
    machine: Arc<dyn Clock>,
    offset_us: AtomicI64,
    is_known: AtomicBool,
    is_suspect: AtomicBool,
    samples: Mutex<Samples>,
    heard: Notify,
}

impl CorrectedClock {
    /// The machine's clock, corrected by what an earlier start knew (0 if there was none), until control is heard.
    #[must_use]
    pub fn new(machine: Arc<dyn Clock>, offset_us: i64) -> Self {
        Self {
            machine,
            offset_us: AtomicI64::new(offset_us),
            is_known: AtomicBool::new(false),
            is_suspect: AtomicBool::new(false),
            samples: Mutex::default(),
            heard: Notify::new(),
        }
    }

    /// Returns when control was heard, for the one that waits for it.
    pub async fn until_heard(&self) {
        if !self.is_known.load(Ordering::Acquire) {
            self.heard.notified().await;
        }
    }

    /// Control said just now that it was `at`. A message can only be late, so the greatest offset of the last few is the truest.
    pub(crate) fn heard(&self, at: Timestamp, heard: Instant) {
        let mut sample = at.as_micros().saturating_sub(self.machine.now().as_micros());
        let mut samples = self.samples.lock();
        // What was held up somewhere comes all at once: then only the last of it, which was held up least, says something.
        if samples.heard.is_some_and(|before| heard.saturating_duration_since(before) < SPACED)
            && let Some(burst) = samples.offsets.pop_back()
        {
            sample = sample.max(burst);
        }
        samples.heard = Some(heard);
        samples.offsets.push_back(sample);
        if samples.offsets.len() > SAMPLES {
            samples.offsets.pop_front();
        }
        let offset = self.offset_us.load(Ordering::Acquire);
        let is_first = !self.is_known.swap(true, Ordering::AcqRel);
        let truest = if is_first { sample } else { samples.truest(offset) };
        if is_first || truest.abs_diff(offset) > NOISE_US.unsigned_abs() {
            self.offset_us.store(truest, Ordering::Release);
        }
        if is_first {
            self.heard.notify_one();
        }
        let residual = sample.saturating_sub(self.offset_us.load(Ordering::Acquire));
        let suspect = residual.unsigned_abs() > SUSPECT_US.unsigned_abs();
        if self.is_suspect.swap(suspect, Ordering::AcqRel) != suspect {
            tracing::warn!(suspect, residual_us = residual, offset_us = truest, "this edge's clock against control's");
        }
    }

    /// What the machine's clock is corrected by, microseconds; None before control was heard.
    #[must_use]
    pub fn offset_us(&self) -> Option<i64> {
        self.is_known.load(Ordering::Acquire).then(|| self.offset_us.load(Ordering::Acquire))
    }
}

impl Clock for CorrectedClock {
    fn now(&self) -> Timestamp {
        self.machine.now().plus_micros(self.offset_us.load(Ordering::Acquire))
    }

    fn steady_micros(&self) -> i64 {
        self.machine.steady_micros()
    }

    fn is_suspect(&self) -> bool {
        self.is_suspect.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_model::ManualClock;

    fn clock() -> (Arc<ManualClock>, CorrectedClock) {
        let machine = Arc::new(ManualClock::new(Timestamp::from_micros(1_000_000_000)));
        (machine.clone(), CorrectedClock::new(machine, 0))
    }

    /// Control's time, `late_us` ago.
    fn control(machine: &ManualClock, ahead_us: i64, late_us: i64) -> Timestamp {
        machine.now().plus_micros(ahead_us - late_us)
    }

    #[test]
    fn a_clock_five_minutes_off_is_corrected_at_the_first_sign_of_life() {
        for ahead in [300_000_000, -300_000_000] {
            let (machine, clock) = clock();
            assert!(clock.offset_us().is_none() && clock.now() == machine.now());
            clock.heard(control(&machine, ahead, 2_000), Instant::now());
            assert_eq!(clock.now(), machine.now().plus_micros(ahead - 2_000));
            assert!(!clock.is_suspect());
        }
    }

    #[tokio::test]
    async fn a_start_goes_by_what_the_one_before_knew_until_control_is_heard() {
        let machine = Arc::new(ManualClock::new(Timestamp::from_micros(1_000_000_000)));
        let clock = CorrectedClock::new(machine.clone(), -300_000_000);
        assert_eq!((clock.now(), clock.offset_us()), (machine.now().plus_micros(-300_000_000), None));
        clock.heard(control(&machine, 5_000_000, 1_000), Instant::now());
        clock.until_heard().await;
        assert_eq!(clock.offset_us(), Some(4_999_000));
        clock.until_heard().await;
    }

    #[test]
    fn what_comes_late_makes_nothing_worse() {
        let (machine, clock) = clock();
        let begun = Instant::now();
        clock.heard(control(&machine, 0, 1_000), begun);
        let offset = clock.offset_us();
        for beat in 1..5 {
            clock.heard(control(&machine, 0, 900_000), begun + Duration::from_secs(2 * beat));
            assert_eq!(clock.offset_us(), offset);
            assert!(!clock.is_suspect());
        }
    }

    #[test]
    fn a_clock_that_jumps_is_suspect_until_it_is_corrected() {
        let (machine, clock) = clock();
        let begun = Instant::now();
        let at = |beat: u64| begun + Duration::from_secs(2 * beat);
        (0..5).for_each(|beat| clock.heard(control(&machine, 0, 1_000), at(beat)));
        // It jumps ahead, which looks like signs of life that are late.
        machine.advance_seconds(300);
        for beat in 0..5 {
            clock.heard(control(&machine, -300_000_000, 1_000), at(5 + beat));
            assert_eq!(clock.is_suspect(), beat < 4, "beat {beat}");
        }
        assert_eq!(clock.offset_us(), Some(-300_001_000));
        // It jumps back: three signs of life say so.
        machine.advance_seconds(-300);
        for beat in 0..3 {
            clock.heard(control(&machine, 0, 1_000), at(10 + beat));
            assert_eq!(clock.is_suspect(), beat < 2, "beat {beat}");
        }
        assert_eq!(clock.offset_us(), Some(-1_000));
    }

    #[test]
    fn one_sign_of_life_that_is_far_off_moves_nothing() {
        let (machine, clock) = clock();
        let begun = Instant::now();
        let at = |beat: u64| begun + Duration::from_secs(2 * beat);
        (0..5).for_each(|beat| clock.heard(control(&machine, 0, 1_000), at(beat)));
        for (beat, ahead) in [(5, 3_600_000_000), (6, 0), (7, 3_600_000_000), (8, -3_600_000_000), (9, 0)] {
            clock.heard(control(&machine, ahead, 1_000), at(beat));
            assert_eq!(clock.offset_us(), Some(-1_000), "beat {beat}");
            assert_eq!(clock.is_suspect(), ahead != 0, "beat {beat}");
        }
        // A small correction is made at once.
        clock.heard(control(&machine, 500_000, 1_000), at(10));
        assert_eq!(clock.offset_us(), Some(499_000));
    }

    #[test]
    fn signs_of_life_that_were_held_up_and_come_at_once_count_as_the_last_of_them() {
        let (machine, clock) = clock();
        let begun = Instant::now();
        (0..5).for_each(|beat| clock.heard(control(&machine, 0, 1_000), begun + Duration::from_secs(2 * beat)));
        let released = begun + Duration::from_secs(70);
        (0..30).rev().for_each(|age| clock.heard(control(&machine, 0, 1_000 + age * 2_000_000), released));
        assert_eq!(clock.offset_us(), Some(-1_000));
        assert!(!clock.is_suspect());
    }
}
