//! Side tables: what is known from long before any window, as of each event. Of `first_seen` since when the event's agent is used, and its user, and
//! since when the one, the other and anybody of the tenant uses the event's tool and action. Of `baseline` how often the agent is used in a usual hour,
//! and in how many it is. Of `registry`, in modules of their own, what control has registered of it, and of the event's action.
//! Promises that what stands there is a function of the events that are in time and proved, whatever the order in which they came; that no tenant has
//! more than its quota, and no agent more than a part of that; and to say of which agents something else is now known than before.

mod actions;
mod by_tenant;
mod catalog;
mod columns;
mod registry;
mod spans;
#[cfg(test)]
mod tests;
mod users;
mod uses;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aegis_model::{SecurityEvent, TenantId, Timestamp};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::baseline::{BYTES_OF_HOUR, Baseline, Hours, hour_of};
use crate::bucket::Quotas;
use crate::by_name::ByName;
use crate::output::Evidence;
use crate::window::Hasher;
use actions::Actions;
use catalog::Catalog;
pub(crate) use columns::{SIDE_COLUMNS, is_like_a_side_column};
use registry::Registry;
use spans::Spans;
use users::Users;
use uses::{Use, is_use};

/// The tables, as all share them who run queries.
pub(crate) type Sides = Arc<RwLock<SideTables>>;

const DAY: i64 = 86_400_000_000;
/// After a pause that is longer, an agent or an action counts as never used.
const PAUSE: i64 = 90 * DAY;
/// How far back the history of a tenant is needed for the tables to say the same of an event, in seconds: a pause, and a day of what is known
/// before anything is new.
pub(crate) const HISTORY_S: i64 = (PAUSE + DAY) / 1_000_000;
/// What is before a pause is kept so much longer: a rule's window is a day at most, and what was settled is a little behind.
const LINGERS: i64 = DAY + DAY / 24;
/// It is looked so often for what is over.
const TIDY_STEP: i64 = DAY / 24;
/// About what an agent, or an action of one, takes beside its texts, in bytes.
const ENTRY: usize = 96;

/// What is known of all tenants.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SideTables {
    tenants: HashMap<TenantId, Box<OfTenant>, Hasher>,
    registry: Registry,
    /// A checkpoint of before has none.
    catalog: Catalog,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct OfTenant {
    agents: ByName<OfAgent>,
    /// What anybody uses. A checkpoint of before has it not (see `completed`).
    #[serde(default)]
    all: Actions,
    /// What they take.
    bytes: usize,
    /// By themselves: theirs is another quota.
    #[serde(default)]
    users: Users,
    /// The newest time of an event of the tenant.
    newest: Option<i64>,
    /// Up to where it was looked for what is over.
    tidied: Option<i64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct OfAgent {
    used: Spans,
    actions: Actions,
    hours: Hours,
    bytes: usize,
}

/// Of whom something else is known than before, or would be if there were room.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Of each tenant's agents: from when on its events are to be looked at again.
    agents: BTreeMap<TenantId, BTreeMap<String, Timestamp>>,
    /// The same of users.
    users: BTreeMap<TenantId, BTreeMap<String, Timestamp>>,
    /// The same of all of a tenant's, where they are too many to look for some.
    all: BTreeMap<TenantId, Timestamp>,
    /// Uses that a quota refused.
    refused: Vec<(TenantId, Evidence)>,
}

impl Changes {
    pub(crate) fn agents(&self) -> impl Iterator<Item = (&TenantId, &BTreeMap<String, Timestamp>)> {
        self.agents.iter()
    }

    pub(crate) fn users(&self) -> impl Iterator<Item = (&TenantId, &BTreeMap<String, Timestamp>)> {
        self.users.iter()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&TenantId, Timestamp)> {
        self.all.iter().map(|(tenant, from)| (tenant, *from))
    }

    pub(crate) fn refused(&self) -> &[(TenantId, Evidence)] {
        &self.refused
    }

    fn note(&mut self, tenant: &TenantId, agent: &str, from: i64) {
        note_earliest(self.agents.entry(tenant.clone()).or_default(), agent, from);
    }

    fn note_user(&mut self, tenant: &TenantId, user: &str, from: i64) {
        note_earliest(self.users.entry(tenant.clone()).or_default(), user, from);
    }

    fn note_all(&mut self, tenant: &TenantId, from: i64) {
        let from = Timestamp::from_micros(from);
        let known = self.all.entry(tenant.clone()).or_insert(from);
        *known = from.min(*known);
    }
}

fn note_earliest(of_each: &mut BTreeMap<String, Timestamp>, whose: &str, from: i64) {
    let from = Timestamp::from_micros(from);
    let known = of_each.entry(whose.to_owned()).or_insert(from);
    *known = from.min(*known);
}

impl SideTables {
    /// Takes in an event that is in time.
    pub(crate) fn take(&mut self, event: &SecurityEvent, quotas: Quotas, changes: &mut Changes) {
        let at = event.ts.as_micros();
        let tenant = self.tenants.entry(event.tenant_id.clone()).or_default();
        let newest_before = tenant.newest;
        tenant.newest = newest_before.max(Some(at));
        self.registry.take(event, newest_before, quotas, changes);
        self.catalog.take(event, newest_before, quotas, changes);
        let Some(used) = Use::of(event).filter(|_| is_use(event)) else { return };
        let (of_agent, is_refused) = tenant.add(used, at, newest_before.unwrap_or(at), quotas);
        let (of_all, all_is_refused) = tenant.add_to_all(used, at, is_refused, quotas);
        let user = event.user_id.as_deref();
        let (of_user, user_is_refused) = user.map(|name| tenant.users.add(name, used, at, quotas)).unwrap_or_default();
        // Mostly an event is the newest, and there is none of whom it could change anything.
        let is_there = |from: &i64| newest_before.is_some_and(|newest| *from <= newest);
        if let Some(from) = of_agent.filter(is_there) {
            changes.note(&event.tenant_id, used.agent, from);
        }
        if let (Some(user), Some(from)) = (user, of_user.filter(is_there)) {
            changes.note_user(&event.tenant_id, user, from);
        }
        if let Some(from) = of_all.filter(is_there) {
            changes.note_all(&event.tenant_id, from);
        }
        if is_refused || all_is_refused || user_is_refused {
            changes.refused.push((event.tenant_id.clone(), Evidence::of(event)));
        }
    }

