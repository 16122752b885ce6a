//! The same lake in each kind of store: in memory, in a folder, on a real S3 server. What one promises the others do.

use std::sync::Arc;

use aegis_lake::{Bounds, Folder, Hour, LakeError, QueryError, Replay, Span, Writer, WriterLimits, find_event, query, tenants};
use aegis_model::{SecurityEvent, Timestamp};
use bytes::Bytes;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};
use tempfile::TempDir;

use crate::house::{
    Logged, MINUTE, STREAM, all_of, as_rows, ask, base, expected, fill, log_of, memory, observed, proved, rows, take, tenant,
    writer,
};
use crate::server::S3Server;

const HOUR_S: i64 = 3600;
const DAY: i64 = 24 * 60 * MINUTE;

/// One store of each kind, and what keeps them there.
struct Stores {
    each: Vec<Arc<dyn ObjectStore>>,
    _server: S3Server,
    _folder: TempDir,
}

impl Stores {
    fn new() -> Self {
        let (server, folder) = (S3Server::start(), tempfile::tempdir().unwrap());
        let each = vec![memory(), Folder::open(folder.path()).unwrap(), server.store("some/lake=1")];
        Self { each, _server: server, _folder: folder }
    }
}

async fn names(store: &Arc<dyn ObjectStore>) -> Vec<String> {
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    let mut names: Vec<String> = listed.into_iter().map(|object| object.location.to_string()).collect();
    names.sort();
    names
}

async fn replayed(store: &Arc<dyn ObjectStore>, of: &str, span: Span) -> Vec<SecurityEvent> {
    let mut replay = Replay::open(Arc::clone(store), &tenant(of), None, span).await.unwrap();
    let mut all = Vec::new();
    while let Some(events) = replay.next().await.unwrap() {
        all.extend(events.into_iter().map(Arc::unwrap_or_clone));
    }
    all
}

