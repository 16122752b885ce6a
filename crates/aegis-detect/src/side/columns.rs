//! The columns of side tables, as they stand beside those of `events` for a rule that names one.

use std::sync::Arc;

use aegis_model::{EventId, SecurityEvent, Timestamp};
use datafusion::arrow::array::{ArrayRef, BooleanBuilder, Int64Builder, ListBuilder, StringBuilder, TimestampMicrosecondBuilder};
use datafusion::arrow::datatypes::{DataType, Field, TimeUnit};

use super::{SideTables, Sides};

/// How the names of the columns begin; a word in a rule that begins so is meant to be one of them.
const PREFIXES: [&str; 3] = ["first_seen_", "baseline_", "registry_"];

/// A column of a side table, read as of an event.
pub(crate) struct SideColumn {
    pub(crate) name: &'static str,
    read: Read,
}

enum Read {
    Time(fn(&SideTables, &SecurityEvent) -> Option<Timestamp>),
    Number(fn(&SideTables, &SecurityEvent) -> Option<i64>),
    Text(for<'a> fn(&'a SideTables, &SecurityEvent) -> Option<&'a str>),
    Texts(fn(&SideTables, &SecurityEvent) -> Option<Vec<String>>),
    Flag(fn(&SideTables, &SecurityEvent) -> Option<bool>),
    Id(fn(&SideTables, &SecurityEvent) -> Option<EventId>),
}

/// The columns, in the order in which they stand behind those of the contract.
pub(crate) static SIDE_COLUMNS: [SideColumn; 23] = [
    SideColumn { name: "first_seen_agent", read: Read::Time(SideTables::first_seen_agent) },
    SideColumn { name: "first_seen_agent_tool_action", read: Read::Time(SideTables::first_seen_agent_tool_action) },
    SideColumn { name: "first_seen_user", read: Read::Time(SideTables::first_seen_user) },
    SideColumn { name: "first_seen_user_tool_action", read: Read::Time(SideTables::first_seen_user_tool_action) },
    SideColumn { name: "first_seen_tool_action", read: Read::Time(SideTables::first_seen_tool_action) },
    SideColumn { name: "baseline_hourly_uses", read: Read::Number(|tables, event| Some(tables.baseline(event)?.uses)) },
    SideColumn { name: "baseline_active_hours", read: Read::Number(|tables, event| Some(tables.baseline(event)?.hours)) },
    SideColumn { name: "registry_agent_key", read: Read::Text(SideTables::registry_agent_key) },
    SideColumn { name: "registry_owner_team", read: Read::Text(SideTables::registry_owner_team) },
    SideColumn { name: "registry_environment", read: Read::Text(SideTables::registry_environment) },
    SideColumn { name: "registry_risk_tier", read: Read::Text(SideTables::registry_risk_tier) },
    SideColumn { name: "registry_trust_ceiling", read: Read::Text(SideTables::registry_trust_ceiling) },
    SideColumn { name: "registry_frozen_siblings", read: Read::Texts(SideTables::registry_frozen_siblings) },
    SideColumn { name: "registry_action_risk", read: Read::Text(SideTables::registry_action_risk) },
    SideColumn { name: "registry_action_mutates_state", read: Read::Flag(SideTables::registry_action_mutates_state) },
    SideColumn { name: "registry_action_data_access", read: Read::Text(SideTables::registry_action_data_access) },
    SideColumn { name: "registry_action_destination", read: Read::Text(SideTables::registry_action_destination) },
    SideColumn { name: "registry_action_approval_required", read: Read::Flag(SideTables::registry_action_approval_required) },
    SideColumn { name: "registry_action_default_decision", read: Read::Text(SideTables::registry_action_default_decision) },
    SideColumn { name: "registry_action_since", read: Read::Time(SideTables::registry_action_since) },
    SideColumn { name: "registry_action_lowered", read: Read::Time(SideTables::registry_action_lowered) },
    SideColumn { name: "registry_action_lowered_from", read: Read::Text(SideTables::registry_action_lowered_from) },
    SideColumn { name: "registry_action_lowered_event", read: Read::Id(SideTables::registry_action_lowered_event) },
];

/// True for a word that is a column of a side table, or looks as if it were to be one.
pub(crate) fn is_like_a_side_column(word: &str) -> bool {
    let begins_as = |prefix: &&str| word.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    PREFIXES.iter().any(begins_as)
}

impl SideColumn {
    pub(crate) fn field(&self) -> Field {
        let data_type = match self.read {
            Read::Time(_) => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))),
            Read::Number(_) => DataType::Int64,
            Read::Text(_) | Read::Id(_) => DataType::Utf8,
            Read::Flag(_) => DataType::Boolean,
            Read::Texts(_) => DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))),
        };
        Field::new(self.name, data_type, true)
    }

    /// Its values for some events; without tables, none is known.
    pub(crate) fn build(&self, rows: &[Arc<SecurityEvent>], sides: Option<&Sides>) -> ArrayRef {
        let tables = sides.map(|sides| sides.read());
        match self.read {
            Read::Time(read) => {
                let mut builder = TimestampMicrosecondBuilder::with_capacity(rows.len()).with_timezone("UTC");
                for event in rows {
                    let value = tables.as_ref().and_then(|tables| read(tables, event));
                    builder.append_option(value.map(Timestamp::as_micros));
                }
                Arc::new(builder.finish())
            }
            Read::Number(read) => {
                let mut builder = Int64Builder::with_capacity(rows.len());
                rows.iter().for_each(|event| builder.append_option(tables.as_ref().and_then(|tables| read(tables, event))));
                Arc::new(builder.finish())
            }
            Read::Text(read) => {
                let mut builder = StringBuilder::with_capacity(rows.len(), rows.len() * 16);
                rows.iter().for_each(|event| builder.append_option(tables.as_ref().and_then(|tables| read(tables, event))));
                Arc::new(builder.finish())
            }
            Read::Flag(read) => {
                let mut builder = BooleanBuilder::with_capacity(rows.len());
                rows.iter().for_each(|event| builder.append_option(tables.as_ref().and_then(|tables| read(tables, event))));
                Arc::new(builder.finish())
            }
            Read::Id(read) => {
                let mut builder = StringBuilder::new();
                for event in rows {
                    let value = tables.as_ref().and_then(|tables| read(tables, event));
                    builder.append_option(value.map(|id| id.to_string()));
                }
                Arc::new(builder.finish())
            }
            Read::Texts(read) => {
                let mut builder = ListBuilder::new(StringBuilder::new());
                for event in rows {
                    let texts = tables.as_ref().and_then(|tables| read(tables, event));
                    texts.iter().flatten().for_each(|text| builder.values().append_value(text));
                    builder.append(texts.is_some());
                }
                Arc::new(builder.finish())
            }
        }
    }
}
