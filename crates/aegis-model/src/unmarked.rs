//! An event before anybody has judged it: its columns, and no mark. Promises that whoever has this alone cannot tell whether the event is verified, so that
//! what is kept for all who read a message may have either mark.

use std::fmt;

use crate::{Decision, EventId, EventKind, SecurityEvent, SourceTrust, TenantId, Timestamp};

/// Longest name of a lane, bytes: tenant, edge and start.
const MAX_LANE: usize = 256;

/// What can be asked of an event that was not judged. Columns are added as readers need them; `verified` and `late` are not among them.
#[derive(Clone, Copy)]
pub struct Unmarked<'a>(&'a SecurityEvent);

impl SecurityEvent {
    /// The event without what is found of it.
    #[must_use]
    pub const fn unmarked(&self) -> Unmarked<'_> {
        Unmarked(self)
    }
}

impl<'a> Unmarked<'a> {
    #[must_use]
    pub const fn tenant_id(self) -> &'a TenantId {
        &self.0.tenant_id
    }

    #[must_use]
    pub const fn event_id(self) -> EventId {
        self.0.event_id
    }

    #[must_use]
    pub const fn kind(self) -> EventKind {
        self.0.kind
    }

    #[must_use]
    pub const fn ts(self) -> Timestamp {
        self.0.ts
    }

    #[must_use]
    pub const fn bus_ts(self) -> Option<Timestamp> {
        self.0.bus_ts
    }

    #[must_use]
    pub fn lane(self) -> Option<&'a str> {
        self.0.lane.as_deref()
    }

    /// True unless it names a lane by what no lane is called: whoever keeps something of each lane need not keep that.
    #[must_use]
    pub fn names_a_lane_or_none(self) -> bool {
        self.lane().is_none_or(|lane| lane.len() <= MAX_LANE && !lane.chars().any(char::is_control))
    }

    #[must_use]
    pub const fn seq(self) -> Option<i64> {
        self.0.seq
    }

    #[must_use]
    pub fn agent_id(self) -> Option<&'a str> {
        self.0.agent_id.as_deref()
    }

    #[must_use]
    pub fn run_id(self) -> Option<&'a str> {
        self.0.run_id.as_deref()
    }

    #[must_use]
    pub const fn decision(self) -> Option<Decision> {
        self.0.decision
    }

    #[must_use]
    pub const fn source_trust(self) -> Option<SourceTrust> {
        self.0.source_trust
    }

    #[must_use]
    pub fn receipt_hash(self) -> Option<&'a str> {
        self.0.receipt_hash.as_deref()
    }

    /// True if the event has no lane, or its lane's producer is one that seals events of its kind.
    #[must_use]
    pub fn is_for_its_lane_to_say(self) -> bool {
        self.0.is_for_its_lane_to_say()
    }
}

/// Says which event it is, and nothing of its mark.
impl fmt::Debug for Unmarked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unmarked").field("event_id", &self.0.event_id).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn whatever_its_mark_it_says_the_same() {
        let (tenant, ts) = (TenantId::new("acme").unwrap(), Timestamp::from_micros(5));
        let mut event = SecurityEvent::new(tenant.clone(), "e", "edge", EventKind::AuthorizeDecision, ts);
        (event.lane, event.seq, event.bus_ts) = (Some("acme.e.1".to_owned()), Some(7), Some(ts.plus_seconds(1)));
        (event.agent_id, event.run_id, event.receipt_hash) = (Some("a".to_owned()), Some("r".to_owned()), Some("00".to_owned()));
        (event.decision, event.source_trust) = (Some(Decision::Deny), Some(SourceTrust::Unknown));
        let marked = SecurityEvent { verified: true, late: true, ..event.clone() };
        for seen in [event.unmarked(), marked.unmarked()] {
            assert_eq!((seen.tenant_id(), seen.event_id(), seen.kind()), (&tenant, event.event_id, event.kind));
            assert_eq!((seen.ts(), seen.bus_ts()), (ts, Some(ts.plus_seconds(1))));
            assert_eq!((seen.lane(), seen.seq(), seen.receipt_hash()), (Some("acme.e.1"), Some(7), Some("00")));
            assert_eq!((seen.agent_id(), seen.run_id()), (Some("a"), Some("r")));
            assert_eq!((seen.decision(), seen.source_trust()), (Some(Decision::Deny), Some(SourceTrust::Unknown)));
            assert!(seen.is_for_its_lane_to_say());
        }
        assert_eq!(format!("{:?}", event.unmarked()), format!("{:?}", marked.unmarked()));
    }
}
