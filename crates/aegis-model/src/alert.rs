//! Alerts, retractions and incidents: what detection says and what responders work on.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::decision::wire_words;
use crate::{EventId, Notice, TenantId, Timestamp};

/// How bad; ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Low,
    Medium,
    High,
    Critical,
}
wire_words!(Severity { Info = "info", Low = "low", Medium = "medium", High = "high", Critical = "critical" });

/// Whether a rule's alerts lead anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleMode {
    LogOnly,
    Active,
    Disabled,
}
wire_words!(RuleMode { LogOnly = "log_only", Active = "active", Disabled = "disabled" });

/// A change of a tenant's own rule, as it stands in the log under `ruleset.<pp>`, signed by control: from its place on the rule is this one. Of two
/// records of one rule the one with the higher revision counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleRecord {
    pub tenant_id: TenantId,
    pub rule_id: String,
    pub revision: i64,
    /// SHA-256 of the text.
    pub hash: String,
    pub text: String,
}

impl Notice for RuleRecord {
    const SCHEMA: &'static str = "aegis-rule-record-1";
    const MAX_BYTES: usize = MAX_RECORD_BYTES;
}

/// A text of 64 KiB, each of whose bytes may be six in JSON, and the rest.
const MAX_RECORD_BYTES: usize = 512 * 1024;

/// A change of a rule that every tenant has, as it stands in the log under `ruleset.<pp>`, signed by control: from its place on the rule is this one for
/// the tenants of that partition, but for those that have one of their own in its place. Of two records of one rule the one with the higher revision counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommonRuleRecord {
    pub partition: u32,
    pub rule_id: String,
    pub revision: i64,
    /// SHA-256 of the text.
    pub hash: String,
    /// Empty: the rule is again as the program has it.
    pub text: String,
}

impl Notice for CommonRuleRecord {
    const SCHEMA: &'static str = "aegis-common-rule-record-1";
    const MAX_BYTES: usize = MAX_RECORD_BYTES;
}

/// All that is long before a version of a tenant's own rule can be read, as it stands in the log under `ruleset.<pp>`, signed by control: from its place
/// on a rule that waited for its window knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleWarmRecord {
    pub tenant_id: TenantId,
    pub rule_id: String,
    /// Of the rule's own record.
    pub revision: i64,
}

impl Notice for RuleWarmRecord {
    const SCHEMA: &'static str = "aegis-rule-warm-1";
    const MAX_BYTES: usize = MAX_WARM_BYTES;
}

const MAX_WARM_BYTES: usize = 4096;

/// The same of a version of a rule that every tenant has, for one tenant: from its place on the rule knows its window there. The revision is that of the
/// rule's own record in the tenant's partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommonRuleWarmRecord(pub RuleWarmRecord);

impl Notice for CommonRuleWarmRecord {
    const SCHEMA: &'static str = "aegis-common-rule-warm-1";
    const MAX_BYTES: usize = MAX_WARM_BYTES;
}

/// A rule of the set that a program runs for every tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleInSet {
    pub rule_id: String,
    pub name: String,
    pub version: u32,
    pub mode: RuleMode,
    /// SHA-256 of the text.
    pub hash: String,
}

/// One match of a rule, with its evidence. Its id is a function of (tenant, rule id, key, first evidence event).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Hex SHA-256.
    pub alert_id: String,
    pub tenant_id: TenantId,
    pub rule_id: String,
    pub rule_name: String,
    pub rule_version: u32,
    /// SHA-256 of the rule file.
    pub rule_hash: String,
    pub severity: Severity,
    pub mode: RuleMode,
    /// The entity: key column → value, in the order of the rule's `key`.
    pub key: Map<String, Value>,
    /// Event time of the first and the last evidence event.
    pub first_ts: Timestamp,
    pub last_ts: Timestamp,
    /// The events that matched, in event order, never empty.
    pub event_ids: Vec<EventId>,
    /// The receipt hashes of those events that have one.
    pub receipt_hashes: Vec<String>,
    /// The other columns of the match.
    pub fields: Map<String, Value>,
    /// What the rule asks for, e.g. `freeze_agent`.
    pub respond: Vec<String>,
    pub atlas: Vec<String>,
    pub owasp: Vec<String>,
    pub runbook: Option<String>,
    /// Processing time at the detector; not part of the identity.
    pub detected_at: Timestamp,
    /// True where events came too late for the windows, and it was found when these were caught up: such an alert asks for no response.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub found_late: bool,
}

/// Says that a late event contradicted an alert that had been emitted. Never undoes containment by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retraction {
    pub alert_id: String,
    pub tenant_id: TenantId,
    pub rule_id: String,
    pub detected_at: Timestamp,
}

/// An alert as control keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertRecord {
    #[serde(flatten)]
    pub alert: Alert,
    pub retracted_at: Option<Timestamp>,
    pub incident_id: Option<String>,
}

/// Where an incident stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncidentStatus {
    Open,
    Contained,
    Closed,
}
wire_words!(IncidentStatus { Open = "open", Contained = "contained", Closed = "closed" });

/// One per tenant, entity and rule while open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    pub incident_id: String,
    pub tenant_id: TenantId,
    pub rule_id: String,
    pub severity: Severity,
    /// `column=value` pairs of the alert's key, joined by `,`.
    pub entity: String,
    pub title: String,
    pub status: IncidentStatus,
    pub alert_ids: Vec<String>,
    /// What was asked for and what came of it, newest last.
    pub actions: Vec<Value>,
    pub opened_at: Timestamp,
    pub updated_at: Timestamp,
}
