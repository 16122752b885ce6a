//! The laws as properties over small random logs: L-REPLAY (live equals replay) and L-TENANT (no tenant reaches another's matches).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use aegis_detect::{
    Engine, EngineConfig, EventBatch, IMPAIRED_NAME, IMPAIRED_RULE, Quotas, RuleSet, TickOutput, Watermarks, events_of,
    events_schema,
};
use aegis_model::{Alert, Clock, DataAccess, Decision, Destination, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};
use proptest::prelude::*;

const START: i64 = 1_767_225_600_000_000;

/// Rules of every shape, with windows that small logs fill.
const RULES: [(&str, &str, &str); 18] = [
    ("stateless", "", "SELECT agent_id, event_id FROM events WHERE decision = 'deny'"),
    (
        "sliding",
        "",
        "SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = 'deny' \
         WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '10' SECOND PRECEDING AND CURRENT ROW) \
         QUALIFY n >= 3",
    ),
    (
        "sliding-suppressed",
        "suppress: 7s\n",
        "SELECT agent_id, event_id, count(*) OVER w AS n FROM events \
         WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '10' SECOND PRECEDING AND CURRENT ROW) QUALIFY n = 2",
    ),
    (
        // Keyed by something that does not split the state, and a late event can take a match away.
        "sliding-one-bucket",
        "",
        "SELECT tool AS agent_id, event_id FROM (SELECT *, count(*) OVER \
         (PARTITION BY run_id ORDER BY ts RANGE BETWEEN INTERVAL '5' SECOND PRECEDING AND CURRENT ROW) AS n FROM events) WHERE n = 1",
    ),
    (
        "stepped-group",
        "suppress: 4s\n",
        "SELECT agent_id, array_agg(event_id) AS event_ids FROM events WHERE decision = 'deny' GROUP BY agent_id HAVING count(*) >= 2",
    ),
    (
        "pattern",
        "",
        "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
         PATTERN (d a*? d) DEFINE d AS d.decision = 'deny', a AS a.decision = 'allow')",
    ),
    (
        // One partition for all agents of a tenant: nothing splits the state.
        "pattern-unsplit-suppressed",
        "suppress: 4s\n",
        "SELECT agent_id, event_ids FROM events MATCH_RECOGNIZE (ORDER BY ts \
         MEASURES LAST(agent_id) AS agent_id, array_agg(event_id) AS event_ids AFTER MATCH SKIP TO NEXT ROW \
         PATTERN (r x*? w) DEFINE r AS r.data_access = 'sensitive', w AS w.decision = 'allow' AND w.agent_id = r.agent_id)",
    ),
    (
        "stepped-absence",
        "",
        "SELECT agent_id, event_id FROM events w WHERE decision = 'allow' AND NOT EXISTS \
         (SELECT 1 FROM events d WHERE d.agent_id = w.agent_id AND d.decision = 'deny')",
    ),
    (
        "deferred",
        "",
        "SELECT agent_id, event_id FROM events QUALIFY decision = 'allow' AND count(*) FILTER (WHERE decision = 'deny') OVER \
         (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '2' SECOND PRECEDING AND INTERVAL '1' SECOND FOLLOWING) = 0",
    ),
    (
        // Nothing splits the state.
        "deferred-suppressed",
        "suppress: 4s\n",
        "SELECT tool AS agent_id, event_id FROM events WHERE decision = 'allow' QUALIFY count(*) OVER (PARTITION BY run_id \
         ORDER BY ts RANGE BETWEEN INTERVAL '1 microsecond' FOLLOWING AND INTERVAL '3' SECOND FOLLOWING) = 0",
    ),
    // Side tables, in every shape.
    ("first-use", "", "SELECT agent_id, event_id FROM events WHERE decision = 'allow' AND first_seen_agent_tool_action = ts"),
    (
        "first-use-suppressed",
        "suppress: 4s\n",
        "SELECT agent_id, event_id, first_seen_agent AS since FROM events WHERE first_seen_agent_tool_action = ts AND first_seen_agent < ts",
    ),
    (
        "first-use-sliding",
        "",
        "SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events \
         WHERE first_seen_agent_tool_action = ts \
         WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '10' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= 2",
    ),
    (
        "first-use-stepped",
        "",
        "SELECT agent_id, event_id FROM events w WHERE decision = 'deny' AND NOT EXISTS \
         (SELECT 1 FROM events d WHERE d.agent_id = w.agent_id AND d.first_seen_agent_tool_action = d.ts)",
    ),
    (
        "first-use-deferred",
        "",
        "SELECT agent_id, event_id FROM events QUALIFY first_seen_agent_tool_action = ts AND count(*) FILTER (WHERE decision = 'deny') \
         OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN CURRENT ROW AND INTERVAL '1' SECOND FOLLOWING) = 0",
    ),
    ("baseline", "", "SELECT agent_id, event_id FROM events WHERE decision = 'deny' AND baseline_hourly_uses >= 2"),
    (
        "baseline-sliding",
        "suppress: 4s\n",
        "SELECT agent_id, event_id, count(*) OVER w AS n, baseline_active_hours AS hours FROM events WHERE baseline_hourly_uses < 5 \
         WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '3' SECOND PRECEDING AND CURRENT ROW) \
         QUALIFY n >= baseline_hourly_uses",
    ),
    // A use that comes late takes it away.
    ("never-used", "", "SELECT agent_id, event_id FROM events WHERE decision = 'deny' AND first_seen_agent_tool_action IS NULL"),
];
/// Nothing of these is in the log that shows that the others are not silent.
const SILENT_THERE: [&str; 2] = ["stepped-absence", "never-used"];

