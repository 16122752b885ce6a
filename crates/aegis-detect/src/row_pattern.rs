//! A rule that is a row pattern, followed event by event: at which instants one of its matches ends, and which matches those are.
//! Promises that it is no match at any other instant, and that what it makes of a match is what the query makes of it over the window (L-INCREMENTAL). What
//! it cannot follow it does not take, and says why: see `RowPattern::build`.

use std::sync::Arc;

use aegis_match::{Ended, Ending, Endings, Limits, MatchRecognize, Shown, Walk};
use aegis_model::{SecurityEvent, Timestamp};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::Column;
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, Projection};

use crate::begun::Events;
use crate::check::{EVENT_ORDER, base_column, row_pattern};
use crate::find::ShownEvents;
use crate::known::Walks;
use crate::pipeline::Pipeline;
use crate::schema::EventBatch;
use crate::shape::only_row_pattern;
use crate::side::Sides;
use crate::windows::{Origin, has_order};

/// Steps of the matcher that one tenant's events may take in one look, 20 to 50 nanoseconds each. Where they are not enough, the query is run as if
/// nothing were known.
const STEPS_OF_A_TENANT: u64 = 1 << 24;
/// Rows of matches that one look hands on to be put out: some megabytes. Of other matches there is only told where they end.
const ROWS_TOLD: usize = 1 << 16;

/// A row pattern that can be followed.
#[derive(Debug)]
pub(crate) struct RowPattern {
    /// Makes of events what conditions read, and what splits a bucket further.
    shown: Pipeline,
    endings: Endings,
    /// Where in the rows of `shown` that stands which splits a bucket further.
    split: Vec<usize>,
    split_rows: Option<RowConverter>,
    /// None: the query is run for what a match says.
    measures: Option<Measures>,
}

/// What makes the query's rows of the rows of its matches.
#[derive(Debug)]
struct Measures {
    /// Makes of events all that the row pattern reads.
    rows: Pipeline,
    /// Makes of the row pattern's output the query's.
    above: Pipeline,
}

/// Where the rule is to be asked for matches, over the window that ends there.
#[derive(Debug)]
pub(crate) struct RunAt {
    pub(crate) instant: Timestamp,
    /// The event from which on the query finds there what it finds over all of the window: its time, and which of that time it was when it was shown.
    pub(crate) from: Option<(Timestamp, u32)>,
    /// The matches, where they are told.
    pub(crate) told: Option<Told>,
}

impl RunAt {
    /// Over all of the window.
    pub(crate) const fn over_its_window(instant: Timestamp) -> Self {
        Self { instant, from: None, told: None }
    }
}

/// The matches of an instant.
#[derive(Debug)]
pub(crate) struct Told {
    /// The first of the events that they are made of.
    pub(crate) from: (Timestamp, u32),
    matches: Vec<Ended>,
}

/// What is left of what one look may take.
#[derive(Debug)]
pub(crate) struct Work {
    /// Steps, by tenant.
    left: Vec<u64>,
    /// Of each bucket, which of the tenants it is of.
    of_bucket: Vec<usize>,
    rows_told: usize,
}

