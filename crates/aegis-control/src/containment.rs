//! Containment: holds that people and rules put on agents and MCP servers, signed and published as state.
//! Promises that a rule's hold is applied once per command and within the tenant's hourly cap; never lifts a revocation.

use std::sync::Arc;

use crate::reply::Json;
use aegis_model::{ContainmentKind, ContainmentState, EventId, Hold, TargetType, TenantId, Timestamp, Verdict};
use aegis_store::AutomaticHold;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::agents;
use crate::control::{Control, ControlError};
use crate::fleet::Enforcement;
use crate::input::{MAX_TEXT, check_text, parse};
use crate::problem::Problem;
use crate::record::ContainmentChange;
use crate::routes::Call;

/// Longest hold with an end, seconds: a year.
const MAX_TTL_S: i64 = 366 * 24 * 3600;
/// How much of a rule's reason is kept, characters.
const MAX_REASON: usize = 512;

/// Body of every containment call.
#[derive(Debug, Deserialize)]
struct ContainmentBody {
    reason: String,
    #[serde(default)]
    ttl_s: Option<i64>,
    /// For a release: which holds of the target to end. Left out: those the endpoint is about.
    #[serde(default)]
    kind: Option<ContainmentKind>,
}

impl ContainmentBody {
    fn read(control: &Control, call: &Call) -> Result<Self, Problem> {
        let body: Self = parse(&call.body, control.config.max_body_bytes)?;
        check_text("reason", &body.reason, MAX_TEXT)?;
        if body.ttl_s.is_some_and(|ttl| !(1..=MAX_TTL_S).contains(&ttl)) {
            return Err(Problem::bad_request("invalid_field", format!("`ttl_s` must be 1 to {MAX_TTL_S}")));
        }
        Ok(body)
    }
}

/// A rule's request to contain something.
#[derive(Clone, Debug)]
pub struct ContainmentRequest {
    pub tenant_id: TenantId,
    /// The same command is applied once.
    pub command_id: String,
    pub target_type: TargetType,
    pub target_id: String,
    pub kind: ContainmentKind,
    pub reason: String,
    /// `rule:<id>`
    pub by: String,
    /// The events that show why, the first one first.
    pub evidence_ids: Vec<EventId>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub enum ContainmentOutcome {
    /// The hold is in force; `enforced` says whether every edge that lives has confirmed it within the time that control waits.
    Applied { state: ContainmentState, enforced: bool },
    /// This command was applied before.
    AlreadyApplied,
    /// The tenant's automatic holds of the last hour have reached the cap; people decide now.
    CapReached,
    /// The target is not registered in this tenant.
    UnknownTarget,
}

pub(crate) async fn freeze_agent(control: &Control, call: &Call) -> Result<Response, Problem> {
    agents::known(control, call.tenant(), call.param("id")).await?;
    hold(control, call, TargetType::Agent, call.param("id"), ContainmentKind::Freeze).await
}

pub(crate) async fn unfreeze_agent(control: &Control, call: &Call) -> Result<Response, Problem> {
    agents::known(control, call.tenant(), call.param("id")).await?;
    release(control, call, TargetType::Agent, call.param("id"), ContainmentKind::Freeze).await
}

pub(crate) async fn quarantine_server(control: &Control, call: &Call) -> Result<Response, Problem> {
    known_server(control, call).await?;
    hold(control, call, TargetType::McpServer, call.param("key"), ContainmentKind::Quarantine).await
}

pub(crate) async fn restore_server(control: &Control, call: &Call) -> Result<Response, Problem> {
    known_server(control, call).await?;
    release(control, call, TargetType::McpServer, call.param("key"), ContainmentKind::Quarantine).await
}

pub(crate) async fn revoke_agent(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body = ContainmentBody::read(control, call)?;
    let id = call.param("id");
    agents::known(control, call.tenant(), id).await?;
    let change = change(call, TargetType::Agent, id, None, "revoked", &body.reason, None);
    let pending = control.prepare(control.containment_draft(&change))?;
    let state = control.store.revoke(call.tenant(), TargetType::Agent, id, pending.rows()).await?;
    finish(control, pending, state).await
}

async fn known_server(control: &Control, call: &Call) -> Result<(), Problem> {
    let server = control.store.mcp_server(call.tenant(), call.param("key")).await?;
    server.map(|_| ()).ok_or_else(|| Problem::not_found("MCP server"))
}

async fn hold(
    control: &Control,
    call: &Call,
    target_type: TargetType,
    id: &str,
    kind: ContainmentKind,
) -> Result<Response, Problem> {
    let body = ContainmentBody::read(control, call)?;
    let now = control.clock.now();
    let hold = Hold {
        hold_id: uuid::Uuid::now_v7().to_string(),
        kind,
        reason: body.reason.clone(),
        by: call.caller.name().to_owned(),
        since: now,
        until: body.ttl_s.map(|ttl| now.plus_seconds(ttl)),
    };
    let applied = change(call, target_type, id, Some(kind), "applied", &body.reason, Some(&hold.hold_id));
    let change = ContainmentChange { until: hold.until, ..applied };
    let pending = control.prepare(control.containment_draft(&change))?;
    let state = control.store.add_hold(call.tenant(), target_type, id, &hold, pending.rows()).await?;
    finish(control, pending, state).await
}

async fn release(
    control: &Control,
    call: &Call,
    target_type: TargetType,
    id: &str,
    kind: ContainmentKind,
) -> Result<Response, Problem> {
    let body = ContainmentBody::read(control, call)?;
    let kind = body.kind.unwrap_or(kind);
    let change = change(call, target_type, id, Some(kind), "released", &body.reason, None);
    let pending = control.prepare(control.containment_draft(&change))?;
    let state = control.store.release_holds(call.tenant(), target_type, id, kind, pending.rows()).await?;
    finish(control, pending, state).await
}

fn change<'a>(
    call: &'a Call,
    target_type: TargetType,
    target_id: &'a str,
    kind: Option<ContainmentKind>,
    status: &'a str,
    reason: &'a str,
    hold_id: Option<&'a str>,
) -> ContainmentChange<'a> {
    ContainmentChange {
        tenant: call.tenant(),
        target_type,
        target_id,
        kind,
        until: None,
        status,
        reason,
        by_name: call.caller.name(),
        by: call.caller.as_detail(),
        hold_id,
        command_id: None,
        evidence: &[],
    }
}

