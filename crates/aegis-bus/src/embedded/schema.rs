//! The tables of the bus file, and how the writer's picture of them is read when it opens.
//! A message's key is its stream and sequence in one integer (`pos`), so that each stream is one range of one table.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use aegis_model::Timestamp;
use bytes::Bytes;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, Executor};

use super::file;
use super::kept::Source;
use super::kv::KvEntry;
use crate::{Bucket, BusError, Stream, StreamState};

/// Version of the tables, kept in `user_version`.
const SCHEMA_VERSION: i64 = 4;

/// Sequences take the low 48 bits of a `pos`: at a million messages a second, nine years.
const SEQ_BITS: u32 = 48;

/// Pages of 16 KiB hold five events each: of 8 KiB, two, with a quarter of it empty.
const PAGE_BYTES: u32 = 16384;

const TABLES: &str = "
CREATE TABLE streams (
    stream INTEGER PRIMARY KEY,
    identity TEXT NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    dropped INTEGER NOT NULL
);
CREATE TABLE messages (
    pos INTEGER PRIMARY KEY,
    subject TEXT NOT NULL,
    payload BLOB NOT NULL,
    bus_ts INTEGER NOT NULL
);
CREATE TABLE msg_ids (
    pos INTEGER PRIMARY KEY,
    stream INTEGER NOT NULL,
    msg_id TEXT NOT NULL,
    bus_ts INTEGER NOT NULL,
    retired INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX msg_ids_by_id ON msg_ids (stream, msg_id);
CREATE INDEX msg_ids_retired ON msg_ids (bus_ts) WHERE retired = 1;
CREATE TABLE subjects (
    stream INTEGER NOT NULL,
    subject TEXT NOT NULL,
    last_seq INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    PRIMARY KEY (stream, subject)
) WITHOUT ROWID;
CREATE TABLE consumers (
    stream INTEGER NOT NULL,
    name TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (stream, name)
) WITHOUT ROWID;
CREATE TABLE kv (
    bucket INTEGER NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    revision INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (bucket, key)
);
CREATE TABLE kv_revisions (bucket INTEGER PRIMARY KEY, revision INTEGER NOT NULL);
";

/// New in version 2: messages whose payload somebody else keeps, as runs of consecutive sequences and positions.
const KEPT_TABLES: &str = "
CREATE TABLE sources (
    source INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    last_position INTEGER NOT NULL,
    last_id TEXT NOT NULL
);
CREATE TABLE runs (
    pos INTEGER PRIMARY KEY,
    source INTEGER NOT NULL,
    first_position INTEGER NOT NULL,
    count INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    bus_ts INTEGER NOT NULL
);
CREATE INDEX runs_by_position ON runs (source, first_position);
";

/// New in version 3: the id of a run's last message; of older runs it is not known.
const RUN_IDS: &str = "
ALTER TABLE runs ADD COLUMN last_id TEXT NOT NULL DEFAULT '';
PRAGMA user_version = 3;
";

/// New in version 4: the ids of sealed events have their lane (docs/adr/0028). Earlier versions, to which they would be other messages, must not
/// open the file; the tables are the same.
const IDS_WITH_LANES: &str = "PRAGMA user_version = 4";

/// The number in `sources` under which is counted how often the disk was made to take everything: of no keeper.
pub(super) const SETTLED: i64 = -1;

/// Where a stream's messages begin in the key space.
pub(super) const fn base(stream: Stream) -> i64 {
    (stream.index() as i64) << SEQ_BITS
}

/// The key of a message.
pub(super) fn pos(stream: Stream, seq: u64) -> i64 {
    base(stream) + signed(seq)
}

/// The sequence in a key.
pub(super) fn seq_of(pos: i64) -> u64 {
    unsigned(pos & ((1 << SEQ_BITS) - 1))
}

/// SQLite's integers are signed; ours stay far below the difference.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The way back; a negative number in a column that has none reads as 0.
pub(super) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// The next commit has the disk take it, and all before it in the log, before it is answered. Behind 8 MiB of a new file it works the log into the file: a
/// checkpoint is part of a commit, and a large one would hold up everyone behind it.
pub(super) const SYNC_NOW: &str = "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 512";

/// That is left to a later commit. It works nothing into the file: SQLite tells nobody of an error of the disk that it meets there, and the system tells
/// it once.
pub(super) const SYNC_LATER: &str = "PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0";

/// How every connection to the file is opened.
pub(super) fn connect_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .page_size(PAGE_BYTES)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .pragma("wal_autocheckpoint", "512")
        .pragma("journal_size_limit", "67108864")
        .pragma("cache_size", "-65536")
        // A statement of many rows would otherwise make and remove a file in the system's temporary folder.
        .pragma("temp_store", "MEMORY")
}

/// What the writer knows without asking the file.
#[derive(Clone, Debug)]
pub(super) struct WriterState {
    pub(super) streams: [StreamState; 6],
    pub(super) consumers: HashMap<(Stream, String), u64>,
    pub(super) revisions: [u64; 4],
    pub(super) sources: HashMap<i64, Source>,
}

impl WriterState {
    /// Up to where every registered consumer has passed; 0 without any.
    pub(super) fn consumed(&self, stream: Stream) -> u64 {
        self.consumers.iter().filter(|((s, _), _)| *s == stream).map(|(_, position)| *position).min().unwrap_or(0)
    }
}

/// Everything that is read when the file is opened.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) state: WriterState,
    pub(super) identities: [String; 6],
    pub(super) kv: [Vec<(String, KvEntry)>; 4],
}

