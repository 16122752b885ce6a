//! The side table `registry`: what control has registered of a tenant's agents, and which of them it holds, as of each event. Told from control's own
//! proved records in the log alone, each from its time on.
//! Promises what `side` promises of the others: no order of arrival in what is said, a bound for each tenant and agent, and to tell of whom else is said.

use std::collections::{BTreeMap, BTreeSet};

use aegis_model::{CONTROL, ContainmentKind, EventId, EventKind, RiskLevel, SecurityEvent, SourceTrust, Timestamp};
use serde::{Deserialize, Serialize};

use super::by_tenant::{ByTenant, Known};
use super::uses::bytes_of_agent;
use super::{Changes, ENTRY, LINGERS, PAUSE, SideTables};
use crate::bucket::Quotas;
use crate::output::Evidence;

/// So many frozen siblings are named at most, those of the newest holds.
const MOST_SIBLINGS: usize = 64;
/// Agents of a tenant of which holds are known, those with the newest, and what is known of the holds of one: each event of a sibling asks all of them,
/// and what one tenant's cost must not stop a rule for others.
const MOST_HELD: usize = 512;
const MOST_CHANGES: usize = 64;
/// Of a tenant of whom more bytes are known nobody looks through them for an agent's siblings: all of its events are looked at again.
const MOST_LOOKED_THROUGH: usize = 256 << 10;

/// What is known of all tenants.
pub(super) type Registry = ByTenant<OfTenant>;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct OfTenant {
    agents: BTreeMap<String, OfAgent>,
    /// Those of them of which a hold is known, in force or not.
    held: BTreeSet<String>,
    /// What they take.
    bytes: usize,
    /// Up to where it was looked for what is over.
    tidied: Option<i64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct OfAgent {
    /// In the order of their places, each once.
    registered: Vec<Dated<Registered>>,
    holds: Vec<Dated<Change>>,
    bytes: usize,
}

/// Where a record stands in the log of its tenant: by time, and in control's lane by sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) ts: i64,
    seq: Option<i64>,
    pub(super) event_id: EventId,
}

impl Place {
    pub(super) fn of(event: &SecurityEvent) -> Self {
        Self { ts: event.ts.as_micros(), seq: event.seq, event_id: event.event_id }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Dated<T> {
    pub(super) at: Place,
    pub(super) what: T,
}

/// An agent as control has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registered {
    agent_key: String,
    #[serde(default)]
    owner_team: Option<String>,
    environment: String,
    risk_tier: RiskLevel,
    trust_ceiling: SourceTrust,
}

/// What became of an agent's holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Change {
    Held { kind: ContainmentKind, until: Option<Timestamp> },
    Released { kind: Option<ContainmentKind> },
    Revoked,
}

/// What a record of control's says.
enum Said {
    Registered(Registered),
    Change(Change),
}

/// `attributes` of an agent's registration.
#[derive(Deserialize)]
struct OfRegistration {
    agent: Named,
}

#[derive(Deserialize)]
struct Named {
    id: String,
    #[serde(flatten)]
    registered: Registered,
}

/// `attributes` of a containment; one of before has none, and holds until it is released.
#[derive(Default, Deserialize)]
struct OfContainment {
    #[serde(default)]
    kind: Option<ContainmentKind>,
    #[serde(default)]
    until: Option<Timestamp>,
}

impl Said {
    /// Of whom a record says what; None for everything else, and for what control did not say.
    fn of(event: &SecurityEvent) -> Option<(String, Self)> {
        match event.kind {
            EventKind::ConfigChanged if event.verified && is_of_control(event) => {
                if !matches!(event.reason.as_deref()?, "agent_registered" | "agent_registered_again") {
                    return None;
                }
                let said: OfRegistration = serde_json::from_str(event.attributes.as_deref()?).ok()?;
                Some((said.agent.id, Self::Registered(said.agent.registered)))
            }
            EventKind::ContainmentApplied if event.verified && is_of_control(event) => {
                let said: Option<OfContainment> = event.attributes.as_deref().and_then(|text| serde_json::from_str(text).ok());
                let OfContainment { kind, until } = said.unwrap_or_default();
                let change = match event.status.as_deref()? {
                    "applied" => Change::Held { kind: kind.unwrap_or(ContainmentKind::Freeze), until },
                    "released" => Change::Released { kind },
                    "revoked" => Change::Revoked,
                    _ => return None,
                };
                Some((event.agent_id.clone()?, Self::Change(change)))
            }
            _ => None,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Registered(registered) => registered.bytes(),
            Self::Change(_) => ENTRY,
        }
    }
}

