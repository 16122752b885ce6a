//! A walk says of the rows that have come where the operator's matches end: held against the slow matcher over every window that ends at a row.

use aegis_match::{Ending, Endings, Limits, MatchRecognize, Walk};
use datafusion::logical_expr::LogicalPlan;

use crate::harness::{Row, Session, batch};
use crate::random::{Rng, query, rows};
use crate::reference::{Condition, Mapped, Query, Skip};

const SECOND: i64 = 1_000_000;
/// Conditions that read the row alone.
const OF_THE_ROW: [Condition; 3] = [Condition::Letter, Condition::AboveOne, Condition::Anything];

/// One whose conditions read the row alone, and that skips to a row which is there.
fn query_of_rows(rng: &mut Rng) -> Query {
    let mut query = query(rng, false);
    for condition in query.conditions.iter_mut().flatten() {
        if !OF_THE_ROW.contains(condition) {
            *condition = Condition::Letter;
        }
    }
    if matches!(query.skip, Skip::First(_) | Skip::Last(_)) {
        query.skip = Skip::Next;
    }
    query
}

fn sql(query: &Query) -> String {
    let pattern = query.pattern.to_string();
    let skip = if query.skip == Skip::Next { "TO NEXT ROW" } else { "PAST LAST ROW" };
    let mut defines = Vec::new();
    for (variable, conditions) in "abc".chars().zip(&query.conditions) {
        if pattern.contains(variable) && !conditions.is_empty() {
            let texts: Vec<String> = conditions.iter().map(|condition| format!("({})", condition.sql(variable))).collect();
            defines.push(format!("{variable} AS {}", texts.join(" AND ")));
        }
    }
    if defines.is_empty() {
        defines.push("a AS true".to_owned());
    }
    let define = defines.join(", ");
    format!(
        "SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES array_agg(id) AS ids AFTER MATCH SKIP {skip} PATTERN ({pattern}) DEFINE {define})"
    )
}

fn node(plan: &LogicalPlan) -> &MatchRecognize {
    let mut below = plan;
    loop {
        if let LogicalPlan::Extension(extension) = below {
            return extension.node.as_any().downcast_ref().unwrap();
        }
        below = below.inputs()[0];
    }
}

fn marks(session: &Session, node: &MatchRecognize, endings: &Endings, rows: &[Row]) -> Vec<u64> {
    let batch = batch(rows);
    let holds: Vec<_> = endings
        .conditions()
        .map(|condition| {
            let physical = aegis_sql::physical_expr(&session.state, condition.clone(), node.input().schema()).unwrap();
            physical.evaluate(&batch).unwrap().into_array(rows.len()).unwrap()
        })
        .collect();
    endings.marks(&holds, rows.len())
}

/// Which row of its time each is.
fn places(rows: &[Row]) -> Vec<u32> {
    let of = |place: usize| rows[..place].iter().rev().take_while(|row| row.ts == rows[place].ts).count() as u32;
    (0..rows.len()).map(of).collect()
}

fn has_row_of(mapped: &[(usize, char)], rows: &[Row], ts: i64) -> bool {
    mapped.iter().any(|(row, _)| rows[*row].ts == ts)
}

#[test]
fn l_match_endings_a_walk_finds_where_the_operators_matches_end() {
    let (mut ended, mut silent, mut left_out) = (0, 0, 0);
    for seed in 0..1_500 {
        let mut rng = Rng(20_000 + seed);
        let (mut rows, query) = (rows(&mut rng, 16), query_of_rows(&mut rng));
        // Several of one time.
        rows.iter_mut().for_each(|row| row.ts /= 2);
        let session = Session::new(&[]);
        let plan = session.logical(&sql(&query)).unwrap();
        let node = node(&plan);
        let Some(endings) = node.endings(Limits::default()) else {
            assert!(query.pattern.to_string().contains('^'), "seed {seed}: {}", query.pattern);
            left_out += 1;
            continue;
        };
        let (marks, places) = (marks(&session, node, &endings, &rows), places(&rows));
        let back = rng.below(6) as i64;
        let (mut walk, mut known, mut whole_from) = (Walk::default(), 0, i64::MIN);
        while known < rows.len() {
            // Sometimes what came last is taken back and comes again, as for a row that comes late; and what no window has any more is dropped.
            if known > 0 && rng.chance(25) {
                let ts = whole_from.max(rows[known - 1].ts - rng.below(3) as i64);
                walk.take_back(ts * SECOND);
                known = rows.iter().position(|row| row.ts >= ts).unwrap();
            }
            let ts = rows[known].ts;
            while known < rows.len() && rows[known].ts == ts {
                walk.push(ts * SECOND, places[known], marks[known]);
                known += 1;
            }
            let oldest = ts - back;
            if rng.chance(30) {
                walk.drop_before(oldest * SECOND, 0);
                whole_from = ts;
            }
            let first = rows.iter().position(|row| row.ts >= oldest).unwrap();
            let Ok(matches) = query.matches(&rows[first..known]) else { break };
            let wanted = matches.iter().find(|mapped| has_row_of(mapped, &rows[first..known], ts));
            // Not each time is asked for, and some twice.
            for _ in 0..rng.below(3) {
                let ending = walk.ending(&endings, back * SECOND, &mut 1_000_000);
                let Some(wanted) = wanted else {
                    assert_eq!(ending, Ending::None, "seed {seed}, at {ts}, {back} s back: {}\n{rows:#?}", query.pattern);
                    silent += 1;
                    continue;
                };
                let begins = first + wanted[0].0;
                let from = Ending::From { ts: rows[begins].ts * SECOND, place: places[begins] };
                assert_eq!(ending, from, "seed {seed}, at {ts}, {back} s back: {}\n{rows:#?}", query.pattern);
                // Over the rows from there on alone, the query finds at this time what it finds over all of them.
                let alone = query.matches(&rows[begins..known]).unwrap();
                let at_last = |matches: &[Mapped], from: usize| -> Vec<Vec<(usize, char)>> {
                    let own = matches.iter().filter(|mapped| has_row_of(mapped, &rows[from..known], ts));
                    own.map(|mapped| mapped.iter().map(|(row, variable)| (row + from, *variable)).collect()).collect()
                };
                assert_eq!(at_last(&alone, begins), at_last(&matches, first), "seed {seed}, at {ts}: {}", query.pattern);
                ended += 1;
            }
        }
    }
    assert!(ended > 1_000 && silent > 300 && left_out > 10, "too little was compared: {ended}, {silent}, {left_out}");
}

