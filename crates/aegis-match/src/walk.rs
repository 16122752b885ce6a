//! The rows of one partition as they come, and what is known of them as start rows.
//!
//! The search never takes back an outcome that it came to before the end of the rows (L-PATTERN-CHUNKS). So of a start row that is decided whatever follows
//! it is remembered where the next one is, and the walk from the first row of a window on is a chain of steps to the first that is open. What is open is
//! decided anew, as in a complete partition: by a search from there on where each condition reads the row alone, else by `threads`.

use std::collections::VecDeque;
use std::convert::Infallible;

use aegis_pattern::{Answer, Conditions, Finder, Found, Mapping, Rows, Saved, Variable};
use datafusion::error::Result;

use crate::endings::{Ended, Endings, Shown, bit};
use crate::threads::{Searched, Sight, Threads};

/// Most matches, and most rows of theirs, that are told of one time. Beyond that the query costs no more than to tell them.
const MOST_MATCHES: usize = 16;
const MOST_ROWS: usize = 4096;

/// What a [`Walk`] says of the last row's time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// No match has a row of that time.
    None,
    /// Some have: the first such match begins with the row of this time and place. All of them, in their order; None: they are too many.
    From { ts: i64, place: u32, matches: Option<Vec<Ended>> },
    /// To find out takes more steps than there are, or more than a search may take.
    Unknown,
}

/// The rows of one partition, in their order, and what is known of them.
#[derive(Debug, Default)]
pub struct Walk {
    rows: VecDeque<Row>,
    /// Rows that are not there any more at the front.
    dropped: u64,
    /// Where conditions read more than the row.
    threads: Option<Box<Threads>>,
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

/// The part of a walk that one time sees. Its rows have the places that they have among those that are there.
#[derive(Clone, Copy)]
struct Seen {
    /// The first row of the window.
    first: usize,
    /// The first of the last time.
    instant: usize,
    end: usize,
}

/// The matches with a row of the last time.
struct Told {
    /// The number that a mapping has for the first row that is there.
    base: usize,
    instant: usize,
    /// The start row of the first of them.
    begins: Option<usize>,
    /// None: they are too many.
    matches: Option<Vec<Mapping>>,
    rows: usize,
}

impl Told {
    fn add(&mut self, mapping: Mapping) {
        if mapping.is_empty() || mapping.end() <= self.base + self.instant {
            return;
        }
        self.begins.get_or_insert(mapping.start() - self.base);
        self.rows += mapping.len();
        match &mut self.matches {
            Some(matches) if matches.len() < MOST_MATCHES && self.rows <= MOST_ROWS => matches.push(mapping),
            matches => *matches = None,
        }
    }

    /// What comes further on changes nothing.
    fn is_over(&self) -> bool {
        self.matches.is_none()
    }
}

impl Walk {
    /// Adds a row behind all others: the one at `row` of those shown.
    ///
    /// # Errors
    /// None that is expected.
    pub fn push(&mut self, endings: &Endings, ts: i64, place: u32, shown: &Shown, row: usize) -> Result<()> {
        debug_assert!(self.rows.back().is_none_or(|last| (last.ts, last.place) < (ts, place)), "rows come in their order");
        if endings.reads_more_than_the_row() {
            let number = self.number_of(self.rows.len());
            let fresh = || Box::new(Threads::beginning_at(number, &endings.recognizer));
            self.threads.get_or_insert_with(fresh).push(&shown.columns, row)?;
        }
        if self.rows.len() == self.rows.capacity() {
            // Of many walks it stays the only one, or one of a few: by half of what there is, and not by all of it.
            self.rows.reserve_exact((self.rows.len() / 2).max(1));
        }
        self.rows.push_back(Row { ts, marks: shown.marks[row], place, next: 0, decided_by: 0 });
        Ok(())
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
            let end = self.number_of(self.rows.len());
            if let Some(threads) = &mut self.threads {
                threads.take_back(end);
            }
        }
    }

    /// Drops the rows before `ts`, and those of that time before its place `taken`.
    pub fn drop_before(&mut self, ts: i64, taken: u32) {
        let before = self.dropped;
        while self.rows.front().is_some_and(|row| (row.ts, row.place) < (ts, taken)) {
            self.rows.pop_front();
            self.dropped += 1;
        }
        if self.dropped > before {
            let first = self.number_of(0);
            if let Some(threads) = &mut self.threads {
                threads.drop_before(first);
            }
        }
    }

    /// True if there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Which of the matches that the operator finds in the rows of at most `back` microseconds before the last one have a row of that one's time. All
    /// rows of that time have to be there. What it takes is taken from `steps`.
    pub fn ending(&mut self, endings: &Endings, back: i64, steps: &mut u64) -> Ending {
        let Some(at) = self.rows.back().map(|row| row.ts) else { return Ending::None };
        let oldest = at.saturating_sub(back);
        let instant = self.rows.partition_point(|row| row.ts < at);
        // The last row of such a match is one of these: mostly none of them can be.
        if !self.rows.range(instant..).any(|row| row.marks & endings.last != 0) {
            return Ending::None;
        }
        let first = self.rows.partition_point(|row| row.ts < oldest);
        let seen = Seen { first, instant, end: self.rows.len() };
        let base = if self.threads.is_some() { self.number_of(0) } else { 0 };
        let mut told = Told { base, instant, begins: None, matches: Some(Vec::new()), rows: 0 };
        let is_known = match self.threads.take() {
            Some(mut threads) => {
                let is_known = self.follow(endings, &mut threads, seen, steps, &mut told);
                self.threads = Some(threads);
                is_known
            }
            None => self.search(endings, seen, steps, &mut told),
        };
        self.ending_of(endings, seen, told, is_known)
    }

