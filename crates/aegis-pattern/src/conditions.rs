//! What the matcher asks of its caller: whether a row meets a variable's condition, and how far a match may reach.

use crate::mapping::Mapping;
use crate::program::Variable;

/// The rows of a partition that are known: all with a number below `end`, the partition's first being 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    pub end: usize,
    /// No row will follow.
    pub complete: bool,
}

impl Rows {
    /// Rows below `end` are known, and more may follow.
    #[must_use]
    pub fn growing(end: usize) -> Self {
        Self { end, complete: false }
    }

    /// The partition has exactly the rows below `end`.
    #[must_use]
    pub fn complete(end: usize) -> Self {
        Self { end, complete: true }
    }
}

/// What a condition says of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Holds,
    /// False or unknown (null).
    Fails,
    /// It depends on a row that is not known yet, such as `NEXT`. Not allowed once the partition is complete.
    NeedsMore,
}

impl From<bool> for Answer {
    fn from(holds: bool) -> Self {
        if holds { Self::Holds } else { Self::Fails }
    }
}

/// The `DEFINE` clause over one partition's rows.
pub trait Conditions {
    type Error;

    /// Whether `row` may be mapped to `variable`. `so_far` is the match up to and including this row, already mapped to this variable:
    /// in the standard's terms the row is the current row, and all semantics are running.
    ///
    /// The answer is a function of the variable, the row, and what `so_far` says; for a variable that was declared not to depend on
    /// the mapping, of variable and row alone. Having said `Holds` or `Fails`, it never says anything else for the same.
    fn holds(&mut self, variable: Variable, row: usize, so_far: &Mapping) -> Result<Answer, Self::Error>;

    /// Whether a match that starts at `start` may contain `row`: a bound on the span of a match. Where it says no, it says no for all
    /// later rows too, and a later start reaches no less far.
    ///
    /// It is asked for the row after the last known one as well; there, no means that whatever row comes is out of reach (which a
    /// watermark can know), and yes that it may be in reach. A no is for ever.
    fn in_reach(&mut self, start: usize, row: usize) -> bool {
        let _ = (start, row);
        true
    }
}
