//! One SQL query over one tenant's rows, read-only and bounded: in time, in memory, in rows.
//! Promises that nothing but the table `events` of that tenant is there for it, and that what is not a query is refused before it runs.

use std::sync::Arc;
use std::time::Duration;

use aegis_detect::TABLE;
use aegis_match::{Limits, Refusal, Report};
use aegis_model::TenantId;
use aegis_sql::Refused;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures_util::StreamExt;
use object_store::ObjectStore;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::error::{QueryError, harmless};
use crate::refuse::check;
use crate::table::LakeTable;

/// Longest time of a query, seconds: files that it can want are kept for longer.
pub const QUERY_SECONDS: u64 = 300;
/// Batches that wait for whoever takes the answer.
const WAITING: usize = 2;

/// What a query may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most rows of an answer.
    pub rows: usize,
    /// Memory of its operators, bytes.
    pub memory: usize,
    /// Time from the first read on, seconds; at most `QUERY_SECONDS`.
    pub seconds: u64,
}

impl Default for Bounds {
    /// 1,000 rows, 512 MiB, one minute.
    fn default() -> Self {
        Self { rows: 1000, memory: 512 << 20, seconds: 60 }
    }
}

/// An answer as it comes.
#[derive(Debug)]
pub struct Answer {
    schema: SchemaRef,
    table: Arc<LakeTable>,
    batches: mpsc::Receiver<Result<RecordBatch, DataFusionError>>,
    work: JoinHandle<()>,
    /// Where row patterns say what they gave up.
    report: Report,
    deadline: Instant,
    bounds: Bounds,
    given: usize,
    is_cut: bool,
    is_over: bool,
}

/// Plans a query over a tenant's rows and starts it. For a runtime with several threads: the query has one, and the bound on its time another.
pub async fn query(store: Arc<dyn ObjectStore>, tenant: &TenantId, text: &str, bounds: Bounds) -> Result<Answer, QueryError> {
    let bounds = Bounds { seconds: bounds.seconds.min(QUERY_SECONDS), ..bounds };
    let deadline = Instant::now() + Duration::from_secs(bounds.seconds);
    // Also of a store that does not answer.
    let opened = timeout_at(deadline, LakeTable::open(store, tenant)).await;
    let table = Arc::new(opened.map_err(|_| QueryError::Time(bounds.seconds))??);
    let report = Report::default();
    let state = session(Arc::clone(&table), bounds, report.clone()).map_err(explain)?;
    let written = aegis_match::plan_query(&state, text).map_err(|refused| match refused {
        Refused::NotOneQuery(what) => QueryError::NotOneQuery(what),
        Refused::Engine(error) => explain(error),
    })?;
    check(&written)?;
    let optimized = aegis_sql::optimize(&state, &written).map_err(explain)?;
    let plan = aegis_sql::physical(&state, &optimized).map_err(explain)?;
    let schema = plan.schema();
    let task = state.task_ctx();
    let (sender, batches) = mpsc::channel(WAITING);
    let work = tokio::spawn(async move {
        let mut stream = match execute_stream(plan, task) {
            Ok(stream) => stream,
            Err(error) => {
                let _nobody_waits = sender.send(Err(error)).await;
                return;
            }
        };
        while let Some(batch) = stream.next().await {
            let is_over = batch.is_err();
            if sender.send(batch).await.is_err() || is_over {
                return;
            }
        }
    });
    Ok(Answer { schema, table, batches, work, report, deadline, bounds, given: 0, is_cut: false, is_over: false })
}

impl Answer {
    /// The columns.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The next rows. None: that was all, or the bound on rows is reached.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, QueryError> {
        while !self.is_over {
            match timeout_at(self.deadline, self.batches.recv()).await {
                Ok(Some(batch)) => {
                    let rows = self.within_bound(&batch.map_err(explain)?);
                    if rows.num_rows() > 0 {
                        return Ok(Some(rows));
                    }
                }
                Ok(None) => {
                    self.is_over = true;
                    // It has ended, well or by a panic.
                    (&mut self.work).await.map_err(|_| QueryError::Ended)?;
                }
                Err(_) => {
                    self.is_over = true;
                    return Err(QueryError::Time(self.bounds.seconds));
                }
            }
        }
        // Rows that a row pattern gave up must not look like rows that are not there.
        match self.report.take().first.first() {
            Some(overrun) => {
                Err(QueryError::Engine { message: harmless(&format!("MATCH_RECOGNIZE gave up: {overrun}")), place: None })
            }
            None => Ok(None),
        }
    }

    /// As many of the rows as may still be given.
    fn within_bound(&mut self, batch: &RecordBatch) -> RecordBatch {
        let rows = batch.num_rows().min(self.bounds.rows - self.given);
        self.given += rows;
        if rows < batch.num_rows() {
            self.is_cut = true;
            self.is_over = true;
        }
        batch.slice(0, rows)
    }

    /// True if there were more rows than the bound.
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// The table that it was read from.
    #[must_use]
    pub fn table(&self) -> &LakeTable {
        &self.table
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.work.abort();
    }
}

fn session(table: Arc<LakeTable>, bounds: Bounds, report: Report) -> Result<SessionState, DataFusionError> {
    let mut config = SessionConfig::new().with_target_partitions(1).with_information_schema(false).with_collect_statistics(false);
    config.options_mut().sql_parser.collect_spans = true;
    let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(bounds.memory, 1.0).with_disk_manager_builder(disk).build_arc()?;
    let builder = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features();
    let state = aegis_match::install(builder, Limits::default(), report).build();
    let context = SessionContext::new_with_state(state);
    context.register_table(TABLE, table)?;
    Ok(context.state())
}

/// An engine's refusal or failure for people, with the place where it gives one.
fn explain(error: DataFusionError) -> QueryError {
    if let Some(refusal) = Refusal::in_error(&error) {
        let hint = refusal.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
        let place = refusal.place.map(|place| (place.line, place.column));
        return QueryError::Engine { message: harmless(&format!("{}{hint}", refusal.message)), place };
    }
    let span = error.diagnostic().and_then(|diagnostic| diagnostic.span);
    let message = harmless(&error.strip_backtrace().split_whitespace().collect::<Vec<_>>().join(" "));
    let place = span.map(|span| (span.start.line, span.start.column)).or_else(|| place_in(&message));
    QueryError::Engine { message, place }
}

/// Where the parser says that it stopped: `… at Line: 1, Column: 8`.
fn place_in(message: &str) -> Option<(u64, u64)> {
    let number = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    let (_, behind) = message.split_once("Line: ")?;
    let (_, column) = behind.split_once("Column: ")?;
    Some((number(behind)?, number(column)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parsers_place_is_read_from_its_message() {
        assert_eq!(place_in("Expected: an expression, found: FROM at Line: 2, Column: 17"), Some((2, 17)));
        assert_eq!(place_in("no place"), None);
    }
}
