//! What no event can ever meet: a word that its column never holds, and a condition that is never true. A rule with such a thing would be
//! silent for ever, and look as if all were well, so it is refused when it loads.

use std::sync::Arc;

use aegis_model::{ApprovalStatus, DataAccess, Decision, Destination, EventKind, RiskLevel, SourceTrust};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{BinaryExpr, Expr, Filter, LogicalPlan, Operator};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;

use crate::check::{base_column, row_pattern};
use crate::error::{RuleCode, RuleError};
use crate::shape::{passing, text};
use crate::sql::SqlText;

/// Events whose status is that of an approval.
const OF_APPROVALS: [EventKind; 3] = [EventKind::ApprovalRequested, EventKind::ApprovalDecided, EventKind::ApprovalConsumed];

/// Refuses a comparison of a column that holds few words with another word.
pub(crate) fn check_words(plan: &LogicalPlan, sql: &SqlText) -> Result<(), RuleError> {
    let mut refusal = None;
    let walked = plan.apply_with_subqueries(|node| {
        refusal = refusal_of(node, sql)?;
        Ok(if refusal.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    walked.map_err(|error| sql.explain(&error))?;
    refusal.map_or(Ok(()), Err)
}

fn refusal_of(node: &LogicalPlan, sql: &SqlText) -> Result<Option<RuleError>> {
    let of_approvals = is_of_approvals(node);
    let inputs = node.inputs();
    let base = |column: &Column| inputs.iter().find_map(|input| base_column(input, column));
    let mut refusal = None;
    node.apply_expressions(|expr| {
        expr.apply(|part| {
            refusal = unheld_word(part, &base, of_approvals, sql);
            Ok(if refusal.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    })?;
    let Some(pattern) = row_pattern(node) else { return Ok(refusal) };
    let read = |column: &Column| base_column(pattern.input(), pattern.column_read(column)?);
    for expr in pattern.resolved_expressions() {
        if refusal.is_some() {
            break;
        }
        expr.apply(|part| {
            refusal = unheld_word(part, &read, false, sql);
            Ok(if refusal.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
    }
    Ok(refusal)
}

/// Why an expression is refused that compares a column with a word. `base` says which column of `events` a column is.
fn unheld_word(expr: &Expr, base: &dyn Fn(&Column) -> Option<String>, of_approvals: bool, sql: &SqlText) -> Option<RuleError> {
    let (column, texts) = compared(expr)?;
    let name = base(column)?;
    let words = if of_approvals && name == "status" { ApprovalStatus::WORDS.to_vec() } else { words_of(&name)? };
    let unheld = texts.into_iter().find(|text| !words.contains(&text.as_str()))?;
    let place = sql.place_of_text(&unheld, &name).or_else(|| sql.place_of(&name));
    let error = RuleError::new(RuleCode::RuleUnreachable, format!("`{name}` is never '{unheld}'")).at(place);
    Some(error.hint(format!("it is null, or one of: {}", words.join(", "))))
}

/// The words that a column may hold, where they are few.
fn words_of(column: &str) -> Option<Vec<&'static str>> {
    let words = match column {
        "kind" => EventKind::WORDS,
        "decision" => Decision::WORDS,
        "data_access" => DataAccess::WORDS,
        "destination" => Destination::WORDS,
        "risk_level" => RiskLevel::WORDS,
        "source_trust" | "root_trust" => return Some(SourceTrust::ALL.iter().map(|trust| trust.as_str()).collect()),
        _ => return None,
    };
    Some(words.to_vec())
}

/// The column that an expression compares for equality, and with which texts.
fn compared(expr: &Expr) -> Option<(&Column, Vec<String>)> {
    let is_equality =
        |op: &Operator| matches!(op, Operator::Eq | Operator::NotEq | Operator::IsDistinctFrom | Operator::IsNotDistinctFrom);
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_equality(op) => match (left.as_ref(), right.as_ref()) {
            (Expr::Column(column), other) | (other, Expr::Column(column)) => Some((column, vec![text(other)?])),
            _ => None,
        },
        Expr::InList(list) => {
            let Expr::Column(column) = list.expr.as_ref() else { return None };
            Some((column, list.list.iter().filter_map(text).collect()))
        }
        Expr::Case(case) => {
            let Some(Expr::Column(column)) = case.expr.as_deref() else { return None };
            Some((column, case.when_then_expr.iter().filter_map(|(when, _)| text(when)).collect()))
        }
        _ => None,
    }
}

/// True for a filter over `events` that only what was said of approvals passes.
fn is_of_approvals(node: &LogicalPlan) -> bool {
    let LogicalPlan::Filter(filter) = node else { return false };
    let mut input = filter.input.as_ref();
    while let LogicalPlan::SubqueryAlias(alias) = input {
        input = alias.input.as_ref();
    }
    let is_one = |kind: &String| OF_APPROVALS.iter().any(|of_approvals| of_approvals.as_str() == kind.as_str());
    matches!(input, LogicalPlan::TableScan(_)) && passing(&filter.predicate, "kind").is_some_and(|kinds| kinds.iter().all(is_one))
}

/// Refuses a condition that is false or null whatever the event: by itself, or together with the others.
pub(crate) fn check_conditions(analyzed: &LogicalPlan, optimized: &LogicalPlan, sql: &SqlText) -> Result<(), RuleError> {
    let mut never = None;
    let walked = analyzed.apply_with_subqueries(|node| {
        if let LogicalPlan::Filter(filter) = node
            && is_never_met(filter)
        {
            never = Some(format!("no event meets the condition {}", filter.predicate));
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    walked.map_err(|error| sql.explain(&error))?;
    let walked = optimized.apply_with_subqueries(|node| {
        let is_empty = match node {
            LogicalPlan::EmptyRelation(_) => true,
            LogicalPlan::Filter(filter) => is_never(&filter.predicate),
            _ => false,
        };
        if is_empty && never.is_none() {
            never = Some("no event meets all of the conditions".to_owned());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    walked.map_err(|error| sql.explain(&error))?;
    let Some(message) = never else { return Ok(()) };
    let place = ["where", "qualify", "having"].iter().find_map(|word| sql.place_of(word)).or_else(|| sql.start());
    let error = RuleError::new(RuleCode::RuleUnreachable, message).at(place);
    Err(error.hint("what is compared with NULL is never equal to it (IS NULL), and one value is not two at once (OR)"))
}

/// True if what is known without any event decides that a filter lets nothing pass.
fn is_never_met(filter: &Filter) -> bool {
    let context = SimplifyContext::builder().with_schema(Arc::clone(filter.input.schema())).build();
    ExprSimplifier::new(context).simplify(filter.predicate.clone()).is_ok_and(|simplified| is_never(&simplified))
}

fn is_never(condition: &Expr) -> bool {
    matches!(condition, Expr::Literal(ScalarValue::Boolean(None | Some(false)) | ScalarValue::Null, _))
}
