//! The engine: events in stream order in, alerts and retractions out, tick by tick.
//! Promises law 8 (live equals replay): the alerts that stand at the end are a function of the log, not of how it was cut into
//! ticks. Never reads a clock for anything but statistics and `detected_at`; a rule that fails is quarantined, the others go on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use aegis_canon::CanonError;
use aegis_model::{Alert, Clock, EventId, Retraction, RuleMode, SecurityEvent, TenantId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::alert::alert_of;
use crate::alerts::{alerts_of, row_of};
use crate::deferred::By;
use crate::episode::{Emission, Episode, KeyRules};
use crate::error::DetectError;
use crate::evaluate::{Must, RuleStats, RunningRule, TouchedKeys};
use crate::impaired::Impaired;
use crate::lost::Lost;
use crate::output::Evidence;
use crate::own::OwnWindows;
use crate::plan::RulePlan;
use crate::rule::Rule;
use crate::ruleset::RuleSet;
use crate::schema::EventBatch;
use crate::scope::Scope;
use crate::shape::Shape;
use crate::side::{Changes, SideTables, Sides};
use crate::verify::is_ahead_of_time;
use crate::watermark::Watermarks;
use crate::window::{Quotas, SavedKeys};

/// Settings of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// How far behind its tenant's watermark an event may be and still count.
    pub lateness_s: i64,
    pub quotas: Quotas,
    /// Longest time that one rule may take for one tick, in milliseconds; beyond it the rule is quarantined.
    pub rule_budget_ms: i64,
    /// False: no query is followed, each is run over all of its window. For tests, which hold one against the other.
    pub incremental: bool,
    pub clock: Arc<dyn Clock>,
}

impl EngineConfig {
    /// Two minutes of lateness, ten seconds of budget.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { lateness_s: 120, quotas: Quotas::default(), rule_budget_ms: 10_000, incremental: true, clock }
    }
}

/// An episode as it now is: how often the rule matched for the key, and when last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpisodeUpdate {
    /// The alert that opened it.
    pub alert_id: String,
    pub tenant_id: TenantId,
    pub rule_id: String,
    pub key: Map<String, Value>,
    pub count: u64,
    pub last_ts: Timestamp,
    pub last_event_id: EventId,
}

/// What a tick found.
#[derive(Debug, Default)]
pub struct TickOutput {
    pub alerts: Vec<Alert>,
    pub retractions: Vec<Retraction>,
    /// Episodes of two matches and more that changed.
    pub episodes: Vec<EpisodeUpdate>,
    /// Events that came after the watermark minus the lateness: not looked at.
    pub late: Vec<EventId>,
    /// How many of those had proved themselves.
    pub late_verified: u64,
    /// Observations of a time more than five minutes after the bus had them: not looked at, like the late ones. What else is ahead so far is not
    /// either, and has a `receipt_chain_broken` that says so.
    pub ahead: u64,
    /// Rules that stopped in this tick.
    pub quarantined: Vec<DetectError>,
}

impl TickOutput {
    /// Adds what was found after it.
    pub fn append(&mut self, mut later: Self) {
        self.alerts.append(&mut later.alerts);
        self.retractions.append(&mut later.retractions);
        self.episodes.append(&mut later.episodes);
        self.late.append(&mut later.late);
        self.late_verified += later.late_verified;
        self.ahead += later.ahead;
        self.quarantined.append(&mut later.quarantined);
    }
}

/// All rules over all tenants.
#[derive(Debug)]
pub struct Engine {
    pub(crate) rules: Vec<RunningRule>,
    pub(crate) watermarks: Watermarks,
    /// Per tenant: up to where its state was settled.
    pub(crate) settled: HashMap<TenantId, Timestamp>,
    /// Up to when events may be gone that rules would look back to.
    pub(crate) lost: Lost,
    /// What was told, behind the checkpoint that it was restored from, by rules that it does not have yet.
    pub(crate) told: Vec<Alert>,
    /// Up to which time of the log it was looked for rows that nothing but the log's time decides.
    pub(crate) looked: Option<Timestamp>,
    /// What was told of detection itself.
    impaired: Impaired,
    pub(crate) sides: Sides,
    /// How far back rules look.
    pub(crate) windows: OwnWindows,
    /// Events come in the order of events, and say themselves whether they are late.
    pub(crate) in_order: bool,
    pub(crate) config: EngineConfig,
}

