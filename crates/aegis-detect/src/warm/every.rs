//! Rules that every tenant has, and that wait for their windows: filled for one tenant after the other, as a tenant's own is.
//! Promises that such a rule tells nothing of a tenant before the record that says so, or until it knows that tenant's window by itself; that those who
//! spoke last come first, and the silent when they speak again; and that one tenant's events at a time are read, and held until the log has the record.

use std::collections::BTreeMap;
use std::sync::Arc;

use aegis_model::{PARTITIONS, RuleWarmRecord, SecurityEvent, TenantId, Timestamp, partition_of};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{LOOK, Step, Wanted, WarmUp, Whose};
use crate::back::reach_of;
use crate::common::{CommonKnown, KnownCommon};
use crate::engine::{Engine, EngineCheckpoint, TickOutput, guarded};
use crate::error::DetectError;
use crate::evaluate::RunningRule;
use crate::follow::Running;
use crate::schema::EventBatch;
use crate::scope::Since;
use crate::shape::Shape;
use crate::sieve::Sieve;
use crate::worker::{Shared, WorkerStats};

/// Tenants of whom something came within this time before a rule are filled without their speaking again, microseconds.
const RECENT: i64 = 3_600_000_000;
/// Of so many it is known at once that they are wanted, beside those of whom nothing can be read.
const MOST_WANTED: usize = 64;

/// How a tenant stands to a rule that waited for its window when it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Waits {
    /// All of the tenant's events from here on were kept when the rule came, microseconds.
    held: i64,
    /// Once it was filled: from when on it would have known the tenant's window by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    whole: Option<Timestamp>,
    /// It cannot be filled, whoever is asked: nobody is again in this life.
    #[serde(skip)]
    is_given_up: bool,
}

impl Waits {
    const fn of(held: i64, whole: Option<Timestamp>) -> Self {
        Self { held, whole, is_given_up: false }
    }
}

impl KnownCommon {
    /// True if it was not filled for a tenant, and does not know that tenant's window by itself at this time.
    fn waits_for(&self, tenant: &TenantId, now: Timestamp) -> bool {
        self.since.of(tenant) > now && self.waits.get(tenant).is_none_or(|waits| waits.whole.is_none())
    }

    /// Since when all of a tenant's events were kept when it came: of one that was not there yet, all are.
    fn held(&self, tenant: &TenantId) -> i64 {
        self.waits.get(tenant).map_or(i64::MIN, |waits| waits.held)
    }

    fn is_given_up_of(&self, tenant: &TenantId) -> bool {
        self.waits.get(tenant).is_some_and(|waits| waits.is_given_up)
    }
}

impl CommonKnown {
    /// What stands of a record's rule in the partition of its tenant, if it is that version.
    fn of_record(&self, record: &RuleWarmRecord) -> Option<&KnownCommon> {
        let standing = self.standing(&record.rule_id, partition_of(&record.tenant_id));
        standing.filter(|known| known.revision == record.revision)
    }

    fn of_record_mut(&mut self, record: &RuleWarmRecord) -> Option<&mut KnownCommon> {
        let revision = self.of_record(record)?.revision;
        self.standing_all_mut().find(|known| known.rule_id == record.rule_id && known.revision == revision)
    }

    /// For whom the rule waits that stands in a partition, where it came at the same time as this.
    pub(crate) fn waits_in(&self, rule_id: &str, partition: u32, since: &Since) -> Option<BTreeMap<TenantId, Waits>> {
        let before = self.standing(rule_id, partition)?;
        let is_the_same = before.since.of_partition(partition) == since.of_partition(partition);
        let there = before.waits.iter().filter(|(tenant, _)| partition_of(tenant) == partition);
        is_the_same.then(|| there.map(|(tenant, waits)| (tenant.clone(), waits.clone())).collect())
    }

