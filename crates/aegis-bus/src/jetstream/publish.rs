//! Publishing: a window of messages on their way at once, each acknowledged by the server or refused. Promises that a message counts as taken only
//! by the answer of its own stream: what the client or the server lets fall without a word is refused once its time is over.

use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{Context, ErrorCode};
use tokio::time::{Instant, timeout_at};

use super::elsewhere::Outcome;
use super::unavailable;
use crate::check::check_message;
use crate::{Acks, BusError, MAX_PAYLOAD, Message, PubAck, Stream};

/// Messages of one call that wait for their acknowledgement at once. Behind the first that the server does not take, this many at most of its call
/// may be stored before it is sent again: consumers put a lane's events in order.
pub(super) const WINDOW: usize = 512;

/// Calls that are under way at once at most, for the client's own bound. A shipper counts as eight.
pub(super) const MOST_PUBLISHERS: usize = 64;

/// Why a message is refused of which the server said nothing.
const NO_ACK: &str = "no acknowledgement in time";

/// How it begins why a message is refused of which the server said that nobody takes it.
const NO_STREAM: &str = "no stream answers";

/// Why a message is refused that the client could not write.
const NOT_WRITTEN: &str = "the connection takes nothing";

/// What a server takes as a time to live.
const LEAST_TTL: Duration = Duration::from_secs(1);

/// Sends in order, and answers when the last message is on its way. See `Bus::begin_publish`. Calls of more than a window wait for the
/// acknowledgements of one before they send the next.
pub(super) async fn begin(context: &Context, timeout: Duration, stream: Stream, messages: Vec<Message>) -> Acks {
    let count = messages.len();
    let mut results: Vec<Result<PubAck, BusError>> = Vec::with_capacity(count);
    let mut messages = messages.into_iter();
    loop {
        // One end for all of them: behind a server that hangs, each would have its own wait.
        let deadline = Instant::now() + timeout;
        let window = messages.by_ref().take(WINDOW).collect();
        let sent = send_all(context, deadline, stream, window).await;
        if messages.as_slice().is_empty() || sent.last().is_some_and(is_refused) {
            return Box::pin(async move {
                results.extend(acknowledged(stream, deadline, sent).await);
                refused_from_the_first_on(results, count)
            });
        }
        results.extend(acknowledged(stream, deadline, sent).await);
        if results.iter().any(is_refused) {
            return Box::pin(std::future::ready(refused_from_the_first_on(results, count)));
        }
    }
}

type OnItsWay = (Subject, PublishAckFuture);

/// Sends up to the first that is refused.
async fn send_all(
    context: &Context,
    deadline: Instant,
    stream: Stream,
    messages: Vec<Message>,
) -> Vec<Result<OnItsWay, BusError>> {
    let mut all = Vec::with_capacity(messages.len());
    for message in messages {
        let sent = timeout_at(deadline, send(context, stream, message)).await;
        let sent = sent.unwrap_or_else(|_elapsed| Err(unavailable(NOT_WRITTEN)));
        let refused = is_refused(&sent);
        all.push(sent);
        if refused {
            break;
        }
    }
    all
}

/// Waits for the answers, for the last first: they come in order, and whoever waits is woken once and not by each of them.
async fn acknowledged(
    stream: Stream,
    deadline: Instant,
    mut sent: Vec<Result<OnItsWay, BusError>>,
) -> Vec<Result<PubAck, BusError>> {
    let Some(last) = sent.pop() else { return Vec::new() };
    let last = answered(stream, deadline, last).await;
    let mut results = Vec::with_capacity(sent.len() + 1);
    for on_its_way in sent {
        results.push(answered(stream, deadline, on_its_way).await);
    }
    results.push(last);
    results
}

/// One that is there counts, however late somebody looks at it.
async fn answered(stream: Stream, deadline: Instant, sent: Result<OnItsWay, BusError>) -> Result<PubAck, BusError> {
    let (subject, ack) = sent?;
    match timeout_at(deadline, ack.into_future()).await {
        Ok(Ok(ack)) => taken(stream, &ack),
        Ok(Err(error)) => Err(refusal(stream, &subject, &error)),
        Err(_elapsed) => Err(unavailable(NO_ACK)),
    }
}

/// What the server says that it has stored. Another stream that answers has stored nothing in this one.
fn taken(stream: Stream, ack: &PublishAck) -> Result<PubAck, BusError> {
    if ack.stream != stream.as_str() {
        return Err(unavailable(format!("another stream than {stream} takes its subjects; see `aegis streams plan`")));
    }
    Ok(PubAck { seq: ack.sequence, duplicate: ack.duplicate })
}

