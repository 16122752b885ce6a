//! The ledger's log on a disk that refuses pages of it (docs/adr/0058). Blocks that were refused once may stay marked as never written, though the disk takes
//! them the second time, and a power failure would end the log there. So nothing is written over them: they are given back, and others taken.
//! Promises that nothing that is committed leaves the log, wherever it is stopped.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sqlx::{Connection, SqliteConnection};

use crate::schema::{connect, number, with_suffix};

/// What SQLite calls its log, behind the name of the file. It takes no locks on it: another may open and close it.
const LOG: &str = "-wal";

/// A copy of the log that is whole and on the disk: it counts, and not the log, which is being written anew.
const KEPT: &str = "-wal.kept";

/// A copy that is being made: it says nothing.
const UNFINISHED: &str = "-wal.new";

/// Bytes of the log's header, and of that of each page in it (sqlite.org/fileformat2.html#the_write_ahead_log).
const HEADER_BYTES: u64 = 32;
const PAGE_HEADER_BYTES: u64 = 24;

/// Bytes that are copied at once. Never `io::copy`: of a file into a file it may have both share their blocks.
const COPIED_AT_ONCE: usize = 1 << 20;

/// Has the log end where what is committed ends. Every commit is synced before it counts, so what the disk refused stands behind that, and nobody reads it: a
/// reader that keeps its snapshot holds up nothing. The connection is in no transaction, and no earlier one of this writer is.
pub(crate) async fn cut(connection: &mut SqliteConnection, path: &Path) -> Result<(), sqlx::Error> {
    // Until it is cut nobody commits, whoever else has the file open.
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    let cut = cut_behind_commits(path).await;
    let ended = sqlx::query("ROLLBACK").execute(connection).await;
    cut.and(ended.map(drop))
}

async fn cut_behind_commits(path: &Path) -> Result<(), sqlx::Error> {
    // SQLite says how long its log is only where no transaction is open.
    let mut other = connect(path).await?;
    let end = committed_bytes(&mut other).await?;
    other.close().await?;
    let log = with_suffix(path, LOG);
    blocking(move || {
        let log = OpenOptions::new().write(true).open(log)?;
        if log.metadata()?.len() > end {
            log.set_len(end)?;
        }
        log.sync_all()
    })
    .await
}

/// Bytes of the log up to the end of the last commit in it.
async fn committed_bytes(connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    // What is read first makes SQLite open the log.
    number(connection, "SELECT count(*) FROM sqlite_schema").await?;
    let page = number(connection, "PRAGMA page_size").await?;
    let (pages, _) = length(connection).await?;
    match (u64::try_from(pages), u64::try_from(page)) {
        (Ok(0), _) => Ok(0),
        (Ok(pages), Ok(page)) => Ok(HEADER_BYTES + pages * (page + PAGE_HEADER_BYTES)),
        _ => Err(sqlx::Error::Protocol("the ledger has no log".to_owned())),
    }
}

/// How many pages of the log are committed, and how many of these are copied into the file. Does nothing but look.
pub(crate) async fn length(connection: &mut SqliteConnection) -> Result<(i64, i64), sqlx::Error> {
    // One row: (busy, pages in the log, pages copied).
    let (_, pages, copied): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(NOOP)").fetch_one(connection).await?;
    Ok((pages, copied))
}

/// Before anybody opens the file: a start that was stopped while it wrote the log anew left a copy that is whole.
pub(crate) fn take_up(path: &Path) -> std::io::Result<()> {
    remove(&with_suffix(path, UNFINISHED))?;
    let (log, kept) = (with_suffix(path, LOG), with_suffix(path, KEPT));
    if !kept.try_exists()? {
        return Ok(());
    }
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&log)?;
    match write_back(&mut file, &kept) {
        // Of whoever else has the log open, if anybody has.
        Err(error) if is_full(&error) => std::fs::rename(&kept, &log)?,
        written => {
            written.map_err(|error| said_of(&error, &kept))?;
            remove(&kept)?;
        }
    }
    sync_folder(path)
}

