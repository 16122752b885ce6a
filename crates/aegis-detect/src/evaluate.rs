//! One rule, one tick: keep what matters, run the plan over what was touched, and replace the matches of the touched instants.
//! The match set is a function of the log: a match at instant t depends on the events of the window that ends at t, no other.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use aegis_model::{Clock, SecurityEvent, TenantId, Timestamp};

use crate::alerts::Shown;
use crate::begun;
use crate::error::DetectError;
use crate::impaired::{Cause, Losses};
use crate::matter::Matter;
use crate::name::{Relevant, SharedNames};
use crate::output::Found;
use crate::plan::RulePlan;
use crate::rule::Rule;
use crate::schema::EventBatch;
use crate::scope::{Partitions, Scope, Since};
use crate::shape::Shape;
use crate::side::{Changes, Sides};
use crate::window::{Quotas, RuleState, Touched};

/// Counters of one rule, since it was loaded.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct RuleStats {
    pub rule_id: String,
    pub name: String,
    pub severity: String,
    /// The tenant whose own rule it is; none for one that every tenant has.
    pub tenant: Option<TenantId>,
    pub shape: Option<Shape>,
    /// How often the query was run.
    pub evals: u64,
    /// Time spent on the rule.
    pub seconds: f64,
    /// Events that passed the prefilter.
    pub relevant: u64,
    /// Rows that were matches, repeated ones included.
    pub matches: u64,
    pub alerts: u64,
    pub retractions: u64,
    /// Events of new keys that a full quota refused.
    pub refused: u64,
    /// Oldest events of a key that had to be given up.
    pub given_up: u64,
    /// Times that a row pattern gave up a start row, or a partition's: a match there may be missing.
    pub overruns: u64,
    /// The last of them.
    pub overrun: Option<String>,
    /// Events in the window now.
    pub kept: u64,
    /// Why the rule no longer runs.
    pub quarantined: Option<String>,
    /// Tenants for whose events it no longer runs, and why.
    pub set_aside: BTreeMap<TenantId, String>,
    /// Rows that were no match because their evidence is no event of the window.
    pub unfounded: u64,
    /// Events at the end of a log whose rows were not decided: what follows them is not known.
    pub undecided: u64,
    /// Tenants of whom the rule does not know all of its window yet, and tells nothing until it does: of a tenant's own 1 or 0, of one that every tenant has
    /// about a second late.
    pub warming: u64,
    /// Of a rule with a longer window than the stream is held: tenants of whom a restart lost some of it, which no row has left behind yet.
    pub window_lost: u64,
    /// Tenants of whom the last checkpoint had no room for all the events that the rule looks back to.
    pub window_unsaved: u64,
}

/// A rule with its plan and its state.
#[derive(Debug)]
pub(crate) struct RunningRule {
    pub(crate) rule: Rule,
    pub(crate) plan: RulePlan,
    pub(crate) scope: Scope,
    /// Tenants of whose own rules one reads its alerts.
    pub(crate) read_by: BTreeSet<TenantId>,
    /// A match of before is none: the rule was not there, or did not know all of its window.
    pub(crate) since: Since,
    /// True of the program's own text of a rule that every tenant has.
    pub(crate) is_of_program: bool,
    /// Of a tenant's own rule that was filled and acts before: from when on it knows its window by itself.
    pub(crate) whole: Option<Timestamp>,
    pub(crate) state: RuleState,
    pub(crate) stats: RuleStats,
    /// What all rules share.
    pub(crate) sides: Sides,
    pub(crate) names: SharedNames,
    /// Events that matter to the rule, and that it has not looked at yet; no list is empty.
    waiting: Vec<Arc<Matter>>,
    /// Why tenants were set aside, since the engine asked last.
    pub(crate) failures: Vec<DetectError>,
    /// What it did not look at, since the engine asked last.
    pub(crate) losses: Losses,
    /// Tenants of whom the last checkpoint had no room for what was told.
    pub(crate) unwritten: BTreeSet<TenantId>,
    /// Of a rule for whose window the stream is not held: of whom events are lacking since a restart, and up to when.
    pub(crate) lacks: BTreeMap<TenantId, Timestamp>,
    /// Of whom the last checkpoint had no room for all of them.
    pub(crate) unsaved: BTreeSet<TenantId>,
    /// It looks at them no earlier, by the clock: a rule that costs much runs less often, over more events at once.
    pub(crate) due: Timestamp,
    /// Of a rule that reads alerts and is to be explained: what it was shown of some time.
    pub(crate) shown: Option<Shown>,
}

