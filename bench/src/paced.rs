//! The open loop: requests on a fixed schedule, each sent when it is due and not with those of its millisecond, as a runtime's timers would.
//! Latency counts from the time a request was due, so a stall shows in every request it delayed. What the load waits
//! for a core itself is in it: put before the servers (by niceness, or in a real-time class) it takes their turns, and makes every tail longer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::load::{Connection, Plan, Target};

/// Before the first request is due, everything is set up.
const LEAD: Duration = Duration::from_millis(50);

/// Threads that send and read: one is enough for a fifth of what the echo takes.
const SENDERS: usize = 2;

/// Latencies in microseconds, sorted, at `rate` requests a second.
pub(crate) async fn latencies(plan: &Plan, target: &Target, rate: f64) -> anyhow::Result<Vec<f64>> {
    let mut load = Builder::new_multi_thread();
    load.worker_threads(SENDERS).thread_name("bench-load").enable_all();
    let load = load.build().context("no threads for the load")?;
    let (plan, target) = (plan.clone(), target.clone());
    let taken = load.spawn(async move { run(&plan, &target, rate).await }).await;
    load.shutdown_background();
    let mut all = taken.context("the load failed")??;
    all.sort_by(f64::total_cmp);
    Ok(all)
}

async fn run(plan: &Plan, target: &Target, rate: f64) -> anyhow::Result<Vec<f64>> {
    let total = (rate * plan.duration.as_secs_f64()) as usize;
    // Enough connections that a due request finds a free one unless the server itself falls behind.
    let free = Connection::open_many(target.address, plan.connections * 2).await?;
    let (tell, ended) = oneshot::channel();
    let state = State { free, due: VecDeque::new(), taken: Vec::with_capacity(total), total, tell: Some(tell) };
    let schedule = Arc::new(Schedule { target: target.clone(), state: Mutex::new(state) });
    let runtime = Handle::current();
    let pacing = std::thread::Builder::new().name("bench-pacer".to_owned()).spawn(move || {
        schedule.pace(total, rate, &runtime);
    });
    let pacing = pacing.context("no thread for the schedule")?;
    let taken = ended.await.context("the schedule is gone")?;
    if pacing.join().is_err() {
        anyhow::bail!("the thread of the schedule failed");
    }
    taken
}

struct Schedule {
    target: Target,
    state: Mutex<State>,
}

struct State {
    free: Vec<Connection>,
    /// Requests for which no connection was free, oldest first.
    due: VecDeque<Instant>,
    taken: Vec<f64>,
    total: usize,
    /// Taken with the last answer, or the first error.
    tell: Option<oneshot::Sender<anyhow::Result<Vec<f64>>>>,
}

impl Schedule {
    /// Starts each request when it is due: the kernel's timers are exact to some 50 microseconds, the runtime's to a millisecond.
    fn pace(self: Arc<Self>, total: usize, rate: f64, runtime: &Handle) {
        let started = Instant::now() + LEAD;
        for index in 0..total {
            let due = started + Duration::from_secs_f64(index as f64 / rate);
            if let Some(early) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(early);
            }
            if let Some(connection) = self.begin(due) {
                runtime.spawn(self.clone().serve(connection, due));
            }
        }
    }

    fn begin(&self, due: Instant) -> Option<Connection> {
        let mut state = self.state.lock();
        let connection = state.free.pop();
        if connection.is_none() {
            state.due.push_back(due);
        }
        connection
    }

    /// One request, and those that waited for a connection behind it.
    async fn serve(self: Arc<Self>, mut connection: Connection, mut due: Instant) {
        loop {
            let answer = connection.hit(&self.target).await.map(|()| due.elapsed().as_secs_f64() * 1e6);
            let mut state = self.state.lock();
            state.note(answer);
            match state.due.pop_front() {
                Some(next) => due = next,
                None => {
                    state.free.push(connection);
                    return;
                }
            }
        }
    }
}

impl State {
    fn note(&mut self, answer: anyhow::Result<f64>) {
        let ended = match answer {
            Ok(micros) => {
                self.taken.push(micros);
                (self.taken.len() == self.total).then(|| Ok(std::mem::take(&mut self.taken)))
            }
            Err(error) => Some(Err(error)),
        };
        if let Some(ended) = ended
            && let Some(tell) = self.tell.take()
        {
            let _nobody_waits = tell.send(ended);
        }
    }
}
