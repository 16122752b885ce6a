//! L-REGISTRY: what is said of an agent's registration, and of its held siblings, is a function of control's proved records that are in time, as of
//! each event, however they came; it is bounded, survives a restart, and no tenant sees another's.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_detect::{Backtest, Engine, EngineConfig, EventBatch, Quotas, RuleSet, alert_id, events_of, events_schema};
use aegis_model::{Decision, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::standing::{Standing, over_a_restart};

const START: i64 = 1_767_225_600_000_000;

const OF_OWNER: &str =
    "SELECT agent_id, tool, action, event_id FROM events WHERE kind = 'authorize_decision' AND registry_owner_team = 'o'";
const BESIDE_HELD: &str = "SELECT agent_id, tool, action, event_id FROM events \
     WHERE kind = 'authorize_decision' AND array_has(registry_frozen_siblings, 'agent-0')";

pub(crate) fn rules(query: &str) -> RuleSet {
    let text = format!(
        "/* rule\nid: R-1\nname: r-1\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id, tool, action]\nmode: active\nrequires: any\n\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-27, note: first}}\n*/\n{query}\n"
    );
    RuleSet::from_texts([("r-1/rule.sql".into(), text)]).unwrap()
}

pub(crate) fn engine(query: &str, quotas: Quotas) -> Engine {
    let mut config = EngineConfig::new(Arc::new(ManualClock::new(at(0))));
    config.lateness_s = 6;
    config.quotas = quotas;
    Engine::new(rules(query), config)
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(START + second * 1_000_000)
}

/// A proved event of a producer, of its own time and stored by the bus at another.
pub(crate) fn event(tenant: &str, by: &str, kind: EventKind, second: i64, bus: i64, number: u128) -> SecurityEvent {
    let mut event = SecurityEvent::new(TenantId::new(tenant).unwrap(), by, by, kind, at(second));
    event.event_id = uuid::Uuid::from_u128(number);
    event.lane = Some(format!("{tenant}.{by}.1"));
    event.seq = i64::try_from(number).ok();
    event.verified = true;
    event.bus_ts = Some(at(bus));
    event
}

pub(crate) fn call(tenant: &str, agent: &str, second: i64, bus: i64, number: u128) -> SecurityEvent {
    let mut event = event(tenant, "edge", EventKind::AuthorizeDecision, second, bus, number);
    (event.agent_id, event.tool, event.action) = (Some(agent.into()), Some("tool".into()), Some("act".into()));
    event.decision = Some(Decision::Allow);
    event
}

fn registration(tenant: &str, agent: &str, owner: Option<&str>, second: i64, bus: i64, number: u128) -> SecurityEvent {
    let mut event = event(tenant, "control", EventKind::ConfigChanged, second, bus, number);
    event.reason = Some("agent_registered".into());
    let agent = json!({"id": agent, "agent_key": "k", "owner_team": owner, "environment": "production", "risk_tier": "low",
                       "trust_ceiling": "trusted_internal_signed"});
    event.attributes = Some(json!({"agent": agent}).to_string());
    event
}

fn containment(tenant: &str, agent: &str, status: &str, second: i64, bus: i64, number: u128) -> SecurityEvent {
    let mut event = event(tenant, "control", EventKind::ContainmentApplied, second, bus, number);
    (event.agent_id, event.status) = (Some(agent.into()), Some(status.into()));
    event.attributes = Some(json!({"target_type": "agent", "kind": "freeze", "until": null}).to_string());
    event
}

pub(crate) fn id_of(event: &SecurityEvent) -> String {
    let named = [("agent_id", &event.agent_id), ("tool", &event.tool), ("action", &event.action)];
    let key: Map<String, Value> = named.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value.clone()))).collect();
    alert_id(&event.tenant_id, "R-1", &key, event.event_id).unwrap()
}

#[derive(Clone, Debug)]
struct Step {
    forward: i64,
    late: i64,
    tenant: u8,
    agent: u8,
    what: u8,
    verified: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    let late = prop_oneof![3 => Just(0i64), 2 => 0..9i64];
    (0..3i64, late, 0..2u8, 0..3u8, 0..12u8, prop::bool::weighted(0.95))
        .prop_map(|(forward, late, tenant, agent, what, verified)| Step { forward, late, tenant, agent, what, verified })
}

fn log_of(steps: &[Step]) -> Vec<SecurityEvent> {
    let mut second = 100;
    let event_of = |(index, step): (usize, &Step)| {
        second += step.forward;
        let (agent, tenant) = (format!("agent-{}", step.agent), ["a", "b"][usize::from(step.tenant)]);
        let (own, number) = (second - step.late, index as u128 + 1);
        let mut event = match step.what {
            0 | 1 => registration(tenant, &agent, Some("o"), own, second, number),
            2 => registration(tenant, &agent, Some("p"), own, second, number),
            3 => registration(tenant, &agent, None, own, second, number),
            4 | 5 => containment(tenant, &agent, "applied", own, second, number),
            6 => containment(tenant, &agent, "released", own, second, number),
            _ => call(tenant, &agent, own, second, number),
        };
        event.verified = step.verified;
        event
    };
    steps.iter().enumerate().map(event_of).collect()
}

