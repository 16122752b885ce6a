//! An edge's answer to control that receipts of it are missing behind the bus: it ships them again, or says that it has pruned them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_bus::{AskForMissing, Bus, BusError, subject};
use aegis_keys::{KeyRing, Scope, SigningKey, sign_notice, verify_notice};
use aegis_ledger::Ledger;
use aegis_model::{Missing, Pruned};
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
    pub(crate) ledger: Ledger,
    pub(crate) shipper: ShipAgain,
    pub(crate) meter: Arc<Meter>,
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

    /// Ships again what there is; of what was pruned, control is told so.
    async fn answer(&self, missing: &Missing) -> Result<(), BusError> {
        let pruned = self.ledger.pruned_through(&missing.lane).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "whether receipts were pruned cannot be read");
            None
        });
        let through_seq = pruned.unwrap_or(0);
        if missing.from_seq <= through_seq {
            self.meter.pruned_asked.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                lane = missing.lane,
                from = missing.from_seq,
                through_seq,
                "receipts are asked for that were pruned here, since control had confirmed that history and lake have them"
            );
            let told = Pruned { edge_id: self.edge_id.clone(), lane: missing.lane.clone(), through_seq };
            match sign_notice(&self.key, &told) {
                Ok(signed) => self.bus.tell(&subject::ack(&self.edge_id), Bytes::from(signed)).await?,
                Err(error) => tracing::error!(%error, "what was pruned cannot be told"),
            }
        }
        let from_seq = missing.from_seq.max(through_seq.saturating_add(1));
        if from_seq <= missing.to_seq {
            self.shipper.ask(&missing.lane, from_seq, missing.to_seq);
        }
        Ok(())
    }
}
