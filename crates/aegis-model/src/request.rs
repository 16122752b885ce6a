//! The authorize exchange (CONTRACTS §3), the frozen action behind an approval and an approval as people see it (§7).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Decision, EventId, RiskLevel, SourceTrust, TenantId, Timestamp};

/// `POST /v1/authorize`. Unknown fields are ignored.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AuthorizeRequest {
    #[serde(default)]
    pub request_id: Option<String>,
    pub agent: AgentClaim,
    #[serde(default)]
    pub user: Option<UserClaim>,
    pub tool_call: ToolCall,
    pub context: RequestContext,
    #[serde(default)]
    pub trace: Option<Trace>,
    #[serde(default)]
    pub callback: Option<Callback>,
    #[serde(default)]
    pub nonce: Option<String>,
    #[serde(default)]
    pub timestamp: Option<Timestamp>,
    #[serde(default)]
    pub canon_version: Option<String>,
    #[serde(default)]
    pub dry_run: bool,
}

/// What the caller calls its agent: a label only, the agent is the token's.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AgentClaim {
    pub id: String,
    #[serde(default)]
    pub environment: Option<String>,
}

/// The user the caller names; recorded as claimed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct UserClaim {
    pub id: String,
    #[serde(default)]
    pub role: Option<String>,
}

/// The action itself: exactly the five values that the action hash covers.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ToolCall {
    #[serde(alias = "tool_key", alias = "skill_key")]
    pub tool: String,
    #[serde(alias = "action_key")]
    pub action: String,
    #[serde(default)]
    pub resource: Option<String>,
    pub mutates_state: bool,
    /// A JSON object.
    pub parameters: serde_json::Map<String, Value>,
}

/// What the caller says about the origin of the call.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RequestContext {
    pub source_trust: SourceTrust,
    #[serde(default)]
    pub contains_sensitive_data: bool,
    #[serde(default)]
    pub channel: Option<String>,
    #[serde(default)]
    pub source_signature: Option<String>,
}

/// Where the call stands in a chain of work.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Trace {
    #[serde(default)]
    pub run_id: Option<String>,
    #[serde(default)]
    pub trace_id: Option<String>,
    #[serde(default)]
    pub parent_run_id: Option<String>,
    #[serde(default)]
    pub root_trust_level: Option<SourceTrust>,
    #[serde(default)]
    pub trust_token: Option<String>,
}

/// Where to report an approval's end; must be on the tenant's allow-list.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Callback {
    pub url: String,
}

/// The reply to an authorize call, 200 also for a deny.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AuthorizeResponse {
    pub decision_id: EventId,
    pub decision: Decision,
    pub reason: String,
    pub matched_policies: Vec<String>,
    pub risk_score: i32,
    pub risk_level: RiskLevel,
    pub root_trust_level: SourceTrust,
    pub trust_token: String,
    pub action_hash: String,
    pub dry_run: bool,
    pub approval: Option<ApprovalRef>,
    pub receipt: ReceiptView,
}

/// The approval an authorize reply points to.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ApprovalRef {
    pub approval_id: String,
    pub status: ApprovalStatus,
    pub approver_group: String,
    pub expires_at: Timestamp,
    /// Whole seconds from the answer to `expires_at`: for a client whose clock may be wrong.
    pub expires_in: i64,
    pub action_hash: String,
}

/// The receipt as an authorize reply shows it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ReceiptView {
    pub receipt_id: EventId,
    /// Null only for an allowed, non-mutating, low-risk, non-sensitive read, and for a dry run.
    pub receipt_hash: Option<String>,
    pub prev_receipt_hash: Option<String>,
    pub canon_version: String,
}

/// Where an approval stands. Words on the wire: CONTRACTS §7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ApprovalStatus {
    Pending,
    Approved,
    Rejected,
    Expired,
    Consumed,
}
crate::decision::wire_words!(ApprovalStatus {
    Pending = "PENDING",
    Approved = "APPROVED",
    Rejected = "REJECTED",
    Expired = "EXPIRED",
    Consumed = "CONSUMED",
});

/// The exact action an approval is about, with the context policy saw: what a person is asked, and what may later be consumed.
/// Committed in the same transaction as its receipt; readable by control alone.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct FrozenAction {
    pub approval_id: String,
    pub tenant_id: TenantId,
    /// The decision that asked for the approval.
    pub event_id: EventId,
    pub agent_id: String,
    pub token_id: Option<String>,
    /// Id of the API key that handed out the token; none from an edge of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_by: Option<String>,
    pub user_id: Option<String>,
    #[serde(default)]
    pub user_role: Option<String>,
    pub run_id: Option<String>,
    pub environment: String,
    pub tool_call: ToolCall,
    pub action_hash: String,
    /// Effective trust at the time, and the label of the run's root.
    pub source_trust: SourceTrust,
    pub root_trust: SourceTrust,
    pub contains_sensitive_data: bool,
    pub risk_level: RiskLevel,
    pub reason: String,
    pub matched_policies: Vec<String>,
    pub policy_digest: String,
    pub approver_group: String,
    /// How many different people must approve, at least 1.
    pub approvals_needed: u32,
    pub requested_at: Timestamp,
    pub expires_at: Timestamp,
    pub callback_url: Option<String>,
}

impl FrozenAction {
    /// Hex SHA-256 of its canonical form. The decision's receipt carries it as `detail.frozen_digest`, so that every value a person is
    /// shown, or policy is asked with again, is vouched for.
    ///
    /// # Errors
    /// Its parameters have no canonical form.
    pub fn digest(&self) -> Result<String, aegis_canon::CanonError> {
        aegis_canon::hash_value(&serde_json::to_value(self).unwrap_or(Value::Null))
    }
}

/// `GET /v1/approvals/{id}`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ApprovalView {
    pub approval_id: String,
    pub status: ApprovalStatus,
    pub agent_id: String,
    pub decision_id: EventId,
    /// The hash that a consume must present now.
    pub action_hash: String,
    pub original_action_hash: String,
    pub is_edited: bool,
    pub tool_call: ToolCall,
    pub edited_tool_call: Option<ToolCall>,
    pub approver_group: String,
    pub approvals_needed: u32,
    pub approved_by: Vec<String>,
    pub source_trust: SourceTrust,
    pub reason: String,
    pub requested_at: Timestamp,
    pub expires_at: Timestamp,
    /// Whole seconds from the answer to `expires_at`, 0 when it has passed: for a client whose clock may be wrong.
    pub expires_in: i64,
}

/// Every error reply: `{"error": {"code", "message"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

/// What went wrong, for programs (`code`, stable) and for people (`message`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ErrorDetail {
    pub code: String,
    pub message: String,
}
