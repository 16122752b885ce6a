//! What a responder asks of control, and what control answers.

use aegis_canon::sha256_hex;
use aegis_model::{Alert, ContainmentKind, EventId, TargetType, TenantId};
use async_trait::async_trait;

/// Control, as responders see it.
///
/// The same `command_id` may be asked for more than once (after a crash, after a lost answer); it must be applied once.
#[async_trait]
pub trait ContainmentRequests: Send + Sync {
    /// Asks for containment. An error means that the outcome is unknown: the same request is sent again later.
    async fn request(&self, request: ContainmentRequest) -> Result<RequestOutcome, RespondError>;
}

/// One request for containment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainmentRequest {
    pub tenant_id: TenantId,
    /// Hex SHA-256 of `alert_id NUL action NUL target`.
    pub command_id: String,
    pub target_type: TargetType,
    pub target_id: String,
    pub kind: ContainmentKind,
    pub reason: String,
    /// `rule:<id>`
    pub by: String,
    pub alert_id: String,
    pub incident_id: String,
    /// The alert's evidence, in event order.
    pub event_ids: Vec<EventId>,
}

/// What control did with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The hold is in the containment state of this revision.
    Applied { revision: i64 },
    /// The command was applied before.
    AlreadyApplied,
    /// The tenant's automatic freezes of the hour are used up; a person must decide.
    CapReached,
    /// Control will not do it, now or later, and says why.
    Refused(String),
}

/// What went wrong while responding.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RespondError {
    /// Control could not be reached or could not answer; the request stays pending.
    #[error("control is unavailable: {0}")]
    Unavailable(String),
    #[error(transparent)]
    Store(#[from] aegis_store::StoreError),
    #[error(transparent)]
    Bus(#[from] aegis_bus::BusError),
}

/// The id under which a response is applied once: hex SHA-256 of `alert_id NUL action NUL target`.
#[must_use]
pub fn command_id(alert_id: &str, action: &str, target: &str) -> String {
    sha256_hex(format!("{alert_id}\0{action}\0{target}").as_bytes())
}

/// What an entry of a rule's `respond` list comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Planned {
    Contain { target_type: TargetType, target_id: String, kind: ContainmentKind },
    Unsupported { reason: String },
}

/// The columns that name an agent and a tool, in a rule's key or among the match's other columns.
const AGENT_COLUMN: &str = "agent_id";
const TOOL_COLUMN: &str = "tool";
/// How the tools of an MCP server are called: this, and the server's key.
const MCP_PREFIX: &str = "mcp:";

/// Plans one entry of the alert's `respond` list.
pub(crate) fn plan(alert: &Alert, action: &str) -> Planned {
    let planned = match action {
        "freeze_agent" => agent(alert).map(|agent| (TargetType::Agent, agent, ContainmentKind::Freeze)),
        "quarantine_agent" => agent(alert).map(|agent| (TargetType::Agent, agent, ContainmentKind::Quarantine)),
        "quarantine_mcp_server" => mcp_server(alert).map(|server| (TargetType::McpServer, server, ContainmentKind::Quarantine)),
        other => {
            let word: String = other.chars().take(64).collect();
            let known = "freeze_agent, quarantine_agent, quarantine_mcp_server";
            Err(format!("`{word}` is no response this version knows; known: {known}"))
        }
    };
    match planned {
        Ok((target_type, target_id, kind)) => Planned::Contain { target_type, target_id: target_id.to_owned(), kind },
        Err(reason) => Planned::Unsupported { reason },
    }
}

/// What the alert has in a column.
fn named<'a>(alert: &'a Alert, column: &str) -> Result<&'a str, String> {
    let value = alert.key.get(column).or_else(|| alert.fields.get(column));
    let text = value.and_then(serde_json::Value::as_str).filter(|text| !text.is_empty());
    text.ok_or_else(|| format!("the alert names no {column}"))
}

fn agent(alert: &Alert) -> Result<&str, String> {
    named(alert, AGENT_COLUMN)
}

/// The key of the MCP server whose tool the alert is about.
fn mcp_server(alert: &Alert) -> Result<&str, String> {
    let tool = named(alert, TOOL_COLUMN)?;
    let server = tool.strip_prefix(MCP_PREFIX).filter(|key| !key.is_empty());
    server.ok_or_else(|| {
        let tool: String = tool.chars().take(64).collect();
        format!("`{tool}` is not an MCP server's tool")
    })
}
