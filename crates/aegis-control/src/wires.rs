//! The wire forms of the history's events: from the history, or from whoever on this machine keeps them.
//! Promises the very event that the history names, or to say that it is gone; never gives another one.

use std::sync::Arc;

use aegis_bus::Held;
use aegis_model::WireEvent;
use aegis_store::{HistoryRow, Wire};
use axum::http::StatusCode;

use crate::control::Control;
use crate::problem::Problem;

/// Code of the error that says so.
pub(crate) const EVIDENCE_MISSING: &str = "evidence_missing";

impl Control {
    /// The wire form of one event.
    pub(crate) async fn wire(&self, row: &HistoryRow) -> Result<Arc<str>, Problem> {
        let mut wires = self.wires(std::slice::from_ref(row)).await?;
        wires.pop().flatten().ok_or_else(|| {
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                EVIDENCE_MISSING,
                "the ledger no longer has this event, which the history names; restore the ledger's file",
            )
        })
    }

    /// The wire forms of events, in their order; None for one that whoever kept it no longer has.
    pub(crate) async fn wires(&self, rows: &[HistoryRow]) -> Result<Vec<Option<Arc<str>>>, Problem> {
        let mut wires: Vec<Option<Arc<str>>> = Vec::with_capacity(rows.len());
        let mut kept: Vec<(Arc<str>, i64, usize)> = Vec::new();
        for (place, row) in rows.iter().enumerate() {
            match &row.wire {
                Wire::Text(text) => wires.push(Some(Arc::clone(text))),
                Wire::Kept { by, position } => {
                    kept.push((Arc::clone(by), *position, place));
                    wires.push(None);
                }
            }
        }
        kept.sort_unstable();
        for run in kept.chunk_by(|a, b| a.0 == b.0 && a.1 + 1 == b.1) {
            let Some((by, first, _)) = run.first() else { continue };
            let held = match self.config.keepers.get(by) {
                Some(keeper) => keeper.read(*first, run.len()).await.map_err(Problem::internal)?,
                None => Vec::new(),
            };
            for (_, position, place) in run {
                let wire = held.iter().find(|held| held.position == *position).and_then(|held| text_of(held, &rows[*place]));
                if wire.is_none() {
                    tracing::error!(ledger = %by, row = position, "the history names an event that this ledger does not have; damaged, or its file replaced?");
                }
                wires[*place] = wire;
            }
        }
        Ok(wires)
    }
}

/// The text, if it is of the event that the history names, as it was sealed: a ledger that was replaced has others at its positions.
fn text_of(held: &Held, row: &HistoryRow) -> Option<Arc<str>> {
    let wire = WireEvent::read(&held.payload).ok()?;
    let event = wire.event().ok()?;
    let same = event.tenant_id == row.tenant_id && event.event_id == row.event_id && event.receipt_hash == row.receipt_hash;
    same.then(|| Arc::from(wire.text()))
}
