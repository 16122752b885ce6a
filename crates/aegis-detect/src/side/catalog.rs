//! What control has registered of the actions of a tenant's tools, as of each event: a part of the side table `registry`. Told from control's own proved records
//! in the log alone, each from its time on.
//! Promises what `side` promises of the others: no order of arrival in what is said, a bound for each tenant, and to tell of whom else is said.

use std::collections::HashMap;

use aegis_model::{DataAccess, DefaultDecision, Destination, EventId, EventKind, RiskLevel, SecurityEvent, Timestamp};
use serde::{Deserialize, Serialize};

use super::by_tenant::{ByTenant, Known};
use super::registry::{Dated, Place, insert, is_of_control};
use super::uses::bytes_of_action;
use super::{Changes, ENTRY, LINGERS, PAUSE, SideTables};
use crate::bucket::Quotas;
use crate::output::Evidence;
use crate::window::Hasher;

/// Records that are known of one action, the newest.
const MOST_RECORDS: usize = 64;

/// What is known of all tenants.
pub(super) type Catalog = ByTenant<OfTenant>;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct OfTenant {
    tools: HashMap<String, HashMap<String, OfAction, Hasher>, Hasher>,
    /// What they take.
    bytes: usize,
    /// Up to where it was looked for what is over.
    tidied: Option<i64>,
}

/// In the order of their places, each once.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct OfAction(Vec<Dated<Said>>);

/// What is registered of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    risk: RiskLevel,
    mutates_state: bool,
    data_access: DataAccess,
    destination: Destination,
    approval_required: bool,
    default_decision: DefaultDecision,
}

impl Facts {
    /// True if less stands before a call than did.
    fn is_lower_than(&self, was: &Self) -> bool {
        self.risk < was.risk || (was.approval_required && !self.approval_required)
    }
}

/// What a record says of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Said {
    /// `was`: what control had registered before, where that is something else.
    Registered {
        facts: Facts,
        was: Option<Facts>,
    },
    Removed {
        was: Facts,
    },
}

impl Said {
    const fn facts(&self) -> Option<Facts> {
        match self {
            Self::Registered { facts, .. } => Some(*facts),
            Self::Removed { .. } => None,
        }
    }
}

/// `attributes` of a tool's registration.
#[derive(Deserialize)]
struct OfRegistration {
    tool: String,
    #[serde(default)]
    actions: Vec<Named>,
    #[serde(default)]
    removed: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    action: String,
    #[serde(flatten)]
    facts: Facts,
    #[serde(default)]
    was: Option<Facts>,
}

impl OfRegistration {
    /// None for everything else, and for what control did not say.
    fn of(event: &SecurityEvent) -> Option<Self> {
        if event.kind != EventKind::ConfigChanged || !event.verified || !is_of_control(event) {
            return None;
        }
        if !matches!(event.reason.as_deref()?, "tool_registered" | "tool_registered_more") {
            return None;
        }
        serde_json::from_str(event.attributes.as_deref()?).ok()
    }

    fn said(&self) -> impl Iterator<Item = (&str, Said)> {
        let registered =
            self.actions.iter().map(|named| (named.action.as_str(), Said::Registered { facts: named.facts, was: named.was }));
        registered.chain(self.removed.iter().map(|named| (named.action.as_str(), Said::Removed { was: named.facts })))
    }
}

/// What stands of an action at a time.
struct Standing {
    facts: Facts,
    since: i64,
    lowered: Option<Lowered>,
}

/// That it was registered lower than before, and is still lower than it was then.
#[derive(Clone, Copy)]
struct Lowered {
    at: Place,
    from: Facts,
}

impl Catalog {
    /// Takes in an event that is in time, where events up to `newest` were there before it.
    pub(super) fn take(&mut self, event: &SecurityEvent, newest: Option<i64>, quotas: Quotas, changes: &mut Changes) {
        let Some(registration) = OfRegistration::of(event) else { return };
        let at = Place::of(event);
        let tenant = self.tenants.entry(event.tenant_id.clone()).or_default();
        let mut is_refused = false;
        for (action, said) in registration.said() {
            is_refused |= tenant.add(&registration.tool, action, at, said, quotas);
        }
        if is_refused {
            changes.refused.push((event.tenant_id.clone(), Evidence::of(event)));
        }
        // Whoever uses it: nobody looks for them.
        if newest.is_some_and(|newest| at.ts <= newest) {
            changes.note_all(&event.tenant_id, at.ts);
        }
    }

