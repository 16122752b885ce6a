//! What lint and explain say of the way in which a row pattern is run.

use serde::Serialize;

use crate::plan::RulePlan;

/// How a row pattern is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PatternRun {
    /// What its conditions read.
    pub conditions: PatternReads,
    /// What makes the row of a match.
    pub measures: PatternMeasures,
}

/// What the conditions of a row pattern read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PatternReads {
    /// The row alone.
    Row,
    /// The mapping so far too, or rows before.
    Mapping,
}

/// What makes the row of a row pattern's match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PatternMeasures {
    /// The match's own rows.
    Rows,
    /// A run of the query.
    Query,
}

impl PatternRun {
    pub(crate) fn of(plan: &RulePlan) -> Option<Self> {
        let pattern = plan.row_pattern.as_ref()?;
        let conditions = if pattern.reads_more_than_the_row() { PatternReads::Mapping } else { PatternReads::Row };
        let measures = if pattern.is_measured() { PatternMeasures::Rows } else { PatternMeasures::Query };
        Some(Self { conditions, measures })
    }
}