impl Registered {
    fn bytes(&self) -> usize {
        let owner = self.owner_team.as_ref().map_or(0, String::len);
        ENTRY + self.agent_key.len() + owner + self.environment.len()
    }
}

impl Change {
    fn is_released_by(&self, released: Option<ContainmentKind>) -> bool {
        match self {
            Self::Held { kind, .. } => released.is_none_or(|released| released == *kind),
            Self::Released { .. } => true,
            Self::Revoked => false,
        }
    }

    /// True if it holds whatever the other one does, and as long.
    fn holds_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Revoked, _) | (_, Self::Released { .. }) => true,
            (Self::Held { kind, until }, Self::Held { kind: of, until: other }) => {
                kind == of && until.is_none_or(|until| other.is_some_and(|other| other <= until))
            }
            _ => false,
        }
    }

    fn lasts(&self, at: i64) -> bool {
        match self {
            Self::Held { until: Some(until), .. } => until.as_micros() > at,
            _ => true,
        }
    }
}

impl Registry {
    /// Takes in an event that is in time, where events up to `newest` were there before it.
    pub(super) fn take(&mut self, event: &SecurityEvent, newest: Option<i64>, quotas: Quotas, changes: &mut Changes) {
        let Some((agent, said)) = Said::of(event) else { return };
        let at = Place::of(event);
        let tenant = self.tenants.entry(event.tenant_id.clone()).or_default();
        if tenant.add(&agent, at, said, quotas) {
            changes.refused.push((event.tenant_id.clone(), Evidence::of(event)));
        }
        if newest.is_none_or(|newest| at.ts > newest) {
            return;
        }
        let is_held = tenant.held.contains(&agent);
        if is_held && tenant.bytes > MOST_LOOKED_THROUGH {
            changes.note_all(&event.tenant_id, at.ts);
        } else {
            tenant.affected(&agent).into_iter().for_each(|affected| changes.note(&event.tenant_id, affected, at.ts));
        }
    }

    fn of(&self, event: &SecurityEvent) -> Option<&Registered> {
        self.tenants.get(&event.tenant_id)?.agents.get(event.agent_id.as_deref()?)?.registered_at(event.ts.as_micros())
    }
}

impl SideTables {
    pub(super) fn registry_agent_key(&self, event: &SecurityEvent) -> Option<&str> {
        Some(&self.registry.of(event)?.agent_key)
    }

    pub(super) fn registry_owner_team(&self, event: &SecurityEvent) -> Option<&str> {
        self.registry.of(event)?.owner_team.as_deref()
    }

    pub(super) fn registry_environment(&self, event: &SecurityEvent) -> Option<&str> {
        Some(&self.registry.of(event)?.environment)
    }

    pub(super) fn registry_risk_tier(&self, event: &SecurityEvent) -> Option<&str> {
        Some(self.registry.of(event)?.risk_tier.as_str())
    }

    pub(super) fn registry_trust_ceiling(&self, event: &SecurityEvent) -> Option<&str> {
        Some(self.registry.of(event)?.trust_ceiling.as_str())
    }

    /// The other agents of the same owner that control holds, those that it held last first. None where no owner is known.
    pub(super) fn registry_frozen_siblings(&self, event: &SecurityEvent) -> Option<Vec<String>> {
        let owner = self.registry_owner_team(event)?;
        let (tenant, own) = (self.registry.tenants.get(&event.tenant_id)?, event.agent_id.as_deref()?);
        let at = event.ts.as_micros();
        let frozen = |name: &String| {
            let agent = tenant.agents.get(name)?;
            let is_sibling = name != own && agent.registered_at(at)?.owner_team.as_deref() == Some(owner);
            let since = if is_sibling { agent.held_at(at).last()?.ts } else { return None };
            Some((since, name.clone()))
        };
        let mut siblings: Vec<(i64, String)> = tenant.held.iter().filter_map(frozen).collect();
        siblings.sort_unstable();
        Some(siblings.into_iter().rev().take(MOST_SIBLINGS).map(|(_, name)| name).collect())
    }
}