/// The part of an engine that the stream cannot give back; with the events of the window it is the whole state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineCheckpoint {
    watermarks: Watermarks,
    settled: BTreeMap<TenantId, Timestamp>,
    /// By rule id, of a tenant's own rule behind the tenant's: the rule's hash and its keys.
    rules: BTreeMap<String, (String, SavedKeys)>,
    /// One of before has none.
    #[serde(default)]
    impaired: Impaired,
    #[serde(default)]
    sides: SideTables,
    /// One of before has none.
    #[serde(default)]
    lost: Lost,
    /// What rules know that read alerts.
    #[serde(default)]
    alerts: Vec<SecurityEvent>,
}

/// Events that a rule looks at at once.
const EVENTS_OF_A_LOOK: usize = 2048;

/// A tenant's state is settled again when its watermark has moved this far.
const SETTLE_STEP_MICROS: i64 = 5_000_000;
impl Engine {
    /// An engine without state. Disabled rules are left out.
    #[must_use]
    pub fn new(rules: RuleSet, config: EngineConfig) -> Self {
        let running = rules.into_planned().filter(|(rule, _)| rule.header.mode != RuleMode::Disabled);
        let plan_of = |plan: RulePlan| if config.incremental { plan } else { plan.without_pipeline() };
        let sides = Sides::default();
        let mut rules: Vec<_> =
            running.map(|(rule, plan)| RunningRule::new(rule, plan_of(plan), Scope::default(), Arc::clone(&sides))).collect();
        // Who reads alerts comes after those that it reads.
        rules.sort_by_key(|running| running.plan.level);
        let (watermarks, impaired) = (Watermarks::default(), Impaired::default());
        let windows = OwnWindows::of(&rules);
        Self {
            rules,
            watermarks,
            settled: HashMap::new(),
            lost: Lost::default(),
            told: Vec::new(),
            looked: None,
            impaired,
            sides,
            windows,
            in_order: false,
            config,
        }
    }

    /// Takes the next events of the stream, in stream order, and answers what follows from them.
    pub fn tick(&mut self, events: Vec<SecurityEvent>) -> TickOutput {
        self.tick_shared(events.into_iter().map(Arc::new).collect())
    }

    /// The same of events that others have too.
    pub(crate) fn tick_shared(&mut self, events: Vec<Arc<SecurityEvent>>) -> TickOutput {
        let mut output = TickOutput::default();
        let mut in_time = Vec::with_capacity(events.len());
        let mut tenants = BTreeSet::new();
        let (shared, mut changes) = (Arc::clone(&self.sides), Changes::default());
        // No rule is added where a finished log is gone through.
        let has_sides = !self.in_order || self.rules.iter().any(|running| running.plan.reads_sides);
        let mut sides = shared.write();
        for event in events {
            let is_in_time = self.admit(&event);
            if is_ahead_of_time(&event) {
                // Nothing of the present is in such a window, and nothing would end it.
                output.ahead += u64::from(event.lane.is_none() && event.kind.is_external());
            } else if is_in_time {
                tenants.insert(event.tenant_id.clone());
                if has_sides {
                    sides.take(&event, self.config.quotas, &mut changes);
                }
                in_time.push(event);
            } else {
                self.note_late(&event, &mut output);
            }
        }
        drop(sides);
        self.rules.iter_mut().for_each(|running| running.look_again(&changes));
        let due = tenants.into_iter().filter_map(|tenant| self.settles_at(&tenant).map(|final_before| (tenant, final_before)));
        let due: Vec<(TenantId, Timestamp)> = due.collect();
        let must = due.iter().map(|(tenant, _)| tenant.clone()).collect();
        let batch = (!in_time.is_empty()).then(|| Arc::new(EventBatch::new(in_time)));
        if batch.is_some() || self.is_behind() {
            self.evaluate(batch.as_ref(), Must::Of(&must), &mut output);
        }
        for (tenant, final_before) in &due {
            self.decide(tenant, *final_before, By::Watermark, &mut output);
        }
        self.tell_impaired(batch.as_ref().map(|batch| batch.rows()).unwrap_or_default(), &mut output);
        for (tenant, final_before) in due {
            self.settle(&tenant, final_before, &mut output);
            self.sides.write().forget(&tenant, final_before);
            self.settled.insert(tenant, final_before);
        }
        output
    }