    fn of(&self, event: &SecurityEvent) -> Option<Standing> {
        let (tool, action) = (event.tool.as_deref()?, event.action.as_deref()?);
        self.tenants.get(&event.tenant_id)?.tools.get(tool)?.get(action)?.at(event.ts.as_micros())
    }
}

impl SideTables {
    fn action_facts(&self, event: &SecurityEvent) -> Option<Facts> {
        Some(self.catalog.of(event)?.facts)
    }

    fn action_lowered(&self, event: &SecurityEvent) -> Option<Lowered> {
        self.catalog.of(event)?.lowered
    }

    pub(super) fn registry_action_risk(&self, event: &SecurityEvent) -> Option<&str> {
        Some(self.action_facts(event)?.risk.as_str())
    }

    pub(super) fn registry_action_mutates_state(&self, event: &SecurityEvent) -> Option<bool> {
        Some(self.action_facts(event)?.mutates_state)
    }

    pub(super) fn registry_action_data_access(&self, event: &SecurityEvent) -> Option<&str> {
        Some(self.action_facts(event)?.data_access.as_str())
    }

    pub(super) fn registry_action_destination(&self, event: &SecurityEvent) -> Option<&str> {
        Some(self.action_facts(event)?.destination.as_str())
    }

    pub(super) fn registry_action_approval_required(&self, event: &SecurityEvent) -> Option<bool> {
        Some(self.action_facts(event)?.approval_required)
    }

    pub(super) fn registry_action_default_decision(&self, event: &SecurityEvent) -> Option<&str> {
        Some(self.action_facts(event)?.default_decision.as_str())
    }

    pub(super) fn registry_action_since(&self, event: &SecurityEvent) -> Option<Timestamp> {
        Some(Timestamp::from_micros(self.catalog.of(event)?.since))
    }

    pub(super) fn registry_action_lowered(&self, event: &SecurityEvent) -> Option<Timestamp> {
        Some(Timestamp::from_micros(self.action_lowered(event)?.at.ts))
    }

    pub(super) fn registry_action_lowered_from(&self, event: &SecurityEvent) -> Option<&str> {
        Some(self.action_lowered(event)?.from.risk.as_str())
    }

    pub(super) fn registry_action_lowered_event(&self, event: &SecurityEvent) -> Option<EventId> {
        Some(self.action_lowered(event)?.at.event_id)
    }
}

impl OfTenant {
    /// Takes in what a record says of an action; true if a quota refused it, or took what was known of the action before.
    fn add(&mut self, tool: &str, action: &str, at: Place, said: Said, quotas: Quotas) -> bool {
        let is_new = self.tools.get(tool).is_none_or(|of_tool| !of_tool.contains_key(action));
        let bytes = ENTRY + if is_new { bytes_of_action(tool, action) } else { 0 };
        if is_new && self.bytes + bytes > quotas.registry_bytes_per_tenant {
            return true;
        }
        let known = self.tools.entry(tool.to_owned()).or_default().entry(action.to_owned()).or_default();
        if !insert(&mut known.0, at, said) {
            return false;
        }
        self.bytes += bytes;
        let mut is_given_up = false;
        // What is said last must not be wrong: a refused record would leave the one before it standing.
        while known.0.len() > MOST_RECORDS || (self.bytes > quotas.registry_bytes_per_tenant && known.0.len() > 1) {
            known.keep_lowering();
            self.bytes -= known.drop_oldest(1);
            is_given_up = true;
        }
        is_given_up
    }
}

impl Known for OfTenant {
    fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn tidied(&mut self) -> &mut Option<i64> {
        &mut self.tidied
    }

    fn forget(&mut self, now: i64) {
        let mut freed = 0;
        for (tool, of_tool) in &mut self.tools {
            of_tool.retain(|action, known| {
                freed += known.forget(now);
                freed += if known.0.is_empty() { bytes_of_action(tool, action) } else { 0 };
                !known.0.is_empty()
            });
        }
        self.tools.retain(|_, of_tool| !of_tool.is_empty());
        self.bytes -= freed;
    }
}

impl OfAction {
    /// What stands at a time, if anything does and is not too long ago.
    fn at(&self, at: i64) -> Option<Standing> {
        let place = self.newest_at(at)?;
        let facts = self.0[place].what.facts().filter(|_| self.is_near(place, at))?;
        let lowered = (0..=place).rev().take_while(|place| self.is_near(*place, at)).find_map(|place| {
            let from = self.lowered_from(place).filter(|from| facts.is_lower_than(from))?;
            Some(Lowered { at: self.0[place].at, from })
        });
        Some(Standing { facts, since: self.0[self.begin_of(place)].at.ts, lowered })
    }

