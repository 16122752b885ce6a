//! With which rows matches end, told row by row and without any measure: for whoever asks that of each row that comes, and runs the query over the rows
//! of the matches that there are.
//!
//! Only of patterns in which every condition reads the row alone: then a row is a few bits, and a search is linear. Promises what the operator finds in the
//! rows from a time on, the last one being the partition's end: whether one of its matches has a row of the last time, and with which row the first
//! of those begins (L-MATCH-ENDINGS). Of a start row that is decided whatever follows it is remembered where the next one is.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ops::ControlFlow;

use aegis_pattern::{Answer, Conditions, Finder, Found, Mapping, Matcher, Pattern, Program, Rows, Saved, Variable};
use datafusion::arrow::array::ArrayRef;
use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::Expr;

use crate::compile::anchored_at_start;
use crate::conditions::is_true;
use crate::definition::{self, Read, Slot, operand_of, slot_of};
use crate::limits::Limits;
use crate::node::MatchRecognize;

/// A row has so many bits.
const MOST_VARIABLES: usize = 64;

/// A query of which it can be told with which rows its matches end.
#[derive(Debug)]
pub struct Endings {
    matcher: Matcher,
    /// The variables that the last row of a match can be mapped to.
    last: u64,
    /// By variable, over the columns of the input. None: every row meets it.
    conditions: Vec<Option<Expr>>,
}

impl MatchRecognize {
    /// What tells with which rows its matches end. None where a condition reads more than the row; and where what comes before a match decides it, for the
    /// query has to find the same match in fewer rows: `^`, `PREV`, `NEXT` (which reads what comes after it), the match number.
    #[must_use]
    pub fn endings(&self, limits: Limits) -> Option<Endings> {
        let around = |slot: &Slot| match slot {
            Slot::Navigated { step, .. } => *step != 0,
            Slot::MatchNumber => true,
            Slot::Count(_) | Slot::Aggregate(_) => false,
        };
        let definition = &*self.definition;
        let program = Program::compile(&definition.pattern).ok()?;
        let is_unfit = definition.slots.iter().any(|(slot, _)| around(slot)) || anchored_at_start(&definition.pattern);
        if is_unfit || limits.span_micros.is_some() || program.variables().len() > MOST_VARIABLES {
            return None;
        }
        let mut conditions = Vec::with_capacity(program.variables().len());
        for variable in program.variables() {
            conditions.push(match definition.conditions.iter().find(|condition| condition.variable == *variable) {
                Some(condition) => Some(self.over_the_row(&condition.expr)?),
                None => None,
            });
        }
        let (last, _) = last_of(&definition.pattern, &program);
        let skip = definition.skip.in_program(&program).ok()?;
        let matcher = Matcher::new(program, skip, limits.attempt, |_variable| false);
        Some(Endings { matcher, last, conditions })
    }

    /// The column of the input of which a column of the output has the value at a row of the match, or lists the values at rows of it. None: it is anything
    /// else.
    #[must_use]
    pub fn column_at_rows(&self, output: usize) -> Option<&Column> {
        let measure = self.definition.measures.get(output.checked_sub(self.partition_by.len())?)?;
        let (slot, _) = self.definition.slots.get(slot_of(&plain_column(&measure.expr)?.name)?)?;
        let operand = match slot {
            Slot::Navigated { read: Read::Operand(operand), step: 0, .. } => *operand,
            Slot::Aggregate(place) => {
                let Expr::AggregateFunction(aggregate) = &self.definition.aggregates.get(*place)?.function else { return None };
                let ("array_agg", [value]) = (aggregate.func.name(), aggregate.params.args.as_slice()) else { return None };
                operand_of(&plain_column(value)?.name)?
            }
            _ => return None,
        };
        plain_column(self.operands.get(operand)?)
    }

    /// A condition over the columns of the input, if it reads nothing but the row itself.
    fn over_the_row(&self, condition: &Expr) -> Option<Expr> {
        let mut reads_more = false;
        let over_input = condition.clone().transform_up(|part| {
            let Expr::Column(column) = &part else { return Ok(Transformed::no(part)) };
            match slot_of(&column.name).and_then(|slot| self.operand_of_the_row(slot)) {
                Some(operand) => Ok(Transformed::yes(operand.clone())),
                None => {
                    reads_more = true;
                    Ok(Transformed::no(part))
                }
            }
        });
        let over_input = over_input.ok()?.data;
        (!reads_more).then_some(over_input)
    }

    fn operand_of_the_row(&self, slot: usize) -> Option<&Expr> {
        match &self.definition.slots.get(slot)?.0 {
            Slot::Navigated { read: Read::Operand(operand), rows: definition::Rows::All, from_first: false, nth: 0, step: 0 } => {
                self.operands.get(*operand)
            }
            _ => None,
        }
    }
}

