//! The operator: all rows in, sorted by partition and order, one row out for each match. One partition's rows are held at a time, and accounted
//! for; nothing is spawned.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, RecordBatch};
use datafusion::arrow::compute::{SortOptions, concat, partition};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::physical_expr::{
    Distribution, EquivalenceProperties, LexRequirement, OrderingRequirements, PhysicalExpr, PhysicalSortExpr,
};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, InputDistributionRequirements, Partitioning, PlanProperties,
    ReplaceChildrenOptions, SendableRecordBatchStream,
};
use futures_util::{StreamExt, stream};

use crate::kept::bytes_of;
use crate::limits::Report;
use crate::node::write_parts;
use crate::output::Output;
use crate::partition::Partition;
use crate::recognizer::Recognizer;

/// Rows of a batch of the output, about.
const BATCH_ROWS: usize = 8192;

/// Runs a `MATCH_RECOGNIZE` over its whole input.
#[derive(Debug)]
pub struct MatchExec {
    input: Arc<dyn ExecutionPlan>,
    recognizer: Arc<Recognizer>,
    report: Report,
    properties: Arc<PlanProperties>,
}

impl MatchExec {
    /// The operator over an input of the recognizer's input schema.
    #[must_use]
    pub fn new(input: Arc<dyn ExecutionPlan>, recognizer: Arc<Recognizer>, report: Report) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(recognizer.schema())),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self { input, recognizer, report, properties: Arc::new(properties) }
    }
}

impl DisplayAs for MatchExec {
    fn fmt_as(&self, _: DisplayFormatType, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "MatchExec: ")?;
        write_parts(formatter, &self.recognizer.partition_by, &self.recognizer.order_by, &self.recognizer.definition)
    }
}

impl ExecutionPlan for MatchExec {
    fn name(&self) -> &'static str {
        "MatchExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition])
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        let first = SortOptions { descending: false, nulls_first: true };
        let partition = self.recognizer.partition_by.iter().map(|expr| PhysicalSortExpr::new(Arc::clone(expr), first));
        let order = partition.chain(self.recognizer.order_by.iter().cloned());
        vec![LexRequirement::new(order.map(Into::into)).map(OrderingRequirements::new)]
    }

    fn apply_expressions(
        &self,
        apply: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let order = self.recognizer.order_by.iter().map(|sort| &sort.expr);
        for expr in self.recognizer.partition_by.iter().chain(order) {
            if apply(expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input, Arc::clone(&self.recognizer), self.report.clone()))),
            _ => Err(DataFusionError::Internal("MatchExec has one input".into())),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(
            children,
            ReplaceChildrenOptions::new(datafusion::physical_plan::execution_plan::ChildrenPropertiesMode::Recompute),
        )
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let reservation = MemoryConsumer::new("MatchExec").register(context.memory_pool());
        let output = Output::accounted_for(reservation.new_empty());
        let run = Run {
            input: Some(input),
            recognizer: Arc::clone(&self.recognizer),
            report: self.report.clone(),
            reservation,
            current: None,
            kept_bytes: 0,
            output,
        };
        let batches = stream::try_unfold(run, |mut run| async move { Ok(run.next().await?.map(|batch| (batch, run))) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(self.recognizer.schema()), batches)))
    }
}

/// One run.
struct Run {
    /// None once it has ended.
    input: Option<SendableRecordBatchStream>,
    recognizer: Arc<Recognizer>,
    report: Report,
    reservation: MemoryReservation,
    current: Option<Partition>,
    kept_bytes: usize,
    output: Output,
}

impl Run {
    /// The next batch of the output; none after the last.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while let Some(input) = &mut self.input {
            match input.next().await {
                Some(batch) => self.take(&batch?)?,
                None => {
                    self.input = None;
                    self.finish()?;
                }
            }
            if self.output.ready_rows() >= BATCH_ROWS {
                break;
            }
        }
        if self.output.ready_rows() == 0 {
            return Ok(None);
        }
        Ok(Some(self.output.take_ready(&self.recognizer)?))
    }

    fn take(&mut self, batch: &RecordBatch) -> Result<()> {
        let rows = batch.num_rows();
        if rows == 0 {
            return Ok(());
        }
        let keys = self.recognizer.partition_by.iter().map(|expr| expr.evaluate(batch)?.into_array(rows));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let columns = self.recognizer.columns(batch)?;
        let ranges = if keys.is_empty() { std::iter::once(0..rows).collect() } else { partition(&keys)?.ranges() };
        for range in ranges {
            let len = range.end - range.start;
            let slice = |array: &ArrayRef, len: usize| array.slice(range.start, len);
            let key: Vec<ArrayRef> = keys.iter().map(|array| slice(array, 1)).collect();
            let same = self.current.as_ref().map(|current| same_key(&current.key, &key)).transpose()?;
            if same != Some(true) {
                self.finish()?;
            }
            let columns: Vec<ArrayRef> = columns.iter().map(|array| slice(array, len)).collect();
            self.kept_bytes += bytes_of(&columns);
            self.reservation.try_resize(self.kept_bytes)?;
            let current = self.current.get_or_insert_with(|| Partition::new(key, &self.recognizer));
            current.kept.push(columns, len)?;
        }
        Ok(())
    }

    /// The current partition has no further row: finds its matches.
    fn finish(&mut self) -> Result<()> {
        let Some(mut current) = self.current.take() else { return Ok(()) };
        self.reservation.try_resize(self.kept_bytes + self.recognizer.search_bytes(current.kept.end()))?;
        current.find(&self.recognizer, &self.report, &mut self.output)?;
        self.kept_bytes = 0;
        self.reservation.try_resize(0)
    }
}

/// Whether two keys are of the same partition; nulls are.
fn same_key(one: &[ArrayRef], other: &[ArrayRef]) -> Result<bool> {
    if one.is_empty() {
        return Ok(true);
    }
    let both = one.iter().zip(other).map(|(one, other)| concat(&[one as &dyn Array, other as &dyn Array]));
    Ok(partition(&both.collect::<Result<Vec<_>, _>>()?)?.len() == 1)
}
