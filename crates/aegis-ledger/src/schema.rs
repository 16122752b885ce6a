//! The ledger's SQLite file: its tables, its version, and how it is opened. WAL with synchronous=FULL: a commit that returned
//! is on the disk. Secrets stand in it (commitment keys, frozen actions), so it is readable by its owner only.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use crate::error::{is_disk_error, is_unreadable, open_error};
use crate::rows::STATEMENTS;
use crate::{LedgerError, log};

/// The schema this program writes. A file with a higher one is refused, so that an old program never guesses at it. Rows of schema 1 hold
/// their bodies whole, and are read as they are.
pub(crate) const SCHEMA_VERSION: i64 = 2;

/// `AEGL`: tells a ledger from any other SQLite file.
const APPLICATION_ID: i64 = 0x4145_474C;

/// How long a statement waits for another writer of the file (an operator's sqlite3, a backup) before it fails.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of a page of a new file. A row takes about 1.6 KB: a page holds four or five. Every commit writes the last page of each
/// index anew, so larger pages cost small commits more.
const PAGE_BYTES: u32 = 8192;

/// Page cache of the writer in KiB, negative as SQLite wants it: enough for the inner pages of every index.
const CACHE: &str = "-32768";

/// Files up to this size are checked whole at start; larger ones by their tails only, so that a start stays short.
const WHOLE_CHECK_BYTES: u64 = 64 << 20;

/// How long a start that fails looks for the page that it could not read.
const LONGEST_LOOK: Duration = Duration::from_secs(30);

/// Files of schema 1 up to this size get the indexes of this one at their first start, which takes a second or so; larger ones keep those they
/// have: as right, and slower to write.
const NEW_INDEX_BYTES: u64 = 256 << 20;

/// Ids of events rise with time, whoever's they are: with the id first, a commit's entries stand side by side.
const EVENT_INDEX: &str = "CREATE UNIQUE INDEX receipts_event_tenant ON receipts (event_id, tenant_id);";

/// The tables. `receipts` holds one row per receipt, in commit order; `row` is the outbox position and is never reused. `receipt` is what is
/// kept of the body (see `body`).
const TABLES: &str = "
CREATE TABLE lanes (
  lane_no   INTEGER PRIMARY KEY,
  lane      TEXT NOT NULL UNIQUE,
  tenant_id TEXT NOT NULL,
  state     TEXT NOT NULL CHECK (state IN ('open', 'closed', 'abandoned'))
) STRICT;
CREATE INDEX lanes_of_tenant ON lanes (tenant_id, lane_no);
CREATE INDEX lanes_by_state ON lanes (state) WHERE state = 'open';
CREATE TABLE commits (
  commit_id INTEGER PRIMARY KEY,
  first_row INTEGER NOT NULL,
  size      INTEGER NOT NULL,
  root      BLOB NOT NULL,
  key_id    TEXT NOT NULL,
  signature TEXT NOT NULL,
  max_ts    INTEGER NOT NULL
) STRICT;
CREATE TABLE receipts (
  row          INTEGER PRIMARY KEY,
  tenant_id    TEXT NOT NULL,
  event_id     BLOB NOT NULL,
  kind         TEXT NOT NULL,
  ts           INTEGER NOT NULL,
  lane_no      INTEGER NOT NULL,
  seq          INTEGER NOT NULL,
  receipt_hash TEXT NOT NULL,
  prev_hash    TEXT NOT NULL,
  event        TEXT NOT NULL,
  receipt      TEXT NOT NULL,
  commit_id    INTEGER NOT NULL,
  leaf         INTEGER NOT NULL,
  path         BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX receipts_lane_seq ON receipts (lane_no, seq);
CREATE TABLE approval_outbox (
  row         INTEGER PRIMARY KEY,
  tenant_id   TEXT NOT NULL,
  approval_id TEXT NOT NULL,
  expires_at  INTEGER NOT NULL,
  frozen      TEXT NOT NULL
) STRICT;
CREATE TABLE commitment_keys (
  tenant_id TEXT PRIMARY KEY,
  key       BLOB NOT NULL
) STRICT;
CREATE TABLE quarantined_rows (
  row          INTEGER PRIMARY KEY,
  tenant_id    TEXT NOT NULL,
  event_id     BLOB NOT NULL,
  kind         TEXT NOT NULL,
  ts           INTEGER NOT NULL,
  lane_no      INTEGER NOT NULL,
  seq          INTEGER NOT NULL,
  receipt_hash TEXT NOT NULL,
  prev_hash    TEXT NOT NULL,
  event        TEXT NOT NULL,
  receipt      TEXT NOT NULL,
  commit_id    INTEGER NOT NULL,
  leaf         INTEGER NOT NULL,
  path         BLOB NOT NULL,
  reason       TEXT NOT NULL
) STRICT;
CREATE TABLE outbox_position (
  one     INTEGER PRIMARY KEY CHECK (one = 1),
  shipped INTEGER NOT NULL
) STRICT;
INSERT INTO outbox_position VALUES (1, 0);
CREATE TABLE write_probe (one INTEGER PRIMARY KEY CHECK (one = 1), filler BLOB NOT NULL) STRICT;
";

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes the folder and the file if they are missing, and takes the lock that only one process can have.
pub(crate) async fn lock(path: &Path, wait: Duration) -> Result<File, LedgerError> {
    let not_writable = |e: std::io::Error| LedgerError::NotWritable { path: path.to_owned(), reason: e.to_string() };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(not_writable)?;
    }
    let private = |file: &Path| OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(file);
    let lock = private(&with_suffix(path, ".lock")).map_err(not_writable)?;
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(std::fs::TryLockError::WouldBlock) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(std::fs::TryLockError::WouldBlock) => return Err(LedgerError::Locked { path: path.to_owned() }),
            Err(std::fs::TryLockError::Error(e)) => return Err(not_writable(e)),
        }
    }
    // An empty file is a new database; made here, it gets its mode before anything secret stands in it.
    drop(private(path).map_err(not_writable)?);
    Ok(lock)
}

