//! On whose behalf tools and actions are used. A caller says itself for whom it acts, so what is known of a user is what was claimed of it.
//! Promises that no agent fills more than a part of it, by whatever names.

use aegis_model::Timestamp;
use serde::{Deserialize, Serialize};

use super::ENTRY;
use super::spans::Spans;
use super::uses::Use;
use crate::bucket::Quotas;
use crate::by_name::ByName;

/// The users of a tenant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Users {
    of: ByName<OfUser>,
    /// What each agent brought in, in bytes.
    brought: ByName<usize>,
    bytes: usize,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct OfUser {
    used: Spans,
    /// By tool and action.
    actions: ByName<ByName<Claimed>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claimed {
    spans: Spans,
    /// The agent that claimed it first.
    by: String,
}

/// A user is there for its actions: each pays for it too.
fn bytes_of_claim(user: &str, used: Use<'_>) -> usize {
    2 * ENTRY + user.len() + used.agent.len() + used.tool.len() + used.action.len()
}

impl Users {
    /// Takes in a use. Answers from when on something else is said of the user's, if it is, and whether a quota refused it.
    pub(super) fn add(&mut self, user: &str, used: Use<'_>, at: i64, quotas: Quotas) -> (Option<i64>, bool) {
        let Use { agent, tool, action } = used;
        let is_known =
            self.of.get(user).and_then(|known| known.actions.get(tool)).is_some_and(|known| known.get(action).is_some());
        let mut is_refused = false;
        if !is_known {
            let bytes = bytes_of_claim(user, used);
            let brought = self.brought.get(agent).copied().unwrap_or(0) + bytes;
            is_refused = self.bytes + bytes > quotas.seen_bytes_per_tenant || brought > quotas.seen_bytes_per_agent();
            if !is_refused {
                self.bytes += bytes;
                *self.brought.get_or_default(agent) = brought;
                let claimed = || Claimed { spans: Spans::default(), by: agent.to_owned() };
                let known = self.of.get_or_default(user);
                let _from_now_on = known.actions.get_or_default(tool).get_or_insert_with(action, claimed);
            }
        }
        let Some(known) = self.of.get_mut(user) else { return (None, is_refused) };
        let of_user = known.used.add(at);
        let claimed = known.actions.get_mut(tool).and_then(|actions| actions.get_mut(action));
        let of_action = claimed.and_then(|claimed| claimed.spans.add(at));
        (of_user.into_iter().chain(of_action).min(), is_refused)
    }

    /// Forgets what was used last before this time.
    pub(super) fn forget(&mut self, before: i64) {
        let Self { of, brought, bytes } = self;
        of.retain(|user, known| {
            known.used.forget(before);
            known.actions.retain(|tool, of_tool| {
                of_tool.retain(|action, claimed| {
                    claimed.spans.forget(before);
                    if !claimed.spans.is_empty() {
                        return true;
                    }
                    let freed = bytes_of_claim(user, Use { agent: &claimed.by, tool, action });
                    *bytes = bytes.saturating_sub(freed);
                    if let Some(of_agent) = brought.get_mut(&claimed.by) {
                        *of_agent = of_agent.saturating_sub(freed);
                    }
                    false
                });
                !of_tool.is_empty()
            });
            !known.actions.is_empty()
        });
        brought.retain(|_, of_agent| *of_agent > 0);
    }

    pub(super) fn first(&self, user: &str, at: Timestamp) -> Option<Timestamp> {
        self.of.get(user)?.used.first(at)
    }

    pub(super) fn first_of_action(&self, user: &str, tool: &str, action: &str, at: Timestamp) -> Option<Timestamp> {
        self.of.get(user)?.actions.get(tool)?.get(action)?.spans.first(at)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
