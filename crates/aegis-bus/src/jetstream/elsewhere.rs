//! Another server of the cluster, where one brings no answers though the connection to it stands: a server can lose the way between two accounts
//! (docs/adr/0051), and takes requests then whose answers never come through it; one that lost the others says of what they have that nobody takes it.
//! One that hangs is left by the client itself, which hears no PONG.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ReconnectToServer, Server, ServerInfo};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// Requests in a row, at least, that bring nothing before a server is left: one by itself may be lost.
const IN_A_ROW: u32 = 2;
/// Where nothing is said.
const SILENCE: Patience = Patience { first: Duration::from_secs(4), at_once: 3, most: Duration::from_secs(60) };
/// Where it is said that nobody takes what is published: a stream whose server is gone has another leader sooner, and is moved nowhere by those who ask.
const REFUSAL: Patience = Patience { first: Duration::from_secs(15), at_once: 1, most: Duration::from_secs(240) };
/// How long a connection may take to write what waits.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);

/// How long a server is borne over which nothing comes of what is asked.
#[derive(Clone, Copy, Debug)]
struct Patience {
    first: Duration,
    /// So many servers are left after that time; then it is twice as long with each further one: nobody may be there who answers.
    at_once: u32,
    most: Duration,
}

/// What came of something that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its stream answered, be it that it does not take this message.
    Answered,
    /// It was said that nobody takes it: the stream is not there, or nobody leads it, as far as this server knows.
    NotTaken,
    /// Nothing was said.
    Silence,
}

/// Which server a client connects to next, where that is not left to itself.
#[derive(Debug, Default)]
pub(super) struct NextServer {
    is_wanted: AtomicBool,
    turn: AtomicUsize,
}

impl NextServer {
    /// At the client's next connection another server is wanted.
    fn want(&self) {
        self.is_wanted.store(true, Ordering::Release);
    }

    /// The server behind the one that was connected, once, if another is wanted; none leaves it to the client.
    pub(super) fn choose(&self, pool: &[Server], connected: &ServerInfo) -> Option<ReconnectToServer> {
        if pool.is_empty() || !self.is_wanted.swap(false, Ordering::AcqRel) {
            return None;
        }
        let is_connected = |server: &Server| server.addr.host() == connected.host && server.addr.port() == connected.port;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        // A server may say another address than the one that leads to it: then all take their turns.
        let next = pool.iter().position(is_connected).map_or(turn, |at| at + 1) % pool.len();
        let server = pool.get(next)?;
        Some(ReconnectToServer { addr: server.addr.clone(), delay: Some(Duration::ZERO) })
    }
}

/// Watches whether what one connection asks is answered.
#[derive(Debug)]
pub(super) struct Answers {
    client: Client,
    connection: String,
    next: Arc<NextServer>,
    rows: Mutex<Rows>,
    left: Notify,
    /// Servers that were left.
    count: AtomicU64,
}

impl Answers {
    pub(super) fn new(client: Client, connection: String, next: Arc<NextServer>) -> Self {
        Self { client, connection, next, rows: Mutex::default(), left: Notify::new(), count: AtomicU64::new(0) }
    }