    pub(super) fn note_given_up(&mut self, record: &RuleWarmRecord) {
        if let Some(known) = self.of_record_mut(record) {
            let held = known.held(&record.tenant_id);
            known.waits.entry(record.tenant_id.clone()).or_insert(Waits::of(held, None)).is_given_up = true;
        }
    }

    /// A rule was filled for a tenant, and acts there from now on.
    fn note_filled(&mut self, record: &RuleWarmRecord, now: Timestamp) {
        if let Some(known) = self.of_record_mut(record) {
            let tenant = &record.tenant_id;
            let waits = Waits::of(known.held(tenant), Some(known.since.of(tenant)));
            known.waits.insert(tenant.clone(), waits);
            known.since.of_tenant.insert(tenant.clone(), now);
        }
    }
}

impl RunningRule {
    pub(crate) fn runs_for(&self, tenant: &TenantId) -> bool {
        self.stats.quarantined.is_none() && !self.stats.set_aside.contains_key(tenant)
    }
}

impl Engine {
    /// What every tenant has under an id, if that is what this one has.
    fn common_rule(&self, tenant: &TenantId, id: &str) -> Option<&RunningRule> {
        self.rules.iter().find(|running| running.is_common(id) && running.scope.covers(tenant))
    }

    /// What need not be read to fill a rule for a tenant: who makes many events that it does not look at must not keep it from being filled. None of one that
    /// contains: that no receipt is left out is told by all of them.
    pub(super) fn sieve_of(&self, whose: Whose, tenant: &TenantId, id: &str) -> Option<Arc<Sieve>> {
        let running = match whose {
            Whose::Own => self.own_rule(tenant, id)?,
            Whose::EveryTenant => self.common_rule(tenant, id)?,
        };
        (!running.rule.header.contains()).then(|| Arc::new(Sieve::of_plans(std::iter::once(&running.plan))))
    }

    fn set_common_since(&mut self, tenant: &TenantId, id: &str, since: Timestamp) {
        let its = self.rules.iter_mut().filter(|running| running.is_common(id) && running.scope.covers(tenant));
        its.for_each(|running| {
            running.since.of_tenant.insert(tenant.clone(), since);
        });
    }

    /// A rule that every tenant has, and that waited for this one's window, begins anew with all of it, and acts from then on. It has told nothing of the
    /// tenant that could be taken back; of others it keeps what it knows. Where it fails over what it is filled with, that is this tenant's alone.
    pub(crate) fn fill_common(
        &mut self,
        tenant: &TenantId,
        id: &str,
        since: Timestamp,
        events: Vec<SecurityEvent>,
    ) -> TickOutput {
        let output = self.end_for(tenant, id);
        let is_it = |running: &RunningRule| running.is_common(id) && running.scope.covers(tenant);
        let Some(place) = self.rules.iter().position(is_it) else { return output };
        let batch = Arc::new(EventBatch::new(events.into_iter().map(Arc::new).collect()));
        let (settled, quotas) = (&self.settled, self.config.quotas);
        let running = &mut self.rules[place];
        running.state.forget(tenant);
        running.lacks.remove(tenant);
        running.since.of_tenant.insert(tenant.clone(), since);
        if let Err(error) = guarded(running, |running| running.keep_only(&batch, settled, quotas))
            && let Err(error) = running.set_aside(tenant, error, None)
        {
            running.quarantine(&error);
        }
        self.know_told_where(place, |of| of == tenant);
        output
    }
}

impl Engine {
    /// Rules that look back, and that another program had not, whose checkpoint this is, or not in this text.
    pub(crate) fn new_of_program(&self, checkpoint: &EngineCheckpoint) -> Vec<String> {
        let looks_back = |running: &&RunningRule| running.plan.shape != Shape::Stateless && running.plan.sources.is_none();
        let new = self.rules.iter().filter(|running| running.is_of_program && !checkpoint.has(running)).filter(looks_back);
        new.map(|running| running.rule.header.id.clone()).collect()
    }

