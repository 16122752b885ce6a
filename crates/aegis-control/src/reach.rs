//! What edges are told of how far their lanes have come: the history's heads, and what history and lake have for good. Promises that an edge hears of its
//! own lanes only, and that what it may prune for is signed, and said of now: the request's nonce stands in it.

use aegis_bus::feed::{ConfirmRequest, FeedPage, LaneRequest, MOST_LANES, MOST_NONCE};
use aegis_bus::{Heard, subject};
use aegis_keys::{sign_notice, verify_notice};
use aegis_model::{Confirmed, LaneConfirmed, Pruned, TenantId};
use bytes::Bytes;

use crate::control::Control;
use crate::fleet::{check_speaker, edge_of};

/// Longest name of a lane that is remembered, bytes, and how many are. Of one that was forgotten, the edge says it again.
const MAX_LANE: usize = 256;
const MOST_PRUNED: usize = 10_000;

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

    /// An edge says that what it was asked for it has pruned: whoever lacks it is told, and it is asked for no more.
    pub(crate) fn take_pruned(&self, heard: &Heard) -> Result<(), String> {
        let (pruned, pinned) = verify_notice::<Pruned>(&self.ring, &heard.payload).map_err(|error| error.to_string())?;
        check_speaker(&pinned, &pruned.edge_id, &heard.subject)?;
        if pruned.lane.len() > MAX_LANE || self.tenant_of_lane(&pruned.edge_id, &pruned.lane).is_none() {
            return Err("it is about no lane of its own".to_owned());
        }
        let Pruned { edge_id, lane, through_seq } = pruned;
        {
            let mut known = self.pruned.lock();
            if known.len() >= MOST_PRUNED {
                known.clear();
            }
            known.insert(lane.clone(), through_seq);
        }
        self.metrics.pruned_asked.inc();
        if self.fleet.notices.may_warn(&edge_id) {
            tracing::error!(
                edge_id,
                lane,
                through_seq,
                "receipts are missing here that their edge pruned, since history and lake had them: restore history or lake from a backup"
            );
        }
        Ok(())
    }

    /// Up to where the edge of a lane is known to have pruned it.
    pub(crate) fn pruned_through(&self, lane: &str) -> i64 {
        self.pruned.lock().get(lane).copied().unwrap_or(0)
    }

    /// The tenant of a lane, if it is one that the edge may seal.
    fn tenant_of_lane(&self, edge_id: &str, lane: &str) -> Option<TenantId> {
        let tenant = lane.split('.').next().filter(|tenant| self.serves(edge_id, tenant))?;
        (edge_of(lane) == edge_id).then(|| TenantId::new(tenant).ok()).flatten()
    }
}
