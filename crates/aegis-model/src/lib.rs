//! The vocabulary of AegisAgent: the types that cross crate, process and language boundaries, and their invariants.
//! Owns names, wire shapes and orders. No I/O, no policy, no cryptography beyond naming it.

pub mod alert;
pub mod clock;
mod columns;
pub mod containment;
pub mod decision;
pub mod event;
pub mod fleet;
pub mod ids;
pub mod lanes;
pub mod limits;
pub mod reading;
pub mod receipt;
pub mod registry;
pub mod repeated;
pub mod request;
pub mod sealer;
pub mod signed;
pub mod trust;
pub mod unmarked;
pub mod wire;

pub use alert::{
    Alert, AlertRecord, CommonRuleRecord, CommonRuleWarmRecord, Incident, IncidentStatus, Retraction, RuleInSet, RuleMode,
    RuleRecord, RuleWarmRecord, Severity,
};
pub use clock::{Clock, ManualClock, SystemClock, Timestamp, TimestampError};
pub use containment::{ContainmentKind, ContainmentState, Hold, TargetType, Verdict};
pub use decision::{DataAccess, Decision, Destination, RiskLevel, UnknownWord};
pub use event::{DIGEST_EXCLUDED, EventKind, SecurityEvent};
pub use fleet::{Beat, ContainmentAck, Enforced, Heartbeat, Missing, Notice, RunLabel, Target};
pub use ids::{EventId, IdError, PARTITIONS, TenantId, external_event_id, is_derived, new_event_id, partition_of};
pub use lanes::{Confirmed, LaneConfirmed, LaneReach, Lost, Pruned};
pub use reading::{ReadEvent, Reading, ReadingRoom};
pub use receipt::{Phase, Proof, RECEIPT_SCHEMA, ReceiptBody, SealedEvent};
pub use registry::{
    ActionRecord, AgentRecord, ChannelRecord, DefaultDecision, MAX_RUN_IDLE_S, McpServerRecord, McpToolRecord, ResourceRecord,
    TenantSettings, ToolRecord, Visibility,
};
pub use repeated::Repeated;
pub use request::{
    AgentClaim, ApprovalRef, ApprovalStatus, ApprovalView, AuthorizeRequest, AuthorizeResponse, Callback, ErrorBody, ErrorDetail,
    FrozenAction, ReceiptView, RequestContext, ToolCall, Trace, UserClaim,
};
pub use sealer::{CONTROL, SOC, Sealer};
pub use signed::{EntryKind, SignedEntry};
pub use trust::SourceTrust;
pub use unmarked::Unmarked;
pub use wire::{PROOF_KEYS, SealedParts, WireError, WireEvent, is_observation};
