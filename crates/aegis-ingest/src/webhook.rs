//! `POST /v1/webhooks/github/{tenant}`: reads, authenticates, maps, appends, answers; in that order.
//! The signature is the authentication. Nothing of the body is looked at before it is verified.

use aegis_bus::{BusError, Message, Stream, subject};
use aegis_model::{EventId, ResourceRecord, SecurityEvent, TenantId};
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::IngestState;
use crate::github::{self, Delivery, signature};
use crate::refusal::{Refusal, json_response};

/// Control takes another method at the path of a tenant of this name, so that it is no parameter there.
const NAMED: &str = "secret";

/// The endpoints of all adapters. They need no API key.
pub fn router(state: IngestState) -> axum::Router {
    axum::Router::new()
        .route("/v1/webhooks/github/{tenant}", post(receive))
        .route(&format!("/v1/webhooks/github/{NAMED}"), post(receive_named))
        .with_state(state)
}

async fn receive(
    State(state): State<IngestState>,
    tenant: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    // A path that is not even text names no tenant.
    let tenant = tenant.map_or_else(|_| String::new(), |Path(tenant)| tenant);
    answer(&state, &tenant, headers, body).await
}

async fn receive_named(State(state): State<IngestState>, headers: HeaderMap, body: Body) -> Response {
    answer(&state, NAMED, headers, body).await
}

async fn answer(state: &IngestState, tenant: &str, headers: HeaderMap, body: Body) -> Response {
    let tenant = TenantId::new(tenant).ok();
    match take(state, tenant, headers, body).await {
        Ok(Taken { event_id, duplicate }) => {
            let status = if duplicate { StatusCode::OK } else { StatusCode::ACCEPTED };
            json_response(status, &json!({ "event_id": event_id, "duplicate": duplicate }))
        }
        Err(refusal) => {
            tracing::info!(adapter = github::ADAPTER, ?refusal, "webhook delivery refused");
            refusal.into_response()
        }
    }
}

struct Taken {
    event_id: EventId,
    duplicate: bool,
}

async fn take(state: &IngestState, tenant: Option<TenantId>, headers: HeaderMap, body: Body) -> Result<Taken, Refusal> {
    let _in_flight = state.in_flight.try_acquire().map_err(|_| Refusal::Busy)?;
    let body = read_body(state, &headers, body).await?;
    let secret = match &tenant {
        Some(tenant) => state.secrets.secret(tenant, github::ADAPTER).await.map_err(|error| {
            tracing::warn!(%error, "webhook delivery could not be authenticated");
            Refusal::Unavailable
        })?,
        None => None,
    };

    // Hashing and parsing megabytes must not hold up whoever shares this runtime.
    let examined = {
        let state = state.clone();
        tokio::task::spawn_blocking(move || examine(&state, tenant, secret, &headers, &body)).await
    };
    let examined = examined.map_err(|error| {
        tracing::error!(%error, "a webhook mapping ended badly");
        Refusal::Internal
    })??;

    let Examined { event, resource } = examined;
    let duplicate = append(state, &event).await?;
    // On a redelivery too: a stop between append and registry must not lose that a repository became private.
    if let (Some(sink), Some(record)) = (&state.resources, resource) {
        sink.observed(&event.tenant_id, record).await.map_err(|error| {
            tracing::warn!(%error, tenant = %event.tenant_id, "webhook delivery is stored, but the registry does not have it yet");
            Refusal::Unavailable
        })?;
    }
    Ok(Taken { event_id: event.event_id, duplicate })
}

async fn read_body(state: &IngestState, headers: &HeaderMap, body: Body) -> Result<Bytes, Refusal> {
    let max = state.limits.max_body_bytes;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    if announced.is_some_and(|length| length > max) {
        return Err(Refusal::BodyTooLarge);
    }
    match timeout(state.limits.body_timeout, Limited::new(body, max).collect()).await {
        Err(_elapsed) => Err(Refusal::BodyTooSlow),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::BodyTooLarge),
        Ok(Err(_)) => Err(Refusal::BodyIncomplete),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
    }
}

struct Examined {
    event: SecurityEvent,
    resource: Option<ResourceRecord>,
}

/// From an unproven body to an event.
fn examine(
    state: &IngestState,
    tenant: Option<TenantId>,
    secret: Option<Vec<u8>>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Examined, Refusal> {
    let signed = signature::verify(secret.as_deref(), single(headers, "x-hub-signature-256"), body);
    let Some(tenant) = tenant.filter(|_| signed) else { return Err(Refusal::BadSignature) };
    let now = state.clock.now();
    if !state.rates.take(&tenant, now) {
        return Err(Refusal::RateExceeded);
    }
    let delivery_id = single(headers, "x-github-delivery").filter(|id| is_token(id, 128)).ok_or(Refusal::BadDeliveryId)?;
    let event_name = single(headers, "x-github-event").filter(|name| is_token(name, 64)).ok_or(Refusal::BadEventName)?;
    let payload = parse(single(headers, "content-type"), body)?;
    let delivery =
        Delivery { tenant_id: &tenant, ingest_id: &state.limits.ingest_id, event: event_name, delivery_id, received_at: now };
    Ok(Examined { event: github::map(&delivery, &payload), resource: github::repository_facts(&payload) })
}

/// The payload, from either of the two forms that GitHub offers.
fn parse(content_type: Option<&str>, body: &[u8]) -> Result<Value, Refusal> {
    let media_type = content_type.and_then(|c| c.split(';').next()).map(|m| m.trim().to_ascii_lowercase());
    let parsed: Result<Value, _> = match media_type.as_deref() {
        Some("application/json") => serde_json::from_slice(body),
        Some("application/x-www-form-urlencoded") => {
            let payload = form_urlencoded::parse(body).find(|(name, _)| name == "payload").ok_or(Refusal::NotAnObject)?;
            serde_json::from_str(&payload.1)
        }
        _ => return Err(Refusal::UnsupportedContentType),
    };
    parsed.ok().filter(Value::is_object).ok_or(Refusal::NotAnObject)
}

/// Makes the event durable; true if it had been before.
async fn append(state: &IngestState, event: &SecurityEvent) -> Result<bool, Refusal> {
    let payload = serde_json::to_vec(event).map_err(|error| {
        tracing::error!(%error, "an external event has no JSON form");
        Refusal::Internal
    })?;
    let message = Message::new(subject::ase(&event.tenant_id, event.kind), payload).with_id(event.event_id.to_string());
    match state.bus.publish(Stream::Ase, vec![message]).await.pop() {
        Some(Ok(ack)) => Ok(ack.duplicate),
        Some(Err(error)) if error.is_retryable() => {
            tracing::warn!(%error, "webhook delivery could not be stored");
            Err(Refusal::Unavailable)
        }
        Some(Err(error)) => {
            tracing::error!(%error, event_id = %event.event_id, "webhook delivery was refused by the bus");
            Err(Refusal::Internal)
        }
        None => {
            let error = BusError::Unavailable { reason: "no answer to a publish".to_owned() };
            tracing::error!(%error, "webhook delivery could not be stored");
            Err(Refusal::Unavailable)
        }
    }
}

/// A header that is there exactly once, as text.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

fn is_token(text: &str, max: usize) -> bool {
    !text.is_empty() && text.len() <= max && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
