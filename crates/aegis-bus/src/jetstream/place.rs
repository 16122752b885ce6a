//! What stands at a sequence of a stream, so that a later look can tell whether it still does.

use aegis_model::Timestamp;
use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{Info, RawMessageErrorKind};

use super::{missing, unavailable};
use crate::{BusError, Place};

/// The place of a sequence as the server has it now, and the stream's last sequence.
pub(super) async fn find(context: &Context, stream: &str, seq: u64) -> Result<(Place, u64), BusError> {
    let found = context.get_stream(stream).await.map_err(|error| missing(stream, &error))?;
    let info = found.cached_info();
    let last_seq = info.state.last_sequence;
    let is_there = info.state.messages > 0 && (info.state.first_sequence..=last_seq).contains(&seq);
    let stored = if is_there { stored(&found, seq).await? } else { None };
    Ok((Place { stream: identity(info), seq, stored }, last_seq))
}

/// When the server stored a message; None for one that is gone.
async fn stored(stream: &async_nats::jetstream::stream::Stream, seq: u64) -> Result<Option<Timestamp>, BusError> {
    match stream.get_raw_message(seq).await {
        Ok(message) => Ok(i64::try_from(message.time.unix_timestamp_nanos() / 1000).ok().map(Timestamp::from_micros)),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(unavailable(error)),
    }
}

/// A stream that was made anew was created at another time.
pub(super) fn identity(info: &Info) -> String {
    format!("{}.{}", info.config.name, info.created.unix_timestamp_nanos())
}
