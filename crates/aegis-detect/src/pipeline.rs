//! A query of filters, projections and sliding windows, run over new events only.
//! Promises the rows that the query engine finds for these events over all of their window. The engine itself is not asked: expressions are
//! its own, compiled once, and the windows are `windows`. A column is made where somebody reads it, of the rows that are left there.

use std::sync::Arc;

use aegis_model::SecurityEvent;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, NullArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{Column, DFSchema};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::PhysicalExpr;

use crate::begun::{Beginning, Beginnings, Begun, Events};
use crate::check::{base_column, row_pattern};
use crate::known::{Frames, Split};
use crate::schema::{EventBatch, column_index, schema_of};
use crate::shape::unqualified;
use crate::windows::{Columns, Given, Origin, Read, Windows};

/// Events of one run.
const EVENTS_OF_A_RUN: usize = 8192;
const EVENTS_WITH_LISTS: usize = 256;

/// A query that can be followed.
#[derive(Debug)]
pub(crate) struct Pipeline {
    /// The columns of the table that it reads; none of them is made yet.
    columns: Vec<usize>,
    schema: SchemaRef,
    steps: Vec<Step>,
    states: usize,
    /// How it begins, and how many of the steps that is: those before the first windows. None of the rows of matches.
    beginning: Option<Arc<Beginning>>,
    begins: usize,
}

#[derive(Debug)]
enum Step {
    Filter(Arc<dyn PhysicalExpr>),
    Project(Vec<Arc<dyn PhysicalExpr>>, SchemaRef),
    Windows(Windows, SchemaRef),
    /// Makes columns of the table, of the events whose rows are left.
    Columns(Vec<EventColumn>, SchemaRef),
    /// Makes lists of what so far only says where they are.
    Lists(Vec<ListColumn>, SchemaRef),
}

impl Step {
    const fn schema(&self) -> Option<&SchemaRef> {
        match self {
            Self::Filter(_) => None,
            Self::Project(_, schema) | Self::Windows(_, schema) | Self::Columns(_, schema) | Self::Lists(_, schema) => {
                Some(schema)
            }
        }
    }
}

/// A column of events that is made when somebody reads it.
#[derive(Clone, Copy, Debug)]
struct EventColumn {
    column: usize,
    of_table: usize,
}

/// A column of lists that are made when somebody reads them.
#[derive(Clone, Debug)]
struct ListColumn {
    column: usize,
    /// The step and the function that it is of.
    windows: usize,
    function: usize,
}

/// A query while it is put together.
struct Draft<'a> {
    state: &'a SessionState,
    /// Columns of events that have one value in a bucket.
    fixed: &'a [&'a str],
    /// What every event meets that it is shown.
    met: &'a [Expr],
    pipeline: Pipeline,
    /// Lists that were not read yet.
    unmade: Vec<ListColumn>,
    /// Columns of events that were not read yet.
    unread: Vec<EventColumn>,
    /// Its rows are the matches of a row pattern, made already, and not events.
    of_matches: bool,
}

