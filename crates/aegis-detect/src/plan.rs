//! From a rule to a cached physical plan: parse, check, analyze, rewrite, plan once; then run it over any rows, many times.
//! Promises that nothing is planned after loading, and that a run sees the rows it is given and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_match::{Limits, Overruns, Report};
use aegis_model::SecurityEvent;
use aegis_sql::block_on;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Column;
use datafusion::error::Result;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionState, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::{LogicalPlan, lit};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::{ExecutionPlan, collect, displayable};
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::absence::rests_on_absence;
use crate::alerts::{self, Sources};
use crate::begun::Beginnings;
use crate::check::{base_column, check_output, check_plan};
use crate::condition::Condition;
use crate::differing::Differing;
use crate::error::{RuleCode, RuleError};
use crate::least::{Least, Takes};
use crate::passed::EventFilter;
use crate::pipeline::Pipeline;
use crate::reachable;
use crate::row_pattern::RowPattern;
use crate::rule::{Requires, Rule};
use crate::schema::{ALERTS_TABLE, EventBatch, TABLE, View, column_index, column_name, is_text};
use crate::scope::Scope;
use crate::seed::Seed;
use crate::shape::{self, INSTANT_OUT, Reach, Shape, TENANT_OUT};
use crate::slot::{EventsTable, Slot};
use crate::sql::SqlText;

/// Memory that one run of one rule may take, in bytes.
const RUN_MEMORY: usize = 256 * 1024 * 1024;

/// Bounds of a rule's row patterns. The work of one tick is a few seconds at most, whatever the rule and the events: less than a rule may take.
fn pattern_limits() -> Limits {
    let mut limits = Limits { attempt_work: 1 << 20, partition_work: 1 << 23, query_work: 1 << 26, ..Limits::default() };
    limits.attempt.steps = 1 << 18;
    limits
}

/// Columns by whose values a batch's events are told apart for the rules that look at one of them alone; what says most first.
const ONLY: [&str; 4] = ["tool", "action", "kind", "decision"];

/// Where a match's parts stand in the query's output.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// Key columns, in the order of the header.
    pub(crate) key: Vec<usize>,
    pub(crate) event_id: Option<usize>,
    pub(crate) event_ids: Option<usize>,
    pub(crate) fields: Vec<(usize, String)>,
    /// Present for stateless and sliding plans.
    pub(crate) tenant: Option<usize>,
    pub(crate) instant: Option<usize>,
}

/// One column by which state is split: its place in the key, and the column of events that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BucketColumn {
    pub(crate) key_position: usize,
    pub(crate) event_column: usize,
}

/// A rule, ready to run.
pub(crate) struct RulePlan {
    pub(crate) shape: Shape,
    /// Of a deferred query: how far its rows look.
    pub(crate) reach: Reach,
    pub(crate) output: Output,
    pub(crate) buckets: Vec<BucketColumn>,
    /// Of an incremental query.
    pub(crate) pipeline: Option<Pipeline>,
    least: Option<Least>,
    pub(crate) seed: Option<Seed>,
    pub(crate) differing: Option<Differing>,
    /// Of a row pattern that is followed.
    pub(crate) row_pattern: Option<RowPattern>,
    /// Of a stepped query: why it is no row pattern that can be followed.
    pub(crate) stepped_for: Option<&'static str>,
    /// True if it reads a column of a side table.
    pub(crate) reads_sides: bool,
    /// True of a rule that contains where a row can be a match for want of others before it.
    pub(crate) rests_on_absence: bool,
    /// Of a rule that reads `alerts`: of which rules.
    pub(crate) sources: Option<Sources>,
    /// How many rules stand below it, one on the other; none below one that reads `events`.
    pub(crate) level: usize,
    /// True if a rule of its set reads its alerts.
    pub(crate) is_read: bool,
    physical: Arc<dyn ExecutionPlan>,
    slot: Slot,
    task: Arc<TaskContext>,
    prefilter: Option<Prefilter>,
    report: Report,
}

struct Prefilter {
    conditions: Vec<Condition>,
    /// Columns of few values, and those of them that can pass at all.
    values: Vec<(usize, BTreeSet<String>)>,
    /// A text column, and the only value with which an event can pass: rules with the same look at those events alone.
    only: Option<(usize, String)>,
    /// What an event meets that passes, always the same of it: rules that ask for the same look at the same events.
    filter: EventFilter,
}