    /// How many servers were left.
    pub(super) fn servers_left(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Something was answered, be it by a refusal.
    pub(super) fn came(&self) {
        self.rows.lock().came();
    }

    /// What came of something that was published then. Leaves the server where nothing comes for long.
    pub(super) async fn came_of(&self, outcome: Outcome, asked: Instant) {
        match outcome {
            Outcome::Answered => self.came(),
            Outcome::Silence => self.missed(asked).await,
            Outcome::NotTaken => self.not_taken(asked).await,
        }
    }

    async fn not_taken(&self, asked: Instant) {
        if self.client.connection_state() != State::Connected {
            return;
        }
        let is_enough = self.rows.lock().not_taken(asked, Instant::now());
        if is_enough {
            tracing::warn!(connection = self.connection, "the NATS server says that nobody takes what is published");
            self.leave().await;
        }
    }

    /// What was asked then was not answered in its time. Leaves the server where that goes on.
    pub(super) async fn missed(&self, asked: Instant) {
        if self.client.connection_state() != State::Connected {
            return;
        }
        let is_enough = self.rows.lock().missed(asked, Instant::now());
        if is_enough {
            tracing::warn!(connection = self.connection, "the NATS server takes what is asked, and no answer comes");
            self.leave().await;
        }
    }

    /// Goes to another server.
    pub(super) async fn leave(&self) {
        // A connection that takes nothing cannot be closed in order, which the client would wait for. It gives that one up by itself.
        if !matches!(timeout(WRITTEN_WITHIN, self.client.flush()).await, Ok(Ok(()))) {
            return;
        }
        tracing::warn!(connection = self.connection, "trying another NATS server of the cluster");
        self.next.want();
        match self.client.force_reconnect().await {
            Ok(()) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                self.left.notify_waiters();
            }
            Err(error) => tracing::debug!(%error, connection = self.connection, "the connection is closed"),
        }
    }

    /// Until the server is left: what it was asked before is answered by nobody.
    pub(super) async fn until_left(&self) {
        self.left.notified().await;
    }
}

/// What one connection asks in vain.
#[derive(Debug)]
struct Rows {
    silent: Row,
    refused: Row,
}

impl Default for Rows {
    fn default() -> Self {
        Self { silent: Row::of(SILENCE), refused: Row::of(REFUSAL) }
    }
}

impl Rows {
    fn came(&mut self) {
        self.silent.came();
        self.refused.came();
    }

    /// True where the server is to be left now, for its silence.
    fn missed(&mut self, asked: Instant, now: Instant) -> bool {
        let is_left = self.silent.missed(asked, now);
        if is_left {
            self.refused.moved(now);
        }
        is_left
    }

    /// The same, for what it says. It is not silent.
    fn not_taken(&mut self, asked: Instant, now: Instant) -> bool {
        self.silent.came();
        let is_left = self.refused.missed(asked, now);
        if is_left {
            self.silent.moved(now);
        }
        is_left
    }
}

/// Requests in a row of which nothing came.
#[derive(Debug)]
struct Row {
    patience: Patience,
    /// When the first of them was asked.
    since: Option<Instant>,
    missed: u32,
    /// Servers that were left since the last answer.
    left: u32,
    /// When the last one was.
    left_at: Option<Instant>,
}

impl Row {
    const fn of(patience: Patience) -> Self {
        Self { patience, since: None, missed: 0, left: 0, left_at: None }
    }

    fn came(&mut self) {
        *self = Self { left_at: self.left_at, ..Self::of(self.patience) };
    }

    /// The server was left for another reason.
    fn moved(&mut self, now: Instant) {
        (self.since, self.missed, self.left_at) = (None, 0, Some(now));
    }

    /// True where the server is to be left now.
    fn missed(&mut self, asked: Instant, now: Instant) -> bool {
        // Another server was asked that.
        if self.left_at.is_some_and(|left_at| asked < left_at) {
            return false;
        }
        let since = *self.since.get_or_insert(asked);
        self.missed = self.missed.saturating_add(1);
        if self.missed < IN_A_ROW || now.saturating_duration_since(since) < self.patience() {
            return false;
        }
        self.moved(now);
        self.left = self.left.saturating_add(1);
        true
    }

