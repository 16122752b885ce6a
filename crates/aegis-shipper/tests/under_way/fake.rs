//! A bus that answers a publish when the test says so, or a server does, and keeps count of what is under way.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_bus::{Acks, Bucket, Bus, BusError, Hearing, KvWatch, Message, PubAck, Stream, StreamState, Subscription};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::ground::until;

pub(crate) type Answers = Vec<Result<PubAck, BusError>>;

/// A publish that was begun.
#[derive(Debug)]
struct Begun {
    stream: Stream,
    messages: Vec<Message>,
    /// None where a server answers.
    answer: Option<oneshot::Sender<Answers>>,
    is_answered: bool,
}

impl Begun {
    fn bytes(&self) -> usize {
        self.messages.iter().map(|message| message.payload.len()).sum()
    }
}

/// What was under way at most as each publish began, dead letters left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Most {
    pub(crate) publishes: usize,
    pub(crate) events: usize,
    /// But for what went alone.
    pub(crate) bytes: usize,
    /// Of one publish, but for a single message.
    pub(crate) bytes_of_one: usize,
}

#[derive(Debug, Default)]
struct State {
    begun: Vec<Begun>,
    most: Most,
    /// Ids of messages on ASE that were acknowledged, or went to the dead letters.
    taken: BTreeSet<String>,
    /// Of those, any that was published again.
    needless: Vec<String>,
}

impl State {
    /// Notes what the nth publish is answered, before anybody hears of it.
    fn note(&mut self, n: usize, answers: &[Result<PubAck, BusError>]) {
        let begun = &mut self.begun[n];
        begun.is_answered = true;
        if begun.stream == Stream::Ase {
            let is_gone = |answer: &Result<PubAck, BusError>| !answer.as_ref().is_err_and(BusError::is_retryable);
            let gone: Vec<String> =
                ids(&begun.messages).into_iter().zip(answers).filter(|(_, answer)| is_gone(answer)).map(|(id, _)| id).collect();
            self.taken.extend(gone);
        }
    }

    /// Notes a publish that begins; its number.
    fn begin(&mut self, begun: Begun) -> usize {
        if begun.stream == Stream::Ase {
            let needless: Vec<String> = ids(&begun.messages).into_iter().filter(|id| self.taken.contains(id)).collect();
            self.needless.extend(needless);
        }
        self.begun.push(begun);
        let is_under_way = |begun: &&Begun| begun.stream != Stream::Dlq && !begun.is_answered;
        let under_way: Vec<&Begun> = self.begun.iter().filter(is_under_way).collect();
        let bytes: usize = under_way.iter().map(|begun| begun.bytes()).sum();
        let events: usize = under_way.iter().map(|begun| begun.messages.len()).sum();
        let of_several = under_way.iter().filter(|begun| begun.messages.len() > 1);
        let bytes_of_one = of_several.map(|begun| begun.bytes()).max().unwrap_or(0);
        let most = self.most;
        self.most = Most {
            publishes: most.publishes.max(under_way.len()),
            events: most.events.max(events),
            bytes: if under_way.len() > 1 { most.bytes.max(bytes) } else { most.bytes },
            bytes_of_one: most.bytes_of_one.max(bytes_of_one),
        };
        self.begun.len() - 1
    }
}

#[derive(Debug, Default)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    /// Whoever answers in the place of the test.
    server: Option<Arc<dyn Bus>>,
}

pub(crate) fn ids(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| message.msg_id.clone().unwrap()).collect()
}

pub(crate) fn taken() -> Result<PubAck, BusError> {
    Ok(PubAck { seq: 1, duplicate: false })
}

pub(crate) fn full() -> Result<PubAck, BusError> {
    Err(BusError::Full { stream: Stream::Ase })
}

pub(crate) fn never() -> Result<PubAck, BusError> {
    Err(BusError::TooLarge { bytes: 2, max: 1 })
}

impl Fake {
    /// One that a server answers.
    pub(crate) fn before(server: Arc<dyn Bus>) -> Self {
        Self { server: Some(server), ..Self::default() }
    }

    /// Publishes that were begun.
    pub(crate) fn begun(&self) -> usize {
        self.state.lock().begun.len()
    }

    pub(crate) fn most(&self) -> Most {
        self.state.lock().most
    }

    /// Messages that were published although they were acknowledged.
    pub(crate) fn needless(&self) -> Vec<String> {
        self.state.lock().needless.clone()
    }

    pub(crate) fn is_taken(&self, id: &str) -> bool {
        self.state.lock().taken.contains(id)
    }

