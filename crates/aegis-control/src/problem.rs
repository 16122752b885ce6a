//! Error replies: `{"error": {"code", "message"}}`, with a code for programs and a sentence for people.
//! Promises that nothing internal (SQL, paths, causes) reaches a caller; the cause is logged instead.

use crate::reply::Json;
use aegis_model::{ErrorBody, ErrorDetail};
use aegis_store::StoreError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// An error reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// Stable, for programs.
    pub code: String,
    /// For people: what happened and what to do.
    pub message: String,
}

impl Problem {
    /// A reply with `status`, `code` and `message`.
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into() }
    }

    pub(crate) fn bad_request(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(crate) fn unauthorized(code: &str, message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, message)
    }

    pub(crate) fn forbidden(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("no such {what} in this tenant"))
    }

    pub(crate) fn conflict(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    pub(crate) fn unprocessable(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    pub(crate) fn unavailable(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    /// A change was made, and cannot be told to be done before it has its receipt.
    pub(crate) fn receipt_pending() -> Self {
        Self::unavailable("receipt_pending", "the change was made; its receipt is sealed as soon as the ledger can be written")
    }

    /// A bug or a state that should not exist: logged with its cause, answered without it.
    pub(crate) fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "request failed inside control");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the request failed inside the server; its log has the cause")
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Invalid { what, why } => Self::bad_request("invalid_field", format!("{what} {why}")),
            StoreError::Taken(what) => Self::conflict("taken", format!("{what} is already taken")),
            StoreError::LimitReached { what, limit } => {
                Self::conflict("limit_reached", format!("this tenant has {limit} {what} already, the most that is kept"))
            }
            error => {
                tracing::error!(%error, "control store failed");
                Self::unavailable("store_unavailable", "the control store cannot be used at the moment; try again")
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let unauthenticated = self.status == StatusCode::UNAUTHORIZED;
        let body = ErrorBody { error: ErrorDetail { code: self.code, message: self.message } };
        let mut response = (self.status, Json(body)).into_response();
        if unauthenticated {
            // RFC 9110 §11.6.1: a 401 names the scheme.
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
