//! Lanes: law L-LINK, the life of a lane, and what one bad draft may not do to its neighbours.

use std::collections::HashMap;

use crate::fixture::*;
use aegis_ledger::{Durability, Ledger, LedgerError, OutboxItem, SubmitError};
use aegis_model::{EventKind, Timestamp, new_event_id};
use proptest::prelude::*;
use serde_json::{Value, json};

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Submit { tenant: usize, count: usize },
    Settle,
    CleanRestart,
    UncleanRestart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4usize, 1..12usize).prop_map(|(tenant, count)| Step::Submit { tenant, count }),
        3 => Just(Step::Settle),
        1 => Just(Step::CleanRestart),
        1 => Just(Step::UncleanRestart),
    ]
}

async fn play(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let small_batches = || {
        let mut config = config(folder.path());
        config.max_batch = 7;
        config
    };
    let mut ledger = open_with(small_batches()).await.unwrap();
    let mut pending = Vec::new();
    let mut acknowledged = HashMap::new();
    for step in steps {
        match step {
            Step::Submit { tenant: number, count } => {
                for _ in 0..count {
                    let draft = draft_now(&tenant(&format!("tenant-{number}")));
                    pending.push(ledger.try_submit(draft, Durability::Required).unwrap());
                }
            }
            Step::Settle | Step::CleanRestart | Step::UncleanRestart => {
                for receipt in pending.drain(..) {
                    let committed = receipt.await.unwrap();
                    acknowledged.insert(committed.event_id, committed);
                }
            }
        }
        if matches!(step, Step::CleanRestart | Step::UncleanRestart) {
            if matches!(step, Step::CleanRestart) {
                ledger.close().await.unwrap();
            }
            drop(ledger);
            ledger = open_with(small_batches()).await.unwrap();
        }
    }
    for receipt in pending {
        let committed = receipt.await.unwrap();
        acknowledged.insert(committed.event_id, committed);
    }
    ledger.close().await.unwrap();

    let items = everything(&ledger).await;
    assert_all_verify(&items);
    let mut next: HashMap<String, i64> = HashMap::new();
    for item in &items {
        let expected = next.entry(item.sealed.lane.clone()).or_insert(1);
        assert_eq!(item.sealed.seq, *expected, "L-LINK: seq of {} is gapless", item.sealed.lane);
        *expected += 1;
        if let Some(committed) = acknowledged.remove(&item.sealed.event_id) {
            assert_eq!(
                (&committed.lane, committed.seq, &committed.receipt_hash, &committed.prev_receipt_hash),
                (&item.sealed.lane, item.sealed.seq, &item.sealed.receipt_hash, &item.sealed.prev_receipt_hash)
            );
        }
    }
    assert!(acknowledged.is_empty(), "L-DURABLE: acknowledged, but not there: {acknowledged:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// L-LINK: for any interleaving of tenants, batches and restarts, every lane is gapless, linked, and verifies.
    #[test]
    fn every_lane_is_gapless_linked_and_verifies(steps in prop::collection::vec(step(), 1..25)) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(play(steps));
    }
}

#[tokio::test]
async fn a_lane_opens_with_its_key_and_predecessor_and_closes_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let acme = tenant("acme");
    let first = open(folder.path()).await;
    let committed = first.submit(draft_now(&acme)).await.unwrap();
    assert_eq!((committed.seq, committed.lane.as_str()), (2, first.lane_of(&acme).as_str()));
    first.close().await.unwrap();
    let before = everything(&first).await;
    assert_eq!(kinds(&before), [EventKind::LaneOpen, EventKind::AuthorizeDecision, EventKind::LaneClose]);
    let opened = detail(&before[0]);
    assert_eq!(opened, json!({"key_id": key().key_id(), "certificate": null, "predecessor": null}));
    assert!(matches!(first.try_submit(draft_now(&acme), Durability::Required), Err(SubmitError::Closed)));
    assert!(matches!(first.try_submit(draft_now(&acme), Durability::BestEffort), Err(SubmitError::Closed)));
    first.close().await.unwrap();
    drop(first);

    let second = open(folder.path()).await;
    assert_eq!(everything(&second).await.len(), 3, "a cleanly closed lane has no successor before its tenant's first draft");
    let committed = second.submit(draft_now(&acme)).await.unwrap();
    assert_ne!(committed.lane, before[0].sealed.lane);
    let after = everything(&second).await;
    let close = &before[2].sealed;
    let predecessor = &detail(&after[3])["predecessor"];
    assert_eq!(predecessor, &json!({"lane": close.lane, "seq": 3, "receipt_hash": close.receipt_hash}));
    assert_all_verify(&after);
}

