//! How far somebody behind the bus has the lanes of an edge, and what control tells the edge of it.

use serde::{Deserialize, Serialize};

use crate::{Notice, TenantId};

/// How far somebody has a lane, counting proved receipts only: who forges one cannot say that another has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneReach {
    pub tenant_id: TenantId,
    pub lane: String,
    /// Its greatest `seq`.
    pub head: i64,
    /// Stretches before it that have not come, first and last `seq` of each, in order.
    pub missing: Vec<(i64, i64)>,
}

impl LaneReach {
    /// A lane of which nothing has come.
    #[must_use]
    pub const fn none(tenant_id: TenantId, lane: String) -> Self {
        Self { tenant_id, lane, head: 0, missing: Vec::new() }
    }

    /// Up to where nothing is missing.
    #[must_use]
    pub fn through(&self) -> i64 {
        self.missing.iter().map(|(from_seq, _)| from_seq.saturating_sub(1)).fold(self.head, i64::min)
    }
}

/// How far control's history and lake have a lane, for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneConfirmed {
    pub lane: String,
    /// The history has every receipt up to here.
    pub history: i64,
    /// The lake has every receipt up to here, in files that its manifests name.
    pub lake: i64,
    /// The greatest `seq` that the lake has: what is missing before it, it asks for itself.
    pub lake_head: i64,
}

/// What control confirms to an edge on `lake.<edge>`, each time that the edge asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    pub edge_id: String,
    /// The edge's word for this request: what was said at another time is no answer to it.
    pub nonce: String,
    /// How long ago the lake had everything that was published, milliseconds: of what came later nothing is said.
    pub behind_ms: u64,
    /// Of a lane that was asked for and is not here, nothing is known.
    pub lanes: Vec<LaneConfirmed>,
}

impl Notice for Confirmed {
    const SCHEMA: &'static str = "aegis-confirmed-1";
}

/// An edge's answer, on `ack.<edge>`, to who asks for receipts of a lane that it has pruned: history and lake had them, and they are not lost by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    pub edge_id: String,
    pub lane: String,
    /// Everything up to here was pruned.
    pub through_seq: i64,
}

impl Notice for Pruned {
    const SCHEMA: &'static str = "aegis-pruned-1";
    const MAX_BYTES: usize = 4096;
}

/// An edge's answer, on `ack.<edge>`, to who asks for a receipt of a lane that it sealed, did not prune, and does not have: nobody has it any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub edge_id: String,
    pub lane: String,
    /// The first that is not there of those that were asked for.
    pub seq: i64,
}

impl Notice for Lost {
    const SCHEMA: &'static str = "aegis-lost-1";
    const MAX_BYTES: usize = 4096;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_had_up_to_its_first_hole() {
        let lane = |head, missing: &[(i64, i64)]| LaneReach {
            head,
            missing: missing.to_vec(),
            ..LaneReach::none(TenantId::new("a").unwrap(), "a.e.1".into())
        };
        assert_eq!(lane(0, &[]).through(), 0);
        assert_eq!(lane(9, &[]).through(), 9);
        assert_eq!(lane(9, &[(4, 5), (8, 8)]).through(), 3);
        assert_eq!(lane(9, &[(1, 5)]).through(), 0);
    }
}
