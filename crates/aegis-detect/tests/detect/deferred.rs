//! L-DEFERRED: what stands of a rule whose frames end after their row is what plain SQL finds in the whole log, however that is cut, whenever rows
//! are decided, and after a crash. And nothing is told of a row before its time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use aegis_detect::{Engine, EngineConfig, EventBatch, IMPAIRED_RULE, Quotas, RuleSet, Shape, TickOutput, alert_id, lint_file};
use aegis_model::{Alert, Clock, Decision, EventId, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};
use datafusion::arrow::array::{Array, AsArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::physical_plan::collect;
use datafusion::prelude::{SessionConfig, SessionContext};
use proptest::prelude::*;
use serde_json::{Map, Value};

const START: i64 = 1_767_225_600_000_000;

/// An allow that no deny of the agent follows within five seconds.
const ABSENCE: &str = "SELECT agent_id, event_id FROM events WHERE decision IN ('allow', 'deny') \
     QUALIFY decision = 'allow' AND count(*) FILTER (WHERE decision = 'deny') OVER (PARTITION BY agent_id ORDER BY ts \
       RANGE BETWEEN CURRENT ROW AND INTERVAL '5' SECOND FOLLOWING) = 0";
/// The same, and none before it either.
const ABSENCE_AROUND: &str = "SELECT agent_id, event_id FROM events WHERE decision IN ('allow', 'deny') \
     QUALIFY decision = 'allow' AND count(*) FILTER (WHERE decision = 'deny') OVER (PARTITION BY agent_id ORDER BY ts \
       RANGE BETWEEN INTERVAL '2' SECOND PRECEDING AND INTERVAL '5' SECOND FOLLOWING) = 0";
const QUERIES: [&str; 5] = [
    ABSENCE,
    ABSENCE_AROUND,
    // Frames on top of each other, of finer partitions below.
    "WITH looked AS (SELECT ts, event_id, agent_id, count(*) FILTER (WHERE decision = 'deny') OVER (PARTITION BY agent_id, tool \
       ORDER BY ts RANGE BETWEEN INTERVAL '2' SECOND PRECEDING AND INTERVAL '3' SECOND FOLLOWING) AS denies FROM events) \
     SELECT agent_id, event_id, count(*) OVER w AS calm FROM looked WHERE denies = 0 \
     WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '2' SECOND PRECEDING AND INTERVAL '2' SECOND FOLLOWING) \
     QUALIFY calm >= 2",
    // Nothing splits the state, and the frame begins after its row.
    "SELECT lower(agent_id) AS agent_id, event_id, count(*) OVER w AS n FROM events WHERE agent_id IS NOT NULL \
     WINDOW w AS (PARTITION BY tool ORDER BY ts RANGE BETWEEN INTERVAL '1 microsecond' FOLLOWING AND INTERVAL '4' SECOND FOLLOWING) \
     QUALIFY n = 0",
    "SELECT agent_id, event_id, sum(seq) OVER w AS total FROM events \
     WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN CURRENT ROW AND INTERVAL '3' SECOND FOLLOWING) QUALIFY total > 20",
];

fn rule_text(index: usize, query: &str) -> String {
    format!(
        "/* rule\nid: D-{index}\nname: d-{index}\nversion: 1\nseverity: low\nwindow: 10s\nkey: [agent_id]\nmode: active\nrequires: any\n\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-26, note: first}}\n*/\n{query}\n"
    )
}

fn engine_of(queries: &[&str], quotas: Quotas) -> Engine {
    engine_from(queries.iter().enumerate().map(|(index, query)| rule_text(index, query)), quotas)
}

fn engine_from(texts: impl IntoIterator<Item = String>, quotas: Quotas) -> Engine {
    let mut config = EngineConfig::new(Arc::new(ManualClock::new(Timestamp::from_micros(START))));
    config.lateness_s = 6;
    config.quotas = quotas;
    let texts = texts.into_iter().enumerate().map(|(index, text)| (format!("{index}/rule.sql").into(), text));
    Engine::new(RuleSet::from_texts(texts).unwrap(), config)
}

fn engine() -> Engine {
    engine_of(&QUERIES, Quotas::default())
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(START + second * 1_000_000)
}

/// A proved call, of its own time and stored by the bus at another.
fn call(tenant: &str, agent: &str, decision: Decision, second: i64, bus: i64, number: u128) -> SecurityEvent {
    let tenant = TenantId::new(tenant).unwrap();
    let mut event = SecurityEvent::new(tenant, "edge", "edge", EventKind::AuthorizeDecision, at(second));
    event.event_id = uuid::Uuid::from_u128(number);
    event.lane = Some(format!("{}.edge.1", event.tenant_id));
    event.seq = i64::try_from(number).ok();
    event.verified = true;
    event.agent_id = Some(agent.to_owned());
    event.decision = Some(decision);
    event.bus_ts = Some(at(bus));
    event
}

#[derive(Clone, Debug)]
struct Step {
    forward: i64,
    late: i64,
    tenant: u8,
    agent: Option<u8>,
    tool: u8,
    allow: bool,
    /// The bus goes on for more than a minute after it, and what follows was sealed before.
    silence: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    let late = prop_oneof![4 => Just(0i64), 1 => 0..9i64];
    let agent = prop::option::weighted(0.9, 0..2u8);
    (0..3i64, late, 0..2u8, agent, 0..2u8, any::<bool>(), prop::bool::weighted(0.1)).prop_map(
        |(forward, late, tenant, agent, tool, allow, silence)| Step { forward, late, tenant, agent, tool, allow, silence },
    )
}

/// Seconds of the bus that one silence takes.
const SILENCE: i64 = 100;

fn log_of(steps: &[Step]) -> Vec<SecurityEvent> {
    let (mut second, mut silent) = (100, 0);
    let event = |(index, step): (usize, &Step)| {
        second += step.forward;
        let decision = if step.allow { Decision::Allow } else { Decision::Deny };
        let tenant = ["a", "b"][usize::from(step.tenant)];
        let mut event = call(tenant, "", decision, second - step.late, second + silent, index as u128 + 1);
        event.agent_id = step.agent.map(|agent| format!("Agent-{agent}"));
        event.tool = Some(format!("tool-{}", step.tool));
        if step.silence {
            silent += SILENCE;
        }
        event
    };
    steps.iter().enumerate().map(event).collect()
}

/// True for what a rule told.
fn of_a_rule(alert: &Alert) -> bool {
    alert.rule_id != IMPAIRED_RULE
}

#[derive(Default)]
struct Standing {
    emitted: BTreeSet<String>,
    retracted: BTreeSet<String>,
}

impl Standing {
    fn take(&mut self, output: TickOutput) {
        assert!(output.quarantined.is_empty(), "{:?}", output.quarantined);
        // Not what the engine says of itself: of an event that comes too late.
        for alert in output.alerts.into_iter().filter(of_a_rule) {
            assert!(!self.retracted.contains(&alert.alert_id), "a retracted alert came back: {alert:?}");
            self.emitted.insert(alert.alert_id);
        }
        for retraction in output.retractions {
            assert!(self.emitted.contains(&retraction.alert_id), "retracted, but never emitted");
            assert!(self.retracted.insert(retraction.alert_id), "retracted twice");
        }
    }

    fn standing(&self) -> BTreeSet<String> {
        self.emitted.difference(&self.retracted).cloned().collect()
    }
}

/// One part of the log, as the worker takes it: the events, and the bus's time behind them.
fn take(engine: &mut Engine, part: &[SecurityEvent], silence: bool) -> TickOutput {
    let mut output = engine.tick(part.to_vec());
    let Some(last) = part.last().and_then(|event| event.bus_ts) else { return output };
    output.append(engine.pass_time(last));
    for second in (5..=if silence { SILENCE } else { 0 }).step_by(5) {
        output.append(engine.pass_time(last.plus_seconds(second)));
    }
    output
}

/// What stands after all parts. The process dies after the part `crash` and one more, which it does again.
fn live(log: &[SecurityEvent], steps: &[Step], size: usize, crash: Option<usize>) -> BTreeSet<String> {
    let mut running = engine();
    let mut standing = Standing::default();
    let mut in_time: Vec<SecurityEvent> = Vec::new();
    let parts: Vec<(&[SecurityEvent], bool)> =
        log.chunks(size).zip(steps.chunks(size).map(|part| part.iter().any(|step| step.silence))).collect();
    for (place, (part, silence)) in parts.iter().enumerate() {
        let output = take(&mut running, part, *silence);
        in_time.extend(part.iter().filter(|event| !output.late.contains(&event.event_id)).cloned());
        standing.take(output);
        if crash == Some(place) {
            let checkpoint = serde_json::to_string(&running.checkpoint()).unwrap();
            let needed = in_time.iter().filter(|e| running.horizon(&e.tenant_id).is_none_or(|horizon| e.ts >= horizon));
            let needed: Vec<SecurityEvent> = needed.cloned().collect();
            // What it told is on the bus; the next life tells it again, which is once there.
            if let Some((next, silence)) = parts.get(place + 1) {
                let told = take(&mut running, next, *silence).alerts.into_iter().filter(of_a_rule);
                standing.emitted.extend(told.map(|alert| alert.alert_id));
            }
            running = engine();
            running.restore(serde_json::from_str(&checkpoint).unwrap(), needed, true);
        }
    }
    standing.take(running.finish());
    standing.standing()
}

/// The ids of events that came too late: a function of the log.
fn late_in(log: &[SecurityEvent]) -> BTreeSet<EventId> {
    let mut engine = engine();
    log.iter().flat_map(|event| engine.tick(vec![event.clone()]).late).collect()
}

/// The alerts of all rows that plain SQL has over each tenant's events.
fn plain(log: &[SecurityEvent]) -> BTreeSet<String> {
    let late = late_in(log);
    let mut tenants: BTreeMap<TenantId, Vec<Arc<SecurityEvent>>> = BTreeMap::new();
    for event in log.iter().filter(|event| !late.contains(&event.event_id)) {
        tenants.entry(event.tenant_id.clone()).or_default().push(Arc::new(event.clone()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut alerts = BTreeSet::new();
    for (tenant, events) in tenants {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        context.register_batch("events", EventBatch::new(events).to_record_batch().unwrap()).unwrap();
        let state = context.state();
        for (index, query) in QUERIES.iter().enumerate() {
            // Not `context.sql`: it would have the whole planner compiled once more, here.
            let plan = aegis_sql::plan_query(&state, query).unwrap();
            let plan = aegis_sql::physical(&state, &aegis_sql::optimize(&state, &plan).unwrap()).unwrap();
            let rows: Vec<RecordBatch> = runtime.block_on(collect(plan, state.task_ctx())).unwrap();
            for rows in rows {
                let text = |name: &str| cast(rows.column_by_name(name).unwrap(), &DataType::Utf8).unwrap();
                let (agents, ids) = (text("agent_id"), text("event_id"));
                let (agents, ids) = (agents.as_string::<i32>(), ids.as_string::<i32>());
                for row in (0..rows.num_rows()).filter(|row| agents.is_valid(*row)) {
                    let key: Map<String, Value> = [("agent_id".to_owned(), agents.value(row).into())].into_iter().collect();
                    let first: EventId = ids.value(row).parse().unwrap();
                    alerts.insert(alert_id(&tenant, &format!("D-{index}"), &key, first).unwrap());
                }
            }
        }
    }
    alerts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn l_deferred_what_stands_is_what_plain_sql_finds_in_the_whole_log(
        steps in prop::collection::vec(any_step(), 1..50),
        size in 1..12usize,
        crash in 0..50usize,
    ) {
        let log = log_of(&steps);
        let found = plain(&log);
        prop_assert_eq!(&live(&log, &steps, log.len(), None), &found, "at once");
        prop_assert_eq!(&live(&log, &steps, 1, None), &found, "event by event");
        prop_assert_eq!(&live(&log, &steps, size, Some(crash % log.len().div_ceil(size))), &found, "after a crash");
        // A history has no records of time.
        let mut replay = engine();
        let mut standing = Standing::default();
        log.chunks(size).for_each(|part| standing.take(replay.tick(part.to_vec())));
        standing.take(replay.finish());
        prop_assert_eq!(&standing.standing(), &found, "replayed");
    }
}

#[test]
fn l_deferred_is_not_kept_by_silence() {
    let step = |i: u8| Step {
        forward: i64::from(i % 3),
        late: if i % 5 == 4 { 3 } else { 0 },
        tenant: 0,
        agent: Some(i % 2),
        tool: i % 2,
        allow: !i.is_multiple_of(7),
        silence: i % 10 == 9,
    };
    let steps: Vec<Step> = (0..40).map(step).collect();
    let log = log_of(&steps);
    let (mut running, mut told, mut taken_back) = (engine(), BTreeSet::new(), 0);
    for (event, step) in log.iter().zip(&steps) {
        let output = take(&mut running, std::slice::from_ref(event), step.silence);
        told.extend(output.alerts.into_iter().map(|alert| alert.rule_id));
        taken_back += output.retractions.len();
    }
    let last = running.finish();
    told.extend(last.alerts.into_iter().map(|alert| alert.rule_id));
    taken_back += last.retractions.len();
    for index in 0..QUERIES.len() {
        assert!(told.contains(&format!("D-{index}")), "query {index} finds nothing: {told:?}");
    }
    assert!(taken_back > 0, "nothing was ever decided that a backlog contradicts");
}

#[test]
fn the_queries_here_are_deferred() {
    let folder = tempfile::tempdir().unwrap();
    for query in QUERIES {
        let file = folder.path().join("rule.sql");
        std::fs::write(&file, rule_text(0, query)).unwrap();
        assert_eq!(lint_file(&file).unwrap().shape, Shape::Deferred, "{query}");
    }
}

fn told(output: &TickOutput) -> Vec<u128> {
    let of_rule = |alert: &&Alert| alert.rule_id == "D-0";
    output.alerts.iter().filter(of_rule).map(|alert| alert.event_ids[0].as_u128()).collect()
}

#[test]
fn nothing_is_told_of_a_row_before_no_event_that_is_in_time_can_contradict_it() {
    let mut engine = engine_of(&[ABSENCE], Quotas::default());
    let mut tick = |second: i64, number: u128| {
        let output = engine.tick(vec![call("a", &format!("agent-{number}"), Decision::Allow, second, second, number)]);
        (told(&output), output.retractions.len())
    };
    assert_eq!(tick(100, 1), (vec![], 0));
    // The five seconds and the lateness end at 111, which is not yet after them.
    assert_eq!(tick(111, 2), (vec![], 0));
    assert_eq!(tick(117, 3), (vec![1], 0));
    assert_eq!(tick(130, 4), (vec![2, 3], 0), "and of the others in their time, once");
}

#[test]
fn where_all_are_silent_the_log_decides_and_a_backlog_takes_it_back() {
    let mut engine = engine_of(&[ABSENCE], Quotas::default());
    assert!(engine.needs_time_from().is_none());
    assert!(told(&engine.tick(vec![call("a", "agent", Decision::Allow, 100, 100, 1)])).is_empty());
    assert!(engine.needs_time_from().is_some_and(|from| from <= at(111)), "nobody would tell the time");
    for second in (105..170).step_by(5) {
        assert!(told(&engine.pass_time(at(second))).is_empty(), "its edge may be about to speak at {second}");
    }
    assert_eq!(told(&engine.pass_time(at(170))), [1]);
    assert!(engine.needs_time_from().is_none(), "a log that is told the time for ever");
    // The edge was cut off; what it sends now is in time.
    let backlog = engine.tick(vec![call("a", "agent", Decision::Deny, 103, 180, 2)]);
    assert!(backlog.late.is_empty() && backlog.alerts.is_empty());
    let later = engine.tick(vec![call("a", "other", Decision::Deny, 200, 200, 3)]);
    assert_eq!((told(&later), later.retractions.len()), (vec![], 1));
    assert_eq!(engine.finish().retractions.len(), 0);
}

#[test]
fn nobody_is_contained_on_a_silence() {
    let text = rule_text(0, ABSENCE).replace("requires: any", "respond: [freeze_agent]");
    let mut engine = engine_from([text], Quotas::default());
    engine.tick(vec![call("a", "agent", Decision::Allow, 100, 100, 1)]);
    for second in (105..400).step_by(5) {
        assert!(told(&engine.pass_time(at(second))).is_empty());
    }
    assert!(engine.needs_time_from().is_none(), "the time would be told for nothing");
    assert_eq!(told(&engine.tick(vec![call("a", "other", Decision::Deny, 117, 400, 2)])), [1]);
}

#[test]
fn nobody_is_contained_where_only_what_is_not_proved_moves_the_time() {
    let text = rule_text(0, ABSENCE).replace("requires: any", "respond: [freeze_agent]");
    let mut engine = engine_from([text], Quotas::default());
    let mut alerts: Vec<Alert> = engine.tick(vec![call("a", "agent", Decision::Allow, 100, 100, 1)]).alerts;
    // Its edge is cut off, and for more than an hour whoever reaches the bus writes under its name.
    for second in (104..4_000i64).step_by(4) {
        let proved = call("a", "agent", Decision::Deny, second, second, second.unsigned_abs().into());
        alerts.extend(engine.tick(vec![SecurityEvent { verified: false, ..proved }]).alerts);
    }
    assert_eq!(alerts.iter().map(|alert| alert.event_ids[0].as_u128()).collect::<Vec<_>>(), [1], "it is told");
    assert!(alerts[0].respond.is_empty() && alerts[0].fields.contains_key("not_contained"), "{:?}", alerts[0]);
    // What is proved again contains again.
    let mut proved = |second: i64, number: u128| {
        engine.tick(vec![call("a", &format!("agent-{number}"), Decision::Allow, second, second, number)]).alerts
    };
    assert!(proved(4_000, 10_000).is_empty());
    let again = proved(4_020, 10_001);
    assert_eq!(again.iter().map(|alert| alert.respond.join(" ")).collect::<Vec<_>>(), ["freeze_agent"]);
    assert!(!again[0].fields.contains_key("not_contained"));
}

#[test]
fn nobody_is_contained_for_want_of_what_a_restart_lost() {
    let text = rule_text(0, ABSENCE_AROUND).replace("requires: any", "respond: [freeze_agent]");
    let mut first = engine_from([text.clone()], Quotas::default());
    // The deny is within two seconds before the allow, which is no match.
    let log = [call("a", "agent", Decision::Deny, 99, 99, 1), call("a", "agent", Decision::Allow, 100, 100, 2)];
    assert!(told(&first.tick(log.to_vec())).is_empty());
    let checkpoint = serde_json::to_string(&first.checkpoint()).unwrap();
    let responses = |whole: bool, needed: &[SecurityEvent]| {
        let mut second = engine_from([text.clone()], Quotas::default());
        second.restore(serde_json::from_str(&checkpoint).unwrap(), needed.to_vec(), whole);
        let mut alerts = second.tick(vec![call("a", "other", Decision::Allow, 117, 117, 3)]).alerts;
        alerts.extend(second.tick(vec![call("a", "other", Decision::Deny, 140, 140, 4)]).alerts);
        let response = |alert: &Alert| (alert.event_ids[0].as_u128(), alert.respond.join(" "));
        alerts.iter().map(response).collect::<Vec<_>>()
    };
    let freeze = || "freeze_agent".to_owned();
    assert_eq!(responses(true, &log), [(3, freeze())]);
    assert_eq!(responses(false, &log[1..]), [(2, String::new()), (3, freeze())]);
}

#[test]
fn deciding_costs_what_is_due_and_not_what_waits() {
    let mut engine = engine_of(&[ABSENCE], Quotas::default());
    let many = (1..=300).map(|n| call("a", &format!("agent-{n}"), Decision::Allow, 100, 100, n)).collect();
    engine.tick(many);
    engine.pass_time(at(110));
    assert_eq!(engine.stats()[0].evals, 0, "nothing is due");
    assert_eq!(told(&engine.tick(vec![call("a", "last", Decision::Allow, 117, 117, 1000)])).len(), 300);
    assert_eq!(engine.stats()[0].evals, 1);
    engine.tick(vec![call("a", "last", Decision::Allow, 123, 123, 1001)]);
    engine.pass_time(at(124));
    assert_eq!(engine.stats()[0].evals, 1, "what is decided is not looked at again");
}

#[test]
fn rows_that_look_far_are_decided_together() {
    let query = ABSENCE.replace("'5' SECOND", "'320' SECOND");
    let mut engine = engine_from([rule_text(0, &query).replace("window: 10s", "window: 320s")], Quotas::default());
    let mut decided = Vec::new();
    for (second, number) in (100..=1_100).step_by(5).zip(1..) {
        let next = call("a", &format!("agent-{number}"), Decision::Allow, second, second, number);
        decided.extend(told(&engine.tick(vec![next])));
    }
    // Of a sixteenth of 320 s at a time, up to 1,080 s: rows before 760 s.
    decided.sort_unstable();
    assert_eq!(decided, (1..=132).collect::<Vec<u128>>());
    assert_eq!(engine.stats()[0].evals, 33, "a look for each new event looks at all that is waited for");
    assert_eq!(told(&engine.finish()).len(), 201 - 132, "at the end all is decided");
}

#[test]
fn rows_that_are_decided_together_are_told_once_over_a_restart_at_any_time() {
    let query = ABSENCE.replace("'5' SECOND", "'160' SECOND");
    let new_engine = || engine_from([rule_text(0, &query).replace("window: 10s", "window: 160s")], Quotas::default());
    let event = |n: i64| {
        let decision = if n % 40 == 13 { Decision::Deny } else { Decision::Allow };
        call("a", &format!("agent-{}", n % 3), decision, 100 + 7 * n, 100 + 7 * n, n.unsigned_abs().into())
    };
    let log: Vec<SecurityEvent> = (1..=120).map(event).collect();
    let follows = |row: &SecurityEvent, other: &SecurityEvent| {
        let span = row.ts..=row.ts.plus_seconds(160);
        other.decision == Some(Decision::Deny) && other.agent_id == row.agent_id && span.contains(&other.ts)
    };
    let rows = log.iter().filter(|row| row.decision == Some(Decision::Allow) && !log.iter().any(|other| follows(row, other)));
    let expected: Vec<u128> = rows.map(|row| row.event_id.as_u128()).collect();
    assert!((60..110).contains(&expected.len()), "{} of 120", expected.len());
    for restart in (0..log.len()).step_by(5) {
        let mut running = new_engine();
        let mut decided = Vec::new();
        for (place, next) in log.iter().enumerate() {
            let output = running.tick(vec![next.clone()]);
            assert!(output.late.is_empty() && output.retractions.is_empty());
            decided.extend(told(&output));
            if place == restart {
                let checkpoint = serde_json::to_string(&running.checkpoint()).unwrap();
                let taken = log[..=place].iter();
                let needed = taken.filter(|e| running.horizon(&e.tenant_id).is_none_or(|horizon| e.ts >= horizon));
                let needed: Vec<SecurityEvent> = needed.cloned().collect();
                running = new_engine();
                running.restore(serde_json::from_str(&checkpoint).unwrap(), needed, true);
            }
        }
        decided.extend(told(&running.finish()));
        decided.sort_unstable();
        assert_eq!(decided, expected, "a restart after {restart} events");
    }
}

/// By it, whatever is timed takes `step` microseconds.
#[derive(Debug, Default)]
struct SlowClock {
    now: AtomicI64,
    step: AtomicI64,
}

impl Clock for SlowClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(START + self.now.fetch_add(self.step.load(Ordering::Relaxed), Ordering::Relaxed))
    }
}

#[test]
fn a_tenant_whose_rows_take_too_long_stops_the_rule_for_itself_alone() {
    let clock = Arc::new(SlowClock::default());
    let mut config = EngineConfig::new(clock.clone());
    config.lateness_s = 6;
    let rules = RuleSet::from_texts([("0/rule.sql".into(), rule_text(0, ABSENCE))]).unwrap();
    let mut engine = Engine::new(rules, config);
    engine.tick(vec![call("a", "agent", Decision::Allow, 100, 100, 1)]);
    for second in (105..170).step_by(5) {
        engine.pass_time(at(second));
    }
    engine.tick(vec![call("b", "agent", Decision::Allow, 166, 166, 2)]);
    clock.step.store(11_000_000, Ordering::Relaxed);
    assert_eq!(engine.pass_time(at(170)).quarantined.len(), 1);
    clock.step.store(0, Ordering::Relaxed);
    let stats = engine.stats().remove(0);
    assert_eq!((stats.quarantined, stats.set_aside.into_keys().collect::<Vec<_>>()), (None, vec![TenantId::new("a").unwrap()]));
    let later: Vec<u128> = (175..300).step_by(5).flat_map(|second| told(&engine.pass_time(at(second)))).collect();
    assert_eq!(later, [2]);
}

#[test]
fn a_row_of_which_a_quota_took_what_it_looks_at_is_not_decided() {
    let quotas = Quotas { events_per_key: 2, ..Quotas::default() };
    for (query, expected) in [(ABSENCE, vec![2, 3]), (ABSENCE_AROUND, vec![])] {
        let mut engine = engine_of(&[query], quotas);
        let log = (1..=3i64).map(|n| call("a", "agent", Decision::Allow, 99 + n, 99 + n, n.unsigned_abs().into())).collect();
        assert!(told(&engine.tick(log)).is_empty());
        assert_eq!(told(&engine.finish()), expected, "{query}");
        assert_eq!(engine.stats()[0].given_up, 1);
    }
}
