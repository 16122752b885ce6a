//! Rules that are asked for one instant at a time: for each that a new event can have changed, or, of a row pattern that is followed, for those alone at
//! which one of its matches ends. Of such a match its own rows are enough; where they are not told, the query is run over the events from there on where
//! the first begins, or over the window. What would cost more than a look may is given up, and said to be.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aegis_model::{SecurityEvent, TenantId, Timestamp};

use crate::begun;
use crate::error::DetectError;
use crate::evaluate::{RunningRule, TouchedKeys};
use crate::find::{ROWS_OF_A_RUN, ShownEvents, newest_of, run_plan, within};
use crate::impaired::Cause;
use crate::known::{Known, Walks};
use crate::least::Takes;
use crate::matter::Matter;
use crate::output::{Found, Reader};
use crate::row_pattern::{RunAt, Work};
use crate::window::{Named, Quotas, Touched};

/// Rows that the runs of one look see at most, and those of one tenant: some seconds.
const ROWS_OF_A_LOOK: usize = 3_000_000;
pub(crate) const ROWS_OF_A_TENANT: usize = 1_000_000;

/// Where a rule is to be run in one bucket.
#[derive(Debug)]
pub(crate) struct Steps<'t> {
    pub(crate) tenant: &'t TenantId,
    pub(crate) bucket: &'t str,
    /// In the order of time.
    pub(crate) runs: Vec<RunAt>,
    /// How many rows these see in all.
    cost: usize,
}

impl<'t> Steps<'t> {
    /// At each instant of these events, over its window.
    fn at_each(tenant: &'t TenantId, bucket: &'t str, events: &[Arc<SecurityEvent>]) -> Self {
        let mut runs: Vec<RunAt> = events.iter().map(|event| RunAt::over_its_window(event.ts)).collect();
        runs.dedup_by_key(|run| run.instant);
        Self { tenant, bucket, runs, cost: 0 }
    }
}

