//! GitHub webhooks as external events: a pure mapping from headers and payload, and what a payload says about its repository.
//! Takes named fields only, each bounded and of a known alphabet; of any text, its hash and length.

mod facts;
pub(crate) mod signature;
mod texts;

use aegis_model::{EventKind, SecurityEvent, SourceTrust, TenantId, Timestamp, external_event_id};
use serde_json::{Map, Value, json};

use facts::Repository;
pub use facts::repository_facts;

/// The adapter's name: `source` of its events and `tool` of what they are about.
pub const ADAPTER: &str = "github";

/// Longest `attributes`, in bytes.
pub const MAX_ATTRIBUTES: usize = 8 * 1024;

/// Longest git reference that is kept, in bytes.
const MAX_REF: usize = 255;

/// Longest login or action that is kept, in bytes.
const MAX_WORD: usize = 100;

/// Events without text that a stranger could have written. All others of a public repository count as text-bearing.
const TEXTLESS: [&str; 9] =
    ["ping", "star", "watch", "public", "member", "membership", "team_add", "installation", "installation_repositories"];

/// A delivery whose signature was verified.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    pub tenant_id: &'a TenantId,
    pub ingest_id: &'a str,
    /// `X-GitHub-Event`
    pub event: &'a str,
    /// `X-GitHub-Delivery`
    pub delivery_id: &'a str,
    pub received_at: Timestamp,
}

/// The event of a delivery. Every payload has one; what is not understood is left out.
#[must_use]
pub fn map(delivery: &Delivery<'_>, payload: &Value) -> SecurityEvent {
    let repository = Repository::of(payload);
    let action = word(payload.get("action"));
    let number = number(payload);
    let resource = repository.as_ref().map(|r| match number {
        Some(number) => format!("{}#{number}", r.full_name),
        None => r.full_name.clone(),
    });

    let mut event = SecurityEvent::new(
        delivery.tenant_id.clone(),
        delivery.ingest_id,
        ADAPTER,
        EventKind::ExternalGithubWebhook,
        delivery.received_at,
    );
    event.event_id = external_event_id(delivery.tenant_id, ADAPTER, delivery.delivery_id);
    event.tool = Some(ADAPTER.to_owned());
    event.action = Some(match action {
        Some(action) => format!("{}.{action}", delivery.event),
        None => delivery.event.to_owned(),
    });
    event.resource = resource;
    event.user_id = login(payload.pointer("/sender/login"));
    event.source_trust = Some(source_trust(delivery.event, repository.as_ref(), payload));
    event.attributes = Some(attributes(delivery, repository.as_ref(), action, number, payload));
    event
}

/// Whose content this is, at best; the label is `unknown` unless the payload proves better or shows worse.
fn source_trust(event: &str, repository: Option<&Repository>, payload: &Value) -> SourceTrust {
    let Some(repository) = repository else { return SourceTrust::Unknown };
    let bears_text = !TEXTLESS.contains(&event) || texts::has_author(payload);
    if repository.may_be_public && bears_text {
        return SourceTrust::UntrustedExternal;
    }
    let members_only =
        texts::associations(payload).is_some_and(|all| all.iter().all(|a| matches!(*a, "OWNER" | "MEMBER" | "COLLABORATOR")));
    if repository.is_private && members_only {
        return SourceTrust::TrustedInternalUnsigned;
    }
    SourceTrust::Unknown
}

fn attributes(
    delivery: &Delivery<'_>,
    repository: Option<&Repository>,
    action: Option<&str>,
    number: Option<u64>,
    payload: &Value,
) -> String {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    put("event", Some(json!(delivery.event)));
    put("delivery", Some(json!(delivery.delivery_id)));
    put("action", action.map(Value::from));
    put("repository", repository.map(|r| json!(r.full_name)));
    put("visibility", repository.map(|r| json!(r.visibility)));
    put("default_branch", git_ref(payload.pointer("/repository/default_branch")).map(Value::from));
    put("ref", git_ref(payload.get("ref")).map(Value::from));
    put("number", number.map(Value::from));
    put("author_association", texts::author_association(payload).map(Value::from));
    let digests = texts::digests(payload);
    put("texts", (!digests.is_empty()).then_some(Value::Object(digests)));
    let text = Value::Object(fields).to_string();
    // INVARIANT: every field above is bounded, together far below the limit.
    if text.len() <= MAX_ATTRIBUTES {
        text
    } else {
        json!({ "event": delivery.event, "delivery": delivery.delivery_id }).to_string()
    }
}

/// The number of the issue, pull request or discussion.
fn number(payload: &Value) -> Option<u64> {
    ["/issue/number", "/pull_request/number", "/discussion/number", "/number"]
        .into_iter()
        .find_map(|path| payload.pointer(path)?.as_u64())
}

/// A word of GitHub's own vocabulary, such as an action.
fn word(value: Option<&Value>) -> Option<&str> {
    let text = value?.as_str()?;
    let plain =
        !text.is_empty() && text.len() <= MAX_WORD && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    plain.then_some(text)
}

/// A login: letters, digits and hyphens; `[bot]` at the end of an app's.
fn login(value: Option<&Value>) -> Option<String> {
    let text = value?.as_str()?;
    let name = text.strip_suffix("[bot]").unwrap_or(text);
    let plain =
        !name.is_empty() && text.len() <= MAX_WORD && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    plain.then(|| text.to_owned())
}

/// A reference as `git check-ref-format` allows it: no white space, so no sentence stands in one.
fn git_ref(value: Option<&Value>) -> Option<&str> {
    let text = value?.as_str()?;
    let plain = !text.is_empty()
        && text.len() <= MAX_REF
        && text.bytes().all(|b| b.is_ascii_graphic() && !b"~^:?*[\\\"'<>`".contains(&b));
    plain.then_some(text)
}
