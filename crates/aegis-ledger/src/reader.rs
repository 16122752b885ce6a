//! A ledger read from beside the process that owns it, or while nobody does: for exports on a data folder.
//! Opens read-only, takes no lock, opens no lane, recovers nothing.

use std::path::Path;

use aegis_model::TenantId;
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions};

use crate::error::open_error;
use crate::rows::{item_of, select_items};
use crate::{LedgerError, MAX_READ, OutboxItem, schema};

/// A read-only view of a ledger file.
#[derive(Clone, Debug)]
pub struct LedgerReader {
    pool: SqlitePool,
}

impl LedgerReader {
    /// Opens the file; it must exist.
    pub async fn open(path: &Path) -> Result<Self, LedgerError> {
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(schema::options(path).read_only(true))
            .await
            .map_err(|error| open_error(path, &error))?;
        Ok(Self { pool })
    }

    /// The tenant's receipts after `after_row`, in row order, at most `limit` or `MAX_READ`; none at the end.
    pub async fn export_items(&self, tenant: &TenantId, after_row: i64, limit: usize) -> Result<Vec<OutboxItem>, LedgerError> {
        let rows = sqlx::query(select_items!("WHERE r.tenant_id = ? AND r.row > ? ORDER BY r.row LIMIT ?"))
            .bind(tenant.as_str())
            .bind(after_row)
            .bind(limit.min(MAX_READ) as i64)
            .fetch_all(&self.pool)
            .await
            .map_err(|error| LedgerError::Read(error.to_string()))?;
        rows.iter().map(|row| item_of(row).map_err(|error| LedgerError::Read(error.to_string()))).collect()
    }
}
