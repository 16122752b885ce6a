//! One rule, one tick: keep what matters, run the plan over what was touched, and replace the matches of the touched instants.
//! The match set is a function of the log: a match at instant t depends on the events of the window that ends at t, no other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aegis_model::{Clock, SecurityEvent, TenantId, Timestamp};

use crate::episode::KeyState;
use crate::error::DetectError;
use crate::impaired::{Cause, Losses};
use crate::output::{Found, Reader, write_bucket};
use crate::plan::{BucketColumn, RulePlan};
use crate::rule::Rule;
use crate::schema::EventBatch;
use crate::shape::Shape;
use crate::window::{Kept, Quotas, RuleState, Touched};
use crate::windows::Origin;

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
    /// Tenants for whose events it no longer runs, and why.
    pub set_aside: BTreeMap<TenantId, String>,
    /// Rows that were no match because their evidence is no event of the window.
    pub unfounded: u64,
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
    /// Why tenants were set aside, since the engine asked last.
    failures: Vec<DetectError>,
    /// What it did not look at, since the engine asked last.
    pub(crate) losses: Losses,
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

/// About how many events one run of a query has.
pub(crate) const ROWS_OF_A_RUN: usize = 65_536;
/// Rows that the runs of one look at a stepped rule see at most, and those of one tenant: some seconds.
const ROWS_OF_A_LOOK: usize = 3_000_000;
pub(crate) const ROWS_OF_A_TENANT: usize = 1_000_000;
/// Tenants that a rule is set aside for before it is set aside for all.
const MOST_SET_ASIDE: usize = 16;

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
        let (state, losses) = (RuleState::default(), Losses::default());
        Self { rule, plan, state, stats, waiting, failures: Vec::new(), losses, due }
    }

    pub(crate) fn window_micros(&self) -> i64 {
        self.rule.header.window_s * 1_000_000
    }

    /// Takes the new events of a tick that matter to the rule.
    pub(crate) fn wait(&mut self, batch: &Arc<EventBatch>) -> Result<(), DetectError> {
        let mut relevant = self.plan.relevant(batch).map_err(|e| self.query_error(e))?;
        if !self.stats.set_aside.is_empty() {
            relevant.retain(|event| !self.stats.set_aside.contains_key(&event.tenant_id));
        }
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
        let mut lost = Vec::new();
        for (tenant, bucket, events) in by_bucket(relevant, &self.plan.buckets) {
            let (mut span, mut given_up, mut refused) = (None, 0, 0);
            let losses = &mut self.losses;
            self.state.keep(tenant, &bucket, events, quotas, |event, kept| {
                match kept {
                    Kept::Added | Kept::Known => {}
                    Kept::AddedOverQuota(count) => {
                        given_up += count as u64;
                        losses.note(Cause::EventsGivenUp, event);
                    }
                    Kept::GivenUp => {
                        given_up += 1;
                        losses.note(Cause::EventsGivenUp, event);
                    }
                    Kept::Refused => {
                        refused += 1;
                        losses.note(Cause::QuotaFull, event);
                    }
                }
                if matches!(kept, Kept::Added | Kept::AddedOverQuota(_)) {
                    let (oldest, newest) = span.unwrap_or((event.ts, event.ts));
                    span = Some((event.ts.min(oldest), event.ts.max(newest)));
                }
            });
            self.stats.given_up += given_up;
            self.stats.refused += refused;
            if given_up > 0 {
                lost.push((tenant, bucket.clone()));
            }
            if let Some(span) = span {
                touched.add(tenant, bucket, span);
            }
        }
        for (tenant, bucket) in lost {
            self.stand(tenant, &bucket);
        }
        touched
    }

    /// What was told of a bucket stands: events are gone that it rests on.
    fn stand(&mut self, tenant: &TenantId, bucket: &str) {
        if let Some(bucket) = self.state.tenants.get_mut(tenant).and_then(|t| t.buckets.get_mut(bucket)) {
            bucket.keys.values_mut().for_each(KeyState::stand);
        }
    }

    /// Each row stands alone: matches are only ever added.
    fn evaluate_stateless(&mut self, relevant: Vec<Arc<SecurityEvent>>, quotas: Quotas) -> Result<TouchedKeys, DetectError> {
        let found = match self.run(relevant.clone(), None) {
            Ok(found) => found,
            Err(_) => {
                let mut of_tenant: BTreeMap<TenantId, Vec<Arc<SecurityEvent>>> = BTreeMap::new();
                relevant.into_iter().for_each(|event| of_tenant.entry(event.tenant_id.clone()).or_default().push(event));
                let mut found = Vec::new();
                for (tenant, events) in of_tenant {
                    let newest = newest_of(&events, &tenant).cloned();
                    match self.run(events, None) {
                        Ok(own) => found.extend(own),
                        Err(error) => self.set_aside(&tenant, error, newest.as_ref())?,
                    }
                }
                found
            }
        };
        Ok(self.insert(found, quotas))
    }

    /// Over the touched buckets of all tenants. Where that fails, over each tenant's: what one of them sends must not stop the rule for others.
    fn evaluate_sliding(&mut self, relevant: &[Arc<SecurityEvent>], quotas: Quotas) -> Result<TouchedKeys, DetectError> {
        let touched = self.keep(relevant, quotas);
        let window = self.window_micros();
        let mut found = match self.find(&touched) {
            Ok(found) => found,
            Err(_) => {
                let mut found = Vec::new();
                for (tenant, own) in touched.by_tenant() {
                    match self.find(&own) {
                        Ok(own) => found.extend(own),
                        Err(error) => self.set_aside(&tenant, error, newest_of(relevant, &tenant))?,
                    }
                }
                found
            }
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

    /// The rows of a query in touched buckets: from one window before the oldest new event to one window after the newest; or, of an incremental
    /// query, from the oldest new event on.
    fn find(&mut self, touched: &Touched) -> Result<Vec<Found>, DetectError> {
        if self.plan.pipeline.is_some() {
            return self.follow(touched.iter().map(|(tenant, bucket, oldest, _)| (tenant, bucket, oldest)));
        }
        let window = self.window_micros();
        let mut found = Vec::new();
        let mut slice = Vec::new();
        for (tenant, bucket, oldest, newest) in touched.iter() {
            let (from, to) = (oldest.plus_micros(-window), newest.plus_micros(window));
            slice.extend_from_slice(self.state.events(tenant, bucket, from, to));
            if slice.len() >= ROWS_OF_A_RUN {
                found.extend(self.run(std::mem::take(&mut slice), None)?);
            }
        }
        if !slice.is_empty() {
            found.extend(self.run(slice, None)?);
        }
        Ok(found)
    }

    /// One run for each tenant and instant that a new event can have changed, cheap buckets first. What would cost more than a look may is given up.
    fn evaluate_stepped(&mut self, relevant: &[Arc<SecurityEvent>], quotas: Quotas) -> Result<TouchedKeys, DetectError> {
        let touched = self.keep(relevant, quotas);
        let window = self.window_micros();
        let mut found = Vec::new();
        let mut left = ROWS_OF_A_LOOK;
        for (tenant, own) in touched.by_tenant() {
            let mut share = left.min(ROWS_OF_A_TENANT);
            let mut buckets: Vec<(usize, &str, BTreeSet<Timestamp>)> = Vec::new();
            for (_, bucket, oldest, newest) in own.iter() {
                let affected = self.state.events(&tenant, bucket, oldest, newest.plus_micros(window));
                let instants: BTreeSet<Timestamp> = affected.iter().map(|e| e.ts).collect();
                let seen = self.state.events(&tenant, bucket, oldest.plus_micros(-window), newest.plus_micros(window)).len();
                buckets.push((instants.len().saturating_mul(seen), bucket, instants));
            }
            buckets.sort_unstable_by_key(|(cost, ..)| *cost);
            for (_, bucket, instants) in buckets {
                let mut given_up = 0;
                for instant in instants.into_iter().rev() {
                    let slice = self.state.events(&tenant, bucket, instant.plus_micros(-window), instant).to_vec();
                    if slice.len() > share {
                        given_up += 1;
                        continue;
                    }
                    share -= slice.len();
                    left -= slice.len();
                    match run_plan(&self.plan, &self.rule, &mut self.stats, slice, Some((tenant.clone(), instant))) {
                        Ok(own) => found.extend(own),
                        Err(error) => {
                            self.set_aside(&tenant, error, newest_of(relevant, &tenant))?;
                            break;
                        }
                    }
                }
                if given_up > 0 {
                    self.give_up_instants(&tenant, bucket, given_up);
                }
            }
            // Each tenant's row patterns have the work of a look.
            if self.note_overruns()
                && let Some(newest) = newest_of(relevant, &tenant)
            {
                self.losses.note(Cause::InstantsGivenUp, newest);
            }
        }
        found.retain(|f: &Found| !self.stats.set_aside.contains_key(&f.tenant));
        self.stats.matches += found.len() as u64;
        let mut keys = self.clear(&touched, window);
        keys.extend(self.insert(found, quotas));
        Ok(keys)
    }

    /// Says that instants of a bucket were not looked at, and lets stand what was told.
    pub(crate) fn give_up_instants(&mut self, tenant: &TenantId, bucket: &str, count: u64) {
        self.stats.overruns += count;
        let key = bucket.trim_end_matches('\0').replace('\0', ", ");
        let said = format!("tenant {tenant}, key {key}: {count} instants are more than one look may cost");
        tracing::warn!(rule = %self.rule.header.id, "{said}");
        self.stats.overrun = Some(said);
        self.miss_instants(tenant, bucket);
        self.stand(tenant, bucket);
    }

    /// Takes note that matches of a bucket may be missing.
    pub(crate) fn miss_instants(&mut self, tenant: &TenantId, bucket: &str) {
        let (always, never) = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
        if let Some(newest) = self.state.events(tenant, bucket, always, never).last() {
            self.losses.note(Cause::InstantsGivenUp, newest);
        }
    }

    /// The rule runs for a tenant's events no longer; for too many, it does not run at all. `newest` is what it looked at last.
    fn set_aside(
        &mut self,
        tenant: &TenantId,
        error: DetectError,
        newest: Option<&Arc<SecurityEvent>>,
    ) -> Result<(), DetectError> {
        if self.stats.set_aside.len() >= MOST_SET_ASIDE {
            return Err(error);
        }
        if let Some(newest) = newest {
            self.losses.note(Cause::SetAside, newest);
        }
        tracing::error!(rule = %self.rule.header.id, %tenant, %error, "rule set aside for a tenant");
        self.stats.set_aside.insert(tenant.clone(), error.to_string());
        self.state.tenants.remove(tenant);
        self.failures.push(error);
        Ok(())
    }

    /// Why tenants were set aside since the last time.
    pub(crate) fn failures(&mut self) -> Vec<DetectError> {
        std::mem::take(&mut self.failures)
    }

    pub(crate) fn run(
        &mut self,
        rows: Vec<Arc<SecurityEvent>>,
        fixed: Option<(TenantId, Timestamp)>,
    ) -> Result<Vec<Found>, DetectError> {
        let found = run_plan(&self.plan, &self.rule, &mut self.stats, rows, fixed)?;
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
        let error = |source| DetectError::Query { rule: rule.header.id.clone(), source };
        let ran = pipeline.run(&EventBatch::new(events), origins, &mut frames).map_err(error);
        for ((tenant, bucket), known) in whose.iter().zip(frames) {
            // After a failure nobody knows how far it came: from the start, the next time.
            state.followed(tenant, bucket, ran.is_ok().then_some(known));
        }
        let (rows, origins) = ran?;
        let mut found = Vec::new();
        if rows.num_rows() > 0 {
            let (always, never) = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
            let of: BTreeSet<usize> = origins.into_iter().collect();
            let evidence = of.into_iter().flat_map(|place| state.events(whose[place].0, whose[place].1, always, never));
            let reader = Reader::new(&rule.header.key, &plan.output, &plan.buckets, evidence, None);
            stats.unfounded += reader.read(&rows, &mut found).map_err(error)?;
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

    /// Why the rule does not look at a tenant's events any more, if it does not.
    pub(crate) fn stopped_for(&self, tenant: &TenantId) -> Option<Cause> {
        let set_aside = self.stats.set_aside.contains_key(tenant).then_some(Cause::SetAside);
        if self.stats.quarantined.is_some() { Some(Cause::Quarantined) } else { set_aside }
    }

    /// True if there is anything to say of it: it lost something, or looks at somebody's events no more.
    pub(crate) fn is_impaired(&self) -> bool {
        !self.losses.is_empty() || self.stats.quarantined.is_some() || !self.stats.set_aside.is_empty()
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
    stats: &mut RuleStats,
    rows: Vec<Arc<SecurityEvent>>,
    fixed: Option<(TenantId, Timestamp)>,
) -> Result<Vec<Found>, DetectError> {
    stats.evals += 1;
    let error = |source| DetectError::Query { rule: rule.header.id.clone(), source };
    let seen = Arc::new(EventBatch::new(rows));
    let batches = plan.run(Arc::clone(&seen)).map_err(error)?;
    let mut found = Vec::new();
    if batches.iter().any(|b| b.num_rows() > 0) {
        let reader = Reader::new(&rule.header.key, &plan.output, &plan.buckets, seen.rows().iter(), fixed);
        for batch in &batches {
            stats.unfounded += reader.read(batch, &mut found).map_err(error)?;
        }
    }
    Ok(found)
}

/// The newest of a tenant's events, in the order of events.
fn newest_of<'a>(events: &'a [Arc<SecurityEvent>], tenant: &TenantId) -> Option<&'a Arc<SecurityEvent>> {
    events.iter().filter(|event| event.tenant_id == *tenant).max_by(|a, b| a.order_key().cmp(&b.order_key()))
}

/// The events of each bucket, in the order in which the first of each came. Those whose key has a null are left out.
fn by_bucket<'a>(
    events: &'a [Arc<SecurityEvent>],
    columns: &[BucketColumn],
) -> Vec<(&'a TenantId, String, Vec<&'a Arc<SecurityEvent>>)> {
    let mut buckets: Vec<(&TenantId, String, Vec<&Arc<SecurityEvent>>)> = Vec::new();
    let mut places: HashMap<&TenantId, HashMap<String, usize>> = HashMap::new();
    let mut bucket = String::new();
    for event in events {
        bucket.clear();
        if !write_bucket(event, columns, &mut bucket) {
            continue;
        }
        let own = places.entry(&event.tenant_id).or_default();
        match own.get(&bucket) {
            Some(place) => buckets[*place].2.push(event),
            None => {
                own.insert(bucket.clone(), buckets.len());
                buckets.push((&event.tenant_id, bucket.clone(), vec![event]));
            }
        }
    }
    buckets
}

fn within(instant: Timestamp, from: Timestamp, to: Timestamp) -> bool {
    from <= instant && instant <= to
}
