//! How a response stands on its incident: one record per command, from pending to its outcome.

use aegis_model::{ContainmentKind, TargetType, Timestamp};
use serde::{Deserialize, Serialize};

/// Where a response stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseStatus {
    /// Asked for, or about to be; sent again until control answers.
    Pending,
    Applied,
    AlreadyApplied,
    CapReached,
    Refused,
    /// This version does not know the action, or the alert names no target for it.
    Unsupported,
    /// Its incident was closed, or its alert retracted, before control could be reached.
    Cancelled,
    /// A note, not a request: a late event contradicted the alert.
    AlertRetracted,
}

/// An entry of an incident's `actions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseRecord {
    pub action: String,
    pub status: ResponseStatus,
    pub command_id: String,
    pub alert_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_type: Option<TargetType>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ContainmentKind>,
    /// When the alert was first worked on.
    pub requested_at: Timestamp,
    pub updated_at: Timestamp,
    /// How often control was asked.
    #[serde(default)]
    pub attempts: u32,
    /// Of the containment state that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// Why it stands as it does: the last error, the refusal, what is not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
