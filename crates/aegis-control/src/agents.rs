//! Agents: registered under a key of their own, handed short-lived tokens, listed.
//! Promises that only the registrar who registered an agent, or an admin, gets another token for it; never stores a token.

use crate::reply::Json;
use aegis_keys::{AgentClaims, mint_agent_token};
use aegis_model::{AgentRecord, EntryKind, RiskLevel, SourceTrust, TenantId, Verdict};
use aegis_store::{Principal, RegisteredBy, Role};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use crate::control::Control;
use crate::input::{MAX_ID, check_optional, check_text, parse};
use crate::problem::Problem;
use crate::routes::Call;

/// `POST /v1/agents/register`.
#[derive(Debug, Deserialize)]
struct Registration {
    agent_key: String,
    name: String,
    #[serde(default)]
    owner_team: Option<String>,
    environment: String,
    risk_tier: RiskLevel,
    #[serde(default)]
    trust_ceiling: Option<SourceTrust>,
}

impl Registration {
    fn check(&self) -> Result<(), Problem> {
        check_text("agent_key", &self.agent_key, MAX_ID)?;
        check_text("name", &self.name, MAX_ID)?;
        check_optional("owner_team", self.owner_team.as_deref(), MAX_ID)?;
        check_text("environment", &self.environment, MAX_ID)
    }
}

pub(crate) async fn register(control: &Control, call: &Call) -> Result<Response, Problem> {
    let registration: Registration = parse(&call.body, control.config.max_body_bytes)?;
    registration.check()?;
    let principal = call.caller.key()?;
    let tenant = &principal.tenant_id;
    let turn = control.registry_turn.lock().await;
    let existing = control.store.agent_by_key(tenant, &registration.agent_key).await?;
    let registrar = match &existing {
        Some(agent) => may_register_again(control, principal, agent).await?,
        None => principal.key_id.clone(),
    };
    let now = control.clock.now();
    let record = AgentRecord {
        id: existing.as_ref().map_or_else(|| uuid::Uuid::now_v7().to_string(), |agent| agent.id.clone()),
        agent_key: registration.agent_key,
        name: registration.name,
        owner_team: registration.owner_team,
        environment: registration.environment,
        risk_tier: registration.risk_tier,
        trust_ceiling: registration.trust_ceiling.unwrap_or(SourceTrust::TrustedInternalSigned),
        created_at: existing.as_ref().map_or(now, |agent| agent.created_at),
    };
    control.check_entry(tenant, EntryKind::Agent, &record.id, &record)?;
    let change = if existing.is_some() { "agent_registered_again" } else { "agent_registered" };
    let token_id = uuid::Uuid::now_v7().to_string();
    let expires_at = now.plus_seconds(control.config.agent_token_ttl_s);
    let detail = json!({"agent": record, "token_id": token_id, "expires_at": expires_at});
    let mut draft = control.config_draft(&call.caller, change, detail);
    draft.event.attributes = Some(attributes_of(&record));
    let pending = control.prepare(draft)?;
    let keys = RegisteredBy { registrar: &registrar, issuer: &principal.key_id, token_until: expires_at };
    let (agent, created, revision) = control.store.upsert_agent(tenant, &record, keys, pending.rows()).await?;
    drop(turn);
    let sealed = control.seal(pending).await;
    control.publish(tenant, EntryKind::Agent, &agent.id, revision, &agent).await;
    sealed?;
    let claims = AgentClaims {
        token_id,
        tenant_id: tenant.clone(),
        agent_id: agent.id.clone(),
        agent_key: agent.agent_key.clone(),
        environment: agent.environment.clone(),
        owner_team: agent.owner_team.clone(),
        risk_tier: agent.risk_tier,
        trust_ceiling: agent.trust_ceiling,
        issued_by: principal.key_id.clone(),
        issued_at: now,
        expires_at,
    };
    let token = mint_agent_token(&control.key, &claims).map_err(Problem::internal)?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let body = json!({"id": agent.id, "agent_key": agent.agent_key, "agent_token": token, "expires_at": expires_at});
    Ok((status, Json(body)).into_response())
}

/// What rules can read of a registration: columns, not receipts. The agent's name is a text that nobody needs there.
fn attributes_of(agent: &AgentRecord) -> String {
    let AgentRecord { id, agent_key, owner_team, environment, risk_tier, trust_ceiling, .. } = agent;
    let registered = json!({
        "id": id, "agent_key": agent_key, "owner_team": owner_team, "environment": environment,
        "risk_tier": risk_tier, "trust_ceiling": trust_ceiling,
    });
    json!({ "agent": registered }).to_string()
}

/// The registrar an agent keeps when it is registered again; refused for a stranger and for a revoked agent.
async fn may_register_again(control: &Control, principal: &Principal, agent: &AgentRecord) -> Result<String, Problem> {
    let tenant = &principal.tenant_id;
    let registrar = control.store.agent_registrar(tenant, &agent.id).await?.unwrap_or_else(|| principal.key_id.clone());
    if registrar != principal.key_id && principal.role != Role::Admin {
        return Err(Problem::forbidden(
            "not_registrar",
            "another registrar key registered this agent; use that key, or an admin's",
        ));
    }
    if control.agent_verdict(tenant, &agent.id).await? == Verdict::Revoked {
        return Err(Problem::conflict("agent_revoked", "this agent is revoked and gets no more tokens"));
    }
    Ok(registrar)
}

pub(crate) async fn list(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    Ok(Json(control.store.list_agents(call.tenant(), page.limit, page.offset).await?).into_response())
}

pub(crate) async fn get(control: &Control, call: &Call) -> Result<Response, Problem> {
    Ok(Json(known(control, call.tenant(), call.param("id")).await?).into_response())
}

/// The tenant's agent of this id, or 404.
pub(crate) async fn known(control: &Control, tenant: &TenantId, id: &str) -> Result<AgentRecord, Problem> {
    control.store.agent(tenant, id).await?.ok_or_else(|| Problem::not_found("agent"))
}
