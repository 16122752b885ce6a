//! The edge's HTTP surface: one endpoint, bounded, and never an internal detail in an answer.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use aegis_keys::AgentClaims;
use aegis_model::limits::{MAX_ID, MAX_TEXT, NameError, check_label, check_resource};
use aegis_model::{AuthorizeRequest, ErrorBody, ErrorDetail};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use axum::routing::post;
use axum::{BoxError, Router};
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};

use crate::error::Refusal;
use crate::{Alarm, Edge, reply};

/// Where agents ask.
pub const PATH: &str = "/v1/authorize";
/// A body must have arrived by then, so that slow senders cannot hold every connection.
const BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// Longest token or signature, characters.
const MAX_TOKEN: usize = 4096;
/// Most headers of a request whose room its answer uses: more than any client of ours sends, and little to hold for each connection.
const MOST_REUSED_HEADERS: usize = 32;
/// Where a caller says whose it is.
static TENANT: HeaderName = HeaderName::from_static("x-aegis-tenant-id");

/// Routes of one edge.
pub fn router(edge: Arc<Edge>) -> Router {
    Router::new().route(PATH, post(route)).with_state(edge)
}

async fn route(State(edge): State<Arc<Edge>>, request: Request<Body>) -> Response<Body> {
    answer(edge, request, Alarm::default()).await.map(Body::new)
}

/// Answers one `POST /v1/authorize`. What needs no body is judged at once, and then only what the answer is made of is kept: a large future is
/// moved about with every call. By `alarm` it waits for the body and for its receipt.
pub fn answer<B>(edge: Arc<Edge>, request: Request<B>, alarm: Alarm) -> impl Future<Output = Response<Full<Bytes>>> + Send
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    // A bug on the action path becomes an answer that every client takes as a deny, not a closed connection.
    let admitted = catch_unwind(AssertUnwindSafe(|| edge.admit(request)));
    async move {
        let (answered, headers) = match admitted {
            Ok(Ok(Admitted { claims, body, headers })) => {
                (AssertUnwindSafe(decided(&edge, &claims, body, &alarm)).catch_unwind().await, headers)
            }
            Ok(Err(refusal)) => (Ok(Err(refusal)), HeaderMap::new()),
            Err(panic) => (Err(panic), HeaderMap::new()),
        };
        match answered {
            Ok(Ok(json)) => json_response(StatusCode::OK, json, headers),
            Ok(Err(refusal)) => refused(&refusal),
            Err(panic) => after_panic(panic),
        }
    }
}

/// A caller who may call now, and the body that is still to come.
struct Admitted<B> {
    claims: Arc<AgentClaims>,
    body: B,
    /// None, and room for some: the answer's.
    headers: HeaderMap,
}

impl Edge {
    fn admit<B>(&self, request: Request<B>) -> Result<Admitted<B>, Refusal> {
        let (parts, body) = request.into_parts();
        let token = bearer(&parts.headers).ok_or(Refusal::BadToken)?;
        let now = self.clock.now();
        let claims = self.tokens.claims(&self.ring, token, now)?;
        if self.config.tenants.as_ref().is_some_and(|tenants| !tenants.contains(&claims.tenant_id)) {
            return Err(Refusal::TenantNotServed);
        }
        if let Some(tenant) = parts.headers.get(&TENANT)
            && tenant.as_bytes() != claims.tenant_id.as_str().as_bytes()
        {
            return Err(Refusal::WrongTenant);
        }
        // Before the body is read, and for a contained agent too: parsing costs, and each deny is a receipt; audit must not starve.
        let settings = self.view.settings(&claims.tenant_id);
        if !self.limits.admit(&claims.tenant_id, &claims.agent_id, &settings, now) {
            return Err(Refusal::RateLimited);
        }
        check_body(&parts.headers, self.config.max_body_bytes)?;
        Ok(Admitted { claims, body, headers: emptied(parts.headers) })
    }
}

