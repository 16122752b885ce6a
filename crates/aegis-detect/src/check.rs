//! What a rule may not do, checked on its logical plan when it loads (CONTRACTS §10, law 1).
//! Works by allow-list: a plan node or a function that is not known to be harmless is refused, with its place.

use aegis_match::MatchRecognize;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DataFusionError};
use datafusion::logical_expr::expr::{AggregateFunction, ScalarFunction, WindowFunction};
use datafusion::logical_expr::{Distinct, Expr, JoinType, LogicalPlan, Volatility, WindowFrameUnits, WindowFunctionDefinition};

use crate::error::{RuleCode, RuleError};
use crate::rule::Rule;
use crate::schema::{ALERTS_TABLE, TABLE};
use crate::sql::{SqlText, table_error};

/// What a containing rule may key on: none of it is the caller's to choose freely.
const CONTAINING_KEYS: [&str; 8] = ["agent_id", "token_id", "tenant_id", "edge_id", "lane", "environment", "tool", "action"];
/// Window functions whose result does not depend on the order among equal rows.
const TIE_PROOF: [&str; 4] = ["rank", "dense_rank", "percent_rank", "cume_dist"];
/// The columns that the order of events is made of.
pub(crate) const EVENT_ORDER: [&str; 4] = ["ts", "lane", "seq", "event_id"];
/// Aggregates whose result depends on row order.
const ORDER_DEPENDENT: [&str; 4] = ["first_value", "last_value", "nth_value", "string_agg"];

