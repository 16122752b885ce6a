//! A tenant's receipts as they were published, lane by lane: for who follows lanes once more.
//! Promises the order of `seq`, and that nothing is among them that did not prove itself when it came.

use std::sync::Arc;

use aegis_model::{TenantId, Timestamp};
use aegis_store::HistoryRow;

use crate::control::Control;
use crate::problem::Problem;
use crate::wires::EVIDENCE_MISSING;

/// Receipts read at once.
const PAGE: u32 = 500;

/// A receipt as it was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedReceipt {
    pub seq: i64,
    pub wire: Arc<str>,
    /// When the bus had it; None where nobody wrote that down.
    pub bus_ts: Option<Timestamp>,
}

impl Control {
    /// The lanes in which a tenant has receipts of a time or later, each with the first `seq` of these.
    pub async fn lanes_since(&self, tenant: &TenantId, from: Timestamp) -> Result<Vec<(String, i64)>, Problem> {
        Ok(self.store.lanes_since(tenant, from).await?)
    }

    /// Some of the receipts of a tenant's lane behind a `seq`. Empty: there are no more.
    pub async fn receipts_of_lane(&self, tenant: &TenantId, lane: &str, after: i64) -> Result<Vec<PublishedReceipt>, Problem> {
        let rows = self.store.proved_of_lane(tenant, lane, after, PAGE).await?;
        let wires = self.wires(&rows).await?;
        let receipt = |(row, wire): (&HistoryRow, Option<Arc<str>>)| -> Result<PublishedReceipt, Problem> {
            let wire = wire.ok_or_else(|| gone(row))?;
            Ok(PublishedReceipt { seq: row.seq.unwrap_or_default(), wire, bus_ts: row.bus_ts })
        };
        rows.iter().zip(wires).map(receipt).collect()
    }
}

fn gone(row: &HistoryRow) -> Problem {
    let message = format!("whoever kept the event {} has it no more", row.event_id);
    Problem::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, EVIDENCE_MISSING, message)
}
