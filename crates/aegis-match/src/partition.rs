//! One partition, all of whose rows are there: the walk through them, the conditions that the walk asks, and the matches that it finds.

use aegis_pattern::{Finder, Found, MatchError, Rows, Saved};
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
    finder: Finder,
    masks: Vec<Mask>,
    running: Vec<Running>,
}

impl Partition {
    pub(crate) fn new(key: Vec<ArrayRef>, recognizer: &Recognizer) -> Self {
        Self {
            key,
            kept: Kept::starting_at(0),
            finder: Finder::default(),
            masks: vec![Mask::default(); recognizer.conditions.len()],
            running: recognizer.aggregates.iter().map(|_| Running::default()).collect(),
        }
    }

    /// Finds its matches, and hands them out.
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
        let rows = Rows::complete(self.kept.end());
        loop {
            let left = most.saturating_sub(*spent);
            let before = self.finder.steps();
            let mut asked = Asked::new(recognizer, &self.kept, &mut self.masks, &mut self.running, rows, None, left);
            let found = self.finder.find_within(&recognizer.matcher, rows, &mut asked, left);
            *spent += asked.work() + (self.finder.steps() - before);
            match found {
                Ok(Some(Found::Match(mapping))) => *spent += output.take(recognizer, &self.kept, &self.key, &mapping)?,
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
        }
        output.flush(recognizer, &self.kept)
    }

    fn report(&self, report: &Report, row: usize, budget: Budget) {
        report.add(Overrun { partition: key_text(&self.key), row: row as u64, budget });
    }
}

/// A partition's columns for people.
fn key_text(key: &[ArrayRef]) -> String {
    let text =
        |array: &ArrayRef| ScalarValue::try_from_array(array, 0).map_or_else(|_| "?".to_owned(), |value| value.to_string());
    key.iter().map(text).collect::<Vec<_>>().join(", ")
}
