//! What operators make of the rules that every tenant has, while detection runs: each change is a record in the log of each partition, and holds there
//! from its place on. Promises that other rules keep their state, that what comes finds its window filled before it acts, that nothing of before its record
//! raises an alert, and that it is the same wherever the log is cut, and over restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aegis_bus::{BusError, Delivered, subject};
use aegis_model::{CommonRuleRecord, SecurityEvent, TenantId, Timestamp, partition_of};
use serde::{Deserialize, Serialize};

use crate::distrust::Refusal;
use crate::engine::{Engine, TickOutput, guarded};
use crate::error::DetectError;
use crate::evaluate::RunningRule;
use crate::finished::END_OF_TIME;
use crate::follow::Running;
use crate::own::Own;
use crate::plan::RulePlan;
use crate::rule::Rule;
use crate::schema::EventBatch;
use crate::scope::{Partitions, Scope, Since};
use crate::shape::Shape;
use crate::warm::every::Waits;
use crate::worker::{Shared, WorkerStats};

/// A version of a rule that every tenant has, checked; and planned, unless it is disabled.
#[derive(Debug)]
pub struct CommonVersion {
    pub(crate) rule: Rule,
    pub(crate) plan: Option<RulePlan>,
    /// True if its text is the program's.
    pub(crate) is_of_program: bool,
}

impl CommonVersion {
    /// The rule, as it is written.
    #[must_use]
    pub const fn rule(&self) -> &Rule {
        &self.rule
    }
}

/// What stands under an id from some time on, in each of some partitions.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) rule_id: String,
    /// None: there is no such rule.
    pub(crate) stands: Option<CommonVersion>,
    pub(crate) since: Since,
}

/// An operator's change of a rule, as a checkpoint knows it: where it stands, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownCommon {
    pub(crate) rule_id: String,
    pub(crate) revision: i64,
    hash: String,
    pub(crate) since: Since,
    /// Tenants for whom it waited for its window when it came; one of before has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) waits: BTreeMap<TenantId, Waits>,
}

/// What stands of operators' changes, by rule id and revision: several of one rule while not all partitions have the newest.
#[derive(Debug, Default)]
pub(crate) struct CommonKnown(BTreeMap<(String, i64), KnownCommon>);

impl CommonKnown {
    pub(crate) fn all(&self) -> Vec<KnownCommon> {
        self.0.values().cloned().collect()
    }

    /// True while it stands in no partition.
    fn is_new(&self, rule_id: &str, revision: i64) -> bool {
        !self.0.contains_key(&(rule_id.to_owned(), revision))
    }

    /// What stands of a rule in a partition.
    pub(crate) fn standing(&self, rule_id: &str, partition: u32) -> Option<&KnownCommon> {
        let of_rule = self.0.range((rule_id.to_owned(), i64::MIN)..=(rule_id.to_owned(), i64::MAX));
        of_rule.map(|(_, known)| known).find(|known| known.since.of_partition.contains_key(&partition))
    }

    fn revision(&self, rule_id: &str, partition: u32) -> Option<i64> {
        self.standing(rule_id, partition).map(|known| known.revision)
    }

    /// What stands of all of them.
    pub(crate) fn standing_all(&self) -> impl Iterator<Item = &KnownCommon> {
        self.0.values()
    }

    pub(crate) fn standing_all_mut(&mut self) -> impl Iterator<Item = &mut KnownCommon> {
        self.0.values_mut()
    }

    /// A rule came with the program, and by no record: it is as the program has it.
    pub(crate) fn know_of_program(&mut self, rule_id: &str, partition: u32, since: Since, waits: BTreeMap<TenantId, Waits>) {
        let revision = self.revision(rule_id, partition).unwrap_or(0);
        let (rule_id, hash) = (rule_id.to_owned(), aegis_canon::sha256_hex(b""));
        self.know(KnownCommon { rule_id, revision, hash, since, waits });
    }

    /// It stands where it says, and what stood there before does not any more.
    fn know(&mut self, known: KnownCommon) {
        let partitions = known.since.partitions();
        for before in self.0.values_mut().filter(|before| before.rule_id == known.rule_id) {
            before.since.leave(partitions);
            before.waits.retain(|tenant, _| !partitions.has_tenant(tenant));
        }
        self.0.retain(|_, before| before.since.partitions() != Partitions::NONE);
        match self.0.get_mut(&(known.rule_id.clone(), known.revision)) {
            Some(same) => {
                same.since.join(known.since);
                same.waits.extend(known.waits);
            }
            None => {
                self.0.insert((known.rule_id.clone(), known.revision), known);
            }
        }
    }
}

