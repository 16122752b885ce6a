//! Why a rule did or did not fire on an event of a small log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aegis_detect::{Explain, Explanation};
use aegis_model::{Decision, EventKind, ManualClock, RuleMode, SecurityEvent, TenantId, Timestamp};
use serde_json::{Value, json};

const START: i64 = 1_767_225_600_000_000;
const SLIDING: &str = "SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events \
     WHERE kind = 'authorize_decision' AND decision = 'deny' AND coalesce(reason, '') NOT IN ('agent_frozen', 'agent_revoked') \
     WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= 3";
const STEPPED: &str = "SELECT agent_id, array_agg(event_id) AS event_ids, count(*) AS n FROM events WHERE decision = 'deny' \
     GROUP BY agent_id HAVING count(*) >= 3";
const PATTERN: &str = "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts \
     MEASURES array_agg(event_id) AS event_ids PATTERN (d d d+) DEFINE d AS d.decision = 'deny')";

fn rule(extra: &str, query: &str) -> String {
    format!(
        "/* rule\nid: T-1\nname: storm\nversion: 2\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: disabled\n{extra}owner: soc\n\
         description: d\nfalse_positives: none\nchangelog:\n  - {{version: 2, date: 2026-11-26, note: n}}\n*/\n{query}\n"
    )
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(START + second * 1_000_000)
}

fn event(agent: Option<&str>, second: i64, decision: Option<Decision>) -> SecurityEvent {
    let tenant = TenantId::new("a").unwrap();
    let mut event = SecurityEvent::new(tenant, "e", "edge", EventKind::AuthorizeDecision, at(second));
    event.agent_id = agent.map(str::to_owned);
    event.decision = decision;
    event.bus_ts = Some(at(second));
    event
}

fn deny(second: i64) -> SecurityEvent {
    event(Some("one"), second, Some(Decision::Deny))
}

fn explain(text: &str, log: &[SecurityEvent], asked: usize) -> Explanation {
    explain_at(0, text, log, asked)
}

fn explain_at(now: i64, text: &str, log: &[SecurityEvent], asked: usize) -> Explanation {
    explain_file(now, text, Path::new("r/rule.sql"), log, asked)
}

fn explain_file(now: i64, text: &str, file: &Path, log: &[SecurityEvent], asked: usize) -> Explanation {
    let clock = Arc::new(ManualClock::new(at(now)));
    let mut explain = Explain::new(text, file, log[asked].clone(), clock).unwrap();
    let (from, to) = explain.span();
    log.iter().filter(|event| from <= event.ts && event.ts < to).for_each(|event| explain.take(event.clone()).unwrap());
    explain.finish().unwrap()
}

/// Denies of one agent at 100 to 104, of another between them, and an allow.
fn log() -> Vec<SecurityEvent> {
    let mut log: Vec<SecurityEvent> = (100..105).map(deny).collect();
    log.push(event(Some("two"), 104, Some(Decision::Deny)));
    log.push(event(Some("one"), 105, Some(Decision::Allow)));
    log
}

#[test]
fn the_deny_that_completes_a_storm_raises_its_alert_and_the_next_one_joins_it() {
    let log = log();
    for query in [SLIDING, STEPPED, PATTERN] {
        let text = rule("suppress: 10m\n", query);
        let third = explain(&text, &log, 2);
        assert!(third.fired && third.passes && !third.late, "{third}");
        assert_eq!(third.rows[0].key, *json!({"agent_id": "one"}).as_object().unwrap());
        assert_eq!((third.rows[0].evidence, third.rows[0].is_evidence), (3, true));
        let raised = third.rows[0].alert.clone().unwrap();
        assert_eq!((raised.start, raised.is_raised_by_it), (at(102), true));
        assert!(third.to_string().ends_with("fired"), "{third}");
        let fourth = explain(&text, &log, 3);
        let joined = fourth.rows[0].alert.clone().unwrap();
        assert!(fourth.fired);
        assert_eq!((joined.alert_id, joined.start, joined.is_raised_by_it), (raised.alert_id, at(102), false));
        assert!(fourth.to_string().contains("it joins"), "{fourth}");
    }
}