/// What decides whether an event can matter to a rule, by some columns of it.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    pub(crate) expr: Arc<dyn PhysicalExpr>,
    pub(crate) schema: SchemaRef,
}

impl std::fmt::Debug for RulePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RulePlan").field("shape", &self.shape).field("buckets", &self.buckets).finish_non_exhaustive()
    }
}

impl RulePlan {
    /// Checks and plans a rule.
    pub(crate) fn load(rule: &Rule) -> Result<Self, RuleError> {
        load(rule).map_err(|error| error.in_file(&rule.file))
    }

    /// The plan as text, for people and for snapshot tests.
    pub(crate) fn display(&self) -> String {
        displayable(self.physical.as_ref()).indent(false).to_string()
    }

    /// The same query, run over all of its window each time.
    pub(crate) fn unfollowed(self) -> Self {
        let shape = match self.shape {
            Shape::Incremental => Shape::Sliding,
            Shape::Pattern => Shape::Stepped,
            other => other,
        };
        Self { pipeline: None, least: None, seed: None, differing: None, row_pattern: None, shape, ..self }
    }

    /// What it shows new events to, if it is followed.
    pub(crate) fn follows(&self) -> Option<&Pipeline> {
        self.pipeline.as_ref().or_else(|| self.row_pattern.as_ref().map(RowPattern::shown))
    }

    /// What a match takes, of a query that is followed.
    pub(crate) fn takes(&self) -> Takes {
        let (seed_span, differing_span) = (self.seed.as_ref().map(Seed::span), self.differing.as_ref().map(Differing::span));
        Takes { least: self.least, seed_span, differing_span }
    }

    /// It begins as other rules do, if they do.
    pub(crate) fn share(&mut self, beginnings: &mut Beginnings) {
        let of_pattern = self.row_pattern.iter_mut().map(RowPattern::shown_mut);
        self.pipeline.iter_mut().chain(of_pattern).for_each(|pipeline| pipeline.share(beginnings));
    }

    /// The same of a rule that every tenant has. A tenant's own makes what it needs for itself: else who copies what everybody has leaves no room for it.
    pub(crate) fn share_where(&mut self, scope: &Scope, beginnings: &mut Beginnings) {
        if scope.owner().is_none() {
            self.share(beginnings);
        }
    }

    /// True if a run is about one instant, over what is seen of it there.
    pub(crate) const fn is_run_by_instant(&self) -> bool {
        matches!(self.shape, Shape::Stepped | Shape::Pattern)
    }

    /// The rows of the query over these events.
    pub(crate) fn run(&self, rows: Arc<EventBatch>) -> Result<Vec<RecordBatch>> {
        self.slot.put(rows);
        let result =
            reset_plan_states(Arc::clone(&self.physical)).and_then(|plan| block_on(collect(plan, Arc::clone(&self.task))));
        self.slot.clear();
        result
    }

    /// How far before its instant a row sees, in microseconds, by the rule's window: one that stands alone sees its instant.
    pub(crate) const fn back_micros(&self, window_micros: i64) -> i64 {
        match self.shape {
            Shape::Stateless => 0,
            Shape::Deferred => self.reach.back,
            Shape::Sliding | Shape::Incremental | Shape::Stepped | Shape::Pattern => window_micros,
        }
    }

    /// What the row patterns of the query had to give up since the last time. To be asked after each tick: their work counts from then on.
    pub(crate) fn overruns(&self) -> Overruns {
        self.report.take()
    }

    /// Those of the events that can matter to the query, in their order.
    pub(crate) fn relevant(&self, batch: &Arc<EventBatch>) -> Result<Vec<Arc<SecurityEvent>>> {
        let (batch, places) = self.passing(batch)?;
        Ok(places.iter().map(|place| Arc::clone(&batch.rows()[*place])).collect())
    }

    /// The same by their places, and in which batch those are: it may be one of fewer events, that rules share.
    pub(crate) fn passing(&self, batch: &Arc<EventBatch>) -> Result<(Arc<EventBatch>, Arc<[usize]>)> {
        let Some(prefilter) = &self.prefilter else { return Ok((Arc::clone(batch), (0..batch.rows().len()).collect())) };
        let nothing = || (Arc::clone(batch), Arc::<[usize]>::from([]));
        if !prefilter.values.iter().all(|(column, passing)| batch.has_one_of(*column, passing)) {
            return Ok(nothing());
        }
        let batch = match &prefilter.only {
            None => Arc::clone(batch),
            Some((column, value)) => match batch.only(*column, value) {
                Some(only) => only,
                None => return Ok(nothing()),
            },
        };
        let places = prefilter.filter.places(&batch)?;
        Ok((batch, places))
    }

