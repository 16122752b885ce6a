//! The short way through verification, for a text that is as a ledger writes it: the hashes are taken over the text as it stands,
//! and a hash that fits proves it. Promises to accept only what `verify_wire` accepts, with the same result; whatever it does not
//! accept is left to `verify_wire`, which says why.

use aegis_keys::KeyRing;
use aegis_model::{RECEIPT_SCHEMA, SealedParts, Timestamp};
use sha2::{Digest, Sha256};

use super::proof::{Claim, CommitCache, Maker, check_claim, hash_from_hex};
use super::wire::{SHARED, VerifiedReceipt};
use crate::members::InOrder;
use crate::merkle::Hash;

/// The receipt of a sealed event, if everything holds.
pub(super) fn verify_parts(parts: &SealedParts<'_>, ring: Option<&KeyRing>, cache: &mut CommitCache) -> Option<VerifiedReceipt> {
    let (body, event) = (InOrder::new(parts.body), InOrder::new(parts.columns));
    // Both texts are canonical: equal values are equal texts.
    let shared_agree = SHARED.iter().all(|key| event.value(key) == body.value(key));
    let event_digest = hash_from_hex(body.text("event_digest")?)?;
    let event_id = body.text("event_id")?;
    let key_id = body.text("key_id")?;
    let lane = body.text("lane")?;
    let phase = body.text("phase")?;
    let prev_receipt_hash = body.text("prev_receipt_hash")?;
    let schema = body.text("schema")?;
    let seq = body.get("seq")?.as_i64().filter(|seq| *seq >= 1)?;
    let tenant_id = body.text("tenant_id")?;
    let ts = Timestamp::parse_rfc3339(body.text("ts")?).ok()?;
    let own_lane = lane.split_once('.').is_some_and(|(tenant, _)| tenant == tenant_id);
    // An `open` names the lane before it somewhere in its detail: once per lane, and not worth a second reader.
    if !shared_agree || !own_lane || schema != RECEIPT_SCHEMA || phase == "open" {
        return None;
    }
    let hash = closed_hash(parts.body_text);
    let receipt_hash = parts.body_hash.strip_prefix('"')?.strip_suffix('"')?;
    if hash_from_hex(receipt_hash)? != hash || parts.receipt_hash != parts.body_hash {
        return None;
    }
    if event_digest != closed_hash(parts.columns_text) {
        return None;
    }
    let receipt = VerifiedReceipt {
        tenant_id: tenant_id.to_owned(),
        event_id: event_id.to_owned(),
        lane: lane.to_owned(),
        seq,
        phase: phase.to_owned(),
        ts,
        receipt_hash: receipt_hash.to_owned(),
        prev_receipt_hash: prev_receipt_hash.to_owned(),
        key_id: key_id.to_owned(),
        predecessor: None,
        signed: ring.is_some(),
    };
    // Last, because it remembers what it found.
    check_claim(&Claim::of_members(parts.proof)?, &hash, Maker::of(&receipt), ring, cache).ok()?;
    Some(receipt)
}

/// SHA-256 of an object's text whose closing brace is still to come.
fn closed_hash(unclosed: &str) -> Hash {
    Sha256::new().chain_update(unclosed).chain_update("}").finalize().into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use aegis_keys::VerifyingKey;
    use aegis_model::WireEvent;

    use super::super::wire::verify_wire;
    use super::*;

    fn corpus(file: &str) -> Vec<String> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../corpus/receipts").join(file);
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    fn ring() -> KeyRing {
        KeyRing::new([VerifyingKey::from_base64(corpus("root.pub")[0].trim()).unwrap()])
    }

    fn short_way(text: &str, ring: Option<&KeyRing>) -> Option<VerifiedReceipt> {
        let wire = WireEvent::read(text.as_bytes()).ok()?;
        verify_parts(&wire.sealed_parts()?, ring, &mut CommitCache::default())
    }

    /// Whatever the short way accepts, the long way accepts with the same result.
    fn agrees(text: &str, ring: Option<&KeyRing>) -> bool {
        let short = short_way(text, ring);
        if let Some(receipt) = &short {
            let value = aegis_canon::parse_strict(text.as_bytes()).unwrap();
            assert_eq!(verify_wire(&value, ring).as_ref(), Ok(receipt), "{text}");
        }
        short.is_some()
    }

    #[test]
    fn it_agrees_with_the_long_way_on_every_line_of_the_corpus() {
        let ring = ring();
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../corpus/receipts");
        for file in std::fs::read_dir(folder).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".jsonl") {
                for line in corpus(&name) {
                    agrees(&line, Some(&ring));
                    agrees(&line, None);
                }
            }
        }
    }

    #[test]
    fn it_takes_what_a_ledger_writes() {
        let lines = corpus("valid.jsonl");
        let opens = lines.iter().filter(|line| line.contains(r#""kind":"lane_open""#)).count();
        let taken = lines.iter().filter(|line| agrees(line, Some(&ring()))).count();
        assert_eq!(taken, lines.len() - opens, "an `open` takes the long way, everything else the short one");
    }

    #[test]
    fn it_accepts_no_changed_bit_that_the_long_way_refuses() {
        let ring = ring();
        let line = corpus("valid.jsonl").into_iter().rfind(|line| line.contains("authorize_decision")).unwrap();
        let mut still_json = 0;
        for bit in 0..line.len() * 8 {
            let mut changed = line.clone().into_bytes();
            changed[bit / 8] ^= 1 << (bit % 8);
            let Ok(text) = String::from_utf8(changed) else { continue };
            assert!(!agrees(&text, Some(&ring)), "bit {bit} was changed unseen: {text}");
            still_json += usize::from(WireEvent::read(text.as_bytes()).is_ok());
        }
        assert!(still_json > line.len());
    }
}
