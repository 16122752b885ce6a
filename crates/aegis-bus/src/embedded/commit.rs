//! One transaction of the writer: what each request becomes, in order, and what readers see once it is durable.
//! Works on a copy of the writer's picture; the copy replaces the picture only after the commit.

mod admit;
mod append;
mod put;
mod retention;
mod write;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use aegis_model::Timestamp;
use sqlx::sqlite::SqliteConnection;

use self::write::Staged;
use self::write::WRITE_AND_COMMIT;
use super::kv::KvEntry;
use super::schema::{SETTLED, WriterState, seq_of, signed, unsigned};
use super::writer::{Answer, Request};
use super::{EmbeddedLimits, Shared};
use crate::{Bucket, BusError, Delivered, Message, Stream};

/// Forgotten message ids that one commit removes at most.
const PRUNE_PER_COMMIT: u64 = 4096;

/// How often, in seconds, forgotten message ids are looked for.
const PRUNE_EVERY_S: i64 = 1;

/// How long the writer leaves a tail to whoever holds it. A look at it takes microseconds, unless the system stops the thread that looks.
const HELD_PAUSE: Duration = Duration::from_millis(1);

/// Pauses after which the writer waits for a tail all the same, so that readers who take it in turns do not hold up every publisher for good. By then whoever
/// was stopped has mostly gone on.
const MOST_PAUSES: u32 = 50;

/// When to look for forgotten message ids again.
#[derive(Debug, Default)]
pub(super) struct Pruning {
    next: Timestamp,
}

/// A commit that did not happen, and the requests it had not come to.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: BusError,
    pub(super) untouched: Vec<Request>,
}

/// Answers requests that were never tried.
pub(super) fn refuse(requests: Vec<Request>, error: &BusError) {
    for request in requests {
        match request {
            Request::Publish { messages, reply, .. } => drop(reply.send(vec![Err(error.clone()); messages.len()])),
            Request::SetPosition { reply, .. } | Request::Settle { reply } => drop(reply.send(Err(error.clone()))),
            Request::KvPut { reply, .. } | Request::Admit { reply, .. } => drop(reply.send(Err(error.clone()))),
            Request::Close { reply } => {
                let _ = reply.send(());
            }
        }
    }
}

/// Makes the requests durable in one transaction. `answers` gets one per request that was tried; the caller sends them. After an error
/// the transaction may be open, or even committed: the connection is of no use any more.
pub(super) async fn commit(
    conn: &mut SqliteConnection,
    shared: &Shared,
    limits: &EmbeddedLimits,
    now: Timestamp,
    batch: Vec<Request>,
    answers: &mut Vec<Answer>,
    pruning: &mut Pruning,
) -> Result<(), Failure> {
    let mut requests = VecDeque::from(batch);
    let outcome = transact(conn, shared, limits, now, &mut requests, answers, pruning).await;
    outcome.map_err(|error| Failure { error, untouched: requests.into() })
}

async fn transact(
    conn: &mut SqliteConnection,
    shared: &Shared,
    limits: &EmbeddedLimits,
    now: Timestamp,
    requests: &mut VecDeque<Request>,
    answers: &mut Vec<Answer>,
    pruning: &mut Pruning,
) -> Result<(), BusError> {
    let before = shared.state.lock().clone();
    let mut work = Work {
        conn,
        shared,
        limits,
        now,
        state: before.clone(),
        ids: Default::default(),
        subjects: Default::default(),
        staged: Default::default(),
        superseded: Default::default(),
        appended: Default::default(),
        kv: HashMap::new(),
        kv_changes: Vec::new(),
        kv_growth: [(0, 0); 4],
    };
    work.begin(requests).await?;
    while let Some(request) = requests.pop_front() {
        work.take(request, answers).await?;
    }
    work.finish(&before, pruning).await?;
    let Work { state, appended, kv_changes, .. } = work;
    show(shared, state, appended, kv_changes).await;
    Ok(())
}

