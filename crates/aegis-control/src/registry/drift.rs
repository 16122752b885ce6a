//! MCP servers whose manifest is no longer the registered one (T-B5): what sets `drifted`, and denies every tool of the server.
//! Promises that a declaration that changed never takes the place of the registered one by itself: a person registers the tools again.

use std::collections::BTreeMap;

use crate::reply::Json;
use aegis_model::{EntryKind, McpServerRecord, McpToolRecord};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::MAX_ACTIONS;
use super::mcp::{ToolBody, ToolsBody, known};
use crate::auth::Caller;
use crate::control::Control;
use crate::input::parse;
use crate::problem::Problem;
use crate::routes::Call;

/// In what a manifest differs from the registered one: names of tools.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Drift {
    changed: Vec<String>,
    added: Vec<String>,
    removed: Vec<String>,
}

impl Drift {
    /// What a whole manifest says otherwise.
    fn of_manifest(registered: &[McpToolRecord], seen: &[McpToolRecord]) -> Self {
        let (registered, seen) = (by_name(registered), by_name(seen));
        let mut drift = Self::default();
        for (name, hash) in &seen {
            match registered.get(name) {
                None => drift.added.push((*name).to_owned()),
                Some(known) if known != hash => drift.changed.push((*name).to_owned()),
                Some(_) => {}
            }
        }
        drift.removed = registered.keys().filter(|name| !seen.contains_key(*name)).map(|name| (*name).to_owned()).collect();
        drift
    }

    /// What some tools of a manifest say otherwise: others stay as they are, and new ones are registered.
    pub(super) fn of_tools(registered: &[McpToolRecord], seen: &[McpToolRecord]) -> Self {
        Self { changed: Self::of_manifest(registered, seen).changed, ..Self::default() }
    }

    /// Tools of which it says what nobody has looked at.
    fn unseen(&self) -> impl Iterator<Item = &String> {
        self.changed.iter().chain(&self.added)
    }

    /// What makes it drift, the worst of it: the server says something that nobody has looked at. What it no longer lists, it says nothing with.
    pub(super) fn reason(&self) -> Option<&'static str> {
        if !self.changed.is_empty() {
            Some("declaration_changed")
        } else if !self.added.is_empty() {
            Some("tool_added")
        } else {
            None
        }
    }
}

fn by_name(tools: &[McpToolRecord]) -> BTreeMap<&str, &str> {
    tools.iter().map(|tool| (tool.name.as_str(), tool.manifest_hash.as_str())).collect()
}

/// The declarations of a request, each tool once.
pub(super) fn declared(tools: &[ToolBody]) -> Result<Vec<McpToolRecord>, Problem> {
    if tools.len() > MAX_ACTIONS {
        return Err(Problem::bad_request("invalid_field", format!("a server has at most {MAX_ACTIONS} tools")));
    }
    let declared = tools.iter().map(ToolBody::manifest).collect::<Result<Vec<_>, _>>()?;
    if by_name(&declared).len() < declared.len() {
        return Err(Problem::bad_request("invalid_field", "a tool is listed twice"));
    }
    Ok(declared)
}

/// `POST /v1/mcp/servers/{key}/manifest`: all that the server lists now, to be compared with what is registered.
pub(crate) async fn report(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body: ToolsBody = parse(&call.body, control.config.max_body_bytes)?;
    let seen = declared(&body.tools)?;
    let _turn = control.registry_turn.lock().await;
    let mut server = known(control, call).await?;
    let drift = Drift::of_manifest(&server.tools, &seen);
    mark(control, &call.caller, &mut server, &drift).await?;
    Ok(Json(view(&server, &drift)).into_response())
}

fn view(server: &McpServerRecord, drift: &Drift) -> Value {
    json!({
        "key": server.key, "matches": *drift == Drift::default(), "drifted": server.drifted,
        "changed": drift.changed, "added": drift.added, "removed": drift.removed,
    })
}

/// Marks the server if its manifest differs, with an event and a receipt the first time for each tool. The caller holds the registry's turn.
pub(super) async fn mark(control: &Control, caller: &Caller, server: &mut McpServerRecord, drift: &Drift) -> Result<(), Problem> {
    let Some(reason) = drift.reason() else { return Ok(()) };
    let room = MAX_ACTIONS.saturating_sub(server.drifted_tools.len());
    let unknown: Vec<String> = drift.unseen().filter(|tool| !server.drifted_tools.contains(tool)).take(room).cloned().collect();
    if server.drifted && unknown.is_empty() {
        return Ok(());
    }
    server.drifted = true;
    let known = server.drifted_tools.len();
    server.drifted_tools.extend(unknown);
    // The mark has to reach the edges: names that no entry has room for are left out, and the server's tools are denied without.
    while server.drifted_tools.len() > known
        && control.check_entry(caller.tenant(), EntryKind::McpServer, &server.key, server).is_err()
    {
        server.drifted_tools.truncate(known.midpoint(server.drifted_tools.len()));
    }
    let detail = json!({"changed": drift.changed, "added": drift.added, "removed": drift.removed});
    // It only takes something away: it does not wait for the ledger.
    let pending = control.prepare_anyway(control.drift_draft(caller, &server.key, reason, detail))?;
    let revision = control.store.put_mcp_server(caller.tenant(), server, pending.rows()).await?;
    control.publish(caller.tenant(), EntryKind::McpServer, &server.key, revision, server).await;
    tracing::error!(tenant = %caller.tenant(), server = server.key, reason, "an MCP server's manifest is not the registered one; its tools are denied");
    control.seal(pending).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(of: &[(&str, &str)]) -> Vec<McpToolRecord> {
        of.iter().map(|(name, hash)| McpToolRecord { name: (*name).to_owned(), manifest_hash: (*hash).to_owned() }).collect()
    }

    #[test]
    fn whatever_nobody_has_looked_at_is_drift_and_the_worst_is_its_reason() {
        let registered = tools(&[("read", "1"), ("write", "2")]);
        let reason = |seen: &[(&str, &str)]| Drift::of_manifest(&registered, &tools(seen)).reason();
        assert_eq!(reason(&[("write", "2"), ("read", "1")]), None, "their order is none");
        assert_eq!(reason(&[("read", "1")]), None);
        assert_eq!(Drift::of_manifest(&registered, &tools(&[("read", "1")])).removed, ["write"]);
        assert_eq!(reason(&[("read", "1"), ("write", "2"), ("wipe", "3")]), Some("tool_added"));
        assert_eq!(reason(&[("read", "9"), ("wipe", "3")]), Some("declaration_changed"));
        let some = Drift::of_tools(&registered, &tools(&[("read", "9"), ("wipe", "3")]));
        assert_eq!(some, Drift { changed: vec!["read".to_owned()], ..Drift::default() });
        assert_eq!(Drift::of_tools(&registered, &tools(&[("wipe", "3")])).reason(), None, "a new one is registered");
    }
}
