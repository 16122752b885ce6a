//! What can go wrong: a pattern that is refused, and a partition whose matching cannot go on.

use std::fmt;

use crate::program::{MAX_DEPTH, MAX_STATES, Variable};

/// Why a pattern was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CompileError {
    /// A quantifier whose upper bound is 0 or below its lower bound.
    Quantifier { min: u32, max: u32 },
    /// An alternation of nothing.
    NoAlternative,
    /// More than [`MAX_STATES`] states, counted repetitions multiplied out.
    TooLarge,
    /// Nested deeper than [`MAX_DEPTH`], or over 32 repetitions within each other whose iterations may be empty.
    TooDeep,
}

impl fmt::Display for CompileError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quantifier { min, max } => {
                write!(
                    formatter,
                    "the quantifier {{{min},{max}}} repeats nothing; its upper bound must be at least 1 and the lower bound"
                )
            }
            Self::NoAlternative => formatter.write_str("an alternation needs at least one alternative"),
            Self::TooLarge => {
                write!(
                    formatter,
                    "the pattern has more than {MAX_STATES} states with its counted repetitions multiplied out; lower the counts"
                )
            }
            Self::TooDeep => {
                write!(
                    formatter,
                    "the pattern is nested too deeply: over {MAX_DEPTH} levels, or over 32 repetitions of what may be empty"
                )
            }
        }
    }
}

impl std::error::Error for CompileError {}

/// Why matching a partition cannot go on. `E` is the conditions' own error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MatchError<E> {
    Condition(E),
    /// `AFTER MATCH SKIP TO` a variable that the match starting at this row maps no row to.
    SkipToUnmapped {
        start: usize,
    },
    /// `AFTER MATCH SKIP TO` the first row of the match starting at this row: it would be found for ever.
    SkipToFirstRow {
        start: usize,
    },
    /// A condition asked for rows to come, and the partition is complete.
    NeverDecided {
        variable: Variable,
        row: usize,
    },
}

impl<E: fmt::Display> fmt::Display for MatchError<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Condition(error) => write!(formatter, "a condition of DEFINE failed: {error}"),
            Self::SkipToUnmapped { start } => {
                write!(
                    formatter,
                    "AFTER MATCH SKIP TO: the match at row {start} has no row of that variable; make the variable mandatory"
                )
            }
            Self::SkipToFirstRow { start } => {
                write!(
                    formatter,
                    "AFTER MATCH SKIP TO: the variable's row is the first of the match at row {start}, which would repeat for ever"
                )
            }
            Self::NeverDecided { variable, row } => {
                write!(
                    formatter,
                    "the condition of variable {} waits at row {row} for rows of a partition that is complete",
                    variable.index()
                )
            }
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for MatchError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Condition(error) => Some(error),
            _ => None,
        }
    }
}
