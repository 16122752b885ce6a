//! Approvals as people and agents see them.
//! Promises that what is shown is what was hashed: only actions checked against their proven receipt are in the store at all.

use crate::reply::Json;
use aegis_model::{ApprovalStatus, ApprovalView, TenantId, Timestamp};
use aegis_store::{ApprovalRow, Role};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::auth::Caller;
use crate::callbacks;
use crate::control::Control;
use crate::problem::Problem;
use crate::routes::Call;

pub(crate) async fn list(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    let status = match call.query.filter("status")? {
        None => None,
        Some(word) => Some(word.to_ascii_uppercase().parse::<ApprovalStatus>().map_err(|_| {
            Problem::bad_request("invalid_query", "`status` must be PENDING, APPROVED, REJECTED, EXPIRED or CONSUMED")
        })?),
    };
    let rows = control.store.list_approvals(call.tenant(), status, page.limit, page.offset).await?;
    let now = control.clock.now();
    let views: Vec<Value> = rows.iter().map(|row| view(row, now)).collect::<Result<_, _>>()?;
    Ok(Json(views).into_response())
}

pub(crate) async fn get(control: &Control, call: &Call) -> Result<Response, Problem> {
    control.refuse_revoked(&call.caller).await?;
    let row = known(control, call.tenant(), call.param("id")).await?;
    if !may_see(control, &call.caller, &row).await? {
        return Err(unknown());
    }
    let mut shown = view(&row, control.clock.now())?;
    if let Some(object) = shown.as_object_mut() {
        let callback = control.store.approval_callback(call.tenant(), call.param("id")).await?;
        object.insert("callback".to_owned(), json!(callback.as_ref().map(callbacks::view)));
    }
    Ok(Json(shown).into_response())
}

/// The approval of this id, or the 404 that means pending to an SDK.
pub(crate) async fn known(control: &Control, tenant: &TenantId, id: &str) -> Result<ApprovalRow, Problem> {
    control.store.approval(tenant, id).await?.ok_or_else(unknown)
}

fn unknown() -> Problem {
    Problem::new(
        axum::http::StatusCode::NOT_FOUND,
        "approval_not_found",
        "no such approval in this tenant yet; one that an edge named a moment ago is pending until its expires_at",
    )
}

/// An agent sees its own approvals, a registrar those of the agents it registered, everyone else those of the tenant.
async fn may_see(control: &Control, caller: &Caller, row: &ApprovalRow) -> Result<bool, Problem> {
    match caller {
        Caller::Agent(claims) => Ok(claims.agent_id == row.frozen.agent_id),
        Caller::Key(principal) if principal.role == Role::Registrar => {
            let registrar = control.store.agent_registrar(&principal.tenant_id, &row.frozen.agent_id).await?;
            Ok(registrar.as_deref() == Some(principal.key_id.as_str()))
        }
        Caller::Key(_) => Ok(true),
    }
}

/// An approval on the wire, as it is at `now`.
pub(crate) fn view(row: &ApprovalRow, now: Timestamp) -> Result<Value, Problem> {
    let frozen = &row.frozen;
    let view = ApprovalView {
        approval_id: frozen.approval_id.clone(),
        status: row.status,
        agent_id: frozen.agent_id.clone(),
        decision_id: frozen.event_id,
        action_hash: row.current_hash.clone(),
        original_action_hash: frozen.action_hash.clone(),
        is_edited: row.edited.is_some(),
        tool_call: frozen.tool_call.clone(),
        edited_tool_call: row.edited.clone(),
        approver_group: frozen.approver_group.clone(),
        approvals_needed: frozen.approvals_needed,
        approved_by: row.approved_by.clone(),
        source_trust: frozen.source_trust,
        reason: frozen.reason.clone(),
        requested_at: frozen.requested_at,
        expires_at: frozen.expires_at,
        expires_in: now.seconds_until(frozen.expires_at),
    };
    let mut value = serde_json::to_value(view).map_err(Problem::internal)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("edited_by".to_owned(), json!(row.edited_by));
        object.insert("policy_digest".to_owned(), json!(row.policy_digest));
        object.insert("risk_level".to_owned(), json!(frozen.risk_level));
        object.insert("matched_policies".to_owned(), json!(frozen.matched_policies));
        object.insert("user_id".to_owned(), json!(frozen.user_id));
    }
    Ok(value)
}