    /// The program's rule of an id.
    fn of_program_mut(&mut self, id: &str) -> Option<&mut RunningRule> {
        self.rules.iter_mut().find(|running| running.is_of_program && running.is_common(id))
    }
}

impl WarmUp {
    /// Something of a tenant was taken.
    pub(crate) fn note_spoke(&mut self, tenant: &TenantId) {
        if let Some(spoke) = self.spoke.as_mut().filter(|spoke| !spoke.contains(tenant)) {
            spoke.insert(tenant.clone());
        }
    }

    /// True if the same is wanted already: how far the consumer has to be for it does not change while the tenant speaks on.
    fn has(&self, wanted: &Wanted) -> bool {
        let mut all = self.step.as_ref().map(Step::wanted).into_iter().chain(&self.wanted);
        all.any(|known| known.whose == wanted.whose && known.record == wanted.record)
    }
}

impl Running {
    /// Since when the events are kept of those tenants of a partition for whom a rule waits that comes now. To be asked before it comes, whose window would
    /// count.
    pub(crate) fn waits_where(&self, since: &Since, partition: u32, now: Timestamp) -> BTreeMap<TenantId, Waits> {
        let there = self.engine.settled.keys().filter(|tenant| partition_of(tenant) == partition && since.of(tenant) > now);
        there.map(|tenant| (tenant.clone(), Waits::of(self.held_from(tenant), None))).collect()
    }

    /// Rules that came with the program, and by no record, came where the life before ended, which kept each partition's events from some time on: they wait
    /// for their windows as an operator's do, and are filled like them.
    pub(crate) fn wait_for_windows_of(&mut self, new: &[String], kept: &BTreeMap<u32, i64>) {
        let Some(now) = self.stored else { return };
        // Nothing was kept for any of them: none says of another that it was.
        for id in new {
            let Some(running) = self.engine.of_program_mut(id) else { continue };
            let (stands, unknown) = (running.scope.partitions(), now.plus_micros(running.window_micros()));
            let of_partition = (0..PARTITIONS).filter(|partition| stands.has(*partition)).map(|partition| (partition, unknown));
            running.since.join(Since { of_tenant: BTreeMap::new(), of_partition: of_partition.collect() });
            tracing::info!(
                rule = id,
                "the program has a rule that it had not, or not in this text; where its window is not kept, it waits"
            );
        }
        for (id, partition) in new.iter().flat_map(|id| (0..PARTITIONS).map(move |partition| (id, partition))) {
            let stands = |running: &&mut RunningRule| running.scope.partitions().has(partition);
            let Some(window) = self.engine.of_program_mut(id).filter(stands).map(|running| running.window_micros()) else {
                continue;
            };
            let of_others = self.engine.common_kept_from(partition, now);
            let kept_from = kept.get(&partition).map_or(of_others, |kept| of_others.min(Timestamp::from_micros(*kept)));
            let since = self.whole_from(window, partition, kept_from, now);
            let has_to_wait = since.latest().is_some_and(|latest| latest > now);
            let waits = if has_to_wait { self.waits_where(&since, partition, now) } else { BTreeMap::new() };
            let Some(running) = self.engine.of_program_mut(id) else { continue };
            if has_to_wait {
                running.since.join(since.clone());
                self.own.changed.know_of_program(id, partition, since, waits);
            } else {
                running.since.leave([partition].into_iter().collect());
            }
        }
    }

    /// Has rules filled that wait at this time, for those of some tenants who spoke lately; and for any other that speaks.
    pub(crate) fn listen(&mut self, is_of: impl Fn(&TenantId) -> bool, now: Timestamp) {
        self.warm.counts_again_at = None;
        if !self.warm.is_possible()
            || !self.own.changed.standing_all().any(|known| known.since.latest().is_some_and(|at| at > now))
        {
            return;
        }
        let marks = &self.engine.watermarks;
        let is_recent = |tenant: &&TenantId| marks.bus_time(tenant).is_some_and(|at| at >= now.plus_micros(-RECENT));
        let recent = marks.tenants().filter(|tenant| is_of(tenant)).filter(is_recent);
        self.warm.spoke.get_or_insert_default().extend(recent.cloned());
    }

