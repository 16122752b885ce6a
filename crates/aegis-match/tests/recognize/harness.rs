//! A session over one small table, and queries of it whose rows are texts.

use std::sync::Arc;

use aegis_match::{Limits, Report, install, plan_query};
use aegis_sql::{Refused, block_on};
use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::datasource::MemTable;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::{SessionConfig, SessionContext};

/// A row of the table `t`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// The partition.
    pub(crate) g: Option<String>,
    /// The order, in seconds.
    pub(crate) ts: i64,
    pub(crate) x: Option<i64>,
    /// The letters that the row may be mapped to, in conditions that look at them.
    pub(crate) k: String,
    pub(crate) id: String,
}

/// Rows written as `partition:letters:number`, with times 0, 1, 2, … and ids from 1 on in each partition: `p1`, `p2`, …; `-` is null.
pub(crate) fn rows(text: &str) -> Vec<Row> {
    let mut counts = std::collections::HashMap::new();
    let row = |(place, word): (usize, &str)| {
        let mut parts = word.split(':');
        let mut part = || parts.next().filter(|part| *part != "-").map(str::to_owned);
        let g = part();
        let count = counts.entry(g.clone()).or_insert(0);
        *count += 1;
        let id = format!("{}{count}", g.clone().unwrap_or_default());
        Row { g, ts: place as i64, k: part().unwrap_or_default(), x: part().map(|x| x.parse().unwrap()), id }
    };
    text.split_whitespace().enumerate().map(row).collect()
}

pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("g", DataType::Utf8, true),
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
        Field::new("x", DataType::Int64, true),
        Field::new("k", DataType::Utf8, false),
        Field::new("id", DataType::Utf8, false),
    ]))
}

pub(crate) fn batch(rows: &[Row]) -> RecordBatch {
    let texts = |text: fn(&Row) -> Option<&str>| -> ArrayRef { Arc::new(rows.iter().map(text).collect::<StringArray>()) };
    let ts = rows.iter().map(|row| Some(row.ts * 1_000_000)).collect::<TimestampMicrosecondArray>().with_timezone("UTC");
    let columns = vec![
        texts(|row| row.g.as_deref()),
        Arc::new(ts),
        Arc::new(rows.iter().map(|row| row.x).collect::<Int64Array>()),
        texts(|row| Some(&row.k)),
        texts(|row| Some(&row.id)),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// A session over tables, each of batches of one schema.
pub(crate) struct Session {
    pub(crate) state: SessionState,
    pub(crate) report: Report,
}

impl Session {
    pub(crate) fn new(rows: &[Row]) -> Self {
        Self::over(vec![batch(rows)], Limits::default())
    }

    pub(crate) fn over(batches: Vec<RecordBatch>, limits: Limits) -> Self {
        Self::in_batches_of(8192, batches, limits)
    }

    /// The same, where operators hand on so many rows at a time.
    pub(crate) fn in_batches_of(size: usize, batches: Vec<RecordBatch>, limits: Limits) -> Self {
        let mut config = SessionConfig::new().with_target_partitions(1).with_batch_size(size);
        config.options_mut().optimizer.enable_dynamic_filter_pushdown = false;
        let report = Report::default();
        let builder = SessionStateBuilder::new().with_config(config).with_default_features();
        let context = SessionContext::new_with_state(install(builder, limits, report.clone()).build());
        let table = MemTable::try_new(batches[0].schema(), vec![batches]).unwrap();
        context.register_table("t", Arc::new(table)).unwrap();
        Self { state: context.state(), report }
    }

    pub(crate) fn logical(&self, sql: &str) -> Result<LogicalPlan> {
        let plan = plan_query(&self.state, sql).map_err(|refused| match refused {
            Refused::Engine(error) => error,
            Refused::NotOneQuery(what) => DataFusionError::Plan(format!("this is {what}")),
        })?;
        aegis_sql::analyze(&self.state, plan)
    }

    pub(crate) fn physical(&self, sql: &str) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = aegis_sql::optimize(&self.state, &self.logical(sql)?)?;
        aegis_sql::physical(&self.state, &plan)
    }

    pub(crate) fn run(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Vec<RecordBatch>> {
        block_on(collect(plan, self.state.task_ctx()))
    }

    /// The rows of a query as texts, cells divided by a bar.
    pub(crate) fn query(&self, sql: &str) -> Result<Vec<String>> {
        Ok(texts(&self.run(self.physical(sql)?)?))
    }

    /// The same without the optimizer.
    pub(crate) fn query_as_written(&self, sql: &str) -> Result<Vec<String>> {
        let plan = aegis_sql::physical(&self.state, &self.logical(sql)?)?;
        Ok(texts(&self.run(plan)?))
    }

    /// The rows of a query that works.
    pub(crate) fn rows(&self, sql: &str) -> Vec<String> {
        self.query(sql).unwrap_or_else(|error| panic!("{error}\n{sql}"))
    }
}

pub(crate) fn texts(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("-");
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<ArrayFormatter<'_>> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|"));
        }
    }
    rows
}

/// The rows in an order of their own: for queries that promise none.
pub(crate) fn sorted(mut rows: Vec<String>) -> Vec<String> {
    rows.sort();
    rows
}

/// The clauses of a `MATCH_RECOGNIZE` over `t`, ordered by time, with conditions that a row has the letter of its variable.
pub(crate) fn letters(partition: &str, measures: &str, skip: &str, pattern: &str) -> String {
    let defines: Vec<String> = ["a", "b", "c"]
        .iter()
        .filter(|letter| pattern.split(|c: char| !c.is_alphabetic()).any(|word| word == **letter))
        .map(|letter| format!("{letter} AS strpos(k, '{letter}') > 0"))
        .collect();
    let define = defines.join(", ");
    format!(
        "SELECT * FROM t MATCH_RECOGNIZE ({partition} ORDER BY ts MEASURES {measures} {skip} PATTERN ({pattern}) DEFINE {define})"
    )
}
