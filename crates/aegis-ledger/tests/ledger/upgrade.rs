//! A ledger of schema 1, whose rows hold their bodies whole: read as it is, brought to the schema of this program at a start that may be
//! stopped anywhere, and gone on with. What it has exported it exports byte for byte.

use std::path::{Path, PathBuf};

use crate::fixture::*;
use aegis_ledger::verify::{ExportVerdict, verify_export};
use aegis_ledger::{Draft, Durability, LedgerError, LedgerReader, OutboxItem};
use aegis_model::{EventKind, FrozenAction, SealedEvent, TenantId};
use serde_json::json;
use sqlx::{Connection, SqliteConnection};

/// What a program of schema 1 made a new file with.
const SCHEMA_1: &str = "
CREATE TABLE lanes (
  lane_no   INTEGER PRIMARY KEY,
  lane      TEXT NOT NULL UNIQUE,
  tenant_id TEXT NOT NULL,
  state     TEXT NOT NULL CHECK (state IN ('open', 'closed', 'abandoned'))
) STRICT;
CREATE INDEX lanes_of_tenant ON lanes (tenant_id, lane_no);
CREATE INDEX lanes_by_state ON lanes (state) WHERE state = 'open';
CREATE TABLE commits (
  commit_id INTEGER PRIMARY KEY,
  first_row INTEGER NOT NULL,
  size      INTEGER NOT NULL,
  root      BLOB NOT NULL,
  key_id    TEXT NOT NULL,
  signature TEXT NOT NULL,
  max_ts    INTEGER NOT NULL
) STRICT;
CREATE TABLE receipts (
  row          INTEGER PRIMARY KEY,
  tenant_id    TEXT NOT NULL,
  event_id     BLOB NOT NULL,
  kind         TEXT NOT NULL,
  ts           INTEGER NOT NULL,
  lane_no      INTEGER NOT NULL,
  seq          INTEGER NOT NULL,
  receipt_hash TEXT NOT NULL,
  prev_hash    TEXT NOT NULL,
  event        TEXT NOT NULL,
  receipt      TEXT NOT NULL,
  commit_id    INTEGER NOT NULL,
  leaf         INTEGER NOT NULL,
  path         BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX receipts_lane_seq ON receipts (lane_no, seq);
CREATE UNIQUE INDEX receipts_tenant_event ON receipts (tenant_id, event_id);
CREATE INDEX receipts_tenant_row ON receipts (tenant_id);
CREATE TABLE approval_outbox (
  row         INTEGER PRIMARY KEY,
  tenant_id   TEXT NOT NULL,
  approval_id TEXT NOT NULL,
  expires_at  INTEGER NOT NULL,
  frozen      TEXT NOT NULL
) STRICT;
CREATE TABLE commitment_keys (
  tenant_id TEXT PRIMARY KEY,
  key       BLOB NOT NULL
) STRICT;
CREATE TABLE quarantined_rows (
  row          INTEGER PRIMARY KEY,
  tenant_id    TEXT NOT NULL,
  event_id     BLOB NOT NULL,
  kind         TEXT NOT NULL,
  ts           INTEGER NOT NULL,
  lane_no      INTEGER NOT NULL,
  seq          INTEGER NOT NULL,
  receipt_hash TEXT NOT NULL,
  prev_hash    TEXT NOT NULL,
  event        TEXT NOT NULL,
  receipt      TEXT NOT NULL,
  commit_id    INTEGER NOT NULL,
  leaf         INTEGER NOT NULL,
  path         BLOB NOT NULL,
  reason       TEXT NOT NULL
) STRICT;
CREATE TABLE outbox_position (
  one     INTEGER PRIMARY KEY CHECK (one = 1),
  shipped INTEGER NOT NULL
) STRICT;
INSERT INTO outbox_position VALUES (1, 0);
CREATE TABLE write_probe (one INTEGER PRIMARY KEY CHECK (one = 1), filler BLOB NOT NULL) STRICT;
PRAGMA application_id = 1095059276;
PRAGMA user_version = 1;
";

/// Every table's rows, as they are.
const COPIES: &str = "
INSERT INTO lanes SELECT * FROM newer.lanes;
INSERT INTO commits SELECT * FROM newer.commits;
INSERT INTO receipts SELECT * FROM newer.receipts;
INSERT INTO approval_outbox SELECT * FROM newer.approval_outbox;
INSERT INTO commitment_keys SELECT * FROM newer.commitment_keys;
UPDATE outbox_position SET shipped = (SELECT shipped FROM newer.outbox_position);
";

/// The bytes that a receipt's hash was made of, out of its wire text.
fn body_of(item: &OutboxItem) -> String {
    let hash = &item.sealed.receipt_hash;
    let (_, from_body) = item.sealed.wire.split_once("\"receipt\":").unwrap();
    let (members, _) = from_body.split_once(&format!(",\"receipt_hash\":\"{hash}\"}},\"proof\":")).unwrap();
    let body = format!("{members}}}");
    assert_eq!(aegis_canon::sha256_hex(body.as_bytes()), *hash);
    body
}

/// A ledger's file as a program of schema 1 would have written it, in a folder of its own.
async fn as_schema_1(newer: &Path, items: &[OutboxItem]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let mut older = SqliteConnection::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
    sqlx::raw_sql("PRAGMA page_size = 8192; PRAGMA journal_mode = WAL").execute(&mut older).await.unwrap();
    sqlx::raw_sql(SCHEMA_1).execute(&mut older).await.unwrap();
    sqlx::query("ATTACH ? AS newer").bind(newer.join("ledger.db").to_str().unwrap()).execute(&mut older).await.unwrap();
    sqlx::raw_sql(COPIES).execute(&mut older).await.unwrap();
    for item in items {
        let update = sqlx::query("UPDATE receipts SET receipt = ? WHERE row = ?").bind(body_of(item)).bind(item.row);
        assert_eq!(update.execute(&mut older).await.unwrap().rows_affected(), 1);
    }
    sqlx::raw_sql("DETACH newer").execute(&mut older).await.unwrap();
    older.close().await.unwrap();
    assert!(!folder.path().join("ledger.db-wal").exists(), "all of it is in the file");
    folder
}

/// Two starts of a ledger with two tenants, of which the second ended cleanly or not; its file as of schema 1, and what was in it.
async fn older_ledger(ends_cleanly: bool) -> (tempfile::TempDir, Vec<OutboxItem>) {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    submit_some(&ledger).await;
    crash(ledger, folder.path()).await;
    let ledger = open(folder.path()).await;
    submit_some(&ledger).await;
    ledger.mark_shipped(3).await;
    if ends_cleanly {
        ledger.close().await.unwrap();
    }
    let items = everything(&ledger).await;
    crash(ledger, folder.path()).await;
    (as_schema_1(folder.path(), &items).await, items)
}

async fn submit_some(ledger: &aegis_ledger::Ledger) {
    let mut pending = Vec::new();
    for number in 0..40 {
        let mut draft = draft_now(&tenant(["acme", "beta"][number % 2]));
        draft.input = Some(b"in".to_vec());
        match number % 4 {
            0 => draft.detail = Some(json!({"request_id": "r", "n": number})),
            1 => draft.detail = Some(json!({"fraction": 0.5})),
            2 => draft.frozen = Some(Box::new(frozen(&draft, draft.event.ts.plus_seconds(900)))),
            _ => {}
        }
        pending.push(ledger.try_submit(draft, Durability::Required).unwrap());
        // Several commits, for a start reads the last of each lane.
        if number % 8 == 7 {
            for receipt in pending.drain(..) {
                receipt.await.unwrap();
            }
        }
    }
}

fn plain(items: &[OutboxItem]) -> Vec<(i64, SealedEvent, Option<FrozenAction>)> {
    items.iter().map(|item| (item.row, item.sealed.clone(), item.frozen.clone())).collect()
}

fn wires_of<'a>(items: &'a [OutboxItem], owner: &TenantId) -> Vec<&'a str> {
    items.iter().filter(|item| item.sealed.tenant_id == *owner).map(|item| item.sealed.wire.as_str()).collect()
}

