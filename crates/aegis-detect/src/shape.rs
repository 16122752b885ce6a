//! How a rule's query has to be run: over new events only, over a sliding slice, for the matches of a row pattern alone, or instant by instant.
//! Also adds `tenant_id` to every window partition, so that one run over all tenants is the union of the runs over each.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_match::MatchRecognize;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DataFusionError, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::{
    BinaryExpr, Expr, Extension, Filter, LogicalPlan, Operator, Projection, SubqueryAlias, Window, WindowFrameBound,
    WindowFrameUnits, col,
};

use crate::check::{base_column, event_order, row_pattern};
use crate::schema::{column_index, is_side};

/// Output columns that the planner adds for the engine.
pub(crate) const TENANT_OUT: &str = "__tenant";
pub(crate) const INSTANT_OUT: &str = "__instant";

const MICROS_PER_DAY: i64 = 86_400_000_000;
const SHORTEST_MONTH: i64 = 28 * MICROS_PER_DAY;

/// How a query is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Each row stands alone: run over new events, nothing is kept.
    Stateless,
    /// Every window is a RANGE of `ts` that ends at its row: one run over the touched slice answers for all its instants.
    Sliding,
    /// The same, and every function is one that can be followed: only new events are looked at, beside what is known of those before.
    Incremental,
    /// As sliding, but a frame ends after its row: a row is decided when nothing is expected any more before its frames' end.
    Deferred,
    /// A row pattern that is followed: of new events it is asked which matches end with them, and of those alone something is told.
    Pattern,
    /// Anything else: run once for each instant, over exactly the events of the window that ends there.
    Stepped,
}

/// How far the frames of a query go from a row, in microseconds, those on top of each other added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) back: i64,
    pub(crate) ahead: i64,
}

impl Reach {
    pub(crate) const fn span(self) -> i64 {
        self.back.saturating_add(self.ahead)
    }
}

/// What was found out about a query.
#[derive(Debug)]
pub(crate) struct Analysis {
    pub(crate) shape: Shape,
    /// The longest single RANGE frame over time, in microseconds.
    pub(crate) longest_frame: i64,
    /// How far a row looks, if that is bounded by RANGE frames of `ts` alone.
    pub(crate) reach: Option<Reach>,
    /// True if a frame goes to a time after its row.
    pub(crate) looks_ahead: bool,
    /// True if one does so over descending values, where what precedes a row is later than it.
    pub(crate) descends_ahead: bool,
    /// Columns of `events` by which every window or row pattern is partitioned; None when there is none, or something else that joins rows.
    pub(crate) partition: Option<Vec<String>>,
}

