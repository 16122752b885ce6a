//! The detector: reads security events from the bus, verifies them, ticks the engine, publishes alerts, writes checkpoints.
//! Runs on a thread of its own, behind the others, so that no rule ever slows an answer. Loses nothing: an alert is published
//! before the checkpoint that counts its events, and its id makes publishing it again harmless.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aegis_bus::{AskForMissing, Bus};
use aegis_keys::KeyRing;
use aegis_model::Clock;
use aegis_threads::Work;
use futures_util::FutureExt;
use parking_lot::Mutex;
use serde::Serialize;

use crate::engine::EngineConfig;
use crate::error::DetectError;
use crate::evaluate::RuleStats;
use crate::follow::run;
use crate::own::RuleTexts;
use crate::ruleset::RuleSet;
use crate::shelf::MAX_PACKED;

/// The name under which the detector's position is registered.
pub const CONSUMER: &str = "detect";
/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    pub engine: EngineConfig,
    /// Time between checkpoints, in milliseconds.
    pub checkpoint_ms: i64,
    /// How long a lane waits for a receipt that is missing in it, in milliseconds of the bus; 0: not at all, for a bus that keeps the order.
    pub hold_ms: i64,
    /// Whom to ask for what is missing while a lane waits.
    pub missing: Option<Arc<dyn AskForMissing>>,
    /// Largest checkpoint, in bytes and compressed: two of them have to fit into the stream CKPT.
    pub checkpoint_bytes: usize,
    /// Where the texts of tenants' own rules are found after a restart; None: they have none.
    pub texts: Option<Arc<dyn RuleTexts>>,
}

impl WorkerConfig {
    /// Defaults: the engine's, and a checkpoint every two seconds.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let engine = EngineConfig::new(clock);
        Self { engine, checkpoint_ms: 2000, hold_ms: 0, missing: None, checkpoint_bytes: MAX_PACKED, texts: None }
    }
}

/// Counters of a worker, since it was started.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WorkerStats {
    pub rules: Vec<RuleStats>,
    /// True once the state of the last run is rebuilt.
    pub ready: bool,
    /// Stream sequence up to which events have been taken.
    pub position: u64,
    /// Messages in the stream behind that.
    pub lag: u64,
    pub events: u64,
    pub ticks: u64,
    pub tick_seconds: f64,
    pub verified: u64,
    /// Events that failed verification: `receipt_verify_failures_total`.
    pub broken: u64,
    pub repeated: u64,
    /// Events that came too late to be looked at, observations of a time that is not yet included; and how many of them had proved themselves.
    pub late: u64,
    pub late_verified: u64,
    /// Messages set aside as dead letters.
    pub malformed: u64,
    pub alerts: u64,
    /// Those of them that say that detection is impaired.
    pub impaired: u64,
    pub retractions: u64,
    /// Records of episodes that were given up because their stream was full.
    pub episodes_dropped: u64,
    /// Messages that the bus will never take, as they are or made smaller.
    pub refused: u64,
    /// From an alert's last event to its detection (`soc_mttd_seconds`): sum, and how many.
    pub detect_seconds_sum: f64,
    pub detect_seconds_count: u64,
    pub checkpoints: u64,
    /// How often the stream turned out to be another one, and was read again from its start.
    pub rewinds: u64,
    /// What keeps the worker from going on, if something does.
    pub trouble: Option<String>,
}

/// A running detector.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    ended: Option<Work>,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    stop: AtomicBool,
    pub(crate) wake: tokio::sync::Notify,
    pub(crate) stats: Mutex<WorkerStats>,
}

impl Worker {
    /// Starts the thread.
    pub fn spawn(
        bus: Arc<dyn Bus>,
        ring: KeyRing,
        rules: RuleSet,
        clock: Arc<dyn Clock>,
        config: WorkerConfig,
    ) -> Result<Self, DetectError> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let ended = aegis_threads::spawn("aegis-detect", move || async move {
            let work = AssertUnwindSafe(run(bus, ring, rules, clock, config, &of_thread)).catch_unwind();
            if work.await.is_err() {
                tracing::error!("the detection thread panicked");
                of_thread.stats.lock().trouble = Some("the detection thread panicked; restart the process".into());
            }
        })?;
        Ok(Self { shared, ended: Some(ended) })
    }

    /// Counters now.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        self.shared.stats.lock().clone()
    }

    /// Messages of the stream not yet taken.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.shared.stats.lock().lag
    }

    /// Finishes the tick at hand, writes a checkpoint, and ends.
    pub async fn stop(mut self) {
        self.signal();
        if let Some(ended) = self.ended.take() {
            let _panic_is_told_already = ended.ended().await;
        }
    }

    fn signal(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.signal();
    }
}

impl Shared {
    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    pub(crate) async fn pause(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.wake.notified() => {}
        }
    }
}
