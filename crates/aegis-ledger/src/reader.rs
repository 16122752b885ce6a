//! A ledger read from beside the process that owns it, or while nobody does: for exports on a data folder.
//! Opens read-only, takes no lock, opens no lane, recovers nothing.

use std::path::Path;

use aegis_model::TenantId;
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions};

use crate::error::open_error;
use crate::{ExportLine, LedgerError, export, schema};

/// A read-only view of a ledger file.
#[derive(Clone, Debug)]
pub struct LedgerReader {
    pool: SqlitePool,
}

impl LedgerReader {
    /// Opens the file; it must exist. One of an earlier schema is read as it is.
    pub async fn open(path: &Path) -> Result<Self, LedgerError> {
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(schema::options(path).read_only(true))
            .await
            .map_err(|error| open_error(path, &error))?;
        let found: i64 =
            sqlx::query_scalar("PRAGMA user_version").fetch_one(&pool).await.map_err(|error| open_error(path, &error))?;
        if found > schema::SCHEMA_VERSION {
            return Err(LedgerError::SchemaTooNew { path: path.to_owned(), found, supported: schema::SCHEMA_VERSION });
        }
        Ok(Self { pool })
    }

    /// The tenant's receipts after `after_row`, in row order, at most `limit` (and `MAX_READ`); none at the end.
    pub async fn export(&self, tenant: &TenantId, after_row: i64, limit: usize) -> Result<Vec<ExportLine>, LedgerError> {
        export::lines(&self.pool, tenant, after_row, limit).await
    }
}
