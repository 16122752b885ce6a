//! Pruning: what goes, what stays, and that what is missing otherwise is not taken for pruned.

use crate::fixture::*;
use aegis_ledger::LedgerError;
use aegis_ledger::verify::{ExportVerdict, verify_export};
use aegis_model::{EventKind, Timestamp};
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

#[tokio::test]
async fn pruning_keeps_heads_and_what_is_not_shipped() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let acme = tenant("acme");
    for _ in 0..5 {
        ledger.submit(draft_now(&acme)).await.unwrap();
    }
    ledger.close().await.unwrap();
    drop(ledger);
    let ledger = open(folder.path()).await;
    ledger.submit(draft_now(&acme)).await.unwrap();
    let (all, late) = (everything(&ledger).await, Timestamp::from_micros(i64::MAX));
    let lane = &all[0].sealed.lane;
    assert_eq!(ledger.old_lanes(late, "", 10).await.unwrap(), std::slice::from_ref(lane), "of the other one nothing may go");
    assert_eq!(ledger.prune_confirmed(lane, i64::MAX, late).await.unwrap(), 0, "nothing was shipped");
    ledger.mark_shipped(ledger.last_row()).await;
    ledger.submit(draft_now(&acme)).await.unwrap();
    assert_eq!(ledger.prune_confirmed(lane, 0, late).await.unwrap(), 0, "nobody has any of it");
    assert_eq!(ledger.prune_confirmed(lane, i64::MAX, all[0].sealed.ts).await.unwrap(), 0, "nothing is that old");
    assert_eq!((ledger.pruned_through(lane).await.unwrap(), ledger.was_pruned()), (Some(0), false));
    assert_eq!(ledger.prune_confirmed(lane, 3, late).await.unwrap(), 3);
    assert_eq!((ledger.pruned_through(lane).await.unwrap(), ledger.was_pruned()), (Some(3), true));
    assert_eq!(ledger.prune_confirmed(lane, i64::MAX, late).await.unwrap(), 3);
    assert_eq!(ledger.prune_confirmed(&all[7].sealed.lane, i64::MAX, late).await.unwrap(), 0, "it is open, and short");
    assert_eq!(ledger.prune_confirmed("another", i64::MAX, late).await.unwrap(), 0);
    assert!(ledger.old_lanes(late, "", 10).await.unwrap().is_empty());
    assert_eq!(ledger.pruned_through("another").await.unwrap(), None);
    ledger.keep_rows();
    assert_eq!(ledger.prune_confirmed(lane, i64::MAX, late).await, Err(LedgerError::Kept), "somebody names its rows");
    let items = everything(&ledger).await;
    assert_eq!(
        kinds(&items),
        [EventKind::LaneClose, EventKind::LaneOpen, EventKind::AuthorizeDecision, EventKind::AuthorizeDecision]
    );
    let export: String = items.iter().map(|item| format!("{}\n", item.sealed.wire)).collect();
    let report = verify_export(export.as_bytes(), Some(&ring())).unwrap();
    assert_eq!(report.verdict, ExportVerdict::Valid, "{:?}", report.failure);
    drop(ledger);
    let ledger = open(folder.path()).await;
    assert_all_verify(&everything(&ledger).await[1..]);
}

#[tokio::test]
async fn what_somebody_else_deleted_is_missing_and_not_pruned() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let acme = tenant("acme");
    for _ in 0..9 {
        ledger.submit(draft_now(&acme)).await.unwrap();
    }
    ledger.close().await.unwrap();
    drop(ledger);
    let ledger = open(folder.path()).await;
    ledger.mark_shipped(ledger.last_row()).await;
    let lane = everything(&ledger).await[0].sealed.lane.clone();
    assert_eq!(ledger.first_missing(&lane, 1, 11).await.unwrap(), None, "with its open and its close");
    assert_eq!(ledger.first_missing(&lane, 4, 12).await.unwrap(), Some(12), "it never was");
    assert_eq!(ledger.first_missing("another", 3, 4).await.unwrap(), Some(3));
    assert_eq!(ledger.prune_confirmed(&lane, 2, Timestamp::from_micros(i64::MAX)).await.unwrap(), 2);
    drop(ledger);

    let delete = async |rows: &'static str| {
        let options = SqliteConnectOptions::new().filename(folder.path().join("ledger.db"));
        let mut opened = options.connect().await.unwrap();
        sqlx::query(rows).execute(&mut opened).await.unwrap();
        opened.close().await.unwrap();
    };
    delete("DELETE FROM receipts WHERE seq IN (3, 4, 7)").await;
    let ledger = open(folder.path()).await;
    assert_eq!(
        (ledger.pruned_through(&lane).await.unwrap(), ledger.was_pruned()),
        (Some(2), true),
        "what the program pruned, and no more"
    );
    assert_eq!(ledger.first_missing(&lane, 3, 11).await.unwrap(), Some(3));
    assert_eq!(ledger.first_missing(&lane, 5, 11).await.unwrap(), Some(7));
    assert_eq!(ledger.first_missing(&lane, 8, 11).await.unwrap(), None);
    drop(ledger);

    // A file of before there were marks: what is missing at the beginning is all that is known of it.
    delete("DROP TABLE pruned_lanes").await;
    let ledger = open(folder.path()).await;
    assert_eq!((ledger.pruned_through(&lane).await.unwrap(), ledger.was_pruned()), (Some(4), true));
}

