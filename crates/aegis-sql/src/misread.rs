//! What the parser takes otherwise than SQL means it, without a word: it is refused, as long as that is so. Promises that no query that passes means
//! something else than it says for such a reason.

use std::ops::ControlFlow;

use datafusion::error::{DataFusionError, Result};
use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, Spanned, Statement, visit_expressions};
use datafusion::sql::sqlparser::tokenizer::Location;

/// Refuses `a IS [NOT] DISTINCT FROM b AND c`, which is `(a IS DISTINCT FROM b) AND c` in SQL, and `a IS DISTINCT FROM (b AND c)` to the parser; and
/// the same with OR and XOR.
pub(crate) fn check(statement: &Statement) -> Result<()> {
    let misread = visit_expressions(statement, |expr| match expr {
        Expr::IsDistinctFrom(_, right) | Expr::IsNotDistinctFrom(_, right) if is_looser(right) => {
            ControlFlow::Break(expr.span().start)
        }
        _ => ControlFlow::Continue(()),
    });
    let ControlFlow::Break(Location { line, column }) = misread else { return Ok(()) };
    let message = "IS DISTINCT FROM takes in all that follows it, AND and OR too: put the comparison in parentheses, as in (a IS DISTINCT FROM b) AND c,";
    Err(DataFusionError::Plan(format!("{message} at Line: {line}, Column: {column}")))
}

/// True for what binds looser than a comparison, and stands in no parentheses.
fn is_looser(expr: &Expr) -> bool {
    matches!(expr, Expr::BinaryOp { op: BinaryOperator::And | BinaryOperator::Or | BinaryOperator::Xor, .. })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::{Refused, parse, tokens};

    fn parsed(text: &str) -> std::result::Result<(), String> {
        match parse(tokens(text).unwrap()) {
            Ok(_) => Ok(()),
            Err(Refused::Engine(error)) => Err(error.to_string()),
            Err(Refused::NotOneQuery(what)) => Err(what.to_owned()),
        }
    }

    #[test]
    fn a_comparison_that_takes_in_what_follows_it_is_refused_where_it_stands() {
        for text in [
            "SELECT 1 FROM t WHERE a IS DISTINCT FROM b AND c",
            "SELECT 1 FROM t WHERE a IS NOT DISTINCT FROM b OR c",
            "SELECT 1 FROM t WHERE a IS DISTINCT FROM true AND b = 'x' AND c",
        ] {
            let said = parsed(text).unwrap_err();
            assert!(said.contains("IS DISTINCT FROM takes in") && said.contains("at Line: 1, Column: 23"), "{said}");
        }
        for text in [
            "SELECT count(*) FILTER (WHERE a IS DISTINCT FROM b AND c) FROM t",
            "WITH u AS (SELECT * FROM t WHERE a IS DISTINCT FROM b AND c) SELECT 1 FROM u",
            "SELECT 1 FROM t WHERE EXISTS (SELECT 1 FROM u JOIN v ON u.a IS NOT DISTINCT FROM v.a AND u.b = v.b)",
            "SELECT CASE WHEN a IS DISTINCT FROM b OR c THEN 1 END FROM t",
        ] {
            assert!(parsed(text).unwrap_err().contains("IS DISTINCT FROM takes in"), "{text}");
        }
    }

    #[test]
    fn a_comparison_that_is_read_as_it_is_meant_passes() {
        for text in [
            "SELECT 1 FROM t WHERE (a IS DISTINCT FROM b) AND c",
            "SELECT 1 FROM t WHERE c AND a IS DISTINCT FROM b",
            "SELECT 1 FROM t WHERE a IS DISTINCT FROM (b AND c)",
            "SELECT 1 FROM t WHERE a IS NOT DISTINCT FROM b + 1",
            "SELECT 1 FROM t WHERE a IS NULL AND b IS NOT TRUE OR c",
        ] {
            parsed(text).unwrap();
        }
    }
}