/// Decides the shape of an analyzed plan (intervals must have been coerced).
pub(crate) fn analyze(plan: &LogicalPlan, window_micros: i64) -> Result<Analysis> {
    let (mut longest_frame, mut looks_ahead, mut descends_ahead) = (0, false, false);
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Window(window) = node {
            for function in window.window_expr.iter().filter_map(window_function) {
                let frame = &function.params.window_frame;
                if frame.units == WindowFrameUnits::Range {
                    let descends = function.params.order_by.first().is_some_and(|order| !order.asc);
                    for distance in [&frame.start_bound, &frame.end_bound].into_iter().filter_map(at_least_before) {
                        let back = if descends { distance.saturating_neg() } else { distance };
                        longest_frame = longest_frame.max(back);
                        looks_ahead |= back < 0;
                        descends_ahead |= descends && back < 0;
                    }
                }
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let mut partition = None;
    let looks = reach(plan, &mut partition);
    let shape = match looks {
        Some(_) if partition.is_none() => Shape::Stateless,
        Some(looks) if looks.span() > window_micros => Shape::Stepped,
        Some(looks) if looks.ahead > 0 => Shape::Deferred,
        Some(_) => Shape::Sliding,
        None => Shape::Stepped,
    };
    if shape == Shape::Stepped {
        partition = row_patterns_partition(plan).flatten();
    }
    Ok(Analysis { shape, longest_frame, reach: looks, looks_ahead, descends_ahead, partition })
}

/// True if a window function makes a list.
pub(crate) fn lists_in_windows(plan: &LogicalPlan) -> Result<bool> {
    let mut lists = false;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Window(window) = node {
            lists |= window.window_expr.iter().filter_map(window_function).any(|function| function.fun.name() == "array_agg");
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(lists)
}

/// Columns of `events` by which every row pattern is partitioned, in a plan where nothing else joins rows.
fn row_patterns_partition(plan: &LogicalPlan) -> Option<Option<Vec<String>>> {
    match plan {
        LogicalPlan::TableScan(_) => Some(None),
        LogicalPlan::Projection(p) if !p.expr.iter().any(has_subquery) => row_patterns_partition(&p.input),
        LogicalPlan::Filter(f) if !has_subquery(&f.predicate) => row_patterns_partition(&f.input),
        LogicalPlan::SubqueryAlias(a) => row_patterns_partition(&a.input),
        LogicalPlan::Sort(s) if s.fetch.is_none() => row_patterns_partition(&s.input),
        LogicalPlan::Extension(_) => {
            let node = row_pattern(plan)?;
            let columns: Vec<String> = node.partition_columns().filter_map(|column| base_column(node.input(), column)).collect();
            Some(Some(match row_patterns_partition(node.input())? {
                Some(below) => below.into_iter().filter(|column| columns.contains(column)).collect(),
                None => columns,
            }))
        }
        _ => None,
    }
}

/// The row pattern of a query that is one, over filters and projections of a table and under some.
pub(crate) fn only_row_pattern(plan: &LogicalPlan) -> Option<&MatchRecognize> {
    row_patterns_partition(plan)?;
    let mut below = plan;
    loop {
        if let Some(node) = row_pattern(below) {
            let is_only = matches!(row_patterns_partition(node.input()), Some(None));
            return is_only.then_some(node);
        }
        below = below.inputs().first().copied()?;
    }
}

/// Orders the rows of every row pattern by the order of events where its own leaves ties.
pub(crate) fn total_order(plan: LogicalPlan) -> Result<LogicalPlan> {
    let rewritten = plan.transform_up_with_subqueries(|plan| {
        let Some(node) = row_pattern(&plan) else { return Ok(Transformed::no(plan)) };
        let order = event_order(node).map(|(_, column)| Expr::Column(column).sort(true, true)).collect::<Vec<_>>();
        let node = Arc::new(node.clone().then_ordered_by(order));
        Ok(Transformed::yes(LogicalPlan::Extension(Extension { node })))
    })?;
    Ok(rewritten.data)
}

/// How far a row of the plan looks, if that is bounded by RANGE frames alone.
fn reach(plan: &LogicalPlan, partition: &mut Option<Vec<String>>) -> Option<Reach> {
    match plan {
        LogicalPlan::TableScan(_) => Some(Reach::default()),
        LogicalPlan::Projection(p) if !p.expr.iter().any(has_subquery) => reach(&p.input, partition),
        LogicalPlan::Filter(f) if !has_subquery(&f.predicate) => reach(&f.input, partition),
        LogicalPlan::SubqueryAlias(a) => reach(&a.input, partition),
        LogicalPlan::Sort(s) if s.fetch.is_none() => reach(&s.input, partition),
        LogicalPlan::Window(window) => {
            let mut longest = Reach::default();
            for expr in &window.window_expr {
                let function = window_function(expr)?;
                let (start, end) = sliding_frame(&window.input, function)?;
                longest.back = longest.back.max(start);
                longest.ahead = longest.ahead.max(end.saturating_neg());
                let columns = function.params.partition_by.iter().filter_map(|e| match e {
                    Expr::Column(column) => base_column(&window.input, column),
                    _ => None,
                });
                let columns: Vec<String> = columns.collect();
                *partition = Some(match partition.take() {
                    Some(common) => common.into_iter().filter(|c| columns.contains(c)).collect(),
                    None => columns,
                });
            }
            let below = reach(&window.input, partition)?;
            Some(Reach { back: longest.back.saturating_add(below.back), ahead: longest.ahead.saturating_add(below.ahead) })
        }
        _ => None,
    }
}

/// How far a RANGE frame over ascending `ts` starts and ends before its row; None for any other.
fn sliding_frame(input: &LogicalPlan, function: &WindowFunction) -> Option<(i64, i64)> {
    let params = &function.params;
    let [order] = params.order_by.as_slice() else { return None };
    let Expr::Column(column) = &order.expr else { return None };
    let by_time = order.asc && base_column(input, column).as_deref() == Some("ts");
    if by_time { ends_of(function) } else { None }
}

/// How far a RANGE frame's start and end are before its row, in microseconds; None where it is none or its end is not before or at its row.
pub(crate) fn frame_of(function: &WindowFunction) -> Option<(i64, i64)> {
    ends_of(function).filter(|(_, end)| *end >= 0)
}

/// How far a RANGE frame's start and end are before its row, in microseconds; negative: after it. None where it has no such ends.
fn ends_of(function: &WindowFunction) -> Option<(i64, i64)> {
    let frame = &function.params.window_frame;
    if frame.units != WindowFrameUnits::Range {
        return None;
    }
    Some((before(&frame.start_bound)?, before(&frame.end_bound)?)).filter(|(start, end)| start >= end)
}

/// How far before its row a bound is, in microseconds; negative: after it. None for an unbounded one, and where it is no time.
fn before(bound: &WindowFrameBound) -> Option<i64> {
    match bound {
        WindowFrameBound::CurrentRow => Some(0),
        WindowFrameBound::Preceding(interval) => micros_of(interval),
        WindowFrameBound::Following(interval) => micros_of(interval)?.checked_neg(),
    }
}

/// The same, where a month counts as the shortest one: it has no length of its own, and is longer than any window.
fn at_least_before(bound: &WindowFrameBound) -> Option<i64> {
    let months = |interval: &ScalarValue| match interval {
        ScalarValue::IntervalMonthDayNano(Some(v)) if v.months != 0 => Some(i64::from(v.months).saturating_mul(SHORTEST_MONTH)),
        ScalarValue::IntervalYearMonth(Some(months)) => Some(i64::from(*months).saturating_mul(SHORTEST_MONTH)),
        _ => None,
    };
    before(bound).or_else(|| match bound {
        WindowFrameBound::CurrentRow => None,
        WindowFrameBound::Preceding(interval) => months(interval),
        WindowFrameBound::Following(interval) => months(interval).map(i64::saturating_neg),
    })
}

/// An interval in microseconds; None for anything else, months included.
fn micros_of(interval: &ScalarValue) -> Option<i64> {
    match interval {
        ScalarValue::IntervalMonthDayNano(Some(v)) if v.months == 0 => {
            Some(i64::from(v.days).checked_mul(MICROS_PER_DAY)?.checked_add(v.nanoseconds / 1000)?)
        }
        ScalarValue::IntervalDayTime(Some(v)) => {
            Some(i64::from(v.days).checked_mul(MICROS_PER_DAY)?.checked_add(i64::from(v.milliseconds) * 1000)?)
        }
        ScalarValue::DurationMicrosecond(Some(v)) => Some(*v),
        ScalarValue::DurationNanosecond(Some(v)) => Some(v / 1000),
        _ => None,
    }
}

pub(crate) fn window_function(expr: &Expr) -> Option<&WindowFunction> {
    match expr {
        Expr::WindowFunction(function) => Some(function),
        Expr::Alias(alias) => window_function(&alias.expr),
        _ => None,
    }
}

fn has_subquery(expr: &Expr) -> bool {
    expr.exists(|e| {
        let found = matches!(
            e,
            Expr::Exists(_)
                | Expr::InSubquery(_)
                | Expr::ScalarSubquery(_)
                | Expr::SetComparison(_)
                | Expr::OuterReferenceColumn(..)
        );
        Ok(found)
    })
    .unwrap_or(true)
}

/// Puts `verified = true` in front of every scan.
pub(crate) fn only_verified(plan: LogicalPlan) -> Result<LogicalPlan> {
    let rewritten = plan.transform_up_with_subqueries(|node| match &node {
        LogicalPlan::TableScan(scan) => {
            let verified = Expr::Column(Column::new(Some(scan.table_name.clone()), "verified"));
            Ok(Transformed::yes(LogicalPlan::Filter(Filter::try_new(verified, Arc::new(node))?)))
        }
        _ => Ok(Transformed::no(node)),
    })?;
    Ok(rewritten.data)
}

/// Adds the tenant to every window partition, and each row's tenant and time to the output. For stateless and sliding plans.
pub(crate) fn carry_tenant_and_time(plan: &LogicalPlan) -> Result<LogicalPlan> {
    let carried = carry(plan)?;
    // At the top, under names of their own.
    let mut exprs: Vec<Expr> = plan.schema().iter().map(|(q, f)| Expr::Column(Column::from((q, f)))).collect();
    exprs.push(Expr::Column(carried.tenant).alias(TENANT_OUT));
    exprs.push(Expr::Column(carried.instant).alias(INSTANT_OUT));
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(carried.plan))?))
}

