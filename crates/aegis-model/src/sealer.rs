//! Who seals events of which kind. A lane is named after its producer, and a key is believed for its own lanes alone, so that a proved receipt says
//! who spoke; what is said here is whether it was theirs to say.

use crate::{EventKind, SecurityEvent};

/// Control's name in its lanes, `<tenant>.control.<epoch>`. No edge is enrolled under it.
pub const CONTROL: &str = "control";

/// What detection calls itself in the events that it makes: no producer's name either.
pub const SOC: &str = "soc";

/// Who seals events of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealer {
    Edges,
    Control,
    /// What each producer says of its own lanes, and what is noticed at both.
    Both,
    /// What has no receipt.
    Nobody,
}

impl Sealer {
    /// For messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Edges => "edges",
            Self::Control => "control",
            Self::Both => "edges and control",
            Self::Nobody => "nobody",
        }
    }
}

impl EventKind {
    /// Who seals events of this kind.
    #[must_use]
    pub const fn sealer(self) -> Sealer {
        match self {
            Self::AuthorizeDecision | Self::CanonicalizationSkew | Self::ControlFeedRefused | Self::ControlFeedStale => {
                Sealer::Edges
            }
            Self::ApprovalRequested
            | Self::ApprovalDecided
            | Self::ApprovalConsumed
            | Self::ToolAttempt
            | Self::ToolOutcome
            | Self::TamperAttempt
            | Self::McpManifestDrift
            | Self::ContainmentApplied
            | Self::ConfigChanged
            | Self::EdgeSilent
            | Self::EdgeBack
            | Self::RuleRecordRefused => Sealer::Control,
            Self::LaneOpen | Self::LaneClose | Self::LaneGap | Self::ReplayAttempt | Self::McpResponseFlagged => Sealer::Both,
            Self::ReceiptChainBroken | Self::ExternalGithubWebhook | Self::ExternalOpenaiTrace | Self::ExternalOtlp => {
                Sealer::Nobody
            }
        }
    }

    /// True if the producer of this lane (`<tenant>.<producer>.<epoch>`) seals events of this kind. Says nothing of whether it did.
    #[must_use]
    pub fn may_stand_in(self, lane: &str) -> bool {
        let is_of_control = lane.split('.').nth(1) == Some(CONTROL);
        match self.sealer() {
            Sealer::Edges => !is_of_control,
            Sealer::Control => is_of_control,
            Sealer::Both => true,
            Sealer::Nobody => false,
        }
    }
}

impl SecurityEvent {
    /// True if the event has no lane, or its lane's producer is one that seals events of its kind.
    #[must_use]
    pub fn is_for_its_lane_to_say(&self) -> bool {
        self.lane.as_deref().is_none_or(|lane| self.kind.may_stand_in(lane))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{TenantId, Timestamp};

    fn kinds() -> Vec<EventKind> {
        EventKind::WORDS.iter().map(|word| word.parse().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn the_producer_in_a_lanes_name_decides(
            tenant in "[a-z0-9_-]{1,9}|control",
            edge in "[a-z0-9_-]{1,9}|control-1|xcontrol",
            epoch in "[0-9a-f]{1,16}|control",
            at in 0..EventKind::WORDS.len(),
        ) {
            let kind = kinds()[at];
            prop_assume!(edge != CONTROL);
            let of_edge = kind.may_stand_in(&format!("{tenant}.{edge}.{epoch}"));
            let of_control = kind.may_stand_in(&format!("{tenant}.{CONTROL}.{epoch}"));
            let expected = match kind.sealer() {
                Sealer::Edges => (true, false),
                Sealer::Control => (false, true),
                Sealer::Both => (true, true),
                Sealer::Nobody => (false, false),
            };
            prop_assert_eq!((of_edge, of_control), expected);
        }
    }

    #[test]
    fn what_is_no_lanes_name_is_not_controls() {
        for lane in ["", "control", "acme", "acme.", "acme..control", "acme.edge-1.control", "acme.Control.1"] {
            assert!(!EventKind::ConfigChanged.may_stand_in(lane), "{lane}");
        }
    }

    #[test]
    fn an_observation_is_nobodys_to_seal_and_says_what_it_says_without_a_lane() {
        for kind in kinds() {
            let mut event = SecurityEvent::new(TenantId::new("acme").unwrap(), "e", "e", kind, Timestamp::default());
            assert!(event.is_for_its_lane_to_say(), "{kind}");
            event.lane = Some("acme.edge-1.1".to_owned());
            assert_eq!(event.is_for_its_lane_to_say(), matches!(kind.sealer(), Sealer::Edges | Sealer::Both), "{kind}");
            assert!(!kind.is_external() || kind.sealer() == Sealer::Nobody, "{kind}");
        }
    }
}