impl Draft<'_> {
    /// False if the query cannot be followed.
    fn push(&mut self, plan: &LogicalPlan) -> Result<bool> {
        match plan {
            LogicalPlan::TableScan(scan) if scan.filters.is_empty() && scan.fetch.is_none() => {
                let names = scan.projected_schema.fields().iter().map(|field| column_index(field.name()));
                let Some(columns) = names.collect::<Option<Vec<usize>>>() else { return Ok(false) };
                let unread = columns.iter().enumerate().map(|(column, of_table)| EventColumn { column, of_table: *of_table });
                self.unread = unread.collect();
                self.pipeline.schema = self.schema_now(&scan.projected_schema);
                self.pipeline.columns = columns;
                Ok(!self.of_matches)
            }
            LogicalPlan::Extension(_) => Ok(self.of_matches && row_pattern(plan).is_some()),
            LogicalPlan::SubqueryAlias(alias) => self.push(&alias.input),
            // The order of rows says nothing about a match.
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => self.push(&sort.input),
            LogicalPlan::Filter(filter) => {
                let below = self.push(&filter.input)?;
                let schema = filter.input.schema();
                let is_of_events = matches!(*filter.input, LogicalPlan::TableScan(_));
                // What reads no list first: then there are lists of the rows alone that pass it.
                let (mut first, mut then) = (Vec::new(), Vec::new());
                for part in split_conjunction(&filter.predicate) {
                    if is_of_events && self.met.contains(&unqualified(part.clone())?) {
                        continue;
                    }
                    if self.reads_unmade(part, schema)? { then.push(part) } else { first.push(part) }
                }
                self.push_filter(first, schema)?;
                self.push_filter(then, schema)?;
                Ok(below)
            }
            LogicalPlan::Projection(projection) => {
                let below = self.push(&projection.input)?;
                let input = projection.input.schema();
                self.make_read(projection.expr.iter().filter(|expr| plain_column(expr).is_none()), input)?;
                let exprs = projection.expr.iter().map(|expr| self.physical(expr, input)).collect::<Result<Vec<_>>>()?;
                // What is only handed on is still not read.
                let (mut unmade, mut unread) = (Vec::new(), Vec::new());
                for (column, expr) in projection.expr.iter().enumerate() {
                    let Some(from) = plain_column(expr).map(|from| input.index_of_column(from)).transpose()? else { continue };
                    let lists = self.unmade.iter().filter(|list| list.column == from);
                    unmade.extend(lists.map(|list| ListColumn { column, ..list.clone() }));
                    let of_events = self.unread.iter().filter(|unread| unread.column == from);
                    unread.extend(of_events.map(|of_event| EventColumn { column, ..*of_event }));
                }
                (self.unmade, self.unread) = (unmade, unread);
                self.pipeline.steps.push(Step::Project(exprs, self.schema_now(&projection.schema)));
                Ok(below)
            }
            LogicalPlan::Window(window) => {
                let below = self.push(&window.input)?;
                let fixed = self.fixed;
                let base = |expr: &Expr| match expr {
                    Expr::Column(column) => base_column(&window.input, column),
                    _ => None,
                };
                let is_constant = |expr: &Expr| base(expr).is_some_and(|column| fixed.contains(&column.as_str()));
                let is_id = |expr: &Expr| base(expr).is_some_and(|column| column == "event_id");
                let columns = Columns { is_constant: &is_constant, is_id: &is_id };
                self.make_read(&Windows::reads(window, &columns), window.input.schema())?;
                let windows = Windows::build(self.state, window, &columns, &mut self.pipeline.states)?;
                let Some(windows) = windows else { return Ok(false) };
                self.begin_with(&window.input, windows.read());
                let (first, step) = (window.input.schema().fields().len(), self.pipeline.steps.len());
                let lists = windows.lists().map(|function| ListColumn { column: first + function, windows: step, function });
                self.unmade.extend(lists);
                self.pipeline.steps.push(Step::Windows(windows, self.schema_now(&window.schema)));
                Ok(below)
            }
            _ => Ok(false),
        }
    }

    /// Windows come now that read this of the plan's rows; what goes before the first of them is how the query begins.
    fn begin_with(&mut self, plan: &LogicalPlan, read: &Read) {
        let Pipeline { steps, beginning, begins, .. } = &mut self.pipeline;
        if beginning.is_none() && !self.of_matches {
            let schemas = steps.iter().map(|step| step.schema().cloned()).collect();
            *beginning = Some(Arc::new(Beginning::new(plan, schemas, read.clone())));
            *begins = steps.len();
        }
    }

    fn physical(&self, expr: &Expr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>> {
        aegis_sql::physical_expr(self.state, expr.clone(), schema)
    }

    fn push_filter(&mut self, parts: Vec<&Expr>, schema: &DFSchema) -> Result<()> {
        if let Some(predicate) = conjunction(parts.into_iter().cloned()) {
            self.make_read([&predicate], schema)?;
            let predicate = self.physical(&predicate, schema)?;
            self.pipeline.steps.push(Step::Filter(predicate));
        }
        Ok(())
    }

    /// True if the expression, over rows of this schema, reads a list that is not made.
    fn reads_unmade(&self, expr: &Expr, schema: &DFSchema) -> Result<bool> {
        for column in expr.column_refs() {
            let read = schema.index_of_column(column)?;
            if self.unmade.iter().any(|list| list.column == read) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Has made what these expressions read of rows of this schema: columns of events, and, if they read a list, the lists.
    fn make_read<'e>(&mut self, exprs: impl IntoIterator<Item = &'e Expr>, schema: &DFSchema) -> Result<()> {
        let mut read = Vec::new();
        let mut reads_lists = false;
        for expr in exprs {
            for column in expr.column_refs() {
                read.push(schema.index_of_column(column)?);
            }
            reads_lists |= self.reads_unmade(expr, schema)?;
        }
        self.make_columns(|unread| read.contains(&unread.column), schema);
        if reads_lists {
            self.make_lists(schema);
        }
        Ok(())
    }

    /// Has some of the columns of events made that are not yet.
    fn make_columns(&mut self, is_read: impl Fn(&EventColumn) -> bool, schema: &DFSchema) {
        let (read, unread): (Vec<EventColumn>, Vec<EventColumn>) =
            std::mem::take(&mut self.unread).into_iter().partition(is_read);
        self.unread = unread;
        if !read.is_empty() {
            self.pipeline.steps.push(Step::Columns(read, self.schema_now(schema)));
        }
    }

    /// Has all lists made that are not yet.
    fn make_lists(&mut self, schema: &DFSchema) {
        if !self.unmade.is_empty() {
            let lists = std::mem::take(&mut self.unmade);
            self.pipeline.steps.push(Step::Lists(lists, self.schema_now(schema)));
        }
    }

    /// The columns of a node's output; which of them can be null nobody here asks. Of a list that is not made there is its place, and of a column of
    /// events nothing.
    fn schema_now(&self, schema: &DFSchema) -> SchemaRef {
        let field = |(column, field): (usize, &Arc<Field>)| {
            let is_unmade = self.unmade.iter().any(|list| list.column == column);
            let is_unread = self.unread.iter().any(|unread| unread.column == column);
            let data_type = match field.data_type() {
                _ if is_unmade => DataType::UInt64,
                _ if is_unread => DataType::Null,
                made => made.clone(),
            };
            Field::new(field.name(), data_type, true)
        };
        Arc::new(Schema::new(schema.fields().iter().enumerate().map(field).collect::<Vec<_>>()))
    }
}

/// The column that an expression is, by another name or not.
pub(crate) fn plain_column(expr: &Expr) -> Option<&Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Alias(alias) => plain_column(&alias.expr),
        _ => None,
    }
}

