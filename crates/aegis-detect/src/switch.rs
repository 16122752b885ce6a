//! A rule's text with another mode, as its next version: what an operator does with a rule without writing one.
//! Promises that nothing but mode, version and changelog is another, or that it is refused.

use std::path::Path;

use aegis_model::RuleMode;

use crate::error::{RuleCode, RuleError};
use crate::rule::{Change, Header, Rule};

/// The text of a rule as its version `next`, in this mode. `date` is the changelog's, `note` what it says.
pub fn switched(text: &str, next: u32, mode: RuleMode, date: &str, note: &str) -> Result<String, RuleError> {
    let file = Path::new("rule.sql");
    let refuse = |message: &str| {
        let hint = "write the version as a text, and activate that";
        RuleError::new(RuleCode::RuleHeader, message).in_file(file).hint(hint)
    };
    let is_a_line = !note.trim().is_empty() && !note.contains("*/") && !note.chars().any(char::is_control);
    if !is_a_line {
        return Err(refuse("a note is one line that says something, without `*/`"));
    }
    let before = Rule::parse(text, file)?;
    let quoted = serde_json::Value::from(note).to_string();
    let line = format!("- {{version: {next}, date: {date}, note: {quoted}}}");
    let after =
        with_header(text, next, mode, &line).ok_or_else(|| refuse("the header's keys do not stand on lines of their own"))?;
    let change = Change { version: next, date: date.to_owned(), note: note.to_owned() };
    let changelog = [change].into_iter().chain(before.header.changelog.iter().cloned()).collect();
    let expected = Header { version: next, mode, changelog, ..before.header };
    match Rule::parse(&after, file) {
        Ok(rule) if rule.header == expected => Ok(after),
        _ => Err(refuse("the header is written in a way that cannot be changed by itself")),
    }
}

/// The same text with other words behind `mode` and `version`, and a line above all others of the changelog.
fn with_header(text: &str, next: u32, mode: RuleMode, line: &str) -> Option<String> {
    let end = text.find("*/")?;
    let (header, query) = text.split_at(end);
    let mut lines = Vec::new();
    let (mut modes, mut versions, mut logs) = (0, 0, 0);
    let mut rest = header.split('\n').peekable();
    while let Some(of_header) = rest.next() {
        if of_header.starts_with("mode:") {
            modes += 1;
            lines.push(format!("mode: {mode}"));
        } else if of_header.starts_with("version:") {
            versions += 1;
            lines.push(format!("version: {next}"));
        } else {
            lines.push(of_header.to_owned());
        }
        if of_header.trim_end() == "changelog:" {
            logs += 1;
            let first = rest.peek()?;
            let indentation = first.len() - first.trim_start().len();
            lines.push(format!("{}{line}", " ".repeat(indentation)));
        }
    }
    ((modes, versions, logs) == (1, 1, 1)).then(|| lines.join("\n") + query)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ruleset::RuleSet;

    const NOTE: &str = "too loud: \"for now\", says ops";

    #[test]
    fn every_shipped_rule_can_be_switched_and_nothing_else_of_it_changes() {
        for rule in RuleSet::shipped().unwrap().rules() {
            let mode = if rule.header.mode == RuleMode::LogOnly { RuleMode::Disabled } else { RuleMode::LogOnly };
            let next = rule.header.version + 1;
            let text = switched(&rule.text, next, mode, "2026-11-27", NOTE).unwrap();
            let after = Rule::parse(&text, &rule.file).unwrap();
            assert_eq!((after.header.version, after.header.mode), (next, mode), "{}", rule.header.name);
            assert_eq!(after.header.changelog[0].note, NOTE);
            assert_eq!(after.header.changelog[1..], rule.header.changelog);
            let query = |text: &str| text.split_once("*/").unwrap().1.to_owned();
            assert_eq!(query(&text), query(&rule.text));
            // And that again, as often as somebody likes.
            assert!(switched(&text, next + 1, RuleMode::Active, "2026-11-28", "back").is_ok());
        }
    }

    #[test]
    fn what_cannot_be_changed_alone_is_refused() {
        let text = |changelog: &str, more: &str| {
            format!(
                "/* rule\nid: T-1\nname: t\nversion: 1\nseverity: low\nwindow: 5m\nkey: [agent_id]\nmode: active\nowner: soc\n\
                 description: {more}\nfalse_positives: none\n{changelog}\n*/\nSELECT 1"
            )
        };
        let block = "changelog:\n- {version: 1, date: 2026-11-22, note: first}";
        let switch = |text: &str, note: &str| switched(text, 2, RuleMode::LogOnly, "2026-11-27", note);
        assert!(switch(&text(block, "d"), "n").is_ok());
        let flow = "changelog: [{version: 1, date: 2026-11-22, note: first}]";
        let inside = "|\n  d\n\n  mode: active";
        for (text, note) in
            [(text(flow, "d"), "n"), (text(block, "d"), ""), (text(block, "d"), "two\nlines"), (text(block, "d"), "*/ SELECT 2")]
        {
            assert_eq!(switch(&text, note).unwrap_err().code, RuleCode::RuleHeader, "{text} {note}");
        }
        assert!(switch(&text(block, inside), "n").is_ok(), "a text that only looks like a key stays");
    }
}
