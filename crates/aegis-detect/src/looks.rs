//! What rules were shown of each lane, counted receipt by receipt where they are shown it, and how far the lane was followed: for whoever holds that
//! against what was sealed. Promises (L-LOOKED) that a receipt that proved itself and was linked is counted once, however it came, and that the counts
//! go with the state of the rules: a checkpoint has both.

use std::collections::{BTreeMap, HashMap};

use aegis_ledger::verify::LaneHead;
use aegis_model::{EventId, SecurityEvent, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::asked::Asked;
use crate::follow::Running;
use crate::window::Hasher;

/// A lane as detection has followed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FollowedLane {
    pub lane: String,
    /// Seq, hash and time of the receipt that it was followed to.
    pub seq: i64,
    pub receipt_hash: String,
    pub ts: Timestamp,
    /// True if the lane was closed with that receipt.
    pub closed: bool,
    /// Ranges of seqs that the lane went on without, first and last of each.
    pub missing: Vec<(i64, i64)>,
    /// Receipts up to this seq were followed before they were counted.
    pub before: i64,
    /// Receipts behind that whose events rules were shown.
    pub in_time: i64,
    /// Those that came too late for that, and are caught up over the lake.
    pub late: i64,
    /// The others that are not missing: rules were shown their events as unproved, or not. Below 0, some were counted twice.
    pub unproved: i64,
    /// The sum of the ids of all events in `in_time` and `late`, as numbers of 128 bits, written as an id.
    pub event_id_sum: EventId,
}

/// Which of a tenant's lanes are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanesAsked {
    /// Of this edge alone.
    pub edge_id: Option<String>,
    pub offset: usize,
    pub limit: usize,
}

/// Where it is asked.
pub type LaneLooks = Asked<LanesAsked, Vec<FollowedLane>>;

impl LaneLooks {
    /// A tenant's lanes, by name. None where detection does not answer now.
    pub async fn of(&self, tenant: &TenantId, asked: LanesAsked) -> Option<Vec<FollowedLane>> {
        self.ask(tenant, asked).await
    }
}

/// What rules were shown of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Looked {
    /// The seq before the first that was counted.
    before: i64,
    in_time: i64,
    late: i64,
    event_id_sum: EventId,
}

impl Looked {
    fn add(&mut self, event_id: EventId, is_late: bool) {
        if is_late {
            self.late += 1;
        } else {
            self.in_time += 1;
        }
        self.event_id_sum = EventId::from_u128(self.event_id_sum.as_u128().wrapping_add(event_id.as_u128()));
    }

    /// The lane with this head, of which that was shown.
    fn of_lane(self, head: LaneHead<'_>) -> FollowedLane {
        let Self { before, in_time, late, event_id_sum } = self;
        let missing_since = head.missing.iter().filter(|(from, _)| *from > before).map(|(from, to)| to - from + 1).sum::<i64>();
        FollowedLane {
            lane: head.lane.to_owned(),
            seq: head.seq,
            receipt_hash: head.receipt_hash.to_owned(),
            ts: head.ts,
            closed: head.closed,
            missing: head.missing.to_vec(),
            before,
            in_time,
            late,
            unproved: head.seq - before - in_time - late - missing_since,
            event_id_sum,
        }
    }
}

/// The same by tenant and lane, as a checkpoint has it: a partition's part can be taken out.
pub(crate) type SavedLooks = BTreeMap<TenantId, BTreeMap<String, Looked>>;

/// What rules were shown, by tenant and lane. There is an entry for no lane but those that were followed.
#[derive(Debug, Default)]
pub(crate) struct Looks(HashMap<TenantId, BTreeMap<String, Looked>, Hasher>);

impl Looks {
    /// Rules are shown this event now, or it came too late for that. One that did not prove itself may name any lane, and is not counted.
    pub(crate) fn note(&mut self, event: &SecurityEvent, is_late: bool) {
        let (true, Some(lane), Some(seq)) = (event.verified, &event.lane, event.seq) else { return };
        if let Some(known) = self.0.get_mut(&event.tenant_id).and_then(|lanes| lanes.get_mut(lane)) {
            known.add(event.event_id, is_late);
            return;
        }
        let mut first = Looked { before: seq.saturating_sub(1), ..Looked::default() };
        first.add(event.event_id, is_late);
        self.0.entry(event.tenant_id.clone()).or_default().insert(lane.clone(), first);
    }

    /// A lane that is followed from here on: whatever comes of it is counted, proved or not.
    pub(crate) fn begin(&mut self, tenant: &TenantId, lane: &str) {
        self.0.entry(tenant.clone()).or_default().entry(lane.to_owned()).or_default();
    }

    /// Forgets lanes that are not followed any more.
    pub(crate) fn keep(&mut self, is_followed: impl Fn(&str) -> bool) {
        self.0.retain(|_, lanes| {
            lanes.retain(|lane, _| is_followed(lane));
            !lanes.is_empty()
        });
    }

    pub(crate) fn saved(&self) -> SavedLooks {
        self.0.iter().map(|(tenant, lanes)| (tenant.clone(), lanes.clone())).collect()
    }

    pub(crate) fn restored(saved: SavedLooks) -> Self {
        Self(saved.into_iter().collect())
    }

    /// A tenant's lane with this head. Of one of which nothing was counted, counting begins behind it.
    fn of_lane(&self, tenant: &TenantId, head: LaneHead<'_>) -> FollowedLane {
        let looked = self.0.get(tenant).and_then(|lanes| lanes.get(head.lane)).cloned();
        looked.unwrap_or_else(|| Looked { before: head.seq, ..Looked::default() }).of_lane(head)
    }
}

impl Running {
    /// A tenant's lanes as they were followed so far, by name.
    pub(crate) fn lanes_of(&self, tenant: &TenantId, asked: &LanesAsked) -> Vec<FollowedLane> {
        let prefix = asked.edge_id.as_ref().map_or_else(|| format!("{tenant}."), |edge_id| format!("{tenant}.{edge_id}."));
        let its = self.stage.heads().of_tenant(tenant.as_str()).filter(|head| head.lane.starts_with(&prefix));
        its.skip(asked.offset).take(asked.limit).map(|head| self.engine.looks.of_lane(tenant, head)).collect()
    }
}