/// Publishes first: what holds an agent must not wait for a receipt. Then the receipt, then the reply.
async fn finish(control: &Control, pending: crate::outbox::Pending, state: ContainmentState) -> Result<Response, Problem> {
    let enforcement = control.publish_containment(&state).await;
    control.seal(pending).await?;
    Ok(Json(state_view(control, &state, Some(&enforcement))?).into_response())
}

fn state_view(control: &Control, state: &ContainmentState, enforcement: Option<&Enforcement>) -> Result<Value, Problem> {
    let mut view = serde_json::to_value(state).map_err(Problem::internal)?;
    if let Some(object) = view.as_object_mut() {
        let verdict = match state.verdict_at(control.clock.now()) {
            Verdict::Free => "free",
            Verdict::Quarantined => "quarantined",
            Verdict::Frozen => "frozen",
            Verdict::Revoked => "revoked",
        };
        object.insert("verdict".to_owned(), json!(verdict));
        if let Some(enforcement) = enforcement {
            object.insert("enforced".to_owned(), json!(enforcement.is_whole()));
            object.insert("edges".to_owned(), json!(enforcement.edges));
        }
    }
    Ok(view)
}

pub(crate) async fn list(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    let states = control.contained(call.tenant()).await?;
    let shown = states.iter().skip(page.offset as usize).take(page.limit as usize);
    let views: Vec<Value> = shown.map(|state| state_view(control, state, None)).collect::<Result<_, _>>()?;
    Ok(Json(views).into_response())
}

impl Control {
    /// What holds for a target now.
    pub(crate) async fn verdict(&self, tenant: &TenantId, target_type: TargetType, id: &str) -> Result<Verdict, Problem> {
        let state = self.store.containment(tenant, target_type, id).await?;
        Ok(state.map_or(Verdict::Free, |state| state.verdict_at(self.clock.now())))
    }

