//! What a tenant asks of detection, which control does not know: how far it has followed the tenant's lanes.

use aegis_model::TenantId;
use async_trait::async_trait;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::control::Control;
use crate::problem::Problem;
use crate::reply::Json;
use crate::routes::Call;

/// Says how far detection has followed a tenant's lanes, and what of them rules were shown.
#[async_trait]
pub trait FollowedLanes: Send + Sync + std::fmt::Debug {
    /// One object for each lane, by name, of an edge alone or of all; None where detection does not answer now.
    async fn of(&self, tenant: &TenantId, edge_id: Option<&str>, offset: u32, limit: u32) -> Option<Value>;
}

/// The tenant's lanes as detection has followed them.
pub(crate) async fn lanes(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    let edge_id = call.query.filter("edge_id")?;
    let followed = control.config.followed_lanes.as_ref().ok_or_else(unanswered)?;
    let lanes = followed.of(call.tenant(), edge_id, page.offset, page.limit).await.ok_or_else(unanswered)?;
    Ok(Json(lanes).into_response())
}

/// Nobody answers for detection.
pub(crate) fn unanswered() -> Problem {
    Problem::unavailable("detection_unavailable", "detection does not answer; it may be reading its log again: try again")
}
