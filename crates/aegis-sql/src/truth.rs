//! `x IS [NOT] TRUE`, `FALSE` and `UNKNOWN` are never null, and the engine's logical plan says so; its operators run a comparison in their place, which
//! may be null as far as they know. Where such an expression becomes a column, as what two aggregates ask alike does, the engine finds the two of
//! different opinions and refuses the query as an error of its own. Here it is that comparison before, so that both say the same.

use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, Operator, Projection, binary_expr};

/// The plan with comparisons in the columns that it makes, or as it is where there are none to put.
pub(crate) fn compared(plan: &LogicalPlan) -> Result<LogicalPlan> {
    let plan = plan.clone();
    if !makes_truths(&plan)? {
        return Ok(plan);
    }
    // Whoever stands above such a column says of it what it says of itself.
    let rewritten = plan.transform_up_with_subqueries(|node| {
        let node = match node {
            LogicalPlan::Projection(Projection { expr, input, .. }) => {
                LogicalPlan::Projection(Projection::try_new(all(expr)?, input)?)
            }
            LogicalPlan::Aggregate(Aggregate { input, group_expr, aggr_expr, .. }) => {
                LogicalPlan::Aggregate(Aggregate::try_new(input, all(group_expr)?, aggr_expr)?)
            }
            other => other.recompute_schema()?,
        };
        Ok(Transformed::yes(node))
    })?;
    Ok(rewritten.data)
}

/// Whether a column that the plan makes has one of them in it.
fn makes_truths(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        let columns = match node {
            LogicalPlan::Projection(projection) => projection.expr.as_slice(),
            LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.as_slice(),
            _ => &[],
        };
        for column in columns {
            found |= column.exists(|part| Ok(comparison(part).is_some()))?;
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

fn all(columns: Vec<Expr>) -> Result<Vec<Expr>> {
    let names = NamePreserver::new_for_projection();
    let rewritten = columns.into_iter().map(|column| {
        let name = names.save(&column);
        let column = column.transform_up(|part| {
            Ok(match comparison(&part) {
                Some(comparison) => Transformed::yes(comparison),
                None => Transformed::no(part),
            })
        })?;
        Ok(name.restore(column.data))
    });
    rewritten.collect()
}

/// What is run in the place of an expression, if it is one of them.
fn comparison(part: &Expr) -> Option<Expr> {
    let (of, operator, value) = match part {
        Expr::IsTrue(of) => (of, Operator::IsNotDistinctFrom, Some(true)),
        Expr::IsNotTrue(of) => (of, Operator::IsDistinctFrom, Some(true)),
        Expr::IsFalse(of) => (of, Operator::IsNotDistinctFrom, Some(false)),
        Expr::IsNotFalse(of) => (of, Operator::IsDistinctFrom, Some(false)),
        Expr::IsUnknown(of) => (of, Operator::IsNotDistinctFrom, None),
        Expr::IsNotUnknown(of) => (of, Operator::IsDistinctFrom, None),
        _ => return None,
    };
    Some(binary_expr(of.as_ref().clone(), operator, Expr::Literal(ScalarValue::Boolean(value), None)))
}
