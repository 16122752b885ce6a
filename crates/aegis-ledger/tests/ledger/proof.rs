//! Law L-PROOF, and what each part of verification finds.

use crate::fixture::*;
use aegis_keys::{KeyRing, SigningKey};
use aegis_ledger::verify::{FailureCode, LaneHeads, Link, Prover, StreamVerifier, verify_wire};
use aegis_ledger::{Durability, OutboxItem};
use aegis_model::{EventKind, WireEvent};
use serde_json::{Value, json};

/// One commit of several tenants' receipts, then one more of a single receipt.
async fn sealed() -> Vec<OutboxItem> {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let mut pending = Vec::new();
    for name in ["acme", "beta", "acme", "acme", "gamma"] {
        let mut draft = draft_now(&tenant(name));
        draft.detail = Some(json!({"note": "é\u{1}", "n": [1, 10, 1.5, 1e30], "b": true}));
        draft.input = Some(b"in".to_vec());
        pending.push(ledger.try_submit(draft, Durability::Required).unwrap());
    }
    for receipt in pending {
        receipt.await.unwrap();
    }
    ledger.submit(draft_now(&tenant("acme"))).await.unwrap();
    everything(&ledger).await
}

/// L-PROOF: any single-bit change of a published event, if it is still JSON and still says something else, fails.
#[tokio::test]
async fn any_single_bit_change_is_found() {
    let items = sealed().await;
    let last = items.len() - 1;
    for item in [&items[0], &items[1], &items[4], &items[last]] {
        let wire = item.sealed.wire.as_bytes();
        let original = parse(&item.sealed.wire);
        verify_wire(&original, Some(&ring())).unwrap();
        let mut still_json = 0;
        for bit in 0..wire.len() * 8 {
            let mut changed = wire.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let Ok(value) = aegis_canon::parse_strict(&changed) else { continue };
            if value == original {
                continue; // e30 and E30 are one number
            }
            still_json += 1;
            let shown = String::from_utf8_lossy(&changed);
            assert!(verify_wire(&value, Some(&ring())).is_err(), "bit {bit} was changed unseen: {shown}");
        }
        assert!(still_json > wire.len(), "the test changed something: {still_json}");
    }
}

/// A signature that was checked serves the receipts of its commit alone, in whichever order commits come.
#[tokio::test]
async fn what_was_checked_of_a_commit_proves_nothing_of_another() {
    let items = sealed().await;
    let wires: Vec<&str> = items.iter().map(|item| item.sealed.wire.as_str()).collect();
    let last = wires.len() - 1;
    let apart = |place: usize| wires[place].rsplit_once(",\"proof\":").unwrap();
    let mut prover = Prover::new(ring());
    let mut proves = |text: &str| prover.prove(&WireEvent::read(text.as_bytes()).unwrap()).is_some();
    for _ in 0..2 {
        assert!([1, last, 2, 3, last, last, 1].into_iter().all(|place| proves(wires[place])));
        for (receipt, proof) in [(1, 2), (2, last), (last, 1)] {
            let forged = format!("{},\"proof\":{}", apart(receipt).0, apart(proof).1);
            assert!(!proves(&forged), "the receipt {receipt} with the proof of {proof}");
        }
        let signature = parse(wires[1])["proof"]["signature"].as_str().unwrap().to_owned();
        let other = if signature.starts_with('A') { "B" } else { "A" };
        assert!(!proves(&wires[1].replace(&signature, &format!("{other}{}", &signature[1..]))), "another signature");
    }
}

fn code_of(wire: &Value, ring: Option<&KeyRing>) -> FailureCode {
    verify_wire(wire, ring).unwrap_err().code
}

