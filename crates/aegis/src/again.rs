//! An edge's answer to control that receipts of it are missing behind the bus: it ships them again, or says that it has pruned them, or lost them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_bus::{AskForMissing, Bus, BusError, subject};
use aegis_keys::{KeyRing, Scope, SigningKey, sign_notice, verify_notice};
use aegis_ledger::{Ledger, LedgerError};
use aegis_model::{Lost, Missing, Pruned};
use aegis_shipper::ShipAgain;
use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::confirmed::Meter;

/// Before the bus is listened to again.
const RETRY: Duration = Duration::from_secs(1);

/// Hears what control says is missing of the edge.
#[derive(Debug)]
pub(crate) struct Again {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) ring: KeyRing,
    pub(crate) edge_id: String,
    /// Signs what it answers.
    pub(crate) key: SigningKey,
    pub(crate) asked: Asked,
}

impl Again {
    /// Goes on until aborted.
    pub(crate) fn spawn(self) -> JoinHandle<()> {
        tokio::spawn(async move {
            loop {
                if let Err(error) = self.listen().await {
                    tracing::warn!(%error, "control cannot be heard");
                }
                tokio::time::sleep(RETRY).await;
            }
        })
    }

    async fn listen(&self) -> Result<(), BusError> {
        let mut asked = self.bus.hear(&subject::backfill(&self.edge_id)).await?;
        loop {
            let heard = asked.next().await?;
            match verify_notice::<Missing>(&self.ring, &heard.payload) {
                Ok((missing, signer)) if signer.scope == Scope::Any && missing.edge_id == self.edge_id => {
                    tracing::info!(
                        lane = missing.lane,
                        from = missing.from_seq,
                        to = missing.to_seq,
                        "receipts are asked for again"
                    );
                    self.answer(&missing).await?;
                }
                Ok(_) => tracing::warn!("somebody else's request for receipts; ignored"),
                Err(error) => tracing::warn!(%error, "a request for receipts that is not control's; ignored"),
            }
        }
    }

    /// Ships again what there is; of what is gone, control is told so.
    async fn answer(&self, missing: &Missing) -> Result<(), BusError> {
        for gone in self.asked.answer(&missing.lane, missing.from_seq, missing.to_seq).await {
            let (edge_id, lane) = (self.edge_id.clone(), missing.lane.clone());
            let signed = match gone {
                Gone::Pruned { through_seq } => sign_notice(&self.key, &Pruned { edge_id, lane, through_seq }),
                Gone::Lost { seq } => sign_notice(&self.key, &Lost { edge_id, lane, seq }),
            };
            match signed {
                Ok(signed) => self.bus.tell(&subject::ack(&self.edge_id), Bytes::from(signed)).await?,
                Err(error) => tracing::error!(%error, "what is gone from the ledger cannot be told"),
            }
        }
        Ok(())
    }
}

/// What of a ledger is asked for again, held against what it has.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) ledger: Ledger,
    pub(crate) shipper: ShipAgain,
    pub(crate) meter: Arc<Meter>,
}

/// What of it is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// The program pruned the lane up to here, since history and lake had it.
    Pruned { through_seq: i64 },
    /// Nobody pruned this one: it is the first that is missing.
    Lost { seq: i64 },
}

impl Asked {
    /// Ships again what there is; says what is not.
    pub(crate) async fn answer(&self, lane: &str, from_seq: i64, to_seq: i64) -> Vec<Gone> {
        let gone = self.gone(lane, from_seq, to_seq).await.unwrap_or_else(|error| {
            tracing::warn!(%error, lane, "what the ledger has of a lane cannot be read");
            Vec::new()
        });
        let mut from_seq = from_seq;
        for gone in &gone {
            match gone {
                Gone::Pruned { through_seq } => {
                    self.meter.pruned_asked.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(
                        lane,
                        from_seq,
                        through_seq,
                        "receipts are asked for that were pruned here, since control had confirmed that history and lake have them"
                    );
                    from_seq = from_seq.max(through_seq.saturating_add(1));
                }
                Gone::Lost { seq } => {
                    self.meter.lost_asked.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(
                        lane,
                        seq,
                        "a receipt is asked for that the ledger does not have and did not prune: its file was restored, replaced or changed"
                    );
                }
            }
        }
        if from_seq <= to_seq {
            self.shipper.ask(lane, from_seq, to_seq);
        }
        gone
    }

