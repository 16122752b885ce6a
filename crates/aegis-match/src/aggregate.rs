//! Aggregates over rows of a match: of a found one, and, in conditions, of the mapping so far, as the search goes on and back.

use std::sync::Arc;

use aegis_pattern::Mapping;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StringArray, UInt64Array};
use datafusion::arrow::compute::{SortColumn, filter, lexsort_to_indices, take};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::Accumulator;

use crate::kept::Kept;
use crate::recognizer::{AggregateOver, Recognizer, Scope};

/// The value over a whole match, and how many rows that took.
pub(crate) fn over(
    aggregate: &AggregateOver,
    recognizer: &Recognizer,
    kept: &Kept,
    mapping: &Mapping,
) -> Result<(ScalarValue, usize)> {
    let rows: Vec<usize> = mapping.whole().rows(aggregate.scope.in_pattern()).collect();
    let mut accumulator = aggregate.function.create_accumulator()?;
    feed(accumulator.as_mut(), aggregate, recognizer, kept, &rows, mapping)?;
    Ok((accumulator.evaluate()?, rows.len()))
}

fn feed(
    accumulator: &mut dyn Accumulator,
    aggregate: &AggregateOver,
    recognizer: &Recognizer,
    kept: &Kept,
    rows: &[usize],
    mapping: &Mapping,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let batch = gather(aggregate, recognizer, kept, rows, mapping)?;
    let evaluate = |expr: &Arc<dyn datafusion::physical_expr::PhysicalExpr>| expr.evaluate(&batch)?.into_array(rows.len());
    let mut values = aggregate.args.iter().map(evaluate).collect::<Result<Vec<_>>>()?;
    if let Some(condition) = &aggregate.filter {
        let wanted = evaluate(condition)?;
        values = values.iter().map(|array| filter(array, wanted.as_boolean())).collect::<Result<_, _>>()?;
    }
    if !aggregate.order_by.is_empty() {
        values = sorted(aggregate, values)?;
    }
    accumulator.update_batch(&values)
}

/// What the aggregate reads of some rows of the match.
fn gather(
    aggregate: &AggregateOver,
    recognizer: &Recognizer,
    kept: &Kept,
    rows: &[usize],
    mapping: &Mapping,
) -> Result<RecordBatch> {
    let numbers: Vec<Option<usize>> = rows.iter().copied().map(Some).collect();
    let mut columns = Vec::with_capacity(aggregate.columns.len() + 1);
    for column in &aggregate.columns {
        columns.push(kept.gather(*column, &recognizer.column_types[*column], &numbers)?);
    }
    if aggregate.classified {
        let names = rows.iter().map(|row| mapping.classifier(*row).map(|variable| recognizer.variable_name(variable)));
        columns.push(Arc::new(names.collect::<StringArray>()) as ArrayRef);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(&aggregate.schema), columns, &options)?)
}

/// In the order of the aggregate, rows that are equal there in the order of the partition.
fn sorted(aggregate: &AggregateOver, values: Vec<ArrayRef>) -> Result<Vec<ArrayRef>> {
    let keys = &values[values.len() - aggregate.order_by.len()..];
    let rows = values.first().map_or(0, |array| array.len());
    let sort = keys
        .iter()
        .zip(&aggregate.order_by)
        .map(|(key, sort)| SortColumn { values: Arc::clone(key), options: Some(sort.options) });
    let place: ArrayRef = Arc::new(UInt64Array::from_iter_values(0..rows as u64));
    let columns: Vec<SortColumn> = sort.chain([SortColumn { values: place, options: None }]).collect();
    let indices = lexsort_to_indices(&columns, None)?;
    Ok(values.iter().map(|array| take(array, &indices, None)).collect::<Result<_, _>>()?)
}

/// An aggregate of the conditions, over the mapping so far. Rows are taken in once as the search goes on; when it has gone back, the values
/// that it had come by are still known, and rows are taken in again only when it goes on otherwise.
#[derive(Debug, Default)]
pub(crate) struct Running {
    start: usize,
    /// The aggregate's rows of the mapping, as far as they are known to be still mapped.
    rows: Vec<usize>,
    /// By number of rows: the value, where it was asked for and is small.
    values: Vec<Option<ScalarValue>>,
    accumulator: Option<Box<dyn Accumulator>>,
    /// How many rows the accumulator has taken in.
    taken: usize,
}

impl Running {
    /// What it knows, for another search that has come as far: all but the rows that were taken in.
    pub(crate) fn remembered(&self) -> Self {
        Self { start: self.start, rows: self.rows.clone(), values: self.values.clone(), accumulator: None, taken: 0 }
    }

    /// What it holds, in cells of a search's memory.
    pub(crate) fn cells(&self) -> usize {
        // A value has more than a row's number.
        self.rows.len() + 3 * self.values.len()
    }

    /// A condition is asked of `row`: rows from it on may have been mapped anew since the last time. INVARIANT: this is called for every
    /// condition that is asked, so that none is missed.
    pub(crate) fn asked(&mut self, aggregate: &AggregateOver, mapping: &Mapping, row: usize) {
        if self.start != mapping.start() {
            *self = Self { start: mapping.start(), ..Self::default() };
            return;
        }
        // All rows of the match are the same rows whatever they are mapped to.
        let same_below = if aggregate.scope == Scope::All && !aggregate.classified { row + 1 } else { row };
        let still = self.rows.partition_point(|known| *known < same_below);
        self.rows.truncate(still);
        self.values.truncate(still + 1);
        if self.taken > still {
            self.accumulator = None;
            self.taken = 0;
        }
    }

    /// How many rows asking for the value would take in.
    pub(crate) fn rows_to_take(&mut self, aggregate: &AggregateOver, mapping: &Mapping) -> usize {
        let (scope, view) = (aggregate.scope.in_pattern(), mapping.whole());
        let count = view.count(scope);
        for nth in self.rows.len()..count {
            self.rows.extend(view.first(scope, nth));
        }
        let known = self.values.get(count).is_some_and(Option::is_some);
        if known { 0 } else { count - self.taken }
    }

    /// The value over the mapping so far.
    pub(crate) fn value(
        &mut self,
        aggregate: &AggregateOver,
        recognizer: &Recognizer,
        kept: &Kept,
        mapping: &Mapping,
    ) -> Result<ScalarValue> {
        self.rows_to_take(aggregate, mapping);
        let count = self.rows.len();
        if let Some(Some(known)) = self.values.get(count) {
            return Ok(known.clone());
        }
        let accumulator = match &mut self.accumulator {
            Some(accumulator) => accumulator,
            None => self.accumulator.insert(aggregate.function.create_accumulator()?),
        };
        feed(accumulator.as_mut(), aggregate, recognizer, kept, &self.rows[self.taken..count], mapping)?;
        self.taken = count;
        let value = accumulator.evaluate()?;
        if !value.data_type().is_nested() {
            self.values.resize(count + 1, None);
            self.values[count] = Some(value.clone());
        }
        Ok(value)
    }
}
