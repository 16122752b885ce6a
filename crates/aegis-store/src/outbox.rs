//! The outbox: facts that must still become receipts. Written with the change they speak of, deleted once they are sealed.

use aegis_model::{EventId, TenantId};

use crate::error::{on_insert, same_tenant};
use crate::pool::Transaction;
use crate::{MAX_PAGE, Store, StoreError, row};

/// One fact to be sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// Made once by control; the receipt's event id.
    pub event_id: EventId,
    pub tenant_id: TenantId,
    /// JSON of a ledger draft.
    pub payload: String,
}

impl Store {
    /// The oldest facts that are not sealed yet, of all tenants, in the order in which they were written.
    pub async fn pending_outbox(&self, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
        let rows = sqlx::query("SELECT event_id, tenant_id, payload FROM outbox ORDER BY place LIMIT $1")
            .bind(i64::from(limit.min(MAX_PAGE)))
            .fetch_all(&self.inner.readers)
            .await?;
        rows.iter()
            .map(|r| {
                Ok(OutboxRow {
                    event_id: row::event_id(r, "event_id")?,
                    tenant_id: row::tenant(r)?,
                    payload: row::get(r, "payload")?,
                })
            })
            .collect()
    }

    /// Forgets a fact that has been sealed. True if it was there.
    pub async fn delete_outbox(&self, event_id: EventId) -> Result<bool, StoreError> {
        let done =
            sqlx::query("DELETE FROM outbox WHERE event_id = $1").bind(event_id.to_string()).execute(&self.inner.writer).await?;
        Ok(done.rows_affected() > 0)
    }
}

/// INVARIANT L-OUTBOX: called in the transaction of the change, and only when the change happens.
pub(crate) async fn write(tx: &mut Transaction, tenant: &TenantId, rows: &[OutboxRow]) -> Result<(), StoreError> {
    for fact in rows {
        same_tenant(tenant, &fact.tenant_id)?;
        sqlx::query("INSERT INTO outbox (event_id, tenant_id, payload) VALUES ($1, $2, $3)")
            .bind(fact.event_id.to_string())
            .bind(tenant.as_str())
            .bind(fact.payload.as_str())
            .execute(&mut **tx)
            .await
            .map_err(on_insert(tenant, "outbox event id"))?;
    }
    Ok(())
}
