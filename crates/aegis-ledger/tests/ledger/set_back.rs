//! A clock that was ahead and is set back: lanes are closed with the reason and others opened, and every law of the chain holds meanwhile.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::fixture::*;
use aegis_ledger::verify::{ExportVerdict, verify_export};
use aegis_ledger::{Committed, Durability, Ledger, OutboxItem};
use aegis_model::{Clock, EventKind, ManualClock, TenantId};
use proptest::prelude::*;
use serde_json::{Value, json};

/// By how much the clock is ahead.
const HOUR: i64 = 3600;
const FOLDER: &str = "AEGIS_LEDGER_SET_BACK_FOLDER";
const KILLS: usize = 6;

async fn open_by(folder: &Path, clock: &Arc<ManualClock>) -> Ledger {
    Ledger::open(config(folder), key(), clock.clone()).await.unwrap()
}

async fn submit(ledger: &Ledger, clock: &ManualClock, tenant: &TenantId) -> Committed {
    ledger.submit(draft(tenant, clock.now())).await.unwrap()
}

/// The whole export is what `aegis-verify-receipts` calls valid.
fn assert_exports(items: &[OutboxItem]) {
    assert_all_verify(items);
    let export: String = items.iter().map(|item| format!("{}\n", item.sealed.wire)).collect();
    let report = verify_export(export.as_bytes(), Some(&ring())).unwrap();
    assert_eq!(report.verdict, ExportVerdict::Valid, "{:?}", report.failure);
}

fn of_lane<'a>(items: &'a [OutboxItem], lane: &str) -> Vec<&'a OutboxItem> {
    items.iter().filter(|item| item.sealed.lane == lane).collect()
}

#[tokio::test]
async fn a_lane_ahead_of_a_clock_that_was_set_back_is_closed_with_the_reason_and_another_follows() {
    let folder = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    clock.advance_seconds(HOUR);
    let ledger = open_by(folder.path(), &clock).await;
    let (acme, beta, gamma) = (tenant("acme"), tenant("beta"), tenant("gamma"));
    let ahead = submit(&ledger, &clock, &acme).await;
    let beta_ahead = submit(&ledger, &clock, &beta).await;
    clock.advance_seconds(-HOUR);
    let now = clock.now();
    let after = submit(&ledger, &clock, &acme).await;
    assert_eq!((after.ts, after.seq), (now, 2), "it has the time of the corrected clock, behind its lane's `open`");
    assert_ne!(after.lane, ahead.lane);

    let items = everything(&ledger).await;
    let old = of_lane(&items, &ahead.lane);
    assert_eq!(
        old.iter().map(|item| item.sealed.kind).collect::<Vec<_>>(),
        [EventKind::LaneOpen, EventKind::AuthorizeDecision, EventKind::LaneClose]
    );
    let close = old[2];
    assert_eq!(detail(close), json!({"reason": "clock_set_back", "last_ts": ahead.ts, "clock": now}));
    assert_eq!(close.sealed.ts, ahead.ts, "time goes back in no lane");
    let new = of_lane(&items, &after.lane);
    assert_eq!(new[0].sealed.ts, now);
    let predecessor = json!({"lane": ahead.lane, "seq": 3, "receipt_hash": close.sealed.receipt_hash});
    assert_eq!(detail(new[0])["predecessor"], predecessor);
    for told in [close, new[0]] {
        let event = parse(&told.sealed.wire);
        assert_eq!((&event["clock_suspect"], &event["reason"]), (&json!(true), &json!("clock_set_back")));
    }

    // Every tenant's, at its own next receipt; a tenant that had none meanwhile begins as always.
    let beta_after = submit(&ledger, &clock, &beta).await;
    assert_eq!((beta_after.ts, beta_after.seq), (now, 2));
    assert_ne!(beta_after.lane, beta_ahead.lane);
    assert_eq!(submit(&ledger, &clock, &gamma).await.lane, ledger.lane_of(&gamma));
    // Once: the new lanes go on.
    clock.advance_seconds(1);
    for (owner, lane) in [(&acme, &after.lane), (&beta, &beta_after.lane)] {
        let next = submit(&ledger, &clock, owner).await;
        assert_eq!((&next.lane, next.seq, next.ts), (lane, 3, clock.now()));
    }
    // It is set back again.
    clock.advance_seconds(-HOUR);
    let again = submit(&ledger, &clock, &acme).await;
    assert!(again.lane != after.lane && again.lane != ahead.lane && again.ts == clock.now());

    ledger.close().await.unwrap();
    let items = everything(&ledger).await;
    let closes = items.iter().filter(|item| item.sealed.kind == EventKind::LaneClose).count();
    assert_eq!(closes, 3 + 3, "three were set back, and three are open at the end");
    assert_exports(&items);
}

