//! All that a ledger does about what lies behind the bus: it ships again what history and lake lack at the end of its lanes, and lets go of what both have.

use std::sync::Arc;
use std::time::Duration;

use aegis_ledger::Ledger;
use aegis_model::Clock;
use aegis_shipper::ShipAgain;
use tokio::task::JoinHandle;

use crate::confirm::{self, Confirms};
use crate::confirmed::{Confirmations, Meter};
use crate::prune::Pruning;

pub(crate) const MICROS_PER_DAY: i64 = 86_400_000_000;

/// What it takes.
#[derive(Debug)]
pub(crate) struct Confirming {
    pub(crate) asked: Arc<dyn Confirms>,
    pub(crate) ledger: Ledger,
    pub(crate) again: ShipAgain,
    /// What was shipped so long ago should be there.
    pub(crate) settled: Duration,
    /// How long receipts are kept that both have; 0: for good.
    pub(crate) keep_days: u64,
    /// The ledger is an edge's, whose start reads back what it decided.
    pub(crate) decides: bool,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) meter: Arc<Meter>,
}

impl Confirming {
    /// Its tasks, which go on until aborted.
    pub(crate) fn spawn(self) -> Vec<JoinHandle<()>> {
        let Self { asked, ledger, again, settled, keep_days, decides, clock, meter } = self;
        let mut tasks = vec![confirm::spawn(Arc::clone(&asked), ledger.clone(), again.clone(), settled)];
        let confirmations = Arc::new(Confirmations { asked, ledger, again, settled, meter });
        if keep_days > 0 {
            let keep_micros = i64::try_from(keep_days).unwrap_or(i64::MAX).saturating_mul(MICROS_PER_DAY);
            tasks.push(Pruning { confirmations: Arc::clone(&confirmations), clock, decides, keep_micros }.spawn());
        }
        tasks.push(confirmations.spawn());
        tasks
    }
}
