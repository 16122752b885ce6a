//! With which rows the matches of a query end, and which matches those are, for whoever asks that of each row that comes: what is kept of a row for that,
//! and the output of a match that is known by its rows.
//!
//! The walk itself is `walk`'s. Of a pattern in which every condition reads the row alone a row is a few bits; of others the columns are kept that
//! conditions read. Promises what the operator finds (L-MATCH-ENDINGS, L-MATCH-OUTPUT); what cannot be told so is refused by [`MatchRecognize::unfollowed`].

use std::collections::BTreeSet;

use aegis_pattern::{Mapping, Pattern, Program, Variable};
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::catalog::Session;
use datafusion::common::Column;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};

use crate::conditions::is_true;
use crate::definition::{Definition, Read, Slot, operand_of, slot_of, slots_in};
use crate::kept::Kept;
use crate::limits::Limits;
use crate::node::MatchRecognize;
use crate::output::Output;
use crate::recognizer::{ConditionParts, ReadSlot, Recognizer};

/// A row has so many bits.
const MOST_VARIABLES: usize = 64;

/// A query of which it can be told with which rows its matches end.
#[derive(Debug)]
pub struct Endings {
    pub(crate) recognizer: Recognizer,
    /// The variables that the last row of a match can be mapped to.
    pub(crate) last: u64,
    /// How many rows before its own a condition reads.
    pub(crate) lookback: usize,
    /// How many rows before and after those of a match its measures read.
    pub(crate) measured: (usize, usize),
    /// By kept column: whether a condition reads it.
    read: Vec<bool>,
    depends: bool,
}

/// What is kept of some rows.
#[derive(Debug)]
pub struct Shown {
    /// To which variables each may be mapped, as far as the row alone tells.
    pub(crate) marks: Vec<u64>,
    /// Where conditions read more than the row: what they read.
    pub(crate) columns: Vec<ArrayRef>,
}

/// A match, and the rows that its output is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub(crate) mapping: Mapping,
    /// The number of the first of the rows.
    pub(crate) first: usize,
    pub(crate) rows: Vec<(i64, u32)>,
}

impl Ended {
    /// The time of each row, and which of its time it is: those of the match, and those around them that measures read.
    #[must_use]
    pub fn rows(&self) -> &[(i64, u32)] {
        &self.rows
    }
}

impl MatchRecognize {
    /// Why it cannot be told with which rows its matches end, if it cannot.
    #[must_use]
    pub fn unfollowed(&self) -> Option<&'static str> {
        let definition = &*self.definition;
        let variables = Program::compile(&definition.pattern).map_or(usize::MAX, |program| program.variables().len());
        if anchored_at_start(&definition.pattern) {
            Some("`^` turns on where the window begins")
        } else if definition.slots.iter().any(|(slot, _)| *slot == Slot::MatchNumber) {
            Some("MATCH_NUMBER() turns on where the window begins")
        } else if steps(definition, conditions_of(definition)).1 > 0 {
            Some("NEXT in DEFINE reads what comes later")
        } else if variables > MOST_VARIABLES {
            Some("its pattern has over 64 variables")
        } else {
            None
        }
    }

    /// The columns of the input that conditions read.
    #[must_use]
    pub fn columns_of_conditions(&self) -> Vec<Column> {
        self.columns_behind(conditions_of(&self.definition))
    }

    /// The columns of the input that it reads.
    #[must_use]
    pub fn columns_of_input(&self) -> Vec<Column> {
        // One column stands in the order and in an operand, or in several of them.
        let order = self.order_by.iter().map(|sort| &sort.expr);
        let mut columns: Vec<Column> = self.partition_columns().cloned().collect();
        for column in order.chain(&self.operands).flat_map(sorted_columns) {
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        columns
    }

    /// The same over another input that has these columns.
    ///
    /// # Errors
    /// None that is expected.
    pub fn over(&self, input: LogicalPlan) -> Result<Self> {
        self.with_exprs_and_inputs(self.expressions(), vec![input])
    }

    /// The column of the input of which a column of the output has the value at a row of the match, or lists the values at rows of it. None: it is anything
    /// else.
    #[must_use]
    pub fn column_at_rows(&self, output: usize) -> Option<&Column> {
        let measure = self.definition.measures.get(output.checked_sub(self.partition_by.len())?)?;
        let (slot, _) = self.definition.slots.get(slot_of(&plain_column(&measure.expr)?.name)?)?;
        let operand = match slot {
            Slot::Navigated { read: Read::Operand(operand), step: 0, .. } => *operand,
            Slot::Aggregate(place) => {
                let Expr::AggregateFunction(aggregate) = &*self.definition.aggregates.get(*place)?.function else { return None };
                let ("array_agg", [value]) = (aggregate.func.name(), aggregate.params.args.as_slice()) else { return None };
                operand_of(&plain_column(value)?.name)?
            }
            _ => return None,
        };
        plain_column(self.operands.get(operand)?)
    }

    /// The columns of the input behind the slots that some expressions read, in an order of their own.
    fn columns_behind<'a>(&self, exprs: impl Iterator<Item = &'a Expr>) -> Vec<Column> {
        let definition = &*self.definition;
        let mut operands = BTreeSet::new();
        for slot in exprs.flat_map(slots_in) {
            match definition.slots.get(slot).map(|(slot, _)| slot) {
                Some(Slot::Navigated { read: Read::Operand(operand), .. }) => {
                    operands.insert(*operand);
                }
                Some(Slot::Aggregate(place)) => {
                    let function = definition.aggregates.get(*place).map(|aggregate| &*aggregate.function);
                    let read = function.into_iter().flat_map(Expr::column_refs);
                    operands.extend(read.filter_map(|column| operand_of(&column.name)));
                }
                _ => {}
            }
        }
        let exprs = operands.iter().filter_map(|operand| self.operands.get(*operand));
        let columns: BTreeSet<Column> = exprs.flat_map(sorted_columns).collect();
        columns.into_iter().collect()
    }
}