#[tokio::test]
async fn a_clock_that_is_corrected_by_two_seconds_or_less_ends_no_lane() {
    let folder = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let ledger = open_by(folder.path(), &clock).await;
    let acme = tenant("acme");
    let first = submit(&ledger, &clock, &acme).await;
    clock.advance_seconds(-2);
    let second = submit(&ledger, &clock, &acme).await;
    assert_eq!((&second.lane, second.ts), (&first.lane, first.ts), "it stands still for as long");
    clock.advance_micros(-1);
    let third = submit(&ledger, &clock, &acme).await;
    assert!(third.lane != first.lane && third.ts == clock.now());
    ledger.close().await.unwrap();
    assert_exports(&everything(&ledger).await);
}

#[tokio::test]
async fn what_was_made_before_the_clock_was_set_back_takes_no_lane_ahead_again() {
    let folder = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    clock.advance_seconds(HOUR);
    let ledger = open_by(folder.path(), &clock).await;
    let acme = tenant("acme");
    submit(&ledger, &clock, &acme).await;
    // Under way while the clock is set back, between others.
    let late = draft(&acme, clock.now());
    clock.advance_seconds(-HOUR);
    let drafts = [draft(&acme, clock.now()), late.clone(), draft(&acme, clock.now())];
    let pending = drafts.map(|draft| ledger.try_submit(draft, Durability::Required).unwrap());
    let mut lanes = Vec::new();
    for receipt in pending {
        let committed = receipt.await.unwrap();
        assert_eq!(committed.ts, clock.now());
        lanes.push(committed.lane);
    }
    clock.advance_seconds(5);
    let mut again = late;
    again.event.event_id = aegis_model::new_event_id();
    let alone = ledger.submit(again).await.unwrap();
    assert_eq!((&alone.lane, alone.ts), (&lanes[0], clock.now()));
    assert!(lanes.iter().all(|lane| *lane == lanes[0]), "one lane follows, not one for each");
    ledger.close().await.unwrap();
    assert_exports(&everything(&ledger).await);
}

#[tokio::test]
async fn a_clock_that_was_ahead_for_a_moment_leaves_no_lane_there() {
    let folder = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let ledger = open_by(folder.path(), &clock).await;
    let acme = tenant("acme");
    submit(&ledger, &clock, &acme).await;
    // Nothing yields here, so that the writer never sees it ahead.
    clock.advance_seconds(HOUR);
    let pending = ledger.try_submit(draft(&acme, clock.now()), Durability::Required).unwrap();
    clock.advance_seconds(-HOUR);
    assert_eq!(pending.await.unwrap().ts, clock.now());
    assert_eq!(submit(&ledger, &clock, &acme).await.lane, ledger.lane_of(&acme), "the lane was never ahead, and goes on");
}

#[tokio::test]
async fn an_unclean_stop_after_the_clock_was_set_back_is_told_of_the_lane_that_followed() {
    let folder = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    clock.advance_seconds(HOUR);
    let ledger = open_by(folder.path(), &clock).await;
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    submit(&ledger, &clock, &acme).await;
    let beta_ahead = submit(&ledger, &clock, &beta).await;
    clock.advance_seconds(-HOUR);
    let after = submit(&ledger, &clock, &acme).await;
    drop(ledger);

    let ledger = open_by(folder.path(), &clock).await;
    let items = everything(&ledger).await;
    let gaps: Vec<Value> = items.iter().filter(|item| item.sealed.kind == EventKind::LaneGap).map(detail).collect();
    let ended: Vec<&str> = gaps.iter().map(|gap| gap["predecessor"]["lane"].as_str().unwrap()).collect();
    assert_eq!(ended, [beta_ahead.lane.as_str(), after.lane.as_str()], "the lane that was closed needs no gap");
    assert!(items.iter().rev().take(4).all(|item| item.sealed.ts == clock.now()), "a start is of the corrected time");
    assert_exports(&items);
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Submit {
        tenant: usize,
        count: usize,
    },
    /// The clock is moved by so many seconds.
    Clock(i64),
    Settle,
    Restart {
        clean: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4usize, 1..6usize).prop_map(|(tenant, count)| Step::Submit { tenant, count }),
        4 => (-4000..4000i64).prop_map(Step::Clock),
        2 => (-3..3i64).prop_map(Step::Clock),
        3 => Just(Step::Settle),
        1 => any::<bool>().prop_map(|clean| Step::Restart { clean }),
    ]
}