/// Lets readers see what is durable now.
async fn show(
    shared: &Shared,
    state: WriterState,
    appended: [Vec<Delivered>; 6],
    kv_changes: Vec<(Bucket, String, Option<KvEntry>)>,
) {
    for (stream, messages) in Stream::ALL.into_iter().zip(appended) {
        let tail = &shared.tails[stream.index()];
        // Who reads is of a lower priority than this thread, which answers agents: it does not wait for one that was stopped while it held the tail.
        let mut pauses = 0;
        let mut tail = loop {
            if let Some(taken) = tail.try_lock() {
                break taken;
            }
            if pauses == MOST_PAUSES {
                break tail.lock();
            }
            pauses += 1;
            tokio::time::sleep(HELD_PAUSE).await;
        };
        // Where only the latest message of a subject counts, the file alone knows which one that is.
        if !stream.keeps_latest_per_subject() {
            messages.into_iter().for_each(|message| tail.append(message));
        }
        tail.drop_before(state.streams[stream.index()].first_seq);
    }
    for (bucket, key, entry) in kv_changes {
        let mut bucket = shared.buckets[bucket.index()].lock();
        match entry {
            Some(entry) => bucket.put(key, entry),
            None => bucket.remove(&key),
        }
    }
    let heads = state.streams.map(|s| s.last_seq);
    let revisions = state.revisions;
    *shared.state.lock() = state;
    for (sender, last) in shared.heads.iter().zip(heads).chain(shared.bucket_heads.iter().zip(revisions)) {
        sender.send_if_modified(|head| std::mem::replace(&mut head.last, last) != last);
    }
}

/// The last message of a subject.
#[derive(Clone, Copy, Debug)]
struct Last {
    seq: u64,
    cost: u64,
}

struct Work<'a> {
    /// Inside the transaction.
    conn: &'a mut SqliteConnection,
    shared: &'a Shared,
    limits: &'a EmbeddedLimits,
    now: Timestamp,
    state: WriterState,
    /// Message ids that are known, in the file or by this commit.
    ids: [HashMap<String, u64>; 6],
    /// Last messages of subjects, as far as this commit needs or made them.
    subjects: [HashMap<String, Last>; 6],
    /// Taken, not yet in the file.
    staged: [Vec<Staged>; 6],
    /// Keys of messages that a later one of their subject replaced.
    superseded: [Vec<i64>; 6],
    appended: [Vec<Delivered>; 6],
    /// Keys that this commit wrote or removed.
    kv: HashMap<(Bucket, String), Option<KvEntry>>,
    kv_changes: Vec<(Bucket, String, Option<KvEntry>)>,
    /// How many keys and bytes each bucket grew by.
    kv_growth: [(i64, i64); 4],
}

