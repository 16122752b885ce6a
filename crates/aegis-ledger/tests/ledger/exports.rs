//! Exports that are no exports, and the older form. What receipts themselves can do wrong stands in `corpus/receipts/`.

use crate::fixture::*;
use aegis_ledger::verify::{ExportError, ExportReport, ExportVerdict, FailureCode, MAX_LINE_BYTES, verify_export};
use serde_json::{Value, json};

fn verify(text: &str) -> Result<ExportReport, ExportError> {
    verify_export(text.as_bytes(), None)
}

fn bad_line(text: &str) -> u64 {
    match verify(text).unwrap_err() {
        ExportError::BadInput { line, .. } => line,
        other => panic!("{other}"),
    }
}

/// A chain in the older form, with the given bodies.
fn older(bodies: Vec<Value>) -> Vec<String> {
    let mut prev = String::new();
    let mut lines = Vec::new();
    for mut body in bodies {
        body["prev_receipt_hash"] = json!(prev);
        prev = aegis_canon::hash_value(&body).unwrap();
        body["receipt_hash"] = json!(prev);
        lines.push(body.to_string());
    }
    lines
}

#[test]
fn input_that_is_not_strict_json_lines_is_bad_input() {
    assert_eq!(bad_line("{\n"), 1);
    assert_eq!(bad_line("\n\n[1]\n"), 3);
    assert_eq!(bad_line("\"text\"\n"), 1);
    assert_eq!(bad_line("{\"receipt_hash\":\"a\",\"receipt_hash\":\"b\"}\n"), 1);
    assert_eq!(bad_line(&format!("{}\n", "[".repeat(10_000))), 1);
    assert_eq!(bad_line(&format!("{{\"x\":\"{}\"}}\n", "y".repeat(MAX_LINE_BYTES))), 1);
    assert!(matches!(verify("").unwrap_err(), ExportError::Empty));
    assert!(matches!(verify("\n \n").unwrap_err(), ExportError::Empty));
    let not_utf8 = verify_export(&b"\xff\xfe\n"[..], None).unwrap_err();
    assert!(matches!(not_utf8, ExportError::BadInput { line: 1, .. }), "{not_utf8}");
}

#[test]
fn an_endless_line_is_not_read_to_its_end() {
    let endless = std::io::BufReader::new(std::io::repeat(b' '));
    assert!(matches!(verify_export(endless, None).unwrap_err(), ExportError::BadInput { line: 1, .. }));
}

#[test]
fn the_older_form_is_chained_by_its_hashes_whatever_its_keys() {
    let bodies = vec![json!({"id": "r1", "anything": [1.5, null]}), json!({"id": "r2"}), json!({"id": "r3", "é": {}})];
    let lines = older(bodies);
    let report = verify(&lines.join("\n")).unwrap();
    assert_eq!((report.verdict, report.receipts, report.older_form), (ExportVerdict::SelfConsistent, 3, 3));
    // It may begin anywhere in its chain, and may end without a line feed.
    assert_eq!(verify(&lines[1..].join("\n")).unwrap().verdict, ExportVerdict::SelfConsistent);
    let dropped = verify(&[&lines[0], &lines[2]].map(String::as_str).join("\n")).unwrap().failure.unwrap();
    assert_eq!((dropped.line, dropped.failure.code), (2, FailureCode::BrokenLink));
    let changed = verify(&lines.join("\n").replace("\"r2\"", "\"r9\"")).unwrap().failure.unwrap();
    assert_eq!((changed.line, changed.failure.code), (2, FailureCode::HashMismatch));
    let swapped = verify(&[&lines[1], &lines[0]].map(String::as_str).join("\n")).unwrap();
    assert_eq!(swapped.verdict, ExportVerdict::Invalid);
    let pinned = verify_export(lines.join("\n").as_bytes(), Some(&ring())).unwrap().failure.unwrap();
    assert_eq!((pinned.line, pinned.failure.code), (1, FailureCode::Unsigned));
}

#[test]
fn older_chains_of_two_tenants_may_be_interleaved() {
    let of = |name: &str| older((0..3).map(|n| json!({"tenant_id": name, "n": n})).collect());
    let (acme, beta) = (of("acme"), of("beta"));
    let mixed = [&acme[0], &beta[0], &acme[1], &acme[2], &beta[1], &beta[2]].map(String::as_str);
    assert_eq!(verify(&mixed.join("\n")).unwrap().verdict, ExportVerdict::SelfConsistent);
    let dropped = [&acme[0], &beta[0], &acme[2]].map(String::as_str);
    assert_eq!(verify(&dropped.join("\n")).unwrap().failure.unwrap().line, 3);
}

#[test]
fn an_object_without_any_receipt_is_invalid() {
    let failure = verify("{\"kind\":\"authorize_decision\"}\n").unwrap().failure.unwrap();
    assert_eq!((failure.line, failure.failure.code), (1, FailureCode::MissingReceipt));
}