impl Default for Work {
    fn default() -> Self {
        Self { left: Vec::new(), of_bucket: Vec::new(), rows_told: ROWS_TOLD }
    }
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
    /// The row pattern that a plan is, if it can be followed: a single one over filters and projections, whose rows are in the order of events, whose
    /// evidence is rows of the match, and of which a window's beginning and what comes later decide nothing. Else why it cannot. In a bucket, each of
    /// the columns `fixed` of events has one value, and each event that it is shown meets the conditions `met`.
    pub(crate) fn build(
        state: &SessionState,
        analyzed: &LogicalPlan,
        optimized: &LogicalPlan,
        (fixed, met): (&[&str], &[Expr]),
        limits: Limits,
    ) -> Result<std::result::Result<Self, &'static str>> {
        // What is evaluated has been made fit for it by the optimizer, which may move a filter on what splits the rows below the pattern.
        let (Some(written), Some(node)) = (only_row_pattern(analyzed), only_row_pattern(optimized)) else {
            return Ok(Err("it is no single MATCH_RECOGNIZE over filters and projections of events"));
        };
        if !is_in_order_of_events(written) {
            return Ok(Err("its rows are in another order than that of events"));
        }
        if !names_its_rows(analyzed) {
            return Ok(Err("its evidence is not event_id at rows of the match, as it is"));
        }
        if let Some(why) = node.unfollowed() {
            return Ok(Err(why));
        }
        let mut columns: Vec<Column> = Vec::new();
        let add = |columns: &mut Vec<Column>, column: Column| {
            columns.iter().position(|known| *known == column).unwrap_or_else(|| {
                columns.push(column);
                columns.len() - 1
            })
        };
        for column in node.columns_of_conditions() {
            add(&mut columns, column);
        }
        let is_fixed = |column: &Column| base_column(node.input(), column).is_some_and(|base| fixed.contains(&base.as_str()));
        let splitting = node.partition_columns().filter(|column| !is_fixed(column)).cloned();
        let split: Vec<usize> = splitting.map(|column| add(&mut columns, column)).collect();
        let all = node.columns_of_input();
        if columns.is_empty() {
            // A row has a column at least.
            columns.extend(all.first().cloned());
        }
        let first = columns.clone();
        for column in all {
            add(&mut columns, column);
        }
        let input = projected(node, &columns)?;
        let endings = Endings::compile(&node.over(input.clone())?, state, limits)?;
        let shown = aegis_sql::optimize(state, &projected(node, &first)?)?;
        let types: Vec<_> = split.iter().map(|place| shown.schema().field(*place).data_type().clone()).collect();
        if !types.iter().all(has_order) {
            return Ok(Err("it is partitioned by what has no order of its own"));
        }
        let Some(shown) = Pipeline::build(state, &shown, fixed, met)? else {
            return Ok(Err("what stands below MATCH_RECOGNIZE is more than filters and projections of events"));
        };
        let sorts: Vec<SortField> = types.into_iter().map(SortField::new).collect();
        let split_rows = if sorts.is_empty() { None } else { Some(RowConverter::new(sorts)?) };
        let rows = Pipeline::build(state, &aegis_sql::optimize(state, &input)?, fixed, met)?;
        let above = Pipeline::above_matches(state, optimized)?;
        let measures = rows.zip(above).map(|(rows, above)| Measures { rows, above });
        Ok(Ok(Self { shown, endings, split, split_rows, measures }))
    }

    /// The columns of the table that it reads.
    pub(crate) fn columns(&self) -> impl Iterator<Item = &usize> {
        self.shown.columns().iter().chain(self.measures.iter().flat_map(|measures| measures.rows.columns()))
    }

    /// What it is shown of events.
    pub(crate) const fn shown(&self) -> &Pipeline {
        &self.shown
    }

    pub(crate) const fn shown_mut(&mut self) -> &mut Pipeline {
        &mut self.shown
    }

    /// Events that it is shown at once, about.
    pub(crate) fn events_of_a_run(&self) -> usize {
        self.shown.events_of_a_run()
    }

    /// True if a condition reads more than the row.
    pub(crate) fn reads_more_than_the_row(&self) -> bool {
        self.endings.reads_more_than_the_row()
    }

    /// True if what a match says is made of its rows, and not by a run of the query.
    pub(crate) const fn is_measured(&self) -> bool {
        self.measures.is_some()
    }

    /// Takes these events in, and hands on of each bucket at which of their instants a match ends, in order. `origins` says of each event whose it is; a
    /// bucket's come in their order, after all that its walks have seen, and those of one instant together.
    pub(crate) fn run(
        &self,
        events: &Events,
        origins: Vec<Origin>,
        walks: &mut [Walks],
        back_micros: i64,
        work: &mut Work,
        mut ends: impl FnMut(usize, RunAt),
    ) -> Result<()> {
        self.shown.run(events, origins, &mut [], |rows, origins| {
            let shown = self.endings.shown(rows)?;
            let split: Vec<_> = self.split.iter().map(|place| Arc::clone(rows.column(*place))).collect();
            let keys = self.split_rows.as_ref().map(|converter| converter.convert_columns(&split)).transpose()?;
            let mut first = 0;
            for instant in origins.chunk_by(|a, b| (a.bucket, a.ts) == (b.bucket, b.ts)) {
                let bucket = instant[0].bucket;
                let touched = self.push(&mut walks[bucket], instant, &shown, keys.as_ref(), first)?;
                if let Some(run) = self.ending(&mut walks[bucket], instant[0], &touched, back_micros, work) {
                    ends(bucket, run);
                }
                first += instant.len();
            }
            Ok(())
        })
    }

    /// Adds the rows of one instant to a bucket's walks, and answers which got some. They stand from `first` on among all that were shown.
    fn push(
        &self,
        walks: &mut Walks,
        instant: &[Origin],
        shown: &Shown,
        keys: Option<&Rows>,
        first: usize,
    ) -> Result<Vec<usize>> {
        let mut touched = Vec::with_capacity(instant.len());
        for (row, origin) in (first..).zip(instant) {
            let key = keys.map(|keys| keys.row(row));
            let place = walks.place(key.as_ref().map(|key| key.data()), Walk::default);
            walks.partitions[place].push(&self.endings, origin.ts, origin.place, shown, row)?;
            touched.push(place);
        }
        touched.sort_unstable();
        touched.dedup();
        Ok(touched)
    }

    /// The matches of the walks that got rows of an instant. None: there is none.
    fn ending(&self, walks: &mut Walks, at: Origin, touched: &[usize], back_micros: i64, work: &mut Work) -> Option<RunAt> {
        let instant = Timestamp::from_micros(at.ts);
        let steps = &mut work.left[work.of_bucket[at.bucket]];
        let (mut begins, mut told) = (None, Some(Vec::new()));
        for partition in touched {
            match walks.partitions[*partition].ending(&self.endings, back_micros, steps) {
                Ending::None => {}
                Ending::Unknown => return Some(RunAt::over_its_window(instant)),
                Ending::From { ts, place, matches } => {
                    begins = Some((Timestamp::from_micros(ts), place));
                    told = told.zip(matches).map(|(mut all, own): (Vec<Ended>, Vec<Ended>)| {
                        all.extend(own);
                        all
                    });
                }
            }
        }
        // Rows of other partitions are between those of this one, and conditions may read rows before the match.
        let is_whole = self.split_rows.is_none() && !self.endings.reads_before_the_match();
        let from = begins?;
        let told = told.filter(|_| self.is_measured()).and_then(|matches| Told::of(matches, &mut work.rows_told));
        Some(RunAt { instant, from: is_whole.then_some(from), told })
    }

    /// The query's rows of some matches. `events` are those of the bucket from the first on that they are made of. None: they cannot be made.
    pub(crate) fn put_out(&self, told: &Told, events: &[Arc<SecurityEvent>], sides: &Sides) -> Result<Option<Vec<RecordBatch>>> {
        let Some(measures) = &self.measures else { return Ok(None) };
        let mut found = Vec::with_capacity(told.matches.len());
        for ended in &told.matches {
            let Some(own) = events_at(events, told.from, ended.rows()) else { return Ok(None) };
            let mut shown = ShownEvents::new(own.len());
            shown.add(0, &own);
            let Some((origins, own)) = shown.next_part(own.len()) else { return Ok(None) };
            let mut rows = None;
            let own = Events::Own(Box::new(EventBatch::new(own).beside(sides)));
            measures.rows.run(&own, origins, &mut [], |made, _| {
                rows = Some(made.clone());
                Ok(())
            })?;
            // Each of the events was a row of the pattern when it was shown.
            let Some(rows) = rows.filter(|rows| rows.num_rows() == ended.rows().len()) else { return Ok(None) };
            let output = measures.above.of(self.endings.output(ended, &rows)?)?;
            if output.num_rows() > 0 {
                found.push(output);
            }
        }
        Ok(Some(found))
    }
}

