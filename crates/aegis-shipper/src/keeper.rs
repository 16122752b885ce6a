//! A ledger as the keeper of what was shipped from it: an embedded bus then need not store an event that stands on the same disk already.
//! Holds as long as the ledger keeps its rows; nothing prunes one that a bus still names.

use aegis_bus::{BusError, Held, Keeper, subject};
use aegis_ledger::Ledger;
use async_trait::async_trait;

/// Gives shipped events back, by their row.
#[derive(Clone, Debug)]
pub struct LedgerKeeper(Ledger);

impl LedgerKeeper {
    /// What `ledger` has.
    #[must_use]
    pub const fn new(ledger: Ledger) -> Self {
        Self(ledger)
    }
}

#[async_trait]
impl Keeper for LedgerKeeper {
    async fn read(&self, first: i64, count: usize) -> Result<Vec<Held>, BusError> {
        let end = first.saturating_add(i64::try_from(count).unwrap_or(i64::MAX));
        let mut held = Vec::new();
        let mut after = first.saturating_sub(1);
        while after < end - 1 {
            let left = usize::try_from(end - 1 - after).unwrap_or(usize::MAX);
            let items = self.0.read_kept(after, left).await.map_err(|e| BusError::Unavailable { reason: e.to_string() })?;
            let Some(last) = items.last() else { break };
            after = last.row;
            held.extend(items.into_iter().filter(|item| item.row < end).map(|item| Held {
                position: item.row,
                msg_id: item.sealed.event_id.to_string(),
                subject: subject::ase(&item.sealed.tenant_id, item.sealed.kind),
                payload: item.sealed.wire.into(),
            }));
        }
        Ok(held)
    }

    fn last(&self) -> i64 {
        self.0.last_row()
    }
}