#[tokio::test]
async fn an_unclean_stop_is_told_by_a_gap_right_after_the_open() {
    let folder = tempfile::tempdir().unwrap();
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    let first = open(folder.path()).await;
    first.submit(draft_now(&acme)).await.unwrap();
    first.submit(draft_now(&beta)).await.unwrap();
    let before = everything(&first).await;
    drop(first);

    let second = open(folder.path()).await;
    let after = everything(&second).await;
    assert_eq!(kinds(&after[before.len()..]), [EventKind::LaneOpen, EventKind::LaneGap, EventKind::LaneOpen, EventKind::LaneGap]);
    let last = &before[1].sealed;
    let gap = detail(&after[before.len() + 1]);
    assert_eq!(gap["reason"], "unclean_stop");
    assert_eq!(gap["predecessor"], json!({"lane": last.lane, "seq": 2, "receipt_hash": last.receipt_hash}));
    let event = parse(&after[before.len() + 1].sealed.wire);
    assert_eq!(event["reason"], "unclean_stop");
    assert_all_verify(&after);
    drop(second);

    // The abandoned lanes are told once: only the successors are new gaps.
    let third = open(folder.path()).await;
    assert_eq!(everything(&third).await.len(), after.len() + 4);
}

#[tokio::test]
async fn ts_never_decreases_within_a_lane_and_the_open_is_not_later_than_its_first_event() {
    let folder = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let ledger = aegis_ledger::Ledger::open(config(folder.path()), key(), clock.clone()).await.unwrap();
    let acme = tenant("acme");
    let at = |seconds: i64| Timestamp::from_micros(START).plus_seconds(seconds);
    let first = ledger.submit(draft(&acme, at(-5))).await.unwrap();
    let earlier = ledger.submit(draft(&acme, at(-9))).await.unwrap();
    let later = ledger.submit(draft(&acme, at(3))).await.unwrap();
    assert_eq!((first.ts, earlier.ts, later.ts), (at(-5), at(-5), at(3)));
    assert_eq!(everything(&ledger).await[0].sealed.ts, at(-5));
    ledger.close().await.unwrap();
    assert_all_verify(&everything(&ledger).await);
}