/// A rule rests so many times as long as it ran, so that it takes a fiftieth of a core; and no longer than this, microseconds. Of one that
/// contains, somebody waits for what it says.
const REST: i64 = 49;
const LONGEST_REST: i64 = 2_000_000;
const LONGEST_REST_CONTAINING: i64 = 250_000;
/// Events that wait at most.
const MOST_WAITING: usize = 50_000;

/// What cannot wait.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Must<'a> {
    /// Events of these tenants: their time passes.
    Of(&'a Tenants),
    All,
}

/// Some tenants, of whom it is asked for each event whether its own is one of them.
pub(crate) type Tenants = HashSet<TenantId, ahash::RandomState>;

/// Which keys have to be looked at again after an evaluation.
pub(crate) type TouchedKeys = BTreeSet<(TenantId, String, String)>;

impl RunningRule {
    pub(crate) fn new(rule: Rule, mut plan: RulePlan, scope: Scope, sides: Sides, names: SharedNames) -> Self {
        plan.share_where(&scope, &mut names.lock().beginnings);
        let stats = RuleStats {
            rule_id: rule.header.id.clone(),
            name: rule.header.name.clone(),
            severity: rule.header.severity.to_string(),
            tenant: scope.owner().cloned(),
            shape: Some(plan.shape),
            ..RuleStats::default()
        };
        let always = Timestamp::from_micros(i64::MIN);
        let (waiting, since, due) = (Vec::new(), Since::default(), always);
        let (state, losses) = (RuleState::default(), Losses::default());
        Self {
            rule,
            plan,
            scope,
            read_by: BTreeSet::new(),
            since,
            is_of_program: false,
            whole: None,
            state,
            stats,
            sides,
            names,
            waiting,
            failures: Vec::new(),
            losses,
            unwritten: BTreeSet::new(),
            lacks: BTreeMap::new(),
            unsaved: BTreeSet::new(),
            due,
            shown: None,
        }
    }

    /// True for what this tenant has of its own under this id.
    pub(crate) fn is_own(&self, tenant: &TenantId, id: &str) -> bool {
        self.scope.owner() == Some(tenant) && self.rule.header.id == id
    }

    /// A rule that every tenant has is no longer for this one, which has its own. What was told stands.
    pub(crate) fn leave_out(&mut self, tenant: &TenantId) {
        if let Scope::AllBut { others, .. } = &mut self.scope {
            others.insert(tenant.clone());
            self.state.forget(tenant);
            self.stats.set_aside.remove(tenant);
            self.unwritten.remove(tenant);
            self.lacks.remove(tenant);
            self.unsaved.remove(tenant);
            drop(Matter::take(&mut self.waiting, |one| one.event.tenant_id == *tenant));
        }
    }

    /// True for what every tenant has under this id, the program's or an operator's.
    pub(crate) fn is_common(&self, id: &str) -> bool {
        self.scope.owner().is_none() && self.rule.header.id == id
    }

    /// A rule that every tenant has is no longer for those of some partitions, who have another in its place. What was told stands.
    pub(crate) fn leave(&mut self, partitions: Partitions) {
        if let Scope::AllBut { of, .. } = &mut self.scope {
            *of = of.without(partitions);
            let gone: Vec<TenantId> = self.state.tenants.keys().filter(|tenant| partitions.has_tenant(tenant)).cloned().collect();
            gone.iter().for_each(|tenant| self.state.forget(tenant));
            self.stats.set_aside.retain(|tenant, _| !partitions.has_tenant(tenant));
            self.unwritten.retain(|tenant| !partitions.has_tenant(tenant));
            self.lacks.retain(|tenant, _| !partitions.has_tenant(tenant));
            self.unsaved.retain(|tenant| !partitions.has_tenant(tenant));
            drop(Matter::take(&mut self.waiting, |one| partitions.has_tenant(&one.event.tenant_id)));
            self.since.leave(partitions);
        }
    }

