//! Whether a match can be found from which `SKIP TO` a variable cannot go on, as far as the pattern alone tells.

use aegis_pattern::Pattern;

/// What a variable's rows can be in a match of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// No row may be the variable's.
    absent: bool,
    /// The first row may be the variable's.
    first: bool,
    /// The first row may be the variable's, and no other.
    only_first: bool,
    /// There may be no row at all.
    empty: bool,
}

impl Reach {
    /// Whether skipping to the variable's first or last row can fail.
    pub(crate) fn can_fail(self, to_first: bool) -> bool {
        self.absent || if to_first { self.first } else { self.only_first }
    }

    fn nothing() -> Self {
        Self { absent: false, first: false, only_first: false, empty: true }
    }

    /// One after the other. Where `self` takes no row, `next` begins the match. Matches of both without a row are empty ones, which are
    /// never skipped from.
    fn then(self, next: Self) -> Self {
        let absent_or_empty = |reach: Self| reach.absent || reach.empty;
        Self {
            absent: (self.absent && absent_or_empty(next)) || (self.empty && next.absent),
            first: self.first || (self.empty && next.first),
            only_first: (self.only_first && absent_or_empty(next)) || (self.empty && next.only_first),
            empty: self.empty && next.empty,
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            absent: self.absent || other.absent,
            first: self.first || other.first,
            only_first: self.only_first || other.only_first,
            empty: self.empty || other.empty,
        }
    }
}

/// What the rows of `variable` can be in a non-empty match of `pattern`, whatever the conditions say.
pub(crate) fn reach(pattern: &Pattern, variable: &str) -> Reach {
    match pattern {
        Pattern::Variable(name) => {
            let own = name == variable;
            Reach { absent: !own, first: own, only_first: own, empty: false }
        }
        Pattern::Empty | Pattern::Start | Pattern::End => Reach::nothing(),
        Pattern::Concat(parts) => parts.iter().map(|part| reach(part, variable)).fold(Reach::nothing(), Reach::then),
        Pattern::Alternate(parts) => {
            let none = Reach { absent: false, first: false, only_first: false, empty: false };
            parts.iter().map(|part| reach(part, variable)).fold(none, Reach::or)
        }
        Pattern::Quantified(part, quantifier) => {
            let once = reach(part, variable);
            // What one iteration can be, two can: more of them add nothing.
            let least = (0..quantifier.min.min(2)).fold(Reach::nothing(), |before, _| before.then(once));
            let most = (0..quantifier.max.unwrap_or(2).min(2)).fold(Reach::nothing(), |before, _| before.then(once));
            let between = if quantifier.min <= 1 && quantifier.max != Some(0) { once } else { least };
            least.or(most).or(between)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::tokenizer::Location;

    #[test]
    fn skipping_fails_where_the_variable_may_be_missing_or_first() {
        for (pattern, first, last) in [
            ("a b", false, false),
            ("a b?", true, true),
            ("b a", true, true),
            ("b+ a", true, true),
            ("b b a", true, false),
            ("b{2,} a", true, false),
            ("a? b c", true, true),
            ("a (b | c)", true, true),
            ("a (b | c b)", false, false),
            ("a (b c)+", false, false),
            ("a (b c)*", true, true),
            ("(a b)?", false, false),
            ("^ a+ b+ $", false, false),
            ("() b", true, true),
        ] {
            let read = crate::pattern::read(pattern, Location { line: 1, column: 1 }, &|name, _| name.to_owned()).unwrap();
            let reach = reach(&read, "b");
            assert_eq!((reach.can_fail(true), reach.can_fail(false)), (first, last), "{pattern}");
        }
    }
}
