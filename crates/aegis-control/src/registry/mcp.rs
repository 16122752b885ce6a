//! MCP servers and the tools their manifests declare.
//! Promises that a declared tool is also a registered action of `mcp:<key>`, unclassified unless the registrar says more, and that a tool whose
//! declaration changed is registered anew only by whoever asks for that.

use crate::reply::Json;
use aegis_model::{
    ActionRecord, DataAccess, DefaultDecision, Destination, EntryKind, McpServerRecord, McpToolRecord, RiskLevel, ToolRecord,
};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::drift::{Drift, declared, look_at, mark};
use super::{MAX_ACTIONS, actions, bundle_with, check_tool, record_hash};
use crate::auth::Caller;
use crate::control::Control;
use crate::input::{MAX_ID, check_optional, check_text, parse};
use crate::problem::Problem;
use crate::routes::Call;

/// Length of a hex SHA-256.
const HASH_HEX: usize = 64;

/// `POST /v1/mcp/servers`.
#[derive(Debug, Deserialize)]
struct ServerBody {
    #[serde(alias = "server_key")]
    key: String,
    name: String,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    tools: Vec<ToolBody>,
}

/// `POST /v1/mcp/servers/{key}/tools` and `…/manifest`.
#[derive(Debug, Deserialize)]
pub(super) struct ToolsBody {
    pub(super) tools: Vec<ToolBody>,
    /// By `…/tools`: what the server lists beside those that are registered, and nobody wants.
    #[serde(default)]
    pub(super) dismissed: Vec<String>,
}

/// A tool as a manifest declares it, with what the registrar knows of it.
#[derive(Debug, Deserialize)]
pub(super) struct ToolBody {
    #[serde(alias = "tool", alias = "tool_key", alias = "action")]
    pub(super) name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default, alias = "inputSchema", alias = "parameters")]
    input_schema: Option<Value>,
    /// Given when the declaration itself is not sent.
    #[serde(default)]
    manifest_hash: Option<String>,
    #[serde(default = "medium")]
    risk: RiskLevel,
    #[serde(default = "yes")]
    mutates_state: bool,
    #[serde(default = "internal")]
    data_access: DataAccess,
    #[serde(default = "external")]
    destination: Destination,
    #[serde(default)]
    target_parameter: Option<String>,
    #[serde(default)]
    approval_required: bool,
    #[serde(default)]
    default_decision: DefaultDecision,
}

// What nobody has classified may change state and may send data outside: the edge assumes the same.
const fn medium() -> RiskLevel {
    RiskLevel::Medium
}
const fn internal() -> DataAccess {
    DataAccess::Internal
}
const fn yes() -> bool {
    true
}
const fn external() -> Destination {
    Destination::External
}

impl ToolBody {
    fn check(&self) -> Result<(), Problem> {
        check_text("name", &self.name, MAX_ID)?;
        match &self.manifest_hash {
            Some(hash) if hash.len() != HASH_HEX || !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
                Err(Problem::bad_request("invalid_field", "`manifest_hash` must be 64 lower-case hex digits"))
            }
            _ => Ok(()),
        }
    }

    /// The canonical hash of the declaration as an MCP server lists it: name, description, inputSchema.
    pub(super) fn manifest(&self) -> Result<McpToolRecord, Problem> {
        self.check()?;
        let declaration = json!({"name": self.name, "description": self.description, "inputSchema": self.input_schema});
        let manifest_hash = match &self.manifest_hash {
            Some(hash) => hash.clone(),
            None => aegis_canon::hash_value(&declaration)
                .map_err(|error| Problem::bad_request(error.code(), "the tool's declaration has no canonical form"))?,
        };
        Ok(McpToolRecord { name: self.name.clone(), manifest_hash })
    }

    fn action(&self) -> ActionRecord {
        ActionRecord {
            action: self.name.clone(),
            description: self.description.clone(),
            risk: self.risk,
            mutates_state: self.mutates_state,
            data_access: self.data_access,
            destination: self.destination,
            target_parameter: self.target_parameter.clone(),
            parameters: self.input_schema.clone(),
            approval_required: self.approval_required,
            default_decision: self.default_decision,
        }
    }
}

pub(crate) async fn put_server(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body: ServerBody = parse(&call.body, control.config.max_body_bytes)?;
    check_text("key", &body.key, MAX_ID - "mcp:".len())?;
    check_text("name", &body.name, MAX_ID)?;
    check_optional("url", body.url.as_deref(), MAX_ID)?;
    let _turn = control.registry_turn.lock().await;
    let existing = control.store.mcp_server(call.tenant(), &body.key).await?;
    if let Some(mut registered) = existing.clone() {
        // A script may register whatever the server lists now: what changed is no registration, but drift.
        let drift = Drift::of_tools(&registered.tools, &declared(&body.tools)?);
        if drift.reason().is_some() {
            mark(control, &call.caller, &mut registered, &drift).await?;
            return Ok(Json(registered).into_response());
        }
    }
    let mut server = McpServerRecord {
        key: body.key,
        name: body.name,
        url: body.url,
        tools: existing.as_ref().map(|server| server.tools.clone()).unwrap_or_default(),
        drifted: existing.as_ref().is_some_and(|server| server.drifted),
        drifted_tools: existing.as_ref().map(|server| server.drifted_tools.clone()).unwrap_or_default(),
    };
    let tool = add_tools(control, &call.caller, &mut server, &body.tools).await?;
    store_server(control, &call.caller, &server, tool.as_ref(), "mcp_server_registered", &[]).await?;
    let status = if existing.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(server)).into_response())
}