async fn exported(reader: &LedgerReader, owner: &TenantId) -> Vec<String> {
    reader.export(owner, 0, 1000).await.unwrap().into_iter().map(|line| line.text).collect()
}

async fn indexes_and_version(folder: &Path) -> (Vec<String>, i64) {
    let mut beside = second_connection(folder).await;
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'receipts' ORDER BY name";
    let names = sqlx::query_scalar(sql).fetch_all(&mut beside).await.unwrap();
    let version = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut beside).await.unwrap();
    beside.close().await.unwrap();
    (names, version)
}

const NEW_INDEXES: [&str; 2] = ["receipts_event_tenant", "receipts_lane_seq"];
const OLD_INDEXES: [&str; 3] = ["receipts_lane_seq", "receipts_tenant_event", "receipts_tenant_row"];

/// Opens it, and holds against what was in it; then goes on, and looks at all of it again behind another start.
async fn goes_on(folder: &Path, before: &[OutboxItem]) {
    let ledger = open(folder).await;
    let items = everything(&ledger).await;
    assert_eq!(plain(&items[..before.len()]), plain(before));
    let acme = tenant("acme");
    let mut again: Draft = draft_now(&acme);
    again.event.event_id = before.iter().find(|item| item.sealed.tenant_id == acme).unwrap().sealed.event_id;
    let event_id = again.event.event_id;
    assert_eq!(ledger.submit(again.clone()).await.unwrap_err(), LedgerError::Duplicate { event_id });
    assert!(ledger.contains(&acme, event_id).await.unwrap());
    again.event.tenant_id = tenant("gamma");
    ledger.submit(again).await.unwrap();
    submit_some(&ledger).await;
    ledger.close().await.unwrap();
    let after = everything(&ledger).await;
    crash(ledger, folder).await;

    let ledger = open(folder).await;
    assert_eq!(plain(&everything(&ledger).await), plain(&after));
    assert_eq!(plain(&after[..before.len()]), plain(before));
    assert_all_verify(&after);
    for owner in ["acme", "beta", "gamma"].map(tenant) {
        let lines = ledger.export(&owner, 0, 1000).await.unwrap();
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, wires_of(&after, &owner));
        let report = verify_export(texts.join("\n").as_bytes(), Some(&ring())).unwrap();
        assert_eq!(report.verdict, ExportVerdict::Valid, "{:?}", report.failure);
    }
    crash(ledger, folder).await;
}

