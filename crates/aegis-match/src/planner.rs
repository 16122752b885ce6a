//! From `MATCH_RECOGNIZE` in a query's text to its logical node.

use std::collections::HashSet;
use std::sync::Arc;

use aegis_pattern::{Pattern, Program};
use aegis_sql::tree::Term;
use datafusion::arrow::datatypes::DataType;
use datafusion::error::Result;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Expr, ExprSchemable, Extension, LogicalPlan, SortExpr};
use datafusion::sql::sqlparser::ast::{
    AfterMatchSkip, Expr as SqlExpr, Ident, MatchRecognizePattern, MatchRecognizeSymbol, Measure as SqlMeasure, OrderByExpr,
    RowsPerMatch, Spanned, SymbolDefinition, TableFactor,
};
use datafusion::sql::sqlparser::tokenizer::Location;

use crate::definition::{Condition, Definition, Measure, SkipTo, slot_schema};
use crate::node::MatchRecognize;
use crate::pattern;
use crate::refusal::Refusal;
use crate::resolve::{Clause, Resolver};

/// Plans `MATCH_RECOGNIZE`. To be registered in a session.
#[derive(Clone, Copy, Debug, Default)]
pub struct MatchPlanner;

impl RelationPlanner for MatchPlanner {
    fn plan_relation(&self, relation: TableFactor, context: &mut dyn RelationPlannerContext) -> Result<RelationPlanning> {
        let TableFactor::MatchRecognize {
            table,
            partition_by,
            order_by,
            measures,
            rows_per_match,
            after_match_skip,
            pattern,
            symbols,
            alias,
        } = relation
        else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        if let Some(RowsPerMatch::AllRows(_)) = rows_per_match {
            return Err(Refusal::unsupported("ALL ROWS PER MATCH").hint("leave it off: one row per match").into());
        }
        let input = context.plan(*table)?;
        let pattern = read_pattern(&pattern, context)?;
        let variables = variables(&pattern)?;
        let skip = skip(after_match_skip, &variables, context)?;

        let partition = partition_by.into_iter().map(|expr| column("PARTITION BY", expr, &input, context));
        let partition = partition.collect::<Result<Vec<_>>>()?;
        let order = order_by.into_iter().map(|sort| order(sort, &input, context)).collect::<Result<Vec<_>>>()?;

        let mut resolver = Resolver::new(context, Arc::clone(input.schema()), &variables)?;
        let conditions = conditions(symbols, &variables, &mut resolver)?;
        let measures = resolve_measures(measures, &mut resolver)?;
        let Resolver { operands, operand_types, slots, aggregates, .. } = resolver;
        let definition = Definition { pattern, skip, slots, operand_types, aggregates, conditions, measures };
        let node = MatchRecognize::try_new(input, partition, order, operands, definition)?;
        let plan = LogicalPlan::Extension(Extension { node: Arc::new(node) });
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
    }
}

/// The pattern: the word that [`crate::prepare`] made of it, or what the parser read.
fn read_pattern(parsed: &MatchRecognizePattern, context: &dyn RelationPlannerContext) -> Result<Pattern> {
    let (text, origin) = match parsed {
        MatchRecognizePattern::Symbol(MatchRecognizeSymbol::Named(ident)) if ident.quote_style.is_none() => {
            (ident.value.clone(), ident.span.start)
        }
        other => (other.to_string(), Location { line: 0, column: 0 }),
    };
    let normalize =
        |name: &str, quoted: bool| context.normalize_ident(if quoted { Ident::with_quote('"', name) } else { Ident::new(name) });
    let pattern = pattern::read(&text, origin, &normalize)?;
    Program::compile(&pattern).map_err(|error| Refusal::invalid(error.to_string()).at(origin))?;
    Ok(pattern)
}

/// The variables of a pattern in the order of its program.
fn variables(pattern: &Pattern) -> Result<Vec<String>> {
    let program = Program::compile(pattern).map_err(|error| Refusal::invalid(error.to_string()))?;
    Ok(program.variables().to_vec())
}

