//! Registered tools with their actions, channels, resources, and a tenant's own policies. A put replaces the whole entry.

use std::collections::BTreeMap;

use aegis_model::{ActionRecord, ChannelRecord, DefaultDecision, ResourceRecord, TenantId, ToolRecord};
use sqlx::any::AnyRow;

use crate::error::on_insert;
use crate::pool::Transaction;
use crate::tenants::{check_name, check_resource_name};
use crate::{MAX_REGISTERED, OutboxRow, Store, StoreError, next_revision, outbox, page, row};

/// Most actions of one tool, and most tools of one MCP server.
pub(crate) const MAX_MEMBERS: usize = 5000;
/// Longest policy text of a tenant, in bytes.
const MAX_POLICIES: usize = 4 * 1024 * 1024;

/// Refuses (by rolling back) the entry that goes past the tenant's quota.
pub(crate) async fn check_quota(
    tx: &mut Transaction,
    tenant: &TenantId,
    what: &'static str,
    count: &'static str,
) -> Result<(), StoreError> {
    let registered: i64 = sqlx::query_scalar(count).bind(tenant.as_str()).fetch_one(&mut **tx).await?;
    if registered > MAX_REGISTERED { Err(StoreError::LimitReached { what, limit: MAX_REGISTERED }) } else { Ok(()) }
}

fn action(r: &AnyRow) -> Result<ActionRecord, StoreError> {
    let default_decision = match row::get::<&str>(r, "default_decision")? {
        "policy" => DefaultDecision::Policy,
        "allow" => DefaultDecision::Allow,
        // Only `deny` is left: the table's check admits no other word.
        _ => DefaultDecision::Deny,
    };
    Ok(ActionRecord {
        action: row::get(r, "action")?,
        description: row::get(r, "description")?,
        risk: row::word(r, "risk")?,
        mutates_state: row::flag(r, "mutates_state")?,
        data_access: row::word(r, "data_access")?,
        destination: row::word(r, "destination")?,
        target_parameter: row::get(r, "target_parameter")?,
        parameters: row::optional_json(r, "parameters")?,
        approval_required: row::flag(r, "approval_required")?,
        default_decision,
    })
}

/// Puts each tool's actions to it. Both come ordered by (tenant, tool).
pub(crate) fn join_tools(tools: &[AnyRow], actions: &[AnyRow]) -> Result<Vec<(TenantId, ToolRecord, i64)>, StoreError> {
    let mut by_tool: BTreeMap<(&str, &str), Vec<ActionRecord>> = BTreeMap::new();
    for r in actions {
        by_tool.entry((row::get(r, "tenant_id")?, row::get(r, "tool")?)).or_default().push(action(r)?);
    }
    let mut joined = Vec::with_capacity(tools.len());
    for r in tools {
        let tool: &str = row::get(r, "tool")?;
        let actions = by_tool.remove(&(row::get::<&str>(r, "tenant_id")?, tool)).unwrap_or_default();
        let record = ToolRecord {
            tool: tool.to_owned(),
            name: row::get(r, "name")?,
            default_risk: row::word(r, "default_risk")?,
            actions,
        };
        joined.push((row::tenant(r)?, record, row::get(r, "revision")?));
    }
    Ok(joined)
}

pub(crate) fn channel(r: &AnyRow) -> Result<ChannelRecord, StoreError> {
    Ok(ChannelRecord {
        channel: row::get(r, "channel")?,
        source_trust: row::trust(r, "source_trust")?,
        public_key: row::get(r, "public_key")?,
    })
}

pub(crate) fn resource(r: &AnyRow) -> Result<ResourceRecord, StoreError> {
    Ok(ResourceRecord {
        resource: row::get(r, "resource")?,
        tool: row::get(r, "tool")?,
        visibility: row::word(r, "visibility")?,
        owner: row::get(r, "owner")?,
        observed_at: row::optional_time(r, "observed_at")?,
    })
}

