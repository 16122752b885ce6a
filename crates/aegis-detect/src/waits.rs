//! Which rules do not know all of their window of a tenant yet, and tell nothing of it, for whoever asks from outside the detector's thread.

use aegis_model::{TenantId, Timestamp};
use serde::Serialize;

use crate::asked::Asked;
use crate::follow::Running;

/// A rule that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleWait {
    pub rule_id: String,
    pub name: String,
    pub version: u32,
    /// True of a tenant's own.
    pub own: bool,
    /// Once the log is so far, the rule knows its window by itself, if nothing fills it before.
    pub knows_at: Timestamp,
}

/// Where it is asked.
pub type RuleWaits = Asked<(), Vec<RuleWait>>;

impl RuleWaits {
    /// The rules that wait of a tenant, by id. None where detection does not answer now.
    pub async fn of(&self, tenant: &TenantId) -> Option<Vec<RuleWait>> {
        self.ask(tenant, ()).await
    }
}

impl Running {
    /// The rules that do not know all of their window of a tenant.
    pub(crate) fn waits_of(&self, tenant: &TenantId) -> Vec<RuleWait> {
        let Some(stored) = self.stored else { return Vec::new() };
        let covering = self.engine.rules.iter().filter(|running| running.scope.covers(tenant));
        let waiting = covering.filter_map(|running| {
            let header = &running.rule.header;
            let knows_at = running.since.of(tenant);
            (knows_at > stored).then(|| RuleWait {
                rule_id: header.id.clone(),
                name: header.name.clone(),
                version: header.version,
                own: running.scope.owner().is_some(),
                knows_at,
            })
        });
        let mut waiting: Vec<RuleWait> = waiting.collect();
        waiting.sort_unstable_by(|one, other| one.rule_id.cmp(&other.rule_id));
        waiting
    }
}