const LATENESS_S: i64 = 6;

fn rule_text(index: usize) -> String {
    let (name, extra, query) = RULES[index];
    format!(
        "/* rule\nid: T-{index}\nname: {name}\nversion: 1\nseverity: low\nwindow: 10s\nkey: [agent_id]\nmode: active\nrequires: any\n{extra}\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-22, note: first}}\n*/\n{query}\n"
    )
}

fn rules() -> RuleSet {
    RuleSet::from_texts((0..RULES.len()).map(|i| (format!("{i}/rule.sql").into(), rule_text(i)))).unwrap()
}

fn engine() -> Engine {
    engine_by(Arc::new(ManualClock::new(Timestamp::from_micros(START))))
}

fn engine_by(clock: Arc<dyn Clock>) -> Engine {
    let mut config = EngineConfig::new(clock);
    config.lateness_s = LATENESS_S;
    Engine::new(rules(), config)
}

/// Makes now one rule and now another look as if it took its time: it rests after that, for longer than a tick of all of them takes.
#[derive(Debug)]
struct SlowRules(AtomicI64);

impl Clock for SlowRules {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(START + self.0.fetch_add(1, Ordering::Relaxed) / 7 * 20_000)
    }
}

/// One event of a random log: how far time has moved, how late it comes, and what it says.
#[derive(Clone, Debug)]
struct Step {
    forward: i64,
    late: i64,
    tenant: u8,
    agent: u8,
    deny: bool,
    repeat: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    (0..4i64, prop_oneof![3 => Just(0i64), 2 => 0..9i64], 0..2u8, 0..2u8, any::<bool>(), prop::bool::weighted(0.1))
        .prop_map(|(forward, late, tenant, agent, deny, repeat)| Step { forward, late, tenant, agent, deny, repeat })
}

fn log_of(steps: &[Step]) -> Vec<SecurityEvent> {
    // A few seconds before an hour ends.
    let mut second = 3_590;
    let mut log: Vec<SecurityEvent> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        second += step.forward;
        if step.repeat
            && let Some(last) = log.last().cloned()
        {
            log.push(last);
            continue;
        }
        let tenant = TenantId::new(["a", "b"][usize::from(step.tenant)]).unwrap();
        let ts = Timestamp::from_micros(START + (second - step.late) * 1_000_000);
        let mut event = SecurityEvent::new(tenant, "edge", "edge", EventKind::AuthorizeDecision, ts);
        event.lane = Some(format!("{}.edge.1", event.tenant_id));
        event.verified = true;
        // The same ids in both tenants: nothing but the tenant may keep them apart.
        event.event_id = uuid::Uuid::from_u128(index as u128 + 1);
        event.agent_id = Some(format!("agent-{}", step.agent));
        event.tool = Some(format!("tool-{}", step.agent));
        event.action = Some(format!("action-{}", step.late % 3));
        event.run_id = Some(format!("run-{}", step.late % 2));
        event.decision = Some(if step.deny { Decision::Deny } else { Decision::Allow });
        event.data_access = Some(if step.deny { DataAccess::Sensitive } else { DataAccess::None });
        event.destination = Some(Destination::External);
        event.receipt_hash = Some(format!("{index:064x}"));
        event.bus_ts = Some(Timestamp::from_micros(START + second * 1_000_000));
        log.push(event);
    }
    log
}