    /// The newest record up to a time.
    fn newest_at(&self, at: i64) -> Option<usize> {
        self.0.partition_point(|record| record.at.ts <= at).checked_sub(1)
    }

    /// False of a record of so long ago that nothing is known from it any more.
    fn is_near(&self, place: usize, at: i64) -> bool {
        at.saturating_sub(self.0[place].at.ts) <= PAUSE
    }

    /// The first of the records that say the same, one after the other, up to this one.
    fn begin_of(&self, place: usize) -> usize {
        let facts = self.0[place].what.facts();
        let same = |before: usize, next: usize| {
            let is_change = matches!(self.0[next].what, Said::Registered { was: Some(_), .. });
            !is_change && self.0[before].what.facts() == facts && self.is_near(before, self.0[next].at.ts)
        };
        (1..=place).rev().take_while(|next| same(next - 1, *next)).last().map_or(place, |next| next - 1)
    }

    /// What was registered before a record that is lower.
    fn lowered_from(&self, place: usize) -> Option<Facts> {
        let Said::Registered { facts, was } = self.0[place].what else { return None };
        let removed = || {
            let before = place.checked_sub(1).filter(|before| self.is_near(*before, self.0[place].at.ts))?;
            match self.0[before].what {
                Said::Removed { was } => Some(was),
                Said::Registered { .. } => None,
            }
        };
        was.or_else(removed).filter(|was| facts.is_lower_than(was))
    }

    /// The oldest record is given up for a quota. That it lowered the action goes over to the next one: else whoever lowers it registers it again, as it then
    /// is, as often as drives that out.
    fn keep_lowering(&mut self) {
        let [oldest, next, ..] = self.0.as_mut_slice() else { return };
        let Said::Registered { was: Some(before), .. } = oldest.what else { return };
        if next.at.ts.saturating_sub(oldest.at.ts) > PAUSE {
            return;
        }
        match &mut next.what {
            Said::Registered { facts, was } => {
                let is_more = was.is_none_or(|was| !facts.is_lower_than(&was) || was.is_lower_than(&before));
                if is_more && facts.is_lower_than(&before) {
                    *was = Some(before);
                }
            }
            Said::Removed { was } if was.is_lower_than(&before) => *was = before,
            Said::Removed { .. } => {}
        }
    }

    /// Forgets the oldest so many, and says how many bytes that gives back. That an action was something else before it was removed stays with the next record.
    fn drop_oldest(&mut self, count: usize) -> usize {
        let last = count.checked_sub(1).and_then(|place| self.0.get(place)).map(|record| (record.at.ts, record.what));
        if let (Some((ts, Said::Removed { was: removed })), Some(next)) = (last, self.0.get_mut(count))
            && next.at.ts.saturating_sub(ts) <= PAUSE
            && let Said::Registered { was, .. } = &mut next.what
        {
            *was = was.or(Some(removed));
        }
        ENTRY * self.0.drain(..count.min(self.0.len())).count()
    }

    /// Forgets what nothing asks for any more, where nothing comes in time before `now`, and says how many bytes that gives back.
    fn forget(&mut self, now: i64) -> usize {
        let oldest_asked = now.saturating_sub(LINGERS);
        let over = self.0.partition_point(|record| oldest_asked.saturating_sub(record.at.ts) > PAUSE);
        // What stands there still, since when it does so.
        let begin = self.newest_at(oldest_asked).filter(|place| *place >= over).map(|place| self.begin_of(place));
        let mut freed = self.drop_oldest(begin.map_or(over, |begin| begin.min(over)));
        // Of what was registered over and over the first and the last say all, once nothing can come between them.
        let mut place = 1;
        while place + 1 < self.0.len() && self.0[place + 1].at.ts < now {
            let [before, this, next] = [place - 1, place, place + 1].map(|index| &self.0[index]);
            let is_again = matches!(this.what, Said::Registered { was: None, .. });
            let is_same = before.what.facts() == this.what.facts() && this.what.facts() == next.what.facts();
            if is_again && is_same && next.at.ts.saturating_sub(before.at.ts) <= PAUSE {
                self.0.remove(place);
                freed += ENTRY;
            } else {
                place += 1;
            }
        }
        freed
    }
}

#[cfg(test)]
mod tests;
