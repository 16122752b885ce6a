//! Another server of the cluster, where one brings no answers though the connection to it stands: a server can lose the way between two accounts
//! (docs/adr/0051), and takes requests then whose answers never come through it. One that hangs is left by the client itself, which hears no PONG.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ReconnectToServer, Server, ServerInfo};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// How long nothing is answered before a server is left.
const PATIENCE: Duration = Duration::from_secs(4);
/// Requests without an answer until then, at least: one by itself may be lost.
const IN_A_ROW: u32 = 2;
/// So many servers are left after that time; then it is twice as long with each further one: nobody may be there who answers.
const AT_ONCE: u32 = 3;
const MOST_PATIENCE: Duration = Duration::from_secs(60);
/// How long a connection may take to write what waits.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);

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
    row: Mutex<Row>,
    left: Notify,
}

impl Answers {
    pub(super) fn new(client: Client, connection: String, next: Arc<NextServer>) -> Self {
        Self { client, connection, next, row: Mutex::default(), left: Notify::new() }
    }

    /// Something was answered, be it by a refusal.
    pub(super) fn came(&self) {
        self.row.lock().came();
    }

    /// What was asked then was not answered in its time. Leaves the server where that goes on.
    pub(super) async fn missed(&self, asked: Instant) {
        if self.client.connection_state() != State::Connected {
            return;
        }
        let is_enough = self.row.lock().missed(asked, Instant::now());
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
            Ok(()) => self.left.notify_waiters(),
            Err(error) => tracing::debug!(%error, connection = self.connection, "the connection is closed"),
        }
    }

    /// Until the server is left: what it was asked before is answered by nobody.
    pub(super) async fn until_left(&self) {
        self.left.notified().await;
    }
}

/// Requests in a row that were not answered.
#[derive(Debug, Default)]
struct Row {
    /// When the first of them was asked.
    since: Option<Instant>,
    missed: u32,
    /// Servers that were left since the last answer.
    left: u32,
    /// When the last one was.
    left_at: Option<Instant>,
}

impl Row {
    fn came(&mut self) {
        *self = Self { left_at: self.left_at, ..Self::default() };
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
        *self = Self { since: None, missed: 0, left: self.left.saturating_add(1), left_at: Some(now) };
        true
    }

    fn patience(&self) -> Duration {
        let doubled = self.left.saturating_sub(AT_ONCE - 1);
        PATIENCE.saturating_mul(2u32.saturating_pow(doubled)).min(MOST_PATIENCE)
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
        let (mut row, mut now) = (Row::default(), Instant::now());
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

    proptest! {
        /// Where an answer comes between two that are missed no server is left, nor for what an earlier one was asked.
        #[test]
        fn no_server_is_left_that_answers(waits in prop::collection::vec(0..30u64, 1..40)) {
            let (mut row, mut now) = (Row::default(), Instant::now());
            for wait in &waits {
                let then = now;
                now += Duration::from_secs(*wait);
                prop_assert!(!row.missed(then, now));
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
