//! The table `events` (CONTRACTS §5) as Arrow columns, and the way from events to columns. Behind those of the contract stand those of the side
//! tables, for the rules that name one, and behind these what only the rows of the table `alerts` have.
//! Promises the names and types of the contract, and that a column is built only when a query reads it, once per batch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock, OnceLock};

use aegis_model::{EventId, SecurityEvent, TenantId, Timestamp};
use datafusion::arrow::array::{
    ArrayRef, BooleanBuilder, Int32Builder, Int64Builder, ListBuilder, RecordBatch, RecordBatchOptions, StringBuilder,
    TimestampMicrosecondBuilder,
};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion::arrow::error::ArrowError;
use parking_lot::Mutex;

use crate::matter::Matter;
use crate::name::{Asked, SharedNames};
use crate::passed::Passed;
use crate::plan::BucketColumn;
use crate::side::{SIDE_COLUMNS, Sides};

/// The table that rules read.
pub const TABLE: &str = "events";
/// The table of what rules told: see `alerts`.
pub(crate) const ALERTS_TABLE: &str = "alerts";
/// The display-only score: not even a column for a rule that contains.
pub const SCORE_COLUMN: &str = "risk_score";

type Text = for<'a> fn(&'a SecurityEvent) -> Option<&'a str>;

/// How a column is read from an event.
#[derive(Clone, Copy)]
enum Read {
    Id(fn(&SecurityEvent) -> Option<EventId>),
    Text(Text),
    Time(fn(&SecurityEvent) -> Option<Timestamp>),
    Int64(fn(&SecurityEvent) -> Option<i64>),
    Int32(fn(&SecurityEvent) -> Option<i32>),
    Bool(fn(&SecurityEvent) -> Option<bool>),
    TextList(fn(&SecurityEvent) -> &[String]),
}

struct Column {
    name: &'static str,
    nullable: bool,
    read: Read,
}

const fn required(name: &'static str, read: Read) -> Column {
    Column { name, nullable: false, read }
}

const fn optional(name: &'static str, read: Read) -> Column {
    Column { name, nullable: true, read }
}

static COLUMNS: [Column; 42] = [
    required("event_id", Read::Id(|e| Some(e.event_id))),
    optional("ref_event_id", Read::Id(|e| e.ref_event_id)),
    required("tenant_id", Read::Text(|e| Some(e.tenant_id.as_str()))),
    required("edge_id", Read::Text(|e| Some(&e.edge_id))),
    required("ts", Read::Time(|e| Some(e.ts))),
    optional("lane", Read::Text(|e| e.lane.as_deref())),
    optional("seq", Read::Int64(|e| e.seq)),
    required("kind", Read::Text(|e| Some(e.kind.as_str()))),
    required("source", Read::Text(|e| Some(&e.source))),
    required("verified", Read::Bool(|e| Some(e.verified))),
    required("clock_suspect", Read::Bool(|e| Some(e.clock_suspect))),
    optional("agent_id", Read::Text(|e| e.agent_id.as_deref())),
    optional("token_id", Read::Text(|e| e.token_id.as_deref())),
    optional("user_id", Read::Text(|e| e.user_id.as_deref())),
    optional("run_id", Read::Text(|e| e.run_id.as_deref())),
    optional("trace_id", Read::Text(|e| e.trace_id.as_deref())),
    optional("environment", Read::Text(|e| e.environment.as_deref())),
    optional("tool", Read::Text(|e| e.tool.as_deref())),
    optional("action", Read::Text(|e| e.action.as_deref())),
    optional("resource", Read::Text(|e| e.resource.as_deref())),
    optional("target", Read::Text(|e| e.target.as_deref())),
    optional("destination", Read::Text(|e| e.destination.map(|d| d.as_str()))),
    optional("data_access", Read::Text(|e| e.data_access.map(|d| d.as_str()))),
    optional("mutates_state", Read::Bool(|e| e.mutates_state)),
    optional("contains_sensitive_data", Read::Bool(|e| e.contains_sensitive_data)),
    optional("source_trust", Read::Text(|e| e.source_trust.map(|t| t.as_str()))),
    optional("root_trust", Read::Text(|e| e.root_trust.map(|t| t.as_str()))),
    optional("decision", Read::Text(|e| e.decision.map(|d| d.as_str()))),
    optional("risk_level", Read::Text(|e| e.risk_level.map(|r| r.as_str()))),
    optional("reason", Read::Text(|e| e.reason.as_deref())),
    optional("status", Read::Text(|e| e.status.as_deref())),
    optional(SCORE_COLUMN, Read::Int32(|e| e.risk_score)),
    required("matched_policies", Read::TextList(|e| &e.matched_policies)),
    optional("policy_digest", Read::Text(|e| e.policy_digest.as_deref())),
    optional("action_hash", Read::Text(|e| e.action_hash.as_deref())),
    optional("receipt_hash", Read::Text(|e| e.receipt_hash.as_deref())),
    optional("approval_id", Read::Text(|e| e.approval_id.as_deref())),
    optional("approver", Read::Text(|e| e.approver.as_deref())),
    optional("nonce_hash", Read::Text(|e| e.nonce_hash.as_deref())),
    optional("attributes", Read::Text(|e| e.attributes.as_deref())),
    optional("bus_ts", Read::Time(|e| e.bus_ts)),
    required("late", Read::Bool(|e| Some(e.late))),
];

