//! What can be wrong with a rule, each with a stable code, and where in its file.
//! Promises that a message says what is wrong, where (line and column of the rule file), and what to do instead.

use std::path::PathBuf;

/// A stable name of one reason for refusing a rule (`docs/specs/detection-rule.md` lists them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RuleCode {
    /// The file cannot be read.
    RuleFile,
    /// The header is missing, is not YAML, lacks a key or has an unknown one, or a value is not allowed.
    RuleHeader,
    /// Two rules share an id or a name.
    RuleDuplicate,
    /// The SQL does not parse, or names something that does not exist.
    RuleSql,
    /// Something else than exactly one query: several statements, a write, a definition.
    RuleNotAQuery,
    /// A `MATCH_RECOGNIZE` that means nothing, or a part of it that this version does not run.
    RuleMatchRecognize,
    /// A part of SQL that this version does not run.
    RuleUnsupported,
    /// A table other than `events` and `alerts`, or not where that one may stand.
    RuleTable,
    /// A function whose result is not decided by its arguments alone.
    RuleFunction,
    /// A score in a rule that contains.
    RuleScore,
    /// A key column is missing in the output.
    RuleKey,
    /// A containing rule keys on something the caller chooses, or not on what it contains.
    RuleCallerKey,
    /// Neither `event_id` nor `event_ids` in the output, or not of the right type.
    RuleEvidence,
    /// A condition that no event meets, or a word that its column never holds.
    RuleUnreachable,
    /// The query looks further back than the header's window.
    RuleWindow,
    /// A function that depends on row order, over an order that has ties.
    RuleOrder,
    /// A containing rule that asks for unverified events.
    RuleUnverified,
    /// A test beside the rule cannot be read.
    RuleTest,
}

impl RuleCode {
    /// The code as it stands in messages and in the specification.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RuleFile => "RULE_FILE",
            Self::RuleHeader => "RULE_HEADER",
            Self::RuleDuplicate => "RULE_DUPLICATE",
            Self::RuleSql => "RULE_SQL",
            Self::RuleNotAQuery => "RULE_NOT_A_QUERY",
            Self::RuleMatchRecognize => "RULE_MATCH_RECOGNIZE",
            Self::RuleUnsupported => "RULE_UNSUPPORTED",
            Self::RuleTable => "RULE_TABLE",
            Self::RuleFunction => "RULE_FUNCTION",
            Self::RuleScore => "RULE_SCORE",
            Self::RuleKey => "RULE_KEY",
            Self::RuleCallerKey => "RULE_CALLER_KEY",
            Self::RuleEvidence => "RULE_EVIDENCE",
            Self::RuleUnreachable => "RULE_UNREACHABLE",
            Self::RuleWindow => "RULE_WINDOW",
            Self::RuleOrder => "RULE_ORDER",
            Self::RuleUnverified => "RULE_UNVERIFIED",
            Self::RuleTest => "RULE_TEST",
        }
    }
}

impl std::fmt::Display for RuleCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A place in a rule file, both numbers from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Place {
    pub line: u64,
    pub column: u64,
}

/// Why a rule was refused.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RuleError {
    pub code: RuleCode,
    /// The file, as it was named to the loader.
    pub file: PathBuf,
    pub place: Option<Place>,
    pub message: String,
    /// What to do instead.
    pub hint: Option<String>,
}

impl RuleError {
    pub(crate) fn new(code: RuleCode, message: impl Into<String>) -> Self {
        Self { code, file: PathBuf::new(), place: None, message: message.into(), hint: None }
    }

    pub(crate) fn at(mut self, place: Option<Place>) -> Self {
        self.place = place;
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn in_file(mut self, file: &std::path::Path) -> Self {
        file.clone_into(&mut self.file);
        self
    }
}

impl std::fmt::Display for RuleError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(place) = self.place {
            write!(f, ":{}:{}", place.line, place.column)?;
        }
        write!(f, ": {}: {}", self.code, self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for RuleError {}

/// Every reason why a rule set was refused; never empty.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RuleErrors(pub Vec<RuleError>);

impl std::fmt::Display for RuleErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for RuleErrors {}

/// What stopped a running rule, or the detector.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DetectError {
    /// The query engine refused or failed.
    #[error("rule {rule}: the query failed: {source}; the rule is quarantined until it is changed")]
    Query { rule: String, source: datafusion::error::DataFusionError },
    /// A row of the query is not a match.
    #[error("rule {rule}: {reason}; the rule is quarantined until it is changed")]
    Output { rule: String, reason: String },
    /// The bus answered with an error.
    #[error("detection cannot go on: {0}")]
    Bus(#[from] aegis_bus::BusError),
    /// The thread could not be started.
    #[error("the detection thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}
