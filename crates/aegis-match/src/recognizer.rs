//! A query ready to run over any number of partitions, in batch or streaming: its matcher, and its conditions, aggregates and measures
//! as physical expressions. Holds no rows.

use std::sync::Arc;

use aegis_pattern::{Matcher, Variable};
use datafusion::arrow::array::{ArrayRef, NullArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};

use crate::compile::Compiler;
use crate::definition::Definition;
use crate::limits::Limits;
use crate::node::MatchRecognize;

/// A planned `MATCH_RECOGNIZE`, ready to run.
#[derive(Debug)]
pub struct Recognizer {
    pub(crate) matcher: Matcher,
    pub(crate) limits: Limits,
    /// Over input rows.
    pub(crate) partition_by: Vec<Arc<dyn PhysicalExpr>>,
    pub(crate) order_by: Vec<PhysicalSortExpr>,
    pub(crate) operands: Vec<Arc<dyn PhysicalExpr>>,
    /// What is kept of a row, and its types.
    pub(crate) columns: Vec<Column>,
    pub(crate) column_types: Vec<DataType>,
    /// The time of a row, where a span bounds a match: a kept column.
    pub(crate) time: Option<usize>,
    pub(crate) slots: Vec<ReadSlot>,
    pub(crate) slot_types: Vec<DataType>,
    pub(crate) aggregates: Vec<AggregateOver>,
    /// By variable; None: every row meets it.
    pub(crate) conditions: Vec<Option<ConditionParts>>,
    pub(crate) measures: OverSlots,
    pub(crate) measure_exprs: Vec<Arc<dyn PhysicalExpr>>,
    pub(crate) schema: SchemaRef,
    pub(crate) definition: Arc<Definition>,
}

/// A kept column.
#[derive(Debug)]
pub(crate) enum Column {
    Operand(usize),
    /// Whether a condition, or the part of it that reads the row alone, holds.
    Holds(OverSlots, Arc<dyn PhysicalExpr>),
}

/// A slot, with kept columns for operands and the pattern's variables for names.
#[derive(Clone, Debug)]
pub(crate) enum ReadSlot {
    Column { column: usize, scope: Scope, from_first: bool, nth: usize, step: i64 },
    Classifier { scope: Scope, from_first: bool, nth: usize, step: i64 },
    Count(Scope),
    Aggregate(usize),
    MatchNumber,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    Of(Variable),
}

impl Scope {
    pub(crate) fn in_pattern(self) -> aegis_pattern::Scope<'static> {
        match self {
            Self::All => aegis_pattern::Scope::All,
            Self::Of(variable) => aegis_pattern::Scope::One(variable),
        }
    }
}

/// A condition in parts, all of which must hold.
#[derive(Debug)]
pub(crate) struct ConditionParts {
    /// What reads the row alone: a kept column.
    pub(crate) row: Option<usize>,
    /// What reads physical neighbours too.
    pub(crate) around: Option<Around>,
    /// What depends on the mapping.
    pub(crate) mapped: Option<(OverSlots, Arc<dyn PhysicalExpr>)>,
}

#[derive(Debug)]
pub(crate) struct Around {
    pub(crate) reads: OverSlots,
    pub(crate) expr: Arc<dyn PhysicalExpr>,
    /// Of each slot: the kept column, and how many rows further.
    pub(crate) steps: Vec<(usize, i64)>,
    /// Most rows before, and most rows further.
    pub(crate) back: usize,
    pub(crate) ahead: usize,
}

/// The slots that an expression reads, as the columns of a batch.
#[derive(Debug)]
pub(crate) struct OverSlots {
    pub(crate) slots: Vec<usize>,
    pub(crate) schema: SchemaRef,
}

