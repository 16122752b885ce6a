//! When tools and actions were used, by whomever these are of.

use serde::{Deserialize, Serialize};

use super::spans::Spans;
use super::uses::bytes_of_action;
use crate::by_name::ByName;

/// By tool and action.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Actions(ByName<ByName<Spans>>);

impl Actions {
    pub(super) fn get(&self, tool: &str, action: &str) -> Option<&Spans> {
        self.0.get(tool)?.get(action)
    }

    /// What is known of one that is known.
    pub(super) fn get_mut(&mut self, tool: &str, action: &str) -> Option<&mut Spans> {
        self.0.get_mut(tool)?.get_mut(action)
    }

    /// What is known of one, from now on.
    pub(super) fn entry(&mut self, tool: &str, action: &str) -> &mut Spans {
        self.0.get_or_default(tool).get_or_default(action)
    }

    /// Forgets what was used last before this time. Answers what it took, in bytes.
    pub(super) fn forget(&mut self, before: i64) -> usize {
        let mut freed = 0;
        self.0.retain(|tool, of_tool| {
            of_tool.retain(|action, spans| {
                spans.forget(before);
                freed += if spans.is_empty() { bytes_of_action(tool, action) } else { 0 };
                !spans.is_empty()
            });
            !of_tool.is_empty()
        });
        freed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes in all that is known of others. Answers what it takes more, in bytes.
    pub(super) fn join(&mut self, others: &Self) -> usize {
        let mut bytes = 0;
        for (tool, of_tool) in others.0.iter() {
            for (action, spans) in of_tool.iter() {
                bytes += if self.get(tool, action).is_none() { bytes_of_action(tool, action) } else { 0 };
                self.entry(tool, action).join(spans);
            }
        }
        bytes
    }
}
