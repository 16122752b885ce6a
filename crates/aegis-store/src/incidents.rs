//! Incidents: one per (tenant, entity, rule) while not closed, with the alerts that joined it and what was done about it.

use aegis_model::{Alert, Incident, IncidentStatus, Severity, TenantId, Timestamp, new_event_id};
use serde_json::Value;
use sqlx::any::AnyRow;

use crate::text::keyed;
use crate::{MAX_PAGE, Store, StoreError, alerts, page, row};

/// Most alerts an incident lists; the first ones, so that the list does not change under a reader. All of them stay in `alerts`.
const MAX_ALERTS_LISTED: i64 = 1000;

type Tx = crate::pool::Transaction;

/// A response that was decided on and has no outcome yet.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingAction {
    pub tenant_id: TenantId,
    pub incident_id: String,
    pub command_id: String,
    pub body: Value,
}

/// The entity an alert is about: `column=value` pairs joined by `,`. A `,` or `\` within a value is escaped by `\`, so that two
/// entities never share a text. One that is long ends in its SHA-256 instead.
#[must_use]
pub fn entity_of(alert: &Alert) -> String {
    let pairs = alert.key.iter().map(|(column, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{column}={}", text.replace('\\', "\\\\").replace(',', "\\,"))
    });
    keyed(&pairs.collect::<Vec<_>>().join(",")).into_owned()
}

fn incident(r: &AnyRow, alert_ids: Vec<String>, actions: Vec<Value>) -> Result<Incident, StoreError> {
    Ok(Incident {
        incident_id: row::get(r, "incident_id")?,
        tenant_id: row::tenant(r)?,
        rule_id: row::get(r, "rule_id")?,
        severity: row::word(r, "severity")?,
        entity: row::get(r, "entity")?,
        title: row::get(r, "title")?,
        status: row::word(r, "status")?,
        alert_ids,
        actions,
        opened_at: row::time(r, "opened_at")?,
        updated_at: row::time(r, "updated_at")?,
    })
}

async fn complete(tx: &mut Tx, tenant: &TenantId, r: &AnyRow) -> Result<Incident, StoreError> {
    let id: &str = row::get(r, "incident_id")?;
    let alert_ids = sqlx::query_scalar(
        "SELECT alert_id FROM alerts WHERE tenant_id = $1 AND incident_id = $2 ORDER BY detected_at, alert_id LIMIT $3",
    )
    .bind(tenant.as_str())
    .bind(id)
    .bind(MAX_ALERTS_LISTED)
    .fetch_all(&mut **tx)
    .await?;
    let actions = sqlx::query("SELECT body FROM incident_actions WHERE tenant_id = $1 AND incident_id = $2 ORDER BY place")
        .bind(tenant.as_str())
        .bind(id)
        .fetch_all(&mut **tx)
        .await?;
    let actions = actions.iter().map(|r| row::json(r, "body")).collect::<Result<Vec<_>, _>>()?;
    incident(r, alert_ids, actions)
}

async fn read(tx: &mut Tx, tenant: &TenantId, id: &str) -> Result<Option<Incident>, StoreError> {
    let found = sqlx::query("SELECT * FROM incidents WHERE tenant_id = $1 AND incident_id = $2")
        .bind(tenant.as_str())
        .bind(id)
        .fetch_optional(&mut **tx)
        .await?;
    match found {
        Some(r) => Ok(Some(complete(tx, tenant, &r).await?)),
        None => Ok(None),
    }
}

/// The id of the open incident of this entity and rule, and its severity.
async fn find_open(
    tx: &mut Tx,
    tenant: &TenantId,
    entity: &str,
    rule_id: &str,
) -> Result<Option<(String, Severity)>, StoreError> {
    let found = sqlx::query(
        "SELECT incident_id, severity FROM incidents WHERE tenant_id = $1 AND entity = $2 AND rule_id = $3 AND status <> 'closed'",
    )
    .bind(tenant.as_str())
    .bind(entity)
    .bind(rule_id)
    .fetch_optional(&mut **tx)
    .await?;
    found.map(|r| Ok((row::get(&r, "incident_id")?, row::word(&r, "severity")?))).transpose()
}

