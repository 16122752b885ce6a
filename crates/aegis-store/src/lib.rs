//! The control plane's tables, in SQLite files or in a Postgres database: who may do what, what is registered, held, approved, alerted, and what happened.
//! Promises: every query on tenant data names its tenant; a change and its outbox rows commit together or not at all.
//! Never decides anything: no policy, no roles, no HTTP; it keeps what it is told and answers what was kept.

mod agents;
mod alerts;
mod approval_consume;
mod approval_votes;
mod approvals;
mod bulk;
mod callbacks;
mod common_rules;
mod containment;
mod edge_lives;
mod edges;
mod error;
mod feed;
mod files;
mod history;
#[cfg(test)]
mod history_plans;
mod history_read;
mod history_write;
mod incidents;
mod keys;
mod line;
mod mcp;
mod outbox;
mod person;
mod pool;
mod postgres;
mod registry;
mod row;
mod rule_sets;
mod rules;
mod schema;
mod tenants;
mod text;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_model::{Clock, Timestamp};

use crate::bulk::BulkPool;
use crate::pool::{Pool, Transaction};

pub use agents::{AgentKey, RegisteredBy};
pub use approval_consume::ConsumeResult;
pub use approvals::{ApprovalRow, DecideResult, VoteResult};
pub use callbacks::{Callback, CallbackState};
pub use common_rules::{CommonRuleVersion, StandingCommonRule};
pub use containment::{AUTOMATIC_PREFIX, AutomaticHold};
pub use edge_lives::EdgeLife;
pub use edges::{EdgeKey, EdgePublicKeys, Enrolment};
pub use error::StoreError;
pub use feed::FeedEntry;
pub use history::{HistoryFilter, HistoryRow, Standing, Wire};
pub use history_read::LanePlace;
pub use incidents::{PendingAction, entity_of};
pub use keys::{NewKey, Principal, Role};
pub use outbox::OutboxRow;
pub use person::same_person;
pub use rule_sets::{RuleSetChange, RuleSetRow, UntoldTenant};
pub use rules::{MAX_RULE_NOTE, MAX_RULE_TEXT, NewRuleVersion, RuleChange, RuleRefusal, RuleVersion, StandingRule};
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
    dialect: Dialect,
    /// What it is called: a path, or a server and its database.
    place: String,
    /// One connection: writers queue here instead of fighting for SQLite's lock.
    writer: Pool,
    readers: Pool,
    /// Connects when it is first used: SQLite's thread then has the priority of whoever fills the history.
    history_writer: BulkPool,
    history_readers: Pool,
    clock: Arc<dyn Clock>,
    key_cache: keys::KeyCache,
}

/// Which database it is. Statements are the same text for both; how a transaction begins is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    const fn begin_write(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN ISOLATION LEVEL READ COMMITTED",
        }
    }

    const fn begin_read(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN",
            Self::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        }
    }
}

/// The connections of a store.
struct Connections {
    dialect: Dialect,
    writer: Pool,
    readers: Pool,
    history_writer: BulkPool,
    history_readers: Pool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("place", &self.inner.place).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at `path` and its history beside it, creating files (mode 0600) and tables when missing and migrating older
    /// ones.
    ///
    /// # Errors
    /// `SchemaTooNew` when a newer program wrote the file, `Corrupt` when it is damaged or not a store.
    pub async fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let place = path.display().to_string();
        let connections = files::open(path, clock.now()).await.map_err(|error| match error {
            StoreError::Database(source) => StoreError::Opening { place: place.clone(), source },
            other => other,
        })?;
        Ok(Self::over(connections, place, clock))
    }

    /// Opens the store in a Postgres database, creating tables when missing and migrating older ones. `url`:
    /// `postgres://user:password@host:port/database`, with the parameters of libpq (`sslmode`, `sslrootcert`, ...). `patience`: how long a
    /// statement may go without an answer; it fails then, and what was asked may have been done. Those of the history have three times as long.
    ///
    /// # Errors
    /// `Server` when it cannot be reached, or keeps texts in another encoding than UTF-8; `SchemaTooNew` when a newer program wrote it.
    /// No error repeats the password.
    pub async fn connect(url: &Secret, patience: Duration, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let place = postgres::name_of(url.expose())?;
        let connections = postgres::connect(url.expose(), &place, patience, clock.now()).await?;
        Ok(Self::over(connections, place, clock))
    }

    fn over(connections: Connections, place: String, clock: Arc<dyn Clock>) -> Self {
        let Connections { dialect, writer, readers, history_writer, history_readers } = connections;
        let key_cache = keys::KeyCache::default();
        Self { inner: Arc::new(Inner { dialect, place, writer, readers, history_writer, history_readers, clock, key_cache }) }
    }

    /// What the store is called, in logs and errors: its file, or its server and database.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.inner.place
    }

    /// True for a store in files of this machine, which other machines cannot read.
    #[must_use]
    pub fn is_on_this_machine(&self) -> bool {
        self.inner.dialect == Dialect::Sqlite
    }

    /// Waits for running statements and closes every connection. Calls on other clones fail from then on.
    pub async fn close(&self) {
        let Inner { readers, writer, history_readers, history_writer, .. } = &*self.inner;
        for pool in [readers, writer, history_readers] {
            pool.close().await;
        }
        history_writer.close().await;
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

    /// A number that is greater than any that was asked for before, and than every revision.
    pub async fn next_start(&self) -> Result<i64, StoreError> {
        let mut tx = self.begin_write().await?;
        let start = next_revision(&mut tx).await?;
        tx.commit().await?;
        Ok(start)
    }

    fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// A write transaction: what it reads is still true when it writes, since no two are open at once.
    async fn begin_write(&self) -> Result<Transaction, StoreError> {
        let mut tx = self.inner.writer.begin(self.inner.dialect.begin_write()).await?;
        if self.inner.dialect == Dialect::Postgres {
            // Several processes may write: each waits here for the one before, and every later statement sees what that one committed.
            sqlx::query("SELECT value FROM revision WHERE id = 1 FOR UPDATE").execute(&mut *tx).await?;
        }
        Ok(tx)
    }

    /// A read transaction: its statements see one state of the database.
    async fn begin_read(&self) -> Result<Transaction, StoreError> {
        Ok(self.inner.readers.begin(self.inner.dialect.begin_read()).await?)
    }
}

/// Takes the next revision.
async fn next_revision(tx: &mut Transaction) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("UPDATE revision SET value = value + 1 WHERE id = 1 RETURNING value").fetch_one(&mut **tx).await?)
}

/// A page's limit and offset as bind values.
fn page(limit: u32, offset: u32) -> (i64, i64) {
    (i64::from(limit.min(MAX_PAGE)), i64::from(offset))
}