#[tokio::test]
async fn a_ledger_of_schema_1_is_exported_as_it_is_and_gone_on_with() {
    for ends_cleanly in [true, false] {
        let (folder, before) = older_ledger(ends_cleanly).await;
        let path = folder.path().join("ledger.db");
        let reader = LedgerReader::open(&path).await.unwrap();
        for owner in ["acme", "beta"].map(tenant) {
            assert_eq!(exported(&reader, &owner).await, wires_of(&before, &owner));
        }
        assert_eq!(
            indexes_and_version(folder.path()).await,
            (OLD_INDEXES.map(str::to_owned).to_vec(), 1),
            "reading changes nothing"
        );
        goes_on(folder.path(), &before).await;
        assert_eq!(indexes_and_version(folder.path()).await, (NEW_INDEXES.map(str::to_owned).to_vec(), 2));
        // Whoever had it open all the while reads on.
        for owner in ["acme", "beta"].map(tenant) {
            let lines = exported(&reader, &owner).await;
            assert_eq!(lines[..wires_of(&before, &owner).len()], wires_of(&before, &owner));
        }
    }
}

/// An older ledger that ended cleanly, too large to be checked whole, of which the page with one receipt cannot be read; which page.
async fn older_ledger_with_a_bad_page(pick: impl Fn(&[OutboxItem]) -> &OutboxItem) -> (tempfile::TempDir, Vec<OutboxItem>, u64) {
    let (folder, before) = older_ledger(true).await;
    // Nothing stands in a page that is no part of it any more.
    let mut beside = second_connection(folder.path()).await;
    sqlx::raw_sql("VACUUM").execute(&mut beside).await.unwrap();
    beside.close().await.unwrap();
    let page = spoil_page_of(folder.path(), &format!("\"event_id\":\"{}\"", pick(&before).sealed.event_id)).await;
    assert!(!folder.path().join("ledger.db-wal").exists(), "all of it is in the file");
    make_large(folder.path(), 100);
    (folder, before, page)
}

