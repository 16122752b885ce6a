//! A store in files, in a folder of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aegis_model::{ManualClock, TenantId};
use aegis_store::Store;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Row, SqlitePool};

use crate::fixtures::{START, acme};

pub(crate) struct Place {
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Place {
    /// A fresh store with the tenant `acme`.
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let clock = Arc::new(ManualClock::new(START));
        let store = Store::open(&path, clock.clone()).await.unwrap();
        assert!(store.create_tenant(&acme(), "Acme").await.unwrap());
        Self { store, clock, path, _folder: folder }
    }

    pub(crate) async fn reopen(&mut self) {
        self.store.close().await;
        self.store = self.another().await;
    }

    /// The same store, as another process opens it.
    pub(crate) async fn another(&self) -> Store {
        Store::open(&self.path, self.clock.clone()).await.unwrap()
    }

    async fn read_only(path: &Path) -> SqlitePool {
        SqlitePool::connect(&format!("sqlite://{}?mode=ro", path.display())).await.unwrap()
    }

    /// Changes one row behind the store's back. Keys that name it are not looked at.
    pub(crate) async fn change_row(&self, update: String) {
        let pool = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&self.path).foreign_keys(false)).await.unwrap();
        assert_eq!(sqlx::query(AssertSqlSafe(update)).execute(&pool).await.unwrap().rows_affected(), 1);
        pool.close().await;
    }

    /// Every row of a tenant in every table that has tenants, as text.
    pub(crate) async fn rows_of(&self, tenant: &TenantId) -> Vec<String> {
        let mut rows = rows_of_file(&self.path, tenant, 21).await;
        rows.extend(rows_of_file(&self.path.with_file_name("store-history.db"), tenant, 1).await);
        rows
    }

    /// Every unique key of the control plane's tables, as `table(column,column)`.
    pub(crate) async fn unique_keys(&self) -> Vec<String> {
        let pool = Self::read_only(&self.path).await;
        let keys = sqlx::query(
            "SELECT m.name || '(' || (SELECT group_concat(name, ',') FROM pragma_index_info(i.name)) || ')'
             FROM sqlite_master m, pragma_index_list(m.name) i WHERE m.type = 'table' AND i.\"unique\" = 1",
        );
        keys.fetch_all(&pool).await.unwrap().iter().map(|r| r.get(0)).collect()
    }

    /// Whether these bytes stand anywhere in what is kept.
    pub(crate) async fn keeps(&self, needle: &[u8]) -> bool {
        self.store.close().await;
        let files = std::fs::read_dir(self.path.parent().unwrap()).unwrap();
        let mut files = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
        files.any(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
    }
}

async fn rows_of_file(path: &Path, tenant: &TenantId, least_tables: usize) -> Vec<String> {
    let pool = Place::read_only(path).await;
    let columns = sqlx::query(
        "SELECT m.name, group_concat('quote(\"' || c.name || '\")', ' || ''|'' || ') FROM sqlite_master m, pragma_table_info(m.name) c
         WHERE m.type = 'table' AND EXISTS (SELECT 1 FROM pragma_table_info(m.name) t WHERE t.name = 'tenant_id') GROUP BY m.name",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert!(columns.len() >= least_tables, "only {} tables found", columns.len());
    let mut dump = Vec::new();
    for r in columns {
        let (table, list): (String, String) = (r.get(0), r.get(1));
        let query = format!("SELECT {list} FROM {table} WHERE tenant_id = '{tenant}' ORDER BY 1");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&pool).await.unwrap();
        assert!(!rows.is_empty(), "the walk leaves table {table} of {tenant} untested");
        dump.extend(rows.into_iter().map(|row| format!("{table}: {row}")));
    }
    pool.close().await;
    dump
}
