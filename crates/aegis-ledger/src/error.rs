//! What can go wrong with a ledger, said so that an operator knows what happened, where, and what to do.

use std::path::{Path, PathBuf};

use aegis_model::EventId;

/// Why the ledger could not do what it was asked. Cloneable, so that every waiter of a failed commit gets its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// A setting that cannot work.
    #[error("ledger configuration: {0}")]
    Config(String),
    /// Another process has this ledger open.
    #[error("ledger {} is in use by another process; stop that one, or give this one its own data folder", .path.display())]
    Locked { path: PathBuf },
    /// The file is not a readable ledger.
    #[error(
        "ledger {} is damaged: {reason}; keep the file with its -wal, and its -wal.kept if there is one, as evidence by moving them aside, then start again \
         (new lanes open), or restore a backup", .path.display()
    )]
    Corrupt { path: PathBuf, reason: String },
    /// A newer program wrote the file.
    #[error("ledger {} has schema {found}, this program knows schema {supported}; start the newer program", .path.display())]
    SchemaTooNew { path: PathBuf, found: i64, supported: i64 },
    /// The file or its folder cannot be written at start.
    #[error("ledger {} cannot be written: {reason}; check that its folder exists, is writable and has space", .path.display())]
    NotWritable { path: PathBuf, reason: String },
    /// The commit failed: nothing of the draft was written, and it will not be written later.
    #[error("the ledger cannot write its receipt: {0}")]
    Unavailable(String),
    /// The receipt or its event would be over the size limit.
    #[error("the receipt needs {bytes} bytes, the limit is {limit}; shorten its event or detail")]
    TooLarge { bytes: usize, limit: usize },
    /// The draft cannot be sealed, whoever tries.
    #[error("the draft cannot be sealed: {0}")]
    Rejected(String),
    /// The tenant already has a receipt for this event id.
    #[error("event {event_id} already has a receipt")]
    Duplicate { event_id: EventId },
    /// Rows were to be pruned that this process reads again.
    #[error("the ledger's rows are named by a bus or a history of this process, and cannot be pruned")]
    Kept,
    /// `close` was called, or the writer is gone.
    #[error("the ledger is closed")]
    Closed,
    /// A read failed.
    #[error("the ledger cannot be read: {0}")]
    Read(String),
    /// The operating system gave no randomness.
    #[error("the operating system gave no random bytes: {0}")]
    Random(String),
}

/// Why a draft was not taken. None of these blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The writer does not keep up.
    #[error("the ledger's queue is full")]
    QueueFull,
    /// The last commit failed and no later one has succeeded.
    #[error("the ledger cannot write")]
    Unavailable,
    /// `close` was called, or the writer is gone.
    #[error("the ledger is closed")]
    Closed,
}

/// SQLite's primary result codes that say that the file itself is bad (sqlite.org/rescode.html).
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_NOTADB: i32 = 26;
/// The disk gave an error, of a bad sector for one.
const SQLITE_IOERR: i32 = 10;

/// Extended codes of an error of the disk that are about reading.
const SQLITE_IOERR_READ: i32 = 266;
const SQLITE_IOERR_SHORT_READ: i32 = 522;

/// The extended SQLite result code of an error, if it came from SQLite.
fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// The primary one.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    code(error).map(|code| code & 0xff)
}

/// True if the error says that the file is not a sound database.
pub(crate) fn is_corruption(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(SQLITE_CORRUPT | SQLITE_NOTADB))
}

/// True if the disk did not do what it was asked, for another reason than that it is full.
pub(crate) fn is_disk_error(error: &sqlx::Error) -> bool {
    primary_code(error) == Some(SQLITE_IOERR)
}

/// True if the disk may have refused what it was to write: an error of the disk but for those of reading, which refused nothing. What it refuses unheard of
/// is told of with the next commit's sync.
pub(crate) fn is_refused_write(error: &sqlx::Error) -> bool {
    is_disk_error(error) && !matches!(code(error), Some(SQLITE_IOERR_READ | SQLITE_IOERR_SHORT_READ))
}

/// True if what was asked for cannot be read from the file, which may be true of other parts of it or not.
pub(crate) fn is_unreadable(error: &sqlx::Error) -> bool {
    is_corruption(error) || is_disk_error(error)
}

/// True if a row with the same unique key is there already.
pub(crate) fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

/// An error while opening, as the operator should read it.
pub(crate) fn open_error(path: &Path, error: &sqlx::Error) -> LedgerError {
    let (path, reason) = (path.to_owned(), error.to_string());
    if is_corruption(error) { LedgerError::Corrupt { path, reason } } else { LedgerError::NotWritable { path, reason } }
}

/// An error while reading.
pub(crate) fn read_error(error: &sqlx::Error) -> LedgerError {
    LedgerError::Read(error.to_string())
}