struct Carried {
    plan: LogicalPlan,
    tenant: Column,
    instant: Column,
}

fn carry(plan: &LogicalPlan) -> Result<Carried> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let column = |name: &str| Column::new(Some(scan.table_name.clone()), name);
            Ok(Carried { plan: plan.clone(), tenant: column("tenant_id"), instant: column("ts") })
        }
        LogicalPlan::Filter(filter) => {
            let input = carry(&filter.input)?;
            let plan = LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), Arc::new(input.plan))?);
            Ok(Carried { plan, ..input })
        }
        // The order of rows says nothing about a match.
        LogicalPlan::Sort(sort) => carry(&sort.input),
        LogicalPlan::SubqueryAlias(alias) => {
            let input = carry(&alias.input)?;
            let requalify = |column: &Column| Column::new(Some(alias.alias.clone()), column.name.clone());
            let (tenant, instant) = (requalify(&input.tenant), requalify(&input.instant));
            let plan = LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(input.plan), alias.alias.clone())?);
            Ok(Carried { plan, tenant, instant })
        }
        LogicalPlan::Projection(projection) => {
            let input = carry(&projection.input)?;
            let mut exprs = projection.expr.clone();
            exprs.push(Expr::Column(input.tenant).alias("__carried_tenant"));
            exprs.push(Expr::Column(input.instant).alias("__carried_instant"));
            let plan = LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input.plan))?);
            let column = |name: &str| Column::new_unqualified(name);
            Ok(Carried { plan, tenant: column("__carried_tenant"), instant: column("__carried_instant") })
        }
        LogicalPlan::Window(window) => carry_window(window),
        other => Err(DataFusionError::Internal(format!("{} cannot carry the tenant", other.display()))),
    }
}

