//! Law L-DURABLE on a disk that refuses pages, for real (docs/adr/0058): what is acknowledged behind a commit that was refused outlives the power, while
//! somebody reads and nothing is worked into the file, and also where the process was killed in between.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::disk::Disk;
use crate::fixture::*;
use aegis_ledger::{Ledger, LedgerError};
use aegis_model::{EventId, EventKind, Timestamp};
use sqlx::SqliteConnection;

const FOLDER: &str = "AEGIS_LEDGER_REFUSED_FOLDER";
/// Receipts that the disk has before it refuses, and that come when it does not any more.
const TAKEN: usize = 20;
const MORE: usize = 10;
/// Receipts of which the log has some mebibytes.
const LONG: usize = 150;
/// Receipts for which such a disk has no room at all.
const TOO_MANY: usize = 2000;

async fn commit(ledger: &Ledger) -> Result<EventId, LedgerError> {
    ledger.submit(draft_now(&tenant("acme"))).await.map(|committed| committed.event_id)
}

async fn whole_checkpoint(connection: &mut SqliteConnection) {
    eventually("a whole checkpoint", async || {
        let (busy, pages, copied): (i64, i64, i64) =
            sqlx::query_as("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(&mut *connection).await.unwrap();
        busy == 0 && pages == copied
    })
    .await;
}

/// A reader who keeps his snapshot, behind whom nothing is worked into the file: what is refused from then on is of the log.
async fn read_on(folder: &Path) -> SqliteConnection {
    let mut reader = second_connection(folder).await;
    whole_checkpoint(&mut reader).await;
    sqlx::raw_sql("BEGIN; SELECT count(*) FROM receipts").execute(&mut reader).await.unwrap();
    reader
}

/// Commits until the disk refuses one; what was acknowledged.
async fn commit_until_refused(ledger: &Ledger) -> Vec<EventId> {
    let mut acknowledged = Vec::new();
    while acknowledged.len() < TOO_MANY {
        match commit(ledger).await {
            Ok(event_id) => acknowledged.push(event_id),
            Err(error) => {
                assert!(error.to_string().contains("disk I/O error"), "{error}");
                return acknowledged;
            }
        }
    }
    panic!("the disk refuses nothing");
}

/// What is there of a ledger behind a power failure.
async fn after_the_power(disk: &Disk) -> HashSet<EventId> {
    let ledger = open(&disk.after_the_power()).await;
    let items = everything(&ledger).await;
    assert_all_verify(&items);
    items.iter().map(|item| item.sealed.event_id).collect()
}

#[tokio::test]
async fn what_is_acknowledged_behind_a_commit_that_the_disk_refused_outlives_the_power() {
    let Some(disk) = Disk::mounted() else {
        println!("left out: no file system can be mounted here");
        return;
    };
    let folder = disk.path("mounted");
    let mut config = config(&folder);
    config.retry_interval = Duration::from_secs(3);
    let ledger = open_with(config).await.unwrap();
    let mut acknowledged = Vec::new();
    for _ in 0..TAKEN {
        acknowledged.push(commit(&ledger).await.unwrap());
    }
    let _reader = read_on(&folder).await;
    assert!(disk.sync());
    disk.fill();
    acknowledged.extend(commit_until_refused(&ledger).await);
    // Nothing else is committed behind what was refused either.
    let shredded = ledger.shred_commitment_key(&tenant("acme")).await.unwrap_err();
    assert!(shredded.to_string().contains("not in order again yet"), "{shredded}");
    let pruned = ledger.prune_confirmed("a lane", 1, Timestamp::from_micros(0)).await.unwrap_err();
    assert!(pruned.to_string().contains("not in order again yet"), "{pruned}");
    disk.make_room();
    eventually("the ledger goes on", async || match commit(&ledger).await {
        Ok(event_id) => {
            acknowledged.push(event_id);
            true
        }
        Err(_) => false,
    })
    .await;
    for _ in 0..MORE {
        acknowledged.push(commit(&ledger).await.unwrap());
    }

    // The power fails here.
    let there = after_the_power(&disk).await;
    let lost = acknowledged.iter().filter(|event_id| !there.contains(*event_id)).count();
    assert_eq!(lost, 0, "of {} receipts that were acknowledged", acknowledged.len());
}

#[tokio::test]
async fn a_ledger_does_not_write_while_the_disk_refuses_what_a_checkpoint_copies() {
    let Some(disk) = Disk::mounted() else {
        println!("left out: no file system can be mounted here");
        return;
    };
    let folder = disk.path("mounted");
    let mut config = config(&folder);
    config.retry_interval = Duration::from_secs(3);
    let ledger = open_with(config).await.unwrap();
    commit(&ledger).await.unwrap();
    let mut reader = read_on(&folder).await;
    for _ in 0..LONG {
        commit(&ledger).await.unwrap();
    }
    sqlx::raw_sql("ROLLBACK").execute(&mut reader).await.unwrap();
    whole_checkpoint(&mut reader).await;
    // From here on the log is written where it has blocks already. What is refused is what the file grows by.
    assert!(disk.sync());
    disk.fill();
    let before = ledger.stats();
    eventually("a checkpoint that is refused", async || {
        let _taken = commit(&ledger).await;
        !ledger.is_writable()
    })
    .await;
    let stats = ledger.stats();
    assert!(stats.failed_checkpoints > before.failed_checkpoints);
    assert_eq!(stats.failed_commits, before.failed_commits, "the log grew past its blocks, and this test proves nothing");
    assert!(commit(&ledger).await.is_err());
    disk.make_room();
    eventually("the ledger goes on", async || commit(&ledger).await.is_ok()).await;
}

/// The process that is killed. Run by the test below, never by itself.
#[test]
#[ignore = "the victim of what_a_start_reads_of_a_log_that_was_refused_outlives_the_power"]
fn victim() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config = config(folder);
        // It is killed before it tries the disk again.
        config.retry_interval = Duration::from_secs(3600);
        let ledger = open_with(config).await.unwrap();
        for _ in 0..TAKEN {
            commit(&ledger).await.unwrap();
        }
        let _reader = read_on(folder).await;
        // Behind what the harness has begun a line with.
        println!("\nTAKEN");
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        println!("REFUSED {}", TAKEN + commit_until_refused(&ledger).await.len());
        std::io::stdin().read_line(&mut line).unwrap();
    });
}