fn much_later(hours: i64) -> Timestamp {
    base().plus_seconds((1000 + hours) * HOUR_S)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_store_gives_back_what_was_written_before_a_merge_and_after_and_forgets_what_is_old() {
    // Enough for files that are not read at once, of two hours and two tenants.
    let of_acme = (1..=6000i64).map(|seq| proved("acme", "acme.e.1", seq, (seq * 7919 % 6000) * 1_000));
    let next_hour = (6001..=6010i64).map(|seq| proved("acme", "acme.e.1", seq, 70 * MINUTE + seq));
    let log = log_of(of_acme.chain(next_hour).chain([observed("acme", 5), proved("b", "b.e.1", 1, 0)]));
    let wanted = expected(&log, &tenant("acme"));
    let stores = Stores::new();
    for store in &stores.each {
        let mut writer = writer(store, &log);
        for part in log.chunks(600) {
            take(&mut writer, part);
            writer.flush().await.unwrap();
        }
        let first_second = Span { from: base().as_micros(), to: base().as_micros() + 999_999 };
        for is_merged in [false, true] {
            if is_merged {
                for hours in [0, 1] {
                    while writer.tidy(much_later(hours), usize::MAX).await.unwrap() > 0 {}
                }
                assert_eq!(names(store).await.len(), 6, "{store}: a file and a manifest for each of three hours");
            }
            assert_eq!(rows(store, &tenant("acme")).await, as_rows(wanted.clone()), "{store}");
            assert_eq!(replayed(store, "acme", Span::ALL).await, wanted, "{store}");
            let of_second: Vec<SecurityEvent> =
                wanted.iter().filter(|event| event.ts.as_micros() <= first_second.to).cloned().collect();
            assert!(of_second.len() > 900);
            assert_eq!(replayed(store, "acme", first_second).await, of_second, "{store}");
            let one = &wanted[4000];
            assert_eq!(find_event(store, &tenant("acme"), one.event_id).await.unwrap().as_ref(), Some(one), "{store}");
            assert_eq!(find_event(store, &tenant("b"), one.event_id).await.unwrap(), None, "{store}");
            let counted = ask(store, "acme", "SELECT count(*) FROM events WHERE ts < '2026-11-26T10:00:01Z'").await.unwrap();
            let counted = all_of(counted).await.unwrap().column(0).as_primitive::<Int64Type>().value(0);
            assert_eq!(counted, of_second.len() as i64, "{store}");
        }
        assert_eq!(tenants(store).await.unwrap().len(), 2, "{store}");
        for hours in [2, 4, 6] {
            while writer.expire(much_later(hours), DAY, u64::MAX, 10).await.unwrap() > 0 {}
            while writer.tidy(much_later(hours + 1), usize::MAX).await.unwrap() > 0 {}
        }
        assert_eq!(names(store).await, Vec::<String>::new(), "{store}");
    }
}

/// Writes what is left of a log as the follower does: whoever was overtaken begins again with all of it.
async fn write(store: &Arc<dyn ObjectStore>, writer: &mut Writer, log: &[Logged]) -> bool {
    take(writer, log);
    match writer.flush().await {
        Ok(()) => false,
        Err(LakeError::Overtaken { .. }) => {
            *writer = Writer::new(Arc::clone(store), STREAM, [], WriterLimits::default());
            take(writer, log);
            writer.flush().await.unwrap();
            true
        }
        Err(error) => panic!("{store}: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_of_one_lake_write_each_row_once() {
    let log = log_of((1..=40).map(|seq| proved("acme", "acme.e.1", seq, seq * 1_000)).chain((0..5).map(|n| observed("acme", n))));
    let stores = Stores::new();
    for store in &stores.each {
        let (mut one, mut other) = (writer(store, &log), writer(store, &log));
        let mut overtaken = 0;
        for (turn, end) in [10, 20, 30, 40, log.len()].into_iter().enumerate() {
            // What each has read and not noted is all of the log: nothing here says how far the other is but the manifest.
            let whose = if turn % 2 == 0 { &mut one } else { &mut other };
            overtaken += usize::from(write(store, whose, &log[..end]).await);
        }
        assert_eq!(overtaken, 3, "{store}");
        assert_eq!(rows(store, &tenant("acme")).await, as_rows(expected(&log, &tenant("acme"))), "{store}");
        // Nor does a merge by one undo what the other wrote behind its back.
        let more = log_of(log.iter().map(|(_, event)| event.clone()).chain([proved("acme", "acme.e.1", 41, 41_000)]));
        assert!(!write(store, &mut one, &more).await, "{store}");
        let merged = other.tidy(much_later(0), usize::MAX).await;
        assert!(matches!(merged, Err(LakeError::Overtaken { .. })), "{store}: {merged:?}");
        assert_eq!(rows(store, &tenant("acme")).await, as_rows(expected(&more, &tenant("acme"))), "{store}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_without_a_name_goes_and_what_is_named_stays() {
    let log = log_of((1..=3).map(|seq| proved("acme", "acme.e.1", seq, seq * 1_000)));
    let stores = Stores::new();
    for store in &stores.each {
        fill(store, &log[..2]).await;
        let left = Path::from(format!("{}/0000000002-of-a-process-that-died.parquet", Hour::of(&log[0].1).folder()));
        store.put(&left, PutPayload::from("half a file")).await.unwrap();
        let mut next = Writer::new(Arc::clone(store), STREAM, [], WriterLimits::default());
        take(&mut next, &log);
        next.flush().await.unwrap();
        assert!(names(store).await.contains(&left.to_string()), "{store}: not before a manifest says so");
        next.tidy(much_later(0), usize::MAX).await.unwrap();
        assert!(!names(store).await.contains(&left.to_string()), "{store}");
        assert_eq!(rows(store, &tenant("acme")).await, as_rows(expected(&log, &tenant("acme"))), "{store}");
    }
}

async fn object(store: &Arc<dyn ObjectStore>, place: &Path) -> (Bytes, UpdateVersion) {
    let found = store.get(place).await.unwrap();
    let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
    (found.bytes().await.unwrap(), version)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_never_again_what_it_was_so_that_one_that_comes_late_names_no_file_that_is_gone() {
    let log = log_of((1..=2).map(|seq| proved("acme", "acme.e.1", seq, seq * 1_000)));
    let hour = Hour::of(&log[0].1);
    let manifest = Path::from(format!("{}/manifest.json", hour.folder()));
    let stores = Stores::new();
    for store in &stores.each {
        fill(store, &log).await;
        let (before, version) = object(store, &manifest).await;
        // Of a process that hangs before it has put the manifest that names it.
        let left = Path::from(format!("{}/0000000003-left.parquet", hour.folder()));
        store.put(&left, PutPayload::from("a file")).await.unwrap();
        let mut next = Writer::new(Arc::clone(store), STREAM, [hour.clone()], WriterLimits::default());
        next.tidy(much_later(0), usize::MAX).await.unwrap();
        assert!(!names(store).await.contains(&left.to_string()), "{store}");
        let (after, _) = object(store, &manifest).await;
        assert_ne!(after, before, "{store}: the same rows, and another manifest");
        let named = PutPayload::from("a manifest that names what is gone");
        let late = store.put_opts(&manifest, named, PutOptions::from(PutMode::Update(version))).await;
        assert!(matches!(late, Err(object_store::Error::Precondition { .. })), "{store}: {late:?}");
        assert_eq!(rows(store, &tenant("acme")).await, as_rows(expected(&log, &tenant("acme"))), "{store}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_that_another_writer_merged_is_found_as_it_is_at_the_next_look() {
    let log = log_of((1..=2).map(|seq| proved("acme", "acme.e.1", seq, seq * 1_000)));
    let stores = Stores::new();
    for store in &stores.each {
        let mut one = writer(store, &log);
        for logged in &log {
            take(&mut one, std::slice::from_ref(logged));
            one.flush().await.unwrap();
        }
        let mut other = writer(store, &log);
        for hours in [0, 1] {
            other.tidy(much_later(hours), usize::MAX).await.unwrap();
        }
        // The files that it knows are gone.
        let refused = one.tidy(much_later(2), usize::MAX).await;
        assert!(matches!(refused, Err(LakeError::Damaged { .. })), "{store}: {refused:?}");
        assert_eq!(one.tidy(much_later(2), usize::MAX).await.unwrap(), 0, "{store}");
        assert_eq!(rows(store, &tenant("acme")).await, as_rows(expected(&log, &tenant("acme"))), "{store}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_an_hour_whose_manifest_the_store_lost_are_not_removed() {
    let log = log_of((1..=3).map(|seq| proved("acme", "acme.e.1", seq, seq * 1_000)));
    let hour = Hour::of(&log[0].1);
    let manifest = Path::from(format!("{}/manifest.json", hour.folder()));
    let stores = Stores::new();
    for store in &stores.each {
        fill(store, &log[..1]).await;
        fill(store, &log[..2]).await;
        let (kept, _) = object(store, &manifest).await;
        store.delete(&manifest).await.unwrap();
        let there = names(store).await;
        assert_eq!(there.len(), 2, "{store}: {there:?}");
        let mut next = writer(store, &log);
        take(&mut next, &log);
        for refused in [next.flush().await.unwrap_err(), next.tidy(much_later(0), usize::MAX).await.unwrap_err()] {
            assert!(matches!(refused, LakeError::Damaged { .. }), "{store}: {refused}");
        }
        assert_eq!(names(store).await, there, "{store}");
        // Restored, it goes on.
        store.put(&manifest, PutPayload::from(kept)).await.unwrap();
        next.flush().await.unwrap();
        assert_eq!(rows(store, &tenant("acme")).await, as_rows(expected(&log, &tenant("acme"))), "{store}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_of_a_store_that_does_not_answer_ends_in_time() {
    let server = S3Server::start();
    let store = server.store("lake");
    fill(&store, &log_of([proved("acme", "acme.e.1", 1, 0)])).await;
    server.signal("STOP");
    let bounds = Bounds { seconds: 1, ..Bounds::default() };
    let ended = query(store, &tenant("acme"), "SELECT count(*) FROM events", bounds).await;
    assert!(matches!(ended, Err(QueryError::Time(1))), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_or_bucket_that_is_wrong_is_told_and_no_empty_lake() {
    let server = S3Server::start();
    let log = log_of([proved("acme", "acme.e.1", 1, 0)]);
    fill(&server.store("lake"), &log).await;
    let (id, secret) = S3Server::key();
    for (url, id, secret, words) in [
        ("s3://lakes/lake", id, "another-secret", "does not accept the credentials"),
        ("s3://lakes/lake", "AKIDOFNOBODY", secret, "does not accept the credentials"),
        ("s3://no-such-lakes/lake", id, secret, "no such bucket"),
    ] {
        let store = server.store_with(url, id, secret).unwrap();
        let mut writer = Writer::new(Arc::clone(&store), STREAM, [], WriterLimits::default());
        take(&mut writer, &log);
        for error in [
            tenants(&store).await.unwrap_err().to_string(),
            query(Arc::clone(&store), &tenant("acme"), "SELECT 1 FROM events", Bounds::default()).await.unwrap_err().to_string(),
            Replay::open(Arc::clone(&store), &tenant("acme"), None, Span::ALL).await.unwrap_err().to_string(),
            aegis_lake::stored_to(&store).await.unwrap_err().to_string(),
            writer.flush().await.unwrap_err().to_string(),
        ] {
            assert!(error.contains(words) && error.contains(url), "{error}");
            assert!(!error.contains(secret) && !error.contains("<Error>") && !error.contains("Signature="), "{error}");
        }
    }
    // Another place of the same bucket is another lake.
    assert!(tenants(&server.store("other")).await.unwrap().is_empty());
    assert_eq!(tenants(&server.store("lake")).await.unwrap().len(), 1);
}