#[test]
fn the_first_deny_of_a_storm_is_evidence_of_a_later_match() {
    for query in [SLIDING, STEPPED, PATTERN] {
        let first = explain(&rule("", query), &log(), 0);
        assert!(!first.fired && first.passes && first.rows.is_empty(), "{first}");
        assert_eq!(first.later.as_ref().unwrap().instant, at(102), "{first}");
        assert!(first.to_string().ends_with(&format!("not yet: the match that it is evidence of is complete at {}", at(102))));
    }
    let first = explain(&rule("", SLIDING), &log(), 0);
    assert_eq!((first.in_window, first.split_by["agent_id"].as_deref()), (1, Some("one")));
    assert_eq!(explain(&rule("", SLIDING), &log(), 4).in_window, 5);
}

#[test]
fn without_episodes_a_match_belongs_to_the_alert_with_its_first_evidence() {
    let fourth = explain(&rule("", SLIDING), &log(), 3);
    let alert = fourth.rows[0].alert.clone().unwrap();
    assert_eq!((alert.start, alert.is_raised_by_it), (at(102), false));
}

#[test]
fn which_way_a_rule_runs_is_said_and_why_it_is_stepped() {
    let said = |query: &str| {
        let said = serde_json::to_value(explain(&rule("", query), &log(), 3)).unwrap();
        (said["shape"].clone(), said.get("pattern").cloned(), said.get("stepped_for").is_some())
    };
    assert_eq!(said(SLIDING), (json!("incremental"), None, false));
    assert_eq!(said(STEPPED), (json!("stepped"), None, true));
    assert_eq!(said(PATTERN), (json!("pattern"), Some(json!({"conditions": "row", "measures": "rows"})), false));
    let mapped = PATTERN.replace("d.decision = 'deny'", "d.decision = 'deny' AND count(d.*) < 9");
    assert_eq!(said(&mapped), (json!("pattern"), Some(json!({"conditions": "mapping", "measures": "rows"})), false));
}

