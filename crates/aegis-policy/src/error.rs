//! Why a bundle did not load: every problem with its source, line and column, the offending line and a hint.

use std::fmt;

use miette::Diagnostic;
use serde::Serialize;

/// Problems shown of one load; the rest is counted.
const MAX_SHOWN: usize = 20;
/// Longest source line shown, in characters.
const MAX_SNIPPET_CHARS: usize = 160;

/// A place in a policy source. Both numbers start at 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// One thing that is wrong with a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyProblem {
    /// Name of the source, or `registry` when a registered tool is what is wrong.
    pub source: String,
    /// Where in the source, if the problem has a place.
    pub position: Option<Position>,
    /// The `@id` of the policy, if it is known.
    pub policy_id: Option<String>,
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The line at `position`.
    pub snippet: Option<String>,
}

/// A bundle was refused. Holds at least one problem; `Display` shows them as a compiler would.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PolicyError {
    problems: Vec<PolicyProblem>,
}

impl PolicyError {
    /// INVARIANT: `problems` is not empty.
    pub(crate) fn new(mut problems: Vec<PolicyProblem>) -> Self {
        debug_assert!(!problems.is_empty());
        problems.sort_by(|a, b| {
            (&a.source, a.position, &a.policy_id, &a.message).cmp(&(&b.source, b.position, &b.policy_id, &b.message))
        });
        problems.dedup();
        Self { problems }
    }

    /// All problems, by source and place.
    #[must_use]
    pub fn problems(&self) -> &[PolicyProblem] {
        &self.problems
    }
}

impl From<PolicyProblem> for PolicyError {
    fn from(problem: PolicyProblem) -> Self {
        Self::new(vec![problem])
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().take(MAX_SHOWN).enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        let hidden = self.problems.len().saturating_sub(MAX_SHOWN);
        if hidden > 0 {
            write!(f, "\nand {hidden} more")?;
        }
        Ok(())
    }
}

impl fmt::Display for PolicyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)?;
        // Cedar's own messages mostly name the policy already.
        if let Some(id) = &self.policy_id
            && !self.message.contains(&format!("`{id}`"))
        {
            write!(f, " (policy `{id}`)")?;
        }
        if let (Some(Position { line, column }), Some(snippet)) = (self.position, &self.snippet) {
            let number = line.to_string();
            let margin = " ".repeat(number.len());
            write!(f, "\n{margin} |\n{number} | {snippet}")?;
            if column <= snippet.chars().count() {
                write!(f, "\n{margin} | {}^", " ".repeat(column - 1))?;
            }
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  = hint: {hint}")?;
        }
        Ok(())
    }
}

impl PolicyProblem {
    /// A problem without a place in a source.
    pub(crate) fn general(source: &str, message: impl Into<String>, hint: Option<&str>) -> Self {
        Self {
            source: source.to_owned(),
            position: None,
            policy_id: None,
            message: message.into(),
            hint: hint.map(str::to_owned),
            snippet: None,
        }
    }

    /// What should not happen with checked input.
    pub(crate) fn internal(error: &dyn fmt::Display) -> Self {
        Self::general("bundle", format!("the bundle cannot be built: {error}"), None)
    }

    /// A problem at a byte offset of a source's text.
    pub(crate) fn at(source: &str, text: &str, offset: usize, message: impl Into<String>) -> Self {
        let position = position_of(text, offset);
        Self {
            source: source.to_owned(),
            position: Some(position),
            policy_id: None,
            message: message.into(),
            hint: None,
            snippet: text.lines().nth(position.line - 1).map(|line| line.chars().take(MAX_SNIPPET_CHARS).collect()),
        }
    }

    /// What Cedar found, with its first label as the place.
    pub(crate) fn from_cedar(source: &str, text: &str, found: &dyn Diagnostic) -> Self {
        let offset = found.labels().and_then(|mut labels| labels.next()).map(|label| label.offset());
        let mut problem = match offset {
            Some(offset) => Self::at(source, text, offset, found.to_string()),
            None => Self::general(source, found.to_string(), None),
        };
        problem.hint = found.help().map(|help| help.to_string());
        problem
    }

    pub(crate) fn policy(mut self, id: &str) -> Self {
        self.policy_id = Some(id.to_owned());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Line and column of a byte offset; an offset past the end is the end.
fn position_of(text: &str, offset: usize) -> Position {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Position { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let text = "ab\ncäd\n";
        assert_eq!(position_of(text, 0), Position { line: 1, column: 1 });
        assert_eq!(position_of(text, 3), Position { line: 2, column: 1 });
        assert_eq!(position_of(text, 6), Position { line: 2, column: 3 });
        assert_eq!(position_of(text, 5), Position { line: 2, column: 2 }, "inside a character");
        assert_eq!(position_of(text, 99), Position { line: 3, column: 1 });
    }

    #[test]
    fn a_problem_reads_like_a_compiler_s() {
        let problem = PolicyProblem::at("p.cedar", "permit;\n  oops here", 10, "unexpected `oops`").policy("x").hint("remove it");
        assert_eq!(
            problem.to_string(),
            "p.cedar:2:3: unexpected `oops` (policy `x`)\n  |\n2 |   oops here\n  |   ^\n  = hint: remove it"
        );
    }
}