#[tokio::test]
async fn each_part_has_its_own_reason() {
    let items = sealed().await;
    let wire = parse(&items[1].sealed.wire);
    let changed = |pointer: &str, value: Value| {
        let mut copy = wire.clone();
        *copy.pointer_mut(pointer).unwrap() = value;
        copy
    };
    let ring = ring();
    assert_eq!(code_of(&changed("/decision", json!("allow")), Some(&ring)), FailureCode::DigestMismatch);
    assert_eq!(code_of(&changed("/receipt/decision", json!("allow")), Some(&ring)), FailureCode::HashMismatch);
    assert_eq!(code_of(&changed("/receipt_hash", json!("00")), Some(&ring)), FailureCode::HashMismatch);
    assert_eq!(code_of(&changed("/receipt/schema", json!("aegis-receipt-2")), Some(&ring)), FailureCode::UnknownSchema);
    assert_eq!(code_of(&changed("/receipt", json!(null)), Some(&ring)), FailureCode::MissingReceipt);
    assert_eq!(code_of(&changed("/proof", json!(null)), Some(&ring)), FailureCode::MissingProof);
    assert_eq!(code_of(&changed("/proof/index", json!(3)), Some(&ring)), FailureCode::BadSignature);
    assert_eq!(code_of(&changed("/proof/size", json!(1)), Some(&ring)), FailureCode::InvalidProof);
    assert_eq!(code_of(&changed("/proof/key_id", json!("0000")), Some(&ring)), FailureCode::InvalidProof);
    assert_eq!(code_of(&changed("/proof/path", json!([1])), Some(&ring)), FailureCode::Malformed);
    let upper = wire["proof"]["path"][0].as_str().unwrap().to_uppercase();
    assert_eq!(code_of(&changed("/proof/path/0", json!(upper)), Some(&ring)), FailureCode::Malformed);
    // The same hash in another text, which decoders of hex take: no other implementation does, and its receipt would have two names.
    for pointer in ["/proof/path/0", "/receipt_hash", "/receipt/receipt_hash", "/receipt/event_digest"] {
        let prefixed = json!(format!("0x{}", wire.pointer(pointer).unwrap().as_str().unwrap()));
        assert!(verify_wire(&changed(pointer, prefixed), Some(&ring)).is_err(), "{pointer}");
    }
    let mut renamed = wire.clone();
    let prefixed = json!(format!("0x{}", wire["receipt_hash"].as_str().unwrap()));
    (renamed["receipt_hash"], renamed["receipt"]["receipt_hash"]) = (prefixed.clone(), prefixed);
    assert_eq!(code_of(&renamed, Some(&ring)), FailureCode::HashMismatch);
    // And as a stream reads it, without taking it apart.
    let (sealed, hash) = (items[1].sealed.wire.as_str(), wire["receipt_hash"].as_str().unwrap());
    let in_a_path = sealed.replace("\"path\":[\"", "\"path\":[\"0x");
    for (text, code) in
        [(sealed.replace(hash, &format!("0x{hash}")), FailureCode::HashMismatch), (in_a_path, FailureCode::Malformed)]
    {
        let verdict = StreamVerifier::new(crate::fixture::ring()).check_wire(&WireEvent::read(text.as_bytes()).unwrap());
        assert_eq!(verdict.failure.unwrap().code, code);
    }
    let stranger = KeyRing::new([SigningKey::from_seed(&[9; 32]).verifying_key()]);
    assert_eq!(code_of(&wire, Some(&stranger)), FailureCode::UnknownKey);
    assert_eq!(code_of(&json!([]), Some(&ring)), FailureCode::Malformed);

    let mut extra_column = wire.clone();
    extra_column["new_column"] = json!("smuggled");
    assert_eq!(code_of(&extra_column, Some(&ring)), FailureCode::DigestMismatch);
    let mut consumer_columns = wire.clone();
    consumer_columns["verified"] = json!(true);
    consumer_columns["bus_ts"] = json!("2026-11-22T10:00:00Z");
    verify_wire(&consumer_columns, Some(&ring)).unwrap();
    let verified = verify_wire(&wire, None).unwrap();
    assert!(!verified.signed);
}