/// Refuses every node, function and column that a rule may not use.
pub(crate) fn check_plan(plan: &LogicalPlan, sql: &SqlText) -> Result<(), RuleError> {
    let mut refusal = None;
    let walked = plan.apply_with_subqueries(|node| {
        refusal = check_node(node, sql).and_then(|()| check_expressions(node, sql)).err();
        Ok(if refusal.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    walked.map_err(|error| sql.explain(&error))?;
    refusal.map_or(Ok(()), Err)
}

fn check_node(node: &LogicalPlan, sql: &SqlText) -> Result<(), RuleError> {
    let unsupported = |what: &str, word: &str| {
        Err(RuleError::new(RuleCode::RuleUnsupported, format!("{what} is not supported in a rule")).at(sql.place_of(word)))
    };
    match node {
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::Window(_)
        | LogicalPlan::Aggregate(_)
        | LogicalPlan::Subquery(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Distinct(Distinct::All(_)) => Ok(()),
        LogicalPlan::Sort(sort) if sort.fetch.is_none() => Ok(()),
        LogicalPlan::Extension(extension) if extension.node.as_any().is::<MatchRecognize>() => {
            row_pattern(node).map_or(Ok(()), |node| check_row_pattern(node, sql))
        }
        LogicalPlan::Join(join) => match join.join_type {
            JoinType::Inner | JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti => Ok(()),
            _ => unsupported("this kind of join", "join"),
        },
        LogicalPlan::TableScan(scan) if [TABLE, ALERTS_TABLE].contains(&scan.table_name.table()) => Ok(()),
        LogicalPlan::TableScan(scan) => {
            let name = scan.table_name.table();
            Err(table_error(name).at(sql.place_of(name.trim_end_matches("()"))))
        }
        LogicalPlan::Dml(_) | LogicalPlan::Ddl(_) | LogicalPlan::Copy(_) | LogicalPlan::Statement(_) => {
            let error = RuleError::new(RuleCode::RuleNotAQuery, "a rule cannot write, define or configure anything");
            Err(error.at(sql.place_of("into").or_else(|| sql.start())))
        }
        LogicalPlan::EmptyRelation(_) | LogicalPlan::Values(_) => {
            Err(RuleError::new(RuleCode::RuleTable, "a rule reads from the table `events`").at(sql.start()))
        }
        LogicalPlan::Limit(_) | LogicalPlan::Sort(_) => {
            unsupported("LIMIT: which rows remain is not decided by the events; it", "limit")
        }
        LogicalPlan::Union(_) => unsupported("UNION", "union"),
        LogicalPlan::Distinct(Distinct::On(_)) => unsupported("DISTINCT ON", "distinct"),
        LogicalPlan::RecursiveQuery(_) => unsupported("WITH RECURSIVE", "recursive"),
        LogicalPlan::Unnest(_) => unsupported("UNNEST", "unnest"),
        other => {
            let what = other.display().to_string();
            Err(RuleError::new(RuleCode::RuleUnsupported, format!("{what} is not supported in a rule")).at(sql.start()))
        }
    }
}

/// The row pattern that a node is, if it is one.
pub(crate) fn row_pattern(node: &LogicalPlan) -> Option<&MatchRecognize> {
    let LogicalPlan::Extension(extension) = node else { return None };
    extension.node.as_any().downcast_ref()
}

fn check_row_pattern(node: &MatchRecognize, sql: &SqlText) -> Result<(), RuleError> {
    if let Some(variable) = node.skip_can_fail() {
        let message = format!("a match may have no row of `{variable}`, or begin with it, and then it cannot be skipped to");
        let error = RuleError::new(RuleCode::RuleMatchRecognize, message).at(sql.place_of("skip"));
        return Err(error.hint("AFTER MATCH SKIP PAST LAST ROW, or TO NEXT ROW"));
    }
    let mut refusal = None;
    for expr in node.resolved_expressions() {
        let walked = expr.apply(|part| {
            refusal = match part {
                // In the rows' order, which has no ties: see `total_order`.
                Expr::AggregateFunction(AggregateFunction { func, .. }) => {
                    check_volatility(func.name(), func.signature().volatility, sql).err()
                }
                _ => check_expression(part, sql).err(),
            };
            Ok(if refusal.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        });
        walked.map_err(|error: DataFusionError| sql.explain(&error))?;
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
    }
    // An order of its own that ends in the id has no ties that the order of events would have to decide.
    let by_event_id = node.order_by().iter().any(|sort| match &sort.expr {
        Expr::Column(column) if column.name == "event_id" => {
            base_column(node.input(), column).is_none_or(|base| base == "event_id")
        }
        _ => false,
    });
    let there: Vec<&str> = event_order(node).map(|(name, _)| name).collect();
    let missing: Vec<&str> = EVENT_ORDER.into_iter().filter(|name| !there.contains(name)).collect();
    if by_event_id || missing.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the rows of MATCH_RECOGNIZE are not in the order of events where its ORDER BY leaves ties: its input has no {}",
        missing.join(", ")
    );
    let hint = "let its input have the columns ts, lane, seq and event_id as they are in events; or order by event_id in the end";
    Err(RuleError::new(RuleCode::RuleOrder, message).at(sql.place_of("MATCH_RECOGNIZE")).hint(hint))
}

/// Those columns of the input of a row pattern that the order of events is made of, in that order.
pub(crate) fn event_order(node: &MatchRecognize) -> impl Iterator<Item = (&'static str, Column)> + '_ {
    EVENT_ORDER.into_iter().filter_map(|name| {
        let mut columns = node.input().schema().iter().map(Column::from);
        columns.find(|column| base_column(node.input(), column).as_deref() == Some(name)).map(|column| (name, column))
    })
}

fn check_expressions(node: &LogicalPlan, sql: &SqlText) -> Result<(), RuleError> {
    let mut refusal = None;
    let walked = node.apply_expressions(|expr| {
        expr.apply(|part| {
            refusal = check_expression(part, sql).err();
            Ok(if refusal.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    });
    walked.map_err(|error: DataFusionError| sql.explain(&error))?;
    refusal.map_or(Ok(()), Err)
}

fn check_expression(expr: &Expr, sql: &SqlText) -> Result<(), RuleError> {
    match expr {
        Expr::ScalarFunction(ScalarFunction { func, .. }) => check_volatility(func.name(), func.signature().volatility, sql),
        Expr::AggregateFunction(AggregateFunction { func, params }) => {
            check_volatility(func.name(), func.signature().volatility, sql)?;
            let ordered = params.order_by.iter().any(|s| is_event_id(&s.expr));
            if ORDER_DEPENDENT.contains(&func.name()) && !ordered { Err(tie_error(func.name(), sql)) } else { Ok(()) }
        }
        Expr::WindowFunction(function) => check_window_function(function, sql),
        Expr::ScalarVariable(..) | Expr::Placeholder(_) => {
            Err(RuleError::new(RuleCode::RuleUnsupported, "variables and placeholders have no value in a rule").at(sql.start()))
        }
        Expr::HigherOrderFunction(_) | Expr::Lambda(_) | Expr::LambdaVariable(_) => {
            Err(RuleError::new(RuleCode::RuleUnsupported, "lambda functions are not supported in a rule").at(sql.start()))
        }
        Expr::ScalarSubquery(_) | Expr::SetComparison(_) => {
            let error = RuleError::new(RuleCode::RuleUnsupported, "a scalar subquery is not supported in a rule");
            Err(error.at(sql.start()).hint("use a window function, a join, EXISTS or IN"))
        }
        _ => Ok(()),
    }
}

fn check_volatility(name: &str, volatility: Volatility, sql: &SqlText) -> Result<(), RuleError> {
    if volatility == Volatility::Immutable {
        return Ok(());
    }
    let error = RuleError::new(RuleCode::RuleFunction, format!("`{name}()` is not decided by the events alone"));
    let synonyms = [name, "current_timestamp", "current_date", "current_time", "localtimestamp"];
    let place = synonyms.iter().find_map(|word| sql.place_of(word));
    Err(error.at(place).hint("a rule has no clock and no chance: use `ts`, and RANGE frames or differences of `ts`"))
}

fn check_window_function(function: &WindowFunction, sql: &SqlText) -> Result<(), RuleError> {
    let (name, volatility, order_dependent) = match &function.fun {
        WindowFunctionDefinition::AggregateUDF(f) => (f.name(), f.signature().volatility, ORDER_DEPENDENT.contains(&f.name())),
        WindowFunctionDefinition::WindowUDF(f) => (f.name(), f.signature().volatility, !TIE_PROOF.contains(&f.name())),
    };
    check_volatility(name, volatility, sql)?;
    let params = &function.params;
    let counts_rows = params.window_frame.units == WindowFrameUnits::Rows;
    // A ROWS frame over the whole partition takes in every row, whatever their order.
    let whole = params.window_frame.start_bound.is_unbounded() && params.window_frame.end_bound.is_unbounded();
    let total = params.order_by.iter().any(|s| is_event_id(&s.expr));
    if (order_dependent || (counts_rows && !whole)) && !total { Err(tie_error(name, sql)) } else { Ok(()) }
}

fn tie_error(name: &str, sql: &SqlText) -> RuleError {
    let message = format!("`{name}` depends on the order of rows, and its ORDER BY leaves ties");
    let hint = "order by ts, lane, seq, event_id; or use a RANGE frame with count, min, max, sum or array_agg";
    RuleError::new(RuleCode::RuleOrder, message).at(sql.place_of(name)).hint(hint)
}

fn is_event_id(expr: &Expr) -> bool {
    matches!(expr, Expr::Column(column) if column.name == "event_id")
}

/// Refuses a query whose output lacks its key or its evidence, or, in a containing rule, keys on what the caller chooses.
pub(crate) fn check_output(plan: &LogicalPlan, rule: &Rule, sql: &SqlText) -> Result<(), RuleError> {
    let schema = plan.schema();
    let position = |name: &str| schema.fields().iter().position(|f| f.name() == name);
    for key in &rule.header.key {
        let Some(index) = position(key) else {
            let error = RuleError::new(
                RuleCode::RuleKey,
                format!("the query has no output column `{key}`, which the header names as key"),
            );
            return Err(error.at(rule.header_place("key")).hint(format!("add `{key}` to the SELECT list")));
        };
        if rule.header.contains() {
            let base = base_column(plan, &Column::from(schema.qualified_field(index)));
            if !base.as_deref().is_some_and(|b| CONTAINING_KEYS.contains(&b)) {
                let message =
                    format!("`{key}` is not an identity that the server decides, so a rule that contains may not key on it");
                let error = RuleError::new(RuleCode::RuleCallerKey, message).at(sql.place_of(key).or(rule.header_place("key")));
                return Err(error.hint(format!("key on one of these columns as it is: {}", CONTAINING_KEYS.join(", "))));
            }
        }
    }
    if rule.header.contains() {
        for response in &rule.header.respond {
            let name = response.key_column();
            let base = position(name).and_then(|i| base_column(plan, &Column::from(schema.qualified_field(i))));
            if base.as_deref() != Some(name) {
                let message =
                    format!("`{name}` in the output is not the column `{name}` of events, and {} acts on it", response.as_str());
                return Err(RuleError::new(RuleCode::RuleCallerKey, message).at(sql.place_of(name)));
            }
        }
    }
    let field_type = |name: &str| position(name).map(|i| schema.field(i).data_type().clone());
    let is_text = |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    match (field_type("event_ids"), field_type("event_id")) {
        (Some(DataType::List(item) | DataType::LargeList(item)), _) if is_text(item.data_type()) => Ok(()),
        (Some(_), _) => {
            let error = RuleError::new(RuleCode::RuleEvidence, "`event_ids` must be a list of event ids");
            Err(error.at(sql.place_of("event_ids")).hint("array_agg(event_id) OVER (…) AS event_ids"))
        }
        (None, Some(t)) if is_text(&t) => Ok(()),
        (None, _) => {
            let error = RuleError::new(
                RuleCode::RuleEvidence,
                "the query has no evidence: neither `event_id` nor `event_ids` in its output",
            );
            Err(error.at(sql.start()).hint("add event_id, or array_agg(event_id) OVER (…) AS event_ids, to the SELECT list"))
        }
    }
}

/// The column of `events` that an output column is, unchanged, if it is one.
pub(crate) fn base_column(plan: &LogicalPlan, column: &Column) -> Option<String> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let index = scan.projected_schema.maybe_index_of_column(column)?;
            Some(scan.projected_schema.field(index).name().clone())
        }
        LogicalPlan::Projection(projection) => {
            let index = projection.schema.maybe_index_of_column(column)?;
            let mut expr = projection.expr.get(index)?;
            while let Expr::Alias(alias) = expr {
                expr = &alias.expr;
            }
            let Expr::Column(inner) = expr else { return None };
            base_column(&projection.input, inner)
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let index = alias.schema.maybe_index_of_column(column)?;
            base_column(&alias.input, &Column::from(alias.input.schema().qualified_field(index)))
        }
        LogicalPlan::Window(window) if window.input.schema().maybe_index_of_column(column).is_some() => {
            base_column(&window.input, column)
        }
        LogicalPlan::Extension(_) => {
            let node = row_pattern(plan)?;
            let index = plan.schema().maybe_index_of_column(column)?;
            base_column(node.input(), node.partition_columns().nth(index)?)
        }
        LogicalPlan::Aggregate(aggregate) => {
            let index = aggregate.schema.maybe_index_of_column(column)?;
            let Expr::Column(inner) = aggregate.group_expr.get(index)? else { return None };
            base_column(&aggregate.input, inner)
        }
        LogicalPlan::Join(join) => {
            // The right side of an outer join can be null where the column itself is not.
            let sides = if join.join_type == JoinType::Inner { vec![&join.left, &join.right] } else { vec![&join.left] };
            sides.into_iter().find(|s| s.schema().maybe_index_of_column(column).is_some()).and_then(|s| base_column(s, column))
        }
        LogicalPlan::Filter(_) | LogicalPlan::Sort(_) | LogicalPlan::Distinct(Distinct::All(_)) => {
            plan.inputs().first().and_then(|input| base_column(input, column))
        }
        _ => None,
    }
}
