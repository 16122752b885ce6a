//! A database of the program before is taken over as it is; and no statement of the history goes through all of it.

use std::sync::Arc;
use std::time::Duration;

use aegis_model::{EventId, EventKind, ManualClock};
use aegis_store::{HistoryFilter, Secret, Store};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::fixtures::*;
use crate::old_history;
use crate::place::{PATIENCE, database};

const BEFORE: [(i64, &str, &str); 9] = [
    (1, "tables", include_str!("../../migrations/postgres/0001_tables.sql")),
    (2, "history_lanes", include_str!("../../migrations/postgres/0002_history_lanes.sql")),
    (3, "agent_issuers", include_str!("../../migrations/postgres/0003_agent_issuers.sql")),
    (4, "callbacks", include_str!("../../migrations/postgres/0004_callbacks.sql")),
    (5, "rule_versions", include_str!("../../migrations/postgres/0005_rule_versions.sql")),
    (6, "consume_requests", include_str!("../../migrations/postgres/0006_consume_requests.sql")),
    (8, "edge_lives", include_str!("../../migrations/postgres/0008_edge_lives.sql")),
    (9, "common_rule_versions", include_str!("../../migrations/postgres/0009_common_rule_versions.sql")),
    (10, "rule_sets", include_str!("../../migrations/postgres/0010_rule_sets.sql")),
];

#[tokio::test]
async fn a_history_of_before_keeps_every_row_in_its_place() {
    let url = database("").await;
    let mut old = PgConnection::connect(&url).await.unwrap();
    let versions = "CREATE TABLE schema_versions (
        version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, applied_at BIGINT NOT NULL)";
    sqlx::raw_sql(versions).execute(&mut old).await.unwrap();
    for (version, name, sql) in BEFORE {
        sqlx::raw_sql(sql).execute(&mut old).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(old_history::applied(version, name, sql))).execute(&mut old).await.unwrap();
    }
    let rows = old_history::rows();
    let bytes = |id: EventId| format!("'\\x{}'", id.simple());
    for row in &rows {
        sqlx::raw_sql(AssertSqlSafe(old_history::kept(row, bytes))).execute(&mut old).await.unwrap();
    }
    old.close().await.unwrap();
    let store = Store::connect(&Secret::new(url), PATIENCE, Arc::new(ManualClock::new(START))).await.unwrap();
    old_history::holds(&store, &rows).await;
    store.close().await;
}

/// How often the history was gone through from end to end, and how often along an index, as connections that have ended counted.
async fn passes(url: &str) -> (i64, i64) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let others = "SELECT count(*) FROM pg_stat_activity
                  WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let mut tries = 0;
    while sqlx::query_scalar::<_, i64>(others).fetch_one(&mut connection).await.unwrap() > 0 {
        tries += 1;
        assert!(tries < 600, "a connection does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let counted = "SELECT seq_scan, coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = 'history'";
    let passes = sqlx::query_as(counted).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    passes
}

#[tokio::test]
async fn no_statement_goes_through_all_of_the_history() {
    let place = Place::new().await;
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    let name = place.url.rsplit('/').next().unwrap();
    // Where there are few rows the server reads all of them, unless it is told to do so only where it has no other way.
    let statement = format!("ALTER DATABASE {name} SET enable_seqscan = off");
    sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    place.store.close().await;
    let before = passes(&place.url).await;
    let store = place.another().await;
    let rows: Vec<_> = (1..=200).map(|seq| event(&acme(), EventKind::AuthorizeDecision, seq)).collect();
    for _again in 0..2 {
        store.insert_history(&rows, &[]).await.unwrap();
    }
    let (lane, id) = (rows[0].lane.clone().unwrap(), rows[0].event_id);
    let (decisions, rare) = ([EventKind::AuthorizeDecision], [EventKind::ContainmentApplied]);
    let some_kinds: [&[EventKind]; 3] = [&[], &decisions, &rare];
    for kinds in some_kinds {
        for (agent_id, run_id) in [(None, None), (Some("agent-1"), None), (None, Some("run-1")), (Some("agent-1"), Some("run-1"))]
        {
            for receipts_only in [false, true] {
                let filter = HistoryFilter { kinds, receipts_only, agent_id, run_id };
                store.list_history(&acme(), filter, 10, 5).await.unwrap();
            }
        }
    }
    assert!(!store.history_is_empty().await.unwrap());
    for of_lane in [None, Some(lane.as_str())] {
        assert_eq!(store.history_events(&acme(), id, of_lane).await.unwrap(), rows[..1]);
    }
    let always = (START.plus_seconds(-10), START.plus_seconds(10_000));
    assert_eq!(store.history_in_order(&acme(), 0, always, 10).await.unwrap().len(), 10);
    assert_eq!(store.lanes_since(&acme(), START).await.unwrap(), [(lane.clone(), 1)]);
    assert_eq!(store.proved_of_lane(&acme(), &lane, 5, 10).await.unwrap(), rows[5..15]);
    let (first, _) = store.export_lanes(&acme(), None, 1).await.unwrap().remove(0);
    assert_eq!(store.export_lanes(&acme(), Some(&first), 10).await.unwrap().len(), 10);
    store.close().await;
    let after = passes(&place.url).await;
    assert!(after.1 >= before.1 + 20, "what was read was counted: {before:?} {after:?}");
    assert_eq!(after.0, before.0, "nothing was read from end to end");
}
