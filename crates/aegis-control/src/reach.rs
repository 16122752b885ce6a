//! What edges are told of how far their lanes have come, and the ledgers of this process: the history's heads, and what history and lake have for good. Promises
//! that an edge hears of its own lanes only, and that what it may prune for is signed, and said of now: the request's nonce stands in it.

use aegis_bus::feed::{ConfirmRequest, FeedPage, LaneRequest, MOST_LANES, MOST_NONCE};
use aegis_bus::subject;
use aegis_keys::sign_notice;
use aegis_model::{Confirmed, LaneConfirmed, TenantId};
use bytes::Bytes;

use crate::control::Control;
use crate::fleet::edge_of;

impl Control {
    /// How far the history has lanes of an edge. Only while it has all that was published some moments ago: else nobody knows what is lost.
    pub(crate) async fn lane_heads(&self, edge_id: &str, request: &LaneRequest) -> FeedPage {
        match self.heads(self.lanes_of(edge_id, &request.lanes)).await {
            Ok(heads) => {
                let entries = heads.into_iter().map(|(lane, head)| (lane, Bytes::from(head.to_string()), 0));
                FeedPage { entries: entries.collect(), ..FeedPage::default() }
            }
            Err(reason) => FeedPage::refused(reason),
        }
    }

    /// The same of lanes of a ledger in this process, at most `MOST_LANES`.
    pub async fn heads_here(&self, lanes: &[String]) -> Result<Vec<(String, i64)>, String> {
        self.heads(lanes_here(lanes)).await
    }

    async fn heads(&self, lanes: Vec<(TenantId, String)>) -> Result<Vec<(String, i64)>, String> {
        if !self.history_is_whole() {
            return Err("the history is behind".to_owned());
        }
        let mut heads = Vec::with_capacity(lanes.len());
        for (tenant, lane) in lanes {
            let known = self.store.history_lane(&tenant, &lane).await.map_err(|error| error.to_string())?;
            heads.push((lane, known.map_or(0, |known| known.head)));
        }
        Ok(heads)
    }

    /// Tells an edge how far history and lake have its lanes. Also while the lake stands still: it says since when.
    pub(crate) async fn confirm(&self, edge_id: &str, request: &ConfirmRequest) -> FeedPage {
        match self.confirmed(edge_id, request).await {
            Ok(()) => FeedPage::default(),
            Err(reason) => FeedPage::refused(reason),
        }
    }

    async fn confirmed(&self, edge_id: &str, request: &ConfirmRequest) -> Result<(), String> {
        if request.nonce.len() > MOST_NONCE {
            return Err("the nonce is too long".to_owned());
        }
        let lanes = self.lanes_of(edge_id, &request.confirm);
        let confirmed = self.reached(edge_id, &request.nonce, lanes).await?;
        let signed = sign_notice(&self.key, &confirmed).map_err(|error| error.to_string())?;
        self.bus.tell(&subject::lake(edge_id), Bytes::from(signed)).await.map_err(|error| error.to_string())
    }

    /// How far history and lake have lanes of a ledger in this process, at most `MOST_LANES`.
    pub async fn confirmed_here(&self, edge_id: &str, lanes: &[String]) -> Result<Confirmed, String> {
        self.reached(edge_id, "", lanes_here(lanes)).await
    }

    async fn reached(&self, edge_id: &str, nonce: &str, lanes: Vec<(TenantId, String)>) -> Result<Confirmed, String> {
        let Some(lake) = &self.config.lake else { return Err("there is no lake".to_owned()) };
        let Some(behind) = lake.behind() else { return Err("the lake does not know yet how far it is".to_owned()) };
        let mut confirmed = Vec::with_capacity(lanes.len());
        for (tenant, lane) in lanes {
            let Some(in_lake) = lake.reach(&tenant, &lane) else { continue };
            let in_history = self.store.history_lane(&tenant, &lane).await.map_err(|error| error.to_string())?;
            let history = in_history.map_or(0, |known| known.through());
            confirmed.push(LaneConfirmed { lane, history, lake: in_lake.through(), lake_head: in_lake.head });
        }
        let behind_ms = u64::try_from(behind.as_millis()).unwrap_or(u64::MAX);
        Ok(Confirmed { edge_id: edge_id.to_owned(), nonce: nonce.to_owned(), behind_ms, lanes: confirmed })
    }

    /// Up to where, behind `after` and no farther than `through`, the history holds the receipts of a lane itself, of some that follow: what it has by a name
    /// alone it reads from a ledger of this process, as over an embedded bus.
    pub async fn history_holds(&self, lane: &str, after: i64, through: i64, limit: u32) -> Result<i64, String> {
        let Some((tenant, _)) = of_lane(lane) else { return Ok(after) };
        let rows = self.store.proved_of_lane(&tenant, lane, after, limit).await.map_err(|error| error.to_string())?;
        let held = rows.iter().take_while(|row| row.wire.text().is_some());
        Ok(held.filter_map(|row| row.seq).filter(|seq| *seq <= through).last().unwrap_or(after))
    }

    /// Lanes that an edge asks about, and whose they are; those of others are left out.
    fn lanes_of(&self, edge_id: &str, lanes: &[String]) -> Vec<(TenantId, String)> {
        let its_own = |lane: &String| Some((self.tenant_of_lane(edge_id, lane)?, lane.clone()));
        lanes.iter().take(MOST_LANES).filter_map(its_own).collect()
    }

    /// The tenant of a lane, if it is one that the edge may seal.
    pub(crate) fn tenant_of_lane(&self, edge_id: &str, lane: &str) -> Option<TenantId> {
        let tenant = lane.split('.').next().filter(|tenant| self.serves(edge_id, tenant))?;
        (edge_of(lane) == edge_id).then(|| TenantId::new(tenant).ok()).flatten()
    }
}

/// A lane and the tenant that its name says: of a ledger of this process, which seals none for others.
fn of_lane(lane: &str) -> Option<(TenantId, String)> {
    let tenant = lane.split('.').next().unwrap_or_default();
    Some((TenantId::new(tenant).ok()?, lane.to_owned()))
}

fn lanes_here(lanes: &[String]) -> Vec<(TenantId, String)> {
    lanes.iter().take(MOST_LANES).filter_map(|lane| of_lane(lane)).collect()
}
