//! How a store opens on Postgres: durable whatever the server's default is, and with a clear word when it cannot, without the password.

use std::sync::Arc;

use aegis_model::ManualClock;
use aegis_store::{Secret, Store, StoreError};
use sqlx::{Connection, PgConnection, Row};

use crate::fixtures::*;
use crate::place::{PATIENCE, database};
use crate::server::PASSWORD;

async fn open(url: &str) -> Result<Store, StoreError> {
    Store::connect(&Secret::new(url.to_owned()), PATIENCE, Arc::new(ManualClock::new(START))).await
}

async fn run(place: &Place, statement: &'static str) {
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    sqlx::query(statement).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_schema_newer_than_the_program_is_refused_with_both_numbers() {
    let place = Place::new().await;
    run(&place, "INSERT INTO schema_versions (version, name, sha256, applied_at) VALUES (999, 'later', '', 0)").await;
    let error = open(&place.url).await.unwrap_err();
    assert!(matches!(error, StoreError::SchemaTooNew { found: 999, supported: 12, .. }), "{error:?}");
    assert!(error.to_string().contains("127.0.0.1") && !error.to_string().contains("word%20of"), "{error}");
}

#[tokio::test]
async fn a_migration_that_was_changed_after_it_was_applied_is_refused() {
    let place = Place::new().await;
    run(&place, "UPDATE schema_versions SET sha256 = 'another' WHERE version = 1").await;
    let error = open(&place.url).await.unwrap_err();
    assert!(matches!(error, StoreError::SchemaChanged { version: 1, .. }), "{error:?}");
}

#[tokio::test]
async fn an_address_that_leads_nowhere_is_named_and_its_password_is_not() {
    let whole = Place::new().await.url;
    let wrong = [
        ("not a url", "postgres://"),
        ("mysql://aegis:secret-word@127.0.0.1/db", "postgres://"),
        ("postgres://127.0.0.1/db", "user"),
        ("postgres://aegis:secret-word@127.0.0.1", "database"),
        ("postgres://aegis:secret-word@127.0.0.1:1/db", "127.0.0.1:1/db"),
        ("postgres://aegis:secret-word@127.0.0.1:99999/db", "URL"),
        ("postgres://aegis@127.0.0.1:1/db?pasword=secret-word", "pasword"),
        (&whole.replace("p%40ss", "secret-word"), "authentication"),
        (&whole.replace("/store_", "/nostore_"), "does not exist"),
    ];
    for (url, says) in wrong {
        let error = open(url).await.unwrap_err();
        assert!(matches!(error, StoreError::Server { .. }), "{url}: {error:?}");
        let text = format!("{error} {error:?}");
        assert!(text.contains(says), "{url}: {text}");
        assert!(!text.contains("secret-word") && !text.contains(PASSWORD), "{url}: {text}");
    }
}

#[tokio::test]
async fn a_database_of_another_encoding_is_refused() {
    let url = database("ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").await;
    let error = open(&url).await.unwrap_err();
    assert!(error.to_string().contains("LATIN1") && error.to_string().contains("UTF8"), "{error}");
}

#[tokio::test]
async fn a_commit_is_on_disk_and_sees_what_was_committed_before_whatever_the_defaults_are() {
    let place = Place::new().await;
    let name = place.url.rsplit('/').next().unwrap().to_owned();
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    for setting in ["synchronous_commit = off", "default_transaction_isolation = 'repeatable read'"] {
        let statement = format!("ALTER DATABASE {name} SET {setting}");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    let (one, other) = (place.another().await, place.another().await);
    // Each takes the revision after the other's: neither is refused as a conflict, and none is given out twice.
    let turns = (0..20).map(|n| {
        let store = if n % 2 == 0 { one.clone() } else { other.clone() };
        tokio::spawn(async move { store.put_policies(&acme(), "", &[]).await.unwrap() })
    });
    let turns: Vec<_> = turns.collect();
    let mut revisions = Vec::new();
    for turn in turns {
        revisions.push(turn.await.unwrap());
    }
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 20);
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    let used = sqlx::query(
        "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'aegis'",
    );
    assert!(!used.fetch_all(&mut connection).await.unwrap().is_empty());
    let durable: bool =
        sqlx::query("SELECT current_setting('synchronous_commit') = 'off'").fetch_one(&mut connection).await.unwrap().get(0);
    assert!(durable, "the default that the store does not follow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_processes_may_open_a_new_store_at_once() {
    let url = database("").await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { open(&url).await.map(drop) })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_text_with_a_nul_is_refused_or_kept_by_its_hash() {
    let place = Place::new().await;
    let refused = place.store.upsert_agent(&acme(), &agent("a", "key\0", "name"), registered_by("someone"), &[]).await;
    assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
    let mut row = event(&acme(), aegis_model::EventKind::ToolAttempt, 1);
    row.run_id = Some("run\0one".into());
    place.store.insert_history(&[row], &[]).await.unwrap();
    let filter = aegis_store::HistoryFilter { run_id: Some("run\0one"), ..Default::default() };
    assert_eq!(place.store.list_history(&acme(), filter, 10, 0).await.unwrap().len(), 1);
}
