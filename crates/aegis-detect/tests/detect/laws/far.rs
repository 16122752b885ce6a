//! L-REPLAY over rules whose window is longer than the stream is held: a checkpoint has their events of before. And what a checkpoint has no room for.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_detect::{Engine, EngineConfig, IMPAIRED_RULE, Quotas, RuleSet, TickOutput};
use aegis_model::{Alert, Decision, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};
use proptest::prelude::*;

use super::logs::{LATENESS_S, START, Standing};

/// The stream is held so far back for such rules.
const HELD_S: i64 = 2 * 3600;

/// Rules of every shape that keeps events, over five hours, and one over ten minutes: name, window, what else is in the header, query.
const RULES: [(&str, &str, &str, &str); 8] = [
    (
        "count",
        "5h",
        "suppress: 1h\n",
        "SELECT agent_id, count(DISTINCT resource) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events \
         WHERE decision = 'deny' WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '5' HOUR PRECEDING AND \
         CURRENT ROW) QUALIFY n >= 3",
    ),
    (
        "sum",
        "5h",
        "",
        "SELECT agent_id, event_id, sum(CAST(mutates_state AS BIGINT) + 1) OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN \
         INTERVAL '5' HOUR PRECEDING AND CURRENT ROW) AS n FROM events QUALIFY n = 3",
    ),
    (
        "absence",
        "5h",
        "",
        "SELECT agent_id, event_id FROM events w WHERE decision = 'allow' AND NOT EXISTS \
         (SELECT 1 FROM events d WHERE d.agent_id = w.agent_id AND d.decision = 'deny')",
    ),
    (
        "pattern",
        "5h",
        "",
        "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
         PATTERN (d a*? d) DEFINE d AS d.decision = 'deny', a AS a.decision = 'allow')",
    ),
    (
        "deferred",
        "5h",
        "",
        "SELECT agent_id, event_id FROM events QUALIFY decision = 'allow' AND count(*) FILTER (WHERE decision = 'deny') OVER \
         (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '3' HOUR PRECEDING AND INTERVAL '5' MINUTE FOLLOWING) = 0",
    ),
    (
        "first-use",
        "5h",
        "",
        "SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events \
         WHERE first_seen_agent_tool_action = ts WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '5' HOUR \
         PRECEDING AND CURRENT ROW) QUALIFY n >= 2",
    ),
    ("stateless", "5h", "suppress: 1h\n", "SELECT agent_id, event_id FROM events WHERE decision = 'deny'"),
    (
        "near",
        "10m",
        "",
        "SELECT agent_id, event_id FROM events WHERE decision = 'deny' QUALIFY count(*) OVER \
         (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '10' MINUTE PRECEDING AND CURRENT ROW) >= 2",
    ),
];

fn text(id: usize, more: &str) -> String {
    let (name, window, of_rule, query) = RULES[id];
    format!(
        "/* rule\nid: F-{id}\nname: {name}\nversion: 1\nseverity: low\nwindow: {window}\nkey: [agent_id]\nmode: active\n{of_rule}{more}\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-27, note: first}}\n*/\n{query}\n"
    )
}

fn engine_of(texts: impl IntoIterator<Item = String>) -> Engine {
    engine_within(texts, Quotas::default())
}

fn engine_within(texts: impl IntoIterator<Item = String>, quotas: Quotas) -> Engine {
    let texts = texts.into_iter().enumerate().map(|(n, text)| (format!("{n}/rule.sql").into(), text));
    let mut config = EngineConfig::new(Arc::new(ManualClock::new(at(0))));
    config.lateness_s = LATENESS_S;
    config.quotas = quotas;
    Engine::new(RuleSet::from_texts(texts).unwrap(), config)
}

fn engine() -> Engine {
    engine_of((0..RULES.len()).map(|id| text(id, "requires: any\n")))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(START + second * 1_000_000)
}

/// A proved call, of which the bus had word at `stored`.
fn call(tenant: &str, agent: &str, decision: Decision, (second, stored): (i64, i64), number: usize) -> SecurityEvent {
    let tenant = TenantId::new(tenant).unwrap();
    let mut event = SecurityEvent::new(tenant, "edge", "edge", EventKind::AuthorizeDecision, at(second));
    event.event_id = uuid::Uuid::from_u128(1 + number as u128);
    event.lane = Some(format!("{}.edge.1", event.tenant_id));
    event.verified = true;
    event.agent_id = Some(agent.to_owned());
    event.decision = Some(decision);
    event.tool = Some("crm".to_owned());
    event.action = Some(format!("action-{}", number % 3));
    event.resource = Some(format!("record-{}", number % 5));
    event.attributes = Some("what no rule reads".to_owned());
    event.mutates_state = Some(false);
    event.receipt_hash = Some(format!("{number:064x}"));
    event.bus_ts = Some(at(stored));
    event
}

