//! The story's end: the receipts are exported and verified, one byte is changed, and the times are printed.

use aegis_ledger::verify::{ExportVerdict, verify_export};
use aegis_model::Timestamp;
use anyhow::Context;
use serde_json::Value;

use super::story::Times;
use super::{Stage, text};
use crate::verifying::{describe, read_roots};

/// 5. Verified whole; and with one byte changed, the receipt is named.
pub(crate) async fn exported(stage: &mut Stage) -> anyhow::Result<()> {
    stage.checks.step(5, "The receipts are exported and verified offline; then one byte is changed in a copy");
    let export = stage.api.get("/v1/receipts/export", &stage.keys.auditor).await?;
    let path = stage.folder.join("receipts.jsonl");
    std::fs::write(&path, &export.body).with_context(|| format!("cannot write {}", path.display()))?;
    let roots: Vec<String> =
        ["control.pub", "edge.pub"].map(|name| stage.folder.join("keys").join(name).display().to_string()).into();
    let ring = read_roots(&roots)?;
    let report = verify_export(export.body.as_ref(), ring.as_ref())?;
    let whole = report.verdict == ExportVerdict::Valid;
    stage.checks.check("the export is valid under the pinned keys", whole, &describe(&report));

    let (tampered, receipt_id) = change_one_byte(&export.body).context("no denied decision in the export")?;
    let report = verify_export(tampered.as_slice(), ring.as_ref())?;
    let said = describe(&report);
    let named = report.verdict == ExportVerdict::Invalid && said.contains(&receipt_id);
    stage.checks.check("one changed byte is found, and the receipt is named", named, &said);
    Ok(())
}

/// Turns the `deny` of the first denied decision into `Deny`: one byte of the copy.
fn change_one_byte(export: &[u8]) -> Option<(Vec<u8>, String)> {
    let mut tampered = export.to_vec();
    let mut start = 0;
    for line in export.split_inclusive(|byte| *byte == b'\n') {
        let wire: Value = serde_json::from_slice(line).ok()?;
        if text(&wire, "/decision") == "deny" {
            let needle = br#""decision":"deny""#;
            let at = line.windows(needle.len()).position(|window| window == needle)?;
            tampered[start + at + needle.len() - 5] = b'D';
            return Some((tampered, text(&wire, "/event_id").to_owned()));
        }
        start += line.len();
    }
    None
}

/// 6. From the fifth deny to the alert and to the freeze.
pub(crate) fn times(stage: &mut Stage, times: &Times) {
    stage.checks.step(6, "From event to alert and to freeze");
    let since_event =
        |later: Option<Timestamp>| -> Option<f64> { Some((later?.as_micros() - times.fifth_deny?.as_micros()) as f64 / 1000.0) };
    let (alerted, frozen) = (since_event(times.alerted), since_event(times.frozen));
    let shown = |ms: Option<f64>| ms.map_or("not seen".to_owned(), |ms| format!("{ms:.1} ms"));
    let proof = format!(
        "fifth deny → alert {}; → freeze signed {}; → denied at the edge {:.1} ms (as the client saw it, polling)",
        shown(alerted),
        shown(frozen),
        times.first_frozen_answer_ms
    );
    stage.checks.check("the attack was seen and stopped", alerted.is_some() && frozen.is_some(), &proof);
}
