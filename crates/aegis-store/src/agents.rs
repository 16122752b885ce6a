//! Registered agents. Unique by (tenant, agent_key): registering a known key again updates the record and keeps its id.

use aegis_model::{AgentRecord, TenantId, Timestamp};
use sqlx::any::AnyRow;

use crate::error::on_insert;
use crate::registry::check_quota;
use crate::tenants::check_name;
use crate::{OutboxRow, Store, StoreError, next_revision, outbox, page, row};

/// Under whose keys an agent is registered and handed a token.
#[derive(Clone, Copy, Debug)]
pub struct RegisteredBy<'a> {
    /// The key that the agent belongs to.
    pub registrar: &'a str,
    /// The key that hands out a token now.
    pub issuer: &'a str,
    /// When that token ends.
    pub token_until: Timestamp,
}

/// A key on an agent's side: its registrar's, or one that handed out tokens of it. Revoked ones too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentKey {
    pub key_id: String,
    /// Whose it is; none if no such key is kept.
    pub name: Option<String>,
    /// When the last token it handed out ends; none in the registrar's own entry.
    pub tokens_until: Option<Timestamp>,
}

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
    /// stands, whether it is new, and its revision. The registrar is the one named last; every key that issued a token stays known.
    pub async fn upsert_agent(
        &self,
        tenant: &TenantId,
        record: &AgentRecord,
        by: RegisteredBy<'_>,
        facts: &[OutboxRow],
    ) -> Result<(AgentRecord, bool, i64), StoreError> {
        check_name("agent id", &record.id)?;
        check_name("agent key", &record.agent_key)?;
        check_name("agent name", &record.name)?;
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
        .bind(by.registrar)
        .bind(record.created_at.as_micros())
        .bind(revision)
        .fetch_one(&mut *tx)
        .await
        .map_err(on_insert(tenant, "agent id"))?;
        let stored = agent(&stored)?;
        if created {
            check_quota(&mut tx, tenant, "agents", "SELECT COUNT(*) FROM agents WHERE tenant_id = $1").await?;
        }
        sqlx::query(
            "INSERT INTO agent_issuers (tenant_id, agent_id, key_id, tokens_until) VALUES ($1, $2, $3, $4)
             ON CONFLICT (tenant_id, agent_id, key_id) DO UPDATE SET tokens_until =
                 CASE WHEN excluded.tokens_until > agent_issuers.tokens_until THEN excluded.tokens_until
                      ELSE agent_issuers.tokens_until END",
        )
        .bind(tenant.as_str())
        .bind(stored.id.as_str())
        .bind(by.issuer)
        .bind(by.token_until.as_micros())
        .execute(&mut *tx)
        .await?;
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

    /// The keys on the agent's side: the registrar's first, then every key that ever handed out a token of it. Nothing for an agent that
    /// does not exist.
    pub async fn agent_keys(&self, tenant: &TenantId, id: &str) -> Result<Vec<AgentKey>, StoreError> {
        let mut tx = self.begin_read().await?;
        let registrar = sqlx::query(
            "SELECT a.registrar AS key_id, k.name FROM agents a
             LEFT JOIN api_keys k ON k.tenant_id = a.tenant_id AND k.key_id = a.registrar
             WHERE a.tenant_id = $1 AND a.id = $2",
        )
        .bind(tenant.as_str())
        .bind(id)
        .fetch_optional(&mut *tx)
        .await?;
        let issuers = sqlx::query(
            "SELECT i.key_id, i.tokens_until, k.name FROM agent_issuers i
             LEFT JOIN api_keys k ON k.tenant_id = i.tenant_id AND k.key_id = i.key_id
             WHERE i.tenant_id = $1 AND i.agent_id = $2 ORDER BY i.key_id",
        )
        .bind(tenant.as_str())
        .bind(id)
        .fetch_all(&mut *tx)
        .await?;
        let mut keys = Vec::with_capacity(issuers.len() + 1);
        if let Some(r) = &registrar {
            keys.push(AgentKey { key_id: row::get(r, "key_id")?, name: row::get(r, "name")?, tokens_until: None });
        }
        for r in &issuers {
            let tokens_until = Some(row::time(r, "tokens_until")?);
            keys.push(AgentKey { key_id: row::get(r, "key_id")?, name: row::get(r, "name")?, tokens_until });
        }
        Ok(keys)
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