    /// Takes up some of those who spoke, the last first, for whom rules wait that every tenant has.
    pub(super) fn want_of_those_who_spoke(&mut self) {
        let (Some(spoke), Some(now)) = (self.warm.spoke.as_mut().map(std::mem::take), self.stored) else { return };
        let last = |tenant: TenantId| (self.engine.watermarks.bus_time(&tenant), tenant);
        let mut spoke: Vec<(Option<Timestamp>, TenantId)> = spoke.into_iter().map(last).collect();
        spoke.sort_unstable();
        while self.warm.fresh() < MOST_WANTED
            && let Some((_, tenant)) = spoke.pop()
        {
            let wanted = self.wanted_of(&tenant, now);
            wanted.into_iter().for_each(|wanted| self.warm.want(wanted));
        }
        self.warm.spoke.get_or_insert_default().extend(spoke.into_iter().map(|(_, tenant)| tenant));
    }

    /// What rules that every tenant has are to be filled with of one of them, where that helps now.
    fn wanted_of(&self, tenant: &TenantId, now: Timestamp) -> Vec<Wanted> {
        let wanted = |known: &KnownCommon| {
            let running = self.engine.common_rule(tenant, &known.rule_id).filter(|running| self.may_be_filled(running))?;
            let (from, to) = (now.plus_micros(-reach_of(running)), Timestamp::from_micros(known.held(tenant)));
            let (rule_id, revision, behind) = (known.rule_id.clone(), known.revision, self.warm.last_event);
            let record = RuleWarmRecord { tenant_id: tenant.clone(), rule_id, revision };
            let contains = running.rule.header.contains();
            let (whose, failures, rests_until) = (Whose::EveryTenant, 0, None);
            let wanted = Wanted { whose, record, from, to, behind, contains, failures, rests_until };
            let helps = running.runs_for(tenant) && !known.is_given_up_of(tenant) && !self.is_gone(tenant, from);
            (helps && self.is_final(&wanted) && !self.warm.has(&wanted)).then_some(wanted)
        };
        // Of whom nothing was ever proved, whoever reaches the bus may have made up.
        if self.engine.watermarks.proved_before(tenant, 0).is_none() {
            return Vec::new();
        }
        let partition = partition_of(tenant);
        let there = self.own.changed.standing_all().filter(|known| known.since.of_partition.contains_key(&partition));
        there.filter(|known| known.waits_for(tenant, now)).filter_map(wanted).collect()
    }

    /// True while this version of a rule that every tenant has waits for one's window.
    pub(super) fn waits_for_window_of(&self, record: &RuleWarmRecord) -> bool {
        let now = self.stored.unwrap_or(Timestamp::from_micros(i64::MIN));
        self.own.changed.of_record(record).is_some_and(|known| known.waits_for(&record.tenant_id, now))
    }

    /// Takes a record that a rule that every tenant has knows one's window. Nothing has changed where it fails; where nothing can be read, the rule waits on.
    pub(crate) async fn take_common_warm(
        &mut self,
        record: &RuleWarmRecord,
        now: Timestamp,
        shared: &Shared,
    ) -> Result<(), DetectError> {
        let read = self.warm.take_told(Whose::EveryTenant, record);
        let RuleWarmRecord { tenant_id, rule_id, .. } = record;
        let waits = |known: &&KnownCommon| known.waits_for(tenant_id, now);
        let Some(held) = self.own.changed.of_record(record).filter(waits).map(|known| known.held(tenant_id)) else {
            return Ok(());
        };
        let may = |running: &&RunningRule| self.may_be_filled(running) && running.runs_for(tenant_id);
        let Some(running) = self.engine.common_rule(tenant_id, rule_id).filter(may) else { return Ok(()) };
        let (span, contains) =
            ((now.plus_micros(-reach_of(running)), Timestamp::from_micros(held)), running.rule.header.contains());
        let sieve = self.engine.sieve_of(Whose::EveryTenant, tenant_id, rule_id);
        let asked = (Whose::EveryTenant, record);
        let Some(past) = self.past_of_record(read, asked, span, contains, sieve).await else { return Ok(()) };
        // What rules have put off is of the time before.
        self.catch_up(shared).await?;
        let started = self.clock.now();
        let mut events = self.events_of(tenant_id).await?;
        events.extend(past);
        tracing::info!(tenant = %tenant_id, rule = rule_id, events = events.len(), "a rule that every tenant has knows the tenant's window");
        let output = self.engine.fill_common(tenant_id, rule_id, now, events);
        self.tell(WorkerStats::default(), output, Vec::new(), started, shared).await?;
        self.own.changed.note_filled(record, now);
        self.warm.counts_again_at = None;
        Ok(())
    }