#[tokio::test]
async fn one_bad_draft_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let acme = tenant("acme");
    let mut bad = Vec::new();
    let mut good = Vec::new();
    let submit = |ledger: &Ledger, draft| ledger.try_submit(draft, Durability::Required).unwrap();

    good.push(submit(&ledger, draft_now(&acme)));
    let mut unsafe_integer = draft_now(&acme);
    unsafe_integer.detail = Some(json!({"n": u64::MAX}));
    bad.push((submit(&ledger, unsafe_integer), "rejected"));
    let mut long = draft_now(&acme);
    long.event.attributes = Some("x".repeat(61 * 1024));
    bad.push((submit(&ledger, long), "too large"));
    let mut long_detail = draft_now(&acme);
    long_detail.detail = Some(Value::String("x".repeat(61 * 1024)));
    bad.push((submit(&ledger, long_detail), "too large"));
    bad.push((submit(&ledger, draft(&acme, Timestamp::from_micros(-1))), "rejected"));
    bad.push((submit(&ledger, draft(&acme, Timestamp::from_micros(i64::MAX))), "rejected"));
    let twice = draft_now(&acme);
    good.push(submit(&ledger, twice.clone()));
    bad.push((submit(&ledger, twice.clone()), "duplicate"));
    let mut namesake = draft_now(&tenant("beta"));
    namesake.event.event_id = twice.event.event_id;
    good.push(submit(&ledger, namesake));
    let mut foreign = draft_now(&acme);
    foreign.frozen = Some(Box::new(frozen(&draft_now(&tenant("beta")), Timestamp::from_micros(START))));
    bad.push((submit(&ledger, foreign), "rejected"));
    good.push(submit(&ledger, draft_now(&acme)));

    for receipt in good {
        receipt.await.unwrap();
    }
    for (receipt, expected) in bad {
        let found = match receipt.await.unwrap_err() {
            LedgerError::Rejected(_) => "rejected",
            LedgerError::TooLarge { .. } => "too large",
            LedgerError::Duplicate { .. } => "duplicate",
            other => panic!("{other}"),
        };
        assert_eq!(found, expected);
    }
    // In a later batch the disk finds the duplicate, and the batch goes on without it.
    let mixed = [submit(&ledger, twice.clone()), submit(&ledger, draft_now(&acme))];
    let [duplicate, fresh] = mixed;
    assert_eq!(duplicate.await.unwrap_err(), LedgerError::Duplicate { event_id: twice.event.event_id });
    fresh.await.unwrap();
    assert!(ledger.is_writable());
    let items = everything(&ledger).await;
    assert_eq!(items.iter().filter(|item| item.sealed.tenant_id == acme).count(), 5);
    assert_eq!(items.len(), 7, "another tenant's event of the same id is another event");
    assert_all_verify(&items);
}

#[tokio::test]
async fn inputs_are_committed_to_under_a_tenant_key_that_can_be_shredded() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    let secret = br#"{"card":"4111111111111111"}"#;
    // Without waiting, so that the tenants take turns in one commit.
    let mut pending = Vec::new();
    for owner in [&acme, &beta, &acme] {
        let mut with_input = draft_now(owner);
        with_input.input = Some(secret.to_vec());
        with_input.output = Some(b"out".to_vec());
        let id = with_input.event.event_id;
        pending.push((owner, id, ledger.try_submit(with_input, Durability::Required).unwrap()));
    }
    let mut hashes = Vec::new();
    for (owner, id, receipt) in pending {
        receipt.await.unwrap();
        let receipt = parse(&ledger.receipt(owner, id).await.unwrap().unwrap().wire)["receipt"].clone();
        hashes.push(receipt["input_hash"].as_str().unwrap().to_owned());
        assert_ne!(receipt["output_hash"], receipt["input_hash"]);
    }
    assert_eq!(hashes[0], hashes[2]);
    assert_ne!(hashes[0], hashes[1], "two tenants' commitments to one value do not meet");
    assert_eq!(ledger.opens_commitment(&acme, &hashes[0], secret).await.unwrap(), Some(true));
    assert_eq!(ledger.opens_commitment(&beta, &hashes[1], secret).await.unwrap(), Some(true));
    assert_eq!(ledger.opens_commitment(&acme, &hashes[0], b"other").await.unwrap(), Some(false));
    assert_eq!(ledger.opens_commitment(&acme, &hashes[1], secret).await.unwrap(), Some(false));

    ledger.shred_commitment_key(&acme).await.unwrap();
    assert_eq!(ledger.opens_commitment(&acme, &hashes[0], secret).await.unwrap(), None);
    let mut again = draft_now(&acme);
    again.input = Some(secret.to_vec());
    ledger.submit(again).await.unwrap();
    assert_eq!(ledger.opens_commitment(&acme, &hashes[0], secret).await.unwrap(), Some(false), "a new key opens nothing old");
    ledger.close().await.unwrap();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(16).any(|w| w == b"4111111111111111"), "a raw input stands on the disk");
    }
}