impl Pipeline {
    /// The query of an optimized plan, if all of it can be followed. In a bucket, each of the columns `fixed` of events has one value; each event that
    /// it is shown meets the conditions `met`.
    pub(crate) fn build(state: &SessionState, plan: &LogicalPlan, fixed: &[&str], met: &[Expr]) -> Result<Option<Self>> {
        Self::draft(state, plan, fixed, met, false)
    }

    /// What an optimized plan makes of the matches of its row pattern, if that is filters and projections.
    pub(crate) fn above_matches(state: &SessionState, plan: &LogicalPlan) -> Result<Option<Self>> {
        Self::draft(state, plan, &[], &[], true)
    }

    fn draft(state: &SessionState, plan: &LogicalPlan, fixed: &[&str], met: &[Expr], of_matches: bool) -> Result<Option<Self>> {
        let (columns, schema, steps) = (Vec::new(), schema_of(&[]), Vec::new());
        let pipeline = Self { columns, schema, steps, states: 0, beginning: None, begins: 0 };
        let mut draft = Draft { state, fixed, met, pipeline, unmade: Vec::new(), unread: Vec::new(), of_matches };
        if !draft.push(plan)? {
            return Ok(None);
        }
        draft.make_columns(|_| true, plan.schema());
        draft.make_lists(plan.schema());
        // Where there are no windows it is all of it.
        draft.begin_with(plan, &Read::default());
        Ok(Some(draft.pipeline))
    }