    /// No rule looks at an event that came too late. Of one that proved itself somebody has to know.
    fn note_late(&mut self, event: &SecurityEvent, output: &mut TickOutput) {
        if event.verified && event.lane.is_some() {
            output.late_verified += 1;
            output.alerts.extend(self.impaired.of_late(event, self.config.clock.now()));
        }
        output.late.push(event.event_id);
    }

    /// Says what rules did not look at, and for whom of the tick's tenants they do not look at anything any more.
    pub(crate) fn tell_impaired(&mut self, taken: &[Arc<SecurityEvent>], output: &mut TickOutput) {
        if !self.rules.iter().any(RunningRule::is_impaired) {
            return;
        }
        let now = self.config.clock.now();
        let Self { rules, watermarks, impaired, .. } = self;
        let newest = newest_of_each(taken);
        for running in rules.iter_mut().filter(|running| running.is_impaired()) {
            for loss in running.losses.take() {
                let bus_time = watermarks.bus_time(&loss.tenant);
                output.alerts.extend(impaired.of_rule(&running.rule.header, &loss.tenant, loss.cause, &loss.at, bus_time, now));
            }
            for (tenant, event) in &newest {
                for cause in running.impaired_for(tenant) {
                    let (at, bus_time) = (Evidence::of(event), watermarks.bus_time(tenant));
                    output.alerts.extend(impaired.of_rule(&running.rule.header, tenant, cause, &at, bus_time, now));
                }
            }
        }
    }

    /// Up to where a tenant's state is to be settled now, if it is.
    fn settles_at(&self, tenant: &TenantId) -> Option<Timestamp> {
        let final_before = self.watermarks.final_before(tenant, self.lateness_micros())?;
        let moved = |last: &Timestamp| final_before.as_micros().saturating_sub(last.as_micros()) >= SETTLE_STEP_MICROS;
        self.settled.get(tenant).is_none_or(moved).then_some(final_before)
    }

    /// What follows from the events that rules have not looked at yet: a costly one waits a little, to look at more of them at once.
    pub fn catch_up(&mut self) -> TickOutput {
        let mut output = TickOutput::default();
        self.evaluate(None, Must::All, &mut output);
        self.tell_impaired(&[], &mut output);
        output
    }

