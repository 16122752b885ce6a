//! What the SOC works on: alerts, incidents, and where things stand.

use std::collections::BTreeMap;

use crate::reply::Json;
use aegis_model::{ApprovalStatus, IncidentStatus, TargetType};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use crate::control::Control;
use crate::input::{MAX_TEXT, check_optional, parse_or_empty};
use crate::problem::Problem;
use crate::routes::Call;

/// How many of the newest things a summary counts; `truncated` says when there are more.
const SUMMARY_SPAN: u32 = 500;
/// Alerts of the last day count as recent, seconds.
const RECENT_S: i64 = 24 * 3600;

pub(crate) async fn list_alerts(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    Ok(Json(control.store.list_alerts(call.tenant(), page.limit, page.offset).await?).into_response())
}

pub(crate) async fn get_alert(control: &Control, call: &Call) -> Result<Response, Problem> {
    let alert = control.store.alert(call.tenant(), call.param("id")).await?;
    Ok(Json(alert.ok_or_else(|| Problem::not_found("alert"))?).into_response())
}

pub(crate) async fn list_incidents(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    Ok(Json(control.store.list_incidents(call.tenant(), page.limit, page.offset).await?).into_response())
}

pub(crate) async fn get_incident(control: &Control, call: &Call) -> Result<Response, Problem> {
    let incident = control.store.incident(call.tenant(), call.param("id")).await?;
    Ok(Json(incident.ok_or_else(|| Problem::not_found("incident"))?).into_response())
}

/// Body of close; may be left out.
#[derive(Debug, Default, Deserialize)]
struct CloseBody {
    #[serde(default)]
    reason: Option<String>,
}

pub(crate) async fn close_incident(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body: CloseBody = parse_or_empty(&call.body, control.config.max_body_bytes)?;
    check_optional("reason", body.reason.as_deref(), MAX_TEXT)?;
    let (tenant, id) = (call.tenant(), call.param("id"));
    let incident = control.store.incident(tenant, id).await?.ok_or_else(|| Problem::not_found("incident"))?;
    if incident.status == IncidentStatus::Closed {
        return Err(Problem::conflict("incident_closed", "the incident is closed already"));
    }
    // The store takes no outbox row here, so the receipt comes first: what cannot be receipted is not done.
    let detail = json!({"incident_id": id, "rule_id": incident.rule_id, "entity": incident.entity, "reason": body.reason});
    control.record(control.config_draft(&call.caller, "incident_closed", detail)).await?;
    if !control.store.close_incident(tenant, id, call.caller.name()).await? {
        return Err(Problem::conflict("incident_closed", "the incident was closed in the meantime"));
    }
    let closed = control.store.incident(tenant, id).await?.ok_or_else(|| Problem::not_found("incident"))?;
    Ok(Json(closed).into_response())
}

pub(crate) async fn summary(control: &Control, call: &Call) -> Result<Response, Problem> {
    let tenant = call.tenant();
    let now = control.clock.now();
    let incidents = control.store.list_incidents(tenant, SUMMARY_SPAN, 0).await?;
    let alerts = control.store.list_alerts(tenant, SUMMARY_SPAN, 0).await?;
    let pending = control.store.list_approvals(tenant, Some(ApprovalStatus::Pending), SUMMARY_SPAN, 0).await?;
    let held = control.contained(tenant).await?;
    let mut by_status: BTreeMap<&str, u64> = [("open", 0), ("contained", 0), ("closed", 0)].into();
    for incident in &incidents {
        *by_status.entry(incident.status.as_str()).or_default() += 1;
    }
    let mut by_severity: BTreeMap<&str, u64> = BTreeMap::new();
    let recent = alerts.iter().filter(|record| record.alert.detected_at >= now.plus_seconds(-RECENT_S));
    let mut recent_alerts = 0u64;
    for record in recent {
        recent_alerts += 1;
        *by_severity.entry(record.alert.severity.as_str()).or_default() += 1;
    }
    let held_of = |kind: TargetType| held.iter().filter(|state| state.target_type == kind).count();
    let full = |length: usize| length >= SUMMARY_SPAN as usize;
    let reply = json!({
        "at": now,
        "incidents": by_status,
        "alerts_24h": recent_alerts,
        "alerts_24h_by_severity": by_severity,
        "approvals_pending": pending.len(),
        "contained": {"agents": held_of(TargetType::Agent), "mcp_servers": held_of(TargetType::McpServer)},
        "truncated": full(incidents.len()) || full(alerts.len()) || full(pending.len()),
    });
    Ok(Json(reply).into_response())
}