#[derive(Default)]
struct Standing {
    emitted: BTreeSet<String>,
    retracted: BTreeSet<String>,
    alerts: Vec<Alert>,
}

impl Standing {
    fn take(&mut self, output: TickOutput) {
        assert!(output.quarantined.is_empty(), "{:?}", output.quarantined);
        for alert in output.alerts {
            assert!(!self.retracted.contains(&alert.alert_id), "a retracted alert came back");
            assert_eq!(alert.receipt_hashes.len(), alert.event_ids.len(), "only the ends of its evidence: {alert:?}");
            self.emitted.insert(alert.alert_id.clone());
            self.alerts.push(alert);
        }
        for retraction in output.retractions {
            assert!(self.emitted.contains(&retraction.alert_id), "retracted, but never emitted");
            assert!(self.retracted.insert(retraction.alert_id), "retracted twice");
        }
    }

    fn ids(&self) -> BTreeSet<(String, String)> {
        let stands = |a: &&Alert| !self.retracted.contains(&a.alert_id);
        self.alerts.iter().filter(stands).map(|a| (a.rule_name.clone(), a.alert_id.clone())).collect()
    }
}

fn run(log: &[SecurityEvent], cuts: &[usize]) -> BTreeSet<(String, String)> {
    run_on(engine(), log, cuts)
}

fn run_on(mut engine: Engine, log: &[SecurityEvent], cuts: &[usize]) -> BTreeSet<(String, String)> {
    let mut standing = Standing::default();
    let mut from = 0;
    for cut in cuts.iter().copied().chain([log.len()]) {
        if cut > from {
            standing.take(engine.tick(log[from..cut].to_vec()));
            from = cut;
        }
    }
    standing.take(engine.finish());
    standing.ids()
}

