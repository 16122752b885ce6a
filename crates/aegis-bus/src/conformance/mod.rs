//! What every driver must do, as functions over any `Bus`: the embedded driver's tests run them, and so must those of another driver.
//! Each case gets its own empty bus. A case that fails says which promise was broken; none depends on how fast the driver is.

mod kv;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::{Bus, BusError, Delivered, Message, PubAck, Stream, Subscription};

/// A promise that the driver does not keep.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(String);

impl From<BusError> for Violation {
    fn from(error: BusError) -> Self {
        Self(format!("unexpected refusal: {error}"))
    }
}

/// A case over an empty bus.
pub type Case = fn(Arc<dyn Bus>) -> BoxFuture<'static, Result<(), Violation>>;

/// Every case with its name.
#[must_use]
pub fn cases() -> Vec<(&'static str, Case)> {
    vec![
        ("sequences_start_at_one_and_have_no_gap", |b| Box::pin(streams::sequences_start_at_one_and_have_no_gap(b))),
        ("concurrent_publishers_share_one_gapless_order", |b| {
            Box::pin(streams::concurrent_publishers_share_one_gapless_order(b))
        }),
        ("a_message_id_is_stored_once", |b| Box::pin(streams::a_message_id_is_stored_once(b))),
        ("an_event_s_id_is_each_lane_s_own", |b| Box::pin(streams::an_event_s_id_is_each_lane_s_own(b))),
        ("a_message_with_a_time_to_live_is_like_any_other", |b| {
            Box::pin(streams::a_message_with_a_time_to_live_is_like_any_other(b))
        }),
        ("an_expected_sequence_lets_one_publisher_win", |b| Box::pin(streams::an_expected_sequence_lets_one_publisher_win(b))),
        ("a_retry_after_a_lost_answer_finds_its_message", |b| {
            Box::pin(streams::a_retry_after_a_lost_answer_finds_its_message(b))
        }),
        ("a_refused_message_leaves_its_neighbours_alone", |b| {
            Box::pin(streams::a_refused_message_leaves_its_neighbours_alone(b))
        }),
        ("what_is_begun_is_stored_in_that_order_whoever_waits", |b| {
            Box::pin(streams::what_is_begun_is_stored_in_that_order_whoever_waits(b))
        }),
        ("a_refusal_under_way_is_of_its_own_publish", |b| Box::pin(streams::a_refusal_under_way_is_of_its_own_publish(b))),
        ("a_filter_delivers_what_matches_in_order", |b| Box::pin(streams::a_filter_delivers_what_matches_in_order(b))),
        ("a_subscription_starts_where_it_is_told", |b| Box::pin(streams::a_subscription_starts_where_it_is_told(b))),
        ("a_waiting_subscription_wakes", |b| Box::pin(streams::a_waiting_subscription_wakes(b))),
        ("episodes_keep_the_latest_of_a_subject", |b| Box::pin(streams::episodes_keep_the_latest_of_a_subject(b))),
        ("consumer_positions_are_remembered", |b| Box::pin(streams::consumer_positions_are_remembered(b))),
        ("a_stream_has_an_identity", |b| Box::pin(streams::a_stream_has_an_identity(b))),
        ("values_have_growing_revisions", |b| Box::pin(kv::values_have_growing_revisions(b))),
        ("an_update_needs_the_revision", |b| Box::pin(kv::an_update_needs_the_revision(b))),
        ("a_watch_gives_current_values_then_changes", |b| Box::pin(kv::a_watch_gives_current_values_then_changes(b))),
        ("a_filter_shows_its_keys_alone", |b| Box::pin(kv::a_filter_shows_its_keys_alone(b))),
        ("a_slow_watch_ends_at_the_last_value", |b| Box::pin(kv::a_slow_watch_ends_at_the_last_value(b))),
        ("what_is_told_is_heard_by_those_who_listen", |b| Box::pin(kv::what_is_told_is_heard_by_those_who_listen(b))),
        ("keys_keep_to_their_alphabet", |b| Box::pin(kv::keys_keep_to_their_alphabet(b))),
    ]
}

/// Runs every case, each over the empty bus that `fresh` makes; stops at the first that fails.
pub async fn run_all(fresh: impl AsyncFn() -> Arc<dyn Bus>) -> Result<(), Violation> {
    for (name, case) in cases() {
        case(fresh().await).await.map_err(|violation| Violation(format!("{name}: {violation}")))?;
    }
    Ok(())
}

/// How long a case waits for something that must come.
const DEADLINE: Duration = Duration::from_secs(60);

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Violation(format!($($message)+)));
        }
    };
}
use ensure;

fn text(payload: &str) -> Bytes {
    Bytes::copy_from_slice(payload.as_bytes())
}

async fn publish_one(bus: &Arc<dyn Bus>, stream: Stream, message: Message) -> Result<PubAck, BusError> {
    let mut results = bus.publish(stream, vec![message]).await;
    results.pop().unwrap_or(Err(BusError::Unavailable { reason: "no result for a message".to_owned() }))
}

/// Reads until `count` messages came, or says how many did.
async fn read_exactly(subscription: &mut Box<dyn Subscription>, count: usize) -> Result<Vec<Delivered>, Violation> {
    let mut read = Vec::new();
    let until = tokio::time::Instant::now() + DEADLINE;
    while read.len() < count {
        ensure!(tokio::time::Instant::now() < until, "{} of {count} messages were delivered", read.len());
        read.extend(subscription.next_batch(count - read.len(), Duration::from_millis(200)).await?);
    }
    let more = subscription.next_batch(1, Duration::ZERO).await?;
    ensure!(more.is_empty(), "more than {count} messages were delivered");
    Ok(read)
}
