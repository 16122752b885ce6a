//! Whether what was shipped has arrived in the history: an acknowledgement says that a server had it, and the server may lose it. So control is asked how
//! far its history has each lane, and what it lacks at the end of one is shipped again. What it lacks in between, it asks for itself. Of the lake,
//! see `confirmed`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::AskForMissing;
use aegis_bus::feed::MOST_LANES;
use aegis_ledger::{Ledger, LedgerError};
use aegis_model::Confirmed;
use aegis_shipper::ShipAgain;
use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Time between two rounds.
pub(crate) const EVERY: Duration = Duration::from_secs(10);
/// One round in so many looks at lanes that have ended too; the others at open ones.
const ALL_LANES_EACH: u64 = 30;
/// Longest wait before a lane that does not get on is shipped again: so many times as long as at first.
const MOST_WAIT: u32 = 128;
/// Lanes that are read at a time.
const PAGE: usize = 1000;

/// Who says how far history and lake have the lanes of a ledger: control, over the bus or in this process.
#[async_trait]
pub(crate) trait Confirms: Send + Sync + std::fmt::Debug {
    /// How far the history has these lanes, at most `MOST_LANES`; why that cannot be said.
    async fn heads(&self, lanes: &[String]) -> Result<Vec<(String, i64)>, String>;

    /// What history and lake have of them for good.
    async fn confirmed(&self, lanes: &[String]) -> Result<Confirmed, String>;

    /// Up to where, behind `after` and no farther than `through`, nobody reads what both have of a lane from the ledger again; of some that follow.
    async fn may_go(&self, lane: &str, after: i64, through: i64) -> Result<i64, String>;
}

/// Whether a round, counted from 0, looks at open lanes alone. Lanes of earlier starts are noted at once, and again when they should have arrived.
pub(crate) const fn only_open(round: u64) -> bool {
    round > 8 && !round.is_multiple_of(ALL_LANES_EACH)
}

/// What is known of a lane.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lane {
    /// Whoever is asked has it up to here.
    confirmed: i64,
    /// It was shipped up to here, as of then.
    noted: Option<(i64, Instant)>,
    /// How often it was shipped again since it got on last.
    tries: u32,
}

impl Lane {
    /// Notes how far the lane is shipped; the seq that should have arrived by now, if any is to be asked for. What was shipped `settled` ago should have,
    /// and what is shipped again twice as long each time that nothing of it came.
    pub(crate) fn note(&mut self, shipped: i64, settled: Duration, now: Instant) -> Option<i64> {
        let (seq, since) = *self.noted.get_or_insert((shipped, now));
        if seq <= self.confirmed {
            self.noted = (shipped > self.confirmed).then_some((shipped, now));
            return None;
        }
        let times = 1u32.checked_shl(self.tries.saturating_sub(1)).map_or(MOST_WAIT, |times| times.clamp(1, MOST_WAIT));
        let wait = settled.saturating_mul(times);
        (now.saturating_duration_since(since) >= wait).then_some(seq)
    }

    /// Whether it was shipped again, and has not got on since: it is asked for in any case, and ever more seldom.
    pub(crate) const fn stands(&self) -> bool {
        self.tries > 0
    }

    /// Takes how far whoever was asked has it; the stretch that is to be shipped again. Nothing of what was shipped less than `settled` ago.
    pub(crate) fn confirm(&mut self, head: i64, due: i64, settled: Duration, now: Instant) -> Option<(i64, i64)> {
        if head > self.confirmed {
            (self.confirmed, self.tries) = (head, 0);
        }
        if head >= due {
            (self.noted, self.tries) = (None, 0);
            return None;
        }
        if self.noted.is_none_or(|(_, since)| now.saturating_duration_since(since) < settled) {
            return None;
        }
        // It is shipped again, and has as long to arrive.
        self.noted = Some((due, now));
        self.tries = self.tries.saturating_add(1);
        Some((head + 1, due))
    }
}

/// Asks, until aborted. What was shipped `settled` ago should have arrived.
pub(crate) fn spawn(asked: Arc<dyn Confirms>, ledger: Ledger, again: ShipAgain, settled: Duration) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut lanes = HashMap::new();
        for n in 0u64.. {
            sleep(EVERY).await;
            round(&*asked, &ledger, &again, only_open(n), settled, &mut lanes).await;
        }
    })
}

