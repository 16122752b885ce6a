//! Each clause by an example.

use crate::harness::{Session, letters, rows, sorted};

const IDS: &str = "array_agg(id) AS ids";

#[test]
fn the_pattern_takes_what_is_preferred() {
    let table = Session::new(&rows("p:a p:a p:b p:ab p:b p:c"));
    for (pattern, found) in [
        ("a+ b", vec!["[p1, p2, p3]", "[p4, p5]"]),
        ("a", vec!["[p1]", "[p2]", "[p4]"]),
        ("a* b", vec!["[p1, p2, p3]", "[p4, p5]"]),
        ("a*? b", vec!["[p1, p2, p3]", "[p4]", "[p5]"]),
        ("a+? b+?", vec!["[p1, p2, p3]", "[p4, p5]"]),
        ("a a? b+", vec!["[p1, p2, p3, p4, p5]"]),
        ("a a?? b+?", vec!["[p1, p2, p3]", "[p4, p5]"]),
        ("(a | b){2}", vec!["[p1, p2]", "[p3, p4]"]),
        ("(a | b){2,}", vec!["[p1, p2, p3, p4, p5]"]),
        ("(a | b){,2} c", vec!["[p4, p5, p6]"]),
        ("(a | b){1,2}? c", vec!["[p4, p5, p6]"]),
        ("b (a | b | c)*", vec!["[p3, p4, p5, p6]"]),
        ("^ a", vec!["[p1]"]),
        ("(b | c)+ $", vec!["[p3, p4, p5, p6]"]),
        ("^ (a | b | c)+ $", vec!["[p1, p2, p3, p4, p5, p6]"]),
        ("(a b | b c)", vec!["[p2, p3]", "[p4, p5]"]),
        ("(a (b) c)", vec!["[p4, p5, p6]"]),
        ("(a b) (a b)", vec!["[p2, p3, p4, p5]"]),
        ("(a b) c c", vec![]),
    ] {
        assert_eq!(table.rows(&letters("", IDS, "", pattern)), found, "{pattern}");
    }
}