    /// True if rules have not looked at everything yet.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.rules.iter().any(RunningRule::is_behind)
    }

    /// Counters per rule.
    #[must_use]
    pub fn stats(&self) -> Vec<RuleStats> {
        self.rules.iter().map(|r| RuleStats { kept: r.state.event_count() as u64, ..r.stats.clone() }).collect()
    }

    /// Events of the tenant older than this are needed for no match that can still change. None: all may be.
    #[must_use]
    pub fn horizon(&self, tenant: &TenantId) -> Option<Timestamp> {
        Some(self.settled.get(tenant)?.plus_micros(-self.windows.longest(tenant)))
    }

    /// What has to be kept, beside the events of the window, to go on after a restart. Not while it `is_behind`.
    #[must_use]
    pub fn checkpoint(&self) -> EngineCheckpoint {
        self.checkpoint_without(&BTreeSet::new())
    }

    /// The same, where what was told of all tenants' keys, and what the side tables have, is not more than so many bytes: that of those who have most
    /// is left out, and they are told. After a restart their agents are new to the side tables, an alert of theirs may be raised again, and nothing is
    /// taken back that was told before; no event is missed.
    pub fn checkpoint_within(&mut self, most_bytes: usize) -> EngineCheckpoint {
        let left_out = self.heaviest_beyond(most_bytes);
        let sides = self.sides.read();
        for running in &mut self.rules {
            let reads_sides = running.plan.reads_sides;
            let has = |tenant: &&TenantId| running.state.tenants.contains_key(*tenant) || (reads_sides && sides.knows(tenant));
            running.unwritten = left_out.iter().filter(has).cloned().collect();
        }
        drop(sides);
        self.checkpoint_without(&left_out)
    }

    /// The tenants of whom most was told, so that of the others it is not more than so many bytes.
    fn heaviest_beyond(&self, most_bytes: usize) -> BTreeSet<TenantId> {
        let sides = self.sides.read();
        let mut of_each: BTreeMap<&TenantId, usize> = BTreeMap::new();
        let of_rules = self.rules.iter().flat_map(|running| running.state.told_bytes().chain(running.alert_bytes()));
        for (tenant, bytes) in of_rules.chain(sides.bytes()) {
            *of_each.entry(tenant).or_default() += bytes;
        }
        let mut total: usize = of_each.values().sum();
        let mut by_weight: Vec<(usize, &TenantId)> = of_each.into_iter().map(|(tenant, bytes)| (bytes, tenant)).collect();
        by_weight.sort_unstable();
        let mut heaviest = BTreeSet::new();
        while total > most_bytes {
            let Some((bytes, tenant)) = by_weight.pop() else { break };
            total -= bytes;
            heaviest.insert(tenant.clone());
        }
        heaviest
    }

    fn checkpoint_without(&self, left_out: &BTreeSet<TenantId>) -> EngineCheckpoint {
        debug_assert!(!self.is_behind());
        let saved = |r: &RunningRule| (r.saved_as(), (r.rule.hash.clone(), r.state.save_keys(left_out)));
        let rules = self.rules.iter().map(saved).collect();
        let settled = self.settled.iter().map(|(t, ts)| (t.clone(), *ts)).collect();
        let (impaired, sides) = (self.impaired.clone(), self.sides.read().without(left_out));
        let (alerts, lost) = (alerts_of(&self.rules, left_out), self.lost.clone());
        EngineCheckpoint { watermarks: self.watermarks.clone(), settled, rules, impaired, sides, lost, alerts }
    }

    /// Goes on from a checkpoint. `events` are those that had been taken in time, from each tenant's `horizon` on, or more; where some of them
    /// are not there any more (not `whole`), no alert is taken back that was told before.
    /// A rule that was changed since starts without matches, over the same events.
    pub fn restore(&mut self, checkpoint: EngineCheckpoint, events: Vec<SecurityEvent>, whole: bool) {
        self.restore_cut(checkpoint, events, &|_| !whole);
    }

    /// The same, where only of some tenants (`is_cut`) not all events are there.
    pub fn restore_cut(&mut self, checkpoint: EngineCheckpoint, events: Vec<SecurityEvent>, is_cut: &dyn Fn(&TenantId) -> bool) {
        let Self { watermarks, lost, .. } = self;
        *watermarks = checkpoint.watermarks;
        // What was lost before an earlier restart is so after this one.
        *lost = checkpoint.lost;
        for tenant in watermarks.tenants().filter(|tenant| is_cut(tenant)) {
            if let Some(to) = watermarks.bus_time(tenant) {
                lost.add(tenant, to);
            }
        }
        self.settled = checkpoint.settled.into_iter().collect();
        self.impaired = checkpoint.impaired;
        *self.sides.write() = checkpoint.sides;
        let batch = Arc::new(EventBatch::new(events.into_iter().map(Arc::new).collect()));
        let alerts = Arc::new(EventBatch::new(checkpoint.alerts.into_iter().map(Arc::new).collect()));
        let mut saved = checkpoint.rules;
        let quotas = self.config.quotas;
        for running in &mut self.rules {
            let batch = if running.plan.sources.is_some() { &alerts } else { &batch };
            let told = saved.remove(&running.saved_as()).filter(|(hash, _)| *hash == running.rule.hash);
            let rebuilt = guarded(running, |running| match told {
                Some((_, told)) => running.rebuild(batch, told, &self.settled, is_cut, quotas),
                None => running.keep_only(batch, &self.settled, quotas),
            });
            if let Err(error) = rebuilt {
                running.quarantine(&error);
            }
            // What is lost only now is told with the next tick; what was told before is known from the checkpoint.
        }
    }

    /// The log that is read begins at this time of the bus, and did not always: events of before are gone.
    pub(crate) fn lose_before(&mut self, bus_ts: Timestamp) {
        self.lost.add_all_before(bus_ts);
    }

    pub(crate) fn lateness_micros(&self) -> i64 {
        self.config.lateness_s.saturating_mul(1_000_000)
    }

    pub(crate) fn evaluate(&mut self, batch: Option<&Arc<EventBatch>>, must: Must<'_>, output: &mut TickOutput) {
        let (quotas, clock, lost) = (self.config.quotas, Arc::clone(&self.config.clock), &self.lost);
        for running in self.rules.iter_mut().filter(|r| r.stats.quarantined.is_none() && r.plan.sources.is_none()) {
            let mut ready = Vec::new();
            let (mut result, mut spent) = running.timed(clock.as_ref(), |running| {
                guarded(running, |running| {
                    batch.map_or(Ok(()), |batch| running.wait(batch))?;
                    ready = running.ready(clock.now(), must);
                    Ok(())
                })
            });
            let ran = !ready.is_empty();
            // As many at a time as a tick has: a key's quota is for what was looked at, and the budget for one look.
            let mut ready = ready.into_iter();
            let mut longest = 0;
            while result.is_ok() && longest <= self.config.rule_budget_ms.saturating_mul(1000) {
                let events: Vec<_> = ready.by_ref().take(EVENTS_OF_A_LOOK).collect();
                if events.is_empty() {
                    break;
                }
                let (looked, micros) = running.timed(clock.as_ref(), |running| {
                    guarded(running, |running| {
                        let keys = running.evaluate(events, quotas)?;
                        let told = output.alerts.len();
                        let emitted = emit(running, keys, quotas, clock.now(), output);
                        running.withhold(&mut output.alerts[told..], lost);
                        emitted
                    })
                });
                (result, longest, spent) = (looked, longest.max(micros), spent.saturating_add(micros));
            }
            if ran {
                running.rest(spent, clock.now());
            }
            stop_if_failed(running, result, longest, self.config.rule_budget_ms, output);
        }
    }

    pub(crate) fn settle(&mut self, tenant: &TenantId, final_before: Timestamp, output: &mut TickOutput) {
        let now = self.config.clock.now();
        self.lost.forget(tenant, final_before.plus_micros(-self.windows.longest(tenant)));
        let mut alerts: Vec<Arc<SecurityEvent>> = Vec::new();
        for running in &mut self.rules {
            if running.plan.sources.is_some() {
                running.take_alerts(&alerts, &self.config, output);
            }
            let (window_micros, settled_to) = (running.window_micros(), running.settled_to(final_before));
            let RunningRule { rule, plan, state, stats, .. } = running;
            let Some(tenant_state) = state.tenants.get_mut(tenant) else { continue };
            let rules = key_rules(rule, plan, tenant);
            // A deferred rule's matches come as much later.
            let decided_before = settled_to.plus_micros(-plan.reach.ahead);
            tenant_state.each_key(|key| {
                let Ok(retracted) = key.settle(rules, decided_before) else { return };
                alerts.extend(key.take_finals().iter().map(|told| Arc::new(row_of(rule, tenant, key.key(), told))));
                stats.retractions += retracted.len() as u64;
                output.retractions.extend(retracted.into_iter().map(|alert_id| Retraction {
                    alert_id,
                    tenant_id: tenant.clone(),
                    rule_id: rule.header.id.clone(),
                    detected_at: now,
                }));
            });
            state.expire(tenant, settled_to.plus_micros(-window_micros), window_micros);
        }
    }
}

