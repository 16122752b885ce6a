//! The control plane's tables (SQLite): who may do what, what is registered, held, approved, alerted, and what happened.
//! Promises: every query on tenant data names its tenant; a change and its outbox rows commit together or not at all.
//! Never decides anything: no policy, no roles, no HTTP; it keeps what it is told and answers what was kept.

mod agents;
mod alerts;
mod approval_votes;
mod approvals;
mod containment;
mod edges;
mod error;
mod feed;
mod history;
mod incidents;
mod keys;
mod mcp;
mod open;
mod outbox;
mod registry;
mod row;
mod schema;
mod tenants;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aegis_model::{Clock, Timestamp};
use sqlx::{Sqlite, SqlitePool, Transaction};

pub use approvals::{ApprovalRow, ConsumeResult, DecideResult, VoteResult};
pub use containment::{AUTOMATIC_PREFIX, AutomaticHold};
pub use edges::{EdgeKey, EdgePublicKeys, Enrolment};
pub use error::StoreError;
pub use feed::FeedEntry;
pub use history::{HistoryFilter, HistoryRow, Wire};
pub use incidents::{PendingAction, entity_of};
pub use keys::{Principal, Role};
pub use outbox::OutboxRow;
pub use tenants::Secret;

/// The most rows one list call returns, whatever limit was asked for.
pub const MAX_PAGE: u32 = 1000;

/// The most entries of one kind (tools, MCP servers, channels, resources, agents) a tenant may register.
pub const MAX_REGISTERED: i64 = 100_000;

/// A handle on the store; clones share one set of connections.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    /// One connection: writers queue here instead of fighting for SQLite's lock.
    writer: SqlitePool,
    readers: SqlitePool,
    history_writer: SqlitePool,
    history_readers: SqlitePool,
    clock: Arc<dyn Clock>,
    key_cache: keys::KeyCache,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at `path` and its history beside it, creating files (mode 0600) and tables when missing and migrating older
    /// ones.
    ///
    /// # Errors
    /// `SchemaTooNew` when a newer program wrote the file, `Corrupt` when it is damaged or not a store.
    pub async fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let open::Connections { writer, readers, history_writer, history_readers } = open::open(path, clock.now()).await?;
        let key_cache = keys::KeyCache::default();
        let path = path.to_owned();
        Ok(Self { inner: Arc::new(Inner { path, writer, readers, history_writer, history_readers, clock, key_cache }) })
    }

    /// Waits for running statements and closes every connection. Calls on other clones fail from then on.
    pub async fn close(&self) {
        let Inner { readers, writer, history_readers, history_writer, .. } = &*self.inner;
        for pool in [readers, writer, history_readers, history_writer] {
            pool.close().await;
        }
    }

    /// Answers when the database does.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.inner.readers).await?;
        Ok(())
    }

    /// The highest revision given out so far.
    pub async fn revision(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar("SELECT value FROM revision WHERE id = 1").fetch_one(&self.inner.readers).await?)
    }

    fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// A write transaction. IMMEDIATE: what it reads is still true when it writes.
    async fn begin_write(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.inner.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// A read transaction: its statements see one state of the database.
    async fn begin_read(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.inner.readers.begin().await?)
    }
}

/// Takes the next revision.
async fn next_revision(tx: &mut Transaction<'static, Sqlite>) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("UPDATE revision SET value = value + 1 WHERE id = 1 RETURNING value").fetch_one(&mut **tx).await?)
}

/// A page's limit and offset as bind values.
fn page(limit: u32, offset: u32) -> (i64, i64) {
    (i64::from(limit.min(MAX_PAGE)), i64::from(offset))
}
