//! The load: plain HTTP/1.1 connections, and the closed loop that tells throughput. The open loop for latency is in `paced.rs`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

/// How a measurement is made.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) duration: Duration,
    pub(crate) rounds: usize,
    pub(crate) connections: usize,
}

/// What is sent, over and over.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
    pub(crate) body: Bytes,
    /// What each reply must contain, or it counts as an error.
    pub(crate) expect: &'static str,
}

/// One keep-alive connection.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = tokio::net::TcpStream::connect(address).await.with_context(|| format!("cannot reach {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Open before the clock starts: opening some hundred of them takes longer than a slow answer.
    pub(crate) async fn open_many(address: SocketAddr, count: usize) -> anyhow::Result<Vec<Self>> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            connections.push(Self::open(address).await?);
        }
        Ok(connections)
    }

    pub(crate) async fn call(&mut self, method: &str, path: &str, token: &str, body: Bytes) -> anyhow::Result<(u16, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1")
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    pub(crate) async fn hit(&mut self, target: &Target) -> anyhow::Result<()> {
        let (status, reply) = self.call("POST", "/v1/authorize", &target.token, target.body.clone()).await?;
        let expected = target.expect.as_bytes();
        if status != 200 || !reply.windows(expected.len()).any(|window| window == expected) {
            bail!("unexpected reply {status}: {}", String::from_utf8_lossy(&reply));
        }
        Ok(())
    }
}

/// Requests a second with every connection sending as soon as it is answered.
pub(crate) async fn throughput(plan: &Plan, target: &Target) -> anyhow::Result<f64> {
    let connections = Connection::open_many(target.address, plan.connections).await?;
    let done = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let ends = started + plan.duration;
    let mut tasks = Vec::new();
    for mut connection in connections {
        let (target, done) = (target.clone(), done.clone());
        tasks.push(tokio::spawn(async move {
            while Instant::now() < ends {
                connection.hit(&target).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}

/// The value below which `share` (0 to 1) of the sorted values lie.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    sorted[((last as f64) * share).round() as usize]
}
