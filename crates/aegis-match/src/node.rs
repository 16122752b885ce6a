//! The logical node: what DataFusion's optimizer sees of a `MATCH_RECOGNIZE`.
//!
//! Its expressions are the partition, the order and the operands, all of them over the input: so projections are pushed into the input, and
//! types and constants are seen to. A filter goes below it only if it reads nothing but partition columns: it takes whole partitions.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use aegis_sql::tree;
use datafusion::arrow::datatypes::Field;
use datafusion::common::{Column, DFSchema, DFSchemaRef};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, SortExpr, UserDefinedLogicalNodeCore};

use crate::definition::{Definition, Read, SkipTo, Slot, slot_of, slot_schema};
use crate::refusal::Refusal;

/// A planned `MATCH_RECOGNIZE`. Nothing is derived: see [`aegis_sql::tree`].
pub struct MatchRecognize {
    pub(crate) input: Arc<LogicalPlan>,
    /// Columns.
    pub(crate) partition_by: Vec<Expr>,
    pub(crate) order_by: Vec<SortExpr>,
    /// Each over one input row.
    pub(crate) operands: Vec<Expr>,
    pub(crate) definition: Arc<Definition>,
    pub(crate) schema: DFSchemaRef,
}

impl MatchRecognize {
    pub(crate) fn try_new(
        input: LogicalPlan,
        partition_by: Vec<Expr>,
        order_by: Vec<SortExpr>,
        operands: Vec<Expr>,
        definition: Definition,
    ) -> Result<Self> {
        let mut columns = Vec::new();
        for expr in &partition_by {
            let Expr::Column(column) = expr else {
                return Err(DataFusionError::Internal(format!("PARTITION BY takes columns, and `{expr}` is none")));
            };
            columns.push(input.schema().qualified_field_from_column(column).map(|(q, f)| (q.cloned(), Arc::clone(f)))?);
        }
        let slots = slot_schema(&definition.slots)?;
        for measure in &definition.measures {
            let field = Field::new(&measure.name, measure.expr.get_type(&slots)?, true);
            columns.push((None, Arc::new(field)));
        }
        let mut names = HashSet::new();
        if let Some((_, twice)) = columns.iter().find(|(_, field)| !names.insert(field.name().clone())) {
            let refusal = Refusal::invalid(format!("the output would have two columns `{}`", twice.name()));
            return Err(refusal.hint("it has the partition's columns, then the measures").into());
        }
        let schema = Arc::new(DFSchema::new_with_metadata(columns, HashMap::new())?);
        Ok(Self { input: Arc::new(input), partition_by, order_by, operands, definition: Arc::new(definition), schema })
    }

    /// The input's plan.
    #[must_use]
    pub fn input(&self) -> &LogicalPlan {
        &self.input
    }

    /// The partition's columns, as they are in the input; the output begins with them.
    pub fn partition_columns(&self) -> impl Iterator<Item = &Column> {
        self.partition_by.iter().filter_map(|expr| if let Expr::Column(column) = expr { Some(column) } else { None })
    }

    /// The order of the rows of a partition.
    #[must_use]
    pub fn order_by(&self) -> &[SortExpr] {
        &self.order_by
    }

    /// The same, ordered by these after what it is ordered by: for whoever knows a total order of the rows.
    #[must_use]
    pub fn then_ordered_by(mut self, more: impl IntoIterator<Item = SortExpr>) -> Self {
        for sort in more {
            if !self.order_by.iter().any(|known| tree::same(&known.expr, &sort.expr)) {
                self.order_by.push(sort);
            }
        }
        self
    }

    /// The same, also partitioned by these columns of the input: for whoever keeps apart what a query does not. In the output they stand after
    /// the partition's other columns.
    ///
    /// # Errors
    /// A column that the input does not have.
    pub fn also_partitioned_by(mut self, more: impl IntoIterator<Item = Column>) -> Result<Self> {
        for column in more {
            if !self.partition_columns().any(|known| *known == column) {
                self.partition_by.push(Expr::Column(column));
            }
        }
        Self::try_new(tree::copied_plan(&self.input), self.partition_by, self.order_by, self.operands, (*self.definition).clone())
    }

    /// The expressions of DEFINE and MEASURES, over columns of their own, and the aggregates in them. With [`UserDefinedLogicalNodeCore::expressions`]
    /// they are all that is evaluated: for whoever allows some functions only.
    pub fn resolved_expressions(&self) -> impl Iterator<Item = &Expr> {
        let conditions = self.definition.conditions.iter().map(|condition| &*condition.expr);
        let measures = self.definition.measures.iter().map(|measure| &*measure.expr);
        let aggregates = self.definition.aggregates.iter().map(|aggregate| &*aggregate.function);
        conditions.chain(measures).chain(aggregates)
    }

    /// The column of the input that a column of the `resolved_expressions` reads, at whatever row. None: it reads none.
    #[must_use]
    pub fn column_read(&self, resolved: &Column) -> Option<&Column> {
        let (slot, _) = self.definition.slots.get(slot_of(&resolved.name)?)?;
        let Slot::Navigated { read: Read::Operand(operand), .. } = slot else { return None };
        if let Expr::Column(column) = self.operands.get(*operand)? { Some(column) } else { None }
    }