/// What a row of `alerts` says beside the columns that it shares with `events`; the texts stand in its `matched_policies`, in this order.
static ALERT_COLUMNS: [Column; 7] = [
    required("alert_id", Read::Text(|row| text_of_alert(row, 0))),
    required("rule_id", Read::Text(|row| text_of_alert(row, 1))),
    required("rule_name", Read::Text(|row| text_of_alert(row, 2))),
    required("severity", Read::Text(|row| text_of_alert(row, 3))),
    required("mode", Read::Text(|row| text_of_alert(row, 4))),
    required("first_event_id", Read::Text(|row| text_of_alert(row, 5))),
    required("key", Read::Text(|row| text_of_alert(row, 6))),
];

/// The columns that it shares: what of a rule's key has one of these names, and what every row has.
const SHARED_COLUMNS: [&str; 14] = [
    "event_id",
    "tenant_id",
    "ts",
    "agent_id",
    "token_id",
    "user_id",
    "run_id",
    "trace_id",
    "environment",
    "tool",
    "action",
    "resource",
    "target",
    "approver",
];

fn text_of_alert(row: &SecurityEvent, place: usize) -> Option<&str> {
    row.matched_policies.get(place).map(String::as_str)
}

/// Columns of `events`, side tables among them, come before those of `alerts`.
fn first_of_alerts() -> usize {
    COLUMNS.len() + SIDE_COLUMNS.len()
}

/// A column that is read from the row itself.
fn plain(index: usize) -> Option<&'static Column> {
    COLUMNS.get(index).or_else(|| ALERT_COLUMNS.get(index.checked_sub(first_of_alerts())?))
}

/// Which of the table's columns exist for a rule; in the order of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// All those of the contract.
    Full,
    /// Those of the side tables too: what a rule sees that names one of them, so that `SELECT *` of the others is what it was.
    WithSides,
    /// Without the score: what a rule that contains may see.
    WithoutScore,
    /// Those of the table `alerts`.
    Alerts,
}

impl View {
    /// The columns of this view, as indices into the full table.
    pub(crate) fn columns(self) -> Vec<usize> {
        let kept = |index: &usize| match self {
            Self::Full => *index < COLUMNS.len(),
            Self::WithSides => *index < first_of_alerts(),
            Self::WithoutScore => *index < COLUMNS.len() && column_name(*index) != SCORE_COLUMN,
            Self::Alerts => *index >= first_of_alerts() || SHARED_COLUMNS.contains(&column_name(*index)),
        };
        (0..first_of_alerts() + ALERT_COLUMNS.len()).filter(kept).collect()
    }
}

/// Arrow schema of the table `events`, without the columns of side tables.
#[must_use]
pub fn events_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let fields: Vec<Field> = COLUMNS.iter().map(|c| Field::new(c.name, c.data_type(), c.nullable)).collect();
        Arc::new(Schema::new(fields))
    });
    Arc::clone(&SCHEMA)
}

