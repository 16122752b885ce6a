//! `corpus/receipts/`: exports that every implementation must judge alike. Made by the real ledger with a fixed seed and a clock that
//! stands still, so this test fails when the format moves. To write them anew: `AEGIS_REGENERATE=1 cargo test --release --test ledger corpus`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fixture::{config, draft, everything, key, parse, tenant};
use aegis_keys::{KeyRing, SigningKey, VerifyingKey};
use aegis_ledger::verify::{ExportVerdict, verify_export, verify_wire};
use aegis_ledger::{Draft, Durability, Ledger, OutboxItem};
use aegis_model::{Decision, EventId, EventKind, ManualClock, Phase, SecurityEvent, TenantId, Timestamp};
use serde_json::{Value, json};

/// 2026-11-22T10:00:00Z
const NOON: i64 = 1_795_341_600_000_000;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Event ids that are UUIDv7 in form and the same in every run.
fn fixed_id(number: u128) -> EventId {
    let millis = (NOON / 1000) as u128;
    EventId::from_u128((millis << 80) | (7 << 76) | (2 << 62) | number)
}

fn fixed_draft(owner: &TenantId, number: u128, seconds: i64) -> Draft {
    let mut draft = draft(owner, Timestamp::from_micros(NOON).plus_seconds(seconds));
    draft.event.event_id = fixed_id(number);
    draft
}

async fn start(folder: &Path, seed: u64, key: SigningKey, clock: &Arc<ManualClock>) -> Ledger {
    let mut config = config(folder);
    config.hooks.seed = Some(seed);
    let clock: Arc<ManualClock> = Arc::clone(clock);
    Ledger::open(config, key, clock).await.unwrap()
}

/// Two tenants, a commit of several receipts, an approval, an outcome, a start after an unclean stop, and a clean close.
/// `reason` varies one receipt, so that two runs fork there.
async fn history(key: SigningKey, reason: &str) -> Vec<OutboxItem> {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(NOON)));
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    let ledger = start(folder.path(), 1, key.clone(), &clock).await;

    let denied = fixed_draft(&acme, 1, 1);
    let mut asks = fixed_draft(&acme, 2, 2);
    asks.event.decision = Some(Decision::RequireApproval);
    asks.event.approval_id = Some("approval-1".into());
    asks.input = Some(br#"{"base_branch":"main"}"#.to_vec());
    asks.detail = Some(json!({"approver_group": "maintainers", "approvals": 1}));
    let other = fixed_draft(&beta, 3, 2);
    // Handed in without a pause, so the writer takes them as one group.
    let pending = [denied, asks, other].map(|draft| ledger.try_submit(draft, Durability::Required).unwrap());
    for receipt in pending {
        receipt.await.unwrap();
    }

    let outcome = SecurityEvent {
        event_id: fixed_id(4),
        ref_event_id: Some(fixed_id(2)),
        agent_id: Some("triage-bot".into()),
        status: Some("ok".into()),
        reason: Some(reason.to_owned()),
        ..SecurityEvent::new(acme.clone(), "edge-1", "edge", EventKind::ToolOutcome, Timestamp::from_micros(NOON).plus_seconds(3))
    };
    let mut outcome = Draft::new(outcome, Phase::Outcome);
    outcome.executed_hash = Some("cd".repeat(32));
    ledger.submit(outcome).await.unwrap();
    ledger.submit(fixed_draft(&acme, 5, 4)).await.unwrap();
    drop(ledger);

    clock.advance_seconds(60);
    let ledger = start(folder.path(), 2, key, &clock).await;
    ledger.submit(fixed_draft(&acme, 6, 61)).await.unwrap();
    clock.advance_seconds(10);
    ledger.close().await.unwrap();
    everything(&ledger).await
}

