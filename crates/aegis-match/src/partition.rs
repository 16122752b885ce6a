//! One partition: its kept rows, the walk through them, and the conditions that the walk asks. The same for batch, where all rows come before
//! the first search, and for streaming, where it is searched again whenever rows have come.

use std::collections::VecDeque;
use std::sync::Arc;

use aegis_pattern::{Answer, Conditions, Finder, Found, Mapping, MatchError, Navigation, Rows, Saved, Target, Variable};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, StringArray};
use datafusion::arrow::datatypes::TimestampMicrosecondType;
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};

use crate::aggregate::Running;
use crate::kept::Kept;
use crate::limits::{Budget, Overrun, Report};
use crate::output::Output;
use crate::recognizer::{Around, OverSlots, ReadSlot, Recognizer, Scope, null_of};

/// A partition's rows and how far it was searched.
#[derive(Debug)]
pub(crate) struct Partition {
    /// The partition's columns, arrays of one.
    pub(crate) key: Vec<ArrayRef>,
    pub(crate) kept: Kept,
    /// No row will follow.
    pub(crate) complete: bool,
    /// The time of any row to come is at least this.
    pub(crate) watermark: Option<i64>,
    finder: Finder,
    masks: Vec<Mask>,
    running: Vec<Running>,
    /// Matches whose measures wait for rows after them.
    waiting: VecDeque<Mapping>,
}

/// What is known of a condition that reads physical neighbours: of the rows from `first` on, whether it holds.
#[derive(Clone, Debug, Default)]
struct Mask {
    first: usize,
    holds: VecDeque<bool>,
}

impl Partition {
    pub(crate) fn new(key: Vec<ArrayRef>, recognizer: &Recognizer) -> Self {
        Self::restore(key, recognizer, Saved::default(), 0)
    }

    /// As a partition that stood there, and whose first row kept has this number.
    pub(crate) fn restore(key: Vec<ArrayRef>, recognizer: &Recognizer, saved: Saved, first: usize) -> Self {
        Self {
            key,
            kept: Kept::starting_at(first),
            complete: false,
            watermark: None,
            finder: Finder::restore(saved),
            masks: vec![Mask::default(); recognizer.conditions.len()],
            running: recognizer.aggregates.iter().map(|_| Running::default()).collect(),
            waiting: VecDeque::new(),
        }
    }

    /// Where the walk stands, as if matches that wait had not been found yet.
    pub(crate) fn save(&self) -> Saved {
        match self.waiting.front() {
            Some(first) => Saved { position: first.start() as u64, matches: first.match_number() - 1 },
            None => self.finder.save(),
        }
    }

    /// The first row that is needed from here on.
    pub(crate) fn needed_from(&self, recognizer: &Recognizer) -> usize {
        let position = self.waiting.front().map_or(self.finder.needed_from(), |first| first.start().min(self.finder.needed_from()));
        position.saturating_sub(recognizer.lookback)
    }

    /// Whether nothing is under way: no start row is open and no measure waits.
    pub(crate) fn is_idle(&self) -> bool {
        !self.finder.is_waiting() && self.waiting.is_empty()
    }

    /// Finds what is decidable, and hands it out.
    pub(crate) fn find(&mut self, recognizer: &Recognizer, report: &Report, output: &mut Output) -> Result<()> {
        let before = self.finder.steps();
        loop {
            let rows = self.rows();
            let spent = self.finder.steps() - before;
            let left = recognizer.limits.partition_steps.saturating_sub(spent);
            let mut asked = Asked {
                recognizer,
                kept: &self.kept,
                masks: &mut self.masks,
                running: &mut self.running,
                rows,
                watermark: self.watermark,
                again: 0,
                start: usize::MAX,
            };
            let found = self.finder.find_within(&recognizer.matcher, rows, &mut asked, left);
            match found {
                Ok(Some(Found::Match(mapping))) => self.waiting.push_back(mapping),
                Ok(Some(Found::Exhausted { start, bound })) => self.report(report, start, bound.into()),
                Ok(Some(Found::NeedsMore | Found::Done)) => break,
                Ok(None) => {
                    let Saved { position, matches } = self.finder.save();
                    self.report(report, position as usize, Budget::Partition);
                    self.finder = Finder::restore(Saved { position: rows.end as u64, matches });
                    break;
                }
                Err(MatchError::Condition(Trouble::Budget)) => {
                    let Saved { position, matches } = self.finder.save();
                    self.report(report, position as usize, Budget::Aggregates);
                    self.finder = Finder::restore(Saved { position: position + 1, matches });
                }
                Err(MatchError::Condition(Trouble::Engine(error))) => return Err(error),
                Err(other) => return Err(DataFusionError::Execution(told(&other))),
            }
            self.hand_out(recognizer, output)?;
        }
        self.hand_out(recognizer, output)?;
        output.flush(recognizer, &self.kept)?;
        Ok(())
    }

    /// Forgets what no search and no measure can need.
    pub(crate) fn forget(&mut self, recognizer: &Recognizer) {
        let needed = self.needed_from(recognizer);
        self.kept.forget_before(needed);
        for mask in &mut self.masks {
            while mask.first < needed && mask.holds.pop_front().is_some() {
                mask.first += 1;
            }
        }
    }

    fn rows(&self) -> Rows {
        Rows { end: self.kept.end(), complete: self.complete }
    }

