//! One partition: its kept rows, the walk through them, and the conditions that the walk asks. The same for batch, where all rows come before
//! the first search, and for streaming, where it is searched again whenever rows have come.

use std::collections::VecDeque;

use aegis_pattern::{Finder, Found, Mapping, MatchError, Rows, Saved};
use datafusion::arrow::array::ArrayRef;
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};

use crate::aggregate::Running;
use crate::conditions::{Asked, Mask, Trouble};
use crate::kept::Kept;
use crate::limits::{Budget, Overrun, Report};
use crate::output::Output;
use crate::recognizer::Recognizer;

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

impl Partition {
    pub(crate) fn new(key: Vec<ArrayRef>, recognizer: &Recognizer) -> Self {
        Self::restore(key, recognizer, Saved::default(), 0)
    }

    /// As a partition that stood there, and whose first row kept has this number.
    pub(crate) fn restore(key: Vec<ArrayRef>, recognizer: &Recognizer, saved: Saved, first: usize) -> Self {
        let running = recognizer.aggregates.iter().map(|_| Running::default()).collect();
        Self {
            key,
            kept: Kept::starting_at(first),
            complete: false,
            watermark: None,
            finder: Finder::restore(saved),
            masks: vec![Mask::default(); recognizer.conditions.len()],
            running,
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
        let position =
            self.waiting.front().map_or(self.finder.needed_from(), |first| first.start().min(self.finder.needed_from()));
        position.saturating_sub(recognizer.lookback)
    }

    /// Whether nothing is under way: no start row is open and no measure waits.
    pub(crate) fn is_idle(&self) -> bool {
        !self.finder.is_waiting() && self.waiting.is_empty()
    }

    /// Finds what is decidable, and hands it out.
    pub(crate) fn find(&mut self, recognizer: &Recognizer, report: &Report, output: &mut Output) -> Result<()> {
        let mut spent = 0;
        let result = self.find_within(recognizer, report, output, &mut spent);
        report.add_work(spent);
        result
    }

    fn find_within(&mut self, recognizer: &Recognizer, report: &Report, output: &mut Output, spent: &mut u64) -> Result<()> {
        let limits = &recognizer.limits;
        let query_left = limits.query_work.saturating_sub(report.work());
        let (most, over) = if query_left < limits.partition_work {
            (query_left, Budget::Query)
        } else {
            (limits.partition_work, Budget::Partition)
        };
        loop {
            let rows = self.rows();
            let left = most.saturating_sub(*spent);
            let before = self.finder.steps();
            let mut asked = Asked::new(recognizer, &self.kept, &mut self.masks, &mut self.running, rows, self.watermark, left);
            let found = self.finder.find_within(&recognizer.matcher, rows, &mut asked, left);
            *spent += asked.work() + (self.finder.steps() - before);
            match found {
                Ok(Some(Found::Match(mapping))) => self.waiting.push_back(mapping),
                Ok(Some(Found::Exhausted { start, bound })) => self.report(report, start, bound.into()),
                Ok(Some(Found::NeedsMore | Found::Done)) => break,
                Ok(None) | Err(MatchError::Condition(Trouble::OverAll)) => {
                    let Saved { position, matches } = self.finder.save();
                    self.report(report, position as usize, over);
                    self.finder = Finder::restore(Saved { position: rows.end as u64, matches });
                    break;
                }
                Err(MatchError::Condition(Trouble::OverAttempt)) => {
                    let Saved { position, matches } = self.finder.save();
                    self.report(report, position as usize, Budget::Work);
                    self.finder = Finder::restore(Saved { position: position + 1, matches });
                }
                Err(MatchError::Condition(Trouble::Engine(error))) => return Err(error),
                Err(other) => return Err(DataFusionError::Execution(format!("MATCH_RECOGNIZE: {other}"))),
            }
            *spent += self.hand_out(recognizer, output)?;
        }
        *spent += self.hand_out(recognizer, output)?;
        output.flush(recognizer, &self.kept)
    }

    /// Forgets what no search and no measure can need.
    pub(crate) fn forget(&mut self, recognizer: &Recognizer) {
        let needed = self.needed_from(recognizer);
        self.kept.forget_before(needed);
        self.masks.iter_mut().for_each(|mask| mask.forget_before(needed));
    }

    fn rows(&self) -> Rows {
        Rows { end: self.kept.end(), complete: self.complete }
    }

    /// Hands out the found matches whose measures are known, in their order. The work of that.
    fn hand_out(&mut self, recognizer: &Recognizer, output: &mut Output) -> Result<u64> {
        let mut work = 0;
        while let Some(first) = self.waiting.front() {
            let Some(taken) = output.take(recognizer, &self.kept, &self.key, self.rows(), first)? else { break };
            work += taken;
            self.waiting.pop_front();
        }
        Ok(work)
    }

    fn report(&self, report: &Report, row: usize, budget: Budget) {
        report.add(Overrun { partition: key_text(&self.key), row: row as u64, budget });
    }
}

/// A partition's columns for people.
pub(crate) fn key_text(key: &[ArrayRef]) -> String {
    let text =
        |array: &ArrayRef| ScalarValue::try_from_array(array, 0).map_or_else(|_| "?".to_owned(), |value| value.to_string());
    key.iter().map(text).collect::<Vec<_>>().join(", ")
}
