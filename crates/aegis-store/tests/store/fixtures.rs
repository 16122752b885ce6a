//! Records as their producers make them. `Place` is a store of its own: what it stands on, each test program says.

use aegis_model::{
    ActionRecord, AgentRecord, Alert, ChannelRecord, ContainmentKind, DataAccess, DefaultDecision, Destination, EventKind,
    FrozenAction, Hold, McpServerRecord, McpToolRecord, ResourceRecord, RiskLevel, RuleMode, Severity, SourceTrust, TenantId,
    Timestamp, ToolCall, ToolRecord, Visibility, new_event_id,
};
use aegis_store::{HistoryRow, NewRuleVersion, OutboxRow, RegisteredBy, Standing, Wire};
use serde_json::json;

pub(crate) use crate::place::Place;

pub(crate) const START: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

pub(crate) fn tenant(id: &str) -> TenantId {
    TenantId::new(id).unwrap()
}

pub(crate) fn acme() -> TenantId {
    tenant("acme")
}

pub(crate) fn fact(tenant: &TenantId) -> OutboxRow {
    OutboxRow { event_id: new_event_id(), tenant_id: tenant.clone(), payload: format!("{{\"of\":\"{tenant}\"}}") }
}

pub(crate) fn agent(id: &str, agent_key: &str, name: &str) -> AgentRecord {
    AgentRecord {
        id: id.into(),
        agent_key: agent_key.into(),
        name: name.into(),
        owner_team: Some("payments".into()),
        environment: "production".into(),
        risk_tier: RiskLevel::High,
        trust_ceiling: SourceTrust::SemiTrustedCustomer,
        created_at: START,
    }
}

/// An agent's registrar that hands out a token for an hour.
pub(crate) fn registered_by(key_id: &str) -> RegisteredBy<'_> {
    RegisteredBy { registrar: key_id, issuer: key_id, token_until: START.plus_seconds(3600) }
}

pub(crate) fn tool(name: &str) -> ToolRecord {
    let action = |action: &str, mutates_state: bool, default_decision: DefaultDecision| ActionRecord {
        action: action.into(),
        description: mutates_state.then(|| "writes".into()),
        risk: RiskLevel::Critical,
        mutates_state,
        data_access: DataAccess::Sensitive,
        destination: Destination::External,
        target_parameter: Some("repository".into()),
        parameters: mutates_state.then(|| json!({"type": "object", "properties": {"repository": {"type": "string"}}})),
        approval_required: mutates_state,
        default_decision,
    };
    ToolRecord {
        tool: "github".into(),
        name: name.into(),
        default_risk: RiskLevel::Medium,
        actions: vec![
            action("merge_pull_request", true, DefaultDecision::Policy),
            action("get_file", false, DefaultDecision::Allow),
            action("delete_repository", true, DefaultDecision::Deny),
        ],
    }
}

pub(crate) fn mcp_server(name: &str) -> McpServerRecord {
    let tool = |tool: &str| McpToolRecord { name: tool.into(), manifest_hash: "ab".repeat(32) };
    McpServerRecord {
        key: "files".into(),
        name: name.into(),
        url: Some("https://mcp.example".into()),
        tools: vec![tool("write"), tool("read")],
        drifted: true,
        drifted_tools: vec!["read".into(), "\"erase\"".into()],
    }
}

pub(crate) fn channel(public_key: &str) -> ChannelRecord {
    ChannelRecord {
        channel: "slack".into(),
        source_trust: SourceTrust::TrustedInternalUnsigned,
        public_key: Some(public_key.into()),
    }
}

pub(crate) fn resource(owner: &str) -> ResourceRecord {
    ResourceRecord {
        resource: "payments-service".into(),
        tool: Some("github".into()),
        visibility: Visibility::Private,
        owner: Some(owner.into()),
        observed_at: None,
    }
}

pub(crate) fn call(pull_request: u32) -> ToolCall {
    ToolCall {
        tool: "github".into(),
        action: "merge_pull_request".into(),
        resource: Some(format!("payments-service#{pull_request}")),
        mutates_state: true,
        parameters: json!({"base_branch": "main"}).as_object().unwrap().clone(),
    }
}

