//! The innermost WHERE of a rule, condition by condition: what each makes of one event, and of which of its values.

use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::physical_expr::PhysicalExpr;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::output::json_value;
use crate::schema::{EventBatch, column_index, column_name, is_of_alerts, is_side, schema_of};

/// One of the conditions that AND joins.
pub(crate) struct Condition {
    said: String,
    columns: Vec<usize>,
    schema: SchemaRef,
    expr: Arc<dyn PhysicalExpr>,
}

/// What a condition makes of an event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    /// The condition as the planner has it: it may say the same as the rule in other words.
    pub condition: String,
    /// None: it is null, which is not enough either.
    pub holds: Option<bool>,
    /// The columns that it reads, as they are in the event.
    pub values: Map<String, Value>,
}

impl Condition {
    /// Those of a condition over columns of events.
    pub(crate) fn split(state: &SessionState, whole: &Expr) -> Result<Vec<Self>> {
        split_conjunction(whole).into_iter().map(|part| Self::new(state, part)).collect()
    }

    fn new(state: &SessionState, part: &Expr) -> Result<Self> {
        let mut columns: Vec<usize> = part.column_refs().iter().filter_map(|column| column_index(&column.name)).collect();
        columns.sort_unstable();
        let schema = schema_of(&columns);
        let expr = aegis_sql::physical_expr(state, part.clone(), &DFSchema::try_from(Arc::clone(&schema))?)?;
        Ok(Self { said: said(part)?, columns, schema, expr })
    }

    /// What it makes of the first of the events.
    pub(crate) fn judge(&self, events: &EventBatch) -> Result<Judged> {
        let input = events.select(&self.columns, Arc::clone(&self.schema))?;
        let results = self.expr.evaluate(&input)?.into_array(input.num_rows())?;
        let results = results.as_boolean();
        let holds = (!results.is_empty() && results.is_valid(0)).then(|| results.value(0));
        let event = events.rows().first().and_then(|event| serde_json::to_value(&**event).ok()).unwrap_or_default();
        let value = |(place, column): (usize, &usize)| -> Result<(String, Value)> {
            let name = column_name(*column);
            let is_known = (is_side(*column) || is_of_alerts(*column)) && input.num_rows() > 0;
            let value = if is_known { json_value(input.column(place), 0)? } else { event.get(name).cloned().unwrap_or_default() };
            Ok((name.to_owned(), value))
        };
        let values = self.columns.iter().enumerate().map(value).collect::<Result<Map<String, Value>>>()?;
        Ok(Judged { condition: self.said.clone(), holds, values })
    }
}

/// An expression as SQL, more or less.
fn said(expr: &Expr) -> Result<String> {
    let plain = expr.clone().transform_up(|part| match part {
        Expr::Literal(value, _) => Ok(Transformed::yes(Expr::Column(Column::new_unqualified(literal(&value))))),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(plain.data.to_string().replace("([", "(").replace("])", ")"))
}

fn literal(value: &ScalarValue) -> String {
    match value {
        ScalarValue::Utf8(Some(text)) | ScalarValue::LargeUtf8(Some(text)) | ScalarValue::Utf8View(Some(text)) => {
            format!("'{text}'")
        }
        other => other.to_string(),
    }
}
