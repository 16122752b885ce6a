//! What a decision is made from, what comes out, and the same for calls on record: simulating a bundle before it goes live.

use aegis_model::{DataAccess, Decision, Destination, ResourceRecord, RiskLevel, SourceTrust, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::PolicyBundle;

/// One call as the edge knows it: labels combined, registry facts applied, the caller's word only where it tightens.
#[derive(Clone, Copy, Debug)]
pub struct PolicyInput<'a> {
    pub tenant_id: &'a TenantId,
    pub agent_id: &'a str,
    pub agent_risk_tier: RiskLevel,
    pub tool: &'a str,
    pub action: &'a str,
    pub registered_mutates: bool,
    pub resource: Option<&'a str>,
    /// What is registered of `resource`. One that is registered for another tool says nothing about this one, and is ignored.
    pub resource_record: Option<&'a ResourceRecord>,
    /// Effective trust.
    pub trust_level: SourceTrust,
    pub root_trust: SourceTrust,
    /// As the caller says; a call counts as mutating when either the caller or the registry says so.
    pub mutates_state: bool,
    pub contains_sensitive_data: bool,
    pub environment: &'a str,
    pub risk_level: RiskLevel,
    pub data_access: DataAccess,
    pub destination: Destination,
    pub user_id: Option<&'a str>,
    pub user_role: Option<&'a str>,
    pub parameters: &'a Map<String, Value>,
}

/// What policy says of one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyOutcome {
    pub decision: Decision,
    /// For people. Never holds an argument's value.
    pub reason: String,
    /// Sorted ids of the policies that determined the decision; empty when no policy permits.
    pub matched_policies: Vec<String>,
    /// The group to ask; none: the tenant's own.
    pub approver_group: Option<String>,
    /// How many people must approve, at least 1.
    pub approvals: u32,
    /// Why, for programs, when it was not the policies' own answer: one of this crate's codes.
    pub code: Option<&'static str>,
}

/// A call on record: `PolicyInput` that owns what it holds. An unknown field is refused: one that is misspelt would be decided without.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedCall {
    pub tenant_id: TenantId,
    pub agent_id: String,
    #[serde(default)]
    pub agent_risk_tier: RiskLevel,
    pub tool: String,
    pub action: String,
    #[serde(default)]
    pub registered_mutates: bool,
    #[serde(default)]
    pub resource: Option<String>,
    #[serde(default)]
    pub resource_record: Option<ResourceRecord>,
    #[serde(default)]
    pub trust_level: SourceTrust,
    #[serde(default)]
    pub root_trust: SourceTrust,
    #[serde(default)]
    pub mutates_state: bool,
    #[serde(default)]
    pub contains_sensitive_data: bool,
    #[serde(default)]
    pub environment: String,
    #[serde(default)]
    pub risk_level: RiskLevel,
    #[serde(default)]
    pub data_access: DataAccess,
    #[serde(default)]
    pub destination: Destination,
    #[serde(default)]
    pub user_id: Option<String>,
    #[serde(default)]
    pub user_role: Option<String>,
    #[serde(default)]
    pub parameters: Map<String, Value>,
}

impl RecordedCall {
    /// The call as a bundle evaluates it.
    #[must_use]
    pub fn as_input(&self) -> PolicyInput<'_> {
        PolicyInput {
            tenant_id: &self.tenant_id,
            agent_id: &self.agent_id,
            agent_risk_tier: self.agent_risk_tier,
            tool: &self.tool,
            action: &self.action,
            registered_mutates: self.registered_mutates,
            resource: self.resource.as_deref(),
            resource_record: self.resource_record.as_ref(),
            trust_level: self.trust_level,
            root_trust: self.root_trust,
            mutates_state: self.mutates_state,
            contains_sensitive_data: self.contains_sensitive_data,
            environment: &self.environment,
            risk_level: self.risk_level,
            data_access: self.data_access,
            destination: self.destination,
            user_id: self.user_id.as_deref(),
            user_role: self.user_role.as_deref(),
            parameters: &self.parameters,
        }
    }
}

/// What a bundle says of calls on record, in their order.
#[must_use]
pub fn simulate(bundle: &PolicyBundle, calls: &[RecordedCall]) -> Vec<PolicyOutcome> {
    calls.iter().map(|call| bundle.evaluate(&call.as_input())).collect()
}

/// A call on record that a new bundle would decide otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Index into the calls.
    pub call: usize,
    pub before: PolicyOutcome,
    pub after: PolicyOutcome,
}

/// The calls on record whose decision, approver group or number of approvals would change.
#[must_use]
pub fn compare(running: &PolicyBundle, candidate: &PolicyBundle, calls: &[RecordedCall]) -> Vec<Change> {
    let mut changes = Vec::new();
    for (index, call) in calls.iter().enumerate() {
        let before = running.evaluate(&call.as_input());
        let after = candidate.evaluate(&call.as_input());
        let same = (before.decision, &before.approver_group, before.approvals)
            == (after.decision, &after.approver_group, after.approvals);
        if !same {
            changes.push(Change { call: index, before, after });
        }
    }
    changes
}
