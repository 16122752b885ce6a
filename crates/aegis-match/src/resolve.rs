//! Conditions and measures, from the text's tree to expressions over slots.
//!
//! What belongs to row patterns (navigation, classifier, match number, aggregates) is taken out of the tree and planned here; the rest is
//! DataFusion's. A column belongs to a variable, or, unqualified, to all rows of the match.

use std::collections::HashMap;
use std::sync::Arc;

use aegis_sql::tree::{self, Term};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, DFSchemaRef, TableReference};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::planner::RelationPlannerContext;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Function, FunctionArg, FunctionArgExpr, Ident, Spanned};
use datafusion::sql::sqlparser::tokenizer::Location;

use crate::definition::{Aggregate, CLASSIFIER, Read, Rows, Slot, operand_name, operand_schema, slot_name, slot_schema};
use crate::functions::{self, Called};
use crate::refusal::Refusal;
use crate::take_out::{Within, take_out};

/// Qualifiers of the planning schema that no variable has: all rows of the match, and slots.
pub(crate) const ALL_ROWS: &str = "*";
pub(crate) const SLOTS: &str = "#";

/// Where an expression stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause<'a> {
    /// Of this variable.
    Define(&'a str),
    Measures,
}

/// Resolves the expressions of one `MATCH_RECOGNIZE`, and gathers what they read.
pub(crate) struct Resolver<'a> {
    pub(crate) context: &'a mut dyn RelationPlannerContext,
    input: DFSchemaRef,
    variables: &'a [String],
    config: Arc<ConfigOptions>,
    pub(crate) operands: Vec<Expr>,
    pub(crate) operand_types: Vec<DataType>,
    pub(crate) slots: Vec<(Slot, DataType)>,
    pub(crate) aggregates: Vec<Aggregate>,
}

