//! From the rows of a query to matches: key, evidence, fields. A row whose key has a null is no match, nor is one
//! whose evidence is not among the rows that the query saw: that is counted, and stops nothing, for what an event says must not stop a rule.

use std::collections::HashMap;
use std::sync::Arc;

use aegis_model::{EventId, SecurityEvent, TenantId, Timestamp};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, TimestampMicrosecondType};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use crate::plan::{BucketColumn, Output};
use crate::schema::text_of;

/// Most evidence events that a match lists: the first half and the last half of a longer list.
pub(crate) const MAX_EVIDENCE: usize = 128;

/// One event that matched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Evidence {
    pub(crate) event_id: EventId,
    pub(crate) ts: Timestamp,
    pub(crate) receipt_hash: Option<String>,
}

impl Evidence {
    pub(crate) fn of(event: &SecurityEvent) -> Self {
        Self { event_id: event.event_id, ts: event.ts, receipt_hash: event.receipt_hash.clone() }
    }
}

/// One row of a rule's output, at the instant of its last evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Match {
    pub(crate) instant: Timestamp,
    pub(crate) key: Map<String, Value>,
    /// In event order, never empty, bounded.
    pub(crate) evidence: Vec<Evidence>,
    pub(crate) fields: Map<String, Value>,
}

impl Match {
    pub(crate) fn first(&self) -> &Evidence {
        &self.evidence[0]
    }

    pub(crate) fn last(&self) -> &Evidence {
        &self.evidence[self.evidence.len() - 1]
    }
}

/// A match and the part of the state it belongs to.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) tenant: TenantId,
    pub(crate) bucket: String,
    pub(crate) key_text: String,
    /// Whose event is its last evidence.
    pub(crate) agent: Option<String>,
    pub(crate) found: Match,
}

/// What a row of a rule's output is.
enum Row {
    Match(Box<Found>),
    /// A key is null, or the row belongs to another instant.
    NoMatch,
    Unfounded,
}

/// Writes the bucket of an event. False where a key column is null: such a row can never be a match, nor help one.
pub(crate) fn write_bucket(event: &SecurityEvent, columns: &[BucketColumn], bucket: &mut String) -> bool {
    for column in columns {
        let Some(text) = text_of(event, column.event_column) else { return false };
        bucket.push_str(&text);
        bucket.push('\0');
    }
    true
}

/// The same of a match, by its key.
pub(crate) fn bucket_of_key(key: &Map<String, Value>, key_names: &[String], columns: &[BucketColumn]) -> String {
    let mut bucket = String::new();
    for column in columns {
        let name = &key_names[column.key_position];
        bucket.push_str(key.get(name).and_then(Value::as_str).unwrap_or_default());
        bucket.push('\0');
    }
    bucket
}