/// Does something with a rule. An operator that panics must not take the other rules with it.
pub(crate) fn guarded(
    running: &mut RunningRule,
    work: impl FnOnce(&mut RunningRule) -> Result<(), DetectError>,
) -> Result<(), DetectError> {
    catch_unwind(AssertUnwindSafe(|| work(running))).unwrap_or_else(|_| {
        Err(DetectError::Output { rule: running.rule.header.id.clone(), reason: "the query engine panicked".into() })
    })
}

/// Says why tenants were set aside, and stops a rule that failed, or took longer for one look than it may.
pub(crate) fn stop_if_failed(
    running: &mut RunningRule,
    result: Result<(), DetectError>,
    longest: i64,
    budget_ms: i64,
    output: &mut TickOutput,
) {
    output.quarantined.extend(running.failures());
    let failure = match result {
        Ok(()) => over_budget(running, longest, budget_ms),
        Err(error) => Some(error),
    };
    if let Some(error) = failure {
        running.quarantine(&error);
        output.quarantined.push(error);
    }
}

/// The error of a look that took longer than it may.
pub(crate) fn over_budget(running: &RunningRule, micros: i64, budget_ms: i64) -> Option<DetectError> {
    let error = || DetectError::Output {
        rule: running.rule.header.id.clone(),
        reason: format!("one look took {} ms, the budget is {budget_ms} ms", micros / 1000),
    };
    (micros > budget_ms.saturating_mul(1000)).then(error)
}