#[tokio::test]
async fn a_lane_that_is_open_is_pruned_too_and_what_follows_it_knows_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let acme = tenant("acme");
    for _ in 0..99 {
        ledger.submit(draft_now(&acme)).await.unwrap();
    }
    ledger.mark_shipped(ledger.last_row()).await;
    let lane = everything(&ledger).await[0].sealed.lane.clone();
    let late = Timestamp::from_micros(i64::MAX);
    assert_eq!(ledger.prune_confirmed(&lane, i64::MAX, late).await.unwrap(), 36, "as many stay as a start checks");
    assert_eq!(ledger.prune_confirmed(&lane, i64::MAX, late).await.unwrap(), 0);
    let next = ledger.submit(draft_now(&acme)).await.unwrap();
    assert_eq!((next.lane.as_str(), next.seq), (lane.as_str(), 101), "it goes on");
    // As a crash leaves it.
    drop(ledger);
    let ledger = open(folder.path()).await;
    let items = everything(&ledger).await;
    assert_eq!((items[0].sealed.seq, items[64].sealed.seq), (37, 101));
    let gap = items.iter().find(|item| item.sealed.kind == EventKind::LaneGap).unwrap();
    assert_eq!((&detail(gap)["reason"], &detail(gap)["predecessor"]["seq"]), (&json!("unclean_stop"), &json!(101)));
    assert_eq!(detail(gap)["damaged_rows"], 0);
    let export: String = items.iter().map(|item| format!("{}\n", item.sealed.wire)).collect();
    let report = verify_export(export.as_bytes(), Some(&ring())).unwrap();
    assert_eq!(report.verdict, ExportVerdict::Valid, "{:?}", report.failure);
    // The lane has ended: all but its last may go.
    ledger.mark_shipped(ledger.last_row()).await;
    assert_eq!(ledger.prune_confirmed(&lane, 100, late).await.unwrap(), 64);
    assert_eq!(everything(&ledger).await[0].sealed.seq, 101);
}

#[tokio::test]
async fn a_prune_that_sqlite_takes_back_by_itself_is_told_and_done_later() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let acme = tenant("acme");
    for _ in 0..99 {
        ledger.submit(draft_now(&acme)).await.unwrap();
    }
    ledger.mark_shipped(ledger.last_row()).await;
    let lane = everything(&ledger).await[0].sealed.lane.clone();
    let late = Timestamp::from_micros(i64::MAX);
    // As a full disk does: of the statement and of its transaction nothing is left.
    let mut beside = second_connection(folder.path()).await;
    let full = "CREATE TRIGGER full BEFORE DELETE ON receipts BEGIN SELECT RAISE(ROLLBACK, 'database or disk is full'); END";
    sqlx::raw_sql(full).execute(&mut beside).await.unwrap();
    for _ in 0..2 {
        let refused = ledger.prune_confirmed(&lane, i64::MAX, late).await.unwrap_err();
        assert!(matches!(&refused, LedgerError::Unavailable(reason) if reason.contains("disk is full")), "{refused}");
    }
    ledger.submit(draft_now(&acme)).await.unwrap();
    assert_eq!((ledger.pruned_through(&lane).await.unwrap(), ledger.was_pruned()), (Some(0), false));
    sqlx::raw_sql("DROP TRIGGER full").execute(&mut beside).await.unwrap();
    assert_eq!(ledger.prune_confirmed(&lane, i64::MAX, late).await.unwrap(), 37);
    let items = everything(&ledger).await;
    assert_eq!((items[0].sealed.seq, items.len()), (38, 64));
}