    /// Its name in a checkpoint: a tenant's own rule may have the id of one that every tenant has, and of those several may stand at once, each in
    /// partitions of its own.
    pub(crate) fn saved_as(&self) -> String {
        let id = &self.rule.header.id;
        match self.scope.owner() {
            Some(tenant) => format!("{tenant}/{id}"),
            None if self.is_of_program => id.clone(),
            None => format!("{id}@{}", self.rule.hash),
        }
    }

    pub(crate) fn window_micros(&self) -> i64 {
        self.rule.header.window_s * 1_000_000
    }

    /// Takes the new events of a tick that matter to the rule.
    pub(crate) fn wait(&mut self, batch: &Arc<EventBatch>) -> Result<(), DetectError> {
        let relevant = self.relevant(batch)?;
        self.stats.relevant += relevant.events().len() as u64;
        self.waiting.extend(Some(relevant).filter(|relevant| !relevant.is_empty()));
        Ok(())
    }

    /// Of whom a side table says something else than before, it is to look again at the events that it has.
    pub(crate) fn look_again(&mut self, changes: &Changes) {
        if !self.plan.reads_sides {
            return;
        }
        self.stats.refused += changes.refused().len() as u64;
        changes.refused().iter().for_each(|(tenant, at)| self.losses.note_at(tenant, Cause::QuotaFull, at));
        for (tenant, agents) in changes.agents() {
            self.look_again_at(tenant, agents.values().min(), |event| agents.get(event.agent_id.as_ref()?));
        }
        for (tenant, users) in changes.users() {
            self.look_again_at(tenant, users.values().min(), |event| users.get(event.user_id.as_ref()?));
        }
        for (tenant, oldest) in changes.all() {
            self.look_again_at(tenant, Some(&oldest), |_| Some(&oldest));
        }
    }

