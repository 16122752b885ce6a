//! L-FIRST: since when an agent, a user or anybody uses something is a function of the proved calls that are in time, as of each event, however they came; and it
//! is bounded, survives a restart, and is told from the history.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use aegis_detect::testing::run_rule_tests;
use aegis_detect::{Backtest, Engine, EngineConfig, Explain, Quotas, RuleSet, alert_id};
use aegis_model::{Clock, Decision, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};
use proptest::prelude::*;
use serde_json::{Map, Value};

use crate::standing::{Standing, over_a_restart};

const START: i64 = 1_767_225_600_000_000;
const DAY_S: i64 = 86_400;

const FIRST_USE: &str =
    "SELECT agent_id, tool, action, event_id FROM events WHERE decision = 'allow' AND first_seen_agent_tool_action = ts";
const NEVER_USED: &str =
    "SELECT agent_id, tool, action, event_id FROM events WHERE decision = 'deny' AND first_seen_agent_tool_action IS NULL";

fn text(query: &str) -> String {
    format!(
        "/* rule\nid: F-1\nname: f-1\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id, tool, action]\nmode: active\nrequires: any\n\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-26, note: first}}\n*/\n{query}\n"
    )
}

fn rules(query: &str) -> RuleSet {
    RuleSet::from_texts([("f-1/rule.sql".into(), text(query))]).unwrap()
}

fn engine(query: &str, quotas: Quotas) -> Engine {
    let mut config = EngineConfig::new(Arc::new(ManualClock::new(at(0))));
    config.lateness_s = 6;
    config.quotas = quotas;
    Engine::new(rules(query), config)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(START + second * 1_000_000)
}

/// A proved call, of its own time and stored by the bus at another.
fn call(agent: &str, action: &str, second: i64, bus: i64, number: u128) -> SecurityEvent {
    let tenant = TenantId::new("a").unwrap();
    let mut event = SecurityEvent::new(tenant, "edge", "edge", EventKind::AuthorizeDecision, at(second));
    event.event_id = uuid::Uuid::from_u128(number);
    event.lane = Some(format!("{}.edge.1", event.tenant_id));
    event.verified = true;
    (event.agent_id, event.tool, event.action) = (Some(agent.into()), Some("tool".into()), Some(action.into()));
    event.decision = Some(Decision::Allow);
    event.bus_ts = Some(at(bus));
    event
}

fn id_of(event: &SecurityEvent) -> String {
    let named = [("agent_id", &event.agent_id), ("tool", &event.tool), ("action", &event.action)];
    let key: Map<String, Value> = named.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value.clone()))).collect();
    alert_id(&event.tenant_id, "F-1", &key, event.event_id).unwrap()
}

#[derive(Clone, Debug)]
struct Step {
    forward: i64,
    late: i64,
    tenant: u8,
    agent: u8,
    user: Option<u8>,
    action: u8,
    allow: bool,
    verified: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    // A pause is of 90 days.
    let forward = prop_oneof![12 => 0..3i64, 1 => Just(50 * DAY_S), 1 => Just(90 * DAY_S), 1 => Just(91 * DAY_S)];
    let late = prop_oneof![3 => Just(0i64), 2 => 0..9i64];
    let said = (prop::bool::weighted(0.7), prop::bool::weighted(0.9));
    let whose = (0..2u8, 0..2u8, prop::option::weighted(0.8, 0..2u8));
    let step = (forward, late, whose, 0..2u8, said);
    step.prop_map(|(forward, late, (tenant, agent, user), action, (allow, verified))| Step {
        forward,
        late,
        tenant,
        agent,
        user,
        action,
        allow,
        verified,
    })
}

fn log_of(steps: &[Step]) -> Vec<SecurityEvent> {
    let mut second = 100;
    let event = |(index, step): (usize, &Step)| {
        second += step.forward;
        let (agent, action) = (format!("agent-{}", step.agent), format!("action-{}", step.action));
        let mut event = call(&agent, &action, second - step.late, second, index as u128 + 1);
        event.tenant_id = TenantId::new(["a", "b"][usize::from(step.tenant)]).unwrap();
        event.lane = Some(format!("{}.edge.1", event.tenant_id));
        event.user_id = step.user.map(|user| format!("user-{user}"));
        event.verified = step.verified;
        event.decision = Some(if step.allow { Decision::Allow } else { Decision::Deny });
        event
    };
    steps.iter().enumerate().map(event).collect()
}

/// By whom something is used first.
#[derive(Clone, Copy, Debug)]
enum By {
    Agent,
    User,
    Anybody,
}

impl By {
    const fn column(self) -> &'static str {
        match self {
            Self::Agent => "first_seen_agent_tool_action",
            Self::User => "first_seen_user_tool_action",
            Self::Anybody => "first_seen_tool_action",
        }
    }

    /// None: by nobody of whom something could be known.
    fn of(self, event: &SecurityEvent) -> Option<(TenantId, String, String)> {
        let who = match self {
            Self::Agent => event.agent_id.clone()?,
            Self::User => event.user_id.clone()?,
            Self::Anybody => String::new(),
        };
        Some((event.tenant_id.clone(), who, event.action.clone()?))
    }
}

