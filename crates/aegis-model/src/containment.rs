//! Containment as state (CONTRACTS §8): holds side by side, and `revoked`, which absorbs everything.

use serde::{Deserialize, Serialize};

use crate::decision::wire_words;
use crate::{TenantId, Timestamp};

/// What a containment state is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetType {
    Agent,
    McpServer,
}
wire_words!(TargetType { Agent = "agent", McpServer = "mcp_server" });

/// What a hold does; ordered, later is stricter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainmentKind {
    Quarantine,
    Freeze,
}
wire_words!(ContainmentKind { Quarantine = "quarantine", Freeze = "freeze" });

/// One reason why a target is held. Releasing or expiring one leaves the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub hold_id: String,
    pub kind: ContainmentKind,
    pub reason: String,
    /// The principal, or `rule:<id>` for an automatic hold.
    pub by: String,
    pub since: Timestamp,
    /// None: until released.
    pub until: Option<Timestamp>,
}

/// The whole state of one target, as control signs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainmentState {
    pub tenant_id: TenantId,
    pub target_type: TargetType,
    pub target_id: String,
    pub holds: Vec<Hold>,
    pub revoked: bool,
    /// Monotonic per target, from control's database.
    pub revision: i64,
    pub issued_at: Timestamp,
}

/// What an edge enforces for a target at a moment; ordered by strictness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Free,
    Quarantined,
    Frozen,
    Revoked,
}

impl ContainmentState {
    /// The strictest thing that holds at `now`; expired holds do not count.
    #[must_use]
    pub fn verdict_at(&self, now: Timestamp) -> Verdict {
        if self.revoked {
            return Verdict::Revoked;
        }
        let strictest = self.holds.iter().filter(|h| h.until.is_none_or(|until| until > now)).map(|h| h.kind).max();
        match strictest {
            Some(ContainmentKind::Freeze) => Verdict::Frozen,
            Some(ContainmentKind::Quarantine) => Verdict::Quarantined,
            None => Verdict::Free,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn hold(id: &str, kind: ContainmentKind, until: Option<i64>) -> Hold {
        Hold {
            hold_id: id.into(),
            kind,
            reason: "r".into(),
            by: "admin".into(),
            since: Timestamp::from_micros(0),
            until: until.map(Timestamp::from_micros),
        }
    }

    fn state(holds: Vec<Hold>, revoked: bool) -> ContainmentState {
        ContainmentState {
            tenant_id: TenantId::new("t").unwrap(),
            target_type: TargetType::Agent,
            target_id: "a".into(),
            holds,
            revoked,
            revision: 1,
            issued_at: Timestamp::from_micros(0),
        }
    }

    #[test]
    fn releasing_or_expiring_one_hold_leaves_the_others() {
        let both = state(vec![hold("1", ContainmentKind::Freeze, Some(10)), hold("2", ContainmentKind::Quarantine, None)], false);
        assert_eq!(both.verdict_at(Timestamp::from_micros(9)), Verdict::Frozen);
        assert_eq!(both.verdict_at(Timestamp::from_micros(10)), Verdict::Quarantined);
    }

    #[test]
    fn revoked_absorbs_everything() {
        assert_eq!(state(vec![], true).verdict_at(Timestamp::from_micros(0)), Verdict::Revoked);
    }
}