impl Told {
    /// The matches, if as many of their rows may still be told.
    fn of(matches: Vec<Ended>, rows_left: &mut usize) -> Option<Self> {
        let rows = matches.iter().map(|ended| ended.rows().len()).sum::<usize>();
        let (ts, place) = matches.iter().filter_map(|ended| ended.rows().first()).min()?;
        let from = (Timestamp::from_micros(*ts), *place);
        *rows_left = rows_left.checked_sub(rows)?;
        Some(Self { from, matches })
    }
}

/// Those of a bucket's events that are of these times and places. The first of the events is the one that `from` says.
fn events_at(events: &[Arc<SecurityEvent>], from: (Timestamp, u32), rows: &[(i64, u32)]) -> Option<Vec<Arc<SecurityEvent>>> {
    let at = |(ts, place): &(i64, u32)| {
        let ts = Timestamp::from_micros(*ts);
        let gone = if ts == from.0 { from.1 } else { 0 };
        let first = events.partition_point(|event| event.ts < ts);
        let event = events.get(first.checked_add(place.checked_sub(gone)? as usize)?)?;
        (event.ts == ts).then(|| Arc::clone(event))
    };
    rows.iter().map(at).collect()
}

/// Some columns of the row pattern's input.
fn projected(node: &MatchRecognize, columns: &[Column]) -> Result<LogicalPlan> {
    let exprs = columns.iter().cloned().map(Expr::Column).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(node.input().clone()))?))
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