/// As large as it looks: what is behind its last page is no part of it.
fn make_large(folder: &Path, mebibytes: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(folder.join("ledger.db")).unwrap();
    file.set_len(mebibytes << 20).unwrap();
}

#[tokio::test]
async fn an_older_ledger_of_which_a_page_cannot_be_read_keeps_its_indexes_and_is_gone_on_with() {
    // Far from the end of a lane, which a start looks at. A frozen action has the id in its text too.
    let victim = |items: &[OutboxItem]| 15 + items[15..].iter().position(|item| item.frozen.is_none()).unwrap();
    let (folder, before, _) = older_ledger_with_a_bad_page(|items| &items[victim(items)]).await;
    let ledger = open(folder.path()).await;
    ledger.submit(draft_now(&tenant("acme"))).await.unwrap();
    let items = everything(&ledger).await;
    let is_there = |item: &&OutboxItem| items.iter().any(|other| other.row == item.row);
    let rest: Vec<OutboxItem> = before.iter().filter(is_there).cloned().collect();
    let gone = before.len() - rest.len();
    assert!((1..=8).contains(&gone) && !is_there(&&before[victim(&before)]), "one page of rows is gone, no more: {gone}");
    assert_eq!(plain(&items[..rest.len()]), plain(&rest));
    ledger.close().await.unwrap();
    let items = everything(&ledger).await;
    crash(ledger, folder.path()).await;
    assert_eq!(indexes_and_version(folder.path()).await, (OLD_INDEXES.map(str::to_owned).to_vec(), 2));
    // So does every later start: none reads more than the ends of lanes.
    make_large(folder.path(), 100);
    let ledger = open(folder.path()).await;
    assert_eq!(plain(&everything(&ledger).await), plain(&items));
    crash(ledger, folder.path()).await;
}

#[tokio::test]
async fn an_older_ledger_whose_last_receipt_cannot_be_read_says_which_page_it_is_on() {
    let (folder, _, page) = older_ledger_with_a_bad_page(|items| items.last().unwrap()).await;
    let path = folder.path().join("ledger.db");
    let refused = open_with(config(folder.path())).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Corrupt { .. }), "{refused}");
    let told = refused.to_string().to_lowercase();
    for part in [path.to_str().unwrap().to_lowercase(), format!("page {page}:"), "restore a backup".to_owned()] {
        assert!(told.contains(&part), "{part} in {told}");
    }
}

#[tokio::test]
async fn a_large_ledger_of_schema_1_keeps_its_indexes_and_is_gone_on_with() {
    let (folder, before) = older_ledger(true).await;
    make_large(folder.path(), 300);
    goes_on(folder.path(), &before).await;
    assert_eq!(indexes_and_version(folder.path()).await, (OLD_INDEXES.map(str::to_owned).to_vec(), 2));
}

