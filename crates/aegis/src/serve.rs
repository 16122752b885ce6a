//! The listener: HTTP/1.1 with bounds on connections and on how slowly a head may arrive, and a graceful end. Agents' calls go to the edge
//! itself: what a router does to find it costs more than to authorize.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aegis_edge::Edge;
use axum::Router;
use axum::body::{Body, Bytes};
use futures_util::FutureExt;
use futures_util::future::Either;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

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
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        let (edge, routes) = (edge.clone(), TowerToHyperService::new(router.clone()));
        let service = service_fn(move |request: Request<Incoming>| match &edge {
            Some(edge) if is_call(request.method(), request.uri().path()) => {
                Either::Left(aegis_edge::answer(edge.clone(), request).map(of_edge))
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
mod tests {
    use super::*;

    #[test]
    fn only_a_call_goes_past_the_routes() {
        assert!(is_call(&Method::POST, "/v1/authorize"));
        for (method, path) in [(Method::GET, "/v1/authorize"), (Method::POST, "/v1/authorize/"), (Method::POST, "/v1/decisions")]
        {
            assert!(!is_call(&method, path), "{method} {path}");
        }
    }
}
