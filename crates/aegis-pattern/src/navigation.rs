//! Navigation: `FIRST` and `LAST` within the match, `PREV` and `NEXT` among the physical rows of the partition, and the second around
//! the first. Finds a row's number; the caller reads the column there.

use crate::conditions::Rows;
use crate::mapping::{Scope, View};

/// Where a navigation leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Row(usize),
    /// There is no such row: the value is null.
    Absent,
    /// The row, if there is one, is still to come. A condition answers [`Answer::NeedsMore`](crate::Answer::NeedsMore); a measure of
    /// `NEXT` waits.
    NotYet,
}

/// `PREV(FIRST(scope, n), m)` and its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Navigation<'a> {
    pub scope: Scope<'a>,
    /// `FIRST` if set, else `LAST`.
    pub from_first: bool,
    /// How many of the scope's rows on from the first, or back from the last.
    pub nth: usize,
    /// Physical rows from there: negative is `PREV`, positive is `NEXT`.
    pub step: i64,
}

impl<'a> Navigation<'a> {
    /// `LAST(scope)`: what a column of a variable refers to.
    #[must_use]
    pub fn last(scope: Scope<'a>) -> Self {
        Self { scope, from_first: false, nth: 0, step: 0 }
    }

    /// `FIRST(scope)`.
    #[must_use]
    pub fn first(scope: Scope<'a>) -> Self {
        Self { scope, from_first: true, nth: 0, step: 0 }
    }

    /// The same, `nth` of the scope's rows further.
    #[must_use]
    pub fn nth(self, nth: usize) -> Self {
        Self { nth, ..self }
    }

    /// The same, `rows` physical rows earlier: `PREV`.
    #[must_use]
    pub fn prev(self, rows: u32) -> Self {
        Self { step: self.step - i64::from(rows), ..self }
    }

    /// The same, `rows` physical rows later: `NEXT`.
    #[must_use]
    pub fn next(self, rows: u32) -> Self {
        Self { step: self.step + i64::from(rows), ..self }
    }

    /// The row that is meant. It may lie outside of the match, but not outside of the partition.
    #[must_use]
    pub fn locate(self, view: View<'_>, rows: Rows) -> Target {
        let anchor = if self.from_first { view.first(self.scope, self.nth) } else { view.last(self.scope, self.nth) };
        let Some(anchor) = anchor else { return Target::Absent };
        let distance = usize::try_from(self.step.unsigned_abs()).unwrap_or(usize::MAX);
        if self.step < 0 {
            return anchor.checked_sub(distance).map_or(Target::Absent, Target::Row);
        }
        match anchor.checked_add(distance) {
            Some(row) if row < rows.end => Target::Row(row),
            Some(_) if !rows.complete => Target::NotYet,
            _ => Target::Absent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;
    use crate::program::Variable;

    const A: Scope<'_> = Scope::One(Variable(0));
    const B: Scope<'_> = Scope::One(Variable(1));

    #[test]
    fn prev_and_next_step_over_physical_rows_from_where_first_and_last_stand() {
        let mut mapping = Mapping::new(1, 1);
        for variable in [0, 0, 1] {
            mapping.push(Variable(variable));
        }
        let view = mapping.whole();
        let rows = Rows::growing(5);
        assert_eq!(Navigation::last(A).locate(view, rows), Target::Row(2));
        assert_eq!(Navigation::last(A).nth(1).locate(view, rows), Target::Row(1));
        assert_eq!(Navigation::first(A).prev(1).locate(view, rows), Target::Row(0));
        assert_eq!(Navigation::first(A).prev(2).locate(view, rows), Target::Absent);
        assert_eq!(Navigation::last(B).next(1).locate(view, rows), Target::Row(4));
        assert_eq!(Navigation::last(B).next(2).locate(view, rows), Target::NotYet);
        assert_eq!(Navigation::last(B).next(2).locate(view, Rows::complete(5)), Target::Absent);
        assert_eq!(Navigation::last(B).nth(1).next(9).locate(view, rows), Target::Absent, "no anchor, whatever comes");
    }
}
