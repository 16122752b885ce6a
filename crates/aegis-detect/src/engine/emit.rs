//! What follows from the matches that rules found: alerts and episodes while they are new, and retractions of those that did not stand once nothing
//! can change them any more.

use std::sync::Arc;

use aegis_canon::CanonError;
use aegis_model::{Retraction, SecurityEvent, TenantId, Timestamp};
use serde_json::{Map, Value};

use super::{Engine, EngineConfig, EpisodeUpdate, TickOutput};
use crate::alert::alert_of;
use crate::alerts::row_of;
use crate::episode::{Emission, Episode, KeyRules};
use crate::error::DetectError;
use crate::evaluate::{RunningRule, TouchedKeys};
use crate::plan::RulePlan;
use crate::rule::Rule;
use crate::shape::Shape;
use crate::window::Quotas;

/// One of the tenants that are settled.
struct Settling<'a> {
    tenant: &'a TenantId,
    final_before: Timestamp,
    number: usize,
    /// What of its alerts became final, for the rules that read them.
    finals: Vec<Arc<SecurityEvent>>,
}

impl Engine {
    /// What was decided of each of these tenants, which are in order, before its time is final. Rule by rule: most have nothing of most tenants, and say so
    /// in a list of their own.
    pub(crate) fn settle(&mut self, due: &[(TenantId, Timestamp)], output: &mut TickOutput) {
        debug_assert!(due.is_sorted_by(|(one, _), (next, _)| one < next));
        let now = self.config.clock.now();
        let Self { rules, names, config, lost, windows, .. } = self;
        let mut settling: Vec<Settling<'_>> = Vec::with_capacity(due.len());
        // Rules ask for names themselves: nothing is held of them meanwhile.
        let mut names = names.lock();
        let numbers = names.numbers();
        for (tenant, final_before) in due {
            lost.forget(tenant, final_before.plus_micros(-windows.longest(tenant)));
            settling.push(Settling { tenant, final_before: *final_before, number: numbers.of(tenant), finals: Vec::new() });
        }
        for running in rules.iter_mut().filter(|running| running.scope.owner().is_none()) {
            running.state.ask_noted(numbers);
        }
        drop(names);
        let mut asked: Vec<usize> = Vec::new();
        for running in rules {
            let places = match running.scope.owner() {
                None => 0..settling.len(),
                // A tenant's own rule has nothing of another.
                Some(owner) => match settling.binary_search_by(|one| one.tenant.cmp(owner)) {
                    Ok(place) => place..place + 1,
                    Err(_) => continue,
                },
            };
            asked.clear();
            asked.extend(places.filter(|place| !running.rests(&settling[*place])));
            running.state.glance(asked.iter().map(|place| settling[*place].number));
            for place in &asked {
                running.settle(&mut settling[*place], config, now, output);
            }
        }
    }
}

impl RunningRule {
    /// True if there is nothing to settle of the tenant: it is asked of all of them first, for it is so of nearly all.
    fn rests(&self, one: &Settling<'_>) -> bool {
        let is_common = self.scope.owner().is_none();
        is_common && self.plan.sources.is_none() && self.lacks.is_empty() && self.state.rests(one.number, one.final_before)
    }

    fn settle(&mut self, one: &mut Settling<'_>, config: &EngineConfig, now: Timestamp, output: &mut TickOutput) {
        let Settling { tenant, final_before, number, .. } = *one;
        let is_shown = self.plan.sources.is_some() && !one.finals.is_empty() && self.scope.covers(tenant);
        if is_shown {
            self.take_alerts(&one.finals, config, output);
        }
        // Also where it rests; of nearly all rules nothing is lacking.
        if !self.lacks.is_empty() {
            self.lacks_nothing_before(tenant, self.settled_to(final_before).plus_micros(-self.window_micros()));
        }
        let is_common = self.scope.owner().is_none();
        // What it was shown just now is final too, and may be read by others before this look is over: nobody was asked for that yet.
        if is_common && !is_shown && self.state.rests(number, final_before) {
            return;
        }
        let (window_micros, settled_to) = (self.window_micros(), self.settled_to(final_before));
        let is_read = self.is_read_for(tenant);
        let Self { rule, plan, state, stats, .. } = self;
        let mut place = state.place_of(tenant, number);
        if let Some((at, tenant_state)) = place.and_then(|at| Some((at, state.tenants.get_index_mut(at)?.1))) {
            let rules = key_rules(rule, plan, tenant, is_read);
            // A deferred rule's matches come as much later.
            let decided_before = settled_to.plus_micros(-plan.reach.ahead);
            tenant_state.each_key(|key| {
                let Ok(retracted) = key.settle(rules, decided_before) else { return };
                one.finals.extend(key.take_finals().iter().map(|told| Arc::new(row_of(rule, tenant, key.key(), told))));
                stats.retractions += retracted.len() as u64;
                output.retractions.extend(retracted.into_iter().map(|alert_id| Retraction {
                    alert_id,
                    tenant_id: tenant.clone(),
                    rule_id: rule.header.id.clone(),
                    detected_at: now,
                }));
            });
            if !state.expire(at, settled_to.plus_micros(-window_micros), window_micros) {
                place = None;
            }
        }
        if is_common {
            state.settled(number, place, window_micros);
        }
    }
}

