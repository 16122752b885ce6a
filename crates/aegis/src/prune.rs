//! What history and lake have of a ledger's receipts, and is older than a setting says, goes from it: a few rows at a time, behind the action path,
//! each time for what control confirms of now. Nothing goes where control confirms nothing, nor what somebody reads from the ledger again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_bus::feed::MOST_LANES;
use aegis_ledger::LedgerError;
use aegis_model::{Clock, Confirmed, EventKind, Timestamp};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::confirmed::Confirmations;

/// Before the first turn.
const FIRST: Duration = Duration::from_secs(10);
/// Between two turns.
const EVERY: Duration = Duration::from_secs(60);
/// Prunes of one turn, of all lanes in turn, and what answers have the writer for between two.
const MOST_PRUNES: usize = 1000;
const PAUSE: Duration = Duration::from_millis(25);

/// Nothing goes for a lake that has stood still for longer, milliseconds: what it said before that may not be so any more.
const MOST_BEHIND_MS: u64 = 10 * 60 * 1000;

/// Prunes the ledger that confirmations are asked for.
#[derive(Debug)]
pub(crate) struct Pruning {
    pub(crate) confirmations: Arc<Confirmations>,
    pub(crate) clock: Arc<dyn Clock>,
    /// A start reads back what it decided for a day before the newest.
    pub(crate) decides: bool,
    /// How old receipts are that may go, microseconds.
    pub(crate) keep_micros: i64,
}

impl Pruning {
    /// Goes on until aborted.
    pub(crate) fn spawn(self) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut after = String::new();
            sleep(FIRST).await;
            loop {
                if let Err(error) = self.turn(&mut after).await {
                    tracing::warn!(%error, "the ledger could not be pruned; it is tried again");
                }
                sleep(EVERY).await;
            }
        })
    }

    /// Prunes some of the lanes after one, by name.
    async fn turn(&self, after: &mut String) -> Result<(), LedgerError> {
        let ledger = &self.confirmations.ledger;
        let now = self.clock.now();
        let newest = if self.decides { ledger.latest(&[EventKind::AuthorizeDecision]).await? } else { Some(now) };
        let Some(newest) = newest else { return Ok(()) };
        let before = old_before(newest, now, self.keep_micros);
        let lanes = ledger.old_lanes(before, after, MOST_LANES).await?;
        *after = if lanes.len() < MOST_LANES { String::new() } else { lanes.last().cloned().unwrap_or_default() };
        if lanes.is_empty() {
            return Ok(());
        }
        let Some(told) = self.confirmations.ask(&lanes).await else { return Ok(()) };
        let mut left = prunable(told, &lanes);
        for _ in 0..MOST_PRUNES {
            let Some((lane, through_seq)) = left.pop_front() else { break };
            let gone = ledger.pruned_through(&lane).await?.unwrap_or(0);
            let through = match self.confirmations.asked.may_go(&lane, gone, through_seq).await {
                Ok(through) => through,
                Err(error) => {
                    tracing::debug!(error, lane, "whether receipts may go cannot be said");
                    return Ok(());
                }
            };
            let pruned = ledger.prune_confirmed(&lane, through, before).await?;
            if pruned > 0 {
                self.confirmations.meter.pruned.fetch_add(pruned, Ordering::Relaxed);
                left.push_back((lane, through_seq));
                sleep(PAUSE).await;
            }
        }
        Ok(())
    }
}

/// Receipts from before this may go. A start reads decisions back for a day before the newest, whatever the time is by then: those stay.
fn old_before(newest: Timestamp, now: Timestamp, keep_micros: i64) -> Timestamp {
    newest.min(now).plus_micros(-keep_micros)
}

