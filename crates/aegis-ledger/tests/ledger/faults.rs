//! A disk that is full, read-only, locked or damaged: CONTRACTS §9, row "ledger cannot write", and what a start refuses.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use crate::fixture::*;
use aegis_ledger::{Durability, Ledger, LedgerError, SubmitError};
use aegis_model::EventKind;
use serde_json::json;
use sqlx::{Connection, SqliteConnection};

async fn fill_up(ledger: &Ledger) -> u64 {
    for written in 0..100_000 {
        match ledger.try_submit(draft_now(&tenant("acme")), Durability::Required) {
            Ok(pending) => match pending.await {
                Ok(_) => {}
                Err(LedgerError::Unavailable(_)) => return written,
                Err(other) => panic!("{other}"),
            },
            Err(other) => panic!("{other}"),
        }
    }
    panic!("the disk never filled up");
}

/// From full to room again: refused drafts are never written, best-effort ones are kept as far as there is room, and a gap tells
/// the rest.
async fn lives_through_a_full_disk(folder: &Path, limit: Option<Arc<AtomicU32>>, make_room: impl FnOnce()) {
    let mut config = config(folder);
    config.best_effort_capacity = 3;
    config.hooks.page_limit = limit;
    let ledger = open_with(config).await.unwrap();
    let acme = tenant("acme");
    assert!(fill_up(&ledger).await > 0);
    assert!(!ledger.is_writable());
    let refused = draft_now(&acme);
    let refused_id = refused.event.event_id;
    assert!(matches!(ledger.try_submit(refused, Durability::Required), Err(SubmitError::Unavailable)));

    let mut kept = Vec::new();
    for _ in 0..5 {
        let draft = draft_now(&acme);
        kept.push((draft.event.event_id, ledger.try_submit(draft, Durability::BestEffort).unwrap()));
    }
    eventually("the overflow", async || ledger.dropped_total() == 2).await;
    assert!(!ledger.is_writable());
    make_room();
    eventually("a writable ledger", async || ledger.is_writable()).await;
    let mut outcomes = Vec::new();
    for (id, pending) in kept {
        let committed = pending.await.is_ok();
        assert_eq!(ledger.contains(&acme, id).await.unwrap(), committed);
        outcomes.push(committed);
    }
    assert_eq!(outcomes, [true, true, true, false, false]);
    assert!(!ledger.contains(&acme, refused_id).await.unwrap());
    ledger.submit(draft_now(&acme)).await.unwrap();

    let items = everything(&ledger).await;
    assert_all_verify(&items);
    let gaps: Vec<_> = items.iter().filter(|item| item.sealed.kind == EventKind::LaneGap).map(detail).collect();
    assert_eq!(gaps.iter().map(|gap| gap["dropped"].as_u64().unwrap()).sum::<u64>(), 2, "{gaps:?}");
    assert_eq!(gaps.iter().map(|gap| gap["refused"].as_u64().unwrap()).sum::<u64>(), 2, "{gaps:?}");
    assert!(gaps.iter().all(|gap| gap["reason"] == "ledger_unavailable"));
    assert!(ledger.stats().failed_commits > 0);
    ledger.close().await.unwrap();
}

#[tokio::test]
async fn a_full_database_refuses_keeps_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let limit = Arc::new(AtomicU32::new(120));
    let raised = Arc::clone(&limit);
    lives_through_a_full_disk(folder.path(), Some(limit), move || raised.store(0, Ordering::Release)).await;
}

