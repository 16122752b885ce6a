//! Whether control's sign of life is heard as it is written, or only found when the feed is read again: then all that is written comes late, and
//! another server may bring it at once (docs/adr/0051). And whether it comes at all: a server that others do not reach any more answers at once that
//! nobody listens, or with what stood there yesterday.

use parking_lot::Mutex;

/// Readings that bring a sign of life, and none heard meanwhile, until another server is tried; twice as many with each that is no better.
const UNHEARD: u32 = 3;
/// The same, of readings that bring none: half a minute, in which control may start again.
const UNSAID: u32 = 6;
const MOST_READINGS: u32 = 48;

#[derive(Debug)]
pub(super) struct Hearing {
    unheard: Mutex<Row>,
    unsaid: Mutex<Row>,
}

/// Readings in a row.
#[derive(Debug)]
struct Row {
    first: u32,
    patience: u32,
    count: u32,
}

impl Row {
    const fn of(first: u32) -> Self {
        Self { first, patience: first, count: 0 }
    }

    /// True once it has gone on; it is counted anew then.
    fn is_over(&mut self) -> bool {
        if self.count < self.patience {
            return false;
        }
        *self = Self { first: self.first, patience: self.patience.saturating_mul(2).min(MOST_READINGS), count: 0 };
        true
    }

    fn end(&mut self) {
        *self = Self::of(self.first);
    }
}

impl Default for Hearing {
    fn default() -> Self {
        Self { unheard: Mutex::new(Row::of(UNHEARD)), unsaid: Mutex::new(Row::of(UNSAID)) }
    }
}

impl Hearing {
    /// One was heard.
    pub(super) fn heard(&self) {
        self.unheard.lock().end();
        self.unsaid.lock().end();
    }

    /// A reading brought one that was not heard.
    pub(super) fn read(&self) {
        let mut unheard = self.unheard.lock();
        unheard.count = unheard.count.saturating_add(1);
        self.unsaid.lock().end();
    }

    /// True once readings have brought what was not heard.
    pub(super) fn is_deaf(&self) -> bool {
        self.unheard.lock().is_over()
    }

    /// Behind each reading, whatever became of it: true once so many have brought nothing that is new, nor was anything heard.
    pub(super) fn is_cut_off(&self) -> bool {
        let mut unsaid = self.unsaid.lock();
        unsaid.count = unsaid.count.saturating_add(1);
        unsaid.is_over()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use aegis_bus::{Bucket, Bus, EmbeddedBus, EmbeddedLimits, subject};
    use aegis_keys::{KeyRing, SigningKey, sign_notice};
    use aegis_model::{Beat, Clock, ManualClock, Timestamp};

    use super::super::{FeedConfig, Follower, bare};
    use super::*;
    use crate::clock::CorrectedClock;
    use crate::pulse::Pulse;
    use crate::view::EdgeView;

    /// How many readings it takes.
    fn readings(hearing: &Hearing) -> u32 {
        let mut readings = 0;
        while !hearing.is_deaf() {
            hearing.read();
            readings += 1;
        }
        readings
    }

    #[test]
    fn three_readings_in_which_nothing_was_heard_are_deaf_and_ever_more_later() {
        let hearing = Hearing::default();
        let took: Vec<u32> = (0..6).map(|_| readings(&hearing)).collect();
        assert_eq!(took, [3, 6, 12, 24, 48, 48]);
        hearing.read();
        hearing.read();
        hearing.heard();
        assert_eq!(readings(&hearing), 3, "as at first");
    }

    #[test]
    fn six_readings_that_bring_nothing_new_are_cut_off_and_ever_more_later() {
        let hearing = Hearing::default();
        let took = |hearing: &Hearing| (1..).find(|_| hearing.is_cut_off()).unwrap_or_default();
        let all: Vec<u32> = (0..5).map(|_| took(&hearing)).collect();
        assert_eq!(all, [6, 12, 24, 48, 48]);
        for says in [Hearing::heard, Hearing::read] {
            says(&hearing);
            assert_eq!(took(&hearing), 6, "as at first");
            for _ in 0..100 {
                says(&hearing);
                assert!(!hearing.is_cut_off(), "something came");
            }
        }
    }

    /// As it is where a server that control does not reach answers at once that nobody listens, or with what stood there yesterday.
    #[tokio::test]
    async fn a_server_that_answers_without_a_new_sign_of_life_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_800_000_000_000_000)));
        let bus = EmbeddedBus::open(&folder.path().join("bus.db"), EmbeddedLimits::default(), clock.clone()).await.unwrap();
        let control = SigningKey::from_seed(&[1; 32]);
        let view = Arc::new(EdgeView::new(KeyRing::new([control.verifying_key()])).unwrap());
        let corrected = Arc::new(CorrectedClock::new(clock.clone(), 0));
        let pulse = Pulse::new("edge-1", SigningKey::from_seed(&[2; 32]), corrected, None);
        let beside = Arc::new(bare(bus.clone(), view.clone(), clock.clone()));
        let places = FeedConfig { pulse: Some(pulse.clone()), ..FeedConfig::default() }.places();
        let far = Arc::new(Follower { pulse: Some(pulse), places, ..bare(bus.clone(), view, clock.clone()) });
        let beat = async |n: u64| {
            let signed = sign_notice(&control, &Beat { at: clock.now(), start: 1, n }).unwrap();
            bus.kv_put(Bucket::Control, subject::BEAT, signed.into()).await.unwrap();
        };

        let mut left = Vec::new();
        for _ in 0..6 {
            assert!(!beside.look_again().await);
            left.push(far.look_again().await);
        }
        assert_eq!(left, [false, false, false, false, false, true], "nothing came at all");
        beat(1).await;
        left.clear();
        for _ in 0..6 {
            left.push(far.look_again().await);
        }
        assert_eq!(left, [false, false, false, false, false, true], "the same one again and again is none");
        beat(2).await;
        assert!(!far.look_again().await, "it comes again");
    }
}
