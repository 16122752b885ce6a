//! From a planned `MATCH_RECOGNIZE` to its [`Recognizer`]: expressions get their physical form, conditions are taken apart by what they read, and
//! what has to be kept of a row is found.

use std::sync::Arc;

use aegis_pattern::{Matcher, Program, Variable};
use aegis_sql::tree;
use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::{DataType, Schema, TimeUnit};
use datafusion::common::DFSchema;
use datafusion::error::Result;
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::physical_expr::aggregate::LoweredAggregateBuilder;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr, create_physical_expr};

use crate::definition::{
    CLASSIFIER, Definition, Read, Rows, Slot, operand_name, operand_of, schema_of, slot_name, slots_in, variable_of,
};
use crate::limits::Limits;
use crate::node::MatchRecognize;
use crate::recognizer::{AggregateOver, Around, Column, ConditionParts, OverSlots, ReadSlot, Recognizer, Scope};
use crate::refusal::Refusal;

pub(crate) struct Compiler<'a> {
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
    pub(crate) fn new(
        node: &'a MatchRecognize,
        input: &'a DFSchema,
        props: &'a ExecutionProps,
        planning: &'a PhysicalPlanningContext,
        limits: Limits,
    ) -> Result<Self> {
        let definition = &*node.definition;
        let program = Program::compile(&definition.pattern).map_err(|error| Refusal::invalid(error.to_string()))?;
        let kept = vec![None; node.operands.len()];
        Ok(Self {
            node,
            definition,
            input,
            props,
            planning,
            limits,
            program,
            columns: Vec::new(),
            column_types: Vec::new(),
            kept,
        })
    }

    pub(crate) fn compile(mut self) -> Result<Recognizer> {
        let partition_by = self.node.partition_by.iter().map(|expr| self.over_input(expr)).collect::<Result<Vec<_>>>()?;
        let order_by = self.node.order_by.iter().map(|sort| {
            let options = SortOptions { descending: !sort.asc, nulls_first: sort.nulls_first };
            Ok(PhysicalSortExpr::new(self.over_input(&sort.expr)?, options))
        });
        let order_by = order_by.collect::<Result<Vec<_>>>()?;
        let mut operands = self.node.operands.iter().map(|expr| self.over_input(expr)).collect::<Result<Vec<_>>>()?;
        let mut time = None;
        if self.limits.span_micros.is_some() {
            let (expr, data_type) = self.time(&order_by, self.input.as_arrow())?;
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

        let dependent: Vec<bool> =
            conditions.iter().map(|parts| parts.as_ref().is_some_and(|parts: &ConditionParts| parts.mapped.is_some())).collect();
        let skip = self.definition.skip.in_program(&self.program)?;
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

    fn variable(&self, name: &str) -> Result<Variable> {
        variable_of(&self.program, name)
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
        for conjunct in split_conjunction_owned(tree::copied(expr)) {
            let steps: Option<Vec<i64>> =
                slots_in(&conjunct).into_iter().map(|slot| self.physical(slot).map(|(_, step)| step)).collect();
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
            Slot::Navigated { read: Read::Operand(operand), rows: Rows::All, from_first: false, nth: 0, step } => {
                Some((*operand, *step))
            }
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
        let before = |step: &i64| if *step < 0 { usize::try_from(step.unsigned_abs()).ok() } else { None };
        let back = steps.iter().filter_map(|(_, step)| before(step)).max().unwrap_or(0);
        Ok(Around { reads, expr, steps, back, ahead })
    }

    /// Whether a slot is read row by row: by a measure, or by a condition that depends on the mapping.
    fn is_read(&self, slot: usize) -> bool {
        let measured = self.definition.measures.iter().any(|measure| slots_in(&measure.expr).contains(&slot));
        let conjuncts =
            self.definition.conditions.iter().flat_map(|condition| split_conjunction_owned(tree::copied(&condition.expr)));
        measured
            || conjuncts
                .map(|conjunct| slots_in(&conjunct))
                .any(|slots| slots.contains(&slot) && slots.iter().any(|slot| self.physical(*slot).is_none()))
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
                        let column =
                            if index.is_some_and(|index| self.is_read(index)) { self.kept(*operand) } else { usize::MAX };
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
