//! Consuming an approval: one conditional update, in which everything that speaks against it is looked at.

use aegis_model::{ApprovalStatus, EventId, FrozenAction, TargetType, TenantId, Timestamp, ToolCall};

use crate::approvals::{Tx, standing};
use crate::{OutboxRow, Store, StoreError, containment, outbox, row};

/// What came of a consume. Only `Consumed` changed anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumeResult {
    Consumed,
    /// This very request consumed it before, and nothing speaks against it since. With the event of that consume, where it had one.
    Repeated(Option<EventId>),
    /// This request consumed it before, with another claimed hash.
    RequestMismatch,
    AlreadyConsumed,
    NotApproved(ApprovalStatus),
    HashMismatch,
    /// The agent is frozen, quarantined or revoked.
    Contained,
    /// The action is a tool of an MCP server that is quarantined.
    ServerQuarantined,
    /// The action is a tool of an MCP server whose manifest is not the registered one.
    ManifestDrifted,
    Expired,
    NotFound,
}

/// The tool of an MCP server's calls is this and the server's key.
const MCP_TOOL_PREFIX: &str = "mcp:";

/// How long after a consume its request is answered again, seconds: longer than any call of a client takes with all its repetitions (ten minutes),
/// and no longer than an approval stands by default.
const REPEATED_FOR_S: i64 = 900;

impl Store {
    /// Consumes an approved, unexpired approval whose current hash is `claimed_hash`.
    /// INVARIANT L-CONSUME: one conditional update decides, so of any number of concurrent calls exactly one is `Consumed`; the
    /// facts are written only by that one. A wrong hash leaves the approval as it was. The same update refuses an agent that is
    /// contained by then, and a tool of an MCP server that is quarantined or has drifted by then.
    ///
    /// `request`: who asks and under which request id, as one digest. Whoever asks again under the one that consumed is told so (`Repeated`),
    /// for a quarter of an hour, and only while a consume would not be refused for what holds the action: it is the answer that is repeated,
    /// never the consume.
    pub async fn consume_approval(
        &self,
        tenant: &TenantId,
        id: &str,
        claimed_hash: &str,
        request: Option<&str>,
        now: Timestamp,
        facts: &[OutboxRow],
    ) -> Result<ConsumeResult, StoreError> {
        let mut tx = self.begin_write().await?;
        let server = mcp_server_of(&mut tx, tenant, id).await?;
        let done = sqlx::query(
            "UPDATE approvals SET status = 'CONSUMED', consumed_at = $4, consume_request = $6, consume_event = $7
             WHERE tenant_id = $1 AND approval_id = $2 AND current_hash = $3 AND status = 'APPROVED' AND expires_at > $4
               AND NOT EXISTS (SELECT 1 FROM containment_states c
                   WHERE c.tenant_id = $1 AND c.target_type = 'agent' AND c.target_id = approvals.agent_id AND c.revoked = 1)
               AND NOT EXISTS (SELECT 1 FROM containment_holds h
                   WHERE h.tenant_id = $1 AND h.target_type = 'agent' AND h.target_id = approvals.agent_id
                     AND h.ended_at IS NULL AND (h.until IS NULL OR h.until > $4))
               AND NOT EXISTS (SELECT 1 FROM containment_states c
                   WHERE c.tenant_id = $1 AND c.target_type = 'mcp_server' AND c.target_id = $5 AND c.revoked = 1)
               AND NOT EXISTS (SELECT 1 FROM containment_holds h
                   WHERE h.tenant_id = $1 AND h.target_type = 'mcp_server' AND h.target_id = $5
                     AND h.ended_at IS NULL AND (h.until IS NULL OR h.until > $4))
               AND NOT EXISTS (SELECT 1 FROM mcp_servers m WHERE m.tenant_id = $1 AND m.server_key = $5 AND m.drifted = 1)",
        )
        .bind(tenant.as_str())
        .bind(id)
        .bind(claimed_hash)
        .bind(now.as_micros())
        .bind(server.as_deref())
        .bind(request)
        .bind(facts.first().map(|fact| fact.event_id.to_string()))
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 1 {
            outbox::write(&mut tx, tenant, facts).await?;
            tx.commit().await?;
            return Ok(ConsumeResult::Consumed);
        }
        let found = standing(&mut tx, tenant, id, now).await?;
        Ok(match found {
            None => ConsumeResult::NotFound,
            Some(s) if s.status == ApprovalStatus::Consumed => match request {
                Some(request) => repeated(&mut tx, tenant, id, claimed_hash, request, server.as_deref(), now).await?,
                None => ConsumeResult::AlreadyConsumed,
            },
            Some(s) if s.status == ApprovalStatus::Expired => ConsumeResult::Expired,
            Some(s) if s.current_hash != claimed_hash => ConsumeResult::HashMismatch,
            Some(s) if s.status == ApprovalStatus::Approved => held_by(&mut tx, tenant, server.as_deref(), now).await?,
            Some(s) => ConsumeResult::NotApproved(s.status),
        })
    }
}

