//! Which expressions fail on no event, whatever stands in it. Promises to know none that could: what it has not heard of can.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{Cast, ScalarFunction};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator};

/// Functions that fail on no values.
const OF_ANY: [&str; 4] = ["coalesce", "lower", "upper", "make_array"];
/// Functions of a text that fail on no text, where what else they are given is written in the query: no number that is negative, or large.
const OF_TEXT: [&str; 4] = ["left", "lpad", "right", "substr"];
const LARGE: i64 = 1024;

/// True if none of a node's own expressions can fail.
pub(crate) fn never_fails(node: &LogicalPlan) -> Result<bool> {
    let mut never = true;
    for input in node.inputs() {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                never &= part_never_fails(part, input.schema())?;
                Ok(if never { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
            })
        })?;
    }
    Ok(never)
}

/// The same of an expression without those in it.
fn part_never_fails(expr: &Expr, schema: &DFSchema) -> Result<bool> {
    Ok(match expr {
        Expr::Alias(_) | Expr::Column(_) | Expr::Literal(..) | Expr::Case(_) | Expr::InList(_) | Expr::Between(_) => true,
        Expr::Not(_) | Expr::IsNull(_) | Expr::IsNotNull(_) | Expr::IsUnknown(_) | Expr::IsNotUnknown(_) => true,
        Expr::IsTrue(_) | Expr::IsNotTrue(_) | Expr::IsFalse(_) | Expr::IsNotFalse(_) => true,
        // What cannot be followed is not asked for this.
        Expr::WindowFunction(_) => true,
        Expr::BinaryExpr(BinaryExpr { op, .. }) => op.is_logic_operator() || joins_or_compares(*op),
        Expr::ScalarFunction(function) => function_never_fails(function),
        Expr::Cast(Cast { expr, field }) => cast_never_fails(&expr.get_type(schema)?, field.data_type()),
        _ => false,
    })
}

const fn joins_or_compares(op: Operator) -> bool {
    matches!(
        op,
        Operator::StringConcat
            | Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

fn function_never_fails(function: &ScalarFunction) -> bool {
    let is_fixed = |arg: &Expr| match arg {
        Expr::Literal(ScalarValue::Utf8(Some(_)) | ScalarValue::Utf8View(Some(_)), _) => true,
        Expr::Literal(ScalarValue::Int64(Some(number)), _) => (0..LARGE).contains(number),
        _ => false,
    };
    let name = function.name();
    OF_ANY.contains(&name) || (OF_TEXT.contains(&name) && function.args.iter().skip(1).all(is_fixed))
}

fn cast_never_fails(from: &DataType, to: &DataType) -> bool {
    let is_text = |data_type: &DataType| matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    match to {
        DataType::Int64 => from.is_signed_integer() || matches!(from, DataType::Timestamp(..)),
        to if is_text(to) => is_text(from) || from.is_integer(),
        _ => false,
    }
}