    async fn gone(&self, lane: &str, from_seq: i64, to_seq: i64) -> Result<Vec<Gone>, LedgerError> {
        let mut through_seq = self.ledger.pruned_through(lane).await?.unwrap_or(0);
        let mut lost = None;
        loop {
            let from_seq = from_seq.max(through_seq.saturating_add(1));
            if from_seq <= to_seq {
                lost = self.ledger.first_missing(lane, from_seq, to_seq).await?;
            }
            let Some(seq) = lost else { break };
            // What is pruned between two looks is not lost.
            match self.ledger.pruned_through(lane).await? {
                Some(further) if seq <= further => (through_seq, lost) = (further, None),
                _ => break,
            }
        }
        let pruned = (from_seq <= through_seq).then_some(Gone::Pruned { through_seq });
        Ok(pruned.into_iter().chain(lost.map(|seq| Gone::Lost { seq })).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aegis_bus::{EmbeddedBus, EmbeddedLimits};
    use aegis_ledger::{Draft, LedgerConfig};
    use aegis_model::{Clock, EventKind, Phase, SecurityEvent, SystemClock, TenantId, Timestamp};
    use aegis_shipper::{Shipper, ShipperConfig};
    use tokio::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_there_is_shipped_again_and_of_the_rest_it_is_said_whether_it_was_pruned() {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let key = SigningKey::from_seed(&[1; 32]);
        let config = || LedgerConfig::new(folder.path().join("ledger.db"), "e", "edge");
        let ledger = Ledger::open(config(), key, Arc::clone(&clock)).await.unwrap();
        let tenant = TenantId::new("a").unwrap();
        let bus = EmbeddedBus::open(&folder.path().join("bus.db"), EmbeddedLimits::default(), Arc::clone(&clock)).await.unwrap();
        let shipper = Shipper::spawn(ledger.clone(), bus, ShipperConfig::default()).unwrap();
        let mut lane = String::new();
        for _ in 0..99 {
            let event = SecurityEvent::new(tenant.clone(), "e", "edge", EventKind::AuthorizeDecision, clock.now());
            lane = ledger.submit(Draft::new(event, Phase::Decision)).await.unwrap().lane;
        }
        let begun = Instant::now();
        while shipper.backlog() > 0 {
            assert!(begun.elapsed() < PATIENCE, "it ships");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(ledger.prune_confirmed(&lane, 9, Timestamp::from_micros(i64::MAX)).await.unwrap(), 9);
        let meter = Arc::new(Meter::default());
        let asked = Asked { ledger, shipper: shipper.again(), meter: Arc::clone(&meter) };
        assert!(asked.answer(&lane, 20, 22).await.is_empty());
        assert_eq!(asked.answer(&lane, 3, 11).await, [Gone::Pruned { through_seq: 9 }]);
        assert_eq!(asked.answer(&lane, 3, 5).await, [Gone::Pruned { through_seq: 9 }]);
        assert_eq!(asked.answer(&lane, 9, 101).await, [Gone::Pruned { through_seq: 9 }, Gone::Lost { seq: 101 }]);
        assert_eq!(asked.answer("a.e.another", 1, 1).await, [Gone::Lost { seq: 1 }]);
        assert_eq!((meter.pruned_asked.load(Ordering::Relaxed), meter.lost_asked.load(Ordering::Relaxed)), (3, 2));
        // Three of the first, two of the second, and all behind the mark of the fourth.
        let again = shipper.meter();
        let begun = Instant::now();
        while again.again_total() < 3 + 2 + 91 {
            assert!(begun.elapsed() < PATIENCE, "{} are shipped again", again.again_total());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        shipper.stop().await;
        assert_eq!(again.again_total(), 3 + 2 + 91, "what was pruned is not asked of the shipper");
    }
}