    /// How it begins.
    pub(crate) const fn beginning(&self) -> Option<&Arc<Beginning>> {
        self.beginning.as_ref()
    }

    /// It begins as others do, if they do.
    pub(crate) fn share(&mut self, beginnings: &mut Beginnings) {
        self.beginning = self.beginning.take().map(|beginning| beginnings.of(beginning));
    }

    /// What it makes of events before it is asked whose they are.
    pub(crate) fn begin(&self, events: EventBatch) -> Result<Begun> {
        let count = events.rows().len();
        let origins = (0..count).map(|event| Origin { bucket: 0, ts: 0, place: 0, event }).collect();
        let (steps, rest) = self.steps.split_at(self.begins);
        let (rows, origins) = self.apply(steps, &events, self.unmade(count)?, origins, &mut [])?;
        let windows = match rest.first() {
            Some(Step::Windows(windows, _)) if rows.num_rows() > 0 => windows.prepare(&events, &rows, &origins)?,
            _ => Vec::new(),
        };
        let places = origins.into_iter().map(|origin| origin.event).collect();
        // What each makes of them later is its own.
        Ok(Begun { events: events.closed(), rows, places, windows })
    }

    /// Rows of events, none of whose columns is made.
    fn unmade(&self, count: usize) -> Result<RecordBatch> {
        let nothing: ArrayRef = Arc::new(NullArray::new(count));
        batch(&self.schema, vec![nothing; self.columns.len()], count)
    }

    /// Goes on from where others begin too, up to the end of these steps.
    fn go_on(
        &self,
        begun: &Begun,
        steps: &[Step],
        origins: &[Origin],
        frames: &mut [Frames],
    ) -> Result<(RecordBatch, Vec<Origin>)> {
        let origins: Vec<Origin> = begun.places.iter().filter_map(|place| origins.get(*place)).copied().collect();
        let rows = begun.rows.clone();
        let Some((Step::Windows(windows, schema), rest)) = steps.get(self.begins..).and_then(<[Step]>::split_first) else {
            return Ok((rows, origins));
        };
        if rows.num_rows() == 0 {
            return Ok((rows, origins));
        }
        let made = windows.run(&origins, frames, begun.windows.iter().map(Given::Shared))?;
        self.apply(rest, &begun.events, beside(schema, &rows, made)?, origins, frames)
    }

    /// What goes before the first lists, and the rest.
    fn parts(&self) -> (&[Step], &[Step]) {
        let first = self.steps.iter().position(|step| matches!(step, Step::Lists(..)));
        self.steps.split_at(first.unwrap_or(self.steps.len()))
    }

    /// True if rows with lists can be looked at some at a time: none of them sees another.
    fn lists_come_last(&self) -> bool {
        !self.parts().1.iter().any(|step| matches!(step, Step::Windows(..)))
    }

    /// The columns of the table that it reads.
    pub(crate) fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Events that one run is shown, about: few where each may have a long list.
    pub(crate) fn events_of_a_run(&self) -> usize {
        if self.lists_come_last() { EVENTS_OF_A_RUN } else { EVENTS_WITH_LISTS }
    }

    /// What a bucket without rows knows.
    pub(crate) fn frames(&self) -> Frames {
        (0..self.states).map(|_| Split::default()).collect()
    }

