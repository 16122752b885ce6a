//! How the matches are found that touched events can have changed: the ways of running a query, by its shape, and what is given up where one
//! costs too much. What one tenant sends stops a rule for that tenant at most.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_model::{SecurityEvent, TenantId, Timestamp};

use crate::begun;
use crate::bucket::bytes_of;
use crate::error::DetectError;
use crate::evaluate::{RuleStats, RunningRule, TouchedKeys, by_tenant};
use crate::impaired::Cause;
use crate::known::Known;
use crate::matter::Matter;
use crate::output::{Found, Reader};
use crate::plan::RulePlan;
use crate::rule::Rule;
use crate::schema::EventBatch;
use crate::side::Sides;
use crate::window::{Named, Quotas, Touched};
use crate::windows::Origin;

/// About how many events one run of a query has.
pub(crate) const ROWS_OF_A_RUN: usize = 65_536;
/// About how many bytes their texts have: as many as those of one key may, so that a run has twice as many at most.
const BYTES_OF_A_RUN: usize = 32 << 20;
/// Tenants that a rule is set aside for before it is set aside for all.
const MOST_SET_ASIDE: usize = 16;

impl RunningRule {
    /// Each row stands alone: matches are only ever added.
    pub(crate) fn find_stateless(&mut self, relevant: Vec<Arc<SecurityEvent>>) -> Result<Vec<Found>, DetectError> {
        if let Ok(found) = self.run(relevant.clone(), None) {
            return Ok(found);
        }
        let mut found = Vec::new();
        for (tenant, events) in by_tenant(&relevant) {
            let newest = events.last().cloned();
            match self.run(events, None) {
                Ok(own) => found.extend(own),
                Err(error) => self.set_aside(&tenant, error, newest.as_ref())?,
            }
        }
        Ok(found)
    }

    /// Over the touched buckets of all tenants. Where that fails, over each tenant's: what one of them sends must not stop the rule for others.
    pub(crate) fn evaluate_sliding(&mut self, relevant: &Matter, quotas: Quotas) -> Result<TouchedKeys, DetectError> {
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
        if !found.is_empty() {
            // Rows before the oldest new event had too short a slice to look back on, and have not changed.
            let spans = touched.spans();
            found.retain(|f| {
                let span = spans.get(&(&f.tenant, f.bucket.as_str()));
                span.is_some_and(|(oldest, newest)| within(f.found.instant, *oldest, newest.plus_micros(window)))
            });
        }
        let mut keys = self.clear(&touched, window);
        keys.extend(self.insert(found, quotas));
        Ok(keys)
    }

    /// The rows of a query in touched buckets: from one window before the oldest new event to one window after the newest; or, of an incremental
    /// query, from the oldest new event on.
    fn find(&mut self, touched: &Touched) -> Result<Vec<Found>, DetectError> {
        if self.plan.pipeline.is_some() {
            return self.follow(touched.iter().map(|(bucket, oldest, _)| (bucket, oldest)));
        }
        let window = self.window_micros();
        let mut found = Vec::new();
        let mut slice = Slice::default();
        for (named, oldest, newest) in touched.iter() {
            let (from, to) = (oldest.plus_micros(-window), newest.plus_micros(window));
            if let Some(rows) = slice.add(self.state.events(named.tenant, named.bucket, from, to)) {
                found.extend(self.run(rows, None)?);
            }
        }
        if let Some(rows) = slice.rest() {
            found.extend(self.run(rows, None)?);
        }
        Ok(found)
    }

    /// The rule runs for a tenant's events no longer; for too many, it does not run at all. `newest` is what it looked at last.
    pub(crate) fn set_aside(
        &mut self,
        tenant: &TenantId,
        error: DetectError,
        newest: Option<&Arc<SecurityEvent>>,
    ) -> Result<(), DetectError> {
        if self.stats.set_aside.contains_key(tenant) {
            return Ok(());
        }
        if self.stats.set_aside.len() >= MOST_SET_ASIDE {
            return Err(error);
        }
        if let Some(newest) = newest {
            self.losses.note(Cause::SetAside, newest);
        }
        tracing::error!(rule = %self.rule.header.id, %tenant, %error, "rule set aside for a tenant");
        self.stats.set_aside.insert(tenant.clone(), error.to_string());
        self.state.forget(tenant);
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
        let found = run_plan(&self.plan, &self.rule, &mut self.stats, &self.sides, rows, fixed)?;
        self.stats.matches += found.len() as u64;
        Ok(found)
    }

