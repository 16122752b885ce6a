//! What a match takes at least: so many events of its bucket within so much time. Where they are not there a query need not be shown what is new, and of most keys
//! they never are. Promises that a query has no row at an instant of which this is not so. Of one that could fail on an event nothing is promised: to put it
//! off would hide that it does.

use std::cmp::Reverse;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator};

use crate::pipeline::plain_column;
use crate::shape::{frame_of, window_function};

/// Functions of rows that fail on no value.
const NEVER_FAIL: [&str; 3] = ["coalesce", "lower", "upper"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Least {
    /// Two at least, that of the match among them.
    pub(crate) count: usize,
    /// From the first of them to the last, in microseconds.
    pub(crate) span: i64,
}

impl Least {
    /// What a query takes that can be followed: each of its rows is one event's, and passes every filter. None: one event may be enough.
    pub(crate) fn of(plan: &LogicalPlan) -> Result<Option<Self>> {
        let (mut least, mut node) = (None, plan);
        while never_fails(node)? {
            node = match node {
                LogicalPlan::TableScan(_) => return Ok(least),
                LogicalPlan::Filter(filter) => {
                    let parts = split_conjunction(&filter.predicate).into_iter();
                    let found = parts.filter_map(|part| needed(part, &filter.input));
                    least = found.chain(least).max_by_key(|one| (one.count, Reverse(one.span)));
                    filter.input.as_ref()
                }
                LogicalPlan::Projection(projection) => projection.input.as_ref(),
                LogicalPlan::SubqueryAlias(alias) => alias.input.as_ref(),
                LogicalPlan::Sort(sort) => sort.input.as_ref(),
                LogicalPlan::Window(window) => window.input.as_ref(),
                _ => break,
            };
        }
        Ok(None)
    }
}

/// What a row that meets the condition takes, where that holds a count against a number.
fn needed(condition: &Expr, input: &LogicalPlan) -> Option<Least> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else { return None };
    let (column, op, number) = match (left.as_ref(), right.as_ref()) {
        (Expr::Column(column), Expr::Literal(ScalarValue::Int64(Some(number)), _)) => (column, *op, *number),
        (Expr::Literal(ScalarValue::Int64(Some(number)), _), Expr::Column(column)) => (column, op.swap()?, *number),
        _ => return None,
    };
    let counted = match op {
        Operator::Eq | Operator::GtEq => number,
        Operator::Gt => number.checked_add(1)?,
        _ => return None,
    };
    let (span, end) = frame_of(counting(input, column)?)?;
    // In a frame that ends before its row is none of the row's own time.
    let count = counted.checked_add(i64::from(end > 0))?;
    let count = usize::try_from(count).ok().filter(|count| *count > 1)?;
    Some(Least { count, span })
}

/// The function that a column is, if it counts rows of a frame, all of them or some.
fn counting<'a>(plan: &'a LogicalPlan, column: &Column) -> Option<&'a WindowFunction> {
    match plan {
        LogicalPlan::Projection(projection) => {
            let index = projection.schema.maybe_index_of_column(column)?;
            counting(&projection.input, plain_column(projection.expr.get(index)?)?)
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let index = alias.schema.maybe_index_of_column(column)?;
            counting(&alias.input, &Column::from(alias.input.schema().qualified_field(index)))
        }
        LogicalPlan::Filter(filter) => counting(&filter.input, column),
        LogicalPlan::Sort(sort) => counting(&sort.input, column),
        LogicalPlan::Window(window) => {
            let index = window.schema.maybe_index_of_column(column)?;
            match index.checked_sub(window.input.schema().fields().len()) {
                None => counting(&window.input, column),
                Some(place) => window_function(window.window_expr.get(place)?).filter(|function| function.fun.name() == "count"),
            }
        }
        _ => None,
    }
}

