//! The open loop: requests on a fixed schedule, each sent when it is due. Latency counts from then, so a stall shows in every request it delayed.
//! Promises to take little of the cores that it shares with the server: one thread, and of HTTP no more than a server wants to hear.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;

use crate::load::{Plan, Target};

/// Before the first request is due, everything is set up.
const LEAD: Duration = Duration::from_millis(50);

/// How often answers are looked for. The kernel's timers add some 50 microseconds.
const STEP: Duration = Duration::from_micros(50);

/// After this time without any answer there will be none.
const PATIENCE: Duration = Duration::from_secs(30);

/// More headers than a reply has.
const MAX_HEADERS: usize = 32;

/// Latencies in microseconds, sorted, at `rate` requests a second.
pub(crate) async fn latencies(plan: &Plan, target: &Target, rate: f64) -> anyhow::Result<Vec<f64>> {
    let (plan, target) = (plan.clone(), target.clone());
    let mut taken = tokio::task::spawn_blocking(move || run(&plan, &target, rate)).await.context("the load failed")??;
    taken.sort_by(f64::total_cmp);
    Ok(taken)
}

fn run(plan: &Plan, target: &Target, rate: f64) -> anyhow::Result<Vec<f64>> {
    let total = (rate * plan.duration.as_secs_f64()) as usize;
    let request = request_of(target);
    // Enough connections that a due request finds a free one unless the server itself falls behind.
    let mut free = (0..plan.connections * 2).map(|_| Caller::open(target.address)).collect::<anyhow::Result<Vec<_>>>()?;
    let (mut busy, mut waiting, mut taken) = (Vec::new(), VecDeque::new(), Vec::with_capacity(total));
    let started = Instant::now() + LEAD;
    let due = |index: usize| started + Duration::from_secs_f64(index as f64 / rate);
    let (mut next, mut answered_at) = (0, started);
    while taken.len() < total {
        while next < total && due(next) <= Instant::now() {
            waiting.push_back(due(next));
            next += 1;
        }
        while let Some(due) = waiting.front()
            && let Some(mut caller) = free.pop()
        {
            caller.send(&request, *due)?;
            busy.push(caller);
            waiting.pop_front();
        }
        let mut index = 0;
        while let Some(caller) = busy.get_mut(index) {
            match caller.answer(target.expect)? {
                Some(micros) => {
                    taken.push(micros);
                    answered_at = Instant::now();
                    free.push(busy.swap_remove(index));
                }
                None => index += 1,
            }
        }
        if Instant::now() > answered_at + PATIENCE {
            bail!("no answer for {} s, and {} requests wait for one", PATIENCE.as_secs(), busy.len());
        }
        let until_due = if next < total { due(next).saturating_duration_since(Instant::now()) } else { STEP };
        std::thread::sleep(until_due.min(STEP));
    }
    Ok(taken)
}

fn request_of(target: &Target) -> Vec<u8> {
    let head = format!(
        "POST /v1/authorize HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        target.token,
        target.body.len()
    );
    [head.as_bytes(), &target.body].concat()
}

/// One keep-alive connection, and the request that is under way on it.
struct Caller {
    stream: TcpStream,
    due: Instant,
    reply: Vec<u8>,
}

impl Caller {
    fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot reach {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, due: Instant::now(), reply: Vec::new() })
    }

    /// The socket is empty, so it takes a request whole.
    fn send(&mut self, request: &[u8], due: Instant) -> anyhow::Result<()> {
        self.due = due;
        self.reply.clear();
        self.stream.write_all(request).context("cannot send a request")
    }

    /// Microseconds from when the request was due to its whole answer, once that is there.
    fn answer(&mut self, expected: &str) -> anyhow::Result<Option<f64>> {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => bail!("the server closed a connection"),
                Ok(count) => self.reply.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("cannot read an answer"),
            }
        }
        let Some((status, body)) = whole(&self.reply)? else { return Ok(None) };
        let micros = self.due.elapsed().as_secs_f64() * 1e6;
        if status != 200 || !body.windows(expected.len()).any(|window| window == expected.as_bytes()) {
            bail!("unexpected reply {status}: {}", String::from_utf8_lossy(body));
        }
        Ok(Some(micros))
    }
}

/// Status and body of a reply, once all of it is there.
fn whole(reply: &[u8]) -> anyhow::Result<Option<(u16, &[u8])>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(reply).context("this is no HTTP")? else { return Ok(None) };
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length: usize = std::str::from_utf8(length.context("a reply of unknown length")?.value)?.parse()?;
    Ok(reply.get(head..head + length).map(|body| (response.code.unwrap_or_default(), body)))
}
