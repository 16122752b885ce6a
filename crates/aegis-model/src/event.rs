//! The AegisAgent security event (ASE): one row of the table `events` (CONTRACTS §5), and its digest form.
//! Every column of an event but those named in `DIGEST_EXCLUDED` is vouched for by its receipt's `event_digest`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::decision::{DataAccess, Decision, Destination, RiskLevel, wire_words};
use crate::{EventId, SourceTrust, TenantId, Timestamp};

/// Keys that are not part of the digest: what is added after sealing.
pub const DIGEST_EXCLUDED: [&str; 6] = ["receipt", "proof", "receipt_hash", "verified", "bus_ts", "late"];

/// What an allocator takes for a text beside its bytes, about.
const OF_A_TEXT: usize = 16;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EventKind {
    #[serde(rename = "lane_open")]
    LaneOpen,
    #[serde(rename = "lane_close")]
    LaneClose,
    #[serde(rename = "lane_gap")]
    LaneGap,
    #[serde(rename = "authorize_decision")]
    AuthorizeDecision,
    #[serde(rename = "approval_requested")]
    ApprovalRequested,
    #[serde(rename = "approval_decided")]
    ApprovalDecided,
    #[serde(rename = "approval_consumed")]
    ApprovalConsumed,
    #[serde(rename = "tool_attempt")]
    ToolAttempt,
    #[serde(rename = "tool_outcome")]
    ToolOutcome,
    #[serde(rename = "replay_attempt")]
    ReplayAttempt,
    #[serde(rename = "tamper_attempt")]
    TamperAttempt,
    #[serde(rename = "canonicalization_skew")]
    CanonicalizationSkew,
    #[serde(rename = "mcp_manifest_drift")]
    McpManifestDrift,
    #[serde(rename = "mcp_response_flagged")]
    McpResponseFlagged,
    #[serde(rename = "containment_applied")]
    ContainmentApplied,
    #[serde(rename = "config_changed")]
    ConfigChanged,
    #[serde(rename = "edge_silent")]
    EdgeSilent,
    #[serde(rename = "edge_back")]
    EdgeBack,
    #[serde(rename = "control_feed_refused")]
    ControlFeedRefused,
    #[serde(rename = "control_feed_stale")]
    ControlFeedStale,
    #[serde(rename = "rule_record_refused")]
    RuleRecordRefused,
    #[serde(rename = "receipt_chain_broken")]
    ReceiptChainBroken,
    #[serde(rename = "external_event:github_webhook")]
    ExternalGithubWebhook,
    #[serde(rename = "external_event:openai_trace")]
    ExternalOpenaiTrace,
    #[serde(rename = "external_event:otlp")]
    ExternalOtlp,
}
wire_words!(EventKind {
    LaneOpen = "lane_open",
    LaneClose = "lane_close",
    LaneGap = "lane_gap",
    AuthorizeDecision = "authorize_decision",
    ApprovalRequested = "approval_requested",
    ApprovalDecided = "approval_decided",
    ApprovalConsumed = "approval_consumed",
    ToolAttempt = "tool_attempt",
    ToolOutcome = "tool_outcome",
    ReplayAttempt = "replay_attempt",
    TamperAttempt = "tamper_attempt",
    CanonicalizationSkew = "canonicalization_skew",
    McpManifestDrift = "mcp_manifest_drift",
    McpResponseFlagged = "mcp_response_flagged",
    ContainmentApplied = "containment_applied",
    ConfigChanged = "config_changed",
    EdgeSilent = "edge_silent",
    EdgeBack = "edge_back",
    ControlFeedRefused = "control_feed_refused",
    ControlFeedStale = "control_feed_stale",
    RuleRecordRefused = "rule_record_refused",
    ReceiptChainBroken = "receipt_chain_broken",
    ExternalGithubWebhook = "external_event:github_webhook",
    ExternalOpenaiTrace = "external_event:openai_trace",
    ExternalOtlp = "external_event:otlp",
});

impl EventKind {
    /// The kind as a subject token: `:` becomes `-`.
    #[must_use]
    pub fn subject_token(self) -> String {
        self.as_str().replace(':', "-")
    }

    /// True for observations of the outside: they have no lane, prove nothing and contain nobody.
    #[must_use]
    pub const fn is_external(self) -> bool {
        matches!(self, Self::ExternalGithubWebhook | Self::ExternalOpenaiTrace | Self::ExternalOtlp)
    }
}