    /// Forgets what was used last before a pause that is over: nothing that comes in time, and no event that is in a window, is within reach of it.
    pub(crate) fn forget(&mut self, tenant: &TenantId, final_before: Timestamp) {
        self.registry.forget(tenant, final_before);
        self.catalog.forget(tenant, final_before);
        let Some(tenant) = self.tenants.get_mut(tenant) else { return };
        let now = final_before.as_micros();
        if tenant.tidied.is_some_and(|tidied| now.saturating_sub(tidied) < TIDY_STEP) {
            return;
        }
        tenant.tidied = Some(now);
        let before = now.saturating_sub(PAUSE + LINGERS);
        let mut freed = 0;
        tenant.agents.retain(|_, agent| {
            let OfAgent { used, actions, hours, bytes } = agent;
            let (of_before, hours_before) = (*bytes, hours.len());
            hours.forget(hour_of(now.saturating_sub(LINGERS)));
            *bytes -= BYTES_OF_HOUR * (hours_before - hours.len());
            *bytes -= actions.forget(before);
            used.forget(before);
            let stays = !used.is_empty() || !actions.is_empty();
            freed += if stays { of_before - *bytes } else { of_before };
            stays
        });
        freed += tenant.all.forget(before);
        tenant.bytes -= freed;
        tenant.users.forget(before);
    }

    /// The tables of a checkpoint. One of before says nothing of anybody, which is told from the agents' parts, and nothing of users, who begin with
    /// it as they do with a log.
    pub(crate) fn completed(mut self) -> Self {
        for tenant in self.tenants.values_mut().filter(|tenant| tenant.all.is_empty()) {
            let OfTenant { agents, all, bytes, .. } = &mut **tenant;
            *bytes += agents.iter().map(|(_, agent)| all.join(&agent.actions)).sum::<usize>();
        }
        self
    }

    /// Forgets all of a tenant.
    pub(crate) fn forget_all(&mut self, tenant: &TenantId) {
        self.tenants.remove(tenant);
        self.registry.forget_all(tenant);
        self.catalog.forget_all(tenant);
    }

    fn agent(&self, event: &SecurityEvent) -> Option<&OfAgent> {
        self.tenants.get(&event.tenant_id)?.agents.get(event.agent_id.as_deref()?)
    }

    fn baseline(&self, event: &SecurityEvent) -> Option<Baseline> {
        self.agent(event)?.hours.baseline(hour_of(event.ts.as_micros()))
    }

    fn first_seen_agent(&self, event: &SecurityEvent) -> Option<Timestamp> {
        self.agent(event)?.used.first(event.ts)
    }

    fn first_seen_agent_tool_action(&self, event: &SecurityEvent) -> Option<Timestamp> {
        let used = Use::of(event)?;
        self.agent(event)?.actions.get(used.tool, used.action)?.first(event.ts)
    }

    fn first_seen_tool_action(&self, event: &SecurityEvent) -> Option<Timestamp> {
        let (tool, action) = (event.tool.as_deref()?, event.action.as_deref()?);
        self.tenants.get(&event.tenant_id)?.all.get(tool, action)?.first(event.ts)
    }

    fn first_seen_user(&self, event: &SecurityEvent) -> Option<Timestamp> {
        self.tenants.get(&event.tenant_id)?.users.first(event.user_id.as_deref()?, event.ts)
    }

    fn first_seen_user_tool_action(&self, event: &SecurityEvent) -> Option<Timestamp> {
        let (user, tool, action) = (event.user_id.as_deref()?, event.tool.as_deref()?, event.action.as_deref()?);
        self.tenants.get(&event.tenant_id)?.users.first_of_action(user, tool, action, event.ts)
    }

    /// True if anything is known of the tenant's agents and actions.
    pub(crate) fn knows(&self, tenant: &TenantId) -> bool {
        let is_used = self.tenants.get(tenant).is_some_and(|tenant| !tenant.agents.is_empty());
        is_used || self.registry.knows(tenant) || self.catalog.knows(tenant)
    }

    /// About what each tenant's part takes, in bytes.
    pub(crate) fn bytes(&self) -> impl Iterator<Item = (&TenantId, usize)> {
        let used = self.tenants.iter().map(|(tenant, own)| (tenant, own.bytes + own.users.bytes()));
        used.chain(self.registry.bytes()).chain(self.catalog.bytes())
    }

    /// The same without some of the tenants.
    pub(crate) fn without(&self, left_out: &BTreeSet<TenantId>) -> Self {
        let kept = self.tenants.iter().filter(|(tenant, _)| !left_out.contains(*tenant));
        let tenants = kept.map(|(tenant, own)| (tenant.clone(), own.clone())).collect();
        Self { tenants, registry: self.registry.without(left_out), catalog: self.catalog.without(left_out) }
    }
}
