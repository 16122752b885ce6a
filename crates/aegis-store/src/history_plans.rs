//! How SQLite goes through the history for each statement: along one index or its places, and never through all of it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_model::{EventId, EventKind, ManualClock, Timestamp, new_event_id};
use sqlx::{AssertSqlSafe, Row, SqlitePool};

use crate::history::HistoryFilter;
use crate::history_read::{ANY_PLACE, IN_ORDER, LANES_SINCE, PROVED_OF_LANE, export_of, list_of, of_id};
use crate::history_write::{give_way_of, insert_of};
use crate::{Dialect, Store};

/// The steps of a statement.
async fn plan(file: &SqlitePool, statement: &str) -> Vec<String> {
    let text = format!("EXPLAIN QUERY PLAN {statement}");
    let steps = sqlx::query(AssertSqlSafe(text)).fetch_all(file).await.unwrap();
    steps.iter().map(|step| step.get::<String, _>("detail")).collect()
}

/// What a step goes along, if it is one through the history.
fn index_of(step: &str) -> Option<&str> {
    let way = step.strip_prefix("SEARCH history USING ").or_else(|| step.strip_prefix("SEARCH h USING "))?;
    let way = way.split(" (").next()?;
    Some(way.strip_prefix("INDEX ").or_else(|| way.strip_prefix("COVERING INDEX ")).unwrap_or(way))
}

#[tokio::test]
async fn no_statement_goes_through_all_of_the_history() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(0)));
    let store = Store::open(&folder.path().join("store.db"), clock).await.unwrap();
    let file = folder.path().join("store-history.db");
    let file = SqlitePool::connect(&format!("sqlite://{}?mode=ro", file.display())).await.unwrap();
    let list = |filter: HistoryFilter<'_>| list_of(filter, (50, 100)).0;
    let all = HistoryFilter::default();
    let receipts = HistoryFilter { receipts_only: true, ..all };
    let (decisions, rare) = ([EventKind::AuthorizeDecision], [EventKind::ContainmentApplied]);
    let by_time = ["history_receipts_by_time", "history_others_by_time", "INTEGER PRIMARY KEY"].as_slice();
    let derived = EventId::from_u128(5 << 76);
    let statements: [(String, &[&str], usize); 19] = [
        (IN_ORDER.to_owned(), &["INTEGER PRIMARY KEY"], 0),
        (LANES_SINCE.to_owned(), &["history_receipts_by_time"], 1),
        // Of one seq at a time: who holds the lane's key can have sealed it twice.
        (PROVED_OF_LANE.to_owned(), &["history_in_lanes"], 1),
        (export_of(Dialect::Sqlite), &["history_in_lanes"], 0),
        (of_id(new_event_id(), false, 1), &["history_by_id", "history_observed", "INTEGER PRIMARY KEY"], 3),
        (of_id(derived, false, 100), &["history_by_id", "history_observed", "INTEGER PRIMARY KEY"], 3),
        (of_id(new_event_id(), true, 100), &["history_by_id", "INTEGER PRIMARY KEY"], 2),
        // Of the places of a page.
        (list(all), by_time, 2),
        (list(HistoryFilter { kinds: &decisions, ..all }), by_time, 2),
        (list(HistoryFilter { kinds: &rare, ..all }), &["history_by_kind"], 0),
        (list(receipts), &["history_receipts_by_time"], 0),
        (list(HistoryFilter { agent_id: Some("a"), ..all }), &["history_by_agent"], 0),
        (list(HistoryFilter { agent_id: Some("a"), ..receipts }), &["history_by_agent"], 0),
        (list(HistoryFilter { agent_id: Some("a"), kinds: &rare, ..all }), &["history_by_agent"], 0),
        (list(HistoryFilter { run_id: Some("r"), ..all }), &["history_by_run"], 0),
        (list(HistoryFilter { run_id: Some("r"), ..receipts }), &["history_by_run"], 0),
        (list(HistoryFilter { run_id: Some("r"), agent_id: Some("a"), kinds: &decisions, ..receipts }), &["history_by_run"], 0),
        (give_way_of(1, Dialect::Sqlite), &["history_in_lanes"], 0),
        (give_way_of(256, Dialect::Sqlite), &["history_in_lanes"], 0),
    ];
    for (statement, expected, sorted) in statements {
        let steps = plan(&file, &statement).await;
        let used: BTreeSet<&str> = steps.iter().filter_map(|step| index_of(step)).collect();
        assert_eq!(used, expected.iter().copied().collect::<BTreeSet<&str>>(), "{statement}: {steps:?}");
        assert!(!steps.iter().any(|step| step == "SCAN history" || step == "SCAN h"), "{statement}: {steps:?}");
        let sorts = steps.iter().filter(|step| step.starts_with("USE TEMP B-TREE")).count();
        assert!(sorts <= sorted, "{statement}: {steps:?}");
    }
    // The first row there is.
    assert_eq!(plan(&file, ANY_PLACE).await.len(), 1);
    assert!(plan(&file, &insert_of(256, Dialect::Sqlite)).await.iter().all(|step| !step.contains("history")));
    file.close().await;
    store.close().await;
}
