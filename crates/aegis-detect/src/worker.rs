//! The detector: reads security events from the bus, verifies them, ticks the engine, publishes alerts, writes checkpoints.
//! Runs on a thread of its own, behind the others, so that no rule ever slows an answer. Loses nothing: an alert is published
//! before the checkpoint that counts its events, and its id makes publishing it again harmless.

use std::sync::Arc;

use aegis_bus::{AskForMissing, Bus};
use aegis_keys::KeyRing;
use aegis_model::Clock;
use aegis_threads::Stats;
use serde::Serialize;

use crate::distrust::RefusedRecords;
use crate::engine::EngineConfig;
use crate::error::DetectError;
use crate::evaluate::RuleStats;
use crate::follow::run;
use crate::looks::LaneLooks;
use crate::own::RuleTexts;
use crate::ruleset::RuleSet;
use crate::shelf::MAX_PACKED;
use crate::waits::RuleWaits;
use crate::warm::{PastEvents, PastReceipts, WarmRecords};

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
    /// Whose records of tenants' own rules are taken: control's key, and no edge's, also where one process has both. Empty: nobody's.
    pub control: KeyRing,
    /// Where a rule that comes finds what lies before what detection keeps (None: it waits until it knows its window), and where what came too late for the
    /// windows is caught up (None: it is told of, and no more).
    pub past: Option<Arc<dyn PastEvents>>,
    /// Who has the lanes of that followed again, for rules that contain; None: nobody, and such a rule waits.
    pub past_receipts: Option<Arc<dyn PastReceipts>>,
    /// Who puts into the log, signed by control, that all of that can be read: detection has no key. None: nobody, and such a rule waits too.
    pub warm_records: Option<Arc<dyn WarmRecords>>,
    /// Who tells tenants of records of rules that are refused; None: nobody, and they are counted and put aside.
    pub refused_records: Option<Arc<dyn RefusedRecords>>,
    /// Where it is asked which rules do not know a tenant's window yet; None: nowhere.
    pub waits: Option<Arc<RuleWaits>>,
    /// Where it is asked how far lanes were followed; None: nowhere.
    pub looks: Option<Arc<LaneLooks>>,
}

impl WorkerConfig {
    /// Defaults: the engine's, and a checkpoint every two seconds.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            engine: EngineConfig::new(clock),
            checkpoint_ms: 2000,
            hold_ms: 0,
            missing: None,
            checkpoint_bytes: MAX_PACKED,
            texts: None,
            control: KeyRing::default(),
            past: None,
            past_receipts: None,
            warm_records: None,
            refused_records: None,
            waits: None,
            looks: None,
        }
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
    /// Tenants of whom late events wait to be caught up.
    pub late_waiting: u64,
    /// Alerts that were found when late events were caught up.
    pub late_alerts: u64,
    /// How often something of what late events touched could not be caught up: a part of a tenant's time, or rules that look back further than is read.
    pub late_given_up: u64,
    /// Messages set aside as dead letters.
    pub malformed: u64,
    /// Those of them that were to change a rule, and were not control's to the letter or older than what it said since.
    pub rule_records_refused: u64,
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

impl Stats for WorkerStats {
    fn trouble(&mut self) -> &mut Option<String> {
        &mut self.trouble
    }
}

pub(crate) type Shared = aegis_threads::Shared<WorkerStats>;

/// A running detector.
#[derive(Debug)]
pub struct Worker(aegis_threads::Worker<WorkerStats>);

impl Worker {
    /// Starts the thread.
    pub fn spawn(
        bus: Arc<dyn Bus>,
        ring: KeyRing,
        rules: RuleSet,
        clock: Arc<dyn Clock>,
        config: WorkerConfig,
    ) -> Result<Self, DetectError> {
        let work = move |shared: Arc<Shared>| async move { run(bus, ring, rules, clock, config, &shared).await };
        Ok(Self(aegis_threads::Worker::spawn("aegis-detect", "the detection thread", work)?))
    }

    /// Counters now.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        self.0.stats()
    }

    /// Finishes the tick at hand, writes a checkpoint, and ends.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}
