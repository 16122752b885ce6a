//! A file of the program before is taken over as it is.

use std::sync::Arc;

use aegis_model::{EventId, ManualClock};
use aegis_store::Store;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, SqlitePool};

use crate::fixtures::START;
use crate::old_history;

const BEFORE: [(i64, &str, &str); 3] = [
    (1, "history", include_str!("../../migrations/sqlite/history_0001_tables.sql")),
    (2, "kept_elsewhere", include_str!("../../migrations/sqlite/history_0002_kept_elsewhere.sql")),
    (3, "lanes", include_str!("../../migrations/sqlite/history_0003_lanes.sql")),
];

#[tokio::test]
async fn a_history_of_before_keeps_every_row_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = SqliteConnectOptions::new().filename(folder.path().join("store-history.db")).create_if_missing(true);
    let old = SqlitePool::connect_with(file).await.unwrap();
    let versions = "CREATE TABLE schema_versions (
        version INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, applied_at INTEGER NOT NULL) STRICT";
    sqlx::raw_sql(versions).execute(&old).await.unwrap();
    for (version, name, sql) in BEFORE {
        sqlx::raw_sql(sql).execute(&old).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(old_history::applied(version, name, sql))).execute(&old).await.unwrap();
    }
    let rows = old_history::rows();
    let bytes = |id: EventId| format!("X'{}'", id.simple());
    for row in &rows {
        sqlx::raw_sql(AssertSqlSafe(old_history::kept(row, bytes))).execute(&old).await.unwrap();
    }
    old.close().await;
    let store = Store::open(&folder.path().join("store.db"), Arc::new(ManualClock::new(START))).await.unwrap();
    old_history::holds(&store, &rows).await;
    store.close().await;
}