#[tokio::test]
async fn a_row_of_schema_1_that_was_damaged_at_the_end_is_set_aside_and_told() {
    let (folder, before) = older_ledger(false).await;
    let last = before.last().unwrap();
    let mut beside = second_connection(folder.path()).await;
    let damage =
        "UPDATE receipts SET receipt = replace(receipt, '\"phase\":\"decision\"', '\"phase\":\"outcome\"') WHERE row = ?";
    assert_eq!(sqlx::query(damage).bind(last.row).execute(&mut beside).await.unwrap().rows_affected(), 1);
    beside.close().await.unwrap();
    let ledger = open(folder.path()).await;
    let items = everything(&ledger).await;
    assert_eq!(plain(&items[..before.len() - 1]), plain(&before[..before.len() - 1]));
    let gap = items
        .iter()
        .filter(|item| item.sealed.kind == EventKind::LaneGap)
        .map(detail)
        .find(|gap| gap["reason"] == "corrupt_tail");
    assert_eq!(gap.unwrap()["damaged"][0]["seq"], json!(last.sealed.seq));
    assert_all_verify(&items);
}

/// The file as it was, with so much of the log as a crash leaves: SQLite copies nothing of a log into the file that is not whole.
fn after_a_crash(file: &[u8], log: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    std::fs::write(&path, file).unwrap();
    std::fs::write(folder.path().join("ledger.db-wal"), log).unwrap();
    (folder, path)
}

#[tokio::test]
async fn a_start_that_is_stopped_anywhere_leaves_a_ledger_of_the_one_schema_or_the_other() {
    let (folder, before) = older_ledger(true).await;
    let path = folder.path().join("ledger.db");
    let file = std::fs::read(&path).unwrap();
    let ledger = open(folder.path()).await;
    let log = std::fs::read(folder.path().join("ledger.db-wal")).unwrap();
    crash(ledger, folder.path()).await;
    // The log's header, then frames of a page and its own header (sqlite.org/fileformat2.html#walformat).
    let page = usize::try_from(u32::from_be_bytes(log[8..12].try_into().unwrap())).unwrap();
    let frames = (log.len() - 32) / (page + 24);
    assert!(frames > 2, "{frames} frames are no transaction of several pages");
    let mut versions = Vec::new();
    for frame in 0..=frames {
        for extra in [0, 24, page / 2] {
            let end = log.len().min(32 + frame * (page + 24) + extra);
            let (looked_at, _) = after_a_crash(&file, &log[..end]);
            versions.push(indexes_and_version(looked_at.path()).await.1);
            let (stopped, path) = after_a_crash(&file, &log[..end]);
            let reader = LedgerReader::open(&path).await.unwrap();
            for owner in ["acme", "beta"].map(tenant) {
                assert_eq!(exported(&reader, &owner).await, wires_of(&before, &owner), "stopped at byte {end} of the log");
            }
            let ledger = open(stopped.path()).await;
            assert_eq!(plain(&everything(&ledger).await), plain(&before));
            crash(ledger, stopped.path()).await;
            assert_eq!(indexes_and_version(stopped.path()).await, (NEW_INDEXES.map(str::to_owned).to_vec(), 2));
        }
    }
    assert!(versions.is_sorted() && versions.first() == Some(&1) && versions.last() == Some(&2), "{versions:?}");
    let (finished, _) = after_a_crash(&file, &log);
    goes_on(finished.path(), &before).await;
}

#[tokio::test]
async fn a_reader_refuses_a_newer_schema_too() {
    let folder = tempfile::tempdir().unwrap();
    crash(open(folder.path()).await, folder.path()).await;
    let mut beside = second_connection(folder.path()).await;
    sqlx::raw_sql("PRAGMA user_version = 99").execute(&mut beside).await.unwrap();
    beside.close().await.unwrap();
    let refused = LedgerReader::open(&folder.path().join("ledger.db")).await.unwrap_err();
    assert!(matches!(refused, LedgerError::SchemaTooNew { found: 99, supported: 2, .. }), "{refused}");
}
