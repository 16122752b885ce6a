//! A walk says of the rows that have come which of the operator's matches end with the last of them: held, with what is put out of each, against the slow
//! matcher over every window that ends at a row.

use aegis_match::{Ended, Ending, Endings, Limits, MatchRecognize, Walk};
use datafusion::logical_expr::LogicalPlan;

use crate::harness::{Row, Session, batch, texts};
use crate::random::{Rng, query, rows};
use crate::reference::{Condition, Mapped, Query, measures};

const SECOND: i64 = 1_000_000;
/// Conditions that read the row alone.
const OF_THE_ROW: [Condition; 3] = [Condition::Letter, Condition::AboveOne, Condition::Anything];
/// Those that read what comes later, or what the window's beginning decides.
const NOT_FOLLOWED: [Condition; 2] = [Condition::BelowNext, Condition::OddMatch];

/// One that can be followed but for `^`; of some all conditions read the row alone.
fn query_to_follow(rng: &mut Rng) -> Query {
    let mut query = query(rng, false);
    let of_the_row = rng.chance(40);
    for condition in query.conditions.iter_mut().flatten() {
        if NOT_FOLLOWED.contains(condition) || (of_the_row && !OF_THE_ROW.contains(condition)) {
            *condition = Condition::Letter;
        }
    }
    query
}

fn sql(query: &Query) -> String {
    format!("SELECT * FROM {}", query.relation("").replace("MATCH_NUMBER() AS n, ", ""))
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

fn endings_of(session: &Session, sql: &str) -> Endings {
    Endings::compile(node(&session.logical(sql).unwrap()), &session.state, Limits::default()).unwrap()
}

/// Which row of its time each is.
fn places(rows: &[Row]) -> Vec<u32> {
    let of = |place: usize| rows[..place].iter().rev().take_while(|row| row.ts == rows[place].ts).count() as u32;
    (0..rows.len()).map(of).collect()
}

fn has_row_of(mapped: &[(usize, char)], rows: &[Row], ts: i64) -> bool {
    mapped.iter().any(|(row, _)| rows[*row].ts == ts)
}

/// What is put out of a match, made of its rows.
fn put_out(endings: &Endings, ended: &Ended, rows: &[Row], places: &[u32]) -> String {
    let at = |(ts, place): &(i64, u32)| {
        let row = rows.iter().zip(places).position(|(row, own)| (row.ts * SECOND, *own) == (*ts, *place));
        rows[row.unwrap()].clone()
    };
    let own: Vec<Row> = ended.rows().iter().map(at).collect();
    texts(&[endings.output(ended, &batch(&own)).unwrap()]).join(" and ")
}

#[test]
fn l_match_endings_a_walk_finds_the_operators_matches_that_end_there_and_what_is_put_out_of_them() {
    let (mut ended, mut silent, mut left_out, mut dependent) = (0, 0, 0, 0);
    for seed in 0..1_500 {
        let mut rng = Rng(20_000 + seed);
        let (mut rows, query) = (rows(&mut rng, 16), query_to_follow(&mut rng));
        // Several of one time.
        rows.iter_mut().for_each(|row| row.ts /= 2);
        let session = Session::new(&[]);
        let plan = session.logical(&sql(&query)).unwrap();
        if node(&plan).unfollowed().is_some() {
            assert!(query.pattern.to_string().contains('^'), "seed {seed}: {}", query.pattern);
            left_out += 1;
            continue;
        }
        let endings = Endings::compile(node(&plan), &session.state, Limits::default()).unwrap();
        dependent += usize::from(endings.reads_more_than_the_row());
        let (shown, places) = (endings.shown(&batch(&rows)).unwrap(), places(&rows));
        let before = [Condition::AbovePrevious, Condition::AboveTwoBefore];
        let looks_back = query.conditions.iter().flatten().any(|condition| before.contains(condition));
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
                walk.push(&endings, ts * SECOND, places[known], &shown, known).unwrap();
                known += 1;
            }
            let oldest = ts - back;
            if rng.chance(30) {
                walk.drop_before(oldest * SECOND, 0);
                whole_from = ts;
            }
            let first = rows.iter().position(|row| row.ts >= oldest).unwrap();
            let window = &rows[first..known];
            let Ok(matches) = query.matches(window) else { break };
            let wanted: Vec<&Mapped> = matches.iter().filter(|mapped| has_row_of(mapped, window, ts)).collect();
            // Not each time is asked for, and some twice.
            for _ in 0..rng.below(3) {
                let ending = walk.ending(&endings, back * SECOND, &mut 10_000_000);
                let said = format!("seed {seed}, at {ts}, {back} s back: {}\n{rows:#?}", sql(&query));
                let Some(begins) = wanted.first().map(|mapped| first + mapped[0].0) else {
                    assert_eq!(ending, Ending::None, "{said}");
                    silent += 1;
                    continue;
                };
                let said = format!("{said}\n{ending:?}");
                let Ending::From { ts: from, place, matches: Some(told) } = ending else { panic!("{said}") };
                assert_eq!((from, place), (rows[begins].ts * SECOND, places[begins]), "{said}");
                let found: Vec<String> = told.iter().map(|one| put_out(&endings, one, &rows, &places)).collect();
                let measured = |mapped: &&Mapped| measures(window, mapped, 0).split_once('|').unwrap().1.to_owned();
                assert_eq!(found, wanted.iter().map(measured).collect::<Vec<_>>(), "{said}");
                ended += 1;
                if !looks_back {
                    // Over the rows from there on alone, the query finds at this time what it finds over all of them.
                    let alone = query.matches(&rows[begins..known]).unwrap();
                    let at_last = |matches: &[Mapped], from: usize| -> Vec<Vec<(usize, char)>> {
                        let own = matches.iter().filter(|mapped| has_row_of(mapped, &rows[from..known], ts));
                        own.map(|mapped| mapped.iter().map(|(row, variable)| (row + from, *variable)).collect()).collect()
                    };
                    assert_eq!(at_last(&alone, begins), at_last(&matches, first), "{said}");
                }
            }
        }
    }
    assert!(
        ended > 500 && silent > 150 && left_out > 10 && dependent > 300,
        "too little was compared: {ended}, {silent}, {left_out}, {dependent}"
    );
}

