//! How a process finds its NATS server, and who it says it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use futures_util::future::BoxFuture;

use super::elsewhere::{Answers, NextServer};
use super::unavailable;
use crate::BusError;

/// The longest wait between two tries to connect again.
const MOST_RECONNECT_WAIT: Duration = Duration::from_secs(2);

/// How often a server that says nothing is asked whether it is there. At the third time without a word it is left.
const PING_EVERY: Duration = Duration::from_secs(10);

/// How a process proves to the server who it is.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Login {
    /// Not at all: a server on loopback that asks nobody.
    #[default]
    Nobody,
    /// The seed of an nkey (`SU...`): the server knows the public half.
    Nkey {
        seed: String,
    },
    User {
        name: String,
        password: String,
    },
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nobody => "Nobody",
            Self::Nkey { .. } => "Nkey(secret)",
            Self::User { .. } => "User(secret)",
        })
    }
}

/// Where the server is, and how to talk to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JetStreamOptions {
    /// `nats://host:port`, or `tls://host:port`; several of one cluster.
    pub servers: Vec<String>,
    /// What the server calls this connection.
    pub name: String,
    pub login: Login,
    /// Certificates to trust (PEM), instead of those of the machine.
    pub ca_file: Option<PathBuf>,
    /// This process's own certificate and its key (PEM), for a server that asks for one.
    pub certificate: Option<(PathBuf, PathBuf)>,
    pub require_tls: bool,
    /// TLS before the server says anything, for one that waits for that (`handshake_first`); one that does not is not reached.
    pub tls_first: bool,
    /// First tokens of the subjects where answers come in: private to this user where the server's permissions say so.
    pub inbox_prefix: String,
    /// Whether what every consumer has passed is purged, where a stream is nearly full, whenever a consumer's position moves: for a user that may.
    pub makes_room: bool,
    /// How long an acknowledgement or an answer is waited for.
    pub timeout: Duration,
}

impl JetStreamOptions {
    /// The server at an address, without a login.
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            servers: vec![server.into()],
            name: "aegis".to_owned(),
            login: Login::Nobody,
            ca_file: None,
            certificate: None,
            require_tls: false,
            tls_first: false,
            inbox_prefix: "_INBOX".to_owned(),
            makes_room: true,
            timeout: Duration::from_secs(5),
        }
    }
}

/// Connects, with whatever watches that what is asked is answered. No future itself, so that everything behind it, the client of NATS too, is compiled in this crate, and not in every program that calls it.
#[inline(never)]
pub(super) fn connect(options: &JetStreamOptions) -> BoxFuture<'_, Result<(Client, Arc<Answers>), BusError>> {
    Box::pin(connected(options))
}

async fn connected(options: &JetStreamOptions) -> Result<(Client, Arc<Answers>), BusError> {
    let name = options.name.clone();
    let next = Arc::new(NextServer::default());
    let chooser = Arc::clone(&next);
    let connect = of_any_try(options);
    let why = Arc::new(Why { options: connect.clone(), servers: options.servers.clone(), is_asked: AtomicBool::new(false) });
    let connect = connect
        .ping_interval(PING_EVERY)
        .reconnect_to_server_callback(move |pool, connected| std::future::ready(chooser.choose(&pool, &connected)))
        .reconnect_delay_callback(|tries| {
            let wait = Duration::from_millis(50u64.saturating_mul(1 << tries.min(10)));
            wait.min(MOST_RECONNECT_WAIT)
        })
        .event_callback(move |event| {
            let connection = name.clone();
            why.hear(&event, &connection);
            async move {
                match event {
                    event @ (Event::Connected | Event::Closed) => {
                        tracing::info!(connection, %event, "NATS")
                    }
                    event => tracing::warn!(connection, %event, "NATS"),
                }
            }
        })
        .retry_on_initial_connect();
    let client = connect.connect(options.servers.as_slice()).await.map_err(unavailable)?;
    let answers = Arc::new(Answers::new(client.clone(), options.name.clone(), next));
    Ok((client, answers))
}

/// Who connects, and what it trusts.
fn of_any_try(options: &JetStreamOptions) -> ConnectOptions {
    let mut connect = ConnectOptions::new()
        .name(&options.name)
        .custom_inbox_prefix(&options.inbox_prefix)
        .require_tls(options.require_tls)
        .request_timeout(Some(options.timeout));
    if let Some(file) = &options.ca_file {
        connect = connect.add_root_certificates(file.clone());
    }
    if let Some((certificate, key)) = &options.certificate {
        connect = connect.add_client_certificate(certificate.clone(), key.clone());
    }
    if options.tls_first {
        // This requires TLS too.
        connect = connect.tls_first();
    }
    connect = match &options.login {
        Login::Nobody => connect,
        Login::Nkey { seed } => connect.nkey(seed.clone()),
        Login::User { name, password } => connect.user_and_password(name.clone(), password.clone()),
    };
    connect
}

/// Why no server is reached: a certificate of a foreign authority, say. Of the tries that it makes by itself the client of NATS tells what kind of
/// failure it was and not which, and of one that is asked for it tells both.
struct Why {
    options: ConnectOptions,
    servers: Vec<String>,
    is_asked: AtomicBool,
}

impl Why {
    /// Tries once by itself, and says what came of it, where a try failed that was the first since there was a connection.
    fn hear(self: &Arc<Self>, event: &Event, connection: &str) {
        match event {
            Event::Connected => self.is_asked.store(false, Ordering::Release),
            Event::ClientError(_) if !self.is_asked.swap(true, Ordering::AcqRel) => {
                let (this, connection) = (Arc::clone(self), connection.to_owned());
                tokio::spawn(async move {
                    if let Err(error) = this.options.clone().connect(this.servers.as_slice()).await {
                        tracing::warn!(connection, %error, "why no NATS server is reached");
                    }
                });
            }
            _ => {}
        }
    }
}