impl Own {
    /// The changes of a checkpoint, for an engine that is to be restored from it. One whose text is gone is not known any more: the control plane tells of
    /// what stands at each of its starts.
    pub(crate) async fn know_changed_again(&mut self, engine: &mut Engine, changed: Vec<KnownCommon>) -> Result<(), DetectError> {
        for known in changed {
            let rule = known.rule_id.as_str();
            let text = match &self.texts {
                _ if known.hash == aegis_canon::sha256_hex(b"") => Ok(Some(String::new())),
                Some(texts) => texts.common_text(rule, &known.hash).await,
                None => Ok(None),
            };
            let text = text.map_err(|reason| BusError::Unavailable { reason })?;
            let Some(text) = text.filter(|text| aegis_canon::sha256_hex(text.as_bytes()) == known.hash) else {
                tracing::error!(
                    rule,
                    "the text of an operator's change is gone: until it is told again, the rule is as the program has it"
                );
                continue;
            };
            let change = Change { rule_id: rule.to_owned(), stands: self.standing_by(rule, &text), since: known.since.clone() };
            let _of_an_engine_without_state = engine.set_common(change, Vec::new());
            self.changed.know(known);
        }
        Ok(())
    }

    /// What stands of a rule by an operator's change. A text that this program does not take leaves the rule as the program has it.
    fn standing_by(&self, rule: &str, text: &str) -> Option<CommonVersion> {
        match self.common.standing_by(rule, text) {
            Ok(stands) => stands,
            Err(error) => {
                tracing::error!(rule, %error, "an operator's version of a rule does not load; the rule is as the program has it");
                self.common.standing_by(rule, "").ok().flatten()
            }
        }
    }
}

impl Engine {
    /// Makes a rule another one in some partitions; all other rules keep what they have, and so does this one elsewhere. `events` are those of the tenants
    /// of these partitions, as they were taken: it knows those of its window, and a match of before its time is none. Answers what there is to say of the
    /// rule of before, which sees nothing more of them.
    pub(crate) fn set_common(&mut self, change: Change, events: Vec<SecurityEvent>) -> TickOutput {
        let Change { rule_id: id, stands, since } = change;
        let partitions = since.partitions();
        let hash = stands.as_ref().map(|version| version.rule.hash.clone());
        let is_before = |running: &RunningRule| running.is_common(&id) && Some(&running.rule.hash) != hash.as_ref();
        let output = self.end_common(&is_before, partitions);
        self.rules.iter_mut().filter(|running| is_before(running)).for_each(|before| before.leave(partitions));
        self.rules.retain(|running| !is_before(running) || running.scope.partitions() != Partitions::NONE);
        if let Some(place) = stands.and_then(|version| self.place_of_common(version)) {
            let batch = Arc::new(EventBatch::new(events.into_iter().map(Arc::new).collect()));
            let (settled, quotas) = (&self.settled, self.config.quotas);
            let running = &mut self.rules[place];
            running.join(partitions, since);
            if let Err(error) = guarded(running, |running| running.keep_only(&batch, settled, quotas)) {
                running.quarantine(&error);
            }
            self.know_told_of(place, partitions);
        }
        self.windows.set_common(&self.rules);
        output
    }

    /// Where the version stands among the rules; in no partition yet, if it is new. None for one that is disabled.
    fn place_of_common(&mut self, version: CommonVersion) -> Option<usize> {
        let CommonVersion { rule, plan, is_of_program } = version;
        let plan = plan?;
        let is_it = |running: &RunningRule| running.is_common(&rule.header.id) && running.rule.hash == rule.hash;
        if let Some(place) = self.rules.iter().position(is_it) {
            return Some(place);
        }
        let plan = if self.config.incremental { plan } else { plan.unfollowed() };
        // Who reads alerts comes after those that it reads; a tenant's own is not read.
        let is_above = |running: &RunningRule| match running.scope.owner() {
            None => running.plan.level > plan.level,
            Some(_) => running.plan.sources.is_some(),
        };
        let place = self.rules.iter().position(is_above).unwrap_or(self.rules.len());
        let others = self.own_of.get(&rule.header.id).cloned().unwrap_or_default();
        let scope = Scope::AllBut { of: Partitions::NONE, others };
        let mut running = RunningRule::new(rule, plan, scope, Arc::clone(&self.sides), Arc::clone(&self.names));
        running.is_of_program = is_of_program;
        self.rules.insert(place, running);
        self.know_readers();
        Some(place)
    }

