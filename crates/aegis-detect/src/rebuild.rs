//! What is found again from the events of the window: a rule's matches after a restart, and all of a match of which only the ends are kept.
//! Right because a match at an instant depends on the events of the window that ends there, and on no other.

use std::sync::Arc;

use aegis_model::{SecurityEvent, TenantId, Timestamp};

use crate::engine::{Settled, key_rules};
use crate::episode::{Order, order_of};
use crate::error::DetectError;
use crate::evaluate::RunningRule;
use crate::find::{ROWS_OF_A_RUN, Slice};
use crate::matter::Matter;
use crate::output::{Found, Match};
use crate::schema::EventBatch;
use crate::shape::Shape;
use crate::stepped::{ROWS_OF_A_TENANT, Steps};
use crate::verify::is_ahead_of_time;
use crate::window::{Far, Named, Quotas, SavedKeys};

impl RunningRule {
    /// Keeps events without looking for matches: what a rule knows that was changed since.
    pub(crate) fn keep_only(&mut self, batch: &Arc<EventBatch>, settled: &Settled, quotas: Quotas) -> Result<(), DetectError> {
        if self.plan.shape != Shape::Stateless {
            let relevant = self.relevant(batch)?.without(|one| !self.may_need(&one.event, settled));
            self.keep(&relevant, quotas);
            self.wait_again(settled);
        }
        Ok(())
    }

    /// False for an event that had left the rule's window, or that no rule is shown: a restart reads more than each rule needs, and what is stale
    /// must not take a quota from what is not.
    fn may_need(&self, event: &SecurityEvent, settled: &Settled) -> bool {
        let is_stale = |settled: &Timestamp| event.ts < self.settled_to(*settled).plus_micros(-self.window_micros());
        !is_ahead_of_time(event) && !settled.get(&event.tenant_id).is_some_and(is_stale)
    }

    /// The state after a restart: events of the windows, those of the stream and those of the checkpoint (`far`), what was told, and the matches at instants
    /// that were not `settled`. What was told of a tenant of whom not all events are there (`is_cut`), or of whom a quota does not take all, stands.
    pub(crate) fn rebuild(
        &mut self,
        batch: &Arc<EventBatch>,
        (told, far): (SavedKeys, Far),
        settled: &Settled,
        is_cut: &dyn Fn(&TenantId) -> bool,
        quotas: Quotas,
    ) -> Result<(), DetectError> {
        let _of_before = self.losses.take();
        // First what was there first: where a quota is full, it is the same that has room.
        let mut relevant = self.take_far(&far)?;
        relevant.extend_from_slice(self.relevant(batch)?.events());
        relevant.retain(|one| self.may_need(&one.event, settled));
        self.state.load_keys(told);
        // Of a tenant that has a rule of its own in its place since, what was told stands.
        let scope = &self.scope;
        self.state.tenants.retain(|tenant, _| scope.covers(tenant));
        let open = |tenant: &TenantId, at: Timestamp| settled.get(tenant).is_none_or(|settled| at >= *settled);
        let mut found = match self.plan.shape {
            Shape::Stateless => self.find_stateless(relevant.into_iter().map(|one| one.event).collect())?,
            Shape::Sliding | Shape::Incremental | Shape::Stepped | Shape::Pattern => {
                self.keep(&Matter::of(relevant), quotas);
                self.find_all_there_are(&open)?
            }
            Shape::Deferred => {
                self.keep(&Matter::of(relevant), quotas);
                for (tenant, part) in far.iter().filter(|(tenant, _)| self.scope.covers(tenant)) {
                    self.state.know_taken(tenant, part);
                }
                self.wait_again(settled);
                Vec::new()
            }
        };
        found.retain(|f| open(&f.tenant, f.found.instant));
        self.insert(found, quotas);
        if self.plan.shape != Shape::Stateless {
            self.state.keys_mut().for_each(crate::episode::KeyState::forget_details);
        }
        // All were asked for above, each for its tenant.
        let is_lost = self.note_overruns();
        let lost = self.losses.tenants();
        let is_cut = |tenant: &TenantId| is_cut(tenant) || self.lacks.contains_key(tenant);
        let stands = |tenant: &TenantId| is_lost || lost.contains(tenant) || is_cut(tenant);
        for (tenant, of_tenant) in self.state.tenants.iter_mut().filter(|(tenant, _)| stands(tenant)) {
            let is_read = self.plan.is_read || self.read_by.contains(tenant);
            let (rules, is_cut) = (key_rules(&self.rule, &self.plan, tenant, is_read), is_cut(tenant));
            for (_, key) in of_tenant.buckets.values_mut().flat_map(|bucket| bucket.keys_mut()) {
                key.let_stand();
                if is_cut {
                    key.forget_untold(rules);
                }
            }
        }
        Ok(())
    }

