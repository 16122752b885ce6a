//! What ledgers say of receipts that are asked for again and are not there: pruned, since history and lake had them, or lost. Promises that who lacks a receipt
//! that was pruned is told so and asks for it no more; that of one that was lost the lane's tenant is told, by an event with a receipt, once an hour for an edge;
//! and that no edge's words take the place of another's.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::Heard;
use aegis_keys::{Pinned, verify_notice};
use aegis_ledger::Draft;
use aegis_model::{EventKind, Lost, Phase, Pruned, TenantId};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::control::Control;
use crate::fleet::check_speaker;
use crate::problem::Problem;
use crate::record::derived_event_id;

/// Longest name of a lane that is remembered, bytes, and how many are of one edge. Of one that was forgotten, the edge says it again.
const MAX_LANE: usize = 256;
const MOST_PRUNED: usize = 4096;

/// Reason of the event.
const RECEIPTS_LOST: &str = "receipts_lost";

/// The time in which a tenant is told once of an edge.
const ONCE_IN_MICROS: i64 = 3_600_000_000;

/// Before an event is sealed that could not be.
const RETRY: Duration = Duration::from_secs(5);

/// What was said.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    /// By edge and lane, up to where it was pruned.
    pruned: Mutex<HashMap<String, HashMap<String, i64>>>,
    /// By edge and tenant, what the tenant is to be told: the first that was said.
    lost: Mutex<BTreeMap<(String, TenantId), Lost>>,
    rung: Notify,
}

impl Gone {
    fn note_pruned(&self, edge_id: &str, lane: String, through_seq: i64) {
        let mut pruned = self.pruned.lock();
        let of_edge = pruned.entry(edge_id.to_owned()).or_default();
        if of_edge.len() >= MOST_PRUNED && !of_edge.contains_key(&lane) {
            of_edge.clear();
        }
        of_edge.insert(lane, through_seq);
    }

    /// Up to where an edge says that it has pruned a lane of its own.
    pub(crate) fn pruned_through(&self, edge_id: &str, lane: &str) -> i64 {
        self.pruned.lock().get(edge_id).and_then(|lanes| lanes.get(lane)).copied().unwrap_or(0)
    }

    fn note_lost(&self, tenant: TenantId, lost: Lost) {
        self.lost.lock().entry((lost.edge_id.clone(), tenant)).or_insert(lost);
        self.rung.notify_one();
    }
}

impl Control {
    /// An edge says that what it was asked for it does not have.
    pub(crate) fn take_gone(&self, heard: &Heard) -> Result<(), String> {
        match verify_notice::<Pruned>(&self.ring, &heard.payload) {
            Ok((pruned, pinned)) => {
                self.check_gone(&pinned, heard, &pruned.edge_id, &pruned.lane)?;
                self.receipts_pruned(&pruned.edge_id, &pruned.lane, pruned.through_seq);
            }
            Err(error) => {
                let lost = verify_notice::<Lost>(&self.ring, &heard.payload);
                let (lost, pinned) = lost.map_err(|other| format!("{error}; {other}"))?;
                self.check_gone(&pinned, heard, &lost.edge_id, &lost.lane)?;
                self.receipt_lost(&lost.edge_id, &lost.lane, lost.seq);
            }
        }
        Ok(())
    }

    /// Whether whoever said it speaks for the lane.
    fn check_gone(&self, pinned: &Pinned, heard: &Heard, edge_id: &str, lane: &str) -> Result<(), String> {
        check_speaker(pinned, edge_id, &heard.subject)?;
        let is_its_own = lane.len() <= MAX_LANE && self.tenant_of_lane(edge_id, lane).is_some();
        if is_its_own { Ok(()) } else { Err("it is about no lane of its own".to_owned()) }
    }

    /// Whoever lacks what a ledger has pruned is told, and it is asked for no more where the ledger is an edge's.
    pub fn receipts_pruned(&self, edge_id: &str, lane: &str, through_seq: i64) {
        self.gone.note_pruned(edge_id, lane.to_owned(), through_seq);
        self.metrics.pruned_asked.inc();
        if self.fleet.notices.may_warn(edge_id) {
            tracing::error!(
                edge_id,
                lane,
                through_seq,
                "receipts are missing here that their ledger pruned, since history and lake had them: restore history or lake from a backup"
            );
        }
    }