    /// The same of those events of a tenant of whom something else is said from some time on, the earliest of which is `oldest`.
    fn look_again_at<'a>(
        &mut self,
        tenant: &TenantId,
        oldest: Option<&Timestamp>,
        changed_from: impl Fn(&SecurityEvent) -> Option<&'a Timestamp>,
    ) {
        let (Some(state), Some(oldest)) = (self.state.tenants.get(tenant), oldest) else { return };
        let mut again = Vec::new();
        for (name, events) in state.buckets.iter().map(|(name, bucket)| (name, bucket.events())) {
            let from = events.partition_point(|event| event.ts < *oldest);
            let is_changed = |event: &&Arc<SecurityEvent>| changed_from(event).is_some_and(|from| *from <= event.ts);
            let changed = events[from..].iter().filter(is_changed);
            again.extend(changed.map(|event| Relevant::of(event, Some(name.clone()))));
        }
        let again = Some(Arc::new(Matter::of(again)));
        self.waiting.extend(again.filter(|again| !again.is_empty()));
    }

    /// Those of the events that matter to the rule. Where that cannot be told of all, it is asked of each tenant's by themselves.
    pub(crate) fn relevant(&mut self, batch: &Arc<EventBatch>) -> Result<Arc<Matter>, DetectError> {
        let Some(shown) = self.scope.of(batch) else { return Ok(Arc::default()) };
        let relevant = match self.plan.passing(&shown) {
            Ok((of, places)) => self.named(&of, &places),
            Err(_) => {
                let mut relevant = Vec::new();
                for (tenant, events) in by_tenant(shown.rows()) {
                    let newest = events.last().cloned();
                    match self.plan.passing(&Arc::new(EventBatch::new(events))) {
                        Ok((of, places)) => relevant.extend_from_slice(self.named(&of, &places).events()),
                        Err(source) => self.set_aside(&tenant, self.query_error(source), newest.as_ref())?,
                    }
                }
                Arc::new(Matter::of(relevant))
            }
        };
        Ok(self.without_set_aside(&relevant))
    }

    /// Without those of tenants for whom it does not run.
    fn without_set_aside(&self, events: &Arc<Matter>) -> Arc<Matter> {
        let set_aside = &self.stats.set_aside;
        if set_aside.is_empty() { Arc::clone(events) } else { events.without(|one| set_aside.contains_key(&one.event.tenant_id)) }
    }

    /// Some events of a batch, with their buckets, if it keeps any.
    fn named(&self, batch: &EventBatch, places: &Arc<[usize]>) -> Arc<Matter> {
        if places.is_empty() {
            return Arc::default();
        }
        if self.plan.shape == Shape::Stateless {
            return Arc::new(Matter::of(places.iter().map(|place| Relevant::alone(&batch.rows()[*place])).collect()));
        }
        // Where that cannot be told, each may be one.
        let seeds = self.plan.seed.as_ref().and_then(|seed| seed.places(batch).ok());
        batch.matter((places, seeds.as_ref()), &self.plan.buckets, &self.names)
    }

    /// What it is to look at now: all that waits if it is due, or what `must` be decided.
    pub(crate) fn ready(&mut self, now: Timestamp, must: Must<'_>) -> Vec<Arc<Matter>> {
        // A clock that was set back must not make a rule rest.
        let rests = now < self.due && self.due <= now.plus_micros(LONGEST_REST);
        if !rests || Matter::count(&self.waiting) >= MOST_WAITING || matches!(must, Must::All) {
            return std::mem::take(&mut self.waiting);
        }
        let Must::Of(tenants) = must else { return Vec::new() };
        if tenants.is_empty() {
            return Vec::new();
        }
        Matter::take(&mut self.waiting, |one| tenants.contains(&one.event.tenant_id))
    }

    /// True if it has not looked at everything.
    pub(crate) const fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// With which rules it rests: those for every tenant that begin as it does, and contain if it does. None: no other begins so.
    pub(crate) fn rests_with(&self) -> Option<(usize, bool)> {
        let pipeline = self.plan.follows().filter(|_| self.scope.owner().is_none())?;
        let beginning = begun::shared(pipeline)?;
        Some((Arc::as_ptr(beginning).addr(), self.rule.header.contains()))
    }

    /// It ran so long, up to now. While others' events wait, it rests no longer for it.
    pub(crate) fn rest(&mut self, micros: i64, now: Timestamp) {
        if !self.is_behind() {
            let longest = if self.rule.header.contains() { LONGEST_REST_CONTAINING } else { LONGEST_REST };
            self.due = now.plus_micros(micros.saturating_mul(REST).min(longest));
        }
    }

    /// Takes new events into account, and answers the keys whose matches changed.
    pub(crate) fn evaluate(&mut self, relevant: &Arc<Matter>, quotas: Quotas) -> Result<TouchedKeys, DetectError> {
        // Some may have been set aside since these began to wait.
        let relevant = self.without_set_aside(relevant);
        let touched = match self.plan.shape {
            Shape::Stateless => {
                let events = relevant.events().iter().map(|one| Arc::clone(&one.event)).collect();
                self.find_stateless(events).map(|found| self.insert(found, quotas))
            }
            Shape::Sliding | Shape::Incremental => self.evaluate_sliding(&relevant, quotas),
            Shape::Deferred => {
                self.keep_waiting(&relevant, quotas);
                Ok(TouchedKeys::new())
            }
            Shape::Stepped | Shape::Pattern => self.evaluate_stepped(&relevant, quotas),
        };
        self.note_overruns();
        touched
    }

    /// Says what a row pattern had to give up; true if anything.
    pub(crate) fn note_overruns(&mut self) -> bool {
        let overruns = self.plan.overruns();
        if let Some(first) = overruns.first.first() {
            tracing::warn!(rule = %self.rule.header.id, count = overruns.count, first = %first, "a row pattern ran into a bound");
            self.stats.overruns += overruns.count;
            self.stats.overrun = overruns.first.last().map(ToString::to_string);
        }
        overruns.count > 0
    }

    /// What was told of a bucket stands: events are gone that it rests on.
    pub(crate) fn stand(&mut self, tenant: &TenantId, bucket: &str) {
        if let Some(bucket) = self.state.tenants.get_mut(tenant).and_then(|t| t.buckets.get_mut(bucket)) {
            bucket.keys_mut().for_each(|(_, key)| key.stand());
        }
    }

    /// Forgets the matches of the touched instants, and answers whose they were.
    pub(crate) fn clear(&mut self, touched: &Touched, window: i64) -> TouchedKeys {
        let mut keys = TouchedKeys::new();
        for (named, oldest, newest) in touched.iter() {
            let Some(bucket) = self.state.keyed_mut(named) else { continue };
            for (text, key) in bucket.keys_mut() {
                let before = key.match_count();
                key.clear(oldest, newest.plus_micros(window));
                if key.match_count() != before {
                    keys.insert((named.tenant.clone(), named.bucket.to_owned(), text.clone()));
                }
            }
        }
        keys
    }

    pub(crate) fn insert(&mut self, found: Vec<Found>, quotas: Quotas) -> TouchedKeys {
        let mut keys = TouchedKeys::new();
        for f in found {
            if f.found.instant < self.since.of(&f.tenant) {
                continue;
            }
            match self.state.key_or_new(&f.tenant, &f.bucket, &f.key_text, f.agent.as_deref(), quotas) {
                Some(key) => {
                    key.insert(f.found);
                    keys.insert((f.tenant, f.bucket, f.key_text));
                }
                None => {
                    self.stats.refused += 1;
                    self.losses.note_at(&f.tenant, Cause::QuotaFull, f.found.last());
                }
            }
        }
        keys
    }

    /// Why the rule does not look at a tenant's events any more, if it does not; whether what it told of them is in no checkpoint; and whether some of what
    /// it looks back to is gone.
    pub(crate) fn impaired_for(&self, tenant: &TenantId) -> impl Iterator<Item = Cause> + use<> {
        let set_aside = self.stats.set_aside.contains_key(tenant).then_some(Cause::SetAside);
        let is_quarantined = self.stats.quarantined.is_some() && self.scope.covers(tenant);
        let stopped = if is_quarantined { Some(Cause::Quarantined) } else { set_aside };
        let unwritten = self.unwritten.contains(tenant).then_some(Cause::Unwritten);
        let lost = self.lacks.contains_key(tenant).then_some(Cause::WindowLost);
        stopped.into_iter().chain(unwritten).chain(lost)
    }

    /// True if there is anything to say of it: it lost something, or looks at somebody's events no more.
    pub(crate) fn is_impaired(&self) -> bool {
        let stopped = self.stats.quarantined.is_some() || !self.stats.set_aside.is_empty();
        stopped || !self.losses.is_empty() || !self.unwritten.is_empty() || !self.lacks.is_empty()
    }

    /// Stops the rule, and says why.
    pub(crate) fn quarantine(&mut self, error: &DetectError) {
        tracing::error!(rule = %self.rule.header.id, %error, "rule quarantined");
        self.stats.quarantined = Some(error.to_string());
        self.state = RuleState::default();
        self.waiting = Vec::new();
    }

    pub(crate) fn query_error(&self, source: datafusion::error::DataFusionError) -> DetectError {
        DetectError::Query { rule: self.rule.header.id.clone(), source }
    }

    /// Runs `work`, and counts its time. A clock that is set meanwhile makes it neither longer nor shorter.
    pub(crate) fn timed<T>(&mut self, clock: &dyn Clock, work: impl FnOnce(&mut Self) -> T) -> (T, i64) {
        let start = clock.steady_micros();
        let result = work(self);
        let micros = clock.steady_micros().saturating_sub(start).max(0);
        self.stats.seconds += micros as f64 / 1e6;
        (result, micros)
    }
}

/// The events of each tenant.
pub(crate) fn by_tenant(events: &[Arc<SecurityEvent>]) -> BTreeMap<TenantId, Vec<Arc<SecurityEvent>>> {
    let mut tenants: BTreeMap<TenantId, Vec<Arc<SecurityEvent>>> = BTreeMap::new();
    events.iter().for_each(|event| tenants.entry(event.tenant_id.clone()).or_default().push(Arc::clone(event)));
    tenants
}
