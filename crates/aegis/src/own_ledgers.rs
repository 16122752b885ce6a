//! The ledgers of control's own process, treated as an edge's is: what history and lake lack is shipped again, also at the end of a lane; what both have, and is old,
//! may go; of what is gone and asked for it is said whether it was pruned or lost. Control is asked here without the bus in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aegis_bus::AskForMissing;
use aegis_control::Control;
use aegis_ledger::{Ledger, PRUNE_ROWS};
use aegis_model::{Clock, Confirmed};
use aegis_shipper::ShipAgain;
use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::again::{Asked, Gone};
use crate::confirm::Confirms;
use crate::confirmed::Meter;
use crate::confirming::Confirming;

/// Requests that wait at most; whoever misses something asks again.
const MOST_WAITING: usize = 64;

/// One of them.
#[derive(Debug)]
pub(crate) struct OwnLedger {
    /// The producer in its lanes' names.
    pub(crate) edge_id: String,
    pub(crate) ledger: Ledger,
    pub(crate) again: ShipAgain,
    waiting: mpsc::Receiver<(String, i64, i64)>,
}

/// Where history, lake and detection ask for what they lack of it.
#[derive(Clone, Debug)]
struct Asks(mpsc::Sender<(String, i64, i64)>);

impl AskForMissing for Asks {
    fn ask(&self, lane: &str, from_seq: i64, to_seq: i64) {
        let _asked_again_if_full = self.0.try_send((lane.to_owned(), from_seq, to_seq));
    }
}

/// What holds of all of them.
#[derive(Clone, Debug)]
pub(crate) struct Behind {
    pub(crate) settled: Duration,
    pub(crate) keep_days: u64,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) meter: Arc<Meter>,
    /// Servers carry what is sealed: a file of this process loses nothing, and names rows.
    pub(crate) is_over_servers: bool,
}

impl OwnLedger {
    /// A ledger, and where it is asked: nobody answers before `spawn`.
    pub(crate) fn new(edge_id: String, ledger: Ledger, again: ShipAgain) -> (Self, Arc<dyn AskForMissing>) {
        let (asks, waiting) = mpsc::channel(MOST_WAITING);
        (Self { edge_id, ledger, again, waiting }, Arc::new(Asks(asks)))
    }

    /// Its tasks, which go on until aborted.
    pub(crate) fn spawn(self, control: &Arc<Control>, behind: &Behind) -> Vec<JoinHandle<()>> {
        let Self { edge_id, ledger, again, waiting } = self;
        let meter = Arc::clone(&behind.meter);
        let asked = Asked { ledger: ledger.clone(), shipper: again.clone(), meter: Arc::clone(&meter) };
        let mut tasks = vec![tokio::spawn(answer(edge_id.clone(), asked, Arc::clone(control), waiting))];
        if behind.is_over_servers {
            let decides = edge_id != aegis_model::CONTROL;
            let here = Arc::new(InProcess { control: Arc::clone(control), edge_id, has_warned: AtomicBool::new(false) });
            let confirming = Confirming {
                asked: here,
                ledger,
                again,
                settled: behind.settled,
                keep_days: behind.keep_days,
                decides,
                clock: Arc::clone(&behind.clock),
                meter,
            };
            tasks.extend(confirming.spawn());
        }
        tasks
    }
}

/// Answers what is asked for, one after the other.
async fn answer(edge_id: String, asked: Asked, control: Arc<Control>, mut waiting: mpsc::Receiver<(String, i64, i64)>) {
    while let Some((lane, from_seq, to_seq)) = waiting.recv().await {
        for gone in asked.answer(&lane, from_seq, to_seq).await {
            match gone {
                Gone::Pruned { through_seq } => control.receipts_pruned(&edge_id, &lane, through_seq),
                Gone::Lost { seq } => control.receipt_lost(&edge_id, &lane, seq),
            }
        }
    }
}

/// Control, in this process.
#[derive(Debug)]
struct InProcess {
    control: Arc<Control>,
    edge_id: String,
    has_warned: AtomicBool,
}

#[async_trait]
impl Confirms for InProcess {
    async fn heads(&self, lanes: &[String]) -> Result<Vec<(String, i64)>, String> {
        self.control.heads_here(lanes).await
    }

    async fn confirmed(&self, lanes: &[String]) -> Result<Confirmed, String> {
        self.control.confirmed_here(&self.edge_id, lanes).await
    }

    /// A history of this machine that was filled over an embedded bus reads what it named then from the ledger.
    async fn may_go(&self, lane: &str, after: i64, through: i64) -> Result<i64, String> {
        let held = self.control.history_holds(lane, after, through, PRUNE_ROWS).await?;
        if held == after && after < through && !self.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                lane,
                "the history reads receipts of this lane from the ledger, since both were filled over an embedded bus: `ledger.keep_days` prunes none of these"
            );
        }
        Ok(held)
    }
}
