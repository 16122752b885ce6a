//! The listener: HTTP/1.1 with bounds on connections, of all and of one peer, and on how slowly a head may arrive, and a graceful end. Agents' calls go to the edge
//! itself: what a router does to find it costs more than to authorize.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aegis_edge::{Alarm, Edge};
use axum::Router;
use axum::body::{Body, Bytes};
use futures_util::FutureExt;
use futures_util::future::Either;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::rt::{Sleep, Timer};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Method, Request, Response};
use hyper_util::server::graceful::GracefulConnection;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::peers::Peers;
use crate::socket::Socket;

/// What a listener allows.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Most connections at once; further ones wait in the kernel's queue.
    connections: u32,
    /// Running requests get this long at a stop.
    drain: Duration,
}

const BOUNDS: Bounds = Bounds { connections: 4096, drain: Duration::from_secs(10) };

/// A request head must have arrived by then.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// An answer of the edge, or of a route.
type Answer = Response<http_body_util::Either<Full<Bytes>, Body>>;

/// Serves until `stop` turns true, then lets running requests end. With an `edge`, the routes need none for its calls.
pub(crate) async fn serve(
    listener: TcpListener,
    peers: Peers,
    edge: Option<Arc<Edge>>,
    router: Router,
    stop: watch::Receiver<bool>,
) {
    serve_within(BOUNDS, listener, peers, edge, router, stop).await;
}

async fn serve_within(
    bounds: Bounds,
    listener: TcpListener,
    mut peers: Peers,
    edge: Option<Arc<Edge>>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(bounds.connections as usize));
    loop {
        // A stop is heard while all connections are taken too: those who have them may never let go.
        let next = async {
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            _ = stop.wait_for(|stopped| *stopped) => break,
        };
        let Ok(permit) = permit else { break };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: wait for connections to end.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Closed unread: what it would cost to say why, its peer could have of us without end.
        let Some(place) = peers.take(address.ip()) else { continue };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
        let alarm = Alarm::default();
        let mut builder = http1::Builder::new();
        builder.timer(HeadTimer(alarm.clone())).header_read_timeout(HEAD_TIMEOUT);
        let socket = Socket::new(stream, alarm.clone());
        let (edge, routes) = (edge.clone(), TowerToHyperService::new(router.clone()));
        let service = service_fn(move |request: Request<Incoming>| match &edge {
            Some(edge) if is_call(request.method(), request.uri().path()) => {
                Either::Left(aegis_edge::answer(edge.clone(), request, alarm.clone()).map(of_edge))
            }
            _ => Either::Right(routes.call(request).map(of_route)),
        });
        let connection = builder.serve_connection(socket, service);
        let stopping = stop.clone();
        tokio::spawn(async move {
            if let Err(error) = carry(connection, stopping).await {
                tracing::debug!(%error, "a connection ended early");
            }
            // The place first: whoever takes over the permit may be the same peer.
            drop(place);
            drop(permit);
        });
    }
    // All of them: nobody holds one any more.
    let ended = permits.acquire_many(bounds.connections);
    if tokio::time::timeout(bounds.drain, ended).await.is_err() {
        tracing::warn!("requests were still running after {:?}; closing them", bounds.drain);
    }
}

/// Runs a connection to its end: once it is told to stop, to that of its request. It is polled some times for each call, and to ask the channel
/// takes a lock that all connections share; so that is done once, to be woken, and again when one word says that there is something to hear.
async fn carry<C: GracefulConnection>(connection: C, mut stop: watch::Receiver<bool>) -> Result<(), C::Error> {
    let told = stop.clone();
    let mut connection = pin!(connection);
    let mut stopping = pin!(stop.changed());
    let (mut listens, mut stops) = (false, false);
    poll_fn(move |context| {
        if !stops && (!listens || told.has_changed().unwrap_or(true)) {
            listens = true;
            if stopping.as_mut().poll(context).is_ready() {
                stops = true;
                connection.as_mut().graceful_shutdown();
            }
        }
        connection.as_mut().poll(context)
    })
    .await
}

/// The timer by which hyper waits for a head: the connection's alarm.
#[derive(Debug)]
struct HeadTimer(Alarm);

/// Such a wait.
#[derive(Debug)]
struct HeadWait {
    alarm: Alarm,
    deadline: Instant,
}

#[allow(clippy::disallowed_types)] // hyper names the standard library's; it is tokio's that is asked
impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadWait { alarm: self.0.clone(), deadline: Instant::now() + duration })
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadWait { alarm: self.0.clone(), deadline: deadline.into() })
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into()
    }
}

