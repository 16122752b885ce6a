//! Alerts as detection sent them, whether they were retracted, and the incident they belong to.

use aegis_model::{Alert, AlertRecord, Retraction, TenantId};
use sqlx::any::AnyRow;
use sqlx::{Any, Executor};

use crate::{Store, StoreError, page, row};

fn record(r: &AnyRow) -> Result<AlertRecord, StoreError> {
    Ok(AlertRecord {
        alert: row::json(r, "body")?,
        retracted_at: row::optional_time(r, "retracted_at")?,
        incident_id: row::get(r, "incident_id")?,
    })
}

/// Keeps an alert. False if it is known already; the first one stays.
pub(crate) async fn insert<'e>(executor: impl Executor<'e, Database = Any>, alert: &Alert) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "INSERT INTO alerts (tenant_id, alert_id, rule_id, severity, mode, detected_at, body)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
    )
    .bind(alert.tenant_id.as_str())
    .bind(alert.alert_id.as_str())
    .bind(alert.rule_id.as_str())
    .bind(alert.severity.as_str())
    .bind(alert.mode.as_str())
    .bind(alert.detected_at.as_micros())
    .bind(row::to_json(alert, "body")?)
    .execute(executor)
    .await?;
    Ok(done.rows_affected() > 0)
}

impl Store {
    /// Keeps an alert. False if it is known already; the first one stays.
    pub async fn insert_alert(&self, alert: &Alert) -> Result<bool, StoreError> {
        insert(&self.inner.writer, alert).await
    }

    /// Marks an alert as contradicted; its incident and containment stay. False if it is unknown or was marked before.
    pub async fn retract_alert(&self, retraction: &Retraction) -> Result<bool, StoreError> {
        let done =
            sqlx::query("UPDATE alerts SET retracted_at = $3 WHERE tenant_id = $1 AND alert_id = $2 AND retracted_at IS NULL")
                .bind(retraction.tenant_id.as_str())
                .bind(retraction.alert_id.as_str())
                .bind(retraction.detected_at.as_micros())
                .execute(&self.inner.writer)
                .await?;
        Ok(done.rows_affected() > 0)
    }

    /// The tenant's alerts, newest first.
    pub async fn list_alerts(&self, tenant: &TenantId, limit: u32, offset: u32) -> Result<Vec<AlertRecord>, StoreError> {
        let (limit, offset) = page(limit, offset);
        let rows =
            sqlx::query("SELECT * FROM alerts WHERE tenant_id = $1 ORDER BY detected_at DESC, alert_id LIMIT $2 OFFSET $3")
                .bind(tenant.as_str())
                .bind(limit)
                .bind(offset)
                .fetch_all(&self.inner.readers)
                .await?;
        rows.iter().map(record).collect()
    }

    /// One alert.
    pub async fn alert(&self, tenant: &TenantId, alert_id: &str) -> Result<Option<AlertRecord>, StoreError> {
        let found = sqlx::query("SELECT * FROM alerts WHERE tenant_id = $1 AND alert_id = $2")
            .bind(tenant.as_str())
            .bind(alert_id)
            .fetch_optional(&self.inner.readers)
            .await?;
        found.as_ref().map(record).transpose()
    }
}
