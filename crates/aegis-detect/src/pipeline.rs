//! A query of filters, projections and sliding windows, run over new events only.
//! Promises the rows that the query engine finds for these events over all of their window. The engine itself is not asked: expressions are
//! its own, compiled once, and the windows are `windows`.

use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::PhysicalExpr;

use crate::check::base_column;
use crate::schema::{EventBatch, column_index, schema_of};
use crate::windows::{GroupState, Origin, Windows};

/// Events of one run.
const EVENTS_OF_A_RUN: usize = 8192;
const EVENTS_WITH_LISTS: usize = 256;

/// What a bucket knows of the rows before, for every window of a query.
pub(crate) type Frames = Vec<GroupState>;

/// A query that can be followed.
#[derive(Debug)]
pub(crate) struct Pipeline {
    columns: Vec<usize>,
    schema: SchemaRef,
    steps: Vec<Step>,
    states: usize,
}

#[derive(Debug)]
enum Step {
    Filter(Arc<dyn PhysicalExpr>),
    Project(Vec<Arc<dyn PhysicalExpr>>, SchemaRef),
    Windows(Windows, SchemaRef),
}

impl Pipeline {
    /// The query of an optimized plan, if all of it can be followed. In a bucket, each of the columns `fixed` of events has one value.
    pub(crate) fn build(state: &SessionState, plan: &LogicalPlan, fixed: &[&str]) -> Result<Option<Self>> {
        let mut pipeline = Self { columns: Vec::new(), schema: schema_of(&[]), steps: Vec::new(), states: 0 };
        Ok(pipeline.push(state, plan, fixed)?.then_some(pipeline))
    }

    fn push(&mut self, state: &SessionState, plan: &LogicalPlan, fixed: &[&str]) -> Result<bool> {
        match plan {
            LogicalPlan::TableScan(scan) if scan.filters.is_empty() && scan.fetch.is_none() => {
                let names = scan.projected_schema.fields().iter().map(|field| column_index(field.name()));
                let Some(columns) = names.collect::<Option<Vec<usize>>>() else { return Ok(false) };
                self.schema = schema_of(&columns);
                self.columns = columns;
                Ok(true)
            }
            LogicalPlan::SubqueryAlias(alias) => self.push(state, &alias.input, fixed),
            // The order of rows says nothing about a match.
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => self.push(state, &sort.input, fixed),
            LogicalPlan::Filter(filter) => {
                let below = self.push(state, &filter.input, fixed)?;
                self.steps.push(Step::Filter(aegis_sql::physical_expr(state, filter.predicate.clone(), filter.input.schema())?));
                Ok(below)
            }
            LogicalPlan::Projection(projection) => {
                let below = self.push(state, &projection.input, fixed)?;
                let physical = |expr: &Expr| aegis_sql::physical_expr(state, expr.clone(), projection.input.schema());
                let exprs = projection.expr.iter().map(physical).collect::<Result<Vec<_>>>()?;
                self.steps.push(Step::Project(exprs, nullable(&projection.schema)));
                Ok(below)
            }
            LogicalPlan::Window(window) => {
                let below = self.push(state, &window.input, fixed)?;
                let constant = |expr: &Expr| match expr {
                    Expr::Column(column) => base_column(&window.input, column).is_some_and(|c| fixed.contains(&c.as_str())),
                    _ => false,
                };
                let Some(windows) = Windows::build(state, window, constant, &mut self.states)? else { return Ok(false) };
                self.steps.push(Step::Windows(windows, nullable(&window.schema)));
                Ok(below)
            }
            _ => Ok(false),
        }
    }

    /// The columns of the table that it reads.
    pub(crate) fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Events that one run is shown, about: few where each may have a long list.
    pub(crate) fn events_of_a_run(&self) -> usize {
        let lists = self.steps.iter().any(|step| matches!(step, Step::Windows(windows, _) if windows.makes_lists()));
        if lists { EVENTS_WITH_LISTS } else { EVENTS_OF_A_RUN }
    }

    /// What a bucket without rows knows.
    pub(crate) fn frames(&self) -> Frames {
        (0..self.states).map(|_| GroupState::default()).collect()
    }

    /// The query's rows for these events. `origins` says of each event whose it is; a bucket's come in their order, after all that its frames
    /// have seen. Answers with the rows the bucket that each is of.
    pub(crate) fn run(
        &self,
        events: &EventBatch,
        origins: Vec<Origin>,
        frames: &mut [Frames],
    ) -> Result<(RecordBatch, Vec<usize>)> {
        let mut rows = events.select(&self.columns, Arc::clone(&self.schema))?;
        let mut origins = origins;
        for step in &self.steps {
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
                    let mut columns = rows.columns().to_vec();
                    columns.extend(windows.run(&rows, &origins, frames)?);
                    batch(schema, columns, rows.num_rows())?
                }
            };
        }
        Ok((rows, origins.into_iter().map(|origin| origin.bucket).collect()))
    }
}

fn batch(schema: &SchemaRef, columns: Vec<datafusion::arrow::array::ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

/// The columns of a node's output; which of them can be null nobody here asks.
fn nullable(schema: &DFSchema) -> SchemaRef {
    let field = |field: &Arc<Field>| Field::new(field.name(), field.data_type().clone(), true);
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}
