//! The listener: HTTP/1.1 with bounds on connections and on how slowly a head may arrive, and a graceful end. Agents' calls go to the edge
//! itself: what a router does to find it costs more than to authorize.

use std::convert::Infallible;
use std::pin::Pin;
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
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// Most connections at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;
/// A request head must have arrived by then.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Running requests get this long at a stop.
const DRAIN: Duration = Duration::from_secs(10);

/// An answer of the edge, or of a route.
type Answer = Response<http_body_util::Either<Full<Bytes>, Body>>;

/// Serves until `stop` turns true, then lets running requests end. With an `edge`, the routes need none for its calls.
pub(crate) async fn serve(listener: TcpListener, edge: Option<Arc<Edge>>, router: Router, mut stop: watch::Receiver<bool>) {
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stopped| *stopped) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: wait for connections to end.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
        let alarm = Alarm::default();
        let mut builder = http1::Builder::new();
        builder.timer(HeadTimer(alarm.clone())).header_read_timeout(HEAD_TIMEOUT);
        let (edge, routes) = (edge.clone(), TowerToHyperService::new(router.clone()));
        let service = service_fn(move |request: Request<Incoming>| match &edge {
            Some(edge) if is_call(request.method(), request.uri().path()) => {
                Either::Left(aegis_edge::answer(edge.clone(), request, alarm.clone()).map(of_edge))
            }
            _ => Either::Right(routes.call(request).map(of_route)),
        });
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(permit);
        });
    }
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still running after {DRAIN:?}; closing them");
    }
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
    use super::*;

    #[tokio::test]
    async fn a_head_that_does_not_come_ends_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        client.writable().await.unwrap();
        client.try_write(b"POST /v1/auth").unwrap();
        let alarm = Alarm::default();
        let mut builder = http1::Builder::new();
        builder.timer(HeadTimer(alarm)).header_read_timeout(Duration::from_millis(20));
        let service = service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
        let ended = builder.serve_connection(TokioIo::new(stream), service).await;
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
