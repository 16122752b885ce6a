//! How far back rules look, and how far back the stream is held for them.

use std::collections::HashMap;

use aegis_model::TenantId;

use crate::evaluate::RunningRule;

/// How far back a rule needs events: its window, and what of it is decided together.
pub(crate) fn reach_of(running: &RunningRule) -> i64 {
    running.window_micros() + running.step_micros()
}

/// How far back rules look, and how far back the stream is held for them, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Back {
    looks: i64,
    held: i64,
}

impl Back {
    fn of(running: &RunningRule) -> Self {
        Self { looks: reach_of(running), held: running.held_micros() }
    }

    fn furthest(self, other: Self) -> Self {
        Self { looks: self.looks.max(other.looks), held: self.held.max(other.held) }
    }
}

/// The same of those that every tenant has, also where a tenant has another in their place, and of each tenant's own.
#[derive(Debug)]
pub(crate) struct OwnWindows {
    common: Back,
    own: HashMap<TenantId, Back>,
}

impl OwnWindows {
    pub(crate) fn of(common: &[RunningRule]) -> Self {
        // What reads alerts has its rows from the checkpoint, and needs no events.
        let of_events = common.iter().filter(|running| running.plan.sources.is_none());
        Self { common: of_events.map(Back::of).fold(Back::default(), Back::furthest), own: HashMap::new() }
    }

    /// What every tenant has is something else.
    pub(crate) fn set_common(&mut self, rules: &[RunningRule]) {
        let common = rules.iter().filter(|running| running.scope.owner().is_none() && running.plan.sources.is_none());
        self.common = common.map(Back::of).fold(Back::default(), Back::furthest);
    }

    /// A tenant has one rule more.
    pub(crate) fn add_own(&mut self, tenant: TenantId, running: &RunningRule) {
        let of_tenant = self.own.entry(tenant).or_default();
        *of_tenant = of_tenant.furthest(Back::of(running));
    }

    /// What a tenant has is something else.
    pub(crate) fn set_own(&mut self, tenant: &TenantId, rules: &[RunningRule]) {
        let own = rules.iter().filter(|running| running.scope.owner() == Some(tenant) && running.plan.sources.is_none());
        match own.map(Back::of).reduce(Back::furthest) {
            Some(back) => self.own.insert(tenant.clone(), back),
            None => self.own.remove(tenant),
        };
    }

    /// True of a tenant who has rules of its own that look at events.
    pub(crate) fn has_own(&self, tenant: &TenantId) -> bool {
        self.own.contains_key(tenant)
    }

    /// How far the one of a tenant's rules looks back that looks furthest.
    pub(crate) fn longest(&self, tenant: &TenantId) -> i64 {
        self.back(tenant).looks
    }

    /// How far back the stream is held for all of them.
    pub(crate) fn held(&self, tenant: &TenantId) -> i64 {
        self.back(tenant).held
    }

    fn back(&self, tenant: &TenantId) -> Back {
        self.own.get(tenant).map_or(self.common, |own| self.common.furthest(*own))
    }
}