/// Notes how far the ledger's lanes are shipped, or the open ones; those of which something should have arrived by now, and up to where.
pub(crate) async fn note_lanes(
    ledger: &Ledger,
    only_open: bool,
    settled: Duration,
    lanes: &mut HashMap<String, Lane>,
) -> Result<Vec<(String, i64)>, LedgerError> {
    let (mut after, now, shipped) = (String::new(), Instant::now(), ledger.shipped_row().await);
    let mut due = Vec::new();
    loop {
        let ends = ledger.lane_ends(shipped, only_open, &after, PAGE).await?;
        let Some((last, _)) = ends.last() else { return Ok(due) };
        after.clone_from(last);
        for (lane, end) in ends {
            if let Some(seq) = lanes.entry(lane.clone()).or_default().note(end, settled, now) {
                due.push((lane, seq));
            }
        }
    }
}

async fn round(
    confirms: &dyn Confirms,
    ledger: &Ledger,
    again: &ShipAgain,
    only_open: bool,
    settled: Duration,
    lanes: &mut HashMap<String, Lane>,
) {
    let due = match note_lanes(ledger, only_open, settled, lanes).await {
        Ok(due) => due,
        Err(error) => return tracing::warn!(%error, "the lanes of the ledger cannot be read"),
    };
    let now = Instant::now();
    for asked in due.chunks(MOST_LANES) {
        let names: Vec<String> = asked.iter().map(|(lane, _)| lane.clone()).collect();
        let heads: HashMap<String, i64> = match confirms.heads(&names).await {
            Ok(heads) => heads.into_iter().collect(),
            Err(error) => return tracing::debug!(%error, "control does not say how far its history is"),
        };
        for (lane, seq) in asked {
            let (Some(head), Some(known)) = (heads.get(lane), lanes.get_mut(lane)) else { continue };
            if let Some((from_seq, to_seq)) = known.confirm(*head, *seq, settled, now) {
                tracing::warn!(lane, from_seq, to_seq, "what was acknowledged has not arrived; it is shipped again");
                again.ask(lane, from_seq, to_seq);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLED: Duration = Duration::from_secs(30);

    #[test]
    fn a_lane_is_asked_for_when_it_should_have_arrived_and_shipped_again_from_what_is_there() {
        let (mut lane, begun) = (Lane::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(lane.note(5, SETTLED, at(0)), None);
        assert_eq!(lane.note(9, SETTLED, at(29)), None);
        assert_eq!(lane.note(9, SETTLED, at(30)), Some(5), "what was there half a minute ago");
        assert_eq!(lane.confirm(3, 5, SETTLED, at(30)), Some((4, 5)));
        assert_eq!(lane.note(9, SETTLED, at(40)), None, "it has as long to arrive again");
        assert_eq!(lane.note(9, SETTLED, at(60)), Some(5));
        assert_eq!(lane.confirm(9, 5, SETTLED, at(60)), None);
        assert_eq!(lane.note(9, SETTLED, at(70)), None);
        assert_eq!(lane.note(9, SETTLED, at(170)), None, "all of it is confirmed");
        assert_eq!(lane.note(10, SETTLED, at(180)), None);
        assert_eq!(lane.note(10, SETTLED, at(210)), Some(10));
        assert_eq!(lane.confirm(9, 10, 2 * SETTLED, at(210)), None, "whoever is asked may be that far behind");
        assert_eq!(lane.confirm(9, 10, 2 * SETTLED, at(240)), Some((10, 10)));
    }

    #[test]
    fn a_lane_that_does_not_get_on_is_shipped_again_ever_more_seldom() {
        let (mut lane, begun) = (Lane::default(), Instant::now());
        let mut shipped = Vec::new();
        for second in 0..40_000u64 {
            let now = begun + Duration::from_secs(second);
            if let Some(due) = lane.note(7, SETTLED, now)
                && lane.confirm(0, due, SETTLED, now).is_some()
            {
                shipped.push(second);
            }
        }
        assert_eq!(shipped[..5], [30, 60, 120, 240, 480]);
        assert!(shipped.windows(2).all(|pair| pair[1] - pair[0] <= 30 * u64::from(MOST_WAIT)), "{shipped:?}");
        // It gets on: soon again.
        let last = begun + Duration::from_secs(50_000);
        assert_eq!(lane.note(7, SETTLED, last), Some(7));
        assert_eq!(lane.confirm(3, 7, SETTLED, last), Some((4, 7)));
        assert_eq!(lane.note(7, SETTLED, last + SETTLED), Some(7));
    }
}
