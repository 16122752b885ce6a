//! Lines to a database server: connections, so many at a time, each of which is asked with an end in sight.
//! Promises that a call ends, and that the next is not held up by it: a connection that did not answer in time, or whose asker went away, is
//! closed there and then. sqlx's own pool asks each once more before it lets go of it, for as long as TCP tries, and that is a quarter of an hour.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use parking_lot::Mutex;
use sqlx::any::{AnyConnectOptions, AnyRow, AnyStatement, AnyTypeInfo};
use sqlx::{Any, AnyConnection, AssertSqlSafe, ConnectOptions, Connection, Execute, Executor, SqlStr};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};

use crate::pool::Step;

/// How long a call waits for its turn at a connection, or for a server that is starting again.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection that does not say within this that it is there is not.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a parting word may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two tries at a server that is starting: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Lines of one kind.
pub(crate) struct Lines {
    options: AnyConnectOptions,
    /// What a connection is told first.
    first: String,
    /// How long an answer may take.
    patience: Duration,
    count: u32,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<AnyConnection>>,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the options: they hold the password.
        f.debug_struct("Lines").field("count", &self.count).field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Lines {
    /// At most `count` at a time. Connects when one is first asked for.
    pub(crate) fn new(options: AnyConnectOptions, first: String, count: u32, patience: Duration) -> Arc<Self> {
        let turns = Arc::new(Semaphore::new(count as usize));
        Arc::new(Self { options, first, patience, count, turns, idle: Mutex::default() })
    }

    /// One that answers.
    pub(crate) async fn take(self: &Arc<Self>) -> sqlx::Result<Line> {
        timeout(TURN_TIMEOUT, self.take_in_turn()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn take_in_turn(self: &Arc<Self>) -> sqlx::Result<Line> {
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_closed| sqlx::Error::PoolClosed)?;
        let line = |raw| Line { lines: Arc::clone(self), raw: Some(raw), turn: Some(turn), is_asked: false, is_open: false };
        while let Some(mut raw) = self.idle_one() {
            match timeout(PING_TIMEOUT, raw.ping()).await {
                Ok(Ok(())) => return Ok(line(raw)),
                Ok(Err(_closed)) => {}
                // The others that were idle went the same way.
                Err(_elapsed) => self.idle.lock().clear(),
            }
        }
        Ok(line(self.connect().await?))
    }

    fn idle_one(&self) -> Option<AnyConnection> {
        self.idle.lock().pop()
    }

    async fn connect(&self) -> sqlx::Result<AnyConnection> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.options.connect().await {
                Ok(mut raw) => {
                    sqlx::raw_sql(AssertSqlSafe(self.first.clone())).execute(&mut raw).await?;
                    return Ok(raw);
                }
                Err(error) if is_starting(&error) => sleep(pause).await,
                Err(error) => return Err(error),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One in a transaction that `statement` begins.
    pub(crate) async fn begin(self: &Arc<Self>, statement: &'static str) -> sqlx::Result<Line> {
        let mut line = self.take().await?;
        line.is_open = true;
        line.ask(statement).await?;
        Ok(line)
    }

    fn give_back(&self, raw: AnyConnection) {
        if !self.turns.is_closed() {
            self.idle.lock().push(raw);
        }
    }

    /// Waits for those that are asked something, and closes all. No more are given out.
    pub(crate) async fn close(&self) {
        let all = self.turns.acquire_many(self.count).await;
        self.turns.close();
        drop(all);
        let idle = std::mem::take(&mut *self.idle.lock());
        for raw in idle {
            let _said_or_not = timeout(CLOSE_TIMEOUT, raw.close()).await;
        }
    }
}

/// A server that is not there yet, or says that it is starting.
fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(error) => error.is_transient_in_connect_phase(),
        _ => false,
    }
}

/// One connection, as long as somebody has it.
pub(crate) struct Line {
    lines: Arc<Lines>,
    /// None once it is closed.
    raw: Option<AnyConnection>,
    turn: Option<OwnedSemaphorePermit>,
    /// An answer is outstanding: whatever it says next may be that.
    is_asked: bool,
    /// A transaction is open.
    is_open: bool,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("is_asked", &self.is_asked).field("is_open", &self.is_open).finish_non_exhaustive()
    }
}

impl Line {
    /// The whole answer to a statement.
    pub(crate) async fn ask<'q, E>(&mut self, query: E) -> sqlx::Result<Vec<Step>>
    where
        E: 'q + Execute<'q, Any>,
    {
        let patience = self.lines.patience;
        let answer = timeout(patience, self.about_to_ask()?.fetch_many(query).try_collect::<Vec<Step>>()).await;
        self.answered(answer)
    }

    /// The first row of an answer.
    pub(crate) async fn ask_for_one<'q, E>(&mut self, query: E) -> sqlx::Result<Option<AnyRow>>
    where
        E: 'q + Execute<'q, Any>,
    {
        let patience = self.lines.patience;
        let answer = timeout(patience, self.about_to_ask()?.fetch_optional(query)).await;
        self.answered(answer)
    }

    /// What the server makes of a statement.
    pub(crate) async fn prepare(&mut self, sql: SqlStr, parameters: &[AnyTypeInfo]) -> sqlx::Result<AnyStatement> {
        let patience = self.lines.patience;
        let answer = timeout(patience, self.about_to_ask()?.prepare_with(sql, parameters)).await;
        self.answered(answer)
    }

    /// Commits what it began.
    pub(crate) async fn commit(mut self) -> sqlx::Result<()> {
        self.ask("COMMIT").await?;
        self.is_open = false;
        Ok(())
    }

    fn about_to_ask(&mut self) -> sqlx::Result<&mut AnyConnection> {
        self.is_asked = true;
        self.raw.as_mut().ok_or_else(|| sqlx::Error::Io(std::io::ErrorKind::NotConnected.into()))
    }

    fn answered<T>(&mut self, answer: Result<sqlx::Result<T>, Elapsed>) -> sqlx::Result<T> {
        let answer = answer.unwrap_or_else(|_elapsed| {
            let words = format!("no answer within {} s", self.lines.patience.as_secs_f64());
            Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, words)))
        });
        // An error of the database's is an answer too, and of what could not be written down nothing was sent.
        self.is_asked = !matches!(answer, Ok(_) | Err(sqlx::Error::Database(_) | sqlx::Error::Encode(_)));
        if self.is_asked {
            self.raw = None;
        }
        answer
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let (Some(mut raw), false) = (self.raw.take(), self.is_asked) else { return };
        if !self.is_open {
            self.lines.give_back(raw);
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let (lines, turn) = (Arc::clone(&self.lines), self.turn.take());
        runtime.spawn(async move {
            if let Ok(Ok(_)) = timeout(lines.patience, raw.execute("ROLLBACK")).await {
                lines.give_back(raw);
            }
            drop(turn);
        });
    }
}