/// Puts a tool and its actions in the place of what is registered; the new revision.
pub(crate) async fn write_tool(tx: &mut Transaction, tenant: &TenantId, record: &ToolRecord) -> Result<i64, StoreError> {
    check_name("tool", &record.tool)?;
    if record.actions.len() > MAX_MEMBERS {
        return Err(StoreError::Invalid { what: "tool", why: "has too many actions" });
    }
    let revision = next_revision(tx).await?;
    sqlx::query(
        "INSERT INTO tools (tenant_id, tool, name, default_risk, revision) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (tenant_id, tool) DO UPDATE SET
             name = excluded.name, default_risk = excluded.default_risk, revision = excluded.revision",
    )
    .bind(tenant.as_str())
    .bind(record.tool.as_str())
    .bind(record.name.as_str())
    .bind(record.default_risk.as_str())
    .bind(revision)
    .execute(&mut **tx)
    .await
    .map_err(on_insert(tenant, "tool"))?;
    check_quota(tx, tenant, "tools", "SELECT COUNT(*) FROM tools WHERE tenant_id = $1").await?;
    sqlx::query("DELETE FROM actions WHERE tenant_id = $1 AND tool = $2")
        .bind(tenant.as_str())
        .bind(record.tool.as_str())
        .execute(&mut **tx)
        .await?;
    for (place, action) in (0i64..).zip(&record.actions) {
        check_name("action", &action.action)?;
        let parameters = action.parameters.as_ref().map(|schema| row::to_json(schema, "parameters")).transpose()?;
        sqlx::query(
            "INSERT INTO actions (tenant_id, tool, action, place, description, risk, mutates_state, data_access, destination,
                                  target_parameter, parameters, approval_required, default_decision)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        )
        .bind(tenant.as_str())
        .bind(record.tool.as_str())
        .bind(action.action.as_str())
        .bind(place)
        .bind(action.description.as_deref())
        .bind(action.risk.as_str())
        .bind(row::flag_value(action.mutates_state))
        .bind(action.data_access.as_str())
        .bind(action.destination.as_str())
        .bind(action.target_parameter.as_deref())
        .bind(parameters)
        .bind(row::flag_value(action.approval_required))
        .bind(action.default_decision.as_str())
        .execute(&mut **tx)
        .await
        .map_err(on_insert(tenant, "action of this tool"))?;
    }
    Ok(revision)
}

impl Store {
    /// Registers or replaces a tool with exactly these actions; returns the new revision.
    pub async fn put_tool(&self, tenant: &TenantId, record: &ToolRecord, facts: &[OutboxRow]) -> Result<i64, StoreError> {
        let mut tx = self.begin_write().await?;
        let revision = write_tool(&mut tx, tenant, record).await?;
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(revision)
    }

    /// A tool with its actions, in the order in which they were registered.
    pub async fn tool(&self, tenant: &TenantId, tool: &str) -> Result<Option<ToolRecord>, StoreError> {
        let mut tx = self.begin_read().await?;
        let tools = sqlx::query("SELECT * FROM tools WHERE tenant_id = $1 AND tool = $2")
            .bind(tenant.as_str())
            .bind(tool)
            .fetch_all(&mut *tx)
            .await?;
        let actions = sqlx::query("SELECT * FROM actions WHERE tenant_id = $1 AND tool = $2 ORDER BY place")
            .bind(tenant.as_str())
            .bind(tool)
            .fetch_all(&mut *tx)
            .await?;
        Ok(join_tools(&tools, &actions)?.pop().map(|(_, record, _)| record))
    }

    /// All tools of the tenant, by name.
    pub async fn list_tools(&self, tenant: &TenantId) -> Result<Vec<ToolRecord>, StoreError> {
        let mut tx = self.begin_read().await?;
        let tools = sqlx::query("SELECT * FROM tools WHERE tenant_id = $1 ORDER BY tool")
            .bind(tenant.as_str())
            .fetch_all(&mut *tx)
            .await?;
        let actions = sqlx::query("SELECT * FROM actions WHERE tenant_id = $1 ORDER BY tool, place")
            .bind(tenant.as_str())
            .fetch_all(&mut *tx)
            .await?;
        Ok(join_tools(&tools, &actions)?.into_iter().map(|(_, record, _)| record).collect())
    }

    /// Registers or replaces a channel; returns the new revision.
    pub async fn put_channel(&self, tenant: &TenantId, record: &ChannelRecord, facts: &[OutboxRow]) -> Result<i64, StoreError> {
        check_name("channel", &record.channel)?;
        let mut tx = self.begin_write().await?;
        let revision = next_revision(&mut tx).await?;
        sqlx::query(
            "INSERT INTO channels (tenant_id, channel, source_trust, public_key, revision) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (tenant_id, channel) DO UPDATE SET
                 source_trust = excluded.source_trust, public_key = excluded.public_key, revision = excluded.revision",
        )
        .bind(tenant.as_str())
        .bind(record.channel.as_str())
        .bind(record.source_trust.as_str())
        .bind(record.public_key.as_deref())
        .bind(revision)
        .execute(&mut *tx)
        .await
        .map_err(on_insert(tenant, "channel"))?;
        check_quota(&mut tx, tenant, "channels", "SELECT COUNT(*) FROM channels WHERE tenant_id = $1").await?;
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(revision)
    }

