//! Opens a store's files (SQLite): permissions, durability, integrity, schema. One writing connection, a few reading ones.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aegis_model::Timestamp;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::pool::PoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Any, AnyPool, AssertSqlSafe, ConnectOptions, Connection, Database, Sqlite};

use crate::bulk::BulkPool;
use crate::error::sqlite_code;
use crate::pool::Pool;
use crate::{Connections, Dialect, StoreError, schema};

/// How long a statement waits for another process (the command line, say) that holds the write lock.
const BUSY_TIMEOUT: Duration = Duration::from_millis(BUSY_TIMEOUT_MS);
const BUSY_TIMEOUT_MS: u64 = 10_000;
/// How long to wait between two tries of what SQLite refuses at once.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// How long a call waits for its turn at a connection.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// Readers are short; more would only queue at the disk.
const READERS: u32 = 4;
/// Bytes of a page of a new file: it holds five events of the history; one of half the size holds two, with a quarter of it empty.
const PAGE_BYTES: u32 = 16384;
/// The writer's page cache: 64 MiB (SQLite counts negative values in KiB), so that the indexes of the history stay in memory.
const WRITER_CACHE: i64 = -65_536;
/// Pages the log holds before it is worked into the file: 8 MiB of a new one, so that no commit pays for many.
const CHECKPOINT_PAGES: u32 = 512;
/// A file up to this size is checked page by page at each start (well under a second); a larger one when its pages are read.
const CHECK_UP_TO_BYTES: u64 = 128 * 1024 * 1024;

/// What stands as it is in the path of a URL.
const IN_A_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');

/// Versions of the schema of a file.
const SCHEMA_VERSIONS: &str = "CREATE TABLE IF NOT EXISTS schema_versions (
    version INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, applied_at INTEGER NOT NULL) STRICT";

/// Opens the store at `path` and the history beside it, both at the schema this program knows.
/// No future itself, so that everything behind it is compiled in this crate, and not in every program that opens a store.
#[inline(never)]
pub(crate) fn open(path: &Path, now: Timestamp) -> BoxFuture<'_, Result<Connections, StoreError>> {
    Box::pin(opened(path, now))
}

async fn opened(path: &Path, now: Timestamp) -> Result<Connections, StoreError> {
    sqlx::any::install_default_drivers();
    let (writer, readers) = open_file(path, schema::STORE, for_writing(), now).await?;
    let history = history_path(path);
    let (history_maker, history_readers) = open_file(&history, schema::HISTORY, for_making(), now).await?;
    history_maker.close().await;
    let history_writer = bounded::<Sqlite>(1).connect_lazy_with(for_bulk(&history));
    Ok(Connections {
        dialect: Dialect::Sqlite,
        writer: Pool::File(writer),
        readers: Pool::File(readers),
        history_writer: BulkPool::File(history_writer),
        history_readers: Pool::File(history_readers),
    })
}

/// `store.db` has its history in `store-history.db`: a file of its own, so that what arrives in bulk never holds up a change.
fn history_path(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-history.db"))
}

/// The file at `path`, which is there.
fn options(path: &Path) -> Result<AnyConnectOptions, StoreError> {
    let file = |source| StoreError::File { path: path.to_owned(), source };
    let absolute = path.canonicalize().map_err(file)?;
    let text = absolute.to_str().ok_or_else(|| file(std::io::Error::other("its name is not UTF-8")))?;
    let options = format!("sqlite://{}", utf8_percent_encode(text, IN_A_PATH)).parse();
    options.map_err(|error: sqlx::Error| file(std::io::Error::other(error)))
}

/// What a connection is told first.
fn for_reading() -> String {
    // Large statements would otherwise make and remove files in the system's temporary folder.
    format!(
        "PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; PRAGMA query_only = ON"
    )
}

fn for_writing() -> String {
    format!(
        "PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
         PRAGMA temp_store = MEMORY; PRAGMA cache_size = {WRITER_CACHE};
         PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}"
    )
}

/// The same as `for_writing`, of a file that is there.
fn for_bulk(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .pragma("temp_store", "MEMORY")
        .pragma("cache_size", WRITER_CACHE.to_string())
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string())
}

/// What a migration may go through is more than fits into memory: an index of it is sorted in files.
fn for_making() -> String {
    format!("{}; PRAGMA temp_store = FILE", for_writing())
}

