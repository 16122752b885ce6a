//! After a restart over which events were lost: nobody is contained for want of them, nothing is told that was not true, and nothing is counted twice.

use std::sync::Arc;

use aegis_detect::{Engine, EngineConfig, IMPAIRED_RULE, Quotas, RuleSet, TickOutput};
use aegis_model::{Alert, Decision, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};

const START: i64 = 1_767_225_600_000_000;
/// An allow that no deny of the agent precedes.
const NONE_BEFORE: &str = "SELECT agent_id, event_id FROM events w WHERE decision = 'allow' AND NOT EXISTS \
     (SELECT 1 FROM events d WHERE d.agent_id = w.agent_id AND d.decision = 'deny')";
const THREE: &str = "SELECT agent_id, event_id, count(*) OVER w AS n FROM events WHERE decision = 'deny' \
     WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '10' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= 3";
const NONE_AFTER: &str = "SELECT agent_id, event_id FROM events WHERE decision IN ('allow', 'deny') \
     QUALIFY decision = 'allow' AND count(*) FILTER (WHERE decision = 'deny') OVER (PARTITION BY agent_id ORDER BY ts \
       RANGE BETWEEN CURRENT ROW AND INTERVAL '5' SECOND FOLLOWING) = 0";

/// An engine with one rule, of which `more` is a part of the header.
fn engine(more: &str, query: &str, quotas: Quotas) -> Engine {
    let text = format!(
        "/* rule\nid: C-1\nname: c-1\nversion: 1\nseverity: low\nwindow: 10s\nkey: [agent_id]\nmode: active\n{more}\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-27, note: first}}\n*/\n{query}\n"
    );
    let mut config = EngineConfig::new(Arc::new(ManualClock::new(at(0))));
    config.lateness_s = 6;
    config.quotas = quotas;
    Engine::new(RuleSet::from_texts([("c/rule.sql".into(), text)]).unwrap(), config)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(START + second * 1_000_000)
}

/// A proved call that the bus stored at once.
fn call(agent: &str, decision: Decision, ts: Timestamp, number: u128) -> SecurityEvent {
    let mut event = SecurityEvent::new(TenantId::new("a").unwrap(), "edge", "edge", EventKind::AuthorizeDecision, ts);
    event.event_id = uuid::Uuid::from_u128(number);
    event.lane = Some("a.edge.1".to_owned());
    event.seq = i64::try_from(number).ok();
    event.verified = true;
    event.agent_id = Some(agent.to_owned());
    event.decision = Some(decision);
    event.bus_ts = Some(ts);
    event
}

/// The engine of a process that starts again, as a checkpoint's text.
fn again(before: &Engine, mut after: Engine, events: &[SecurityEvent], whole: bool) -> Engine {
    let text = serde_json::to_string(&before.checkpoint()).unwrap();
    after.restore(serde_json::from_str(&text).unwrap(), events.to_vec(), whole);
    after
}

fn of_rule(output: TickOutput) -> Vec<Alert> {
    output.alerts.into_iter().filter(|alert| alert.rule_id != IMPAIRED_RULE).collect()
}

/// The number of each alert's first evidence, its responses, and what is said of events that are gone.
fn told(output: TickOutput) -> Vec<(u128, String, Option<&'static str>)> {
    let said = |alert: &Alert| ["not_contained", "events_gone"].into_iter().find(|name| alert.fields.contains_key(*name));
    of_rule(output).iter().map(|alert| (alert.event_ids[0].as_u128(), alert.respond.join(" "), said(alert))).collect()
}

#[test]
fn a_rule_that_contains_on_what_was_absent_contains_nobody_while_it_looks_back_to_what_is_gone() {
    let contains = "respond: [freeze_agent]\n";
    let new = || engine(contains, NONE_BEFORE, Quotas::default());
    let mut first = new();
    first.tick(vec![call("agent", Decision::Deny, at(99), 1)]);
    let mut second = again(&first, new(), &[], false);
    let allowed = call("agent", Decision::Allow, at(105), 2);
    assert_eq!(told(second.tick(vec![allowed.clone()])), [(2, String::new(), Some("not_contained"))]);
    // What was lost before one restart is so after the next.
    let mut third = again(&second, new(), &[allowed], true);
    assert_eq!(told(third.tick(vec![call("another", Decision::Allow, at(108), 3)])), [(3, String::new(), Some("not_contained"))]);
    assert_eq!(told(third.tick(vec![call("third", Decision::Allow, at(110), 4)])), [(4, "freeze_agent".to_owned(), None)]);
}

