//! What a rule may not do is refused when it loads, with a code and a line.

mod allowed;
mod forbidden;
mod row_patterns;
mod unreachable;

use aegis_detect::{RuleCode, RuleError, RuleSet};

/// A rule with this much of a header changed, and this query.
fn rule(extra: &str, query: &str) -> String {
    format!(
        "/* rule\nid: T-1\nname: t\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: active\n{extra}owner: soc\n\
         description: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-22, note: first}}\n*/\n{query}\n"
    )
}

fn load(text: String) -> Result<RuleSet, RuleError> {
    RuleSet::from_texts([("t/rule.sql".into(), text)]).map_err(|mut e| e.0.remove(0))
}

fn refused(extra: &str, query: &str) -> RuleError {
    match load(rule(extra, query)) {
        Ok(_) => panic!("accepted: {query}"),
        Err(error) => error,
    }
}

const CONTAINS: &str = "respond: [freeze_agent]\n";
/// Lines of the header of `rule("", …)`.
const HEADER_LINES: u64 = 14;

/// Loads each rule (a change of the header, a query), and holds the refusal against the code and the place.
fn refuses(cases: &[(&str, &str, RuleCode, At)]) {
    let mut wrong = Vec::new();
    for (extra, query, code, at) in cases {
        let error = match load(rule(extra, query)) {
            Err(error) => error,
            Ok(_) => {
                wrong.push(format!("accepted, should be {code}: {query}"));
                continue;
            }
        };
        let header = HEADER_LINES + extra.lines().count() as u64;
        let place = error.place.map(|p| (p.line, p.column));
        let as_expected = match at {
            At::Any => true,
            At::Header => place.is_some_and(|(line, _)| line <= header),
            At::Start => place == Some((header + 1, 1)),
            At::Word(word) => {
                let before = &query[..query.find(word).unwrap()];
                let line = header + 1 + before.matches('\n').count() as u64;
                let column = before.rsplit('\n').next().unwrap().len() as u64 + 1;
                place == Some((line, column))
            }
        };
        if error.code != *code || !as_expected {
            wrong.push(format!("should be {code} at {at:?}: {query}\n    is {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where an error must point.
#[derive(Debug)]
enum At {
    Word(&'static str),
    Start,
    Header,
    Any,
}

#[test]
fn two_rules_with_one_id_are_refused() {
    let text = rule("", "SELECT agent_id, event_id FROM events");
    let errors = RuleSet::from_texts([("a/rule.sql".into(), text.clone()), ("b/rule.sql".into(), text)]).unwrap_err();
    assert!(errors.0.iter().all(|e| e.code == RuleCode::RuleDuplicate), "{errors}");
}

#[test]
fn a_word_that_is_almost_a_column_of_a_side_table_is_told_from_the_columns_that_there_are() {
    let error = refused("", "SELECT agent_id, event_id FROM events WHERE first_seen_agnt = ts");
    assert!(error.message.contains("first_seen_agent"), "{error}");
    let error = refused("", "SELECT agent_id, event_id FROM events WHERE agnt = 'x'");
    assert!(!error.message.contains("first_seen_agent"), "{error}");
}

#[test]
fn an_error_reads_well() {
    let error = refused("", "SELECT agent_id, event_id FROM events WHERE ts > now()");
    assert_eq!(
        error.to_string(),
        "t/rule.sql:15:50: RULE_FUNCTION: `now()` is not decided by the events alone\n  \
         hint: a rule has no clock and no chance: use `ts`, and RANGE frames or differences of `ts`"
    );
}
