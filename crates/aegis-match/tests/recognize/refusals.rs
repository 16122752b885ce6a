//! What is refused when a query is planned, by name and place.

use aegis_match::{Refusal, RefusalKind};

use crate::harness::{Session, rows};

/// The refusal of a query, as text, and whether it is about what is not supported.
fn refusal(sql: &str) -> (String, bool) {
    let error = Session::new(&rows("p:a:1")).query(sql).expect_err(sql);
    match Refusal::in_error(&error) {
        Some(refusal) => (refusal.to_string(), refusal.kind == RefusalKind::Unsupported),
        None => (format!("ENGINE: {}", error.strip_backtrace()), false),
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name_and_place() {
    for (clauses, message) in [
        (
            "MEASURES id AS i ALL ROWS PER MATCH PATTERN (a) DEFINE a AS true",
            "ALL ROWS PER MATCH is not supported in MATCH_RECOGNIZE (leave it off: one row per match)",
        ),
        (
            "MEASURES id AS i ALL ROWS PER MATCH WITH UNMATCHED ROWS PATTERN (a) DEFINE a AS true",
            "ALL ROWS PER MATCH is not supported in MATCH_RECOGNIZE (leave it off: one row per match)",
        ),
        (
            "MEASURES id AS i PATTERN (PERMUTE(a, b)) DEFINE a AS true",
            "PERMUTE is not supported in MATCH_RECOGNIZE at Line: 2, Column: 27 (write the orders as an alternation: a b | b a)",
        ),
        (
            "MEASURES id AS i PATTERN (a {- b+ -} c) DEFINE a AS true",
            "exclusion ({- -}) is not supported in MATCH_RECOGNIZE at Line: 2, Column: 29 \
             (with one row per match it excludes nothing: leave the braces off)",
        ),
        (
            "MEASURES id AS i PATTERN (a b) SUBSET u = (a, b) DEFINE a AS true",
            "SUBSET is not supported in MATCH_RECOGNIZE at Line: 2, Column: 32 \
             (name the variables one by one, or leave the qualifier off for all rows of the match)",
        ),
        (
            "MEASURES id AS i PATTERN (a b) WITHIN INTERVAL '1' HOUR DEFINE a AS true",
            "WITHIN is not supported in MATCH_RECOGNIZE at Line: 2, Column: 32 \
             (bound the span in DEFINE, such as `b AS b.ts <= FIRST(ts) + INTERVAL '5' MINUTE`)",
        ),
        (
            "MEASURES id AS i INITIAL PATTERN (a b) DEFINE a AS true",
            "INITIAL (which belongs to windows) is not supported in MATCH_RECOGNIZE at Line: 2, Column: 18",
        ),
        (
            "MEASURES count(*) OVER () AS i PATTERN (a b) DEFINE a AS true",
            "the window function `count(*) OVER ()` is not supported in MATCH_RECOGNIZE at Line: 2, Column: 10",
        ),
        (
            "MEASURES id AS i PATTERN (a b) DEFINE a AS x IN (SELECT x FROM t)",
            "a subquery in DEFINE or MEASURES is not supported in MATCH_RECOGNIZE at Line: 2, Column: 50",
        ),
        (
            "MEASURES id AS i PATTERN (a b) DEFINE a AS count(*) = cardinality(array_agg(id ORDER BY x))",
            "ORDER BY in an aggregate of DEFINE is not supported in MATCH_RECOGNIZE at Line: 2, Column: 67",
        ),
        (
            "MEASURES LAST(a.k || CLASSIFIER()) AS i PATTERN (a b) DEFINE a AS true",
            "CLASSIFIER within a larger operand of FIRST, LAST, PREV or NEXT is not supported in MATCH_RECOGNIZE at Line: 2, Column: 22 \
             (navigate to it alone: LAST(CLASSIFIER()))",
        ),
    ] {
        let sql = format!("SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts\n{clauses})");
        assert_eq!(refusal(&sql), (message.to_owned(), true), "{clauses}");
    }
    assert_eq!(
        refusal("SELECT * FROM (SELECT * FROM t) AS s\nMATCH_RECOGNIZE (PATTERN (a) DEFINE a AS true)"),
        (
            "a subquery in parentheses as the input is not supported in MATCH_RECOGNIZE at Line: 2, Column: 1 \
             (name it: WITH t AS (…) SELECT … FROM t MATCH_RECOGNIZE (…))"
                .to_owned(),
            true
        )
    );
}

#[test]
fn what_means_nothing_is_refused_where_it_stands() {
    for (clauses, message) in [
        (
            "MEASURES d.id AS i PATTERN (a b) DEFINE a AS true",
            "`d` is no variable of PATTERN at Line: 2, Column: 10 \
             (its variables are: a, b; a column of any row stands without a qualifier)",
        ),
        (
            "MEASURES t.id AS i PATTERN (a) DEFINE a AS true",
            "`t` is no variable of PATTERN at Line: 2, Column: 10 (its variables are: a; a column of any row stands without a qualifier)",
        ),
        (
            "MEASURES CLASSIFIER(d) AS i PATTERN (a) DEFINE a AS true",
            "`d` is no variable of PATTERN at Line: 2, Column: 21 (its variables are: a; a column of any row stands without a qualifier)",
        ),
        (
            "MEASURES count(d.*) AS i PATTERN (a) DEFINE a AS true",
            "`d` is no variable of PATTERN at Line: 2, Column: 16 (its variables are: a; a column of any row stands without a qualifier)",
        ),
        (
            "MEASURES id AS i PATTERN (a b) DEFINE c AS true",
            "DEFINE has a condition of `c`, which is no variable of PATTERN at Line: 2, Column: 39 \
             (put it into the pattern, or leave the condition off)",
        ),
        (
            "MEASURES id AS i PATTERN (a b) DEFINE a AS true, A AS false",
            "DEFINE has two conditions of `A` at Line: 2, Column: 50 (join them with AND)",
        ),
        (
            "MEASURES id AS i PATTERN (a b) DEFINE a AS a.nothing = 1",
            "the input of MATCH_RECOGNIZE has no column `nothing` at Line: 2, Column: 46",
        ),
        (
            "MEASURES nothing AS i PATTERN (a b) DEFINE a AS true",
            "the input of MATCH_RECOGNIZE has no column `nothing` at Line: 2, Column: 10",
        ),
        (
            "MEASURES id AS i PATTERN (a b) DEFINE a AS x",
            "the condition of `a` is no truth value but Int64 at Line: 2, Column: 39",
        ),
        (
            "MEASURES id AS i PATTERN (a b) DEFINE a AS FINAL LAST(x) = 1",
            "FINAL has no meaning in DEFINE: the match is not known yet at Line: 2, Column: 44 (leave it off)",
        ),
        (
            "MEASURES FINAL PREV(x) AS i PATTERN (a b) DEFINE a AS true",
            "`prev` takes neither FINAL nor RUNNING at Line: 2, Column: 10",
        ),
        (
            "MEASURES RUNNING abs(x) AS i PATTERN (a b) DEFINE a AS true",
            "`abs` takes neither FINAL nor RUNNING at Line: 2, Column: 10",
        ),
        (
            "MEASURES FIRST(PREV(x)) AS i PATTERN (a b) DEFINE a AS true",
            "`PREV(x)` cannot stand within another navigation or an aggregate at Line: 2, Column: 16 \
             (PREV and NEXT may go around FIRST or LAST, nothing else is nested)",
        ),
        (
            "MEASURES sum(LAST(x)) AS i PATTERN (a b) DEFINE a AS true",
            "`LAST(x)` cannot stand within another navigation or an aggregate at Line: 2, Column: 14 \
             (PREV and NEXT may go around FIRST or LAST, nothing else is nested)",
        ),
        (
            "MEASURES sum(count(x)) AS i PATTERN (a b) DEFINE a AS true",
            "the aggregate `count(x)` cannot stand within a navigation or another aggregate at Line: 2, Column: 14",
        ),
        (
            "MEASURES LAST(sum(x)) AS i PATTERN (a b) DEFINE a AS true",
            "the aggregate `sum(x)` cannot stand within a navigation or another aggregate at Line: 2, Column: 15",
        ),
        (
            "MEASURES sum(a.x + b.x) AS i PATTERN (a b) DEFINE a AS true",
            "`sum(a.x + b.x)` reads columns of `a` and of `b` at Line: 2, Column: 10 \
             (navigation and aggregates go over the rows of one variable)",
        ),
        (
            "MEASURES LAST(a.x + x) AS i PATTERN (a b) DEFINE a AS true",
            "`a.x + x` reads columns of all rows and of `a` at Line: 2, Column: 10 \
             (navigation and aggregates go over the rows of one variable)",
        ),
        (
            "MEASURES LAST(1) AS i PATTERN (a b) DEFINE a AS true",
            "`1` names no column, so there is no row to go to at Line: 2, Column: 10",
        ),
        (
            "MEASURES LAST(x, x) AS i PATTERN (a b) DEFINE a AS true",
            "`LAST(x, x)` is not LAST(value) or LAST(value, number of rows) at Line: 2, Column: 10",
        ),
        (
            "MEASURES LAST(x, -1) AS i PATTERN (a b) DEFINE a AS true",
            "`LAST(x, -1)` is not LAST(value) or LAST(value, number of rows) at Line: 2, Column: 10",
        ),
        ("MEASURES x AS i, id AS I PATTERN (a b) DEFINE a AS true", "two measures are named `I` at Line: 2, Column: 24"),
        (
            "AFTER MATCH SKIP TO d PATTERN (a b) DEFINE a AS true",
            "AFTER MATCH SKIP TO `d`, which is no variable of PATTERN at Line: 2, Column: 21",
        ),
        (
            "PATTERN (a b{3,2}) DEFINE a AS true",
            "the quantifier {3,2} repeats nothing; its upper bound must be at least 1 and the lower bound at Line: 2, Column: 10",
        ),
        (
            "PATTERN (a |\n b **) DEFINE a AS true",
            "a quantifier cannot be repeated at Line: 3, Column: 5 (put what is repeated in parentheses)",
        ),
        (
            "PATTERN (((a{1000}){1000})) DEFINE a AS true",
            "the pattern has more than 16384 states with its counted repetitions multiplied out; lower the counts at Line: 2, Column: 10",
        ),
        (
            "PATTERN (a) DEFINE a AS random() > 0.5",
            "`random() > Float64(0.5)` is not decided by the rows (DEFINE and MEASURES know no chance)",
        ),
    ] {
        let sql = format!("SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts\n{clauses})");
        assert_eq!(refusal(&sql), (message.to_owned(), false), "{clauses}");
    }
    for (sql, message) in [
        (
            "SELECT * FROM t MATCH_RECOGNIZE (PARTITION BY x + 1 ORDER BY ts PATTERN (a) DEFINE a AS true)",
            "PARTITION BY takes columns, and `x + 1` is none at Line: 1, Column: 47 \
             (select the expression under a name of its own in WITH)",
        ),
        (
            "SELECT * FROM t MATCH_RECOGNIZE (ORDER BY g, -x DESC PATTERN (a) DEFINE a AS true)",
            "ORDER BY takes columns, and `-x` is none at Line: 1, Column: 47 (select the expression under a name of its own in WITH)",
        ),
        (
            "SELECT * FROM t MATCH_RECOGNIZE (PARTITION BY g ORDER BY ts MEASURES x AS g PATTERN (a) DEFINE a AS true)",
            "the output would have two columns `g` (it has the partition's columns, then the measures)",
        ),
    ] {
        assert_eq!(refusal(sql), (message.to_owned(), false), "{sql}");
    }
}

#[test]
fn what_does_not_parse_is_the_parsers_to_refuse() {
    for clauses in ["PATTERN (a)", "MEASURES x PATTERN (a) DEFINE a AS true", "DEFINE a AS true"] {
        let (message, _) = refusal(&format!("SELECT * FROM t MATCH_RECOGNIZE (ORDER BY ts {clauses})"));
        assert!(message.starts_with("ENGINE: SQL error: ParserError"), "{message}");
    }
}
