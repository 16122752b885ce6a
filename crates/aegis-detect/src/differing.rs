//! Queries that want two different values of a column of events: the least and the greatest of a frame, which are not the same. Of most keys there is one value, and
//! then such a query need not be shown their events. Promises that a match has two different ones, of its bucket, in the time before it, or at it.

use std::borrow::Cow;

use aegis_model::SecurityEvent;
use datafusion::error::Result;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator};

use crate::check::base_column;
use crate::least::{conditions, function_of};
use crate::schema::{column_index, is_text, text_of};
use crate::shape::frame_of;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Differing {
    /// Of the table.
    column: usize,
    /// How far before a match they are at most, in microseconds.
    span: i64,
}

impl Differing {
    /// That of a query that can be followed. None: one value may be enough.
    pub(crate) fn of(plan: &LogicalPlan) -> Result<Option<Self>> {
        let found = conditions(plan)?.into_iter().filter_map(|(condition, input)| wanted(condition, input));
        Ok(found.min_by_key(|differing| differing.span))
    }

    pub(crate) const fn span(&self) -> i64 {
        self.span
    }

    /// The value of an event, if it has one.
    pub(crate) fn value<'a>(&self, event: &'a SecurityEvent) -> Option<Cow<'a, str>> {
        text_of(event, self.column)
    }
}

/// What a row that meets the condition wants, where that holds two values of one column against each other.
fn wanted(condition: &Expr, input: &LogicalPlan) -> Option<Differing> {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::NotEq, right }) = condition else { return None };
    let (one, one_span) = value_of(left, input)?;
    let (other, other_span) = value_of(right, input)?;
    (one == other).then_some(Differing { column: one, span: one_span.max(other_span) })
}

/// The column of events of which an expression is a value in a frame, and how far that reaches back.
fn value_of(expr: &Expr, input: &LogicalPlan) -> Option<(usize, i64)> {
    let Expr::Column(column) = expr else { return None };
    let (input, function) = function_of(input, column).filter(|(_, function)| ["min", "max"].contains(&function.fun.name()))?;
    let (span, _) = frame_of(function)?;
    let [Expr::Column(value)] = function.params.args.as_slice() else { return None };
    let column = column_index(&base_column(input, value)?).filter(|column| is_text(*column))?;
    Some((column, span))
}
