//! The disk side of the writer: one transaction per batch, and what to believe when one fails. A COMMIT that gave an error may or
//! may not have happened; the disk is asked before anything else is written.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_model::{EventId, TenantId, Timestamp};
use sqlx::{Connection, SqliteConnection};
use tokio::time::Instant;

use crate::LedgerError;
use crate::config::TestHooks;
use crate::error::{is_duplicate, is_refused_write};
use crate::log;
use crate::rows::{commit_plain, is_plain, write_batch};
use crate::schema;
use crate::seal::SealedBatch;
use crate::stats::Counters;

/// Bytes that a probe writes: more than any row needs, so that a disk with room for a few bytes only does not look well.
const PROBE_BYTES: i64 = 128 << 10;

/// How often a busy writer notes the shipped position.
const SHIPPED_EVERY: Duration = Duration::from_millis(200);

/// Frozen actions hold raw parameters: those that were shipped and can no longer be approved have no use here.
const COMMIT_SHIPPED: &str =
    "UPDATE outbox_position SET shipped = ?; DELETE FROM approval_outbox WHERE row <= ? AND expires_at < ?; COMMIT";

/// How long to wait before a busy log is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Why a batch is not known to be durable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// Nothing was written: an event already has a receipt.
    #[error("an event already has a receipt")]
    Duplicate,
    /// Nothing was written.
    #[error("{0}")]
    Failed(String),
    /// It may be on the disk, and the disk cannot be asked.
    #[error("{0}; whether it was written is not known yet")]
    InDoubt(String),
}

/// The writing connection.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) connection: SqliteConnection,
    /// The shipped position as the file has it.
    pub(crate) shipped: i64,
    pub(crate) shipped_at: Instant,
    /// True after an error of the disk, until the log was cut behind what is committed: pages that were refused stand there, and what would be written over
    /// them would not outlive the power (docs/adr/0058). Nothing is committed meanwhile.
    pub(crate) log_in_doubt: bool,
    pub(crate) hooks: TestHooks,
}

impl Disk {
    pub(crate) fn shipped_is_behind(&self, counters: &Counters) -> bool {
        counters.shipped_row.load(Ordering::Acquire) > self.shipped
    }

    /// Writes a batch and the shipped position in one transaction. `Ok` means that it is on the disk.
    pub(crate) async fn write(
        &mut self,
        batch: Option<&SealedBatch>,
        counters: &Counters,
        now: Timestamp,
    ) -> Result<(), WriteError> {
        let shipped = counters.shipped_row.load(Ordering::Acquire);
        let takes_shipped = self.takes_shipped_along(batch, shipped);
        let plain = batch.filter(|batch| !takes_shipped && is_plain(batch));
        let mut answer = match plain {
            Some(batch) => self.write_plain(batch).await?,
            None => {
                if let Err(error) = self.fill_transaction(batch).await {
                    return Err(self.roll_back(&error).await);
                }
                self.end_transaction(takes_shipped.then_some(shipped), now).await
            }
        };
        let fault = self.hooks.commit_fault.as_ref().map_or(0, |fault| fault.swap(0, Ordering::AcqRel));
        if fault > 0 {
            answer = Err(sqlx::Error::WorkerCrashed);
        }
        if let Err(error) = answer {
            self.note(&error);
            let durable = match batch {
                Some(_) if fault > 1 => Err(LedgerError::Unavailable(error.to_string())),
                Some(batch) => self.settle(batch.commit.commit_id).await,
                None => {
                    let _ = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
                    Ok(false)
                }
            };
            match durable {
                Ok(true) => {}
                Ok(false) => return Err(WriteError::Failed(error.to_string())),
                Err(_) => return Err(WriteError::InDoubt(error.to_string())),
            }
        }
        if takes_shipped {
            self.shipped = shipped;
            self.shipped_at = Instant::now();
        }
        Ok(())
    }

    /// Takes note of what an error says of the disk.
    pub(crate) fn note(&mut self, error: &sqlx::Error) {
        self.log_in_doubt |= is_refused_write(error);
    }

    /// A commit takes the shipped position along, but not every one: what is lost of it is only shipped again.
    fn takes_shipped_along(&self, batch: Option<&SealedBatch>, shipped: i64) -> bool {
        shipped > self.shipped && (batch.is_none() || self.shipped_at.elapsed() >= SHIPPED_EVERY)
    }

    /// The whole transaction at once; its answer is the commit's, unless it is known that it did not come so far.
    async fn write_plain(&mut self, batch: &SealedBatch) -> Result<Result<(), sqlx::Error>, WriteError> {
        if let Err(error) = self.apply_page_limit().await {
            return Err(self.roll_back(&error).await);
        }
        match commit_plain(&mut self.connection, batch).await {
            Err(error) if is_duplicate(&error) => Err(self.roll_back(&error).await),
            answer => Ok(answer),
        }
    }

    async fn roll_back(&mut self, error: &sqlx::Error) -> WriteError {
        self.note(error);
        let _ = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
        if is_duplicate(error) { WriteError::Duplicate } else { WriteError::Failed(error.to_string()) }
    }

    async fn fill_transaction(&mut self, batch: Option<&SealedBatch>) -> Result<(), sqlx::Error> {
        self.apply_page_limit().await?;
        match batch {
            Some(batch) => write_batch(&mut self.connection, batch).await,
            None => sqlx::query("BEGIN IMMEDIATE").execute(&mut self.connection).await.map(drop),
        }
    }

