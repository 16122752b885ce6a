//! Sends callbacks, on a thread behind the action path. The name is looked up once, what it resolved to is checked, and the connection goes
//! to the very address that was checked. Follows no redirect, asks no proxy, reads no more of an answer than its head.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::callbacks::Slot;
use crate::callbacks::message::Message;
use crate::callbacks::target::{Target, is_here, is_public};

/// How long one attempt may take, from the look-up of the name to the head of the answer.
const WHOLE: Duration = Duration::from_secs(10);
/// How long a connection to one address may take, and how many addresses of a name are tried.
const CONNECT: Duration = Duration::from_secs(3);
const MOST_ADDRESSES: usize = 3;
/// Largest head of an answer, bytes and headers.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 100;
/// How a receiver knows the sender, and how it checks it.
const USER_AGENT: &str = concat!("aegisagent/", env!("CARGO_PKG_VERSION"));
const TIMESTAMP: &str = "aegisagent-timestamp";
const SIGNATURE: &str = "aegisagent-signature";

/// Why an attempt failed: one word each, so that an answer's text or a network's cause stands in no view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The tenant has set no secret.
    SecretMissing,
    /// The URL is no longer on the tenant's allow-list.
    NotAllowed,
    /// The URL is none that may be called.
    UrlRefused,
    /// The name has no address.
    NameUnknown,
    /// The name has an address that is not public.
    AddressRefused,
    /// No address takes connections.
    Unreachable,
    /// The receiver does not prove its name.
    TlsFailed,
    TimedOut,
    /// The connection ended before an answer.
    NoAnswer,
    Redirected,
    /// Any other answer than 200 to 299.
    Answered(StatusCode),
    /// Control's own store or ledger did not answer, or control stops.
    Unavailable,
}

impl Failure {
    /// True where another attempt would fail too: nobody makes one.
    pub(crate) const fn is_final(self) -> bool {
        matches!(self, Self::NotAllowed | Self::UrlRefused)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Self::SecretMissing => "secret_missing",
            Self::NotAllowed => "not_allowed",
            Self::UrlRefused => "url_refused",
            Self::NameUnknown => "name_unknown",
            Self::AddressRefused => "address_refused",
            Self::Unreachable => "unreachable",
            Self::TlsFailed => "tls_failed",
            Self::TimedOut => "timed_out",
            Self::NoAnswer => "no_answer",
            Self::Redirected => "redirected",
            Self::Answered(status) => return write!(f, "answered_{}", status.as_u16()),
            Self::Unavailable => "unavailable",
        };
        f.write_str(word)
    }
}

/// One attempt that is asked for.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) target: Target,
    pub(crate) message: Message,
    /// Taken as long as anything of the attempt goes on, even a look-up that nobody waits for any more.
    pub(crate) slot: Arc<Slot>,
    pub(crate) outcome: oneshot::Sender<Result<(), Failure>>,
}

/// Makes the attempts that are asked for, side by side, until nobody can ask any more. Whoever asks bounds how many there are.
pub(crate) async fn run(mut jobs: mpsc::Receiver<Job>, to_loopback: bool) {
    let sender = Arc::new(Sender { to_loopback, tls: OnceCell::new() });
    let mut under_way = JoinSet::new();
    while let Some(Job { target, message, slot, outcome }) = jobs.recv().await {
        while under_way.try_join_next().is_some() {}
        let sender = Arc::clone(&sender);
        under_way.spawn(async move {
            let sent = timeout(WHOLE, sender.send(target, message, slot)).await.unwrap_or(Err(Failure::TimedOut));
            let _nobody_waits = outcome.send(sent);
        });
    }
}

struct Sender {
    /// Whether loopback addresses of this machine may be called, and plainly.
    to_loopback: bool,
    /// Made when it is first used.
    tls: OnceCell<TlsConnector>,
}

impl Sender {
    async fn send(&self, target: Target, message: Message, slot: Arc<Slot>) -> Result<(), Failure> {
        let addresses = look_up(&target, slot).await?;
        check(&addresses, target.uses_tls, self.to_loopback)?;
        let stream = connect(&addresses).await?;
        let request = request(&target, message)?;
        let status = if target.uses_tls {
            let name = ServerName::try_from(target.host).map_err(|_| Failure::UrlRefused)?;
            let stream = self.connector().await?.connect(name, stream).await.map_err(|_| Failure::TlsFailed)?;
            ask(stream, request).await?
        } else {
            ask(stream, request).await?
        };
        verdict(status)
    }

    async fn connector(&self) -> Result<TlsConnector, Failure> {
        let make = || async { spawn_blocking(connector).await.unwrap_or(Err(Failure::TlsFailed)) };
        self.tls.get_or_try_init(make).await.cloned()
    }
}

