//! What holds of every query: it finds what the slow matcher finds, however its input is cut into batches, whatever the optimizer does to it,
//! and over all tenants what it finds in each.

use aegis_match::Limits;

use crate::harness::{Row, Session, batch, sorted};
use crate::random::{Rng, query, rows};
use crate::reference::{Query, Stop, measures};

const PARTITIONS: [Option<&str>; 3] = [None, Some("p"), Some("q")];

/// What the slow matcher finds: the partition's name before each match's measures.
pub(crate) fn expected(query: &Query, rows: &[Row]) -> Result<Vec<String>, Stop> {
    let mut found = Vec::new();
    for partition in PARTITIONS {
        let own: Vec<Row> = rows.iter().filter(|row| row.g.as_deref() == partition).cloned().collect();
        for (index, mapped) in query.matches(&own)?.iter().enumerate() {
            found.push(format!("{}|{}", partition.unwrap_or("-"), measures(&own, mapped, index + 1)));
        }
    }
    Ok(found)
}

pub(crate) fn limits(query: &Query) -> Limits {
    let attempt = aegis_pattern::Limits { steps: 2_000_000, cells: 2_000_000, ..aegis_pattern::Limits::default() };
    Limits { attempt, span_micros: query.span.map(|seconds| seconds * 1_000_000), ..Limits::default() }
}

/// The rows in batches of random sizes, shuffled: the operator has to sort them.
fn cut(rng: &mut Rng, rows: &[Row]) -> Vec<datafusion::arrow::array::RecordBatch> {
    let mut shuffled = rows.to_vec();
    for index in (1..shuffled.len()).rev() {
        shuffled.swap(index, rng.below(index + 1));
    }
    let mut batches = vec![batch(&[])];
    let mut rest = shuffled.as_slice();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(1 + rng.below(rest.len()));
        batches.push(batch(now));
        rest = later;
    }
    batches
}

#[test]
fn a_query_finds_what_the_slow_matcher_finds() {
    let (mut compared, mut matches) = (0, 0);
    for seed in 0..700 {
        let mut rng = Rng(seed);
        let (rows, query) = (rows(&mut rng, 14), query(&mut rng, true));
        let sql = format!("SELECT * FROM {}", query.relation("PARTITION BY g"));
        let session = Session::in_batches_of(1 + rng.below(6), cut(&mut rng, &rows), limits(&query));
        let found = session.query(&sql);
        match expected(&query, &rows) {
            Err(Stop::TooMany) => continue,
            Err(Stop::Skip) => {
                let error = found.expect_err(&sql).to_string();
                assert!(error.contains("AFTER MATCH SKIP TO"), "seed {seed}: {error}\n{sql}");
            }
            Ok(wanted) => {
                matches += wanted.len();
                let found = found.unwrap_or_else(|error| panic!("seed {seed}: {error}\n{sql}"));
                assert_eq!(sorted(found), sorted(wanted), "seed {seed}\n{sql}\n{rows:#?}");
                assert_eq!(session.report.take().count, 0, "seed {seed}");
            }
        }
        compared += 1;
    }
    assert!(compared > 600 && matches > 1_500, "too little was compared: {compared} queries, {matches} matches");
}

#[test]
fn matches_come_in_the_order_of_their_partition() {
    let mut rng = Rng(7);
    for _ in 0..30 {
        let (rows, query) = (rows(&mut rng, 14), query(&mut rng, false));
        let Ok(wanted) = expected(&query, &rows) else { continue };
        let session = Session::over(cut(&mut rng, &rows), limits(&query));
        assert_eq!(session.rows(&format!("SELECT * FROM {}", query.relation("PARTITION BY g"))), wanted);
    }
}

