//! Who used what, and what of it a tenant's and an agent's quota lets in. Promises to say from when on something else is known of the agent than before.

use aegis_model::{Decision, EventKind, SecurityEvent};

use super::{ENTRY, OfTenant};
use crate::baseline::{BYTES_OF_HOUR, begin_of, hour_of};
use crate::bucket::Quotas;

/// Who used what.
#[derive(Clone, Copy)]
pub(super) struct Use<'a> {
    pub(super) agent: &'a str,
    pub(super) tool: &'a str,
    pub(super) action: &'a str,
}

impl<'a> Use<'a> {
    pub(super) fn of(event: &'a SecurityEvent) -> Option<Self> {
        Some(Self { agent: event.agent_id.as_deref()?, tool: event.tool.as_deref()?, action: event.action.as_deref()? })
    }
}

/// True for a proved call that was not denied. What is denied is no use: anybody can ask for tools that nobody has registered, without end, and an
/// attempt that is denied must not make the next one look known.
pub(super) fn is_use(event: &SecurityEvent) -> bool {
    let may_run = matches!(event.decision, Some(Decision::Allow | Decision::RequireApproval));
    event.verified && event.kind == EventKind::AuthorizeDecision && may_run
}

pub(super) fn bytes_of_agent(agent: &str) -> usize {
    ENTRY + agent.len()
}

pub(super) fn bytes_of_action(tool: &str, action: &str) -> usize {
    ENTRY + tool.len() + action.len()
}

impl OfTenant {
    /// Takes in a use, where events up to `newest` are there. Answers from when on something else is said of the agent's, if it is, and whether a
    /// quota refused it.
    pub(super) fn add(&mut self, used: Use<'_>, at: i64, newest: i64, quotas: Quotas) -> (Option<i64>, bool) {
        let Use { agent, tool, action } = used;
        let known = self.agents.get(agent);
        let is_new_agent = known.is_none();
        let is_known = known.is_some_and(|known| known.actions.get(tool, action).is_some());
        let mut is_refused = false;
        if !is_known {
            let bytes = bytes_of_action(tool, action) + if is_new_agent { bytes_of_agent(agent) } else { 0 };
            let own = known.map_or(0, |known| known.bytes) + bytes;
            is_refused = self.bytes + bytes > quotas.seen_bytes_per_tenant || own > quotas.seen_bytes_per_agent();
            if !is_refused {
                self.bytes += bytes;
                let known = self.agents.get_or_default(agent);
                known.bytes = own;
                let _from_now_on = known.actions.entry(tool, action);
            }
        }
        let Some(known) = self.agents.get_mut(agent) else { return (None, is_refused) };
        let of_agent = known.used.add(at);
        let of_action = known.actions.get_mut(tool, action).and_then(|spans| spans.add(at));
        let hours_before = known.hours.len();
        let of_hours = known.hours.add(hour_of(at), hour_of(newest)).map(begin_of);
        let bytes = BYTES_OF_HOUR * known.hours.len().saturating_sub(hours_before);
        known.bytes += bytes;
        self.bytes += bytes;
        (of_agent.into_iter().chain(of_action).chain(of_hours).min(), is_refused)
    }
    /// Takes the same use in for anybody. One that the agent has no room for begins nothing here: no agent fills more than its part.
    pub(super) fn add_to_all(&mut self, used: Use<'_>, at: i64, is_refused: bool, quotas: Quotas) -> (Option<i64>, bool) {
        let Use { tool, action, .. } = used;
        if let Some(known) = self.all.get_mut(tool, action) {
            return (known.add(at), false);
        }
        let bytes = bytes_of_action(tool, action);
        if is_refused || self.bytes + bytes > quotas.seen_bytes_per_tenant {
            return (None, true);
        }
        self.bytes += bytes;
        (self.all.entry(tool, action).add(at), false)
    }
}
