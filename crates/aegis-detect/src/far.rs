//! Rules whose window is longer than the part of the stream that a restart reads again: a checkpoint has their events of before it. So neither the bus nor a
//! start needs a day of everything for a rule that looks back a day and keeps little.
//! Promises that a checkpoint and the rest of the stream give the state that was there; and that what is lacking is known, until no row looks so far back.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_model::{SecurityEvent, TenantId, Timestamp};

use crate::back::reach_of;
use crate::error::DetectError;
use crate::evaluate::RunningRule;
use crate::name::Relevant;
use crate::schema::{EventBatch, column_name};
use crate::shape::Shape;
use crate::window::{Far, FarMost, FarTo};

/// The stream is held so far back for rules that look back further, microseconds. No further than other rules that are shipped have it held.
pub(crate) const HORIZON: i64 = 2 * 3_600_000_000;
/// Bytes that all those events may have of a checkpoint, about.
pub(crate) const MOST_BYTES_OF_ALL: usize = 16 << 20;

impl RunningRule {
    /// True where the rule looks back further than the stream is held for it.
    fn looks_beyond(&self) -> bool {
        // What reads alerts has its rows from the checkpoint, and needs no events.
        self.plan.sources.is_none() && self.window_micros() > HORIZON
    }

    /// The same of a rule that keeps events.
    pub(crate) fn is_far(&self) -> bool {
        self.looks_beyond() && self.plan.shape != Shape::Stateless
    }

    /// How far back the stream is held for the rule.
    pub(crate) fn held_micros(&self) -> i64 {
        if self.looks_beyond() { HORIZON } else { reach_of(self) }
    }

    /// True if it does not look at a tenant's events any more, and so does not know them: a restart has it begin again.
    fn is_stopped_for(&self, tenant: &TenantId) -> bool {
        self.scope.covers(tenant) && !self.runs_for(tenant)
    }

    /// Its events of before a time, of some tenants no more than so many bytes, and of whom some are lacking there.
    pub(crate) fn save_far<'a>(&self, to: &FarTo<'_>, most: &FarMost, tenants: impl Iterator<Item = &'a TenantId>) -> Far {
        let reads: BTreeSet<&'static str> = self.plan.columns().into_iter().map(column_name).collect();
        // What a side table says of an event may rest on any of it.
        let slim = |event: &SecurityEvent| if self.plan.reads_sides { event.clone() } else { slim(event, &reads) };
        let mut far = self.state.save_far(to, most, self.plan.shape == Shape::Deferred, &slim);
        for tenant in tenants.filter(|tenant| self.is_stopped_for(tenant)) {
            far.entry(tenant.clone()).or_default().cut_to(to(tenant));
        }
        for (tenant, lacks_to) in &self.lacks {
            far.entry(tenant.clone()).or_default().cut_to(Some(*lacks_to));
        }
        far
    }

    /// Of whom the last checkpoint had no room for all of them.
    pub(crate) fn note_unsaved(&mut self, far: Option<&Far>) {
        let is_new = |tenant: &TenantId| !self.lacks.contains_key(tenant) && !self.is_stopped_for(tenant);
        let cut = far.into_iter().flatten().filter(|(tenant, part)| part.cut.is_some() && is_new(tenant));
        let unsaved: BTreeSet<TenantId> = cut.map(|(tenant, _)| tenant.clone()).collect();
        if !unsaved.is_subset(&self.unsaved) {
            tracing::warn!(
                rule = %self.rule.header.id,
                tenants = unsaved.len(),
                "a checkpoint has no room for all of the rule's window: a restart reads the rest from the lake, or does without"
            );
        }
        self.unsaved = unsaved;
    }

    /// Those of a checkpoint's events that matter to the rule. Of whom some are lacking is known from now on.
    pub(crate) fn take_far(&mut self, far: &Far) -> Result<Vec<Relevant>, DetectError> {
        let covered = far.iter().filter(|(tenant, _)| self.scope.covers(tenant));
        self.lacks = covered.filter_map(|(tenant, part)| Some((tenant.clone(), part.cut?))).collect();
        let mut events: Vec<Arc<SecurityEvent>> = Vec::new();
        for part in far.values() {
            events.extend(part.events.iter().cloned().map(Arc::new));
            events.extend(part.read.iter().cloned());
        }
        if events.is_empty() { Ok(Vec::new()) } else { Ok(self.relevant(&Arc::new(EventBatch::new(events)))?.events().to_vec()) }
    }

    /// No row of a tenant looks back to before this any more.
    pub(crate) fn lacks_nothing_before(&mut self, tenant: &TenantId, horizon: Timestamp) {
        if self.lacks.get(tenant).is_some_and(|to| *to < horizon) {
            self.lacks.remove(tenant);
        }
    }
}

/// An event without what a rule does not read, and no alert shows.
fn slim(event: &SecurityEvent, reads: &BTreeSet<&'static str>) -> SecurityEvent {
    let mut slim = event.clone();
    let texts = [
        ("token_id", &mut slim.token_id),
        ("user_id", &mut slim.user_id),
        ("run_id", &mut slim.run_id),
        ("trace_id", &mut slim.trace_id),
        ("environment", &mut slim.environment),
        ("tool", &mut slim.tool),
        ("action", &mut slim.action),
        ("resource", &mut slim.resource),
        ("target", &mut slim.target),
        ("reason", &mut slim.reason),
        ("status", &mut slim.status),
        ("policy_digest", &mut slim.policy_digest),
        ("action_hash", &mut slim.action_hash),
        ("approval_id", &mut slim.approval_id),
        ("approver", &mut slim.approver),
        ("nonce_hash", &mut slim.nonce_hash),
        ("attributes", &mut slim.attributes),
    ];
    for (_, text) in texts.into_iter().filter(|(name, _)| !reads.contains(name)) {
        *text = None;
    }
    if !reads.contains("matched_policies") {
        slim.matched_policies = Vec::new();
    }
    slim
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aegis_model::EventKind;

    use super::*;
    use crate::schema::events_schema;

    #[test]
    fn what_is_left_out_of_an_event_are_columns_and_where_they_are_read_they_are_there() {
        let tenant = TenantId::new("a").unwrap();
        let mut event = SecurityEvent::new(tenant, "e", "edge", EventKind::AuthorizeDecision, Timestamp::from_micros(1));
        event.receipt_hash = Some("hash".to_owned());
        event.agent_id = Some("agent".to_owned());
        let bare = serde_json::to_value(&event).unwrap();
        for text in [&mut event.tool, &mut event.resource, &mut event.attributes, &mut event.nonce_hash, &mut event.status] {
            *text = Some("text".to_owned());
        }
        event.matched_policies = vec!["p".to_owned()];
        assert_eq!(serde_json::to_value(slim(&event, &BTreeSet::new())).unwrap(), bare);
        let some = slim(&event, &BTreeSet::from(["resource"]));
        assert_eq!((some.resource, some.tool), (Some("text".to_owned()), None));
        let schema = events_schema();
        let all: BTreeSet<&'static str> = (0..schema.fields().len()).map(column_name).collect();
        assert_eq!(serde_json::to_value(slim(&event, &all)).unwrap(), serde_json::to_value(&event).unwrap());
    }
}
