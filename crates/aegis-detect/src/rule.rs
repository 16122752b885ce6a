//! A detection rule as a file: the YAML header in the leading comment, and the SQL below it.
//! Owns the header's keys and what each may hold; says nothing about the query (see `check`).

use std::path::{Path, PathBuf};

use aegis_model::{RuleMode, Severity};
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Place, RuleCode, RuleError};

/// Longest `window` and longest `suppress`: state is bounded, history is the lake's.
const MAX_SPAN_SECONDS: i64 = 24 * 60 * 60;
/// Largest rule file, in bytes.
const MAX_FILE_BYTES: usize = 256 * 1024;
const OPENING: &str = "/* rule";
/// The header as a JSON Schema (draft 2020-12), for editors. `tests/openapi` holds it against this module.
pub const HEADER_SCHEMA: &str = include_str!("../../../docs/specs/rule-header.schema.json");

/// Which events a rule may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Requires {
    /// Only events whose receipt, link and proof hold.
    Verified,
    /// All events, observations of the outside included.
    Any,
}

/// What a rule may ask for when it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    FreezeAgent,
    QuarantineAgent,
    QuarantineMcpServer,
}

impl Response {
    /// The word in the header and in alerts.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FreezeAgent => "freeze_agent",
            Self::QuarantineAgent => "quarantine_agent",
            Self::QuarantineMcpServer => "quarantine_mcp_server",
        }
    }

    /// The key column that names what is contained.
    #[must_use]
    pub const fn key_column(self) -> &'static str {
        match self {
            Self::FreezeAgent | Self::QuarantineAgent => "agent_id",
            Self::QuarantineMcpServer => "tool",
        }
    }
}

/// One line of a rule's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    #[serde(deserialize_with = "whole_number")]
    pub version: u32,
    pub date: String,
    pub note: String,
}

/// The header, as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeader {
    id: String,
    name: String,
    #[serde(deserialize_with = "whole_number")]
    version: u32,
    severity: Severity,
    window: String,
    key: Vec<String>,
    mode: RuleMode,
    #[serde(default)]
    requires: Option<Requires>,
    #[serde(default)]
    suppress: Option<String>,
    #[serde(default)]
    respond: Vec<Response>,
    #[serde(default)]
    atlas: Vec<String>,
    #[serde(default)]
    owasp: Vec<String>,
    owner: String,
    description: String,
    false_positives: String,
    #[serde(default)]
    runbook: Option<String>,
    changelog: Vec<Change>,
}

/// The header, checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Header {
    pub id: String,
    pub name: String,
    pub version: u32,
    pub severity: Severity,
    /// How far back the query sees, and the longest span of a match, in seconds.
    pub window_s: i64,
    pub key: Vec<String>,
    pub mode: RuleMode,
    pub requires: Requires,
    /// How long an episode lasts from its first match, in seconds.
    pub suppress_s: Option<i64>,
    pub respond: Vec<Response>,
    pub atlas: Vec<String>,
    pub owasp: Vec<String>,
    pub owner: String,
    pub description: String,
    pub false_positives: String,
    pub runbook: Option<String>,
    pub changelog: Vec<Change>,
}

impl Header {
    /// True if a match leads to containment: such a rule sees proven events only, and no score.
    #[must_use]
    pub fn contains(&self) -> bool {
        !self.respond.is_empty()
    }
}

/// A rule file: header checked, SQL not yet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rule {
    pub header: Header,
    /// The whole file. The header is a comment, so this is valid SQL and its line numbers are the file's.
    #[serde(skip)]
    pub text: String,
    /// SHA-256 of the file.
    pub hash: String,
    pub file: PathBuf,
}

impl Rule {
    /// Reads a rule's text. `file` is only named in errors.
    pub fn parse(text: &str, file: &Path) -> Result<Self, RuleError> {
        let header = parse_header(text).map_err(|e| e.in_file(file))?;
        let hash = aegis_canon::sha256_hex(text.as_bytes());
        Ok(Self { header, text: text.to_owned(), hash, file: file.to_owned() })
    }

    /// Where a header key stands, for errors about its value.
    pub(crate) fn header_place(&self, key: &str) -> Option<Place> {
        key_place(&self.text, key)
    }
}