/// The records about an agent up to an event, told from all that are in time, the oldest first.
fn records<'a>(log: &'a [SecurityEvent], asked: &SecurityEvent, agent: &str) -> Vec<&'a SecurityEvent> {
    let is_about = |event: &SecurityEvent| match event.kind {
        EventKind::ConfigChanged => event.attributes.as_ref().is_some_and(|text| text.contains(&format!("\"id\":\"{agent}\""))),
        EventKind::ContainmentApplied => event.agent_id.as_deref() == Some(agent),
        _ => false,
    };
    let counts = |event: &&SecurityEvent| event.verified && event.tenant_id == asked.tenant_id && event.ts <= asked.ts;
    let mut found: Vec<&SecurityEvent> = log.iter().filter(counts).filter(|event| is_about(event)).collect();
    found.sort_by_key(|event| (event.ts, event.seq));
    found
}

fn owner(log: &[SecurityEvent], asked: &SecurityEvent, agent: &str) -> Option<String> {
    let records = records(log, asked, agent);
    let newest = records.iter().rev().find(|event| event.kind == EventKind::ConfigChanged)?;
    let said: Value = serde_json::from_str(newest.attributes.as_deref()?).unwrap();
    said["agent"]["owner_team"].as_str().map(str::to_owned)
}

fn is_held(log: &[SecurityEvent], asked: &SecurityEvent, agent: &str) -> bool {
    let records = records(log, asked, agent);
    let newest = records.iter().rev().find(|event| event.kind == EventKind::ContainmentApplied);
    newest.is_some_and(|event| event.status.as_deref() == Some("applied"))
}

fn is_match(log: &[SecurityEvent], asked: &SecurityEvent, beside_held: bool) -> bool {
    if asked.kind != EventKind::AuthorizeDecision {
        return false;
    }
    let own = asked.agent_id.as_deref().unwrap();
    let team = owner(log, asked, own);
    if !beside_held {
        return team.as_deref() == Some("o");
    }
    own != "agent-0" && team.is_some() && owner(log, asked, "agent-0") == team && is_held(log, asked, "agent-0")
}

/// All of a log at once.
pub(crate) fn run(query: &str, log: &[SecurityEvent]) -> BTreeSet<String> {
    let mut engine = engine(query, Quotas::default());
    let mut standing = Standing::default();
    standing.take(engine.tick(log.to_vec()));
    standing.take(engine.finish());
    standing.alerts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn l_registry_what_stands_is_what_all_records_in_time_say_in_any_batching_and_over_a_restart(
        steps in prop::collection::vec(any_step(), 1..50),
        size in 1..6usize,
        restart in 0..50usize,
        beside_held in any::<bool>(),
    ) {
        let log = log_of(&steps);
        let query = if beside_held { BESIDE_HELD } else { OF_OWNER };
        let (standing, taken) = over_a_restart(|| engine(query, Quotas::default()), &log, size, restart);
        let expected: BTreeSet<String> =
            taken.iter().filter(|event| is_match(&taken, event, beside_held)).map(id_of).collect();
        prop_assert_eq!(&standing.alerts, &expected);
        prop_assert_eq!(&run(query, &log), &expected);
        prop_assert!(standing.impaired.iter().all(|alert| alert.key.contains_key("lane")), "{:?}", standing.impaired);
    }

    #[test]
    fn l_registry_one_run_over_all_tenants_is_the_union_of_the_runs_over_each(steps in prop::collection::vec(any_step(), 1..50)) {
        let log = log_of(&steps);
        for query in [OF_OWNER, BESIDE_HELD] {
            let of = |tenant: &str| -> Vec<SecurityEvent> {
                log.iter().filter(|event| event.tenant_id.as_str() == tenant).cloned().collect()
            };
            let union: BTreeSet<String> = ["a", "b"].into_iter().flat_map(|tenant| run(query, &of(tenant))).collect();
            prop_assert_eq!(run(query, &log), union);
        }
    }
}

#[test]
fn a_registration_that_comes_late_takes_the_alert_away() {
    let mut engine = engine(OF_OWNER, Quotas::default());
    let mut standing = Standing::default();
    let (before, after) = (call("a", "x", 104, 106, 2), call("a", "x", 106, 106, 3));
    standing.take(engine.tick(vec![registration("a", "x", Some("o"), 100, 100, 1), before.clone(), after.clone()]));
    assert_eq!(standing.alerts, BTreeSet::from([id_of(&before), id_of(&after)]), "both are told at once");
    standing.take(engine.tick(vec![registration("a", "x", Some("p"), 105, 107, 4)]));
    standing.take(engine.tick(vec![call("a", "y", 300, 300, 5), registration("a", "y", None, 300, 300, 6)]));
    standing.take(engine.finish());
    assert_eq!(standing.alerts, BTreeSet::from([id_of(&before)]), "it holds from its own time on");
}