impl OfTenant {
    /// Takes in what a record says of an agent; true if a quota refused it, or took what was known of the agent before.
    fn add(&mut self, agent: &str, at: Place, said: Said, quotas: Quotas) -> bool {
        let is_new = !self.agents.contains_key(agent);
        let bytes = said.bytes() + if is_new { bytes_of_agent(agent) } else { 0 };
        let most_of_agent = quotas.registry_bytes_per_agent();
        if is_new && (bytes > most_of_agent || self.bytes + bytes > quotas.registry_bytes_per_tenant) {
            return true;
        }
        let known = self.agents.entry(agent.to_owned()).or_default();
        let is_added = match said {
            Said::Registered(registered) => insert(&mut known.registered, at, registered),
            Said::Change(change) => insert(&mut known.holds, at, change),
        };
        if !is_added {
            return false;
        }
        known.bytes += bytes;
        self.bytes += bytes;
        let mut is_given_up = false;
        // What stands in the end is newer than what goes: of a time of which nothing is there, nothing is said.
        while known.bytes > most_of_agent || self.bytes > quotas.registry_bytes_per_tenant {
            let freed = known.give_up_oldest();
            if freed == 0 {
                break;
            }
            known.bytes -= freed;
            self.bytes -= freed;
            is_given_up = true;
        }
        while known.holds.len() > MOST_CHANGES {
            is_given_up |= known.give_up_oldest_change();
            known.bytes -= ENTRY;
            self.bytes -= ENTRY;
        }
        if known.holds.is_empty() {
            self.held.remove(agent);
        } else {
            self.held.insert(agent.to_owned());
        }
        while self.held.len() > MOST_HELD {
            self.give_up_held();
            is_given_up = true;
        }
        is_given_up
    }

    /// Of the agents with holds, of the one whose newest lies furthest back none is known any more.
    fn give_up_held(&mut self) {
        let newest = |name: &str| self.agents.get(name).and_then(|agent| agent.holds.last()).map(|change| change.at);
        let Some(name) = self.held.iter().min_by_key(|name| newest(name.as_str())).cloned() else { return };
        self.held.remove(&name);
        let Some(agent) = self.agents.get_mut(&name) else { return };
        let freed = ENTRY * std::mem::take(&mut agent.holds).len();
        agent.bytes -= freed;
        self.bytes -= freed;
    }

    /// The agents of whose events a record about this one can say something else.
    fn affected<'a>(&'a self, agent: &'a str) -> Vec<&'a str> {
        let mut affected = vec![agent];
        let known = self.agents.get(agent).filter(|known| !known.holds.is_empty());
        let owners: BTreeSet<&str> = known.into_iter().flat_map(|known| known.owners()).collect();
        if owners.is_empty() {
            return affected;
        }
        let others = self.agents.iter().filter(|(name, _)| name.as_str() != agent);
        let siblings = others.filter(|(_, other)| other.owners().any(|owner| owners.contains(owner)));
        affected.extend(siblings.map(|(name, _)| name.as_str()));
        affected
    }
}

impl Known for OfTenant {
    fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn tidied(&mut self) -> &mut Option<i64> {
        &mut self.tidied
    }

    fn forget(&mut self, now: i64) {
        let mut freed = 0;
        let held = &mut self.held;
        self.agents.retain(|name, agent| {
            let of_agent = agent.forget(now);
            agent.bytes -= of_agent;
            if agent.holds.is_empty() {
                held.remove(name);
            }
            let stays = !agent.registered.is_empty() || !agent.holds.is_empty();
            freed += if stays { of_agent } else { of_agent + agent.bytes };
            stays
        });
        self.bytes -= freed;
    }
}

