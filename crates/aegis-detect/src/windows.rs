//! Window functions over new rows only: one node of a query, with what each partition knows of the rows before.
//! Promises the values that the query engine's own operator has over all rows. What it cannot follow it does not take: see `Windows::build`.

mod prepared;

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, ListArray, RecordBatch, StringArray, UInt64Array, new_null_array};
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer};
use datafusion::arrow::datatypes::{DataType, UInt64Type};
use datafusion::arrow::row::{RowConverter, Rows, SortField};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::{Expr, Window, WindowFunctionDefinition};
use datafusion::physical_expr::PhysicalExpr;

use crate::known::Frames;
use crate::schema::EventBatch;
use crate::shape::{frame_of, window_function};
use crate::sliding::{Frame, Partition, Value, Values};
pub(crate) use prepared::{Given, Prepared, Read};

/// All functions of a node.
#[derive(Debug)]
pub(crate) struct Windows {
    groups: Vec<Group>,
    functions: Vec<Function>,
    read: Read,
}

/// Functions with the same PARTITION BY.
#[derive(Debug)]
struct Group {
    /// Which of a bucket's states it has.
    state: usize,
    /// What splits a bucket further.
    split: Vec<Arc<dyn PhysicalExpr>>,
    split_rows: Option<RowConverter>,
    arguments: Vec<Argument>,
    frames: Arc<[Frame]>,
}

#[derive(Debug)]
struct Argument {
    value: Option<Arc<dyn PhysicalExpr>>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    /// Where the values matter, and not only whether there is one.
    encoding: Option<Encoding>,
    keeps_nulls: bool,
}

/// Values of one type as what compares as they do.
#[derive(Debug)]
enum Encoding {
    /// Of the events' own ids: no column is made of them.
    Ids,
    /// As they are.
    Texts,
    Rows {
        data_type: DataType,
        rows: RowConverter,
        null: Value,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Count,
    Distinct,
    Least,
    Greatest,
    List,
}

#[derive(Debug)]
struct Function {
    group: usize,
    frame: usize,
    kind: Kind,
    data_type: DataType,
}

/// Of the rows of a run: whose they are and when they were.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// Which of the buckets of this run.
    pub(crate) bucket: usize,
    pub(crate) ts: i64,
    /// How many of the bucket's events of that time are before theirs.
    pub(crate) place: u32,
    /// Which of the events of the run it is.
    pub(crate) event: usize,
}

/// Whether values of a type can be compared as bytes exactly as the query engine compares them.
pub(crate) fn has_order(data_type: &DataType) -> bool {
    data_type.is_integer()
        || matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean)
        || matches!(data_type, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64)
}

/// A group while it is put together.
struct Draft {
    partition_by: Vec<Expr>,
    arguments: Vec<DraftArgument>,
    frames: Vec<Frame>,
}

#[derive(Clone, PartialEq)]
struct DraftArgument {
    value: Option<Expr>,
    filter: Option<Expr>,
    keeps_nulls: bool,
    has_rows: bool,
}

/// What says of a window's input which of its columns are what.
pub(crate) struct Columns<'a> {
    /// An expression that has one value in a bucket.
    pub(crate) is_constant: &'a dyn Fn(&Expr) -> bool,
    /// The event's own id.
    pub(crate) is_id: &'a dyn Fn(&Expr) -> bool,
}

impl Windows {
    /// What of its input's columns it reads.
    pub(crate) fn reads(window: &Window, columns: &Columns<'_>) -> Vec<Expr> {
        let mut read = Vec::new();
        for function in window.window_expr.iter().filter_map(window_function) {
            let params = &function.params;
            let args = params.args.iter().filter(|value| !(columns.is_id)(value));
            let splits = params.partition_by.iter().filter(|expr| !(columns.is_constant)(expr));
            read.extend(args.chain(splits).chain(params.filter.as_deref()).cloned());
        }
        read
    }