#[test]
fn what_reads_what_comes_later_or_where_the_window_begins_is_not_followed() {
    let session = Session::new(&[]);
    let unfollowed = |measures: &str, pattern: &str, define: &str| {
        let sql =
            format!("SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES {measures} PATTERN ({pattern}) DEFINE {define})");
        let plan = session.logical(&sql).unwrap();
        let why = node(&plan).unfollowed();
        let compiled = Endings::compile(node(&plan), &session.state, Limits::default());
        match (why, compiled) {
            (None, Ok(endings)) => Ok((endings.reads_more_than_the_row(), endings.reads_before_the_match())),
            (Some(why), Err(error)) if error.to_string().contains(why) => Err(why),
            other => panic!("{other:?}, {sql}"),
        }
    };
    let ids = "array_agg(id) AS ids";
    for (measures, pattern, define, reads) in [
        (ids, "a b", "a AS a.x > 1, b AS k = 'b'", (false, false)),
        (
            "FIRST(a.id) AS id, count(*) AS n, CLASSIFIER() AS c",
            "(a | b)+ $",
            "b AS b.x IS NULL OR lower(k) = 'b'",
            (false, false),
        ),
        ("sum(x) AS s", "a{2,5}? c?", "a AS true", (false, false)),
        ("NEXT(id) AS id", "a b", "b AS true", (false, false)),
        ("PREV(a.id) AS id", "a b", "b AS true", (false, true)),
        (ids, "a b", "b AS b.x > a.x", (true, false)),
        (ids, "a b", "b AS count(a.*) > 1 AND sum(a.x) < 5", (true, false)),
        (ids, "a b", "b AS x > FIRST(x)", (true, false)),
        (ids, "a b", "b AS x > PREV(x)", (true, true)),
    ] {
        assert_eq!(unfollowed(measures, pattern, define), Ok(reads), "{measures} {pattern} {define}");
    }
    for (measures, pattern, define, word) in [
        (ids, "a b", "b AS x > NEXT(x)", "NEXT"),
        (ids, "a b", "b AS x > NEXT(FIRST(x), 2)", "NEXT"),
        (ids, "a b", "b AS MATCH_NUMBER() > 1", "MATCH_NUMBER"),
        ("MATCH_NUMBER() AS n", "a b", "b AS true", "MATCH_NUMBER"),
        (ids, "^ a b", "b AS true", "^"),
        (ids, "a (b | (^)?)", "b AS true", "^"),
    ] {
        assert!(unfollowed(measures, pattern, define).unwrap_err().contains(word), "{measures} {pattern} {define}");
    }
}