#[tokio::test]
async fn what_keeps_coming_does_not_keep_a_ledger_from_trying_its_disk_again() {
    let folder = tempfile::tempdir().unwrap();
    let limit = Arc::new(AtomicU32::new(120));
    let mut config = config(folder.path());
    config.hooks.page_limit = Some(Arc::clone(&limit));
    config.best_effort_capacity = 8;
    let ledger = open_with(config).await.unwrap();
    let acme = tenant("acme");
    fill_up(&ledger).await;
    let stopped = Arc::new(AtomicU8::new(0));
    let reader = {
        let (ledger, acme, stopped) = (ledger.clone(), acme.clone(), Arc::clone(&stopped));
        tokio::spawn(async move {
            // Reads come at all times, and ten times as often as the disk is tried.
            while stopped.load(Ordering::Acquire) == 0 {
                let _kept_or_counted = ledger.try_submit(draft_now(&acme), Durability::BestEffort);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    };
    eventually("reads that find no room", async || ledger.dropped_total() > 2).await;
    assert!(!ledger.is_writable());
    limit.store(0, Ordering::Release);
    eventually("a writable ledger", async || ledger.is_writable()).await;
    ledger.submit(draft_now(&acme)).await.unwrap();
    stopped.store(1, Ordering::Release);
    reader.await.unwrap();
    assert_all_verify(&everything(&ledger).await);
    ledger.close().await.unwrap();
}

/// A mount that goes away with the test.
struct Mount(PathBuf);

impl Mount {
    fn new(arguments: &[&str], at: &Path) -> Option<Self> {
        let done = Command::new("mount").args(arguments).arg(at).output().is_ok_and(|output| output.status.success());
        if !done {
            eprintln!("no permission to mount: this machine tests the same law without a real mount");
        }
        done.then(|| Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_keeps_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_mount) = Mount::new(&["-t", "tmpfs", "-o", "size=1536k", "tmpfs"], folder.path()) else { return };
    let filler = folder.path().join("filler");
    std::fs::write(&filler, vec![1u8; 700 << 10]).unwrap();
    lives_through_a_full_disk(folder.path(), None, move || std::fs::remove_file(filler).unwrap()).await;
}

#[tokio::test]
async fn a_read_only_folder_is_a_clear_error_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    ledger.submit(draft_now(&tenant("acme"))).await.unwrap();
    ledger.close().await.unwrap();
    crash(ledger, folder.path()).await;
    let path = folder.path().to_str().unwrap();
    let Some(mount) = Mount::new(&["--bind", path], folder.path()) else { return };
    let remounted = Command::new("mount").args(["-o", "remount,ro,bind", path]).output().unwrap();
    assert!(remounted.status.success(), "{remounted:?}");
    let refused = open_with(config(folder.path())).await.unwrap_err();
    assert!(matches!(refused, LedgerError::NotWritable { .. }), "{refused}");
    assert!(refused.to_string().contains("ledger.db cannot be written"), "{refused}");
    drop(mount);
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_a_clear_error_at_start() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let refused = open_with(config(&folder.path().join("file").join("below"))).await.unwrap_err();
    assert!(matches!(refused, LedgerError::NotWritable { .. }), "{refused}");
}

#[tokio::test]
async fn a_second_open_is_refused_while_the_first_lives() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).await;
    let mut impatient = config(folder.path());
    impatient.lock_wait = Duration::ZERO;
    let refused = open_with(impatient.clone()).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Locked { .. }), "{refused}");
    crash(first, folder.path()).await;
    open_with(impatient).await.unwrap();
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    crash(open(folder.path()).await, folder.path()).await;
    let mut other = second_connection(folder.path()).await;
    sqlx::raw_sql("PRAGMA user_version = 99").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let refused = open_with(config(folder.path())).await.unwrap_err();
    assert!(matches!(refused, LedgerError::SchemaTooNew { found: 99, supported: 2, .. }), "{refused}");
}

#[tokio::test]
async fn a_file_that_is_no_ledger_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    std::fs::write(&path, b"this is not a database, whatever it is called; it is long enough to be read as a header, though")
        .unwrap();
    let before = std::fs::read(&path).unwrap();
    let refused = open_with(config(folder.path())).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Corrupt { .. }), "{refused}");
    assert!(refused.to_string().contains("moving them aside"), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), before);

    std::fs::remove_file(&path).unwrap();
    let mut other = SqliteConnection::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
    sqlx::raw_sql("CREATE TABLE recipes (cake TEXT)").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let refused = open_with(config(folder.path())).await.unwrap_err();
    assert!(refused.to_string().contains("not a ledger"), "{refused}");
}

