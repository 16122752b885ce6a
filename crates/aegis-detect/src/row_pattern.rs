//! A rule that is a row pattern, followed event by event: at which instants one of its matches ends, and with which event that match begins.
//! Promises that it is no match at any other instant, and that the query finds it in the events from there on (L-INCREMENTAL): what an alert says is the
//! plain plan's word. What it cannot follow it does not take: see `RowPattern::build`.

use std::sync::Arc;

use aegis_match::{Ending, Endings, Limits, MatchRecognize, Walk};
use aegis_model::Timestamp;
use datafusion::arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::Column;
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, Projection};

use crate::check::{EVENT_ORDER, base_column, row_pattern};
use crate::known::Walks;
use crate::pipeline::Pipeline;
use crate::schema::EventBatch;
use crate::shape::only_row_pattern;
use crate::windows::{Origin, has_order};

/// Steps of the matcher that one tenant's events may take in one look, 20 to 50 nanoseconds each. Where they are not enough, the query is run as if
/// nothing were known.
const STEPS_OF_A_TENANT: u64 = 1 << 24;

/// A row pattern that can be followed.
#[derive(Debug)]
pub(crate) struct RowPattern {
    /// Makes of events whether each condition holds, and then what splits a bucket further.
    pipeline: Pipeline,
    conditions: usize,
    split_rows: Option<RowConverter>,
    endings: Endings,
}

/// Where the query is to be run, over the window that ends there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunAt {
    pub(crate) instant: Timestamp,
    /// The event from which on it finds there what it finds over all of the window: its time, and which of that time it was when it was shown.
    pub(crate) from: Option<(Timestamp, u32)>,
}

/// The steps that are left, by tenant.
#[derive(Debug, Default)]
pub(crate) struct Work {
    left: Vec<u64>,
    /// Of each bucket, which of the tenants it is of.
    of_bucket: Vec<usize>,
}

impl Work {
    /// The next bucket is of this one of the tenants.
    pub(crate) fn add_bucket(&mut self, tenant: usize) {
        self.of_bucket.push(tenant);
        if self.left.len() <= tenant {
            self.left.resize(tenant + 1, STEPS_OF_A_TENANT);
        }
    }
}

impl RowPattern {
    /// The row pattern that an analyzed plan is, if it can be followed: a single one over filters and projections, whose rows are in the order of events,
    /// whose conditions read the row alone, and whose evidence is rows of the match. In a bucket, each of the columns `fixed` of events has one value.
    /// Each event that it is shown meets the conditions `met`.
    pub(crate) fn build(
        state: &SessionState,
        analyzed: &LogicalPlan,
        fixed: &[&str],
        met: &[Expr],
        limits: Limits,
    ) -> Result<Option<Self>> {
        let Some(node) = only_row_pattern(analyzed) else { return Ok(None) };
        if !is_in_order_of_events(node) || !names_its_rows(analyzed) {
            return Ok(None);
        }
        let Some(endings) = node.endings(limits) else { return Ok(None) };
        let mut exprs: Vec<Expr> = endings.conditions().cloned().collect();
        let conditions = exprs.len();
        let is_fixed = |column: &Column| base_column(node.input(), column).is_some_and(|base| fixed.contains(&base.as_str()));
        exprs.extend(node.partition_columns().filter(|column| !is_fixed(column)).cloned().map(Expr::Column));
        if exprs.is_empty() {
            return Ok(None);
        }
        let named = exprs.into_iter().enumerate().map(|(place, expr)| expr.alias(format!("__of_row_{place}"))).collect();
        let of_rows = LogicalPlan::Projection(Projection::try_new(named, Arc::new(node.input().clone()))?);
        let of_rows = aegis_sql::optimize(state, &of_rows)?;
        let types: Vec<_> = of_rows.schema().fields().iter().skip(conditions).map(|field| field.data_type().clone()).collect();
        if !types.iter().all(has_order) {
            return Ok(None);
        }
        let Some(pipeline) = Pipeline::build(state, &of_rows, fixed, met)? else { return Ok(None) };
        let sorts: Vec<SortField> = types.into_iter().map(SortField::new).collect();
        let split_rows = if sorts.is_empty() { None } else { Some(RowConverter::new(sorts)?) };
        Ok(Some(Self { pipeline, conditions, split_rows, endings }))
    }

    /// The columns of the table that it reads.
    pub(crate) fn columns(&self) -> &[usize] {
        self.pipeline.columns()
    }

    /// Events that it is shown at once, about.
    pub(crate) fn events_of_a_run(&self) -> usize {
        self.pipeline.events_of_a_run()
    }

