//! L-LAKE-ONCE: a process that dies at any step of writing, merging and removing loses no row and doubles none, and a reader never sees that it died.

use std::sync::Arc;

use aegis_lake::{Folder, LakeError, LakeTable, Read};
use aegis_model::Timestamp;
use futures_util::TryStreamExt;
use object_store::ObjectStore;

use crate::failing::{Failing, Fault};
use crate::house::{Logged, MINUTE, as_rows, base, expected, fill, log_of, memory, observed, proved, rows, take, tenant, writer};
use crate::server::S3Server;

const TENANTS: [&str; 2] = ["acme", "b"];

/// Long enough for files to be merged in several levels, of two tenants and two hours, with a receipt that comes twice.
fn log() -> Vec<Logged> {
    let of_acme = (1..=18).map(|seq| proved("acme", "acme.e.1", seq, seq * 6 * MINUTE));
    let again = [proved("acme", "acme.e.1", 7, 42 * MINUTE), observed("acme", MINUTE)];
    let of_b = (1..=2).map(|seq| proved("b", "b.e.1", seq, seq * MINUTE));
    log_of(of_acme.chain(again).chain(of_b))
}

/// When each step happens: merged files are removed some hours after they were merged.
fn at(round: i64) -> Timestamp {
    base().plus_seconds(round * 4 * 3600)
}

/// What a process does, from what it knows to be written; it notes how far it is where the follower does.
async fn work(store: &Arc<dyn ObjectStore>, log: &[Logged], noted: &mut usize) -> Result<(), LakeError> {
    let mut writer = writer(store, log);
    while let Some(next) = log.get(*noted) {
        take(&mut writer, std::slice::from_ref(next));
        writer.flush().await?;
        *noted += 1;
        writer.tidy(at(0), usize::MAX).await?;
    }
    for round in 1..6 {
        writer.tidy(at(round), usize::MAX).await?;
    }
    Ok(())
}

/// How many objects there are, and how many of them hold rows.
async fn objects(store: &Arc<dyn ObjectStore>) -> (usize, usize) {
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    (listed.len(), listed.iter().filter(|object| object.location.to_string().ends_with(".parquet")).count())
}

