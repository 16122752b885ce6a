//! What an edge tells control of itself: which containment it enforces, as soon as it does, and that it lives. Nothing here is waited for by a
//! call, and what is lost on the way is told again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aegis_bus::{Bus, subject};
use aegis_keys::{SigningKey, sign_notice};
use aegis_ledger::Ledger;
use aegis_model::{Clock, ContainmentAck, ContainmentState, Enforced, Heartbeat, Notice, new_event_id};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::clock::CorrectedClock;
use crate::view::EdgeView;

/// Time between two heartbeats.
const EVERY: Duration = Duration::from_secs(2);
/// How long an acknowledgement is told again with each heartbeat, seconds.
const AGAIN_S: i64 = 30;
/// Acknowledgements in one heartbeat.
const MOST_AGAIN: usize = 256;

/// What is to be told.
#[derive(Debug, Default)]
struct Queue {
    fresh: VecDeque<Enforced>,
    told: VecDeque<Enforced>,
}

/// Tells control of this edge.
#[derive(Debug)]
pub struct Pulse {
    edge_id: String,
    key: SigningKey,
    clock: Arc<CorrectedClock>,
    boot: String,
    after: Option<String>,
    seq: AtomicU64,
    queue: Mutex<Queue>,
    wake: Notify,
}

impl Pulse {
    /// The pulse of the edge `edge_id`, whose receipt key signs it. `after`: the `boot` of the start before, if it is known.
    #[must_use]
    pub fn new(edge_id: &str, key: SigningKey, clock: Arc<CorrectedClock>, after: Option<String>) -> Arc<Self> {
        let boot = new_event_id().to_string();
        let (seq, queue, wake) = (AtomicU64::new(0), Mutex::default(), Notify::new());
        Arc::new(Self { edge_id: edge_id.to_owned(), key, clock, boot, after, seq, queue, wake })
    }

    /// Names this start of the edge.
    #[must_use]
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// The edge's time.
    #[must_use]
    pub fn clock(&self) -> &Arc<CorrectedClock> {
        &self.clock
    }

    /// A containment state is enforced from now on.
    pub(crate) fn enforces(&self, state: &ContainmentState) {
        self.queue.lock().fresh.push_back(Enforced::of(state, self.clock.now()));
        self.wake.notify_one();
    }

    /// Starts telling.
    #[must_use]
    pub fn spawn(self: Arc<Self>, bus: Arc<dyn Bus>, view: Arc<EdgeView>, ledger: Ledger) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut next = Instant::now();
            loop {
                self.acknowledge(&*bus).await;
                if Instant::now() >= next {
                    next = Instant::now() + EVERY;
                    let heartbeat = self.heartbeat(&view, &ledger);
                    self.tell(&*bus, &subject::heartbeat(&self.edge_id), &heartbeat).await;
                }
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = sleep_until(next) => {}
                }
            }
        })
    }

    async fn acknowledge(&self, bus: &dyn Bus) {
        loop {
            let Some(enforced) = self.queue.lock().fresh.pop_front() else { return };
            let ack = ContainmentAck { edge_id: self.edge_id.clone(), boot: self.boot.clone(), enforced: enforced.clone() };
            self.tell(bus, &subject::ack(&self.edge_id), &ack).await;
            let mut queue = self.queue.lock();
            queue.told.push_back(enforced);
            if queue.told.len() > MOST_AGAIN {
                queue.told.pop_front();
            }
        }
    }

    fn heartbeat(&self, view: &EdgeView, ledger: &Ledger) -> Heartbeat {
        let at = self.clock.now();
        let mut queue = self.queue.lock();
        queue.told.retain(|enforced| enforced.applied_at >= at.plus_seconds(-AGAIN_S));
        Heartbeat {
            edge_id: self.edge_id.clone(),
            boot: self.boot.clone(),
            after: self.after.clone(),
            epoch: Some(ledger.epoch().to_owned()),
            seq: self.seq.fetch_add(1, Ordering::Relaxed),
            at,
            clock_offset_us: self.clock.offset_us(),
            clock_suspect: self.clock.is_suspect(),
            feed_age_s: view.feed_age_s(at),
            backlog: ledger.backlog(),
            enforced: queue.told.iter().cloned().collect(),
            leaving: false,
        }
    }

    /// Tells control that this start of the edge ends as it should, so that it is not missed. Nothing is told after it.
    pub async fn leave(&self, bus: &dyn Bus, view: &EdgeView, ledger: &Ledger) {
        let heartbeat = Heartbeat { leaving: true, ..self.heartbeat(view, ledger) };
        self.tell(bus, &subject::heartbeat(&self.edge_id), &heartbeat).await;
    }

    async fn tell(&self, bus: &dyn Bus, subject: &str, notice: &(impl Notice + Serialize)) {
        let told = match sign_notice(&self.key, notice) {
            Ok(bytes) => bus.tell(subject, Bytes::from(bytes)).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = told {
            tracing::debug!(error, subject, "control was not told");
        }
    }
}
