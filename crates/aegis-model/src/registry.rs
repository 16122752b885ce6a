//! What the server knows about agents, tools, MCP servers, channels and resources: the facts a caller may only tighten.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::decision::wire_words;
use crate::{DataAccess, Destination, RiskLevel, SourceTrust, Timestamp};

/// A registered agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentRecord {
    pub id: String,
    pub agent_key: String,
    pub name: String,
    #[serde(default)]
    pub owner_team: Option<String>,
    pub environment: String,
    pub risk_tier: RiskLevel,
    /// Calls of this agent are never taken as more trusted than this.
    #[serde(default = "least_strict")]
    pub trust_ceiling: SourceTrust,
    pub created_at: Timestamp,
}

const fn least_strict() -> SourceTrust {
    SourceTrust::TrustedInternalSigned
}

/// What happens to a registered action before policy is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DefaultDecision {
    /// Policy decides.
    #[default]
    Policy,
    /// Policy decides; kept for clients that send it. It never widens what policy says.
    Allow,
    /// Denied whatever policy says.
    Deny,
}
wire_words!(DefaultDecision { Policy = "policy", Allow = "allow", Deny = "deny" });

/// A registered action of a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionRecord {
    #[serde(alias = "action_key")]
    pub action: String,
    #[serde(default)]
    pub description: Option<String>,
    pub risk: RiskLevel,
    pub mutates_state: bool,
    #[serde(default)]
    pub data_access: DataAccess,
    #[serde(default)]
    pub destination: Destination,
    /// The parameter that says where data would go.
    #[serde(default)]
    pub target_parameter: Option<String>,
    /// JSON Schema of the parameters; types them for policies.
    #[serde(default)]
    pub parameters: Option<Value>,
    #[serde(default)]
    pub approval_required: bool,
    #[serde(default)]
    pub default_decision: DefaultDecision,
}

/// A registered tool with its actions. An action that is not listed is unknown, and denied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolRecord {
    #[serde(alias = "tool_key", alias = "skill_key")]
    pub tool: String,
    pub name: String,
    #[serde(default)]
    pub default_risk: RiskLevel,
    pub actions: Vec<ActionRecord>,
}

/// A tool as an MCP server's manifest declared it when it was registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct McpToolRecord {
    pub name: String,
    /// Canonical SHA-256 of the tool's declaration.
    pub manifest_hash: String,
}

/// A registered MCP server. Calls to `tool` = `mcp:<key>` pass the MCP gates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct McpServerRecord {
    pub key: String,
    pub name: String,
    #[serde(default)]
    pub url: Option<String>,
    #[serde(default)]
    pub tools: Vec<McpToolRecord>,
    /// True while a manifest was seen that said what nobody has registered.
    #[serde(default)]
    pub drifted: bool,
    /// Of which tools it did; none where an earlier version saw it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drifted_tools: Vec<String>,
}

/// A channel through which work reaches agents, with the label its content gets at best.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelRecord {
    pub channel: String,
    pub source_trust: SourceTrust,
    /// Ed25519 public key (base64) that may sign `trusted_internal_signed` labels.
    #[serde(default)]
    pub public_key: Option<String>,
}

/// Who can see a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    Public,
    Private,
    /// Counts as private when read and as public when written.
    #[default]
    Unknown,
}
wire_words!(Visibility { Public = "public", Private = "private", Unknown = "unknown" });

/// What is known of a resource. The part of a resource name before `#` is looked up when the whole is not registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResourceRecord {
    pub resource: String,
    #[serde(default)]
    pub tool: Option<String>,
    #[serde(default)]
    pub visibility: Visibility,
    #[serde(default)]
    pub owner: Option<String>,
    /// The source's own time of what it said (GitHub's signed `repository.updated_at`); null where a person registered it.
    #[serde(default)]
    pub observed_at: Option<Timestamp>,
}

/// Longest idle time after which a run's label may be forgotten, seconds: an edge reads back so much of its ledger when it starts, and the bucket
/// `trust` keeps a label so long. What a setting promises beyond that, a restart would break.
pub const MAX_RUN_IDLE_S: i64 = 24 * 3600;

/// A tenant's limits and times. All have defaults that suit a small deployment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantSettings {
    /// Authorize calls per second that one agent may make, on average.
    pub agent_rate_per_s: u32,
    /// Authorize calls per second of the whole tenant, on average.
    pub tenant_rate_per_s: u32,
    /// A run's label is forgotten this long after its last call, seconds; at most `MAX_RUN_IDLE_S`, as for the next.
    pub run_idle_s: i64,
    /// The same for calls without a run id, which share their agent's implicit run, seconds.
    pub implicit_run_idle_s: i64,
    /// How long an approval stays open, seconds.
    pub approval_ttl_s: i64,
    /// The group asked when no policy names one.
    pub approver_group: String,
    /// Freezes that detection alone may cause per hour.
    pub automatic_freezes_per_hour: u32,
    /// Callback URLs an authorize call may name, whole.
    pub callback_allow_list: Vec<String>,
    /// Agents (ids, or `*` for all) whose mutating calls need approval whatever policy says, e.g. after an incident.
    pub force_approval_agents: Vec<String>,
}

impl Default for TenantSettings {
    fn default() -> Self {
        Self {
            agent_rate_per_s: 20_000,
            tenant_rate_per_s: 100_000,
            run_idle_s: MAX_RUN_IDLE_S,
            implicit_run_idle_s: 3600,
            approval_ttl_s: 15 * 60,
            approver_group: "security".to_owned(),
            automatic_freezes_per_hour: 20,
            callback_allow_list: Vec::new(),
            force_approval_agents: Vec::new(),
        }
    }
}