    /// The node's functions, if all of them can be followed: count, count of different values, min, max and `array_agg`, with or without FILTER.
    /// `states` counts the states that a bucket needs.
    pub(crate) fn build(
        state: &SessionState,
        window: &Window,
        columns: &Columns<'_>,
        states: &mut usize,
    ) -> Result<Option<Self>> {
        let mut drafts: Vec<Draft> = Vec::new();
        let mut functions = Vec::new();
        let first = window.input.schema().fields().len();
        for (place, expr) in window.window_expr.iter().enumerate() {
            let Some(function) = window_function(expr) else { return Ok(None) };
            let data_type = window.schema.field(first + place).data_type().clone();
            let Some(function) = draft(&mut drafts, function, data_type) else { return Ok(None) };
            functions.push(function);
        }
        let split = |draft: &Draft| -> Vec<Expr> {
            draft.partition_by.iter().filter(|expr| !(columns.is_constant)(expr)).cloned().collect()
        };
        let read = Read::of(drafts.iter().map(|draft| (split(draft), draft.arguments.clone())));
        let mut groups = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let Some(group) = Group::build(state, window, draft, columns, *states)? else { return Ok(None) };
            *states += 1;
            groups.push(group);
        }
        let type_of = |function: &Function| groups[function.group].encoding(function.frame).map(Encoding::data_type);
        let typed = |function: &Function| match function.kind {
            Kind::Count | Kind::Distinct => function.data_type == DataType::Int64,
            Kind::Least | Kind::Greatest => type_of(function) == Some(&function.data_type),
            Kind::List => match &function.data_type {
                DataType::List(item) => type_of(function) == Some(item.data_type()),
                _ => false,
            },
        };
        Ok(functions.iter().all(typed).then_some(Self { groups, functions, read }))
    }

    /// Which of them make lists.
    pub(crate) fn lists(&self) -> impl Iterator<Item = usize> {
        self.functions.iter().enumerate().filter(|(_, function)| function.kind == Kind::List).map(|(place, _)| place)
    }

    /// What its groups read of rows.
    pub(crate) const fn read(&self) -> &Read {
        &self.read
    }

    /// What each group reads of these rows. Of the origins it is asked which event is whose row alone.
    pub(crate) fn prepare(&self, events: &EventBatch, rows: &RecordBatch, origins: &[Origin]) -> Result<Vec<Prepared>> {
        self.groups.iter().map(|group| group.prepare(events, rows, origins)).collect()
    }

    /// The columns of the functions for these rows of events, which come after all that the states have seen, each bucket's in the order of time; `given` is
    /// what was prepared of them. In place of a list stands which partition its row is in: most rows are filtered out before anybody reads their lists. See
    /// `list`.
    pub(crate) fn run<'a>(
        &self,
        origins: &[Origin],
        states: &mut [Frames],
        given: impl Iterator<Item = Given<'a>>,
    ) -> Result<Vec<ArrayRef>> {
        let mut columns: Vec<Option<ArrayRef>> = vec![None; self.functions.len()];
        for ((index, group), given) in self.groups.iter().enumerate().zip(given) {
            let mine = |(_, function): &(usize, &Function)| function.group == index;
            let functions: Vec<(usize, &Function)> = self.functions.iter().enumerate().filter(mine).collect();
            let places = group.take(given, origins, states);
            let (lists, functions): (Vec<_>, Vec<_>) =
                functions.into_iter().partition(|(_, function)| function.kind == Kind::List);
            let mut outputs: Vec<Output> =
                functions.iter().map(|(_, function)| Output::new(function.kind, origins.len())).collect();
            for (origin, place) in origins.iter().zip(&places).filter(|_| !functions.is_empty()) {
                let partition = &mut states[origin.bucket][group.state].partitions[*place];
                partition.seek(origin.ts);
                for ((_, function), output) in functions.iter().zip(&mut outputs) {
                    output.add(partition, function.frame);
                }
            }
            for ((place, function), output) in functions.into_iter().zip(outputs) {
                columns[place] = Some(output.finish(group, function)?);
            }
            if !lists.is_empty() {
                let places: ArrayRef = Arc::new(places.iter().map(|place| *place as u64).collect::<UInt64Array>());
                lists.iter().for_each(|(place, _)| columns[*place] = Some(Arc::clone(&places)));
            }
        }
        Ok(columns.into_iter().flatten().collect())
    }

    /// The lists of one function for these rows, of which `places` says in which partition each is. The states have seen all of them, and
    /// maybe later ones.
    pub(crate) fn list(&self, function: usize, places: &ArrayRef, origins: &[Origin], states: &mut [Frames]) -> Result<ArrayRef> {
        let function = &self.functions[function];
        let group = &self.groups[function.group];
        let places = places.as_primitive_opt::<UInt64Type>();
        let places = places.ok_or_else(|| DataFusionError::Internal("a list has no place".into()))?;
        let bytes_of_a_list = (BYTES_OF_LISTS / origins.len().max(1)).clamp(LEAST_BYTES_OF_A_LIST, MOST_BYTES_OF_A_LIST);
        let (mut lengths, mut items) = (Vec::with_capacity(origins.len()), Vec::new());
        for (origin, place) in origins.iter().zip(places.values()) {
            let partition = &mut states[origin.bucket][group.state].partitions[*place as usize];
            partition.seek(origin.ts);
            let values = partition.values(function.frame, bytes_of_a_list);
            lengths.push(values.len());
            items.extend(values.into_iter().cloned());
        }
        let DataType::List(item) = &function.data_type else {
            return Err(DataFusionError::Internal("a list is no list".into()));
        };
        let values = decode(group, function, items.iter().map(Some))?;
        // Of nothing there is no list.
        let nulls = NullBuffer::from_iter(lengths.iter().map(|length| *length > 0));
        Ok(Arc::new(ListArray::try_new(Arc::clone(item), OffsetBuffer::from_lengths(lengths), values, Some(nulls))?))
    }
}