#[derive(Clone, Debug)]
struct Step {
    forward: i64,
    late: i64,
    tenant: usize,
    agent: u8,
    deny: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    // Now and then at once, or some seconds or minutes behind; else some quarters of an hour later.
    let forward = prop_oneof![1 => 0..4i64, 3 => 0..3600i64];
    let late = prop_oneof![4 => Just(0i64), 2 => 0..9i64, 1 => 0..1800i64];
    (forward, late, 0..2usize, 0..2u8, any::<bool>()).prop_map(|(forward, late, tenant, agent, deny)| Step {
        forward,
        late,
        tenant,
        agent,
        deny,
    })
}

fn log_of(steps: &[Step]) -> Vec<SecurityEvent> {
    let mut second = 0;
    let event = |(number, step): (usize, &Step)| {
        second += step.forward;
        let decision = if step.deny { Decision::Deny } else { Decision::Allow };
        let agent = format!("agent-{}", step.agent);
        call(["a", "b"][step.tenant], &agent, decision, (second - step.late, second), number)
    };
    steps.iter().enumerate().map(event).collect()
}

/// What a process has that reads a log, and what it needs of it to begin again.
struct Life {
    engine: Engine,
    /// What rules were shown of the log.
    taken: Vec<SecurityEvent>,
}

impl Life {
    fn take(&mut self, event: &SecurityEvent) -> TickOutput {
        let output = self.engine.tick(vec![event.clone()]);
        if output.late.is_empty() {
            self.taken.push(event.clone());
        }
        output
    }

    /// The process that begins again, with the events that a start reads again, and no others.
    fn again(&self, engine: Engine) -> Self {
        self.again_from(&serde_json::to_string(&self.engine.checkpoint()).unwrap(), engine)
    }

    fn again_from(&self, checkpoint: &str, mut engine: Engine) -> Self {
        let is_read = |e: &&SecurityEvent| self.engine.horizon(&e.tenant_id).is_none_or(|horizon| e.ts >= horizon);
        let taken: Vec<SecurityEvent> = self.taken.iter().filter(is_read).cloned().collect();
        engine.restore(serde_json::from_str(checkpoint).unwrap(), taken.clone(), true);
        Self { engine, taken }
    }
}

/// What stands of a log over restarts: where each checkpoint is written, and how many events later its process dies.
fn over_restarts(log: &[SecurityEvent], restarts: &[(usize, usize)]) -> BTreeSet<(String, String)> {
    let (mut life, mut standing, mut from) = (Life { engine: engine(), taken: Vec::new() }, Standing::default(), 0);
    for (written, dies) in restarts {
        let written = from.max(written % (log.len() + 1));
        log[from..written].iter().for_each(|event| standing.take(life.take(event)));
        let next = life.again(engine());
        // What is told behind the checkpoint is told again.
        log[written..(written + dies).min(log.len())].iter().for_each(|event| drop(life.take(event)));
        (life, from) = (next, written);
    }
    log[from..].iter().for_each(|event| standing.take(life.take(event)));
    standing.take(life.engine.finish());
    standing.ids()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn l_replay_a_checkpoint_and_the_rest_of_the_stream_are_the_windows_that_are_longer(
        steps in prop::collection::vec(any_step(), 2..40),
        restarts in prop::collection::vec((0..40usize, 0..6usize), 1..4),
    ) {
        let log = log_of(&steps);
        prop_assert_eq!(over_restarts(&log, &restarts), over_restarts(&log, &[]));
    }
}

