//! Whether a row of a query can be a match because of what was not there before it: after events were lost, such a match may only lack what was.
//! Says so too often rather than too rarely, but for bounds above one: a rule that counts up to some number only, and asks for several, counts.

use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::{BinaryExpr, Expr, JoinType, LogicalPlan, Operator};

use crate::check::{base_column, row_pattern};

/// What the conditions of a query ask of what they count.
#[derive(Debug, Default)]
struct Asked {
    /// That there is nothing, or one alone.
    nothing: bool,
    /// That there are two at least.
    several: bool,
    /// That no row joins, or that nothing stands between rows.
    no_row: bool,
}

/// True if the query asks for `NOT EXISTS`, `NOT IN`, an outer join, a row pattern, or for a number of what it counts that nothing, or the row
/// alone, already has, without asking for several of anything.
pub(crate) fn rests_on_absence(analyzed: &LogicalPlan) -> Result<bool> {
    let mut asked = Asked::default();
    analyzed.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::Join(join) => asked.no_row |= matches!(join.join_type, JoinType::Left | JoinType::LeftAnti),
            LogicalPlan::Filter(filter) => {
                let is_counted = |expr: &Expr| expr.column_refs().into_iter().any(|c| base_column(&filter.input, c).is_none());
                asked.look(&filter.predicate, &is_counted, false);
            }
            _ => asked.no_row |= row_pattern(node).is_some(),
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(asked.no_row || (asked.nothing && !asked.several))
}

impl Asked {
    fn look(&mut self, condition: &Expr, is_counted: &dyn Fn(&Expr) -> bool, negated: bool) {
        match condition {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And | Operator::Or, right }) => {
                self.look(left, is_counted, negated);
                self.look(right, is_counted, negated);
            }
            Expr::Not(inner) => self.look(inner, is_counted, !negated),
            Expr::IsNull(inner) => self.nothing |= !negated && is_counted(inner),
            Expr::IsNotNull(inner) => self.nothing |= negated && is_counted(inner),
            Expr::Exists(exists) => self.no_row |= exists.negated != negated,
            Expr::InSubquery(list) => self.no_row |= list.negated != negated,
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let (counted, op, bound) = match (number(left), number(right)) {
                    (None, Some(bound)) => (left, Some(*op), bound),
                    (Some(bound), None) => (right, op.swap(), bound),
                    _ => return,
                };
                let op = if negated { op.and_then(|op| op.negate()) } else { op };
                let Some(op) = op.filter(|_| is_counted(counted)) else { return };
                let [none, one, two] = [0.0, 1.0, 2.0].map(|count| holds(count, op, bound));
                self.nothing |= (none || one) && !two;
                self.several |= !none && !one;
            }
            other => {
                // Within an expression nobody follows which way it counts.
                let is_negated = |expr: &Expr| match expr {
                    Expr::Exists(exists) => exists.negated,
                    Expr::InSubquery(list) => list.negated,
                    _ => false,
                };
                self.no_row |= other.exists(|expr| Ok(is_negated(expr))).unwrap_or(true);
            }
        }
    }
}

fn holds(count: f64, op: Operator, bound: f64) -> bool {
    match op {
        Operator::Eq => count == bound,
        Operator::Lt => count < bound,
        Operator::LtEq => count <= bound,
        Operator::Gt => count > bound,
        Operator::GtEq => count >= bound,
        // Of any other nothing is known: it may be met by all.
        _ => true,
    }
}

