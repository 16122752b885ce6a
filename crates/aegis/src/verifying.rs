//! Verification of an export, as both programs offer it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::ExitCode;

use aegis_keys::{KeyRing, VerifyingKey};
use aegis_ledger::verify::{ExportReport, ExportVerdict, verify_export};
use anyhow::Context;

/// A check said no.
pub(crate) const SAID_NO: u8 = 1;
/// Bad usage or input.
pub(crate) const BAD_INPUT: u8 = 2;

pub(crate) fn verify(file: &Path, roots: &[String], json: bool) -> anyhow::Result<ExitCode> {
    let ring = read_roots(roots)?;
    let input: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(BufReader::new(std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?))
    };
    let report = match verify_export(input, ring.as_ref()) {
        Ok(report) => report,
        Err(error) => {
            complain(&format!("{}: {error}", file.display()));
            return Ok(ExitCode::from(BAD_INPUT));
        }
    };
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}", printable(&describe(&report)));
    }
    Ok(if report.verdict == ExportVerdict::Invalid { ExitCode::from(SAID_NO) } else { ExitCode::SUCCESS })
}

/// The result in one line for people, and where it is invalid a second one that names the receipt and says why.
pub(crate) fn describe(report: &ExportReport) -> String {
    let gaps: u64 = report.lanes.values().map(|lane| lane.gaps).sum();
    let counts =
        format!("{} receipts in {} lanes, {} proofs, {gaps} declared gaps", report.receipts, report.lanes.len(), report.proofs);
    match (report.verdict, &report.failure) {
        (ExportVerdict::Invalid, Some(found)) => {
            let failure = &found.failure;
            let receipt = failure.event_id.as_deref().unwrap_or("that names no event");
            let place =
                failure.lane.as_deref().zip(failure.seq).map_or(String::new(), |(lane, seq)| format!(", lane {lane} seq {seq}"));
            format!("invalid: receipt {receipt} (line {}{place}): {failure}; {counts} hold before it", found.line)
        }
        (ExportVerdict::Invalid, None) => format!("invalid: {counts}"),
        (ExportVerdict::Valid, _) => format!("valid: {counts}"),
        (ExportVerdict::SelfConsistent, _) => format!("self-consistent (no key pinned): {counts}"),
    }
}

/// Says what went wrong, on standard error.
pub(crate) fn complain(text: &str) {
    eprintln!("{}", printable(text));
}

/// A text for a terminal: what a file says of itself must not move the cursor, hide a verdict or turn it around.
fn printable(text: &str) -> String {
    let is_told =
        |c: char| !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().fold(String::with_capacity(text.len()), |mut told, c| {
        if is_told(c) || c == '\n' {
            told.push(c);
        } else {
            told.extend(c.escape_default());
        }
        told
    })
}

/// Public keys given as base64 or as files that hold it; none where none was given.
pub(crate) fn read_roots(roots: &[String]) -> anyhow::Result<Option<KeyRing>> {
    if roots.is_empty() {
        return Ok(None);
    }
    let keys: anyhow::Result<Vec<VerifyingKey>> = roots
        .iter()
        .map(|root| {
            let text = if Path::new(root).is_file() {
                std::fs::read_to_string(root).with_context(|| format!("cannot read {root}"))?
            } else {
                root.clone()
            };
            VerifyingKey::from_base64(&text).with_context(|| format!("--root {root}: neither a key file nor a key"))
        })
        .collect();
    Ok(Some(KeyRing::new(keys?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_cannot_hide_a_verdict() {
        assert_eq!(printable("invalid: receipt \u{1b}[2K\rvalid"), "invalid: receipt \\u{1b}[2K\\rvalid");
        assert_eq!(printable("a\u{202e}b\u{9b}c"), "a\\u{202e}b\\u{9b}c");
        assert_eq!(printable("ä 語 \u{1f600}\nnext"), "ä 語 \u{1f600}\nnext");
    }
}
