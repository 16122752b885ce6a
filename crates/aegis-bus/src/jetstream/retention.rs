//! Retention: a stream that fills up refuses what is new rather than drop what nobody has read, so what every consumer has passed is
//! purged before it comes to that.

use async_nats::jetstream::Context;
use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

use super::{kv, place, unavailable};
use crate::{BusError, Stream};

/// How often a stream's size is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Percent of its bound at which a stream is made smaller, and to which.
const FULL_PERCENT: u64 = 80;
const GOAL_PERCENT: u64 = 60;

/// When each stream was looked at last.
#[derive(Debug, Default)]
pub(super) struct Retention(Mutex<[Option<Instant>; 6]>);

impl Retention {
    /// Purges the oldest messages that every registered consumer has passed, if the stream is nearly full. For whoever may: to another
    /// user the server does not answer, so it would be waited for.
    pub(super) async fn make_room(&self, context: &Context, stream: Stream) {
        let now = Instant::now();
        {
            let mut looked = self.0.lock();
            let last = &mut looked[stream.index()];
            if last.is_some_and(|last| now < last + LOOK_EVERY) {
                return;
            }
            *last = Some(now);
        }
        if let Err(error) = purge(context, stream).await {
            tracing::warn!(%error, %stream, "a stream that fills up could not be purged");
        }
    }
}

async fn purge(context: &Context, stream: Stream) -> Result<(), BusError> {
    let found = context.get_stream(stream.as_str()).await.map_err(unavailable)?;
    let info = found.cached_info();
    let Ok(max_bytes) = u64::try_from(info.config.max_bytes) else { return Ok(()) };
    let state = &info.state;
    if max_bytes == 0 || state.bytes < max_bytes / 100 * FULL_PERCENT || state.messages == 0 {
        return Ok(());
    }
    let Some(consumed) = kv::positions(context, stream, &place::identity(info)).await?.into_iter().min() else { return Ok(()) };
    // As much of it as its size asks for: consumers that come back want what is still there.
    let over = u128::from(state.bytes - max_bytes / 100 * GOAL_PERCENT);
    let too_many = u64::try_from(u128::from(state.messages) * over / u128::from(state.bytes)).unwrap_or(u64::MAX);
    let purge_to = consumed.min(state.first_sequence + too_many);
    if purge_to < state.first_sequence {
        return Ok(());
    }
    let purged = found.purge().sequence(purge_to + 1).await.map_err(unavailable)?;
    tracing::info!(%stream, messages = purged.purged, "purged what every consumer has passed");
    Ok(())
}
