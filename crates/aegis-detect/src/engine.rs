//! The engine: events in stream order in, alerts and retractions out, tick by tick.
//! Promises law 8 (live equals replay): the alerts that stand at the end are a function of the log, not of how it was cut into
//! ticks. Never reads a clock for anything but statistics and `detected_at`; a rule that fails is quarantined, the others go on.

mod emit;
mod look;
mod restart;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aegis_model::{Alert, Clock, EventId, Retraction, RuleMode, SecurityEvent, TenantId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::back::OwnWindows;
use crate::deferred::By;
use crate::error::DetectError;
use crate::evaluate::{Must, RuleStats, RunningRule, Tenants};
use crate::impaired::Impaired;
use crate::late::LateEvent;
use crate::looks::Looks;
use crate::lost::Lost;
use crate::name::SharedNames;
use crate::output::Evidence;
use crate::plan::RulePlan;
use crate::ruleset::RuleSet;
use crate::schema::EventBatch;
use crate::scope::Scope;
use crate::side::{Changes, Sides};
use crate::verify::is_ahead_of_time;
use crate::watermark::Watermarks;
use crate::window::{Hasher, Quotas};
pub(crate) use emit::{emit, key_rules};
pub(crate) use look::{guarded, over_budget, stop_if_failed};
pub use restart::EngineCheckpoint;

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
    /// Those of them that had proved themselves.
    pub late_proved: Vec<LateEvent>,
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
        self.late_proved.append(&mut later.late_proved);
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
    pub(crate) settled: Settled,
    /// Up to when events may be gone that rules would look back to.
    pub(crate) lost: Lost,
    /// What was told, behind the checkpoint that it was restored from, by rules that it does not have yet.
    pub(crate) told: Vec<Alert>,
    /// Up to which time of the log it was looked for rows that nothing but the log's time decides.
    pub(crate) looked: Option<Timestamp>,
    /// What was told of detection itself.
    impaired: Impaired,
    pub(crate) sides: Sides,
    /// What rules were shown of each lane.
    pub(crate) looks: Looks,
    pub(crate) names: SharedNames,
    /// How far back rules look.
    pub(crate) windows: OwnWindows,
    /// By rule id: the tenants that have one of their own under it, in place of what every tenant has.
    pub(crate) own_of: BTreeMap<String, BTreeSet<TenantId>>,
    /// Events come in the order of events, and say themselves whether they are late.
    pub(crate) in_order: bool,
    pub(crate) config: EngineConfig,
}

/// Of each tenant, up to where its state was settled.
pub(crate) type Settled = HashMap<TenantId, Timestamp, Hasher>;

