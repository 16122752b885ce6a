//! An export, line by line: published events with receipt and proof, bare receipt bodies, or the older form without `schema`.
//! Streams, so memory follows the number of lanes, not of lines. Stops at the first receipt that fails, and names it.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, Read};

use aegis_canon::{CanonError, Limits};
use aegis_keys::KeyRing;
use serde::Serialize;
use serde_json::{Map, Value};

use super::heads::{LaneHeads, Link};
use super::proof::CommitCache;
use super::wire::{VerifiedReceipt, hash_of, verify_bare, verify_wire_cached};
use super::{FailureCode, VerifyFailure};

/// The longest line, in bytes. A receipt has at most 60 KiB, its event as much.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// Lanes (and tenants of the older form) that one export may name.
const MAX_LANES: usize = 1_000_000;

/// What an export proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportVerdict {
    /// Chained, and signed under a pinned key.
    Valid,
    /// Chained; no key was pinned, so whoever made the export could have made all of it.
    SelfConsistent,
    /// Something does not hold: see the failure.
    Invalid,
}

/// The first receipt that fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportFailure {
    /// 1-based.
    pub line: u64,
    #[serde(flatten)]
    pub failure: VerifyFailure,
}

/// How much of a lane an export holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LaneSpan {
    /// Seq of its first receipt here. Over 1: the link to what came before cannot be seen.
    pub starts_at: i64,
    pub last_seq: i64,
    /// True if it ends with the lane's `close`. False for a lane that runs on, or that was cut off.
    pub closed: bool,
    /// Receipts of phase `gap`: places where the producer itself says that something was lost.
    pub gaps: u64,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct ExportReport {
    pub verdict: ExportVerdict,
    /// Receipts that hold, up to the first that does not.
    pub receipts: u64,
    /// Of these, those of the older form.
    pub older_form: u64,
    /// Of these, those whose proof was checked (signature under a pinned key, or consistency without one).
    pub proofs: u64,
    /// Of these, those whose event was there to be digested.
    pub events: u64,
    pub lanes: BTreeMap<String, LaneSpan>,
    pub failure: Option<ExportFailure>,
}

/// The input is not an export, whatever its receipts say.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("line {line}: {reason}; give one JSON object per line")]
    BadInput { line: u64, reason: String },
    #[error("line {line} cannot be read: {source}")]
    Read { line: u64, source: std::io::Error },
    #[error("it holds no receipt")]
    Empty,
    #[error("it names more than {MAX_LANES} lanes; split it")]
    TooManyLanes,
}

/// Verifies an export. Lanes may be interleaved and may start in the middle; within a lane nothing may be missing.
pub fn verify_export(mut lines: impl BufRead, ring: Option<&KeyRing>) -> Result<ExportReport, ExportError> {
    let mut check = ExportCheck::new(ring);
    let mut buffer = Vec::new();
    let mut line = 0;
    while read_line(&mut lines, &mut buffer, line + 1)? {
        line += 1;
        let text = buffer.trim_ascii();
        if text.is_empty() {
            continue;
        }
        let parsed = aegis_canon::parse_strict_with(text, Limits { max_bytes: MAX_LINE_BYTES, ..Limits::default() });
        let value = parsed.map_err(|error| ExportError::BadInput { line, reason: syntax_reason(&error) })?;
        let Value::Object(object) = value else {
            return Err(ExportError::BadInput { line, reason: "it is not a JSON object".to_owned() });
        };
        if let Err(failure) = check.line(object) {
            check.report.failure = Some(ExportFailure { line, failure });
            check.report.verdict = ExportVerdict::Invalid;
            return Ok(check.report);
        }
        if check.report.lanes.len() > MAX_LANES || check.older.tenants.len() > MAX_LANES {
            return Err(ExportError::TooManyLanes);
        }
    }
    if check.report.receipts == 0 {
        return Err(ExportError::Empty);
    }
    Ok(check.report)
}

fn syntax_reason(error: &CanonError) -> String {
    format!("not strict JSON: {error}")
}

/// Reads one line without its line feed; false at the end.
fn read_line(lines: &mut impl BufRead, buffer: &mut Vec<u8>, line: u64) -> Result<bool, ExportError> {
    buffer.clear();
    let mut bounded = lines.by_ref().take(MAX_LINE_BYTES as u64 + 1);
    let read = bounded.read_until(b'\n', buffer).map_err(|source| ExportError::Read { line, source })?;
    if buffer.len() > MAX_LINE_BYTES {
        return Err(ExportError::BadInput { line, reason: format!("it is longer than {MAX_LINE_BYTES} bytes") });
    }
    Ok(read > 0)
}

#[derive(Debug)]
struct ExportCheck<'a> {
    ring: Option<&'a KeyRing>,
    cache: CommitCache,
    heads: LaneHeads,
    older: OlderChain,
    report: ExportReport,
}

