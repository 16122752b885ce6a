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
use crate::input::{MAX_ID, check_text, parse};
use crate::problem::Problem;
use crate::routes::Call;

/// Most tools that a server has drifted by and that are not registered: it may list others each time. They are denied without being noted.
const MAX_UNREGISTERED: usize = 100;

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

    /// Tools that nobody has looked at and that the server's record does not name yet: each that is registered, and of others as many as there is
    /// room for.
    fn not_noted(&self, server: &McpServerRecord) -> Vec<String> {
        let registered = by_name(&server.tools);
        let is_new = |tool: &&String| !server.drifted_tools.contains(tool);
        let others = server.drifted_tools.iter().filter(|tool| !registered.contains_key(tool.as_str())).count();
        let room = MAX_UNREGISTERED.saturating_sub(others);
        let added = self.added.iter().filter(is_new).take(room);
        self.changed.iter().filter(is_new).chain(added).cloned().collect()
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
    let unknown = drift.not_noted(server);
    if server.drifted && unknown.is_empty() {
        return Ok(());
    }
    let was_drifted = std::mem::replace(&mut server.drifted, true);
    let known = server.drifted_tools.len();
    server.drifted_tools.extend(unknown);
    // The mark has to reach the edges: names that no entry has room for are left out, and the server's tools are denied without.
    while server.drifted_tools.len() > known
        && control.check_entry(caller.tenant(), EntryKind::McpServer, &server.key, server).is_err()
    {
        server.drifted_tools.truncate(known.midpoint(server.drifted_tools.len()));
    }
    if was_drifted && server.drifted_tools.len() == known {
        return Ok(());
    }
    let detail = json!({"changed": drift.changed, "added": drift.added, "removed": drift.removed});
    // It only takes something away: it does not wait for the ledger.
    let pending = control.prepare_anyway(control.drift_draft(caller, &server.key, reason, detail))?;
    let revision = control.store.put_mcp_server(caller.tenant(), server, pending.rows()).await?;
    control.publish(caller.tenant(), EntryKind::McpServer, &server.key, revision, server).await;
    tracing::error!(tenant = %caller.tenant(), server = server.key, reason, "an MCP server's manifest is not the registered one; its tools are denied");
    control.seal(pending).await.map(|_| ())
}

/// Takes from the server's record what a person has looked at, and nothing else: what is registered, which a manifest is compared with from now on, and
/// what is dismissed, which stays denied since nobody registered it. `server` has the tools of the body already.
pub(super) fn look_at(server: &mut McpServerRecord, body: &ToolsBody) -> Result<(), Problem> {
    if body.dismissed.len() > MAX_ACTIONS {
        return Err(Problem::bad_request("invalid_field", format!("at most {MAX_ACTIONS} tools are dismissed at once")));
    }
    for name in &body.dismissed {
        check_text("dismissed", name, MAX_ID)?;
        if server.tools.iter().any(|tool| tool.name == *name) {
            let message = format!(
                "`{name}` is registered and cannot be dismissed: register it again, with the declaration that it has now"
            );
            return Err(Problem::bad_request("invalid_field", message));
        }
    }
    let noted = server.drifted_tools.len();
    let is_looked_at = |name: &String| body.dismissed.contains(name) || body.tools.iter().any(|tool| tool.name == *name);
    server.drifted_tools.retain(|name| !is_looked_at(name));
    // Who dismisses what is not there has looked at nothing.
    let is_nothing = body.tools.is_empty() && server.drifted_tools.len() == noted;
    server.drifted &= is_nothing || !server.drifted_tools.is_empty();
    Ok(())
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

    #[test]
    fn a_registered_tool_is_noted_however_many_others_a_server_has_listed() {
        let names = |of: &str, count: usize| (0..count).map(|n| format!("{of} {n}")).collect::<Vec<_>>();
        let registered: Vec<McpToolRecord> =
            names("tool", MAX_ACTIONS).into_iter().map(|name| McpToolRecord { name, manifest_hash: "1".to_owned() }).collect();
        let drift = Drift { changed: names("tool", MAX_ACTIONS), added: names("new", MAX_ACTIONS), removed: Vec::new() };
        // By an earlier version the list was full of them.
        for noted in [0, 1, MAX_UNREGISTERED, MAX_ACTIONS] {
            let server = McpServerRecord {
                key: "files".to_owned(),
                name: "Files".to_owned(),
                url: None,
                tools: registered.clone(),
                drifted: noted > 0,
                drifted_tools: names("old", noted),
            };
            let new = drift.not_noted(&server);
            assert_eq!(new[..MAX_ACTIONS], drift.changed, "{noted}");
            assert_eq!(new.len() - MAX_ACTIONS, MAX_UNREGISTERED.saturating_sub(noted), "{noted}");
            let after = McpServerRecord { drifted_tools: [server.drifted_tools.clone(), new].concat(), ..server };
            assert_eq!(drift.not_noted(&after), Vec::<String>::new(), "{noted}");
        }
    }
}
