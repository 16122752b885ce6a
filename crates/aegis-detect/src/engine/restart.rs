//! What of an engine goes over a restart: its checkpoint, and how it goes on from one over the events that are still there.
//! Promises that no event is missed for what a checkpoint leaves out, and that what the life before told is taken back only where all is known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aegis_model::{PARTITIONS, SecurityEvent, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Engine, guarded};
use crate::alerts::alerts_of;
use crate::evaluate::RunningRule;
use crate::far::MOST_BYTES_OF_ALL;
use crate::impaired::Impaired;
use crate::looks::{Looks, SavedLooks};
use crate::lost::Lost;
use crate::schema::EventBatch;
use crate::side::SideTables;
use crate::watermark::Watermarks;
use crate::window::{Far, FarMost, SavedKeys, share_of};

/// The part of an engine that the stream cannot give back; with the events of the window it is the whole state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineCheckpoint {
    watermarks: Watermarks,
    settled: BTreeMap<TenantId, Timestamp>,
    /// By rule id, of a tenant's own rule behind the tenant's: the rule's hash and its keys.
    rules: BTreeMap<String, (String, SavedKeys)>,
    /// By the same names, of rules for whose window the stream is not held: their events of before. One of before has none: the stream was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    far: BTreeMap<String, Far>,
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
    /// Since when all events of a partition's tenants were kept for what every tenant has, microseconds. One of before does not say.
    #[serde(default)]
    kept_from: BTreeMap<u32, i64>,
    /// What rules were shown of each lane. One of before has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    looks: SavedLooks,
}

impl EngineCheckpoint {
    /// Up to where a tenant's state was settled.
    pub(crate) fn settled_to(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.settled.get(tenant).copied()
    }

    /// Since when all events of each partition's tenants were kept for what every tenant has, microseconds.
    pub(crate) const fn kept_from(&self) -> &BTreeMap<u32, i64> {
        &self.kept_from
    }

    /// True if the life before had a rule in this very text.
    pub(crate) fn has(&self, running: &RunningRule) -> bool {
        self.rules.get(&running.saved_as()).is_some_and(|(hash, _)| *hash == running.rule.hash)
    }

    /// True if it has all that a rule knew of a tenant from before the part of the stream that is read again.
    pub(crate) fn has_far(&self, running: &RunningRule, tenant: &TenantId) -> bool {
        let far = self.far.get(&running.saved_as()).filter(|_| self.has(running));
        far.is_some_and(|far| far.get(tenant).is_none_or(|part| part.cut.is_none()))
    }

    /// Of whom it has not, of a rule that is the same: up to when.
    pub(crate) fn cut_of(&self, running: &RunningRule) -> impl Iterator<Item = (&TenantId, Timestamp)> {
        let far = self.far.get(&running.saved_as()).filter(|_| self.has(running));
        far.into_iter().flatten().filter_map(|(tenant, part)| Some((tenant, part.cut?)))
    }

    /// What a rule has of a tenant is all that there was, with these events.
    pub(crate) fn refill(&mut self, saved_as: &str, tenant: &TenantId, events: &[Arc<SecurityEvent>]) {
        if let Some(part) = self.far.get_mut(saved_as).and_then(|far| far.get_mut(tenant)) {
            part.read.extend_from_slice(events);
            part.cut = None;
        }
    }
}

impl Engine {
    /// What has to be kept, beside the events of the window, to go on after a restart. Not while it `is_behind`.
    #[must_use]
    pub fn checkpoint(&self) -> EngineCheckpoint {
        self.checkpoint_without(&BTreeSet::new(), &FarMost::new(), &BTreeMap::new())
    }

    /// The same, where what was told of all tenants' keys, and what the side tables have, is not more than so many bytes: that of those who have most
    /// is left out, and they are told. After a restart their agents are new to the side tables, an alert of theirs may be raised again, and nothing is
    /// taken back that was told before; no event is missed.
    pub fn checkpoint_within(&mut self, most_bytes: usize) -> EngineCheckpoint {
        self.checkpoint_beside(most_bytes, &BTreeMap::new())
    }

    /// The same, where of these tenants the stream is not read again up to these times: what rules look back to beyond the horizon it has from there. Of
    /// that it has no more than so many bytes either, and no more than a rule's part: of whom some is left out is known.
    pub(crate) fn checkpoint_beside(&mut self, most_bytes: usize, cut: &BTreeMap<TenantId, Timestamp>) -> EngineCheckpoint {
        let left_out = self.heaviest_beyond(most_bytes);
        let sides = self.sides.read();
        for running in &mut self.rules {
            let reads_sides = running.plan.reads_sides;
            let has = |tenant: &&TenantId| running.state.tenants.contains_key(*tenant) || (reads_sides && sides.knows(tenant));
            running.unwritten = left_out.iter().filter(has).cloned().collect();
        }
        drop(sides);
        let far_most = self.far_most(most_bytes.min(MOST_BYTES_OF_ALL), cut);
        let checkpoint = self.checkpoint_without(&left_out, &far_most, cut);
        for running in self.rules.iter_mut().filter(|running| running.is_far()) {
            running.note_unsaved(checkpoint.far.get(&running.saved_as()));
        }
        self.names.lock().note_checkpoint();
        checkpoint
    }