/// Every address of the target's host. The system's look-up cannot be taken back: it keeps its slot until it ends.
async fn look_up(target: &Target, slot: Arc<Slot>) -> Result<Vec<SocketAddr>, Failure> {
    let (host, port) = (target.host.clone(), target.port);
    let found = spawn_blocking(move || {
        let _taken = slot;
        (host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<SocketAddr>>)
    });
    match found.await {
        Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
        _ => Err(Failure::NameUnknown),
    }
}

/// All of a name's addresses must be ones that may be called: one that may not makes the name suspect.
fn check(addresses: &[SocketAddr], uses_tls: bool, to_loopback: bool) -> Result<(), Failure> {
    let all = |may: fn(std::net::IpAddr) -> bool| addresses.iter().all(|address| may(address.ip()));
    if (to_loopback && all(is_here)) || (uses_tls && all(is_public)) { Ok(()) } else { Err(Failure::AddressRefused) }
}

async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, Failure> {
    for address in addresses.iter().take(MOST_ADDRESSES) {
        if let Ok(Ok(stream)) = timeout(CONNECT, TcpStream::connect(address)).await {
            return Ok(stream);
        }
    }
    Err(Failure::Unreachable)
}

fn request(target: &Target, message: Message) -> Result<Request<Full<Bytes>>, Failure> {
    Request::builder()
        .method(Method::POST)
        .uri(target.path.as_str())
        .header(header::HOST, target.authority.as_str())
        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header(header::USER_AGENT, HeaderValue::from_static(USER_AGENT))
        .header(header::CONNECTION, HeaderValue::from_static("close"))
        .header(TIMESTAMP, HeaderValue::from(message.timestamp))
        .header(SIGNATURE, message.signature)
        .body(Full::new(Bytes::from(message.body)))
        .map_err(|_| Failure::UrlRefused)
}

/// Asks, and drops the connection once the head of the answer is there.
async fn ask<S>(stream: S, request: Request<Full<Bytes>>) -> Result<StatusCode, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut http = http1::Builder::new();
    http.max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await.map_err(|_| Failure::NoAnswer)?;
    let mut answer = pin!(sender.send_request(request));
    let mut connection = pin!(connection);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // Whatever it ended with, it has told the other side of it.
        _ended = &mut connection => answer.await,
    };
    answer.map(|response| response.status()).map_err(|_| Failure::NoAnswer)
}

fn verdict(status: StatusCode) -> Result<(), Failure> {
    if status.is_success() {
        Ok(())
    } else if status.is_redirection() {
        Err(Failure::Redirected)
    } else {
        Err(Failure::Answered(status))
    }
}

/// Believes whom the machine believes.
fn connector() -> Result<TlsConnector, Failure> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::error!(errors = ?found.errors, "no root certificates of this machine can be read: no callback can be delivered over TLS");
        return Err(Failure::TlsFailed);
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|_| Failure::TlsFailed)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 443)).collect()
    }

    #[test]
    fn a_name_is_called_only_if_every_address_of_it_may_be() {
        let (tls, plain) = (true, false);
        check(&of(&["1.1.1.1", "2606:4700::1111"]), tls, false).unwrap();
        for refused in [&["127.0.0.1"][..], &["::1"], &["10.0.0.1"], &["1.1.1.1", "10.0.0.1"], &["::ffff:127.0.0.1"]] {
            assert_eq!(check(&of(refused), tls, false), Err(Failure::AddressRefused), "{refused:?}");
        }
        assert_eq!(check(&of(&["1.1.1.1"]), plain, true), Err(Failure::AddressRefused), "plain goes to this machine alone");
        check(&of(&["127.0.0.1", "::1"]), plain, true).unwrap();
        check(&of(&["127.0.0.1"]), tls, true).unwrap();
        for refused in [&["10.0.0.1"][..], &["127.0.0.1", "1.1.1.1"], &["0.0.0.0"], &["169.254.169.254"]] {
            assert_eq!(check(&of(refused), tls, true), Err(Failure::AddressRefused), "{refused:?}");
        }
    }

    #[test]
    fn only_success_is_success_and_a_redirect_goes_nowhere() {
        for status in 200..300 {
            assert_eq!(verdict(StatusCode::from_u16(status).unwrap()), Ok(()));
        }
        for status in 300..400 {
            assert_eq!(verdict(StatusCode::from_u16(status).unwrap()), Err(Failure::Redirected));
        }
        let failed = verdict(StatusCode::SERVICE_UNAVAILABLE).unwrap_err();
        assert_eq!((failed.to_string().as_str(), failed.is_final()), ("answered_503", false));
        assert!(Failure::NotAllowed.is_final() && Failure::UrlRefused.is_final() && !Failure::SecretMissing.is_final());
    }
}