    /// Takes these events in, and hands on of each bucket at which of their instants a match ends, in order. `origins` says of each event whose it is; a
    /// bucket's come in their order, after all that its walks have seen, and those of one instant together.
    pub(crate) fn run(
        &self,
        events: &EventBatch,
        origins: Vec<Origin>,
        walks: &mut [Walks],
        back_micros: i64,
        work: &mut Work,
        mut ends: impl FnMut(usize, RunAt),
    ) -> Result<()> {
        self.pipeline.run(events, origins, &mut [], |rows, origins| {
            let columns = rows.columns();
            let marks = self.endings.marks(&columns[..self.conditions], rows.num_rows());
            let converter = self.split_rows.as_ref();
            let keys = converter.map(|converter| converter.convert_columns(&columns[self.conditions..])).transpose()?;
            let mut first = 0;
            for instant in origins.chunk_by(|a, b| (a.bucket, a.ts) == (b.bucket, b.ts)) {
                let bucket = instant[0].bucket;
                let touched = push(&mut walks[bucket], instant, &marks[first..], keys.as_ref(), first);
                let left = &mut work.left[work.of_bucket[bucket]];
                for partition in touched {
                    let from = match walks[bucket].partitions[partition].ending(&self.endings, back_micros, left) {
                        Ending::None => continue,
                        // Rows of other partitions are between those of this one.
                        Ending::From { ts, place } if keys.is_none() => Some((Timestamp::from_micros(ts), place)),
                        Ending::From { .. } | Ending::Unknown => None,
                    };
                    ends(bucket, RunAt { instant: Timestamp::from_micros(instant[0].ts), from });
                    break;
                }
                first += instant.len();
            }
            Ok(())
        })
    }
}

/// Adds the rows of one instant to a bucket's walks, and answers which got some. They stand from `first` on among all that were made of the events.
fn push(walks: &mut Walks, instant: &[Origin], marks: &[u64], keys: Option<&Rows>, first: usize) -> Vec<usize> {
    let mut touched = Vec::with_capacity(instant.len());
    for (offset, (origin, marks)) in instant.iter().zip(marks).enumerate() {
        let key = keys.map(|keys| keys.row(first + offset));
        let place = walks.place(key.as_ref().map(|key| key.data()), Walk::default);
        walks.partitions[place].push(origin.ts, origin.place, *marks);
        touched.push(place);
    }
    touched.sort_unstable();
    touched.dedup();
    touched
}

/// True if the rows of a pattern stand as events do in a bucket.
fn is_in_order_of_events(node: &MatchRecognize) -> bool {
    let mut names: Vec<String> = Vec::new();
    for sort in node.order_by() {
        let Expr::Column(column) = &sort.expr else { return false };
        let Some(name) = base_column(node.input(), column) else { return false };
        // The others are never null.
        let nulls_fit = sort.nulls_first || !["lane", "seq"].contains(&name.as_str());
        if !sort.asc || !nulls_fit {
            return false;
        }
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names == EVENT_ORDER
}

/// True if the evidence is ids of the match's own rows, as they are: only then a match without a row of an instant is none there.
fn names_its_rows(plan: &LogicalPlan) -> bool {
    let schema = plan.schema();
    let position = |name: &str| schema.fields().iter().position(|field| field.name() == name);
    let Some(evidence) = position("event_ids").or_else(|| position("event_id")) else { return false };
    let Some((node, output)) = output_of(plan, &Column::from(schema.qualified_field(evidence))) else { return false };
    let read = node.column_at_rows(output).and_then(|column| base_column(node.input(), column));
    read.as_deref() == Some("event_id")
}

/// The row pattern and the place among its columns that an output column is, unchanged.
fn output_of<'p>(plan: &'p LogicalPlan, column: &Column) -> Option<(&'p MatchRecognize, usize)> {
    match plan {
        LogicalPlan::Projection(projection) => {
            let mut expr = projection.expr.get(projection.schema.maybe_index_of_column(column)?)?;
            while let Expr::Alias(alias) = expr {
                expr = &alias.expr;
            }
            let Expr::Column(below) = expr else { return None };
            output_of(&projection.input, below)
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let place = alias.schema.maybe_index_of_column(column)?;
            output_of(&alias.input, &Column::from(alias.input.schema().qualified_field(place)))
        }
        LogicalPlan::Filter(filter) => output_of(&filter.input, column),
        LogicalPlan::Sort(sort) => output_of(&sort.input, column),
        _ => Some((row_pattern(plan)?, plan.schema().maybe_index_of_column(column)?)),
    }
}