/// True where there is no room.
fn is_full(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// The same error, with the copy that has to go with the file wherever that goes.
fn said_of(error: &Error, kept: &Path) -> Error {
    Error::other(format!("{error}; {} has the log of the ledger, and goes with it", kept.display()))
}

/// At a start: what the start before left in the log may have been refused without anybody having been told, and reads as committed now. All of it is written
/// to other blocks; what stands behind the last commit is let go of unread. Without room for a copy it stays as it is.
pub(crate) async fn write_anew(connection: &mut SqliteConnection, path: &Path) -> Result<(), sqlx::Error> {
    if std::fs::metadata(with_suffix(path, LOG)).map_or(0, |log| log.len()) == 0 {
        return Ok(());
    }
    // A transaction that a dying predecessor still has under way ends before this begins.
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    let written = write_committed_anew(path).await;
    let ended = sqlx::query("ROLLBACK").execute(connection).await;
    written.and(ended.map(drop))
}

async fn write_committed_anew(path: &Path) -> Result<(), sqlx::Error> {
    let mut other = connect(path).await?;
    let end = committed_bytes(&mut other).await?;
    other.close().await?;
    let of = path.to_owned();
    blocking(move || match copy_and_write(&of, end) {
        Err(error) if is_full(&error) => {
            tracing::warn!(%error, path = %of.display(), "the disk has no room to write the ledger's log anew; it stays as it is");
            Ok(())
        }
        written => written,
    })
    .await
}

/// Of so many bytes.
fn copy_and_write(path: &Path, end: u64) -> std::io::Result<()> {
    let (kept, unfinished) = (with_suffix(path, KEPT), with_suffix(path, UNFINISHED));
    let mut log = match OpenOptions::new().read(true).write(true).open(with_suffix(path, LOG)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let copied = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished).and_then(|mut copy| {
        copy_bytes(&mut Read::by_ref(&mut log).take(end), &mut copy)?;
        // A disk without room that says so only now has refused what it had taken.
        copy.sync_all().map_err(Error::other)
    });
    if let Err(error) = copied {
        remove(&unfinished)?;
        return Err(error);
    }
    std::fs::rename(&unfinished, &kept).and_then(|()| sync_folder(path)).map_err(Error::other)?;
    // From here on the copy is what counts, until the log is whole again.
    write_back(&mut log, &kept).map_err(|error| said_of(&error, &kept))?;
    remove(&kept).and_then(|()| sync_folder(path)).map_err(Error::other)
}

/// In its place, so that whoever has the log open goes on in the same file.
fn write_back(log: &mut File, kept: &Path) -> std::io::Result<()> {
    log.set_len(0)?;
    log.rewind()?;
    copy_bytes(&mut File::open(kept)?, log)?;
    log.sync_all()
}

fn copy_bytes(from: &mut impl Read, to: &mut File) -> std::io::Result<()> {
    let mut buffer = vec![0; COPIED_AT_ONCE];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            read => to.write_all(&buffer[..read])?,
        }
    }
}