/// Creates the tables, or checks that this version knows them.
pub(super) async fn prepare(conn: &mut SqliteConnection, path: &Path) -> Result<(), BusError> {
    let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *conn).await?;
    match found {
        SCHEMA_VERSION => Ok(()),
        1..=3 => {
            let mut tx = conn.begin().await?;
            if found < 2 {
                tx.execute(sqlx::raw_sql(KEPT_TABLES)).await?;
            }
            if found < 3 {
                tx.execute(sqlx::raw_sql(RUN_IDS)).await?;
            }
            tx.execute(sqlx::raw_sql(IDS_WITH_LANES)).await?;
            tx.commit().await?;
            Ok(())
        }
        0 => {
            let mut tx = conn.begin().await?;
            tx.execute(sqlx::raw_sql(TABLES)).await?;
            tx.execute(sqlx::raw_sql(KEPT_TABLES)).await?;
            tx.execute(sqlx::raw_sql(RUN_IDS)).await?;
            tx.execute(sqlx::raw_sql(IDS_WITH_LANES)).await?;
            for stream in Stream::ALL {
                sqlx::query("INSERT INTO streams (stream, identity, first_seq, last_seq, messages, bytes, dropped) VALUES (?1, ?2, 1, 0, 0, 0, 0)")
                    .bind(signed(stream.index() as u64))
                    .bind(uuid::Uuid::now_v7().to_string())
                    .execute(&mut *tx)
                    .await?;
            }
            tx.commit().await?;
            Ok(())
        }
        _ => Err(BusError::SchemaTooNew { path: path.display().to_string(), found, known: SCHEMA_VERSION }),
    }
}

/// Works the whole log into the file at `path`, and begins another: what the disk has refused of it behind a commit's back is written elsewhere now. Nothing is
/// touched while the disk still refuses. For the writer alone, between two commits.
pub(super) async fn begin_log_anew(conn: &mut SqliteConnection, path: &Path) -> Result<(), BusError> {
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&mut *conn).await?;
    let page: i64 = sqlx::query_scalar("PRAGMA page_size").fetch_one(&mut *conn).await?;
    file::try_disk(path, unsigned(pages.saturating_mul(page))).await?;
    // One row: (busy, pages in the log, pages copied).
    let (busy, _, _): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(conn).await?;
    if busy == 0 { Ok(()) } else { Err(BusError::Unavailable { reason: "somebody reads its log".to_owned() }) }
}

/// Reads the writer's picture.
pub(super) async fn load(conn: &mut SqliteConnection) -> Result<Loaded, BusError> {
    let mut streams = [StreamState { first_seq: 1, ..StreamState::default() }; 6];
    let mut identities: [String; 6] = Default::default();
    let rows: Vec<(i64, String, i64, i64, i64, i64, i64)> =
        sqlx::query_as("SELECT stream, identity, first_seq, last_seq, messages, bytes, dropped FROM streams")
            .fetch_all(&mut *conn)
            .await?;
    for (stream, identity, first, last, messages, bytes, dropped) in rows {
        let Some(stream) = Stream::ALL.into_iter().find(|s| signed(s.index() as u64) == stream) else { continue };
        streams[stream.index()] = StreamState {
            first_seq: unsigned(first),
            last_seq: unsigned(last),
            messages: unsigned(messages),
            bytes: unsigned(bytes),
            dropped_total: unsigned(dropped),
        };
        identities[stream.index()] = identity;
    }

    let mut consumers = HashMap::new();
    let rows: Vec<(i64, String, i64)> =
        sqlx::query_as("SELECT stream, name, position FROM consumers").fetch_all(&mut *conn).await?;
    for (stream, name, position) in rows {
        let Some(stream) = Stream::ALL.into_iter().find(|s| signed(s.index() as u64) == stream) else { continue };
        consumers.insert((stream, name), unsigned(position));
    }

    let rows: Vec<(i64, String, i64, String)> =
        sqlx::query_as("SELECT source, name, last_position, last_id FROM sources WHERE source > ?1")
            .bind(SETTLED)
            .fetch_all(&mut *conn)
            .await?;
    let sources = rows
        .into_iter()
        .map(|(number, name, last_position, last_id)| (number, Source { name, last_position, last_id }))
        .collect();

    let mut revisions = [0; 4];
    let mut kv: [Vec<(String, KvEntry)>; 4] = Default::default();
    for bucket in Bucket::ALL {
        let index = signed(bucket.index() as u64);
        let revision: Option<i64> = sqlx::query_scalar("SELECT revision FROM kv_revisions WHERE bucket = ?1")
            .bind(index)
            .fetch_optional(&mut *conn)
            .await?;
        revisions[bucket.index()] = unsigned(revision.unwrap_or(0));
        let rows: Vec<(String, Vec<u8>, i64, i64)> =
            sqlx::query_as("SELECT key, value, revision, updated_at FROM kv WHERE bucket = ?1")
                .bind(index)
                .fetch_all(&mut *conn)
                .await?;
        kv[bucket.index()] = rows
            .into_iter()
            .map(|(key, value, revision, updated_at)| {
                let entry = KvEntry {
                    value: Bytes::from(value),
                    revision: unsigned(revision),
                    updated_at: Timestamp::from_micros(updated_at),
                };
                (key, entry)
            })
            .collect();
    }
    Ok(Loaded { state: WriterState { streams, consumers, revisions, sources }, identities, kv })
}