    /// The tenant's channels, by name.
    pub async fn list_channels(&self, tenant: &TenantId, limit: u32, offset: u32) -> Result<Vec<ChannelRecord>, StoreError> {
        let (limit, offset) = page(limit, offset);
        let rows = sqlx::query("SELECT * FROM channels WHERE tenant_id = $1 ORDER BY channel LIMIT $2 OFFSET $3")
            .bind(tenant.as_str())
            .bind(limit)
            .bind(offset)
            .fetch_all(&self.inner.readers)
            .await?;
        rows.iter().map(channel).collect()
    }

    /// Registers or replaces a resource; returns the new revision.
    pub async fn put_resource(&self, tenant: &TenantId, record: &ResourceRecord, facts: &[OutboxRow]) -> Result<i64, StoreError> {
        check_resource_name(&record.resource)?;
        let mut tx = self.begin_write().await?;
        let revision = next_revision(&mut tx).await?;
        sqlx::query(
            "INSERT INTO resources (tenant_id, resource, tool, visibility, owner, observed_at, revision)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (tenant_id, resource) DO UPDATE SET tool = excluded.tool, visibility = excluded.visibility,
                 owner = excluded.owner, observed_at = excluded.observed_at, revision = excluded.revision",
        )
        .bind(tenant.as_str())
        .bind(record.resource.as_str())
        .bind(record.tool.as_deref())
        .bind(record.visibility.as_str())
        .bind(record.owner.as_deref())
        .bind(record.observed_at.map(aegis_model::Timestamp::as_micros))
        .bind(revision)
        .execute(&mut *tx)
        .await
        .map_err(on_insert(tenant, "resource"))?;
        check_quota(&mut tx, tenant, "resources", "SELECT COUNT(*) FROM resources WHERE tenant_id = $1").await?;
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(revision)
    }

    /// Notes that a source said at `at` what is known of a resource already. A person's record has no time, and gets none.
    pub async fn raise_observed_at(&self, tenant: &TenantId, name: &str, at: aegis_model::Timestamp) -> Result<(), StoreError> {
        sqlx::query("UPDATE resources SET observed_at = $3 WHERE tenant_id = $1 AND resource = $2 AND observed_at < $3")
            .bind(tenant.as_str())
            .bind(name)
            .bind(at.as_micros())
            .execute(&self.inner.writer)
            .await?;
        Ok(())
    }

    /// A resource by its full name.
    pub async fn resource(&self, tenant: &TenantId, name: &str) -> Result<Option<ResourceRecord>, StoreError> {
        let found = sqlx::query("SELECT * FROM resources WHERE tenant_id = $1 AND resource = $2")
            .bind(tenant.as_str())
            .bind(name)
            .fetch_optional(&self.inner.readers)
            .await?;
        found.as_ref().map(resource).transpose()
    }

    /// The tenant's resources, by name.
    pub async fn list_resources(&self, tenant: &TenantId, limit: u32, offset: u32) -> Result<Vec<ResourceRecord>, StoreError> {
        let (limit, offset) = page(limit, offset);
        let rows = sqlx::query("SELECT * FROM resources WHERE tenant_id = $1 ORDER BY resource LIMIT $2 OFFSET $3")
            .bind(tenant.as_str())
            .bind(limit)
            .bind(offset)
            .fetch_all(&self.inner.readers)
            .await?;
        rows.iter().map(resource).collect()
    }

    /// Replaces the tenant's own policies (Cedar text, may be empty); returns the new revision.
    pub async fn put_policies(&self, tenant: &TenantId, text: &str, facts: &[OutboxRow]) -> Result<i64, StoreError> {
        if text.len() > MAX_POLICIES {
            return Err(StoreError::Invalid { what: "policy text", why: "is longer than 4 MiB" });
        }
        let mut tx = self.begin_write().await?;
        let revision = next_revision(&mut tx).await?;
        sqlx::query(
            "INSERT INTO policies (tenant_id, body, revision) VALUES ($1, $2, $3)
             ON CONFLICT (tenant_id) DO UPDATE SET body = excluded.body, revision = excluded.revision",
        )
        .bind(tenant.as_str())
        .bind(text)
        .bind(revision)
        .execute(&mut *tx)
        .await
        .map_err(on_insert(tenant, "policies"))?;
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(revision)
    }

    /// The tenant's own policies.
    pub async fn policies(&self, tenant: &TenantId) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar("SELECT body FROM policies WHERE tenant_id = $1")
            .bind(tenant.as_str())
            .fetch_optional(&self.inner.readers)
            .await?)
    }
}
