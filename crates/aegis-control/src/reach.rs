//! What edges are told of how far their lanes have come: the history's heads, and what history and lake have for good. Promises that an edge hears of its
//! own lanes only, and that what it may prune for is signed, and said of now: the request's nonce stands in it.

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
        if !self.history_is_whole() {
            return FeedPage::refused("the history is behind");
        }
        let mut page = FeedPage::default();
        for lane in request.lanes.iter().take(MOST_LANES) {
            let Some(tenant) = self.tenant_of_lane(edge_id, lane) else { continue };
            match self.store.history_lane(&tenant, lane).await.map(|known| known.map_or(0, |known| known.head)) {
                Ok(head) => page.entries.push((lane.clone(), Bytes::from(head.to_string()), 0)),
                Err(error) => return FeedPage::refused(error.to_string()),
            }
        }
        page
    }

    /// Tells an edge how far history and lake have its lanes. Also while the lake stands still: it says since when.
    pub(crate) async fn confirm(&self, edge_id: &str, request: &ConfirmRequest) -> FeedPage {
        match self.confirmed(edge_id, request).await {
            Ok(()) => FeedPage::default(),
            Err(reason) => FeedPage::refused(reason),
        }
    }

    async fn confirmed(&self, edge_id: &str, request: &ConfirmRequest) -> Result<(), String> {
        let Some(lake) = &self.config.lake else { return Err("there is no lake".to_owned()) };
        let Some(behind) = lake.behind() else { return Err("the lake does not know yet how far it is".to_owned()) };
        if request.nonce.len() > MOST_NONCE {
            return Err("the nonce is too long".to_owned());
        }
        let mut lanes = Vec::new();
        for lane in request.confirm.iter().take(MOST_LANES) {
            let Some(tenant) = self.tenant_of_lane(edge_id, lane) else { continue };
            let Some(in_lake) = lake.reach(&tenant, lane) else { continue };
            let in_history = self.store.history_lane(&tenant, lane).await.map_err(|error| error.to_string())?;
            lanes.push(LaneConfirmed {
                lane: lane.clone(),
                history: in_history.map_or(0, |known| known.through()),
                lake: in_lake.through(),
                lake_head: in_lake.head,
            });
        }
        let behind_ms = u64::try_from(behind.as_millis()).unwrap_or(u64::MAX);
        let confirmed = Confirmed { edge_id: edge_id.to_owned(), nonce: request.nonce.clone(), behind_ms, lanes };
        let signed = sign_notice(&self.key, &confirmed).map_err(|error| error.to_string())?;
        self.bus.tell(&subject::lake(edge_id), Bytes::from(signed)).await.map_err(|error| error.to_string())
    }

    /// The tenant of a lane, if it is one that the edge may seal.
    pub(crate) fn tenant_of_lane(&self, edge_id: &str, lane: &str) -> Option<TenantId> {
        let tenant = lane.split('.').next().filter(|tenant| self.serves(edge_id, tenant))?;
        (edge_of(lane) == edge_id).then(|| TenantId::new(tenant).ok()).flatten()
    }
}
