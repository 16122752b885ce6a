//! What a match takes at least: so many events of its bucket within so much time, one of some of them, two different values. Where they are not there a query need not be shown what is
//! new, and of most keys they never are. Promises that a query has no row at an instant of which this is not so. Of one that could fail on an event nothing
//! is promised: to put it off would hide that it does.

use std::cmp::Reverse;

use datafusion::common::{Column, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator};

use crate::infallible::never_fails;
use crate::pipeline::plain_column;
use crate::shape::{frame_of, window_function};

/// What has to be there of a bucket, and is not of most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Takes {
    pub(crate) least: Option<Least>,
    /// An event without one of which there is no match, so many microseconds before it at most: see [`crate::seed`].
    pub(crate) seed_span: Option<i64>,
    /// Two different values of a column, so many microseconds before it at most: see [`crate::differing`].
    pub(crate) differing_span: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Least {
    /// Two at least, that of the match among them.
    pub(crate) count: usize,
    /// From the first of them to the last, in microseconds.
    pub(crate) span: i64,
}

impl Least {
    /// That of a query that can be followed. None: one event may be enough.
    pub(crate) fn of(plan: &LogicalPlan) -> Result<Option<Self>> {
        let found = conditions(plan)?.into_iter().filter_map(|(condition, input)| counted(condition, input));
        Ok(found.max_by_key(|least| (least.count, Reverse(least.span))))
    }
}

/// The conditions that each row of a query meets, which is one event's, each with the node whose columns it reads. None of a query that can fail.
pub(crate) fn conditions(plan: &LogicalPlan) -> Result<Vec<(&Expr, &LogicalPlan)>> {
    let (mut met, mut node) = (Vec::new(), plan);
    while never_fails(node)? {
        node = match node {
            LogicalPlan::TableScan(_) => return Ok(met),
            LogicalPlan::Filter(filter) => {
                let input = filter.input.as_ref();
                met.extend(split_conjunction(&filter.predicate).into_iter().map(|part| (part, input)));
                input
            }
            LogicalPlan::Projection(projection) => projection.input.as_ref(),
            LogicalPlan::SubqueryAlias(alias) => alias.input.as_ref(),
            LogicalPlan::Sort(sort) => sort.input.as_ref(),
            LogicalPlan::Window(window) => window.input.as_ref(),
            _ => break,
        };
    }
    Ok(Vec::new())
}

/// The column that a condition holds against a number, and how large it is at least where that is met.
pub(crate) fn at_least(condition: &Expr) -> Option<(&Column, i64)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else { return None };
    let (column, op, number) = match (left.as_ref(), right.as_ref()) {
        (Expr::Column(column), Expr::Literal(ScalarValue::Int64(Some(number)), _)) => (column, *op, *number),
        (Expr::Literal(ScalarValue::Int64(Some(number)), _), Expr::Column(column)) => (column, op.swap()?, *number),
        _ => return None,
    };
    match op {
        Operator::Eq | Operator::GtEq => Some((column, number)),
        Operator::Gt => Some((column, number.checked_add(1)?)),
        _ => None,
    }
}

/// What a row that meets the condition takes, where that holds a count against a number.
fn counted(condition: &Expr, input: &LogicalPlan) -> Option<Least> {
    let (column, number) = at_least(condition)?;
    let (_, function) = counting(input, column)?;
    let (span, end) = frame_of(function)?;
    // In a frame that ends before its row is none of the row's own time.
    let count = number.checked_add(i64::from(end > 0))?;
    let count = usize::try_from(count).ok().filter(|count| *count > 1)?;
    Some(Least { count, span })
}

/// The function that a column is, if it counts rows of a frame, all of them or some; and the node whose columns it reads.
pub(crate) fn counting<'a>(plan: &'a LogicalPlan, column: &Column) -> Option<(&'a LogicalPlan, &'a WindowFunction)> {
    function_of(plan, column).filter(|(_, function)| function.fun.name() == "count")
}

/// The window function that a column is, if it is one, and the node whose columns that reads.
pub(crate) fn function_of<'a>(plan: &'a LogicalPlan, column: &Column) -> Option<(&'a LogicalPlan, &'a WindowFunction)> {
    match plan {
        LogicalPlan::Projection(projection) => {
            let index = projection.schema.maybe_index_of_column(column)?;
            function_of(&projection.input, plain_column(projection.expr.get(index)?)?)
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let index = alias.schema.maybe_index_of_column(column)?;
            function_of(&alias.input, &Column::from(alias.input.schema().qualified_field(index)))
        }
        LogicalPlan::Filter(filter) => function_of(&filter.input, column),
        LogicalPlan::Sort(sort) => function_of(&sort.input, column),
        LogicalPlan::Window(window) => {
            let index = window.schema.maybe_index_of_column(column)?;
            let Some(place) = index.checked_sub(window.input.schema().fields().len()) else {
                return function_of(&window.input, column);
            };
            Some((window.input.as_ref(), window_function(window.window_expr.get(place)?)?))
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::ruleset::{RuleSet, shipped_text};

    fn takes(text: String) -> Takes {
        let set = RuleSet::from_texts([("T-1/rule.sql".into(), text)]).unwrap();
        let (_, plan) = set.into_planned().next().unwrap();
        assert!(plan.pipeline.is_some());
        plan.takes()
    }

    /// What a rule takes that counts in a frame of ten seconds, `n`, and in what of it is before its row, `earlier`.
    fn least(condition: &str) -> Option<Least> {
        let text = format!(
            "/* rule\nid: T-1\nname: t-1\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: active\nrequires: any\nowner: soc\n\
             description: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-22, note: n}}\n*/\n\
             SELECT agent_id, event_id, n, m FROM (SELECT *, count(*) OVER w AS n, count(DISTINCT tool) OVER earlier AS m, max(tool) OVER w AS t \
             FROM events WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '10' SECOND PRECEDING AND CURRENT ROW), \
             earlier AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '20' SECOND PRECEDING AND INTERVAL '1' SECOND PRECEDING)) \
             WHERE {condition}\n"
        );
        takes(text).least
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
    fn of_shipped_rules_it_is_what_they_count_up_to_or_what_they_look_for() {
        let after = |seconds: i64| Takes { seed_span: Some(seconds * 1_000_000), ..Takes::default() };
        let of = |least| Takes { least, ..Takes::default() };
        for (name, expected) in [
            ("deny-storm", of(some(5, 60))),
            ("runaway", of(some(20, 10))),
            ("denial-of-wallet", of(some(120, 60))),
            ("rate-above-baseline", of(some(60, 120))),
            ("run-rotation", after(120)),
            ("trust-escalation", after(300)),
            ("allowed-after-policy-change", after(600)),
            ("agent-in-two-environments", Takes { differing_span: Some(60_000_000), ..Takes::default() }),
            ("cross-repository", Takes::default()),
        ] {
            assert_eq!(takes(shipped_text(name).unwrap().1), expected, "{name}");
        }
        for name in ["mass-external-send", "deny-spray", "repeated-approval"] {
            assert_eq!(takes(shipped_text(name).unwrap().1).least.map(|least| least.count), Some(5), "{name}");
        }
    }
}
