//! Where statements go: the pool of a file, which is on this machine, or lines to a server, where each has an end in sight.
//! Both are executors, so that a query need not know which it is.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryFutureExt};
use sqlx::any::{AnyQueryResult, AnyRow, AnyStatement, AnyTypeInfo};
use sqlx::{Any, AnyPool, Either, Execute, Executor, SqlStr};

use crate::line::{Line, Lines};

/// A part of an answer: how many rows a statement changed, or a row.
pub(crate) type Step = Either<AnyQueryResult, AnyRow>;

/// Connections of one kind. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Pool {
    File(AnyPool),
    Server(Arc<Lines>),
}

/// The connection of a transaction.
#[derive(Debug)]
pub(crate) enum Connection {
    File(sqlx::Transaction<'static, Any>),
    Server(Line),
}

/// A transaction; rolled back where it is dropped.
#[derive(Debug)]
pub(crate) struct Transaction(Connection);

impl Pool {
    /// Begins a transaction with `statement`.
    pub(crate) async fn begin(&self, statement: &'static str) -> sqlx::Result<Transaction> {
        let connection = match self {
            Self::File(pool) => Connection::File(pool.begin_with(statement).await?),
            Self::Server(lines) => Connection::Server(lines.begin(statement).await?),
        };
        Ok(Transaction(connection))
    }

    /// Waits for what runs, and closes every connection.
    pub(crate) async fn close(&self) {
        match self {
            Self::File(pool) => pool.close().await,
            Self::Server(lines) => lines.close().await,
        }
    }
}

impl Transaction {
    /// Commits. An error that is no word of the database's leaves open whether it did.
    pub(crate) async fn commit(self) -> sqlx::Result<()> {
        match self.0 {
            Connection::File(transaction) => transaction.commit().await,
            Connection::Server(line) => line.commit().await,
        }
    }
}

impl Deref for Transaction {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}

/// An answer that has arrived whole, as the stream that an executor gives.
fn steps<'e>(answer: impl Future<Output = sqlx::Result<Vec<Step>>> + Send + 'e) -> BoxStream<'e, sqlx::Result<Step>> {
    answer.map_ok(|whole| stream::iter(whole.into_iter().map(Ok::<Step, sqlx::Error>))).try_flatten_stream().boxed()
}

impl<'p> Executor<'p> for &'p Pool {
    type Database = Any;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Step>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Any>,
    {
        match self {
            Pool::File(pool) => pool.fetch_many(query),
            Pool::Server(lines) => steps(async move {
                let mut line = lines.take().await?;
                line.ask(query).await
            }),
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<AnyRow>>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Any>,
    {
        match self {
            Pool::File(pool) => pool.fetch_optional(query),
            Pool::Server(lines) => Box::pin(async move {
                let mut line = lines.take().await?;
                line.ask_for_one(query).await
            }),
        }
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [AnyTypeInfo]) -> BoxFuture<'e, sqlx::Result<AnyStatement>>
    where
        'p: 'e,
    {
        match self {
            Pool::File(pool) => pool.prepare_with(sql, parameters),
            Pool::Server(lines) => Box::pin(async move {
                let mut line = lines.take().await?;
                line.prepare(sql, parameters).await
            }),
        }
    }
}

impl<'c> Executor<'c> for &'c mut Connection {
    type Database = Any;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Step>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        match self {
            Connection::File(transaction) => (&mut **transaction).fetch_many(query),
            Connection::Server(line) => steps(line.ask(query)),
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<AnyRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        match self {
            Connection::File(transaction) => (&mut **transaction).fetch_optional(query),
            Connection::Server(line) => Box::pin(line.ask_for_one(query)),
        }
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [AnyTypeInfo]) -> BoxFuture<'e, sqlx::Result<AnyStatement>>
    where
        'c: 'e,
    {
        match self {
            Connection::File(transaction) => (&mut **transaction).prepare_with(sql, parameters),
            Connection::Server(line) => Box::pin(line.prepare(sql, parameters)),
        }
    }
}
