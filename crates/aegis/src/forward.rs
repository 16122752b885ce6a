//! What an edge does not answer itself goes to control, as it came: approvals and outcomes. Bounded, with an end in sight, and apart from the
//! action path: a control plane that is gone costs an approval, never an answer of authorize.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use tokio::sync::Semaphore;

use crate::client::Client;

/// Requests to control at once.
const MOST: usize = 64;
/// How long one may take.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Headers that go along.
static HEADERS: [header::HeaderName; 3] =
    [header::AUTHORIZATION, header::CONTENT_TYPE, header::HeaderName::from_static("x-aegis-tenant-id")];

/// Where to, and how much.
#[derive(Clone, Debug)]
pub(crate) struct Forward {
    control: Client,
    permits: Arc<Semaphore>,
    max_body_bytes: usize,
}

impl Forward {
    pub(crate) fn new(control_url: &str, max_body_bytes: usize) -> Self {
        Self { control: Client::new(control_url), permits: Arc::new(Semaphore::new(MOST)), max_body_bytes }
    }
}

/// The routes that control answers.
pub(crate) fn forward(to: Forward) -> Router {
    Router::new()
        .route("/v1/approvals", any(pass))
        .route("/v1/approvals/{*rest}", any(pass))
        .route("/v1/decisions/{*rest}", any(pass))
        .with_state(to)
}

async fn pass(State(to): State<Forward>, request: Request) -> Response {
    if !request.headers().contains_key(header::AUTHORIZATION) {
        return refusal(StatusCode::UNAUTHORIZED, "unauthenticated", "send `Authorization: Bearer <API key or agent token>`");
    }
    match tokio::time::timeout(TIMEOUT, answer(&to, request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(refused)) => refused,
        Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "control_unreachable", "the control plane did not answer in time"),
    }
}

async fn answer(to: &Forward, request: Request) -> Result<Response, Response> {
    let (parts, body) = request.into_parts();
    let body = read(body, to.max_body_bytes).await?;
    // Behind the body: whoever sends none holds up nobody.
    let Ok(_permit) = to.permits.try_acquire() else {
        let message = "too many requests wait for the control plane; try again";
        return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, "control_busy", message));
    };
    let headers = headers(&parts.headers);
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let reply = to.control.send(parts.method, path, &headers, body).await.map_err(|error| {
        tracing::warn!(error = %format!("{error:#}"), "the control plane did not answer");
        refusal(StatusCode::SERVICE_UNAVAILABLE, "control_unreachable", "the control plane cannot be reached; try again")
    })?;
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_GATEWAY);
    Ok((status, [(header::CONTENT_TYPE, "application/json")], reply.body).into_response())
}

async fn read(body: Body, limit: usize) -> Result<Vec<u8>, Response> {
    let bytes = to_bytes(body, limit).await;
    bytes
        .map(Vec::from)
        .map_err(|_| refusal(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "the body is too large, or ended early"))
}

fn headers(given: &HeaderMap) -> Vec<(String, String)> {
    let text = |name: &header::HeaderName| Some((name.to_string(), given.get(name)?.to_str().ok()?.to_owned()));
    HEADERS.iter().filter_map(text).collect()
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    let body = serde_json::json!({"error": {"code": code, "message": message}});
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
