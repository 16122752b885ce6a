//! The searches of one partition that are under way, of a pattern whose conditions read more than the row: each from a start row of its own, with what its
//! conditions read, so that a row that comes costs each of them what it costs one search to go on by it.
//!
//! What they may hold is bounded by the rows that are kept. A search that has no room is not kept: it is made again from its start row, to the same end
//! (L-PATTERN-RESTORE), and takes steps for it.

use std::collections::BTreeMap;

use aegis_pattern::{Attempt, Mapping, Outcome, Rows};
use datafusion::arrow::array::{ArrayRef, UInt64Array};
use datafusion::arrow::compute::take;
use datafusion::error::Result;

use crate::aggregate::Running;
use crate::conditions::{Asked, Mask, Trouble};
use crate::endings::Endings;
use crate::kept::Kept;
use crate::recognizer::Recognizer;

/// Most cells of all searches (see `aegis_pattern::Limits`): so many for each row that is kept, and some more. A cell has at most 32 bytes.
const CELLS_OF_A_ROW: usize = 32;
const CELLS_AT_LEAST: usize = 64;

/// What conditions read of a partition's rows, and the searches that wait for more of them.
#[derive(Debug)]
pub(crate) struct Threads {
    kept: Kept,
    masks: Vec<Mask>,
    aggregates: usize,
    /// By start row.
    waiting: BTreeMap<usize, Thread>,
    /// Of all of them.
    cells: usize,
}

/// A search from one start row, and what its conditions have aggregated.
#[derive(Debug)]
pub(crate) struct Thread {
    start: usize,
    attempt: Attempt,
    running: Vec<Running>,
    /// It has seen the rows before this one.
    known: usize,
    cells: usize,
}

/// What a search sees.
#[derive(Clone, Copy)]
pub(crate) struct Sight {
    /// The first row of the window.
    pub(crate) first: usize,
    pub(crate) rows: Rows,
}

/// What a search came to.
pub(crate) enum Searched {
    /// Where the next start row is.
    Decided {
        next: usize,
        found: Option<Mapping>,
    },
    NeedsMore,
    /// It was given up, or failed.
    Unknown,
}

impl Thread {
    /// The same, to see how it would end if no row followed.
    pub(crate) fn for_now(&self) -> Self {
        let running = self.running.iter().map(Running::remembered).collect();
        Self { start: self.start, attempt: self.attempt.clone(), running, known: self.known, cells: 0 }
    }
}

impl Threads {
    /// No rows yet; the next has this number.
    pub(crate) fn beginning_at(number: usize, recognizer: &Recognizer) -> Self {
        Self {
            kept: Kept::starting_at(number),
            masks: vec![Mask::default(); recognizer.conditions.len()],
            aggregates: recognizer.aggregates.len(),
            waiting: BTreeMap::new(),
            cells: 0,
        }
    }

    /// Adds the row at `row` of some columns. Copies it: those of a whole run must not stay for one of its rows.
    pub(crate) fn push(&mut self, columns: &[ArrayRef], row: usize) -> Result<()> {
        let place = UInt64Array::from(vec![row as u64]);
        let own = columns.iter().map(|column| take(column, &place, None)).collect::<Result<Vec<_>, _>>()?;
        self.kept.push(own, 1)
    }

    /// Forgets the rows from this one on. A search that has seen one of them begins again.
    pub(crate) fn take_back(&mut self, end: usize) {
        self.kept.take_back(end);
        self.masks.iter_mut().for_each(|mask| mask.take_back(end));
        self.waiting.retain(|_, thread| thread.known <= end);
        self.count();
    }

    /// Forgets the rows before this one.
    pub(crate) fn drop_before(&mut self, first: usize) {
        self.kept.forget_before(first);
        self.masks.iter_mut().for_each(|mask| mask.forget_before(first));
        self.waiting = self.waiting.split_off(&first);
        self.count();
    }

    fn count(&mut self) {
        self.cells = self.waiting.values().map(|thread| thread.cells).sum();
    }

    /// The search from a start row, if it waits.
    pub(crate) fn take(&mut self, start: usize) -> Option<Thread> {
        let thread = self.waiting.remove(&start)?;
        self.cells -= thread.cells;
        Some(thread)
    }

    /// The search from a start row, from its beginning.
    pub(crate) fn fresh(&self, start: usize) -> Thread {
        let running = (0..self.aggregates).map(|_| Running::default()).collect();
        // Nothing that is followed reads the number of a match.
        Thread { start, attempt: Attempt::new(start, 1), running, known: start, cells: 0 }
    }

    /// Has a search wait that has seen the rows before `known`, if there is room for it.
    pub(crate) fn keep(&mut self, mut thread: Thread, known: usize) {
        thread.known = known;
        thread.cells = thread.attempt.cells() + thread.running.iter().map(Running::cells).sum::<usize>();
        let rows = self.kept.end() - self.kept.first();
        if self.cells + thread.cells <= rows * CELLS_OF_A_ROW + CELLS_AT_LEAST {
            self.cells += thread.cells;
            self.waiting.insert(thread.start, thread);
        }
    }

    /// Goes on with a search. What it takes is taken from `steps`, each condition by itself being many.
    pub(crate) fn search(&mut self, thread: &mut Thread, endings: &Endings, sight: Sight, steps: &mut u64) -> Searched {
        if *steps == 0 {
            return Searched::Unknown;
        }
        let Endings { recognizer, .. } = endings;
        let Sight { first, rows } = sight;
        let before = thread.attempt.steps();
        let (masks, running) = (&mut self.masks, &mut thread.running);
        let mut asked = Asked::new(recognizer, &self.kept, masks, running, rows, Some(first), *steps);
        let outcome = thread.attempt.run(&recognizer.matcher, rows, &mut asked);
        let work = asked.work();
        *steps = steps.saturating_sub(work + (thread.attempt.steps() - before));
        match outcome {
            Ok(Outcome::NeedsMore) => Searched::NeedsMore,
            Ok(Outcome::NoMatch) => Searched::Decided { next: thread.start + 1, found: None },
            Ok(Outcome::Match(mapping)) => match recognizer.matcher.next_start::<Trouble>(&mapping) {
                Ok(next) => Searched::Decided { next, found: Some(mapping) },
                Err(_) => Searched::Unknown,
            },
            Ok(Outcome::Exhausted(_)) | Err(_) => Searched::Unknown,
        }
    }
}
