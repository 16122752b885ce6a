//! Rules over history: what they would have told, by day and by key, with samples, and what that costs. The same engine as live, over events in
//! the order in which the bus had them; two versions of a rule are compared by the alerts they stand by.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use aegis_model::{Alert, Clock, EventId, SecurityEvent, TenantId, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::alerts::Shown;
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
    /// The same as whole alerts, where that is asked for.
    whole: Option<BTreeMap<String, Alert>>,
    retracted: BTreeMap<String, u64>,
}

impl Backtest {
    /// Counts the alerts whose last evidence lies in `[from, to)`. Disabled rules run too.
    #[must_use]
    pub fn new(mut rules: RuleSet, clock: Arc<dyn Clock>, from: Option<Timestamp>, to: Option<Timestamp>) -> Self {
        rules.enable_all();
        Self::of(rules, clock, from, to)
    }

    /// The same of rules as they are: a disabled one does not run.
    pub(crate) fn of(rules: RuleSet, clock: Arc<dyn Clock>, from: Option<Timestamp>, to: Option<Timestamp>) -> Self {
        // What is to come no history has.
        let now = clock.now();
        let known_to = to.map_or(now, |to| Self::needs_to(&rules, Arc::clone(&clock), to).min(now));
        let engine = Engine::new(rules, EngineConfig::new(clock));
        let (standing, retracted) = (BTreeMap::new(), BTreeMap::new());
        let (in_order, stored_to) = (false, None);
        let (waiting, ended, since) = (Vec::new(), BTreeSet::new(), 0);
        let (events, late, gone) = (0, 0, 0);
        let whole = None;
        Self {
            engine,
            from,
            to,
            known_to,
            in_order,
            stored_to,
            waiting,
            ended,
            since,
            events,
            late,
            gone,
            standing,
            whole,
            retracted,
        }
    }

    /// The same over each tenant's events in the order of events, each of which says whether it was late: as a lake has them. It has all that the bus
    /// stored up to `stored_to`, and up to the newest event that is shown: what it may not have yet is not told to be missing.
    #[must_use]
    pub fn in_order(self, stored_to: Option<Timestamp>) -> Self {
        Self { engine: self.engine.in_order(), in_order: true, stored_to, ..self }
    }

    /// The same, where what stands is asked for as it would be told (`finish_whole`).
    #[must_use]
    pub(crate) fn keep_whole(self) -> Self {
        Self { whole: Some(BTreeMap::new()), ..self }
    }

    /// The same, where a rule may take so many milliseconds for one look.
    #[must_use]
    pub(crate) fn with_rule_budget(mut self, budget_ms: i64) -> Self {
        self.engine.config.rule_budget_ms = budget_ms;
        self
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

    /// Has a rule that reads alerts remember what it is shown of some time, ends included.
    pub(crate) fn remember_shown(&mut self, rule_id: &str, from: Timestamp, to: Timestamp) {
        for running in self.engine.rules.iter_mut().filter(|running| running.rule.header.id == rule_id) {
            running.shown = Some(Shown { from, to, rows: Vec::new() });
        }
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
                if let Some(whole) = &mut self.whole {
                    whole.insert(alert.alert_id.clone(), alert.clone());
                }
                self.standing.insert(alert.alert_id.clone(), Told::of(alert));
            }
        }
        for retraction in output.retractions {
            if let Some(whole) = &mut self.whole {
                whole.remove(&retraction.alert_id);
            }
            if self.standing.remove(&retraction.alert_id).is_some() {
                *self.retracted.entry(retraction.rule_id).or_default() += 1;
            }
        }
    }

    /// Nothing follows any more.
    #[must_use]
    pub fn finish(self) -> BacktestReport {
        self.finish_with_shown().0
    }

    /// What stands, as it would be told, and which rules failed over it.
    pub(crate) fn finish_whole(mut self) -> (BTreeMap<String, Alert>, BTreeSet<String>) {
        self.end();
        let failed = self.engine.stats().into_iter().filter(|stats| stats.quarantined.is_some() || !stats.set_aside.is_empty());
        (self.whole.take().unwrap_or_default(), failed.map(|stats| stats.rule_id).collect())
    }

    fn end(&mut self) {
        self.tick();
        let known_to = self.known();
        let output = self.engine.finish_at(known_to);
        self.note(output);
    }

    /// The same, and what was remembered of alerts.
    pub(crate) fn finish_with_shown(mut self) -> (BacktestReport, Vec<Arc<SecurityEvent>>) {
        self.end();
        let shown =
            self.engine.rules.iter_mut().filter_map(|running| running.shown.take()).flat_map(|shown| shown.rows).collect();
        let rules = self.engine.stats().into_iter().map(|stats| self.result_of(stats)).collect();
        let Self { from, to, events, late, gone, standing, .. } = self;
        (BacktestReport { events, late, gone, from, to, rules, standing }, shown)
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
