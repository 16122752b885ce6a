//! The conditions of a pattern over the kept rows of a partition: what reads the row alone was evaluated when it came; what reads its neighbours
//! is evaluated for all known rows at once; what depends on the mapping row by row, within a budget.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use aegis_pattern::{Answer, Conditions, Mapping, Rows, Variable};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, StringArray};
use datafusion::arrow::datatypes::TimestampMicrosecondType;
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};

use crate::aggregate::Running;
use crate::cell::{Cell, read};
use crate::kept::Kept;
use crate::limits::{CONDITION_WORK, ROW_WORK};
use crate::recognizer::{Around, OverSlots, ReadSlot, Recognizer, null_of};

/// What is known of a condition that reads physical neighbours: of the rows from `first` on, whether it holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mask {
    first: usize,
    holds: VecDeque<bool>,
}

impl Mask {
    pub(crate) fn forget_before(&mut self, row: usize) {
        while self.first < row && self.holds.pop_front().is_some() {
            self.first += 1;
        }
    }

    /// Forgets what it knows of the rows from this one on.
    pub(crate) fn take_back(&mut self, end: usize) {
        self.holds.truncate(end.saturating_sub(self.first));
    }
}

/// Why a condition has no answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    Engine(DataFusionError),
    /// Too much work from this start row.
    OverAttempt,
    /// Too much work in all.
    OverAll,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Engine(error) => write!(formatter, "{error}"),
            Self::OverAttempt | Self::OverAll => formatter.write_str("too much work"),
        }
    }
}

impl From<DataFusionError> for Trouble {
    fn from(error: DataFusionError) -> Self {
        Self::Engine(error)
    }
}

/// The conditions over what is known of a partition.
pub(crate) struct Asked<'a> {
    recognizer: &'a Recognizer,
    kept: &'a Kept,
    masks: &'a mut [Mask],
    running: &'a mut [Running],
    rows: Rows,
    /// Of rows that others were before: the first of them. To a condition that looks back there are none before it.
    first: Option<usize>,
    /// Work that is left.
    left: u64,
    work: u64,
    /// Of the work, that from this start row.
    start: usize,
    start_work: u64,
}

impl<'a> Asked<'a> {
    pub(crate) fn new(
        recognizer: &'a Recognizer,
        kept: &'a Kept,
        masks: &'a mut [Mask],
        running: &'a mut [Running],
        rows: Rows,
        first: Option<usize>,
        left: u64,
    ) -> Self {
        Self { recognizer, kept, masks, running, rows, first, left, work: 0, start: usize::MAX, start_work: 0 }
    }

    /// The work of the conditions, that of the search aside.
    pub(crate) fn work(&self) -> u64 {
        self.work
    }

    fn spend(&mut self, work: u64) -> Result<(), Trouble> {
        self.work += work;
        self.start_work += work;
        if self.work > self.left {
            return Err(Trouble::OverAll);
        }
        if self.start_work > self.recognizer.limits.attempt_work { Err(Trouble::OverAttempt) } else { Ok(()) }
    }
}

impl Conditions for Asked<'_> {
    type Error = Trouble;

    fn holds(&mut self, variable: Variable, row: usize, so_far: &Mapping) -> Result<Answer, Trouble> {
        let recognizer = self.recognizer;
        for (running, aggregate) in self.running.iter_mut().zip(&recognizer.aggregates) {
            running.asked(aggregate, so_far, row);
        }
        let Some(parts) = recognizer.conditions.get(variable.index()).and_then(Option::as_ref) else { return Ok(Answer::Holds) };
        if let Some(column) = parts.row {
            let Some((array, offset)) = self.kept.at(column, row) else { return Err(lost(row).into()) };
            if !is_true(array, offset) {
                return Ok(Answer::Fails);
            }
        }
        if let Some(around) = &parts.around {
            match self.around(variable, around, so_far.start(), row)? {
                Answer::Holds => {}
                other => return Ok(other),
            }
        }
        match &parts.mapped {
            Some((over, expr)) => {
                if self.start != so_far.start() {
                    (self.start, self.start_work) = (so_far.start(), 0);
                }
                self.spend(CONDITION_WORK)?;
                let Some(columns) = self.cells(over, so_far)? else { return Ok(Answer::NeedsMore) };
                let value = expr.evaluate(&over.batch(columns, 1)?)?.into_array(1)?;
                Ok(Answer::from(is_true(&value, 0)))
            }
            None => Ok(Answer::Holds),
        }
    }

    fn in_reach(&mut self, start: usize, row: usize) -> bool {
        let (Some(span), Some(column)) = (self.recognizer.limits.span_micros, self.recognizer.time) else { return true };
        let time_at = |row: usize| {
            let (array, offset) = self.kept.at(column, row)?;
            let times = array.as_primitive_opt::<TimestampMicrosecondType>()?;
            times.is_valid(offset).then(|| times.value(offset))
        };
        // A row without a time has no span: it matches alone.
        let Some(begin) = time_at(start) else { return row == start };
        match time_at(row) {
            Some(time) => time.saturating_sub(begin) <= span,
            // Nulls come after all times.
            None => false,
        }
    }
}