#[tokio::test]
async fn a_frozen_action_comes_with_its_receipt_and_goes_when_it_cannot_be_approved_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let ledger = Ledger::open(config(folder.path()), key(), clock.clone()).await.unwrap();
    let mut ring = ledger.take_sealed_receiver().unwrap();
    assert!(ledger.take_sealed_receiver().is_none());
    let acme = tenant("acme");
    let mut asks = draft(&acme, Timestamp::from_micros(START));
    let action = frozen(&asks, Timestamp::from_micros(START).plus_seconds(900));
    asks.frozen = Some(Box::new(action.clone()));
    ledger.submit(asks).await.unwrap();

    let items = everything(&ledger).await;
    assert_eq!(items[1].frozen.as_ref(), Some(&action));
    assert!(!items[1].sealed.wire.contains("base_branch"), "a raw parameter stands in the event");
    let rung = [ring.recv().await.unwrap(), ring.recv().await.unwrap()];
    assert_eq!(
        rung.map(|item| (item.row, item.sealed, item.frozen)),
        [(items[0].row, items[0].sealed.clone(), None), (items[1].row, items[1].sealed.clone(), Some(action)),]
    );

    ledger.mark_shipped(items[1].row).await;
    assert_eq!((ledger.shipped_row().await, ledger.backlog()), (items[1].row, 0));
    ledger.submit(draft(&acme, Timestamp::from_micros(START))).await.unwrap();
    assert!(everything(&ledger).await[1].frozen.is_some(), "shipped, but it may still have to be shipped again");
    clock.advance_seconds(901);
    ledger.mark_shipped(ledger.last_row()).await;
    eventually("the frozen action's end", async || everything(&ledger).await[1].frozen.is_none()).await;
}

#[tokio::test]
async fn frozen_actions_that_are_large_bound_what_is_read_at_once_and_stay_out_of_the_ring() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let mut ring = ledger.take_sealed_receiver().unwrap();
    let acme = tenant("acme");
    let mut actions = Vec::new();
    for _ in 0..6 {
        let mut asks = draft_now(&acme);
        let mut action = frozen(&asks, asks.event.ts.plus_seconds(900));
        // As text a MiB, as values dozens of it.
        action.tool_call.parameters.insert("zeros".to_owned(), json!(vec![0; 500_000]));
        asks.frozen = Some(Box::new(action.clone()));
        ledger.submit(asks).await.unwrap();
        actions.push(action);
    }
    assert!(ring.try_recv().is_err(), "the ring holds on to dozens of MiB");
    let mut read: Vec<OutboxItem> = Vec::new();
    while read.len() <= actions.len() {
        let page = ledger.read_outbox(read.last().map_or(0, |item| item.row), 100).await.unwrap();
        assert!((1..=2).contains(&page.len()), "{} at once", page.len());
        read.extend(page);
    }
    let found: Vec<_> = read.into_iter().filter_map(|item| item.frozen).collect();
    assert!(found == actions, "{} of {} actions", found.len(), actions.len());
    let lane = ledger.lane_of(&acme);
    assert!((1..=2).contains(&ledger.read_lane(&lane, 1, 100, 100).await.unwrap().len()));
    // What is small comes as ever, and behind those as many as are asked for.
    for _ in 0..20 {
        ledger.submit(draft_now(&acme)).await.unwrap();
    }
    assert!(ring.try_recv().is_ok());
    assert_eq!(ledger.read_outbox(7, 100).await.unwrap().len(), 20);
}

