//! What goes out, and what is kept of it if the bus will never take it. A dead letter holds no payload: a frozen action has raw
//! parameters, and the ledger still has the event.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{BusError, Message, Stream, message_id, subject};
use aegis_canon::sha256_hex;
use aegis_ledger::OutboxItem;
use aegis_model::{EventId, FrozenAction, TenantId, partition_of};
use serde_json::json;

/// Hex digits of the refused message's hash in the id of its dead letter.
const HASH_DIGITS: usize = 16;

/// How long a frozen action stays on the bus behind its end, seconds: as long as a control plane may be away and still show what it missed.
const BEHIND_ITS_END_S: u64 = 24 * 3600;

/// How long a frozen action, which has raw parameters, is of use to anybody.
fn needed_for(frozen: &FrozenAction) -> Duration {
    let open_us = frozen.expires_at.as_micros().saturating_sub(frozen.requested_at.as_micros());
    Duration::from_micros(u64::try_from(open_us).unwrap_or(0)) + Duration::from_secs(BEHIND_ITS_END_S)
}

/// A message with what names its origin.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) message: Message,
    pub(crate) tenant_id: TenantId,
    pub(crate) event_id: EventId,
    pub(crate) row: i64,
}

impl Outgoing {
    /// The event of an item; `kept_as`: under this name the bus can read it again from the ledger.
    pub(crate) fn event(item: OutboxItem, kept_as: Option<&Arc<str>>) -> Self {
        let sealed = item.sealed;
        let subject = subject::ase(&sealed.tenant_id, sealed.kind);
        let id = message_id::of_sealed(&sealed);
        let mut message = Message::new(subject, sealed.wire.into_bytes()).with_id(id);
        if let Some(name) = kept_as {
            message = message.kept(name, item.row);
            message.event = item.event;
        }
        Self { message, tenant_id: sealed.tenant_id, event_id: sealed.event_id, row: item.row }
    }

    /// The message for the bus, which is given its event the first time: published again, it is read.
    pub(crate) fn take_publish(&mut self) -> Message {
        let event = self.message.event.take();
        Message { event, ..self.message.clone() }
    }

    /// The frozen action of an item, if it has one.
    pub(crate) fn approval(item: &OutboxItem) -> Option<Self> {
        let frozen = item.frozen.as_ref()?;
        let payload = match serde_json::to_vec(frozen) {
            Ok(payload) => payload,
            Err(error) => {
                tracing::error!(%error, approval_id = frozen.approval_id, "a frozen action has no JSON form and cannot be approved");
                return None;
            }
        };
        let subject = subject::approval(&frozen.tenant_id, &frozen.approval_id);
        let message = Message::new(subject, payload).with_id(frozen.approval_id.clone()).with_ttl(needed_for(frozen));
        Some(Self { message, tenant_id: frozen.tenant_id.clone(), event_id: frozen.event_id, row: item.row })
    }

    /// What is kept of a message that was refused for good. Its id is the same each time, and nobody's to tell ahead: edges write dead letters too, and
    /// one that came first under the same id would be all there is.
    pub(crate) fn dead_letter(&self, stream: Stream, refusal: &BusError) -> Self {
        let hash = sha256_hex(&self.message.payload);
        let id = format!("{stream}-{}-{}-{}", self.event_id, self.row, hash.get(..HASH_DIGITS).unwrap_or(&hash));
        let letter = json!({
            "reason": refusal.to_string(),
            "stream": stream.as_str(),
            "subject": self.message.subject,
            "msg_id": self.message.msg_id,
            "tenant_id": self.tenant_id,
            "event_id": self.event_id,
            "ledger_row": self.row,
            "bytes": self.message.payload.len(),
            "sha256": hash,
        });
        let message = Message::new(subject::dlq(partition_of(&self.tenant_id)), letter.to_string().into_bytes()).with_id(id);
        Self { message, ..self.clone() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_bus::MAX_MSG_ID;

    #[test]
    fn a_dead_letter_s_id_is_its_message_s_and_cannot_be_told_by_the_event_s_id() {
        let id_of = |payload: &str| {
            let (tenant_id, event_id) = (TenantId::new("acme").unwrap(), EventId::from_u128(7));
            let message = Message::new("ase.00.acme.authorize_decision", payload.to_owned()).with_id("a");
            let outgoing = Outgoing { message, tenant_id, event_id, row: i64::MAX };
            outgoing.dead_letter(Stream::Approvals, &BusError::TooLarge { bytes: 2, max: 1 }).message.msg_id.unwrap()
        };
        let id = id_of("sealed");
        assert_eq!(id, id_of("sealed"), "whoever publishes it again");
        assert_ne!(id, id_of("of somebody else"));
        assert!(id.len() <= MAX_MSG_ID, "{id}");
    }
}
