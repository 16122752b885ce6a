//! The wire forms of the history's events: from the history, or from whoever on this machine keeps them.
//! Promises the very event that the history names, or an error; never leaves one out.

use std::sync::Arc;

use aegis_bus::Held;
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
        wires.pop().ok_or_else(|| Problem::internal("no wire form for an event"))
    }

    /// The wire forms of events, in their order.
    pub(crate) async fn wires(&self, rows: &[HistoryRow]) -> Result<Vec<Arc<str>>, Problem> {
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
            let keeper = self.config.keepers.get(by).ok_or_else(|| not_kept(by, *first))?;
            let held = keeper.read(*first, run.len()).await.map_err(Problem::internal)?;
            for (_, position, place) in run {
                let wire = held.iter().find(|held| held.position == *position).and_then(|held| text_of(held, &rows[*place]));
                wires[*place] = Some(wire.ok_or_else(|| not_kept(by, *position))?);
            }
        }
        wires.into_iter().map(|wire| wire.ok_or_else(|| Problem::internal("an event without a wire form"))).collect()
    }
}

/// The text, if it is of the event that the history names: a ledger that was replaced has others at its positions.
fn text_of(held: &Held, row: &HistoryRow) -> Option<Arc<str>> {
    let same = held.msg_id == row.event_id.to_string();
    std::str::from_utf8(&held.payload).ok().filter(|_| same).map(Arc::from)
}

fn not_kept(by: &str, position: i64) -> Problem {
    tracing::error!(
        ledger = by,
        row = position,
        "the history names an event that this ledger does not have; was its file replaced?"
    );
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        EVIDENCE_MISSING,
        "the ledger no longer has an event that the history names; restore its file",
    )
}