    /// The variable of `SKIP TO FIRST` or `SKIP TO LAST`, if a match could be found that it cannot be skipped to: one without that variable, or
    /// one that begins with it. Such a match ends the query.
    #[must_use]
    pub fn skip_can_fail(&self) -> Option<&str> {
        let (variable, first) = match &self.definition.skip {
            SkipTo::PastLastRow | SkipTo::NextRow => return None,
            SkipTo::First(variable) => (variable, true),
            SkipTo::Last(variable) => (variable, false),
        };
        let reach = crate::skip::reach(&self.definition.pattern, variable);
        reach.can_fail(first).then_some(variable)
    }
}

impl Clone for MatchRecognize {
    fn clone(&self) -> Self {
        Self {
            input: Arc::clone(&self.input),
            partition_by: tree::copied_all(&self.partition_by),
            order_by: tree::copied_order(&self.order_by),
            operands: tree::copied_all(&self.operands),
            definition: Arc::clone(&self.definition),
            schema: Arc::clone(&self.schema),
        }
    }
}

impl fmt::Debug for MatchRecognize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_for_explain(formatter)
    }
}

impl PartialEq for MatchRecognize {
    fn eq(&self, other: &Self) -> bool {
        tree::same_all(&self.partition_by, &other.partition_by)
            && tree::same_order(&self.order_by, &other.order_by)
            && tree::same_all(&self.operands, &other.operands)
            && self.definition == other.definition
            && self.schema == other.schema
            && tree::same_plan(&self.input, &other.input)
    }
}

impl Eq for MatchRecognize {}

impl Hash for MatchRecognize {
    fn hash<H: Hasher>(&self, state: &mut H) {
        tree::hash_plan(&self.input, state);
        tree::hash_exprs(&self.partition_by, state);
        tree::hash_order(&self.order_by, state);
        tree::hash_exprs(&self.operands, state);
        self.definition.hash(state);
        self.schema.hash(state);
    }
}

impl PartialOrd for MatchRecognize {
    /// Equal ones are equal; others have no order.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for MatchRecognize {
    fn name(&self) -> &str {
        "MatchRecognize"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        let mut exprs = tree::copied_all(&self.partition_by);
        exprs.extend(self.order_by.iter().map(|sort| tree::copied(&sort.expr)));
        exprs.extend(tree::copied_all(&self.operands));
        exprs
    }

    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.schema.fields().iter().skip(self.partition_by.len()).map(|field| field.name().clone()).collect()
    }

    fn fmt_for_explain(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "MatchRecognize: ")?;
        write_parts(formatter, &self.partition_by, &self.order_by, &self.definition)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let expected = self.partition_by.len() + self.order_by.len() + self.operands.len();
        let (Some(input), true, true) = (inputs.pop(), inputs.is_empty(), exprs.len() == expected) else {
            return Err(DataFusionError::Internal("a MATCH_RECOGNIZE keeps its expressions and its one input".into()));
        };
        let mut exprs = exprs.into_iter();
        let partition_by = exprs.by_ref().take(self.partition_by.len()).collect();
        let order_by = self.order_by.iter().zip(exprs.by_ref()).map(|(sort, expr)| sort.with_expr(expr)).collect();
        let operands = exprs.collect();
        let (definition, schema) = (Arc::clone(&self.definition), Arc::clone(&self.schema));
        Ok(Self { input: Arc::new(input), partition_by, order_by, operands, definition, schema })
    }

    fn necessary_children_exprs(&self, _output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        // What the expressions read, whatever of the output is asked for; the optimizer adds those.
        Some(vec![Vec::new()])
    }
}

/// The clauses as they are planned, for people.
pub(crate) fn write_parts(
    formatter: &mut fmt::Formatter<'_>,
    partition_by: &[impl fmt::Display],
    order_by: &[impl fmt::Display],
    definition: &Definition,
) -> fmt::Result {
    let list = |items: &[String]| items.join(", ");
    let partition: Vec<String> = partition_by.iter().map(ToString::to_string).collect();
    let order: Vec<String> = order_by.iter().map(ToString::to_string).collect();
    let measures: Vec<String> = definition.measures.iter().map(|m| format!("{} AS {}", m.text, m.name)).collect();
    let conditions: Vec<String> = definition.conditions.iter().map(|c| format!("{} AS {}", c.variable, c.text)).collect();
    write!(formatter, "partition_by=[{}], order_by=[{}], ", list(&partition), list(&order))?;
    write!(formatter, "measures=[{}], skip=[{}], ", list(&measures), definition.skip)?;
    write!(formatter, "pattern=[{}], define=[{}]", definition.pattern, list(&conditions))
}

impl fmt::Display for SkipTo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PastLastRow => formatter.write_str("past last row"),
            Self::NextRow => formatter.write_str("to next row"),
            Self::First(variable) => write!(formatter, "to first {variable}"),
            Self::Last(variable) => write!(formatter, "to last {variable}"),
        }
    }
}