fn draft(drafts: &mut Vec<Draft>, function: &WindowFunction, data_type: DataType) -> Option<Function> {
    let WindowFunctionDefinition::AggregateUDF(aggregate) = &function.fun else { return None };
    let params = &function.params;
    let [value] = params.args.as_slice() else { return None };
    if params.null_treatment.is_some() {
        return None;
    }
    let (kind, keeps_nulls) = match (aggregate.name(), params.distinct) {
        ("count", false) => (Kind::Count, false),
        ("count", true) => (Kind::Distinct, false),
        ("min", _) => (Kind::Least, false),
        ("max", _) => (Kind::Greatest, false),
        ("array_agg", false) => (Kind::List, true),
        _ => return None,
    };
    let (start, end) = frame_of(function)?;
    let filter = params.filter.as_deref().cloned();
    // `count(*)` counts a constant.
    let counts_rows = kind == Kind::Count && matches!(value, Expr::Literal(literal, _) if !literal.is_null());
    let value = (!counts_rows).then(|| value.clone());
    let group = match drafts.iter().position(|draft| draft.partition_by == params.partition_by) {
        Some(group) => group,
        None => {
            drafts.push(Draft { partition_by: params.partition_by.clone(), arguments: Vec::new(), frames: Vec::new() });
            drafts.len() - 1
        }
    };
    let draft = &mut drafts[group];
    let argument = (value.is_some() || filter.is_some()).then(|| {
        let argument = DraftArgument { value, filter, keeps_nulls, has_rows: kind != Kind::Count };
        place_of(&mut draft.arguments, argument)
    });
    let sorted = matches!(kind, Kind::Distinct | Kind::Least | Kind::Greatest);
    let frame = place_of(&mut draft.frames, Frame { start, end, argument, sorted });
    Some(Function { group, frame, kind, data_type })
}

fn place_of<T: PartialEq>(list: &mut Vec<T>, item: T) -> usize {
    list.iter().position(|there| *there == item).unwrap_or_else(|| {
        list.push(item);
        list.len() - 1
    })
}

impl Group {
    fn build(state: &SessionState, window: &Window, draft: Draft, columns: &Columns<'_>, place: usize) -> Result<Option<Self>> {
        let schema = window.input.schema();
        let physical = |expr: Expr| aegis_sql::physical_expr(state, expr, schema);
        let split = draft
            .partition_by
            .into_iter()
            .filter(|expr| !(columns.is_constant)(expr))
            .map(physical)
            .collect::<Result<Vec<_>>>()?;
        let types = split.iter().map(|expr| expr.data_type(schema.as_arrow())).collect::<Result<Vec<_>>>()?;
        if !types.iter().all(has_order) {
            return Ok(None);
        }
        let split_rows =
            if split.is_empty() { None } else { Some(RowConverter::new(types.into_iter().map(SortField::new).collect())?) };
        let mut arguments = Vec::with_capacity(draft.arguments.len());
        for argument in draft.arguments {
            let is_id = argument.value.as_ref().is_some_and(columns.is_id);
            // An id is there in any case, and read from the event.
            let value = argument.value.filter(|_| !is_id).map(physical).transpose()?;
            let filter = argument.filter.map(physical).transpose()?;
            let data_type = value.as_ref().map(|value| value.data_type(schema.as_arrow())).transpose()?;
            let encoding = match data_type.filter(|_| argument.has_rows) {
                Some(data_type) if !has_order(&data_type) => return Ok(None),
                None if is_id && argument.has_rows => Some(Encoding::Ids),
                data_type => data_type.map(Encoding::of).transpose()?,
            };
            arguments.push(Argument { value, filter, encoding, keeps_nulls: argument.keeps_nulls });
        }
        Ok(Some(Self { state: place, split, split_rows, arguments, frames: draft.frames.into() }))
    }

    /// How the values that a frame is about are encoded.
    fn encoding(&self, frame: usize) -> Option<&Encoding> {
        self.arguments[self.frames[frame].argument?].encoding.as_ref()
    }

