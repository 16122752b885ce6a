//! The thread that fills the lake: reads the bus behind the action path, writes what it collected every few seconds, and notes how far it is.
//! Nothing waits for it; where it cannot write, the bus keeps what it has not read.

use std::collections::HashSet;
use std::sync::Arc;

use aegis_bus::{AskForMissing, Bus};
use aegis_keys::KeyRing;
use aegis_model::Clock;
use aegis_threads::{Stats, Worker};
use object_store::ObjectStore;

use crate::error::LakeError;
use crate::follow::run;
use crate::lanes::LakeLanes;
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
    /// How long a stop waits for a store that does not answer, milliseconds; what is not written then is at the next start.
    pub give_up_ms: u64,
    /// Who keeps events in this process: what stands in one of these ledgers needs no proof.
    pub keepers: HashSet<String>,
    pub limits: WriterLimits,
    /// Where it says how far it has lanes. None: it does not follow them.
    pub lanes: Option<Arc<LakeLanes>>,
    /// Whom it asks for receipts that are missing before a lane's head. None: nobody.
    pub missing: Option<Arc<dyn AskForMissing>>,
    /// How long it has gone on without a failure before it asks, milliseconds: a lake that cannot write has nothing shipped again.
    pub ask_after_ms: u64,
    /// How often it puts its position again where nothing comes, milliseconds: a store that was emptied, or restored, is seen by that, and no lane is said
    /// to be in it any longer.
    pub look_ms: u64,
}

impl Default for LakeConfig {
    /// Ten seconds, two minutes, for good, a quarter of a minute, nobody; a minute, and a minute.
    fn default() -> Self {
        Self {
            flush_ms: 10_000,
            lateness_micros: 120_000_000,
            keep_micros: None,
            give_up_ms: 15_000,
            keepers: HashSet::new(),
            limits: WriterLimits::default(),
            lanes: None,
            missing: None,
            ask_after_ms: 60_000,
            look_ms: 60_000,
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
    /// Stretches of lanes that are missing before something that it has.
    pub gaps: usize,
    pub rows: u64,
    pub files: u64,
    /// Files that were merged and removed.
    pub tidied: u64,
    /// Messages that are no events. They are set aside by others.
    pub malformed: u64,
    /// How often something failed and was tried again.
    pub failures: u64,
    /// How often files could not be merged or removed. Nothing waits for it but room.
    pub untidied: u64,
    /// What keeps it from going on, if something does.
    pub trouble: Option<String>,
}

impl Stats for LakeStats {
    fn trouble(&mut self) -> &mut Option<String> {
        &mut self.trouble
    }
}

pub(crate) type Shared = aegis_threads::Shared<LakeStats>;

/// The running thread.
#[derive(Debug)]
pub struct LakeWorker(Worker<LakeStats>);

impl LakeWorker {
    /// Starts it. There is one for a lake.
    pub fn spawn(
        bus: Arc<dyn Bus>,
        store: Arc<dyn ObjectStore>,
        ring: KeyRing,
        clock: Arc<dyn Clock>,
        config: LakeConfig,
    ) -> Result<Self, LakeError> {
        let work = move |shared: Arc<Shared>| async move { run(bus, store, ring, clock, config, &shared).await };
        Ok(Self(Worker::spawn("aegis-lake", "the lake's thread", work)?))
    }

    /// Counters now.
    #[must_use]
    pub fn stats(&self) -> LakeStats {
        self.0.stats()
    }

    /// Writes what the bus has, as far as a few seconds reach, and ends; also where the store does not answer.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}
