//! What is registered of one tenant's tools and MCP servers, and its policies, compiled for them. Made whole, aside, and then put in the place of what
//! holds: nobody answers by a registry whose policies are not compiled, or waits until they are.

use std::collections::HashMap;
use std::sync::Arc;

use aegis_model::{
    ActionRecord, DataAccess, DefaultDecision, Destination, EntryKind, McpServerRecord, RiskLevel, SignedEntry, ToolRecord,
};
use aegis_policy::{PolicyBundle, PolicySource};

use super::MCP_PREFIX;
use super::entries::read_body;
use super::refused::RefusedEntry;

/// One tenant's.
#[derive(Clone, Debug, Default)]
pub(super) struct Registry {
    tools: HashMap<String, ToolRecord>,
    actions: HashMap<String, HashMap<String, Arc<ActionRecord>>>,
    mcp_servers: HashMap<String, Arc<McpServerRecord>>,
    policy_text: Option<String>,
    bundle: Option<Arc<PolicyBundle>>,
}

/// What an entry changes of it; None: it is gone.
#[derive(Debug)]
pub(super) enum Change {
    Tool(String, Option<ToolRecord>),
    McpServer(String, Option<Arc<McpServerRecord>>),
    Policies(Option<String>),
}

impl Change {
    /// What an entry of the registry says; None: it is of something else.
    pub(super) fn of(entry: &SignedEntry) -> Option<Result<Self, RefusedEntry>> {
        let name = || entry.name.clone();
        match entry.kind {
            EntryKind::Tool => Some(read_body(entry).map(|tool| Self::Tool(name(), tool))),
            EntryKind::McpServer => Some(read_body(entry).map(|server| Self::McpServer(name(), server.map(Arc::new)))),
            EntryKind::Policies => {
                let text = entry.body.get("policies").and_then(|p| p.as_str()).map(str::to_owned);
                let is_whole = entry.deleted || text.is_some();
                Some(if is_whole { Ok(Self::Policies(text)) } else { Err(RefusedEntry::body(entry, "`policies` is missing")) })
            }
            EntryKind::Agent | EntryKind::Channel | EntryKind::Resource | EntryKind::Settings | EntryKind::Containment => None,
        }
    }
}

impl Registry {
    /// This one with `changes`, its policies and `packs` compiled for what is registered then.
    pub(super) fn with<'a>(
        &self,
        changes: impl IntoIterator<Item = &'a Change>,
        packs: &[PolicySource],
    ) -> Result<Self, RefusedEntry> {
        let mut changed = self.clone();
        changes.into_iter().for_each(|change| changed.take(change));
        let mut sources = packs.to_vec();
        if let Some(text) = changed.policy_text.as_ref().filter(|text| !text.trim().is_empty()) {
            sources.push(PolicySource { name: "tenant".to_owned(), text: text.clone() });
        }
        let bundle = PolicyBundle::load(&sources, &changed.tools_with_mcp());
        changed.bundle = Some(Arc::new(bundle.map_err(|error| RefusedEntry::Policies(error.to_string()))?));
        Ok(changed)
    }

    /// The action of a tool, as it is registered.
    pub(super) fn action(&self, tool: &str, action: &str) -> Option<Arc<ActionRecord>> {
        self.actions.get(tool)?.get(action).cloned()
    }

    /// The MCP server that a tool is.
    pub(super) fn mcp_server(&self, tool: &str) -> Option<Arc<McpServerRecord>> {
        self.mcp_servers.get(tool.strip_prefix(MCP_PREFIX)?).cloned()
    }

    /// The policies; None: the packs alone hold.
    pub(super) fn bundle(&self) -> Option<Arc<PolicyBundle>> {
        self.bundle.clone()
    }

    fn take(&mut self, change: &Change) {
        match change {
            Change::Tool(name, Some(tool)) => {
                let actions = tool.actions.iter().map(|a| (a.action.clone(), Arc::new(a.clone()))).collect();
                self.actions.insert(name.clone(), actions);
                self.tools.insert(name.clone(), tool.clone());
            }
            Change::Tool(name, None) => {
                self.actions.remove(name);
                self.tools.remove(name);
            }
            Change::McpServer(name, Some(server)) => {
                self.mcp_servers.insert(name.clone(), server.clone());
            }
            Change::McpServer(name, None) => {
                self.mcp_servers.remove(name);
            }
            Change::Policies(text) => self.policy_text.clone_from(text),
        }
    }

    /// The registered tools, and for each MCP server a tool whose unregistered actions are taken at their most harmful.
    fn tools_with_mcp(&self) -> Vec<ToolRecord> {
        let mut all: HashMap<String, ToolRecord> = self.tools.clone();
        for server in self.mcp_servers.values() {
            let name = format!("{MCP_PREFIX}{}", server.key);
            let tool = all.entry(name.clone()).or_insert_with(|| ToolRecord {
                tool: name,
                name: server.name.clone(),
                default_risk: RiskLevel::Medium,
                actions: Vec::new(),
            });
            for declared in &server.tools {
                if !tool.actions.iter().any(|a| a.action == declared.name) {
                    tool.actions.push(unclassified_action(&declared.name));
                }
            }
        }
        let mut sorted: Vec<ToolRecord> = all.into_values().collect();
        sorted.sort_by(|a, b| a.tool.cmp(&b.tool));
        sorted
    }
}

/// An MCP tool nobody has classified: it may change state and may send data outside.
pub(crate) fn unclassified_action(name: &str) -> ActionRecord {
    ActionRecord {
        action: name.to_owned(),
        description: None,
        risk: RiskLevel::Medium,
        mutates_state: true,
        data_access: DataAccess::Internal,
        destination: Destination::External,
        target_parameter: None,
        parameters: None,
        approval_required: false,
        default_decision: DefaultDecision::Policy,
    }
}