    /// Rules see nothing more of some partitions: what they told and have no match for now never will have one, and is taken back.
    fn end_common(&mut self, is_it: &dyn Fn(&RunningRule) -> bool, partitions: Partitions) -> TickOutput {
        let mut output = TickOutput::default();
        let mut tenants: BTreeSet<TenantId> = BTreeSet::new();
        for running in self.rules.iter().filter(|running| is_it(running) && running.scope.partitions().meets(partitions)) {
            let covered = |tenant: &&TenantId| partitions.has_tenant(tenant) && running.scope.covers(tenant);
            tenants.extend(running.state.tenants.keys().filter(covered).cloned());
        }
        let (now, seen_to) = (self.config.clock.now(), self.watermarks.log_time().unwrap_or(END_OF_TIME));
        for tenant in &tenants {
            let final_before = self.settle_now(tenant, &mut output);
            for running in self.rules.iter_mut().filter(|running| is_it(running) && running.scope.covers(tenant)) {
                running.end_for(tenant, final_before, seen_to, now, &mut output);
            }
        }
        self.tell_impaired(&[], &mut output);
        output
    }

    /// Since when a text stands under an id in a partition, if it does.
    fn common_since(&self, id: &str, hash: &str, partition: u32) -> Option<Since> {
        let is_it = |running: &&RunningRule| running.is_common(id) && running.rule.hash == hash;
        let running = self.rules.iter().find(is_it).filter(|running| running.scope.partitions().has(partition))?;
        let of_tenant = running.since.of_tenant.iter().filter(|(tenant, _)| partition_of(tenant) == partition);
        let of_tenant = of_tenant.map(|(tenant, since)| (tenant.clone(), *since)).collect();
        // What was always there was there before any event, and a checkpoint has no time before that.
        let since = running.since.of_partition(partition).max(Timestamp::from_micros(0));
        Some(Since { of_tenant, of_partition: BTreeMap::from([(partition, since)]) })
    }

    /// Since when all events of a partition's tenants are kept for what every tenant has, at this time.
    pub(crate) fn common_kept_from(&self, partition: u32, now: Timestamp) -> Timestamp {
        let is_there = |running: &&RunningRule| running.scope.partitions().has(partition) && running.plan.sources.is_none();
        let kept = self.rules.iter().filter(is_there);
        let kept = kept.map(|running| running.kept_from(running.since.of_partition(partition), now));
        kept.min().unwrap_or(now)
    }
}

impl RunningRule {
    /// It stands in further partitions, from some time on.
    fn join(&mut self, partitions: Partitions, since: Since) {
        if let Scope::AllBut { of, .. } = &mut self.scope {
            *of = of.and(partitions);
            self.since.join(since);
        }
    }
}