/// What a key has to know of its rule; `is_read`: somebody reads the tenant's alerts of it.
pub(crate) fn key_rules<'a>(rule: &'a Rule, plan: &RulePlan, tenant: &'a TenantId, is_read: bool) -> KeyRules<'a> {
    KeyRules {
        tenant,
        rule_id: &rule.header.id,
        window_micros: rule.header.window_s * 1_000_000,
        suppress_micros: rule.header.suppress_s.map(|s| s * 1_000_000),
        keeps_details: plan.shape == Shape::Stateless,
        is_read,
    }
}

/// Emits what is new for the touched keys.
pub(crate) fn emit(
    running: &mut RunningRule,
    keys: TouchedKeys,
    quotas: Quotas,
    now: Timestamp,
    output: &mut TickOutput,
) -> Result<(), DetectError> {
    for (tenant, bucket, text) in keys {
        let mut emission = emit_key(running, &tenant, &bucket, &text)?;
        if !emission.wanted.is_empty() {
            let found = match running.find_again(&tenant, &bucket, &text, &emission.wanted) {
                Ok(found) => found,
                Err(error) => {
                    running.set_aside(&tenant, error, None)?;
                    Vec::new()
                }
            };
            if let Some(key) = running.state.key_mut(&tenant, &bucket, &text) {
                key.supply(&emission.wanted, found);
            }
            let more = emit_key(running, &tenant, &bucket, &text)?;
            emission.fresh.extend(more.fresh);
        }
        let is_read = running.is_read_for(&tenant);
        let RunningRule { rule, plan, state, stats, .. } = running;
        stats.alerts += emission.fresh.len() as u64;
        output.alerts.extend(emission.fresh.iter().map(|(id, found)| alert_of(rule, &tenant, id, found, now)));
        let Some(key) = state.key_mut(&tenant, &bucket, &text) else { continue };
        let repeated = emission.episodes.into_iter().filter(|e| e.count > 1);
        output.episodes.extend(repeated.map(|episode| update_of(episode, &tenant, &rule.header.id, key.key().clone())));
        let surplus = key.settle_surplus(key_rules(rule, plan, &tenant, is_read), quotas.matches_per_key);
        stats.given_up += surplus.map_err(|error| not_canonical(rule, &error))? as u64;
    }
    Ok(())
}

/// What there is to say of one key.
fn emit_key(running: &mut RunningRule, tenant: &TenantId, bucket: &str, text: &str) -> Result<Emission, DetectError> {
    let is_read = running.is_read_for(tenant);
    let RunningRule { rule, plan, state, .. } = running;
    let Some(key) = state.key_mut(tenant, bucket, text) else { return Ok(Emission::default()) };
    key.emit(key_rules(rule, plan, tenant, is_read)).map_err(|error| not_canonical(rule, &error))
}

fn not_canonical(rule: &Rule, error: &CanonError) -> DetectError {
    DetectError::Output { rule: rule.header.id.clone(), reason: format!("the key is not canonical: {error}") }
}

fn update_of(episode: Episode, tenant: &TenantId, rule_id: &str, key: Map<String, Value>) -> EpisodeUpdate {
    EpisodeUpdate {
        alert_id: episode.alert_id,
        tenant_id: tenant.clone(),
        rule_id: rule_id.to_owned(),
        key,
        count: episode.count,
        last_ts: episode.last_ts,
        last_event_id: episode.last_event_id,
    }
}
