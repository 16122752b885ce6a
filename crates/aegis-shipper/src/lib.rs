//! Moves what the ledger has sealed onto the bus: the ring while it keeps up, the outbox table when it is behind.
//! Promises that every sealed event reaches ASE, and every frozen action APPROVALS before its event, at least once and in the order of its
//! lane, but for what the bus did not take at first; and that a lane with little to ship does not wait behind one with much. Goes on publishing while
//! acknowledgements are under way, and marks a row as shipped only once it and all before it are acknowledged. Never holds up the ledger,
//! whatever the bus does.

mod again;
mod keeper;
mod letter;
mod pipe;
mod stop;
mod task;
mod window;

pub use again::ShipAgain;
pub use keeper::LedgerKeeper;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aegis_bus::Bus;
use aegis_ledger::Ledger;
use aegis_threads::Work;
use tokio::sync::watch;

/// How the shipper works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShipperConfig {
    /// Events that one publish takes at most.
    pub batch: usize,
    /// The same in bytes of payload; a message that is larger goes alone.
    pub batch_bytes: usize,
    /// Events under way at most: published, and not acknowledged yet. A bus that is done with each publish when it answers has one at a time.
    pub window: usize,
    /// The same in bytes of payload. Both at most half of what detection holds of a tenant for a receipt that is missing before it.
    pub window_bytes: usize,
    /// Where acknowledgements take this long, fewer publishes are under way at once. Less than the bus waits for them.
    pub late: Duration,
    /// Publishes are at least this far apart, so that events gather; the first after a pause goes at once.
    pub spacing: Duration,
    /// The same behind a publish of many events: under load, where few large publishes cost far less than many small ones.
    pub busy_spacing: Duration,
    /// The wait after a first refusal; it doubles with each further one.
    pub min_backoff: Duration,
    /// The longest wait.
    pub max_backoff: Duration,
    /// How often an idle shipper looks whether the ring missed something.
    pub idle_check: Duration,
    /// How often lanes with little to ship go first, while much waits.
    pub quiet_every: Duration,
    /// How long `stop` goes on shipping.
    pub drain: Duration,
    /// The name under which the bus knows a `LedgerKeeper` of this ledger, if it does.
    pub kept_as: Option<Arc<str>>,
    /// The last row that the bus had of it at this start, where that is known: shipping begins behind it, whatever was acknowledged before the power went.
    pub kept_to: Option<i64>,
}

impl Default for ShipperConfig {
    fn default() -> Self {
        Self {
            batch: 512,
            batch_bytes: 4 << 20,
            window: 4096,
            window_bytes: 8 << 20,
            late: Duration::from_secs(1),
            spacing: Duration::from_millis(5),
            busy_spacing: Duration::from_millis(12),
            min_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(5),
            idle_check: Duration::from_millis(100),
            quiet_every: Duration::from_secs(1),
            drain: Duration::from_secs(5),
            kept_as: None,
            kept_to: None,
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    emitted: AtomicU64,
    retries: AtomicU64,
    dead_lettered: AtomicU64,
    again: AtomicU64,
}

/// What a shipper counts, for metrics. Cheap to clone; goes on after the shipper has stopped.
#[derive(Clone, Debug)]
pub struct ShipperMeter {
    counts: Arc<Counts>,
    ledger: Ledger,
}

impl ShipperMeter {
    /// Events that the bus acknowledged.
    #[must_use]
    pub fn emitted_total(&self) -> u64 {
        self.counts.emitted.load(Ordering::Relaxed)
    }

    /// Publishes that had to be tried again.
    #[must_use]
    pub fn retries_total(&self) -> u64 {
        self.counts.retries.load(Ordering::Relaxed)
    }

    /// Messages that the bus will never take, and that went to the dead letters instead.
    #[must_use]
    pub fn dead_lettered_total(&self) -> u64 {
        self.counts.dead_lettered.load(Ordering::Relaxed)
    }

    /// Receipts that were shipped again because they were missing behind the bus.
    #[must_use]
    pub fn again_total(&self) -> u64 {
        self.counts.again.load(Ordering::Relaxed)
    }

    /// Rows of the ledger that are not shipped yet.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.ledger.backlog()
    }
}

/// A running shipper of one ledger. There must be one per ledger.
#[derive(Debug)]
pub struct Shipper {
    meter: ShipperMeter,
    again: ShipAgain,
    stop: watch::Sender<bool>,
    task: Work,
}

impl Shipper {
    /// Starts shipping where the ledger says that the last start ended, on a thread behind those that answer.
    pub fn spawn(ledger: Ledger, bus: Arc<dyn Bus>, config: ShipperConfig) -> std::io::Result<Self> {
        let counts = Arc::new(Counts::default());
        let meter = ShipperMeter { counts: Arc::clone(&counts), ledger: ledger.clone() };
        let (stop, stopping) = watch::channel(false);
        let (again, asked) = again::channel();
        let task = aegis_threads::spawn("aegis-ship", move || task::run(ledger, bus, config, counts, asked, stopping))?;
        Ok(Self { meter, again, stop, task })
    }

    /// Rows of the ledger that are not shipped yet.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.meter.backlog()
    }

    /// Events that the bus acknowledged.
    #[must_use]
    pub fn emitted_total(&self) -> u64 {
        self.meter.emitted_total()
    }

    /// Asks this shipper to ship receipts again.
    #[must_use]
    pub fn again(&self) -> ShipAgain {
        self.again.clone()
    }

    /// The counters, to keep.
    #[must_use]
    pub fn meter(&self) -> ShipperMeter {
        self.meter.clone()
    }

    /// Ships what is there, for at most the configured time, then ends. What is left is shipped by the next start.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.ended().await {
            tracing::error!(%error, "the shipper ended badly; the next start ships what it left");
        }
    }
}
