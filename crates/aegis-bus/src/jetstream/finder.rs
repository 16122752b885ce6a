//! Finds what the servers of a cluster are. Each says so before anybody logs in, in the first line of a connection (INFO), so each is asked: at
//! every connection of the client, and now and then behind it. Promises that nobody waits for it who does not ask to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ServerAddr};
use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::servers::{Feature, Servers, Told};
use super::unavailable;
use crate::BusError;

/// How often it is looked whether the connection is another one, and whether there is a first one.
const LOOK: Duration = Duration::from_millis(250);
const LOOK_FIRST: Duration = Duration::from_millis(25);
/// How often the servers are asked again behind one that stays: the others may have been replaced. Seldom, as one with TLS notes each in its log.
const ASK_AGAIN: Duration = Duration::from_secs(3600);
/// How long a server is waited for.
const ANSWER: Duration = Duration::from_secs(2);
/// Servers that are asked at most.
const MOST_SERVERS: usize = 32;
/// Longest first line of a server, bytes.
const MOST_LINE: usize = 32 * 1024;

/// Knows what the servers are, as long as it lives.
#[derive(Debug)]
pub(super) struct Finder {
    found: watch::Receiver<Option<Servers>>,
    task: JoinHandle<()>,
}

impl Drop for Finder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Finder {
    /// Begins to look. `configured`: the addresses that the client was given.
    pub(super) fn spawn(client: Client, configured: Vec<String>) -> Self {
        let (sender, found) = watch::channel(None);
        Self { found, task: tokio::spawn(follow(client, configured, sender)) }
    }

    /// What was found last; none before a first server was reached.
    pub(super) fn servers(&self) -> Option<Servers> {
        self.found.borrow().clone()
    }

    /// True if all of them are known to have it.
    pub(super) fn have(&self, feature: Feature) -> bool {
        self.found.borrow().as_ref().is_some_and(|servers| servers.have(feature))
    }

    /// The same, once it is known; `wait`: how long a connection is waited for.
    pub(super) async fn wait(&self, wait: Duration) -> Result<Servers, BusError> {
        let mut found = self.found.clone();
        // The client's connection, and two rounds of questions.
        let waited = timeout(wait + LOOK + ANSWER + ANSWER, found.wait_for(Option::is_some)).await;
        let servers = waited.map_err(|_elapsed| unavailable("no server was reached"))?.map_err(unavailable)?.clone();
        servers.ok_or_else(|| unavailable("no server was reached"))
    }
}

async fn follow(client: Client, configured: Vec<String>, found: watch::Sender<Option<Servers>>) {
    let (mut connection, mut asked) = (None, Instant::now());
    loop {
        let now = client.try_server_info().map(|info| (info.server_id, info.client_id));
        let is_due = now != connection || asked.elapsed() >= ASK_AGAIN;
        if now.is_some() && is_due && client.connection_state() == State::Connected {
            let servers = find(&client, &configured).await;
            (connection, asked) = (now, Instant::now());
            if let Some(servers) = servers.filter(|servers| found.borrow().as_ref() != Some(servers)) {
                tracing::info!(
                    version = %servers.version,
                    newest = %servers.newest,
                    api_level = servers.api_level,
                    servers = servers.count,
                    features = servers.feature_names(),
                    "what the NATS servers are, the least of them"
                );
                found.send_replace(Some(servers));
            }
        }
        sleep(if connection.is_some() { LOOK } else { LOOK_FIRST }).await;
    }
}

/// Asks the servers that were configured, and those that they name as their cluster's.
async fn find(client: &Client, configured: &[String]) -> Option<Servers> {
    let connected = client.try_server_info()?;
    let mut named: Vec<String> = configured.iter().chain(&connected.connect_urls).cloned().collect();
    // The one that is connected counts, also where its address is behind something else.
    let itself = Told { server_id: connected.server_id, version: connected.version, ..Told::default() };
    let mut told = BTreeMap::from([(itself.server_id.clone(), itself)]);
    let mut asked = BTreeSet::new();
    for _round in 0..2 {
        let mut fresh: Vec<ServerAddr> = named.iter().filter_map(|address| address.parse().ok()).collect();
        fresh.retain(|address| asked.len() < MOST_SERVERS && asked.insert((address.host().to_owned(), address.port())));
        let answers = join_all(fresh.into_iter().map(ask)).await;
        named.clear();
        for answer in answers.into_iter().flatten() {
            named.extend(answer.connect_urls.iter().cloned());
            told.insert(answer.server_id.clone(), answer);
        }
    }
    let told: Vec<Told> = told.into_values().collect();
    Servers::least(&told)
}

/// What the server at an address says of itself; none if it does not answer in time, or waits for TLS before it says anything.
async fn ask(address: ServerAddr) -> Option<Told> {
    let answer = async {
        let connection = TcpStream::connect((address.host(), address.port())).await.ok()?;
        Told::read(&first_line(&connection).await?)
    };
    timeout(ANSWER, answer).await.ok().flatten()
}

async fn first_line(connection: &TcpStream) -> Option<Vec<u8>> {
    let (mut line, mut length) = (vec![0; MOST_LINE], 0);
    loop {
        connection.readable().await.ok()?;
        match connection.try_read(&mut line[length..]) {
            // It closed, or says more than a server does.
            Ok(0) => return None,
            Ok(more) => {
                length += more;
                if let Some(end) = line[..length].iter().position(|byte| *byte == b'\n') {
                    line.truncate(end);
                    return Some(line);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}