/// The answer as JSON. Nothing of the request is held while its receipt is waited for.
async fn decided<B>(edge: &Edge, claims: &AgentClaims, body: B, alarm: &Alarm) -> Result<Vec<u8>, Refusal>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let max_bytes = edge.config.max_body_bytes;
    let reading = Limited::new(body, max_bytes).collect();
    let mut decided = match alarm.within(BODY_TIMEOUT, reading).await {
        Some(Ok(body)) => edge.decide(claims, edge.read_call(claims, &body.to_bytes())?)?,
        Some(Err(error)) if error.is::<LengthLimitError>() => return Err(Refusal::TooLarge(max_bytes)),
        Some(Err(_)) => return Err(Refusal::Malformed("the body ended early".to_owned())),
        None => return Err(Refusal::BodyTooSlow),
    };
    let kept = match decided.pending() {
        Some(pending) => edge.kept(pending, alarm).await,
        None => None,
    };
    reply::text_of(&edge.conclude(decided, kept)).map_err(|_| Refusal::Malformed("the answer has no JSON form".to_owned()))
}

/// The headers without what they said: hyper gives the room of an answer's to the next request, so that a connection makes it once.
fn emptied(mut headers: HeaderMap) -> HeaderMap {
    // Values of one name have a room of their own.
    if headers.capacity().max(headers.len()) > MOST_REUSED_HEADERS {
        return HeaderMap::new();
    }
    headers.clear();
    headers
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What the head says of the body.
fn check_body(headers: &HeaderMap, max_bytes: usize) -> Result<(), Refusal> {
    let is_json = headers.get(CONTENT_TYPE).is_none_or(|value| {
        let essence = value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
        let subtype = match essence.split_at_checked("application/".len()) {
            Some((kind, subtype)) if kind.eq_ignore_ascii_case("application/") => subtype.as_bytes(),
            _ => return false,
        };
        let suffix = subtype.len().saturating_sub("+json".len());
        subtype.eq_ignore_ascii_case(b"json") || subtype[suffix..].eq_ignore_ascii_case(b"+json")
    });
    if !is_json {
        return Err(Refusal::NotJson);
    }
    let declared = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    if declared.is_some_and(|length| length > max_bytes) {
        return Err(Refusal::TooLarge(max_bytes));
    }
    Ok(())
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

/// An answer with `headers` and that of its type.
fn json_response(status: StatusCode, json: Vec<u8>, mut headers: HeaderMap) -> Response<Full<Bytes>> {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut response = Response::new(Full::new(Bytes::from(json)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn error_response(status: StatusCode, code: &str, message: &str) -> Response<Full<Bytes>> {
    let body = ErrorBody { error: ErrorDetail { code: code.to_owned(), message: message.to_owned() } };
    let mut response = json_response(status, serde_json::to_vec(&body).unwrap_or_default(), HeaderMap::new());
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn refused(refusal: &Refusal) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
    error_response(status, refusal.code(), &refusal.to_string())
}

/// The hook has told what and where; the panic's own words are nobody's to see.
fn after_panic(panic: Box<dyn Any + Send>) -> Response<Full<Bytes>> {
    drop(panic);
    tracing::error!("authorize panicked; answered 500, which denies");
    error_response(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the call was not authorized; see the server's log")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(names: usize, values_of_one: usize) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for name in 0..names {
            let name = HeaderName::try_from(format!("x-{name}")).unwrap_or(AUTHORIZATION);
            headers.append(name, HeaderValue::from_static("said"));
        }
        for _ in 0..values_of_one {
            headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer t"));
        }
        headers
    }

    #[test]
    fn of_a_request_s_headers_the_room_is_left_and_of_very_many_not_even_that() {
        for (names, values_of_one) in [(0, 0), (1, 1), (5, 3), (20, 1)] {
            let before = headers(names, values_of_one);
            let room = before.capacity();
            let after = emptied(before);
            assert_eq!((after.len(), after.capacity()), (0, room), "{names} names");
        }
        for (names, values_of_one) in [(90, 0), (1, 90)] {
            let after = emptied(headers(names, values_of_one));
            assert_eq!((after.len(), after.capacity()), (0, 0), "{names} names");
        }
    }
}