impl Endings {
    /// The same of a query, ready to run over rows of its input.
    ///
    /// # Errors
    /// A query that cannot be followed ([`MatchRecognize::unfollowed`]), a bound on the span, and an expression that has no physical form.
    pub fn compile(node: &MatchRecognize, session: &dyn Session, limits: Limits) -> Result<Self> {
        if let Some(why) = node.unfollowed().or_else(|| limits.span_micros.map(|_| "the span of a match is bounded")) {
            return Err(DataFusionError::Plan(format!("where matches end cannot be told: {why}")));
        }
        let definition = &*node.definition;
        let recognizer = Recognizer::compile(node, node.input().schema(), session, &PhysicalPlanningContext::default(), limits)?;
        let (last, _) = last_of(&definition.pattern, recognizer.matcher.program());
        let (lookback, _) = steps(definition, conditions_of(definition));
        let measured = steps(definition, definition.measures.iter().map(|measure| &*measure.expr));
        let read = read_by_conditions(&recognizer);
        let depends = recognizer.conditions.iter().flatten().any(|parts| parts.around.is_some() || parts.mapped.is_some());
        Ok(Self { recognizer, last, lookback, measured, read, depends })
    }

    /// True if a condition reads more than the row.
    #[must_use]
    pub fn reads_more_than_the_row(&self) -> bool {
        self.depends
    }

    /// True if a condition or a measure reads a row before those of the match: over these alone the query finds something else.
    #[must_use]
    pub fn reads_before_the_match(&self) -> bool {
        self.lookback > 0 || self.measured.0 > 0
    }

    /// What is to be kept of rows of the input, of which those columns are needed that conditions read.
    ///
    /// # Errors
    /// An expression that fails.
    pub fn shown(&self, rows: &RecordBatch) -> Result<Shown> {
        let columns = self.recognizer.columns_where(rows, |column| self.read[column])?;
        let mut marks = vec![0; rows.num_rows()];
        for (variable, parts) in self.recognizer.conditions.iter().enumerate() {
            let holds = parts.as_ref().and_then(|parts| parts.row).map(|column| &columns[column]);
            for (row, mark) in marks.iter_mut().enumerate() {
                *mark |= u64::from(holds.is_none_or(|holds| is_true(holds, row))) << variable;
            }
        }
        Ok(Shown { marks, columns: if self.depends { columns } else { Vec::new() } })
    }

