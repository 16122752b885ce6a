//! Rules over history: what they would have told, by day and by key, with samples, and what that costs. The same engine as live, over events in
//! the order in which the bus had them; two versions of a rule are compared by the alerts they stand by.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use aegis_model::{Alert, Clock, EventId, SecurityEvent, TenantId, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::engine::{Engine, EngineConfig, TickOutput};
use crate::evaluate::RuleStats;
use crate::impaired::IMPAIRED_RULE;
use crate::ruleset::RuleSet;
use crate::side::{HISTORY_S, Sides};

/// Events of one tick.
const TICK: usize = 2048;
/// Tenants of whom nothing follows are let go together: so many, or as soon as so many events came.
const ENDED_TOGETHER: usize = 64;
const EVENTS_TOGETHER: usize = 65_536;
/// Alerts that are shown of a rule, and evidence that is listed of each.
const SAMPLES: usize = 5;
const EVIDENCE: usize = 10;
/// Keys that are listed of a rule.
const TOP: usize = 10;

/// An alert that a rule would have raised.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Told {
    pub alert_id: String,
    pub rule_id: String,
    pub tenant_id: String,
    pub key: Map<String, Value>,
    pub first_ts: Timestamp,
    pub last_ts: Timestamp,
    /// The first of them.
    pub event_ids: Vec<EventId>,
    /// How many there are.
    pub evidence: usize,
}

impl Told {
    fn of(alert: Alert) -> Self {
        Self {
            evidence: alert.event_ids.len(),
            event_ids: alert.event_ids.into_iter().take(EVIDENCE).collect(),
            alert_id: alert.alert_id,
            rule_id: alert.rule_id,
            tenant_id: alert.tenant_id.to_string(),
            key: alert.key,
            first_ts: alert.first_ts,
            last_ts: alert.last_ts,
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule_id, tenant_id, key, first_ts, last_ts, evidence, event_ids, .. } = self;
        let key = Value::Object(key.clone());
        write!(f, "{last_ts}  {rule_id}  tenant {tenant_id}  {key}  {evidence} events since {first_ts}")?;
        event_ids.iter().try_for_each(|id| write!(f, "\n      {id}"))
    }
}

/// What one rule came to.
#[derive(Clone, Debug, Serialize)]
pub struct RuleResult {
    pub rule_id: String,
    pub name: String,
    /// Alerts that stand.
    pub alerts: u64,
    /// Alerts that were told, and taken back when an event came late.
    pub retracted: u64,
    /// Standing alerts by day (UTC) of their last evidence.
    pub by_day: BTreeMap<String, u64>,
    /// The keys with most of them.
    pub top: Vec<(String, u64)>,
    pub samples: Vec<Told>,
    /// Events that passed the rule's own filter.
    pub relevant: u64,
    /// Time spent on the rule, and that for each event of the log.
    pub seconds: f64,
    pub micros_per_event: f64,
    /// Events that its quotas refused or gave up: with any, live would tell less too.
    pub over_quota: u64,
    /// Events at the end of what is known whose rows are not decided: their frames end later.
    pub undecided: u64,
    /// Why it stopped before the end.
    pub quarantined: Option<String>,
}

/// What a set of rules came to.
#[derive(Clone, Debug, Serialize)]
pub struct BacktestReport {
    /// Events of the log that were looked at, those before `from` that fill the windows included.
    pub events: u64,
    /// Events that came too late to count, or observations that are too far ahead.
    pub late: u64,
    /// Events of the same part of the log whose text is not there any more: no rule saw them.
    pub gone: u64,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    pub rules: Vec<RuleResult>,
    /// All alerts that stand, by id.
    #[serde(skip)]
    pub standing: BTreeMap<String, Told>,
}

/// Rules on their way through history.
#[derive(Debug)]
pub struct Backtest {
    engine: Engine,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    /// All events up to here are shown.
    known_to: Timestamp,
    /// Events come in the order of events; what the bus stored up to then is all known.
    in_order: bool,
    stored_to: Option<Timestamp>,
    waiting: Vec<Arc<SecurityEvent>>,
    /// Tenants of whom nothing follows, and how many events came since such were let go.
    ended: BTreeSet<TenantId>,
    since: usize,
    events: u64,
    late: u64,
    gone: u64,
    standing: BTreeMap<String, Told>,
    retracted: BTreeMap<String, u64>,
}

