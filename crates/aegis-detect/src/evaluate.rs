//! One rule, one tick: keep what matters, run the plan over what was touched, and replace the matches of the touched instants.
//! The match set is a function of the log: a match at instant t depends on the events of the window that ends at t, no other.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_model::{Clock, SecurityEvent, TenantId, Timestamp};

use crate::error::DetectError;
use crate::output::{Found, Reader, bucket_of_event};
use crate::plan::RulePlan;
use crate::rule::Rule;
use crate::schema::EventBatch;
use crate::shape::Shape;
use crate::windows::Origin;
use crate::window::{Kept, Quotas, RuleState, Touched};

/// Counters of one rule, since it was loaded.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct RuleStats {
    pub rule_id: String,
    pub name: String,
    pub severity: String,
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
}

/// A rule with its plan and its state.
#[derive(Debug)]
pub(crate) struct RunningRule {
    pub(crate) rule: Rule,
    pub(crate) plan: RulePlan,
    pub(crate) state: RuleState,
    pub(crate) stats: RuleStats,
    /// Events that matter to the rule, and that it has not looked at yet.
    waiting: Vec<Arc<SecurityEvent>>,
    /// It looks at them no earlier, by the clock: a rule that costs much runs less often, over more events at once.
    due: Timestamp,
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
    Of(&'a BTreeSet<TenantId>),
    All,
}

/// Which keys have to be looked at again after an evaluation.
pub(crate) type TouchedKeys = BTreeSet<(TenantId, String, String)>;

impl RunningRule {
    pub(crate) fn new(rule: Rule, plan: RulePlan) -> Self {
        let stats = RuleStats {
            rule_id: rule.header.id.clone(),
            name: rule.header.name.clone(),
            severity: rule.header.severity.to_string(),
            shape: Some(plan.shape),
            ..RuleStats::default()
        };
        let (waiting, due) = (Vec::new(), Timestamp::from_micros(i64::MIN));
        Self { rule, plan, state: RuleState::default(), stats, waiting, due }
    }

    pub(crate) fn window_micros(&self) -> i64 {
        self.rule.header.window_s * 1_000_000
    }

    /// Takes the new events of a tick that matter to the rule.
    pub(crate) fn wait(&mut self, batch: &Arc<EventBatch>) -> Result<(), DetectError> {
        let relevant = self.plan.relevant(batch).map_err(|e| self.query_error(e))?;
        self.stats.relevant += relevant.len() as u64;
        self.waiting.extend(relevant);
        Ok(())
    }

    /// What it is to look at now: all that waits if it is due, or what `must` be decided.
    pub(crate) fn ready(&mut self, now: Timestamp, must: Must<'_>) -> Vec<Arc<SecurityEvent>> {
        // A clock that was set back must not make a rule rest.
        let rests = now < self.due && self.due <= now.plus_micros(LONGEST_REST);
        if !rests || self.waiting.len() >= MOST_WAITING || matches!(must, Must::All) {
            return std::mem::take(&mut self.waiting);
        }
        let Must::Of(tenants) = must else { return Vec::new() };
        if tenants.is_empty() {
            return Vec::new();
        }
        let (ready, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|e| tenants.contains(&e.tenant_id));
        self.waiting = waiting;
        ready
    }

    /// True if it has not looked at everything.
    pub(crate) const fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// It ran so long, up to now. While others' events wait, it rests no longer for it.
    pub(crate) fn rest(&mut self, micros: i64, now: Timestamp) {
        if !self.is_behind() {
            let longest = if self.rule.header.contains() { LONGEST_REST_CONTAINING } else { LONGEST_REST };
            self.due = now.plus_micros(micros.saturating_mul(REST).min(longest));
        }
    }