    /// The row of the output that a match is (L-MATCH-OUTPUT). `rows` are those that it names, as rows of the input.
    ///
    /// # Errors
    /// An expression that fails, or rows that are not those.
    pub fn output(&self, ended: &Ended, rows: &RecordBatch) -> Result<RecordBatch> {
        let count = rows.num_rows();
        if count != ended.rows.len() {
            return Err(DataFusionError::Internal(format!("a match has {} rows, and {count} were given", ended.rows.len())));
        }
        let key = self.recognizer.partition_by.iter().map(|expr| Ok(expr.evaluate(rows)?.into_array(count)?.slice(0, 1)));
        let key = key.collect::<Result<Vec<ArrayRef>>>()?;
        let mut kept = Kept::starting_at(ended.first);
        kept.push(self.recognizer.columns(rows)?, count)?;
        let mut output = Output::default();
        let _work = output.take(&self.recognizer, &kept, &key, &ended.mapping)?;
        output.flush(&self.recognizer, &kept)?;
        output.take_ready(&self.recognizer)
    }
}

/// The columns of an expression, in the same order each time.
fn sorted_columns(expr: &Expr) -> BTreeSet<Column> {
    expr.column_refs().into_iter().cloned().collect()
}

fn conditions_of(definition: &Definition) -> impl Iterator<Item = &Expr> {
    definition.conditions.iter().map(|condition| &*condition.expr)
}

/// How many rows before and after where they stand these expressions read.
fn steps<'a>(definition: &Definition, exprs: impl Iterator<Item = &'a Expr>) -> (usize, usize) {
    let (mut back, mut ahead) = (0, 0);
    for slot in exprs.flat_map(slots_in) {
        let Some((Slot::Navigated { step, .. }, _)) = definition.slots.get(slot) else { continue };
        let rows = usize::try_from(step.unsigned_abs()).unwrap_or(usize::MAX);
        let farthest = if *step < 0 { &mut back } else { &mut ahead };
        *farthest = rows.max(*farthest);
    }
    (back, ahead)
}

/// By kept column: whether a condition reads it.
fn read_by_conditions(recognizer: &Recognizer) -> Vec<bool> {
    let mut read = vec![false; recognizer.columns.len()];
    let mut note = |column: usize| {
        if let Some(read) = read.get_mut(column) {
            *read = true;
        }
    };
    for ConditionParts { row, around, mapped } in recognizer.conditions.iter().flatten() {
        row.iter().for_each(|column| note(*column));
        around.iter().flat_map(|around| &around.steps).for_each(|(column, _)| note(*column));
        for slot in mapped.iter().flat_map(|(over, _)| &over.slots) {
            match &recognizer.slots[*slot] {
                ReadSlot::Column { column, .. } => note(*column),
                ReadSlot::Aggregate(place) => recognizer.aggregates[*place].columns.iter().for_each(|column| note(*column)),
                ReadSlot::Classifier { .. } | ReadSlot::Count(_) | ReadSlot::MatchNumber => {}
            }
        }
    }
    read
}

pub(crate) fn bit(variable: Variable) -> u64 {
    1 << variable.index()
}

fn plain_column(expr: &Expr) -> Option<&Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Alias(alias) => plain_column(&alias.expr),
        _ => None,
    }
}

/// True if `^` stands in the pattern.
fn anchored_at_start(pattern: &Pattern) -> bool {
    match pattern {
        Pattern::Start => true,
        Pattern::Variable(_) | Pattern::Empty | Pattern::End => false,
        Pattern::Concat(parts) | Pattern::Alternate(parts) => parts.iter().any(anchored_at_start),
        Pattern::Quantified(part, _) => anchored_at_start(part),
    }
}

/// The variables that the last row of a match can be mapped to, and whether there may be no row at all.
fn last_of(pattern: &Pattern, program: &Program) -> (u64, bool) {
    match pattern {
        Pattern::Variable(name) => (program.variable(name).map_or(0, bit), false),
        Pattern::Empty | Pattern::Start | Pattern::End => (0, true),
        Pattern::Concat(parts) => {
            let mut last = 0;
            for part in parts.iter().rev() {
                let (of_part, may_be_empty) = last_of(part, program);
                last |= of_part;
                if !may_be_empty {
                    return (last, false);
                }
            }
            (last, true)
        }
        Pattern::Alternate(parts) => {
            let each = parts.iter().map(|part| last_of(part, program));
            each.fold((0, false), |(last, empty), (of_part, may_be_empty)| (last | of_part, empty || may_be_empty))
        }
        Pattern::Quantified(part, quantifier) => {
            let (last, may_be_empty) = last_of(part, program);
            (last, may_be_empty || quantifier.min == 0)
        }
    }
}
