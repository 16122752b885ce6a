//! What all partitions of one query share: the program, where to go on after a match, and the bounds.

use crate::error::MatchError;
use crate::mapping::{Mapping, Scope};
use crate::program::{Program, Variable};

/// `AFTER MATCH SKIP`: where the next match may start. After an empty match it is always the next row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    PastLastRow,
    ToNextRow,
    /// To the first row of a variable, or of a union variable.
    ToFirst(Vec<Variable>),
    /// To the last row of a variable, or of a union variable.
    ToLast(Vec<Variable>),
}

/// Bounds of one attempt, that is of the search from one start row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most operations of the machine. At most one condition is evaluated in each.
    pub steps: u64,
    /// Most cells of memory: one for each alternative left to try, one for each failure remembered, two for each mapped row. A cell
    /// has at most 32 bytes, twice that with room to grow. What earlier attempts remembered takes half as much again.
    pub cells: usize,
    /// Steps of an attempt that ran out of reach without a match, from which on the start rows after it are looked at together, where no
    /// condition depends on the mapping. Changes no match; a burst of start rows costs less.
    pub survey_after: u64,
}

impl Default for Limits {
    /// A million steps, a quarter of a million cells, a survey after 256 steps.
    fn default() -> Self {
        Self { steps: 1 << 20, cells: 1 << 18, survey_after: 256 }
    }
}

/// A query's pattern, ready to run over any number of partitions.
#[derive(Clone, Debug)]
pub struct Matcher {
    pub(crate) program: Program,
    /// By operation: whether failures are remembered there.
    pub(crate) remembered: Vec<bool>,
    /// No condition depends on the mapping.
    pub(crate) independent: bool,
    pub(crate) limits: Limits,
    skip: Skip,
}

impl Matcher {
    /// `depends_on_mapping` tells of each variable whether its condition looks at anything but the row itself and its physical
    /// neighbours: another variable, a row mapped earlier, an aggregate, the match number. If in doubt, yes: it costs time only.
    #[must_use]
    pub fn new(program: Program, skip: Skip, limits: Limits, depends_on_mapping: impl Fn(Variable) -> bool) -> Self {
        let remembered = program.remembered(&depends_on_mapping);
        let independent = !program.takes().any(depends_on_mapping);
        Self { program, remembered, independent, limits, skip }
    }

    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Whether every attempt is linear: at most twice as many steps as there are states in the rows it spans ([`Program::states`]).
    #[must_use]
    pub fn is_linear(&self) -> bool {
        self.program.joins().zip(&self.remembered).all(|(join, remembered)| !join || *remembered)
    }

    /// L-PATTERN-SKIP: the row at which the next match may start.
    ///
    /// # Errors
    /// A match that cannot be skipped from.
    pub fn next_start<E>(&self, found: &Mapping) -> Result<usize, MatchError<E>> {
        let start = found.start();
        if found.is_empty() {
            return Ok(start + 1);
        }
        let target = match &self.skip {
            Skip::PastLastRow => return Ok(found.end()),
            Skip::ToNextRow => return Ok(start + 1),
            Skip::ToFirst(variables) => found.whole().first(Scope::Union(variables), 0),
            Skip::ToLast(variables) => found.whole().last(Scope::Union(variables), 0),
        };
        match target {
            None => Err(MatchError::SkipToUnmapped { start }),
            Some(row) if row == start => Err(MatchError::SkipToFirstRow { start }),
            Some(row) => Ok(row),
        }
    }
}