/// An approval that is open for 15 minutes from `START`.
pub(crate) fn frozen(tenant: &TenantId, id: &str, approvals_needed: u32) -> FrozenAction {
    FrozenAction {
        approval_id: id.into(),
        tenant_id: tenant.clone(),
        event_id: new_event_id(),
        agent_id: "agent-1".into(),
        token_id: None,
        issued_by: None,
        user_id: Some(format!("user of {tenant}")),
        user_role: Some("engineer".into()),
        run_id: None,
        environment: "production".into(),
        tool_call: call(482),
        action_hash: "hash-0".into(),
        source_trust: SourceTrust::Unknown,
        root_trust: SourceTrust::Unknown,
        contains_sensitive_data: false,
        risk_level: RiskLevel::High,
        reason: "main needs a person".into(),
        matched_policies: vec!["merge-needs-approval".into()],
        policy_digest: "digest-0".into(),
        approver_group: "security".into(),
        approvals_needed,
        requested_at: START,
        expires_at: START.plus_seconds(900),
        callback_url: Some("https://hooks.example/approvals".into()),
    }
}

pub(crate) fn hold(id: &str, kind: ContainmentKind, by: &str, until: Option<Timestamp>) -> Hold {
    Hold { hold_id: id.into(), kind, reason: "probing".into(), by: by.into(), since: START, until }
}

pub(crate) fn alert(tenant: &TenantId, alert_id: &str, rule_id: &str, agent_id: &str) -> Alert {
    Alert {
        alert_id: alert_id.into(),
        tenant_id: tenant.clone(),
        rule_id: rule_id.into(),
        rule_name: format!("deny storm of {tenant}"),
        rule_version: 1,
        rule_hash: "cd".repeat(32),
        severity: Severity::High,
        mode: RuleMode::Active,
        key: json!({"agent_id": agent_id}).as_object().unwrap().clone(),
        first_ts: START,
        last_ts: START.plus_seconds(30),
        event_ids: vec![new_event_id()],
        receipt_hashes: vec!["ef".repeat(32)],
        fields: serde_json::Map::new(),
        respond: vec!["freeze_agent".into()],
        atlas: vec![],
        owasp: vec![],
        runbook: None,
        detected_at: START.plus_seconds(31),
        found_late: false,
    }
}

/// A hash whose beginning shows the number.
pub(crate) fn hash(number: i64) -> String {
    format!("{number:032x}").repeat(2)
}

pub(crate) fn event(tenant: &TenantId, kind: EventKind, seq: i64) -> HistoryRow {
    let has_receipt = !kind.is_external();
    HistoryRow {
        tenant_id: tenant.clone(),
        event_id: new_event_id(),
        kind,
        ts: START.plus_seconds(seq),
        lane: has_receipt.then(|| format!("{tenant}.edge-1.7")),
        seq: has_receipt.then_some(seq),
        agent_id: Some("agent-1".into()),
        run_id: Some("run-1".into()),
        decision: (kind == EventKind::AuthorizeDecision).then_some(aegis_model::Decision::Deny),
        receipt_hash: has_receipt.then(|| hash(seq)),
        bus_seq: seq.cast_unsigned(),
        bus_ts: Some(START.plus_seconds(seq + 1)),
        standing: if has_receipt { Standing::Own } else { Standing::Unproved },
        wire: Wire::Text(format!("{{\"tenant_id\":\"{tenant}\",\"seq\":{seq}}}").into()),
    }
}

/// A version of the rule T-1 that only logs; `note` is its changelog line.
pub(crate) fn rule_version(version: i64, note: &str) -> NewRuleVersion {
    NewRuleVersion {
        rule_id: "T-1".into(),
        name: "t-one".into(),
        version,
        mode: RuleMode::LogOnly,
        hash: format!("{version:064x}"),
        text: format!("text {version}: {note}"),
        note: note.into(),
        backtest: Some(json!({"alerts": 3})),
        common: None,
    }
}