#[test]
fn names_fold_as_everywhere_and_may_be_quoted() {
    let table = Session::new(&rows("p:a:1 p:b:2"));
    let sql = "SELECT ids, c FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES array_agg(ID) AS Ids, CLASSIFIER() AS c
               PATTERN (A \"Two Words\") DEFINE a AS A.K = 'a', \"Two Words\" AS \"Two Words\".x = 2)";
    assert_eq!(table.rows(sql), ["[p1, p2]|Two Words"]);
}

#[test]
fn after_a_match_the_search_goes_on_where_skip_says() {
    let table = Session::new(&rows("p:a p:a p:b p:b p:a p:b"));
    for (skip, found) in [
        ("", vec!["[p1, p2, p3, p4]", "[p5, p6]"]),
        ("AFTER MATCH SKIP PAST LAST ROW", vec!["[p1, p2, p3, p4]", "[p5, p6]"]),
        ("AFTER MATCH SKIP TO NEXT ROW", vec!["[p1, p2, p3, p4]", "[p2, p3, p4]", "[p5, p6]"]),
        ("AFTER MATCH SKIP TO FIRST b", vec!["[p1, p2, p3, p4]", "[p5, p6]"]),
        ("AFTER MATCH SKIP TO LAST b", vec!["[p1, p2, p3, p4]", "[p5, p6]"]),
        ("AFTER MATCH SKIP TO b", vec!["[p1, p2, p3, p4]", "[p5, p6]"]),
        ("ONE ROW PER MATCH AFTER MATCH SKIP TO NEXT ROW", vec!["[p1, p2, p3, p4]", "[p2, p3, p4]", "[p5, p6]"]),
    ] {
        assert_eq!(table.rows(&letters("", IDS, skip, "a+ b+")), found, "{skip}");
    }
    let overlapping = letters("", IDS, "AFTER MATCH SKIP TO LAST b", "b (a | b)* b");
    assert_eq!(table.rows(&overlapping), ["[p3, p4, p5, p6]"]);
    let pairs = letters("", IDS, "AFTER MATCH SKIP TO LAST b", "(a | b) b");
    assert_eq!(table.rows(&pairs), ["[p2, p3]", "[p3, p4]", "[p5, p6]"]);
}

#[test]
fn skipping_to_what_is_not_there_or_is_the_first_row_ends_the_query() {
    let table = Session::new(&rows("p:a p:c"));
    let missing = table.query(&letters("", IDS, "AFTER MATCH SKIP TO LAST b", "a b? c")).unwrap_err().to_string();
    assert!(missing.contains("the match at row 0 has no row of that variable; make the variable mandatory"), "{missing}");
    let first = table.query(&letters("", IDS, "AFTER MATCH SKIP TO FIRST a", "a c")).unwrap_err().to_string();
    assert!(first.contains("is the first of the match at row 0, which would repeat for ever"), "{first}");
}

#[test]
fn measures_navigate_the_match_and_its_surroundings() {
    let table = Session::new(&rows("p:c:1 p:a:2 p:a:3 p:b:4 p:b:5 p:b:- p:c:7"));
    let measure = |measure: &str| {
        let rows = table.rows(&letters("", &format!("{measure} AS m"), "", "a+ b+"));
        assert_eq!(rows.len(), 1, "{measure}");
        rows[0].clone()
    };
    for (expression, value) in [
        ("a.x", "3"),
        ("b.x", "-"),
        ("x", "-"),
        ("b.id", "p6"),
        ("id", "p6"),
        ("FIRST(x)", "2"),
        ("FIRST(x, 2)", "4"),
        ("FIRST(a.x)", "2"),
        ("FIRST(a.x, 1)", "3"),
        ("FIRST(a.x, 2)", "-"),
        ("LAST(b.x, 1)", "5"),
        ("LAST(b.x, 9)", "-"),
        ("LAST(a.x * 10 + 1)", "31"),
        ("PREV(a.x)", "2"),
        ("PREV(FIRST(a.x))", "1"),
        ("PREV(FIRST(a.x), 2)", "-"),
        ("PREV(FIRST(a.x, 1), 2)", "1"),
        ("PREV(a.x, 0)", "3"),
        ("NEXT(a.x)", "4"),
        ("NEXT(LAST(b.x))", "7"),
        ("NEXT(b.id, 1)", "p7"),
        ("NEXT(b.id, 2)", "-"),
        ("FIRST(a.x) + LAST(a.x) * 100", "302"),
        ("FINAL LAST(a.x)", "3"),
        ("RUNNING LAST(a.x)", "3"),
        ("PREV(RUNNING LAST(a.x))", "2"),
        ("FINAL count(a.x)", "2"),
        ("running Sum(b.x)", "9"),
        ("count(*)", "5"),
        ("count(b.*)", "3"),
        ("count(b.x)", "2"),
        ("count(DISTINCT k)", "2"),
        ("sum(b.x) / count(b.x)", "4"),
        ("avg(b.x)", "4.5"),
        ("min(x) + max(a.x)", "5"),
        ("array_agg(b.x)", "[4, 5, -]"),
        ("array_agg(b.x ORDER BY b.x DESC NULLS LAST)", "[5, 4, -]"),
        ("array_agg(b.id) FILTER (WHERE b.x > 4)", "[p5]"),
        ("count(*) FILTER (WHERE x > 3)", "2"),
        ("count(b.*) FILTER (WHERE b.x > 4)", "1"),
        ("string_agg(id, '+')", "p2+p3+p4+p5+p6"),
        ("array_agg(CLASSIFIER())", "[a, a, b, b, b]"),
        ("array_agg(CASE WHEN CLASSIFIER() = 'a' THEN id END)", "[p2, p3, -, -, -]"),
        ("CLASSIFIER()", "b"),
        ("CLASSIFIER(a)", "a"),
        ("FIRST(CLASSIFIER())", "a"),
        ("LAST(CLASSIFIER(), 3)", "a"),
        ("PREV(FIRST(CLASSIFIER()))", "-"),
        ("PREV(FIRST(CLASSIFIER(b)))", "a"),
        ("NEXT(CLASSIFIER())", "-"),
        ("MATCH_NUMBER()", "1"),
        ("CASE WHEN count(b.*) > 2 THEN 'many' ELSE a.id END", "many"),
        ("a.id || '-' || FIRST(b.id)", "p3-p4"),
        ("abs(a.x - b.x) IS NULL", "true"),
        ("1 + 1", "2"),
        ("b.ts - FIRST(ts)", "PT4S"),
    ] {
        assert_eq!(measure(expression), value, "{expression}");
    }
}

#[test]
fn conditions_see_the_row_its_neighbours_and_the_mapping_so_far() {
    let table = Session::new(&rows("p:-:5 p:-:4 p:-:3 p:-:4 p:-:6 p:-:6 p:-:1"));
    let find = |pattern: &str, define: &str| {
        table.rows(&format!("SELECT ids FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES {IDS} PATTERN ({pattern}) DEFINE {define})"))
    };
    for (pattern, define, found) in [
        ("s d+ u+", "d AS d.x < PREV(d.x), u AS u.x > PREV(u.x)", vec!["[p1, p2, p3, p4, p5]"]),
        ("d+", "d AS x < PREV(x)", vec!["[p2, p3]", "[p7]"]),
        ("d+", "d AS x > NEXT(x)", vec!["[p1, p2]", "[p6]"]),
        ("d", "d AS PREV(x, 2) = x - 1", vec![]),
        ("d", "d AS PREV(x, 2) = x", vec!["[p4]"]),
        ("s a*", "a AS a.x < s.x", vec!["[p1, p2, p3, p4]", "[p5]", "[p6, p7]"]),
        ("a+", "a AS sum(a.x) <= 9", vec!["[p1, p2]", "[p3, p4]", "[p5]", "[p6, p7]"]),
        ("a+ b", "a AS sum(a.x) <= 9, b AS b.x > avg(a.x)", vec!["[p2, p3, p4]"]),
        ("a+ b", "b AS count(a.*) = 2", vec!["[p1, p2, p3]", "[p4, p5, p6]"]),
        ("a+", "a AS count(*) <= 3", vec!["[p1, p2, p3]", "[p4, p5, p6]", "[p7]"]),
        ("a+", "a AS a.x - FIRST(a.x) BETWEEN -1 AND 1", vec!["[p1, p2]", "[p3, p4]", "[p5, p6]", "[p7]"]),
        ("a b", "b AS b.x = LAST(x, 1)", vec!["[p5, p6]"]),
        ("(a | b)+ c", "a AS x > 4, b AS x < 4, c AS LAST(b.x) = 3", vec!["[p3, p4]"]),
        ("(a | b)+ c", "a AS x >= 4, b AS x < 4, c AS LAST(b.x) = 3", vec!["[p1, p2, p3, p4, p5, p6, p7]"]),
        ("a b?", "b AS MATCH_NUMBER() = 2", vec!["[p1]", "[p2, p3]", "[p4]", "[p5]", "[p6]", "[p7]"]),
        ("a+ b", "a AS CLASSIFIER() = 'a' AND x > 3, b AS PREV(CLASSIFIER()) = 'a'", vec!["[p1, p2, p3]", "[p4, p5, p6, p7]"]),
        ("a b", "b AS CLASSIFIER(a) = 'a' AND b.x > a.x", vec!["[p3, p4]"]),
        ("a{2}", "a AS cardinality(array_agg(a.x)) < 2", vec![]),
        ("a{2}", "a AS cardinality(array_agg(a.x)) < 3", vec!["[p1, p2]", "[p3, p4]", "[p5, p6]"]),
        ("a+", "a AS true AND x > 5", vec!["[p5, p6]"]),
        ("a+", "a AS NULL", vec![]),
    ] {
        assert_eq!(find(pattern, define), found, "{pattern} / {define}");
    }
}

#[test]
fn a_condition_that_is_null_does_not_hold() {
    let table = Session::new(&rows("p:-:1 p:-:- p:-:3"));
    let sql = format!("SELECT ids FROM t MATCH_RECOGNIZE (ORDER BY ts MEASURES {IDS} PATTERN (a+) DEFINE a AS x > 0)");
    assert_eq!(table.rows(&sql), ["[p1]", "[p3]"]);
}

#[test]
fn each_partition_is_searched_by_itself_and_null_is_one_of_them() {
    let table = Session::new(&rows("p:a q:a -:a p:b q:c -:b p:a p:b"));
    let sql = letters("PARTITION BY g", "MATCH_NUMBER() AS n, array_agg(id) AS ids", "", "a b");
    assert_eq!(sorted(table.rows(&sql)), ["-|1|[1, 2]", "p|1|[p1, p2]", "p|2|[p3, p4]"]);
    let one = letters("", IDS, "", "a{3} b");
    assert_eq!(table.rows(&one), ["[p1, q1, 1, p2]"]);
}

#[test]
fn nulls_in_the_order_stand_where_the_order_says() {
    let table = Session::new(&rows("p:-:2 p:-:- p:-:1"));
    let find = |order: &str| {
        table.rows(&format!("SELECT ids FROM t MATCH_RECOGNIZE (ORDER BY {order} MEASURES {IDS} PATTERN (a+) DEFINE a AS true)"))
    };
    assert_eq!(find("x"), ["[p3, p1, p2]"]);
    assert_eq!(find("x DESC"), ["[p2, p1, p3]"]);
    assert_eq!(find("x NULLS FIRST"), ["[p2, p3, p1]"]);
    assert_eq!(find("x DESC NULLS LAST"), ["[p1, p3, p2]"]);
    assert_eq!(find("k, ts DESC"), ["[p3, p2, p1]"]);
}

#[test]
fn an_empty_match_is_a_row_and_counts() {
    let table = Session::new(&rows("p:b:1 p:a:2 p:b:3"));
    let measures = "MATCH_NUMBER() AS n, count(*) AS c, CLASSIFIER() AS v, x AS x, array_agg(id) AS ids, sum(a.x) AS s";
    assert_eq!(
        table.rows(&letters("PARTITION BY g", measures, "", "a*")),
        ["p|1|0|-|-|-|-", "p|2|1|a|2|[p2]|2", "p|3|0|-|-|-|-"]
    );
    let preferred = letters("", "MATCH_NUMBER() AS n, count(*) AS c", "", "(() | a)");
    assert_eq!(table.rows(&preferred), ["1|0", "2|0", "3|0"]);
}

#[test]
fn nothing_comes_of_nothing() {
    let table = Session::new(&[]);
    for pattern in ["a", "a*", "^ a* $"] {
        assert_eq!(table.rows(&letters("PARTITION BY g", IDS, "", pattern)), Vec::<String>::new());
        assert_eq!(table.rows(&letters("", IDS, "", pattern)), Vec::<String>::new());
    }
}

#[test]
fn it_is_a_table_like_any_other() {
    let table = Session::new(&rows("p:a:1 q:a:2 p:b:3 q:b:4"));
    let found = "MATCH_RECOGNIZE (PARTITION BY g ORDER BY ts MEASURES a.x AS first_x, b.x AS last_x PATTERN (a b) DEFINE a AS k = 'a', b AS k = 'b')";
    assert_eq!(table.rows(&format!("SELECT m.g, last_x - m.first_x AS d FROM t {found} AS m WHERE m.last_x > 3")), ["q|2"]);
    assert_eq!(table.rows(&format!("SELECT sum(last_x) FROM t {found}")), ["7"]);
    assert_eq!(table.rows(&format!("WITH s AS (SELECT * FROM t WHERE x < 4) SELECT g FROM s {found}")), ["p"]);
    assert_eq!(
        table.rows(&format!("SELECT m.g, u.id FROM t AS r {found} m JOIN t u ON u.x = m.last_x ORDER BY m.g")),
        ["p|p2", "q|q2"]
    );
    assert_eq!(table.rows(&format!("SELECT n.* FROM (SELECT * FROM t {found}) AS n ORDER BY g DESC LIMIT 1")), ["q|2|4"]);
    let twice = format!(
        "WITH s AS (SELECT g, last_x FROM t {found}) SELECT ids FROM s MATCH_RECOGNIZE (ORDER BY g MEASURES array_agg(last_x) AS ids PATTERN (a+) DEFINE a AS true)"
    );
    assert_eq!(table.rows(&twice), ["[3, 4]"]);
}

#[test]
fn the_plans_say_what_is_matched() {
    let table = Session::new(&rows("p:a:1"));
    let sql = letters("PARTITION BY g", "FINAL LAST(a.x) AS l", "AFTER MATCH SKIP TO LAST b", "a b+?");
    let logical = aegis_sql::optimize(&table.state, &table.logical(&sql).unwrap()).unwrap().display_indent().to_string();
    assert_eq!(
        logical,
        "MatchRecognize: partition_by=[t.g], order_by=[t.ts ASC NULLS LAST], measures=[FINAL LAST(a.x) AS l], skip=[to last b], \
         pattern=[a b+?], define=[a AS strpos(k, 'a') > 0, b AS strpos(k, 'b') > 0]\n  TableScan: t projection=[g, ts, x, k]"
    );
    let physical = datafusion::physical_plan::displayable(table.physical(&sql).unwrap().as_ref()).indent(false).to_string();
    let lines: Vec<&str> = physical.lines().map(|line| line.trim().split(':').next().unwrap()).collect();
    assert_eq!(lines, ["MatchExec", "SortExec", "DataSourceExec"]);
}
