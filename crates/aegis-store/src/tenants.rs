//! Tenants, their settings, and the secrets their webhooks are signed with.

use aegis_model::limits::{MAX_ID, MAX_RESOURCE_BYTES, check_resource};
use aegis_model::{TenantId, TenantSettings};

use crate::error::on_insert;
use crate::{OutboxRow, Store, StoreError, next_revision, outbox, row};

/// Longest secret, in bytes.
pub(crate) const MAX_SECRET: usize = 1024;

/// A text that must not show up in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text from logs.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Checks the length of a text.
/// A name of anything, as the API bounds it: in characters.
pub(crate) fn check_name(what: &'static str, text: &str) -> Result<(), StoreError> {
    if text.chars().count() > MAX_ID {
        return Err(StoreError::Invalid { what, why: "is too long" });
    }
    check_len(what, text, 4 * MAX_ID)
}

/// The name of a resource that is registered.
pub(crate) fn check_resource_name(text: &str) -> Result<(), StoreError> {
    if check_resource(text).is_err() {
        return Err(StoreError::Invalid { what: "resource", why: "is too long, or has a control character" });
    }
    check_len("resource", text, MAX_RESOURCE_BYTES)
}

/// A text of 1 to `max` bytes.
pub(crate) fn check_len(what: &'static str, text: &str, max: usize) -> Result<(), StoreError> {
    if text.is_empty() {
        return Err(StoreError::Invalid { what, why: "is empty" });
    }
    if text.len() > max {
        return Err(StoreError::Invalid { what, why: "is too long" });
    }
    if text.contains('\0') {
        return Err(StoreError::Invalid { what, why: "holds a NUL character" });
    }
    Ok(())
}

impl Store {
    /// Creates a tenant with default settings. False if it exists already; nothing changes then.
    pub async fn create_tenant(&self, tenant: &TenantId, name: &str) -> Result<bool, StoreError> {
        check_name("tenant name", name)?;
        let mut tx = self.begin_write().await?;
        let done = sqlx::query("INSERT INTO tenants (tenant_id, name, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(tenant.as_str())
            .bind(name)
            .bind(self.now().as_micros())
            .execute(&mut *tx)
            .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        // Stored, not implied: the control feed then tells every edge that the tenant exists.
        let revision = next_revision(&mut tx).await?;
        sqlx::query("INSERT INTO settings (tenant_id, body, revision) VALUES ($1, $2, $3)")
            .bind(tenant.as_str())
            .bind(row::to_json(&TenantSettings::default(), "settings.body")?)
            .bind(revision)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Whether the tenant exists.
    pub async fn tenant_exists(&self, tenant: &TenantId) -> Result<bool, StoreError> {
        let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM tenants WHERE tenant_id = $1")
            .bind(tenant.as_str())
            .fetch_optional(&self.inner.readers)
            .await?;
        Ok(found.is_some())
    }

    /// Every tenant, by id.
    pub async fn list_tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        let rows = sqlx::query("SELECT tenant_id FROM tenants ORDER BY tenant_id").fetch_all(&self.inner.readers).await?;
        rows.iter().map(row::tenant).collect()
    }

    /// The tenant's settings; defaults for a tenant that does not exist.
    pub async fn settings(&self, tenant: &TenantId) -> Result<TenantSettings, StoreError> {
        let found = sqlx::query("SELECT body FROM settings WHERE tenant_id = $1")
            .bind(tenant.as_str())
            .fetch_optional(&self.inner.readers)
            .await?;
        found.map_or_else(|| Ok(TenantSettings::default()), |r| row::json(&r, "body"))
    }

    /// Replaces the tenant's settings; returns the new revision.
    pub async fn put_settings(
        &self,
        tenant: &TenantId,
        settings: &TenantSettings,
        facts: &[OutboxRow],
    ) -> Result<i64, StoreError> {
        let mut tx = self.begin_write().await?;
        let revision = next_revision(&mut tx).await?;
        sqlx::query(
            "INSERT INTO settings (tenant_id, body, revision) VALUES ($1, $2, $3)
             ON CONFLICT (tenant_id) DO UPDATE SET body = excluded.body, revision = excluded.revision",
        )
        .bind(tenant.as_str())
        .bind(row::to_json(settings, "settings.body")?)
        .bind(revision)
        .execute(&mut *tx)
        .await
        .map_err(on_insert(tenant, "settings"))?;
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(revision)
    }

    /// Sets the secret that webhooks of `adapter` are signed with.
    pub async fn put_webhook_secret(&self, tenant: &TenantId, adapter: &str, secret: &str) -> Result<(), StoreError> {
        check_name("adapter name", adapter)?;
        check_len("webhook secret", secret, MAX_SECRET)?;
        sqlx::query(
            "INSERT INTO webhook_secrets (tenant_id, adapter, secret, updated_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (tenant_id, adapter) DO UPDATE SET secret = excluded.secret, updated_at = excluded.updated_at",
        )
        .bind(tenant.as_str())
        .bind(adapter)
        .bind(secret)
        .bind(self.now().as_micros())
        .execute(&self.inner.writer)
        .await
        .map_err(on_insert(tenant, "webhook secret"))?;
        Ok(())
    }

    /// The secret that webhooks of `adapter` are signed with.
    pub async fn webhook_secret(&self, tenant: &TenantId, adapter: &str) -> Result<Option<Secret>, StoreError> {
        let found: Option<String> =
            sqlx::query_scalar("SELECT secret FROM webhook_secrets WHERE tenant_id = $1 AND adapter = $2")
                .bind(tenant.as_str())
                .bind(adapter)
                .fetch_optional(&self.inner.readers)
                .await?;
        Ok(found.map(Secret::new))
    }
}
