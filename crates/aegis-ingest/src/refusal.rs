//! Why a delivery is not taken, as the sender is told: a status, a stable code, a message without internals.

use aegis_model::{ErrorBody, ErrorDetail};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Seconds after which a sender should try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Unknown tenant, no secret, missing or wrong signature: one answer, so that none can be told from another.
    BadSignature,
    BodyTooLarge,
    BodyIncomplete,
    BodyTooSlow,
    BadDeliveryId,
    BadEventName,
    UnsupportedContentType,
    NotAnObject,
    RateExceeded,
    Busy,
    Unavailable,
    Internal,
}

impl Refusal {
    const fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::BadSignature => (
                StatusCode::UNAUTHORIZED,
                "bad_signature",
                "X-Hub-Signature-256 does not match; check the webhook's secret and the tenant in its URL",
            ),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "the body is over the configured limit"),
            Self::BodyIncomplete => (StatusCode::BAD_REQUEST, "body_incomplete", "the body ended early"),
            Self::BodyTooSlow => (StatusCode::REQUEST_TIMEOUT, "body_too_slow", "the body took too long to arrive"),
            Self::BadDeliveryId => (
                StatusCode::BAD_REQUEST,
                "bad_delivery_id",
                "X-GitHub-Delivery must be given once and match [A-Za-z0-9_-]{1,128}",
            ),
            Self::BadEventName => {
                (StatusCode::BAD_REQUEST, "bad_event_name", "X-GitHub-Event must be given once and match [A-Za-z0-9_-]{1,64}")
            }
            Self::UnsupportedContentType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_content_type",
                "send application/json, or application/x-www-form-urlencoded with the field payload",
            ),
            Self::NotAnObject => {
                (StatusCode::BAD_REQUEST, "malformed_payload", "the payload must be a JSON object, at most 128 levels deep")
            }
            Self::RateExceeded => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_exceeded", "too many deliveries for this tenant; send it again later")
            }
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", "too many deliveries at once; send it again later"),
            Self::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "the delivery cannot be stored now; send it again later")
            }
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "the delivery could not be processed"),
        }
    }
}

/// A reply with a JSON body.
pub(crate) fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body.to_string()).into_response()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code, message) = self.parts();
        let body = ErrorBody { error: ErrorDetail { code: code.to_owned(), message: message.to_owned() } };
        let mut response = json_response(status, &serde_json::json!(body));
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}
