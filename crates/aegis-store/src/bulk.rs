//! What is written in bulk: a statement's values, for the kind of connection that they go to. To a file they go as SQLite's own: as values of any database
//! each text was copied twice on its way, which was a tenth of what the history cost.

use std::sync::Arc;

use sqlx::error::BoxDynError;
use sqlx::{Any, Arguments, AssertSqlSafe, Database, Sqlite, SqliteConnection, SqlitePool};

use crate::pool::{Connection, Pool, Transaction};

/// Connections that write in bulk.
#[derive(Debug)]
pub(crate) enum BulkPool {
    File(SqlitePool),
    Server(Pool),
}

/// A transaction; rolled back where it is dropped.
#[derive(Debug)]
pub(crate) enum BulkTransaction {
    File(sqlx::Transaction<'static, Sqlite>),
    Server(Transaction),
}

/// Where the values of a statement go.
enum Values<'t> {
    File(&'t mut SqliteConnection, <Sqlite as Database>::Arguments),
    Server(&'t mut Connection, <Any as Database>::Arguments),
}

/// A statement in the making: its values, in the order of their places.
pub(crate) struct Bulk<'t> {
    values: Values<'t>,
    refused: Option<BoxDynError>,
}

impl BulkPool {
    /// Begins a transaction with `statement`.
    pub(crate) async fn begin(&self, statement: &'static str) -> sqlx::Result<BulkTransaction> {
        Ok(match self {
            Self::File(pool) => BulkTransaction::File(pool.begin_with(statement).await?),
            Self::Server(pool) => BulkTransaction::Server(pool.begin(statement).await?),
        })
    }

    /// Waits for what runs, and closes every connection.
    pub(crate) async fn close(&self) {
        match self {
            Self::File(pool) => pool.close().await,
            Self::Server(pool) => pool.close().await,
        }
    }
}

impl BulkTransaction {
    /// Begins a statement that will have so many values.
    pub(crate) fn statement(&mut self, count: usize) -> Bulk<'_> {
        let values = match self {
            Self::File(transaction) => {
                let mut arguments = <Sqlite as Database>::Arguments::default();
                Arguments::reserve(&mut arguments, count, 0);
                Values::File(transaction, arguments)
            }
            Self::Server(transaction) => {
                let mut arguments = <Any as Database>::Arguments::default();
                Arguments::reserve(&mut arguments, count, 0);
                Values::Server(transaction, arguments)
            }
        };
        Bulk { values, refused: None }
    }

    /// Commits. An error that is no word of the database's leaves open whether it did.
    pub(crate) async fn commit(self) -> sqlx::Result<()> {
        match self {
            Self::File(transaction) => transaction.commit().await,
            Self::Server(transaction) => transaction.commit().await,
        }
    }
}

impl Bulk<'_> {
    /// The next value: a text.
    pub(crate) fn text(self, value: Option<&str>) -> Self {
        self.with(|values| match values {
            // A borrowed one would be copied, and its copy put into another piece of memory.
            Values::File(_, arguments) => Arguments::add(arguments, value.map(Arc::<str>::from)),
            Values::Server(_, arguments) => Arguments::add(arguments, value),
        })
    }

    /// The next value: a text that others have too.
    pub(crate) fn shared(self, value: Option<Arc<str>>) -> Self {
        self.with(|values| match values {
            Values::File(_, arguments) => Arguments::add(arguments, value),
            Values::Server(_, arguments) => Arguments::add(arguments, value.as_deref()),
        })
    }

    /// The next value: a number.
    pub(crate) fn number(self, value: Option<i64>) -> Self {
        self.with(|values| match values {
            Values::File(_, arguments) => Arguments::add(arguments, value),
            Values::Server(_, arguments) => Arguments::add(arguments, value),
        })
    }

    /// The next value: bytes.
    pub(crate) fn bytes(self, value: &[u8]) -> Self {
        self.with(|values| match values {
            Values::File(_, arguments) => Arguments::add(arguments, value),
            Values::Server(_, arguments) => Arguments::add(arguments, value),
        })
    }

    fn with(mut self, value: impl FnOnce(&mut Values<'_>) -> Result<(), BoxDynError>) -> Self {
        if self.refused.is_none() {
            self.refused = value(&mut self.values).err();
        }
        self
    }

    /// Has the database do it; how many rows it changed.
    pub(crate) async fn execute(self, statement: Arc<str>) -> sqlx::Result<u64> {
        if let Some(refused) = self.refused {
            return Err(sqlx::Error::Encode(refused));
        }
        let statement = AssertSqlSafe(statement);
        Ok(match self.values {
            Values::File(connection, arguments) => {
                sqlx::query_with::<Sqlite, _>(statement, arguments).execute(connection).await?.rows_affected()
            }
            Values::Server(connection, arguments) => {
                sqlx::query_with::<Any, _>(statement, arguments).execute(connection).await?.rows_affected()
            }
        })
    }
}
