//! L-REGISTRY of actions: what is registered of an event's action, and since when lower than before, is a function of control's proved records that are in time, as of each
//! event, however they came; it survives a restart, and no tenant sees another's.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_detect::{Backtest, EventBatch, Quotas, events_of, events_schema};
use aegis_model::{EventKind, ManualClock, SecurityEvent};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::registry::{at, call, engine, event, id_of, rules, run};
use crate::standing::{Standing, over_a_restart};

const OF_LOW_RISK: &str =
    "SELECT agent_id, tool, action, event_id FROM events WHERE kind = 'authorize_decision' AND registry_action_risk = 'low'";
const LOWERED: &str = "SELECT agent_id, tool, action, event_id FROM events \
     WHERE kind = 'authorize_decision' AND ts <= registry_action_lowered + INTERVAL '10' SECOND";
const STANDS: &str = "SELECT agent_id, tool, action, event_id FROM events \
     WHERE kind = 'authorize_decision' AND NOT registry_action_approval_required AND ts >= registry_action_since + INTERVAL '3' SECOND";

/// Risk, in the order of risks, and approval.
type Level = (usize, bool);
const RISKS: [&str; 3] = ["low", "medium", "high"];

/// What a record says of the action: it stands so and stood otherwise, or it is gone and was that.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Said {
    Stands(Level, Option<Level>),
    Gone(Level),
}

fn facts(action: &str, (risk, approval): Level) -> Value {
    json!({"action": action, "risk": RISKS[risk], "mutates_state": true, "data_access": "none", "destination": "internal",
           "approval_required": approval, "default_decision": "policy"})
}

fn record(tenant: &str, action: &str, said: Said, second: i64, bus: i64, number: u128) -> SecurityEvent {
    let attributes = match said {
        Said::Stands(level, was) => {
            let mut now = facts(action, level);
            if let Some(was) = was {
                now["was"] = facts(action, was);
            }
            json!({"tool": "tool", "actions": [now], "removed": []})
        }
        Said::Gone(was) => json!({"tool": "tool", "actions": [], "removed": [facts(action, was)]}),
    };
    let mut event = event(tenant, "control", EventKind::ConfigChanged, second, bus, number);
    (event.reason, event.attributes) = (Some("tool_registered".into()), Some(attributes.to_string()));
    event
}

fn called(tenant: &str, action: &str, second: i64, bus: i64, number: u128) -> SecurityEvent {
    let mut event = call(tenant, "agent", second, bus, number);
    event.action = Some(action.into());
    event
}

#[derive(Clone, Debug)]
struct Step {
    forward: i64,
    late: i64,
    tenant: u8,
    action: u8,
    said: Option<Said>,
    verified: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    let level = || (0..3usize, any::<bool>());
    let said = prop_oneof![
        4 => Just(None),
        3 => (level(), prop::option::of(level())).prop_map(|(level, was)| Some(Said::Stands(level, was.filter(|was| *was != level)))),
        1 => level().prop_map(|was| Some(Said::Gone(was))),
    ];
    let late = prop_oneof![3 => Just(0i64), 2 => 0..9i64];
    (0..3i64, late, 0..2u8, 0..2u8, said, prop::bool::weighted(0.95))
        .prop_map(|(forward, late, tenant, action, said, verified)| Step { forward, late, tenant, action, said, verified })
}

/// The events, and of each record what it says.
fn log_of(steps: &[Step]) -> Vec<SecurityEvent> {
    let mut second = 100;
    let event_of = |(index, step): (usize, &Step)| {
        second += step.forward;
        let (action, tenant) = (["x", "y"][usize::from(step.action)], ["a", "b"][usize::from(step.tenant)]);
        let (own, number) = (second - step.late, index as u128 + 1);
        let mut event = match step.said {
            Some(said) => record(tenant, action, said, own, second, number),
            None => called(tenant, action, own, second, number),
        };
        event.verified = step.verified;
        event
    };
    steps.iter().enumerate().map(event_of).collect()
}

/// What is said of the asked event's action up to it, the oldest first, each with its second.
fn told(steps: &[Step], log: &[SecurityEvent], asked: &SecurityEvent) -> Vec<(i64, Said)> {
    let mut found: Vec<(&SecurityEvent, Said)> = Vec::new();
    for event in log.iter().filter(|event| event.verified && event.tenant_id == asked.tenant_id && event.ts <= asked.ts) {
        let step = &steps[usize::try_from(event.event_id.as_u128() - 1).unwrap()];
        if let Some(said) = step.said.filter(|_| asked.action.as_deref() == Some(["x", "y"][usize::from(step.action)])) {
            found.push((event, said));
        }
    }
    found.sort_by_key(|(event, _)| (event.ts, event.seq));
    found.into_iter().map(|(event, said)| (event.ts.as_micros(), said)).collect()
}

fn is_lower(now: Level, was: Level) -> bool {
    now.0 < was.0 || (was.1 && !now.1)
}