    /// Of each tenant for whom one was filled: which, and since when the stream has the tenant's events.
    pub(super) fn filled_of_every_tenant(&self) -> impl Iterator<Item = (&TenantId, &RunningRule, i64)> {
        self.own.changed.standing_all().flat_map(move |known| {
            let filled = known.waits.iter().filter(|(_, waits)| waits.whole.is_some());
            filled.filter_map(move |(tenant, waits)| {
                let running = self.engine.common_rule(tenant, &known.rule_id)?;
                Some((tenant, running, waits.held))
            })
        })
    }

    /// Those that were filled for a tenant wait until they know its window by themselves.
    pub(super) fn wait_anew_of_every_tenant(&mut self, tenant: &TenantId) {
        for known in self.own.changed.standing_all_mut() {
            let Some(waits) = known.waits.get_mut(tenant) else { continue };
            let Some(whole) = waits.whole.take() else { continue };
            known.since.of_tenant.insert(tenant.clone(), whole);
            self.engine.set_common_since(tenant, &known.rule_id, whole);
        }
    }

    /// Counts now and then for how many tenants each rule waits that every tenant has, and lets go of what no restart needs any more. True if a number is
    /// another one than before.
    pub(crate) fn count_waiting(&mut self) -> bool {
        let now = Instant::now();
        let Some(stored) = self.stored.filter(|_| self.warm.counts_again_at.is_none_or(|at| at <= now)) else { return false };
        self.warm.counts_again_at = Some(now + LOOK);
        let Engine { rules, watermarks, .. } = &mut self.engine;
        let (mut is_other, mut is_any) = (false, false);
        for running in rules.iter_mut().filter(|running| running.scope.owner().is_none()) {
            let waits = running.since.latest().is_some_and(|latest| latest > stored);
            let is_waited_for = |tenant: &&TenantId| running.scope.covers(tenant) && running.since.of(tenant) > stored;
            let warming = if waits { watermarks.tenants().filter(is_waited_for).count() as u64 } else { 0 };
            is_other |= running.stats.warming != warming;
            is_any |= waits;
            running.stats.warming = warming;
        }
        if !is_any {
            self.warm.spoke = None;
        }
        self.forget_waits();
        is_other
    }

    /// Once the stream has all that a rule looks back to, and the rule knows its window by itself, nobody has to know that it was filled.
    fn forget_waits(&mut self) {
        let engine = &self.engine;
        for known in self.own.changed.standing_all_mut().filter(|known| !known.waits.is_empty()) {
            let KnownCommon { rule_id, since, waits, .. } = known;
            waits.retain(|tenant, waits| {
                let Some(settled) = engine.settled.get(tenant) else { return true };
                let whole = waits.whole.unwrap_or_else(|| since.of(tenant));
                let reach = || engine.common_rule(tenant, rule_id).map_or(0, reach_of);
                *settled < whole || settled.plus_micros(-reach()).as_micros() < waits.held
            });
        }
    }
}

#[cfg(test)]
mod tests;