    /// The columns of the table that the query reads.
    pub(crate) fn columns(&self) -> BTreeSet<usize> {
        let mut columns = BTreeSet::new();
        add_leaves(&self.physical, &mut columns);
        columns.extend(self.buckets.iter().map(|bucket| bucket.event_column));
        if let Some(prefilter) = &self.prefilter {
            columns.extend(prefilter.filter.columns.iter().chain(prefilter.values.iter().map(|(column, _)| column)));
        }
        columns.extend(self.pipeline.iter().flat_map(Pipeline::columns));
        columns.extend(self.row_pattern.iter().flat_map(RowPattern::columns));
        columns
    }

    /// What decides whether an event can matter. None: any may.
    pub(crate) fn filter(&self) -> Option<Filter> {
        let filter = &self.prefilter.as_ref()?.filter;
        Some(Filter { expr: Arc::clone(&filter.expr), schema: Arc::clone(&filter.schema) })
    }

    /// The conditions that an event must meet to be relevant: all of them.
    pub(crate) fn conditions(&self) -> &[Condition] {
        match &self.prefilter {
            Some(prefilter) => &prefilter.conditions,
            None => &[],
        }
    }
}

fn load(rule: &Rule) -> Result<RulePlan, RuleError> {
    let sql = SqlText::read(&rule.text)?;
    let view = if rule.header.contains() {
        View::WithoutScore
    } else if sql.asks_side_tables() {
        View::WithSides
    } else {
        View::Full
    };
    let slot = Slot::new();
    let explain = |error| sql.explain(&error);
    let report = Report::default();
    let state = session(&slot, view, &report).map_err(explain)?;

    let refused = |error| if rule.header.contains() { sql.without_sides(error) } else { error };
    let written = sql.plan(&state, &rule.text).map_err(refused)?;
    check_plan(&written, &sql)?;
    check_output(&written, rule, &sql)?;
    reachable::check_words(&written, &sql)?;
    let reads_alerts = alerts::reads_alerts(&written, rule, &sql)?;

    let analyzed = aegis_sql::analyze(&state, written).map_err(explain)?;
    let analyzed = match rule.header.requires {
        Requires::Verified if reads_alerts => analyzed,
        Requires::Verified => shape::only_verified(analyzed).map_err(explain)?,
        Requires::Any => analyzed,
    };
    let analyzed = shape::total_order(analyzed).map_err(explain)?;
    let window_micros = rule.header.window_s * 1_000_000;
    let mut analysis = shape::analyze(&analyzed, window_micros).map_err(explain)?;
    if analysis.longest_frame > window_micros {
        let seconds = analysis.longest_frame / 1_000_000;
        let message = format!("a window frame reaches back {seconds} s, the header's window is {} s", rule.header.window_s);
        let place = sql.place_of("preceding").or_else(|| sql.place_of("following"));
        let error = RuleError::new(RuleCode::RuleWindow, message).at(place);
        return Err(error.hint("raise `window`, or shorten the frame"));
    }
    check_ahead(&analysis, rule.header.window_s, &sql)?;
    let carried = match analysis.shape {
        Shape::Stepped | Shape::Pattern => analyzed.clone(),
        Shape::Stateless | Shape::Sliding | Shape::Incremental | Shape::Deferred => {
            shape::carry_tenant_and_time(&analyzed).map_err(explain)?
        }
    };
    let optimized = aegis_sql::optimize(&state, &carried).map_err(explain)?;
    reachable::check_conditions(&analyzed, &optimized, &sql)?;
    let sources = if reads_alerts { Some(alerts::sources_of(&optimized, analysis.shape, &sql)?) } else { None };
    let reads_sides = shape::reads_sides(&optimized).map_err(explain)?;
    if reads_sides && analysis.shape == Shape::Stateless {
        // What a side table says of an event may change: it is kept until it cannot any more.
        analysis.shape = Shape::Sliding;
    }
    let physical = aegis_sql::physical(&state, &optimized).map_err(explain)?;
    check_physical(physical.as_ref(), &sql)?;

    let prefilter = make_prefilter(&state, &optimized).map_err(explain)?;
    let buckets = bucket_columns(&analyzed, rule, &analysis);
    let output = output_of(&physical.schema(), rule);
    let fixed = buckets.iter().map(|bucket| bucket.event_column).chain(column_index("tenant_id"));
    let fixed: Vec<&str> = fixed.map(column_name).collect();
    let met = prefilter.as_ref().map_or(&[][..], |prefilter| prefilter.filter.name.conditions());
    let (pipeline, row_pattern, stepped_for) = match analysis.shape {
        Shape::Sliding => (Pipeline::build(&state, &optimized, &fixed, met).map_err(explain)?, None, None),
        Shape::Stepped => {
            let built = RowPattern::build(&state, &analyzed, &optimized, (&fixed[..], met), pattern_limits());
            match built.map_err(explain)? {
                Ok(pattern) => (None, Some(pattern), None),
                Err(why) => (None, None, Some(why)),
            }
        }
        _ => (None, None, None),
    };
    if pipeline.is_none() && shape::lists_in_windows(&analyzed).map_err(explain)? {
        let message = "array_agg(…) OVER makes a list for each row, and is run only where every window function can be followed";
        let error = RuleError::new(RuleCode::RuleUnsupported, message).at(sql.place_of("array_agg"));
        let hint = "beside it count, min and max over RANGE frames of ts, which add up to at most the window; or GROUP BY, or MATCH_RECOGNIZE";
        return Err(error.hint(hint));
    }
    let least = if pipeline.is_some() { Least::of(&optimized).map_err(explain)? } else { None };
    // Of a query that takes several events there are mostly too few of any.
    let (seed, differing) = if pipeline.is_some() && least.is_none() {
        (Seed::of(&state, &optimized).map_err(explain)?, Differing::of(&optimized).map_err(explain)?)
    } else {
        (None, None)
    };
    let shape = match (&pipeline, &row_pattern) {
        (Some(_), _) => Shape::Incremental,
        (None, Some(_)) => Shape::Pattern,
        (None, None) => analysis.shape,
    };
    let reach = if shape == Shape::Deferred { analysis.reach.unwrap_or_default() } else { Reach::default() };
    let rests_on_absence = rule.header.contains() && rests_on_absence(&analyzed).map_err(explain)?;
    let task = state.task_ctx();
    let (level, is_read) = (0, false);
    Ok(RulePlan {
        shape,
        reach,
        output,
        buckets,
        pipeline,
        least,
        seed,
        differing,
        row_pattern,
        stepped_for,
        reads_sides,
        rests_on_absence,
        sources,
        level,
        is_read,
        physical,
        slot,
        task,
        prefilter,
        report,
    })
}

