//! Buckets: the last message of each subject of a stream, its sequence being the revision. Written and read as messages, so that a
//! value's revision and a lost race are what the stream says they are.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_trait::async_trait;
use bytes::Bytes;

use super::ordered::{OrderedReader, Read, Start};
use super::publish::refusal;
use super::unavailable;
use crate::check::consumer_name;
use crate::{Bucket, BusError, KvWatch, MAX_PAYLOAD, Place, Stream, subject};

/// First token of the keys in `leases` under which consumers' positions stand.
const POSITION: &str = "position";

/// How long the next value of a bucket is waited for that has one.
const READ_WAIT: Duration = Duration::from_secs(5);

/// Before a broken watch is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(200);

fn stream_of(bucket: Bucket) -> String {
    format!("KV_{bucket}")
}

pub(super) fn prefix(bucket: Bucket) -> String {
    format!("$KV.{bucket}.")
}

/// Refuses what is no key, or stands for a consumer's position.
pub(super) fn check(bucket: Bucket, key: &str) -> Result<(), BusError> {
    subject::check_key(key)?;
    if is_position(bucket, key) {
        return Err(BusError::invalid("key", format!("`{POSITION}.` stands before the positions of consumers")));
    }
    Ok(())
}

pub(super) fn is_position(bucket: Bucket, key: &str) -> bool {
    bucket == Bucket::Leases && key.split('.').next() == Some(POSITION)
}

pub(super) fn position_key(stream: Stream, name: &str) -> Result<String, BusError> {
    consumer_name(name).map(|name| format!("{POSITION}.{stream}.{name}"))
}

/// Where a consumer stands; None for one that is not registered.
pub(super) async fn position(context: &Context, stream: Stream, name: &str) -> Result<Option<Place>, BusError> {
    let found = get(context, Bucket::Leases, &position_key(stream, name)?).await?;
    Ok(found.and_then(|(value, _)| serde_json::from_slice(&value).ok()))
}

/// The positions of every consumer of a stream in its incarnation `identity`.
pub(super) async fn positions(context: &Context, stream: Stream, identity: &str) -> Result<Vec<u64>, BusError> {
    let all = all(context, Bucket::Leases, &format!("{POSITION}.{stream}.*")).await?;
    let places = all.into_iter().map(|(_, value, _)| serde_json::from_slice::<Place>(&value).ok());
    Ok(places.map(|place| place.filter(|place| place.stream == identity).map_or(0, |place| place.seq)).collect())
}

/// Writes a value, if the key's revision is the expected one; answers its revision.
pub(super) async fn put(
    context: &Context,
    bucket: Bucket,
    key: &str,
    value: Bytes,
    expected: Option<u64>,
) -> Result<u64, BusError> {
    if value.len() > MAX_PAYLOAD {
        return Err(BusError::TooLarge { bytes: value.len(), max: MAX_PAYLOAD });
    }
    let mut publish = PublishMessage::build().payload(value);
    if let Some(revision) = expected {
        publish = publish.expected_last_subject_sequence(revision);
    }
    let subject = format!("{}{key}", prefix(bucket));
    let answer = async { context.send_publish(subject.clone(), publish).await?.await };
    answer.await.map(|ack| ack.sequence).map_err(|error| match refusal(Stream::Ckpt, &subject, &error) {
        BusError::WrongLastSequence { actual, .. } => BusError::WrongRevision { bucket, key: key.to_owned(), actual },
        BusError::Full { .. } => BusError::BucketFull { bucket },
        other => other,
    })
}

/// A value and its revision, as the stream's leader has it. An empty value, or one with a marker of deletion, is none.
pub(super) async fn get(context: &Context, bucket: Bucket, key: &str) -> Result<Option<(Bytes, u64)>, BusError> {
    if subject::check_key(key).is_err() {
        return Ok(None);
    }
    let stream = context.get_stream_no_info(stream_of(bucket)).await.map_err(unavailable)?;
    match stream.get_last_raw_message_by_subject(&format!("{}{key}", prefix(bucket))).await {
        Ok(found) if found.payload.is_empty() || is_deleted(Some(&found.headers)) => Ok(None),
        Ok(found) => Ok(Some((found.payload, found.sequence))),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(unavailable(error)),
    }
}

/// NATS's own tools mark a deleted key so.
fn is_deleted(headers: Option<&async_nats::HeaderMap>) -> bool {
    headers.is_some_and(|headers| headers.get("KV-Operation").is_some())
}

/// Every key that matches, with its value and revision, sorted by key.
pub(super) async fn all(context: &Context, bucket: Bucket, filter: &str) -> Result<Vec<(String, Bytes, u64)>, BusError> {
    let mut reader = reader(context.clone(), bucket, filter);
    reader.open().await?;
    let mut all = std::collections::BTreeMap::new();
    let (mut pending, consumer) = (reader.pending_at_start, reader.made);
    while pending > 0 {
        let read =
            tokio::time::timeout(READ_WAIT, reader.next()).await.map_err(|_elapsed| unavailable("no answer in time"))??;
        if reader.made != consumer {
            // What it was to bring was counted on another connection.
            return Err(unavailable("the connection was lost while the bucket was read"));
        }
        pending = read.pending;
        let (key, seq, value) = entry(bucket, read);
        match value {
            Some(value) => all.insert(key, (value, seq)),
            None => all.remove(&key),
        };
    }
    Ok(all.into_iter().map(|(key, (value, seq))| (key, value, seq)).collect())
}

/// Reads the last value of each key that matches, then what follows. The server filters: its permissions can let a user read some keys only.
fn reader(context: Context, bucket: Bucket, filter: &str) -> OrderedReader {
    OrderedReader::new(context, stream_of(bucket), &format!("{}{filter}", prefix(bucket)), Start::LastOfEach)
}

fn entry(bucket: Bucket, read: Read) -> (String, u64, Option<Bytes>) {
    let key = read.message.subject.strip_prefix(prefix(bucket).as_str()).unwrap_or_default().to_owned();
    let deleted = read.message.payload.is_empty() || is_deleted(read.message.headers.as_ref());
    (key, read.seq, (!deleted).then_some(read.message.payload))
}

/// Watches a bucket.
#[derive(Debug)]
pub(super) struct JetStreamWatch {
    bucket: Bucket,
    reader: OrderedReader,
}

impl JetStreamWatch {
    pub(super) fn new(context: Context, bucket: Bucket, filter: &str) -> Self {
        Self { bucket, reader: reader(context, bucket, filter) }
    }
}

#[async_trait]
impl KvWatch for JetStreamWatch {
    async fn next(&mut self) -> Result<(String, Bytes, u64), BusError> {
        loop {
            match self.reader.next().await {
                Ok(read) => {
                    let (key, seq, value) = entry(self.bucket, read);
                    if let Some(value) = value.filter(|_| !is_position(self.bucket, &key)) {
                        return Ok((key, value, seq));
                    }
                }
                // A watch outlives its server: whoever must know how old its picture is reads the bucket now and then.
                Err(error) => {
                    tracing::warn!(%error, bucket = %self.bucket, "a watch was interrupted; trying again");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
    }
}
