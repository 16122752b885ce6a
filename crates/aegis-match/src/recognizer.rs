//! A query ready to run over any number of partitions, in batch or streaming: its matcher, and its conditions, aggregates and measures
//! as physical expressions. Holds no rows.

use std::sync::Arc;

use aegis_pattern::{Matcher, Pattern, Program, Skip, Variable};
use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::Session;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::aggregate::{AggregateFunctionExpr, LoweredAggregateBuilder};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr, create_physical_expr};

use crate::definition::{
    CLASSIFIER, Definition, Read, Rows, SkipTo, Slot, operand_name, operand_of, schema_of, slot_name, slots_in,
};
use crate::limits::Limits;
use crate::node::MatchRecognize;
use crate::refusal::Refusal;

/// A planned `MATCH_RECOGNIZE`, ready to run.
#[derive(Debug)]
pub struct Recognizer {
    pub(crate) matcher: Matcher,
    pub(crate) limits: Limits,
    /// Over input rows.
    pub(crate) partition_by: Vec<Arc<dyn PhysicalExpr>>,
    pub(crate) order_by: Vec<PhysicalSortExpr>,
    operands: Vec<Arc<dyn PhysicalExpr>>,
    /// What is kept of a row, and its types.
    columns: Vec<Column>,
    pub(crate) column_types: Vec<DataType>,
    /// The time of a row, where a span bounds a match: a kept column.
    pub(crate) time: Option<usize>,
    pub(crate) slots: Vec<ReadSlot>,
    pub(crate) slot_types: Vec<DataType>,
    pub(crate) aggregates: Vec<AggregateOver>,
    /// By variable; None: every row meets it.
    pub(crate) conditions: Vec<Option<ConditionParts>>,
    pub(crate) measures: OverSlots,
    measure_exprs: Vec<Arc<dyn PhysicalExpr>>,
    /// How many rows before a match are read.
    pub(crate) lookback: usize,
    begins_anew: bool,
    pub(crate) input_schema: SchemaRef,
    pub(crate) schema: SchemaRef,
    pub(crate) definition: Arc<Definition>,
}

/// A kept column.
#[derive(Debug)]
enum Column {
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
    /// Most rows further.
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

    /// What the input's rows are.
    #[must_use]
    pub fn input_schema(&self) -> &SchemaRef {
        &self.input_schema
    }

    /// Whether a partition of which nothing is kept is like one that no row has come of: nothing counts its rows or matches.
    pub(crate) fn can_begin_anew(&self) -> bool {
        self.begins_anew
    }

    pub(crate) fn variable_name(&self, variable: Variable) -> &str {
        self.matcher.program().variables().get(variable.index()).map_or("", String::as_str)
    }