async fn open(tx: &mut Tx, alert: &Alert, entity: &str, now: Timestamp) -> Result<String, StoreError> {
    let id = new_event_id().to_string();
    sqlx::query(
        "INSERT INTO incidents (tenant_id, incident_id, rule_id, entity, severity, title, status, opened_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, 'open', $7, $7)",
    )
    .bind(alert.tenant_id.as_str())
    .bind(id.as_str())
    .bind(alert.rule_id.as_str())
    .bind(entity)
    .bind(alert.severity.as_str())
    .bind(format!("{} ({entity})", alert.rule_name))
    .bind(now.as_micros())
    .execute(&mut **tx)
    .await?;
    Ok(id)
}

impl Store {
    /// The incident this alert belongs to, and whether the alert opened it. An alert keeps its incident: asked again, even after
    /// that incident was closed, the answer is the same one.
    /// INVARIANT L-INCIDENT: one incident per (tenant, entity, rule) is not closed, whoever calls concurrently.
    pub async fn open_or_join_incident(&self, alert: &Alert, now: Timestamp) -> Result<(Incident, bool), StoreError> {
        let tenant = &alert.tenant_id;
        let mut tx = self.begin_write().await?;
        alerts::insert(&mut *tx, alert).await?;
        let known: Option<String> = sqlx::query_scalar("SELECT incident_id FROM alerts WHERE tenant_id = $1 AND alert_id = $2")
            .bind(tenant.as_str())
            .bind(alert.alert_id.as_str())
            .fetch_one(&mut *tx)
            .await?;
        let (id, opened) = match known {
            Some(id) => (id, false),
            None => {
                let entity = entity_of(alert);
                let joined = find_open(&mut tx, tenant, &entity, &alert.rule_id).await?;
                let opened = joined.is_none();
                let id = match joined {
                    Some((id, severity)) => {
                        sqlx::query(
                            "UPDATE incidents SET severity = $3, updated_at = $4 WHERE tenant_id = $1 AND incident_id = $2",
                        )
                        .bind(tenant.as_str())
                        .bind(id.as_str())
                        .bind(severity.max(alert.severity).as_str())
                        .bind(now.as_micros())
                        .execute(&mut *tx)
                        .await?;
                        id
                    }
                    None => open(&mut tx, alert, &entity, now).await?,
                };
                sqlx::query("UPDATE alerts SET incident_id = $3 WHERE tenant_id = $1 AND alert_id = $2")
                    .bind(tenant.as_str())
                    .bind(alert.alert_id.as_str())
                    .bind(id.as_str())
                    .execute(&mut *tx)
                    .await?;
                (id, opened)
            }
        };
        let found = read(&mut tx, tenant, &id).await?;
        let found = found.ok_or(StoreError::Invalid { what: "alert", why: "names an incident that is gone" })?;
        tx.commit().await?;
        Ok((found, opened))
    }

    /// Appends what was done, and sets the status unless the incident is closed. False if there is no such incident.
    pub async fn add_incident_action(
        &self,
        tenant: &TenantId,
        id: &str,
        body: &Value,
        new_status: Option<IncidentStatus>,
    ) -> Result<bool, StoreError> {
        self.write_action(tenant, id, None, body, false, new_status).await
    }

    /// Writes the one action of `command_id`: appended the first time, replaced in its place after. `pending` says that its
    /// outcome is still to come (`pending_incident_actions`). A closed incident stays closed. False if there is no such incident.
    pub async fn put_incident_action(
        &self,
        tenant: &TenantId,
        id: &str,
        command_id: &str,
        body: &Value,
        pending: bool,
        new_status: Option<IncidentStatus>,
    ) -> Result<bool, StoreError> {
        self.write_action(tenant, id, Some(command_id), body, pending, new_status).await
    }

