//! Rows of the table `events` as events again: what a lake keeps as columns, for the engine, which is shown events.
//! Promises that what was written as columns is read as it was. A column that is not there is read as null; what this program has no word for, or
//! what an event must have and has not, is an error.

use std::str::FromStr;
use std::sync::Arc;

use aegis_model::{EventId, SecurityEvent, SourceTrust, TenantId, Timestamp};
use datafusion::arrow::array::{Array, AsArray, BooleanArray, ListArray, PrimitiveArray, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{ArrowPrimitiveType, Int32Type, Int64Type, TimestampMicrosecondType};
use datafusion::arrow::error::ArrowError;

/// A column, or none.
struct Column<'a, A> {
    name: &'static str,
    values: Option<&'a A>,
}

/// The events of some rows, in their order.
pub fn events_of(rows: &RecordBatch) -> Result<Vec<Arc<SecurityEvent>>, ArrowError> {
    let texts = |name: &'static str| column(rows, name, |array| array.as_string_opt::<i32>());
    let flags = |name: &'static str| column(rows, name, |array| array.as_boolean_opt());
    let times = |name: &'static str| column(rows, name, |array| array.as_primitive_opt::<TimestampMicrosecondType>());
    let (event_id, ref_event_id, tenant_id, edge_id) =
        (texts("event_id")?, texts("ref_event_id")?, texts("tenant_id")?, texts("edge_id")?);
    let (ts, bus_ts, lane, kind, source) = (times("ts")?, times("bus_ts")?, texts("lane")?, texts("kind")?, texts("source")?);
    let seq = column(rows, "seq", |array| array.as_primitive_opt::<Int64Type>())?;
    let (verified, clock_suspect, late) = (flags("verified")?, flags("clock_suspect")?, flags("late")?);
    let (agent_id, token_id, user_id, run_id) = (texts("agent_id")?, texts("token_id")?, texts("user_id")?, texts("run_id")?);
    let (trace_id, environment, tool, action) = (texts("trace_id")?, texts("environment")?, texts("tool")?, texts("action")?);
    let (resource, target, destination, data_access) =
        (texts("resource")?, texts("target")?, texts("destination")?, texts("data_access")?);
    let (mutates_state, contains_sensitive_data) = (flags("mutates_state")?, flags("contains_sensitive_data")?);
    let (source_trust, root_trust) = (texts("source_trust")?, texts("root_trust")?);
    let (decision, risk_level, reason, status) = (texts("decision")?, texts("risk_level")?, texts("reason")?, texts("status")?);
    let risk_score = column(rows, "risk_score", |array| array.as_primitive_opt::<Int32Type>())?;
    let matched_policies = column(rows, "matched_policies", |array| array.as_list_opt::<i32>())?;
    let (policy_digest, action_hash, receipt_hash) = (texts("policy_digest")?, texts("action_hash")?, texts("receipt_hash")?);
    let (approval_id, approver, nonce_hash, attributes) =
        (texts("approval_id")?, texts("approver")?, texts("nonce_hash")?, texts("attributes")?);

    let mut events: Vec<Arc<SecurityEvent>> = Vec::with_capacity(rows.num_rows());
    for row in 0..rows.num_rows() {
        let name = tenant_id.required(row)?;
        // Mostly that of the row before.
        let tenant = match events.last() {
            Some(before) if before.tenant_id.as_str() == name => before.tenant_id.clone(),
            _ => TenantId::new(name).map_err(|error| ArrowError::ParseError(error.to_string()))?,
        };
        events.push(Arc::new(SecurityEvent {
            event_id: id(event_id.required(row)?)?,
            ref_event_id: ref_event_id.text(row).map(id).transpose()?,
            tenant_id: tenant,
            edge_id: edge_id.owned(row).unwrap_or_default(),
            ts: ts.number(row).map(Timestamp::from_micros).ok_or_else(|| missing("ts"))?,
            lane: lane.owned(row),
            seq: seq.number(row),
            kind: kind.word(row)?.ok_or_else(|| missing("kind"))?,
            source: source.owned(row).unwrap_or_default(),
            verified: verified.flag(row).unwrap_or_default(),
            clock_suspect: clock_suspect.flag(row).unwrap_or_default(),
            agent_id: agent_id.owned(row),
            token_id: token_id.owned(row),
            user_id: user_id.owned(row),
            run_id: run_id.owned(row),
            trace_id: trace_id.owned(row),
            environment: environment.owned(row),
            tool: tool.owned(row),
            action: action.owned(row),
            resource: resource.owned(row),
            target: target.owned(row),
            destination: destination.word(row)?,
            data_access: data_access.word(row)?,
            mutates_state: mutates_state.flag(row),
            contains_sensitive_data: contains_sensitive_data.flag(row),
            source_trust: source_trust.text(row).map(SourceTrust::from_label),
            root_trust: root_trust.text(row).map(SourceTrust::from_label),
            decision: decision.word(row)?,
            risk_level: risk_level.word(row)?,
            reason: reason.owned(row),
            status: status.owned(row),
            risk_score: risk_score.number(row),
            matched_policies: matched_policies.list(row)?,
            policy_digest: policy_digest.owned(row),
            action_hash: action_hash.owned(row),
            receipt_hash: receipt_hash.owned(row),
            approval_id: approval_id.owned(row),
            approver: approver.owned(row),
            nonce_hash: nonce_hash.owned(row),
            attributes: attributes.owned(row),
            bus_ts: bus_ts.number(row).map(Timestamp::from_micros),
            late: late.flag(row).unwrap_or_default(),
        }));
    }
    Ok(events)
}