/// Works until a step fails, and then as the next process does. Answers whether it came to that step.
async fn work_with_a_crash(place: &Arc<dyn ObjectStore>, log: &[Logged], fault: Fault) -> bool {
    let failing = Failing::new(Arc::clone(place), fault);
    let store: Arc<dyn ObjectStore> = failing.clone();
    let mut noted = 0;
    let outcome = work(&store, log, &mut noted).await;
    if failing.is_down() {
        assert!(outcome.is_err(), "{fault:?}, and nobody said so");
        // What a reader sees who comes now: all that is noted, perhaps more, nothing twice.
        for of in TENANTS.map(tenant) {
            let there = rows(place, &of).await.num_rows();
            let (least, most) = (expected(&log[..noted], &of).len(), expected(log, &of).len());
            assert!((least..=most).contains(&there), "{fault:?}: {there} rows, of {least} to {most}");
        }
    }
    work(place, log, &mut noted).await.unwrap();
    for of in TENANTS.map(tenant) {
        assert_eq!(rows(place, &of).await, as_rows(expected(log, &of)), "{fault:?}");
    }
    // Nor is anything left that nobody needs.
    let mut last = writer(place, log);
    for round in [20, 21] {
        while last.tidy(at(round), usize::MAX).await.unwrap() > 0 {}
    }
    assert_eq!(objects(place).await, (6, 3), "{fault:?}");
    failing.is_down()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_loses_and_doubles_nothing() {
    let log = log();
    let mut crashes = 0;
    for step in 1.. {
        let mut was_reached = false;
        for is_done in [false, true] {
            let has_crashed = work_with_a_crash(&memory(), &log, Fault { step, is_done }).await;
            was_reached |= has_crashed;
            crashes += usize::from(has_crashed);
        }
        if !was_reached {
            break;
        }
    }
    assert!(crashes > 50, "only {crashes} steps could fail");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_on_an_s3_server_or_in_a_folder_loses_and_doubles_nothing() {
    let (log, server) = (log(), S3Server::start());
    let mut crashes = 0;
    // Some of the steps, of each kind: a file, its manifest, a merged file, one that is removed.
    for step in (1..60).step_by(11) {
        for is_done in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            for place in [server.store(&format!("lake-{step}-{is_done}")), Folder::open(folder.path()).unwrap()] {
                crashes += usize::from(work_with_a_crash(&place, &log, Fault { step, is_done }).await);
            }
        }
    }
    assert!(crashes > 12, "only {crashes} steps could fail");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_forgot_where_it_was_doubles_nothing() {
    let (log, store) = (log(), memory());
    for _ in 0..3 {
        work(&store, &log, &mut 0).await.unwrap();
    }
    for of in TENANTS.map(tenant) {
        assert_eq!(rows(&store, &of).await, as_rows(expected(&log, &of)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_of_another_stream_are_known_by_their_place_in_their_lane() {
    let (log, store) = (log(), memory());
    fill(&store, &log).await;
    let again: Vec<Logged> = log.iter().filter(|(_, event)| event.verified).cloned().collect();
    let mut writer = aegis_lake::Writer::new(Arc::clone(&store), "another stream", [], aegis_lake::WriterLimits::default());
    take(&mut writer, &log_of(again.into_iter().rev().map(|(_, event)| event)));
    take(&mut writer, &[(1000, proved("b", "b.e.1", 11, 11 * MINUTE))]);
    writer.flush().await.unwrap();
    assert_eq!(rows(&store, &tenant("acme")).await, as_rows(expected(&log, &tenant("acme"))));
    assert_eq!(rows(&store, &tenant("b")).await.num_rows(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_tidy_is_one_file_an_hour_and_nothing_else() {
    let (log, store) = (log(), memory());
    let mut noted = 0;
    work(&store, &log, &mut noted).await.unwrap();
    // Two hours of acme, one of b; each with its manifest.
    assert_eq!(objects(&store).await, (6, 3));
    let mut writer = writer(&store, &log);
    assert_eq!(writer.tidy(at(9), usize::MAX).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_began_before_a_merge_reads_each_row_once() {
    let store = memory();
    let log = log_of((1..=8).map(|seq| proved("acme", "acme.e.1", seq, seq * MINUTE)));
    let mut writer = writer(&store, &log);
    for logged in &log {
        take(&mut writer, std::slice::from_ref(logged));
        writer.flush().await.unwrap();
    }
    let table = LakeTable::open(Arc::clone(&store), &tenant("acme")).await.unwrap();
    assert_eq!(table.rows().await.unwrap(), 8);
    assert_eq!(writer.tidy(at(0), 1).await.unwrap(), 8);
    assert_eq!(objects(&store).await.1, 9, "what it may still want is there");
    let table = Arc::new(table);
    let context = datafusion::prelude::SessionContext::new();
    context.register_table("events", table.clone()).unwrap();
    // Not `context.sql`: it would have the whole planner compiled once more, here.
    let state = context.state();
    let plan = aegis_sql::plan_query(&state, "SELECT event_id FROM events").unwrap();
    let plan = aegis_sql::physical(&state, &aegis_sql::optimize(&state, &plan).unwrap()).unwrap();
    let batches = datafusion::physical_plan::collect(plan, state.task_ctx()).await.unwrap();
    let read: usize = batches.iter().map(|batch| batch.num_rows()).sum();
    assert_eq!((read, table.read()), (8, Read { hours: 1, files: 8, rows: 8 }));
    let later = LakeTable::open(Arc::clone(&store), &tenant("acme")).await.unwrap();
    assert_eq!(later.rows().await.unwrap(), 8);
    assert_eq!(writer.tidy(at(1), 1).await.unwrap(), 8);
    assert_eq!(objects(&store).await.1, 1);
}
