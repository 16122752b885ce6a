//! What edges and control tell each other beside the streams: signs of life, and what is enforced. Each is signed by who says it.

use serde::{Deserialize, Serialize};

use crate::{ContainmentState, SourceTrust, TargetType, TenantId, Timestamp};

/// Something signed that is not an entry of the control feed. Its schema keeps one kind from being taken for another.
pub trait Notice {
    /// The `schema` of notices written by this version.
    const SCHEMA: &'static str;
    /// Longest notice of this kind that is looked at, bytes.
    const MAX_BYTES: usize = 256 * 1024;
}

/// Control's sign of life, with the time as control has it. Stands in the bucket `control` under the key `beat`. They are numbered: control's
/// clock may go back, and a later one counts all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    pub at: Timestamp,
    /// Greater with every start of control.
    pub start: i64,
    /// Counted from each start.
    pub n: u64,
}

impl Beat {
    /// True if control said this after `other`.
    #[must_use]
    pub const fn is_after(&self, other: &Self) -> bool {
        self.start > other.start || (self.start == other.start && self.n > other.n)
    }
}

impl Notice for Beat {
    const SCHEMA: &'static str = "aegis-beat-1";
}

/// What control tells edges of each other's runs, in the bucket `trust` under `<tenant>.<hash(run)>`: the strictest label so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLabel {
    pub tenant_id: TenantId,
    /// `run:<run id>`, or `agent:<agent id>` for an agent's calls without one.
    pub run: String,
    pub source_trust: SourceTrust,
    /// The run's last call.
    pub at: Timestamp,
}

impl Notice for RunLabel {
    const SCHEMA: &'static str = "aegis-run-label-1";
}

/// What a containment state is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    pub tenant_id: TenantId,
    pub target_type: TargetType,
    pub target_id: String,
}

/// A containment state that an edge enforces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforced {
    pub target: Target,
    /// The state's revision.
    pub revision: i64,
    /// Since when, by the edge's corrected clock.
    pub applied_at: Timestamp,
}

impl Enforced {
    /// That `state` is enforced since `applied_at`.
    #[must_use]
    pub fn of(state: &ContainmentState, applied_at: Timestamp) -> Self {
        let target =
            Target { tenant_id: state.tenant_id.clone(), target_type: state.target_type, target_id: state.target_id.clone() };
        Self { target, revision: state.revision, applied_at }
    }
}

/// An edge's acknowledgement of a containment state, told on `ack.<edge>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainmentAck {
    pub edge_id: String,
    /// Which start of the edge.
    pub boot: String,
    #[serde(flatten)]
    pub enforced: Enforced,
}

impl Notice for ContainmentAck {
    const SCHEMA: &'static str = "aegis-containment-ack-1";
}

/// What control asks an edge to ship again, on `backfill.<edge>`: receipts that it has sealed, and that nobody behind the bus has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub edge_id: String,
    pub lane: String,
    /// First and last, both included.
    pub from_seq: i64,
    pub to_seq: i64,
}

impl Notice for Missing {
    const SCHEMA: &'static str = "aegis-missing-1";
}

/// An edge's sign of life, told on `hb.<edge>` every two seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub edge_id: String,
    /// Names this start of the edge.
    pub boot: String,
    /// The start before it in the same data folder, which it took the place of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// The last part of the names of the lanes that this start opens: once such a lane has ended as it should, so has the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// Grows within a start.
    pub seq: u64,
    /// By its corrected clock.
    pub at: Timestamp,
    /// What its machine's clock is corrected by, microseconds; absent before it heard control.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_us: Option<i64>,
    /// True while its clock is off by more than a second after correction.
    pub clock_suspect: bool,
    /// How old its picture of the control feed is, seconds; absent before it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feed_age_s: Option<i64>,
    /// Receipts that it has not shipped yet.
    pub backlog: u64,
    /// What it began to enforce within the last half minute: an acknowledgement alone may be lost.
    pub enforced: Vec<Enforced>,
    /// The last of this start, which stops cleanly: it is to be missed by nobody.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

impl Notice for Heartbeat {
    const SCHEMA: &'static str = "aegis-heartbeat-1";
}
