//! What the life before told behind its last checkpoint. This one reads the same events again, but may see at once what contradicts an alert that was
//! told before it was final: it has to know of that alert, or nobody would take it back.

use std::collections::BTreeMap;

use aegis_bus::{BusError, Place, Stream};
use aegis_model::{Alert, Retraction, TenantId};
use serde_json::Value;

use crate::alert::alert_id;
use crate::engine::Engine;
use crate::error::DetectError;
use crate::evaluate::RunningRule;
use crate::follow::{MAX_BATCH, READ_WAIT, Running};
use crate::impaired::IMPAIRED_RULE;
use crate::output::bucket_of_key;
use crate::scope::Partitions;
use crate::window::Quotas;

/// Alerts that are read again at most: a checkpoint is seconds behind, and those past it stand as they are.
const MOST: usize = 10_000;
/// And so many bytes of them, about: an alert may be as large as a message.
const MOST_BYTES: usize = 64 << 20;

impl Running {
    /// The alerts behind this place of their stream that were not taken back.
    pub(crate) async fn told_behind(&self, place: &Place) -> Result<Vec<Alert>, DetectError> {
        let (mut told, mut bytes): (BTreeMap<String, Alert>, usize) = (BTreeMap::new(), 0);
        let last = self.bus.last_seq(Stream::Alerts).await?;
        let mut next = place.seq + 1;
        if next > last || !self.bus.is_still(Stream::Alerts, place).await? {
            return Ok(Vec::new());
        }
        let mut subscription = self.bus.subscribe(Stream::Alerts, ">", next).await?;
        while next <= last
            && told.len() < MOST
            && bytes < MOST_BYTES
            && self.bus.stream_state(Stream::Alerts).await?.first_seq <= last
        {
            let batch = subscription.next_batch(MAX_BATCH, READ_WAIT).await?;
            if batch.is_empty() {
                return Err(BusError::Unavailable { reason: format!("message {next} of the stream ALERTS does not come") }.into());
            }
            for delivered in batch {
                next = delivered.seq + 1;
                bytes += delivered.payload.len();
                if let Ok(alert) = serde_json::from_slice::<Alert>(&delivered.payload) {
                    // Not what the engine says of itself, that is never taken back; nor what was found late, which no rule finds again.
                    if alert.rule_id != IMPAIRED_RULE && !alert.found_late {
                        told.insert(alert.alert_id.clone(), alert);
                    }
                } else if let Ok(retraction) = serde_json::from_slice::<Retraction>(&delivered.payload) {
                    told.remove(&retraction.alert_id);
                }
            }
        }
        if next <= last {
            tracing::warn!(
                from = next,
                to = last,
                "alerts that were told since the last checkpoint are too many: the rest stand"
            );
        }
        Ok(told.into_values().collect())
    }
}

impl Engine {
    /// Takes note of alerts that were told since the checkpoint that it was restored from. One that does not stand is taken back in its time, as any
    /// other; of a tenant whose events are not all there (`is_cut`) it stands. They wait, too, for rules that it does not have yet: records of rules may
    /// follow, and bring the very text again that told it.
    pub(crate) fn know_told(&mut self, told: Vec<Alert>, is_cut: &dyn Fn(&TenantId) -> bool) {
        let quotas = self.config.quotas;
        for alert in told {
            if let Some(running) = self.rules.iter_mut().find(|running| running.has_told(&alert)) {
                running.know_told(&alert, is_cut(&alert.tenant_id), quotas);
            }
            self.told.push(alert);
        }
    }

    /// One of the rules has come to some partitions just now: the same of what it told there.
    pub(crate) fn know_told_of(&mut self, place: usize, partitions: Partitions) {
        self.know_told_where(place, |tenant| partitions.has_tenant(tenant));
    }

    /// The same of some tenants, for whom it has begun anew.
    pub(crate) fn know_told_where(&mut self, place: usize, is_of: impl Fn(&TenantId) -> bool) {
        let quotas = self.config.quotas;
        let Some(running) = self.rules.get_mut(place) else { return };
        for alert in self.told.iter().filter(|alert| is_of(&alert.tenant_id)) {
            if running.has_told(alert) {
                running.know_told(alert, false, quotas);
            }
        }
    }
}

impl RunningRule {
    /// True if the alert may be the rule's: a match of before its time is none.
    fn has_told(&self, alert: &Alert) -> bool {
        let is_of_text = self.rule.hash == alert.rule_hash && self.rule.header.id == alert.rule_id;
        is_of_text && self.scope.covers(&alert.tenant_id) && alert.last_ts >= self.since.of(&alert.tenant_id)
    }

    fn know_told(&mut self, alert: &Alert, is_cut: bool, quotas: Quotas) {
        let tenant = &alert.tenant_id;
        let runs = self.stats.quarantined.is_none() && !self.stats.set_aside.contains_key(tenant);
        let Some(first) = alert.event_ids.first().copied().filter(|_| runs) else { return };
        // Of a key that was too large for a message not all is there.
        if alert_id(tenant, &alert.rule_id, &alert.key, first).ok().as_ref() != Some(&alert.alert_id) {
            return;
        }
        let bucket = bucket_of_key(&alert.key, &self.rule.header.key, &self.plan.buckets);
        let text = Value::Object(alert.key.clone()).to_string();
        if let Some(key) = self.state.key_or_new(tenant, &bucket, &text, None, quotas) {
            key.know_told(alert, first, is_cut);
        }
    }
}