impl Backtest {
    /// Counts the alerts whose last evidence lies in `[from, to)`. Disabled rules run too.
    #[must_use]
    pub fn new(mut rules: RuleSet, clock: Arc<dyn Clock>, from: Option<Timestamp>, to: Option<Timestamp>) -> Self {
        rules.enable_all();
        // What is to come no history has.
        let now = clock.now();
        let known_to = to.map_or(now, |to| Self::needs_to(&rules, Arc::clone(&clock), to).min(now));
        let engine = Engine::new(rules, EngineConfig::new(clock));
        let (standing, retracted) = (BTreeMap::new(), BTreeMap::new());
        let (in_order, stored_to) = (false, None);
        let (waiting, ended, since) = (Vec::new(), BTreeSet::new(), 0);
        let (events, late, gone) = (0, 0, 0);
        Self { engine, from, to, known_to, in_order, stored_to, waiting, ended, since, events, late, gone, standing, retracted }
    }

    /// The same over each tenant's events in the order of events, each of which says whether it was late: as a lake has them. It has all that the bus
    /// stored up to `stored_to`, and up to the newest event that is shown: what it may not have yet is not told to be missing.
    #[must_use]
    pub fn in_order(self, stored_to: Option<Timestamp>) -> Self {
        Self { engine: self.engine.in_order(), in_order: true, stored_to, ..self }
    }

    /// Since when events are needed: those before `from` fill the windows, and side tables, which look back much further.
    #[must_use]
    pub fn needs_from(rules: &RuleSet, clock: Arc<dyn Clock>, from: Timestamp) -> Timestamp {
        let remembered = if rules.reads_sides() { HISTORY_S } else { 0 };
        from.plus_seconds(-(rules.looks_back_s() + EngineConfig::new(clock).lateness_s + remembered))
    }

    /// Up to when events are needed: those from `to` on decide what did not follow. Without a rule whose frames end after their row, `to`.
    #[must_use]
    pub fn needs_to(rules: &RuleSet, clock: Arc<dyn Clock>, to: Timestamp) -> Timestamp {
        match rules.reaches_ahead() {
            0 => to,
            ahead => to.plus_micros(ahead).plus_seconds(EngineConfig::new(clock).lateness_s),
        }
    }

    /// Events from `to` on are not shown.
    pub(crate) fn know_to(&mut self, to: Timestamp) {
        self.known_to = self.known_to.min(to);
    }

    /// The side tables, as they are filled.
    pub(crate) fn sides(&self) -> Sides {
        Arc::clone(&self.engine.sides)
    }

    /// The next event, in the order in which the bus had them; or in the order of events, where they were said to be in it.
    pub fn take(&mut self, event: SecurityEvent) {
        self.take_shared(Arc::new(event));
    }

    /// The same of an event that others have too.
    pub fn take_shared(&mut self, event: Arc<SecurityEvent>) {
        self.events += 1;
        self.since += 1;
        self.stored_to = self.stored_to.max(event.bus_ts);
        self.waiting.push(event);
        if self.waiting.len() >= TICK {
            self.tick();
        }
    }

    /// Nothing of this tenant follows any more: what is kept of it goes, at once or soon.
    pub fn end_of(&mut self, tenant: &TenantId) {
        self.ended.insert(tenant.clone());
        if self.ended.len() < ENDED_TOGETHER && self.since < EVENTS_TOGETHER {
            return;
        }
        self.since = 0;
        self.tick();
        let (ended, known_to) = (std::mem::take(&mut self.ended), self.known());
        let output = self.engine.finish_of(&ended, known_to);
        self.note(output);
    }

    /// So many more events came, and no rule looks at any of them (see `Sieve`).
    pub fn pass(&mut self, events: u64) {
        self.events += events;
    }

