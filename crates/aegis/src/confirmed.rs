//! Whether what was shipped is in the lake, in files that last. Control is asked round by round how far it has this edge's lanes, and what it lacks at the
//! end of one is shipped again; what it lacks in between, it asks for itself. A lake that stands still says since when, and has nothing shipped again.
//! Believes only what control signed about this edge, in answer to a request that waits: no word of yesterday's, and nobody else's.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aegis_bus::feed::MOST_LANES;
use aegis_bus::{AskForMissing, Bus, BusError, EdgeBus, Turns, subject};
use aegis_keys::{KeyRing, Scope, verify_notice};
use aegis_ledger::Ledger;
use aegis_model::{Confirmed, new_event_id};
use aegis_shipper::ShipAgain;
use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::confirm::{Confirms, EVERY, Lane, note_lanes, only_open};

/// How long an answer is waited for that control says it gave.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Lanes that one round asks about, of all tenants in turn.
const MOST_ASKED: usize = 4 * MOST_LANES;
/// Stretches that one round ships again: no more than half of what the shipper lets wait.
const MOST_AGAIN: usize = 32;
/// After so many rounds, an hour about, everything is asked again: a lake may have been lost, or restored from a backup.
const FORGET_EACH: u64 = 360;

/// What there is to be seen of it from outside.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Stretches that were shipped again for the lake.
    pub(crate) again: AtomicU64,
    /// What was told as control's and is not, or is no answer.
    pub(crate) refused: AtomicU64,
    /// Receipts that were pruned, since history and lake have them.
    pub(crate) pruned: AtomicU64,
    /// How often receipts were asked for again that were pruned.
    pub(crate) pruned_asked: AtomicU64,
    /// How often receipts were asked for again that are not there and were not pruned.
    pub(crate) lost_asked: AtomicU64,
}

/// Asks, and ships again.
#[derive(Debug)]
pub(crate) struct Confirmations {
    pub(crate) asked: Arc<dyn Confirms>,
    pub(crate) ledger: Ledger,
    pub(crate) again: ShipAgain,
    /// What was shipped so long ago should be there.
    pub(crate) settled: Duration,
    pub(crate) meter: Arc<Meter>,
}

impl Confirmations {
    /// Goes on until aborted.
    pub(crate) fn spawn(self: Arc<Self>) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut book = Book::default();
            for n in 0u64.. {
                sleep(EVERY).await;
                if n % FORGET_EACH == FORGET_EACH - 1 {
                    book.forget();
                }
                self.round(&mut book, only_open(n)).await;
            }
        })
    }

    async fn round(&self, book: &mut Book, only_open: bool) {
        let due = match note_lanes(&self.ledger, only_open, self.settled, &mut book.lanes).await {
            Ok(due) => due,
            Err(error) => return tracing::warn!(%error, "the lanes of the ledger cannot be read"),
        };
        let due = book.in_turn(due);
        let mut room = MOST_AGAIN;
        for asked in due.chunks(MOST_LANES) {
            let names: Vec<String> = asked.iter().map(|(lane, _)| lane.clone()).collect();
            let Some(told) = self.ask(&names).await else { break };
            let lacking = book.take(&told, asked, self.settled, room, Instant::now());
            self.meter.again.fetch_add(lacking.len() as u64, Ordering::Relaxed);
            room = room.saturating_sub(lacking.len());
            for (lane, from_seq, to_seq) in lacking {
                tracing::warn!(lane, from_seq, to_seq, "the lake does not have what was acknowledged; it is shipped again");
                self.again.ask(&lane, from_seq, to_seq);
            }
        }
    }

    /// What control confirms of these lanes now; None where it does not, or has no lake.
    pub(crate) async fn ask(&self, lanes: &[String]) -> Option<Confirmed> {
        self.asked.confirmed(lanes).await.inspect_err(|error| tracing::debug!(error, "control confirms nothing")).ok()
    }
}

/// Control, behind the bus.
#[derive(Debug)]
pub(crate) struct OverBus {
    pub(crate) bus: Arc<EdgeBus>,
    pub(crate) ring: KeyRing,
    pub(crate) edge_id: String,
    pub(crate) meter: Arc<Meter>,
}

#[async_trait]
impl Confirms for OverBus {
    async fn heads(&self, lanes: &[String]) -> Result<Vec<(String, i64)>, String> {
        self.bus.lane_heads(lanes).await.map_err(|error| error.to_string())
    }

    async fn confirmed(&self, lanes: &[String]) -> Result<Confirmed, String> {
        self.answer(lanes).await.map_err(|error| error.to_string())
    }

    /// History and lake are elsewhere, and have their own.
    async fn may_go(&self, _lane: &str, _after: i64, through: i64) -> Result<i64, String> {
        Ok(through)
    }
}