impl Running {
    /// Takes a record of a rule that every tenant has. Nothing has changed where it fails.
    pub(crate) async fn take_common_rule(
        &mut self,
        record: CommonRuleRecord,
        delivered: &Delivered,
        shared: &Shared,
    ) -> Result<(), DetectError> {
        let CommonRuleRecord { partition, rule_id, revision, hash, text } = record;
        match self.own.changed.revision(&rule_id, partition) {
            Some(held) if held > revision && self.is_read_first(delivered.seq) => {
                return self.refuse_rule(delivered, &Refusal::older(None, revision, held), shared).await;
            }
            Some(held) if held >= revision => return Ok(()),
            _ => {}
        }
        let bus_ts = delivered.bus_ts;
        // What rules have put off is of the time before.
        self.catch_up(shared).await?;
        let started = self.clock.now();
        let stands = self.own.standing_by(&rule_id, &text);
        if stands.as_ref().is_some_and(|version| version.rule.header.id != rule_id) {
            tracing::error!(rule = rule_id, "a record names another rule than it holds");
            return Ok(());
        }
        let stays = stands.as_ref().and_then(|version| self.engine.common_since(&rule_id, &version.rule.hash, partition));
        let (since, waits, output) = match stays {
            // The very same text changes nothing.
            Some(since) => {
                let of_before = self.own.changed.waits_in(&rule_id, partition, &since);
                let waits = of_before.unwrap_or_else(|| self.waits_where(&since, partition, bus_ts));
                (since, waits, TickOutput::default())
            }
            None => {
                let plan = stands.as_ref().and_then(|version| version.plan.as_ref().map(|plan| (plan, &version.rule)));
                let since = self.knows_from(plan, partition, bus_ts);
                let waits = plan.map(|_| self.waits_where(&since, partition, bus_ts)).unwrap_or_default();
                let needs_events = plan.is_some_and(|(plan, _)| plan.shape != Shape::Stateless && plan.sources.is_none());
                let mut events = Vec::new();
                if needs_events {
                    let wanted = self.tail.of_tenants(|tenant| partition_of(tenant) == partition);
                    events = self.events_again(&subject::ase_partition(partition), wanted).await?;
                }
                let change = Change { rule_id: rule_id.clone(), stands, since: since.clone() };
                (since, waits, self.engine.set_common(change, events))
            }
        };
        self.tell(WorkerStats::default(), output, Vec::new(), started, shared).await?;
        if self.own.changed.is_new(&rule_id, revision) {
            tracing::info!(rule = rule_id, revision, "a rule that every tenant has changes, partition by partition");
        }
        self.own.changed.know(KnownCommon { rule_id, revision, hash, since, waits });
        self.listen(|tenant| partition_of(tenant) == partition, bus_ts);
        Ok(())
    }

    /// From when on a rule that comes at this time knows all of its window, of each tenant of a partition: at once, unless it is longer than what detection
    /// keeps, or some of that was given up. One that reads alerts begins with none.
    fn knows_from(&self, rule: Option<(&RulePlan, &Rule)>, partition: u32, now: Timestamp) -> Since {
        let Some((plan, rule)) = rule else {
            return Since { of_tenant: BTreeMap::new(), of_partition: BTreeMap::from([(partition, now)]) };
        };
        let kept_from = if plan.sources.is_some() { now } else { self.engine.common_kept_from(partition, now) };
        self.whole_from(rule.header.window_s * 1_000_000, partition, kept_from, now)
    }

    /// From when on all of a window is known that is kept from some time on: of each tenant of a partition, but of those of whom some was given up.
    pub(crate) fn whole_from(&self, window: i64, partition: u32, kept_from: Timestamp, now: Timestamp) -> Since {
        let whole_from = self.engine.lost.before().map_or(now, |gone| gone.plus_micros(window).max(now));
        let since = kept_from.plus_micros(window).max(whole_from);
        let cut = self.tail.cut();
        let gone: BTreeSet<&TenantId> = cut.keys().chain(self.engine.lost.tenants()).collect();
        let of_tenant = gone.into_iter().filter(|tenant| partition_of(tenant) == partition).filter_map(|tenant| {
            let gone = cut.get(tenant).copied().max(self.engine.lost.to(tenant))?.plus_micros(window);
            (gone > since).then(|| (tenant.clone(), gone))
        });
        Since { of_tenant: of_tenant.collect(), of_partition: BTreeMap::from([(partition, since)]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(revision: i64, partitions: &[u32]) -> KnownCommon {
        let since = Since {
            of_tenant: BTreeMap::new(),
            of_partition: partitions.iter().map(|partition| (*partition, Timestamp::from_micros(revision))).collect(),
        };
        KnownCommon { rule_id: "T-1".into(), revision, hash: String::new(), since, waits: BTreeMap::new() }
    }

    #[test]
    fn the_newest_change_stands_partition_by_partition() {
        let mut changed = CommonKnown::default();
        changed.know(known(7, &[1, 2]));
        changed.know(known(9, &[2]));
        changed.know(KnownCommon { rule_id: "T-10".into(), ..known(8, &[1]) });
        assert_eq!([1, 2, 3].map(|partition| changed.revision("T-1", partition)), [Some(7), Some(9), None]);
        assert_eq!(changed.revision("T-10", 1), Some(8), "an id that another begins with is another");
        changed.know(known(9, &[1]));
        assert_eq!(changed.all().len(), 2, "of what stands nowhere nothing is known");
        assert_eq!([1, 2].map(|partition| changed.revision("T-1", partition)), [Some(9), Some(9)]);
    }
}