fn remove(file: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Has the disk take what was renamed or removed beside the file.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(folder)?.sync_all() {
        // Some file systems know no sync of a folder.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}

/// The disk may take its time: no thread that answers waits for it.
async fn blocking(work: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> Result<(), sqlx::Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| sqlx::Error::WorkerCrashed)?.map_err(sqlx::Error::Io)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::schema;

    async fn ledger(folder: &Path) -> (File, SqliteConnection) {
        let path = folder.join("ledger.db");
        (schema::lock(&path, Duration::from_secs(1)).await.unwrap(), schema::open(&path).await.unwrap())
    }

    async fn commit(connection: &mut SqliteConnection, shipped: i64) {
        sqlx::query("UPDATE outbox_position SET shipped = ?").bind(shipped).execute(connection).await.unwrap();
    }

    async fn shipped(connection: &mut SqliteConnection) -> i64 {
        number(connection, "SELECT shipped FROM outbox_position").await.unwrap()
    }

    #[tokio::test]
    async fn a_log_is_cut_behind_its_last_commit_while_somebody_reads_and_goes_on_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        let (_lock, mut connection) = ledger(folder.path()).await;
        commit(&mut connection, 1).await;
        let mut reader = connect(&path).await.unwrap();
        sqlx::raw_sql("BEGIN; SELECT shipped FROM outbox_position").execute(&mut reader).await.unwrap();
        commit(&mut connection, 2).await;
        let log = with_suffix(&path, LOG);
        let committed = std::fs::read(&log).unwrap();
        // As a commit leaves it whose pages were written, and that failed.
        OpenOptions::new().append(true).open(&log).unwrap().write_all(&[0xA5; 100_000]).unwrap();
        cut(&mut connection, &path).await.unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), committed);
        commit(&mut connection, 3).await;
        assert!(std::fs::metadata(&log).unwrap().len() > committed.len() as u64);
        assert_eq!((shipped(&mut reader).await, shipped(&mut connect(&path).await.unwrap()).await), (1, 3));

        // Of a log that was begun again the rest is of the one before it, which nobody needs.
        sqlx::raw_sql("ROLLBACK").execute(&mut reader).await.unwrap();
        sqlx::raw_sql("PRAGMA wal_checkpoint(RESTART)").execute(&mut connection).await.unwrap();
        commit(&mut connection, 4).await;
        cut(&mut connection, &path).await.unwrap();
        assert!(std::fs::metadata(&log).unwrap().len() < committed.len() as u64);
        commit(&mut connection, 5).await;
        assert_eq!((shipped(&mut reader).await, shipped(&mut connect(&path).await.unwrap()).await), (5, 5));
        sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await.unwrap();
        std::fs::write(&log, vec![0xA5_u8; 100_000]).unwrap();
        cut(&mut connection, &path).await.unwrap();
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
        commit(&mut connection, 6).await;
        assert_eq!((shipped(&mut reader).await, shipped(&mut connect(&path).await.unwrap()).await), (6, 6));
    }

    #[tokio::test]
    async fn a_log_that_is_written_anew_says_the_same_to_whoever_reads_and_writes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        let (_lock, mut connection) = ledger(folder.path()).await;
        commit(&mut connection, 1).await;
        let mut reader = connect(&path).await.unwrap();
        sqlx::raw_sql("BEGIN; SELECT shipped FROM outbox_position").execute(&mut reader).await.unwrap();
        let before = std::fs::read(with_suffix(&path, LOG)).unwrap();
        write_anew(&mut connection, &path).await.unwrap();
        assert_eq!(std::fs::read(with_suffix(&path, LOG)).unwrap(), before);
        commit(&mut connection, 2).await;
        assert_eq!((shipped(&mut reader).await, shipped(&mut connect(&path).await.unwrap()).await), (1, 2));
        assert!(!with_suffix(&path, KEPT).exists() && !with_suffix(&path, UNFINISHED).exists());
    }

    #[tokio::test]
    async fn a_start_that_was_stopped_while_it_wrote_the_log_anew_lost_nothing_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        let (_lock, mut connection) = ledger(folder.path()).await;
        commit(&mut connection, 7).await;
        let (file, log) = (std::fs::read(&path).unwrap(), std::fs::read(with_suffix(&path, LOG)).unwrap());
        // (the log, a copy that is whole, one that is not)
        let stopped = [
            (log.len(), None, Some(40)),
            (log.len(), Some(log.len()), None),
            (0, Some(log.len()), None),
            (4000, Some(log.len()), None),
        ];
        for (written, kept, unfinished) in stopped {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("ledger.db");
            std::fs::write(&path, &file).unwrap();
            std::fs::write(with_suffix(&path, LOG), &log[..written]).unwrap();
            for (suffix, bytes) in [(KEPT, kept), (UNFINISHED, unfinished)] {
                if let Some(bytes) = bytes {
                    std::fs::write(with_suffix(&path, suffix), &log[..bytes]).unwrap();
                }
            }
            let (_lock, mut connection) = ledger(folder.path()).await;
            assert_eq!(shipped(&mut connection).await, 7, "{written} {kept:?} {unfinished:?}");
            assert!(!with_suffix(&path, KEPT).exists() && !with_suffix(&path, UNFINISHED).exists());
        }
    }
}
