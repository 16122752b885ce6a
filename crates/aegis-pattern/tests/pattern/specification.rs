//! What a pattern means, one rule a test. A row is a word: the variables that it may be mapped to; `.` is a row of none.
//! A match is its start row and the variable of each row.

use aegis_pattern::{MatchError, Program, Skip, Variable};

use crate::table::{matches, matches_skipping};

#[test]
fn a_variable_takes_one_row() {
    assert_eq!(matches("a", "a . a"), ["0:a", "2:a"]);
    assert_eq!(matches("a", ""), [""; 0]);
}

#[test]
fn a_concatenation_takes_rows_one_after_the_other() {
    assert_eq!(matches("a b", "a a b . a . b"), ["1:ab"]);
}

#[test]
fn an_alternation_prefers_the_earlier_however_long() {
    assert_eq!(matches("a | b", "ab b"), ["0:a", "1:b"]);
    assert_eq!(matches("a | a b", "a b"), ["0:a"]);
    assert_eq!(matches("a{1,2} | b{2,3}", "ab ab b b b"), ["0:aa", "2:bbb"]);
}

#[test]
fn a_greedy_quantifier_prefers_more_and_a_reluctant_one_fewer() {
    for (pattern, expected) in [
        ("a*", "0:aaaa"),
        ("a*?", "0:"),
        ("a+", "0:aaaa"),
        ("a+?", "0:a"),
        ("a?", "0:a"),
        ("a??", "0:"),
        ("a{3}", "0:aaa"),
        ("a{2,}", "0:aaaa"),
        ("a{2,}?", "0:aa"),
        ("a{2,3}", "0:aaa"),
        ("a{2,3}?", "0:aa"),
        ("a{,3}", "0:aaa"),
        ("a{,3}?", "0:"),
    ] {
        assert_eq!(matches(pattern, "a a a a")[0], expected, "{pattern}");
    }
}

#[test]
fn what_comes_first_counts_more_than_length() {
    // In the order of preferment: aa, ab, a, ba, bb, b; reluctant: a, aa, ab, b, ba, bb.
    assert_eq!(matches("(a | b){1,2}", "ab b"), ["0:ab"]);
    assert_eq!(matches("(a | b){1,2}?", "ab b"), ["0:a", "1:b"]);
    assert_eq!(matches("(a | b) (c | a)", "ab ac"), ["0:ac"]);
}

#[test]
fn an_earlier_start_row_counts_more_than_anything() {
    assert_eq!(matches("a | b b b", "b b b a"), ["0:bbb", "3:a"]);
    assert_eq!(matches("a | b", "b a"), ["0:b", "1:a"]);
}

#[test]
fn what_does_not_lead_to_a_match_is_taken_back() {
    assert_eq!(matches("a* a b", "a a ab b"), ["0:aaab"]);
    assert_eq!(matches("a* ab", "ab ab b"), ["0:aab"]);
    assert_eq!(matches("(a b | a) b c", "a b c"), ["0:abc"]);
    assert_eq!(matches("a? b+", "b b b"), ["0:bbb"]);
}

#[test]
fn a_counted_group_counts_iterations_and_not_rows() {
    assert_eq!(matches("(a | b c){2}", "b c a a"), ["0:bca"]);
    assert_eq!(matches("(a{2} b){2}", "a a b a a b a a b"), ["0:aabaab"]);
    assert_eq!(matches("(a{1,2}){2} b", "a a a b"), ["0:aaab"]);
}

#[test]
fn anchors_hold_at_the_ends_of_the_partition_only() {
    assert_eq!(matches("^ a", "a a"), ["0:a"]);
    assert_eq!(matches("a $", "a a"), ["1:a"]);
    assert_eq!(matches("^ a* $", "a a a"), ["0:aaa"]);
    assert_eq!(matches("^ a* $", "a b a"), [""; 0]);
    assert_eq!(matches("a ^", "a a"), [""; 0]);
    assert_eq!(matches("$ a", "a a"), [""; 0]);
    assert_eq!(matches("(^ a | b)+", "ab ab ab"), ["0:abb"]);
}

#[test]
fn the_empty_pattern_matches_no_row_at_every_row() {
    // MATCH_NUMBER counts empty matches; the row after one is where the next may start.
    assert_eq!(matches("()", "a b"), ["0:", "1:"]);
    assert_eq!(matches("a*", "a . a"), ["0:a", "1:", "2:a"]);
    assert_eq!(matches("a | ()", ". a"), ["0:", "1:a"]);
    assert_eq!(matches("()", ""), [""; 0]);
}

