//! Why the lake cannot be written or read, and why a query is not answered.

use datafusion::arrow::error::ArrowError;
use parquet::errors::ParquetError;

/// Why the lake cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    #[error("object store: {0}")]
    Store(#[from] object_store::Error),
    #[error("Parquet: {0}")]
    Parquet(#[from] ParquetError),
    #[error("columns: {0}")]
    Columns(#[from] ArrowError),
    /// An object of the lake is not what the lake writes.
    #[error("{object} is damaged: {reason}; restore it, or remove its hour's folder")]
    Damaged { object: String, reason: String },
    /// Somebody else put a newer version of an object; what is there is read again.
    #[error("{object} was written by somebody else meanwhile: is a second program writing this lake?")]
    Overtaken { object: String },
    /// Without conditions a write that comes late would undo a newer one.
    #[error("{store} knows no conditional writes (it took an {took}): a lake cannot be kept in it")]
    NoConditions { store: String, took: &'static str },
    /// A file went while it was read: it was merged, or its hour is too old.
    #[error("{object} was merged or removed while it was read; run it again")]
    Gone { object: String },
    /// A setting cannot be used, and why.
    #[error("{0}")]
    Settings(String),
    #[error("bus: {0}")]
    Bus(#[from] aegis_bus::BusError),
    #[error("the lake's thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl LakeError {
    pub(crate) fn damaged(object: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Self::Damaged { object: object.to_string(), reason: reason.to_string() }
    }
}

/// Why a query is not answered.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The text is not one query.
    #[error("this is {0}, not one query: the lake is read, and nothing in it is written, defined or set")]
    NotOneQuery(&'static str),
    /// The query has a part that no query over the lake may have.
    #[error("{0} is not allowed: a query reads the table `events` and does nothing else")]
    NotAllowed(String),
    /// It does not parse, means nothing over the table, or failed while it ran.
    #[error("{}{message}", place_text(.place))]
    Engine {
        message: String,
        /// Line and column, from 1, where the engine gives them.
        place: Option<(u64, u64)>,
    },
    #[error("the query took longer than {0} s: narrow it with conditions on ts")]
    Time(u64),
    #[error("the query ended badly; the log says where")]
    Ended,
    #[error(transparent)]
    Lake(#[from] LakeError),
}

fn place_text(place: &Option<(u64, u64)>) -> String {
    place.map_or_else(String::new, |(line, column)| format!("line {line}, column {column}: "))
}

/// A text without what a terminal obeys: what events say was written by whoever caused them, and errors repeat it.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_nothing_that_a_terminal_obeys() {
        assert_eq!(harmless("a\u{1b}[2Jb\r\u{9b}c\nd│é"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\nd│é");
    }
}