#[test]
fn a_condition_that_is_false_or_null_is_named_with_the_values_it_read() {
    let allowed = explain(&rule("", SLIDING), &log(), 6);
    assert!(!allowed.passes && !allowed.fired && allowed.rows.is_empty());
    let failed: Vec<_> = allowed.conditions.iter().filter(|judged| judged.holds != Some(true)).collect();
    assert_eq!(failed.len(), 1, "{allowed}");
    assert_eq!((failed[0].condition.as_str(), failed[0].holds), ("decision = 'deny'", Some(false)));
    assert_eq!(Value::Object(failed[0].values.clone()), json!({"decision": "allow"}));
    assert!(
        allowed.to_string().contains(r#"WHERE     not passed: decision = 'deny' is false: decision is "allow""#),
        "{allowed}"
    );

    let undecided = explain(&rule("", SLIDING), &[event(Some("one"), 100, None)], 0);
    assert!(
        undecided.conditions.iter().any(|judged| judged.holds.is_none() && judged.values["decision"] == Value::Null),
        "{undecided}"
    );

    let mut frozen = deny(100);
    frozen.reason = Some("agent_frozen".to_owned());
    let frozen = explain(&rule("", SLIDING), &[frozen], 0);
    assert!(frozen.to_string().contains(r#"reason is "agent_frozen""#), "{frozen}");
}

#[test]
fn a_rule_that_requires_verified_events_says_so() {
    let unverified = explain(&rule("requires: verified\n", SLIDING), &log(), 0);
    assert!(!unverified.passes && !unverified.verified);
    assert!(
        unverified.conditions.iter().any(|judged| judged.condition == "verified" && judged.holds == Some(false)),
        "{unverified}"
    );
}

#[test]
fn what_comes_too_late_is_not_looked_at() {
    let mut behind = deny(100);
    behind.bus_ts = Some(at(1000));
    let text = rule("", "SELECT agent_id, event_id FROM events");
    let proved = |second: i64| SecurityEvent { lane: Some("a.e.1".to_owned()), verified: true, ..deny(second) };
    let slow = explain(&text, &[proved(100), behind.clone()], 1);
    assert!(!slow.late && slow.fired, "{slow}");
    let late = explain(&text, &[proved(500), behind], 1);
    assert!(late.late && !late.fired && late.passes, "{late}");
    assert!(late.to_string().contains("late: the rule does not look at it"), "{late}");
}

#[test]
fn an_event_without_its_key_is_looked_at_for_none() {
    let keyless = explain(&rule("", SLIDING), &[event(None, 100, Some(Decision::Deny))], 0);
    assert!(keyless.passes && !keyless.fired);
    assert!(keyless.to_string().contains("agent_id is null"), "{keyless}");
}

#[test]
fn a_disabled_rule_is_explained_as_if_it_ran() {
    let explained = explain(&rule("", "SELECT agent_id, event_id FROM events"), &log(), 5);
    assert_eq!((explained.mode, explained.fired, explained.conditions.len()), (RuleMode::Disabled, true, 0));
    assert!(explained.to_string().contains("disabled: it is not run"), "{explained}");
    assert!(explained.to_string().contains("every event may matter"), "{explained}");
}

#[test]
fn a_row_that_waits_for_what_follows_is_not_decided_yet() {
    let query = "SELECT agent_id, event_id FROM events WHERE decision IN ('allow', 'deny') \
                 QUALIFY decision = 'allow' AND count(*) FILTER (WHERE decision = 'deny') OVER (PARTITION BY agent_id ORDER BY ts \
                 RANGE BETWEEN INTERVAL '20' SECOND PRECEDING AND INTERVAL '40' SECOND FOLLOWING) = 0";
    let allow = |second: i64| event(Some("one"), second, Some(Decision::Allow));
    let log = [allow(100), allow(130), deny(165)];
    // The lateness is two minutes.
    let waits = explain_at(100 + 40 + 120, &rule("", query), &log, 0);
    assert!(!waits.fired && waits.rows.is_empty(), "{waits}");
    assert_eq!((waits.undecided, waits.ahead_s, waits.in_window), (Some(at(140)), 40, 2));
    let text = waits.to_string();
    assert!(text.contains("in the 20 s up to it and the 40 s after it, this one counted"), "{text}");
    assert!(text.ends_with(&format!("not decided yet: what comes for the time until {} may follow it", at(140))), "{text}");
    let decided = explain_at(100 + 40 + 121, &rule("", query), &log, 0);
    assert!(decided.fired && decided.undecided.is_none(), "{decided}");
    assert!(decided.rows[0].alert.as_ref().is_some_and(|alert| alert.is_raised_by_it), "{decided}");
    let followed = explain_at(1000, &rule("", query), &log, 1);
    assert!(!followed.fired && followed.undecided.is_none() && followed.later.is_none(), "{followed}");
    assert!(followed.to_string().ends_with("not fired"), "{followed}");
}

const ON_RULES: &str = "SELECT agent_id, count(DISTINCT rule_name) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM alerts \
     WHERE rule_name IN ('storm', 'allowed') AND mode = 'active' \
     WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= 2";

fn named(id: &str, name: &str, mode: &str, query: &str) -> String {
    let text = rule("", query).replace("id: T-1", &format!("id: {id}")).replace("name: storm", &format!("name: {name}"));
    text.replace("mode: disabled", &format!("mode: {mode}"))
}

/// A rule on two rules, and these beside it, the storm's in some mode: the folder, the file, and its text.
fn on_rules(mode_of_storm: &str) -> (tempfile::TempDir, PathBuf, String) {
    let folder = tempfile::tempdir().unwrap();
    let on_rules = named("T-3", "both", "disabled", ON_RULES);
    let allowed = named("T-2", "allowed", "active", "SELECT agent_id, event_id FROM events WHERE decision = 'allow'");
    for (name, text) in
        [("storm", named("T-1", "storm", mode_of_storm, SLIDING)), ("allowed", allowed), ("both", on_rules.clone())]
    {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::write(folder.path().join(name).join("rule.sql"), text).unwrap();
    }
    let file = folder.path().join("both/rule.sql");
    (folder, file, on_rules)
}

#[test]
fn a_rule_on_rules_is_explained_by_the_alerts_whose_last_evidence_the_event_is() {
    let (_folder, file, text) = on_rules("active");
    let explain = |asked: usize| explain_file(0, &text, &file, &log(), asked);
    let raised = |explained: &Explanation| -> Vec<(String, bool)> {
        let raised = explained.raised.as_ref().expect("a rule that reads alerts");
        raised.iter().map(|one| (one.rule_name.clone(), one.passes)).collect()
    };
    let last = explain(6);
    assert!(last.fired && last.passes, "{last}");
    assert_eq!((raised(&last), last.in_window), (vec![("allowed".to_owned(), true)], 2), "{last}");
    assert_eq!((last.split_by["agent_id"].as_deref(), last.rows.len(), last.rows[0].evidence), (Some("one"), 1, 2));
    assert!(last.rows[0].alert.as_ref().is_some_and(|alert| alert.is_raised_by_it), "{last}");
    let said = last.to_string();
    assert!(said.contains(" of T-2 allowed: passed\n"), "{said}");
    assert!(said.contains("window    2 alerts of agent_id \"one\" that passed in the 60 s up to it"), "{said}");

    let first = explain(2);
    assert!(!first.fired && first.passes && first.rows.is_empty(), "{first}");
    assert_eq!(raised(&first), [("storm".to_owned(), true)]);
    assert!(
        first.to_string().ends_with(&format!("not yet: the match that it is evidence of is complete at {}", at(105))),
        "{first}"
    );

    // It joined the alert of the third.
    let fourth = explain(3);
    assert!(!fourth.fired && !fourth.passes && raised(&fourth).is_empty(), "{fourth}");
    assert!(fourth.to_string().contains("raised    no alert that a rule reads"), "{fourth}");
}

#[test]
fn what_a_rule_on_rules_does_not_let_in_is_named_and_a_rule_that_does_not_run_raises_nothing() {
    let (_folder, file, text) = on_rules("log_only");
    let logged = explain_file(0, &text, &file, &log(), 2);
    let raised = logged.raised.clone().unwrap();
    assert_eq!((raised.len(), raised[0].rule_id.as_str(), raised[0].passes, logged.passes), (1, "T-1", false, false), "{logged}");
    let failed: Vec<_> = raised[0].conditions.iter().filter(|judged| judged.holds != Some(true)).collect();
    assert_eq!(failed.len(), 1, "{logged}");
    assert_eq!(Value::Object(failed[0].values.clone()), json!({"mode": "log_only"}));
    assert!(logged.to_string().contains(r#"not passed: mode = 'active' is false: mode is "log_only""#), "{logged}");
    assert!(!explain_file(0, &text, &file, &log(), 6).fired, "one rule alone");

    let (_folder, file, text) = on_rules("disabled");
    assert_eq!(explain_file(0, &text, &file, &log(), 2).raised, Some(Vec::new()));
}

#[test]
fn a_rule_on_a_rule_that_is_nowhere_cannot_be_explained() {
    let (_folder, file, text) = on_rules("active");
    std::fs::remove_dir_all(file.with_file_name("").join("../storm")).unwrap();
    let refused = Explain::new(&text, &file, deny(100), Arc::new(ManualClock::new(at(0)))).unwrap_err();
    assert!(refused.to_string().contains("`storm` is no rule of this set"), "{refused}");
}