#[test]
fn the_law_of_longer_windows_is_not_kept_by_silence() {
    // An hour and a half apart, of which the stream has the last two.
    let steps: Vec<Step> =
        (0..14).map(|n| Step { forward: 5400, late: 0, tenant: 0, agent: u8::from(n % 3 == 2), deny: n % 4 != 3 }).collect();
    let mut log = log_of(&steps);
    // A third agent is allowed something, and denied nothing.
    log.extend((0..3).map(|n| call("a", "quiet", Decision::Allow, (14 * 5400 + 600 * n, 14 * 5400 + 600 * n), 20 + n as usize)));
    log.push(call("a", "quiet", Decision::Deny, (14 * 5400 + 20_000, 14 * 5400 + 20_000), 30));
    let at_once = over_restarts(&log, &[]);
    let fired: BTreeSet<&str> = at_once.iter().map(|(rule, _)| rule.as_str()).collect();
    for (name, ..) in RULES.iter().filter(|rule| rule.0 != "near") {
        assert!(fired.contains(name), "{name} tells nothing: {fired:?}");
    }
    let each: Vec<(usize, usize)> = (0..=log.len()).map(|place| (place, 2)).collect();
    assert_eq!(over_restarts(&log, &each), at_once);

    // Without what a checkpoint has of before, it is another state.
    let mut life = Life { engine: engine(), taken: Vec::new() };
    for event in &log[..4] {
        life.take(event);
    }
    let tenant = &log[0].tenant_id;
    assert_eq!(life.engine.horizon(tenant), Some(log[3].ts.plus_seconds(-LATENESS_S - HELD_S)));
    let mut checkpoint = serde_json::to_value(life.engine.checkpoint()).unwrap();
    assert!(checkpoint["far"].to_string().contains(&log[0].event_id.to_string()));
    assert!(!checkpoint["far"]["F-0"].to_string().contains("what no rule reads"));
    checkpoint["far"] = serde_json::json!({});
    let (whole, without) = (life.again(engine()), life.again_from(&checkpoint.to_string(), engine()));
    let kept = |life: &Life| life.engine.stats().iter().map(|rule| rule.kept).sum::<u64>();
    assert!(kept(&whole) > kept(&without) && kept(&whole) == kept(&life));
}

/// `not_contained` and `events_gone`, where an alert says one of them.
fn said(alert: &Alert) -> Option<&'static str> {
    ["not_contained", "events_gone"].into_iter().find(|name| alert.fields.contains_key(*name))
}

/// Rule, tenant, the responses, and what is said of events that are gone.
fn told(output: &TickOutput) -> Vec<(&str, &str, String, Option<&'static str>)> {
    let of_rules = output.alerts.iter().filter(|alert| alert.rule_id != IMPAIRED_RULE);
    of_rules.map(|alert| (alert.rule_name.as_str(), alert.tenant_id.as_str(), alert.respond.join(" "), said(alert))).collect()
}

/// Of how many tenants some of the windows was lost, and was not written.
fn lacking(engine: &Engine) -> (u64, u64) {
    let stats = engine.stats();
    (stats.iter().map(|rule| rule.window_lost).sum(), stats.iter().map(|rule| rule.window_unsaved).sum())
}

/// The third of a kind, without a list of them.
const THIRD: &str = "SELECT agent_id, event_id, count(DISTINCT resource) OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN \
    INTERVAL '5' HOUR PRECEDING AND CURRENT ROW) AS n FROM events WHERE decision = 'deny' QUALIFY n = 3";

/// One that counts, and one that contains on what is absent.
fn counts_and_contains() -> Engine {
    engine_of([text(0, "requires: any\n").replace(RULES[0].3, THIRD), text(2, "respond: [freeze_agent]\n")])
}

