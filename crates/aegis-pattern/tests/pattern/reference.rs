//! The slow matcher: goes through the parses of the pattern in the order of preferment, by plain recursion over the tree. Its text is
//! the definition of preferment; it shares nothing with the program, the machine or the mapping.

use aegis_pattern::{Pattern, Quantifier};

use crate::table::{Kind, Table};

/// A mapping: each row with its letter.
pub(crate) type Rows = Vec<(usize, char)>;

/// Why the walk ended before all parses were seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Match(Rows),
    /// It came to something that the known rows do not tell.
    NeedsMore,
    /// It took too long for a test.
    TooMany,
}

/// What comes after a part of the pattern. None: nothing came of it, the next parse is to be tried.
type Then<'a> = &'a mut dyn FnMut(&mut Walk<'_>) -> Option<Stop>;

pub(crate) struct Walk<'a> {
    table: &'a Table,
    start: usize,
    number: u64,
    mapped: Rows,
    steps: u64,
}

/// The preferred match from a start row; None if there is none.
pub(crate) fn attempt(pattern: &Pattern, table: &Table, start: usize, number: u64) -> Option<Stop> {
    let mut walk = Walk { table, start, number, mapped: Vec::new(), steps: 0 };
    walk.pattern(pattern, &mut |walk| Some(Stop::Match(walk.mapped.clone())))
}

impl Walk<'_> {
    fn row(&self) -> usize {
        self.start + self.mapped.len()
    }

    fn pattern(&mut self, pattern: &Pattern, then: Then<'_>) -> Option<Stop> {
        self.steps += 1;
        if self.steps > 20_000 {
            return Some(Stop::TooMany);
        }
        match pattern {
            Pattern::Empty => then(self),
            Pattern::Start => {
                if self.row() == 0 {
                    then(self)
                } else {
                    None
                }
            }
            Pattern::End if self.row() < self.table.known.end => None,
            Pattern::End => {
                if self.table.known.complete {
                    then(self)
                } else {
                    Some(Stop::NeedsMore)
                }
            }
            Pattern::Variable(name) => self.variable(name.chars().next().unwrap(), then),
            Pattern::Concat(parts) => self.concat(parts, then),
            Pattern::Alternate(parts) => parts.iter().find_map(|part| self.pattern(part, then)),
            Pattern::Quantified(part, quantifier) => self.repeat(part, *quantifier, 0, false, then),
        }
    }

    fn concat(&mut self, parts: &[Pattern], then: Then<'_>) -> Option<Stop> {
        match parts {
            [] => then(self),
            [first, rest @ ..] => self.pattern(first, &mut |walk| walk.concat(rest, then)),
        }
    }

    fn repeat(&mut self, part: &Pattern, quantifier: Quantifier, done: u32, ended_empty: bool, then: Then<'_>) -> Option<Stop> {
        let enough = done >= quantifier.min;
        let full = quantifier.max == Some(done);
        let again = |walk: &mut Self, then: Then<'_>| {
            if full || (enough && ended_empty) {
                return None;
            }
            let before = walk.mapped.len();
            walk.pattern(part, &mut |walk| {
                let empty = walk.mapped.len() == before;
                walk.repeat(part, quantifier, done + 1, empty, then)
            })
        };
        let leave = |walk: &mut Self, then: Then<'_>| if enough { then(walk) } else { None };
        if quantifier.greedy {
            again(self, then).or_else(|| leave(self, then))
        } else {
            leave(self, then).or_else(|| again(self, then))
        }
    }

    fn variable(&mut self, letter: char, then: Then<'_>) -> Option<Stop> {
        let (row, known) = (self.row(), self.table.known);
        if row >= known.end && known.complete {
            return None;
        }
        if let Some(span) = self.table.span {
            let ts = self.table.rows[row.min(known.end - 1)].ts;
            if ts - self.table.rows[self.start].ts > span {
                return None;
            }
        }
        if row >= known.end {
            return Some(Stop::NeedsMore);
        }
        self.mapped.push((row, letter));
        let stop = match self.holds(letter, row) {
            None => Some(Stop::NeedsMore),
            Some(true) => then(self),
            Some(false) => None,
        };
        self.mapped.truncate(row - self.start);
        stop
    }

    /// The condition of the letter; the row is already mapped to it. None: not known yet.
    fn holds(&self, letter: char, row: usize) -> Option<bool> {
        let rows = &self.table.rows;
        let value = rows[row].value;
        let condition = match self.table.kind(letter) {
            Kind::Letter => true,
            Kind::AbovePrevious => row == 0 || value > rows[row - 1].value,
            Kind::BelowNext if row + 1 < self.table.known.end => rows[row + 1].value > value,
            Kind::BelowNext if self.table.known.complete => false,
            Kind::BelowNext => return None,
            Kind::NotBelowFirst => value >= rows[self.start].value,
            Kind::NotBelowLastA => {
                let before = &self.mapped[..self.mapped.len() - 1];
                before.iter().rev().find(|(_, mapped)| *mapped == 'a').is_none_or(|(last, _)| value >= rows[*last].value)
            }
            Kind::OddCount => self.mapped.len() % 2 == 1,
            Kind::OddMatch => self.number % 2 == 1,
        };
        Some(condition && rows[row].letters.contains(letter))
    }
}