#[test]
fn a_hold_that_comes_late_says_something_of_the_siblings() {
    // Of many agents nobody looks for the siblings among them.
    for others in [0, 2_000] {
        let mut engine = engine(BESIDE_HELD, Quotas::default());
        let mut standing = Standing::default();
        let (before, after) = (call("a", "x", 103, 106, 3), call("a", "x", 105, 106, 4));
        let mut registered: Vec<SecurityEvent> =
            (0..others).map(|n| registration("a", &format!("other-{n}"), Some("p"), 99, 99, 1_000 + n)).collect();
        registered
            .extend([("agent-0", 1), ("x", 2)].map(|(agent, number)| registration("a", agent, Some("o"), 100, 100, number)));
        standing.take(engine.tick(registered));
        standing.take(engine.tick(vec![before, after.clone(), call("a", "agent-0", 105, 106, 5)]));
        assert!(standing.alerts.is_empty());
        standing.take(engine.tick(vec![containment("a", "agent-0", "applied", 104, 107, 6)]));
        standing.take(engine.finish());
        assert_eq!(standing.alerts, BTreeSet::from([id_of(&after)]), "beside {others} others");
    }
}

#[test]
fn a_lake_that_is_read_column_by_column_knows_what_was_registered() {
    let log = [
        registration("a", "agent-0", Some("o"), 0, 0, 1),
        registration("a", "x", Some("o"), 1, 1, 2),
        containment("a", "agent-0", "applied", 2, 2, 3),
        call("a", "x", 3, 3, 4),
    ];
    let whole = EventBatch::new(log.iter().cloned().map(Arc::new).collect()).to_record_batch().unwrap();
    for query in [OF_OWNER, BESIDE_HELD] {
        let columns = rules(query).columns_read();
        let places: Vec<usize> = columns.iter().map(|name| events_schema().index_of(name).unwrap()).collect();
        let read = events_of(&whole.project(&places).unwrap()).unwrap();
        let clock = Arc::new(ManualClock::new(at(10_000)));
        let mut backtest = Backtest::new(rules(query), clock, None, None).in_order(None);
        read.into_iter().for_each(|event| backtest.take_shared(event));
        let found: BTreeSet<String> = backtest.finish().standing.into_keys().collect();
        assert_eq!(found, BTreeSet::from([id_of(&log[3])]), "{query}");
    }
}

#[test]
fn a_full_registry_says_nothing_of_a_new_agent_and_is_told() {
    let quotas = Quotas { registry_bytes_per_tenant: 1_000, ..Quotas::default() };
    let mut engine = engine(OF_OWNER, quotas);
    let mut standing = Standing::default();
    let registered: Vec<SecurityEvent> =
        (0..20).map(|n| registration("a", &format!("agent-{n}"), Some("o"), n, n, n.unsigned_abs().into())).collect();
    standing.take(engine.tick(registered.clone()));
    let calls: Vec<SecurityEvent> = (0..20_u32).map(|n| call("a", &format!("agent-{n}"), 30, 30, u128::from(n) + 100)).collect();
    standing.take(engine.tick(calls.clone()));
    let told = calls.iter().filter(|event| standing.alerts.contains(&id_of(event))).count();
    assert!((2..10).contains(&told), "{told}");
    assert_eq!(standing.impaired.len(), 1, "{:?}", standing.impaired);
    let said = &standing.impaired[0];
    assert_eq!((&said.key["rule"], &said.key["what"]), (&Value::from("R-1"), &Value::from("quota_full")));
    assert_eq!(said.event_ids, [registered[told].event_id], "at the first that was refused");
    // Another tenant has its own.
    let other = [registration("b", "agent-19", Some("o"), 31, 31, 200), call("b", "agent-19", 32, 32, 201)];
    standing.take(engine.tick(other.to_vec()));
    assert!(standing.alerts.contains(&id_of(&other[1])));
}

#[test]
fn a_backtest_knows_what_was_registered_before_it_begins() {
    let day = 86_400;
    let log = [
        registration("a", "x", Some("o"), 0, 0, 1),
        call("a", "x", 80 * day, 80 * day, 2),
        call("a", "x", 91 * day, 91 * day, 3),
    ];
    let clock = Arc::new(ManualClock::new(at(200 * day)));
    let mut backtest = Backtest::new(rules(OF_OWNER), clock, Some(at(79 * day)), None);
    log.iter().cloned().for_each(|event| backtest.take(event));
    let found: BTreeSet<String> = backtest.finish().standing.into_keys().collect();
    assert_eq!(found, BTreeSet::from([id_of(&log[1])]), "and of an agent that was not registered for 90 days nothing");
}