    /// Finds the query's rows for these events, and hands them on, with the bucket of each. `origins` says of each event whose it is; a bucket's
    /// come in their order, after all that its frames have seen.
    pub(crate) fn run(
        &self,
        events: &Events,
        mut origins: Vec<Origin>,
        frames: &mut [Frames],
        mut found: impl FnMut(&RecordBatch, &[Origin]) -> Result<()>,
    ) -> Result<()> {
        let (before, after) = self.parts();
        origins.iter_mut().enumerate().for_each(|(place, origin)| origin.event = place);
        let (rows, origins) = match events {
            Events::Begun(begun) => self.go_on(begun, before, &origins, frames)?,
            Events::Own(batch) => self.apply(before, batch, self.unmade(origins.len())?, origins, frames)?,
        };
        let most = if after.is_empty() || !self.lists_come_last() { rows.num_rows() } else { EVENTS_WITH_LISTS };
        let mut start = 0;
        for origins in origins.chunks(most.max(1)) {
            let part = rows.slice(start, origins.len());
            start += origins.len();
            let (part, origins) = self.apply(after, events.batch(), part, origins.to_vec(), frames)?;
            if part.num_rows() > 0 {
                found(&part, &origins)?;
            }
        }
        Ok(())
    }

    /// What it makes of rows that are there, of a query without windows.
    pub(crate) fn of(&self, rows: RecordBatch) -> Result<RecordBatch> {
        let origins = vec![Origin { bucket: 0, ts: 0, place: 0, event: 0 }; rows.num_rows()];
        let (made, _) = self.apply(&self.steps, &EventBatch::new(Vec::new()), rows, origins, &mut [])?;
        Ok(made)
    }

    fn apply(
        &self,
        steps: &[Step],
        events: &EventBatch,
        mut rows: RecordBatch,
        mut origins: Vec<Origin>,
        frames: &mut [Frames],
    ) -> Result<(RecordBatch, Vec<Origin>)> {
        for step in steps {
            if rows.num_rows() == 0 {
                break;
            }
            rows = match step {
                Step::Filter(predicate) => {
                    let mask = predicate.evaluate(&rows)?.into_array(rows.num_rows())?;
                    let mask = mask.as_boolean();
                    let mut passes = (0..mask.len()).map(|index| mask.is_valid(index) && mask.value(index));
                    origins.retain(|_| passes.next().unwrap_or_default());
                    if origins.len() == rows.num_rows() { rows } else { filter_record_batch(&rows, mask)? }
                }
                Step::Project(exprs, schema) => {
                    let columns = exprs.iter().map(|expr| expr.evaluate(&rows)?.into_array(rows.num_rows()));
                    batch(schema, columns.collect::<Result<_>>()?, rows.num_rows())?
                }
                Step::Windows(windows, schema) => {
                    let prepared = windows.prepare(events, &rows, &origins)?;
                    let made = windows.run(&origins, frames, prepared.into_iter().map(Given::Own))?;
                    beside(schema, &rows, made)?
                }
                Step::Columns(made, schema) => {
                    let mut columns = rows.columns().to_vec();
                    let left = Left::of(events, &origins);
                    made.iter().for_each(|EventColumn { column, of_table }| columns[*column] = left.column(events, *of_table));
                    batch(schema, columns, rows.num_rows())?
                }
                Step::Lists(lists, schema) => {
                    let mut columns = rows.columns().to_vec();
                    for list in lists {
                        let Step::Windows(windows, _) = &self.steps[list.windows] else { continue };
                        columns[list.column] = windows.list(list.function, &columns[list.column], &origins, frames)?;
                    }
                    batch(schema, columns, rows.num_rows())?
                }
            };
        }
        Ok((rows, origins))
    }
}

/// The events whose rows are left.
enum Left {
    All,
    Some(Vec<Arc<SecurityEvent>>),
}

impl Left {
    fn of(events: &EventBatch, origins: &[Origin]) -> Self {
        if origins.len() == events.rows().len() {
            return Self::All;
        }
        Self::Some(origins.iter().filter_map(|origin| events.rows().get(origin.event)).cloned().collect())
    }

    fn column(&self, events: &EventBatch, column: usize) -> ArrayRef {
        match self {
            Self::All => events.column_now(column),
            Self::Some(rows) => events.column_of(column, rows),
        }
    }
}

/// Rows with further columns behind their own.
fn beside(schema: &SchemaRef, rows: &RecordBatch, further: Vec<ArrayRef>) -> Result<RecordBatch> {
    let mut columns = rows.columns().to_vec();
    columns.extend(further);
    batch(schema, columns, rows.num_rows())
}

fn batch(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}