fn column<'a, A>(
    rows: &'a RecordBatch,
    name: &'static str,
    typed: impl FnOnce(&'a dyn Array) -> Option<&'a A>,
) -> Result<Column<'a, A>, ArrowError> {
    let Some(array) = rows.column_by_name(name) else { return Ok(Column { name, values: None }) };
    match typed(array.as_ref()) {
        Some(values) => Ok(Column { name, values: Some(values) }),
        None => Err(ArrowError::SchemaError(format!("column {name} is {}, which the table `events` has not", array.data_type()))),
    }
}

fn missing(name: &str) -> ArrowError {
    ArrowError::ParseError(format!("a row has no {name}"))
}

fn id(text: &str) -> Result<EventId, ArrowError> {
    EventId::try_parse(text).map_err(|error| ArrowError::ParseError(format!("{text}: not an event's id: {error}")))
}

impl<'a, A: Array> Column<'a, A> {
    /// The values, if the row has one.
    fn at(&self, row: usize) -> Option<&'a A> {
        self.values.filter(|values| values.is_valid(row))
    }
}

impl<'a> Column<'a, StringArray> {
    fn text(&self, row: usize) -> Option<&'a str> {
        self.at(row).map(|values| values.value(row))
    }

    fn owned(&self, row: usize) -> Option<String> {
        self.text(row).map(str::to_owned)
    }

    fn required(&self, row: usize) -> Result<&'a str, ArrowError> {
        self.text(row).ok_or_else(|| missing(self.name))
    }

    fn word<W: FromStr>(&self, row: usize) -> Result<Option<W>, ArrowError>
    where
        W::Err: std::fmt::Display,
    {
        let read = |word: &str| W::from_str(word).map_err(|error| ArrowError::ParseError(format!("{}: {error}", self.name)));
        self.text(row).map(read).transpose()
    }
}

impl Column<'_, BooleanArray> {
    fn flag(&self, row: usize) -> Option<bool> {
        self.at(row).map(|values| values.value(row))
    }
}

impl<T: ArrowPrimitiveType> Column<'_, PrimitiveArray<T>> {
    fn number(&self, row: usize) -> Option<T::Native> {
        self.at(row).map(|values| values.value(row))
    }
}

