//! The thread that fills the lake: reads the bus behind the action path, writes what it collected every few seconds, and notes how far it is.
//! Nothing waits for it; where it cannot write, the bus keeps what it has not read.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aegis_bus::Bus;
use aegis_keys::KeyRing;
use aegis_model::Clock;
use aegis_threads::Work;
use futures_util::FutureExt;
use object_store::ObjectStore;
use parking_lot::Mutex;

use crate::error::LakeError;
use crate::follow::run;
use crate::writer::WriterLimits;

/// The name under which the lake's position is registered on the bus.
pub const CONSUMER: &str = "lake";

/// Settings of the thread.
#[derive(Clone, Debug)]
pub struct LakeConfig {
    /// How long an event waits at most until it is written, milliseconds.
    pub flush_ms: u64,
    /// How far behind its tenant's watermark an event may be and not be `late`, microseconds: as detection has it.
    pub lateness_micros: i64,
    /// How long after its end an hour stays in the lake, microseconds. None: for good.
    pub keep_micros: Option<i64>,
    /// Who keeps events in this process: what stands in one of these ledgers needs no proof.
    pub keepers: HashSet<String>,
    pub limits: WriterLimits,
}

impl Default for LakeConfig {
    /// Ten seconds, two minutes, for good, nobody.
    fn default() -> Self {
        Self {
            flush_ms: 10_000,
            lateness_micros: 120_000_000,
            keep_micros: None,
            keepers: HashSet::new(),
            limits: WriterLimits::default(),
        }
    }
}

/// Counters of the thread, since it was started.
#[derive(Clone, Debug, Default)]
pub struct LakeStats {
    /// Everything of the stream up to here is in the lake.
    pub position: u64,
    /// Messages in the stream behind what was read.
    pub lag: u64,
    pub rows: u64,
    pub files: u64,
    /// Files that were merged and removed.
    pub tidied: u64,
    /// Messages that are no events. They are set aside by others.
    pub malformed: u64,
    /// How often something failed and was tried again.
    pub failures: u64,
    /// What keeps it from going on, if something does.
    pub trouble: Option<String>,
}

/// The running thread.
#[derive(Debug)]
pub struct LakeWorker {
    shared: Arc<Shared>,
    ended: Option<Work>,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    stop: AtomicBool,
    wake: tokio::sync::Notify,
    pub(crate) stats: Mutex<LakeStats>,
}

impl LakeWorker {
    /// Starts it. There is one for a lake.
    pub fn spawn(
        bus: Arc<dyn Bus>,
        store: Arc<dyn ObjectStore>,
        ring: KeyRing,
        clock: Arc<dyn Clock>,
        config: LakeConfig,
    ) -> Result<Self, LakeError> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let ended = aegis_threads::spawn("aegis-lake", move || async move {
            let work = AssertUnwindSafe(run(bus, store, ring, clock, config, &of_thread)).catch_unwind();
            if work.await.is_err() {
                tracing::error!("the lake's thread panicked");
                of_thread.stats.lock().trouble = Some("the lake's thread panicked; restart the process".into());
            }
        })?;
        Ok(Self { shared, ended: Some(ended) })
    }

    /// Counters now.
    #[must_use]
    pub fn stats(&self) -> LakeStats {
        self.shared.stats.lock().clone()
    }

    /// Writes what the bus has, as far as a few seconds reach, and ends.
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

impl Drop for LakeWorker {
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