/// The window with the tenant in every partition, under a projection that gives its columns their old names back: an
/// expression's name spells out its partition, and the nodes above refer to that name.
fn carry_window(window: &Window) -> Result<Carried> {
    let input = carry(&window.input)?;
    let mut restored: Vec<Expr> = input.plan.schema().iter().map(|(q, f)| Expr::Column(Column::from((q, f)))).collect();
    let mut exprs = Vec::with_capacity(window.window_expr.len());
    for expr in &window.window_expr {
        let old_name = expr.schema_name().to_string();
        let tenant = Expr::Column(input.tenant.clone());
        let rewritten = expr.clone().transform_up(|part| match part {
            Expr::WindowFunction(mut function) if !function.params.partition_by.contains(&tenant) => {
                function.params.partition_by.push(tenant.clone());
                Ok(Transformed::yes(Expr::WindowFunction(function)))
            }
            other => Ok(Transformed::no(other)),
        })?;
        let new_name = rewritten.data.schema_name().to_string();
        let column = Expr::Column(Column::new_unqualified(new_name.clone()));
        restored.push(if new_name == old_name { column } else { column.alias(old_name) });
        exprs.push(rewritten.data);
    }
    let plan = LogicalPlan::Window(Window::try_new(exprs, Arc::new(input.plan))?);
    let plan = LogicalPlan::Projection(Projection::try_new(restored, Arc::new(plan))?);
    Ok(Carried { plan, tenant: input.tenant, instant: input.instant })
}