    /// The rows of an incremental query in some buckets, from the time on of the oldest event that it has not seen.
    pub(crate) fn follow<'a>(
        &mut self,
        buckets: impl Iterator<Item = (Named<'a>, Timestamp)>,
    ) -> Result<Vec<Found>, DetectError> {
        let Self { rule, plan, state, stats, sides, names, .. } = self;
        let Some(pipeline) = &plan.pipeline else { return Ok(Vec::new()) };
        let takes = plan.takes();
        // About one event of each, most of the time.
        let count = buckets.size_hint().0;
        let (mut frames, mut whose, mut shown) = (Vec::with_capacity(count), Vec::with_capacity(count), ShownEvents::new(count));
        for (bucket, oldest) in buckets {
            let fresh = || Known::Windows(pipeline.frames());
            let Some((known, new)) = state.follow(bucket, oldest, takes, fresh) else { continue };
            shown.add(frames.len(), new);
            frames.push(known.into_frames());
            whose.push(bucket);
        }
        let error = |source| DetectError::Query { rule: rule.header.id.clone(), source };
        let back_micros = plan.back_micros(rule.header.window_s * 1_000_000);
        let mut found = Vec::new();
        let mut ran = Ok(());
        while let Some((origins, events)) = shown.next_part(pipeline.events_of_a_run()) {
            stats.evals += 1;
            let events = match begun::begin(pipeline, events, sides, names) {
                Ok(events) => events,
                Err(error) => {
                    ran = Err(error);
                    break;
                }
            };
            ran = pipeline.run(&events, origins, &mut frames, |rows, origins| {
                let (always, never) = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
                let of: BTreeSet<usize> = origins.iter().map(|origin| origin.bucket).collect();
                let evidence =
                    of.into_iter().flat_map(|place| state.events(whose[place].tenant, whose[place].bucket, always, never));
                let reader = Reader::new(&rule.header.key, &plan.output, &plan.buckets, evidence, back_micros, None);
                stats.unfounded += reader.read(rows, &mut found)?;
                Ok(())
            });
            if ran.is_err() {
                break;
            }
        }
        for (bucket, known) in whose.into_iter().zip(frames) {
            // After a failure nobody knows how far it came: from the start, the next time.
            state.followed(bucket, ran.is_ok().then_some(Known::Windows(known)));
        }
        ran.map_err(error)?;
        stats.matches += found.len() as u64;
        Ok(found)
    }
}

/// The events that the next run of a query is to have, of whole buckets.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    rows: Vec<Arc<SecurityEvent>>,
    bytes: usize,
}

impl Slice {
    /// Adds a bucket's events. Answers all that there are once they are enough for a run, by number or by what their texts take.
    pub(crate) fn add(&mut self, events: &[Arc<SecurityEvent>]) -> Option<Vec<Arc<SecurityEvent>>> {
        self.rows.extend_from_slice(events);
        self.bytes += events.iter().map(|event| bytes_of(event)).sum::<usize>();
        let is_full = self.rows.len() >= ROWS_OF_A_RUN || self.bytes >= BYTES_OF_A_RUN;
        if is_full { std::mem::take(self).rest() } else { None }
    }

    /// What is left; None if nothing is.
    pub(crate) fn rest(self) -> Option<Vec<Arc<SecurityEvent>>> {
        (!self.rows.is_empty()).then_some(self.rows)
    }
}

/// The events that a query is shown, of each bucket in their order, and of each whose it is and when it was.
#[derive(Debug)]
pub(crate) struct ShownEvents {
    origins: Vec<Origin>,
    events: Vec<Arc<SecurityEvent>>,
}

impl ShownEvents {
    pub(crate) fn new(count: usize) -> Self {
        Self { origins: Vec::with_capacity(count), events: Vec::with_capacity(count) }
    }

    /// Adds what is new of the next bucket.
    pub(crate) fn add(&mut self, bucket: usize, events: &[Arc<SecurityEvent>]) {
        let mut last: Option<Origin> = None;
        for event in events {
            let ts = event.ts.as_micros();
            let place = last.filter(|before| before.ts == ts).map_or(0, |before| before.place.saturating_add(1));
            let origin = Origin { bucket, ts, place, event: 0 };
            last = Some(origin);
            self.origins.push(origin);
            self.events.push(Arc::clone(event));
        }
    }

    /// Takes out the first of them, about `size`; those of a bucket that have the same time stay together, for each of them sees the others.
    pub(crate) fn next_part(&mut self, size: usize) -> Option<(Vec<Origin>, Vec<Arc<SecurityEvent>>)> {
        let first = size.min(self.origins.len());
        let last = self.origins.get(first.checked_sub(1)?)?;
        let is_beside = |origin: &&Origin| (origin.bucket, origin.ts) == (last.bucket, last.ts);
        let end = first + self.origins[first..].iter().take_while(is_beside).count();
        let (origins, events) = (self.origins.split_off(end), self.events.split_off(end));
        Some((std::mem::replace(&mut self.origins, origins), std::mem::replace(&mut self.events, events)))
    }
}

pub(crate) fn run_plan(
    plan: &RulePlan,
    rule: &Rule,
    stats: &mut RuleStats,
    sides: &Sides,
    rows: Vec<Arc<SecurityEvent>>,
    fixed: Option<(TenantId, Timestamp)>,
) -> Result<Vec<Found>, DetectError> {
    stats.evals += 1;
    let error = |source| DetectError::Query { rule: rule.header.id.clone(), source };
    let seen = Arc::new(EventBatch::new(rows).beside(sides));
    let batches = plan.run(Arc::clone(&seen)).map_err(error)?;
    let mut found = Vec::new();
    if batches.iter().any(|b| b.num_rows() > 0) {
        let back_micros = plan.back_micros(rule.header.window_s * 1_000_000);
        let reader = Reader::new(&rule.header.key, &plan.output, &plan.buckets, seen.rows().iter(), back_micros, fixed);
        for batch in &batches {
            stats.unfounded += reader.read(batch, &mut found).map_err(error)?;
        }
    }
    Ok(found)
}

/// The newest of a tenant's events, in the order of events.
pub(crate) fn newest_of<'a>(relevant: &'a Matter, tenant: &TenantId) -> Option<&'a Arc<SecurityEvent>> {
    let events = relevant.events().iter().map(|one| &one.event).filter(|event| event.tenant_id == *tenant);
    events.max_by(|a, b| a.order_key().cmp(&b.order_key()))
}

pub(crate) fn within(instant: Timestamp, from: Timestamp, to: Timestamp) -> bool {
    from <= instant && instant <= to
}