impl Endings {
    /// The conditions, over the columns of the input: those that there are, in the order in which [`Endings::marks`] is told of them.
    pub fn conditions(&self) -> impl Iterator<Item = &Expr> {
        self.conditions.iter().flatten()
    }

    /// Of each of so many rows, to which variables it may be mapped, by whether each of the conditions holds there.
    pub fn marks<'a>(&self, holds: impl IntoIterator<Item = &'a ArrayRef>, rows: usize) -> Vec<u64> {
        let mut holds = holds.into_iter();
        let mut marks = vec![0; rows];
        for (variable, condition) in self.conditions.iter().enumerate() {
            let column = condition.as_ref().map(|_| holds.next());
            for (row, mark) in marks.iter_mut().enumerate() {
                let is_met = column.is_none_or(|column| column.is_some_and(|column| is_true(column, row)));
                *mark |= u64::from(is_met) << variable;
            }
        }
        marks
    }
}

/// What a [`Walk`] says of the last row's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// No match has a row of that time.
    None,
    /// One has: the first such match begins with the row of this time and place.
    From { ts: i64, place: u32 },
    /// To find out takes more steps than there are, or more than a search may take.
    Unknown,
}

/// The rows of one partition, in their order, and what is known of them as start rows.
#[derive(Debug, Default)]
pub struct Walk {
    rows: VecDeque<Row>,
    /// Rows that are not there any more at the front.
    dropped: u64,
}

#[derive(Debug)]
struct Row {
    ts: i64,
    marks: u64,
    /// Which of its time it is, for whoever has them.
    place: u32,
    /// By how much further the next start row is, or a later one that comes after it, once that is decided whatever follows; 0 before.
    next: u32,
    /// How many rows there had been when that was decided, from the first that there ever was.
    decided_by: u64,
}

impl Walk {
    /// Adds a row behind all others.
    pub fn push(&mut self, ts: i64, place: u32, marks: u64) {
        debug_assert!(self.rows.back().is_none_or(|last| (last.ts, last.place) < (ts, place)), "rows come in their order");
        self.rows.push_back(Row { ts, marks, place, next: 0, decided_by: 0 });
    }

    /// Takes back the rows of `ts` and later, and what they decided.
    pub fn take_back(&mut self, ts: i64) {
        let before = self.rows.len();
        while self.rows.back().is_some_and(|row| row.ts >= ts) {
            self.rows.pop_back();
        }
        if self.rows.len() < before {
            let known = self.dropped + self.rows.len() as u64;
            self.rows.iter_mut().filter(|row| row.decided_by > known).for_each(|row| row.next = 0);
        }
    }

    /// Drops the rows before `ts`, and those of that time before its place `taken`.
    pub fn drop_before(&mut self, ts: i64, taken: u32) {
        while self.rows.front().is_some_and(|row| (row.ts, row.place) < (ts, taken)) {
            self.rows.pop_front();
            self.dropped += 1;
        }
    }

    /// True if there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether one of the matches that the operator finds in the rows of at most `back` microseconds before the last one has a row of that one's time. All
    /// rows of that time have to be there. What it takes is taken from `steps`.
    pub fn ending(&mut self, endings: &Endings, back: i64, steps: &mut u64) -> Ending {
        let Some(at) = self.rows.back().map(|row| row.ts) else { return Ending::None };
        let (end, instant) = (self.rows.len(), self.rows.partition_point(|row| row.ts < at));
        // The last row of such a match is one of these: mostly none of them can be.
        if !self.rows.range(instant..).any(|row| row.marks & endings.last != 0) {
            return Ending::None;
        }
        let oldest = at.saturating_sub(back);
        let first = self.rows.partition_point(|row| row.ts < oldest);
        let open = match self.pass_decided(endings, first, instant, steps) {
            ControlFlow::Continue(open) => open,
            ControlFlow::Break(ending) => return ending,
        };
        // What is left is decided by that nothing follows, and only for now.
        let mut finder = finder_at(open);
        loop {
            let before = finder.steps();
            let found = finder.find_within(&endings.matcher, Rows::complete(end), &mut Marked(&self.rows), *steps);
            *steps = steps.saturating_sub(finder.steps() - before);
            match found {
                Ok(Some(Found::Match(mapping))) if has_row_from(&mapping, instant) => return self.begins_at(mapping.start()),
                Ok(Some(Found::Match(_))) => {}
                Ok(Some(Found::Done)) => return Ending::None,
                _ => return Ending::Unknown,
            }
        }
    }