impl Future for HeadWait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.alarm.poll_until(self.deadline, context)
    }
}

impl Sleep for HeadWait {}

/// Whether the edge takes it; what is wrong with any other way to name its path, the routes say.
fn is_call(method: &Method, path: &str) -> bool {
    method == Method::POST && path == aegis_edge::PATH
}

fn of_edge(answer: Response<Full<Bytes>>) -> Result<Answer, Infallible> {
    Ok(answer.map(http_body_util::Either::Left))
}

fn of_route(answer: Result<Response<Body>, Infallible>) -> Result<Answer, Infallible> {
    answer.map(|answer| answer.map(http_body_util::Either::Right))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use prometheus_client::registry::Registry;
    use tokio::net::TcpStream;
    use tokio::sync::Notify;

    use super::*;

    async fn connect(address: SocketAddr, request: &[u8]) -> TcpStream {
        let client = TcpStream::connect(address).await.unwrap();
        client.writable().await.unwrap();
        assert_eq!(client.try_write(request).unwrap(), request.len());
        client
    }

    /// What comes until the connection is closed.
    async fn rest_of(client: TcpStream) -> String {
        let mut text = Vec::new();
        loop {
            client.readable().await.unwrap();
            let mut buffer = [0; 1024];
            match client.try_read(&mut buffer) {
                Ok(0) => return String::from_utf8(text).unwrap(),
                Ok(count) => text.extend_from_slice(&buffer[..count]),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    }

    #[tokio::test]
    async fn at_a_stop_idle_connections_end_and_a_running_request_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (entered, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (in_route, gate) = (entered.clone(), leave.clone());
        let slow = move || {
            let (in_route, gate) = (in_route.clone(), gate.clone());
            async move {
                in_route.notify_one();
                gate.notified().await;
                "answered"
            }
        };
        let router = Router::new().route("/slow", get(slow)).route("/quick", get(|| async { "quick" }));
        let (stop, stopped) = watch::channel(false);
        let server = tokio::spawn(serve(listener, Peers::new(0, &mut Registry::default()), None, router, stopped));

        let fresh = connect(address, b"").await;
        let used = connect(address, b"GET /quick HTTP/1.1\r\nhost: x\r\n\r\n").await;
        used.readable().await.unwrap();
        let busy = connect(address, b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
        entered.notified().await;
        stop.send(true).unwrap();
        assert_eq!(rest_of(fresh).await, "");
        assert!(rest_of(used).await.ends_with("quick"));
        assert!(!server.is_finished());
        leave.notify_one();
        assert!(rest_of(busy).await.ends_with("answered"));
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_stop_is_heard_while_every_connection_is_taken_for_good() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let entered = Arc::new(Notify::new());
        let in_route = entered.clone();
        let stuck = move || {
            let in_route = in_route.clone();
            async move {
                in_route.notify_one();
                std::future::pending::<()>().await;
            }
        };
        let bounds = Bounds { connections: 1, drain: Duration::from_millis(20) };
        let (stop, stopped) = watch::channel(false);
        let router = Router::new().route("/stuck", get(stuck));
        let peers = Peers::new(0, &mut Registry::default());
        let server = tokio::spawn(serve_within(bounds, listener, peers, None, router, stopped));
        let _taken = connect(address, b"GET /stuck HTTP/1.1\r\nhost: x\r\n\r\n").await;
        entered.notified().await;
        stop.send(true).unwrap();
        tokio::time::timeout(Duration::from_secs(30), server).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_ends_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = connect(listener.local_addr().unwrap(), b"POST /v1/auth").await;
        let (stream, _) = listener.accept().await.unwrap();
        let alarm = Alarm::default();
        let mut builder = http1::Builder::new();
        builder.timer(HeadTimer(alarm.clone())).header_read_timeout(Duration::from_millis(20));
        let service = service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
        let ended = builder.serve_connection(Socket::new(stream, alarm), service).await;
        assert!(ended.is_err_and(|error| error.is_timeout()));
    }

    #[test]
    fn only_a_call_goes_past_the_routes() {
        assert!(is_call(&Method::POST, "/v1/authorize"));
        for (method, path) in [(Method::GET, "/v1/authorize"), (Method::POST, "/v1/authorize/"), (Method::POST, "/v1/decisions")]
        {
            assert!(!is_call(&method, path), "{method} {path}");
        }
    }
}