/// A connection that was told `first` and brought the file to its newest schema, and reading ones to it.
async fn open_file(
    path: &Path,
    migrations: &[schema::Migration],
    first: String,
    now: Timestamp,
) -> Result<(AnyPool, AnyPool), StoreError> {
    let size = create_private(path).map_err(|source| StoreError::File { path: path.to_owned(), source })?;
    let opened = async {
        prepare(path, size).await?;
        let writer = pool(1, first).connect_with(options(path)?).await?;
        let tx = writer.begin_with(Dialect::Sqlite.begin_write()).await?;
        schema::migrate(tx, SCHEMA_VERSIONS, migrations, &path.display().to_string(), now).await?;
        Ok((writer, pool(READERS, for_reading()).connect_with(options(path)?).await?))
    };
    opened.await.map_err(|error| named(error, path))
}

fn pool(connections: u32, first: String) -> AnyPoolOptions {
    bounded::<Any>(connections).after_connect(move |connection, _| {
        let first = first.clone();
        Box::pin(async move { sqlx::raw_sql(AssertSqlSafe(first)).execute(connection).await.map(drop) })
    })
}

/// So many connections, which stay. One whose transaction SQLite took back by itself, as it does where the disk is full, is not used again: sqlx takes that
/// transaction for open, cannot roll it back any more, and would begin none on that connection until the program's end.
fn bounded<DB: Database>(connections: u32) -> PoolOptions<DB> {
    PoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(TURN_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .before_acquire(|connection: &mut DB::Connection, _| {
            let is_free = !connection.is_in_transaction();
            Box::pin(async move { Ok(is_free) })
        })
}

/// Makes a file what every connection expects of it, and checks its pages if it is small.
async fn prepare(path: &Path, size: u64) -> Result<(), StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .page_size(PAGE_BYTES)
        .busy_timeout(BUSY_TIMEOUT)
        .journal_mode(SqliteJournalMode::Wal);
    let mut connection = connect(&options).await?;
    if size <= CHECK_UP_TO_BYTES {
        let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut connection).await?;
        if verdict != "ok" {
            return Err(StoreError::Corrupt { place: path.display().to_string(), detail: verdict });
        }
    }
    Ok(connection.close().await?)
}

/// Connects. Switching a new file to its log takes a lock that SQLite does not wait for, so this does.
async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, sqlx::Error> {
    let deadline = tokio::time::Instant::now() + BUSY_TIMEOUT;
    loop {
        match options.connect().await {
            Err(error) if is_busy(&error) && tokio::time::Instant::now() < deadline => tokio::time::sleep(BUSY_PAUSE).await,
            other => return other,
        }
    }
}

/// SQLITE_BUSY or one of its extended codes.
fn is_busy(error: &sqlx::Error) -> bool {
    sqlite_code(error) == Some(5)
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

/// Puts the file's name into an error that does not know it.
fn named(error: StoreError, path: &Path) -> StoreError {
    match error {
        StoreError::Corrupt { detail, .. } => StoreError::Corrupt { place: path.display().to_string(), detail },
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Of SQLite: the database is full.
    const FULL: i32 = 13;

    #[tokio::test]
    async fn behind_a_full_disk_the_next_transaction_begins_on_another_connection() {
        sqlx::any::install_default_drivers();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.db");
        prepare(&path, create_private(&path).unwrap()).await.unwrap();
        let any = pool(1, for_writing()).connect_with(options(&path).unwrap()).await.unwrap();
        sqlx::query("CREATE TABLE t (x BLOB)").execute(&any).await.unwrap();
        let bulk = bounded::<Sqlite>(1).connect_lazy_with(for_bulk(&path));
        let (begin, no_larger) = (Dialect::Sqlite.begin_write(), "PRAGMA max_page_count = 1");
        let write = "INSERT INTO t VALUES (zeroblob(1000000))";

        let mut tx = any.begin_with(begin).await.unwrap();
        sqlx::query(no_larger).execute(&mut *tx).await.unwrap();
        let full = sqlx::query(write).execute(&mut *tx).await.unwrap_err();
        assert_eq!(sqlite_code(&full), Some(FULL), "{full}");
        drop(tx);
        let mut tx = any.begin_with(begin).await.unwrap();
        sqlx::query(write).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();

        let mut tx = bulk.begin_with(begin).await.unwrap();
        sqlx::query(no_larger).execute(&mut *tx).await.unwrap();
        let full = sqlx::query(write).execute(&mut *tx).await.unwrap_err();
        assert_eq!(sqlite_code(&full), Some(FULL), "{full}");
        drop(tx);
        let mut tx = bulk.begin_with(begin).await.unwrap();
        sqlx::query(write).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&bulk).await.unwrap();
        assert_eq!(rows, 2);
        any.close().await;
        bulk.close().await;
    }
}