    /// Hands out the found matches whose measures are known, in their order.
    fn hand_out(&mut self, recognizer: &Recognizer, output: &mut Output) -> Result<()> {
        while let Some(first) = self.waiting.front() {
            if !output.take(recognizer, &self.kept, &self.key, self.rows(), first)? {
                return Ok(());
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    fn report(&self, report: &Report, row: usize, budget: Budget) {
        report.add(Overrun { partition: key_text(&self.key), row: row as u64, budget });
    }
}

/// A partition's columns for people.
pub(crate) fn key_text(key: &[ArrayRef]) -> String {
    let text = |array: &ArrayRef| ScalarValue::try_from_array(array, 0).map_or_else(|_| "?".to_owned(), |value| value.to_string());
    key.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn told(error: &MatchError<Trouble>) -> String {
    format!("MATCH_RECOGNIZE: {error}")
}

/// Why a condition has no answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    Engine(DataFusionError),
    /// Aggregates have taken in too many rows again.
    Budget,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Engine(error) => write!(formatter, "{error}"),
            Self::Budget => formatter.write_str("too many rows to aggregate"),
        }
    }
}

impl From<DataFusionError> for Trouble {
    fn from(error: DataFusionError) -> Self {
        Self::Engine(error)
    }
}

/// The conditions over what is known of a partition.
struct Asked<'a> {
    recognizer: &'a Recognizer,
    kept: &'a Kept,
    masks: &'a mut [Mask],
    running: &'a mut [Running],
    rows: Rows,
    watermark: Option<i64>,
    /// Rows that aggregates took in, from this start row.
    again: u64,
    start: usize,
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
        let time = if row < self.rows.end { time_at(row) } else { self.watermark };
        match time {
            Some(time) => time.saturating_sub(begin) <= span,
            // Nulls come after all times; whether the next row is one is not known.
            None => row >= self.rows.end,
        }
    }
}

impl Asked<'_> {
    /// A condition over physical neighbours: evaluated for all rows that are known well enough, at once.
    fn around(&mut self, variable: Variable, around: &Around, start: usize, row: usize) -> Result<Answer, Trouble> {
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
            let columns = around.steps.iter().map(|(column, step)| self.shifted(*column, *step, known..decidable));
            let columns = columns.collect::<Result<Vec<_>>>()?;
            let count = decidable - known;
            let holds = around.expr.evaluate(&around.reads.batch(columns, count)?)?.into_array(count)?;
            let mask = &mut self.masks[variable.index()];
            mask.holds.extend((0..count).map(|index| is_true(&holds, index)));
        }
        let mask = &self.masks[variable.index()];
        Ok(Answer::from(mask.holds.get(row - mask.first).copied().unwrap_or(false)))
    }

    /// A kept column at the rows that stand `step` from these.
    fn shifted(&self, column: usize, step: i64, rows: std::ops::Range<usize>) -> Result<ArrayRef> {
        let end = self.rows.end;
        let at = |row: usize| i64::try_from(row).ok().and_then(|row| usize::try_from(row + step).ok()).filter(|row| *row < end);
        let rows: Vec<Option<usize>> = rows.map(at).collect();
        self.kept.gather(column, &self.recognizer.column_types[column], &rows)
    }

    /// The slots of a condition as arrays of one. None: a row to come is read.
    fn cells(&mut self, over: &OverSlots, so_far: &Mapping) -> Result<Option<Vec<ArrayRef>>, Trouble> {
        if self.start != so_far.start() {
            self.start = so_far.start();
            self.again = 0;
        }
        let mut columns = Vec::with_capacity(over.slots.len());
        for slot in &over.slots {
            let data_type = &self.recognizer.slot_types[*slot];
            let cell = match &self.recognizer.slots[*slot] {
                ReadSlot::Aggregate(index) => {
                    let aggregate = &self.recognizer.aggregates[*index];
                    let value = self.running[*index].value(aggregate, self.recognizer, self.kept, so_far, &mut self.again)?;
                    if self.again > self.recognizer.limits.aggregated_rows {
                        return Err(Trouble::Budget);
                    }
                    value.to_array()?
                }
                other => match read(other, self.recognizer, so_far, self.rows) {
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

/// What a slot that is no aggregate reads.
pub(crate) enum Cell<'a> {
    /// A kept column at a row.
    Row(usize, usize),
    Text(&'a str),
    Number(i64),
    /// Null.
    Absent,
    /// A row to come decides.
    NotYet,
}

/// What a slot reads of a mapping, all of it seen.
pub(crate) fn read<'a>(slot: &ReadSlot, recognizer: &'a Recognizer, mapping: &Mapping, rows: Rows) -> Cell<'a> {
    let locate = |scope: Scope, from_first: bool, nth: usize, step: i64| {
        Navigation { scope: scope.in_pattern(), from_first, nth, step }.locate(mapping.whole(), rows)
    };
    match *slot {
        ReadSlot::Column { column, scope, from_first, nth, step } => match locate(scope, from_first, nth, step) {
            Target::Row(row) => Cell::Row(column, row),
            Target::Absent => Cell::Absent,
            Target::NotYet => Cell::NotYet,
        },
        // A row that is still to come is in no match that is known: it has no variable.
        ReadSlot::Classifier { scope, from_first, nth, step } => match locate(scope, from_first, nth, step) {
            Target::Row(row) => mapping.classifier(row).map_or(Cell::Absent, |variable| Cell::Text(recognizer.variable_name(variable))),
            Target::Absent | Target::NotYet => Cell::Absent,
        },
        ReadSlot::Count(scope) => Cell::Number(mapping.whole().count(scope.in_pattern()) as i64),
        ReadSlot::MatchNumber => Cell::Number(mapping.match_number() as i64),
        ReadSlot::Aggregate(_) => Cell::Absent,
    }
}

fn is_true(array: &ArrayRef, index: usize) -> bool {
    array.as_boolean_opt().is_some_and(|array| array.is_valid(index) && array.value(index))
}

fn lost(row: usize) -> DataFusionError {
    DataFusionError::Internal(format!("row {row} of a partition is read and was not kept"))
}
