//! What every driver refuses before it asks anybody: forms that the bus will never take.

use crate::{BusError, MAX_MSG_ID, MAX_PAYLOAD, Message, Stream, subject};

/// A message's subject, payload and id.
pub(crate) fn check_message(stream: Stream, message: &Message) -> Result<(), BusError> {
    subject::check_subject(stream, &message.subject)?;
    if message.payload.len() > MAX_PAYLOAD {
        return Err(BusError::TooLarge { bytes: message.payload.len(), max: MAX_PAYLOAD });
    }
    match &message.msg_id {
        Some(id) if id.is_empty() || id.len() > MAX_MSG_ID => {
            Err(BusError::invalid("message id", format!("it must have 1 to {MAX_MSG_ID} bytes")))
        }
        Some(id) if id.chars().any(char::is_control) => Err(BusError::invalid("message id", "a control character")),
        _ => Ok(()),
    }
}

/// The name of a consumer.
pub(crate) fn consumer_name(name: &str) -> Result<String, BusError> {
    let plain =
        !name.is_empty() && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if plain { Ok(name.to_owned()) } else { Err(BusError::invalid("consumer name", "it must match [A-Za-z0-9_-]{1,128}")) }
}