/// Options that every connection to the file shares.
pub(crate) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT).pragma("temp_store", "MEMORY")
}

/// A connection that writes.
pub(crate) async fn connect(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    options(path)
        .page_size(PAGE_BYTES)
        .statement_cache_capacity(STATEMENTS)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("cache_size", CACHE)
        // A shredded commitment key must not stay in a free page.
        .pragma("secure_delete", "ON")
        // SQLite tells nobody of an error that a checkpoint inside a commit meets: those who copy the log ask for it (see `checkpoint`).
        .pragma("wal_autocheckpoint", "0")
        .pragma("journal_size_limit", "67108864")
        .connect()
        .await
}

/// Opens the file for writing, makes or checks its schema, and checks its soundness.
pub(crate) async fn open(path: &Path) -> Result<SqliteConnection, LedgerError> {
    let failed = |e: sqlx::Error| open_error(path, &e);
    log::take_up(path).map_err(|e| failed(sqlx::Error::Io(e)))?;
    let mut connection = connect(path).await.map_err(failed)?;
    let found = number(&mut connection, "PRAGMA user_version").await.map_err(failed)?;
    let application = number(&mut connection, "PRAGMA application_id").await.map_err(failed)?;
    let tables = number(&mut connection, "SELECT count(*) FROM sqlite_schema").await.map_err(failed)?;
    if tables > 0 && application != APPLICATION_ID {
        let reason = "it is a SQLite file, but not a ledger".to_owned();
        return Err(LedgerError::Corrupt { path: path.to_owned(), reason });
    } else if found > SCHEMA_VERSION {
        return Err(LedgerError::SchemaTooNew { path: path.to_owned(), found, supported: SCHEMA_VERSION });
    }
    log::write_anew(&mut connection, path).await.map_err(failed)?;
    if tables == 0 {
        create(&mut connection).await.map_err(failed)?;
    }
    let bytes = std::fs::metadata(path).map_or(u64::MAX, |file| file.len());
    if bytes <= WHOLE_CHECK_BYTES
        && let Some(reason) = first_damage(&mut connection).await.map_err(failed)?
    {
        return Err(LedgerError::Corrupt { path: path.to_owned(), reason });
    }
    if tables > 0 && found < SCHEMA_VERSION {
        let mut is_upgraded = bytes <= NEW_INDEX_BYTES;
        if is_upgraded && let Err(error) = upgrade(&mut connection, true).await {
            // No page that cannot be read, and no want of room, keeps a ledger from starting that has indexes.
            tracing::warn!(%error, path = %path.display(), "the ledger's indexes cannot be made anew; it keeps those that it has");
            connection = connect(path).await.map_err(failed)?;
            if is_disk_error(&error) {
                log::cut(&mut connection, path).await.map_err(failed)?;
            }
            is_upgraded = false;
        }
        if !is_upgraded {
            upgrade(&mut connection, false).await.map_err(failed)?;
        }
        tracing::info!(path = %path.display(), from = found, to = SCHEMA_VERSION, "the ledger's schema is newer now; earlier programs refuse it");
    }
    Ok(connection)
}

/// What a check of the whole file finds first, by tree and page. None where it is sound.
async fn first_damage(connection: &mut SqliteConnection) -> Result<Option<String>, sqlx::Error> {
    let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(connection).await?;
    let found = verdict.trim_start_matches("*** in database main ***").trim().replace('\n', "; ");
    Ok((found != "ok").then_some(found))
}

/// An error of a start, with the page where it is the file that cannot be read: SQLite's own error names none.
pub(crate) async fn start_error(connection: &mut SqliteConnection, path: &Path, error: &sqlx::Error) -> LedgerError {
    if is_unreadable(error)
        && let Ok(Ok(Some(found))) = tokio::time::timeout(LONGEST_LOOK, first_damage(connection)).await
    {
        return LedgerError::Corrupt { path: path.to_owned(), reason: format!("{error} ({found})") };
    }
    open_error(path, error)
}

pub(crate) async fn number(connection: &mut SqliteConnection, sql: &'static str) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(sql).fetch_one(connection).await
}

async fn create(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(TABLES).execute(&mut *transaction).await?;
    sqlx::raw_sql(EVENT_INDEX).execute(&mut *transaction).await?;
    let versions = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};");
    sqlx::raw_sql(sqlx::AssertSqlSafe(versions)).execute(&mut *transaction).await?;
    transaction.commit().await
}

/// Makes a file of schema 1 one of this schema, in one transaction: wherever it is stopped, the file is of the one or the other. Rows stay as
/// they are.
async fn upgrade(connection: &mut SqliteConnection, new_indexes: bool) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    if new_indexes {
        sqlx::raw_sql(EVENT_INDEX).execute(&mut *transaction).await?;
        let old = "DROP INDEX IF EXISTS receipts_tenant_event; DROP INDEX IF EXISTS receipts_tenant_row;";
        sqlx::raw_sql(old).execute(&mut *transaction).await?;
    }
    let version = format!("PRAGMA user_version = {SCHEMA_VERSION}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(version)).execute(&mut *transaction).await?;
    transaction.commit().await
}