    fn ending_of(&self, endings: &Endings, seen: Seen, told: Told, is_known: bool) -> Ending {
        let Told { base, begins, matches, .. } = told;
        let Some(first) = begins.and_then(|begins| self.rows.get(begins)) else {
            return if is_known { Ending::None } else { Ending::Unknown };
        };
        let matches = matches.filter(|_| is_known);
        let matches = matches.map(|all| all.into_iter().map(|mapping| self.ended(endings, seen, base, mapping)).collect());
        Ending::From { ts: first.ts, place: first.place, matches }
    }

    /// A match with the rows that its output is made of.
    fn ended(&self, endings: &Endings, seen: Seen, base: usize, mapping: Mapping) -> Ended {
        let (back, ahead) = endings.measured;
        let first = (mapping.start() - base).saturating_sub(back).max(seen.first);
        let end = (mapping.end() - base).saturating_add(ahead).min(seen.end);
        let rows = self.rows.range(first..end).map(|row| (row.ts, row.place)).collect();
        Ended { mapping, first: first + base, rows }
    }

    /// Searches where each condition reads the row alone. False: it is not known what there is.
    fn search(&mut self, endings: &Endings, seen: Seen, steps: &mut u64, told: &mut Told) -> bool {
        let Some(open) = self.pass_decided(endings, seen, steps, told) else { return false };
        // What is left is decided by that nothing follows, and only for now.
        let mut finder = finder_at(open);
        while !told.is_over() {
            let before = finder.steps();
            let found =
                finder.find_within(&endings.recognizer.matcher, Rows::complete(seen.end), &mut Marked(&self.rows), *steps);
            *steps = steps.saturating_sub(finder.steps() - before);
            match found {
                Ok(Some(Found::Match(mapping))) => told.add(mapping),
                Ok(Some(Found::Done)) => return true,
                _ => return false,
            }
        }
        true
    }

    /// Goes from start row to start row for as long as what is there decides each, and answers the first that is open. None: that is not known.
    fn pass_decided(&mut self, endings: &Endings, seen: Seen, steps: &mut u64, told: &mut Told) -> Option<usize> {
        let mut position = seen.first;
        loop {
            position = self.first_open(position, seen.instant);
            if position >= seen.end || told.is_over() {
                return Some(seen.end.min(position));
            }
            let mut finder = finder_at(position);
            let found = finder.find_within(&endings.recognizer.matcher, Rows::growing(seen.end), &mut Marked(&self.rows), *steps);
            *steps = steps.saturating_sub(finder.steps());
            let next = finder.needed_from();
            match found {
                Ok(Some(Found::Match(mapping))) => {
                    let start = mapping.start();
                    (position..start).for_each(|row| self.decide(row, row + 1));
                    self.decide(start, next);
                    told.add(mapping);
                }
                Ok(Some(Found::NeedsMore)) => {
                    (position..next).for_each(|row| self.decide(row, row + 1));
                    return Some(next);
                }
                _ => return None,
            }
            position = next;
        }
    }

    /// The same where conditions read more than the row: from each start row that is open, its own search goes on. False: it is not known what there is.
    fn follow(&mut self, endings: &Endings, threads: &mut Threads, seen: Seen, steps: &mut u64, told: &mut Told) -> bool {
        // From the first rows on a condition looks back to before the window, where there is nothing now, and was something before.
        let free_from = seen.first + endings.lookback;
        let base = told.base;
        let sight = |complete: bool| Sight { first: base + seen.first, rows: Rows { end: base + seen.end, complete } };
        let mut position = seen.first;
        while position < seen.end && !told.is_over() {
            let is_free = position >= free_from;
            if is_free {
                let open = self.first_open(position, seen.instant);
                if open > position {
                    position = open;
                    continue;
                }
            }
            let start = base + position;
            let known = if is_free { threads.take(start) } else { None };
            let mut thread = known.unwrap_or_else(|| threads.fresh(start));
            let mut searched = threads.search(&mut thread, endings, sight(false), steps);
            let is_decided = is_free && !matches!(searched, Searched::NeedsMore);
            if matches!(searched, Searched::NeedsMore) {
                let mut now = thread.for_now();
                if is_free {
                    threads.keep(thread, base + seen.end);
                }
                searched = threads.search(&mut now, endings, sight(true), steps);
            }
            let Searched::Decided { next, found } = searched else { return false };
            let next = next.saturating_sub(base);
            if is_decided {
                self.decide(position, next);
            }
            if let Some(found) = found {
                told.add(found);
            }
            position = next;
        }
        true
    }

    /// The first start row from this one on that is not decided by the rows before `instant`: a match that was found with rows of that time may have
    /// one of them. Those on the way lead to it at once from then on.
    fn first_open(&mut self, first: usize, instant: usize) -> usize {
        let known_before = self.dropped + instant as u64;
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

    /// The number of a row, counted from the first that there ever was.
    fn number_of(&self, place: usize) -> usize {
        usize::try_from(self.dropped).unwrap_or(usize::MAX).saturating_add(place)
    }
}

/// The search from a start row on, in which nothing depends on how many matches there were.
fn finder_at(position: usize) -> Finder {
    Finder::restore(Saved { position: position as u64, matches: 0 })
}

/// Rows as the matcher asks of them.
struct Marked<'a>(&'a VecDeque<Row>);

impl Conditions for Marked<'_> {
    type Error = Infallible;

    fn holds(&mut self, variable: Variable, row: usize, _: &Mapping) -> Result<Answer, Infallible> {
        Ok(Answer::from(self.0.get(row).is_some_and(|row| row.marks & bit(variable) != 0)))
    }
}