    /// Goes from start row to start row for as long as what is there decides each, and answers the first that is open.
    fn pass_decided(&mut self, endings: &Endings, first: usize, instant: usize, steps: &mut u64) -> ControlFlow<Ending, usize> {
        let end = self.rows.len();
        // A match that was found with rows of this instant may have one of them.
        let known_before = self.dropped + instant as u64;
        let mut position = first;
        loop {
            position = self.first_open(position, known_before);
            if position >= end {
                return ControlFlow::Continue(end);
            }
            let mut finder = finder_at(position);
            let found = finder.find_within(&endings.matcher, Rows::growing(end), &mut Marked(&self.rows), *steps);
            *steps = steps.saturating_sub(finder.steps());
            let next = finder.needed_from();
            match found {
                Ok(Some(Found::Match(mapping))) => {
                    let start = mapping.start();
                    (position..start).for_each(|row| self.decide(row, row + 1));
                    self.decide(start, next);
                    if has_row_from(&mapping, instant) {
                        return ControlFlow::Break(self.begins_at(start));
                    }
                }
                Ok(Some(Found::NeedsMore)) => {
                    (position..next).for_each(|row| self.decide(row, row + 1));
                    return ControlFlow::Continue(next);
                }
                _ => return ControlFlow::Break(Ending::Unknown),
            }
            position = next;
        }
    }

    /// The first start row from this one on that is not decided by the first `known_before` rows. Those on the way lead to it at once from then on.
    fn first_open(&mut self, first: usize, known_before: u64) -> usize {
        let (mut open, mut decided_by) = (first, 0);
        while let Some(row) = self.rows.get(open)
            && row.next > 0
            && row.decided_by <= known_before
        {
            decided_by = row.decided_by.max(decided_by);
            open += row.next as usize;
        }
        let mut start = first;
        while start < open
            && let Some(row) = self.rows.get_mut(start)
        {
            let next = start + row.next as usize;
            row.next = u32::try_from(open - start).unwrap_or(row.next);
            row.decided_by = decided_by;
            start = next;
        }
        open
    }

    /// After this start row comes that one, whatever follows.
    fn decide(&mut self, start: usize, next: usize) {
        let known = self.dropped + self.rows.len() as u64;
        if let Some(row) = self.rows.get_mut(start) {
            row.next = u32::try_from(next.saturating_sub(start)).unwrap_or(0);
            row.decided_by = known;
        }
    }

    fn begins_at(&self, start: usize) -> Ending {
        self.rows.get(start).map_or(Ending::Unknown, |row| Ending::From { ts: row.ts, place: row.place })
    }
}

/// The search from a start row on, in which nothing depends on how many matches there were.
fn finder_at(position: usize) -> Finder {
    Finder::restore(Saved { position: position as u64, matches: 0 })
}

/// True if a match has this row or a later one.
fn has_row_from(mapping: &Mapping, row: usize) -> bool {
    !mapping.is_empty() && mapping.end() > row
}

/// Rows as the matcher asks of them.
struct Marked<'a>(&'a VecDeque<Row>);

impl Conditions for Marked<'_> {
    type Error = Infallible;

    fn holds(&mut self, variable: Variable, row: usize, _: &Mapping) -> Result<Answer, Infallible> {
        Ok(Answer::from(self.0.get(row).is_some_and(|row| row.marks & bit(variable) != 0)))
    }
}

fn bit(variable: Variable) -> u64 {
    1 << variable.index()
}

fn plain_column(expr: &Expr) -> Option<&Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Alias(alias) => plain_column(&alias.expr),
        _ => None,
    }
}

/// The variables that the last row of a match can be mapped to, and whether there may be no row at all.
fn last_of(pattern: &Pattern, program: &Program) -> (u64, bool) {
    match pattern {
        Pattern::Variable(name) => (program.variable(name).map_or(0, bit), false),
        Pattern::Empty | Pattern::Start | Pattern::End => (0, true),
        Pattern::Concat(parts) => {
            let mut last = 0;
            for part in parts.iter().rev() {
                let (of_part, may_be_empty) = last_of(part, program);
                last |= of_part;
                if !may_be_empty {
                    return (last, false);
                }
            }
            (last, true)
        }
        Pattern::Alternate(parts) => {
            let each = parts.iter().map(|part| last_of(part, program));
            each.fold((0, false), |(last, empty), (of_part, may_be_empty)| (last | of_part, empty || may_be_empty))
        }
        Pattern::Quantified(part, quantifier) => {
            let (last, may_be_empty) = last_of(part, program);
            (last, may_be_empty || quantifier.min == 0)
        }
    }
}