impl<'a> ExportCheck<'a> {
    fn new(ring: Option<&'a KeyRing>) -> Self {
        let verdict = if ring.is_some() { ExportVerdict::Valid } else { ExportVerdict::SelfConsistent };
        let report =
            ExportReport { verdict, receipts: 0, older_form: 0, proofs: 0, events: 0, lanes: BTreeMap::new(), failure: None };
        Self { ring, cache: CommitCache::default(), heads: LaneHeads::default(), older: OlderChain::default(), report }
    }

    fn line(&mut self, line: Map<String, Value>) -> Result<(), VerifyFailure> {
        if line.get("receipt").is_some_and(Value::is_object) {
            let receipt = verify_wire_cached(&Value::Object(line), self.ring, &mut self.cache)?;
            self.follow(&receipt)?;
            self.report.proofs += 1;
            self.report.events += 1;
        } else if line.contains_key("schema") {
            let receipt = verify_bare(&line, self.ring, &mut self.cache)?;
            self.follow(&receipt)?;
            self.report.proofs += u64::from(line.contains_key("proof"));
        } else {
            self.older.check(&line, self.ring.is_some()).map_err(|failure| failure.about(&line))?;
            self.report.older_form += 1;
        }
        self.report.receipts += 1;
        Ok(())
    }

    fn follow(&mut self, receipt: &VerifiedReceipt) -> Result<(), VerifyFailure> {
        let known = self.heads.get(&receipt.lane).is_some();
        match self.heads.link(receipt) {
            Link::First | Link::Next => {}
            // The first line of a lane may stand anywhere in it: an export may begin at a time.
            Link::Missing { .. } if !known => {}
            Link::Missing { from, to } => {
                let message = format!("receipts with seq {from} to {to} are missing before it");
                return Err(VerifyFailure::new(FailureCode::MissingSeq, message).of(receipt));
            }
            Link::Repeated { same: true } => {
                let message = format!("seq {} stands twice in the export", receipt.seq);
                return Err(VerifyFailure::new(FailureCode::RepeatedSeq, message).of(receipt));
            }
            Link::Repeated { same: false } | Link::Late => {
                let message = format!("seq {} stands after a later one", receipt.seq);
                return Err(VerifyFailure::new(FailureCode::ForkedSeq, message).of(receipt));
            }
            Link::Broken(failure) => return Err(failure),
        }
        self.heads.advance(receipt);
        let span = self.report.lanes.entry(receipt.lane.clone()).or_insert_with(|| LaneSpan {
            starts_at: receipt.seq,
            last_seq: receipt.seq,
            closed: false,
            gaps: 0,
        });
        span.last_seq = receipt.seq;
        span.closed = receipt.phase == "close";
        span.gaps += u64::from(receipt.phase == "gap");
        Ok(())
    }
}

/// The older form: a body without `schema`, whatever keys it has. Its hash covers everything but `receipt_hash`, and it links
/// to the one before: in the file, or of its tenant.
#[derive(Debug, Default)]
struct OlderChain {
    last: Option<String>,
    tenants: HashMap<String, String>,
}

impl OlderChain {
    fn check(&mut self, line: &Map<String, Value>, key_pinned: bool) -> Result<(), VerifyFailure> {
        if key_pinned {
            let message = "the older form carries no signature, and a key is pinned; verify it without one";
            return Err(VerifyFailure::new(FailureCode::Unsigned, message));
        }
        let Some(claimed) = line.get("receipt_hash").and_then(Value::as_str) else {
            return Err(VerifyFailure::new(FailureCode::MissingReceipt, "it has neither a receipt nor a receipt_hash"));
        };
        if hex::encode(hash_of(line, |key, _| key != "receipt_hash")?) != claimed {
            return Err(VerifyFailure::new(FailureCode::HashMismatch, "receipt_hash is not the hash of the rest"));
        }
        let prev = match line.get("prev_receipt_hash") {
            None | Some(Value::Null) => "",
            Some(Value::String(hash)) => hash,
            Some(_) => return Err(VerifyFailure::new(FailureCode::Malformed, "its prev_receipt_hash is not a string")),
        };
        let tenant = line.get("tenant_id").and_then(Value::as_str).unwrap_or_default();
        let last_of_tenant = self.tenants.get(tenant);
        let linked = match (&self.last, last_of_tenant) {
            // The first line of the file may stand anywhere in its chain.
            (None, _) => true,
            (Some(_), None) if prev.is_empty() => true,
            (Some(last), last_of_tenant) => prev == last || last_of_tenant.is_some_and(|last| prev == last),
        };
        if !linked {
            return Err(VerifyFailure::new(FailureCode::BrokenLink, "it does not link to the receipt before it"));
        }
        self.tenants.insert(tenant.to_owned(), claimed.to_owned());
        self.last = Some(claimed.to_owned());
        Ok(())
    }
}