/// One event, with the names and types of the table `events`. Absent and null are the same thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityEvent {
    pub event_id: EventId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ref_event_id: Option<EventId>,
    pub tenant_id: TenantId,
    /// The producer: an edge's id, `control`, `soc`, or the ingest adapter's process.
    pub edge_id: String,
    /// Event time at the producer, corrected; never decreasing within a lane.
    pub ts: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<i64>,
    pub kind: EventKind,
    pub source: String,
    #[serde(default)]
    pub verified: bool,
    #[serde(default)]
    pub clock_suspect: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Where data would go (address, repository, account), if the registry names the parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_access: Option<DataAccess>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutates_state: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains_sensitive_data: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_trust: Option<SourceTrust>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_trust: Option<SourceTrust>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk_level: Option<RiskLevel>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of an approval or an outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Display only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk_score: Option<i32>,
    #[serde(default)]
    pub matched_policies: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_digest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_hash: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt_hash: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approver: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce_hash: Option<String>,
    /// Adapter-specific JSON text, redacted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus_ts: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
}

impl SecurityEvent {
    /// An event of `kind` with a fresh id and everything optional absent.
    #[must_use]
    pub fn new(tenant_id: TenantId, edge_id: &str, source: &str, kind: EventKind, ts: Timestamp) -> Self {
        Self::with_id(crate::new_event_id(), tenant_id, edge_id, source, kind, ts)
    }

    /// The same with an id that was made already.
    #[must_use]
    pub fn with_id(event_id: EventId, tenant_id: TenantId, edge_id: &str, source: &str, kind: EventKind, ts: Timestamp) -> Self {
        Self {
            event_id,
            ref_event_id: None,
            tenant_id,
            edge_id: edge_id.to_owned(),
            ts,
            lane: None,
            seq: None,
            kind,
            source: source.to_owned(),
            verified: false,
            clock_suspect: false,
            agent_id: None,
            token_id: None,
            user_id: None,
            run_id: None,
            trace_id: None,
            environment: None,
            tool: None,
            action: None,
            resource: None,
            target: None,
            destination: None,
            data_access: None,
            mutates_state: None,
            contains_sensitive_data: None,
            source_trust: None,
            root_trust: None,
            decision: None,
            risk_level: None,
            reason: None,
            status: None,
            risk_score: None,
            matched_policies: Vec::new(),
            policy_digest: None,
            action_hash: None,
            receipt_hash: None,
            approval_id: None,
            approver: None,
            nonce_hash: None,
            attributes: None,
            bus_ts: None,
            late: false,
        }
    }

    /// The key by which events are ordered everywhere: (ts, lane, seq, event_id). No part of it is arrival order.
    #[must_use]
    pub fn order_key(&self) -> (Timestamp, Option<&str>, Option<i64>, EventId) {
        (self.ts, self.lane.as_deref(), self.seq, self.event_id)
    }

    /// What it takes in memory, about: itself, its texts and its list.
    #[must_use]
    pub fn weight(&self) -> usize {
        let Self { lane, agent_id, token_id, user_id, run_id, trace_id, environment, tool, action, resource, target, .. } = self;
        let Self {
            reason, status, policy_digest, action_hash, receipt_hash, approval_id, approver, nonce_hash, attributes, ..
        } = self;
        let texts = [
            lane,
            agent_id,
            token_id,
            user_id,
            run_id,
            trace_id,
            environment,
            tool,
            action,
            resource,
            target,
            reason,
            status,
            policy_digest,
            action_hash,
            receipt_hash,
            approval_id,
            approver,
            nonce_hash,
            attributes,
        ];
        let of_text = |text: &String| text.capacity() + OF_A_TEXT;
        let policies = self.matched_policies.capacity() * size_of::<String>();
        size_of::<Self>()
            + OF_A_TEXT
            + self.tenant_id.as_str().len()
            + of_text(&self.edge_id)
            + of_text(&self.source)
            + texts.into_iter().flatten().map(of_text).sum::<usize>()
            + policies
            + self.matched_policies.iter().map(of_text).sum::<usize>()
    }

    /// Turns an event as JSON into the form whose canonical bytes are hashed into `event_digest`: without the keys of
    /// `DIGEST_EXCLUDED` and without null-valued keys. Works on raw JSON, so that columns of a newer version are covered too.
    #[must_use]
    pub fn digest_form(wire: &Value) -> Value {
        let Some(object) = wire.as_object() else { return Value::Null };
        let kept = object
            .iter()
            .filter(|(key, value)| !value.is_null() && !DIGEST_EXCLUDED.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()));
        Value::Object(kept.collect())
    }
}
