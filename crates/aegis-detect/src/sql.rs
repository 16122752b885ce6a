//! The rule's SQL as text: tokens with their places, one query and nothing else, and the way from an engine's error to a line.
//! What the query means is `check`'s and `shape`'s.

use aegis_match::Refusal;
use aegis_sql::Refused;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use crate::error::{Place, RuleCode, RuleError};
use crate::schema::SCORE_COLUMN;
use crate::side::{SIDE_COLUMNS, is_like_a_side_column};

/// A rule's text with its words.
#[derive(Debug)]
pub(crate) struct SqlText {
    tokens: Vec<TokenWithSpan>,
}

impl SqlText {
    pub(crate) fn read(text: &str) -> Result<Self, RuleError> {
        match Tokenizer::new(&GenericDialect {}, text).tokenize_with_location() {
            Ok(tokens) => Ok(Self { tokens }),
            Err(error) => {
                let place = Some(Place { line: error.location.line, column: error.location.column });
                Err(RuleError::new(RuleCode::RuleSql, error.message).at(place))
            }
        }
    }

    /// Where a word first stands, comments and strings left out.
    pub(crate) fn place_of(&self, word: &str) -> Option<Place> {
        let found = self.tokens.iter().find(|t| matches!(&t.token, Token::Word(w) if w.value.eq_ignore_ascii_case(word)))?;
        Some(Place { line: found.span.start.line, column: found.span.start.column })
    }

    /// Where a text first stands behind a word; without the word, where it first stands.
    pub(crate) fn place_of_text(&self, text: &str, behind: &str) -> Option<Place> {
        let is_word = |t: &TokenWithSpan| matches!(&t.token, Token::Word(w) if w.value.eq_ignore_ascii_case(behind));
        let is_text = |t: &&TokenWithSpan| matches!(&t.token, Token::SingleQuotedString(quoted) if quoted == text);
        let word = self.tokens.iter().position(is_word).unwrap_or(0);
        let found = self.tokens[word..].iter().find(is_text).or_else(|| self.tokens.iter().find(is_text))?;
        Some(Place { line: found.span.start.line, column: found.span.start.column })
    }

    /// True if a word is a column of a side table, or looks as if it were to be one.
    pub(crate) fn asks_side_tables(&self) -> bool {
        self.tokens.iter().any(|t| matches!(&t.token, Token::Word(word) if is_like_a_side_column(&word.value)))
    }

    /// The refusal of a rule that contains, where the column that it lacks is one of a side table.
    pub(crate) fn without_sides(&self, error: RuleError) -> RuleError {
        let column = SIDE_COLUMNS.iter().find(|column| named(&error.message) == Some(column.name));
        match column {
            Some(column) if error.code == RuleCode::RuleSql => side_error(column.name).at(self.place_of(column.name)),
            _ => error,
        }
    }

    /// Where the query begins: the first token that is neither white space nor a comment.
    pub(crate) fn start(&self) -> Option<Place> {
        let found = self.tokens.iter().find(|t| !matches!(t.token, Token::Whitespace(_)))?;
        Some(Place { line: found.span.start.line, column: found.span.start.column })
    }

    /// The logical plan of the rule's single query.
    pub(crate) fn plan(&self, state: &SessionState, text: &str) -> Result<LogicalPlan, RuleError> {
        aegis_match::plan_query(state, text).map_err(|refused| match refused {
            Refused::Engine(error) => self.explain(&error),
            Refused::NotOneQuery(what) => {
                let error = RuleError::new(RuleCode::RuleNotAQuery, format!("a rule is exactly one query, this is {what}"));
                error.at(self.start()).hint("a rule is one SELECT; it cannot write, define or configure anything")
            }
        })
    }

    /// An engine's refusal as a rule error, with the code and the place that its message allows.
    pub(crate) fn explain(&self, error: &DataFusionError) -> RuleError {
        let message = error.strip_backtrace();
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        if message.contains(SCORE_COLUMN) && self.place_of(SCORE_COLUMN).is_some() {
            return score_error().at(self.place_of(SCORE_COLUMN));
        }
        if let Some(refusal) = Refusal::in_error(error) {
            let place = refusal.place.map(|place| Place { line: place.line, column: place.column });
            let place = place.or_else(|| self.place_of("MATCH_RECOGNIZE"));
            let error = RuleError::new(RuleCode::RuleMatchRecognize, refusal.message.clone()).at(place);
            return if let Some(hint) = &refusal.hint { error.hint(hint) } else { error };
        }
        if let Some(name) = between(&message, "table '", "' not found") {
            let name = name.rsplit('.').next().unwrap_or(name);
            return table_error(name).at(self.place_of(name));
        }
        if let Some(name) = between(&message, "Invalid function '", "'") {
            return RuleError::new(RuleCode::RuleFunction, message.clone()).at(self.place_of(name));
        }
        let code = if matches!(error.find_root(), DataFusionError::NotImplemented(_)) {
            RuleCode::RuleUnsupported
        } else {
            RuleCode::RuleSql
        };
        let error = RuleError::new(code, message.clone()).at(self.place_in(&message));
        if self.place_of("QUALIFY").is_some() && message.contains("must be in GROUP BY") {
            return error.hint("QUALIFY does not know a WINDOW's name: select the window function AS a name, and use that name");
        }
        error
    }

    fn place_in(&self, message: &str) -> Option<Place> {
        let line = between(message, "at Line: ", ",").and_then(|l| l.parse().ok());
        let column = message.split("Column: ").nth(1).map(|c| c.chars().take_while(char::is_ascii_digit).collect::<String>());
        if let (Some(line), Some(Ok(column))) = (line, column.map(|c| c.parse())) {
            return Some(Place { line, column });
        }
        self.place_of(named(message)?).or_else(|| self.start())
    }
}

pub(crate) fn table_error(name: &str) -> RuleError {
    let error = RuleError::new(RuleCode::RuleTable, format!("table `{name}` does not exist for rules"));
    error.hint("a rule reads `events` (docs/specs/event.md has its columns), or `alerts`, and nothing else")
}

pub(crate) fn score_error() -> RuleError {
    let error = RuleError::new(RuleCode::RuleScore, format!("a rule that contains may not use `{SCORE_COLUMN}`"));
    error.hint("containment is decided by trust, mutation, risk tier and resource; a score is for display only")
}

fn side_error(column: &str) -> RuleError {
    let error = RuleError::new(RuleCode::RuleScore, format!("a rule that contains may not use `{column}`"));
    error.hint("what a side table says depends on how far back the log is known, and nobody is contained on that")
}

/// The column that a message says is not there.
fn named(message: &str) -> Option<&str> {
    let named = message.split("named ").nth(1)?.split([' ', ',']).next()?;
    let word = named.trim_matches(|c| c == '"' || c == '\'' || c == '.').rsplit('.').next()?;
    Some(word.trim_matches('"'))
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = text.split_once(before)?.1;
    Some(rest.split_once(after)?.0)
}
