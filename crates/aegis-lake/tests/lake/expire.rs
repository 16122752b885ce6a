//! Old hours go, and nothing that is not old, not merged, not written or not passed by the noted position.

use std::sync::Arc;

use aegis_lake::{Folder, Replay, Span, Writer};
use aegis_model::Timestamp;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use crate::house::{Logged, MINUTE, base, expected, log_of, memory, observed, proved, rows, take, tenant, writer};

const DAY: i64 = 24 * 60 * MINUTE;
const HOUR_S: i64 = 3600;

/// Three hours of one tenant and one of another, each event in a file of its own.
fn log() -> Vec<Logged> {
    let of_acme = (0..6).map(|n| proved("acme", "acme.e.1", n + 1, n * 30 * MINUTE));
    log_of(of_acme.chain([proved("b", "b.e.1", 1, 0)]))
}

async fn written(store: &Arc<dyn ObjectStore>, log: &[Logged]) -> Writer {
    let mut writer = writer(store, log);
    for part in log.chunks(1) {
        take(&mut writer, part);
        writer.flush().await.unwrap();
    }
    writer
}

async fn tidy(writer: &mut Writer, now: Timestamp) {
    while writer.tidy(now, usize::MAX).await.unwrap() > 0 {}
}

async fn expire(writer: &mut Writer, now: Timestamp, noted: u64) {
    while writer.expire(now, DAY, noted, 1).await.unwrap() > 0 {}
}

async fn objects(store: &Arc<dyn ObjectStore>) -> usize {
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    listed.len()
}

/// Of the tenant's hours, those of its log whose rows are there.
async fn left(store: &Arc<dyn ObjectStore>, of: &str) -> usize {
    rows(store, &tenant(of)).await.num_rows()
}

#[tokio::test(flavor = "multi_thread")]
async fn hours_that_are_old_enough_go_with_their_files_and_the_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let store = Folder::open(folder.path()).unwrap();
    let log = log();
    let mut writer = written(&store, &log).await;
    // The first hour ended a day ago, to the microsecond.
    let now = base().plus_seconds(25 * HOUR_S);
    tidy(&mut writer, now).await;
    tidy(&mut writer, now.plus_seconds(HOUR_S / 2)).await;
    let before = objects(&store).await;
    expire(&mut writer, now.plus_micros(-1), u64::MAX).await;
    assert_eq!((left(&store, "acme").await, left(&store, "b").await, objects(&store).await), (6, 1, before));
    let reader = Replay::open(Arc::clone(&store), &tenant("acme"), None, Span::ALL).await.unwrap();
    let mut early = reader;
    let first = early.next().await.unwrap().unwrap();
    assert_eq!(first.len(), 6, "read before the hour went");

    let now = now.plus_seconds(HOUR_S);
    expire(&mut writer, now.plus_micros(-1), u64::MAX).await;
    assert_eq!((left(&store, "acme").await, left(&store, "b").await), (4, 0));
    assert_eq!(objects(&store).await, before, "a reader that began before may still want the files");
    let now = now.plus_seconds(HOUR_S);
    tidy(&mut writer, now).await;
    expire(&mut writer, now.plus_micros(-1), u64::MAX).await;
    assert!(folder.path().join("tenant=acme").is_dir() && !folder.path().join("tenant=b").exists(), "nothing of it is left");
    // Of the second hour, which is as old now, and the third.
    assert_eq!(left(&store, "acme").await, 2);
    assert!(!folder.path().join("tenant=acme/date=2026-11-26/hour=10").exists());
    assert!(folder.path().join("tenant=acme/date=2026-11-26/hour=12/manifest.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_hour_goes_that_is_not_merged_not_passed_or_still_to_be_written() {
    let (store, log) = (memory(), log());
    let much_later = base().plus_seconds(1000 * HOUR_S);
    let mut writer = written(&store, &log).await;
    expire(&mut writer, much_later, u64::MAX).await;
    assert_eq!(left(&store, "acme").await, 6, "not merged");
    tidy(&mut writer, much_later).await;
    tidy(&mut writer, much_later.plus_seconds(HOUR_S)).await;
    let much_later = much_later.plus_seconds(2 * HOUR_S);
    expire(&mut writer, much_later, 1).await;
    assert_eq!(left(&store, "acme").await, 6, "what comes after the noted position would be read again and be a row again");

    // One more of the first hour, which waits to be written: that hour stays, and the others go.
    take(&mut writer, &[(8, proved("acme", "acme.e.1", 7, 1))]);
    let much_later = much_later.plus_seconds(2 * HOUR_S);
    expire(&mut writer, much_later, u64::MAX).await;
    assert_eq!(left(&store, "acme").await, 2);
    writer.flush().await.unwrap();
    assert_eq!(left(&store, "acme").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_astray_stays_and_what_no_manifest_names_goes_with_its_hour() {
    let store = memory();
    let mut forged = observed("acme", 0);
    forged.ts = Timestamp::from_micros(0);
    let log = log_of([forged, proved("acme", "acme.e.1", 1, 0)]);
    let mut writer = written(&store, &log).await;
    let unnamed = Path::from("tenant=acme/date=2026-11-26/hour=10/0000000099.parquet");
    store.put(&unnamed, PutPayload::from("half")).await.unwrap();
    for hours in [1000, 1002, 1004] {
        let now = base().plus_seconds(hours * HOUR_S);
        tidy(&mut writer, now).await;
        expire(&mut writer, now, u64::MAX).await;
    }
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    let names: Vec<String> = listed.iter().map(|object| object.location.to_string()).collect();
    assert!(names.len() == 2 && names.iter().all(|name| name.starts_with("tenant=acme/astray/")), "{names:?}");
    let astray = expected(&log[..1], &tenant("acme"));
    assert_eq!(rows(&store, &tenant("acme")).await, crate::house::as_rows(astray));
}
