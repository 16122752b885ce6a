//! What is done with the engine's trees, as functions that are compiled here and nowhere else: copied, compared, hashed, shown, walked.
//!
//! The engine derives all that, to be inlined, and a query's tree may hold any statement that there is. Whoever does it directly makes the
//! compiler write it for every kind of statement once more, and optimise it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{ControlFlow, Deref};

use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, SortExpr};
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Function, FunctionArg, Query, VisitMut, VisitorMut};

/// An expression that others hold.
pub struct Term(Expr);

impl Term {
    #[must_use]
    pub fn new(expr: Expr) -> Self {
        Self(expr)
    }
}

impl Deref for Term {
    type Target = Expr;

    fn deref(&self) -> &Expr {
        &self.0
    }
}

impl Clone for Term {
    #[inline(never)]
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl fmt::Debug for Term {
    #[inline(never)]
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

impl PartialEq for Term {
    #[inline(never)]
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Term {}

impl Hash for Term {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_exprs(std::slice::from_ref(&self.0), state);
    }
}

/// The same expression once more.
#[inline(never)]
#[must_use]
pub fn copied(expr: &Expr) -> Expr {
    expr.clone()
}

/// The same of several.
#[inline(never)]
#[must_use]
pub fn copied_all(exprs: &[Expr]) -> Vec<Expr> {
    exprs.to_vec()
}

/// The same of an order.
#[inline(never)]
#[must_use]
pub fn copied_order(order: &[SortExpr]) -> Vec<SortExpr> {
    order.to_vec()
}

/// The same of a plan. What it is over is shared.
#[inline(never)]
#[must_use]
pub fn copied_plan(plan: &LogicalPlan) -> LogicalPlan {
    plan.clone()
}

/// The same of a call as it is written.
#[inline(never)]
#[must_use]
pub fn copied_call(call: &Function) -> Function {
    call.clone()
}

/// The same of a call's arguments.
#[inline(never)]
#[must_use]
pub fn copied_arguments(arguments: &[FunctionArg]) -> Vec<FunctionArg> {
    arguments.to_vec()
}

/// Whether two expressions are the same.
#[inline(never)]
#[must_use]
pub fn same(left: &Expr, right: &Expr) -> bool {
    left == right
}

/// The same of several.
#[inline(never)]
#[must_use]
pub fn same_all(left: &[Expr], right: &[Expr]) -> bool {
    left == right
}

/// The same of orders.
#[inline(never)]
#[must_use]
pub fn same_order(left: &[SortExpr], right: &[SortExpr]) -> bool {
    left == right
}

/// The same of plans.
#[inline(never)]
#[must_use]
pub fn same_plan(left: &LogicalPlan, right: &LogicalPlan) -> bool {
    left == right
}

/// Feeds a hasher with expressions.
#[inline(never)]
pub fn hash_exprs(exprs: &[Expr], mut state: &mut dyn Hasher) {
    exprs.hash(&mut state);
}

/// The same with an order.
#[inline(never)]
pub fn hash_order(order: &[SortExpr], mut state: &mut dyn Hasher) {
    order.hash(&mut state);
}

/// The same with a plan.
#[inline(never)]
pub fn hash_plan(plan: &LogicalPlan, mut state: &mut dyn Hasher) {
    plan.hash(&mut state);
}

/// What a walk over a tree as it is written does, from the top.
pub trait Rewrite {
    /// With each query, before what is in it.
    ///
    /// # Errors
    /// What ends the walk.
    fn query(&mut self, query: &mut Query) -> Result<()>;

    /// With each expression, before what is in what it became.
    ///
    /// # Errors
    /// What ends the walk.
    fn expr(&mut self, expr: &mut SqlExpr) -> Result<()>;
}

/// Walks a tree.
///
/// # Errors
/// The first of the rewrite's.
#[inline(never)]
pub fn rewrite(tree: &mut SqlExpr, rewrite: &mut dyn Rewrite) -> Result<()> {
    match VisitMut::visit(tree, &mut Walk(rewrite)) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Walk<'a>(&'a mut (dyn Rewrite + 'a));

impl VisitorMut for Walk<'_> {
    type Break = DataFusionError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<DataFusionError> {
        going_on(self.0.query(query))
    }

    fn pre_visit_expr(&mut self, expr: &mut SqlExpr) -> ControlFlow<DataFusionError> {
        going_on(self.0.expr(expr))
    }
}

fn going_on(done: Result<()>) -> ControlFlow<DataFusionError> {
    match done {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::hash::DefaultHasher;

    use datafusion::logical_expr::{LogicalPlanBuilder, col, lit};

    use super::*;

    fn hashed(hash: impl FnOnce(&mut DefaultHasher)) -> u64 {
        let mut state = DefaultHasher::new();
        hash(&mut state);
        state.finish()
    }

    #[test]
    fn copies_are_equal_and_hash_alike_and_others_are_not() {
        let (one, other) = (col("a").gt(lit(1_i64)), col("a").gt(lit(2_i64)));
        assert!(same(&one, &copied(&one)) && !same(&one, &other));
        let both = [one.clone(), other.clone()];
        assert!(same_all(&both, &copied_all(&both)) && !same_all(&both, &both[..1]));
        assert_eq!(hashed(|state| hash_exprs(&both, state)), hashed(|state| hash_exprs(&copied_all(&both), state)));
        assert_ne!(hashed(|state| hash_exprs(&both[..1], state)), hashed(|state| hash_exprs(&both[1..], state)));
        let (up, down) = ([col("a").sort(true, false)], [col("a").sort(false, false)]);
        assert!(same_order(&up, &copied_order(&up)) && !same_order(&up, &down));
        assert_ne!(hashed(|state| hash_order(&up, state)), hashed(|state| hash_order(&down, state)));
        let plan = |rows| LogicalPlanBuilder::empty(rows).build().unwrap();
        assert!(same_plan(&plan(true), &copied_plan(&plan(true))) && !same_plan(&plan(true), &plan(false)));
        assert_ne!(hashed(|state| hash_plan(&plan(true), state)), hashed(|state| hash_plan(&plan(false), state)));
        let (one, other) = (Term::new(one), Term::new(other));
        let again = one.clone();
        assert!(one == again && one != other);
        assert_ne!(hashed(|state| one.hash(state)), hashed(|state| other.hash(state)));
    }
}