impl OverBus {
    async fn answer(&self, lanes: &[String]) -> Result<Confirmed, BusError> {
        // Nobody can tell it ahead, and have control sign today what it says tomorrow.
        let nonce = new_event_id().to_string();
        // Listened to for this answer alone: what others say meanwhile piles up nowhere.
        let mut hearing = self.bus.hear(&subject::lake(&self.edge_id)).await?;
        self.bus.confirm(lanes, &nonce).await?;
        let answer = async {
            loop {
                let heard = hearing.next().await?;
                match believed(&self.ring, &self.edge_id, &nonce, &heard.payload) {
                    Ok(told) => return Ok::<Confirmed, BusError>(told),
                    Err(reason) => {
                        self.meter.refused.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(reason, "a confirmation is not believed");
                    }
                }
            }
        };
        let lost = |_elapsed| BusError::Unavailable { reason: "what control confirmed was lost".to_owned() };
        timeout(ANSWER_WAIT, answer).await.map_err(lost)?
    }
}

/// What was told, if control signed it for this edge in answer to this request; else why it is not believed.
fn believed(ring: &KeyRing, edge_id: &str, nonce: &str, told: &[u8]) -> Result<Confirmed, String> {
    let (told, signer) = verify_notice::<Confirmed>(ring, told).map_err(|error| error.to_string())?;
    if signer.scope != Scope::Any {
        return Err("it is not signed by control".to_owned());
    }
    if told.edge_id != edge_id {
        return Err("it is about another edge".to_owned());
    }
    if told.nonce != nonce {
        return Err("it answers another request".to_owned());
    }
    Ok(told)
}

/// What is known of the lanes, and whose turn it is.
#[derive(Debug, Default)]
struct Book {
    lanes: HashMap<String, Lane>,
    /// The tenant that was asked about last.
    last: String,
}

impl Book {
    /// Forgets what was confirmed. Not of lanes that do not get on: they would be shipped again as often as at first, each hour anew.
    fn forget(&mut self) {
        self.lanes.retain(|_, lane| lane.stands());
    }

    /// As many of them as one round asks about: a lane of each tenant, then another of each, from the tenant behind the last one on.
    fn in_turn(&self, due: Vec<(String, i64)>) -> Vec<(String, i64)> {
        let mut turns = Turns::behind(Some(self.last.clone()));
        for lane in due {
            turns.put(tenant_of(&lane.0).to_owned(), lane);
        }
        turns.take(MOST_ASKED).collect()
    }

    /// Takes what is confirmed of what was asked; the stretches to ship again, at most so many. Of a lane that the answer leaves out, nothing is known.
    fn take(
        &mut self,
        told: &Confirmed,
        asked: &[(String, i64)],
        settled: Duration,
        most: usize,
        now: Instant,
    ) -> Vec<(String, i64, i64)> {
        let heads: HashMap<&str, i64> = told.lanes.iter().map(|lane| (lane.lane.as_str(), lane.lake_head)).collect();
        // Of what came since the lake last had everything, it says nothing.
        let settled = settled.saturating_add(Duration::from_millis(told.behind_ms));
        let mut lacking = Vec::new();
        for (lane, due) in asked {
            let (Some(head), Some(known)) = (heads.get(lane.as_str()), self.lanes.get_mut(lane)) else { continue };
            if *head < *due && lacking.len() >= most {
                // Its tenant's next turn comes.
                continue;
            }
            if let Some((from_seq, to_seq)) = known.confirm(*head, *due, settled, now) {
                self.last = tenant_of(lane).to_owned();
                lacking.push((lane.clone(), from_seq, to_seq));
            }
        }
        lacking
    }
}