/// The schema of some of the table's columns.
pub(crate) fn schema_of(columns: &[usize]) -> SchemaRef {
    static FIELDS: LazyLock<Vec<FieldRef>> = LazyLock::new(|| {
        let of_sides = SIDE_COLUMNS.iter().map(|column| Arc::new(column.field()));
        let of_alerts = ALERT_COLUMNS.iter().map(|c| Arc::new(Field::new(c.name, c.data_type(), c.nullable)));
        events_schema().fields().iter().cloned().chain(of_sides).chain(of_alerts).collect()
    });
    Arc::new(Schema::new(columns.iter().map(|i| Arc::clone(&FIELDS[*i])).collect::<Vec<_>>()))
}

/// The place of a column in the table.
pub(crate) fn column_index(name: &str) -> Option<usize> {
    let of_sides = || SIDE_COLUMNS.iter().position(|c| c.name == name).map(|place| COLUMNS.len() + place);
    let of_alerts = || ALERT_COLUMNS.iter().position(|c| c.name == name).map(|place| first_of_alerts() + place);
    COLUMNS.iter().position(|c| c.name == name).or_else(of_sides).or_else(of_alerts)
}

/// True for a column of a side table: what stands there of an event may change while the event is in a window.
pub(crate) fn is_side(column: usize) -> bool {
    (COLUMNS.len()..first_of_alerts()).contains(&column)
}

/// True for what only a row of `alerts` has.
pub(crate) fn is_of_alerts(column: usize) -> bool {
    column >= first_of_alerts()
}

pub(crate) fn column_name(column: usize) -> &'static str {
    plain(column).map_or_else(|| SIDE_COLUMNS[column - COLUMNS.len()].name, |plain| plain.name)
}

/// The value of a text column as text; None where it is null; ids in their usual form. Other columns have no text.
pub(crate) fn text_of(event: &SecurityEvent, column: usize) -> Option<std::borrow::Cow<'_, str>> {
    match plain(column)?.read {
        Read::Text(read) => read(event).map(std::borrow::Cow::Borrowed),
        Read::Id(read) => read(event).map(|id| std::borrow::Cow::Owned(id.to_string())),
        _ => None,
    }
}

/// True if `text_of` answers for the column.
pub(crate) fn is_text(column: usize) -> bool {
    plain(column).is_some_and(|c| matches!(c.read, Read::Text(_) | Read::Id(_)))
}

impl Column {
    fn data_type(&self) -> DataType {
        match self.read {
            Read::Id(_) | Read::Text(_) => DataType::Utf8,
            Read::Time(_) => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))),
            Read::Int64(_) => DataType::Int64,
            Read::Int32(_) => DataType::Int32,
            Read::Bool(_) => DataType::Boolean,
            Read::TextList(_) => DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))),
        }
    }

    fn build(&self, rows: &[Arc<SecurityEvent>]) -> ArrayRef {
        match self.read {
            Read::Id(read) => {
                let mut builder = StringBuilder::with_capacity(rows.len(), rows.len() * 36);
                let mut buffer = uuid::Uuid::encode_buffer();
                for event in rows {
                    match read(event) {
                        Some(id) => builder.append_value(id.hyphenated().encode_lower(&mut buffer)),
                        None => builder.append_null(),
                    }
                }
                Arc::new(builder.finish())
            }
            Read::Text(read) => {
                let mut builder = StringBuilder::with_capacity(rows.len(), rows.len() * 16);
                rows.iter().for_each(|event| builder.append_option(read(event)));
                Arc::new(builder.finish())
            }
            Read::Time(read) => {
                let mut builder = TimestampMicrosecondBuilder::with_capacity(rows.len()).with_timezone("UTC");
                rows.iter().for_each(|event| builder.append_option(read(event).map(Timestamp::as_micros)));
                Arc::new(builder.finish())
            }
            Read::Int64(read) => {
                let mut builder = Int64Builder::with_capacity(rows.len());
                rows.iter().for_each(|event| builder.append_option(read(event)));
                Arc::new(builder.finish())
            }
            Read::Int32(read) => {
                let mut builder = Int32Builder::with_capacity(rows.len());
                rows.iter().for_each(|event| builder.append_option(read(event)));
                Arc::new(builder.finish())
            }
            Read::Bool(read) => {
                let mut builder = BooleanBuilder::with_capacity(rows.len());
                rows.iter().for_each(|event| builder.append_option(read(event)));
                Arc::new(builder.finish())
            }
            Read::TextList(read) => {
                let mut builder = ListBuilder::new(StringBuilder::new());
                for event in rows {
                    read(event).iter().for_each(|text| builder.values().append_value(text));
                    builder.append(true);
                }
                Arc::new(builder.finish())
            }
        }
    }
}