async fn play(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    clock.advance_seconds(1_000_000);
    let mut ledger = open_by(folder.path(), &clock).await;
    let mut pending = Vec::new();
    let mut acknowledged = HashMap::new();
    // What the clock said at most since everything was sealed.
    let mut latest = clock.now();
    // Something is sealed in every history.
    for step in [Step::Submit { tenant: 0, count: 1 }].into_iter().chain(steps).chain([Step::Settle]) {
        match step {
            Step::Submit { tenant: number, count } => {
                for _ in 0..count {
                    let draft = draft(&tenant(&format!("tenant-{number}")), clock.now());
                    pending.push(ledger.try_submit(draft, Durability::Required).unwrap());
                }
                continue;
            }
            Step::Clock(seconds) => {
                clock.advance_seconds(seconds);
                latest = latest.max(clock.now());
                continue;
            }
            Step::Settle | Step::Restart { .. } => {}
        }
        let bound = latest.plus_seconds(2);
        latest = clock.now();
        for receipt in pending.drain(..) {
            let committed = receipt.await.unwrap();
            assert!(committed.ts <= bound, "{} is ahead of the clock", committed.ts);
            acknowledged.insert(committed.event_id, committed);
        }
        if let Step::Restart { clean } = step {
            if clean {
                ledger.close().await.unwrap();
            }
            drop(ledger);
            ledger = open_by(folder.path(), &clock).await;
        }
    }
    ledger.close().await.unwrap();
    let items = everything(&ledger).await;
    assert_exports(&items);
    let mut heads: HashMap<String, (i64, String)> = HashMap::new();
    let mut lane_of: HashMap<TenantId, String> = HashMap::new();
    for item in &items {
        let sealed = &item.sealed;
        if sealed.kind == EventKind::LaneOpen {
            let before = lane_of.insert(sealed.tenant_id.clone(), sealed.lane.clone());
            let head = before.map(|lane| json!({"lane": lane, "seq": heads[&lane].0, "receipt_hash": heads[&lane].1}));
            assert_eq!(detail(item)["predecessor"], head.unwrap_or(Value::Null), "an `open` names what it follows");
        }
        let seq = heads.get(&sealed.lane).map_or(1, |(seq, _)| seq + 1);
        assert_eq!(sealed.seq, seq, "L-LINK: seq of {} is gapless", sealed.lane);
        heads.insert(sealed.lane.clone(), (seq, sealed.receipt_hash.clone()));
        if let Some(committed) = acknowledged.remove(&sealed.event_id) {
            assert_eq!((&committed.lane, committed.seq), (&sealed.lane, sealed.seq));
        }
    }
    assert!(acknowledged.is_empty(), "L-DURABLE: acknowledged, but not there: {acknowledged:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// L-LINK, wherever the clock is moved: every lane is gapless, linked, names what it follows, and verifies; and nothing is sealed ahead of it.
    #[test]
    fn every_lane_is_gapless_linked_and_verifies_wherever_the_clock_goes(steps in prop::collection::vec(step(), 1..25)) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(play(steps));
    }
}

/// The process that is killed, with a clock that jumps ahead and is set back all the time. Run by the test below, never by itself.
#[test]
#[ignore = "the victim of killed_while_its_clock_is_set_back_it_loses_nothing_it_acknowledged"]
fn victim() {
    let folder = std::env::var(FOLDER).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let clock = manual_clock();
        let ledger = open_by(Path::new(&folder), &clock).await;
        for round in 0i64.. {
            clock.advance_seconds(if round % 2 == 0 { HOUR } else { -HOUR });
            let owners = ["a", "b", "c"].map(tenant);
            let drafts = owners.iter().chain(&owners).map(|owner| draft(owner, clock.now()));
            let pending: Vec<_> = drafts.map(|draft| ledger.try_submit(draft, Durability::Required).unwrap()).collect();
            for receipt in pending {
                let Committed { lane, seq, receipt_hash, .. } = receipt.await.unwrap();
                let line = format!("TOLD {lane} {seq} {receipt_hash}\n");
                let mut out = std::io::stdout().lock();
                out.write_all(line.as_bytes()).and_then(|()| out.flush()).unwrap();
            }
        }
    });
}

#[test]
fn killed_while_its_clock_is_set_back_it_loses_nothing_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut told: HashMap<(String, i64), String> = HashMap::new();
    for kill in 0..KILLS {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "set_back::victim", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (kill_after, before, mut killed) = (1 + kill * kill * 5, told.len(), false);
        for line in BufReader::new(victim.stdout.take().unwrap()).lines() {
            // Only what was written whole was told.
            let line = line.unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            if let ["TOLD", lane, seq, hash] = words[..]
                && hash.len() == 64
            {
                told.insert((lane.to_owned(), seq.parse().unwrap()), hash.to_owned());
            }
            if !killed && told.len() - before >= kill_after {
                victim.kill().unwrap();
                killed = true;
            }
        }
        assert!(killed, "the victim ended by itself");
        victim.wait().unwrap();
        runtime.block_on(async {
            let ledger = open_by(folder.path(), &manual_clock()).await;
            let items = everything(&ledger).await;
            assert_exports(&items);
            let there: HashMap<(String, i64), String> =
                items.into_iter().map(|item| ((item.sealed.lane, item.sealed.seq), item.sealed.receipt_hash)).collect();
            for (place, hash) in &told {
                assert_eq!(there.get(place), Some(hash), "L-DURABLE: {place:?} was told, and is not there");
            }
        });
    }
}
