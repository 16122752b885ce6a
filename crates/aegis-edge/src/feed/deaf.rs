//! Whether control's sign of life is heard as it is written, or only found when the feed is read again: then all that is written comes late, and
//! another server may bring it at once (docs/adr/0051).

use parking_lot::Mutex;

/// Readings that bring a sign of life, and none heard meanwhile, until another server is tried; twice as many with each that is no better.
const READINGS: u32 = 3;
const MOST_READINGS: u32 = 48;

#[derive(Debug, Default)]
pub(super) struct Hearing(Mutex<Row>);

#[derive(Debug)]
struct Row {
    read: u32,
    patience: u32,
}

impl Default for Row {
    fn default() -> Self {
        Self { read: 0, patience: READINGS }
    }
}

impl Hearing {
    /// One was heard.
    pub(super) fn heard(&self) {
        *self.0.lock() = Row::default();
    }

    /// A reading brought one that was not heard.
    pub(super) fn read(&self) {
        let mut row = self.0.lock();
        row.read = row.read.saturating_add(1);
    }

    /// True once that has gone on; it is counted anew then.
    pub(super) fn is_deaf(&self) -> bool {
        let mut row = self.0.lock();
        if row.read < row.patience {
            return false;
        }
        let patience = row.patience.saturating_mul(2).min(MOST_READINGS);
        *row = Row { read: 0, patience };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
