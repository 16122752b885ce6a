//! The envelope of everything an edge believes: an entry of the control feed, signed by control, monotonic per key.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::decision::wire_words;
use crate::{TenantId, Timestamp};

/// What the entry's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// `AgentRecord`
    Agent,
    /// `ToolRecord`
    Tool,
    /// `McpServerRecord`
    McpServer,
    /// `ChannelRecord`
    Channel,
    /// `ResourceRecord`
    Resource,
    /// `TenantSettings`
    Settings,
    /// `{"policies": "<Cedar text>"}`: the tenant's own policies beside the shipped packs
    Policies,
    /// `ContainmentState`
    Containment,
}
wire_words!(EntryKind {
    Agent = "agent",
    Tool = "tool",
    McpServer = "mcp_server",
    Channel = "channel",
    Resource = "resource",
    Settings = "settings",
    Policies = "policies",
    Containment = "containment",
});

/// A signed entry. The signature is Ed25519 over the canonical form of everything but `signature`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SignedEntry {
    pub schema: String,
    pub tenant_id: TenantId,
    pub kind: EntryKind,
    /// What the entry is about, unique within (tenant, kind).
    pub name: String,
    /// Higher replaces lower; an edge refuses the rest.
    pub revision: i64,
    pub issued_at: Timestamp,
    /// True: the thing is gone; `body` is null.
    #[serde(default)]
    pub deleted: bool,
    pub body: Value,
    pub key_id: String,
    /// Base64 (standard alphabet, padded).
    pub signature: String,
}

impl SignedEntry {
    /// The `schema` of entries written by this version.
    pub const SCHEMA: &'static str = "aegis-control-entry-1";
}
