//! The SQL engine's front: from a text to the plan that runs. Says of a text that it is one query, or why not.
//! Never decides what a rule may say, and runs nothing. Whoever has rows makes them a plan's leaf here.
//!
//! A crate of its own, so that the compiler makes the engine's parser and planner once and lightly, instead of once more at full optimisation
//! beside what every event goes through.

mod blocking;
mod leaf;
mod misread;
pub mod tree;
mod truth;

use std::sync::Arc;

use datafusion::common::DFSchema;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{TokenWithSpan, Tokenizer};

pub use blocking::block_on;
pub use leaf::{Source, leaf};

/// Why a text is not planned.
#[derive(Debug)]
pub enum Refused {
    /// It is not exactly one query, but this.
    NotOneQuery(&'static str),
    /// It does not parse, or means nothing over the tables there are.
    Engine(DataFusionError),
}

/// The logical plan of a text that is one query.
pub fn plan_query(state: &SessionState, text: &str) -> std::result::Result<LogicalPlan, Refused> {
    plan_tokens(state, tokens(text)?)
}

/// The words of a text with their places, white space and comments among them.
pub fn tokens(text: &str) -> std::result::Result<Vec<TokenWithSpan>, Refused> {
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location();
    tokens.map_err(|error| Refused::Engine(DataFusionError::SQL(Box::new(ParserError::from(error)), None)))
}

/// The same of words, for whoever has put others in the place of some.
pub fn plan_tokens(state: &SessionState, tokens: Vec<TokenWithSpan>) -> std::result::Result<LogicalPlan, Refused> {
    let statement = parse(tokens)?;
    block_on(state.statement_to_plan(statement)).map_err(Refused::Engine)
}

fn parse(tokens: Vec<TokenWithSpan>) -> std::result::Result<Statement, Refused> {
    let parsed = DFParserBuilder::new(tokens).with_dialect(&GenericDialect {}).build().and_then(|mut p| p.parse_statements());
    let mut statements = parsed.map_err(Refused::Engine)?;
    match (statements.pop_front(), statements.is_empty()) {
        (None, _) => Err(Refused::NotOneQuery("nothing")),
        (Some(_), false) => Err(Refused::NotOneQuery("several statements")),
        (Some(Statement::Statement(statement)), true) if matches!(*statement, SqlStatement::Query(_)) => {
            misread::check(&statement).map_err(Refused::Engine)?;
            Ok(Statement::Statement(statement))
        }
        (Some(_), true) => Err(Refused::NotOneQuery("something else")),
    }
}

/// The plan with every type and function resolved.
pub fn analyze(state: &SessionState, plan: LogicalPlan) -> Result<LogicalPlan> {
    state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})
}

/// The plan, rewritten for speed.
pub fn optimize(state: &SessionState, plan: &LogicalPlan) -> Result<LogicalPlan> {
    state.optimize(plan)
}

/// The operators that run an optimized plan.
pub fn physical(state: &SessionState, plan: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
    block_on(state.query_planner().create_physical_plan(&truth::compared(plan)?, state))
}

/// An expression over rows of a schema, ready to run.
pub fn physical_expr(state: &SessionState, expr: Expr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>> {
    state.create_physical_expr(expr, schema)
}
