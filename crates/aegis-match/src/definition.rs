//! What a `MATCH_RECOGNIZE` means, resolved: its pattern, and each condition and measure as an expression over *slots*.
//!
//! A slot is what a condition or measure reads of the rows: a column at a navigated row, an aggregate, a count, the match number. Only
//! operands, that is expressions over one input row, are known to DataFusion's optimizer, as expressions of the node; what is above them
//! is typed and simplified when it is planned, and never changes.

use std::collections::HashMap;
use std::sync::Arc;

use aegis_pattern::{Pattern, Program, Skip, Variable};
use aegis_sql::tree::Term;
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::{DFSchema, DFSchemaRef};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::Expr;

/// A resolved `MATCH_RECOGNIZE`, without its input, partition, order and operands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Definition {
    pub(crate) pattern: Pattern,
    pub(crate) skip: SkipTo,
    pub(crate) slots: Vec<(Slot, DataType)>,
    pub(crate) operand_types: Vec<DataType>,
    pub(crate) aggregates: Vec<Aggregate>,
    /// Each of another variable of the pattern.
    pub(crate) conditions: Vec<Condition>,
    pub(crate) measures: Vec<Measure>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SkipTo {
    PastLastRow,
    NextRow,
    First(String),
    Last(String),
}

impl SkipTo {
    /// The same of a program of the pattern.
    pub(crate) fn in_program(&self, program: &Program) -> Result<Skip> {
        Ok(match self {
            Self::PastLastRow => Skip::PastLastRow,
            Self::NextRow => Skip::ToNextRow,
            Self::First(variable) => Skip::ToFirst(vec![variable_of(program, variable)?]),
            Self::Last(variable) => Skip::ToLast(vec![variable_of(program, variable)?]),
        })
    }
}

/// The variable of this name, which the pattern has.
pub(crate) fn variable_of(program: &Program, name: &str) -> Result<Variable> {
    program.variable(name).ok_or_else(|| DataFusionError::Internal(format!("`{name}` is no variable of the pattern")))
}

/// Whose rows are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rows {
    /// All rows of the match.
    All,
    /// Those mapped to a variable.
    Of(String),
}

/// What is read at a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Read {
    /// An operand, by its place.
    Operand(usize),
    /// The row's variable.
    Classifier,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    Navigated {
        read: Read,
        rows: Rows,
        from_first: bool,
        nth: usize,
        step: i64,
    },
    Count(Rows),
    /// An aggregate, by its place.
    Aggregate(usize),
    MatchNumber,
}

/// An aggregate over the rows of a variable. The function's columns are operands by name, or the classifier.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Aggregate {
    pub(crate) rows: Rows,
    pub(crate) function: Term,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Condition {
    pub(crate) variable: String,
    /// Over slots.
    pub(crate) expr: Term,
    pub(crate) text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Measure {
    pub(crate) name: String,
    /// Over slots.
    pub(crate) expr: Term,
    pub(crate) text: String,
}

/// The classifier's column among the operands of an aggregate.
pub(crate) const CLASSIFIER: &str = "__classifier";

const SLOT: &str = "__slot_";
const OPERAND: &str = "__operand_";

pub(crate) fn slot_name(index: usize) -> String {
    format!("{SLOT}{index}")
}

pub(crate) fn operand_name(index: usize) -> String {
    format!("{OPERAND}{index}")
}

pub(crate) fn slot_of(name: &str) -> Option<usize> {
    name.strip_prefix(SLOT)?.parse().ok()
}

pub(crate) fn operand_of(name: &str) -> Option<usize> {
    name.strip_prefix(OPERAND)?.parse().ok()
}

/// A schema of nullable columns.
pub(crate) fn schema_of<'a>(columns: impl IntoIterator<Item = (String, &'a DataType)>) -> Result<DFSchemaRef> {
    let fields = columns.into_iter().map(|(name, data_type)| Field::new(name, data_type.clone(), true)).collect::<Vec<_>>();
    let qualified = fields.into_iter().map(|field| (None, Arc::new(field))).collect();
    Ok(Arc::new(DFSchema::new_with_metadata(qualified, HashMap::new())?))
}

/// The slots as columns.
pub(crate) fn slot_schema(slots: &[(Slot, DataType)]) -> Result<DFSchemaRef> {
    schema_of(slots.iter().enumerate().map(|(index, (_, data_type))| (slot_name(index), data_type)))
}

/// The operands and the classifier as columns.
pub(crate) fn operand_schema(operand_types: &[DataType]) -> Result<DFSchemaRef> {
    let operands = operand_types.iter().enumerate().map(|(index, data_type)| (operand_name(index), data_type));
    schema_of(operands.chain([(CLASSIFIER.to_owned(), &DataType::Utf8)]))
}

/// The slots that an expression reads, ascending.
pub(crate) fn slots_in(expr: &Expr) -> Vec<usize> {
    let mut slots: Vec<usize> = expr.column_refs().into_iter().filter_map(|column| slot_of(&column.name)).collect();
    slots.sort_unstable();
    slots
}
