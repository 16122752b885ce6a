//! An edge's answer to control that receipts of it are missing behind the bus: it ships them again.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{AskForMissing, Bus, BusError, subject};
use aegis_keys::{KeyRing, Scope, verify_notice};
use aegis_model::Missing;
use aegis_shipper::ShipAgain;
use tokio::task::JoinHandle;

/// Before the bus is listened to again.
const RETRY: Duration = Duration::from_secs(1);

/// Hears what control says is missing of the edge, until aborted.
pub(crate) fn spawn(bus: Arc<dyn Bus>, ring: KeyRing, edge_id: String, again: ShipAgain) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            if let Err(error) = listen(&*bus, &ring, &edge_id, &again).await {
                tracing::warn!(%error, "control cannot be heard");
            }
            tokio::time::sleep(RETRY).await;
        }
    })
}

async fn listen(bus: &dyn Bus, ring: &KeyRing, edge_id: &str, again: &ShipAgain) -> Result<(), BusError> {
    let mut asked = bus.hear(&subject::backfill(edge_id)).await?;
    loop {
        let heard = asked.next().await?;
        match verify_notice::<Missing>(ring, &heard.payload) {
            Ok((missing, signer)) if signer.scope == Scope::Any && missing.edge_id == edge_id => {
                tracing::info!(lane = missing.lane, from = missing.from_seq, to = missing.to_seq, "receipts are asked for again");
                again.ask(&missing.lane, missing.from_seq, missing.to_seq);
            }
            Ok(_) => tracing::warn!("somebody else's request for receipts; ignored"),
            Err(error) => tracing::warn!(%error, "a request for receipts that is not control's; ignored"),
        }
    }
}
