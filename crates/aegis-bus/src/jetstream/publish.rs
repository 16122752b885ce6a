//! Publishing: a window of messages on their way at once, each acknowledged by the server or refused.

use std::time::Duration;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{Context, ErrorCode};

use tokio::time::{Instant, timeout_at};

use super::unavailable;
use crate::check::check_message;
use crate::{BusError, MAX_PAYLOAD, Message, PubAck, Stream};

/// Messages of one call that wait for their acknowledgement at once. Behind the first that the server does not take, this many at most may be
/// stored before it is sent again: consumers put a lane's events in order.
pub(super) const WINDOW: usize = 512;

/// Calls that run at once at most, for the client's own bound.
pub(super) const MOST_PUBLISHERS: usize = 64;

/// What a server takes as a time to live.
const LEAST_TTL: Duration = Duration::from_secs(1);

/// Publishes in order; one result for each message. See `Bus::publish`.
pub(super) async fn publish(
    context: &Context,
    timeout: Duration,
    stream: Stream,
    messages: Vec<Message>,
) -> Vec<Result<PubAck, BusError>> {
    let count = messages.len();
    let mut results: Vec<Result<PubAck, BusError>> = Vec::with_capacity(count);
    let mut messages = messages.into_iter();
    while results.len() < count {
        // One end for all of them: behind a server that hangs, each would have its own wait.
        let deadline = Instant::now() + timeout;
        let mut on_their_way = Vec::with_capacity(WINDOW);
        for message in messages.by_ref().take(WINDOW) {
            let sent = timeout_at(deadline, send(context, stream, message)).await;
            let sent = sent.unwrap_or_else(|_elapsed| Err(unavailable("the connection takes nothing")));
            let refused = sent.as_ref().is_err_and(BusError::is_retryable);
            on_their_way.push(sent);
            if refused {
                break;
            }
        }
        for sent in on_their_way {
            results.push(match sent {
                Ok((subject, ack)) => match timeout_at(deadline, ack.into_future()).await {
                    Ok(Ok(ack)) => Ok(PubAck { seq: ack.sequence, duplicate: ack.duplicate }),
                    Ok(Err(error)) => Err(refusal(stream, &subject, &error)),
                    Err(_elapsed) => Err(unavailable("no acknowledgement in time")),
                },
                Err(error) => Err(error),
            });
        }
        let first_refused = results.iter().position(|result| result.as_ref().is_err_and(BusError::is_retryable));
        if let Some(first) = first_refused {
            let refusal = results[first].clone();
            results.truncate(first);
            results.resize(count, refusal);
        }
    }
    results
}

type OnItsWay = (String, async_nats::jetstream::context::PublishAckFuture);

async fn send(context: &Context, stream: Stream, message: Message) -> Result<OnItsWay, BusError> {
    check_message(stream, &message)?;
    let mut publish = PublishMessage::build().payload(message.payload);
    if let Some(id) = message.msg_id {
        publish = publish.message_id(id);
    }
    if let Some(seq) = message.expected_last_subject_seq {
        publish = publish.expected_last_subject_sequence(seq);
    }
    if let Some(ttl) = message.ttl {
        publish = publish.ttl(ttl.max(LEAST_TTL));
    }
    let subject = message.subject;
    match context.send_publish(subject.clone(), publish).await {
        Ok(ack) => Ok((subject, ack)),
        Err(error) => Err(refusal(stream, &subject, &error)),
    }
}

/// The number in the server's "wrong last sequence: 7"; 0 where it does not say.
fn actual_sequence(error: &PublishError) -> u64 {
    let said = error.to_string();
    let digits = said.rsplit_once("last sequence: ").map_or("", |(_, rest)| rest);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

/// The server's own words about a refusal.
fn server_error(error: &PublishError) -> Option<&async_nats::jetstream::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

pub(super) fn refusal(stream: Stream, subject: &str, error: &PublishError) -> BusError {
    match error.kind() {
        PublishErrorKind::WrongLastSequence => {
            BusError::WrongLastSequence { subject: subject.to_owned(), actual: actual_sequence(error) }
        }
        PublishErrorKind::MaxPayloadExceeded => BusError::TooLarge { bytes: MAX_PAYLOAD, max: MAX_PAYLOAD },
        PublishErrorKind::StreamNotFound => unavailable(format!(
            "no stream answers for {subject}: {stream} is not there (`aegis streams apply`) or has no leader now"
        )),
        PublishErrorKind::TimedOut => unavailable("no acknowledgement in time"),
        _ => match server_error(error).map(|error| error.error_code()) {
            Some(ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT) => {
                BusError::WrongLastSequence { subject: subject.to_owned(), actual: actual_sequence(error) }
            }
            Some(ErrorCode::MESSAGE_TTL_DISABLED) => BusError::NoTtl { stream },
            Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM) => BusError::TooLarge { bytes: MAX_PAYLOAD, max: MAX_PAYLOAD },
            Some(
                ErrorCode::STREAM_STORE_FAILED | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED | ErrorCode::STORAGE_RESOURCES_EXCEEDED,
            ) => BusError::Full { stream },
            _ => unavailable(error),
        },
    }
}
