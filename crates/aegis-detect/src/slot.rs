//! Our own scan: a table whose rows are put into a slot before each run, so that a physical plan can be cached.
//! Never holds rows of its own beyond the slot; a plan over it sees what the slot holds when it is executed.

use std::sync::Arc;

use aegis_sql::{Source, leaf};
use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};
use parking_lot::Mutex;

use crate::schema::{EventBatch, TABLE, View, schema_of};

/// Where a run's rows are put.
#[derive(Clone, Debug)]
pub(crate) struct Slot(Arc<Mutex<Arc<EventBatch>>>);

impl Slot {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Arc::new(EventBatch::new(Vec::new())))))
    }

    pub(crate) fn put(&self, batch: Arc<EventBatch>) {
        *self.0.lock() = batch;
    }

    pub(crate) fn clear(&self) {
        self.put(Arc::new(EventBatch::new(Vec::new())));
    }

    fn get(&self) -> Arc<EventBatch> {
        Arc::clone(&self.0.lock())
    }
}

/// The table `events` over a slot.
#[derive(Debug)]
pub(crate) struct EventsTable {
    slot: Slot,
    columns: Vec<usize>,
    schema: SchemaRef,
}

impl EventsTable {
    pub(crate) fn new(slot: Slot, view: View) -> Self {
        let columns = view.columns();
        let schema = schema_of(&columns);
        Self { slot, columns, schema }
    }
}

#[async_trait]
impl TableProvider for EventsTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = match projection {
            Some(projection) => projection.iter().map(|i| self.columns[*i]).collect(),
            None => self.columns.clone(),
        };
        let schema = schema_of(&columns);
        Ok(leaf(SlotRows { slot: self.slot.clone(), columns }, schema))
    }
}

/// What the leaf of a cached plan reads.
#[derive(Debug)]
struct SlotRows {
    slot: Slot,
    columns: Vec<usize>,
}

impl Source for SlotRows {
    fn name(&self) -> &'static str {
        "SlotExec"
    }

    fn shown(&self, columns: &str) -> String {
        format!("{TABLE}[{columns}]")
    }

    fn rows(&self, schema: SchemaRef) -> Result<SendableRecordBatchStream> {
        let rows = self.slot.get();
        let batch = rows.select(&self.columns, Arc::clone(&schema)).map_err(DataFusionError::from)?;
        Ok(Box::pin(MemoryStream::try_new(vec![batch], schema, None)?))
    }
}