/// Queries around a relation `{}`: with what the optimizer likes to move.
const AROUND: [&str; 12] = [
    "SELECT * FROM {}",
    "SELECT n FROM {}",
    "SELECT g FROM {}",
    "SELECT count(*) FROM {}",
    "SELECT ids, g FROM {} WHERE g = 'p'",
    "SELECT n, f FROM {} AS m WHERE m.g IS NULL AND n > 1",
    "SELECT vs FROM {} WHERE c > 1 AND n = 1",
    "SELECT g, max(n) FROM {} GROUP BY g",
    "SELECT g, n FROM {} ORDER BY g, n LIMIT 2",
    "SELECT m.g, u.x FROM {} AS m JOIN t u ON u.id = m.f WHERE u.x > 1 AND m.g = 'q'",
    "SELECT g, n FROM {} WHERE g = 'p' OR n = 2",
    "WITH found AS (SELECT g AS h, ids, n + 1 AS k FROM {}) SELECT h, k FROM found WHERE h <> 'p' AND k > 1",
];

#[test]
fn the_optimizer_changes_no_result() {
    let mut rows_seen = 0;
    for seed in 0..150 {
        let mut rng = Rng(1_000 + seed);
        let (rows, query) = (rows(&mut rng, 12), query(&mut rng, false));
        if expected(&query, &rows).is_err() {
            continue;
        }
        let session = Session::over(vec![batch(&rows)], limits(&query));
        let around = AROUND[rng.below(AROUND.len())];
        let sql = around.replace("{}", &query.relation("PARTITION BY g"));
        let as_written = session.query_as_written(&sql).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{sql}"));
        rows_seen += as_written.len();
        assert_eq!(sorted(session.rows(&sql)), sorted(as_written), "seed {seed}\n{sql}");
    }
    assert!(rows_seen > 150, "too little was compared: {rows_seen} rows");
}

#[test]
fn only_filters_on_the_partition_go_below() {
    let session = Session::new(&crate::harness::rows("p:a:1"));
    let relation = "t MATCH_RECOGNIZE (PARTITION BY g ORDER BY ts MEASURES count(*) AS c PATTERN (a) DEFINE a AS k = 'a') AS m";
    let plan = |condition: &str| {
        let plan = session.logical(&format!("SELECT c FROM {relation} WHERE {condition}")).unwrap();
        aegis_sql::optimize(&session.state, &plan).unwrap().display_indent().to_string()
    };
    let below = |plan: &str, filter: &str| {
        let place = |what: &str| plan.find(what).unwrap_or_else(|| panic!("no {what} in {plan}"));
        place(filter) > place("MatchRecognize")
    };
    assert!(below(&plan("g = 'p'"), "t.g = "));
    assert!(!below(&plan("c > 1"), "c > "));
    let both = plan("g = 'p' AND c > 1");
    assert!(below(&both, "t.g = ") && !below(&both, "c > "), "{both}");
    assert!(plan("true").contains("projection=[g, ts, k]"), "columns that nothing reads are not read");
}

#[test]
fn a_query_over_all_tenants_is_the_union_of_the_query_over_each() {
    for seed in 0..60 {
        let mut rng = Rng(2_000 + seed);
        let (rows, query) = (rows(&mut rng, 14), query(&mut rng, false));
        let all = Session::over(vec![batch(&rows)], limits(&query))
            .query(&format!("SELECT * FROM {}", query.relation("PARTITION BY g")));
        let mut each = Vec::new();
        let mut failed = false;
        for partition in PARTITIONS {
            let own: Vec<Row> = rows.iter().filter(|row| row.g.as_deref() == partition).cloned().collect();
            match Session::over(vec![batch(&own)], limits(&query)).query(&format!("SELECT * FROM {}", query.relation(""))) {
                Ok(found) => each.extend(found.into_iter().map(|row| format!("{}|{row}", partition.unwrap_or("-")))),
                Err(_) => failed = true,
            }
        }
        match all {
            Ok(all) => assert_eq!((sorted(all), failed), (sorted(each), false), "seed {seed}"),
            Err(error) => assert!(failed, "seed {seed}: {error}"),
        }
    }
}
