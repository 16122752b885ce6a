//! The whole of what edges believe, to rewrite the control feed from: a lost feed is rewritten, never restarted.

use std::collections::BTreeMap;

use aegis_model::{EntryKind, Hold, TenantId};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{Store, StoreError, agents, containment, mcp, registry, row};

/// One entry of the feed, not yet signed.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedEntry {
    pub tenant_id: TenantId,
    pub kind: EntryKind,
    /// Unique within (tenant, kind): the agent's id, the tool, the server's key, the channel, the resource,
    /// `settings`, `policies`, or `<target type>:<target id>` of a containment state.
    pub name: String,
    pub revision: i64,
    pub body: Value,
}

fn entry<T: Serialize>(
    tenant_id: TenantId,
    kind: EntryKind,
    name: String,
    revision: i64,
    record: &T,
) -> Result<FeedEntry, StoreError> {
    let body = serde_json::to_value(record)
        .map_err(|error| StoreError::Unreadable { column: "feed entry", detail: error.to_string() })?;
    Ok(FeedEntry { tenant_id, kind, name, revision, body })
}

impl Store {
    /// Every entry of every tenant, as of one moment, ordered by revision.
    pub async fn feed_entries(&self) -> Result<Vec<FeedEntry>, StoreError> {
        let mut tx = self.begin_read().await?;
        let mut entries = Vec::new();

        for r in &sqlx::query("SELECT tenant_id, body, revision FROM settings").fetch_all(&mut *tx).await? {
            let body: Value = row::json(r, "body")?;
            entries.push(entry(row::tenant(r)?, EntryKind::Settings, "settings".to_owned(), row::get(r, "revision")?, &body)?);
        }
        for r in &sqlx::query("SELECT tenant_id, body, revision FROM policies").fetch_all(&mut *tx).await? {
            let body = json!({ "policies": row::get::<&str>(r, "body")? });
            entries.push(entry(row::tenant(r)?, EntryKind::Policies, "policies".to_owned(), row::get(r, "revision")?, &body)?);
        }
        for r in &sqlx::query("SELECT * FROM agents").fetch_all(&mut *tx).await? {
            let record = agents::agent(r)?;
            entries.push(entry(row::tenant(r)?, EntryKind::Agent, record.id.clone(), row::get(r, "revision")?, &record)?);
        }
        let tools = sqlx::query("SELECT * FROM tools").fetch_all(&mut *tx).await?;
        let actions = sqlx::query("SELECT * FROM actions ORDER BY tenant_id, tool, place").fetch_all(&mut *tx).await?;
        for (tenant, record, revision) in registry::join_tools(&tools, &actions)? {
            entries.push(entry(tenant, EntryKind::Tool, record.tool.clone(), revision, &record)?);
        }
        let servers = sqlx::query("SELECT * FROM mcp_servers").fetch_all(&mut *tx).await?;
        let tools = sqlx::query("SELECT * FROM mcp_tools ORDER BY tenant_id, server_key, place").fetch_all(&mut *tx).await?;
        for (tenant, record, revision) in mcp::join_servers(&servers, &tools)? {
            entries.push(entry(tenant, EntryKind::McpServer, record.key.clone(), revision, &record)?);
        }
        for r in &sqlx::query("SELECT * FROM channels").fetch_all(&mut *tx).await? {
            let record = registry::channel(r)?;
            entries.push(entry(row::tenant(r)?, EntryKind::Channel, record.channel.clone(), row::get(r, "revision")?, &record)?);
        }
        for r in &sqlx::query("SELECT * FROM resources").fetch_all(&mut *tx).await? {
            let record = registry::resource(r)?;
            entries.push(entry(
                row::tenant(r)?,
                EntryKind::Resource,
                record.resource.clone(),
                row::get(r, "revision")?,
                &record,
            )?);
        }

        let mut holds: BTreeMap<(String, String, String), Vec<Hold>> = BTreeMap::new();
        let rows = sqlx::query("SELECT * FROM containment_holds WHERE ended_at IS NULL ORDER BY since, hold_id")
            .fetch_all(&mut *tx)
            .await?;
        for r in &rows {
            let target = (row::get(r, "tenant_id")?, row::get(r, "target_type")?, row::get(r, "target_id")?);
            holds.entry(target).or_default().push(containment::hold(r)?);
        }
        for r in &sqlx::query("SELECT * FROM containment_states").fetch_all(&mut *tx).await? {
            let target = (row::get(r, "tenant_id")?, row::get(r, "target_type")?, row::get(r, "target_id")?);
            let state = containment::state(r, holds.remove(&target).unwrap_or_default())?;
            let name = format!("{}:{}", state.target_type, state.target_id);
            entries.push(entry(state.tenant_id.clone(), EntryKind::Containment, name, state.revision, &state)?);
        }
        entries.sort_by_key(|e| e.revision);
        Ok(entries)
    }
}
