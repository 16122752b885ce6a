//! A plan's leaf: an operator over rows that come from outside the engine.
//! Promises one partition that ends, and rows that are asked for anew each time that the plan is run. Knows nothing of where they are.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions, SendableRecordBatchStream,
};

/// Where a leaf's rows are.
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// The operator's name in a plan that is shown.
    fn name(&self) -> &'static str;

    /// What is read, for such a plan: the table with these columns, and which of its rows.
    fn shown(&self, columns: &str) -> String;

    /// The rows, of this schema, from the first on.
    fn rows(&self, schema: SchemaRef) -> Result<SendableRecordBatchStream>;
}

/// The operator over a source's rows of a schema.
#[must_use]
pub fn leaf(source: impl Source, schema: SchemaRef) -> Arc<dyn ExecutionPlan> {
    let properties = PlanProperties::new(
        EquivalenceProperties::new(Arc::clone(&schema)),
        Partitioning::UnknownPartitioning(1),
        EmissionType::Incremental,
        Boundedness::Bounded,
    );
    Arc::new(Leaf { source: Box::new(source), schema, properties: Arc::new(properties) })
}

#[derive(Debug)]
struct Leaf {
    source: Box<dyn Source>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for Leaf {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "{}: {}", self.source.name(), self.source.shown(&names.join(", ")))
    }
}

impl ExecutionPlan for Leaf {
    fn name(&self) -> &'static str {
        self.source.name()
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
        self.source.rows(Arc::clone(&self.schema))
    }
}
