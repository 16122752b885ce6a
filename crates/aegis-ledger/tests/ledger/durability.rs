//! Law L-DURABLE: nothing is acknowledged, and nothing is handed to the shipper, that is not on the disk; and no crash forks a lane.
//! A real process is killed with SIGKILL under load, and an in-process ledger is torn down at any moment.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::fixture::*;
use aegis_ledger::{Durability, Ledger, OutboxItem};
use aegis_model::EventKind;
use parking_lot::Mutex;

const FOLDER: &str = "AEGIS_LEDGER_CRASH_FOLDER";
const KILLS: usize = 20;
const TEARDOWNS: usize = 10;

/// What somebody outside was told: (lane, seq, receipt_hash).
type Told = (String, i64, String);

/// Submits from several tasks until it is stopped; `told` hears of every acknowledged receipt and every item of the ring.
async fn load(ledger: Ledger, told: impl Fn(Told) + Clone + Send + 'static) {
    let mut ring = ledger.take_sealed_receiver().unwrap();
    let hears_ring = told.clone();
    tokio::spawn(async move {
        while let Some(item) = ring.recv().await {
            hears_ring((item.sealed.lane, item.sealed.seq, item.sealed.receipt_hash));
        }
    });
    let mut workers = Vec::new();
    for worker in 0..8 {
        let (ledger, told) = (ledger.clone(), told.clone());
        workers.push(tokio::spawn(async move {
            let owner = tenant(&format!("tenant-{}", worker % 3));
            loop {
                let Ok(pending) = ledger.try_submit(draft_now(&owner), Durability::Required) else { return };
                let Ok(committed) = pending.await else { return };
                told((committed.lane, committed.seq, committed.receipt_hash));
            }
        }));
    }
    for worker in workers {
        let _ = worker.await;
    }
}

/// The process that is killed. Run by the test below, never by itself.
#[test]
#[ignore = "the victim of killed_under_load_it_loses_nothing_it_acknowledged"]
fn victim() {
    let folder = std::env::var(FOLDER).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let ledger = open(Path::new(&folder)).await;
        load(ledger, |(lane, seq, hash)| {
            let line = format!("TOLD {lane} {seq} {hash}\n");
            let mut out = std::io::stdout().lock();
            out.write_all(line.as_bytes()).and_then(|()| out.flush()).unwrap();
        })
        .await;
    });
}

async fn check(folder: &Path, told: &HashSet<Told>, told_now: &HashSet<Told>) {
    let ledger = open(folder).await;
    let items = everything(&ledger).await;
    assert_all_verify(&items);
    let mut by_place: HashMap<(String, i64), String> = HashMap::new();
    for item in &items {
        let place = (item.sealed.lane.clone(), item.sealed.seq);
        let before = by_place.insert(place, item.sealed.receipt_hash.clone());
        assert_eq!(before, None, "a lane has two rows with one seq");
    }
    for (lane, seq, hash) in told {
        assert_eq!(by_place.get(&(lane.clone(), *seq)), Some(hash), "L-DURABLE: {lane} {seq} was told, and is not there");
    }
    assert_successors(&items, told_now);
}

/// Every lane that was told of in the last run is the predecessor of a gap that names at least its last told seq.
fn assert_successors(items: &[OutboxItem], told_now: &HashSet<Told>) {
    let mut last: HashMap<&str, i64> = HashMap::new();
    for (lane, seq, _) in told_now {
        let known = last.entry(lane.as_str()).or_insert(*seq);
        *known = (*known).max(*seq);
    }
    for (lane, seq) in last {
        let gap = items
            .iter()
            .filter(|item| item.sealed.kind == EventKind::LaneGap)
            .map(detail)
            .find(|gap| gap["predecessor"]["lane"] == lane)
            .unwrap_or_else(|| panic!("no gap names {lane}"));
        assert!(gap["predecessor"]["seq"].as_i64().unwrap() >= seq, "{gap} forgets seq {seq}");
    }
}

#[test]
fn killed_under_load_it_loses_nothing_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut told: HashSet<Told> = HashSet::new();
    for kill in 0..KILLS {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "durability::victim", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap());
        // A different moment each time: from the very first acknowledgement to well into the load.
        let kill_after = 1 + kill * kill * 7;
        let mut told_now = HashSet::new();
        let mut killed = false;
        let mut line = String::new();
        while lines.read_line(&mut line).unwrap() > 0 {
            // Only what was written whole was told.
            if line.ends_with('\n')
                && let Some(rest) = line.strip_prefix("TOLD ")
            {
                let mut words = rest.split_whitespace();
                let mut word = || words.next().unwrap().to_owned();
                told_now.insert((word(), word().parse().unwrap(), word()));
            }
            line.clear();
            if !killed && told_now.len() >= kill_after {
                victim.kill().unwrap();
                killed = true;
            }
        }
        assert!(killed, "the victim ended by itself");
        victim.wait().unwrap();
        told.extend(told_now.iter().cloned());
        runtime.block_on(check(folder.path(), &told, &told_now));
    }
    assert!(told.len() > KILLS);
}

#[test]
fn torn_down_at_any_moment_it_loses_nothing_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let checker = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let told: Arc<Mutex<HashSet<Told>>> = Arc::default();
    for round in 0..TEARDOWNS {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let told_now: Arc<Mutex<HashSet<Told>>> = Arc::default();
        let ledger = runtime.block_on(open(folder.path()));
        let hears = Arc::clone(&told_now);
        runtime.spawn(load(ledger, move |fact| {
            hears.lock().insert(fact);
        }));
        let target = 1 + round * 137;
        runtime.block_on(eventually("the load", async || told_now.lock().len() >= target));
        // Drops every task where it stands, also between a COMMIT and its acknowledgement.
        runtime.shutdown_timeout(Duration::from_secs(20));
        let told_now = told_now.lock().clone();
        told.lock().extend(told_now.iter().cloned());
        let told = told.lock().clone();
        checker.block_on(check(folder.path(), &told, &told_now));
    }
}
