//! How a store opens: private, durable, and with a clear word when the file is not one it can open.

use std::sync::Arc;

use aegis_model::ManualClock;
use aegis_store::{Store, StoreError};
use sqlx::{Row, SqlitePool};

use crate::fixtures::*;

async fn rewrite(place: &Place, statement: &'static str) {
    place.store.close().await;
    let pool = SqlitePool::connect(&format!("sqlite://{}", place.path.display())).await.unwrap();
    sqlx::query(statement).execute(&pool).await.unwrap();
    pool.close().await;
}

#[tokio::test]
async fn a_schema_newer_than_the_program_is_refused_with_both_numbers() {
    let place = Place::new().await;
    rewrite(&place, "INSERT INTO schema_versions (version, name, sha256, applied_at) VALUES (999, 'later', '', 0)").await;
    let error = Store::open(&place.path, place.clock.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::SchemaTooNew { found: 999, supported: 12, .. }), "{error:?}");
    assert!(error.to_string().contains("999") && error.to_string().contains("up to 12"), "{error}");
}

/// Numbers may have been left out, and be given later.
#[tokio::test]
async fn a_migration_that_the_program_does_not_carry_is_refused_whatever_its_number() {
    let place = Place::new().await;
    rewrite(&place, "INSERT INTO schema_versions (version, name, sha256, applied_at) VALUES (0, 'left out', '', 0)").await;
    let error = Store::open(&place.path, place.clock.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::SchemaTooNew { found: 0, supported: 12, .. }), "{error:?}");
}

#[tokio::test]
async fn a_migration_that_was_changed_after_it_was_applied_is_refused() {
    let place = Place::new().await;
    rewrite(&place, "UPDATE schema_versions SET sha256 = 'another' WHERE version = 1").await;
    let error = Store::open(&place.path, place.clock.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::SchemaChanged { version: 1, .. }), "{error:?}");
}

#[tokio::test]
async fn a_file_that_is_no_store_or_is_damaged_is_named() {
    let place = Place::new().await;
    for n in 0..50 {
        place.store.insert_history(&[event(&acme(), aegis_model::EventKind::ToolAttempt, n)], &[]).await.unwrap();
    }
    place.store.close().await;
    for file in ["store.db", "store-history.db"] {
        let path = place.path.with_file_name(file);
        let whole = std::fs::read(&path).unwrap();
        let mut torn = whole.clone();
        let end = torn.len().min(4096 * 20);
        torn[4096..end].fill(0x5a);
        for (name, bytes) in [("text", b"this is not a database at all, only some text".repeat(100)), ("torn", torn)] {
            std::fs::write(&path, bytes).unwrap();
            let error = Store::open(&place.path, place.clock.clone()).await.unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{name}: {error:?}");
            assert!(error.to_string().contains(file), "{name}: {error}");
        }
        std::fs::write(&path, whole).unwrap();
        assert!(Store::open(&place.path, place.clock.clone()).await.is_ok());
    }
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_named() {
    let error =
        Store::open(std::path::Path::new("/nonexistent/folder/store.db"), Arc::new(ManualClock::new(START))).await.unwrap_err();
    assert!(matches!(error, StoreError::File { .. }), "{error:?}");
    assert!(error.to_string().contains("/nonexistent/folder/store.db"));
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_may_read_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let mut place = Place::new().await;
    std::fs::set_permissions(&place.path, std::fs::Permissions::from_mode(0o644)).unwrap();
    place.reopen().await;
    place.store.put_policies(&acme(), "", &[]).await.unwrap();
    place.store.insert_history(&[event(&acme(), aegis_model::EventKind::ToolAttempt, 1)], &[]).await.unwrap();
    let mut files = 0;
    for file in std::fs::read_dir(place.path.parent().unwrap()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
        files += 1;
    }
    assert_eq!(files, 6, "the store and its history, each with its log and its index");
}

#[tokio::test]
async fn the_tables_are_strict_and_the_log_is_on() {
    let place = Place::new().await;
    let pool = SqlitePool::connect(&format!("sqlite://{}?mode=ro", place.path.display())).await.unwrap();
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&pool).await.unwrap();
    assert_eq!(mode, "wal");
    let tables = sqlx::query("SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite%'");
    for r in tables.fetch_all(&pool).await.unwrap() {
        assert_eq!(r.get::<i64, _>("strict"), 1, "{}", r.get::<String, _>("name"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_processes_may_open_a_new_store_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move { Store::open(&path, Arc::new(ManualClock::new(START))).await.map(drop) })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}
