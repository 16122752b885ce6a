//! What window functions read of rows, made before it is asked whose these are: it is the same for all rules that read the same of them.
//! Promises what the query engine's own operator would read of each row by itself.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::row::Rows;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::Expr;

use super::{Argument, DraftArgument, Encoding, Group, Origin};
use crate::schema::EventBatch;
use crate::sliding::Value;

/// What the groups of a node read of rows, whatever they make of it: of each what splits a bucket, and the arguments.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Read(Vec<(Vec<Expr>, Vec<DraftArgument>)>);

/// The same of some rows, made before it is asked whose they are.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(super) keys: Option<Rows>,
    /// Of each argument, what of each row counts.
    pub(super) arguments: Vec<Vec<Option<Value>>>,
}

/// What a group is given of its rows: for itself alone, or for others too.
#[derive(Debug)]
pub(crate) enum Given<'a> {
    Own(Prepared),
    Shared(&'a Prepared),
}

impl Read {
    pub(super) fn of(groups: impl Iterator<Item = (Vec<Expr>, Vec<DraftArgument>)>) -> Self {
        Self(groups.collect())
    }
}

impl fmt::Debug for Read {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Read").field("groups", &self.0.len()).finish_non_exhaustive()
    }
}

impl Group {
    pub(super) fn prepare(&self, events: &EventBatch, rows: &RecordBatch, origins: &[Origin]) -> Result<Prepared> {
        let keys = self.split_rows.as_ref().map(|converter| {
            let columns = self.split.iter().map(|expr| expr.evaluate(rows)?.into_array(rows.num_rows()));
            Ok::<_, DataFusionError>(converter.convert_columns(&columns.collect::<Result<Vec<_>>>()?)?)
        });
        let arguments = self.arguments.iter().map(|argument| argument.values(events, rows, origins));
        Ok(Prepared { keys: keys.transpose()?, arguments: arguments.collect::<Result<Vec<_>>>()? })
    }
}

impl Argument {
    /// What of each row counts.
    fn values(&self, events: &EventBatch, rows: &RecordBatch, origins: &[Origin]) -> Result<Vec<Option<Value>>> {
        let filter = self.filter.as_ref().map(|filter| filter.evaluate(rows)?.into_array(rows.num_rows())).transpose()?;
        let passes = |index: usize| filter.as_ref().is_none_or(|f| f.is_valid(index) && f.as_boolean().value(index));
        let value = self.value.as_ref().map(|value| value.evaluate(rows)?.into_array(rows.num_rows())).transpose()?;
        let counts = |index: usize| passes(index) && (self.keeps_nulls || value.as_ref().is_none_or(|v| v.is_valid(index)));
        let (encoding, value) = match (&self.encoding, &value) {
            (Some(Encoding::Ids), _) => {
                let id = |event: usize| events.rows().get(event).map(|event| Value::Id(event.event_id));
                let ids = origins.iter().enumerate().map(|(index, origin)| id(origin.event).filter(|_| counts(index)));
                return Ok(ids.collect());
            }
            (Some(Encoding::Texts), Some(value)) => return texts(value, counts),
            (Some(Encoding::Rows { rows, .. }), Some(value)) => (rows, value),
            _ => return Ok((0..rows.num_rows()).map(|index| counts(index).then_some(Value::Bare)).collect()),
        };
        if !(0..rows.num_rows()).any(&counts) {
            return Ok(vec![None; rows.num_rows()]);
        }
        let encoded = encoding.convert_columns(&[Arc::clone(value)])?;
        let mut last: Option<Arc<[u8]>> = None;
        let value_of = |index: usize| {
            counts(index).then(|| {
                let row = encoded.row(index);
                // Values repeat themselves.
                Value::Bytes(match &last {
                    Some(last) if **last == *row.data() => Arc::clone(last),
                    _ => Arc::clone(last.insert(Arc::from(row.data()))),
                })
            })
        };
        Ok((0..rows.num_rows()).map(value_of).collect())
    }
}

/// Those of a column of texts that count.
fn texts(column: &ArrayRef, counts: impl Fn(usize) -> bool) -> Result<Vec<Option<Value>>> {
    let Some(texts) = column.as_string_opt::<i32>() else {
        return Err(DataFusionError::Internal(format!("a text is {}", column.data_type())));
    };
    let mut last: Option<Arc<str>> = None;
    let mut value_of = |index: usize| {
        if texts.is_null(index) {
            return Value::Bare;
        }
        let text = texts.value(index);
        // Values repeat themselves.
        Value::Text(match &last {
            Some(last) if **last == *text => Arc::clone(last),
            _ => Arc::clone(last.insert(Arc::from(text))),
        })
    };
    Ok((0..texts.len()).map(|index| counts(index).then(|| value_of(index))).collect())
}
