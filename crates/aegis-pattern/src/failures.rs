//! Machine states that are known to lead to no match. Owns what makes a remembered attempt linear in the rows it spans.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use crate::program::Pc;

/// A machine state from which there is no match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Failure {
    pub(crate) row: usize,
    pub(crate) registers: u64,
    pub(crate) operation: Pc,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Failures {
    states: HashSet<Failure, BuildHasherDefault<Mix>>,
}

impl Failures {
    pub(crate) fn contains(&self, state: &Failure) -> bool {
        !self.states.is_empty() && self.states.contains(state)
    }

    pub(crate) fn insert(&mut self, state: Failure) {
        self.states.insert(state);
    }

    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// Forgets all, and gives the memory back.
    pub(crate) fn clear(&mut self) {
        if !self.states.is_empty() {
            *self = Self::default();
        }
    }

    /// Forgets those before `from_row`, and gives the memory back.
    pub(crate) fn forget_before(&mut self, from_row: usize) {
        if !self.states.is_empty() {
            self.states.retain(|state| state.row >= from_row);
            self.states.shrink_to_fit();
        }
    }

    /// Takes over those of `newer` at `from_row` or later. Over `bound`, those before `from_row` go; if that is not enough, all: to
    /// forget costs time and changes no outcome.
    pub(crate) fn absorb(&mut self, newer: &mut Self, from_row: usize, bound: usize) {
        if self.states.is_empty() {
            std::mem::swap(&mut self.states, &mut newer.states);
        }
        self.states.extend(newer.states.drain().filter(|state| state.row >= from_row));
        if self.len() > bound {
            self.forget_before(from_row);
        }
        if self.len() > bound {
            self.clear();
        }
    }
}

/// A quick hash of a few integers. The states are small counts that nobody outside chooses, so it need not be keyed.
#[derive(Clone, Copy, Debug, Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        // An odd constant without pattern, 2^64 divided by the golden ratio.
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(rows: std::ops::Range<usize>) -> Failures {
        let mut failures = Failures::default();
        rows.for_each(|row| failures.insert(Failure { row, registers: 0, operation: 0 }));
        failures
    }

    #[test]
    fn what_is_remembered_is_bounded_and_passed_rows_go_first() {
        let mut shared = failures(0..20);
        shared.absorb(&mut failures(15..30), 20, 30);
        assert_eq!(shared.len(), 30, "rows that were passed are not added");
        shared.absorb(&mut failures(30..31), 21, 30);
        assert_eq!(shared.len(), 10, "passed rows went");
        shared.absorb(&mut failures(31..60), 21, 30);
        assert_eq!(shared.len(), 0, "still too many: all went");
    }
}