/// The log as a lake gives it back: tenant by tenant, each event once and in the order of events, with what was late said of it; and of the columns
/// those alone that the rules read, beside what an alert shows.
fn as_a_lake_has_it(log: &[SecurityEvent]) -> Vec<SecurityEvent> {
    let mut watermarks = Watermarks::default();
    let mut events: Vec<SecurityEvent> = Vec::new();
    for event in log {
        let late = !watermarks.admit(event, LATENESS_S * 1_000_000);
        events.push(SecurityEvent { late, ..event.clone() });
    }
    events.sort_by(|a, b| (&a.tenant_id, a.order_key()).cmp(&(&b.tenant_id, b.order_key())));
    events.dedup_by(|a, b| a.tenant_id == b.tenant_id && a.order_key() == b.order_key());
    let mut columns = rules().columns_read();
    columns.insert("receipt_hash");
    let places: Vec<usize> = columns.iter().map(|name| events_schema().index_of(name).unwrap()).collect();
    let rows = EventBatch::new(events.into_iter().map(Arc::new).collect()).to_record_batch().unwrap();
    events_of(&rows.project(&places).unwrap()).unwrap().into_iter().map(Arc::unwrap_or_clone).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn l_replay_any_batching_finds_the_same_alerts(
        steps in prop::collection::vec(any_step(), 1..40),
        mut cuts in prop::collection::vec(0..40usize, 0..12),
    ) {
        let log = log_of(&steps);
        cuts.retain(|c| *c <= log.len());
        cuts.sort_unstable();
        let at_once = run(&log, &[]);
        prop_assert_eq!(&run(&log, &cuts), &at_once);
        let each: Vec<usize> = (0..log.len()).collect();
        prop_assert_eq!(&run(&log, &each), &at_once);
    }

    #[test]
    fn l_replay_the_order_of_events_finds_the_same_alerts(
        steps in prop::collection::vec(any_step(), 1..40),
        mut cuts in prop::collection::vec(0..40usize, 0..12),
    ) {
        let log = log_of(&steps);
        let lake = as_a_lake_has_it(&log);
        cuts.retain(|cut| *cut <= lake.len());
        cuts.sort_unstable();
        // What detection says of itself names the first of what was late, by the order in which it came.
        let told = |ids: BTreeSet<(String, String)>| -> BTreeSet<(String, String)> {
            ids.into_iter().filter(|(rule, _)| rule != IMPAIRED_NAME).collect()
        };
        prop_assert_eq!(told(run_on(engine().in_order(), &lake, &cuts)), told(run(&log, &[])));
    }

    #[test]
    fn l_replay_a_restart_from_a_checkpoint_finds_the_same_alerts(
        steps in prop::collection::vec(any_step(), 2..40),
        stop in 0..40usize,
        written in 0..40usize,
    ) {
        let log = log_of(&steps);
        // The checkpoint was written at `written`; the process went on to `stop` and was killed there.
        let written = written % log.len();
        let stop = written + stop % (log.len() - written + 1);
        let mut first = engine();
        let mut standing = Standing::default();
        let mut taken = Vec::new();
        for event in &log[..written] {
            let output = first.tick(vec![event.clone()]);
            if output.late.is_empty() {
                taken.push(event.clone());
            }
            standing.take(output);
        }
        let checkpoint = serde_json::to_string(&first.checkpoint()).unwrap();
        // What the windows still need: a rule was shown it, and it is not older than the horizon.
        taken.retain(|e| first.horizon(&e.tenant_id).is_none_or(|horizon| e.ts >= horizon));
        let lost = first.tick(log[written..stop].to_vec());

        let mut second = engine();
        second.restore(serde_json::from_str(&checkpoint).unwrap(), taken, true);
        let again = second.tick(log[written..stop].to_vec());
        let ids = |o: &TickOutput| o.alerts.iter().map(|a| a.alert_id.clone()).collect::<BTreeSet<_>>();
        prop_assert_eq!(ids(&lost), ids(&again), "a replayed part raises the alerts it raised before");
        standing.take(again);
        standing.take(second.tick(log[stop..].to_vec()));
        standing.take(second.finish());
        prop_assert_eq!(standing.ids(), run(&log, &[]));
    }

    #[test]
    fn l_replay_rules_that_rest_find_the_same_alerts(steps in prop::collection::vec(any_step(), 1..40), caught_up in 0..40usize) {
        let log = log_of(&steps);
        let mut engine = engine_by(Arc::new(SlowRules(AtomicI64::new(0))));
        let mut standing = Standing::default();
        for (place, event) in log.iter().enumerate() {
            standing.take(engine.tick(vec![event.clone()]));
            if place == caught_up {
                standing.take(engine.catch_up());
                prop_assert!(!engine.is_behind());
            }
        }
        standing.take(engine.finish());
        prop_assert_eq!(standing.ids(), run(&log, &[]));
    }

    #[test]
    fn a_restart_without_its_windows_takes_back_nothing_that_was_told(
        steps in prop::collection::vec(any_step(), 2..40),
        written in 0..40usize,
    ) {
        let log = log_of(&steps);
        let written = written % log.len();
        let mut first = engine();
        let mut told = BTreeSet::new();
        let mut taken_back = BTreeSet::new();
        for event in &log[..written] {
            let output = first.tick(vec![event.clone()]);
            told.extend(output.alerts.into_iter().map(|a| a.alert_id));
            taken_back.extend(output.retractions.into_iter().map(|r| r.alert_id));
        }
        let mut second = engine();
        second.restore(serde_json::from_value(serde_json::to_value(first.checkpoint()).unwrap()).unwrap(), Vec::new(), false);
        for output in [second.tick(log[written..].to_vec()), second.finish()] {
            for retraction in output.retractions {
                prop_assert!(!told.contains(&retraction.alert_id) || taken_back.contains(&retraction.alert_id));
            }
        }
    }

    #[test]
    fn l_tenant_one_run_over_all_is_the_union_of_the_runs_over_each(steps in prop::collection::vec(any_step(), 1..40)) {
        let log = log_of(&steps);
        let mut union = BTreeSet::new();
        for tenant in ["a", "b"] {
            let own: Vec<SecurityEvent> = log.iter().filter(|e| e.tenant_id.as_str() == tenant).cloned().collect();
            union.extend(run(&own, &[]));
        }
        prop_assert_eq!(run(&log, &[]), union);
    }
}

