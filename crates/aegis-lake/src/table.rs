//! The table `events` over one tenant's part of the lake.
//! Promises that no object of another tenant is opened (L-TENANT), that each row is seen once while files are merged beside the query, and
//! that files whose times no condition on `ts` can want are not opened.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aegis_detect::{TABLE, events_schema};
use aegis_model::TenantId;
use aegis_sql::{Source, leaf};
use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};
use futures_util::stream::try_unfold;
use object_store::ObjectStore;
use object_store::path::Path;

use crate::bounds::{Span, span_of};
use crate::content::Content;
use crate::error::LakeError;
use crate::file::Rows;
use crate::layout::{Hour, hours};
use crate::manifest::Manifest;

/// One tenant's rows as they were when the table was opened, or a little later: each hour as one manifest has it.
#[derive(Debug)]
pub struct LakeTable {
    snapshot: Arc<Snapshot>,
}

/// What queries over a table have read so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    pub hours: u64,
    pub files: u64,
    pub rows: u64,
}

#[derive(Debug)]
struct Snapshot {
    store: Arc<dyn ObjectStore>,
    hours: BTreeSet<Hour>,
    /// As they were when first wanted: a query that reads the table twice reads the same.
    manifests: tokio::sync::Mutex<BTreeMap<Hour, Arc<Manifest>>>,
    read_hours: AtomicU64,
    read_files: AtomicU64,
    read_rows: AtomicU64,
}

impl Snapshot {
    async fn manifest(&self, hour: &Hour) -> std::result::Result<Arc<Manifest>, LakeError> {
        let mut manifests = self.manifests.lock().await;
        if let Some(known) = manifests.get(hour) {
            return Ok(Arc::clone(known));
        }
        let manifest = Arc::new(Manifest::read(&self.store, hour).await?);
        self.read_hours.fetch_add(1, Ordering::Relaxed);
        manifests.insert(hour.clone(), Arc::clone(&manifest));
        Ok(manifest)
    }

    async fn open(&self, file: &Path, schema: &SchemaRef, span: Span) -> std::result::Result<Rows, LakeError> {
        let content = Content::find(&self.store, file).await?;
        self.read_files.fetch_add(1, Ordering::Relaxed);
        Rows::open(content, schema, span).await
    }
}

impl LakeTable {
    /// Opens a tenant's part of a lake.
    pub async fn open(store: Arc<dyn ObjectStore>, tenant: &TenantId) -> std::result::Result<Self, LakeError> {
        let hours = hours(&store, tenant).await?;
        let snapshot = Snapshot {
            store,
            hours,
            manifests: tokio::sync::Mutex::default(),
            read_hours: AtomicU64::new(0),
            read_files: AtomicU64::new(0),
            read_rows: AtomicU64::new(0),
        };
        Ok(Self { snapshot: Arc::new(snapshot) })
    }

    /// What was read.
    #[must_use]
    pub fn read(&self) -> Read {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let snapshot = &self.snapshot;
        Read { hours: of(&snapshot.read_hours), files: of(&snapshot.read_files), rows: of(&snapshot.read_rows) }
    }

    /// How many rows there are, by the manifests alone.
    pub async fn rows(&self) -> std::result::Result<u64, LakeError> {
        let mut rows = 0;
        for hour in &self.snapshot.hours {
            rows += self.snapshot.manifest(hour).await?.rows();
        }
        Ok(rows)
    }
}

#[async_trait]
impl TableProvider for LakeTable {
    fn schema(&self) -> SchemaRef {
        events_schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Files are left out by it; row by row the engine filters.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(events_schema().project(columns)?),
            None => events_schema(),
        };
        Ok(leaf(Files { snapshot: Arc::clone(&self.snapshot), span: span_of(filters) }, schema))
    }
}

/// Files that are read one after the other.
#[derive(Debug)]
struct Files {
    snapshot: Arc<Snapshot>,
    span: Span,
}

impl Source for Files {
    fn name(&self) -> &'static str {
        "LakeExec"
    }

    fn shown(&self, columns: &str) -> String {
        format!("{TABLE}[{columns}], ts from {} to {}", self.span.from, self.span.to)
    }

    fn rows(&self, schema: SchemaRef) -> Result<SendableRecordBatchStream> {
        let scan = Scan {
            snapshot: Arc::clone(&self.snapshot),
            span: self.span,
            schema: Arc::clone(&schema),
            hours: self.snapshot.hours.iter().filter(|hour| hour.meets(self.span)).cloned().collect(),
            files: VecDeque::new(),
            rows: None,
        };
        let batches = try_unfold(scan, |mut scan| async move { scan.next().await.map(|next| next.map(|batch| (batch, scan))) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}

/// What is left to read.
struct Scan {
    snapshot: Arc<Snapshot>,
    span: Span,
    schema: SchemaRef,
    hours: VecDeque<Hour>,
    files: VecDeque<Path>,
    rows: Option<Rows>,
}

impl Scan {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(rows) = &mut self.rows {
                match rows.next().await.map_err(external)? {
                    Some(batch) => {
                        self.snapshot.read_rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
                        return Ok(Some(batch));
                    }
                    None => self.rows = None,
                }
            } else if let Some(file) = self.files.pop_front() {
                self.rows = Some(self.snapshot.open(&file, &self.schema, self.span).await.map_err(external)?);
            } else if let Some(hour) = self.hours.pop_front() {
                let manifest = self.snapshot.manifest(&hour).await.map_err(external)?;
                self.files.extend(manifest.objects(&hour, self.span));
            } else {
                return Ok(None);
            }
        }
    }
}

fn external(error: LakeError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
