//! What a query over the lake may be made of: by allow-list, so that what is new in the engine is refused until somebody has looked at it.
//! Owns no meaning of SQL; promises that what passes reads the table `events` and changes nothing anywhere.

use aegis_detect::TABLE;
use aegis_match::MatchRecognize;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, LogicalPlan};

use crate::error::QueryError;

/// Functions whose result can be far larger than what they are given: a constant one is made while a query is planned, within no bound of memory.
const AMPLIFIERS: [&str; 7] = ["repeat", "lpad", "rpad", "range", "generate_series", "array_repeat", "array_resize"];

/// Refuses a plan as it was written, before any part of it has run.
pub(crate) fn check(plan: &LogicalPlan) -> Result<(), QueryError> {
    let mut refused = None;
    let walked = plan.apply_with_subqueries(|node| {
        refused = node_refused(node);
        if refused.is_none() {
            refused = amplifier(node)?;
        }
        Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    walked.map_err(|error: DataFusionError| QueryError::Engine { message: error.strip_backtrace(), place: None })?;
    refused.map_or(Ok(()), |what| Err(QueryError::NotAllowed(what)))
}

/// What the node is, if it may not be there.
fn node_refused(node: &LogicalPlan) -> Option<String> {
    let is_allowed = match node {
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::Window(_)
        | LogicalPlan::Aggregate(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Join(_)
        | LogicalPlan::Union(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Distinct(_)
        | LogicalPlan::Values(_)
        | LogicalPlan::EmptyRelation(_)
        | LogicalPlan::Subquery(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Unnest(_) => true,
        LogicalPlan::TableScan(scan) => {
            if scan.table_name.table() == TABLE {
                return None;
            }
            return Some(format!("the table {}", scan.table_name));
        }
        LogicalPlan::Extension(extension) => extension.node.as_any().is::<MatchRecognize>(),
        _ => false,
    };
    (!is_allowed).then(|| node.display().to_string())
}

fn amplifier(node: &LogicalPlan) -> Result<Option<String>, DataFusionError> {
    let mut found = None;
    node.apply_expressions(|expr| {
        expr.apply(|part| {
            if let Expr::ScalarFunction(ScalarFunction { func, .. }) = part
                && (AMPLIFIERS.contains(&func.name()) || func.aliases().iter().any(|alias| AMPLIFIERS.contains(&alias.as_str())))
            {
                found = Some(format!("the function {}", func.name()));
                return Ok(TreeNodeRecursion::Stop);
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(found)
}