fn parse_header(text: &str) -> Result<Header, RuleError> {
    let refuse = |message: String| RuleError::new(RuleCode::RuleHeader, message);
    if text.len() > MAX_FILE_BYTES {
        return Err(refuse(format!("the file is larger than {MAX_FILE_BYTES} bytes")));
    }
    let start = Some(Place { line: 1, column: 1 });
    let rest = text.strip_prefix(OPENING).filter(|rest| rest.starts_with(['\n', '\r']));
    let Some(rest) = rest else {
        let hint = "begin the file with `/* rule`, the YAML header on the lines below, and `*/` on a line of its own";
        return Err(refuse("the file does not begin with a rule header".into()).at(start).hint(hint));
    };
    let Some((yaml, _)) = rest.split_once("*/") else {
        return Err(refuse("the header comment is not closed".into()).at(start).hint("end the header with `*/`"));
    };
    // As YAML 1.2 has it, and any other reader: `7` and `true` are no texts unless they are quoted.
    let options = serde_saphyr::options! { no_schema: true, strict_booleans: true };
    let raw: RawHeader = serde_saphyr::from_str_with_options(yaml, options).map_err(|error| {
        let error = error.without_snippet();
        // The YAML begins at the end of the file's first line, so its line numbers are the file's.
        let place = error.location().map(|l| Place { line: l.line(), column: l.column() });
        refuse(one_line(&error.to_string())).at(place).hint("the header's keys are listed in docs/specs/detection-rule.md")
    })?;
    check_header(raw, text)
}

fn check_header(raw: RawHeader, text: &str) -> Result<Header, RuleError> {
    let refuse = |key: &str, message: String| RuleError::new(RuleCode::RuleHeader, message).at(key_place(text, key));
    if !is_word(&raw.id, |c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
        return Err(refuse("id", "id must match [A-Za-z0-9_-]{1,64}".into()));
    }
    if !is_word(&raw.name, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
        return Err(refuse("name", "name must match [a-z0-9-]{1,64}".into()));
    }
    let span = |key: &str, value: &str| {
        parse_span(value).ok_or_else(|| {
            refuse(key, format!("`{value}` is not a span"))
                .hint("write a whole number and s, m, h or d, at most one day, e.g. 5m")
        })
    };
    let window_s = span("window", &raw.window)?;
    let suppress_s = raw.suppress.as_deref().map(|s| span("suppress", s)).transpose()?;
    let mut seen = std::collections::BTreeSet::new();
    if raw.key.is_empty() || raw.key.len() > 8 || !raw.key.iter().all(|k| seen.insert(k)) {
        return Err(refuse("key", "key must name one to eight different output columns".into()));
    }
    let contains = !raw.respond.is_empty();
    let requires = raw.requires.unwrap_or(if contains { Requires::Verified } else { Requires::Any });
    if contains && requires == Requires::Any {
        let error = RuleError::new(RuleCode::RuleUnverified, "a rule that contains may not look at unverified events");
        return Err(error.at(key_place(text, "requires")).hint("remove `requires: any`, or remove `respond`"));
    }
    for response in &raw.respond {
        if !raw.key.iter().any(|k| k == response.key_column()) {
            let message =
                format!("{} needs `{}` in the key, which names what is contained", response.as_str(), response.key_column());
            return Err(RuleError::new(RuleCode::RuleCallerKey, message).at(key_place(text, "key")));
        }
    }
    match raw.changelog.iter().map(|c| c.version).max() {
        Some(newest) if newest == raw.version => {}
        _ => return Err(refuse("changelog", format!("the changelog has no line for version {}", raw.version))),
    }
    Ok(Header {
        id: raw.id,
        name: raw.name,
        version: raw.version,
        severity: raw.severity,
        window_s,
        key: raw.key,
        mode: raw.mode,
        requires,
        suppress_s,
        respond: raw.respond,
        atlas: raw.atlas,
        owasp: raw.owasp,
        owner: raw.owner,
        description: raw.description,
        false_positives: raw.false_positives,
        runbook: raw.runbook,
        changelog: raw.changelog,
    })
}

/// A number that is written as one: a text of digits is none.
fn whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let whole = number.as_u64().and_then(|whole| u32::try_from(whole).ok());
    whole.ok_or_else(|| D::Error::invalid_value(Unexpected::Other("this number"), &"a whole number"))
}