/// The attack: an agent has itself denied so often that a checkpoint has no room for its tenant's windows, so that a restart forgets the others' denies, and
/// has an agent contained for want of them.
#[test]
fn what_finds_no_room_is_the_oldest_of_who_has_most_and_nobody_is_contained_for_want_of_it() {
    let mut life = Life { engine: counts_and_contains(), taken: Vec::new() };
    let mut number = 0;
    let mut next = |tenant: &str, agent: &str, decision: Decision, second: i64| {
        number += 1;
        let resource = if agent == "loud" { "the same".to_owned() } else { format!("record {number}") };
        SecurityEvent { resource: Some(resource), ..call(tenant, agent, decision, (second, second), number) }
    };
    for tenant in ["a", "b"] {
        for _ in 0..2 {
            life.take(&next(tenant, "slow", Decision::Deny, 60));
        }
    }
    let flood: Vec<SecurityEvent> = (0..4000).map(|_| next("a", "loud", Decision::Deny, 120)).collect();
    life.taken.extend(flood.clone());
    life.engine.tick(flood);
    for tenant in ["a", "b"] {
        life.take(&next(tenant, "other", Decision::Deny, 4 * 3600));
    }
    assert_eq!(lacking(&life.engine), (0, 0));
    let checkpoint = serde_json::to_string(&life.engine.checkpoint_within(1 << 30)).unwrap();
    assert_eq!(lacking(&life.engine), (0, 2), "of both rules in one tenant");
    assert!(checkpoint.len() < 3 << 20, "it is {} bytes", checkpoint.len());

    let mut again = life.again_from(&checkpoint, counts_and_contains());
    assert_eq!(lacking(&again.engine), (2, 0));
    // The third of each: nobody took the room of the first two.
    let [of_a, of_b] = ["a", "b"].map(|tenant| again.take(&next(tenant, "slow", Decision::Deny, 4 * 3600 + 1)));
    assert_eq!(told(&of_a), [("count", "a", String::new(), Some("events_gone"))]);
    assert_eq!(told(&of_b), [("count", "b", String::new(), None)]);
    let impaired = of_a.alerts.iter().filter(|alert| alert.rule_id == IMPAIRED_RULE);
    let impaired: BTreeSet<&str> = impaired.filter_map(|alert| alert.key["what"].as_str()).collect();
    assert_eq!(impaired, BTreeSet::from(["window_lost"]));
    assert!(of_b.alerts.iter().all(|alert| alert.rule_id != IMPAIRED_RULE));

    // Also after the next restart, of which the checkpoint has room for all that is there.
    let mut third = again.again(counts_and_contains());
    assert_eq!(lacking(&third.engine), (2, 0));
    for (tenant, respond, said) in [("a", "", Some("not_contained")), ("b", "freeze_agent", None)] {
        let output = third.take(&next(tenant, "new", Decision::Allow, 4 * 3600 + 20));
        assert_eq!(told(&output), [("absence", tenant, respond.to_owned(), said)]);
    }
    // Until no row looks so far back.
    let later = 12 * 3600;
    third.take(&next("a", "new", Decision::Allow, later));
    let output = third.take(&next("a", "newer", Decision::Allow, later + 30));
    assert_eq!(lacking(&third.engine), (0, 0));
    assert_eq!(told(&output), [("absence", "a", "freeze_agent".to_owned(), None)]);
}

#[test]
fn of_all_tenants_those_that_have_most_lose_their_oldest_where_a_checkpoint_has_no_room_and_that_is_known() {
    let mut life = Life { engine: counts_and_contains(), taken: Vec::new() };
    for (number, (tenant, second)) in [("a", 0), ("a", 1), ("b", 2), ("a", 4 * 3600), ("b", 4 * 3600)].into_iter().enumerate() {
        life.take(&call(tenant, "slow", Decision::Deny, (second, second), number));
    }
    // About five hundred and fifty bytes are an event's, of each of two rules: there is room for all of one tenant's, and for half of the other's.
    let checkpoint = serde_json::to_string(&life.engine.checkpoint_within(2400)).unwrap();
    assert_eq!(lacking(&life.engine), (0, 2));
    let far: serde_json::Value = serde_json::from_str::<serde_json::Value>(&checkpoint).unwrap()["far"].take();
    for rule in ["F-0", "F-2"] {
        let kept = |tenant: &str| {
            far[rule][tenant]["events"].as_array().unwrap().iter().map(|e| e["event_id"].clone()).collect::<Vec<_>>()
        };
        let id = |number: usize| serde_json::to_value(call("a", "slow", Decision::Deny, (0, 0), number).event_id).unwrap();
        assert_eq!((kept("a"), kept("b")), (vec![id(1)], vec![id(2)]), "{rule}");
    }
    let mut again = life.again_from(&checkpoint, counts_and_contains());
    assert_eq!(lacking(&again.engine), (2, 0));
    let output = again.take(&call("b", "new", Decision::Allow, (4 * 3600 + 1, 4 * 3600 + 1), 10));
    assert_eq!(told(&output), [("absence", "b", "freeze_agent".to_owned(), None)]);
    let output = again.take(&call("a", "new", Decision::Allow, (4 * 3600 + 1, 4 * 3600 + 1), 11));
    assert_eq!(told(&output), [("absence", "a", String::new(), Some("not_contained"))]);
    // Nothing at all: each is left out.
    let _of_nobody = life.engine.checkpoint_within(0);
    assert_eq!(lacking(&life.engine), (0, 4));
}