    /// So many more events would have come, and cannot.
    pub fn miss(&mut self, events: u64) {
        self.gone += events;
    }

    /// Up to when all events are known.
    fn known(&self) -> Timestamp {
        match self.stored_to {
            Some(stored_to) if self.in_order => self.known_to.min(stored_to),
            _ => self.known_to,
        }
    }

    fn tick(&mut self) {
        let events = std::mem::take(&mut self.waiting);
        let output = self.engine.tick_shared(events);
        self.note(output);
    }

    fn note(&mut self, output: TickOutput) {
        self.late += output.late.len() as u64 + output.ahead;
        // What it says of itself stands in the numbers.
        for alert in output.alerts.into_iter().filter(|alert| alert.rule_id != IMPAIRED_RULE) {
            let is_within = self.from.is_none_or(|from| alert.last_ts >= from) && self.to.is_none_or(|to| alert.last_ts < to);
            if is_within {
                self.standing.insert(alert.alert_id.clone(), Told::of(alert));
            }
        }
        for retraction in output.retractions {
            if self.standing.remove(&retraction.alert_id).is_some() {
                *self.retracted.entry(retraction.rule_id).or_default() += 1;
            }
        }
    }

    /// Nothing follows any more.
    #[must_use]
    pub fn finish(mut self) -> BacktestReport {
        self.tick();
        let known_to = self.known();
        let output = self.engine.finish_at(known_to);
        self.note(output);
        let rules = self.engine.stats().into_iter().map(|stats| self.result_of(stats)).collect();
        let Self { from, to, events, late, gone, standing, .. } = self;
        BacktestReport { events, late, gone, from, to, rules, standing }
    }

    fn result_of(&self, stats: RuleStats) -> RuleResult {
        let mut by_day = BTreeMap::new();
        let mut by_key: BTreeMap<String, u64> = BTreeMap::new();
        let mut own: Vec<&Told> = self.standing.values().filter(|told| told.rule_id == stats.rule_id).collect();
        own.sort_by(|a, b| (a.last_ts, &a.alert_id).cmp(&(b.last_ts, &b.alert_id)));
        for told in &own {
            *by_day.entry(told.last_ts.to_rfc3339().chars().take(10).collect()).or_default() += 1;
            *by_key.entry(Value::Object(told.key.clone()).to_string()).or_default() += 1;
        }
        let mut top: Vec<(String, u64)> = by_key.into_iter().collect();
        top.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        top.truncate(TOP);
        RuleResult {
            alerts: own.len() as u64,
            retracted: self.retracted.get(&stats.rule_id).copied().unwrap_or(0),
            by_day,
            top,
            samples: own.into_iter().take(SAMPLES).cloned().collect(),
            relevant: stats.relevant,
            seconds: stats.seconds,
            micros_per_event: if self.events == 0 { 0.0 } else { stats.seconds * 1e6 / self.events as f64 },
            over_quota: stats.refused + stats.given_up,
            undecided: stats.undecided,
            quarantined: stats.quarantined,
            rule_id: stats.rule_id,
            name: stats.name,
        }
    }
}

impl BacktestReport {
    /// What is to be said of the events that no rule saw, if there are any.
    #[must_use]
    pub fn said_of_gone(&self) -> Option<String> {
        let said = || format!("gone: {} events, whose text is not there any more: no rule saw them", self.gone);
        (self.gone > 0).then(said)
    }

    /// What `self` stands by and `other` does not.
    #[must_use]
    pub fn beyond(&self, other: &Self) -> Vec<&Told> {
        let mut only: Vec<&Told> = self.standing.values().filter(|told| !other.standing.contains_key(&told.alert_id)).collect();
        only.sort_by(|a, b| (a.last_ts, &a.alert_id).cmp(&(b.last_ts, &b.alert_id)));
        only
    }
}

