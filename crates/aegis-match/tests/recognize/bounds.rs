//! No query hangs or swells: what is too costly is given up at its bound, and that is said.

use aegis_match::{Budget, Limits, Overrun};

use crate::harness::{Row, Session, batch, letters, rows};

fn many(count: usize) -> Vec<Row> {
    let row =
        |place: usize| Row { g: Some("p".to_owned()), ts: place as i64, x: Some(1), k: "a".to_owned(), id: place.to_string() };
    (0..count).map(row).collect()
}

/// It has two ways to take each row, and the condition of its end depends on which were taken: nothing that failed can be remembered.
const BOMB: &str = "t MATCH_RECOGNIZE (PARTITION BY g ORDER BY ts MEASURES count(*) AS c PATTERN ((a | b)+ c) \
                    DEFINE c AS count(a.*) > 1000)";

#[test]
fn a_bomb_is_given_up_and_reported_and_other_partitions_are_found() {
    let attempt = aegis_pattern::Limits { steps: 10_000, ..aegis_pattern::Limits::default() };
    let mut all = many(40);
    all.extend(rows("q:a q:a"));
    let session = Session::over(vec![batch(&all)], Limits { attempt, ..Limits::default() });
    let sql = format!("SELECT * FROM {}", BOMB.replace("> 1000", "= CASE WHEN g = 'q' THEN 1 ELSE 1000 END"));
    assert_eq!(session.rows(&sql), ["q|2"]);
    let overruns = session.report.take();
    assert!(overruns.count > 20, "{overruns:?}");
    assert_eq!(overruns.first[0], Overrun { partition: "p".to_owned(), row: 0, budget: Budget::Steps });
    assert_eq!(session.report.take().count, 0, "what was taken is gone");
}

#[test]
fn a_partition_has_a_budget_too_and_so_has_a_query() {
    let attempt = aegis_pattern::Limits { steps: 10_000, ..aegis_pattern::Limits::default() };
    let mut rows = many(100);
    rows.extend(many(100).into_iter().map(|row| Row { g: Some("q".to_owned()), ..row }));
    let sql = format!("SELECT * FROM {BOMB}");
    let budgets = |limits: Limits| {
        let session = Session::over(vec![batch(&rows)], limits);
        let mut told = Vec::new();
        for _ in 0..2 {
            assert_eq!(session.rows(&sql), Vec::<String>::new());
            let overruns = session.report.take();
            assert_eq!(overruns.count as usize, overruns.first.len());
            told.push(overruns.first);
        }
        assert_eq!(told[0], told[1], "a report that was taken is a new beginning");
        told.remove(0)
    };
    let of = |partition: &str, told: &[Overrun]| -> Vec<(u64, Budget)> {
        told.iter().filter(|overrun| overrun.partition == partition).map(|overrun| (overrun.row, overrun.budget)).collect()
    };
    let told = budgets(Limits { attempt, partition_work: 700_000, ..Limits::default() });
    for partition in ["p", "q"] {
        let told = of(partition, &told);
        let (last, before) = told.split_last().unwrap();
        assert!(!before.is_empty() && before.len() < 20, "{told:?}");
        assert!(before.iter().enumerate().all(|(place, told)| *told == (place as u64, Budget::Steps)), "{told:?}");
        assert_eq!(*last, (before.len() as u64, Budget::Partition));
    }
    let told = budgets(Limits { attempt, query_work: 700_000, ..Limits::default() });
    assert_eq!(of("p", &told).last().unwrap().1, Budget::Query);
    assert_eq!(of("q", &told), [(0, Budget::Query)]);
}

#[test]
fn measures_are_work_too() {
    let sql = letters("", "array_agg(id) AS ids", "AFTER MATCH SKIP TO NEXT ROW", "a+");
    let found = |partition_work: u64| {
        let session = Session::over(vec![batch(&many(1_000))], Limits { partition_work, ..Limits::default() });
        (session.rows(&sql).len(), session.report.take().first.iter().map(|overrun| overrun.budget).collect::<Vec<_>>())
    };
    assert_eq!(found(1 << 24), (1_000, vec![]));
    let (few, told) = found(1 << 19);
    assert!(few > 50 && few < 500, "{few}");
    assert_eq!(told, [Budget::Partition]);
}

#[test]
fn memory_is_bounded() {
    let attempt = aegis_pattern::Limits { cells: 1_000, ..aegis_pattern::Limits::default() };
    let session = Session::over(vec![batch(&many(2_000))], Limits { attempt, ..Limits::default() });
    assert_eq!(session.rows(&letters("", "count(*) AS c", "", "a{1500,}")), Vec::<String>::new());
    let overruns = session.report.take();
    assert!(overruns.count > 0 && overruns.first.iter().all(|overrun| overrun.budget == Budget::Memory), "{overruns:?}");
}

#[test]
fn aggregates_are_not_taken_again_and_again() {
    // The end wants the sum of what came before; the search goes back row by row, and knows each sum already.
    let define = "DEFINE a AS sum(a.x) < 100000, b AS sum(a.x) + b.x < 0";
    let sql = format!("SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES count(*) AS c PATTERN (^ a+ b) {define})");
    let session = Session::over(vec![batch(&many(3_000))], Limits { attempt_work: 500_000, ..Limits::default() });
    assert_eq!(session.rows(&sql), Vec::<String>::new());
    assert_eq!(session.report.take().count, 0, "a row is taken in once");
    // A list is too large to be known for every row: taken again, up to the bound.
    let define = "DEFINE a AS true, b AS cardinality(array_agg(a.x)) < 0";
    let sql = format!("SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES count(*) AS c PATTERN (^ a+ b) {define})");
    let session = Session::over(vec![batch(&many(500))], Limits { attempt_work: 100_000, ..Limits::default() });
    assert_eq!(session.rows(&sql), Vec::<String>::new());
    let overruns = session.report.take();
    assert_eq!((overruns.count, overruns.first[0].budget), (1, Budget::Work));
}

#[test]
fn the_rows_of_a_partition_are_accounted_for() {
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::prelude::SessionConfig;

    let session = Session::over(vec![batch(&many(20_000))], Limits::default());
    let plan = session.physical(&letters("", "array_agg(id) AS ids", "", "a b")).unwrap();
    let run = |bytes: usize| {
        let runtime = RuntimeEnvBuilder::new().with_memory_limit(bytes, 1.0).build_arc().unwrap();
        let context =
            datafusion::execution::TaskContext::default().with_runtime(runtime).with_session_config(SessionConfig::new());
        let plan = datafusion::physical_plan::execution_plan::reset_plan_states(std::sync::Arc::clone(&plan)).unwrap();
        aegis_sql::block_on(datafusion::physical_plan::collect(plan, std::sync::Arc::new(context)))
    };
    assert!(run(1 << 28).is_ok());
    let refusals: Vec<String> = (16..28).filter_map(|power| run(1 << power).err()).map(|error| error.to_string()).collect();
    assert!(refusals.iter().any(|refusal| refusal.contains("MatchExec")), "{refusals:?}");
}