/// Reads matches out of a rule's output.
pub(crate) struct Reader<'a> {
    key_names: &'a [String],
    output: &'a Output,
    buckets: &'a [BucketColumn],
    events: HashMap<(&'a str, EventId), &'a Arc<SecurityEvent>>,
    /// Those of them that have the id of another: an id is its producer's to choose.
    twins: HashMap<(&'a str, EventId), Vec<&'a Arc<SecurityEvent>>>,
    /// How far before its instant a row sees, in microseconds. A run has other rows' events too, and which of them depends on what came with it.
    back_micros: i64,
    /// The tenant and the instant of every row, where the query does not carry them.
    fixed: Option<(TenantId, Timestamp)>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        key_names: &'a [String],
        output: &'a Output,
        buckets: &'a [BucketColumn],
        seen: impl Iterator<Item = &'a Arc<SecurityEvent>>,
        back_micros: i64,
        fixed: Option<(TenantId, Timestamp)>,
    ) -> Self {
        let mut events = HashMap::new();
        let mut twins: HashMap<(&'a str, EventId), Vec<&'a Arc<SecurityEvent>>> = HashMap::new();
        for event in seen {
            let place = (event.tenant_id.as_str(), event.event_id);
            if let Some(other) = events.insert(place, event) {
                twins.entry(place).or_default().push(other);
            }
        }
        Self { key_names, output, buckets, events, twins, back_micros, fixed }
    }

    /// Appends the matches of a batch of rows, and answers how many were none because their evidence is not there.
    pub(crate) fn read(&self, rows: &RecordBatch, out: &mut Vec<Found>) -> Result<u64> {
        let mut unfounded = 0;
        for row in 0..rows.num_rows() {
            match self.read_row(rows, row)? {
                Row::Match(found) => out.push(*found),
                Row::NoMatch => {}
                Row::Unfounded => unfounded += 1,
            }
        }
        Ok(unfounded)
    }

    fn read_row(&self, rows: &RecordBatch, row: usize) -> Result<Row> {
        let mut key = Map::new();
        for (name, column) in self.key_names.iter().zip(&self.output.key) {
            match json_value(rows.column(*column), row)? {
                Value::Null => return Ok(Row::NoMatch),
                value => key.insert(name.clone(), value),
            };
        }
        let (tenant, instant) = self.place(rows, row)?;
        let Some((evidence, agent)) = self.evidence(rows, row, tenant, instant, &key) else { return Ok(Row::Unfounded) };
        // The query saw rows of other instants too; a row belongs to the instant of its last evidence.
        if evidence.last().is_none_or(|e| e.ts != instant) {
            return Ok(Row::NoMatch);
        }
        let mut fields = Map::new();
        for (column, name) in &self.output.fields {
            let value = json_value(rows.column(*column), row)?;
            if !value.is_null() {
                fields.insert(name.clone(), value);
            }
        }
        let bucket = bucket_of_key(&key, self.key_names, self.buckets);
        let tenant = TenantId::new(tenant).map_err(|e| DataFusionError::Internal(e.to_string()))?;
        let key_text = Value::Object(key.clone()).to_string();
        let found = Match { instant, key, evidence, fields };
        let agent = agent.map(str::to_owned);
        Ok(Row::Match(Box::new(Found { tenant, bucket, key_text, agent, found })))
    }

    fn place<'b>(&'b self, rows: &'b RecordBatch, row: usize) -> Result<(&'b str, Timestamp)> {
        if let Some((tenant, instant)) = &self.fixed {
            return Ok((tenant.as_str(), *instant));
        }
        let (Some(tenant), Some(instant)) = (self.output.tenant, self.output.instant) else {
            return Err(DataFusionError::Internal("the plan carries neither tenant nor time".into()));
        };
        let tenant = text_at(rows.column(tenant), row);
        let instant = rows.column(instant).as_primitive_opt::<TimestampMicrosecondType>();
        match (tenant, instant) {
            (Some(tenant), Some(instant)) => Ok((tenant, Timestamp::from_micros(instant.value(row)))),
            _ => Err(DataFusionError::Internal("tenant or time has an unexpected type".into())),
        }
    }

    /// The evidence of a row at an instant, and whose the last of it is. None: it names none, or an event that the query did not see.
    fn evidence(
        &self,
        rows: &RecordBatch,
        row: usize,
        tenant: &str,
        instant: Timestamp,
        key: &Map<String, Value>,
    ) -> Option<(Vec<Evidence>, Option<&'a str>)> {
        let mut found: Vec<&'a Arc<SecurityEvent>> = Vec::new();
        if let Some(column) = self.output.event_ids {
            let ids = list_at(rows.column(column), row);
            for index in 0..ids.as_ref().map_or(0, |ids| ids.len()) {
                // A list built with FILTER or CASE may hold nulls.
                if let Some(text) = ids.as_ref().and_then(|ids| text_at(ids, index)) {
                    found.push(self.event(tenant, text, instant, key)?);
                }
            }
        } else if let Some(text) = self.output.event_id.and_then(|column| text_at(rows.column(column), row)) {
            found.push(self.event(tenant, text, instant, key)?);
        }
        if found.is_empty() {
            return None;
        }
        found.sort_by(|a, b| a.order_key().cmp(&b.order_key()));
        found.dedup_by(|a, b| a.event_id == b.event_id);
        if found.len() > MAX_EVIDENCE {
            let half = MAX_EVIDENCE / 2;
            found.drain(half..found.len() - half);
        }
        let agent = found.last().copied().and_then(|event| event.agent_id.as_deref());
        Some((found.into_iter().map(|event| Evidence::of(event)).collect(), agent))
    }

    /// The event of this id that the row sees. Of several, the one of the row's instant, else the newest before it, else the oldest: another edge's
    /// event must not stand for the one that the row is made of.
    fn event(&self, tenant: &str, text: &str, instant: Timestamp, key: &Map<String, Value>) -> Option<&'a Arc<SecurityEvent>> {
        let id = uuid::Uuid::try_parse(text).ok()?;
        // The map's key borrows from the events, so look the tenant up by value.
        let event = self.events.get(&(tenant, id)).copied()?;
        if self.twins.is_empty() {
            return Some(event).filter(|event| self.sees(event, instant, key));
        }
        let twins = self.twins.get(&(tenant, id)).into_iter().flatten().copied();
        let all = || twins.clone().chain([event]).filter(move |event| self.sees(event, instant, key));
        let newest = all().filter(|e| e.ts <= instant).max_by(|a, b| a.order_key().cmp(&b.order_key()));
        newest.or_else(|| all().min_by(|a, b| a.order_key().cmp(&b.order_key())))
    }

    /// True if a row of this key sees the event at its instant, or would in a run that has more of what comes later.
    fn sees(&self, event: &SecurityEvent, instant: Timestamp, key: &Map<String, Value>) -> bool {
        let is_of_bucket = |column: &BucketColumn| {
            let of_row = key.get(&self.key_names[column.key_position]).and_then(Value::as_str);
            text_of(event, column.event_column).as_deref() == of_row
        };
        event.ts >= instant.plus_micros(-self.back_micros) && self.buckets.iter().all(is_of_bucket)
    }
}