impl fmt::Display for BacktestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.rules {
            writeln!(f, "{} {}: {} alerts, {} retracted", rule.rule_id, rule.name, rule.alerts, rule.retracted)?;
            writeln!(
                f,
                "  cost      {:.3} s, {:.2} us an event; {} events passed its filter",
                rule.seconds, rule.micros_per_event, rule.relevant
            )?;
            if let Some(reason) = &rule.quarantined {
                writeln!(f, "  STOPPED   {reason}")?;
            }
            if rule.over_quota > 0 {
                writeln!(f, "  quotas    {} events were more than it may keep", rule.over_quota)?;
            }
            if rule.undecided > 0 {
                writeln!(f, "  undecided {} events at the end: what follows them is not known yet", rule.undecided)?;
            }
            for (day, alerts) in &rule.by_day {
                writeln!(f, "  {day}  {alerts}")?;
            }
            for (key, alerts) in &rule.top {
                writeln!(f, "  top       {alerts:>6}  {key}")?;
            }
            for told in &rule.samples {
                writeln!(f, "  sample    {told}")?;
            }
        }
        if let Some(said) = self.said_of_gone() {
            writeln!(f, "{said}")?;
        }
        write!(f, "events: {} ({} late) · alerts: {}", self.events, self.late, self.standing.len())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::{Decision, EventKind, ManualClock};

    const START: i64 = 1_767_225_600_000_000;

    fn rule(version: u32, denies: u32) -> String {
        format!(
            "/* rule\nid: T-1\nname: storm\nversion: {version}\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: disabled\nrequires: any\n\
             suppress: 10m\nowner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: {version}, date: 2026-11-22, note: n}}\n*/\n\
             SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = 'deny' \
             WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) \
             QUALIFY n >= {denies}\n"
        )
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_micros(START + second * 1_000_000)
    }

    /// Denies of two agents: one has three in a minute on the first day, the other five on the second.
    fn log() -> Vec<SecurityEvent> {
        let deny = |agent: &str, second: i64| {
            let mut event =
                SecurityEvent::new(TenantId::new("a").unwrap(), "e", "edge", EventKind::AuthorizeDecision, at(second));
            event.event_id = uuid::Uuid::from_u128(second.unsigned_abs().into());
            event.agent_id = Some(agent.to_owned());
            event.decision = Some(Decision::Deny);
            event.bus_ts = Some(at(second));
            event
        };
        let first = (0..3).map(|n| deny("one", 100 + n));
        first.chain((0..5).map(|n| deny("two", 86_400 + n))).collect()
    }

    fn run(denies: u32, from: Option<Timestamp>, to: Option<Timestamp>) -> BacktestReport {
        let rules = RuleSet::from_texts([("r/rule.sql".into(), rule(1, denies))]).unwrap();
        let mut backtest = Backtest::new(rules, Arc::new(ManualClock::new(at(0))), from, to);
        log().into_iter().for_each(|event| backtest.take(event));
        backtest.finish()
    }

    #[test]
    fn a_backtest_says_when_and_for_whom_a_rule_would_have_told() {
        let report = run(3, None, None);
        let result = &report.rules[0];
        assert_eq!((report.events, result.alerts, result.relevant), (8, 2, 8));
        assert_eq!(
            result.by_day.iter().map(|(day, n)| (day.as_str(), *n)).collect::<Vec<_>>(),
            [("2026-01-01", 1), ("2026-01-02", 1)]
        );
        assert_eq!(result.top, [(r#"{"agent_id":"one"}"#.to_owned(), 1), (r#"{"agent_id":"two"}"#.to_owned(), 1)]);
        assert_eq!((result.samples[0].evidence, result.samples[0].last_ts), (3, at(102)));
        let text = report.to_string();
        assert!(
            text.contains("T-1 storm: 2 alerts")
                && text.contains("2026-01-02  1")
                && text.ends_with("events: 8 (0 late) · alerts: 2"),
            "{text}"
        );
    }

    #[test]
    fn a_tenant_of_whom_nothing_follows_is_let_go_and_what_was_told_of_it_stands() {
        let tenants: Vec<TenantId> = (0..ENDED_TOGETHER + 3).map(|n| TenantId::new(&format!("t{n}")).unwrap()).collect();
        let run = |ends: bool| {
            let rules = RuleSet::from_texts([("r/rule.sql".into(), rule(1, 3))]).unwrap();
            let mut backtest = Backtest::new(rules, Arc::new(ManualClock::new(at(200_000))), None, None);
            for tenant in &tenants {
                log().into_iter().for_each(|event| backtest.take(SecurityEvent { tenant_id: tenant.clone(), ..event }));
                backtest.tick();
                if ends {
                    backtest.end_of(tenant);
                }
            }
            let kept: usize = backtest.engine.rules.iter().map(|running| running.state.event_count()).sum();
            (kept, backtest.finish())
        };
        let ((kept, ended), (all_kept, whole)) = (run(true), run(false));
        assert_eq!((ended.standing.len(), ended.events, ended.late), (2 * tenants.len(), whole.events, whole.late));
        assert_eq!(ended.standing, whole.standing);
        // Those that came after the last that were let go together.
        assert_eq!(kept * tenants.len(), all_kept * 3, "{kept} of {all_kept}");
    }

    #[test]
    fn what_no_rule_saw_is_counted_and_said() {
        let rules = RuleSet::from_texts([("r/rule.sql".into(), rule(1, 3))]).unwrap();
        let mut backtest = Backtest::new(rules, Arc::new(ManualClock::new(at(0))), None, None);
        log().into_iter().for_each(|event| backtest.take(event));
        backtest.miss(2);
        backtest.miss(1);
        let report = backtest.finish();
        assert_eq!((report.events, report.gone, serde_json::to_value(&report).unwrap()["gone"].as_u64()), (8, 3, Some(3)));
        let text = report.to_string();
        assert!(text.contains("\ngone: 3 events, whose text is not there any more: no rule saw them\nevents: 8 "), "{text}");
        assert!(!run(3, None, None).to_string().contains("gone"));
    }

    #[test]
    fn only_what_lies_between_from_and_to_counts() {
        let counted = |from, to| run(3, from, to).standing.len();
        assert_eq!(counted(Some(at(102)), Some(at(86_402))), 1);
        assert_eq!(counted(Some(at(103)), None), 1);
        assert_eq!(counted(None, Some(at(102))), 0);
    }

    #[test]
    fn what_follows_the_end_of_what_is_known_decides_nothing() {
        let text = rule(1, 3);
        let (header, _) = text.split_once("SELECT").unwrap();
        let query = "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts \
                     RANGE BETWEEN INTERVAL '1 microsecond' FOLLOWING AND INTERVAL '60' SECOND FOLLOWING) = 0";
        let run = |now: i64, to: Option<i64>| {
            let rules = RuleSet::from_texts([("r/rule.sql".into(), format!("{header}{query}\n"))]).unwrap();
            let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(at(now)));
            let needed = to.map(|to| Backtest::needs_to(&rules, Arc::clone(&clock), at(to)));
            let mut backtest = Backtest::new(rules, clock, None, to.map(at));
            log().into_iter().filter(|e| needed.is_none_or(|needed| e.ts < needed)).for_each(|event| backtest.take(event));
            let report = backtest.finish();
            (report.rules[0].alerts, report.rules[0].undecided)
        };
        // The last event of each agent, a minute and the lateness after it.
        assert_eq!(run(86_404 + 60 + 120, None), (1, 1));
        assert_eq!(run(86_404 + 60 + 121, None), (2, 0));
        // The first agent's last is at 102; what is after that is read, but for the other agent's day.
        assert_eq!(run(100_000, Some(103)), (1, 0));
        assert_eq!(run(200, Some(103)), (0, 3));
    }

    #[test]
    fn two_versions_are_compared_by_the_alerts_they_stand_by() {
        let (wide, narrow) = (run(3, None, None), run(5, None, None));
        let dropped = wide.beyond(&narrow);
        assert_eq!(dropped.iter().map(|told| told.key["agent_id"].as_str().unwrap()).collect::<Vec<_>>(), ["one"]);
        assert!(narrow.beyond(&wide).is_empty());
    }
}