/// Refuses a frame that goes to a time after its row where the row could not wait for it: it would be cut short, and a rule about what did not
/// follow would always match.
fn check_ahead(analysis: &shape::Analysis, window_s: i64, sql: &SqlText) -> Result<(), RuleError> {
    if analysis.descends_ahead {
        let message = "over a descending time what precedes a row is later than it: the frame would be cut short";
        let hint = "ORDER BY ts, and BETWEEN CURRENT ROW AND INTERVAL '…' FOLLOWING; what comes before a row precedes it there";
        return Err(RuleError::new(RuleCode::RuleUnsupported, message).at(sql.place_of("desc")).hint(hint));
    }
    if !analysis.looks_ahead || analysis.shape == Shape::Deferred {
        return Ok(());
    }
    let place = sql.place_of("following");
    if let Some(reach) = analysis.reach.filter(|reach| reach.span() > window_s * 1_000_000) {
        let seconds = |micros: i64| micros.saturating_add(999_999) / 1_000_000;
        let (back, ahead, span) = (seconds(reach.back), seconds(reach.ahead), seconds(reach.span()));
        let message = format!("the window frames reach back {back} s and ahead {ahead} s, the header's window is {window_s} s");
        let hint = format!("raise `window` to {span}s, or shorten a frame: those on top of each other add up");
        return Err(RuleError::new(RuleCode::RuleWindow, message).at(place).hint(hint));
    }
    let message = "a frame that ends after its row is run only where nothing but filters and RANGE frames over ts decides a row";
    let hint =
        "no join, subquery, GROUP BY, MATCH_RECOGNIZE, UNBOUNDED or ROWS frame beside it; or look back from what comes later";
    Err(RuleError::new(RuleCode::RuleUnsupported, message).at(place).hint(hint))
}

