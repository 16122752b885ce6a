//! A store in a Postgres database of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aegis_model::{ManualClock, TenantId};
use aegis_store::{Secret, Store};
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::fixtures::{START, acme};
use crate::server;

/// As the program's default.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Place {
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) url: String,
}

/// A new database; `how` says how it is made.
pub(crate) async fn database(how: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("store_{}", COUNT.fetch_add(1, Ordering::SeqCst));
    let mut maker = PgConnection::connect(&format!("{}postgres", server::address())).await.unwrap();
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name} {how}"))).execute(&mut maker).await.unwrap();
    maker.close().await.unwrap();
    format!("{}{name}", server::address())
}

impl Place {
    /// A fresh store with the tenant `acme`.
    pub(crate) async fn new() -> Self {
        let url = database("").await;
        let clock = Arc::new(ManualClock::new(START));
        let store = Store::connect(&Secret::new(url.clone()), PATIENCE, clock.clone()).await.unwrap();
        assert!(store.create_tenant(&acme(), "Acme").await.unwrap());
        Self { store, clock, url }
    }

    pub(crate) async fn reopen(&mut self) {
        self.store.close().await;
        self.store = self.another().await;
    }

    /// The same store, as another process opens it.
    pub(crate) async fn another(&self) -> Store {
        Store::connect(&Secret::new(self.url.clone()), PATIENCE, self.clock.clone()).await.unwrap()
    }

    /// Changes one row behind the store's back. Keys that name it are not looked at.
    pub(crate) async fn change_row(&self, update: String) {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        sqlx::query("SET session_replication_role = replica").execute(&mut connection).await.unwrap();
        assert_eq!(sqlx::query(AssertSqlSafe(update)).execute(&mut connection).await.unwrap().rows_affected(), 1);
        connection.close().await.unwrap();
    }

    /// Every table, or those that have tenants.
    async fn tables(pool: &PgPool, with_tenants: bool) -> Vec<String> {
        let tables = sqlx::query_scalar(
            "SELECT table_name::text FROM information_schema.tables t WHERE table_schema = 'public' AND (NOT $1 OR EXISTS (
                 SELECT 1 FROM information_schema.columns c WHERE c.table_name = t.table_name AND column_name = 'tenant_id')) ORDER BY 1",
        );
        tables.bind(with_tenants).fetch_all(pool).await.unwrap()
    }

    /// Every row of a tenant in every table that has tenants, as text.
    pub(crate) async fn rows_of(&self, tenant: &TenantId) -> Vec<String> {
        let pool = PgPool::connect(&self.url).await.unwrap();
        let tables = Self::tables(&pool, true).await;
        assert!(tables.len() >= 22, "only {} tables found", tables.len());
        let mut dump = Vec::new();
        for table in tables {
            let query = format!("SELECT t::text FROM {table} t WHERE tenant_id = '{tenant}' ORDER BY 1");
            let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&pool).await.unwrap();
            assert!(!rows.is_empty(), "the walk leaves table {table} of {tenant} untested");
            dump.extend(rows.into_iter().map(|row| format!("{table}: {row}")));
        }
        pool.close().await;
        dump
    }

    /// Every unique key of the control plane's tables, as `table(column,column)`; but for numbers that are counted up.
    pub(crate) async fn unique_keys(&self) -> Vec<String> {
        let pool = PgPool::connect(&self.url).await.unwrap();
        let keys = sqlx::query(
            "SELECT t.relname || '(' || string_agg(a.attname, ',' ORDER BY k.n) || ')'
             FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace s ON s.oid = t.relnamespace,
                  unnest(i.indkey::int[]) WITH ORDINALITY AS k (column_number, n), pg_attribute a
             WHERE s.nspname = 'public' AND i.indisunique AND a.attrelid = t.oid AND a.attnum = k.column_number
             GROUP BY i.indexrelid, t.relname HAVING NOT bool_and(a.atttypid = 'int8'::regtype)",
        );
        let keys = keys.fetch_all(&pool).await.unwrap().iter().map(|r| r.get(0)).collect();
        pool.close().await;
        keys
    }

    /// Whether these bytes stand anywhere in what is kept.
    pub(crate) async fn keeps(&self, needle: &[u8]) -> bool {
        let pool = PgPool::connect(&self.url).await.unwrap();
        let needle = std::str::from_utf8(needle).unwrap();
        let mut found = false;
        for table in Self::tables(&pool, false).await {
            let query = format!("SELECT t::text FROM {table} t");
            let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&pool).await.unwrap();
            found |= rows.iter().any(|row| row.contains(needle));
        }
        pool.close().await;
        found
    }
}