/// A tenant's state is settled again when its watermark has moved this far.
const SETTLE_STEP_MICROS: i64 = 5_000_000;
impl Engine {
    /// An engine without state. Disabled rules are left out.
    #[must_use]
    pub fn new(rules: RuleSet, config: EngineConfig) -> Self {
        let running = rules.into_planned().filter(|(rule, _)| rule.header.mode != RuleMode::Disabled);
        let plan_of = |plan: RulePlan| if config.incremental { plan } else { plan.unfollowed() };
        let (sides, names) = (Sides::default(), SharedNames::default());
        let mut rules: Vec<_> = running
            .map(|(rule, plan)| RunningRule::new(rule, plan_of(plan), Scope::default(), Arc::clone(&sides), Arc::clone(&names)))
            .collect();
        // Who reads alerts comes after those that it reads.
        rules.sort_by_key(|running| running.plan.level);
        let (watermarks, impaired) = (Watermarks::default(), Impaired::default());
        rules.iter_mut().for_each(|running| running.is_of_program = true);
        let windows = OwnWindows::of(&rules);
        Self {
            rules,
            watermarks,
            settled: Settled::default(),
            lost: Lost::default(),
            told: Vec::new(),
            looked: None,
            impaired,
            sides,
            looks: Looks::default(),
            names,
            windows,
            own_of: BTreeMap::new(),
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
        let mut tenants = Tenants::default();
        let (shared, mut changes) = (Arc::clone(&self.sides), Changes::default());
        // No rule is added where a finished log is gone through.
        let has_sides = !self.in_order || self.rules.iter().any(|running| running.plan.reads_sides);
        let mut sides = shared.write();
        for event in events {
            let is_in_time = self.admit(&event);
            let is_ahead = is_ahead_of_time(&event);
            if !is_ahead && !self.in_order {
                self.looks.note(&event, !is_in_time);
            }
            if is_ahead {
                // Nothing of the present is in such a window, and nothing would end it.
                output.ahead += u64::from(event.lane.is_none() && event.kind.is_external());
            } else if is_in_time {
                if !tenants.contains(&event.tenant_id) {
                    tenants.insert(event.tenant_id.clone());
                }
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
        let mut due: Vec<(TenantId, Timestamp)> = due.collect();
        due.sort_unstable();
        let must: Tenants = due.iter().map(|(tenant, _)| tenant.clone()).collect();
        let batch = (!in_time.is_empty()).then(|| Arc::new(EventBatch::new(in_time)));
        if batch.is_some() || self.is_behind() {
            self.evaluate(batch.as_ref(), Must::Of(&must), &mut output);
        }
        self.decide_each(due.iter().map(|(tenant, final_before)| (tenant, *final_before)), By::Watermark, &mut output);
        self.tell_impaired(batch.as_ref().map(|batch| batch.rows()).unwrap_or_default(), &mut output);
        self.settle_to(due, &mut output);
        output
    }

    /// What was decided of each of these tenants, which are in order, before its time is final.
    fn settle_to(&mut self, due: Vec<(TenantId, Timestamp)>, output: &mut TickOutput) {
        self.settle(&due, output);
        let mut sides = self.sides.write();
        for (tenant, final_before) in due {
            sides.forget(&tenant, final_before);
            self.settled.insert(tenant, final_before);
        }
    }

    /// Decides what can be decided of a tenant now, wherever the log was cut, and makes it final: who reads a rule's alerts has those that are final before a
    /// record of rules. Answers up to where that is.
    pub(crate) fn settle_now(&mut self, tenant: &TenantId, output: &mut TickOutput) -> Option<Timestamp> {
        let final_before = self.watermarks.final_before(tenant, self.lateness_micros())?;
        self.decide(tenant, final_before, By::Watermark, output);
        if self.settled.get(tenant).is_none_or(|settled| *settled < final_before) {
            self.settle_to(vec![(tenant.clone(), final_before)], output);
        }
        Some(final_before)
    }

    /// No rule looks at an event that came too late. Of one that proved itself somebody has to know.
    fn note_late(&mut self, event: &SecurityEvent, output: &mut TickOutput) {
        if let Some(proved) = LateEvent::of(event) {
            output.late_proved.push(proved);
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
        let of_rule = |r: &RunningRule| RuleStats {
            kept: r.state.event_count() as u64,
            window_lost: self.lost_windows_of(r) as u64,
            window_unsaved: r.unsaved.len() as u64,
            ..r.stats.clone()
        };
        self.rules.iter().map(of_rule).collect()
    }

    /// Of how many tenants some of a longer window is gone: all of them, while the log that was read begins within it.
    fn lost_windows_of(&self, running: &RunningRule) -> usize {
        let begins = self.lost.before().zip(self.watermarks.log_time()).filter(|_| running.is_far());
        if begins.is_some_and(|(before, now)| before >= now.plus_micros(-running.window_micros())) {
            return self.watermarks.tenants().filter(|tenant| running.scope.covers(tenant)).count();
        }
        running.lacks.len()
    }

    /// Events of the tenant older than this are needed for no match that can still change, but for those that a checkpoint has. None: all may be.
    #[must_use]
    pub fn horizon(&self, tenant: &TenantId) -> Option<Timestamp> {
        Some(self.settled.get(tenant)?.plus_micros(-self.windows.held(tenant)))
    }

    pub(crate) fn lateness_micros(&self) -> i64 {
        self.config.lateness_s.saturating_mul(1_000_000)
    }
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