impl Column<'_, ListArray> {
    fn list(&self, row: usize) -> Result<Vec<String>, ArrowError> {
        let Some(values) = self.at(row) else { return Ok(Vec::new()) };
        let list = values.value(row);
        let Some(texts) = list.as_string_opt::<i32>() else {
            return Err(ArrowError::SchemaError(format!("column {} is a list of {}", self.name, list.data_type())));
        };
        Ok(texts.iter().flatten().map(str::to_owned).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use aegis_model::{DataAccess, Decision, Destination, EventKind, RiskLevel};
    use datafusion::arrow::array::{ArrayRef, NullArray};
    use datafusion::arrow::datatypes::{Field, Schema};

    use super::*;
    use crate::schema::{EventBatch, events_schema};

    /// An event in which every column has a value, and another.
    fn full(n: usize) -> SecurityEvent {
        let text = |name: &str| Some(format!("{name} {n} é"));
        let kind = EventKind::WORDS[n % EventKind::WORDS.len()].parse().unwrap();
        let mut event =
            SecurityEvent::new(TenantId::new("t").unwrap(), "edge-1", "edge", kind, Timestamp::from_micros(7 + n as i64));
        event.ref_event_id = Some(event.event_id);
        (event.lane, event.seq) = (text("lane"), Some(n as i64));
        (event.verified, event.clock_suspect, event.late) = (n.is_multiple_of(2), n.is_multiple_of(3), n.is_multiple_of(5));
        (event.agent_id, event.token_id, event.user_id, event.run_id) = (text("a"), text("t"), text("u"), text("r"));
        (event.trace_id, event.environment, event.tool, event.action) = (text("i"), text("e"), text("o"), text("c"));
        (event.resource, event.target) = (text("resource"), text("target"));
        event.destination = Some(if n.is_multiple_of(2) { Destination::External } else { Destination::Internal });
        event.data_access = Some(DataAccess::Sensitive);
        (event.mutates_state, event.contains_sensitive_data) = (Some(n % 2 == 1), Some(n % 3 == 1));
        event.source_trust = Some(SourceTrust::ALL[n % SourceTrust::ALL.len()]);
        event.root_trust = Some(SourceTrust::Unknown);
        (event.decision, event.risk_level) = (Some(Decision::RequireApproval), Some(RiskLevel::High));
        (event.reason, event.status, event.risk_score) = (text("reason"), text("status"), Some(n as i32));
        event.matched_policies = (0..n % 3).map(|policy| format!("p{policy}")).collect();
        (event.policy_digest, event.action_hash, event.receipt_hash) = (text("d"), text("h"), text("x"));
        (event.approval_id, event.approver, event.nonce_hash) = (text("v"), text("w"), text("n"));
        (event.attributes, event.bus_ts) = (text("{}"), Some(Timestamp::from_micros(9)));
        event
    }

    #[test]
    fn what_was_written_as_columns_is_read_as_it_was() {
        let bare = SecurityEvent::new(TenantId::new("b").unwrap(), "e", "s", EventKind::LaneOpen, Timestamp::from_micros(-1));
        let events: Vec<Arc<SecurityEvent>> = (0..60).map(full).chain([bare]).map(Arc::new).collect();
        let rows = EventBatch::new(events.clone()).to_record_batch().unwrap();
        assert_eq!(events_of(&rows).unwrap(), events);
        for (place, field) in rows.schema().fields().iter().enumerate() {
            let is_full = rows.slice(0, 60).column(place).null_count() == 0;
            assert!(is_full, "{} is not tested: it has no value", field.name());
        }
    }

    #[test]
    fn a_column_that_is_left_out_is_null_and_what_an_event_must_have_is_missed() {
        let (wanted, rows) = (["event_id", "tenant_id", "ts", "kind", "agent_id"], vec![Arc::new(full(3))]);
        let places = |left_out: &str| -> Vec<usize> {
            let names = wanted.iter().filter(|name| **name != left_out);
            names.map(|name| events_schema().index_of(name).unwrap()).collect()
        };
        let whole = EventBatch::new(rows).to_record_batch().unwrap();
        let read = events_of(&whole.project(&places("")).unwrap()).unwrap();
        assert_eq!((read[0].agent_id.clone(), read[0].lane.clone(), read[0].verified), (full(3).agent_id, None, false));
        for name in &wanted[..4] {
            let error = events_of(&whole.project(&places(name)).unwrap()).unwrap_err();
            assert!(error.to_string().contains(&format!("no {name}")), "{error}");
        }
        assert_eq!(events_of(&whole.project(&places("agent_id")).unwrap()).unwrap()[0].agent_id, None);
    }

    #[test]
    fn what_is_no_word_of_a_column_is_an_error_and_so_is_another_type() {
        let whole = EventBatch::new(vec![Arc::new(full(0))]).to_record_batch().unwrap();
        let with = |name: &str, array: ArrayRef| {
            let schema = events_schema();
            let place = schema.index_of(name).unwrap();
            let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
            fields[place] = Arc::new(Field::new(name, array.data_type().clone(), true));
            let mut columns = whole.columns().to_vec();
            columns[place] = array;
            RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
        };
        for name in ["kind", "decision", "destination", "data_access", "risk_level", "event_id", "ref_event_id", "tenant_id"] {
            let error = events_of(&with(name, Arc::new(StringArray::from(vec!["no such"])))).unwrap_err();
            assert!(matches!(error, ArrowError::ParseError(_)), "{name}: {error}");
        }
        let error = events_of(&with("decision", Arc::new(NullArray::new(1)))).unwrap_err();
        assert!(matches!(error, ArrowError::SchemaError(_)), "{error}");
    }
}