    fn patience(&self) -> Duration {
        let Patience { first, at_once, most } = self.patience;
        let doubled = self.left.saturating_add(1).saturating_sub(at_once);
        first.saturating_mul(2u32.saturating_pow(doubled)).min(most)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As long as a request waits.
    const WAIT: Duration = Duration::from_secs(5);

    fn pool(addresses: &[&str]) -> Vec<Server> {
        let server = |address: &&str| Server {
            addr: address.parse().unwrap(),
            failed_attempts: 0,
            did_connect: false,
            is_discovered: false,
            last_error: None,
        };
        addresses.iter().map(server).collect()
    }

    fn at(host: &str, port: u16) -> ServerInfo {
        ServerInfo { host: host.to_owned(), port, ..ServerInfo::default() }
    }

    #[test]
    fn each_server_has_its_turn_whether_or_not_it_says_where_it_is() {
        let pool = pool(&["nats://10.0.0.1:4222", "nats://10.0.0.2:4222", "nats://10.0.0.3:4222"]);
        let next = NextServer::default();
        let mut connected = at("10.0.0.2", 4222);
        assert!(next.choose(&pool, &connected).is_none(), "nobody asked for another");
        for host in ["10.0.0.3", "10.0.0.1", "10.0.0.2", "10.0.0.3"] {
            next.want();
            assert_eq!(next.choose(&pool, &connected).unwrap().addr.host(), host);
            assert!(next.choose(&pool, &connected).is_none(), "once");
            connected = at(host, 4222);
        }
        let turns = |_: i32| {
            next.want();
            next.choose(&pool, &at("0.0.0.0", 4222)).unwrap().addr.host().to_owned()
        };
        let seen: std::collections::BTreeSet<String> = (0..3).map(turns).collect();
        assert_eq!(seen.len(), 3);
        next.want();
        assert!(next.choose(&[], &connected).is_none());
    }

    #[test]
    fn a_server_is_left_after_two_waits_without_an_answer_and_ever_more_slowly() {
        let (mut row, mut now) = (Rows::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..8 {
            let mut asked = 0;
            loop {
                let then = now;
                now += WAIT;
                asked += 1;
                if row.missed(then, now) {
                    break;
                }
            }
            waits.push(asked);
        }
        assert_eq!(waits, [2, 2, 2, 2, 4, 7, 12, 12]);
        row.came();
        assert!(!row.missed(now, now + WAIT) && row.missed(now, now + WAIT), "as at first");
    }

    /// How long it is tried, once a second, until a server is left that says that nobody takes it.
    fn refused_for(rows: &mut Rows, now: &mut Instant) -> u64 {
        let begun = *now;
        while !rows.not_taken(*now, *now) {
            *now += Duration::from_secs(1);
        }
        (*now - begun).as_secs()
    }

    #[test]
    fn a_server_that_says_that_nobody_takes_it_is_left_later_and_ever_more_slowly() {
        let (mut rows, mut now) = (Rows::default(), Instant::now());
        let took: Vec<u64> = (0..6).map(|_| refused_for(&mut rows, &mut now)).collect();
        assert_eq!(took, [15, 30, 60, 120, 240, 240]);
        rows.came();
        assert_eq!(refused_for(&mut rows, &mut now), 15, "as at first");
        // Who says something is not silent, and what was asked of the server before says nothing of this one.
        assert!(!rows.missed(now, now + WAIT));
        assert!(!rows.not_taken(now + WAIT, now + WAIT));
        assert!(!rows.missed(now + WAIT, now + 2 * WAIT));
        assert!(rows.missed(now + 2 * WAIT, now + 3 * WAIT));
        now += 3 * WAIT;
        assert!(!rows.not_taken(now - WAIT, now + Duration::from_secs(60)));
        now += Duration::from_secs(60);
        assert_eq!(refused_for(&mut rows, &mut now), 30, "another server");
    }

    proptest! {
        /// Where an answer comes between two that are missed no server is left, nor for what an earlier one was asked.
        #[test]
        fn no_server_is_left_that_answers(waits in prop::collection::vec(0..30u64, 1..40)) {
            let (mut row, mut now) = (Rows::default(), Instant::now());
            for wait in &waits {
                let then = now;
                now += Duration::from_secs(*wait);
                prop_assert!(!row.missed(then, now) && !row.not_taken(then, now));
                row.came();
            }
            let before = now;
            now += WAIT;
            prop_assert!(!row.missed(before, now));
            now += WAIT;
            prop_assert!(row.missed(before, now));
            for _ in 0..waits.len() {
                now += WAIT;
                prop_assert!(!row.missed(before, now));
            }
        }
    }
}