impl RunningRule {
    /// One run for each tenant and instant where there is something to look at, cheap buckets first. What would cost more than a look may is given up.
    pub(crate) fn evaluate_stepped(&mut self, relevant: &Matter, quotas: Quotas) -> Result<TouchedKeys, DetectError> {
        let touched = self.keep(relevant, quotas);
        let window = self.window_micros();
        let mut found = Vec::new();
        let steps = if self.plan.row_pattern.is_some() {
            self.steps_of_matches(&touched, relevant)?
        } else {
            let affected = touched.iter().map(|(Named { tenant, bucket, .. }, oldest, newest)| {
                Steps::at_each(tenant, bucket, self.state.events(tenant, bucket, oldest, newest.plus_micros(window)))
            });
            affected.collect()
        };
        let mut tenants: BTreeMap<&TenantId, Vec<Steps<'_>>> = BTreeMap::new();
        for mut one in steps {
            let costs = one.runs.iter().map(|run| self.seen_at(one.tenant, one.bucket, run).len());
            one.cost = costs.fold(0, usize::saturating_add);
            tenants.entry(one.tenant).or_default().push(one);
        }
        let mut planned: Vec<(usize, &TenantId, Vec<Steps<'_>>)> = Vec::with_capacity(tenants.len());
        for (tenant, mut buckets) in tenants {
            buckets.sort_unstable_by_key(|steps| steps.cost);
            planned.push((buckets.iter().map(|steps| steps.cost).fold(0, usize::saturating_add), tenant, buckets));
        }
        planned.sort_unstable_by_key(|(cost, ..)| *cost);
        let (mut left, mut waiting) = (ROWS_OF_A_LOOK, planned.len());
        for (_, tenant, buckets) in planned {
            // What cheap ones leave is there for those that follow.
            let mut share = (left / waiting).min(ROWS_OF_A_TENANT);
            waiting -= 1;
            let names: Vec<&str> = buckets.iter().map(|steps| steps.bucket).collect();
            for Steps { bucket, runs, .. } in buckets {
                let mut given_up = 0;
                for run in runs.into_iter().rev() {
                    let seen = self.seen_at(tenant, bucket, &run).len();
                    if seen > share {
                        given_up += 1;
                        continue;
                    }
                    share -= seen;
                    left -= seen;
                    match self.matches_at(tenant, bucket, &run) {
                        Ok(own) => found.extend(own),
                        Err(error) => {
                            self.set_aside(tenant, error, newest_of(relevant, tenant))?;
                            break;
                        }
                    }
                }
                if given_up > 0 {
                    self.give_up_instants(tenant, bucket, given_up);
                }
            }
            // Each tenant's row patterns have the work of a look. What was told before may be what was not found now.
            if self.note_overruns() {
                names.iter().for_each(|bucket| self.stand(tenant, bucket));
                if let Some(newest) = newest_of(relevant, tenant) {
                    self.losses.note(Cause::InstantsGivenUp, newest);
                }
            }
        }
        found.retain(|f: &Found| !self.stats.set_aside.contains_key(&f.tenant));
        self.stats.matches += found.len() as u64;
        let mut keys = self.clear(&touched, window);
        keys.extend(self.insert(found, quotas));
        Ok(keys)
    }

    /// What is looked at for one instant.
    pub(crate) fn seen_at(&self, tenant: &TenantId, bucket: &str, run: &RunAt) -> &[Arc<SecurityEvent>] {
        match &run.told {
            Some(told) => self.state.events_from(tenant, bucket, told.from, run.instant),
            None => self.seen_by_query(tenant, bucket, run),
        }
    }

    fn seen_by_query(&self, tenant: &TenantId, bucket: &str, run: &RunAt) -> &[Arc<SecurityEvent>] {
        match run.from {
            Some(from) => self.state.events_from(tenant, bucket, from, run.instant),
            None => self.state.events(tenant, bucket, run.instant.plus_micros(-self.window_micros()), run.instant),
        }
    }

    /// The matches of one instant.
    pub(crate) fn matches_at(&mut self, tenant: &TenantId, bucket: &str, run: &RunAt) -> Result<Vec<Found>, DetectError> {
        if let Some(found) = self.matches_told(tenant, bucket, run) {
            return Ok(found);
        }
        let (seen, fixed) = (self.seen_by_query(tenant, bucket, run).to_vec(), Some((tenant.clone(), run.instant)));
        run_plan(&self.plan, &self.rule, &mut self.stats, &self.sides, seen, fixed)
    }

    /// The same, made of the rows of the matches. None: they are not told, or cannot be made; what is wrong with them, the query says.
    fn matches_told(&mut self, tenant: &TenantId, bucket: &str, run: &RunAt) -> Option<Vec<Found>> {
        let back_micros = self.plan.back_micros(self.window_micros());
        let Self { rule, plan, state, stats, sides, .. } = self;
        let (pattern, told) = (plan.row_pattern.as_ref()?, run.told.as_ref()?);
        let events = state.events_from(tenant, bucket, told.from, run.instant);
        let batches = pattern.put_out(told, events, sides).ok()??;
        let fixed = Some((tenant.clone(), run.instant));
        let reader = Reader::new(&rule.header.key, &plan.output, &plan.buckets, events.iter(), back_micros, fixed);
        let (mut found, mut unfounded) = (Vec::new(), 0);
        for batch in &batches {
            unfounded += reader.read(batch, &mut found).ok()?;
        }
        stats.unfounded += unfounded;
        Some(found)
    }

    /// Where in touched buckets the matches of a row pattern end. Where that cannot be told of all tenants, it is asked of each by itself: what one of them
    /// sends must not stop the rule for others.
    fn steps_of_matches<'t>(&mut self, touched: &'t Touched, relevant: &Matter) -> Result<Vec<Steps<'t>>, DetectError> {
        let window = self.window_micros();
        let all = || touched.iter().map(move |(bucket, oldest, newest)| (bucket, oldest, newest.plus_micros(window)));
        if let Ok(steps) = self.follow_pattern(all()) {
            return Ok(steps);
        }
        let mut tenants: BTreeMap<&TenantId, Vec<_>> = BTreeMap::new();
        all().for_each(|one| tenants.entry(one.0.tenant).or_default().push(one));
        let mut steps = Vec::new();
        for (tenant, own) in tenants {
            match self.follow_pattern(own.into_iter()) {
                Ok(of_tenant) => steps.extend(of_tenant),
                Err(error) => self.set_aside(tenant, error, newest_of(relevant, tenant))?,
            }
        }
        Ok(steps)
    }

    /// Where a rule is to be run in some buckets if nothing of them is known yet.
    pub(crate) fn steps_there_are<'t>(&mut self, buckets: &'t [(TenantId, String)]) -> Result<Vec<Steps<'t>>, DetectError> {
        let (always, never) = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
        let mut steps = Vec::new();
        let (mut rows, mut from) = (0, 0);
        for (place, (tenant, bucket)) in buckets.iter().enumerate() {
            let events = self.state.events(tenant, bucket, always, never);
            if self.plan.row_pattern.is_none() {
                steps.push(Steps::at_each(tenant, bucket, events));
                continue;
            }
            rows += events.len();
            if rows >= ROWS_OF_A_RUN || place + 1 == buckets.len() {
                let some = buckets[from..=place].iter().map(|(tenant, bucket)| (Named::new(tenant, bucket), always, never));
                steps.extend(self.follow_pattern(some)?);
                (rows, from) = (0, place + 1);
            }
        }
        Ok(steps)
    }

    /// Shows a row pattern the events of some buckets that it has not seen, from the oldest of them on, and answers at which instants from there on up to
    /// another time its matches end.
    fn follow_pattern<'t>(
        &mut self,
        buckets: impl Iterator<Item = (Named<'t>, Timestamp, Timestamp)>,
    ) -> Result<Vec<Steps<'t>>, DetectError> {
        let Self { rule, plan, state, sides, names, .. } = self;
        let Some(pattern) = &plan.row_pattern else { return Ok(Vec::new()) };
        let count = buckets.size_hint().0;
        let (mut walks, mut asked, mut shown) = (Vec::with_capacity(count), Vec::with_capacity(count), ShownEvents::new(count));
        let mut whose = Vec::with_capacity(count);
        let mut work = Work::default();
        let mut numbers: HashMap<&TenantId, usize, ahash::RandomState> = HashMap::default();
        for (named, oldest, to) in buckets {
            let fresh = || Known::Pattern(Walks::default());
            let Some((known, new)) = state.follow(named, oldest, Takes::default(), fresh) else { continue };
            let Named { tenant, bucket, .. } = named;
            shown.add(walks.len(), new);
            walks.push(known.into_walks());
            whose.push(named);
            let next = numbers.len();
            work.add_bucket(*numbers.entry(tenant).or_insert(next));
            asked.push((Steps { tenant, bucket, runs: Vec::new(), cost: 0 }, oldest, to));
        }
        let back_micros = rule.header.window_s * 1_000_000;
        let mut ran = Ok(());
        while let Some((origins, events)) = shown.next_part(pattern.events_of_a_run()) {
            let events = match begun::begin(pattern.shown(), events, sides, names) {
                Ok(events) => events,
                Err(error) => {
                    ran = Err(error);
                    break;
                }
            };
            ran = pattern.run(&events, origins, &mut walks, back_micros, &mut work, |bucket, run| {
                let (steps, oldest, to) = &mut asked[bucket];
                if within(run.instant, *oldest, *to) {
                    steps.runs.push(run);
                }
            });
            if ran.is_err() {
                break;
            }
        }
        for (named, known) in whose.into_iter().zip(walks) {
            // After a failure nobody knows how far it came: from the start, the next time.
            state.followed(named, ran.is_ok().then_some(Known::Pattern(known)));
        }
        ran.map_err(|source| DetectError::Query { rule: rule.header.id.clone(), source })?;
        Ok(asked.into_iter().map(|(steps, ..)| steps).filter(|steps| !steps.runs.is_empty()).collect())
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
}