    /// The matches of everything that is kept. Where that fails, of each tenant's.
    fn find_all_there_are(&mut self, open: &impl Fn(&TenantId, Timestamp) -> bool) -> Result<Vec<Found>, DetectError> {
        let buckets = self.state.buckets();
        if let Ok(found) = self.find_all(&buckets, open) {
            return Ok(found);
        }
        let mut found = Vec::new();
        for own in buckets.chunk_by(|a, b| a.0 == b.0) {
            match self.find_all(own, open) {
                Ok(matches) => found.extend(matches),
                Err(error) => {
                    let (always, never) = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
                    let (tenant, bucket) = &own[own.len() - 1];
                    let newest = self.state.events(tenant, bucket, always, never).last().cloned();
                    self.set_aside(tenant, error, newest.as_ref())?;
                }
            }
        }
        Ok(found)
    }

    /// The matches of some buckets.
    fn find_all(
        &mut self,
        buckets: &[(TenantId, String)],
        open: &impl Fn(&TenantId, Timestamp) -> bool,
    ) -> Result<Vec<Found>, DetectError> {
        if self.plan.pipeline.is_some() {
            return self.follow_all(buckets);
        }
        if self.plan.is_run_by_instant() {
            return self.find_by_instant(buckets, open);
        }
        let (always, never) = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
        let mut found = Vec::new();
        let mut slice = Slice::default();
        for (tenant, bucket) in buckets {
            if let Some(rows) = slice.add(self.state.events(tenant, bucket, always, never)) {
                found.extend(self.run(rows, None)?);
            }
        }
        if let Some(rows) = slice.rest() {
            found.extend(self.run(rows, None)?);
        }
        Ok(found)
    }

    /// The same of a query that is run for one instant at a time, for those that are open.
    fn find_by_instant(
        &mut self,
        buckets: &[(TenantId, String)],
        open: &impl Fn(&TenantId, Timestamp) -> bool,
    ) -> Result<Vec<Found>, DetectError> {
        let mut found = Vec::new();
        for Steps { tenant, bucket, runs, .. } in self.steps_there_are(buckets)? {
            let (mut left, mut given_up) = (ROWS_OF_A_TENANT, 0);
            for run in runs.into_iter().rev().filter(|run| open(tenant, run.instant)) {
                let seen = self.seen_at(tenant, bucket, &run).len();
                let Some(rest) = left.checked_sub(seen) else {
                    given_up += 1;
                    continue;
                };
                left = rest;
                let own = self.matches_at(tenant, bucket, &run)?;
                self.stats.matches += own.len() as u64;
                found.extend(own);
                // Each has the work of a tick.
                if self.note_overruns() {
                    self.miss_instants(tenant, bucket);
                }
            }
            if given_up > 0 {
                self.give_up_instants(tenant, bucket, given_up);
            }
        }
        Ok(found)
    }

    /// The same of an incremental query.
    fn follow_all(&mut self, buckets: &[(TenantId, String)]) -> Result<Vec<Found>, DetectError> {
        let (always, never) = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
        let mut found = Vec::new();
        let (mut rows, mut from) = (0, 0);
        for (place, (tenant, bucket)) in buckets.iter().enumerate() {
            rows += self.state.events(tenant, bucket, always, never).len();
            if rows >= ROWS_OF_A_RUN || place + 1 == buckets.len() {
                let some = &buckets[from..=place];
                found.extend(self.follow(some.iter().map(|(tenant, bucket)| (Named::new(tenant, bucket), always)))?);
                (rows, from) = (0, place + 1);
            }
        }
        Ok(found)
    }

    /// The matches at one instant, and at others around it, which may lack what they need.
    fn find_at(&mut self, tenant: &TenantId, bucket: &str, instant: Timestamp) -> Result<Vec<Found>, DetectError> {
        let (from, to) = (instant.plus_micros(-self.window_micros()), instant.plus_micros(self.plan.reach.ahead));
        let slice = self.state.events(tenant, bucket, from, to).to_vec();
        let fixed = self.plan.is_run_by_instant().then(|| (tenant.clone(), instant));
        self.run(slice, fixed)
    }

    /// All of some matches of a key.
    pub(crate) fn find_again(
        &mut self,
        tenant: &TenantId,
        bucket: &str,
        key_text: &str,
        wanted: &[Order],
    ) -> Result<Vec<Match>, DetectError> {
        let mut all = Vec::with_capacity(wanted.len());
        for order in wanted {
            let found = self.find_at(tenant, bucket, order.0)?;
            if self.note_overruns() {
                self.miss_instants(tenant, bucket);
            }
            all.extend(found.into_iter().filter(|f| f.key_text == key_text && order_of(&f.found) == *order).map(|f| f.found));
        }
        Ok(all)
    }
}
