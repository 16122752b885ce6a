//! The texts in a payload: who wrote them, and their hash and length. The text itself never leaves here.

use aegis_canon::sha256_hex;
use serde_json::{Map, Value, json};

/// Objects of a payload that a person wrote, the one that the event is about first.
const AUTHORED: [&str; 6] = ["comment", "review", "answer", "issue", "pull_request", "discussion"];

/// The texts whose digests are kept.
const TEXTS: [&str; 13] = [
    "/comment/body",
    "/review/body",
    "/answer/body",
    "/issue/title",
    "/issue/body",
    "/pull_request/title",
    "/pull_request/body",
    "/discussion/title",
    "/discussion/body",
    "/release/name",
    "/release/body",
    "/head_commit/message",
    "/commit/commit/message",
];

/// GitHub's words for what an author is to the repository.
const ASSOCIATIONS: [&str; 8] =
    ["COLLABORATOR", "CONTRIBUTOR", "FIRST_TIMER", "FIRST_TIME_CONTRIBUTOR", "MANNEQUIN", "MEMBER", "NONE", "OWNER"];

/// True if the payload holds something that a person wrote.
pub(super) fn has_author(payload: &Value) -> bool {
    AUTHORED.iter().any(|name| payload.get(name).is_some_and(|v| !v.is_null()))
        || TEXTS.iter().any(|path| text(payload, path).is_some())
}

/// What the author of the event's own text is to the repository.
pub(super) fn author_association(payload: &Value) -> Option<&'static str> {
    AUTHORED.iter().find_map(|name| payload.get(name).filter(|v| !v.is_null()).map(association)).flatten()
}

/// What every author in the payload is to the repository. None if there is no author, or one that is nothing known.
pub(super) fn associations(payload: &Value) -> Option<Vec<&'static str>> {
    let authored = AUTHORED.iter().filter_map(|name| payload.get(name)).filter(|v| !v.is_null());
    let all: Vec<_> = authored.map(association).collect::<Option<_>>()?;
    (!all.is_empty()).then_some(all)
}

/// Field → hash and length in bytes.
pub(super) fn digests(payload: &Value) -> Map<String, Value> {
    let found = TEXTS.iter().filter_map(|path| text(payload, path).map(|text| (path, text)));
    found
        .map(|(path, text)| {
            let name = path.trim_start_matches('/').replace('/', ".");
            (name, json!({ "sha256": sha256_hex(text.as_bytes()), "bytes": text.len() }))
        })
        .collect()
}

fn text<'a>(payload: &'a Value, path: &str) -> Option<&'a str> {
    payload.pointer(path)?.as_str()
}

fn association(authored: &Value) -> Option<&'static str> {
    let word = authored.get("author_association")?.as_str()?;
    ASSOCIATIONS.into_iter().find(|known| *known == word)
}
