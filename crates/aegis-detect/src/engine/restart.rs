//! What of an engine goes over a restart: its checkpoint, and how it goes on from one over the events that are still there.
//! Promises that no event is missed for what a checkpoint leaves out, and that what the life before told is taken back only where all is known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aegis_model::{PARTITIONS, SecurityEvent, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Engine, guarded};
use crate::alerts::alerts_of;
use crate::evaluate::RunningRule;
use crate::impaired::Impaired;
use crate::lost::Lost;
use crate::schema::EventBatch;
use crate::side::SideTables;
use crate::watermark::Watermarks;
use crate::window::SavedKeys;

/// The part of an engine that the stream cannot give back; with the events of the window it is the whole state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineCheckpoint {
    watermarks: Watermarks,
    settled: BTreeMap<TenantId, Timestamp>,
    /// By rule id, of a tenant's own rule behind the tenant's: the rule's hash and its keys.
    rules: BTreeMap<String, (String, SavedKeys)>,
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
}

impl Engine {
    /// What has to be kept, beside the events of the window, to go on after a restart. Not while it `is_behind`.
    #[must_use]
    pub fn checkpoint(&self) -> EngineCheckpoint {
        self.checkpoint_without(&BTreeSet::new())
    }

    /// The same, where what was told of all tenants' keys, and what the side tables have, is not more than so many bytes: that of those who have most
    /// is left out, and they are told. After a restart their agents are new to the side tables, an alert of theirs may be raised again, and nothing is
    /// taken back that was told before; no event is missed.
    pub fn checkpoint_within(&mut self, most_bytes: usize) -> EngineCheckpoint {
        let left_out = self.heaviest_beyond(most_bytes);
        let sides = self.sides.read();
        for running in &mut self.rules {
            let reads_sides = running.plan.reads_sides;
            let has = |tenant: &&TenantId| running.state.tenants.contains_key(*tenant) || (reads_sides && sides.knows(tenant));
            running.unwritten = left_out.iter().filter(has).cloned().collect();
        }
        drop(sides);
        self.checkpoint_without(&left_out)
    }

    /// The tenants of whom most was told, so that of the others it is not more than so many bytes.
    fn heaviest_beyond(&self, most_bytes: usize) -> BTreeSet<TenantId> {
        let sides = self.sides.read();
        let mut of_each: BTreeMap<&TenantId, usize> = BTreeMap::new();
        let of_rules = self.rules.iter().flat_map(|running| running.state.told_bytes().chain(running.alert_bytes()));
        for (tenant, bytes) in of_rules.chain(sides.bytes()) {
            *of_each.entry(tenant).or_default() += bytes;
        }
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

    fn checkpoint_without(&self, left_out: &BTreeSet<TenantId>) -> EngineCheckpoint {
        debug_assert!(!self.is_behind());
        let saved = |r: &RunningRule| (r.saved_as(), (r.rule.hash.clone(), r.state.save_keys(left_out)));
        let rules = self.rules.iter().map(saved).collect();
        let settled = self.settled.iter().map(|(t, ts)| (t.clone(), *ts)).collect();
        let (impaired, sides) = (self.impaired.clone(), self.sides.read().without(left_out));
        let (alerts, lost) = (alerts_of(&self.rules, left_out), self.lost.clone());
        let kept_from = match self.watermarks.log_time() {
            Some(now) => {
                (0..PARTITIONS).map(|partition| (partition, self.common_kept_from(partition, now).as_micros())).collect()
            }
            None => BTreeMap::new(),
        };
        EngineCheckpoint { watermarks: self.watermarks.clone(), settled, rules, impaired, sides, lost, alerts, kept_from }
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
        *self.sides.write() = checkpoint.sides.completed();
        let batch = Arc::new(EventBatch::new(events.into_iter().map(Arc::new).collect()));
        let alerts = Arc::new(EventBatch::new(checkpoint.alerts.into_iter().map(Arc::new).collect()));
        let mut saved = checkpoint.rules;
        let quotas = self.config.quotas;
        for running in &mut self.rules {
            let batch = if running.plan.sources.is_some() { &alerts } else { &batch };
            let told = saved.remove(&running.saved_as()).filter(|(hash, _)| *hash == running.rule.hash);
            let rebuilt = guarded(running, |running| match told {
                Some((_, told)) => running.rebuild(batch, told, &self.settled, is_cut, quotas),
                None => running.keep_only(batch, &self.settled, quotas),
            });
            if let Err(error) = rebuilt {
                running.quarantine(&error);
            }
            // What is lost only now is told with the next tick; what was told before is known from the checkpoint.
        }
    }

    /// The log that is read begins at this time of the bus, and did not always: events of before are gone.
    pub(crate) fn lose_before(&mut self, bus_ts: Timestamp) {
        self.lost.add_all_before(bus_ts);
    }
}