/// The number that an expression is, if it is one.
fn number(expr: &Expr) -> Option<f64> {
    let value = match expr {
        Expr::Literal(value, _) => value,
        Expr::Cast(cast) => return number(&cast.expr),
        Expr::TryCast(cast) => return number(&cast.expr),
        _ => return None,
    };
    match value {
        ScalarValue::Int8(Some(v)) => Some(f64::from(*v)),
        ScalarValue::Int16(Some(v)) => Some(f64::from(*v)),
        ScalarValue::Int32(Some(v)) => Some(f64::from(*v)),
        ScalarValue::Int64(Some(v)) => Some(*v as f64),
        ScalarValue::UInt8(Some(v)) => Some(f64::from(*v)),
        ScalarValue::UInt16(Some(v)) => Some(f64::from(*v)),
        ScalarValue::UInt32(Some(v)) => Some(f64::from(*v)),
        ScalarValue::UInt64(Some(v)) => Some(*v as f64),
        ScalarValue::Float32(Some(v)) => Some(f64::from(*v)),
        ScalarValue::Float64(Some(v)) => Some(*v),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::ruleset::RuleSet;

    /// Of a rule that contains.
    fn rests(query: &str) -> bool {
        let text = format!(
            "/* rule\nid: T-1\nname: t\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: active\nrespond: [freeze_agent]\nowner: soc\n\
             description: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-27, note: first}}\n*/\n{query}\n"
        );
        let rules = RuleSet::from_texts([("t/rule.sql".into(), text)]).unwrap();
        let rests: Vec<bool> = rules.into_planned().map(|(_, plan)| plan.rests_on_absence).collect();
        assert_eq!(rests.len(), 1);
        rests[0]
    }

    fn counted(condition: &str) -> String {
        format!(
            "SELECT agent_id, event_id FROM (SELECT *, count(*) OVER w AS n, max(tool) OVER w AS newest FROM events WINDOW w AS (PARTITION BY agent_id \
             ORDER BY ts RANGE BETWEEN INTERVAL '9' SECOND PRECEDING AND INTERVAL '1 microsecond' PRECEDING)) WHERE {condition}"
        )
    }

    #[test]
    fn what_asks_for_nothing_rests_on_absence_and_what_counts_does_not() {
        for condition in [
            "n = 0",
            "n < 1",
            "1 > n",
            "n <= 1",
            "n < 2",
            "NOT n > 0",
            "NOT (n >= 1 OR decision = 'deny')",
            "coalesce(n, 0) = 0",
            "newest IS NULL",
            "decision = 'deny' AND n = 0",
        ] {
            assert!(rests(&counted(condition)), "{condition}");
        }
        for condition in ["n >= 5", "n > 0", "n < 5", "newest IS NOT NULL", "seq = 1", "tool IS NULL", "n >= 2 AND seq = 0"] {
            assert!(!rests(&counted(condition)), "{condition}");
        }
        for query in [
            "SELECT agent_id, event_id FROM events w WHERE NOT EXISTS (SELECT 1 FROM events d WHERE d.agent_id = w.agent_id AND d.ts < w.ts)",
            "SELECT a.agent_id, a.event_id FROM events a LEFT JOIN events b ON a.agent_id = b.agent_id AND b.decision = 'deny'",
            "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
             PATTERN (a b) DEFINE a AS decision = 'deny')",
        ] {
            assert!(rests(query), "{query}");
        }
        for query in [
            "SELECT agent_id, event_id FROM events WHERE decision = 'deny'",
            "SELECT agent_id, event_id FROM events WHERE tool IN (SELECT tool FROM events WHERE decision = 'deny')",
            "SELECT agent_id, array_agg(event_id) AS event_ids FROM events GROUP BY agent_id HAVING count(*) >= 5",
        ] {
            assert!(!rests(query), "{query}");
        }
    }

    #[test]
    fn the_shipped_rules_that_contain_count_what_is_there() {
        let containing = RuleSet::shipped().unwrap().into_planned().filter(|(rule, _)| rule.header.contains());
        let rests: Vec<(String, bool)> =
            containing.map(|(rule, plan)| (rule.header.name.clone(), plan.rests_on_absence)).collect();
        assert!(rests.len() >= 4 && rests.iter().all(|(_, rests)| !rests), "{rests:?}");
    }
}
