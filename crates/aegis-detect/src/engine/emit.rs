//! What follows from the matches that rules found: alerts and episodes while they are new, and retractions of those that did not stand once nothing
//! can change them any more.

use std::sync::Arc;

use aegis_canon::CanonError;
use aegis_model::{Retraction, SecurityEvent, TenantId, Timestamp};
use serde_json::{Map, Value};

use super::{Engine, EpisodeUpdate, TickOutput};
use crate::alert::alert_of;
use crate::alerts::row_of;
use crate::episode::{Emission, Episode, KeyRules};
use crate::error::DetectError;
use crate::evaluate::{RunningRule, TouchedKeys};
use crate::plan::RulePlan;
use crate::rule::Rule;
use crate::shape::Shape;
use crate::window::Quotas;

impl Engine {
    pub(crate) fn settle(&mut self, tenant: &TenantId, final_before: Timestamp, output: &mut TickOutput) {
        let now = self.config.clock.now();
        self.lost.forget(tenant, final_before.plus_micros(-self.windows.longest(tenant)));
        let mut alerts: Vec<Arc<SecurityEvent>> = Vec::new();
        let number = self.numbers.of(tenant);
        for running in &mut self.rules {
            let owner = running.scope.owner();
            // A tenant's own rule has nothing of another.
            if owner.is_some_and(|owner| owner != tenant) {
                continue;
            }
            let is_common = owner.is_none();
            if running.plan.sources.is_some() && running.scope.covers(tenant) {
                running.take_alerts(&alerts, &self.config, output);
            }
            let (window_micros, settled_to) = (running.window_micros(), running.settled_to(final_before));
            let is_read = running.is_read_for(tenant);
            running.lacks_nothing_before(tenant, settled_to.plus_micros(-window_micros));
            let RunningRule { rule, plan, state, stats, .. } = running;
            if is_common && state.rests(&mut self.numbers, number, final_before) {
                continue;
            }
            let Some(tenant_state) = state.tenants.get_mut(tenant) else {
                if is_common {
                    state.settled(tenant, number, window_micros);
                }
                continue;
            };
            let rules = key_rules(rule, plan, tenant, is_read);
            // A deferred rule's matches come as much later.
            let decided_before = settled_to.plus_micros(-plan.reach.ahead);
            tenant_state.each_key(|key| {
                let Ok(retracted) = key.settle(rules, decided_before) else { return };
                alerts.extend(key.take_finals().iter().map(|told| Arc::new(row_of(rule, tenant, key.key(), told))));
                stats.retractions += retracted.len() as u64;
                output.retractions.extend(retracted.into_iter().map(|alert_id| Retraction {
                    alert_id,
                    tenant_id: tenant.clone(),
                    rule_id: rule.header.id.clone(),
                    detected_at: now,
                }));
            });
            state.expire(tenant, settled_to.plus_micros(-window_micros), window_micros);
            if is_common {
                state.settled(tenant, number, window_micros);
            }
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