    /// Takes new events into account, and answers the keys whose matches changed.
    pub(crate) fn evaluate(&mut self, relevant: Vec<Arc<SecurityEvent>>, quotas: Quotas) -> Result<TouchedKeys, DetectError> {
        let touched = match self.plan.shape {
            Shape::Stateless => self.evaluate_stateless(relevant, quotas),
            Shape::Sliding | Shape::Incremental => self.evaluate_sliding(&relevant, quotas),
            Shape::Stepped => self.evaluate_stepped(&relevant, quotas),
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

    pub(crate) fn keep(&mut self, relevant: &[Arc<SecurityEvent>], quotas: Quotas) -> Touched {
        let mut touched = Touched::default();
        for event in relevant {
            let Some(bucket) = bucket_of_event(event, &self.plan.buckets) else { continue };
            let kept = self.state.keep(event, &bucket, quotas);
            match kept {
                Kept::Added => {}
                Kept::AddedOverQuota => self.stats.given_up += 1,
                Kept::Refused => self.stats.refused += 1,
                Kept::Known => {}
            }
            if matches!(kept, Kept::Added | Kept::AddedOverQuota) {
                touched.add(&event.tenant_id, bucket, event.ts);
            }
        }
        touched
    }

    /// Each row stands alone: matches are only ever added.
    fn evaluate_stateless(&mut self, relevant: Vec<Arc<SecurityEvent>>, quotas: Quotas) -> Result<TouchedKeys, DetectError> {
        let found = self.run(relevant, None)?;
        Ok(self.insert(found, quotas))
    }

    /// One run over the touched buckets of all tenants: from one window before the oldest new event to one window after the newest; or, of an
    /// incremental query, from the oldest new event on.
    fn evaluate_sliding(&mut self, relevant: &[Arc<SecurityEvent>], quotas: Quotas) -> Result<TouchedKeys, DetectError> {
        let touched = self.keep(relevant, quotas);
        if touched.is_empty() {
            return Ok(TouchedKeys::new());
        }
        let window = self.window_micros();
        let mut found = if self.plan.pipeline.is_some() {
            self.follow(touched.iter().map(|(tenant, bucket, oldest, _)| (tenant, bucket, oldest)))?
        } else {
            let mut slice = Vec::new();
            for (tenant, bucket, oldest, newest) in touched.iter() {
                let (from, to) = (oldest.plus_micros(-window), newest.plus_micros(window));
                slice.extend_from_slice(self.state.events(tenant, bucket, from, to));
            }
            self.run(slice, None)?
        };
        // Rows before the oldest new event had too short a slice to look back on, and have not changed.
        found.retain(|f| {
            touched
                .span(&f.tenant, &f.bucket)
                .is_some_and(|(oldest, newest)| within(f.found.instant, oldest, newest.plus_micros(window)))
        });
        let mut keys = self.clear(&touched, window);
        keys.extend(self.insert(found, quotas));
        Ok(keys)
    }

    /// One run for each tenant and instant that a new event can have changed.
    fn evaluate_stepped(&mut self, relevant: &[Arc<SecurityEvent>], quotas: Quotas) -> Result<TouchedKeys, DetectError> {
        let touched = self.keep(relevant, quotas);
        let window = self.window_micros();
        let mut found = Vec::new();
        for (tenant, bucket, oldest, newest) in touched.iter() {
            let affected = self.state.events(tenant, bucket, oldest, newest.plus_micros(window));
            let instants: BTreeSet<Timestamp> = affected.iter().map(|e| e.ts).collect();
            for instant in instants {
                let slice = self.state.events(tenant, bucket, instant.plus_micros(-window), instant).to_vec();
                found.extend(run_plan(&self.plan, &self.rule, &mut self.stats.evals, slice, Some((tenant.clone(), instant)))?);
            }
        }
        self.stats.matches += found.len() as u64;
        let mut keys = self.clear(&touched, window);
        keys.extend(self.insert(found, quotas));
        Ok(keys)
    }

    pub(crate) fn run(
        &mut self,
        rows: Vec<Arc<SecurityEvent>>,
        fixed: Option<(TenantId, Timestamp)>,
    ) -> Result<Vec<Found>, DetectError> {
        let found = run_plan(&self.plan, &self.rule, &mut self.stats.evals, rows, fixed)?;
        self.stats.matches += found.len() as u64;
        Ok(found)
    }

    /// The rows of an incremental query in some buckets, from the time on of the oldest event that it has not seen.
    pub(crate) fn follow<'a>(
        &mut self,
        buckets: impl Iterator<Item = (&'a TenantId, &'a str, Timestamp)>,
    ) -> Result<Vec<Found>, DetectError> {
        let Self { rule, plan, state, stats, .. } = self;
        let Some(pipeline) = &plan.pipeline else { return Ok(Vec::new()) };
        let (mut events, mut origins, mut frames, mut whose) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (tenant, bucket, oldest) in buckets {
            let Some((known, new)) = state.follow(tenant, bucket, oldest, || pipeline.frames()) else { continue };
            origins.extend(new.iter().map(|event| Origin { bucket: frames.len(), ts: event.ts.as_micros() }));
            events.extend_from_slice(new);
            frames.push(known);
            whose.push((tenant, bucket));
        }
        stats.evals += 1;
        let ran = pipeline.run(&EventBatch::new(events), origins, &mut frames);
        for ((tenant, bucket), known) in whose.iter().zip(frames) {
            state.followed(tenant, bucket, known);
        }
        let error = |source| DetectError::Query { rule: rule.header.id.clone(), source };
        let (rows, origins) = ran.map_err(error)?;
        let mut found = Vec::new();
        if rows.num_rows() > 0 {
            let (always, never) = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
            let of: BTreeSet<usize> = origins.into_iter().collect();
            let evidence = of.into_iter().flat_map(|place| state.events(whose[place].0, whose[place].1, always, never));
            Reader::new(&rule.header.key, &plan.output, &plan.buckets, evidence, None).read(&rows, &mut found).map_err(error)?;
        }
        stats.matches += found.len() as u64;
        Ok(found)
    }

    /// Forgets the matches of the touched instants, and answers whose they were.
    fn clear(&mut self, touched: &Touched, window: i64) -> TouchedKeys {
        let mut keys = TouchedKeys::new();
        for (tenant, name, oldest, newest) in touched.iter() {
            let Some(bucket) = self.state.tenants.get_mut(tenant).and_then(|t| t.buckets.get_mut(name)) else { continue };
            for (text, key) in &mut bucket.keys {
                let before = key.match_count();
                key.clear(oldest, newest.plus_micros(window));
                if key.match_count() != before {
                    keys.insert((tenant.clone(), name.to_owned(), text.clone()));
                }
            }
        }
        keys
    }

    pub(crate) fn insert(&mut self, found: Vec<Found>, quotas: Quotas) -> TouchedKeys {
        let mut keys = TouchedKeys::new();
        for f in found {
            match self.state.bucket_mut(&f.tenant, &f.bucket, quotas) {
                Some(bucket) => {
                    bucket.keys.entry(f.key_text.clone()).or_default().insert(f.found);
                    keys.insert((f.tenant, f.bucket, f.key_text));
                }
                None => self.stats.refused += 1,
            }
        }
        keys
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

    /// Runs `work`, and counts its time.
    pub(crate) fn timed<T>(&mut self, clock: &dyn Clock, work: impl FnOnce(&mut Self) -> T) -> (T, i64) {
        let start = clock.now();
        let result = work(self);
        let micros = clock.now().as_micros().saturating_sub(start.as_micros()).max(0);
        self.stats.seconds += micros as f64 / 1e6;
        (result, micros)
    }
}

fn run_plan(
    plan: &RulePlan,
    rule: &Rule,
    evals: &mut u64,
    rows: Vec<Arc<SecurityEvent>>,
    fixed: Option<(TenantId, Timestamp)>,
) -> Result<Vec<Found>, DetectError> {
    *evals += 1;
    let error = |source| DetectError::Query { rule: rule.header.id.clone(), source };
    let seen = Arc::new(EventBatch::new(rows));
    let batches = plan.run(Arc::clone(&seen)).map_err(error)?;
    let mut found = Vec::new();
    if batches.iter().any(|b| b.num_rows() > 0) {
        let reader = Reader::new(&rule.header.key, &plan.output, &plan.buckets, seen.rows().iter(), fixed);
        for batch in &batches {
            reader.read(batch, &mut found).map_err(error)?;
        }
    }
    Ok(found)
}

fn within(instant: Timestamp, from: Timestamp, to: Timestamp) -> bool {
    from <= instant && instant <= to
}
