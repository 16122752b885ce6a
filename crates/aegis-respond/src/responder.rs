//! The running responder: one task follows the stream, one sends pending responses again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_bus::{Bus, BusError, Stream};
use aegis_model::Clock;
use aegis_store::Store;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::core::{Core, Counters, InFlight};
use crate::{ContainmentRequests, RespondError};

/// The name under which the responder keeps its position in the stream ALERTS.
pub const CONSUMER: &str = "respond";

/// Messages taken from the bus at a time.
const BATCH: usize = 256;
/// How long one read waits for a message; only the stop signal waits for it.
const READ_WAIT: Duration = Duration::from_secs(1);
/// First and longest wait before something that failed is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How long a stop waits for requests that are under way; what they were about stays pending.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// Counts since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponderCounts {
    /// Alerts seen for the first time.
    pub alerts: u64,
    pub retractions: u64,
    /// Incidents opened.
    pub incidents: u64,
    /// Requests sent to control, repeated ones included.
    pub requests: u64,
    /// Of those, how many had no outcome.
    pub failed_requests: u64,
    /// Messages that could not be worked on.
    pub dead_letters: u64,
}

/// A running responder. Dropping it stops it between two steps, like `stop` without the waiting.
pub struct Responder {
    core: Arc<Core>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Responder").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Responder {
    /// Starts responding where the last responder on this bus stopped.
    #[must_use]
    pub fn spawn(bus: Arc<dyn Bus>, store: Store, requests: Arc<dyn ContainmentRequests>, clock: Arc<dyn Clock>) -> Self {
        let core = Arc::new(Core {
            bus,
            store,
            requests,
            clock,
            counters: Counters::default(),
            in_flight: Arc::new(InFlight::default()),
            left_pending: Notify::new(),
        });
        let (stop, stopped) = watch::channel(false);
        let tasks = vec![
            tokio::spawn(follow_until_stopped(Arc::clone(&core), stopped.clone())),
            tokio::spawn(retry_until_stopped(Arc::clone(&core), stopped)),
        ];
        Self { core, stop, tasks }
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> ResponderCounts {
        let counters = &self.core.counters;
        ResponderCounts {
            alerts: counters.alerts.load(Ordering::Relaxed),
            retractions: counters.retractions.load(Ordering::Relaxed),
            incidents: counters.incidents.load(Ordering::Relaxed),
            requests: counters.requests.load(Ordering::Relaxed),
            failed_requests: counters.failed_requests.load(Ordering::Relaxed),
            dead_letters: counters.dead_letters.load(Ordering::Relaxed),
        }
    }

    /// Stops between two steps and waits, a bounded time, for requests that are under way.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        for task in std::mem::take(&mut self.tasks) {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the responder broke off");
            }
        }
        if tokio::time::timeout(STOP_WAIT, self.core.in_flight.drained()).await.is_err() {
            tracing::warn!("containment requests are still under way; they stay pending");
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// Waits, doubling from call to call, up to `LONGEST_RETRY`.
struct Backoff(Duration);

impl Backoff {
    const fn new() -> Self {
        Self(FIRST_RETRY)
    }

    fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(LONGEST_RETRY);
        wait
    }
}

/// Returns early when the responder is stopped.
async fn pause(wait: Duration, stop: &mut watch::Receiver<bool>) {
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        // An error means that the responder is gone, which is a stop too.
        _ = stop.wait_for(|stopped| *stopped) => {}
    }
}

async fn follow_until_stopped(core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    let mut backoff = Backoff::new();
    while !*stop.borrow() {
        if let Err(error) = follow(&core, &mut stop, &mut backoff).await {
            let wait = backoff.next();
            tracing::warn!(%error, wait_ms = wait.as_millis(), "responding is interrupted; it goes on from the same alert");
            pause(wait, &mut stop).await;
        }
    }
}

/// Reads from the consumer's position on until stopped, or until something fails.
async fn follow(core: &Arc<Core>, stop: &mut watch::Receiver<bool>, backoff: &mut Backoff) -> Result<(), RespondError> {
    let mut position = core.bus.consumer_position(Stream::Alerts, CONSUMER).await?;
    if position > core.bus.last_seq(Stream::Alerts).await? {
        // The stream is not the one the position was about. Reading again is harmless: every step is idempotent.
        tracing::warn!(position, "the stream ALERTS is shorter than the responder remembers; reading it again");
        position = 0;
    }
    // Registers the consumer, so that the bus keeps what it has not passed.
    core.bus.set_consumer_position(Stream::Alerts, CONSUMER, position).await?;
    let mut alerts = core.bus.subscribe(Stream::Alerts, ">", position + 1).await?;
    loop {
        let batch = tokio::select! {
            batch = alerts.next_batch(BATCH, READ_WAIT) => batch,
            _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
        };
        if let Err(BusError::Rewound { .. }) = batch {
            // What the position was about is gone, whatever stands at that number now.
            core.bus.set_consumer_position(Stream::Alerts, CONSUMER, 0).await?;
        }
        let batch = batch?;
        let mut passed = None;
        let mut failed = None;
        for message in &batch {
            if *stop.borrow() {
                break;
            }
            match core.deliver(message).await {
                Ok(()) => passed = Some(message.seq),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if let Some(seq) = passed {
            core.bus.set_consumer_position(Stream::Alerts, CONSUMER, seq).await?;
            *backoff = Backoff::new();
        }
        if let Some(error) = failed {
            return Err(error);
        }
    }
}

async fn retry_until_stopped(core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    let mut backoff = Backoff::new();
    // The first pass takes up what an earlier process left pending.
    while !*stop.borrow() {
        let remain = core.send_pending(&stop).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "pending responses cannot be read");
            true
        });
        if remain {
            pause(backoff.next(), &mut stop).await;
            continue;
        }
        backoff = Backoff::new();
        tokio::select! {
            () = core.left_pending.notified() => {}
            _ = stop.wait_for(|stopped| *stopped) => return,
        }
        // It has just been tried.
        pause(backoff.next(), &mut stop).await;
    }
}
