//! Rules of every shape, small random logs for them, and which alerts stand after a log was run.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};

use aegis_detect::{Engine, EngineConfig, EventBatch, RuleSet, TickOutput, Watermarks, events_of, events_schema};
use aegis_model::{Alert, Clock, DataAccess, Decision, Destination, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};
use proptest::prelude::*;

use crate::standing::parts;

pub(super) const START: i64 = 1_767_225_600_000_000;

/// Rules of every shape, with windows that small logs fill.
pub(super) const RULES: [(&str, &str, &str); 22] = [
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
        // Finer partitions than the key; and a match goes on.
        "pattern-split-suppressed",
        "suppress: 4s\n",
        "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id, action ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
         PATTERN (d+ a*) DEFINE d AS d.decision = 'deny', a AS a.decision = 'allow')",
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
        "first-use-pattern",
        "",
        "SELECT agent_id, event_ids FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts \
         MEASURES array_agg(event_id) AS event_ids PATTERN (f d) \
         DEFINE f AS f.first_seen_agent_tool_action = f.ts, d AS d.decision = 'deny')",
    ),
    (
        "first-use-deferred",
        "",
        "SELECT agent_id, event_id FROM events QUALIFY first_seen_agent_tool_action = ts AND count(*) FILTER (WHERE decision = 'deny') \
         OVER (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN CURRENT ROW AND INTERVAL '1' SECOND FOLLOWING) = 0",
    ),
    (
        "first-use-by-user",
        "",
        "SELECT agent_id, event_id FROM events WHERE decision = 'allow' AND first_seen_user_tool_action = ts",
    ),
    (
        "first-use-by-anybody",
        "suppress: 4s\n",
        "SELECT agent_id, event_id, first_seen_user AS since FROM events WHERE decision = 'allow' AND first_seen_tool_action = ts",
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
pub(super) const SILENT_THERE: [&str; 2] = ["stepped-absence", "never-used"];

pub(super) const LATENESS_S: i64 = 6;

/// Tenants of logs, of which `any_step` has the first two. The fifth is of the first one's partition, the others have one each.
pub(super) const TENANTS: [&str; 6] = ["a", "b", "c", "d", "cv", "e"];

pub(super) fn rule_text(index: usize) -> String {
    let (name, extra, query) = RULES[index];
    format!(
        "/* rule\nid: T-{index}\nname: {name}\nversion: 1\nseverity: low\nwindow: 10s\nkey: [agent_id]\nmode: active\nrequires: any\n{extra}\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-22, note: first}}\n*/\n{query}\n"
    )
}

pub(super) fn rules() -> RuleSet {
    RuleSet::from_texts((0..RULES.len()).map(|i| (format!("{i}/rule.sql").into(), rule_text(i)))).unwrap()
}

/// Of the columns those that the rules read. Planning all of them takes longer than a log does.
static COLUMNS: LazyLock<BTreeSet<&'static str>> = LazyLock::new(|| rules().columns_read());

pub(super) fn engine() -> Engine {
    engine_by(Arc::new(ManualClock::new(Timestamp::from_micros(START))))
}

pub(super) fn engine_by(clock: Arc<dyn Clock>) -> Engine {
    let mut config = EngineConfig::new(clock);
    config.lateness_s = LATENESS_S;
    Engine::new(rules(), config)
}

/// Makes now one rule and now another look as if it took its time: it rests after that, for longer than a tick of all of them takes.
#[derive(Debug)]
pub(super) struct SlowRules(pub(super) AtomicI64);

impl Clock for SlowRules {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(START + self.0.fetch_add(1, Ordering::Relaxed) / 7 * 20_000)
    }
}

/// One event of a random log: how far time has moved, how late it comes, and what it says.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) forward: i64,
    pub(super) late: i64,
    pub(super) tenant: u8,
    pub(super) agent: u8,
    pub(super) deny: bool,
    pub(super) repeat: bool,
}

pub(super) fn any_step() -> impl Strategy<Value = Step> {
    any_step_of(2)
}

/// One of so many tenants.
pub(super) fn any_step_of(tenants: u8) -> impl Strategy<Value = Step> {
    (0..4i64, prop_oneof![3 => Just(0i64), 2 => 0..9i64], 0..tenants, 0..2u8, any::<bool>(), prop::bool::weighted(0.1))
        .prop_map(|(forward, late, tenant, agent, deny, repeat)| Step { forward, late, tenant, agent, deny, repeat })
}

pub(super) fn log_of(steps: &[Step]) -> Vec<SecurityEvent> {
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
        let tenant = TenantId::new(TENANTS[usize::from(step.tenant)]).unwrap();
        let ts = Timestamp::from_micros(START + (second - step.late) * 1_000_000);
        let mut event = SecurityEvent::new(tenant, "edge", "edge", EventKind::AuthorizeDecision, ts);
        event.lane = Some(format!("{}.edge.1", event.tenant_id));
        event.verified = true;
        // The same ids in both tenants: nothing but the tenant may keep them apart.
        event.event_id = uuid::Uuid::from_u128(index as u128 + 1);
        event.agent_id = Some(format!("agent-{}", step.agent));
        event.user_id = Some(format!("user-{}", (step.late + step.forward) % 2));
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
pub(super) struct Standing {
    emitted: BTreeSet<String>,
    retracted: BTreeSet<String>,
    alerts: Vec<Alert>,
}

impl Standing {
    pub(super) fn take(&mut self, output: TickOutput) {
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

    pub(super) fn ids(&self) -> BTreeSet<(String, String)> {
        let stands = |a: &&Alert| !self.retracted.contains(&a.alert_id);
        self.alerts.iter().filter(stands).map(|a| (a.rule_name.clone(), a.alert_id.clone())).collect()
    }
}

pub(super) fn run(log: &[SecurityEvent], cuts: &[usize]) -> BTreeSet<(String, String)> {
    run_on(engine(), log, cuts)
}

pub(super) fn run_on(mut engine: Engine, log: &[SecurityEvent], cuts: &[usize]) -> BTreeSet<(String, String)> {
    let mut standing = Standing::default();
    for part in parts(log, cuts) {
        standing.take(engine.tick(part.to_vec()));
    }
    standing.take(engine.finish());
    standing.ids()
}

/// The log as a lake gives it back: tenant by tenant, each event once and in the order of events, with what was late said of it; and of the columns
/// those alone that the rules read, beside what an alert shows.
pub(super) fn as_a_lake_has_it(log: &[SecurityEvent]) -> Vec<SecurityEvent> {
    let mut watermarks = Watermarks::default();
    let mut events: Vec<SecurityEvent> = Vec::new();
    for event in log {
        let late = !watermarks.admit(event, LATENESS_S * 1_000_000);
        events.push(SecurityEvent { late, ..event.clone() });
    }
    events.sort_by(|a, b| (&a.tenant_id, a.order_key()).cmp(&(&b.tenant_id, b.order_key())));
    events.dedup_by(|a, b| a.tenant_id == b.tenant_id && a.order_key() == b.order_key());
    let mut columns = COLUMNS.clone();
    columns.insert("receipt_hash");
    let places: Vec<usize> = columns.iter().map(|name| events_schema().index_of(name).unwrap()).collect();
    let rows = EventBatch::new(events.into_iter().map(Arc::new).collect()).to_record_batch().unwrap();
    events_of(&rows.project(&places).unwrap()).unwrap().into_iter().map(Arc::unwrap_or_clone).collect()
}