/// Those values of a text column with which a row can meet the condition at all. None: any may.
pub(crate) fn passing(condition: &Expr, column: &str) -> Option<BTreeSet<String>> {
    let is_column = |expr: &Expr| matches!(expr, Expr::Column(c) if c.name == column);
    match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            match (passing(left, column), passing(right, column)) {
                (Some(left), Some(right)) => Some(left.intersection(&right).cloned().collect()),
                (left, right) => left.or(right),
            }
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let mut values = passing(left, column)?;
            values.extend(passing(right, column)?);
            Some(values)
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) if is_column(left) => Some(BTreeSet::from([text(right)?])),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) if is_column(right) => Some(BTreeSet::from([text(left)?])),
        Expr::InList(list) if !list.negated && is_column(&list.expr) => list.list.iter().map(text).collect(),
        _ => None,
    }
}

pub(crate) fn text(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Literal(ScalarValue::Utf8(text) | ScalarValue::LargeUtf8(text) | ScalarValue::Utf8View(text), _) => text.clone(),
        _ => None,
    }
}

/// True if the query reads a column of a side table.
pub(crate) fn reads_sides(optimized: &LogicalPlan) -> Result<bool> {
    let mut reads = false;
    optimized.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            reads |= scan.projected_schema.fields().iter().any(|field| is_of_side(field.name()));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(reads)
}

fn is_of_side(name: &str) -> bool {
    column_index(name).is_some_and(is_side)
}

/// What is left of a condition without what it asks side tables: weaker, and always the same of an event. None: nothing.
pub(crate) fn lasting(condition: &Expr) -> Option<Expr> {
    if !condition.column_refs().iter().any(|column| is_of_side(&column.name)) {
        return Some(condition.clone());
    }
    match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => match (lasting(left), lasting(right)) {
            (Some(left), Some(right)) => Some(left.and(right)),
            (left, right) => left.or(right),
        },
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => Some(lasting(left)?.or(lasting(right)?)),
        _ => None,
    }
}

/// The condition that a row must meet to matter to the query: the filters right above its scans, joined by OR.
/// None: every row may matter.
pub(crate) fn prefilter(optimized: &LogicalPlan) -> Result<Option<Expr>> {
    let mut filters = Vec::new();
    let mut scans = 0;
    optimized.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::TableScan(_) => scans += 1,
            LogicalPlan::Filter(f) if matches!(*f.input, LogicalPlan::TableScan(_)) && !has_subquery(&f.predicate) => {
                filters.push(f.predicate.clone());
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    if filters.len() != scans {
        return Ok(None);
    }
    let filters = filters.into_iter().map(unqualified).collect::<Result<Vec<Expr>>>()?;
    Ok(filters.into_iter().reduce(Expr::or))
}

/// An expression by the names of columns alone.
pub(crate) fn unqualified(expr: Expr) -> Result<Expr> {
    let rewritten = expr.transform_up(|part| match part {
        Expr::Column(column) => Ok(Transformed::yes(col(Column::new_unqualified(column.name)))),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(rewritten.data)
}