fn tenant_of(lane: &str) -> &str {
    lane.split('.').next().unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use aegis_keys::{SigningKey, sign_notice};
    use aegis_model::LaneConfirmed;

    use super::*;

    const SETTLED: Duration = Duration::from_secs(30);

    fn told(behind_ms: u64, lanes: &[(&str, i64)]) -> Confirmed {
        let of = |(lane, head): &(&str, i64)| LaneConfirmed {
            lane: (*lane).to_owned(),
            history: *head,
            lake: *head,
            lake_head: *head,
        };
        Confirmed { edge_id: "e".into(), nonce: "n".into(), behind_ms, lanes: lanes.iter().map(of).collect() }
    }

    fn noted(book: &mut Book, lane: &str, shipped: i64, now: Instant) -> Option<i64> {
        book.lanes.entry(lane.to_owned()).or_default().note(shipped, SETTLED, now)
    }

    #[test]
    fn nothing_is_believed_but_control_s_answer_to_this_request() {
        let control = SigningKey::from_seed(&[1; 32]);
        let edge = SigningKey::from_seed(&[2; 32]);
        let ring = KeyRing::new([control.verifying_key()]);
        let of_edge = Scope::Edge { edge_id: "e".into(), tenants: BTreeSet::from(["a".to_owned()]) };
        ring.pin(edge.verifying_key(), of_edge);
        let answer = told(0, &[("a.e.1", 5)]);
        let signed = sign_notice(&control, &answer).unwrap();
        assert_eq!(believed(&ring, "e", "n", &signed), Ok(answer.clone()));
        // Said before, or of another edge.
        for (edge_id, nonce) in [("e", "m"), ("e", ""), ("f", "n")] {
            believed(&ring, edge_id, nonce, &signed).unwrap_err();
        }
        // Of a key that speaks for an edge, of a stranger's, or changed.
        for key in [&edge, &SigningKey::from_seed(&[3; 32])] {
            believed(&ring, "e", "n", &sign_notice(key, &answer).unwrap()).unwrap_err();
        }
        let forged = String::from_utf8(signed).unwrap().replace("\"lake\":5", "\"lake\":9");
        assert!(forged.contains("\"lake\":9"));
        believed(&ring, "e", "n", forged.as_bytes()).unwrap_err();
    }

    #[test]
    fn what_the_lake_lacks_is_shipped_again_unless_it_stands_still() {
        let (mut book, begun) = (Book::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        for lane in ["a.e.1", "a.e.2", "a.e.3"] {
            assert_eq!(noted(&mut book, lane, 9, at(0)), None);
        }
        let asked: Vec<(String, i64)> = ["a.e.1", "a.e.2", "a.e.3"].map(|lane| (lane.to_owned(), 9)).into();
        let has = [("a.e.1", 4), ("a.e.2", 9)];
        // It stood still before any of it was shipped: no answer of it has any of it shipped again, however long that lasts.
        for hours in 1..100 {
            let now = at(hours * 3600);
            assert!(book.take(&told(hours * 3_600_000, &has), &asked, SETTLED, 32, now).is_empty());
        }
        // It goes on, and has all that there was; of the third nothing is known.
        let now = at(100 * 3600);
        assert_eq!(book.take(&told(500, &has), &asked, SETTLED, 32, now), [("a.e.1".to_owned(), 5, 9)]);
        assert!(book.take(&told(500, &has), &asked, SETTLED, 32, now).is_empty(), "once");
        assert_eq!(noted(&mut book, "a.e.1", 9, now), None);
        // A lane that it never saw is shipped whole.
        assert_eq!(book.take(&told(0, &[("a.e.3", 0)]), &asked, SETTLED, 32, now), [("a.e.3".to_owned(), 1, 9)]);
    }

    #[test]
    fn what_is_forgotten_each_hour_is_asked_for_anew_and_ships_no_lane_sooner_that_does_not_get_on() {
        let (mut book, begun) = (Book::default(), Instant::now());
        let round = EVERY.as_secs();
        let (mut shipped, mut asked_of_whole) = (Vec::new(), Vec::new());
        for n in 1..8 * FORGET_EACH {
            let now = begun + Duration::from_secs(n * round);
            if n % FORGET_EACH == FORGET_EACH - 1 {
                book.forget();
            }
            let due: Vec<(String, i64)> = ["a.e.stands", "a.e.whole"]
                .into_iter()
                .filter_map(|lane| noted(&mut book, lane, 9, now).map(|seq| (lane.to_owned(), seq)))
                .collect();
            if due.iter().any(|(lane, _)| lane == "a.e.whole") {
                asked_of_whole.push(n);
            }
            for (lane, ..) in book.take(&told(0, &[("a.e.stands", 3), ("a.e.whole", 9)]), &due, SETTLED, 32, now) {
                assert_eq!(lane, "a.e.stands");
                shipped.push(n * round);
            }
        }
        assert_eq!(asked_of_whole.len(), 8, "once an hour: {asked_of_whole:?}");
        let longest = SETTLED.as_secs() * 128;
        assert!(shipped.windows(2).skip(8).all(|pair| pair[1] - pair[0] >= longest), "{shipped:?}");
        assert!(shipped.len() > 10, "{shipped:?}");
        // It gets on: what it has is forgotten like any other's.
        let now = begun + Duration::from_secs(100 * 3600);
        let due = [("a.e.stands".to_owned(), 9)];
        assert!(book.take(&told(0, &[("a.e.stands", 9)]), &due, SETTLED, 32, now).is_empty());
        book.forget();
        assert!(book.lanes.is_empty());
    }

    #[test]
    fn no_tenant_s_lanes_keep_another_s_waiting() {
        let (mut book, begun) = (Book::default(), Instant::now());
        let mut due: Vec<(String, i64)> = (0..5000).map(|n| (format!("a.e.{n:04}"), 1)).collect();
        due.push(("b.e.1".to_owned(), 1));
        due.push(("c.e.1".to_owned(), 1));
        let now = begun + 2 * SETTLED;
        for (lane, seq) in &due {
            noted(&mut book, lane, *seq, begun);
        }
        let mut shipped = Vec::new();
        for _ in 0..2 {
            let asked = book.in_turn(due.clone());
            assert_eq!(asked.len(), MOST_ASKED);
            let heads: Vec<(&str, i64)> = asked.iter().map(|(lane, _)| (lane.as_str(), 0)).collect();
            shipped.push(book.take(&told(0, &heads), &asked, SETTLED, 2, now));
        }
        let of = |round: usize| shipped[round].iter().map(|(lane, ..)| tenant_of(lane)).collect::<Vec<_>>();
        assert_eq!((of(0), of(1)), (vec!["a", "b"], vec!["c", "a"]));
    }
}
