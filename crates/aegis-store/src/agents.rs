//! Registered agents. Unique by (tenant, agent_key): registering a known key again updates the record and keeps its id.

use aegis_model::{AgentRecord, TenantId};
use sqlx::any::AnyRow;

use crate::error::on_insert;
use crate::registry::check_quota;
use crate::tenants::{MAX_NAME, check_len};
use crate::{OutboxRow, Store, StoreError, next_revision, outbox, page, row};

pub(crate) fn agent(r: &AnyRow) -> Result<AgentRecord, StoreError> {
    Ok(AgentRecord {
        id: row::get(r, "id")?,
        agent_key: row::get(r, "agent_key")?,
        name: row::get(r, "name")?,
        owner_team: row::get(r, "owner_team")?,
        environment: row::get(r, "environment")?,
        risk_tier: row::word(r, "risk_tier")?,
        trust_ceiling: row::trust(r, "trust_ceiling")?,
        created_at: row::time(r, "created_at")?,
    })
}

impl Store {
    /// Registers an agent, or updates the one with this `agent_key`, which keeps its `id` and `created_at`. Returns the record as it
    /// stands, whether it is new, and its revision. The registrar is the key that registered it last.
    pub async fn upsert_agent(
        &self,
        tenant: &TenantId,
        record: &AgentRecord,
        registrar_key_id: &str,
        facts: &[OutboxRow],
    ) -> Result<(AgentRecord, bool, i64), StoreError> {
        check_len("agent id", &record.id, MAX_NAME)?;
        check_len("agent key", &record.agent_key, MAX_NAME)?;
        check_len("agent name", &record.name, MAX_NAME)?;
        let mut tx = self.begin_write().await?;
        let known: Option<i64> = sqlx::query_scalar("SELECT 1 FROM agents WHERE tenant_id = $1 AND agent_key = $2")
            .bind(tenant.as_str())
            .bind(record.agent_key.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        let created = known.is_none();
        let revision = next_revision(&mut tx).await?;
        let stored = sqlx::query(
            "INSERT INTO agents (tenant_id, id, agent_key, name, owner_team, environment, risk_tier, trust_ceiling, registrar,
                                 created_at, revision)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             ON CONFLICT (tenant_id, agent_key) DO UPDATE SET
                 name = excluded.name, owner_team = excluded.owner_team, environment = excluded.environment,
                 risk_tier = excluded.risk_tier, trust_ceiling = excluded.trust_ceiling, registrar = excluded.registrar,
                 revision = excluded.revision
             RETURNING *",
        )
        .bind(tenant.as_str())
        .bind(record.id.as_str())
        .bind(record.agent_key.as_str())
        .bind(record.name.as_str())
        .bind(record.owner_team.as_deref())
        .bind(record.environment.as_str())
        .bind(record.risk_tier.as_str())
        .bind(record.trust_ceiling.as_str())
        .bind(registrar_key_id)
        .bind(record.created_at.as_micros())
        .bind(revision)
        .fetch_one(&mut *tx)
        .await
        .map_err(on_insert(tenant, "agent id"))?;
        let stored = agent(&stored)?;
        if created {
            check_quota(&mut tx, tenant, "agents", "SELECT COUNT(*) FROM agents WHERE tenant_id = $1").await?;
        }
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok((stored, created, revision))
    }

    /// The agent with this id.
    pub async fn agent(&self, tenant: &TenantId, id: &str) -> Result<Option<AgentRecord>, StoreError> {
        let found = sqlx::query("SELECT * FROM agents WHERE tenant_id = $1 AND id = $2")
            .bind(tenant.as_str())
            .bind(id)
            .fetch_optional(&self.inner.readers)
            .await?;
        found.as_ref().map(agent).transpose()
    }

    /// The agent registered under this key.
    pub async fn agent_by_key(&self, tenant: &TenantId, agent_key: &str) -> Result<Option<AgentRecord>, StoreError> {
        let found = sqlx::query("SELECT * FROM agents WHERE tenant_id = $1 AND agent_key = $2")
            .bind(tenant.as_str())
            .bind(agent_key)
            .fetch_optional(&self.inner.readers)
            .await?;
        found.as_ref().map(agent).transpose()
    }

    /// The id of the API key that registered the agent (last).
    pub async fn agent_registrar(&self, tenant: &TenantId, id: &str) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar("SELECT registrar FROM agents WHERE tenant_id = $1 AND id = $2")
            .bind(tenant.as_str())
            .bind(id)
            .fetch_optional(&self.inner.readers)
            .await?)
    }

    /// The tenant's agents, newest first.
    pub async fn list_agents(&self, tenant: &TenantId, limit: u32, offset: u32) -> Result<Vec<AgentRecord>, StoreError> {
        let (limit, offset) = page(limit, offset);
        let rows = sqlx::query("SELECT * FROM agents WHERE tenant_id = $1 ORDER BY created_at DESC, id LIMIT $2 OFFSET $3")
            .bind(tenant.as_str())
            .bind(limit)
            .bind(offset)
            .fetch_all(&self.inner.readers)
            .await?;
        rows.iter().map(agent).collect()
    }
}