#[test]
fn the_laws_are_not_kept_by_silence() {
    let steps: Vec<Step> = (0..30)
        .map(|i| Step { forward: 2, late: if i % 7 == 3 { 5 } else { 0 }, tenant: 0, agent: 0, deny: i % 3 != 0, repeat: false })
        .collect();
    let mut slow = engine_by(Arc::new(SlowRules(AtomicI64::new(0))));
    let put_off = log_of(&steps).into_iter().filter(|event| {
        slow.tick(vec![event.clone()]);
        slow.is_behind()
    });
    assert!(put_off.count() > 5, "rules that cost much do not rest");
    let fired: BTreeSet<String> = run(&log_of(&steps), &[]).into_iter().map(|(rule, _)| rule).collect();
    let all: BTreeSet<String> = RULES.iter().map(|r| r.0.to_owned()).filter(|r| !SILENT_THERE.contains(&r.as_str())).collect();
    assert!(fired.is_superset(&all), "{fired:?}");
}

#[test]
fn a_row_pattern_that_costs_too_much_is_given_up_and_said_to_be() {
    // Each row can be taken in two ways, and the end depends on which: two to the power of the rows.
    let query = "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
                 PATTERN ((a | b)+ c) DEFINE c AS c.tool = CAST(count(a.*) AS text))";
    let text = |id: &str, query: &str| {
        let name = format!("name: {}", id.to_lowercase());
        rule_text(0).replace("id: T-0", &format!("id: {id}")).replace("name: stateless", &name).replace(RULES[0].2, query)
    };
    let texts = [("bomb/rule.sql".into(), text("BOMB", query)), ("other/rule.sql".into(), text("OTHER", RULES[0].2))];
    let rules = RuleSet::from_texts(texts).unwrap();
    let mut engine = Engine::new(rules, EngineConfig::new(Arc::new(ManualClock::new(Timestamp::from_micros(START)))));
    let steps: Vec<Step> =
        (0..40).map(|_| Step { forward: 0, late: 0, tenant: 0, agent: 0, deny: true, repeat: false }).collect();
    let output = engine.tick(log_of(&steps));
    assert!(output.quarantined.is_empty());
    let (of_itself, of_rules): (Vec<Alert>, Vec<Alert>) =
        output.alerts.into_iter().partition(|alert| alert.rule_id == IMPAIRED_RULE);
    assert!(of_rules.iter().all(|alert| alert.rule_name == "other") && !of_rules.is_empty(), "the other rule goes on");
    assert_eq!(of_itself.iter().map(|alert| &alert.key["rule"]).collect::<Vec<_>>(), ["BOMB"]);
    let stats = engine.stats();
    let bomb = stats.iter().find(|stats| stats.rule_id == "BOMB").unwrap();
    assert!(bomb.overruns > 0 && bomb.overrun.as_ref().is_some_and(|said| said.contains("agent-0")), "{bomb:?}");
    assert!(stats.iter().all(|stats| stats.rule_id == "BOMB" || stats.overruns == 0));
}

#[test]
fn a_late_event_that_contradicts_a_match_retracts_its_alert() {
    let at = |second: i64, id: u128, bus: i64| {
        let ts = Timestamp::from_micros(START + second * 1_000_000);
        let mut event = SecurityEvent::new(TenantId::new("a").unwrap(), "edge", "edge", EventKind::AuthorizeDecision, ts);
        event.lane = Some(format!("{}.edge.1", event.tenant_id));
        event.verified = true;
        event.event_id = uuid::Uuid::from_u128(id);
        event.agent_id = Some("agent".into());
        event.bus_ts = Some(Timestamp::from_micros(START + bus * 1_000_000));
        event
    };
    let with = |decision: Decision, mut event: SecurityEvent| {
        event.decision = Some(decision);
        event
    };
    let mut engine = engine();
    // An allowed call without a deny before it is a match of `stepped-absence`; then the deny before it arrives.
    let first = engine.tick(vec![with(Decision::Allow, at(100, 1, 100))]);
    let alert = first.alerts.iter().find(|a| a.rule_name == "stepped-absence").expect("the match").alert_id.clone();
    let second = engine.tick(vec![with(Decision::Deny, at(98, 2, 101))]);
    assert!(second.retractions.is_empty(), "it could still come back, so it is not retracted yet");
    // Time passes, and with it every event that could bring the match back.
    let third = engine.tick(vec![with(Decision::Deny, at(140, 3, 140))]);
    assert!(third.retractions.iter().any(|r| r.alert_id == alert), "{third:?}");
    // What comes now for that time is late, and says so.
    let late = SecurityEvent { verified: false, ..at(101, 4, 141) };
    let fourth = engine.tick(vec![with(Decision::Allow, late)]);
    assert_eq!(fourth.late.len(), 1);
    assert!(fourth.alerts.is_empty());
}