#[test]
fn of_the_input_are_read_the_columns_that_conditions_and_measures_name() {
    let session = Session::new(&[]);
    let sql = "SELECT * FROM t MATCH_RECOGNIZE (PARTITION BY g ORDER BY ts MEASURES LAST(upper(id)) AS i PATTERN (a b) \
               DEFINE a AS a.k = 'a', b AS b.x > sum(a.x))";
    let plan = session.logical(sql).unwrap();
    let names = |columns: Vec<datafusion::common::Column>| {
        let mut names: Vec<String> = columns.into_iter().map(|column| column.name).collect();
        names.sort();
        names.dedup();
        names
    };
    assert_eq!(names(node(&plan).columns_of_conditions()), ["k", "x"]);
    assert_eq!(names(node(&plan).columns_of_input()), ["g", "id", "k", "ts", "x"]);
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

/// A row with its second as its time.
fn at(second: i64, letter: &str, x: i64) -> Row {
    Row { g: None, ts: second, x: Some(x), k: letter.to_owned(), id: second.to_string() }
}

fn push(walk: &mut Walk, endings: &Endings, row: Row) {
    let (ts, shown) = (row.ts, endings.shown(&batch(&[row])).unwrap());
    walk.push(endings, ts, 0, &shown, 0).unwrap();
}

/// Where the first match begins.
fn begins(ending: &Ending) -> Option<(i64, u32)> {
    if let Ending::From { ts, place, .. } = ending { Some((*ts, *place)) } else { None }
}

#[test]
fn a_walk_that_may_not_search_says_that_it_does_not_know() {
    let session = Session::new(&[]);
    let sql =
        "SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES count(*) AS n PATTERN (a+ b) DEFINE a AS k = 'a', b AS k = 'b')";
    let endings = endings_of(&session, sql);
    let mut walk = Walk::default();
    (0..1_000).for_each(|second| push(&mut walk, &endings, at(second, "a", 0)));
    let mut steps = 0;
    assert_eq!(walk.ending(&endings, 10_000, &mut steps), Ending::None, "no match ends with that row, whatever was before");
    push(&mut walk, &endings, at(1_000, "b", 0));
    assert_eq!(walk.ending(&endings, 10_000, &mut steps), Ending::Unknown);
    let mut steps = 1_000_000;
    assert_eq!(begins(&walk.ending(&endings, 10_000, &mut steps)), Some((0, 0)));
    assert!((980_000..1_000_000).contains(&steps), "{steps} steps are left");
    assert_eq!(begins(&walk.ending(&endings, 10, &mut steps)), Some((990, 0)), "of the window alone");
}

#[test]
fn a_start_row_that_is_decided_whatever_follows_is_not_searched_again() {
    let session = Session::new(&[]);
    for b in ["b AS k = 'b'", "b AS b.x > FIRST(x)"] {
        let sql = format!(
            "SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES count(*) AS n PATTERN ((a | c) b) \
             DEFINE a AS k = 'a', {b}, c AS k = 'c')"
        );
        let endings = endings_of(&session, &sql);
        let (mut walk, mut steps) = (Walk::default(), 1_000_000);
        // Each row could be the last of a match, and no match begins, or none goes on.
        for second in 0..2_000 {
            push(&mut walk, &endings, at(second, "c", 1));
            let ending = walk.ending(&endings, 500, &mut steps);
            assert_eq!(ending, Ending::None, "{b}, at {second}, with {steps} steps left");
            walk.drop_before(second - 500, 0);
        }
        assert!(steps > 500_000, "{b}: {steps} steps are left");
    }
}

#[test]
fn a_search_that_reads_the_mapping_goes_on_where_it_stood() {
    let session = Session::new(&[]);
    let sql = "SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES count(*) AS n PATTERN (a b+) \
               DEFINE b AS b.x >= a.x AND sum(b.x) < 100000)";
    let endings = endings_of(&session, sql);
    let (mut walk, mut most) = (Walk::default(), 0);
    for second in 0..1_500 {
        push(&mut walk, &endings, at(second, "", 1));
        let mut steps = 1_000_000;
        let found = begins(&walk.ending(&endings, 10_000, &mut steps));
        assert_eq!(found, (second > 0).then_some((0, 0)), "at {second}");
        most = most.max(1_000_000 - steps);
    }
    assert!(most < 500, "one more row took {most} steps");
    // A row that comes late has it begin again, and then it stands there.
    walk.take_back(1_000);
    let taken = [1_000, 1_001].map(|second| {
        push(&mut walk, &endings, at(second, "", 1));
        let mut steps = 1_000_000;
        assert_eq!(begins(&walk.ending(&endings, 10_000, &mut steps)), Some((0, 0)));
        1_000_000 - steps
    });
    assert!(taken[0] > 50_000 && taken[1] < 500, "{taken:?}");
}

#[test]
fn a_search_for_which_there_is_no_room_is_made_again_and_finds_the_same() {
    let session = Session::new(&[]);
    // Each row begins a search that stays open, over all the rows behind it.
    let sql = "SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES count(*) AS n AFTER MATCH SKIP TO NEXT ROW PATTERN (a+ c) \
               DEFINE a AS count(a.*) < 1000, c AS c.x > a.x)";
    let endings = endings_of(&session, sql);
    let mut rows: Vec<Row> = (0..60).map(|second| at(second, "", 1)).collect();
    rows.push(at(60, "", 2));
    let told = |asked: fn(i64) -> bool| {
        let mut walk = Walk::default();
        let mut last = Ending::None;
        for row in &rows {
            push(&mut walk, &endings, row.clone());
            if asked(row.ts) {
                last = walk.ending(&endings, 10_000, &mut 100_000_000);
                assert_eq!(last == Ending::None, row.ts < 60, "at {}: {last:?}", row.ts);
            }
        }
        last
    };
    let (each, once) = (told(|_| true), told(|ts| ts == 60));
    assert_eq!(begins(&each), Some((0, 0)));
    assert_eq!(each, once);
}

#[test]
fn many_matches_of_one_time_are_the_querys_to_tell() {
    let session = Session::new(&[]);
    let sql = "SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES count(*) AS n AFTER MATCH SKIP TO NEXT ROW PATTERN (a+) \
               DEFINE a AS true)";
    let endings = endings_of(&session, sql);
    let mut walk = Walk::default();
    for second in 0..30 {
        push(&mut walk, &endings, at(second, "", 1));
        let Ending::From { ts: 0, place: 0, matches } = walk.ending(&endings, 10_000, &mut 1_000_000) else {
            panic!("at {second}")
        };
        assert_eq!(matches.map(|matches| matches.len()), (second < 16).then_some(second as usize + 1));
    }
}