struct Case {
    file: &'static str,
    about: &'static str,
    lines: Vec<String>,
    pinned: bool,
    verdict: &'static str,
    /// Line and code of the first failing receipt.
    failure: Option<(u64, &'static str)>,
}

/// The same line with one member changed.
fn with(line: &str, pointer: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut value = parse(line);
    change(value.pointer_mut(pointer).unwrap());
    value.to_string()
}

fn bare(line: &str) -> String {
    parse(line)["receipt"].to_string()
}

fn replaced(lines: &[String], index: usize, line: String) -> Vec<String> {
    let mut copy = lines.to_vec();
    copy[index] = line;
    copy
}

fn older_form() -> Vec<String> {
    let mut prev = String::new();
    let decisions = [("allow", "list_issues"), ("deny", "merge_pull_request"), ("require_approval", "create_release")];
    let mut lines = Vec::new();
    for (number, (decision, action)) in decisions.into_iter().enumerate() {
        let mut body = json!({
            "receipt_id": format!("receipt-{}", number + 1), "tenant_id": "acme", "decision": decision, "tool": "github",
            "action": action, "risk_score": 7.5, "created_at": "2026-01-01T00:00:00Z", "prev_receipt_hash": prev,
        });
        prev = aegis_canon::hash_value(&body).unwrap();
        body["receipt_hash"] = json!(prev);
        lines.push(body.to_string());
    }
    lines
}

async fn cases() -> Vec<Case> {
    let wires = |items: Vec<OutboxItem>| items.into_iter().map(|item| item.sealed.wire).collect::<Vec<String>>();
    let valid = wires(history(key(), "merged").await);
    let forked = wires(history(key(), "nothing happened").await);
    let stranger = wires(history(SigningKey::from_seed(&[9; 32]), "merged").await);
    let older = older_form();
    // Places in `valid`, counted from 0; the assertions keep the cases honest about what they change.
    let place = |needle: &str| valid.iter().position(|line| line.contains(needle)).unwrap();
    let (denied, outcome, last_of_first) =
        (place(&fixed_id(1).to_string()), place("\"tool_outcome\""), place(&fixed_id(5).to_string()));
    assert!(denied < outcome && outcome + 1 == last_of_first);
    let line_of = |index: usize| index as u64 + 1;

    let mut dropped = valid.clone();
    dropped.remove(outcome);
    let mut swapped = valid.clone();
    swapped.swap(outcome, last_of_first);
    let mut both = valid.clone();
    both.insert(outcome + 1, forked[outcome].clone());
    let mut twice = valid.clone();
    twice.insert(outcome + 1, valid[outcome].clone());
    let mut spliced = valid.clone();
    spliced[outcome].clone_from(&forked[outcome]);
    let foreign_signature = parse(&stranger[outcome])["proof"]["signature"].clone();
    let one_letter = |value: &mut Value| *value = json!(value.as_str().unwrap().replacen('m', "n", 1));

    let case = |file, about, lines, pinned, verdict, failure| Case { file, about, lines, pinned, verdict, failure };
    vec![
        case("valid.jsonl", "two tenants, two starts, signed under the root", valid.clone(), true, "valid", None),
        case("valid.jsonl", "the same, with no root pinned", valid.clone(), false, "self-consistent", None),
        case("starts-late.jsonl", "begins in the middle of a lane", valid[outcome..].to_vec(), true, "valid", None),
        case(
            "event-changed.jsonl",
            "one letter of an event's reason",
            replaced(&valid, outcome, with(&valid[outcome], "/reason", one_letter)),
            true,
            "invalid",
            Some((line_of(outcome), "digest_mismatch")),
        ),
        case(
            "body-changed.jsonl",
            "one digit of a receipt's executed_hash",
            replaced(&valid, outcome, with(&valid[outcome], "/receipt/executed_hash", |v| *v = json!("ce".repeat(32)))),
            true,
            "invalid",
            Some((line_of(outcome), "hash_mismatch")),
        ),
        case("row-dropped.jsonl", "one line is missing", dropped, true, "invalid", Some((line_of(outcome), "missing_seq"))),
        case(
            "rows-swapped.jsonl",
            "two lines of a lane change places",
            swapped,
            true,
            "invalid",
            Some((line_of(outcome), "missing_seq")),
        ),
        case("row-repeated.jsonl", "one line stands twice", twice, true, "invalid", Some((line_of(outcome) + 1, "repeated_seq"))),
        case(
            "seq-forked.jsonl",
            "two signed receipts with one seq",
            both,
            true,
            "invalid",
            Some((line_of(outcome) + 1, "forked_seq")),
        ),
        case(
            "history-spliced.jsonl",
            "a signed receipt of another history",
            spliced,
            true,
            "invalid",
            Some((line_of(last_of_first), "broken_link")),
        ),
        case(
            "signature-wrong.jsonl",
            "the signature of another key under this key's id",
            replaced(&valid, outcome, with(&valid[outcome], "/proof/signature", |v| *v = foreign_signature)),
            true,
            "invalid",
            Some((line_of(outcome), "bad_signature")),
        ),
        case(
            "path-wrong.jsonl",
            "one hash of a path",
            replaced(&valid, denied, with(&valid[denied], "/proof/path/0", |v| *v = json!("00".repeat(32)))),
            true,
            "invalid",
            Some((line_of(denied), "bad_signature")),
        ),
        case(
            "proof-missing.jsonl",
            "a line without its proof",
            replaced(&valid, outcome, with(&valid[outcome], "", |v| drop(v.as_object_mut().unwrap().remove("proof")))),
            true,
            "invalid",
            Some((line_of(outcome), "missing_proof")),
        ),
        case(
            "other-key.jsonl",
            "all of it by a key that is not pinned",
            stranger.clone(),
            true,
            "invalid",
            Some((1, "unknown_key")),
        ),
        case("other-key.jsonl", "the same, with no root pinned", stranger, false, "self-consistent", None),
        case("bare.jsonl", "bodies alone", valid.iter().map(|line| bare(line)).collect(), false, "self-consistent", None),
        case(
            "bare.jsonl",
            "bodies alone cannot be signed",
            valid.iter().map(|line| bare(line)).collect(),
            true,
            "invalid",
            Some((1, "missing_proof")),
        ),
        case("older.jsonl", "the older form", older.clone(), false, "self-consistent", None),
        case("older.jsonl", "the older form carries no signature", older.clone(), true, "invalid", Some((1, "unsigned"))),
        case(
            "older-dropped.jsonl",
            "the older form with a line missing",
            vec![older[0].clone(), older[2].clone()],
            false,
            "invalid",
            Some((2, "broken_link")),
        ),
    ]
}

/// One line of the index: what the case is, and what of the failing receipt can be read from its own line.
fn index_entry(case: &Case) -> Value {
    let failure = case.failure.map(|(line, code)| {
        let value = parse(&case.lines[line as usize - 1]);
        let body = if value["receipt"].is_object() { &value["receipt"] } else { &value };
        json!({"line": line, "code": code, "event_id": body["event_id"], "lane": body["lane"], "seq": body["seq"]})
    });
    json!({
        "file": case.file, "about": case.about, "root_pinned": case.pinned, "verdict": case.verdict, "lines": case.lines.len(),
        "failure": failure,
    })
}

fn agree(path: &Path, made: &str) {
    if std::env::var_os("AEGIS_REGENERATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, made).unwrap();
    }
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert!(stored == made, "{} is not what the ledger makes; if the format moved on purpose, regenerate it", path.display());
}

/// On one thread, so that which drafts share a commit does not depend on timing.
#[tokio::test(flavor = "current_thread")]
async fn the_corpus_is_what_the_ledger_makes_and_is_judged_as_its_index_says() {
    let folder = repository().join("corpus/receipts");
    let root = key().verifying_key().to_base64();
    let cases = cases().await;
    let mut entries = Vec::new();
    for case in &cases {
        agree(&folder.join(case.file), &(case.lines.join("\n") + "\n"));
        entries.push(index_entry(case));
    }
    let index = json!({"root": root, "key_id": key().key_id(), "cases": entries});
    agree(&folder.join("index.json"), &(serde_json::to_string_pretty(&index).unwrap() + "\n"));
    agree(&folder.join("root.pub"), &format!("{root}\n"));

    let ring = KeyRing::new([VerifyingKey::from_base64(&root).unwrap()]);
    for (case, entry) in cases.iter().zip(&entries) {
        let file = std::fs::File::open(folder.join(case.file)).unwrap();
        let report = verify_export(std::io::BufReader::new(file), case.pinned.then_some(&ring)).unwrap();
        assert_eq!(serde_json::to_value(report.verdict).unwrap(), case.verdict, "{}: {:?}", case.file, report.failure);
        let found = serde_json::to_value(&report.failure).unwrap();
        for key in ["line", "code", "event_id", "lane", "seq"] {
            assert_eq!(found[key], entry["failure"][key], "{}: {key} of {found}", case.file);
        }
    }
    let late = std::fs::read(folder.join("starts-late.jsonl")).unwrap();
    let late = verify_export(&late[..], Some(&ring)).unwrap();
    assert!(late.lanes.values().any(|span| span.starts_at > 1 && !span.closed));
    assert!(late.lanes.values().any(|span| span.starts_at == 1 && span.closed && span.gaps == 1));
    assert_eq!(late.verdict, ExportVerdict::Valid);
}

/// The worked example in the specification is a line of the corpus, and verifies as it stands there.
#[test]
fn the_worked_example_of_the_specification_verifies() {
    let text = std::fs::read_to_string(repository().join("docs/specs/receipt.md")).unwrap();
    let block = |name: &str| {
        let marker = format!("<!-- example: {name} -->\n```");
        let (_, rest) = text.split_once(&marker).unwrap_or_else(|| panic!("the specification has no example {name}"));
        let (_, rest) = rest.split_once('\n').unwrap();
        rest.split_once("\n```").unwrap().0.to_owned()
    };
    let line = block("line");
    let corpus = std::fs::read_to_string(repository().join("corpus/receipts/valid.jsonl")).unwrap();
    assert!(corpus.lines().any(|known| known == line), "the example is a line of valid.jsonl");
    let wire = parse(&line);
    let ring = KeyRing::new([key().verifying_key()]);
    let receipt = verify_wire(&wire, Some(&ring)).unwrap();

    let digested = block("digest form");
    assert_eq!(json!(aegis_canon::sha256_hex(digested.as_bytes())), wire["receipt"]["event_digest"]);
    let form = SecurityEvent::digest_form(&wire);
    assert_eq!(digested.as_bytes(), aegis_canon::canonicalize_value(&form).unwrap());
    let body = block("body");
    assert_eq!(aegis_canon::sha256_hex(body.as_bytes()), receipt.receipt_hash);
    let statement = block("statement") + "\n";
    let signature = wire["proof"]["signature"].as_str().unwrap();
    let signature = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, signature).unwrap();
    assert!(key().verifying_key().verify(statement.as_bytes(), &signature));
    assert!(text.contains(&key().verifying_key().to_base64()), "the specification names the example's key");
}