    /// What a ledger has lost, and nobody else has, the lane's tenant is told. The lane is one that whoever says it sealed.
    pub fn receipt_lost(&self, edge_id: &str, lane: &str, seq: i64) {
        let Ok(tenant) = TenantId::new(lane.split('.').next().unwrap_or_default()) else { return };
        self.metrics.lost_asked.inc();
        if self.fleet.notices.may_warn(edge_id) {
            tracing::error!(
                edge_id,
                lane,
                seq,
                "a receipt is missing here that its ledger does not have either, and did not prune: it is lost, or was taken away"
            );
        }
        self.gone.note_lost(tenant, Lost { edge_id: edge_id.to_owned(), lane: lane.to_owned(), seq });
    }

    async fn tell_lost(&self, tenant: &TenantId, lost: &Lost) -> Result<(), Problem> {
        let Lost { edge_id, lane, seq } = lost;
        let mut event = self.event(tenant, EventKind::ConfigChanged);
        let hour = event.ts.as_micros().div_euclid(ONCE_IN_MICROS);
        event.event_id = derived_event_id(EventKind::ConfigChanged, tenant, &format!("{RECEIPTS_LOST}/{edge_id}/{hour}"));
        event.reason = Some(RECEIPTS_LOST.to_owned());
        event.resource = Some(lane.clone());
        event.attributes = Some(json!({"edge_id": edge_id, "seq": seq}).to_string());
        let mut draft = Draft::new(event, Phase::Config);
        draft.detail =
            Some(json!({"change": RECEIPTS_LOST, "edge_id": edge_id, "lane": lane, "seq": seq, "by": {"type": "edge"}}));
        self.record_once(draft).await.map(drop)
    }
}

/// Tells tenants what is lost, until stopped. One whose lane cannot be sealed keeps no other waiting.
pub(crate) async fn run(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = control.gone.rung.notified() => {}
            _ = stop.changed() => return,
        }
        let waiting = std::mem::take(&mut *control.gone.lost.lock());
        let mut has_failed = false;
        for ((edge_id, tenant), lost) in waiting {
            if let Err(problem) = control.tell_lost(&tenant, &lost).await {
                tracing::warn!(code = problem.code, %tenant, edge_id, "that a receipt is lost cannot be sealed yet");
                control.gone.note_lost(tenant, lost);
                has_failed = true;
            }
        }
        if has_failed {
            tokio::select! {
                () = sleep(RETRY) => {}
                _ = stop.changed() => return,
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_edge_s_words_take_the_place_of_another_s() {
        let gone = Gone::default();
        gone.note_pruned("edge-1", "a.edge-1.1".to_owned(), 7);
        gone.note_pruned("edge-2", "a.edge-1.1".to_owned(), 99);
        for n in 0..3 * MOST_PRUNED {
            gone.note_pruned("edge-2", format!("a.edge-2.{n}"), 9);
        }
        assert_eq!(gone.pruned_through("edge-1", "a.edge-1.1"), 7);
        assert!(gone.pruned.lock()["edge-2"].len() <= MOST_PRUNED);
        let last = format!("a.edge-2.{}", 3 * MOST_PRUNED - 1);
        assert_eq!((gone.pruned_through("edge-2", &last), gone.pruned_through("edge-3", &last)), (9, 0));
    }

    #[test]
    fn a_tenant_is_told_of_the_first_receipt_that_an_edge_lost() {
        let (gone, tenant) = (Gone::default(), TenantId::new("a").unwrap());
        for (edge_id, seq) in [("edge-1", 4), ("edge-1", 9), ("edge-2", 2)] {
            let lost = Lost { edge_id: edge_id.to_owned(), lane: format!("a.{edge_id}.1"), seq };
            gone.note_lost(tenant.clone(), lost);
        }
        let told: Vec<i64> = gone.lost.lock().values().map(|lost| lost.seq).collect();
        assert_eq!(told, [4, 2]);
    }
}
