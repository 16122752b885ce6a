//! Registered MCP servers and the tools their manifests declared. A put replaces the whole entry.

use std::collections::BTreeMap;

use aegis_model::{McpServerRecord, McpToolRecord, TenantId, ToolRecord};
use sqlx::any::AnyRow;

use crate::error::on_insert;
use crate::pool::Transaction;
use crate::registry::{MAX_MEMBERS, check_quota, write_tool};
use crate::tenants::check_name;
use crate::{OutboxRow, Store, StoreError, next_revision, outbox, page, row};

/// Puts each server's tools to it.
pub(crate) fn join_servers(servers: &[AnyRow], tools: &[AnyRow]) -> Result<Vec<(TenantId, McpServerRecord, i64)>, StoreError> {
    let mut by_server: BTreeMap<(&str, &str), Vec<McpToolRecord>> = BTreeMap::new();
    for r in tools {
        let tool = McpToolRecord { name: row::get(r, "name")?, manifest_hash: row::get(r, "manifest_hash")? };
        by_server.entry((row::get(r, "tenant_id")?, row::get(r, "server_key")?)).or_default().push(tool);
    }
    let mut joined = Vec::with_capacity(servers.len());
    for r in servers {
        let key: &str = row::get(r, "server_key")?;
        let tools = by_server.remove(&(row::get::<&str>(r, "tenant_id")?, key)).unwrap_or_default();
        let record = McpServerRecord {
            key: key.to_owned(),
            name: row::get(r, "name")?,
            url: row::get(r, "url")?,
            tools,
            drifted: row::flag(r, "drifted")?,
            drifted_tools: row::json(r, "drifted_tools")?,
        };
        joined.push((row::tenant(r)?, record, row::get(r, "revision")?));
    }
    Ok(joined)
}

/// Puts a server and its tools in the place of what is registered; the new revision.
async fn write_server(tx: &mut Transaction, tenant: &TenantId, record: &McpServerRecord) -> Result<i64, StoreError> {
    check_name("MCP server key", &record.key)?;
    if record.tools.len().max(record.drifted_tools.len()) > MAX_MEMBERS {
        return Err(StoreError::Invalid { what: "MCP server", why: "has too many tools" });
    }
    let revision = next_revision(tx).await?;
    sqlx::query(
        "INSERT INTO mcp_servers (tenant_id, server_key, name, url, drifted, drifted_tools, revision) VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (tenant_id, server_key) DO UPDATE SET name = excluded.name, url = excluded.url,
             drifted = excluded.drifted, drifted_tools = excluded.drifted_tools, revision = excluded.revision",
    )
    .bind(tenant.as_str())
    .bind(record.key.as_str())
    .bind(record.name.as_str())
    .bind(record.url.as_deref())
    .bind(row::flag_value(record.drifted))
    .bind(row::to_json(&record.drifted_tools, "drifted_tools")?)
    .bind(revision)
    .execute(&mut **tx)
    .await
    .map_err(on_insert(tenant, "MCP server"))?;
    check_quota(tx, tenant, "MCP servers", "SELECT COUNT(*) FROM mcp_servers WHERE tenant_id = $1").await?;
    sqlx::query("DELETE FROM mcp_tools WHERE tenant_id = $1 AND server_key = $2")
        .bind(tenant.as_str())
        .bind(record.key.as_str())
        .execute(&mut **tx)
        .await?;
    for (place, tool) in (0i64..).zip(&record.tools) {
        check_name("MCP tool name", &tool.name)?;
        sqlx::query("INSERT INTO mcp_tools (tenant_id, server_key, name, place, manifest_hash) VALUES ($1, $2, $3, $4, $5)")
            .bind(tenant.as_str())
            .bind(record.key.as_str())
            .bind(tool.name.as_str())
            .bind(place)
            .bind(tool.manifest_hash.as_str())
            .execute(&mut **tx)
            .await
            .map_err(on_insert(tenant, "tool of this MCP server"))?;
    }
    Ok(revision)
}

impl Store {
    /// Registers or replaces an MCP server with exactly these tools; returns the new revision.
    pub async fn put_mcp_server(
        &self,
        tenant: &TenantId,
        record: &McpServerRecord,
        facts: &[OutboxRow],
    ) -> Result<i64, StoreError> {
        let mut tx = self.begin_write().await?;
        let revision = write_server(&mut tx, tenant, record).await?;
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok(revision)
    }

    /// Registers or replaces an MCP server and the tool whose actions its tools are: both or neither. Returns the new revisions, of the server and
    /// of the tool.
    pub async fn put_mcp_tools(
        &self,
        tenant: &TenantId,
        server: &McpServerRecord,
        tool: &ToolRecord,
        facts: &[OutboxRow],
    ) -> Result<(i64, i64), StoreError> {
        let mut tx = self.begin_write().await?;
        let of_tool = write_tool(&mut tx, tenant, tool).await?;
        let of_server = write_server(&mut tx, tenant, server).await?;
        outbox::write(&mut tx, tenant, facts).await?;
        tx.commit().await?;
        Ok((of_server, of_tool))
    }

    /// An MCP server with its tools.
    pub async fn mcp_server(&self, tenant: &TenantId, key: &str) -> Result<Option<McpServerRecord>, StoreError> {
        let mut tx = self.begin_read().await?;
        let servers = sqlx::query("SELECT * FROM mcp_servers WHERE tenant_id = $1 AND server_key = $2")
            .bind(tenant.as_str())
            .bind(key)
            .fetch_all(&mut *tx)
            .await?;
        let tools = sqlx::query("SELECT * FROM mcp_tools WHERE tenant_id = $1 AND server_key = $2 ORDER BY place")
            .bind(tenant.as_str())
            .bind(key)
            .fetch_all(&mut *tx)
            .await?;
        Ok(join_servers(&servers, &tools)?.pop().map(|(_, record, _)| record))
    }

    /// The tenant's MCP servers with their tools, by key.
    pub async fn list_mcp_servers(&self, tenant: &TenantId, limit: u32, offset: u32) -> Result<Vec<McpServerRecord>, StoreError> {
        let (limit, offset) = page(limit, offset);
        let mut tx = self.begin_read().await?;
        let servers = sqlx::query("SELECT * FROM mcp_servers WHERE tenant_id = $1 ORDER BY server_key LIMIT $2 OFFSET $3")
            .bind(tenant.as_str())
            .bind(limit)
            .bind(offset)
            .fetch_all(&mut *tx)
            .await?;
        let tools = sqlx::query(
            "SELECT * FROM mcp_tools WHERE tenant_id = $1 AND server_key IN
                 (SELECT server_key FROM mcp_servers WHERE tenant_id = $1 ORDER BY server_key LIMIT $2 OFFSET $3)
             ORDER BY server_key, place",
        )
        .bind(tenant.as_str())
        .bind(limit)
        .bind(offset)
        .fetch_all(&mut *tx)
        .await?;
        Ok(join_servers(&servers, &tools)?.into_iter().map(|(_, record, _)| record).collect())
    }
}
