//! The edge's HTTP surface: one endpoint, bounded, and never an internal detail in an answer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use aegis_model::limits::{MAX_ID, MAX_TEXT, NameError, check_label, check_resource};
use aegis_model::{AuthorizeRequest, ErrorBody, ErrorDetail};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::FutureExt;

use crate::Edge;
use crate::error::Refusal;

/// A body must have arrived by then, so that slow senders cannot hold every connection.
const BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// Bytes that hold most answers.
const ANSWER_BYTES: usize = 1024;
/// Longest token or signature, characters.
const MAX_TOKEN: usize = 4096;

/// Routes of one edge.
pub fn router(edge: Arc<Edge>) -> Router {
    Router::new().route("/v1/authorize", post(authorize)).with_state(edge)
}

async fn authorize(State(edge): State<Arc<Edge>>, request: Request) -> Response {
    // A bug on the action path becomes an answer that every client takes as a deny, not a closed connection.
    match AssertUnwindSafe(answer(&edge, request)).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(refusal)) => refusal.into_response(),
        Err(_) => {
            tracing::error!("authorize panicked; answered 500, which denies");
            error_response(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the call was not authorized; see the server's log")
        }
    }
}

async fn answer(edge: &Edge, request: Request) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let token = bearer(&parts.headers).ok_or(Refusal::BadToken)?;
    let claims = edge.tokens.claims(&edge.ring, token, edge.clock.now())?;
    if edge.config.tenants.as_ref().is_some_and(|tenants| !tenants.contains(&claims.tenant_id)) {
        return Err(Refusal::TenantNotServed);
    }
    if let Some(tenant) = parts.headers.get("x-aegis-tenant-id")
        && tenant.as_bytes() != claims.tenant_id.as_str().as_bytes()
    {
        return Err(Refusal::WrongTenant);
    }
    // Before the body is read, and for a contained agent too: parsing costs, and each deny is a receipt; audit must not starve.
    let settings = edge.view.settings(&claims.tenant_id);
    if !edge.limits.admit(&claims.tenant_id, &claims.agent_id, &settings, edge.clock.now()) {
        return Err(Refusal::RateLimited);
    }
    let reading = read_body(&parts.headers, body, edge.config.max_body_bytes);
    let body = tokio::time::timeout(BODY_TIMEOUT, reading).await.map_err(|_| Refusal::BodyTooSlow)??;
    let call = edge.read_call(&claims, &body)?;
    let decision = edge.authorize(&claims, call).await?;
    let mut json = Vec::with_capacity(ANSWER_BYTES);
    serde_json::to_writer(&mut json, &decision).map_err(|_| Refusal::Malformed("the answer has no JSON form".to_owned()))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

async fn read_body(headers: &HeaderMap, body: Body, max_bytes: usize) -> Result<axum::body::Bytes, Refusal> {
    let is_json = headers.get(CONTENT_TYPE).is_none_or(|value| {
        let essence = value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
    });
    if !is_json {
        return Err(Refusal::NotJson);
    }
    let declared = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    if declared.is_some_and(|length| length > max_bytes) {
        return Err(Refusal::TooLarge(max_bytes));
    }
    to_bytes(body, max_bytes).await.map_err(|error| {
        let text = error.to_string();
        if text.contains("length limit") {
            Refusal::TooLarge(max_bytes)
        } else {
            Refusal::Malformed("the body ended early".to_owned())
        }
    })
}

/// Identifiers are short and printable, so that they can stand in logs, subjects and consoles.
pub(crate) fn check_lengths(request: &AuthorizeRequest) -> Result<(), Refusal> {
    let call = &request.tool_call;
    let trace = request.trace.as_ref();
    let fields: [(&str, Option<&str>, usize); 16] = [
        ("request_id", request.request_id.as_deref(), MAX_ID),
        ("nonce", request.nonce.as_deref(), MAX_ID),
        ("agent.id", Some(&request.agent.id), MAX_ID),
        ("agent.environment", request.agent.environment.as_deref(), MAX_ID),
        ("user.id", request.user.as_ref().map(|u| u.id.as_str()), MAX_ID),
        ("user.role", request.user.as_ref().and_then(|u| u.role.as_deref()), MAX_ID),
        ("tool_call.tool", Some(&call.tool), MAX_ID),
        ("tool_call.action", Some(&call.action), MAX_ID),
        ("context.channel", request.context.channel.as_deref(), MAX_ID),
        ("context.source_signature", request.context.source_signature.as_deref(), MAX_TOKEN),
        ("trace.run_id", trace.and_then(|t| t.run_id.as_deref()), MAX_ID),
        ("trace.trace_id", trace.and_then(|t| t.trace_id.as_deref()), MAX_ID),
        ("trace.parent_run_id", trace.and_then(|t| t.parent_run_id.as_deref()), MAX_ID),
        ("trace.trust_token", trace.and_then(|t| t.trust_token.as_deref()), MAX_TOKEN),
        ("callback.url", request.callback.as_ref().map(|c| c.url.as_str()), MAX_TEXT),
        ("canon_version", request.canon_version.as_deref(), MAX_ID),
    ];
    for (name, value, max) in fields {
        if let Some(value) = value {
            check_label(value, max).map_err(|why| malformed(name, why))?;
        }
    }
    if let Some(resource) = &call.resource {
        check_resource(resource).map_err(|why| malformed("tool_call.resource", why))?;
    }
    if call.tool.is_empty() || call.action.is_empty() {
        return Err(Refusal::Malformed("`tool_call.tool` and `tool_call.action` must not be empty".to_owned()));
    }
    if request.request_id.as_deref() == Some("") {
        return Err(Refusal::Malformed("`request_id` must not be empty; leave it out for a call without one".to_owned()));
    }
    Ok(())
}

fn malformed(name: &str, why: NameError) -> Refusal {
    Refusal::Malformed(format!("`{name}` {why}"))
}

fn error_response(status: StatusCode, code: &str, message: &str) -> Response {
    let body = ErrorBody { error: ErrorDetail { code: code.to_owned(), message: message.to_owned() } };
    let json = serde_json::to_vec(&body).unwrap_or_default();
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], json).into_response();
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status()).unwrap_or(StatusCode::BAD_REQUEST);
        error_response(status, self.code(), &self.to_string())
    }
}