/// Events as rows, with their columns built on first use.
pub struct EventBatch {
    rows: Vec<Arc<SecurityEvent>>,
    columns: Vec<OnceLock<ArrayRef>>,
    /// Of columns with few values: the different ones.
    values: Vec<OnceLock<Vec<String>>>,
    /// What the columns of side tables are read from.
    sides: Option<Sides>,
    /// The events of each tenant by themselves.
    tenants: OnceLock<HashMap<TenantId, Arc<EventBatch>>>,
    /// Those that have one value in a text column, for the columns and values that were asked for.
    only: Mutex<BTreeMap<usize, Only>>,
    /// The buckets of those that were asked for.
    asked: Mutex<Asked>,
    /// Which of them pass the filters that were asked for.
    pub(crate) passed: Mutex<Passed>,
    /// It keeps no more columns: others have it too, and what it takes was counted.
    is_closed: bool,
}

/// The events of each value of a column.
#[derive(Default)]
struct Only {
    rows: HashMap<String, Vec<Arc<SecurityEvent>>, ahash::RandomState>,
    batches: HashMap<String, Arc<EventBatch>, ahash::RandomState>,
}

impl EventBatch {
    /// A batch over these events, in this order.
    #[must_use]
    pub fn new(rows: Vec<Arc<SecurityEvent>>) -> Self {
        let columns = (0..first_of_alerts() + ALERT_COLUMNS.len()).map(|_| OnceLock::new()).collect();
        let values = (0..COLUMNS.len()).map(|_| OnceLock::new()).collect();
        let (only, asked, passed) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { rows, columns, values, sides: None, tenants: OnceLock::new(), only, asked, passed, is_closed: false }
    }

    /// The same beside side tables, as they are when a column of theirs is first read.
    pub(crate) fn beside(self, sides: &Sides) -> Self {
        Self { sides: Some(Arc::clone(sides)), ..self }
    }

    /// The same, which keeps no more columns than it has.
    pub(crate) fn closed(self) -> Self {
        Self { is_closed: true, ..self }
    }

    /// The events of one tenant, as a batch that all its rules share.
    pub(crate) fn of_tenant(&self, tenant: &TenantId) -> Option<&Arc<Self>> {
        let split = || {
            let mut rows: HashMap<TenantId, Vec<Arc<SecurityEvent>>> = HashMap::new();
            for event in &self.rows {
                rows.entry(event.tenant_id.clone()).or_default().push(Arc::clone(event));
            }
            rows.into_iter()
                .map(|(tenant, rows)| (tenant, Arc::new(Self { sides: self.sides.clone(), ..Self::new(rows) })))
                .collect()
        };
        self.tenants.get_or_init(split).get(tenant)
    }

    /// Those of the events that have this value in a text column, in their order, as a batch that all rules share which look at them alone. None: there
    /// are none.
    pub(crate) fn only(&self, column: usize, value: &str) -> Option<Arc<Self>> {
        let mut all = self.only.lock();
        let Only { rows, batches } = all.entry(column).or_insert_with(|| {
            let mut only = Only::default();
            for event in &self.rows {
                let Some(value) = text_of(event, column) else { continue };
                match only.rows.get_mut(value.as_ref()) {
                    Some(rows) => rows.push(Arc::clone(event)),
                    None => drop(only.rows.insert(value.into_owned(), vec![Arc::clone(event)])),
                }
            }
            only
        });
        if let Some(batch) = batches.get(value) {
            return Some(Arc::clone(batch));
        }
        let rows = rows.remove(value)?;
        let batch = Arc::new(Self { sides: self.sides.clone(), ..Self::new(rows) });
        batches.insert(value.to_owned(), Arc::clone(&batch));
        Some(batch)
    }

    /// The events.
    #[must_use]
    pub fn rows(&self) -> &[Arc<SecurityEvent>] {
        &self.rows
    }

    /// Some of the events, with their buckets by these columns: the same for all rules whose state is split by them.
    pub(crate) fn matter(
        &self,
        places_and_seeds: (&Arc<[usize]>, Option<&Arc<[usize]>>),
        columns: &[BucketColumn],
        names: &SharedNames,
    ) -> Arc<Matter> {
        self.asked.lock().matter(&self.rows, places_and_seeds, columns, names)
    }

