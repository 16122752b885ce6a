//! What bounds, and clocks that are set back, may not do to a rule in silence.

use std::sync::Arc;

use aegis_detect::{Engine, EngineConfig, Quotas, RuleCode, RuleSet, TickOutput};
use aegis_model::{Decision, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};

const START: i64 = 1_767_225_600_000_000;
/// An allow that no deny of the agent precedes within two seconds, or follows within five.
const ABSENCE_AROUND: &str = "SELECT agent_id, event_id FROM events WHERE decision IN ('allow', 'deny') \
     QUALIFY decision = 'allow' AND count(*) FILTER (WHERE decision = 'deny') OVER (PARTITION BY agent_id ORDER BY ts \
       RANGE BETWEEN INTERVAL '2' SECOND PRECEDING AND INTERVAL '5' SECOND FOLLOWING) = 0";

fn rule_text(query: &str) -> String {
    format!(
        "/* rule\nid: B-1\nname: b-1\nversion: 1\nseverity: low\nwindow: 10s\nkey: [agent_id]\nmode: active\nrequires: any\n\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-27, note: first}}\n*/\n{query}\n"
    )
}

fn engine(query: &str, quotas: Quotas) -> Engine {
    let rules = RuleSet::from_texts([("b/rule.sql".into(), rule_text(query))]).unwrap();
    let mut config = EngineConfig::new(Arc::new(ManualClock::new(at(0))));
    config.lateness_s = 6;
    config.quotas = quotas;
    Engine::new(rules, config)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(START + second * 1_000_000)
}

/// A proved call that the bus stored at once.
fn call(agent: &str, decision: Decision, second: i64, number: u128) -> SecurityEvent {
    let mut event = SecurityEvent::new(TenantId::new("a").unwrap(), "edge", "edge", EventKind::AuthorizeDecision, at(second));
    event.event_id = uuid::Uuid::from_u128(number);
    event.lane = Some("a.edge.1".to_owned());
    event.seq = i64::try_from(number).ok();
    event.verified = true;
    event.agent_id = Some(agent.to_owned());
    event.decision = Some(decision);
    event.bus_ts = Some(at(second));
    event
}

/// The numbers of the events that the rule told of, and what the engine said of itself.
fn told(output: &TickOutput) -> (Vec<u128>, Vec<String>) {
    let (of_rule, of_itself): (Vec<_>, Vec<_>) = output.alerts.iter().partition(|alert| alert.rule_id == "B-1");
    let what = |alert: &&aegis_model::Alert| alert.key["what"].as_str().unwrap_or_default().to_owned();
    (of_rule.iter().map(|alert| alert.event_ids[0].as_u128()).collect(), of_itself.iter().map(what).collect())
}

#[test]
fn a_row_that_looks_at_what_a_full_quota_refused_is_not_decided_though_its_key_has_room_later() {
    for (second, expected) in [(100, vec![]), (101, vec![]), (102, vec![5])] {
        let mut engine = engine(ABSENCE_AROUND, Quotas { keys_per_tenant: 2, ..Quotas::default() });
        engine.tick(vec![call("first", Decision::Deny, 80, 1), call("second", Decision::Deny, 80, 2)]);
        // There is no room for its deny. Then the first two leave the window, and there is.
        let refused = engine.tick(vec![call("late", Decision::Deny, 99, 4)]);
        assert_eq!(told(&refused), (vec![], vec!["quota_full".to_owned()]));
        engine.tick(vec![call("late", Decision::Allow, second, 5)]);
        assert_eq!(engine.stats()[0].refused, 1, "the key has room now");
        assert_eq!(told(&engine.finish()).0, expected, "of a row at {second}");
    }
}

#[test]
fn what_was_refused_of_one_key_keeps_no_row_of_another_from_being_decided() {
    let mut engine = engine(ABSENCE_AROUND, Quotas { keys_per_tenant: 2, ..Quotas::default() });
    engine.tick(vec![call("first", Decision::Deny, 80, 1), call("second", Decision::Deny, 80, 2)]);
    engine.tick(vec![call("late", Decision::Deny, 99, 4)]);
    engine.tick(vec![call("other", Decision::Allow, 100, 5)]);
    assert_eq!(told(&engine.finish()).0, [5]);
}

#[test]
fn due_rows_are_run_over_so_much_text_at_a_time_as_one_key_may_have() {
    let mut engine = engine(ABSENCE_AROUND, Quotas::default());
    let long = "x".repeat(1 << 20);
    let wordy = |number: u128| {
        let mut event = call(&format!("agent-{number}"), Decision::Allow, 100, number);
        event.reason = Some(long.clone());
        event
    };
    engine.tick((1..=40).map(wordy).collect());
    assert_eq!(engine.stats()[0].evals, 0);
    assert_eq!(told(&engine.finish()).0.len(), 40);
    assert_eq!(engine.stats()[0].evals, 2, "32 MiB, and what is left");
}

#[test]
fn a_clock_of_the_bus_that_was_ahead_and_is_set_back_holds_no_decision_up() {
    let mut engine = engine(ABSENCE_AROUND, Quotas::default());
    engine.pass_time(at(7300));
    assert_eq!(told(&engine.tick(vec![call("agent", Decision::Allow, 100, 1)])).0, Vec::<u128>::new());
    let decided = (101..=170).find(|second| !told(&engine.pass_time(at(*second))).0.is_empty());
    // The edge is silent for a minute, and the row's frame and the lateness are over long before.
    assert!(decided.is_some_and(|second| (160..=163).contains(&second)), "decided at {decided:?}");
}

#[test]
fn a_frame_that_descending_time_turns_into_the_future_is_refused_with_its_place() {
    let window = |frame: &str| {
        format!(
            "SELECT agent_id, event_id FROM events\nQUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts DESC RANGE {frame}) = 1"
        )
    };
    let load =
        |query: &str| RuleSet::from_texts([("b/rule.sql".into(), rule_text(query))]).map_err(|mut errors| errors.0.remove(0));
    for frame in [
        "BETWEEN INTERVAL '5' SECOND PRECEDING AND CURRENT ROW",
        "BETWEEN INTERVAL '5' SECOND PRECEDING AND INTERVAL '1' SECOND PRECEDING",
        "BETWEEN INTERVAL '5' SECOND PRECEDING AND INTERVAL '5' SECOND FOLLOWING",
    ] {
        let error = load(&window(frame)).unwrap_err();
        assert_eq!(error.code, RuleCode::RuleUnsupported, "{frame}: {error}");
        // The header has fifteen lines here.
        let place = error.place.map(|place| (place.line, place.column));
        assert_eq!(place, Some((17, 58)), "{error}");
        assert!(error.hint.is_some_and(|hint| hint.contains("FOLLOWING")));
    }
    assert!(load(&window("BETWEEN CURRENT ROW AND INTERVAL '10' SECOND FOLLOWING")).is_ok(), "that is the past");
    let longer = load(&window("BETWEEN CURRENT ROW AND INTERVAL '11' SECOND FOLLOWING")).unwrap_err();
    assert_eq!(longer.code, RuleCode::RuleWindow, "{longer}");
}