impl Asked<'_> {
    /// A condition over physical neighbours: evaluated for all rows that are known well enough, at once.
    fn around(&mut self, variable: Variable, around: &Around, start: usize, row: usize) -> Result<Answer, Trouble> {
        if let Some(first) = self.first.filter(|first| row < first + around.back) {
            self.spend(CONDITION_WORK)?;
            return Ok(Answer::from(self.hold_around(around, first, row..row + 1)?.first() == Some(&true)));
        }
        let mask = &mut self.masks[variable.index()];
        let mut known = mask.first + mask.holds.len();
        if row < mask.first || row > known {
            // From the start row on: the search may go back to any row after it.
            *mask = Mask { first: start, holds: VecDeque::new() };
            known = start;
        }
        if row >= known {
            let decidable = if self.rows.complete { self.rows.end } else { self.rows.end.saturating_sub(around.ahead) };
            if row >= decidable {
                return Ok(Answer::NeedsMore);
            }
            // Of rows that look back to before what is kept, it is asked above, if at all.
            let holds = self.hold_around(around, self.kept.first(), known..decidable)?;
            self.masks[variable.index()].holds.extend(holds);
        }
        let mask = &self.masks[variable.index()];
        Ok(Answer::from(mask.holds.get(row - mask.first).copied().unwrap_or(false)))
    }

    /// At which of these rows it holds, those before `first` being none.
    fn hold_around(&self, around: &Around, first: usize, rows: Range<usize>) -> Result<Vec<bool>> {
        let columns = around.steps.iter().map(|(column, step)| self.shifted(*column, *step, first, rows.clone()));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let holds = around.expr.evaluate(&around.reads.batch(columns, rows.len())?)?.into_array(rows.len())?;
        Ok((0..rows.len()).map(|index| is_true(&holds, index)).collect())
    }

    /// A kept column at the rows that stand `step` from these.
    fn shifted(&self, column: usize, step: i64, first: usize, rows: Range<usize>) -> Result<ArrayRef> {
        let there = first..self.rows.end;
        let at = |row: usize| {
            i64::try_from(row).ok().and_then(|row| usize::try_from(row + step).ok()).filter(|row| there.contains(row))
        };
        let rows: Vec<Option<usize>> = rows.map(at).collect();
        self.kept.gather(column, &self.recognizer.column_types[column], &rows)
    }

    /// The slots of a condition as arrays of one. None: a row to come is read.
    fn cells(&mut self, over: &OverSlots, so_far: &Mapping) -> Result<Option<Vec<ArrayRef>>, Trouble> {
        let mut columns = Vec::with_capacity(over.slots.len());
        for slot in &over.slots {
            let data_type = &self.recognizer.slot_types[*slot];
            let cell = match &self.recognizer.slots[*slot] {
                ReadSlot::Aggregate(index) => {
                    let aggregate = &self.recognizer.aggregates[*index];
                    let running = &mut self.running[*index];
                    let new = running.rows_to_take(aggregate, so_far);
                    self.spend(new as u64 * ROW_WORK)?;
                    self.running[*index].value(aggregate, self.recognizer, self.kept, so_far)?.to_array()?
                }
                other => match read(other, self.recognizer, so_far, self.rows, self.first.unwrap_or(0)) {
                    Cell::NotYet => return Ok(None),
                    Cell::Row(column, row) => self.kept.cell(column, row).ok_or_else(|| lost(row))?,
                    Cell::Absent => null_of(data_type)?,
                    Cell::Text(text) => Arc::new(StringArray::from(vec![text])) as ArrayRef,
                    Cell::Number(number) => ScalarValue::Int64(Some(number)).to_array()?,
                },
            };
            columns.push(cell);
        }
        Ok(Some(columns))
    }
}

pub(crate) fn is_true(array: &ArrayRef, index: usize) -> bool {
    array.as_boolean_opt().is_some_and(|array| array.is_valid(index) && array.value(index))
}

fn lost(row: usize) -> DataFusionError {
    DataFusionError::Internal(format!("row {row} of a partition is read and was not kept"))
}
