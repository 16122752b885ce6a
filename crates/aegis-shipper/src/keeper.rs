//! A ledger as the keeper of what was shipped from it: an embedded bus then need not store an event that stands on the same disk already.
//! The ledger prunes none of its rows from then on.

use aegis_bus::{BusError, Held, Keeper, subject};
use aegis_ledger::Ledger;
use async_trait::async_trait;

/// Gives shipped events back, by their row.
#[derive(Clone, Debug)]
pub struct LedgerKeeper(Ledger);

impl LedgerKeeper {
    /// What `ledger` has, which keeps its rows from now on.
    #[must_use]
    pub fn new(ledger: Ledger) -> Self {
        ledger.keep_rows();
        Self(ledger)
    }
}

#[async_trait]
impl Keeper for LedgerKeeper {
    async fn read(&self, first: i64, count: usize) -> Result<Vec<Held>, BusError> {
        let last = first.saturating_add(i64::try_from(count).unwrap_or(i64::MAX)).saturating_sub(1);
        let mut held = Vec::new();
        let mut after = first.saturating_sub(1);
        loop {
            let items =
                self.0.read_kept(after, last, count).await.map_err(|e| BusError::Unavailable { reason: e.to_string() })?;
            let Some(item) = items.last() else { return Ok(held) };
            after = item.row;
            held.extend(items.into_iter().map(|item| Held {
                position: item.row,
                msg_id: item.sealed.event_id.to_string(),
                subject: subject::ase(&item.sealed.tenant_id, item.sealed.kind),
                payload: item.sealed.wire.into(),
            }));
        }
    }

    fn last(&self) -> i64 {
        self.0.last_row()
    }
}