/// `5m` as seconds: a whole number above zero and s, m, h or d, at most a day.
pub(crate) fn parse_span(text: &str) -> Option<i64> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let per_unit = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    let seconds = digits.parse::<i64>().ok()?.checked_mul(per_unit)?;
    (1..=MAX_SPAN_SECONDS).contains(&seconds).then_some(seconds)
}

fn is_word(text: &str, allowed: impl Fn(char) -> bool) -> bool {
    (1..=64).contains(&text.len()) && text.chars().all(allowed)
}

/// Where `key:` begins a line of the header.
fn key_place(text: &str, key: &str) -> Option<Place> {
    let lines = text.lines().enumerate().take_while(|(_, line)| !line.contains("*/"));
    for (index, line) in lines {
        if line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':')) {
            return Some(Place { line: index as u64 + 1, column: 1 });
        }
    }
    None
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const GOOD: &str = "/* rule\nid: T-1\nname: t\nversion: 1\nseverity: low\nwindow: 5m\nkey: [agent_id]\nmode: active\nowner: soc\n\
        description: d\nfalse_positives: none\nchangelog:\n  - {version: 1, date: 2026-11-22, note: first}\n*/\nSELECT 1";

    fn refused(text: &str) -> RuleError {
        Rule::parse(text, Path::new("r.sql")).unwrap_err()
    }

    #[test]
    fn a_header_has_defaults_that_are_safe() {
        let rule = Rule::parse(GOOD, Path::new("r.sql")).unwrap();
        assert_eq!(rule.header.requires, Requires::Any);
        assert_eq!(rule.header.window_s, 300);
        let containing = GOOD.replace("mode: active", "mode: active\nrespond: [freeze_agent]");
        assert_eq!(Rule::parse(&containing, Path::new("r.sql")).unwrap().header.requires, Requires::Verified);
    }

    #[test]
    fn an_error_names_the_line() {
        let error = refused(&GOOD.replace("window: 5m", "window: 5 minutes"));
        assert_eq!((error.code, error.place.unwrap().line), (RuleCode::RuleHeader, 6));
        let error = refused(&GOOD.replace("severity: low", "severity: awful"));
        assert_eq!((error.code, error.place.unwrap().line), (RuleCode::RuleHeader, 5), "{error}");
        let error = refused(&GOOD.replace("owner: soc", "owner: soc\nmystery: 1"));
        assert_eq!((error.code, error.place.unwrap().line), (RuleCode::RuleHeader, 10), "{error}");
        assert_eq!(refused("SELECT 1").code, RuleCode::RuleHeader);
    }

    #[test]
    fn a_containing_rule_may_not_ask_for_unverified_events() {
        let text = GOOD.replace("mode: active", "mode: active\nrespond: [freeze_agent]\nrequires: any");
        assert_eq!(refused(&text).code, RuleCode::RuleUnverified);
        let text = GOOD.replace("mode: active", "mode: active\nrespond: [freeze_agent]").replace("[agent_id]", "[tool]");
        assert_eq!(refused(&text).code, RuleCode::RuleCallerKey);
    }

    #[test]
    fn a_text_that_reads_as_something_else_is_quoted_and_a_number_is_not() {
        for (good, bad) in [("owner: soc", "owner: 7"), ("name: t", "name: true"), ("version: 1\n", "version: '1'\n")] {
            let error = refused(&GOOD.replacen(good, bad, 1));
            assert_eq!(error.code, RuleCode::RuleHeader, "{error}");
        }
        for owner in ["'7'", "yes", "2026-11-22"] {
            let text = GOOD.replace("owner: soc", &format!("owner: {owner}"));
            assert_eq!(Rule::parse(&text, Path::new("r.sql")).unwrap().header.owner, owner.trim_matches('\''));
        }
    }

    #[test]
    fn spans_are_whole_and_bounded() {
        assert_eq!(parse_span("60s"), Some(60));
        assert_eq!(parse_span("1d"), Some(86_400));
        for bad in ["", "s", "0s", "-1s", "1.5m", "2d", "5", "5w", "99999999999999999999s", "٣s"] {
            assert_eq!(parse_span(bad), None, "{bad}");
        }
    }
}