/// Since when what an event does is done without a pause, told from all events that are in time.
fn first_use(log: &[SecurityEvent], asked: &SecurityEvent, by: By) -> Option<Timestamp> {
    let whose = by.of(asked)?;
    let is_use = |event: &&SecurityEvent| {
        event.verified && event.decision == Some(Decision::Allow) && by.of(event).as_ref() == Some(&whose)
    };
    let mut times: Vec<i64> = log.iter().filter(is_use).map(|event| event.ts.as_micros()).collect();
    times.retain(|time| *time <= asked.ts.as_micros());
    times.sort_unstable();
    let (mut first, mut next) = (None, asked.ts.as_micros());
    while let Some(time) = times.pop().filter(|time| next - time <= 90 * DAY_S * 1_000_000) {
        (first, next) = (Some(Timestamp::from_micros(time)), time);
    }
    first
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn l_first_what_stands_is_what_all_events_in_time_say_in_any_batching_and_over_a_restart(
        steps in prop::collection::vec(any_step(), 1..40),
        size in 1..6usize,
        restart in 0..40usize,
        never_used in any::<bool>(),
        by in prop_oneof![Just(By::Agent), Just(By::User), Just(By::Anybody)],
    ) {
        let log = log_of(&steps);
        let of_agents = if never_used { NEVER_USED } else { FIRST_USE };
        let query = of_agents.replace(By::Agent.column(), by.column());
        let (standing, taken) = over_a_restart(|| engine(&query, Quotas::default()), &log, size, restart);
        let wanted = if never_used { Decision::Deny } else { Decision::Allow };
        let is_match = |event: &&SecurityEvent| {
            let said = first_use(&taken, event, by);
            event.decision == Some(wanted) && said == if never_used { None } else { Some(event.ts) }
        };
        let expected: BTreeSet<String> = taken.iter().filter(is_match).map(id_of).collect();
        prop_assert_eq!(&standing.alerts, &expected);
        prop_assert!(standing.impaired.iter().all(|alert| alert.key.contains_key("lane")), "{:?}", standing.impaired);
    }
}

#[test]
fn an_earlier_first_use_that_comes_late_takes_the_alert_away_and_gives_its_own() {
    let mut engine = engine(FIRST_USE, Quotas::default());
    let mut standing = Standing::default();
    let (later, earlier) = (call("a", "pay", 105, 105, 1), call("a", "pay", 101, 106, 2));
    standing.take(engine.tick(vec![later.clone()]));
    assert_eq!(standing.alerts, BTreeSet::from([id_of(&later)]), "it is told at once");
    standing.take(engine.tick(vec![earlier.clone()]));
    standing.take(engine.tick(vec![call("a", "read", 300, 300, 3)]));
    assert!(!standing.alerts.contains(&id_of(&later)) && standing.alerts.contains(&id_of(&earlier)), "{:?}", standing.alerts);
}

#[test]
fn a_use_that_no_rule_looks_at_takes_away_what_was_never_used() {
    let mut engine = engine(NEVER_USED, Quotas::default());
    let mut standing = Standing::default();
    let denied = SecurityEvent { decision: Some(Decision::Deny), ..call("a", "pay", 105, 105, 1) };
    standing.take(engine.tick(vec![denied.clone()]));
    assert_eq!(standing.alerts, BTreeSet::from([id_of(&denied)]));
    // The rule's own filter lets no use through.
    standing.take(engine.tick(vec![call("a", "pay", 101, 106, 2)]));
    standing.take(engine.tick(vec![call("a", "read", 300, 300, 3)]));
    assert!(standing.alerts.is_empty(), "{:?}", standing.alerts);
}

#[test]
fn a_full_side_table_says_nothing_of_what_is_new_and_is_told() {
    // Room for a few actions of each agent.
    let quotas = Quotas { seen_bytes_per_tenant: 2_000, ..Quotas::default() };
    let mut engine = engine(FIRST_USE, quotas);
    let mut standing = Standing::default();
    let calls: Vec<SecurityEvent> = (0..20).map(|n| call("a", &format!("action-{n}"), n, n, n.unsigned_abs().into())).collect();
    standing.take(engine.tick(calls.clone()));
    let told = calls.iter().filter(|event| standing.alerts.contains(&id_of(event))).count();
    assert!((2..10).contains(&told), "{told}");
    assert_eq!(standing.impaired.len(), 1, "{:?}", standing.impaired);
    let said = &standing.impaired[0];
    assert_eq!((&said.key["rule"], &said.key["what"]), (&Value::from("F-1"), &Value::from("quota_full")));
    assert_eq!(said.event_ids, [calls[told].event_id], "at the first that was refused");
    assert_eq!(engine.stats()[0].refused, 20 - told as u64);
    // Another agent has its own part.
    let other = call("b", "action-19", 30, 30, 100);
    standing.take(engine.tick(vec![other.clone()]));
    assert!(standing.alerts.contains(&id_of(&other)));
}

