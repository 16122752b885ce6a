//! The only writer of the bus file: drains requests into one transaction and answers after its commit (group commit).
//! After a failed commit it reads its picture back from the file before it goes on: whether the commit took effect is unknown.

use std::fs::File;
use std::sync::Arc;

use aegis_model::Clock;
use bytes::Bytes;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{EmbeddedLimits, Keeper, MAX_REQUEST_BYTES, Shared, commit, file, schema};
use crate::{Bucket, BusError, Message, PubAck, Stream};

/// What the writer is asked to make durable.
#[derive(Debug)]
pub(super) enum Request {
    Publish {
        stream: Stream,
        messages: Vec<Message>,
        /// Held until the answer: the queue's bytes are bounded.
        room: OwnedSemaphorePermit,
        reply: oneshot::Sender<Vec<Result<PubAck, BusError>>>,
    },
    /// None: unregister.
    SetPosition {
        stream: Stream,
        name: String,
        position: Option<u64>,
        reply: oneshot::Sender<Result<(), BusError>>,
    },
    KvPut {
        bucket: Bucket,
        key: String,
        value: Bytes,
        expected: Option<u64>,
        reply: oneshot::Sender<Result<u64, BusError>>,
    },
    /// Numbers a keeper, and finds out what it still has.
    Admit {
        name: String,
        keeper: Arc<dyn Keeper>,
        reply: oneshot::Sender<Result<u64, BusError>>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

impl Request {
    fn size(&self) -> (usize, usize) {
        match self {
            Self::Publish { messages, .. } => (messages.len(), messages.iter().map(|m| m.payload.len()).sum()),
            Self::KvPut { value, .. } => (1, value.len()),
            Self::SetPosition { .. } | Self::Admit { .. } | Self::Close { .. } => (1, 0),
        }
    }
}

/// A result that waits for the commit.
#[derive(Debug)]
pub(super) enum Answer {
    Publish(oneshot::Sender<Vec<Result<PubAck, BusError>>>, Vec<Result<PubAck, BusError>>, OwnedSemaphorePermit),
    Unit(oneshot::Sender<Result<(), BusError>>, Result<(), BusError>),
    Revision(oneshot::Sender<Result<u64, BusError>>, Result<u64, BusError>),
}

impl Answer {
    /// Answers; nobody listening any more is fine.
    fn send(self) {
        match self {
            Self::Publish(reply, results, _room) => drop(reply.send(results)),
            Self::Unit(reply, result) => drop(reply.send(result)),
            Self::Revision(reply, result) => drop(reply.send(result)),
        }
    }

    /// Answers that nothing was stored; what was refused anyway keeps its reason.
    fn send_failed(mut self, error: &BusError) {
        match &mut self {
            Self::Publish(_, results, _) => {
                for result in results.iter_mut().filter(|r| r.is_ok()) {
                    *result = Err(error.clone());
                }
            }
            Self::Unit(_, result) => *result = result.clone().and(Err(error.clone())),
            Self::Revision(_, result) => *result = result.clone().and(Err(error.clone())),
        }
        self.send();
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) conn: SqliteConnection,
    pub(super) options: SqliteConnectOptions,
    pub(super) limits: EmbeddedLimits,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) shared: Arc<Shared>,
    pub(super) requests: mpsc::Receiver<Request>,
    /// False after a failed commit, until the file was read back.
    pub(super) healthy: bool,
    /// Held as long as the writer lives.
    pub(super) _lock: File,
}

impl Writer {
    pub(super) async fn run(mut self) {
        let mut closing = None;
        let mut pruning = commit::Pruning::default();
        while closing.is_none()
            && let Some(first) = self.requests.recv().await
        {
            let (batch, close) = self.drain(first);
            closing = close;
            if !batch.is_empty() {
                self.commit(batch, &mut pruning).await;
            }
        }
        self.shared.close();
        self.requests.close();
        if let Err(error) = self.conn.close().await {
            tracing::warn!(%error, "bus file did not close cleanly; its log is replayed when it is opened next");
        }
        drop(self._lock);
        if let Some(reply) = closing {
            let _ = reply.send(());
        }
    }

    /// Takes what is queued, up to the bounds of one transaction.
    fn drain(&mut self, first: Request) -> (Vec<Request>, Option<oneshot::Sender<()>>) {
        let mut batch = Vec::new();
        let (mut messages, mut bytes) = (0, 0);
        let mut next = Some(first);
        while let Some(request) = next {
            if let Request::Close { reply } = request {
                return (batch, Some(reply));
            }
            let size = request.size();
            messages += size.0;
            bytes += size.1;
            batch.push(request);
            let full = messages >= self.limits.commit_messages || bytes >= MAX_REQUEST_BYTES;
            next = if full { None } else { self.requests.try_recv().ok() };
        }
        (batch, None)
    }

    async fn commit(&mut self, batch: Vec<Request>, pruning: &mut commit::Pruning) {
        let mut answers = Vec::with_capacity(batch.len());
        let outcome = match self.recover().await {
            Ok(()) => {
                commit::commit(&mut self.conn, &self.shared, &self.limits, self.clock.now(), batch, &mut answers, pruning).await
            }
            Err(error) => {
                commit::refuse(batch, &error);
                return;
            }
        };
        match outcome {
            Ok(()) => answers.into_iter().for_each(Answer::send),
            Err(mut failure) => {
                failure.error = file::at(self.options.get_filename())(failure.error);
                tracing::error!(error = %failure.error, "bus commit failed; publishers keep their messages and try again");
                self.healthy = false;
                // What of it took effect is read back later; until then nothing holds the file's lock.
                let _none_or_over = sqlx::query("ROLLBACK").execute(&mut self.conn).await;
                answers.into_iter().for_each(|answer| answer.send_failed(&failure.error));
                commit::refuse(failure.untouched, &failure.error);
            }
        }
    }

    /// Reads the picture back after a failed commit, on a fresh connection.
    async fn recover(&mut self) -> Result<(), BusError> {
        if self.healthy {
            return Ok(());
        }
        let mut conn = SqliteConnection::connect_with(&self.options).await?;
        let loaded = schema::load(&mut conn).await?;
        self.shared.reset(loaded);
        self.conn = conn;
        self.healthy = true;
        Ok(())
    }
}
