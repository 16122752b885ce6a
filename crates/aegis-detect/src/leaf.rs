//! Our own scan: a table whose rows are put into a slot before each run, so that a physical plan can be cached.
//! Never holds rows of its own beyond the slot; a plan over it sees what the slot holds when it is executed.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions, SendableRecordBatchStream,
};
use parking_lot::Mutex;

use crate::schema::{EventBatch, View, schema_of};

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
        Ok(Arc::new(SlotExec::new(self.slot.clone(), columns)))
    }
}

/// The leaf of a cached plan.
#[derive(Debug)]
pub(crate) struct SlotExec {
    slot: Slot,
    columns: Vec<usize>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl SlotExec {
    /// The columns of the table that it gives.
    pub(crate) fn columns(&self) -> &[usize] {
        &self.columns
    }

    fn new(slot: Slot, columns: Vec<usize>) -> Self {
        let schema = schema_of(&columns);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { slot, columns, schema, properties: Arc::new(properties) }
    }
}

impl DisplayAs for SlotExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "SlotExec: events[{}]", names.join(", "))
    }
}

impl ExecutionPlan for SlotExec {
    fn name(&self) -> &'static str {
        "SlotExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = self.slot.get();
        let batch = rows.select(&self.columns, Arc::clone(&self.schema)).map_err(DataFusionError::from)?;
        Ok(Box::pin(MemoryStream::try_new(vec![batch], Arc::clone(&self.schema), None)?))
    }
}
