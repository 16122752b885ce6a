//! What history and lake have of an edge's receipts, and is older than a setting says, goes from its ledger: a few rows at a time, behind the action path,
//! each time for what control confirms of now. Nothing goes where control confirms nothing.

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
        let Some(newest) = ledger.latest(&[EventKind::AuthorizeDecision]).await? else { return Ok(()) };
        let before = old_before(newest, self.clock.now(), self.keep_micros);
        let lanes = ledger.old_lanes(before, after, MOST_LANES).await?;
        *after = if lanes.len() < MOST_LANES { String::new() } else { lanes.last().cloned().unwrap_or_default() };
        if lanes.is_empty() {
            return Ok(());
        }
        let Some(told) = self.confirmations.ask(&lanes).await else { return Ok(()) };
        let mut left = prunable(told, &lanes);
        for _ in 0..MOST_PRUNES {
            let Some((lane, through_seq)) = left.pop_front() else { break };
            let pruned = ledger.prune_confirmed(&lane, through_seq, before).await?;
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
mod tests {
    use aegis_model::LaneConfirmed;

    use super::*;

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