    /// What is kept of the rows of a batch of the input.
    pub(crate) fn columns(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let rows = batch.num_rows();
        let evaluate = |expr: &Arc<dyn PhysicalExpr>| expr.evaluate(batch)?.into_array(rows);
        let operands = self.operands.iter().map(evaluate).collect::<Result<Vec<_>>>()?;
        let mut columns = Vec::with_capacity(self.columns.len());
        for (column, data_type) in self.columns.iter().zip(&self.column_types) {
            let array = match column {
                Column::Operand(operand) => Arc::clone(&operands[*operand]),
                Column::Holds(over, expr) => {
                    let read = over.slots.iter().map(|operand| Arc::clone(&operands[*operand])).collect();
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

struct Compiler<'a> {
    node: &'a MatchRecognize,
    definition: &'a Definition,
    input: &'a DFSchema,
    props: &'a ExecutionProps,
    planning: &'a PhysicalPlanningContext,
    limits: Limits,
    program: Program,
    columns: Vec<Column>,
    column_types: Vec<DataType>,
    /// By operand: its kept column.
    kept: Vec<Option<usize>>,
}

impl<'a> Compiler<'a> {
    fn new(
        node: &'a MatchRecognize,
        input: &'a DFSchema,
        props: &'a ExecutionProps,
        planning: &'a PhysicalPlanningContext,
        limits: Limits,
    ) -> Result<Self> {
        let definition = &*node.definition;
        let program = Program::compile(&definition.pattern).map_err(|error| Refusal::invalid(error.to_string()))?;
        let kept = vec![None; node.operands.len()];
        Ok(Self { node, definition, input, props, planning, limits, program, columns: Vec::new(), column_types: Vec::new(), kept })
    }

    fn compile(mut self) -> Result<Recognizer> {
        let partition_by = self.node.partition_by.iter().map(|expr| self.over_input(expr)).collect::<Result<Vec<_>>>()?;
        let order_by = self.node.order_by.iter().map(|sort| {
            let options = datafusion::arrow::compute::SortOptions { descending: !sort.asc, nulls_first: sort.nulls_first };
            Ok(PhysicalSortExpr::new(self.over_input(&sort.expr)?, options))
        });
        let order_by = order_by.collect::<Result<Vec<_>>>()?;
        let mut operands = self.node.operands.iter().map(|expr| self.over_input(expr)).collect::<Result<Vec<_>>>()?;
        let input_schema = Arc::clone(self.input.inner());
        let mut time = None;
        if self.limits.span_micros.is_some() {
            let (expr, data_type) = self.time(&order_by, &input_schema)?;
            operands.push(expr);
            self.columns.push(Column::Operand(operands.len() - 1));
            self.column_types.push(data_type);
            time = Some(self.columns.len() - 1);
        }

        let variables = self.program.variables().to_vec();
        let mut conditions = Vec::with_capacity(variables.len());
        for variable in &variables {
            let condition = self.definition.conditions.iter().find(|condition| condition.variable == *variable);
            conditions.push(condition.map(|condition| self.condition(&condition.expr)).transpose()?);
        }
        let aggregates = self.definition.aggregates.iter().map(|aggregate| self.aggregate(&aggregate.rows, &aggregate.function));
        let aggregates = aggregates.collect::<Vec<_>>();
        let aggregates = aggregates.into_iter().collect::<Result<Vec<_>>>()?;
        let slots = self.definition.slots.iter().map(|(slot, _)| self.slot(slot)).collect::<Vec<_>>();
        let slots = slots.into_iter().collect::<Result<Vec<_>>>()?;

        let mut read: Vec<usize> = self.definition.measures.iter().flat_map(|measure| slots_in(&measure.expr)).collect();
        read.sort_unstable();
        read.dedup();
        let (measures, schema) = self.over_slots(read)?;
        let physical = |expr: &Expr| create_physical_expr(expr, &schema, self.props, self.planning);
        let measure_exprs = self.definition.measures.iter().map(|measure| physical(&measure.expr)).collect::<Result<_>>()?;

        let back = self.definition.slots.iter().filter_map(|(slot, _)| match slot {
            Slot::Navigated { step, .. } if *step < 0 => usize::try_from(step.unsigned_abs()).ok(),
            _ => None,
        });
        let lookback = back.max().unwrap_or(0);
        let dependent: Vec<bool> =
            conditions.iter().map(|parts| parts.as_ref().is_some_and(|parts: &ConditionParts| parts.mapped.is_some())).collect();
        let skip = self.skip()?;
        let numbered = self.definition.slots.iter().any(|(slot, _)| *slot == Slot::MatchNumber);
        let begins_anew = lookback == 0 && !numbered && !anchored_at_start(&self.definition.pattern);
        let depends = |variable: Variable| dependent.get(variable.index()).copied().unwrap_or(true);
        let matcher = Matcher::new(self.program, skip, self.limits.attempt, depends);
        Ok(Recognizer {
            matcher,
            limits: self.limits,
            partition_by,
            order_by,
            operands,
            columns: self.columns,
            column_types: self.column_types,
            time,
            slots,
            slot_types: self.definition.slots.iter().map(|(_, data_type)| data_type.clone()).collect(),
            aggregates,
            conditions,
            measures,
            measure_exprs,
            lookback,
            begins_anew,
            input_schema,
            schema: Arc::clone(self.node.schema.inner()),
            definition: Arc::clone(&self.node.definition),
        })
    }

    fn over_input(&self, expr: &Expr) -> Result<Arc<dyn PhysicalExpr>> {
        create_physical_expr(expr, self.input, self.props, self.planning)
    }

    /// The time of a row, to bound the span of a match: the first column of the order.
    fn time(&self, order_by: &[PhysicalSortExpr], schema: &Schema) -> Result<(Arc<dyn PhysicalExpr>, DataType)> {
        if let Some(first) = order_by.first().filter(|first| !first.options.descending) {
            let data_type = first.expr.data_type(schema)?;
            if matches!(data_type, DataType::Timestamp(TimeUnit::Microsecond, _)) {
                return Ok((Arc::clone(&first.expr), data_type));
            }
        }
        let refusal = Refusal::invalid("the span of a match is bounded, and ORDER BY does not begin with a time, ascending");
        Err(refusal.hint("ORDER BY ts").into())
    }

    fn skip(&self) -> Result<Skip> {
        Ok(match &self.definition.skip {
            SkipTo::PastLastRow => Skip::PastLastRow,
            SkipTo::NextRow => Skip::ToNextRow,
            SkipTo::First(variable) => Skip::ToFirst(vec![self.variable(variable)?]),
            SkipTo::Last(variable) => Skip::ToLast(vec![self.variable(variable)?]),
        })
    }

    fn variable(&self, name: &str) -> Result<Variable> {
        self.program.variable(name).ok_or_else(|| DataFusionError::Internal(format!("`{name}` is no variable of the pattern")))
    }

    fn scope(&self, rows: &Rows) -> Result<Scope> {
        match rows {
            Rows::All => Ok(Scope::All),
            Rows::Of(variable) => Ok(Scope::Of(self.variable(variable)?)),
        }
    }

    /// The kept column of an operand.
    fn kept(&mut self, operand: usize) -> usize {
        if let Some(known) = self.kept[operand] {
            return known;
        }
        self.columns.push(Column::Operand(operand));
        self.column_types.push(self.definition.operand_types[operand].clone());
        self.kept[operand] = Some(self.columns.len() - 1);
        self.columns.len() - 1
    }

    /// A batch's columns for these slots.
    fn over_slots(&self, slots: Vec<usize>) -> Result<(OverSlots, DFSchema)> {
        let schema = schema_of(slots.iter().map(|slot| (slot_name(*slot), &self.definition.slots[*slot].1)))?;
        Ok((OverSlots { slots, schema: Arc::clone(schema.inner()) }, schema.as_ref().clone()))
    }

    /// A condition's conjuncts by what they read.
    fn condition(&mut self, expr: &Expr) -> Result<ConditionParts> {
        let (mut row, mut around, mut mapped) = (Vec::new(), Vec::new(), Vec::new());
        for conjunct in split_conjunction_owned(expr.clone()) {
            let steps: Option<Vec<i64>> = slots_in(&conjunct).into_iter().map(|slot| self.physical(slot).map(|(_, step)| step)).collect();
            match steps {
                None => mapped.push(conjunct),
                Some(steps) if steps.iter().all(|step| *step == 0) => row.push(conjunct),
                Some(_) => around.push(conjunct),
            }
        }
        let row = conjunction(row).map(|expr| self.row_condition(&expr)).transpose()?;
        let around = conjunction(around).map(|expr| self.around(&expr)).transpose()?;
        let mapped = conjunction(mapped).map(|expr| self.physical_over_slots(&expr)).transpose()?;
        // What the part that depends on the mapping reads is found when slots are compiled.
        Ok(ConditionParts { row, around, mapped })
    }

    /// The operand that a slot of a condition reads at or near the row itself, whatever the mapping, and how many rows further.
    fn physical(&self, slot: usize) -> Option<(usize, i64)> {
        match &self.definition.slots[slot].0 {
            Slot::Navigated { read: Read::Operand(operand), rows: Rows::All, from_first: false, nth: 0, step } => Some((*operand, *step)),
            _ => None,
        }
    }

    fn physical_over_slots(&self, expr: &Expr) -> Result<(OverSlots, Arc<dyn PhysicalExpr>)> {
        let (over, schema) = self.over_slots(slots_in(expr))?;
        let physical = create_physical_expr(expr, &schema, self.props, self.planning)?;
        Ok((over, physical))
    }

    /// A kept column for what reads the row alone.
    fn row_condition(&mut self, expr: &Expr) -> Result<usize> {
        let (mut over, physical) = self.physical_over_slots(expr)?;
        over.slots = over.slots.iter().filter_map(|slot| self.physical(*slot).map(|(operand, _)| operand)).collect();
        self.column_types.push(physical.data_type(&over.schema)?);
        self.columns.push(Column::Holds(over, physical));
        Ok(self.columns.len() - 1)
    }

    fn around(&mut self, expr: &Expr) -> Result<Around> {
        let (reads, expr) = self.physical_over_slots(expr)?;
        let mut steps = Vec::with_capacity(reads.slots.len());
        for slot in &reads.slots {
            if let Some((operand, step)) = self.physical(*slot) {
                steps.push((self.kept(operand), step));
            }
        }
        let ahead = steps.iter().filter_map(|(_, step)| usize::try_from(*step).ok()).max().unwrap_or(0);
        Ok(Around { reads, expr, steps, ahead })
    }

    /// Whether a slot is read row by row: by a measure, or by a condition that depends on the mapping.
    fn is_read(&self, slot: usize) -> bool {
        let measured = self.definition.measures.iter().any(|measure| slots_in(&measure.expr).contains(&slot));
        let conjuncts = self.definition.conditions.iter().flat_map(|condition| split_conjunction_owned(condition.expr.clone()));
        measured
            || conjuncts.map(|conjunct| slots_in(&conjunct)).any(|slots| {
                slots.contains(&slot) && slots.iter().any(|slot| self.physical(*slot).is_none())
            })
    }

    fn slot(&mut self, slot: &Slot) -> Result<ReadSlot> {
        Ok(match slot {
            Slot::Navigated { read, rows, from_first, nth, step } => {
                let (scope, from_first, nth, step) = (self.scope(rows)?, *from_first, *nth, *step);
                match read {
                    Read::Classifier => ReadSlot::Classifier { scope, from_first, nth, step },
                    Read::Operand(operand) => {
                        let index = self.definition.slots.iter().position(|(known, _)| known == slot);
                        // A slot that only the conditions of rows read has no column of its own.
                        let column = if index.is_some_and(|index| self.is_read(index)) { self.kept(*operand) } else { usize::MAX };
                        ReadSlot::Column { column, scope, from_first, nth, step }
                    }
                }
            }
            Slot::Count(rows) => ReadSlot::Count(self.scope(rows)?),
            Slot::Aggregate(aggregate) => ReadSlot::Aggregate(*aggregate),
            Slot::MatchNumber => ReadSlot::MatchNumber,
        })
    }

    fn aggregate(&mut self, rows: &Rows, function: &Expr) -> Result<AggregateOver> {
        let mut operands: Vec<usize> = function.column_refs().iter().filter_map(|column| operand_of(&column.name)).collect();
        operands.sort_unstable();
        let classified = function.column_refs().iter().any(|column| column.name == CLASSIFIER);
        let types = operands.iter().map(|operand| (operand_name(*operand), &self.definition.operand_types[*operand]));
        let schema = schema_of(types.chain(classified.then_some((CLASSIFIER.to_owned(), &DataType::Utf8))))?;
        let lowered = LoweredAggregateBuilder::new(function, &schema, schema.as_arrow(), self.props, self.planning).build()?;
        let mut args = lowered.aggregate.expressions();
        args.extend(lowered.order_bys.iter().map(|sort| Arc::clone(&sort.expr)));
        let columns = operands.into_iter().map(|operand| self.kept(operand)).collect();
        let (scope, schema) = (self.scope(rows)?, Arc::clone(schema.inner()));
        let (function, filter, order_by) = (lowered.aggregate, lowered.filter, lowered.order_bys);
        Ok(AggregateOver { scope, function, args, filter, order_by, columns, classified, schema })
    }
}

fn anchored_at_start(pattern: &Pattern) -> bool {
    match pattern {
        Pattern::Start => true,
        Pattern::Variable(_) | Pattern::Empty | Pattern::End => false,
        Pattern::Concat(parts) | Pattern::Alternate(parts) => parts.iter().any(anchored_at_start),
        Pattern::Quantified(part, _) => anchored_at_start(part),
    }
}

/// Null of a type as an array of one.
pub(crate) fn null_of(data_type: &DataType) -> Result<ArrayRef> {
    ScalarValue::try_from(data_type)?.to_array()
}