#[tokio::test]
async fn damaged_pages_are_found_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    for _ in 0..50 {
        ledger.submit(draft_now(&tenant("acme"))).await.unwrap();
    }
    ledger.close().await.unwrap();
    crash(ledger, folder.path()).await;
    let mut other = second_connection(folder.path()).await;
    sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut other).await.unwrap();
    let page: i64 =
        sqlx::query_scalar("SELECT rootpage FROM sqlite_schema WHERE name = 'receipts'").fetch_one(&mut other).await.unwrap();
    let page_size: i64 = sqlx::query_scalar("PRAGMA page_size").fetch_one(&mut other).await.unwrap();
    other.close().await.unwrap();
    let path = folder.path().join("ledger.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let page_size = page_size as usize;
    let start = (page as usize - 1) * page_size;
    bytes[start..start + page_size].fill(0xA5);
    std::fs::write(&path, bytes).unwrap();
    let refused = open_with(config(folder.path())).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Corrupt { .. }), "{refused}");
}

#[tokio::test]
async fn a_page_that_cannot_be_read_hides_no_other_row() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let mut sealed = Vec::new();
    for _ in 0..60 {
        sealed.push(ledger.submit(draft_now(&tenant("acme"))).await.unwrap());
    }
    let last = ledger.last_row();
    // The event's own text, which no index holds.
    let victim = format!("\"event_id\":\"{}\"", sealed[30].event_id);
    spoil_page_of(folder.path(), &victim).await;

    let items = everything(&ledger).await;
    let rows: Vec<i64> = items.iter().map(|item| item.row).collect();
    let gone: Vec<i64> = (1..=last).filter(|row| !rows.contains(row)).collect();
    // Lane open is row 1, so receipt 30 is row 32.
    assert!(gone.contains(&32) && gone.len() <= 8, "one page of rows is gone, no more: {gone:?}");
    assert_eq!(*rows.last().unwrap(), last);
    let kept = ledger.read_kept(25, 40, 100).await.unwrap();
    let kept: Vec<i64> = kept.iter().map(|item| item.row).collect();
    assert_eq!(kept, (26..=40).filter(|row| !gone.contains(row)).collect::<Vec<_>>());
    // Nothing but what cannot be read, and what comes after it.
    assert!(ledger.read_kept(gone[0] - 1, *gone.last().unwrap(), 100).await.unwrap().is_empty());
    assert_eq!(ledger.read_outbox(gone[0] - 1, 1).await.unwrap()[0].row, gone.last().unwrap() + 1);
    ledger.submit(draft_now(&tenant("acme"))).await.unwrap();
}

/// Ways in which a last row can be damaged, each as a change of the row with the highest number.
const DAMAGES: [&str; 11] = [
    "UPDATE receipts SET receipt = replace(receipt, '\"phase\":\"decision\"', '\"phase\":\"decisiom\"') WHERE row = ?",
    "UPDATE receipts SET receipt = substr(receipt, 1, length(receipt) / 2) WHERE row = ?",
    "UPDATE receipts SET receipt = '' WHERE row = ?",
    "UPDATE receipts SET event = substr(event, 1, 100) WHERE row = ?",
    "UPDATE receipts SET event = replace(event, '\"deny\"', '\"denY\"') WHERE row = ?",
    "UPDATE receipts SET event_id = zeroblob(16) WHERE row = ?",
    "UPDATE receipts SET prev_hash = upper(prev_hash) WHERE row = ?",
    "UPDATE receipts SET leaf = leaf + 1 WHERE row = ?",
    "UPDATE receipts SET path = zeroblob(32) WHERE row = ?",
    "UPDATE receipts SET kind = 'nonsense' WHERE row = ?",
    "UPDATE receipts SET receipt_hash = upper(receipt_hash) WHERE row = ?",
];