    /// Those that wait for an answer, the oldest first.
    pub(crate) fn waiting(&self) -> Vec<usize> {
        let state = self.state.lock();
        state.begun.iter().enumerate().filter(|(_, begun)| !begun.is_answered).map(|(n, _)| n).collect()
    }

    /// The nth publish, from 0, as soon as it was begun: its stream, and the ids of its messages.
    pub(crate) async fn nth(&self, n: usize) -> (Stream, Vec<String>) {
        until(&format!("publish {n}"), async || self.begun() > n).await;
        let state = self.state.lock();
        (state.begun[n].stream, ids(&state.begun[n].messages))
    }

    /// Answers the nth publish.
    pub(crate) fn answer(&self, n: usize, answers: Answers) {
        let answer = {
            let mut state = self.state.lock();
            state.note(n, &answers);
            state.begun[n].answer.take().unwrap()
        };
        let _nobody_waits_any_more = answer.send(answers);
    }

    /// Acknowledges the nth publish.
    pub(crate) fn take(&self, n: usize) {
        let count = self.state.lock().begun[n].messages.len();
        self.answer(n, vec![taken(); count]);
    }

    /// Lets the time of the nth publish pass without an answer.
    pub(crate) fn lose(&self, n: usize) {
        let mut state = self.state.lock();
        state.note(n, &[]);
        drop(state.begun[n].answer.take().unwrap());
    }
}

/// Nothing but publishing is there.
fn nothing<T>() -> Result<T, BusError> {
    Err(BusError::Closed)
}

#[async_trait]
impl Bus for Fake {
    async fn publish(&self, stream: Stream, messages: Vec<Message>) -> Answers {
        self.begin_publish(stream, messages).await.await
    }
    async fn begin_publish(&self, stream: Stream, messages: Vec<Message>) -> Acks {
        let count = messages.len();
        let (answer, answered) = oneshot::channel();
        let answer = self.server.is_none().then_some(answer);
        let n = self.state.lock().begin(Begun { stream, messages: messages.clone(), answer, is_answered: false });
        let acks: Acks = if let Some(server) = &self.server {
            let (state, acks) = (Arc::clone(&self.state), server.begin_publish(stream, messages).await);
            Box::pin(async move {
                let answers = acks.await;
                state.lock().note(n, &answers);
                answers
            })
        } else {
            Box::pin(async move {
                let in_vain = |_| vec![Err(BusError::Unavailable { reason: "no acknowledgement in time".to_owned() }); count];
                answered.await.unwrap_or_else(in_vain)
            })
        };
        acks
    }
    async fn subscribe(&self, _stream: Stream, _name: &str, _seq: u64) -> Result<Box<dyn Subscription>, BusError> {
        nothing()
    }
    async fn last_seq(&self, _stream: Stream) -> Result<u64, BusError> {
        nothing()
    }
    async fn stream_state(&self, _stream: Stream) -> Result<StreamState, BusError> {
        nothing()
    }
    async fn stream_identity(&self, _stream: Stream) -> Result<String, BusError> {
        nothing()
    }
    async fn consumer_position(&self, _stream: Stream, _name: &str) -> Result<u64, BusError> {
        nothing()
    }
    async fn set_consumer_position(&self, _stream: Stream, _name: &str, _seq: u64) -> Result<(), BusError> {
        nothing()
    }
    async fn forget_consumer(&self, _stream: Stream, _name: &str) -> Result<(), BusError> {
        nothing()
    }
    async fn kv_put(&self, _bucket: Bucket, _key: &str, _value: Bytes) -> Result<u64, BusError> {
        nothing()
    }
    async fn kv_update(&self, _bucket: Bucket, _key: &str, _value: Bytes, _expected: u64) -> Result<u64, BusError> {
        nothing()
    }
    async fn kv_get(&self, _bucket: Bucket, _key: &str) -> Result<Option<(Bytes, u64)>, BusError> {
        nothing()
    }
    async fn kv_all(&self, _bucket: Bucket, _key: &str) -> Result<Vec<(String, Bytes, u64)>, BusError> {
        nothing()
    }
    async fn kv_watch(&self, _bucket: Bucket, _key: &str) -> Result<Box<dyn KvWatch>, BusError> {
        nothing()
    }
    async fn tell(&self, _subject: &str, _payload: Bytes) -> Result<(), BusError> {
        nothing()
    }
    async fn hear(&self, _filter: &str) -> Result<Box<dyn Hearing>, BusError> {
        nothing()
    }
}