#[test]
fn an_empty_iteration_is_the_last_once_the_lower_bound_is_met() {
    // L-PATTERN-EMPTY-ITERATION. Preferring the empty iteration ends the repetition before any row is taken.
    assert_eq!(matches("(() | a)*", "a a"), ["0:", "1:"]);
    assert_eq!(matches("(a | ())*", "a a"), ["0:aa"]);
    assert_eq!(matches("(a??)* b", "a b"), ["0:ab"]);
    assert_eq!(matches("(a??)* b", "b"), ["0:b"]);
    // (a?){2,3} allows, with - for an empty iteration: aaa aa- aa, a-, -aa -a- -a, --; an empty second iteration ends it.
    assert_eq!(matches("(a??){2,3}", "a a a"), ["0:", "1:", "2:"]);
    assert_eq!(matches("(a??){2,3} $", "a a a"), ["0:aaa"]);
    assert_eq!(matches("(a??){3} b", "a b"), ["0:ab"]);
    // Below the lower bound an empty iteration is followed by another, which may take a row; from it on it is not.
    assert_eq!(matches("(() | a){2,} b", "a b"), ["0:ab"]);
    assert_eq!(matches("(() | a){2} b", "a a b"), ["0:aab"]);
    assert_eq!(matches("(() | a){2,3}", "a a a"), ["0:", "1:", "2:"]);
}

#[test]
fn loops_of_nothing_end() {
    for pattern in ["(()*)*", "((a*)*)*", "(()+)+", "((^)*)+", "((a?){2,}){3,}", "((a*)+ | ())*?"] {
        assert_eq!(matches(pattern, ". ."), ["0:", "1:"], "{pattern}");
    }
    assert_eq!(matches("((a*)*)* b", "a a b"), ["0:aab"]);
}

fn skip_to(
    pattern: &str,
    words: &str,
    name: &str,
    skip: impl Fn(Vec<Variable>) -> Skip,
) -> Result<Vec<String>, MatchError<String>> {
    matches_skipping(pattern, words, |program: &Program| {
        skip(name.chars().filter_map(|c| program.variable(&c.to_string())).collect())
    })
}

#[test]
fn after_a_match_the_next_starts_where_skip_says() {
    // L-PATTERN-SKIP
    let words = "a b b c a b";
    assert_eq!(matches("a b*", words), ["0:abb", "4:ab"]);
    let next_row = |pattern, words| matches_skipping(pattern, words, |_| Skip::ToNextRow).unwrap();
    assert_eq!(next_row("a* b", "a a b"), ["0:aab", "1:ab", "2:b"]);
    assert_eq!(next_row("a b*", words), ["0:abb", "4:ab"]);
    assert_eq!(skip_to("a+ b+ c?", "a a b ab b c", "b", Skip::ToFirst).unwrap(), ["0:aabbbc", "3:abc"]);
    assert_eq!(skip_to("a b+", "a ab ab b", "b", Skip::ToLast).unwrap(), ["0:abbb"]);
    assert_eq!(skip_to("a b+", "a ab ab b", "b", Skip::ToFirst).unwrap(), ["0:abbb", "1:abb", "2:ab"]);
    // To a union variable: the first or last row of any of its variables.
    assert_eq!(skip_to("a (b | c) b?", "a c ab b", "bc", Skip::ToFirst).unwrap(), ["0:acb", "2:ab"]);
}

#[test]
fn skipping_to_where_the_match_began_or_to_no_row_is_an_error() {
    assert_eq!(skip_to("a b", "a b", "a", Skip::ToFirst), Err(MatchError::SkipToFirstRow { start: 0 }));
    assert_eq!(skip_to("a b", ". a b", "a", Skip::ToLast), Err(MatchError::SkipToFirstRow { start: 1 }));
    assert_eq!(skip_to("a b? c", "a c", "b", Skip::ToFirst), Err(MatchError::SkipToUnmapped { start: 0 }));
    let error = skip_to("a b? c", "a c", "b", Skip::ToLast).unwrap_err().to_string();
    assert!(error.contains("row 0 has no row of that variable"), "{error}");
    // An empty match has no row of any variable, and goes on at the next row all the same.
    assert_eq!(skip_to("a a | ()", ". . a a", "a", Skip::ToLast).unwrap(), ["0:", "1:", "2:aa", "3:"]);
}
