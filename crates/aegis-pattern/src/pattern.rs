//! The pattern as written: the tree of a `PATTERN` clause, and its text. Says nothing about rows.

use std::fmt;

/// A row pattern. Groups are the tree itself; [`Pattern`] writes parentheses where they are needed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// A primary variable: one row that meets the variable's condition.
    Variable(String),
    /// `()`: no row.
    Empty,
    /// `^`: before the first row of the partition.
    Start,
    /// `$`: after the last row of the partition.
    End,
    /// One after the other. Of no parts: [`Pattern::Empty`].
    Concat(Vec<Pattern>),
    /// One of several, the earlier preferred. Of no parts it is refused.
    Alternate(Vec<Pattern>),
    Quantified(Box<Pattern>, Quantifier),
}

/// How often a pattern is repeated, and whether more (greedy) or fewer (reluctant) repetitions are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quantifier {
    pub min: u32,
    /// None: without bound. Otherwise at least 1 and at least `min`.
    pub max: Option<u32>,
    pub greedy: bool,
}

impl Quantifier {
    /// `*`
    pub const ZERO_OR_MORE: Self = Self { min: 0, max: None, greedy: true };
    /// `+`
    pub const ONE_OR_MORE: Self = Self { min: 1, max: None, greedy: true };
    /// `?`
    pub const OPTIONAL: Self = Self { min: 0, max: Some(1), greedy: true };

    /// `{n}`
    #[must_use]
    pub fn exactly(n: u32) -> Self {
        Self { min: n, max: Some(n), greedy: true }
    }

    /// `{n,}`
    #[must_use]
    pub fn at_least(n: u32) -> Self {
        Self { min: n, max: None, greedy: true }
    }

    /// `{n,m}`; with `n` = 0 it is `{,m}`.
    #[must_use]
    pub fn between(n: u32, m: u32) -> Self {
        Self { min: n, max: Some(m), greedy: true }
    }

    /// The same, fewer repetitions preferred: `*?`, `{n,m}?`.
    #[must_use]
    pub fn reluctant(self) -> Self {
        Self { greedy: false, ..self }
    }
}

impl Pattern {
    #[must_use]
    pub fn variable(name: impl Into<String>) -> Self {
        Self::Variable(name.into())
    }

    #[must_use]
    pub fn concat(parts: impl IntoIterator<Item = Self>) -> Self {
        Self::Concat(parts.into_iter().collect())
    }

    #[must_use]
    pub fn alternate(parts: impl IntoIterator<Item = Self>) -> Self {
        Self::Alternate(parts.into_iter().collect())
    }

    #[must_use]
    pub fn times(self, quantifier: Quantifier) -> Self {
        Self::Quantified(Box::new(self), quantifier)
    }

    /// Whether it is nested at most `depth` deep. Looks no deeper than that.
    pub(crate) fn is_within_depth(&self, depth: usize) -> bool {
        let Some(below) = depth.checked_sub(1) else { return false };
        match self {
            Self::Variable(_) | Self::Empty | Self::Start | Self::End => true,
            Self::Concat(parts) | Self::Alternate(parts) => parts.iter().all(|part| part.is_within_depth(below)),
            Self::Quantified(part, _) => part.is_within_depth(below),
        }
    }

    /// Whether it can match no rows at all. Anchors take no row.
    pub(crate) fn nullable(&self) -> bool {
        match self {
            Self::Variable(_) => false,
            Self::Empty | Self::Start | Self::End => true,
            Self::Concat(parts) => parts.iter().all(Self::nullable),
            Self::Alternate(parts) => parts.iter().any(Self::nullable),
            Self::Quantified(part, quantifier) => quantifier.min == 0 || part.nullable(),
        }
    }

    /// Writes the pattern as an operand: of a quantifier (`tight`), or of a concatenation.
    fn write_operand(&self, formatter: &mut fmt::Formatter<'_>, tight: bool) -> fmt::Result {
        let bare = match self {
            Self::Variable(_) | Self::Empty => true,
            // `^*` is no standard pattern, `(^)*` is.
            Self::Start | Self::End | Self::Quantified(..) => !tight,
            Self::Concat(parts) => parts.is_empty(),
            Self::Alternate(_) => false,
        };
        if bare { write!(formatter, "{self}") } else { write!(formatter, "({self})") }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write_identifier(formatter, name),
            Self::Empty => formatter.write_str("()"),
            Self::Start => formatter.write_str("^"),
            Self::End => formatter.write_str("$"),
            Self::Concat(parts) if parts.is_empty() => formatter.write_str("()"),
            Self::Concat(parts) => {
                for (index, part) in parts.iter().enumerate() {
                    formatter.write_str(if index == 0 { "" } else { " " })?;
                    part.write_operand(formatter, false)?;
                }
                Ok(())
            }
            Self::Alternate(parts) => {
                for (index, part) in parts.iter().enumerate() {
                    formatter.write_str(if index == 0 { "" } else { " | " })?;
                    // A concatenation binds tighter; an alternation within one keeps its parentheses, so that the tree can be read back.
                    if matches!(part, Self::Alternate(_)) { write!(formatter, "({part})")? } else { write!(formatter, "{part}")? }
                }
                Ok(())
            }
            Self::Quantified(part, quantifier) => {
                part.write_operand(formatter, true)?;
                write!(formatter, "{quantifier}")
            }
        }
    }
}

impl fmt::Display for Quantifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.min, self.max) {
            (0, None) => formatter.write_str("*"),
            (1, None) => formatter.write_str("+"),
            (0, Some(1)) => formatter.write_str("?"),
            (min, None) => write!(formatter, "{{{min},}}"),
            (min, Some(max)) if min == max => write!(formatter, "{{{min}}}"),
            (0, Some(max)) => write!(formatter, "{{,{max}}}"),
            (min, Some(max)) => write!(formatter, "{{{min},{max}}}"),
        }?;
        formatter.write_str(if self.greedy { "" } else { "?" })
    }
}

fn write_identifier(formatter: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if plain { formatter.write_str(name) } else { write!(formatter, "\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_written_with_the_parentheses_it_needs_and_no_others() {
        let (a, b, c) = (Pattern::variable("a"), Pattern::variable("b"), Pattern::variable("c"));
        let either = Pattern::alternate([a.clone(), Pattern::concat([b.clone(), c.clone()])]);
        assert_eq!(either.to_string(), "a | b c");
        let repeated = Pattern::concat([
            Pattern::Start,
            either.times(Quantifier::between(2, 3).reluctant()),
            a.clone().times(Quantifier::ZERO_OR_MORE).times(Quantifier::exactly(2)),
            Pattern::End,
        ]);
        assert_eq!(repeated.to_string(), "^ (a | b c){2,3}? (a*){2} $");
        assert_eq!(Pattern::Start.times(Quantifier::OPTIONAL).to_string(), "(^)?");
        assert_eq!(Pattern::concat([]).times(Quantifier::between(0, 4)).to_string(), "(){,4}");
        assert_eq!(Pattern::concat([Pattern::concat([a, b]), c]).to_string(), "(a b) c");
        assert_eq!(Pattern::variable("two words\"").to_string(), "\"two words\"\"\"");
    }
}