#[tokio::test]
async fn a_stream_names_gaps_forks_and_repeats() {
    let items = sealed().await;
    let acme: Vec<Value> =
        items.iter().filter(|item| item.sealed.tenant_id.as_str() == "acme").map(|item| parse(&item.sealed.wire)).collect();
    assert_eq!(acme.len(), 5);
    let mut verifier = StreamVerifier::new(ring());
    assert!(verifier.check(&acme[0]).verified);
    assert_eq!(verifier.peek(&acme[2]), Some(Link::Missing { from: 2, to: 2 }));
    let gap = verifier.check(&acme[2]);
    assert_eq!(gap.failure.unwrap().code, FailureCode::MissingSeq);
    assert!(verifier.check(&acme[3]).verified, "one gap is one failure");
    let repeated = verifier.check(&acme[3]);
    assert!(repeated.verified && repeated.repeated);
    let late = verifier.check(&acme[1]);
    assert!(!late.repeated && !late.verified, "what was missing is kept when it comes");
    assert_eq!(late.failure.unwrap().code, FailureCode::LateSeq);
    assert!(verifier.check(&acme[1]).repeated, "but only once");
    assert!(verifier.check(&acme[0]).repeated);

    // From a checkpoint the verdicts are the same as without one.
    let heads = serde_json::to_string(verifier.heads()).unwrap();
    let heads: LaneHeads = serde_json::from_str(&heads).unwrap();
    assert!(StreamVerifier::resume(ring(), heads).check(&acme[4]).verified);

    let late = StreamVerifier::new(ring()).check(&acme[3]);
    assert_eq!(late.failure.unwrap().code, FailureCode::MissingSeq);

    let mut tampered = acme[4].clone();
    tampered["reason"] = json!("nothing to see");
    let verdict = verifier.check(&tampered);
    assert_eq!(verdict.failure.unwrap().code, FailureCode::DigestMismatch);
    assert!(verifier.check(&acme[4]).verified, "a forgery does not move the head");
}

#[tokio::test]
async fn a_log_that_begins_within_lanes_that_were_followed_once_breaks_none() {
    let items = sealed().await;
    let acme: Vec<Value> =
        items.iter().filter(|item| item.sealed.tenant_id.as_str() == "acme").map(|item| parse(&item.sealed.wire)).collect();
    let mut before = StreamVerifier::new(ring());
    assert!(acme[..4].iter().all(|wire| before.check(wire).verified));
    let again = || {
        let mut verifier = StreamVerifier::new(ring());
        verifier.begin_within(before.heads().clone());
        verifier
    };
    for (first, begins) in acme.iter().enumerate() {
        let mut verifier = again();
        let link = if first == 0 { Link::First } else { Link::Next };
        assert_eq!(verifier.peek(begins), Some(link));
        assert!(acme[first..].iter().all(|wire| verifier.check(wire).verified), "from {first} on");
        assert_eq!(verifier.heads().get(acme[4]["lane"].as_str().unwrap()).unwrap().0, 5);
        assert!(verifier.known().is_empty());
    }
    // What is missing behind the first is missing.
    let mut verifier = again();
    assert!(verifier.check(&acme[1]).verified);
    assert_eq!(verifier.check(&acme[3]).failure.unwrap().code, FailureCode::MissingSeq);
    // Of a lane of which nothing is there the head stands.
    let mut verifier = again();
    verifier.take_up_all();
    assert!(verifier.check(&acme[3]).repeated && verifier.check(&acme[4]).verified);
}

/// A key holder who runs two histories of one lane: the second is found at the head.
#[tokio::test]
async fn a_fork_by_the_key_holder_is_found() {
    let mut histories = Vec::new();
    for _ in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.hooks.seed = Some(7);
        let clock = manual_clock();
        let ledger = aegis_ledger::Ledger::open(config, key(), clock).await.unwrap();
        ledger.submit(draft(&tenant("acme"), aegis_model::Timestamp::from_micros(START))).await.unwrap();
        histories.push(everything(&ledger).await);
    }
    let wires: Vec<Vec<Value>> = histories.iter().map(|h| h.iter().map(|item| parse(&item.sealed.wire)).collect()).collect();
    assert_eq!(wires[0][0]["receipt_hash"], wires[1][0]["receipt_hash"], "the same lane, opened the same way");
    let mut verifier = StreamVerifier::new(ring());
    assert!(verifier.check(&wires[0][0]).verified);
    assert!(verifier.check(&wires[1][0]).repeated);
    assert!(verifier.check(&wires[0][1]).verified);
    assert_eq!(verifier.check(&wires[1][1]).failure.unwrap().code, FailureCode::ForkedSeq);
}