impl OfAgent {
    fn owners(&self) -> impl Iterator<Item = &str> {
        self.registered.iter().filter_map(|registered| registered.what.owner_team.as_deref())
    }

    /// What was registered last at a time, unless that is too long ago: an agent that is in use is registered again for each token.
    fn registered_at(&self, at: i64) -> Option<&Registered> {
        let behind = self.registered.partition_point(|registered| registered.at.ts <= at);
        let newest = &self.registered[behind.checked_sub(1)?];
        (at.saturating_sub(newest.at.ts) <= PAUSE).then_some(&newest.what)
    }

    /// The records by which the agent is held at a time, the oldest first. Of longer ago than anything is known no hold counts.
    fn held_at(&self, at: i64) -> Vec<Place> {
        let mut open: Vec<&Dated<Change>> = Vec::new();
        let known = self.holds.iter().take_while(|change| change.at.ts <= at);
        for change in known.filter(|change| at.saturating_sub(change.at.ts) <= PAUSE) {
            match &change.what {
                Change::Released { kind } => open.retain(|held| !held.what.is_released_by(*kind)),
                Change::Held { .. } | Change::Revoked => open.push(change),
            }
        }
        open.into_iter().filter(|held| held.what.lasts(at)).map(|held| held.at).collect()
    }

    /// Gives up the oldest record, and says how many bytes that took.
    fn give_up_oldest(&mut self) -> usize {
        let is_registration = match (self.registered.first(), self.holds.first()) {
            (Some(registered), Some(held)) => registered.at <= held.at,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return 0,
        };
        if is_registration {
            return self.registered.remove(0).what.bytes();
        }
        self.holds.remove(0);
        ENTRY
    }

    /// Gives up the oldest record of a hold; true if no later one holds the agent for as long. That it was revoked stands: nothing takes it back.
    fn give_up_oldest_change(&mut self) -> bool {
        let place = self.holds.iter().position(|change| change.what != Change::Revoked).unwrap_or(0);
        let gone = self.holds.remove(place).what;
        !self.holds.iter().any(|change| change.what.holds_as(&gone))
    }

    /// Forgets what nothing asks for any more, where nothing comes in time before `now`, and says how many bytes that took.
    fn forget(&mut self, now: i64) -> usize {
        let oldest_asked = now.saturating_sub(LINGERS);
        let over = oldest_asked.saturating_sub(PAUSE);
        let behind = self.registered.partition_point(|registered| registered.at.ts <= oldest_asked);
        let gone = self.registered.drain(..behind.saturating_sub(1));
        let mut freed: usize = gone.map(|registered| registered.what.bytes()).sum();
        if self.registered.first().is_some_and(|first| first.at.ts < over) {
            freed += self.registered.remove(0).what.bytes();
        }
        // Of what was registered over and over the first and the last say all, once nothing can come between them.
        let mut place = 1;
        while place + 1 < self.registered.len() && self.registered[place + 1].at.ts < now {
            let [before, this, next] = [place - 1, place, place + 1].map(|index| &self.registered[index]);
            let is_near = next.at.ts.saturating_sub(before.at.ts) <= PAUSE;
            if is_near && before.what == this.what && this.what == next.what {
                freed += self.registered.remove(place).what.bytes();
            } else {
                place += 1;
            }
        }
        let open = self.held_at(oldest_asked);
        let before = self.holds.len();
        self.holds.retain(|change| change.at.ts > oldest_asked || open.contains(&change.at));
        freed + ENTRY * (before - self.holds.len())
    }
}

/// True of an event in a lane of control's.
pub(super) fn is_of_control(event: &SecurityEvent) -> bool {
    event.lane.as_deref().and_then(|lane| lane.split('.').nth(1)) == Some(CONTROL)
}

/// Puts a record in its place; false if it is there.
pub(super) fn insert<T>(list: &mut Vec<Dated<T>>, at: Place, what: T) -> bool {
    match list.binary_search_by(|known| known.at.cmp(&at)) {
        Ok(_) => false,
        Err(place) => {
            list.insert(place, Dated { at, what });
            true
        }
    }
}

#[cfg(test)]
mod tests;