impl Work<'_> {
    /// Starts the transaction and asks the file, once for the whole batch, which message ids it knows and where the subjects in
    /// question end.
    async fn begin(&mut self, requests: &VecDeque<Request>) -> Result<(), BusError> {
        let mut ids = Vec::new();
        let mut subjects = Vec::new();
        for request in requests {
            let Request::Publish { stream, messages, .. } = request else { continue };
            for message in messages {
                if let Some(id) = message.msg_id.as_ref().filter(|_| self.keeper_of(*stream, message).is_none()) {
                    ids.push((stream.index(), id.as_str()));
                }
                if stream.keeps_latest_per_subject() || message.expected_last_subject_seq.is_some() {
                    subjects.push((stream.index(), message.subject.as_str()));
                }
            }
        }
        if ids.is_empty() {
            sqlx::query("BEGIN IMMEDIATE").execute(&mut *self.conn).await?;
        } else {
            let known: Vec<(i64, String, i64)> = sqlx::query_as(
                "BEGIN IMMEDIATE;
                 SELECT m.stream, m.msg_id, m.pos FROM json_each(?1) AS j
                 CROSS JOIN msg_ids AS m ON m.stream = j.value ->> 0 AND m.msg_id = j.value ->> 1",
            )
            .bind(json(&ids)?)
            .fetch_all(&mut *self.conn)
            .await?;
            for (stream, id, pos) in known {
                if let Some(of_stream) = usize::try_from(stream).ok().and_then(|i| self.ids.get_mut(i)) {
                    of_stream.insert(id, seq_of(pos));
                }
            }
        }
        if !subjects.is_empty() {
            let known: Vec<(i64, String, i64, i64)> = sqlx::query_as(
                "SELECT s.stream, s.subject, s.last_seq, s.cost FROM json_each(?1) AS j
                 CROSS JOIN subjects AS s ON s.stream = j.value ->> 0 AND s.subject = j.value ->> 1",
            )
            .bind(json(&subjects)?)
            .fetch_all(&mut *self.conn)
            .await?;
            for (stream, subject, seq, cost) in known {
                if let Some(of_stream) = usize::try_from(stream).ok().and_then(|i| self.subjects.get_mut(i)) {
                    of_stream.insert(subject, Last { seq: unsigned(seq), cost: unsigned(cost) });
                }
            }
        }
        Ok(())
    }

    async fn take(&mut self, request: Request, answers: &mut Vec<Answer>) -> Result<(), BusError> {
        match request {
            Request::Publish { stream, messages, room, reply } => {
                let count = messages.len();
                let outcome = self.publish(stream, messages).await;
                let (results, failed) = split(outcome, |error| vec![Err(error); count]);
                answers.push(Answer::Publish(reply, results, room));
                failed
            }
            Request::SetPosition { stream, name, position, reply } => {
                let outcome = self.set_position(stream, name, position).await;
                let (result, failed) = split(outcome, Err);
                answers.push(Answer::Unit(reply, result));
                failed
            }
            Request::KvPut { bucket, key, value, expected, reply } => {
                let outcome = self.put(bucket, key, value, expected).await;
                let (result, failed) = split(outcome, Err);
                answers.push(Answer::Revision(reply, result));
                failed
            }
            Request::Admit { name, keeper, reply } => {
                let outcome = self.admit(name, keeper.as_ref()).await.map(Ok);
                let (result, failed) = split(outcome, Err);
                answers.push(Answer::Revision(reply, result));
                failed
            }
            Request::Settle { reply } => {
                let outcome = self.settle().await.map(Ok);
                let (result, failed) = split(outcome, Err);
                answers.push(Answer::Unit(reply, result));
                failed
            }
            // The writer takes these out of the queue itself.
            Request::Close { reply } => {
                let _ = reply.send(());
                Ok(())
            }
        }
    }

    /// Changes something, so that there is a commit that the disk has to take, and all before it in the log: one that changes nothing is none.
    async fn settle(&mut self) -> Result<(), BusError> {
        sqlx::query(
            "INSERT INTO sources (source, name, last_position, last_id) VALUES (?1, '', 1, '')
             ON CONFLICT (source) DO UPDATE SET last_position = last_position + 1",
        )
        .bind(SETTLED)
        .execute(&mut *self.conn)
        .await?;
        Ok(())
    }

    /// Who keeps a message's payload: its number, if it is known.
    fn keeper_of(&self, stream: Stream, message: &Message) -> Option<i64> {
        let kept = message.kept.as_ref().filter(|_| !stream.keeps_latest_per_subject())?;
        self.shared.keepers.read().number(&kept.by)
    }

    async fn set_position(
        &mut self,
        stream: Stream,
        name: String,
        position: Option<u64>,
    ) -> Result<Result<(), BusError>, BusError> {
        let last_seq = self.state.streams[stream.index()].last_seq;
        let stream_index = signed(stream.index() as u64);
        match position {
            Some(position) if position > last_seq => Ok(Err(BusError::invalid(
                "consumer position",
                format!("{position} is past the last sequence of {stream}, {last_seq}"),
            ))),
            Some(position) => {
                sqlx::query(
                    "INSERT INTO consumers (stream, name, position) VALUES (?1, ?2, ?3)
                     ON CONFLICT (stream, name) DO UPDATE SET position = excluded.position",
                )
                .bind(stream_index)
                .bind(&name)
                .bind(signed(position))
                .execute(&mut *self.conn)
                .await?;
                self.state.consumers.insert((stream, name), position);
                Ok(Ok(()))
            }
            None => {
                sqlx::query("DELETE FROM consumers WHERE stream = ?1 AND name = ?2")
                    .bind(stream_index)
                    .bind(&name)
                    .execute(&mut *self.conn)
                    .await?;
                self.state.consumers.remove(&(stream, name));
                Ok(Ok(()))
            }
        }
    }

    /// Writes what is left, staged messages, counters, forgotten ids, and commits.
    async fn finish(&mut self, before: &WriterState, pruning: &mut Pruning) -> Result<(), BusError> {
        if let Some(stream) = self.only_staged(before)
            && self.now < pruning.next
        {
            return self.write_staged(stream, WRITE_AND_COMMIT).await;
        }
        for stream in Stream::ALL {
            self.flush(stream).await?;
            let counters = self.state.streams[stream.index()];
            if counters != before.streams[stream.index()] {
                sqlx::query(
                    "UPDATE streams SET first_seq = ?2, last_seq = ?3, messages = ?4, bytes = ?5, dropped = ?6 WHERE stream = ?1",
                )
                .bind(signed(stream.index() as u64))
                .bind(signed(counters.first_seq))
                .bind(signed(counters.last_seq))
                .bind(signed(counters.messages))
                .bind(signed(counters.bytes))
                .bind(signed(counters.dropped_total))
                .execute(&mut *self.conn)
                .await?;
            }
        }
        for bucket in Bucket::ALL {
            let revision = self.state.revisions[bucket.index()];
            if revision != before.revisions[bucket.index()] {
                sqlx::query(
                    "INSERT INTO kv_revisions (bucket, revision) VALUES (?1, ?2)
                     ON CONFLICT (bucket) DO UPDATE SET revision = excluded.revision",
                )
                .bind(signed(bucket.index() as u64))
                .bind(signed(revision))
                .execute(&mut *self.conn)
                .await?;
            }
        }
        if self.now >= pruning.next {
            let pruned = sqlx::query(
                "DELETE FROM msg_ids WHERE pos IN (SELECT pos FROM msg_ids WHERE retired = 1 AND bus_ts < ?1 ORDER BY bus_ts LIMIT ?2)",
            )
            .bind(self.now.plus_seconds(-self.limits.dedup_window_s).as_micros())
            .bind(signed(PRUNE_PER_COMMIT))
            .execute(&mut *self.conn)
            .await?
            .rows_affected();
            let more = pruned == PRUNE_PER_COMMIT;
            pruning.next = if more { self.now } else { self.now.plus_seconds(PRUNE_EVERY_S) };
        }
        sqlx::query("COMMIT").execute(&mut *self.conn).await?;
        Ok(())
    }

    /// The stream whose staged messages are all that is left to write, if it is so.
    fn only_staged(&self, before: &WriterState) -> Option<Stream> {
        let mut changed = Stream::ALL.into_iter().filter(|stream| {
            let i = stream.index();
            !self.staged[i].is_empty() || !self.superseded[i].is_empty() || self.state.streams[i] != before.streams[i]
        });
        let only = changed.next().filter(|_| changed.next().is_none())?;
        let messages_only = !self.staged[only.index()].is_empty() && self.superseded[only.index()].is_empty();
        (messages_only && self.state.revisions == before.revisions).then_some(only)
    }
}

/// Takes apart what the requester is told and whether the transaction can go on.
fn split<T>(outcome: Result<T, BusError>, on_failure: impl FnOnce(BusError) -> T) -> (T, Result<(), BusError>) {
    match outcome {
        Ok(result) => (result, Ok(())),
        Err(error) => (on_failure(error.clone()), Err(error)),
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, BusError> {
    serde_json::to_string(value).map_err(|e| BusError::Unavailable { reason: format!("bus index: {e}") })
}

fn length(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
