//! What a query may be, and what it may take.

use aegis_lake::{Bounds, QueryError, query};
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;

use crate::house::{MINUTE, all_of, ask, fill, log_of, memory, proved, tenant};

async fn refused(text: &str) -> QueryError {
    let store = memory();
    fill(&store, &log_of([proved("acme", "acme.e.1", 1, 1)])).await;
    match ask(&store, "acme", text).await {
        Err(error) => error,
        Ok(_) => panic!("{text} was not refused"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_writes_defines_or_sets_is_refused() {
    let statements = [
        "INSERT INTO events SELECT * FROM events",
        "DELETE FROM events",
        "UPDATE events SET tool = 'x'",
        "TRUNCATE TABLE events",
        "DROP TABLE events",
        "CREATE TABLE t AS SELECT * FROM events",
        "CREATE VIEW v AS SELECT * FROM events",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "COPY events TO '/tmp/aegis-stolen.csv'",
        "COPY (SELECT * FROM events) TO '/tmp/aegis-stolen.csv' STORED AS CSV",
        "SET datafusion.execution.batch_size = 1",
        "RESET datafusion.execution.batch_size",
        "SHOW TABLES",
        "DESCRIBE events",
        "EXPLAIN ANALYZE SELECT * FROM events",
        "EXPLAIN SELECT * FROM events",
        "PREPARE p AS SELECT * FROM events",
        "EXECUTE p",
        "BEGIN",
        "SELECT 1; SELECT 2",
        "SELECT * INTO t FROM events",
        "",
    ];
    for text in statements {
        let error = refused(text).await;
        let is_refusal = matches!(error, QueryError::NotOneQuery(_) | QueryError::NotAllowed(_) | QueryError::Engine { .. });
        assert!(is_refusal, "{text}: {error}");
    }
    assert!(!std::path::Path::new("/tmp/aegis-stolen.csv").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_much_of_little_is_refused_before_it_runs() {
    for text in [
        "SELECT repeat('x', 1000000000)",
        "SELECT range(0, 1000000000)",
        "SELECT count(*) FROM generate_series(1, 1000000000000)",
        "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT * FROM n",
    ] {
        let error = refused(text).await;
        assert!(matches!(error, QueryError::NotAllowed(_) | QueryError::Engine { .. }), "{text}: {error}");
    }
    assert!(matches!(refused("SELECT rpad('x', 1000000000)").await, QueryError::NotAllowed(what) if what == "the function rpad"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_says_where() {
    let place = |error: QueryError| match error {
        QueryError::Engine { place, .. } => place,
        other => panic!("{other}"),
    };
    assert_eq!(place(refused("SELECT tool\nFROM events WHERE\nORDER BY ts").await).map(|(line, _)| line), Some(3));
    assert_eq!(place(refused("SELECT tool,\n  no_such_column FROM events").await), Some((2, 3)));
    let error = refused("SELECT tool,\n  no_such_column FROM events").await.to_string();
    assert!(error.starts_with("line 2, column 3: ") && error.contains("no_such_column"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn grouping_windows_and_row_patterns_work() {
    let store = memory();
    fill(&store, &log_of((1..=9).map(|seq| proved("acme", "acme.e.1", seq, seq * MINUTE)))).await;
    let number = |text: &'static str| {
        let store = store.clone();
        async move { all_of(ask(&store, "acme", text).await.unwrap()).await.unwrap().column(0).as_primitive::<Int64Type>().value(0) }
    };
    assert_eq!(number("SELECT count(*) AS n FROM events GROUP BY agent_id HAVING agent_id = 'agent-1'").await, 3);
    let last_minutes = "SELECT max(n) FROM (SELECT count(*) OVER (ORDER BY ts RANGE BETWEEN INTERVAL '2' MINUTE PRECEDING AND CURRENT ROW) AS n FROM events)";
    assert_eq!(number(last_minutes).await, 3);
    let joined = "SELECT count(*) FROM events a JOIN events b ON a.agent_id = b.agent_id AND a.seq < b.seq";
    assert_eq!(number(joined).await, 9);
    let pattern = "SELECT count(*) FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES d.event_id AS event_id
        PATTERN (a d) DEFINE a AS a.decision = 'allow', d AS d.decision = 'deny')";
    assert_eq!(number(pattern).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_ends_at_its_bound_and_says_so() {
    let store = memory();
    fill(&store, &log_of((1..=9).map(|seq| proved("acme", "acme.e.1", seq, seq)))).await;
    for (limit, rows, is_cut) in [(1, 1, true), (8, 8, true), (9, 9, false), (10, 9, false)] {
        let bounds = Bounds { rows: limit, ..Bounds::default() };
        let mut answer = query(store.clone(), &tenant("acme"), "SELECT * FROM events", bounds).await.unwrap();
        let mut given = 0;
        while let Some(batch) = answer.next().await.unwrap() {
            given += batch.num_rows();
        }
        assert_eq!((given, answer.is_cut()), (rows, is_cut), "limit {limit}");
        assert!(answer.next().await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_without_time_or_memory_left_ends() {
    let store = memory();
    fill(&store, &log_of((1..=500).map(|seq| proved("acme", "acme.e.1", seq, seq)))).await;
    let long = "SELECT count(*) FROM events a JOIN events b ON a.seq <> b.seq JOIN events c ON b.seq <> c.seq";
    let bounds = Bounds { seconds: 0, ..Bounds::default() };
    let answer = query(store.clone(), &tenant("acme"), long, bounds).await.unwrap();
    assert!(matches!(all_of(answer).await, Err(QueryError::Time(0))));

    let bounds = Bounds { memory: 64 << 10, ..Bounds::default() };
    let sorted = query(store, &tenant("acme"), "SELECT * FROM events ORDER BY event_id", bounds).await.unwrap();
    let error = all_of(sorted).await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("resources exhausted") || error.to_lowercase().contains("memory"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_row_pattern_gave_up_is_no_answer() {
    let store = memory();
    fill(&store, &log_of((1..=40).map(|seq| proved("acme", "acme.e.1", seq, seq)))).await;
    // It has two ways to take each row, and its end depends on which were taken.
    let bomb = "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY tenant_id ORDER BY ts MEASURES count(*) AS c
        PATTERN ((a | b)+ c) DEFINE c AS count(a.*) > 1000)";
    let error = all_of(ask(&store, "acme", bomb).await.unwrap()).await.unwrap_err().to_string();
    assert!(error.starts_with("MATCH_RECOGNIZE gave up: partition (acme), row 0"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_have_every_column_and_a_table_is_readable() {
    let store = memory();
    let mut event = proved("acme", "acme.e.1", 1, 1);
    event.resource = Some("r\u{1b}[2J".to_owned());
    fill(&store, &log_of([event])).await;
    let mut answer = ask(&store, "acme", "SELECT seq, tool, resource, ts, matched_policies FROM events").await.unwrap();
    let mut out = Vec::new();
    answer.write_lines(&mut out).await.unwrap();
    let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
    let ts = "2026-11-26T10:00:00.000001Z";
    let expected = serde_json::json!({"seq": 1, "tool": null, "resource": "r\u{1b}[2J", "ts": ts, "matched_policies": []});
    assert_eq!(line, expected);
    let table = ask(&store, "acme", "SELECT seq, resource FROM events").await.unwrap().read_table().await.unwrap();
    assert_eq!(table.rows, 1);
    assert!(table.text.contains("| 1   | r\u{fffd}[2J"), "{}", table.text);
}
