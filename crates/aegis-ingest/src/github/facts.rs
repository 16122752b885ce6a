//! What a payload says about its repository: its name and who can see it.

use aegis_model::{ResourceRecord, Timestamp, Visibility};
use serde_json::Value;

use super::ADAPTER;

/// Longest `owner/name`, in bytes: GitHub allows 39 and 100.
const MAX_FULL_NAME: usize = 140;

/// The repository of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repository {
    pub(super) full_name: String,
    pub(super) visibility: Visibility,
    /// Some field says public. Where two fields disagree this is true and `visibility` is unknown.
    pub(super) may_be_public: bool,
    pub(super) is_private: bool,
    pub(super) updated_at: Option<Timestamp>,
}

impl Repository {
    /// None without a well-formed `repository.full_name`.
    pub(super) fn of(payload: &Value) -> Option<Self> {
        let repository = payload.get("repository")?;
        let full_name = repository.get("full_name")?.as_str().filter(|name| is_full_name(name))?;
        let private = repository.get("private").and_then(Value::as_bool);
        let word = repository.get("visibility").and_then(Value::as_str);
        let may_be_public = private == Some(false) || word == Some("public");
        // `internal` (an enterprise's own) is private to the outside.
        let may_be_private = private == Some(true) || matches!(word, Some("private" | "internal"));
        let visibility = match (may_be_public, may_be_private) {
            (true, false) => Visibility::Public,
            (false, true) => Visibility::Private,
            _ => Visibility::Unknown,
        };
        let is_private = visibility == Visibility::Private;
        let updated_at = repository.get("updated_at").and_then(time);
        Some(Self { full_name: full_name.to_owned(), visibility, may_be_public, is_private, updated_at })
    }
}

/// What the registry can learn from a payload. None where it says nothing about who can see the repository.
#[must_use]
pub fn repository_facts(payload: &Value) -> Option<ResourceRecord> {
    let repository = Repository::of(payload)?;
    if repository.visibility == Visibility::Unknown && !repository.may_be_public {
        return None;
    }
    let owner = repository.full_name.split('/').next().map(str::to_owned);
    Some(ResourceRecord {
        resource: repository.full_name,
        tool: Some(ADAPTER.to_owned()),
        visibility: repository.visibility,
        owner,
        observed_at: repository.updated_at,
    })
}

/// RFC 3339 text, or seconds as some payloads have them.
fn time(value: &Value) -> Option<Timestamp> {
    match value {
        Value::String(text) => Timestamp::parse_rfc3339(text).ok(),
        other => other.as_i64()?.checked_mul(1_000_000).map(Timestamp::from_micros),
    }
}

fn is_full_name(text: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    text.len() <= MAX_FULL_NAME && text.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn facts(repository: Value) -> Option<(String, Visibility)> {
        repository_facts(&json!({ "repository": repository })).map(|r| (r.resource, r.visibility))
    }

    #[test]
    fn visibility_is_what_all_fields_agree_on() {
        let name = "Octo-Org/hello.world";
        for (repository, expected) in [
            (json!({"full_name": name, "private": false}), Visibility::Public),
            (json!({"full_name": name, "private": false, "visibility": "public"}), Visibility::Public),
            (json!({"full_name": name, "private": true}), Visibility::Private),
            (json!({"full_name": name, "private": true, "visibility": "internal"}), Visibility::Private),
            (json!({"full_name": name, "private": true, "visibility": "public"}), Visibility::Unknown),
            (json!({"full_name": name, "private": false, "visibility": "private"}), Visibility::Unknown),
        ] {
            assert_eq!(facts(repository.clone()), Some((name.to_owned(), expected)), "{repository}");
        }
    }

    #[test]
    fn nothing_is_learned_from_nothing() {
        assert_eq!(facts(json!({"full_name": "a/b"})), None);
        assert_eq!(facts(json!({"private": true})), None);
        for bad in ["a", "a/", "/b", "a/b/c", "a b/c", "a/b\n", "ä/b", &format!("a/{}", "b".repeat(140))] {
            assert_eq!(facts(json!({"full_name": bad, "private": true})), None, "{bad}");
        }
        assert_eq!(repository_facts(&json!({"repository": "a/b"})), None);
        assert_eq!(repository_facts(&json!([])), None);
    }
}