#[test]
fn what_a_start_reads_of_a_log_that_was_refused_outlives_the_power() {
    let Some(disk) = Disk::mounted() else {
        println!("left out: no file system can be mounted here");
        return;
    };
    let folder = disk.path("mounted");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "refused::victim", "--ignored", "--nocapture"])
        .env(FOLDER, &folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let mut said = |word: &str| lines.find_map(|line| line.unwrap().strip_prefix(word).map(str::to_owned)).unwrap();
    said("TAKEN");
    assert!(disk.sync());
    disk.fill();
    std::io::Write::write_all(victim.stdin.as_mut().unwrap(), b"go on\n").unwrap();
    let acknowledged: usize = said("REFUSED ").parse().unwrap();
    victim.kill().unwrap();
    victim.wait().unwrap();
    disk.make_room();

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let ledger = open(&folder).await;
        let seen = everything(&ledger).await;
        let decisions = seen.iter().filter(|item| item.sealed.kind == EventKind::AuthorizeDecision).count();
        assert_eq!(decisions, acknowledged + 1, "the start does not read what was refused, and this test proves nothing");
        let mut told: Vec<EventId> = seen.iter().map(|item| item.sealed.event_id).collect();
        for _ in 0..MORE {
            told.push(commit(&ledger).await.unwrap());
        }
        assert!(!folder.join("ledger.db-wal.kept").exists() && !folder.join("ledger.db-wal.new").exists());

        // The power fails here.
        let there = after_the_power(&disk).await;
        let lost = told.iter().filter(|event_id| !there.contains(*event_id)).count();
        assert_eq!(lost, 0, "of {} receipts that were read or acknowledged", told.len());
    });
}