pub(crate) async fn put_tools(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body: ToolsBody = parse(&call.body, control.config.max_body_bytes)?;
    let _turn = control.registry_turn.lock().await;
    let mut server = known(control, call).await?;
    let tool = add_tools(control, &call.caller, &mut server, &body.tools).await?;
    look_at(&mut server, &body)?;
    let change = if body.dismissed.is_empty() { "mcp_tools_registered" } else { "mcp_tools_dismissed" };
    store_server(control, &call.caller, &server, tool.as_ref(), change, &body.dismissed).await?;
    Ok((StatusCode::CREATED, Json(server)).into_response())
}

/// Adds or replaces tools of the server. Returns `mcp:<key>` with them as its actions, to be stored with the server; none where nothing is added.
async fn add_tools(
    control: &Control,
    caller: &Caller,
    server: &mut McpServerRecord,
    tools: &[ToolBody],
) -> Result<Option<ToolRecord>, Problem> {
    if tools.is_empty() {
        return Ok(None);
    }
    let tool_key = format!("mcp:{}", server.key);
    let registered = control.store.tool(caller.tenant(), &tool_key).await?;
    let mut record = registered.unwrap_or_else(|| ToolRecord {
        tool: tool_key,
        name: server.name.clone(),
        default_risk: RiskLevel::Medium,
        actions: Vec::new(),
    });
    for tool in tools {
        let manifest = tool.manifest()?;
        server.tools.retain(|other| other.name != tool.name);
        server.tools.push(manifest);
        record.actions.retain(|other| other.action != tool.name);
        record.actions.push(tool.action());
    }
    if server.tools.len() > MAX_ACTIONS {
        return Err(Problem::bad_request("invalid_field", format!("a server has at most {MAX_ACTIONS} tools")));
    }
    check_tool(&record)?;
    Ok(Some(record))
}

/// Stores the server and, if its tools changed, the tool whose actions they are: both or neither, and only if the tenant's policies load with
/// them. The caller holds the registry's turn.
async fn store_server(
    control: &Control,
    caller: &Caller,
    server: &McpServerRecord,
    tool: Option<&ToolRecord>,
    change: &str,
    dismissed: &[String],
) -> Result<(), Problem> {
    let tenant = caller.tenant();
    // With the names of all its tools once more: edges must be told of it however far it drifts.
    let names = server.tools.iter().map(|tool| tool.name.clone()).chain(server.drifted_tools.iter().cloned()).collect();
    let fullest = McpServerRecord { drifted_tools: names, ..server.clone() };
    control.check_entry(tenant, EntryKind::McpServer, &server.key, &fullest)?;
    let mut detail = json!({"mcp_server": server.key, "tools": server.tools.len(), "record_hash": record_hash(server)});
    if !dismissed.is_empty() {
        detail["dismissed"] = json!(dismissed);
    }
    let draft = control.config_draft(caller, change, detail);
    let Some(tool) = tool else {
        let pending = control.prepare(draft)?;
        let revision = control.store.put_mcp_server(tenant, server, pending.rows()).await?;
        let sealed = control.seal(pending).await;
        control.publish(tenant, EntryKind::McpServer, &server.key, revision, server).await;
        return sealed.map(|_| ());
    };
    control.check_entry(tenant, EntryKind::Tool, &tool.tool, tool)?;
    let bundle = bundle_with(control, tenant, tool).await?;
    let before = control.store.tool(tenant, &tool.tool).await?;
    let of_tool = actions::prepare(control, actions::drafts(control, caller, before.as_ref(), tool, &bundle))?;
    let of_server = control.prepare(draft)?;
    let facts = [actions::rows_of(&of_tool).as_slice(), of_server.rows()].concat();
    let (server_revision, tool_revision) = control.store.put_mcp_tools(tenant, server, tool, &facts).await?;
    control.bundles.set(tenant, bundle);
    let sealed = (actions::seal(control, of_tool).await, control.seal(of_server).await);
    // Edges know what an action is before they know of the tool: what they do not know of is denied.
    control.publish(tenant, EntryKind::Tool, &tool.tool, tool_revision, tool).await;
    control.publish(tenant, EntryKind::McpServer, &server.key, server_revision, server).await;
    sealed.0.and(sealed.1).map(|_| ())
}

pub(crate) async fn list(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    Ok(Json(control.store.list_mcp_servers(call.tenant(), page.limit, page.offset).await?).into_response())
}

pub(crate) async fn get(control: &Control, call: &Call) -> Result<Response, Problem> {
    Ok(Json(known(control, call).await?).into_response())
}

/// The server that the path names, or 404.
pub(super) async fn known(control: &Control, call: &Call) -> Result<McpServerRecord, Problem> {
    control.store.mcp_server(call.tenant(), call.param("key")).await?.ok_or_else(|| Problem::not_found("MCP server"))
}
