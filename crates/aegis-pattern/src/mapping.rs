//! Which row is mapped to which variable, and what measures and conditions ask of it: classifiers, first and last rows, rows to
//! aggregate over, as of a row (running) or of the whole match (final).

use crate::program::Variable;

/// The rows of one match, each mapped to a primary variable. They follow each other without a gap from the start row on.
#[derive(Clone, Debug)]
pub struct Mapping {
    start: usize,
    match_number: u64,
    /// Of the rows from `start` on.
    classifiers: Vec<Variable>,
    /// By variable: its rows, ascending. It may be shorter than there are variables.
    rows_of: Vec<Vec<usize>>,
}

impl PartialEq for Mapping {
    fn eq(&self, other: &Self) -> bool {
        (self.start, self.match_number, &self.classifiers) == (other.start, other.match_number, &other.classifiers)
    }
}

impl Eq for Mapping {}

/// A row pattern variable as measures and conditions name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// The universal variable: every row, what an unqualified column refers to.
    All,
    One(Variable),
    /// A union variable (`SUBSET`): the rows of any of these.
    Union(&'a [Variable]),
}

/// A mapping up to a row: running semantics as of that row, or final semantics.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    mapping: &'a Mapping,
    /// First row that is not seen.
    end: usize,
}

impl Mapping {
    pub(crate) fn new(start: usize, match_number: u64) -> Self {
        Self { start, match_number, classifiers: Vec::new(), rows_of: Vec::new() }
    }

    /// As [`Mapping::new`], with the memory of this one.
    pub(crate) fn restart(&mut self, start: usize, match_number: u64) {
        self.truncate(self.start);
        self.start = start;
        self.match_number = match_number;
    }

    /// Maps the next row.
    pub(crate) fn push(&mut self, variable: Variable) {
        let row = self.end();
        let index = variable.index();
        if self.rows_of.len() <= index {
            self.rows_of.resize_with(index + 1, Vec::new);
        }
        self.rows_of[index].push(row);
        self.classifiers.push(variable);
    }

    /// Forgets the rows from `end` on.
    pub(crate) fn truncate(&mut self, end: usize) {
        while self.end() > end {
            let Some(variable) = self.classifiers.pop() else { return };
            self.rows_of[variable.index()].pop();
        }
    }

    /// The start row; of an empty match too.
    #[must_use]
    pub fn start(&self) -> usize {
        self.start
    }

    /// The row after the last mapped one.
    #[must_use]
    pub fn end(&self) -> usize {
        self.start + self.classifiers.len()
    }

    /// Number of mapped rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.classifiers.len()
    }

    /// No row is mapped: an empty match.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.classifiers.is_empty()
    }

    /// `MATCH_NUMBER()`: 1 for the first match of the partition. In a condition, the number that the match will have; a condition that
    /// reads it depends on the mapping.
    #[must_use]
    pub fn match_number(&self) -> u64 {
        self.match_number
    }

    /// `CLASSIFIER()` of a row: its primary variable. None for a row outside of the match.
    #[must_use]
    pub fn classifier(&self, row: usize) -> Option<Variable> {
        self.classifiers.get(row.checked_sub(self.start)?).copied()
    }

    /// Every mapped row with its variable, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (usize, Variable)> + '_ {
        self.classifiers.iter().enumerate().map(|(offset, variable)| (self.start + offset, *variable))
    }

    /// Running semantics: the mapping as of `row`, this row included.
    #[must_use]
    pub fn running(&self, row: usize) -> View<'_> {
        View { mapping: self, end: row.saturating_add(1).clamp(self.start, self.end()) }
    }

    /// Final semantics: the whole mapping. In a condition it is the running semantics of the current row.
    #[must_use]
    pub fn whole(&self) -> View<'_> {
        View { mapping: self, end: self.end() }
    }

    fn rows_of(&self, variable: Variable) -> &[usize] {
        self.rows_of.get(variable.index()).map_or(&[], Vec::as_slice)
    }
}

impl<'a> View<'a> {
    /// `FIRST(scope, n)`: its n-th row from the first on, counted from 0.
    #[must_use]
    pub fn first(self, scope: Scope<'_>, n: usize) -> Option<usize> {
        match scope {
            Scope::All => self.mapping.start.checked_add(n).filter(|row| *row < self.end),
            Scope::One(variable) => self.seen(variable).get(n).copied(),
            Scope::Union(_) => self.rows(scope).nth(n),
        }
    }

    /// `LAST(scope, n)`: its n-th row from the last back, counted from 0. `LAST(scope, 0)` is what a column without navigation refers to.
    #[must_use]
    pub fn last(self, scope: Scope<'_>, n: usize) -> Option<usize> {
        match scope {
            Scope::All => self.end.checked_sub(n)?.checked_sub(1).filter(|row| *row >= self.mapping.start),
            Scope::One(variable) => self.seen(variable).iter().rev().nth(n).copied(),
            Scope::Union(variables) if n == 0 => variables.iter().filter_map(|v| self.seen(*v).last()).max().copied(),
            Scope::Union(_) => self.rows(scope).rev().nth(n),
        }
    }