/// Of the lanes that were asked for, up to where both have them.
fn prunable(told: Confirmed, asked: &[String]) -> VecDeque<(String, i64)> {
    if told.behind_ms > MOST_BEHIND_MS {
        return VecDeque::new();
    }
    let lanes = told.lanes.into_iter().filter(|confirmed| asked.contains(&confirmed.lane));
    lanes.map(|confirmed| (confirmed.lane, confirmed.history.min(confirmed.lake))).filter(|(_, through)| *through > 0).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use aegis_bus::{EmbeddedBus, EmbeddedLimits};
    use aegis_keys::SigningKey;
    use aegis_ledger::{Draft, Ledger, LedgerConfig};
    use aegis_model::{LaneConfirmed, Phase, SecurityEvent, SystemClock, TenantId};
    use aegis_shipper::{Shipper, ShipperConfig};
    use async_trait::async_trait;
    use tokio::time::Instant;

    use super::*;
    use crate::confirm::Confirms;
    use crate::confirmed::Meter;

    /// Both have everything; somebody reads what is behind `free` from the ledger. None: nobody knows.
    #[derive(Debug)]
    struct Reads {
        free: Option<i64>,
    }

    #[async_trait]
    impl Confirms for Reads {
        async fn heads(&self, _lanes: &[String]) -> Result<Vec<(String, i64)>, String> {
            Err("nobody asks".to_owned())
        }

        async fn confirmed(&self, lanes: &[String]) -> Result<Confirmed, String> {
            let all = |lane: &String| LaneConfirmed { lane: lane.clone(), history: 90, lake: 95, lake_head: 95 };
            Ok(Confirmed { edge_id: "e".into(), nonce: String::new(), behind_ms: 0, lanes: lanes.iter().map(all).collect() })
        }

        async fn may_go(&self, _lane: &str, _after: i64, through: i64) -> Result<i64, String> {
            self.free.map(|free| through.min(free)).ok_or_else(|| "the store does not answer".to_owned())
        }
    }

    /// A ledger with a lane of so many receipts of a kind, all shipped; the lane, and the shipper.
    async fn shipped(folder: &Path, kind: EventKind, count: usize) -> (Ledger, String, Shipper) {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let config = LedgerConfig::new(folder.join("ledger.db"), "e", "edge");
        let ledger = Ledger::open(config, SigningKey::from_seed(&[1; 32]), Arc::clone(&clock)).await.unwrap();
        let bus = EmbeddedBus::open(&folder.join("bus.db"), EmbeddedLimits::default(), Arc::clone(&clock)).await.unwrap();
        let shipper = Shipper::spawn(ledger.clone(), bus, ShipperConfig::default()).unwrap();
        let mut lane = String::new();
        for _ in 1..count {
            let event = SecurityEvent::new(TenantId::new("a").unwrap(), "e", "edge", kind, clock.now());
            lane = ledger.submit(Draft::new(event, Phase::Decision)).await.unwrap().lane;
        }
        let begun = Instant::now();
        while shipper.backlog() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "it ships");
            sleep(Duration::from_millis(5)).await;
        }
        (ledger, lane, shipper)
    }

    async fn prune_once(ledger: &Ledger, shipper: &Shipper, free: Option<i64>, decides: bool) -> u64 {
        let meter = Arc::new(Meter::default());
        let confirmations = Arc::new(Confirmations {
            asked: Arc::new(Reads { free }),
            ledger: ledger.clone(),
            again: shipper.again(),
            settled: Duration::from_secs(30),
            meter: Arc::clone(&meter),
        });
        let pruning = Pruning { confirmations, clock: Arc::new(SystemClock), decides, keep_micros: 0 };
        pruning.turn(&mut String::new()).await.unwrap();
        meter.pruned.load(Ordering::Relaxed)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_read_from_the_ledger_again_stays_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let (ledger, lane, shipper) = shipped(folder.path(), EventKind::ToolOutcome, 100).await;
        assert_eq!(prune_once(&ledger, &shipper, Some(90), true).await, 0, "it decided nothing: nobody knows what a start reads");
        assert_eq!(prune_once(&ledger, &shipper, None, false).await, 0);
        assert_eq!(prune_once(&ledger, &shipper, Some(0), false).await, 0);
        assert_eq!(prune_once(&ledger, &shipper, Some(20), false).await, 20);
        assert_eq!(ledger.pruned_through(&lane).await.unwrap(), Some(20));
        assert_eq!(ledger.first_missing(&lane, 21, 100).await.unwrap(), None);
        assert_eq!(prune_once(&ledger, &shipper, Some(90), false).await, 16, "of an open lane as many stay as a start checks");
        shipper.stop().await;
    }

    #[test]
    fn what_a_start_reads_back_stays_however_late_it_starts() {
        let at = Timestamp::from_micros;
        assert_eq!(old_before(at(1000), at(1010), 100), at(900));
        assert_eq!(old_before(at(1000), at(9000), 100), at(900), "nobody called for long");
        assert_eq!(old_before(at(5000), at(1010), 100), at(910), "of a clock that was ahead then");
    }

    #[test]
    fn only_what_history_and_lake_both_have_may_go() {
        let lane = |lane: &str, history, lake, lake_head| LaneConfirmed { lane: lane.to_owned(), history, lake, lake_head };
        let lanes = vec![lane("a", 5, 9, 9), lane("b", 9, 3, 20), lane("c", 9, 0, 9), lane("d", 0, 9, 9), lane("e", 9, 9, 9)];
        let told = Confirmed { edge_id: "e".into(), nonce: "n".into(), behind_ms: MOST_BEHIND_MS, lanes };
        let asked = ["a", "b", "c", "d"].map(str::to_owned);
        let late = Confirmed { behind_ms: MOST_BEHIND_MS + 1, ..told.clone() };
        assert_eq!(prunable(told, &asked), [("a".to_owned(), 5), ("b".to_owned(), 3)], "up to the first hole of either");
        assert!(prunable(late, &asked).is_empty(), "of a lake that stands still nobody knows what it has by now");
    }
}