    /// Commits, with the shipped position if it is taken along: one way to the connection's thread. An error says nothing of how far it came.
    async fn end_transaction(&mut self, shipped: Option<i64>, now: Timestamp) -> Result<(), sqlx::Error> {
        let Some(shipped) = shipped else { return sqlx::query("COMMIT").execute(&mut self.connection).await.map(drop) };
        let query = sqlx::query(COMMIT_SHIPPED).bind(shipped).bind(shipped).bind(now.as_micros());
        query.execute(&mut self.connection).await.map(drop)
    }

    /// After a COMMIT that gave an error: true if the commit is there. A write of our own then makes sure that the log up to it
    /// is synced, because the error may have been that sync's.
    pub(crate) async fn settle(&mut self, commit_id: i64) -> Result<bool, LedgerError> {
        let unavailable = |e: sqlx::Error| LedgerError::Unavailable(e.to_string());
        let _ = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
        let found = match self.commit_exists(commit_id).await {
            Ok(found) => found,
            Err(_) => {
                self.connection = schema::connect(&self.path).await.map_err(unavailable)?;
                self.commit_exists(commit_id).await.map_err(unavailable)?
            }
        };
        if found {
            self.probe().await?;
        }
        Ok(found)
    }

    async fn commit_exists(&mut self, commit_id: i64) -> Result<bool, sqlx::Error> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM commits WHERE commit_id = ?")
            .bind(commit_id)
            .fetch_one(&mut self.connection)
            .await?;
        Ok(count > 0)
    }

    /// Behind an error of the disk, has the log end where what is committed ends.
    pub(crate) async fn put_log_in_order(&mut self) -> Result<(), LedgerError> {
        let unavailable = |e: sqlx::Error| LedgerError::Unavailable(e.to_string());
        if self.log_in_doubt {
            // The one before it may still be in the transaction that failed; it lets go of it.
            self.connection = schema::connect(&self.path).await.map_err(unavailable)?;
            log::cut(&mut self.connection, &self.path).await.map_err(unavailable)?;
            self.log_in_doubt = false;
            tracing::warn!(ledger = %self.path.display(), "the ledger's log ends behind its last commit now; what the disk refused is given back to it");
        }
        Ok(())
    }

    /// Tries a write of some size, which leaves nothing behind, once the log is in order.
    pub(crate) async fn probe(&mut self) -> Result<(), LedgerError> {
        let unavailable = |e: sqlx::Error| LedgerError::Unavailable(e.to_string());
        self.put_log_in_order().await?;
        let probed = self.try_probe().await;
        if let Err(error) = &probed {
            self.note(error);
            let _ = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
            if self.connection.ping().await.is_err()
                && let Ok(fresh) = schema::connect(&self.path).await
            {
                self.connection = fresh;
            }
        }
        probed.map_err(unavailable)
    }

    async fn try_probe(&mut self) -> Result<(), sqlx::Error> {
        self.apply_page_limit().await?;
        sqlx::query("BEGIN IMMEDIATE").execute(&mut self.connection).await?;
        sqlx::query("INSERT INTO write_probe (one, filler) VALUES (1, zeroblob(?))")
            .bind(PROBE_BYTES)
            .execute(&mut self.connection)
            .await?;
        sqlx::query("DELETE FROM write_probe").execute(&mut self.connection).await?;
        sqlx::query("COMMIT").execute(&mut self.connection).await.map(drop)
    }

    async fn apply_page_limit(&mut self) -> Result<(), sqlx::Error> {
        let Some(limit) = &self.hooks.page_limit else { return Ok(()) };
        let pages = match limit.load(Ordering::Acquire) {
            0 => u32::MAX - 1,
            pages => pages,
        };
        let pragma = format!("PRAGMA max_page_count = {pages}");
        sqlx::query(sqlx::AssertSqlSafe(pragma)).execute(&mut self.connection).await.map(drop)
    }

    pub(crate) async fn has_receipt(&mut self, tenant: &TenantId, event_id: EventId) -> Result<bool, sqlx::Error> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM receipts WHERE tenant_id = ? AND event_id = ?")
            .bind(tenant.as_str())
            .bind(event_id.as_bytes().as_slice())
            .fetch_one(&mut self.connection)
            .await?;
        Ok(count > 0)
    }

    /// Deletes a tenant's commitment key from the file.
    pub(crate) async fn delete_commitment_key(&mut self, tenant: &TenantId) -> Result<(), LedgerError> {
        let deleted = sqlx::query("DELETE FROM commitment_keys WHERE tenant_id = ?")
            .bind(tenant.as_str())
            .execute(&mut self.connection)
            .await;
        deleted.map(drop).map_err(|error| {
            self.note(&error);
            LedgerError::Unavailable(error.to_string())
        })
    }

    /// Empties the log, so that no earlier copy of a deleted page stays in it.
    pub(crate) async fn truncate_log(&mut self) -> Result<(), LedgerError> {
        // Another checkpoint at work makes SQLite answer busy at once; only a reader that stays is a reason to give up.
        let deadline = Instant::now() + schema::BUSY_TIMEOUT;
        loop {
            // One row: (busy, pages in the log, pages copied).
            let emptied = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut self.connection).await;
            let (busy, _, _): (i64, i64, i64) = emptied.map_err(|error| {
                self.note(&error);
                LedgerError::Unavailable(error.to_string())
            })?;
            if busy == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let reason = "the key is deleted, but a reader keeps an older page in the log; ask again";
                return Err(LedgerError::Unavailable(reason.to_owned()));
            }
            tokio::time::sleep(BUSY_PAUSE).await;
        }
    }
}
