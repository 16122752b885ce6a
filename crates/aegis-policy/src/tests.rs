//! The crate as its callers use it: packs and tenants' own policies loaded from text, calls decided.
//! In test builds every request is also checked against the schema, so a malformed one shows up as `policy_error`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod decisions;
mod load;
mod memo;
mod packs;

use aegis_model::{
    ActionRecord, DataAccess, Decision, DefaultDecision, Destination, ResourceRecord, RiskLevel, SourceTrust, TenantId,
    ToolRecord, Visibility,
};
use serde_json::{Value, json};

use crate::{PolicyBundle, PolicyError, PolicyOutcome, PolicySource, RecordedCall, github_tool};

pub(super) fn action(name: &str, mutates_state: bool, parameters: Option<Value>) -> ActionRecord {
    ActionRecord {
        action: name.to_owned(),
        description: None,
        risk: RiskLevel::Low,
        mutates_state,
        data_access: DataAccess::None,
        destination: Destination::Internal,
        target_parameter: None,
        parameters,
        approval_required: false,
        default_decision: DefaultDecision::Policy,
    }
}

pub(super) fn tool(name: &str, actions: Vec<ActionRecord>) -> ToolRecord {
    ToolRecord { tool: name.to_owned(), name: name.to_owned(), default_risk: RiskLevel::Low, actions }
}

/// A payment tool: `pay` is a write with typed arguments, `balance` a read.
pub(super) fn bank() -> ToolRecord {
    let pay = json!({"type": "object", "properties": {
        "amount": {"type": "number"}, "currency": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}},
        "to": {"type": "object", "properties": {"country": {"type": "string"}}}, "anything": {}
    }});
    tool("bank", vec![action("pay", true, Some(pay)), action("balance", false, None)])
}

pub(super) fn source(name: &str, text: &str) -> PolicySource {
    PolicySource { name: name.to_owned(), text: text.to_owned() }
}

pub(super) fn load(text: &str) -> Result<PolicyBundle, PolicyError> {
    PolicyBundle::load(&[source("test.cedar", text)], &[bank(), github_tool()])
}

pub(super) fn call(tool: &str, action: &str, trust: SourceTrust) -> RecordedCall {
    RecordedCall {
        tenant_id: TenantId::new("acme").unwrap(),
        agent_id: "bot".to_owned(),
        agent_risk_tier: RiskLevel::Low,
        tool: tool.to_owned(),
        action: action.to_owned(),
        registered_mutates: false,
        resource: None,
        resource_record: None,
        trust_level: trust,
        root_trust: trust,
        mutates_state: false,
        contains_sensitive_data: false,
        environment: "production".to_owned(),
        risk_level: RiskLevel::Low,
        data_access: DataAccess::None,
        destination: Destination::Internal,
        user_id: None,
        user_role: None,
        parameters: serde_json::Map::new(),
    }
}

pub(super) trait With: Sized {
    fn on(self, resource: &str, visibility: Visibility) -> Self;
    fn with(self, parameters: Value) -> Self;
}

impl With for RecordedCall {
    fn on(mut self, resource: &str, visibility: Visibility) -> Self {
        self.resource = Some(resource.to_owned());
        self.resource_record = Some(ResourceRecord {
            resource: resource.to_owned(),
            tool: None,
            visibility,
            owner: Some("team-a".to_owned()),
            observed_at: None,
        });
        self
    }

    fn with(mut self, parameters: Value) -> Self {
        self.parameters = parameters.as_object().unwrap().clone();
        self
    }
}

pub(super) fn decide(bundle: &PolicyBundle, call: &RecordedCall) -> PolicyOutcome {
    bundle.evaluate(&call.as_input())
}

#[track_caller]
pub(super) fn expect(bundle: &PolicyBundle, call: &RecordedCall, decision: Decision, policies: &[&str]) -> PolicyOutcome {
    let outcome = decide(bundle, call);
    assert_eq!(
        (outcome.decision, outcome.matched_policies.as_slice()),
        (decision, policies.iter().map(ToString::to_string).collect::<Vec<_>>().as_slice()),
        "{outcome:?}"
    );
    assert!(!outcome.reason.is_empty());
    outcome
}
