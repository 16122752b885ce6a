//! Opens a store in a Postgres database: what it must be, how its connections are set up, schema. Names and errors never hold the password.

use std::time::Duration;

use aegis_model::Timestamp;
use futures_util::future::BoxFuture;
use sqlx::any::AnyConnectOptions;
use sqlx::{AnyConnection, ConnectOptions, Connection};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::bulk::BulkPool;
use crate::line::Lines;
use crate::pool::Pool;
use crate::{Connections, Dialect, StoreError, schema};

/// Readers are short.
const READERS: u32 = 4;
/// How many times longer an answer of the history may take: its statements write and read in bulk.
const HISTORY_PATIENCE: u32 = 3;
/// A new version may work through all of a large history.
const LONGEST_MIGRATION: Duration = Duration::from_secs(3600);
/// Parameters that a URL may have; a word that is none of them may be a misspelt secret, and the driver would log it.
const PARAMETERS: [&str; 4] = ["sslmode", "sslrootcert", "sslcert", "sslkey"];
/// What every connection is told first: a commit is on disk when it is answered, whatever the server's default is.
const FIRST: &str = "SET synchronous_commit = on; SET application_name = 'aegis'";
/// Versions of the schema.
const SCHEMA_VERSIONS: &str = "CREATE TABLE IF NOT EXISTS schema_versions (
    version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, applied_at BIGINT NOT NULL)";
/// Two processes that open a new database at once make its tables one after the other.
const TAKE_TURNS: &str = "SELECT pg_advisory_xact_lock(7020094117)";

/// What the server and its database are called, without the password.
pub(crate) fn name_of(url: &str) -> Result<String, StoreError> {
    let refused = |why: String| Err(StoreError::Server { place: "Postgres".to_owned(), why });
    let Ok(AnyConnectOptions { database_url: url, .. }) = url.parse() else {
        return refused("the address is no URL; write postgres://user:password@host:port/database".to_owned());
    };
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return refused("the address must begin with postgres://".to_owned());
    }
    let database = url.path().trim_start_matches('/');
    let (Some(host), false) = (url.host_str(), url.username().is_empty() || database.is_empty()) else {
        return refused("the address must name a user, a host and a database".to_owned());
    };
    if let Some((key, _)) = url.query_pairs().find(|(key, _)| !PARAMETERS.contains(&&**key)) {
        return refused(format!("unknown parameter `{key}` in the address; it may have {}", PARAMETERS.join(", ")));
    }
    Ok(format!("postgres://{}@{host}:{}/{database}", url.username(), url.port().unwrap_or(5432)))
}

/// The way there. To another machine it is encrypted, and the server proves its name, unless the address says otherwise.
fn options(url: &str, place: &str) -> Result<AnyConnectOptions, StoreError> {
    let mut options: AnyConnectOptions = url.parse().map_err(|error| refused(place, &error))?;
    let is_here = matches!(options.database_url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    let says = options.database_url.query_pairs().any(|(key, _)| key == "sslmode");
    if !is_here && !says {
        options.database_url.query_pairs_mut().append_pair("sslmode", "verify-full");
    }
    Ok(options)
}

/// Connects, makes what is missing and checks what is there.
/// No future itself: see `files::open`.
#[inline(never)]
pub(crate) fn connect<'a>(
    url: &'a str,
    place: &'a str,
    patience: Duration,
    now: Timestamp,
) -> BoxFuture<'a, Result<Connections, StoreError>> {
    Box::pin(connected(url, place, patience, now))
}

async fn connected(url: &str, place: &str, patience: Duration, now: Timestamp) -> Result<Connections, StoreError> {
    sqlx::any::install_default_drivers();
    let options = options(url, place)?;
    let silent = |_: Elapsed| StoreError::Server { place: place.to_owned(), why: "it does not answer".to_owned() };
    let mut first = timeout(patience, options.connect()).await.map_err(silent)?.map_err(|error| refused(place, &error))?;
    timeout(patience, check(&mut first, place)).await.map_err(silent)??;
    timeout(LONGEST_MIGRATION, make_ready(&mut first, place, now)).await.map_err(silent)??;
    let _said_or_not = timeout(patience, first.close()).await;

    let pool = |count, patience| Pool::Server(Lines::new(options.clone(), first_words(patience), count, patience));
    let (writer, readers) = (pool(1, patience), pool(READERS, patience));
    let history = patience * HISTORY_PATIENCE;
    let (history_writer, history_readers) = (BulkPool::Server(pool(1, history)), pool(READERS, history));
    Ok(Connections { dialect: Dialect::Postgres, writer, readers, history_writer, history_readers })
}

/// Brings the schema to its newest version. Statements have no end of their own here: only the whole has.
async fn make_ready(first: &mut AnyConnection, place: &str, now: Timestamp) -> Result<(), StoreError> {
    sqlx::raw_sql(FIRST).execute(&mut *first).await?;
    let mut tx = first.begin_with(Dialect::Postgres.begin_write()).await?;
    sqlx::query(TAKE_TURNS).execute(&mut *tx).await?;
    schema::migrate(tx, SCHEMA_VERSIONS, schema::POSTGRES, place, now).await
}

/// What a connection is told on which an answer is waited for so long. A server that lives says itself that it is too slow, before it is
/// given up; one whose other end vanished gives up what that end had locked.
fn first_words(patience: Duration) -> String {
    let patience = patience.as_millis();
    let limit = patience * 4 / 5;
    format!(
        "{FIRST}; SET lock_timeout = {limit}; SET statement_timeout = {limit}; SET idle_in_transaction_session_timeout = {patience};
         SET tcp_user_timeout = {patience}; SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
    )
}

async fn check(connection: &mut AnyConnection, place: &str) -> Result<(), StoreError> {
    let unfit = |why: String| Err(StoreError::Server { place: place.to_owned(), why });
    let encoding: String = sqlx::query_scalar("SHOW server_encoding").fetch_one(&mut *connection).await?;
    if encoding != "UTF8" {
        return unfit(format!("the database keeps texts as {encoding}; create one with ENCODING 'UTF8'"));
    }
    let is_standby: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut *connection).await?;
    if is_standby {
        return unfit("the server is a standby, which cannot be written; name the primary".to_owned());
    }
    Ok(())
}

fn refused(place: &str, error: &sqlx::Error) -> StoreError {
    StoreError::Server { place: place.to_owned(), why: error.to_string() }
}
