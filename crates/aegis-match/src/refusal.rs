//! Why a `MATCH_RECOGNIZE` is refused when it is planned: what, where in the text, and what to do instead.

use std::fmt;

use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::tokenizer::Location;

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// It is standard SQL that this version does not run.
    Unsupported,
    /// It means nothing.
    Invalid,
}

/// A place in the text, line and column from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub line: u64,
    pub column: u64,
}

/// Why a row pattern is refused. It is the root of the engine's error ([`Refusal::in_error`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub kind: RefusalKind,
    pub message: String,
    pub hint: Option<String>,
    pub place: Option<Place>,
}

impl Refusal {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Invalid, message: message.into(), hint: None, place: None }
    }

    pub(crate) fn unsupported(what: impl fmt::Display) -> Self {
        let message = format!("{what} is not supported in MATCH_RECOGNIZE");
        Self { kind: RefusalKind::Unsupported, message, hint: None, place: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A location that the parser did not know is none.
    pub(crate) fn at(mut self, location: Location) -> Self {
        self.place = (location.line > 0).then_some(Place { line: location.line, column: location.column });
        self
    }

    /// The refusal in an engine's error, if it is one.
    #[must_use]
    pub fn in_error(error: &DataFusionError) -> Option<&Self> {
        match error.find_root() {
            DataFusionError::External(source) => source.downcast_ref(),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        if let Some(place) = self.place {
            write!(formatter, " at Line: {}, Column: {}", place.line, place.column)?;
        }
        if let Some(hint) = &self.hint {
            write!(formatter, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for DataFusionError {
    fn from(refusal: Refusal) -> Self {
        Self::External(Box::new(refusal))
    }
}