fn text_at(array: &ArrayRef, row: usize) -> Option<&str> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::Utf8 => Some(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(array.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(array.as_string_view().value(row)),
        _ => None,
    }
}

fn list_at(array: &ArrayRef, row: usize) -> Option<ArrayRef> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::List(_) => Some(array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => Some(array.as_list::<i64>().value(row)),
        _ => None,
    }
}

/// A cell as JSON: text, number, truth, time (RFC 3339), list; whatever else there is as its text.
pub(crate) fn json_value(array: &ArrayRef, row: usize) -> Result<Value> {
    if let Some(text) = text_at(array, row) {
        return Ok(Value::String(text.to_owned()));
    }
    if let Some(list) = list_at(array, row) {
        let values = (0..list.len().min(MAX_EVIDENCE)).map(|i| json_value(&list, i));
        return Ok(Value::Array(values.collect::<Result<_>>()?));
    }
    let scalar = ScalarValue::try_from_array(array, row)?;
    if scalar.is_null() {
        return Ok(Value::Null);
    }
    Ok(match &scalar {
        ScalarValue::Boolean(Some(v)) => Value::Bool(*v),
        ScalarValue::Int8(Some(v)) => Value::from(*v),
        ScalarValue::Int16(Some(v)) => Value::from(*v),
        ScalarValue::Int32(Some(v)) => Value::from(*v),
        ScalarValue::Int64(Some(v)) => Value::from(*v),
        ScalarValue::UInt8(Some(v)) => Value::from(*v),
        ScalarValue::UInt16(Some(v)) => Value::from(*v),
        ScalarValue::UInt32(Some(v)) => Value::from(*v),
        ScalarValue::UInt64(Some(v)) => Value::from(*v),
        ScalarValue::Float64(Some(v)) => Number::from_f64(*v).map_or(Value::Null, Value::Number),
        ScalarValue::TimestampMicrosecond(Some(v), _) => Value::String(Timestamp::from_micros(*v).to_rfc3339()),
        ScalarValue::TimestampNanosecond(Some(v), _) => Value::String(Timestamp::from_micros(v / 1000).to_rfc3339()),
        other => Value::String(other.to_string()),
    })
}