#[test]
fn what_reads_more_than_the_row_or_before_the_match_has_no_endings() {
    let session = Session::new(&[]);
    let endings = |measures: &str, pattern: &str, define: &str| {
        let sql =
            format!("SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES {measures} PATTERN ({pattern}) DEFINE {define})");
        node(&session.logical(&sql).unwrap()).endings(Limits::default()).is_some()
    };
    for (measures, pattern, define) in [
        ("array_agg(id) AS ids", "a b", "a AS a.x > 1, b AS k = 'b'"),
        ("FIRST(a.id) AS id, count(*) AS n, CLASSIFIER() AS c", "(a | b)+ $", "b AS b.x IS NULL OR lower(k) = 'b'"),
        ("sum(x) AS s", "a{2,5}? c?", "a AS true"),
    ] {
        assert!(endings(measures, pattern, define), "{pattern} {define}");
    }
    for (measures, pattern, define) in [
        ("array_agg(id) AS ids", "a b", "b AS b.x > a.x"),
        ("array_agg(id) AS ids", "a b", "b AS count(a.*) > 1"),
        ("array_agg(id) AS ids", "a b", "b AS x > PREV(x)"),
        ("array_agg(id) AS ids", "a b", "b AS x > NEXT(x)"),
        ("array_agg(id) AS ids", "a b", "b AS x > FIRST(x)"),
        ("array_agg(id) AS ids", "^ a b", "b AS true"),
        ("array_agg(id) AS ids", "a (b | (^)?)", "b AS true"),
        ("PREV(a.id) AS id", "a b", "b AS true"),
        ("NEXT(id) AS id", "a b", "b AS true"),
        ("MATCH_NUMBER() AS n", "a b", "b AS true"),
    ] {
        assert!(!endings(measures, pattern, define), "{measures} {pattern} {define}");
    }
}

#[test]
fn a_column_at_rows_is_one_of_the_input_and_nothing_made_of_it() {
    let session = Session::new(&[]);
    let measures = "id AS last_id, FIRST(a.id) AS first_id, array_agg(b.id) AS ids, upper(id) AS shouted, array_agg(x + 1) AS more, \
                    count(id) AS n, PREV(id) AS before";
    let sql = format!(
        "SELECT * FROM t MATCH_RECOGNIZE (PARTITION BY g ORDER BY ts MEASURES {measures} PATTERN (a b) DEFINE a AS true)"
    );
    let plan = session.logical(&sql).unwrap();
    let node = node(&plan);
    let columns: Vec<Option<&str>> =
        (0..9).map(|output| node.column_at_rows(output).map(|column| column.name.as_str())).collect();
    // The first is the partition's, and there is no ninth.
    assert_eq!(columns, [None, Some("id"), Some("id"), Some("id"), None, None, None, None, None]);
}

#[test]
fn a_walk_that_may_not_search_says_that_it_does_not_know() {
    let session = Session::new(&[]);
    let sql =
        "SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES count(*) AS n PATTERN (a+ b) DEFINE a AS k = 'a', b AS k = 'b')";
    let plan = session.logical(sql).unwrap();
    let endings = node(&plan).endings(Limits::default()).unwrap();
    let mut walk = Walk::default();
    (0..1_000).for_each(|second| walk.push(second, 0, 1));
    let mut steps = 0;
    assert_eq!(walk.ending(&endings, 10_000, &mut steps), Ending::None, "no match ends with that row, whatever was before");
    walk.push(1_000, 0, 2);
    assert_eq!(walk.ending(&endings, 10_000, &mut steps), Ending::Unknown);
    let mut steps = 1_000_000;
    assert_eq!(walk.ending(&endings, 10_000, &mut steps), Ending::From { ts: 0, place: 0 });
    assert!((980_000..1_000_000).contains(&steps), "{steps} steps are left");
    assert_eq!(walk.ending(&endings, 10, &mut steps), Ending::From { ts: 990, place: 0 }, "of the window alone");
}

#[test]
fn a_start_row_that_is_decided_whatever_follows_is_not_searched_again() {
    let session = Session::new(&[]);
    let sql = "SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES count(*) AS n PATTERN ((a | c) b) \
               DEFINE a AS k = 'a', b AS k = 'b', c AS k = 'c')";
    let plan = session.logical(sql).unwrap();
    let endings = node(&plan).endings(Limits::default()).unwrap();
    let (mut walk, mut steps) = (Walk::default(), 100_000);
    // Each row could be the last of a match, and no match begins.
    for second in 0..2_000 {
        walk.push(second, 0, 4);
        assert_eq!(walk.ending(&endings, 500, &mut steps), Ending::None, "at {second}, with {steps} steps left");
        walk.drop_before(second - 500, 0);
    }
    assert!((80_000..99_000).contains(&steps), "{steps} steps are left");
}