/// The attack: what a rule keys on is an agent's to choose, and it makes so many keys that a checkpoint has room for none of all of them.
#[test]
fn no_agent_s_keys_however_many_take_the_room_of_another_agent_s() {
    let query = "SELECT resource, event_id, count(*) OVER (PARTITION BY resource ORDER BY ts RANGE BETWEEN INTERVAL '5' HOUR PRECEDING \
                 AND CURRENT ROW) AS n FROM events WHERE decision = 'deny' QUALIFY n = 3";
    let new = || engine_of([text(0, "requires: any\n").replace(RULES[0].3, query).replace("key: [agent_id]", "key: [resource]")]);
    let deny = |agent: &str, resource: &str, second: i64, number: usize| SecurityEvent {
        resource: Some(resource.to_owned()),
        ..call("a", agent, Decision::Deny, (second, second), number)
    };
    let mut life = Life { engine: new(), taken: Vec::new() };
    for number in 0..2 {
        life.take(&deny("slow", "the one", 60, number));
    }
    let flood: Vec<SecurityEvent> = (0..3000).map(|n| deny("loud", &format!("record {n}"), 120, 10 + n)).collect();
    life.taken.extend(flood.clone());
    life.engine.tick(flood);
    life.take(&deny("slow", "another", 4 * 3600, 5000));
    let checkpoint = serde_json::to_string(&life.engine.checkpoint_within(1 << 30)).unwrap();
    assert_eq!(lacking(&life.engine), (0, 1));
    let mut again = life.again_from(&checkpoint, new());
    let output = again.take(&deny("slow", "the one", 4 * 3600 + 1, 5001));
    assert_eq!(told(&output), [("count", "a", String::new(), Some("events_gone"))]);
}

/// A rule that failed over a tenant's events does not know them any more. A process that begins again has it look at that tenant again.
#[test]
fn what_a_rule_had_stopped_looking_at_is_known_to_be_gone() {
    let query = RULES[0].3.replace("WHERE decision = 'deny'", "WHERE decision = 'deny' AND CAST(user_id AS BIGINT) > 5");
    let engine = || engine_of([text(0, "requires: any\n").replace(RULES[0].3, &query)]);
    let deny = |tenant: &str, user: &str, second: i64, number: usize| {
        let mut event = call(tenant, "slow", Decision::Deny, (second, second), number);
        event.user_id = Some(user.to_owned());
        event
    };
    let mut life = Life { engine: engine(), taken: Vec::new() };
    for (number, tenant) in ["a", "b", "a", "b"].into_iter().enumerate() {
        life.take(&deny(tenant, "7", 60, number));
    }
    life.engine.tick(vec![deny("a", "nobody", 70, 10)]);
    assert_eq!(life.engine.stats()[0].set_aside.len(), 1);
    for tenant in ["a", "b"] {
        life.engine.tick(vec![deny(tenant, "7", 3 * 3600, 11)]);
    }
    let again = life.again(engine());
    assert_eq!(lacking(&again.engine), (1, 0));
}

/// A row is not decided without what a quota did not let in, also where that was before what a start reads again.
#[test]
fn what_a_quota_did_not_let_in_is_known_after_a_restart_of_a_rule_that_waits() {
    let new = || engine_within([text(4, "requires: any\n")], Quotas { events_per_tenant: 2, ..Quotas::default() });
    let of = |agent: &str, decision: Decision, minute: i64| {
        call("a", agent, decision, (60 * minute, 60 * minute), usize::try_from(minute).unwrap())
    };
    // Of an agent of whom there is nothing in any window: it moves the tenant's time.
    let time = |minute: i64| SecurityEvent { agent_id: None, ..of("nobody", Decision::Deny, minute) };
    let mut life = Life { engine: new(), taken: Vec::new() };
    // Two of another agent have all the room when the agent is denied something, and none when it is allowed something.
    let before = [of("other", Decision::Deny, 0), of("other", Decision::Deny, 1), of("agent", Decision::Deny, 240)];
    let between = [time(330), of("agent", Decision::Allow, 340), time(380)];
    before.iter().chain(&between).for_each(|event| drop(life.take(event)));
    let mut checkpoint = serde_json::to_value(life.engine.checkpoint()).unwrap();
    let mut again = life.again_from(&checkpoint.to_string(), new());
    checkpoint["far"] = serde_json::json!({});
    let mut without = life.again_from(&checkpoint.to_string(), new());
    // Within three hours of the deny.
    let rest = [of("agent", Decision::Allow, 400), time(450)];
    let told = |life: &mut Life| rest.iter().map(|event| told(&life.take(event)).len()).sum::<usize>();
    assert_eq!([&mut life, &mut again, &mut without].map(told), [0, 0, 1]);
}
