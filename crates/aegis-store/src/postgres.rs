//! Opens a store in a Postgres database: what it must be, how its connections are set up, schema. Names and errors never hold the password.

use std::time::Duration;

use aegis_model::Timestamp;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{AnyConnection, ConnectOptions, Connection};

use crate::{Connections, Dialect, StoreError, schema};

/// How long a call waits for its turn at a connection, or for a server that is starting again.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// Readers are short.
const READERS: u32 = 4;
/// Parameters that a URL may have; a word that is none of them may be a misspelt secret, and the driver would log it.
const PARAMETERS: [&str; 4] = ["sslmode", "sslrootcert", "sslcert", "sslkey"];
/// What a connection is told first: a commit is on disk when it is answered, whatever the server's default is, and nothing waits for ever.
const FIRST: &str = "SET synchronous_commit = on; SET lock_timeout = '10s'; SET statement_timeout = '30s';
    SET idle_in_transaction_session_timeout = '60s'; SET application_name = 'aegis'";
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
pub(crate) async fn connect(url: &str, place: &str, now: Timestamp) -> Result<Connections, StoreError> {
    sqlx::any::install_default_drivers();
    let options = options(url, place)?;
    let mut first = options.connect().await.map_err(|error| refused(place, &error))?;
    check(&mut first, place).await?;
    first.close().await.map_err(|error| refused(place, &error))?;

    let pool = |connections| pool(connections).connect_lazy_with(options.clone());
    let writer = pool(1);
    let mut tx = writer.begin_with(Dialect::Postgres.begin_write()).await?;
    sqlx::query(TAKE_TURNS).execute(&mut *tx).await?;
    schema::migrate(tx, SCHEMA_VERSIONS, schema::POSTGRES, place, now).await?;
    let readers = pool(READERS);
    Ok(Connections { dialect: Dialect::Postgres, writer, history_readers: readers.clone(), readers, history_writer: pool(1) })
}

fn pool(connections: u32) -> AnyPoolOptions {
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(TURN_TIMEOUT)
        .after_connect(|connection, _| Box::pin(async move { sqlx::raw_sql(FIRST).execute(connection).await.map(drop) }))
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
