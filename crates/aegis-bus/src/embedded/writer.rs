//! The only writer of the bus file: drains requests into one transaction and answers after its commit (group commit).
//! After a failed commit it reads its picture back from the file before it goes on: whether the commit took effect is unknown.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use aegis_model::Clock;
use bytes::Bytes;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use super::{EmbeddedLimits, Keeper, MAX_REQUEST_BYTES, Shared, commit, file, schema};
use crate::{Bucket, BusError, Kept, Message, PubAck, Stream};

/// Commits in a row that are left to a later one, at most: the log grows with them.
const MOST_UNSYNCED: u32 = 256;

/// How long a disk that refused is left alone: every publisher that tries again would have it tried, and each try takes room that others want.
const TRY_PAUSE: Duration = Duration::from_secs(1);

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
    /// Has the disk take all that was committed before.
    Settle {
        reply: oneshot::Sender<Result<(), BusError>>,
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
            Self::SetPosition { .. } | Self::Admit { .. } | Self::Settle { .. } | Self::Close { .. } => (1, 0),
        }
    }

    /// True for messages that their keepers have on the disk, and that are published again behind the last one that this file knows: they, and nothing else,
    /// may be lost of it with the power (docs/adr/0049). Of a keeper of whom the file knows no message nobody would know where to begin.
    fn can_come_again(&self, shared: &Shared) -> bool {
        let Self::Publish { stream, messages, .. } = self else { return false };
        let (keepers, state) = (shared.keepers.read(), shared.state.lock());
        let is_behind_the_last = |kept: &Kept| {
            let source = keepers.number(&kept.by).and_then(|number| state.sources.get(&number));
            source.is_some_and(|source| (1..kept.position).contains(&source.last_position))
        };
        !stream.keeps_latest_per_subject() && messages.iter().all(|message| message.kept.as_ref().is_some_and(is_behind_the_last))
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
    /// True after an error of the disk, until the log was begun anew: pages of it may not be there, and what is committed behind them would not outlive the
    /// power either (docs/adr/0049).
    pub(super) log_in_doubt: bool,
    /// When the disk was last asked whether it takes the log.
    pub(super) tried_at: Option<Instant>,
    /// True while the connection leaves it to a later commit, or a checkpoint of the log, to have the disk take what it commits.
    pub(super) leaves_sync: bool,
    /// Commits since the last that the disk had to take.
    pub(super) unsynced: u32,
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
        let may_wait = self.unsynced < MOST_UNSYNCED && batch.iter().all(|request| request.can_come_again(&self.shared));
        let outcome = match self.make_ready(may_wait).await {
            Ok(()) => {
                commit::commit(&mut self.conn, &self.shared, &self.limits, self.clock.now(), batch, &mut answers, pruning).await
            }
            Err(error) => {
                commit::refuse(batch, &error);
                return;
            }
        };
        match outcome {
            Ok(()) => {
                self.unsynced = if self.leaves_sync { self.unsynced.saturating_add(1) } else { 0 };
                answers.into_iter().for_each(Answer::send);
            }
            Err(mut failure) => {
                self.log_in_doubt |= file::is_disk_error(&failure.error);
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

    /// Whether the disk has to take the next commit before it is answered, or may later.
    async fn make_ready(&mut self, may_wait: bool) -> Result<(), BusError> {
        self.recover().await?;
        if self.leaves_sync == may_wait {
            return Ok(());
        }
        let level = if may_wait { schema::SYNC_LATER } else { schema::SYNC_NOW };
        // Never as a statement that stays prepared: SQLite may do it while it prepares one, and not when that is run again.
        if let Err(error) = sqlx::raw_sql(level).execute(&mut self.conn).await {
            self.healthy = false;
            return Err(error.into());
        }
        self.leaves_sync = may_wait;
        Ok(())
    }

    /// Reads the picture back after a failed commit, on a fresh connection.
    async fn recover(&mut self) -> Result<(), BusError> {
        if self.healthy {
            return Ok(());
        }
        if self.log_in_doubt {
            if self.tried_at.is_some_and(|tried_at| tried_at.elapsed() < TRY_PAUSE) {
                let reason = format!(
                    "{}: the disk refused its log, and is tried again within a second",
                    self.options.get_filename().display()
                );
                return Err(BusError::Unavailable { reason });
            }
            self.tried_at = Some(Instant::now());
        }
        // The one before it lets go of the file.
        self.conn = SqliteConnection::connect_with(&self.options).await?;
        if self.log_in_doubt {
            schema::begin_log_anew(&mut self.conn, self.options.get_filename()).await?;
            self.log_in_doubt = false;
            tracing::warn!(path = %self.options.get_filename().display(), "the disk has taken the log of the bus file again");
        }
        let loaded = schema::load(&mut self.conn).await?;
        self.shared.reset(loaded);
        self.healthy = true;
        (self.leaves_sync, self.unsynced) = (false, 0);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Held, connect};
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    use aegis_model::SystemClock;
    use async_trait::async_trait;
    use tokio::sync::Semaphore;

    /// Of SQLite: how far a commit waits for the disk.
    const NORMAL: i64 = 1;
    const FULL: i64 = 2;

    #[derive(Debug)]
    struct Nothing;

    #[async_trait]
    impl Keeper for Nothing {
        async fn read(&self, _first: i64, _count: usize) -> Result<Vec<Held>, BusError> {
            Ok(Vec::new())
        }

        fn last(&self) -> i64 {
            0
        }
    }

    async fn writer(folder: &std::path::Path) -> Writer {
        let path = folder.join("bus.db");
        let (lock, options, limits) =
            (file::take(&path).await.unwrap(), schema::connect_options(&path), EmbeddedLimits::default());
        let (conn, loaded, _) = connect(&path, &options).await.unwrap();
        let (shared, (_, requests)) = (Arc::new(Shared::new(&limits, &loaded)), mpsc::channel(1));
        shared.reset(loaded);
        let clock = Arc::new(SystemClock);
        let (healthy, log_in_doubt, leaves_sync, unsynced) = (true, false, false, 0);
        let tried_at = None;
        Writer {
            conn,
            options,
            limits,
            clock,
            shared,
            requests,
            healthy,
            log_in_doubt,
            tried_at,
            leaves_sync,
            unsynced,
            _lock: lock,
        }
    }

    /// Commits these together, and how far that waited for the disk. Whoever waits works the log into the file, and nobody else.
    async fn commit(writer: &mut Writer, batch: Vec<Request>) -> i64 {
        writer.commit(batch, &mut commit::Pruning::default()).await;
        // One that is prepared once says for ever what it said first.
        let asked = |pragma: &'static str| sqlx::query_scalar::<sqlx::Sqlite, i64>(pragma).persistent(false);
        let level = asked("PRAGMA synchronous").fetch_one(&mut writer.conn).await.unwrap();
        let checkpoints = asked("PRAGMA wal_autocheckpoint").fetch_one(&mut writer.conn).await.unwrap();
        assert_eq!(checkpoints, if level == FULL { 512 } else { 0 });
        level
    }

    fn publish(stream: Stream, messages: Vec<Message>) -> Request {
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Request::Publish { stream, messages, room, reply: oneshot::channel().0 }
    }

    fn kept(by: &str, position: i64) -> Message {
        Message::new("ase.00.t.x", format!("{by} {position}")).with_id(format!("{by}-{position}")).kept(&by.into(), position)
    }

    #[tokio::test]
    async fn a_reader_that_is_stopped_while_it_holds_the_tail_does_not_stop_the_writer_s_thread() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path()).await;
        let shared = Arc::clone(&writer.shared);
        let (held, is_held) = std::sync::mpsc::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let _tail = shared.tails[Stream::Ase.index()].lock();
            held.send(()).unwrap();
            // In vain, where what it waits for is on the thread that waits for the tail.
            may_go_on.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        });
        is_held.recv().unwrap();
        let publishing = commit(&mut writer, vec![publish(Stream::Ase, vec![Message::new("ase.00.t.x", "whole")])]);
        let answering = async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            go_on.send(()).unwrap();
        };
        tokio::join!(publishing, answering);
        reader.join().unwrap();
        assert_eq!(writer.shared.state.lock().streams[Stream::Ase.index()].last_seq, 1);
    }

    #[tokio::test]
    async fn readers_who_hold_the_tail_in_turns_do_not_hold_up_the_writer_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path()).await;
        let shared = Arc::clone(&writer.shared);
        let is_committed = Arc::new(AtomicBool::new(false));
        let hears = Arc::clone(&is_committed);
        let (held, is_held) = oneshot::channel();
        let reader = std::thread::spawn(move || {
            let mut held = Some(held);
            // It lets go of the tail only for as long as it takes to take it again, for ten seconds.
            (0..500).any(|_| {
                let _tail = shared.tails[Stream::Ase.index()].lock();
                let _ = held.take().map(|held| held.send(()));
                std::thread::sleep(Duration::from_millis(20));
                hears.load(Ordering::Acquire)
            })
        });
        is_held.await.unwrap();
        commit(&mut writer, vec![publish(Stream::Ase, vec![Message::new("ase.00.t.x", "whole")])]).await;
        is_committed.store(true, Ordering::Release);
        assert!(reader.join().unwrap(), "the writer came only when the readers had gone");
    }

    #[tokio::test]
    async fn a_disk_that_refused_the_log_is_not_tried_by_every_publisher() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path()).await;
        let alert = || publish(Stream::Ase, vec![Message::new("ase.00.t.x", "whole")]);
        // A disk that refuses the trial.
        let trial = folder.path().join("bus.db.trial");
        std::fs::create_dir(&trial).unwrap();
        (writer.healthy, writer.log_in_doubt) = (false, true);
        commit(&mut writer, vec![alert()]).await;
        assert!(writer.log_in_doubt && writer.tried_at.is_some());
        std::fs::remove_dir(&trial).unwrap();
        writer.tried_at = Some(Instant::now() + Duration::from_secs(3600));
        commit(&mut writer, vec![alert()]).await;
        assert!(writer.log_in_doubt, "it is too early");
        writer.tried_at = Instant::now().checked_sub(TRY_PAUSE);
        commit(&mut writer, vec![alert()]).await;
        assert!(writer.healthy && !writer.log_in_doubt);
        assert_eq!(writer.shared.state.lock().streams[Stream::Ase.index()].last_seq, 1);
    }

    #[tokio::test]
    async fn only_what_comes_again_by_itself_is_left_to_a_later_commit() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path()).await;
        let writer = &mut writer;
        let reply = || oneshot::channel().0;
        let admit = Request::Admit { name: "shelf".to_owned(), keeper: Arc::new(Nothing), reply: oneshot::channel().0 };
        assert_eq!(commit(writer, vec![admit]).await, FULL);
        let number = *writer.shared.state.lock().sources.keys().next().unwrap();
        writer.shared.keepers.write().add("shelf", number, Arc::new(Nothing));
        let ase = |messages: Vec<Message>| publish(Stream::Ase, messages);
        assert_eq!(commit(writer, vec![ase(vec![kept("shelf", 1)])]).await, FULL, "the first says where to begin");
        assert_eq!(commit(writer, vec![ase(vec![kept("shelf", 2), kept("shelf", 3)])]).await, NORMAL);
        let whole = Message::new("ase.00.t.x", "whole");
        assert_eq!(commit(writer, vec![ase(vec![kept("shelf", 4), whole])]).await, FULL, "nobody else has it");
        assert_eq!(commit(writer, vec![ase(vec![kept("shelf", 5)]), ase(vec![kept("shelf", 6)])]).await, NORMAL);
        assert_eq!(
            commit(writer, vec![ase(vec![kept("shelf", 7)]), publish(Stream::Dlq, vec![Message::new("dlq.00", "whole")])]).await,
            FULL
        );
        assert_eq!(
            commit(writer, vec![ase(vec![kept("shelf", 3)])]).await,
            FULL,
            "nobody publishes again what is before the last"
        );
        assert_eq!(commit(writer, vec![ase(vec![kept("nobody", 9)])]).await, FULL);
        let (stream, name) = (Stream::Ase, "c".to_owned());
        assert_eq!(commit(writer, vec![ase(vec![kept("shelf", 8)])]).await, NORMAL);
        assert_eq!(commit(writer, vec![Request::SetPosition { stream, name, position: Some(1), reply: reply() }]).await, FULL);
        assert_eq!(commit(writer, vec![ase(vec![kept("shelf", 9)])]).await, NORMAL);
        assert_eq!(commit(writer, vec![Request::Settle { reply: reply() }]).await, FULL);
        let settled = "SELECT last_position FROM sources WHERE source < 0";
        let settled: i64 = sqlx::query_scalar(settled).fetch_one(&mut writer.conn).await.unwrap();
        assert_eq!(settled, 1, "a commit that changes nothing has the disk take nothing");
        // The log is bounded, also where nothing else comes.
        let mut levels = Vec::new();
        for position in 10..12 + i64::from(MOST_UNSYNCED) {
            levels.push(commit(writer, vec![ase(vec![kept("shelf", position)])]).await);
        }
        let waited: Vec<usize> = (0..levels.len()).filter(|n| levels[*n] == FULL).collect();
        assert_eq!(waited, [usize::try_from(MOST_UNSYNCED).unwrap()]);
    }
}
