//! The output: one row for each match, its measures evaluated for many matches at once.

use std::sync::Arc;

use aegis_pattern::{Mapping, Rows};
use datafusion::arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, StringArray};
use datafusion::arrow::compute::concat;
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::execution::memory_pool::MemoryReservation;

use crate::aggregate;
use crate::cell::{Cell, read};
use crate::kept::{Kept, bytes_of};
use crate::limits::ROW_WORK;
use crate::recognizer::{ReadSlot, Recognizer};

/// Matches whose measures are evaluated together.
const TOGETHER: usize = 1024;

/// Bytes of measures' values from which on they are evaluated.
const TOGETHER_BYTES: usize = 1 << 20;

/// Matches on their way out.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// Of the partition at hand: by measured slot, what each match reads.
    slots: Vec<Reads>,
    keys: Vec<Vec<ArrayRef>>,
    /// Rows of the output, evaluated.
    ready: Vec<RecordBatch>,
    ready_rows: usize,
    ready_bytes: usize,
    /// Of the values that were taken in and are not evaluated yet.
    taken_bytes: usize,
    /// Where all of it is accounted for.
    reservation: Option<MemoryReservation>,
}

#[derive(Debug)]
enum Reads {
    /// A kept column at these rows.
    Rows(usize, Vec<Option<usize>>),
    Texts(Vec<Option<String>>),
    Numbers(Vec<i64>),
    Values(Vec<ScalarValue>),
}

impl Output {
    pub(crate) fn accounted_for(reservation: MemoryReservation) -> Self {
        Self { reservation: Some(reservation), ..Self::default() }
    }

    /// Takes in a match of a partition that is complete, and says what work that was. Rows before those that are kept are none of the partition's.
    pub(crate) fn take(&mut self, recognizer: &Recognizer, kept: &Kept, key: &[ArrayRef], mapping: &Mapping) -> Result<u64> {
        let slots: Vec<&ReadSlot> = recognizer.measures.slots.iter().map(|slot| &recognizer.slots[*slot]).collect();
        let rows = Rows::complete(kept.end());
        let cells: Vec<Cell<'_>> = slots.iter().map(|slot| read(slot, recognizer, mapping, rows, kept.first())).collect();
        let mut work = slots.len() as u64;
        if self.slots.is_empty() {
            self.slots = slots.iter().map(|slot| Reads::of(slot)).collect();
        }
        for ((reads, slot), cell) in self.slots.iter_mut().zip(&slots).zip(cells) {
            match reads {
                Reads::Rows(_, rows) => rows.push(if let Cell::Row(_, row) = cell { Some(row) } else { None }),
                Reads::Texts(texts) => texts.push(if let Cell::Text(text) = cell { Some(text.to_owned()) } else { None }),
                Reads::Numbers(numbers) => numbers.push(if let Cell::Number(number) = cell { number } else { 0 }),
                Reads::Values(values) => {
                    if let ReadSlot::Aggregate(index) = slot {
                        let over = &recognizer.aggregates[*index];
                        let (value, rows) = aggregate::over(over, recognizer, kept, mapping)?;
                        work += rows as u64 * ROW_WORK;
                        self.taken_bytes += value.size();
                        values.push(value);
                    }
                }
            }
        }
        self.keys.push(key.to_vec());
        self.account()?;
        if self.keys.len() >= TOGETHER || self.taken_bytes >= TOGETHER_BYTES {
            self.flush(recognizer, kept)?;
        }
        Ok(work)
    }

    /// Evaluates what was taken in. To be called before the partition's rows go, and before another partition's match.
    pub(crate) fn flush(&mut self, recognizer: &Recognizer, kept: &Kept) -> Result<()> {
        let keys = std::mem::take(&mut self.keys);
        let matches = keys.len();
        if matches == 0 {
            return Ok(());
        }
        let mut columns = Vec::with_capacity(self.slots.len());
        for (reads, slot) in std::mem::take(&mut self.slots).into_iter().zip(&recognizer.measures.slots) {
            let data_type = &recognizer.slot_types[*slot];
            columns.push(match reads {
                Reads::Rows(column, rows) => kept.gather(column, data_type, &rows)?,
                Reads::Texts(texts) => Arc::new(StringArray::from(texts)) as ArrayRef,
                Reads::Numbers(numbers) => Arc::new(Int64Array::from(numbers)) as ArrayRef,
                Reads::Values(values) => ScalarValue::iter_to_array(values)?,
            });
        }
        let mut row = Vec::with_capacity(recognizer.schema.fields().len());
        for column in 0..recognizer.partition_by.len() {
            let values: Vec<&dyn Array> = keys.iter().map(|key| key[column].as_ref()).collect();
            row.push(concat(&values)?);
        }
        row.extend(recognizer.measures(columns, matches)?);
        let options = RecordBatchOptions::new().with_row_count(Some(matches));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&recognizer.schema), row, &options)?;
        self.ready_rows += matches;
        self.ready_bytes += bytes_of(batch.columns());
        self.taken_bytes = 0;
        self.ready.push(batch);
        self.account()
    }

    pub(crate) fn ready_rows(&self) -> usize {
        self.ready_rows
    }

    /// What is ready, as one batch.
    pub(crate) fn take_ready(&mut self, recognizer: &Recognizer) -> Result<RecordBatch> {
        (self.ready_rows, self.ready_bytes) = (0, 0);
        let ready = std::mem::take(&mut self.ready);
        self.account()?;
        Ok(datafusion::arrow::compute::concat_batches(&recognizer.schema, &ready)?)
    }

    fn account(&self) -> Result<()> {
        self.reservation.as_ref().map_or(Ok(()), |reservation| reservation.try_resize(self.ready_bytes + self.taken_bytes))
    }
}

impl Reads {
    fn of(slot: &ReadSlot) -> Self {
        match slot {
            ReadSlot::Column { column, .. } => Self::Rows(*column, Vec::new()),
            ReadSlot::Classifier { .. } => Self::Texts(Vec::new()),
            ReadSlot::Count(_) | ReadSlot::MatchNumber => Self::Numbers(Vec::new()),
            ReadSlot::Aggregate(_) => Self::Values(Vec::new()),
        }
    }
}