    /// Number of rows of the scope: `COUNT(scope.*)`.
    #[must_use]
    pub fn count(self, scope: Scope<'_>) -> usize {
        match scope {
            Scope::All => self.end - self.mapping.start,
            Scope::One(variable) => self.seen(variable).len(),
            Scope::Union(_) => self.rows(scope).count(),
        }
    }

    /// `CLASSIFIER(scope)`: the variable of the scope's last row.
    #[must_use]
    pub fn classifier(self, scope: Scope<'_>) -> Option<Variable> {
        self.mapping.classifier(self.last(scope, 0)?)
    }

    /// The rows of the scope, in order: what an aggregate goes over. Time is linear in the rows of the match.
    pub fn rows<'s>(self, scope: Scope<'s>) -> impl DoubleEndedIterator<Item = usize> + use<'a, 's> {
        let seen = &self.mapping.classifiers[..self.end - self.mapping.start];
        let start = self.mapping.start;
        let wanted = move |variable: Variable| match scope {
            Scope::All => true,
            Scope::One(one) => one == variable,
            Scope::Union(variables) => variables.contains(&variable),
        };
        seen.iter().enumerate().filter(move |(_, variable)| wanted(**variable)).map(move |(offset, _)| start + offset)
    }

    fn seen(self, variable: Variable) -> &'a [usize] {
        let rows = self.mapping.rows_of(variable);
        let all = self.end == self.mapping.end();
        if all { rows } else { &rows[..rows.partition_point(|row| *row < self.end)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Variable = Variable(0);
    const B: Variable = Variable(1);
    const C: Variable = Variable(2);

    /// Rows 10..15 mapped to a b a b b.
    fn mapping() -> Mapping {
        let mut mapping = Mapping::new(10, 3);
        for variable in [A, B, A, B, B] {
            mapping.push(variable);
        }
        mapping
    }

    #[test]
    fn first_and_last_count_from_either_end_of_the_variables_own_rows() {
        let mapping = mapping();
        let view = mapping.whole();
        assert_eq!(
            (view.first(Scope::One(A), 0), view.first(Scope::One(A), 1), view.first(Scope::One(A), 2)),
            (Some(10), Some(12), None)
        );
        assert_eq!(
            (view.last(Scope::One(B), 0), view.last(Scope::One(B), 2), view.last(Scope::One(B), 3)),
            (Some(14), Some(11), None)
        );
        assert_eq!((view.first(Scope::All, 4), view.first(Scope::All, 5)), (Some(14), None));
        assert_eq!((view.last(Scope::All, 4), view.last(Scope::All, 5)), (Some(10), None));
        assert_eq!((view.first(Scope::One(C), 0), view.last(Scope::One(C), 0)), (None, None));
        let union = Scope::Union(&[A, B]);
        assert_eq!((view.first(union, 2), view.last(union, 0), view.last(union, 3)), (Some(12), Some(14), Some(11)));
    }

    #[test]
    fn running_sees_the_rows_up_to_its_own_and_final_sees_all() {
        let mapping = mapping();
        assert_eq!(mapping.running(12).last(Scope::One(B), 0), Some(11));
        assert_eq!(mapping.running(10).last(Scope::One(B), 0), None);
        assert_eq!((mapping.running(12).count(Scope::All), mapping.whole().count(Scope::All)), (3, 5));
        assert_eq!((mapping.running(13).count(Scope::One(B)), mapping.whole().count(Scope::Union(&[B, C]))), (2, 3));
        assert_eq!(mapping.whole().rows(Scope::One(B)).collect::<Vec<_>>(), [11, 13, 14]);
        assert_eq!(mapping.running(13).rows(Scope::One(B)).rev().collect::<Vec<_>>(), [13, 11]);
        // Rows outside of the match see none or all of it.
        assert_eq!((mapping.running(9).count(Scope::All), mapping.running(99).count(Scope::All)), (0, 5));
    }

    #[test]
    fn the_classifier_is_the_variable_of_the_row() {
        let mapping = mapping();
        assert_eq!((mapping.classifier(11), mapping.classifier(9), mapping.classifier(15)), (Some(B), None, None));
        assert_eq!(mapping.running(12).classifier(Scope::All), Some(A));
        assert_eq!(mapping.running(12).classifier(Scope::Union(&[B, C])), Some(B));
        assert_eq!(mapping.whole().classifier(Scope::One(C)), None);
        assert_eq!(mapping.match_number(), 3);
    }

    #[test]
    fn what_was_forgotten_is_gone_from_every_view() {
        let mut mapping = mapping();
        mapping.truncate(12);
        assert_eq!((mapping.len(), mapping.end()), (2, 12));
        assert_eq!(mapping.whole().last(Scope::One(A), 0), Some(10));
        mapping.truncate(10);
        assert!(mapping.is_empty());
        assert_eq!(mapping.whole().last(Scope::All, 0), None);
    }
}