#[tokio::test]
async fn a_corrupt_last_row_is_set_aside_and_told() {
    for damage in DAMAGES {
        let folder = tempfile::tempdir().unwrap();
        let ledger = open(folder.path()).await;
        let acme = tenant("acme");
        for _ in 0..3 {
            ledger.submit(draft_now(&acme)).await.unwrap();
        }
        let last = ledger.submit(draft_now(&acme)).await.unwrap();
        let last_row = ledger.last_row();
        let before = everything(&ledger).await;
        crash(ledger, folder.path()).await;
        let mut other = second_connection(folder.path()).await;
        let changed = sqlx::query(damage).bind(last_row).execute(&mut other).await.unwrap();
        assert_eq!(changed.rows_affected(), 1);
        other.close().await.unwrap();

        let ledger = open(folder.path()).await;
        assert!(!ledger.contains(&acme, last.event_id).await.unwrap());
        let items = everything(&ledger).await;
        assert_all_verify(&items);
        assert_eq!(items.len(), before.len() - 1 + 2);
        let gap = detail(items.last().unwrap());
        assert_eq!(gap["reason"], "corrupt_tail", "{damage}");
        assert_eq!(gap["predecessor"]["seq"], json!(last.seq - 1));
        assert_eq!((&gap["damaged"][0]["seq"], &gap["damaged"][0]["quarantined"]), (&json!(last.seq), &json!(true)));
        // Rows are numbered past the one set aside, so that the shipper never takes one for the other.
        assert!(items.last().unwrap().row > last_row);
        let committed = ledger.submit(draft_now(&acme)).await.unwrap();
        assert_ne!(committed.lane, last.lane, "the damaged lane is never continued");
        crash(ledger, folder.path()).await;
        let mut other = second_connection(folder.path()).await;
        let aside: i64 = sqlx::query_scalar("SELECT row FROM quarantined_rows").fetch_one(&mut other).await.unwrap();
        assert_eq!(aside, last_row);
    }
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_looked_up() {
    let folder = tempfile::tempdir().unwrap();
    let fault = Arc::new(AtomicU8::new(0));
    let mut config = config(folder.path());
    config.hooks.commit_fault = Some(Arc::clone(&fault));
    let ledger = open_with(config).await.unwrap();
    let acme = tenant("acme");
    ledger.submit(draft_now(&acme)).await.unwrap();
    fault.store(1, Ordering::Release);
    let found = ledger.submit(draft_now(&acme)).await.unwrap();
    assert_eq!(found.seq, 3);

    // The disk cannot be asked at first: the waiter is refused, and the lane goes on behind the receipt that is there after all.
    fault.store(2, Ordering::Release);
    let draft = draft_now(&acme);
    let id = draft.event.event_id;
    let refused = ledger.submit(draft).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Unavailable(_)), "{refused}");
    eventually("a writable ledger", async || ledger.is_writable()).await;
    assert!(ledger.contains(&acme, id).await.unwrap());
    eventually("the gap receipt", async || kinds(&everything(&ledger).await).contains(&EventKind::LaneGap)).await;
    let next = ledger.submit(draft_now(&acme)).await.unwrap();
    assert_eq!(next.seq, 6);
    let items = everything(&ledger).await;
    assert_all_verify(&items);
    assert_eq!(detail(&items[4])["refused"], json!(1));
    ledger.close().await.unwrap();
}

#[tokio::test]
async fn a_setting_that_cannot_work_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for edge_id in ["", "a b", "edge>", &"e".repeat(65)] {
        let mut bad = config(folder.path());
        bad.edge_id = edge_id.to_owned();
        assert!(matches!(open_with(bad).await.unwrap_err(), LedgerError::Config(_)));
    }
    let mut bad = config(folder.path());
    bad.max_batch = 0;
    assert!(matches!(open_with(bad).await.unwrap_err(), LedgerError::Config(_)));
}

#[tokio::test]
async fn the_file_is_its_owners_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    ledger.submit(draft_now(&tenant("acme"))).await.unwrap();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.path());
    }
}