#[test]
fn a_rule_that_counts_contains_and_says_that_events_are_gone() {
    let new = || engine("respond: [freeze_agent]\n", THREE, Quotas::default());
    let mut first = new();
    first.tick(vec![call("agent", Decision::Deny, at(99), 1)]);
    let mut second = again(&first, new(), &[], false);
    let denies = (2..=4u128).zip([101, 102, 103]).map(|(number, second)| call("agent", Decision::Deny, at(second), number));
    assert_eq!(told(second.tick(denies.collect())), [(4, "freeze_agent".to_owned(), Some("events_gone"))]);
}

#[test]
fn what_was_no_match_before_is_none_after_for_want_of_what_said_so() {
    let new = || engine("requires: any\n", NONE_BEFORE, Quotas::default());
    let mut first = new();
    let log = [call("agent", Decision::Deny, at(99), 1), call("agent", Decision::Allow, at(100), 2)];
    assert!(of_rule(first.tick(log.to_vec())).is_empty());
    let mut second = again(&first, new(), &log[1..], false);
    // The key is looked at again.
    assert_eq!(told(second.tick(vec![call("agent", Decision::Allow, at(112), 3)])), [(3, String::new(), None)]);
}

#[test]
fn rows_that_are_decided_again_after_events_were_lost_are_counted_once() {
    for whole in [true, false] {
        let new = || engine("requires: any\nsuppress: 1h\n", NONE_AFTER, Quotas::default());
        let mut first = new();
        let log = [call("agent", Decision::Allow, at(100), 1), call("agent", Decision::Allow, at(101), 2)];
        first.tick(log.to_vec());
        // Nothing else comes, and the log's time decides.
        let counts = |output: &TickOutput| output.episodes.iter().map(|episode| episode.count).collect::<Vec<u64>>();
        let decided: Vec<u64> = (102..=180).flat_map(|second| counts(&first.pass_time(at(second)))).collect();
        assert_eq!(decided, [2]);
        let mut second = again(&first, new(), &log, whole);
        let output = second.tick(vec![call("other", Decision::Deny, at(300), 3)]);
        assert!(output.retractions.is_empty() && of_rule(second.finish()).is_empty());
        assert_eq!(counts(&output), [2], "whole: {whole}");
    }
}

#[test]
fn matches_that_stand_because_there_were_too_many_are_counted_once_over_a_restart() {
    for whole in [true, false] {
        let quotas = Quotas { matches_per_key: 10, ..Quotas::default() };
        let query = "SELECT agent_id, event_id FROM events WHERE decision = 'deny'";
        let new = || engine("requires: any\nsuppress: 1h\n", query, quotas);
        // Thirty within three seconds: a late event could still change any of them.
        let deny = |number: u128| {
            let ts = at(100).plus_micros(i64::try_from(number).unwrap() * 100_000);
            call("agent", Decision::Deny, ts, number)
        };
        let log: Vec<SecurityEvent> = (1..=30).map(deny).collect();
        let mut first = new();
        let mut count = 0;
        for event in &log {
            let output = first.tick(vec![event.clone()]);
            count = output.episodes.last().map_or(count, |episode| episode.count);
        }
        assert_eq!(count, 30);
        let mut second = again(&first, new(), &log, whole);
        let output = second.tick(vec![deny(31)]);
        assert!(of_rule(second.finish()).is_empty() && output.retractions.is_empty());
        let counts: Vec<u64> = output.episodes.iter().map(|episode| episode.count).collect();
        assert_eq!(counts, [31], "whole: {whole}");
    }
}