/// A proved decision about one agent, stored by the bus at another time than its own.
fn event(tenant: &str, decision: Decision, second: i64, id: u128, bus: i64) -> SecurityEvent {
    let ts = Timestamp::from_micros(START + second * 1_000_000);
    let mut event = SecurityEvent::new(TenantId::new(tenant).unwrap(), "edge", "edge", EventKind::AuthorizeDecision, ts);
    event.lane = Some(format!("{}.edge.1", event.tenant_id));
    event.verified = true;
    event.event_id = uuid::Uuid::from_u128(id);
    event.agent_id = Some("agent".into());
    event.decision = Some(decision);
    event.bus_ts = Some(Timestamp::from_micros(START + bus * 1_000_000));
    event
}

#[test]
fn what_one_tenant_lacks_after_a_restart_leaves_the_others_as_they_are() {
    let mut first = engine();
    let told = first.tick(vec![event("a", Decision::Allow, 100, 1, 100), event("b", Decision::Allow, 100, 2, 100)]).alerts;
    let absence_of = |tenant: &str| {
        let is_it = |a: &&Alert| a.rule_name == "stepped-absence" && a.tenant_id.as_str() == tenant;
        told.iter().find(is_it).expect("a match").alert_id.clone()
    };
    // In both, a late event contradicts it.
    let denies = vec![event("a", Decision::Deny, 98, 3, 101), event("b", Decision::Deny, 98, 4, 101)];
    assert!(first.tick(denies).retractions.is_empty());

    let mut second = engine();
    let of_b = vec![event("b", Decision::Allow, 100, 2, 100), event("b", Decision::Deny, 98, 4, 101)];
    second.restore_cut(first.checkpoint(), of_b, &|tenant| tenant.as_str() == "a");
    let output = second.tick(vec![event("a", Decision::Deny, 140, 5, 140), event("b", Decision::Deny, 140, 6, 140)]);
    let retracted: BTreeSet<String> = output.retractions.into_iter().map(|r| r.alert_id).collect();
    assert!(retracted.contains(&absence_of("b")), "all of it is known: {retracted:?}");
    assert!(!retracted.contains(&absence_of("a")), "what said otherwise may be what is gone");
}

#[test]
fn what_a_quota_takes_from_one_tenant_leaves_the_others_as_they_are_after_a_restart() {
    let engine = || {
        let mut config = EngineConfig::new(Arc::new(ManualClock::new(Timestamp::from_micros(START))));
        config.lateness_s = 6;
        config.quotas = Quotas { events_per_key: 5, ..Quotas::default() };
        Engine::new(rules(), config)
    };
    let allowed = ["few", "many"].into_iter().zip(1..).map(|(tenant, id)| event(tenant, Decision::Allow, 100, id, 100));
    let mut log: Vec<SecurityEvent> = allowed.collect();
    let mut first = engine();
    let told = first.tick(log.clone()).alerts;
    let absence_of = |tenant: &str| {
        let is_it = |a: &&Alert| a.rule_name == "stepped-absence" && a.tenant_id.as_str() == tenant;
        told.iter().find(is_it).expect("a match").alert_id.clone()
    };
    // In both, a late event contradicts it; of one there is more than a key may have.
    let mut more = vec![event("few", Decision::Deny, 98, 3, 101), event("many", Decision::Deny, 98, 4, 101)];
    more.extend((5..12).map(|id| event("many", Decision::Allow, 102, id, 102)));
    assert!(first.tick(more.clone()).retractions.is_empty());
    log.extend(more);

    let mut second = engine();
    second.restore(first.checkpoint(), log, true);
    let output = second.tick(vec![event("few", Decision::Deny, 140, 20, 140), event("many", Decision::Deny, 140, 21, 140)]);
    let retracted: BTreeSet<String> = output.retractions.into_iter().map(|r| r.alert_id).collect();
    assert!(retracted.contains(&absence_of("few")), "all of it is known: {retracted:?}");
    assert!(!retracted.contains(&absence_of("many")), "what said otherwise is given up");
}
