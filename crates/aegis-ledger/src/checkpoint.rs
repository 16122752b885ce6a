//! Checkpoints: the ledger's log is copied back into its file, beside the writer, who does the short end of it himself between two commits, and all of it where
//! nobody else does. None is part of a commit: SQLite tells nobody of an error of the disk that it meets there. Where a checkpoint meets one, the ledger does
//! not write until another has succeeded (docs/adr/0058).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::SqliteConnection;

use crate::error::{is_corruption, is_disk_error};
use crate::log;
use crate::schema::connect;
use crate::shared::Shared;
use crate::writer::Writer;

/// Pages of the log (64 MiB of a new file) from which on the writer copies them itself. Many, because the checkpointer usually comes first: a checkpoint of
/// this size between two commits holds up every answer for a tenth of a second.
const LONG_LOG_PAGES: i64 = 8192;

/// Groups after which the writer looks how long the log is: of a receipt each they add some eight pages.
const GROUPS_BETWEEN_LOOKS: u32 = 256;

/// Bytes of rows' texts after which the checkpointer is woken: few, so that a checkpoint stays short.
const LOG_STEP: usize = 2 << 20;

/// What of the log a writer may copy itself: two mebibytes.
const SHORT_TAIL_PAGES: i64 = 256;

/// How often the checkpointer tries to catch a moment between two commits before it leaves the tail to the writer.
const MOST_TAILS: usize = 8;

/// How often the checkpointer looks at a log that did not grow much.
const CHECKPOINT_IDLE: Duration = Duration::from_millis(500);

/// Copies the log back into the file beside the writer, whenever the writer says that it has grown and now and then when nobody
/// does; tells it when only a short tail is left, because only a checkpoint that no commit overlaps lets the log start again.
/// Ends when it is dropped or the file goes bad; the writer's own checkpoint is the fallback.
pub(crate) async fn checkpoint(path: PathBuf, shared: Arc<Shared>) {
    let mut connection = match connect(&path).await {
        Ok(connection) => connection,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "ledger checkpointer cannot start; the writer checkpoints itself");
            return;
        }
    };
    let mut failing = false;
    loop {
        let grown = tokio::time::timeout(CHECKPOINT_IDLE, shared.log_grown.notified()).await.is_ok();
        let checkpointed = checkpoint_to_the_end(&mut connection).await;
        match &checkpointed {
            // Pages that a reader still needs, or that came meanwhile in bulk, are no short tail.
            Ok(left) => shared.tail_left.store(grown && (1..=SHORT_TAIL_PAGES).contains(left), Ordering::Release),
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, path = %path.display(), "ledger checkpoints fail");
                }
                shared.checkpoint_failed(is_disk_error(error));
                if is_corruption(error) {
                    return;
                }
            }
        }
        failing = checkpointed.is_err();
    }
}

/// Copies, and copies what was committed meanwhile, until no commit came between or it was tried often enough; how many pages are left.
async fn checkpoint_to_the_end(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    let mut left = checkpoint_once(connection).await?;
    for _ in 0..MOST_TAILS {
        if !(1..=SHORT_TAIL_PAGES).contains(&left) {
            break;
        }
        left = checkpoint_once(connection).await?;
    }
    Ok(left)
}

/// Where another checkpoint is at work.
const BUSY: i64 = i64::MAX;

/// Copies what no reader still needs from the log into the file; how many pages are left to copy. Waits for nobody.
async fn checkpoint_once(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    // One row: (busy, pages in the log, pages copied).
    let (busy, pages, copied): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(connection).await?;
    Ok(if busy == 0 { pages - copied } else { BUSY })
}

impl Writer {
    /// Between commits, when everyone has their answer: the short end of a checkpoint, so that the log can start again; the whole of it where the log is long.
    pub(crate) async fn shorten_log(&mut self) {
        self.groups_since_look += 1;
        let has_grown = self.log_bytes >= LOG_STEP;
        if has_grown {
            self.log_bytes = 0;
            self.shared.log_grown.notify_one();
        }
        let is_tail_left = !has_grown && self.shared.tail_left.swap(false, Ordering::AcqRel);
        if is_tail_left || self.is_log_long(has_grown).await {
            self.checkpoint().await;
        }
    }

    /// Whether so much of the log waits that nobody else seems to copy it. Looks now and then only.
    async fn is_log_long(&mut self, has_grown: bool) -> bool {
        if !self.writable() || (!has_grown && self.groups_since_look < GROUPS_BETWEEN_LOOKS) {
            return false;
        }
        self.groups_since_look = 0;
        let length = log::length(&mut self.disk.connection).await;
        length.is_ok_and(|(pages, copied)| pages >= LONG_LOG_PAGES && copied < pages)
    }

    /// Copies what can be copied; whether all of the log is in the file now.
    pub(crate) async fn checkpoint(&mut self) -> bool {
        match checkpoint_once(&mut self.disk.connection).await {
            Ok(left) => left == 0,
            Err(error) => {
                // Said once of a disk that refuses it again and again.
                if !self.shared.checkpoint_refused.load(Ordering::Acquire) {
                    tracing::warn!(%error, ledger = %self.config.path.display(), "the log could not be shortened; it is tried again");
                }
                self.shared.checkpoint_failed(is_disk_error(&error));
                false
            }
        }
    }
}