#[tokio::test]
async fn the_shipped_position_survives_a_restart_and_is_never_ahead_of_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let acme = tenant("acme");
    ledger.submit(draft_now(&acme)).await.unwrap();
    ledger.mark_shipped(i64::MAX).await;
    assert_eq!(ledger.shipped_row().await, 2);
    ledger.mark_shipped(1).await;
    assert_eq!(ledger.shipped_row().await, 2);
    ledger.close().await.unwrap();
    assert_eq!(ledger.backlog(), 1, "the close itself is not shipped yet");
    drop(ledger);
    let ledger = open(folder.path()).await;
    assert_eq!(ledger.shipped_row().await, 2);
    assert_eq!(ledger.read_outbox(2, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn reads_are_tenant_bound_and_recent_reads_by_time_and_kind() {
    let folder = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let ledger = Ledger::open(config(folder.path()), key(), clock.clone()).await.unwrap();
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    let mut ids = Vec::new();
    for second in 0..20 {
        let owner = if second % 2 == 0 { &acme } else { &beta };
        let mut draft = draft(owner, Timestamp::from_micros(START).plus_seconds(second));
        if second % 5 == 0 {
            draft.event.kind = EventKind::ReplayAttempt;
        }
        ids.push(draft.event.event_id);
        ledger.submit(draft).await.unwrap();
    }
    assert!(ledger.contains(&acme, ids[0]).await.unwrap());
    assert!(!ledger.contains(&beta, ids[0]).await.unwrap());
    assert!(!ledger.contains(&acme, new_event_id()).await.unwrap());
    assert!(ledger.receipt(&beta, ids[0]).await.unwrap().is_none());
    assert_eq!(ledger.receipt(&acme, ids[0]).await.unwrap().unwrap().event_id, ids[0]);
    let export = ledger.export(&acme, 0, 100).await.unwrap();
    assert_eq!(export.len(), 11);
    assert!(export.iter().all(|line| line.is_sealed && parse(&line.text)["tenant_id"] == "acme"));

    let since = Timestamp::from_micros(START).plus_seconds(10);
    let recent = ledger.recent(since, &[EventKind::ReplayAttempt, EventKind::TamperAttempt], 0, 100).await.unwrap();
    assert_eq!(recent.iter().map(|item| item.sealed.event_id).collect::<Vec<_>>(), [ids[10], ids[15]]);
    let rest = ledger.recent(since, &[EventKind::ReplayAttempt], recent[0].row, 100).await.unwrap();
    assert_eq!(rest.len(), 1);
    assert_eq!(ledger.recent(since, &[], 0, 100).await.unwrap().len(), 10);
    assert_eq!(ledger.recent(since, &[], 0, 3).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_what_it_drops_is_told_by_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.queue_capacity = 4;
    let ledger = open_with(config).await.unwrap();
    let acme = tenant("acme");
    // Nothing yields here, so the writer cannot empty the queue in between.
    let taken: Vec<_> = (0..4).map(|_| ledger.try_submit(draft_now(&acme), Durability::Required).unwrap()).collect();
    assert_eq!(ledger.stats().queue_depth, 4);
    assert!(matches!(ledger.try_submit(draft_now(&acme), Durability::Required), Err(SubmitError::QueueFull)));
    assert!(matches!(ledger.try_submit(draft_now(&acme), Durability::BestEffort), Err(SubmitError::QueueFull)));
    assert_eq!(ledger.dropped_total(), 1);
    for receipt in taken {
        receipt.await.unwrap();
    }
    eventually("the gap receipt", async || kinds(&everything(&ledger).await).contains(&EventKind::LaneGap)).await;
    let items = everything(&ledger).await;
    let gap = items.iter().find(|item| item.sealed.kind == EventKind::LaneGap).unwrap();
    assert_eq!(detail(gap)["reason"], "queue_full");
    assert_eq!((&detail(gap)["dropped"], &detail(gap)["refused"]), (&json!(1), &json!(0)));
    assert_all_verify(&items);
}

#[tokio::test]
async fn stats_follow_the_commits() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    ledger.submit(draft_now(&tenant("acme"))).await.unwrap();
    let stats = ledger.stats();
    assert_eq!((stats.commits, stats.receipts, stats.failed_commits, stats.backlog), (1, 2, 0, 2));
    assert!(stats.writable);
    assert_eq!(stats.commit_seconds.iter().sum::<u64>(), 1);
}