    /// The whole table of the contract.
    pub fn to_record_batch(&self) -> Result<RecordBatch, ArrowError> {
        let columns: Vec<usize> = (0..COLUMNS.len()).collect();
        self.select(&columns, events_schema())
    }

    pub(crate) fn select(&self, columns: &[usize], schema: SchemaRef) -> Result<RecordBatch, ArrowError> {
        let arrays = columns.iter().map(|i| Arc::clone(self.column(*i))).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows.len()));
        RecordBatch::try_new_with_options(schema, arrays, &options)
    }

    /// True if some event has one of these values in a text column.
    pub(crate) fn has_one_of(&self, column: usize, values: &BTreeSet<String>) -> bool {
        let there = self.values[column].get_or_init(|| {
            let mut there: Vec<String> = Vec::new();
            for value in self.rows.iter().filter_map(|event| text_of(event, column)) {
                if !there.iter().any(|known| **known == *value) {
                    there.push(value.into_owned());
                }
            }
            there
        });
        there.iter().any(|value| values.contains(value))
    }

    pub(crate) fn column(&self, index: usize) -> &ArrayRef {
        self.columns[index].get_or_init(|| self.column_of(index, &self.rows))
    }

    /// A column, which is kept for the next who asks unless it keeps no more.
    pub(crate) fn column_now(&self, index: usize) -> ArrayRef {
        match self.columns[index].get() {
            None if self.is_closed => self.column_of(index, &self.rows),
            _ => Arc::clone(self.column(index)),
        }
    }

    /// What the columns take that are made so far.
    pub(crate) fn made_bytes(&self) -> usize {
        self.columns.iter().filter_map(OnceLock::get).map(|column| column.get_array_memory_size()).sum()
    }

    /// The same as a column, of some of its events alone.
    pub(crate) fn column_of(&self, index: usize, rows: &[Arc<SecurityEvent>]) -> ArrayRef {
        match plain(index) {
            Some(column) => column.build(rows),
            None => SIDE_COLUMNS[index - COLUMNS.len()].build(rows, self.sides.as_ref()),
        }
    }
}

impl std::fmt::Debug for EventBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventBatch").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use aegis_model::{EventKind, SourceTrust, TenantId};

    #[test]
    fn every_field_of_an_event_is_a_column_and_the_other_way_round() {
        let mut event =
            SecurityEvent::new(TenantId::new("t").unwrap(), "e", "edge", EventKind::AuthorizeDecision, Timestamp::from_micros(7));
        event.source_trust = Some(SourceTrust::Unknown);
        event.matched_policies = vec!["p".into()];
        let mut full = serde_json::to_value(&event).unwrap();
        // Absent is null: fill what serde leaves out from the table, then compare the names of the other direction.
        let schema = events_schema();
        for field in schema.fields() {
            full.as_object_mut().unwrap().entry(field.name().clone()).or_insert(serde_json::Value::Null);
        }
        let names: std::collections::BTreeSet<_> = schema.fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(full.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>(), names);
        let debug = format!("{event:?}");
        for name in &names {
            assert!(debug.contains(&format!("{name}: ")), "{name} is no field of an event");
        }
        let batch = EventBatch::new(vec![Arc::new(event)]).to_record_batch().unwrap();
        assert_eq!((batch.num_rows(), batch.num_columns()), (1, names.len()));
    }

    #[test]
    fn a_containing_rule_has_no_score_column() {
        let names: Vec<_> = View::WithoutScore.columns().into_iter().map(column_name).collect();
        assert!(!names.contains(&SCORE_COLUMN));
        assert_eq!(names.len() + 1, COLUMNS.len());
    }

    #[test]
    fn only_a_rule_that_names_a_column_of_a_side_table_has_them() {
        let has = |view: View| view.columns().into_iter().filter(|column| is_side(*column)).count();
        assert_eq!([View::Full, View::WithoutScore, View::WithSides].map(has), [0, 0, SIDE_COLUMNS.len()]);
        for column in View::WithSides.columns().into_iter().chain(View::Alerts.columns()) {
            assert_eq!(column_index(column_name(column)), Some(column));
            assert_eq!(schema_of(&[column]).field(0).name(), column_name(column));
        }
    }
}