    /// What holds for an agent now.
    pub(crate) async fn agent_verdict(&self, tenant: &TenantId, agent_id: &str) -> Result<Verdict, Problem> {
        self.verdict(tenant, TargetType::Agent, agent_id).await
    }

    /// The tenant's targets that are held or revoked now, the newest change first.
    pub(crate) async fn contained(&self, tenant: &TenantId) -> Result<Vec<ContainmentState>, Problem> {
        Ok(self.store.contained(tenant, self.clock.now()).await?)
    }

    /// Applies what a rule asks for, within the tenant's hourly cap. A cap that is reached is an event, so that it is seen.
    pub async fn request_containment(self: &Arc<Self>, request: ContainmentRequest) -> Result<ContainmentOutcome, ControlError> {
        let outcome = self.contain(&request).await?;
        if let ContainmentOutcome::Applied { state, enforced } = &outcome {
            let now = self.clock.now();
            let (control, state, enforced) = (Arc::clone(self), state.clone(), *enforced);
            // An edge may be slow to say so; nobody waits for a measurement.
            let _measured_later = tokio::spawn(async move {
                let here = (enforced && control.applied.has_edge()).then_some(now);
                let since = here.max(control.enforced_since(&state).await);
                if let Some(since) = since.filter(|_| enforced || !control.applied.has_edge()) {
                    control.observe_contained(&request, since).await;
                }
            });
        }
        Ok(outcome)
    }

    async fn contain(&self, request: &ContainmentRequest) -> Result<ContainmentOutcome, Problem> {
        let tenant = &request.tenant_id;
        let known = match request.target_type {
            TargetType::Agent => self.store.agent(tenant, &request.target_id).await?.is_some(),
            TargetType::McpServer => self.store.mcp_server(tenant, &request.target_id).await?.is_some(),
        };
        if !known {
            return Ok(ContainmentOutcome::UnknownTarget);
        }
        let reason: String = request.reason.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect();
        let hold = Hold {
            hold_id: request.command_id.clone(),
            kind: request.kind,
            reason: reason.clone(),
            by: request.by.clone(),
            since: self.clock.now(),
            until: None,
        };
        let change = |status| ContainmentChange {
            tenant,
            target_type: request.target_type,
            target_id: &request.target_id,
            kind: Some(request.kind),
            until: None,
            status,
            reason: &reason,
            by_name: &request.by,
            by: json!({"type": "rule", "name": request.by}),
            hold_id: Some(&hold.hold_id),
            command_id: Some(&request.command_id),
            evidence: &request.evidence_ids,
        };
        let cap = self.store.settings(tenant).await?.automatic_freezes_per_hour;
        let pending = self.prepare(self.containment_draft(&change("applied")))?;
        let (target_type, target) = (request.target_type, request.target_id.as_str());
        let added =
            self.store.add_automatic_hold(tenant, &request.command_id, target_type, target, &hold, cap, pending.rows()).await?;
        match added {
            AutomaticHold::Applied(state) => {
                let enforced = self.publish_containment(&state).await.is_whole();
                self.seal(pending).await?;
                Ok(ContainmentOutcome::Applied { state, enforced })
            }
            AutomaticHold::AlreadyApplied => {
                // The first attempt may have ended between the store and the feed; publishing again changes nothing.
                if let Some(state) = self.store.containment(tenant, target_type, target).await? {
                    self.publish_containment(&state).await;
                }
                Ok(ContainmentOutcome::AlreadyApplied)
            }
            AutomaticHold::CapReached => {
                drop(pending);
                tracing::warn!(%tenant, cap, "hourly cap of automatic containment is reached");
                self.record(self.containment_draft(&change("cap_reached"))).await?;
                Ok(ContainmentOutcome::CapReached)
            }
        }
    }

    /// Time to contain: from the first evidence event to when the last live edge began to enforce.
    async fn observe_contained(&self, request: &ContainmentRequest, since: Timestamp) {
        let Some(first) = request.evidence_ids.first() else { return };
        if let Ok(Some(row)) = self.store.history_event(&request.tenant_id, *first).await {
            let micros = since.as_micros().saturating_sub(row.ts.as_micros()).max(0);
            self.metrics.observe_time_to_contain(std::time::Duration::from_micros(micros.unsigned_abs()).as_secs_f64());
        }
    }
}