#[tokio::test]
async fn an_external_event_is_never_verified_and_never_a_failure() {
    let event = aegis_model::SecurityEvent::new(
        tenant("acme"),
        "github",
        "github",
        EventKind::ExternalGithubWebhook,
        aegis_model::Timestamp::from_micros(START),
    );
    let mut wire = serde_json::to_value(event).unwrap();
    let mut verifier = StreamVerifier::new(ring());
    let verdict = verifier.check(&wire);
    assert!(!verdict.verified && verdict.failure.is_none());
    wire["lane"] = json!("acme.edge-1.0");
    assert_eq!(verifier.check(&wire).failure.unwrap().code, FailureCode::MissingReceipt);
}

#[tokio::test]
async fn only_lanes_that_have_ended_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let acme = tenant("acme");
    let first = open(folder.path()).await;
    first.submit(draft_now(&acme)).await.unwrap();
    first.submit(draft_now(&tenant("beta"))).await.unwrap();
    first.close().await.unwrap();
    drop(first);
    let second = open(folder.path()).await;
    second.submit(draft_now(&acme)).await.unwrap();
    drop(second);
    let third = open(folder.path()).await;
    let mut verifier = StreamVerifier::new(ring());
    for item in everything(&third).await {
        assert!(verifier.check(&parse(&item.sealed.wire)).verified);
    }
    // Two closed lanes, one succeeded after an unclean stop, one that runs on.
    assert_eq!(verifier.heads().len(), 4);
    verifier.heads_mut().forget_idle(aegis_model::Timestamp::from_micros(0));
    assert_eq!(verifier.heads().len(), 4);
    verifier.heads_mut().forget_idle(aegis_model::Timestamp::from_micros(i64::MAX));
    assert_eq!(verifier.heads().len(), 1);
    assert!(verifier.heads().get(&third.lane_of(&acme)).is_some());
}

#[test]
fn an_edge_that_opens_lane_after_lane_makes_its_own_be_forgotten_and_nobody_elses() {
    let head = |second: i64| {
        let ts = aegis_model::Timestamp::from_micros(START).plus_seconds(second);
        json!({"seq": 1, "hash": "00", "ts": ts, "closed": false})
    };
    let mut lanes = serde_json::Map::new();
    for quiet in ["acme.edge-1.00", "beta.loud.00"] {
        lanes.insert(quiet.to_owned(), head(0));
    }
    for n in 0..3_000 {
        lanes.insert(format!("acme.loud.{n:04}"), head(1 + n));
    }
    let mut heads: LaneHeads = serde_json::from_value(Value::Object(lanes)).unwrap();
    heads.forget_idle(aegis_model::Timestamp::from_micros(0));
    assert_eq!(heads.len(), 2 + 1_024);
    let remembered = ["acme.edge-1.00", "beta.loud.00", "acme.loud.2999", "acme.loud.1976", "acme.loud.1975"];
    assert_eq!(remembered.map(|lane| heads.get(lane).is_some()), [true, true, true, true, false]);
}

#[tokio::test]
async fn a_group_of_any_size_is_one_commit_that_proves_each_and_takes_the_shipped_position_along() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let acme = tenant("acme");
    ledger.submit(draft_now(&acme)).await.unwrap();
    let mut other = second_connection(folder.path()).await;
    let sizes: [i64; 6] = [1, 127, 128, 129, 256, 300];
    for size in sizes {
        // A busy ledger puts the position off for less than that.
        tokio::time::sleep(std::time::Duration::from_millis(220)).await;
        let shipped = ledger.last_row();
        ledger.mark_shipped(shipped).await;
        for _with_it_and_alone in 0..2 {
            // One thread: the writer finds them all.
            let submit = |_| ledger.try_submit(draft_now(&acme), Durability::Required).unwrap();
            for receipt in (0..size).map(submit).collect::<Vec<_>>() {
                receipt.await.unwrap();
            }
        }
        let written: i64 = sqlx::query_scalar("SELECT shipped FROM outbox_position").fetch_one(&mut other).await.unwrap();
        assert_eq!(written, shipped, "of {size}");
    }
    let committed: Vec<i64> =
        sqlx::query_scalar("SELECT size FROM commits ORDER BY commit_id").fetch_all(&mut other).await.unwrap();
    // The lane's own first receipt stands in the first.
    assert_eq!(committed[0], 2);
    assert_eq!(committed[1..], sizes.map(|size| [size; 2]).concat());
    let items = everything(&ledger).await;
    assert_eq!(items.len() as i64, committed.iter().sum::<i64>());
    assert_all_verify(&items);
}
