//! The current policy's word on a frozen action: what an edit is checked by, and what a consume is checked by once more.
//! Promises to deny whatever the registry no longer knows and whatever policy cannot evaluate.

use aegis_model::{ActionRecord, Decision, DefaultDecision, FrozenAction, TargetType, TenantId, ToolCall, Verdict};
use aegis_policy::PolicyInput;

use crate::control::Control;
use crate::problem::Problem;

/// What policy says now.
#[derive(Clone, Debug)]
pub(crate) struct Judgement {
    pub(crate) decision: Decision,
    /// Why, for programs: set when it is a deny.
    pub(crate) code: &'static str,
    pub(crate) reason: String,
    pub(crate) matched_policies: Vec<String>,
    pub(crate) policy_digest: Option<String>,
    pub(crate) approver_group: Option<String>,
    pub(crate) approvals: u32,
}

impl Judgement {
    fn deny(code: &'static str, reason: &str) -> Self {
        Self {
            decision: Decision::Deny,
            code,
            reason: reason.to_owned(),
            matched_policies: Vec::new(),
            policy_digest: None,
            approver_group: None,
            approvals: 0,
        }
    }
}

impl Control {
    /// Evaluates `call` under the current policy and registry, with the context in which the action was frozen.
    pub(crate) async fn judge(&self, frozen: &FrozenAction, call: &ToolCall) -> Result<Judgement, Problem> {
        let tenant = &frozen.tenant_id;
        let Some(agent) = self.store.agent(tenant, &frozen.agent_id).await? else {
            return Ok(Judgement::deny("agent_unknown", "the agent is not registered"));
        };
        let Some(action) = self.registered_action(tenant, call).await? else {
            return Ok(Judgement::deny("unknown_action", "the action is not registered"));
        };
        if action.default_decision == DefaultDecision::Deny {
            return Ok(Judgement::deny("denied_by_registry", "the action is registered as denied"));
        }
        if let Some(gate) = self.mcp_gate(tenant, call).await? {
            return Ok(gate);
        }
        let Ok(bundle) = self.bundle(tenant).await else {
            return Ok(Judgement::deny("policy_error", "the tenant's policies do not load"));
        };
        let resource_record = match &call.resource {
            Some(name) => self.resource_record(tenant, name).await?,
            None => None,
        };
        let outcome = bundle.evaluate(&PolicyInput {
            tenant_id: tenant,
            agent_id: &frozen.agent_id,
            agent_risk_tier: agent.risk_tier,
            tool: &call.tool,
            action: &call.action,
            registered_mutates: action.mutates_state,
            resource: call.resource.as_deref(),
            resource_record: resource_record.as_ref(),
            trust_level: frozen.source_trust,
            root_trust: frozen.root_trust,
            mutates_state: call.mutates_state || action.mutates_state,
            contains_sensitive_data: frozen.contains_sensitive_data,
            environment: &frozen.environment,
            risk_level: frozen.risk_level.max(action.risk),
            data_access: action.data_access,
            destination: action.destination,
            user_id: frozen.user_id.as_deref(),
            user_role: frozen.user_role.as_deref(),
            parameters: &call.parameters,
        });
        Ok(Judgement {
            decision: outcome.decision,
            code: outcome.code.unwrap_or("policy_denied"),
            reason: outcome.reason,
            matched_policies: outcome.matched_policies,
            policy_digest: Some(bundle.digest().to_owned()),
            approver_group: outcome.approver_group,
            approvals: outcome.approvals,
        })
    }

    async fn registered_action(&self, tenant: &TenantId, call: &ToolCall) -> Result<Option<ActionRecord>, Problem> {
        let tool = self.store.tool(tenant, &call.tool).await?;
        Ok(tool.and_then(|tool| tool.actions.into_iter().find(|action| action.action == call.action)))
    }

    /// The gates an MCP server's tools pass before policy is asked.
    async fn mcp_gate(&self, tenant: &TenantId, call: &ToolCall) -> Result<Option<Judgement>, Problem> {
        let Some(key) = call.tool.strip_prefix("mcp:") else { return Ok(None) };
        if self.verdict(tenant, TargetType::McpServer, key).await? != Verdict::Free {
            return Ok(Some(Judgement::deny("mcp_server_quarantined", "the MCP server is quarantined")));
        }
        match self.store.mcp_server(tenant, key).await? {
            None => Ok(Some(Judgement::deny("mcp_unknown_tool", "the MCP server is not registered"))),
            Some(server) if !server.tools.iter().any(|tool| tool.name == call.action) => {
                Ok(Some(Judgement::deny("mcp_unknown_tool", "the MCP server's manifest does not have this tool")))
            }
            Some(server) if server.drifted => {
                Ok(Some(Judgement::deny("mcp_manifest_drift", "the MCP server's manifest is not the registered one")))
            }
            Some(_) => Ok(None),
        }
    }
}