impl<'a> Resolver<'a> {
    pub(crate) fn new(context: &'a mut dyn RelationPlannerContext, input: DFSchemaRef, variables: &'a [String]) -> Result<Self> {
        if let Some(taken) = variables.iter().find(|name| [ALL_ROWS, SLOTS].contains(&name.as_str())) {
            return Err(Refusal::invalid(format!("a variable cannot be named `{taken}`")).into());
        }
        let config = Arc::new(context.context_provider().options().clone());
        let (operands, operand_types, slots, aggregates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Ok(Self { context, input, variables, config, operands, operand_types, slots, aggregates })
    }

    /// An expression of a clause, typed, over slots.
    pub(crate) fn resolve(&mut self, mut tree: SqlExpr, clause: Clause<'_>) -> Result<Expr> {
        take_out(self, &mut tree, clause, Within::Nothing)?;
        let planned = self.context.sql_to_expr(tree, self.planning_schema()?.as_ref())?;
        let over_slots = planned.transform_up(|part| match part {
            Expr::Column(column) => Ok(Transformed::yes(Expr::Column(self.slot_column(&column, clause)?))),
            other => Ok(Transformed::no(other)),
        })?;
        let schema = slot_schema(&self.slots)?;
        let typed = self.typed(over_slots.data, &schema)?;
        if typed.is_volatile() {
            let refusal = Refusal::invalid(format!("`{typed}` is not decided by the rows"));
            return Err(refusal.hint("DEFINE and MEASURES know no chance").into());
        }
        Ok(typed)
    }

    /// With types resolved and constants evaluated.
    fn typed(&self, expr: Expr, schema: &DFSchemaRef) -> Result<Expr> {
        let context =
            SimplifyContext::builder().with_schema(Arc::clone(schema)).with_config_options(Arc::clone(&self.config)).build();
        let simplifier = ExprSimplifier::new(context);
        simplifier.simplify(simplifier.coerce(expr, schema)?)
    }

    /// The columns that a tree may name: each input column for each variable and for all rows, and the slots.
    fn planning_schema(&self) -> Result<DFSchemaRef> {
        let qualifiers = self.variables.iter().map(String::as_str).chain([ALL_ROWS]);
        let classifier: FieldRef = Arc::new(Field::new(CLASSIFIER, DataType::Utf8, true));
        let mut columns = Vec::new();
        for qualifier in qualifiers {
            let mut seen = std::collections::HashSet::new();
            let fields = self.input.fields().iter().filter(|field| seen.insert(field.name().clone())).chain([&classifier]);
            columns.extend(fields.map(|field| (Some(TableReference::bare(qualifier)), Arc::clone(field))));
        }
        let slots = self.slots.iter().enumerate().map(|(index, (_, data_type))| {
            (Some(TableReference::bare(SLOTS)), Arc::new(Field::new(slot_name(index), data_type.clone(), true)))
        });
        columns.extend(slots);
        Ok(Arc::new(DFSchema::new_with_metadata(columns, HashMap::new())?))
    }

    /// The slot that a column of the planning schema is.
    fn slot_column(&mut self, column: &Column, clause: Clause<'_>) -> Result<Column> {
        let qualifier = column.relation.as_ref().map_or(ALL_ROWS, TableReference::table);
        if qualifier == SLOTS {
            return Ok(Column::new_unqualified(column.name.clone()));
        }
        let operand = self.operand(Expr::Column(self.input_column(&column.name)?))?;
        let navigated =
            Slot::Navigated { read: Read::Operand(operand), rows: rows_of(qualifier), from_first: false, nth: 0, step: 0 };
        let index = self.slot(navigated, self.operand_types[operand].clone(), clause);
        Ok(Column::new_unqualified(slot_name(index)))
    }

    fn input_column(&self, name: &str) -> Result<Column> {
        let mut found = self.input.iter().filter(|(_, field)| field.name() == name);
        match (found.next(), found.next()) {
            (Some(column), None) => Ok(Column::from(column)),
            (Some(_), Some(_)) => {
                let refusal = Refusal::invalid(format!("the input has several columns `{name}`"));
                Err(refusal.hint("give the input's columns names of their own").into())
            }
            (None, _) => Err(Refusal::invalid(format!("the input has no column `{name}`")).into()),
        }
    }

    /// The place of an expression over an input row.
    fn operand(&mut self, expr: Expr) -> Result<usize> {
        let expr = self.typed(expr, &self.input)?;
        if let Some(known) = self.operands.iter().position(|operand| tree::same(operand, &expr)) {
            return Ok(known);
        }
        self.operand_types.push(expr.get_type(&self.input)?);
        self.operands.push(expr);
        Ok(self.operands.len() - 1)
    }

    pub(crate) fn slot(&mut self, slot: Slot, data_type: DataType, clause: Clause<'_>) -> usize {
        let slot = match (slot, clause) {
            // In a condition the row itself is the last of its variable.
            (Slot::Navigated { read, rows: Rows::Of(variable), from_first: false, nth: 0, step }, Clause::Define(own))
                if variable == own =>
            {
                Slot::Navigated { read, rows: Rows::All, from_first: false, nth: 0, step }
            }
            (slot, _) => slot,
        };
        if let Some(known) = self.slots.iter().position(|(known, _)| *known == slot) {
            return known;
        }
        self.slots.push((slot, data_type));
        self.slots.len() - 1
    }

    /// `FIRST`, `LAST`, `PREV`, `NEXT`, and one within another.
    pub(crate) fn navigation(&mut self, function: &Function, called: &Called, clause: Clause<'_>) -> Result<(Slot, DataType)> {
        let at = function.span().start;
        let (operand, offset) = functions::navigation_arguments(function, called)?;
        if called.is_physical() {
            let step = i64::from(offset.unwrap_or(1));
            let step = if called.name == "prev" { -step } else { step };
            let inner = match &operand {
                SqlExpr::Function(inner) => functions::called(inner).filter(Called::is_logical).map(|called| (inner, called)),
                _ => None,
            };
            let (slot, data_type) = match inner {
                Some((inner, inner_called)) => {
                    functions::check_semantics(&inner_called, clause, inner.span().start)?;
                    self.navigation(inner, &inner_called, clause)?
                }
                None => self.navigated(operand, (false, 0), clause, at)?,
            };
            let Slot::Navigated { read, rows, from_first, nth, .. } = slot else { return Ok((slot, data_type)) };
            return Ok((Slot::Navigated { read, rows, from_first, nth, step }, data_type));
        }
        self.navigated(operand, (called.name == "first", offset.unwrap_or(0) as usize), clause, at)
    }

    /// An operand of one variable at its first or last row.
    fn navigated(
        &mut self,
        operand: SqlExpr,
        (from_first, nth): (bool, usize),
        clause: Clause<'_>,
        at: Location,
    ) -> Result<(Slot, DataType)> {
        if let SqlExpr::Function(function) = &operand
            && functions::called(function).is_some_and(|called| called.name == "classifier")
        {
            let rows = rows_of(&self.classified(function)?);
            return Ok((Slot::Navigated { read: Read::Classifier, rows, from_first, nth, step: 0 }, DataType::Utf8));
        }
        let text = operand.to_string();
        let (expr, rows) = self.of_one_variable(operand, clause, Within::Navigation, &text, at)?;
        let Some(rows) = rows else {
            return Err(Refusal::invalid(format!("`{text}` names no column, so there is no row to go to")).at(at).into());
        };
        let operand = self.operand(self.over_input(expr)?)?;
        let data_type = self.operand_types[operand].clone();
        Ok((Slot::Navigated { read: Read::Operand(operand), rows, from_first, nth, step: 0 }, data_type))
    }

    /// A planned expression, its columns still qualified, and the variable that all of them belong to.
    fn of_one_variable(
        &mut self,
        mut tree: SqlExpr,
        clause: Clause<'_>,
        within: Within,
        text: &str,
        at: Location,
    ) -> Result<(Expr, Option<Rows>)> {
        take_out(self, &mut tree, clause, within)?;
        let planned = self.context.sql_to_expr(tree, self.planning_schema()?.as_ref())?;
        let mut qualifiers: Vec<&str> =
            planned.column_refs().into_iter().map(|c| c.relation.as_ref().map_or(ALL_ROWS, TableReference::table)).collect();
        qualifiers.sort_unstable();
        qualifiers.dedup();
        if let [first, second, ..] = qualifiers.as_slice() {
            let said = |name: &str| if name == ALL_ROWS { "all rows".to_owned() } else { format!("`{name}`") };
            let message = format!("`{text}` reads columns of {} and of {}", said(first), said(second));
            return Err(Refusal::invalid(message)
                .at(at)
                .hint("navigation and aggregates go over the rows of one variable")
                .into());
        }
        let rows = qualifiers.first().map(|name| rows_of(name));
        Ok((planned, rows))
    }

    /// The expression with the input's own columns.
    fn over_input(&self, expr: Expr) -> Result<Expr> {
        let rewritten = expr.transform_up(|part| match part {
            Expr::Column(column) => Ok(Transformed::yes(Expr::Column(self.input_column(&column.name)?))),
            other => Ok(Transformed::no(other)),
        })?;
        Ok(rewritten.data)
    }

    /// An aggregate over the rows of one variable.
    pub(crate) fn aggregate(&mut self, function: Function, clause: Clause<'_>) -> Result<(Slot, DataType)> {
        let at = function.span().start;
        let text = function.to_string();
        let (function, counted) = functions::without_counted_wildcard(function);
        let counted = counted.map(|variable| self.variable(&variable)).transpose()?;
        if functions::only_counts_rows(&function) {
            return Ok((Slot::Count(counted.map_or(Rows::All, Rows::Of)), DataType::Int64));
        }
        let (planned, rows) = self.of_one_variable(SqlExpr::Function(function), clause, Within::Aggregate, &text, at)?;
        let rows = match (counted, rows) {
            (None, rows) => rows.unwrap_or(Rows::All),
            (Some(variable), None) => Rows::Of(variable),
            (Some(variable), Some(rows)) if rows == Rows::Of(variable.clone()) => rows,
            (Some(variable), Some(_)) => {
                let message = format!("`{text}` counts rows of `{variable}` and reads columns of others");
                return Err(Refusal::invalid(message).at(at).into());
            }
        };
        // `count(*)` has another name than what it is planned as.
        let Expr::AggregateFunction(AggregateFunction { func, mut params }) = planned.unalias() else {
            return Err(Refusal::invalid(format!("`{text}` is no aggregate")).at(at).into());
        };
        if !params.order_by.is_empty() && matches!(clause, Clause::Define(_)) {
            return Err(Refusal::unsupported("ORDER BY in an aggregate of DEFINE").at(at).into());
        }
        params.args = params.args.into_iter().map(|arg| self.over_operands(arg)).collect::<Result<_>>()?;
        params.filter = params.filter.map(|filter| self.over_operands(*filter).map(Box::new)).transpose()?;
        for sort in &mut params.order_by {
            sort.expr = self.over_operands(tree::copied(&sort.expr))?;
        }
        let function = Expr::AggregateFunction(AggregateFunction { func, params });
        let schema = operand_schema(&self.operand_types)?;
        let function = self.typed(function, &schema)?;
        if !matches!(function, Expr::AggregateFunction(_)) {
            return Err(Refusal::unsupported(format!("`{text}`")).at(at).into());
        }
        let data_type = function.get_type(&schema)?;
        let aggregate = Aggregate { rows, function: Term::new(function) };
        let index = self.aggregates.iter().position(|known| *known == aggregate).unwrap_or_else(|| {
            self.aggregates.push(aggregate);
            self.aggregates.len() - 1
        });
        Ok((Slot::Aggregate(index), data_type))
    }

    /// An aggregate's argument over operands: one operand as a whole, unless the row's variable is read in it too.
    fn over_operands(&mut self, expr: Expr) -> Result<Expr> {
        if expr.column_refs().is_empty() {
            return Ok(expr);
        }
        let classified = expr.column_refs().iter().any(|column| column.name == CLASSIFIER);
        if !classified {
            let over_input = self.over_input(expr)?;
            let operand = self.operand(over_input)?;
            return Ok(Expr::Column(Column::new_unqualified(operand_name(operand))));
        }
        let rewritten = expr.transform_up(|part| match part {
            Expr::Column(column) if column.name == CLASSIFIER => {
                Ok(Transformed::yes(Expr::Column(Column::new_unqualified(CLASSIFIER))))
            }
            Expr::Column(column) => {
                let operand = self.operand(Expr::Column(self.input_column(&column.name)?))?;
                Ok(Transformed::yes(Expr::Column(Column::new_unqualified(operand_name(operand)))))
            }
            other => Ok(Transformed::no(other)),
        })?;
        Ok(rewritten.data)
    }

    /// The qualifier of `CLASSIFIER()` or `CLASSIFIER(v)`.
    pub(crate) fn classified(&self, function: &Function) -> Result<String> {
        match functions::arguments(function).as_slice() {
            [] => Ok(ALL_ROWS.to_owned()),
            [FunctionArg::Unnamed(FunctionArgExpr::Expr(SqlExpr::Identifier(variable)))] => Ok(self.variable(variable)?),
            _ => {
                let refusal = Refusal::invalid(format!("`{function}` takes no argument, or a variable"));
                Err(refusal.at(function.span().start).into())
            }
        }
    }

    /// The name that an identifier is.
    pub(crate) fn normalize(&self, ident: &Ident) -> String {
        self.context.normalize_ident(ident.clone())
    }

    pub(crate) fn variable(&self, ident: &Ident) -> Result<String, Refusal> {
        let name = self.context.normalize_ident(ident.clone());
        if self.variables.contains(&name) {
            return Ok(name);
        }
        let known = self.variables.join(", ");
        let refusal = Refusal::invalid(format!("`{ident}` is no variable of PATTERN")).at(ident.span.start);
        Err(refusal.hint(format!("its variables are: {known}; a column of any row stands without a qualifier")))
    }

    pub(crate) fn column(&self, ident: &Ident) -> Result<String, Refusal> {
        let name = self.context.normalize_ident(ident.clone());
        if self.input.fields().iter().any(|field| *field.name() == name) {
            return Ok(name);
        }
        let refusal = Refusal::invalid(format!("the input of MATCH_RECOGNIZE has no column `{ident}`"));
        Err(refusal.at(ident.span.start))
    }
}

pub(crate) fn rows_of(qualifier: &str) -> Rows {
    if qualifier == ALL_ROWS { Rows::All } else { Rows::Of(qualifier.to_owned()) }
}
