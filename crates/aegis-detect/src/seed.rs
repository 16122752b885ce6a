//! Events without one of which a query has no match: those that it counts, where it wants one of them at least. Of most keys there are none, and then it need not be
//! shown the others. Promises that a match has one of them in the time before it, or at it; which they are is asked of a batch once, for all rules that ask the same.

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, LogicalPlan};

use crate::check::base_column;
use crate::least::{at_least, conditions, counting};
use crate::passed::EventFilter;
use crate::schema::{EventBatch, column_index, is_side};
use crate::shape::frame_of;

#[derive(Debug)]
pub(crate) struct Seed {
    filter: EventFilter,
    /// How far before a match one of them is at most, in microseconds.
    span: i64,
}

impl Seed {
    /// Those of a query that can be followed. None: any event may be one.
    pub(crate) fn of(state: &SessionState, plan: &LogicalPlan) -> Result<Option<Self>> {
        let found = conditions(plan)?.into_iter().filter_map(|(condition, input)| wanted(condition, input));
        let Some((expr, span)) = found.min_by_key(|(_, span)| *span) else { return Ok(None) };
        // Where it cannot be asked of events by themselves, any may be one.
        Ok(EventFilter::new(state, expr).ok().map(|filter| Self { filter, span }))
    }

    pub(crate) const fn span(&self) -> i64 {
        self.span
    }

    /// Which of a batch's events they are.
    pub(crate) fn places(&self, batch: &EventBatch) -> Result<Arc<[usize]>> {
        self.filter.places(batch)
    }
}

/// What an event is of which a row that meets the condition has one, and how far before it at most, where the condition holds a count against a number.
fn wanted(condition: &Expr, input: &LogicalPlan) -> Option<(Expr, i64)> {
    let (column, number) = at_least(condition)?;
    let (input, function) = counting(input, column).filter(|_| number > 0)?;
    let (span, _) = frame_of(function)?;
    let params = &function.params;
    let [value] = params.args.as_slice() else { return None };
    // Of `count(*)` it is a constant; and a column is there of most events.
    let is_there = (!matches!(value, Expr::Literal(..) | Expr::Column(_))).then(|| value.clone().is_not_null());
    let counts = conjunction(is_there.into_iter().chain(params.filter.as_deref().cloned()))?;
    Some((of_events(counts, input)?, span))
}

/// An expression over a node's rows as one over events, where it reads what stands in the event itself: what side tables say of it may change.
fn of_events(expr: Expr, input: &LogicalPlan) -> Option<Expr> {
    let of_event = |name: &String| column_index(name).is_some_and(|column| !is_side(column));
    let mut is_of_events = true;
    let rewritten = expr.transform_up(|part| match part {
        Expr::Column(column) => match base_column(input, &column).filter(of_event) {
            Some(name) => Ok(Transformed::yes(Expr::Column(Column::new_unqualified(name)))),
            None => {
                is_of_events = false;
                Ok(Transformed::no(Expr::Column(column)))
            }
        },
        other => Ok(Transformed::no(other)),
    });
    rewritten.ok().filter(|_| is_of_events).map(|rewritten| rewritten.data)
}