    /// Adds the rows to their partitions, and answers which those are.
    fn take(&self, given: Given<'_>, origins: &[Origin], states: &mut [Frames]) -> Vec<usize> {
        match given {
            Given::Own(Prepared { keys, mut arguments }) => self
                .add(keys.as_ref(), origins, states, |index| arguments.iter_mut().map(|values| values[index].take()).collect()),
            Given::Shared(Prepared { keys, arguments }) => {
                self.add(keys.as_ref(), origins, states, |index| arguments.iter().map(|values| values[index].clone()).collect())
            }
        }
    }

    fn add(
        &self,
        keys: Option<&Rows>,
        origins: &[Origin],
        states: &mut [Frames],
        mut values_of: impl FnMut(usize) -> Values,
    ) -> Vec<usize> {
        let mut places = Vec::with_capacity(origins.len());
        for (index, origin) in origins.iter().enumerate() {
            let state = &mut states[origin.bucket][self.state];
            let row = keys.map(|keys| keys.row(index));
            let place = state.place(row.as_ref().map(|row| row.data()), || Partition::new(Arc::clone(&self.frames)));
            state.partitions[place].push(origin.ts, origin.place, values_of(index));
            places.push(place);
        }
        places
    }
}

impl Encoding {
    fn of(data_type: DataType) -> Result<Self> {
        if data_type == DataType::Utf8 {
            return Ok(Self::Texts);
        }
        let rows = RowConverter::new(vec![SortField::new(data_type.clone())])?;
        let null = Value::Bytes(rows.convert_columns(&[new_null_array(&data_type, 1)])?.row(0).data().into());
        Ok(Self::Rows { data_type, rows, null })
    }

    const fn data_type(&self) -> &DataType {
        match self {
            Self::Ids | Self::Texts => &DataType::Utf8,
            Self::Rows { data_type, .. } => data_type,
        }
    }
}

/// Bytes of the lists of one function that one run makes, about; and of one list.
const BYTES_OF_LISTS: usize = 64 << 20;
const LEAST_BYTES_OF_A_LIST: usize = 8 << 10;
const MOST_BYTES_OF_A_LIST: usize = 256 << 10;

/// A column under construction.
enum Output {
    Numbers(Kind, Vec<i64>),
    Values(Kind, Vec<Option<Value>>),
}

impl Output {
    fn new(kind: Kind, rows: usize) -> Self {
        match kind {
            Kind::Count | Kind::Distinct => Self::Numbers(kind, Vec::with_capacity(rows)),
            Kind::Least | Kind::Greatest | Kind::List => Self::Values(kind, Vec::with_capacity(rows)),
        }
    }

    fn add(&mut self, partition: &Partition, frame: usize) {
        match self {
            Self::Numbers(Kind::Count, numbers) => numbers.push(partition.count(frame)),
            Self::Numbers(_, numbers) => numbers.push(partition.distinct(frame)),
            Self::Values(Kind::Least, values) => values.push(partition.least(frame).cloned()),
            Self::Values(_, values) => values.push(partition.greatest(frame).cloned()),
        }
    }

    fn finish(self, group: &Group, function: &Function) -> Result<ArrayRef> {
        match self {
            Self::Numbers(_, numbers) => Ok(Arc::new(Int64Array::from(numbers))),
            Self::Values(_, values) => decode(group, function, values.iter().map(Option::as_ref)),
        }
    }
}

fn decode<'a>(group: &'a Group, function: &Function, values: impl Iterator<Item = Option<&'a Value>>) -> Result<ArrayRef> {
    let internal = |what: &str| DataFusionError::Internal(what.into());
    match group.encoding(function.frame) {
        None => Err(internal("a function of values has none")),
        Some(Encoding::Ids) => {
            let text = |value: Option<&Value>| match value {
                Some(Value::Id(id)) => Ok(Some(id.to_string())),
                Some(_) => Err(internal("a value is no id")),
                None => Ok(None),
            };
            Ok(Arc::new(values.map(text).collect::<Result<StringArray>>()?))
        }
        Some(Encoding::Texts) => {
            let text = |value: Option<&'a Value>| match value {
                Some(Value::Text(text)) => Ok(Some(&**text)),
                Some(Value::Bare) | None => Ok(None),
                Some(_) => Err(internal("a value is no text")),
            };
            Ok(Arc::new(values.map(text).collect::<Result<StringArray>>()?))
        }
        Some(Encoding::Rows { rows, null, .. }) => {
            let parser = rows.parser();
            let bytes = |value: Option<&'a Value>| match value.unwrap_or(null) {
                Value::Bytes(bytes) => Ok(parser.parse(bytes)),
                _ => Err(internal("a value is not encoded")),
            };
            let columns = rows.convert_rows(values.map(bytes).collect::<Result<Vec<_>>>()?)?;
            columns.into_iter().next().ok_or_else(|| internal("no column"))
        }
    }
}