/// True if none of a node's own expressions can fail, whatever stands in an event.
fn never_fails(node: &LogicalPlan) -> Result<bool> {
    let mut never = true;
    node.apply_expressions(|expr| {
        expr.apply(|part| {
            never &= part_never_fails(part);
            Ok(if never { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
        })
    })?;
    Ok(never)
}

/// The same of an expression without those in it.
fn part_never_fails(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(_) | Expr::Column(_) | Expr::Literal(..) | Expr::Case(_) | Expr::InList(_) | Expr::Between(_) => true,
        Expr::Not(_) | Expr::IsNull(_) | Expr::IsNotNull(_) | Expr::IsUnknown(_) | Expr::IsNotUnknown(_) => true,
        Expr::IsTrue(_) | Expr::IsNotTrue(_) | Expr::IsFalse(_) | Expr::IsNotFalse(_) => true,
        // What cannot be followed is not asked for this.
        Expr::WindowFunction(_) => true,
        Expr::BinaryExpr(BinaryExpr { op, .. }) => op.is_logic_operator() || compares(*op),
        Expr::ScalarFunction(function) => NEVER_FAIL.contains(&function.name()),
        _ => false,
    }
}

const fn compares(op: Operator) -> bool {
    matches!(
        op,
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::ruleset::{RuleSet, shipped_text};

    fn least_of(text: String) -> Option<Least> {
        let set = RuleSet::from_texts([("T-1/rule.sql".into(), text)]).unwrap();
        let (_, plan) = set.into_planned().next().unwrap();
        plan.follows().unwrap().least()
    }

    /// What a rule takes that counts in a frame of ten seconds, `n`, and in what of it is before its row, `earlier`.
    fn least(condition: &str) -> Option<Least> {
        least_of(format!(
            "/* rule\nid: T-1\nname: t-1\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: active\nrequires: any\nowner: soc\n\
             description: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-22, note: n}}\n*/\n\
             SELECT agent_id, event_id, n, m FROM (SELECT *, count(*) OVER w AS n, count(DISTINCT tool) OVER earlier AS m, max(tool) OVER w AS t \
             FROM events WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '10' SECOND PRECEDING AND CURRENT ROW), \
             earlier AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '20' SECOND PRECEDING AND INTERVAL '1' SECOND PRECEDING)) \
             WHERE {condition}\n"
        ))
    }

    const fn some(count: usize, seconds: i64) -> Option<Least> {
        Some(Least { count, span: seconds * 1_000_000 })
    }

    #[test]
    fn a_match_takes_as_many_events_as_it_counts_and_its_own_where_that_is_not_counted() {
        for (condition, expected) in [
            ("n >= 3", some(3, 10)),
            ("n > 3", some(4, 10)),
            ("n = 3", some(3, 10)),
            ("3 < n", some(4, 10)),
            ("m >= 3", some(4, 20)),
            ("m > 0", some(2, 20)),
            ("n >= 3 AND m >= 2", some(3, 10)),
            ("n >= 3 AND m >= 4 AND tool = 'a'", some(5, 20)),
            ("n <= 3 AND m = 0", None),
            ("n > 0", None),
            ("n >= 3 OR m >= 3", None),
            ("n <> 3", None),
            ("t >= 'a'", None),
        ] {
            assert_eq!(least(condition), expected, "{condition}");
        }
    }

    /// One that fails on an event is set aside as soon as that is there.
    #[test]
    fn of_a_query_that_can_fail_nothing_is_put_off() {
        assert_eq!(least("n >= 3 AND lower(tool) = 'a'"), some(3, 10));
        assert_eq!(least("n >= 3 AND 10 / seq > 1"), None);
        assert_eq!(least("n >= 3 AND CAST(tool AS BIGINT) > 1"), None);
    }

    #[test]
    fn of_shipped_rules_that_count_it_is_what_they_count_up_to() {
        for (name, expected) in [
            ("deny-storm", some(5, 60)),
            ("runaway", some(20, 10)),
            ("denial-of-wallet", some(120, 60)),
            ("rate-above-baseline", some(60, 120)),
            ("mass-external-send", some(5, 600)),
            ("deny-spray", some(5, 600)),
            ("repeated-approval", some(5, 900)),
            ("run-rotation", None),
        ] {
            assert_eq!(least_of(shipped_text(name).unwrap().1), expected, "{name}");
        }
    }
}
