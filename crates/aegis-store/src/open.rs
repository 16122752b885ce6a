//! Opens the database file: permissions, durability, integrity, schema. One writing connection, a few reading ones.

use std::path::Path;
use std::time::Duration;

use aegis_model::Timestamp;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::{StoreError, schema};

/// How long a statement waits for another process (the command line, say) that holds the write lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call waits for its turn at a connection.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// Readers are short; more would only queue at the disk.
const READERS: u32 = 4;
/// Every statement text of this crate stays prepared.
const STATEMENTS: usize = 256;
/// The writer's page cache: 64 MiB (SQLite counts negative values in KiB), so that the indexes of the history stay in memory.
const WRITER_CACHE: &str = "-65536";
/// Pages (4 KiB) the log holds before it is worked into the file: 32 MiB, a few seconds of history at full load.
const CHECKPOINT_PAGES: &str = "8192";
/// A file up to this size is checked page by page at each start (well under a second); a larger one when its pages are read.
const CHECK_UP_TO_BYTES: u64 = 128 * 1024 * 1024;

/// Opens writer and readers at `path`, at the schema this program knows.
pub(crate) async fn open(path: &Path, now: Timestamp) -> Result<(SqlitePool, SqlitePool), StoreError> {
    let size = create_private(path).map_err(|source| StoreError::File { path: path.to_owned(), source })?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(STATEMENTS);

    let for_writing = options
        .clone()
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("cache_size", WRITER_CACHE)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES);
    let writer = pool(1).connect_with(for_writing).await.map_err(|error| named(error.into(), path))?;
    if size <= CHECK_UP_TO_BYTES {
        check_pages(&writer, path).await.map_err(|error| named(error, path))?;
    }
    schema::migrate(&writer, path, now).await.map_err(|error| named(error, path))?;

    let for_reading = options.pragma("query_only", "ON");
    let readers = pool(READERS).connect_with(for_reading).await.map_err(|error| named(error.into(), path))?;
    Ok((writer, readers))
}

fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(TURN_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

/// Creates the file with mode 0600, or takes away what others may do with an existing one. SQLite gives its side files the same
/// mode. Returns the file's size in bytes.
fn create_private(path: &Path) -> std::io::Result<u64> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
        options.mode(0o600);
        let file = options.open(path)?;
        let metadata = file.metadata()?;
        if metadata.permissions().mode() & 0o077 != 0 {
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        }
        Ok(metadata.len())
    }
    #[cfg(not(unix))]
    {
        Ok(options.open(path)?.metadata()?.len())
    }
}

async fn check_pages(writer: &SqlitePool, path: &Path) -> Result<(), StoreError> {
    let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(writer).await?;
    if verdict == "ok" { Ok(()) } else { Err(StoreError::Corrupt { place: path.display().to_string(), detail: verdict }) }
}

/// Puts the file's name into an error that does not know it.
fn named(error: StoreError, path: &Path) -> StoreError {
    match error {
        StoreError::Corrupt { detail, .. } => StoreError::Corrupt { place: path.display().to_string(), detail },
        other => other,
    }
}