fn session(slot: &Slot, view: View, report: &Report) -> Result<SessionState> {
    let mut config = SessionConfig::new().with_target_partitions(1).with_information_schema(false).with_collect_statistics(false);
    // A dynamic filter is state of one execution inside a plan that we keep.
    config.options_mut().optimizer.enable_dynamic_filter_pushdown = false;
    let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(RUN_MEMORY, 1.0).with_disk_manager_builder(disk).build_arc()?;
    let builder = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features();
    let state = aegis_match::install(builder, pattern_limits(), report.clone()).build();
    let context = SessionContext::new_with_state(state);
    context.register_table(TABLE, Arc::new(EventsTable::new(slot.clone(), view)))?;
    context.register_table(ALERTS_TABLE, Arc::new(EventsTable::new(slot.clone(), View::Alerts)))?;
    Ok(context.state())
}

/// Everything runs on the calling thread: no operator may need a task of its own.
fn check_physical(plan: &dyn ExecutionPlan, sql: &SqlText) -> Result<(), RuleError> {
    let spawns = ["RepartitionExec", "CoalescePartitionsExec", "SortPreservingMergeExec", "UnionExec", "ScalarSubqueryExec"];
    if plan.properties().partitioning.partition_count() != 1 || spawns.contains(&plan.name()) {
        let error = RuleError::new(RuleCode::RuleUnsupported, format!("the query needs {}, which rules cannot run", plan.name()));
        return Err(error.at(sql.start()));
    }
    plan.children().into_iter().try_for_each(|child| check_physical(child.as_ref(), sql))
}

/// The columns that the leaves of a plan give.
fn add_leaves(plan: &Arc<dyn ExecutionPlan>, columns: &mut BTreeSet<usize>) {
    if plan.children().is_empty() {
        columns.extend(plan.schema().fields().iter().filter_map(|field| column_index(field.name())));
    }
    plan.children().into_iter().for_each(|child| add_leaves(child, columns));
}

fn make_prefilter(state: &SessionState, optimized: &LogicalPlan) -> Result<Option<Prefilter>> {
    let Some(expr) = shape::prefilter(optimized)? else { return Ok(None) };
    let few = ["kind", "decision"].into_iter();
    let values = few.filter_map(|name| Some((column_index(name)?, shape::passing(&expr, name)?))).collect();
    let only_of =
        |name: &&str| Some((column_index(name)?, shape::passing(&expr, name)?)).filter(|(_, passing)| passing.len() == 1);
    let only = ONLY.iter().find_map(only_of).and_then(|(column, passing)| Some((column, passing.into_iter().next()?)));
    let conditions = Condition::split(state, &expr)?;
    // An event that a side table keeps out today may be let in tomorrow.
    let expr = shape::lasting(&expr).unwrap_or_else(|| lit(true));
    let filter = EventFilter::new(state, expr)?;
    Ok(Some(Prefilter { conditions, values, only, filter }))
}

/// State is split by the key columns that are plain columns of events and by which every window or row pattern is partitioned: then a key's
/// matches depend on the events of its own bucket only.
fn bucket_columns(plan: &LogicalPlan, rule: &Rule, analysis: &shape::Analysis) -> Vec<BucketColumn> {
    if analysis.shape == Shape::Stepped && analysis.partition.is_none() {
        return Vec::new();
    }
    let schema = plan.schema();
    let bucket = |(key_position, name): (usize, &String)| {
        let index = schema.fields().iter().position(|f| f.name() == name)?;
        let base = base_column(plan, &Column::from(schema.qualified_field(index)))?;
        let splits = analysis.partition.as_ref().is_none_or(|columns| columns.contains(&base));
        let event_column = column_index(&base).filter(|c| splits && is_text(*c))?;
        Some(BucketColumn { key_position, event_column })
    };
    rule.header.key.iter().enumerate().filter_map(bucket).collect()
}

fn output_of(schema: &SchemaRef, rule: &Rule) -> Output {
    let position = |name: &str| schema.fields().iter().position(|f| f.name() == name);
    let key: Vec<usize> = rule.header.key.iter().filter_map(|k| position(k)).collect();
    let (event_id, event_ids) = (position("event_id"), position("event_ids"));
    let (tenant, instant) = (position(TENANT_OUT), position(INSTANT_OUT));
    let taken = |index: &usize| {
        key.contains(index) || [event_id, event_ids, tenant, instant].iter().any(|taken| taken.as_ref() == Some(index))
    };
    let fields = (0..schema.fields().len()).filter(|i| !taken(i)).map(|i| (i, schema.field(i).name().clone())).collect();
    Output { key, event_id, event_ids, fields, tenant, instant }
}