impl OverSlots {
    pub(crate) fn batch(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}

/// An aggregate over rows of a match.
#[derive(Debug)]
pub(crate) struct AggregateOver {
    pub(crate) scope: Scope,
    pub(crate) function: Arc<AggregateFunctionExpr>,
    pub(crate) args: Vec<Arc<dyn PhysicalExpr>>,
    pub(crate) filter: Option<Arc<dyn PhysicalExpr>>,
    pub(crate) order_by: Vec<PhysicalSortExpr>,
    /// What the expressions read: kept columns, and at the end the classifier if `classified`.
    pub(crate) columns: Vec<usize>,
    pub(crate) classified: bool,
    pub(crate) schema: SchemaRef,
}

impl Recognizer {
    /// The recognizer of a planned query whose input has this schema.
    ///
    /// # Errors
    /// An expression that has no physical form, or a span without a time to measure it by.
    pub fn compile(
        node: &MatchRecognize,
        input: &DFSchema,
        session: &dyn Session,
        planning: &PhysicalPlanningContext,
        limits: Limits,
    ) -> Result<Self> {
        Compiler::new(node, input, session.execution_props(), planning, limits)?.compile()
    }

    /// What the output's rows are: the partition's columns, then the measures.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Bytes that the search through so many rows holds at most.
    pub(crate) fn search_bytes(&self, rows: usize) -> usize {
        // A cell has at most 32 bytes, twice that with room to grow; what earlier attempts remembered takes half as much again.
        let states = usize::try_from(self.matcher.program().states()).unwrap_or(usize::MAX);
        rows.saturating_mul(states).saturating_mul(2).min(self.limits.attempt.cells).saturating_mul(96)
    }

    pub(crate) fn variable_name(&self, variable: Variable) -> &str {
        self.matcher.program().variables().get(variable.index()).map_or("", String::as_str)
    }

    /// What is kept of the rows of a batch of the input.
    pub(crate) fn columns(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        self.columns_where(batch, |_| true)
    }

    /// The same of the columns that are wanted; the others are there, and have nothing.
    pub(crate) fn columns_where(&self, batch: &RecordBatch, is_wanted: impl Fn(usize) -> bool) -> Result<Vec<ArrayRef>> {
        let rows = batch.num_rows();
        let mut evaluated: Vec<Option<ArrayRef>> = vec![None; self.operands.len()];
        let mut operand = |place: usize| -> Result<ArrayRef> {
            if let Some(known) = &evaluated[place] {
                return Ok(Arc::clone(known));
            }
            let array = self.operands[place].evaluate(batch)?.into_array(rows)?;
            evaluated[place] = Some(Arc::clone(&array));
            Ok(array)
        };
        let mut columns = Vec::with_capacity(self.columns.len());
        for (place, (column, data_type)) in self.columns.iter().zip(&self.column_types).enumerate() {
            if !is_wanted(place) {
                columns.push(Arc::new(NullArray::new(rows)) as ArrayRef);
                continue;
            }
            let array = match column {
                Column::Operand(place) => operand(*place)?,
                Column::Holds(over, expr) => {
                    let read = over.slots.iter().map(|place| operand(*place)).collect::<Result<Vec<_>>>()?;
                    expr.evaluate(&over.batch(read, rows)?)?.into_array(rows)?
                }
            };
            if array.data_type() != data_type {
                let message = format!("an operand of MATCH_RECOGNIZE is {} and was planned as {data_type}", array.data_type());
                return Err(DataFusionError::Internal(message));
            }
            columns.push(array);
        }
        Ok(columns)
    }

    /// The measures of matches whose slots are columns of a batch.
    pub(crate) fn measures(&self, slots: Vec<ArrayRef>, matches: usize) -> Result<Vec<ArrayRef>> {
        let batch = self.measures.batch(slots, matches)?;
        self.measure_exprs.iter().map(|expr| expr.evaluate(&batch)?.into_array(matches)).collect()
    }
}

/// Null of a type as an array of one.
pub(crate) fn null_of(data_type: &DataType) -> Result<ArrayRef> {
    ScalarValue::try_from(data_type)?.to_array()
}