/// What came of what was published; None where that was nothing, or could not be written: the client itself gives such a connection up. What is
/// refused before it is sent speaks for no server, beside others of which none was answered.
pub(super) fn outcome(results: &[Result<PubAck, BusError>]) -> Option<Outcome> {
    let is_any =
        |is: fn(&str) -> bool| results.iter().any(|result| matches!(result, Err(BusError::Unavailable { reason }) if is(reason)));
    if results.is_empty() {
        return None;
    }
    if results.iter().any(Result::is_ok) {
        return Some(Outcome::Answered);
    }
    // Neither yes nor no.
    if is_any(|reason| reason == NO_ACK) {
        return Some(Outcome::Silence);
    }
    if is_any(|reason| reason.starts_with(NO_STREAM)) {
        return Some(Outcome::NotTaken);
    }
    // Any other refusal is an answer, which another server would not better: of another stream, or with an error that is not known here.
    (!is_any(|reason| reason == NOT_WRITTEN)).then_some(Outcome::Answered)
}

fn is_refused<T>(result: &Result<T, BusError>) -> bool {
    result.as_ref().is_err_and(BusError::is_retryable)
}

/// As many results as there are messages: what is behind the first refusal is refused too, stored or not.
fn refused_from_the_first_on(mut results: Vec<Result<PubAck, BusError>>, count: usize) -> Vec<Result<PubAck, BusError>> {
    if let Some(first) = results.iter().position(is_refused) {
        let refusal = results[first].clone();
        results.truncate(first);
        results.resize(count, refusal);
    }
    results
}

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
    let subject = Subject::from(message.subject);
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
        PublishErrorKind::StreamNotFound => {
            unavailable(format!("{NO_STREAM} for {subject}: {stream} is not there (`aegis streams apply`) or has no leader now"))
        }
        PublishErrorKind::TimedOut => unavailable(NO_ACK),
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    /// As the client hands on what a server answers.
    fn refused(kind: PublishErrorKind, answer: Option<serde_json::Value>) -> Result<PubAck, BusError> {
        let said = answer.map(|answer| serde_json::from_value::<async_nats::jetstream::Error>(answer).unwrap());
        let error = said.map_or_else(|| PublishError::new(kind), |said| PublishError::with_source(kind, said));
        Err(refusal(Stream::Ase, "ase.00.t.x", &error))
    }

    #[test]
    fn a_server_is_left_for_its_silence_and_for_saying_that_nobody_takes_it_and_for_no_other_refusal() {
        let taken = || Ok(PubAck { seq: 1, duplicate: false });
        let nobody = || refused(PublishErrorKind::StreamNotFound, None);
        let silence = || refused(PublishErrorKind::TimedOut, None);
        let too_large = || Err(BusError::TooLarge { bytes: 2, max: 1 });
        let not_written = || Err(unavailable(NOT_WRITTEN));
        let error = |code: u64| json!({"code": 503, "err_code": code, "description": "no stream answers"});
        let unknown = || refused(PublishErrorKind::Other, Some(error(19_999)));
        let full = || refused(PublishErrorKind::Other, Some(error(ErrorCode::STREAM_STORE_FAILED.0)));
        let of_another = || super::taken(Stream::Ase, &PublishAck { stream: "OTHER".to_owned(), ..PublishAck::default() });
        for (results, expected) in [
            (vec![], None),
            (vec![silence(), silence()], Some(Outcome::Silence)),
            (vec![too_large(), silence()], Some(Outcome::Silence)),
            (vec![too_large(), silence(), taken()], Some(Outcome::Answered)),
            (vec![taken(), silence()], Some(Outcome::Answered)),
            (vec![too_large()], Some(Outcome::Answered)),
            (vec![full()], Some(Outcome::Answered)),
            (vec![nobody(), nobody()], Some(Outcome::NotTaken)),
            (vec![too_large(), nobody()], Some(Outcome::NotTaken)),
            (vec![taken(), nobody()], Some(Outcome::Answered)),
            (vec![unknown(), unknown()], Some(Outcome::Answered)),
            (vec![of_another(), of_another()], Some(Outcome::Answered)),
            (vec![not_written(), not_written()], None),
            (vec![too_large(), not_written()], None),
            (vec![taken(), not_written()], Some(Outcome::Answered)),
            (vec![nobody(), not_written()], Some(Outcome::NotTaken)),
        ] {
            assert_eq!(outcome(&results), expected, "{results:?}");
        }
    }
}