    async fn write_action(
        &self,
        tenant: &TenantId,
        id: &str,
        command_id: Option<&str>,
        body: &Value,
        pending: bool,
        new_status: Option<IncidentStatus>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin_write().await?;
        let touched = sqlx::query(
            "UPDATE incidents SET updated_at = $3, status = CASE WHEN status = 'closed' THEN status ELSE COALESCE($4, status) END
             WHERE tenant_id = $1 AND incident_id = $2",
        )
        .bind(tenant.as_str())
        .bind(id)
        .bind(self.now().as_micros())
        .bind(new_status.map(IncidentStatus::as_str))
        .execute(&mut *tx)
        .await?;
        if touched.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query(
            "INSERT INTO incident_actions (tenant_id, incident_id, place, command_id, pending, body)
             SELECT $1, $2, COUNT(*), $3, $4, $5 FROM incident_actions WHERE tenant_id = $1 AND incident_id = $2
             ON CONFLICT (tenant_id, incident_id, command_id) DO UPDATE SET pending = excluded.pending, body = excluded.body",
        )
        .bind(tenant.as_str())
        .bind(id)
        .bind(command_id)
        .bind(row::flag_value(pending))
        .bind(row::to_json(body, "body")?)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// The action of this command on this incident, and whether it is pending.
    pub async fn incident_action(
        &self,
        tenant: &TenantId,
        id: &str,
        command_id: &str,
    ) -> Result<Option<(Value, bool)>, StoreError> {
        let found = sqlx::query(
            "SELECT body, pending FROM incident_actions WHERE tenant_id = $1 AND incident_id = $2 AND command_id = $3",
        )
        .bind(tenant.as_str())
        .bind(id)
        .bind(command_id)
        .fetch_optional(&self.inner.readers)
        .await?;
        found.map(|r| Ok((row::json(&r, "body")?, row::flag(&r, "pending")?))).transpose()
    }

    /// Responses without an outcome, of all tenants, oldest incident first.
    pub async fn pending_incident_actions(&self, limit: u32) -> Result<Vec<PendingAction>, StoreError> {
        let rows = sqlx::query(
            "SELECT tenant_id, incident_id, command_id, body FROM incident_actions
             WHERE pending = 1 AND command_id IS NOT NULL ORDER BY incident_id, place LIMIT $1",
        )
        .bind(i64::from(limit.min(MAX_PAGE)))
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter()
            .map(|r| {
                Ok(PendingAction {
                    tenant_id: row::tenant(r)?,
                    incident_id: row::get(r, "incident_id")?,
                    command_id: row::get(r, "command_id")?,
                    body: row::json(r, "body")?,
                })
            })
            .collect()
    }

    /// The tenant's incidents, newest first.
    pub async fn list_incidents(&self, tenant: &TenantId, limit: u32, offset: u32) -> Result<Vec<Incident>, StoreError> {
        let (limit, offset) = page(limit, offset);
        let mut tx = self.begin_read().await?;
        let rows = sqlx::query(
            "SELECT * FROM incidents WHERE tenant_id = $1 ORDER BY opened_at DESC, incident_id DESC LIMIT $2 OFFSET $3",
        )
        .bind(tenant.as_str())
        .bind(limit)
        .bind(offset)
        .fetch_all(&mut *tx)
        .await?;
        let mut listed = Vec::with_capacity(rows.len());
        for r in &rows {
            listed.push(complete(&mut tx, tenant, r).await?);
        }
        Ok(listed)
    }

    /// One incident.
    pub async fn incident(&self, tenant: &TenantId, id: &str) -> Result<Option<Incident>, StoreError> {
        let mut tx = self.begin_read().await?;
        read(&mut tx, tenant, id).await
    }

    /// Closes an incident for good; the entity's next alert opens another. False if there is none, or it is closed already.
    pub async fn close_incident(&self, tenant: &TenantId, id: &str, by: &str) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE incidents SET status = 'closed', closed_by = $3, updated_at = $4
             WHERE tenant_id = $1 AND incident_id = $2 AND status <> 'closed'",
        )
        .bind(tenant.as_str())
        .bind(id)
        .bind(by)
        .bind(self.now().as_micros())
        .execute(&self.inner.writer)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// How many incidents of all tenants are not closed.
    pub async fn open_incidents_total(&self) -> Result<u64, StoreError> {
        let count: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM incidents WHERE status <> 'closed'").fetch_one(&self.inner.readers).await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}