    /// The tenants of whom most was told, so that of the others it is not more than so many bytes.
    fn heaviest_beyond(&self, most_bytes: usize) -> BTreeSet<TenantId> {
        let sides = self.sides.read();
        let mut of_each: BTreeMap<&TenantId, usize> = BTreeMap::new();
        let of_rules = self.rules.iter().flat_map(|running| running.state.told_bytes().chain(running.alert_bytes()));
        for (tenant, bytes) in of_rules.chain(sides.bytes()) {
            *of_each.entry(tenant).or_default() += bytes;
        }
        heaviest(of_each, most_bytes)
    }

    /// Of whom rules have so much from before what is read again that there is no room for all of it, and how much a rule may have of each of them: what a
    /// tenant does not need is the others', and what a rule does not need is the tenant's other rules'. So nobody takes another's share.
    fn far_most(&self, most_bytes: usize, cut: &BTreeMap<TenantId, Timestamp>) -> FarMost {
        let to = |tenant: &TenantId| self.far_to(tenant, cut);
        let mut of_each: BTreeMap<&TenantId, Vec<usize>> = BTreeMap::new();
        for (tenant, bytes) in
            self.rules.iter().filter(|running| running.is_far()).flat_map(|running| running.state.far_bytes(&to))
        {
            of_each.entry(tenant).or_default().push(bytes);
        }
        let share = share_of(of_each.values().map(|of_rules| of_rules.iter().sum::<usize>()).collect(), most_bytes);
        let beyond = of_each.into_iter().filter(|(_, of_rules)| of_rules.iter().sum::<usize>() > share);
        beyond.map(|(tenant, of_rules)| (tenant.clone(), share_of(of_rules, share))).collect()
    }

    /// A tenant's events of before this are not read again, or not all of them.
    fn far_to(&self, tenant: &TenantId, cut: &BTreeMap<TenantId, Timestamp>) -> Option<Timestamp> {
        let behind_cut = cut.get(tenant).map(|cut| cut.plus_micros(1));
        self.horizon(tenant).max(behind_cut)
    }

    fn checkpoint_without(
        &self,
        left_out: &BTreeSet<TenantId>,
        far_most: &FarMost,
        cut: &BTreeMap<TenantId, Timestamp>,
    ) -> EngineCheckpoint {
        debug_assert!(!self.is_behind());
        let saved = |r: &RunningRule| (r.saved_as(), (r.rule.hash.clone(), r.state.save_keys(left_out)));
        let rules = self.rules.iter().map(saved).collect();
        let to = |tenant: &TenantId| self.far_to(tenant, cut);
        let far = self.rules.iter().filter(|running| running.is_far());
        let far = far.map(|r| (r.saved_as(), r.save_far(&to, far_most, self.settled.keys()))).collect();
        let settled = self.settled.iter().map(|(t, ts)| (t.clone(), *ts)).collect();
        let (impaired, sides) = (self.impaired.clone(), self.sides.read().without(left_out));
        let (alerts, lost) = (alerts_of(&self.rules, left_out), self.lost.clone());
        let kept_from = match self.watermarks.log_time() {
            Some(now) => {
                (0..PARTITIONS).map(|partition| (partition, self.common_kept_from(partition, now).as_micros())).collect()
            }
            None => BTreeMap::new(),
        };
        let (watermarks, looks) = (self.watermarks.clone(), self.looks.saved());
        EngineCheckpoint { watermarks, settled, rules, far, impaired, sides, lost, alerts, kept_from, looks }
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
        self.looks = Looks::restored(checkpoint.looks);
        *self.sides.write() = checkpoint.sides.completed();
        let batch = Arc::new(EventBatch::new(events.into_iter().map(Arc::new).collect()));
        let alerts = Arc::new(EventBatch::new(checkpoint.alerts.into_iter().map(Arc::new).collect()));
        let (mut saved, mut far) = (checkpoint.rules, checkpoint.far);
        let quotas = self.config.quotas;
        for running in &mut self.rules {
            let batch = if running.plan.sources.is_some() { &alerts } else { &batch };
            let told = saved.remove(&running.saved_as()).filter(|(hash, _)| *hash == running.rule.hash);
            let far = far.remove(&running.saved_as()).unwrap_or_default();
            let rebuilt = guarded(running, |running| match told {
                Some((_, told)) => running.rebuild(batch, (told, far), &self.settled, is_cut, quotas),
                None => running.keep_only(batch, &self.settled, quotas),
            });
            if let Err(error) = rebuilt {
                running.quarantine(&error);
            }
            running.lacks.iter().for_each(|(tenant, to)| self.lost.add(tenant, *to));
            // What is lost only now is told with the next tick; what was told before is known from the checkpoint.
        }
        self.names.lock().beginnings.clear();
    }

    /// The log that is read begins at this time of the bus, and did not always: events of before are gone.
    pub(crate) fn lose_before(&mut self, bus_ts: Timestamp) {
        self.lost.add_all_before(bus_ts);
    }
}

/// The tenants that have most, so that the others have no more than so many bytes.
fn heaviest(of_each: BTreeMap<&TenantId, usize>, most_bytes: usize) -> BTreeSet<TenantId> {
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