/// Of each tenant the newest of these events, in the order of events.
fn newest_of_each(events: &[Arc<SecurityEvent>]) -> BTreeMap<&TenantId, &SecurityEvent> {
    let mut newest: BTreeMap<&TenantId, &SecurityEvent> = BTreeMap::new();
    for event in events {
        let known = newest.entry(&event.tenant_id).or_insert(event);
        if known.order_key() < event.order_key() {
            *known = event;
        }
    }
    newest
}

pub(crate) fn key_rules<'a>(rule: &'a Rule, plan: &RulePlan, tenant: &'a TenantId) -> KeyRules<'a> {
    KeyRules {
        tenant,
        rule_id: &rule.header.id,
        window_micros: rule.header.window_s * 1_000_000,
        suppress_micros: rule.header.suppress_s.map(|s| s * 1_000_000),
        keeps_details: plan.shape == Shape::Stateless,
        is_read: plan.is_read,
    }
}

/// Emits what is new for the touched keys.
pub(crate) fn emit(
    running: &mut RunningRule,
    keys: TouchedKeys,
    quotas: Quotas,
    now: Timestamp,
    output: &mut TickOutput,
) -> Result<(), DetectError> {
    for (tenant, bucket, text) in keys {
        let mut emission = emit_key(running, &tenant, &bucket, &text)?;
        if !emission.wanted.is_empty() {
            let found = match running.find_again(&tenant, &bucket, &text, &emission.wanted) {
                Ok(found) => found,
                Err(error) => {
                    running.set_aside(&tenant, error, None)?;
                    Vec::new()
                }
            };
            if let Some(key) = running.state.key_mut(&tenant, &bucket, &text) {
                key.supply(&emission.wanted, found);
            }
            let more = emit_key(running, &tenant, &bucket, &text)?;
            emission.fresh.extend(more.fresh);
        }
        let RunningRule { rule, plan, state, stats, .. } = running;
        stats.alerts += emission.fresh.len() as u64;
        output.alerts.extend(emission.fresh.iter().map(|(id, found)| alert_of(rule, &tenant, id, found, now)));
        let Some(key) = state.key_mut(&tenant, &bucket, &text) else { continue };
        let repeated = emission.episodes.into_iter().filter(|e| e.count > 1);
        output.episodes.extend(repeated.map(|episode| update_of(episode, &tenant, &rule.header.id, key.key().clone())));
        let surplus = key.settle_surplus(key_rules(rule, plan, &tenant), quotas.matches_per_key);
        stats.given_up += surplus.map_err(|error| not_canonical(rule, &error))? as u64;
    }
    Ok(())
}

/// What there is to say of one key.
fn emit_key(running: &mut RunningRule, tenant: &TenantId, bucket: &str, text: &str) -> Result<Emission, DetectError> {
    let RunningRule { rule, plan, state, .. } = running;
    let Some(key) = state.key_mut(tenant, bucket, text) else { return Ok(Emission::default()) };
    key.emit(key_rules(rule, plan, tenant)).map_err(|error| not_canonical(rule, &error))
}

fn not_canonical(rule: &Rule, error: &CanonError) -> DetectError {
    DetectError::Output { rule: rule.header.id.clone(), reason: format!("the key is not canonical: {error}") }
}

fn update_of(episode: Episode, tenant: &TenantId, rule_id: &str, key: Map<String, Value>) -> EpisodeUpdate {
    EpisodeUpdate {
        alert_id: episode.alert_id,
        tenant_id: tenant.clone(),
        rule_id: rule_id.to_owned(),
        key,
        count: episode.count,
        last_ts: episode.last_ts,
        last_event_id: episode.last_event_id,
    }
}