#[test]
fn what_a_checkpoint_has_no_room_for_is_told_and_makes_nothing_look_new() {
    // As the shipped rule has it: an agent that is new, or looks so, is one of whom nothing is said yet.
    let query = format!("{FIRST_USE} AND ts >= first_seen_agent + INTERVAL '1' DAY");
    let mut first = engine(&query, Quotas::default());
    let known = call("a", "read", 100, 100, 1);
    let mut standing = Standing::default();
    standing.take(first.tick(vec![known.clone(), call("a", "pay", 101, 101, 2)]));
    let whole = serde_json::to_string(&first.checkpoint_within(1 << 20)).unwrap();
    let left_out = serde_json::to_string(&first.checkpoint_within(0)).unwrap();
    assert!(whole.contains("pay") && !left_out.contains("pay"), "{left_out}");
    standing.take(first.tick(vec![call("a", "read", 102, 102, 3)]));
    let said: Vec<&Value> = standing.impaired.iter().map(|alert| &alert.key["what"]).collect();
    assert_eq!(said, ["unwritten"]);
    for (text, expected) in [(whole, 1), (left_out, 0)] {
        let mut second = engine(&query, Quotas::default());
        second.restore(serde_json::from_str(&text).unwrap(), vec![known.clone()], true);
        let days_later = [("pay", 10), ("refund", 11)].map(|(action, n)| call("a", action, DAY_S + 200, DAY_S + 200, n));
        let mut after = Standing::default();
        after.take(second.tick(days_later.to_vec()));
        assert_eq!(after.alerts.len(), expected, "{text}");
    }
}

/// Calls of an agent on its first day, and on the hundredth.
fn history() -> Vec<SecurityEvent> {
    let (day, hundredth) = (3_600, 80 * DAY_S);
    vec![
        call("a", "read", 0, 0, 1),
        call("a", "pay", day, day, 2),
        call("a", "read", hundredth, hundredth, 3),
        call("a", "pay", hundredth + 1, hundredth + 1, 4),
        call("a", "refund", hundredth + 2, hundredth + 2, 5),
    ]
}

#[test]
fn a_backtest_reads_back_as_far_as_side_tables_look_and_only_for_rules_that_ask_them() {
    let clock = || -> Arc<dyn Clock> { Arc::new(ManualClock::new(at(200 * DAY_S))) };
    let from = at(80 * DAY_S);
    let needed = Backtest::needs_from(&rules(FIRST_USE), clock(), from);
    assert_eq!(needed, from.plus_seconds(-91 * DAY_S - 60 - 120));
    let plain = rules("SELECT agent_id, tool, action, event_id FROM events WHERE decision = 'allow'");
    assert_eq!(Backtest::needs_from(&plain, clock(), from), from.plus_seconds(-60 - 120));
    let run = |known_from: Timestamp| {
        let mut backtest = Backtest::new(rules(FIRST_USE), clock(), Some(from), None);
        history().into_iter().filter(|event| event.ts >= known_from).for_each(|event| backtest.take(event));
        backtest.finish().standing.into_keys().collect::<BTreeSet<String>>()
    };
    let log = history();
    assert_eq!(run(needed), BTreeSet::from([id_of(&log[4])]), "what was used before is known");
    assert_eq!(run(from).len(), 3, "of a history that begins later it is not");
}

#[test]
fn explain_says_since_when_what_an_event_does_is_done() {
    let log = history();
    let explain = |asked: usize| {
        let clock = Arc::new(ManualClock::new(at(200 * DAY_S)));
        let mut explain = Explain::new(&text(FIRST_USE), Path::new("f-1/rule.sql"), log[asked].clone(), clock).unwrap();
        let (from, to) = explain.span();
        assert!(from <= log[0].ts, "{from}");
        log.iter().filter(|event| from <= event.ts && event.ts < to).for_each(|event| explain.take(event.clone()).unwrap());
        explain.finish().unwrap()
    };
    let (known, new) = (explain(3), explain(4));
    assert!(new.fired && new.passes && new.rows.len() == 1, "{new}");
    assert!(!known.fired && !known.passes, "{known}");
    let failed: Vec<_> = known.conditions.iter().filter(|judged| judged.holds != Some(true)).collect();
    assert_eq!(failed.len(), 1, "{known}");
    assert_eq!(failed[0].values["first_seen_agent_tool_action"], Value::from(log[1].ts.to_rfc3339()));
}

#[test]
fn a_test_of_a_rule_cannot_set_what_is_told_from_the_events_before() {
    let folder = tempfile::tempdir().unwrap();
    let tests = folder.path().join("f-1/tests");
    std::fs::create_dir_all(&tests).unwrap();
    std::fs::write(folder.path().join("f-1/rule.sql"), text(FIRST_USE)).unwrap();
    let test = "name: n\nevents:\n  - {at: 0s, agent_id: a, first_seen_agent: '2026-01-01T00:00:00Z'}\nexpect: []\n";
    std::fs::write(tests.join("set.yaml"), test).unwrap();
    let report = run_rule_tests(folder.path()).unwrap();
    let said = report.rules[0].tests[0].failures.join("\n");
    assert!(said.contains("`first_seen_agent` is told from the events before, and cannot be set"), "{said}");
}
