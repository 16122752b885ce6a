//! The door for request data: bodies through the strict JSON parser, bounded texts, bounded lists.
//! Promises that whatever passes has one meaning; never repairs what it reads.

pub(crate) use aegis_model::limits::{MAX_ID, MAX_TEXT};
use aegis_model::limits::{NameError, check_name, check_resource};
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::problem::Problem;

/// How many list entries a reply has unless told otherwise, and at most.
const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 500;
/// Furthest a list may be paged into; beyond it the export is the right tool.
const MAX_OFFSET: u32 = 1_000_000;
/// How much of a parser's complaint is repeated.
const MAX_COMPLAINT: usize = 300;

/// A body must have arrived by then, so that slow senders cannot hold every connection.
const BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Problem> {
    let too_large =
        || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("the body is larger than {limit} bytes"));
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let Ok(collected) = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await else {
        return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "the body did not arrive in time"));
    };
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err(Problem::bad_request("body_unreadable", "the body ended early")),
    }
}

/// A body must say that it is JSON.
pub(crate) fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(|value| value.split(';').next().unwrap_or("").trim().to_ascii_lowercase());
    match essence.as_deref() {
        Some("application/json") => Ok(()),
        Some(essence) if essence.starts_with("application/") && essence.ends_with("+json") => Ok(()),
        _ => Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "send the body as application/json")),
    }
}

/// Parses a body strictly, then into `T`. Unknown fields are ignored unless `T` says otherwise.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8], limit: usize) -> Result<T, Problem> {
    let value = parse_value(body, limit)?;
    if !value.is_object() {
        return Err(Problem::bad_request("invalid_body", "the body must be a JSON object"));
    }
    from_value(value)
}

/// As [`parse`], where an empty body means an empty object.
pub(crate) fn parse_or_empty<T: DeserializeOwned>(body: &[u8], limit: usize) -> Result<T, Problem> {
    if body.is_empty() { parse(b"{}", limit) } else { parse(body, limit) }
}

fn parse_value(body: &[u8], limit: usize) -> Result<Value, Problem> {
    let limits = aegis_canon::Limits { max_bytes: limit, ..aegis_canon::Limits::default() };
    aegis_canon::parse_strict_with(body, limits).map_err(|error| Problem::bad_request(error.code(), error.to_string()))
}

fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    serde_json::from_value(value).map_err(|error| {
        let complaint: String = error.to_string().chars().take(MAX_COMPLAINT).collect();
        Problem::bad_request("invalid_body", format!("the body has not the expected form: {complaint}"))
    })
}

/// A text of 1 to `max` characters without control characters.
pub(crate) fn check_text(field: &str, value: &str, max: usize) -> Result<(), Problem> {
    check_name(value, max).map_err(|why| invalid(field, why))
}

/// The name of a resource, as a call may have it.
pub(crate) fn check_resource_name(field: &str, value: &str) -> Result<(), Problem> {
    check_resource(value).map_err(|why| invalid(field, why))
}

fn invalid(field: &str, why: NameError) -> Problem {
    Problem::bad_request("invalid_field", format!("`{field}` {why}"))
}

/// As [`check_text`] where a value is given.
pub(crate) fn check_optional(field: &str, value: Option<&str>, max: usize) -> Result<(), Problem> {
    value.map_or(Ok(()), |value| check_text(field, value, max))
}

/// The query part of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn new(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A filter value: bounded like an id.
    pub(crate) fn filter(&self, name: &str) -> Result<Option<&str>, Problem> {
        let value = self.get(name);
        check_optional(name, value, MAX_ID)?;
        Ok(value)
    }

    /// `limit` (1..=500, default 50) and `offset` (default 0).
    pub(crate) fn page(&self) -> Result<Page, Problem> {
        let limit = self.number("limit", DEFAULT_LIMIT)?;
        let offset = self.number("offset", 0)?;
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(Problem::bad_request("invalid_query", format!("`limit` must be 1 to {MAX_LIMIT}")));
        }
        if offset > MAX_OFFSET {
            return Err(Problem::bad_request("invalid_query", format!("`offset` must be at most {MAX_OFFSET}")));
        }
        Ok(Page { limit, offset })
    }

    fn number(&self, name: &str, default: u32) -> Result<u32, Problem> {
        match self.get(name) {
            None => Ok(default),
            Some(text) => {
                text.parse().map_err(|_| Problem::bad_request("invalid_query", format!("`{name}` must be a whole number")))
            }
        }
    }
}

/// Which part of a list is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) limit: u32,
    pub(crate) offset: u32,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_bounded() {
        let page = |text: &str| Query::new(vec![("limit".into(), text.into())]).page();
        assert_eq!(page("500").unwrap().limit, 500);
        for bad in ["0", "501", "-1", "x", "99999999999999999999", ""] {
            assert_eq!(page(bad).unwrap_err().code, "invalid_query", "{bad}");
        }
    }

    #[test]
    fn a_text_keeps_its_bounds() {
        assert!(check_text("id", "payments-service#482 ☕", MAX_ID).is_ok());
        for bad in ["", "a\nb", "a\u{0}b", "a\u{7f}", &"x".repeat(MAX_ID + 1)] {
            assert!(check_text("id", bad, MAX_ID).is_err());
        }
    }

    #[test]
    fn only_json_is_json() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            require_json(&headers).is_ok()
        };
        assert!(with("application/json; charset=utf-8") && with("Application/JSON"));
        assert!(!with("text/plain") && !with("application/x-www-form-urlencoded") && require_json(&HeaderMap::new()).is_err());
    }
}
