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
/// Headers of the answer that come back.
static ANSWERED: [header::HeaderName; 3] = [header::CONTENT_TYPE, header::RETRY_AFTER, header::WWW_AUTHENTICATE];

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
    let mut response = (status, reply.body).into_response();
    for name in &ANSWERED {
        response.headers_mut().remove(name);
        if let Some(value) = reply.headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok(response)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::routing::post;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;

    /// What came through, as an answer with headers of its own.
    async fn control(headers: HeaderMap, body: String) -> Response {
        let seen = json!({
            "authorization": headers[header::AUTHORIZATION].to_str().unwrap(),
            "tenant": headers["x-aegis-tenant-id"].to_str().unwrap(),
            "cookie": headers.contains_key(header::COOKIE),
            "body": body,
        });
        let mut response = (StatusCode::SERVICE_UNAVAILABLE, seen.to_string()).into_response();
        let theirs = [("retry-after", "1"), ("www-authenticate", "Bearer"), ("set-cookie", "a=b"), ("x-internal", "10.0.0.1")];
        for (name, value) in [("content-type", "application/json")].into_iter().chain(theirs) {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    }

    #[tokio::test]
    async fn what_control_needs_goes_along_and_what_a_client_acts_on_comes_back() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().route("/v1/approvals/{id}/consume", post(control));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let body = r#"{"claimed_action_hash":"00","request_id":"r-1"}"#;
        let request = axum::http::Request::builder()
            .method("POST")
            .uri("/v1/approvals/a/consume")
            .header(header::AUTHORIZATION, "Bearer token")
            .header(header::CONTENT_TYPE, "application/json")
            .header("x-aegis-tenant-id", "acme")
            .header(header::COOKIE, "a=b")
            .body(Body::from(body))
            .unwrap();
        let response = forward(Forward::new(&url, 4096)).oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!((header("retry-after"), header("www-authenticate")), (Some("1"), Some("Bearer")));
        assert_eq!(header("content-type"), Some("application/json"));
        assert_eq!((header("set-cookie"), header("x-internal")), (None, None));
        let seen: Value = serde_json::from_slice(&to_bytes(response.into_body(), 4096).await.unwrap()).unwrap();
        assert_eq!(seen, json!({"authorization": "Bearer token", "tenant": "acme", "cookie": false, "body": body}));
    }
}
