//! What control says it did: the drafts of its events and receipts.
//! Promises that each names the tenant and who acted; never takes a parameter, a secret or a payload into a draft.

use aegis_ledger::Draft;
use aegis_model::{ContainmentState, EventId, EventKind, FrozenAction, Phase, SecurityEvent, TenantId};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::auth::Caller;
use crate::control::Control;

/// `source` of control's events.
pub(crate) const SOURCE: &str = "control";

/// Longest `detail` of a receipt of ours, bytes: with every column of the event it stays far below a receipt's limit.
const MAX_DETAIL: usize = 16 * 1024;

/// The namespace of event ids that follow from what they are about, so that doing the work twice is the same event.
const DERIVED_NAMESPACE: Uuid = Uuid::from_u128(0x6165_6769_732d_636f_6e74_726f_6c2d_3031);

/// The id of the one event of `kind` about an approval that control makes on its own (asked, expired).
pub(crate) fn derived_event_id(kind: EventKind, tenant: &TenantId, approval_id: &str) -> EventId {
    Uuid::new_v5(&DERIVED_NAMESPACE, format!("{kind}\0{tenant}\0{approval_id}").as_bytes())
}

impl Control {
    /// An empty event of this process.
    pub(crate) fn event(&self, tenant: &TenantId, kind: EventKind) -> SecurityEvent {
        SecurityEvent::new(tenant.clone(), &self.config.edge_id, SOURCE, kind, self.clock.now())
    }

    /// A change of what is registered or configured. `detail` says what; `by` is added.
    pub(crate) fn config_draft(&self, caller: &Caller, change: &str, mut detail: Value) -> Draft {
        let mut event = self.event(caller.tenant(), EventKind::ConfigChanged);
        event.reason = Some(change.to_owned());
        event.approver = Some(caller.name().to_owned());
        if let Some(object) = detail.as_object_mut() {
            object.insert("change".to_owned(), json!(change));
            object.insert("by".to_owned(), caller.as_detail());
        }
        let mut draft = Draft::new(event, Phase::Config);
        draft.detail = Some(bounded_detail(detail, change, caller));
        draft
    }

    /// An MCP server whose manifest is not the registered one. `detail` says in what; `by` is added.
    pub(crate) fn drift_draft(&self, caller: &Caller, server_key: &str, reason: &str, mut detail: Value) -> Draft {
        let mut event = self.event(caller.tenant(), EventKind::McpManifestDrift);
        event.tool = Some(format!("mcp:{server_key}"));
        event.reason = Some(reason.to_owned());
        event.approver = Some(caller.name().to_owned());
        if let Some(object) = detail.as_object_mut() {
            object.insert("change".to_owned(), json!(reason));
            object.insert("by".to_owned(), caller.as_detail());
        }
        let mut draft = Draft::new(event, Phase::Attempt);
        draft.detail = Some(bounded_detail(detail, reason, caller));
        draft
    }

    /// An event about an approval, with the columns of the frozen action. Parameters are represented by the hash alone.
    pub(crate) fn approval_draft(&self, frozen: &FrozenAction, kind: EventKind, phase: Phase) -> Draft {
        let mut event = self.event(&frozen.tenant_id, kind);
        event.ref_event_id = Some(frozen.event_id);
        event.agent_id = Some(frozen.agent_id.clone());
        event.token_id = frozen.token_id.clone();
        event.user_id = frozen.user_id.clone();
        event.run_id = frozen.run_id.clone();
        event.environment = Some(frozen.environment.clone());
        event.tool = Some(frozen.tool_call.tool.clone());
        event.action = Some(frozen.tool_call.action.clone());
        event.resource = frozen.tool_call.resource.clone();
        event.mutates_state = Some(frozen.tool_call.mutates_state);
        event.source_trust = Some(frozen.source_trust);
        event.root_trust = Some(frozen.root_trust);
        event.contains_sensitive_data = Some(frozen.contains_sensitive_data);
        event.risk_level = Some(frozen.risk_level);
        event.policy_digest = Some(frozen.policy_digest.clone());
        event.action_hash = Some(frozen.action_hash.clone());
        event.approval_id = Some(frozen.approval_id.clone());
        Draft::new(event, phase)
    }

    /// A containment that was asked for: `status` is applied, released, revoked or cap_reached.
    pub(crate) fn containment_draft(&self, change: &ContainmentChange<'_>) -> Draft {
        let mut event = self.event(change.tenant, EventKind::ContainmentApplied);
        match change.target_type {
            aegis_model::TargetType::Agent => event.agent_id = Some(change.target_id.to_owned()),
            aegis_model::TargetType::McpServer => event.tool = Some(format!("mcp:{}", change.target_id)),
        }
        event.status = Some(change.status.to_owned());
        event.reason = Some(change.reason.to_owned());
        event.approver = Some(change.by_name.to_owned());
        event.ref_event_id = change.evidence.first().copied();
        // In the event too: rules read columns, not receipts.
        event.attributes =
            Some(json!({"target_type": change.target_type, "kind": change.kind, "until": change.until}).to_string());
        let mut draft = Draft::new(event, Phase::Containment);
        draft.detail = Some(json!({
            "change": change.status,
            "target_type": change.target_type,
            "target_id": change.target_id,
            "kind": change.kind,
            "until": change.until,
            "hold_id": change.hold_id,
            "command_id": change.command_id,
            "evidence": change.evidence,
            "by": change.by,
        }));
        draft
    }
}

/// A detail that would make its receipt too large is represented by its hash.
fn bounded_detail(detail: Value, change: &str, caller: &Caller) -> Value {
    let size = detail.to_string().len();
    if size <= MAX_DETAIL {
        return detail;
    }
    json!({"change": change, "by": caller.as_detail(), "detail_bytes": size, "detail_hash": aegis_canon::hash_value(&detail).ok()})
}

/// What a containment event says.
#[derive(Debug)]
pub(crate) struct ContainmentChange<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) target_type: aegis_model::TargetType,
    pub(crate) target_id: &'a str,
    pub(crate) kind: Option<aegis_model::ContainmentKind>,
    /// When a hold ends by itself, if it does.
    pub(crate) until: Option<aegis_model::Timestamp>,
    pub(crate) status: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) by_name: &'a str,
    pub(crate) by: Value,
    pub(crate) hold_id: Option<&'a str>,
    pub(crate) command_id: Option<&'a str>,
    pub(crate) evidence: &'a [EventId],
}

/// The name of a containment entry in the control feed, as the store gives it too.
pub(crate) fn containment_entry_name(state: &ContainmentState) -> String {
    format!("{}:{}", state.target_type, state.target_id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_id_is_one_per_kind_tenant_and_approval() {
        let (a, b) = (TenantId::new("a").unwrap(), TenantId::new("b").unwrap());
        let id = |kind, tenant: &TenantId, approval: &str| derived_event_id(kind, tenant, approval);
        assert_eq!(id(EventKind::ApprovalRequested, &a, "1"), id(EventKind::ApprovalRequested, &a, "1"));
        assert_ne!(id(EventKind::ApprovalRequested, &a, "1"), id(EventKind::ApprovalDecided, &a, "1"));
        assert_ne!(id(EventKind::ApprovalRequested, &a, "1"), id(EventKind::ApprovalRequested, &b, "1"));
        assert_ne!(id(EventKind::ApprovalRequested, &a, "1"), id(EventKind::ApprovalRequested, &a, "2"));
    }
}