/// From the whole of it, forwards.
fn is_match(query: &str, told: &[(i64, Said)], asked: &SecurityEvent) -> bool {
    let Some((_, Said::Stands(now, _))) = told.last() else { return false };
    let (mut since, mut stood, mut gone, mut lowerings) = (0, None, None, Vec::new());
    for (second, said) in told {
        match *said {
            Said::Stands(level, was) => {
                if stood != Some(level) || was.is_some() {
                    since = *second;
                }
                lowerings.extend(was.or(gone).filter(|was| is_lower(level, *was)).map(|was| (*second, was)));
                (stood, gone) = (Some(level), None);
            }
            Said::Gone(was) => (stood, gone) = (None, Some(was)),
        }
    }
    let at = asked.ts.as_micros();
    match query {
        OF_LOW_RISK => now.0 == 0,
        STANDS => !now.1 && at >= since + 3_000_000,
        _ => lowerings.iter().rev().find(|(_, was)| is_lower(*now, *was)).is_some_and(|(second, _)| at <= second + 10_000_000),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn l_registry_what_is_said_of_actions_is_what_all_records_in_time_say_in_any_batching_and_over_a_restart(
        steps in prop::collection::vec(any_step(), 1..50),
        size in 1..6usize,
        restart in 0..50usize,
        query in prop::sample::select(vec![OF_LOW_RISK, LOWERED, STANDS]),
    ) {
        let log = log_of(&steps);
        let (standing, taken) = over_a_restart(|| engine(query, Quotas::default()), &log, size, restart);
        let calls = taken.iter().filter(|event| event.kind == EventKind::AuthorizeDecision);
        let expected: BTreeSet<String> =
            calls.filter(|event| is_match(query, &told(&steps, &taken, event), event)).map(id_of).collect();
        prop_assert_eq!(&standing.alerts, &expected);
        prop_assert_eq!(&run(query, &log), &expected);
        prop_assert!(standing.impaired.iter().all(|alert| alert.key.contains_key("lane")), "{:?}", standing.impaired);
    }

    #[test]
    fn l_registry_one_run_over_all_tenants_actions_is_the_union_of_the_runs_over_each(
        steps in prop::collection::vec(any_step(), 1..50),
    ) {
        let log = log_of(&steps);
        for query in [OF_LOW_RISK, LOWERED, STANDS] {
            let of = |tenant: &str| -> Vec<SecurityEvent> {
                log.iter().filter(|event| event.tenant_id.as_str() == tenant).cloned().collect()
            };
            let union: BTreeSet<String> = ["a", "b"].into_iter().flat_map(|tenant| run(query, &of(tenant))).collect();
            prop_assert_eq!(run(query, &log), union);
        }
    }
}

#[test]
fn a_registration_that_comes_late_says_something_of_the_calls_behind_it() {
    let mut engine = engine(LOWERED, Quotas::default());
    let mut standing = Standing::default();
    let (before, after) = (called("a", "x", 103, 106, 2), called("a", "x", 106, 106, 3));
    let high = Said::Stands((2, false), None);
    standing.take(engine.tick(vec![record("a", "x", high, 100, 100, 1), before, after.clone(), called("a", "y", 106, 106, 4)]));
    assert!(standing.alerts.is_empty());
    standing.take(engine.tick(vec![record("a", "x", Said::Stands((0, false), Some((2, false))), 105, 107, 5)]));
    assert_eq!(standing.alerts, BTreeSet::from([id_of(&after)]));
    // And before it stood so, it was raised again.
    standing.take(engine.tick(vec![record("a", "x", Said::Stands((2, false), Some((0, false))), 106, 108, 6)]));
    standing.take(engine.finish());
    assert!(standing.alerts.is_empty(), "what is no lower than before is taken back");
}

#[test]
fn a_lake_that_is_read_column_by_column_knows_what_was_registered_of_actions() {
    let log = [
        record("a", "x", Said::Stands((2, true), None), 0, 0, 1),
        record("a", "x", Said::Stands((0, false), Some((2, true))), 2, 2, 2),
        called("a", "x", 6, 6, 3),
    ];
    let whole = EventBatch::new(log.iter().cloned().map(Arc::new).collect()).to_record_batch().unwrap();
    for query in [OF_LOW_RISK, LOWERED, STANDS] {
        let columns = rules(query).columns_read();
        let places: Vec<usize> = columns.iter().map(|name| events_schema().index_of(name).unwrap()).collect();
        let read = events_of(&whole.project(&places).unwrap()).unwrap();
        let clock = Arc::new(ManualClock::new(at(10_000)));
        let mut backtest = Backtest::new(rules(query), clock, None, None).in_order(None);
        read.into_iter().for_each(|event| backtest.take_shared(event));
        let found: BTreeSet<String> = backtest.finish().standing.into_keys().collect();
        assert_eq!(found, BTreeSet::from([id_of(&log[2])]), "{query}");
    }
}
