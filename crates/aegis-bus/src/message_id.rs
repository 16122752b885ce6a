//! Ids of sealed events as messages (docs/adr/0028): the bus takes two messages with one id for the same. Promises that no producer's events
//! are taken for another's, whatever id an event has, and that nobody can name an id before its event is sealed.

use aegis_model::SealedEvent;
use uuid::Uuid;

/// Hex digits of the receipt's hash in an id: 64 bits, which nobody guesses in the time that an event takes to the bus.
const HASH_DIGITS: usize = 16;

/// `<event_id>.<lane>.<beginning of the receipt's hash>`. An event's id alone is anybody's to use, and some can be told ahead; an observation,
/// which has no lane, has nothing else.
#[must_use]
pub fn of_sealed(event: &SealedEvent) -> String {
    let hash = event.receipt_hash.get(..HASH_DIGITS).unwrap_or(&event.receipt_hash);
    let mut buffer = Uuid::encode_buffer();
    let event_id: &str = event.event_id.hyphenated().encode_lower(&mut buffer);
    [event_id, event.lane.as_str(), hash].join(".")
}

/// True if an id that was noted at some time is that of the message which is called `now`: versions before docs/adr/0028 noted the event's id alone.
pub(crate) fn is_same(noted: &str, now: &str) -> bool {
    let begins = || Uuid::try_parse(noted).is_ok() && now.strip_prefix(noted).is_some_and(|rest| rest.starts_with('.'));
    noted == now || begins()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aegis_model::{EventKind, TenantId, Timestamp};

    use super::*;
    use crate::MAX_MSG_ID;

    fn sealed(event_id: Uuid, lane: &str, receipt_hash: &str) -> SealedEvent {
        SealedEvent {
            tenant_id: TenantId::new("acme").unwrap(),
            event_id,
            kind: EventKind::ApprovalRequested,
            lane: lane.to_owned(),
            seq: 1,
            ts: Timestamp::from_micros(0),
            receipt_hash: receipt_hash.to_owned(),
            prev_receipt_hash: String::new(),
            wire: String::new(),
        }
    }

    #[test]
    fn an_id_is_of_one_event_of_one_lane_and_cannot_be_told_ahead() {
        let id = Uuid::from_u128(7);
        let of = |lane: &str, hash: &str| of_sealed(&sealed(id, lane, hash));
        let (hash, other_hash) = ("0123456789abcdef".repeat(4), "1123456789abcdef".repeat(4));
        let control = of("acme.control.1", &hash);
        assert_eq!(control, "00000000-0000-0000-0000-000000000007.acme.control.1.0123456789abcdef");
        assert_eq!(control, of("acme.control.1", &hash), "whoever ships it again");
        for other in [of("acme.edge-1.1", &hash), of("acme.control.2", &hash), of("acme.control.1", &other_hash)] {
            assert_ne!(control, other);
        }
    }

    #[test]
    fn the_longest_one_is_a_message_id() {
        let lane = format!("{}.{}.{}", "t".repeat(64), "e".repeat(64), "f".repeat(16));
        assert!(of_sealed(&sealed(Uuid::max(), &lane, &"a".repeat(64))).len() <= MAX_MSG_ID);
    }

    #[test]
    fn what_an_earlier_version_noted_is_known_and_nothing_else_is() {
        let id = Uuid::from_u128(7).to_string();
        let now = format!("{id}.acme.control.1.0123456789abcdef");
        assert!(is_same(&now, &now) && is_same(&id, &now));
        let other = Uuid::from_u128(8).to_string();
        for noted in ["", &id[..35], other.as_str(), "00000000-0000-0000-0000-000000000007.acme.edge-1.1.0123456789abcdef"] {
            assert!(!is_same(noted, &now), "{noted}");
        }
        assert!(!is_same(&now, &id), "an earlier version's ids are gone once this one has written");
        assert!(!is_same("kept", "kept.1"), "only an event's id was one alone");
    }
}