/// The key of the MCP server whose tool the action is that a consume would run; none for another tool.
async fn mcp_server_of(tx: &mut Tx, tenant: &TenantId, id: &str) -> Result<Option<String>, StoreError> {
    let found = sqlx::query("SELECT frozen, edited FROM approvals WHERE tenant_id = $1 AND approval_id = $2")
        .bind(tenant.as_str())
        .bind(id)
        .fetch_optional(&mut **tx)
        .await?;
    let Some(r) = found else { return Ok(None) };
    let call = match row::optional_json::<ToolCall>(&r, "edited")? {
        Some(edited) => edited,
        None => row::json::<FrozenAction>(&r, "frozen")?.tool_call,
    };
    Ok(call.tool.strip_prefix(MCP_TOOL_PREFIX).map(str::to_owned))
}

/// What `request` is told of an approval that is consumed.
async fn repeated(
    tx: &mut Tx,
    tenant: &TenantId,
    id: &str,
    claimed_hash: &str,
    request: &str,
    server: Option<&str>,
    now: Timestamp,
) -> Result<ConsumeResult, StoreError> {
    let found = sqlx::query(
        "SELECT agent_id, current_hash, consume_event FROM approvals
         WHERE tenant_id = $1 AND approval_id = $2 AND status = 'CONSUMED' AND consume_request = $3 AND consumed_at > $4",
    )
    .bind(tenant.as_str())
    .bind(id)
    .bind(request)
    .bind(now.plus_seconds(-REPEATED_FOR_S).as_micros())
    .fetch_optional(&mut **tx)
    .await?;
    let Some(r) = found else { return Ok(ConsumeResult::AlreadyConsumed) };
    if row::get::<String>(&r, "current_hash")? != claimed_hash {
        return Ok(ConsumeResult::RequestMismatch);
    }
    let agent_id: String = row::get(&r, "agent_id")?;
    if containment::is_held(tx, tenant, TargetType::Agent, &agent_id, now).await? {
        return Ok(ConsumeResult::Contained);
    }
    if let Some(refused) = server_refusal(tx, tenant, server, now).await? {
        return Ok(refused);
    }
    Ok(ConsumeResult::Repeated(row::optional_word(&r, "consume_event")?))
}

/// What refused an approved action whose hash is right: its MCP server, or else its agent.
async fn held_by(tx: &mut Tx, tenant: &TenantId, server: Option<&str>, now: Timestamp) -> Result<ConsumeResult, StoreError> {
    Ok(server_refusal(tx, tenant, server, now).await?.unwrap_or(ConsumeResult::Contained))
}

/// Whether the action's MCP server refuses it, and why.
async fn server_refusal(
    tx: &mut Tx,
    tenant: &TenantId,
    server: Option<&str>,
    now: Timestamp,
) -> Result<Option<ConsumeResult>, StoreError> {
    let Some(server) = server else { return Ok(None) };
    if containment::is_held(tx, tenant, TargetType::McpServer, server, now).await? {
        return Ok(Some(ConsumeResult::ServerQuarantined));
    }
    let drifted: Option<i64> =
        sqlx::query_scalar("SELECT 1 FROM mcp_servers WHERE tenant_id = $1 AND server_key = $2 AND drifted = 1")
            .bind(tenant.as_str())
            .bind(server)
            .fetch_optional(&mut **tx)
            .await?;
    Ok(drifted.map(|_| ConsumeResult::ManifestDrifted))
}
