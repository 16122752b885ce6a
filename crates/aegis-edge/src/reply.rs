//! An answer as the text that goes out: its members in their order, written one after the other. Promises the bytes that serde would write; the
//! tests below hold the two against each other. A string is copied by the run, where serde looks at each byte of each hash.

use aegis_canon::write_string;
use aegis_model::{AuthorizeResponse, EventId, ReceiptView};

/// Bytes that hold most answers.
const ANSWER_BYTES: usize = 1024;

/// The JSON text of an answer.
pub(crate) fn text_of(answer: &AuthorizeResponse) -> Result<Vec<u8>, serde_json::Error> {
    // Taken apart without `..`, so that a new member cannot be forgotten here.
    let AuthorizeResponse {
        decision_id,
        decision,
        reason,
        matched_policies,
        risk_score,
        risk_level,
        root_trust_level,
        trust_token,
        action_hash,
        dry_run,
        approval,
        receipt: ReceiptView { receipt_id, receipt_hash, prev_receipt_hash, canon_version },
    } = answer;
    let mut text = Text(Vec::with_capacity(ANSWER_BYTES));
    text.id("{\"decision_id\":", decision_id);
    text.string(",\"decision\":", decision.as_str());
    text.string(",\"reason\":", reason);
    text.strings(",\"matched_policies\":", matched_policies);
    text.raw(",\"risk_score\":");
    text.raw(&risk_score.to_string());
    text.string(",\"risk_level\":", risk_level.as_str());
    text.string(",\"root_trust_level\":", root_trust_level.as_str());
    text.string(",\"trust_token\":", trust_token);
    text.string(",\"action_hash\":", action_hash);
    text.raw(if *dry_run { ",\"dry_run\":true" } else { ",\"dry_run\":false" });
    text.raw(",\"approval\":");
    // Few have one, and it is small.
    serde_json::to_writer(&mut text.0, approval)?;
    text.id(",\"receipt\":{\"receipt_id\":", receipt_id);
    text.maybe(",\"receipt_hash\":", receipt_hash.as_deref());
    text.maybe(",\"prev_receipt_hash\":", prev_receipt_hash.as_deref());
    text.string(",\"canon_version\":", canon_version);
    text.raw("}}");
    Ok(text.0)
}

/// A text that grows. Names come with all that stands before their value.
struct Text(Vec<u8>);

impl Text {
    fn raw(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn string(&mut self, name: &str, value: &str) {
        self.raw(name);
        write_string(&mut self.0, value);
    }

    fn maybe(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => self.string(name, value),
            None => {
                self.raw(name);
                self.raw("null");
            }
        }
    }

    fn id(&mut self, name: &str, id: &EventId) {
        self.string(name, id.as_hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
    }

    fn strings(&mut self, name: &str, values: &[String]) {
        self.raw(name);
        self.0.push(b'[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.0.push(b',');
            }
            write_string(&mut self.0, value);
        }
        self.0.push(b']');
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aegis_model::{ApprovalRef, ApprovalStatus, Decision, RiskLevel, SourceTrust, Timestamp, new_event_id};
    use proptest::prelude::*;

    use super::*;

    fn answer(text: &str, policies: Vec<String>, has: bool, score: i32) -> AuthorizeResponse {
        let approval = has.then(|| ApprovalRef {
            approval_id: text.to_owned(),
            status: ApprovalStatus::Pending,
            approver_group: text.to_owned(),
            expires_at: Timestamp::from_micros(1_800_000_000_000_000),
            expires_in: 900,
            action_hash: text.to_owned(),
        });
        AuthorizeResponse {
            decision_id: new_event_id(),
            decision: Decision::Allow,
            reason: text.to_owned(),
            matched_policies: policies,
            risk_score: score,
            risk_level: RiskLevel::Low,
            root_trust_level: SourceTrust::Unknown,
            trust_token: text.to_owned(),
            action_hash: text.to_owned(),
            dry_run: has,
            approval,
            receipt: ReceiptView {
                receipt_id: new_event_id(),
                receipt_hash: has.then(|| text.to_owned()),
                prev_receipt_hash: (!has).then(|| text.to_owned()),
                canon_version: text.to_owned(),
            },
        }
    }

    fn serde_writes_the_same(answer: &AuthorizeResponse) {
        let text = String::from_utf8(text_of(answer).unwrap()).unwrap();
        assert_eq!(text, serde_json::to_string(answer).unwrap());
    }

    proptest! {
        #[test]
        fn the_text_is_the_one_that_serde_writes(
            text in "[a-c\"\\\\\n\t\r\u{8}\u{c}\u{0}\u{1f}\u{7f}é😀]{0,40}",
            policies in prop::collection::vec("[a\"\n]{0,20}", 0..4),
            has: bool,
            score: i32,
        ) {
            serde_writes_the_same(&answer(&text, policies, has, score));
        }
    }

    #[test]
    fn every_word_is_the_one_that_serde_writes() {
        let any = || answer("x", Vec::new(), false, 10);
        for decision in [Decision::Allow, Decision::RequireApproval, Decision::Deny] {
            serde_writes_the_same(&AuthorizeResponse { decision, ..any() });
        }
        for risk_level in [RiskLevel::Low, RiskLevel::Medium, RiskLevel::High, RiskLevel::Critical] {
            serde_writes_the_same(&AuthorizeResponse { risk_level, ..any() });
        }
        for root_trust_level in SourceTrust::ALL {
            serde_writes_the_same(&AuthorizeResponse { root_trust_level, ..any() });
        }
    }
}
