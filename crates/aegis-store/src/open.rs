//! Opens the database file: permissions, durability, integrity, schema. One writing connection, a few reading ones.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aegis_model::Timestamp;
use parking_lot::Mutex;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::{StoreError, schema};

/// How long a statement waits for another process (the command line, say) that holds the write lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait between two tries of what SQLite refuses at once.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// How long a call waits for its turn at a connection.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// Readers are short; more would only queue at the disk.
const READERS: u32 = 4;
/// Every statement text of this crate stays prepared.
const STATEMENTS: usize = 256;
/// Bytes of a page of a new file: it holds five events of the history; one of half the size holds two, with a quarter of it empty.
const PAGE_BYTES: u32 = 16384;
/// The writer's page cache: 64 MiB (SQLite counts negative values in KiB), so that the indexes of the history stay in memory.
const WRITER_CACHE: &str = "-65536";
/// Pages the log holds before it is worked into the file: 8 MiB of a new one, so that no commit pays for many.
const CHECKPOINT_PAGES: &str = "512";
/// A file up to this size is checked page by page at each start (well under a second); a larger one when its pages are read.
const CHECK_UP_TO_BYTES: u64 = 128 * 1024 * 1024;

/// The connections to the two files of a store.
pub(crate) struct Connections {
    pub(crate) writer: SqlitePool,
    pub(crate) readers: SqlitePool,
    /// Connects when it is first used: its thread then has the priority of whoever fills the history.
    pub(crate) history_writer: SqlitePool,
    pub(crate) history_readers: SqlitePool,
}

/// Opens the store at `path` and the history beside it, both at the schema this program knows.
pub(crate) async fn open(path: &Path, now: Timestamp) -> Result<Connections, StoreError> {
    let (writer, readers) = open_file(path, schema::STORE, now).await?;
    let history = history_path(path);
    let (history_maker, history_readers) = open_file(&history, schema::HISTORY, now).await?;
    history_maker.close().await;
    let history_writer = pool(1).connect_lazy_with(for_writing(&history));
    Ok(Connections { writer, readers, history_writer, history_readers })
}

/// `store.db` has its history in `store-history.db`: a file of its own, so that what arrives in bulk never holds up a change.
fn history_path(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-history.db"))
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .page_size(PAGE_BYTES)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // Large statements would otherwise make and remove files in the system's temporary folder.
        .pragma("temp_store", "MEMORY")
        .statement_cache_capacity(STATEMENTS)
}

fn for_writing(path: &Path) -> SqliteConnectOptions {
    options(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("cache_size", WRITER_CACHE)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
}

/// A writing connection and reading ones to one file.
async fn open_file(
    path: &Path,
    migrations: &[schema::Migration],
    now: Timestamp,
) -> Result<(SqlitePool, SqlitePool), StoreError> {
    let size = create_private(path).map_err(|source| StoreError::File { path: path.to_owned(), source })?;
    let writer = connect(pool(1), for_writing(path), path).await?;
    if size <= CHECK_UP_TO_BYTES {
        check_pages(&writer, path).await.map_err(|error| named(error, path))?;
    }
    schema::migrate(&writer, migrations, path, now).await.map_err(|error| named(error, path))?;
    let readers = connect(pool(READERS), options(path).pragma("query_only", "ON"), path).await?;
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

/// Connects. Switching a new file to its log takes a lock that SQLite does not wait for, so this does.
async fn connect(pool: SqlitePoolOptions, options: SqliteConnectOptions, path: &Path) -> Result<SqlitePool, StoreError> {
    let deadline = tokio::time::Instant::now() + BUSY_TIMEOUT;
    loop {
        match pool.clone().connect_with(options.clone()).await {
            Err(error) if is_busy(&error) && tokio::time::Instant::now() < deadline => tokio::time::sleep(BUSY_PAUSE).await,
            Err(error) => return Err(named(error.into(), path)),
            Ok(pool) => return Ok(pool),
        }
    }
}

/// SQLITE_BUSY or one of its extended codes.
fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code()?.parse::<u32>().ok());
    code.is_some_and(|code| code & 0xff == 5)
}

/// Creates the file with mode 0600, or takes away what others may do with an existing one. SQLite gives its side files the same
/// mode. Returns the file's size in bytes.
///
/// An existing file is never opened here: closing a second descriptor would drop the locks this process's connections hold on it.
fn create_private(path: &Path) -> std::io::Result<u64> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock();
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(_) => return Ok(0),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let metadata = std::fs::metadata(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        if metadata.permissions().mode() & 0o077 != 0 {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(metadata.len())
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