fn skip(parsed: Option<AfterMatchSkip>, variables: &[String], context: &dyn RelationPlannerContext) -> Result<SkipTo> {
    let target = |ident: Ident| {
        let at = ident.span.start;
        let name = context.normalize_ident(ident);
        if variables.contains(&name) {
            return Ok(name);
        }
        Err(Refusal::invalid(format!("AFTER MATCH SKIP TO `{name}`, which is no variable of PATTERN")).at(at))
    };
    Ok(match parsed {
        None | Some(AfterMatchSkip::PastLastRow) => SkipTo::PastLastRow,
        Some(AfterMatchSkip::ToNextRow) => SkipTo::NextRow,
        Some(AfterMatchSkip::ToFirst(ident)) => SkipTo::First(target(ident)?),
        Some(AfterMatchSkip::ToLast(ident)) => SkipTo::Last(target(ident)?),
    })
}

/// A column of the input.
fn column(clause: &str, expr: SqlExpr, input: &LogicalPlan, context: &mut dyn RelationPlannerContext) -> Result<Expr> {
    let (at, text) = (expr.span().start, expr.to_string());
    let planned = context.sql_to_expr(expr, input.schema())?;
    if !matches!(planned, Expr::Column(_)) {
        let refusal = Refusal::invalid(format!("{clause} takes columns, and `{text}` is none"));
        return Err(refusal.at(at).hint("select the expression under a name of its own in WITH").into());
    }
    Ok(planned)
}

fn order(sort: OrderByExpr, input: &LogicalPlan, context: &mut dyn RelationPlannerContext) -> Result<SortExpr> {
    if sort.with_fill.is_some() {
        return Err(Refusal::unsupported("WITH FILL").at(sort.expr.span().start).into());
    }
    let expr = column("ORDER BY", sort.expr, input, context)?;
    let ascending = sort.options.asc.unwrap_or(true);
    // As everywhere else in DataFusion: null is above all values.
    Ok(expr.sort(ascending, sort.options.nulls_first.unwrap_or(!ascending)))
}

fn conditions(symbols: Vec<SymbolDefinition>, variables: &[String], resolver: &mut Resolver<'_>) -> Result<Vec<Condition>> {
    let mut conditions: Vec<Condition> = Vec::with_capacity(symbols.len());
    for SymbolDefinition { symbol, definition } in symbols {
        let at = symbol.span.start;
        let variable = resolver.normalize(&symbol);
        if !variables.contains(&variable) {
            let refusal = Refusal::invalid(format!("DEFINE has a condition of `{symbol}`, which is no variable of PATTERN"));
            return Err(refusal.at(at).hint("put it into the pattern, or leave the condition off").into());
        }
        if conditions.iter().any(|known| known.variable == variable) {
            return Err(Refusal::invalid(format!("DEFINE has two conditions of `{symbol}`"))
                .at(at)
                .hint("join them with AND")
                .into());
        }
        let text = definition.to_string();
        let expr = resolver.resolve(definition, Clause::Define(&variable))?;
        let data_type = expr.get_type(&slot_schema(&resolver.slots)?)?;
        if !matches!(data_type, DataType::Boolean | DataType::Null) {
            return Err(Refusal::invalid(format!("the condition of `{symbol}` is no truth value but {data_type}")).at(at).into());
        }
        conditions.push(Condition { variable, expr: Term::new(expr), text });
    }
    Ok(conditions)
}

fn resolve_measures(parsed: Vec<SqlMeasure>, resolver: &mut Resolver<'_>) -> Result<Vec<Measure>> {
    let mut names = HashSet::new();
    let mut measures = Vec::with_capacity(parsed.len());
    for SqlMeasure { expr, alias } in parsed {
        let name = resolver.normalize(&alias);
        if !names.insert(name.clone()) {
            return Err(Refusal::invalid(format!("two measures are named `{alias}`")).at(alias.span.start).into());
        }
        let text = expr.to_string();
        let expr = resolver.resolve(expr, Clause::Measures)?;
        measures.push(Measure { name, expr: Term::new(expr), text });
    }
    Ok(measures)
}
