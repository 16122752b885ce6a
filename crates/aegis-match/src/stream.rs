//! Streaming: rows of partitions as they come, matches as they become decidable. What comes out, all of it, is what the operator finds in
//! all rows at once (L-MATCH-STREAM).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aegis_pattern::Saved;
use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt64Array};
use datafusion::arrow::compute::take;
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::error::Result;

use crate::limits::{Budget, Overrun, Report};
use crate::output::Output;
use crate::partition::{Partition, key_text};
use crate::recognizer::Recognizer;

/// A query over rows that still come.
#[derive(Debug)]
pub struct Streaming {
    recognizer: Arc<Recognizer>,
    report: Report,
    /// None: there is one partition.
    converter: Option<RowConverter>,
    partitions: BTreeMap<Key, Partition>,
    /// Those that may have something to find.
    touched: BTreeSet<Key>,
    watermark: Option<i64>,
    kept_rows: usize,
}

/// A partition's columns as they sort.
type Key = Option<OwnedRow>;

/// All that is needed to go on, besides the query.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub partitions: Vec<PartitionSnapshot>,
    pub watermark: Option<i64>,
}

/// One partition's state: where the search stands, and the rows from there on.
#[derive(Clone, Debug)]
pub struct PartitionSnapshot {
    /// The partition's columns, one row.
    pub key: RecordBatch,
    /// The start row that is looked at next, counted from the partition's first row ever.
    pub start_row: u64,
    /// Matches found before it.
    pub matches: u64,
    /// The number of the first row kept.
    pub first_row: u64,
    /// The kept rows: what the query reads of them.
    pub rows: RecordBatch,
}

impl Streaming {
    /// Nothing has come yet.
    ///
    /// # Errors
    /// A partition column of a type that cannot be sorted.
    pub fn new(recognizer: Arc<Recognizer>, report: Report) -> Result<Self> {
        let fields = recognizer.schema.fields().iter().take(recognizer.partition_by.len());
        let fields: Vec<SortField> = fields.map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = if fields.is_empty() { None } else { Some(RowConverter::new(fields)?) };
        let (partitions, touched) = (BTreeMap::new(), BTreeSet::new());
        Ok(Self { recognizer, report, converter, partitions, touched, watermark: None, kept_rows: 0 })
    }

    /// Takes rows of the input in, of any partitions. The rows of each partition come in its order: none that sorts before one that came.
    ///
    /// Rows over a quota are refused, and that is reported.
    ///
    /// # Errors
    /// An expression that fails.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let rows = batch.num_rows();
        if rows == 0 {
            return Ok(());
        }
        let recognizer = Arc::clone(&self.recognizer);
        let keys = recognizer.partition_by.iter().map(|expr| expr.evaluate(batch)?.into_array(rows));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let columns = recognizer.columns(batch)?;
        for (key, places) in self.by_partition(&keys, rows)? {
            let places = UInt64Array::from(places);
            let first = places.slice(0, 1);
            let key_columns = keys.iter().map(|array| take(array, &first, None)).collect::<Result<Vec<_>, _>>()?;
            let new = !self.partitions.contains_key(&key);
            let refused = if new && self.partitions.len() >= recognizer.limits.kept_partitions {
                Some(Budget::Partitions)
            } else if self.kept_rows + places.len() > recognizer.limits.kept_rows {
                Some(Budget::Rows)
            } else {
                None
            };
            if let Some(budget) = refused {
                let row = self.partitions.get(&key).map_or(0, |partition| partition.kept.end());
                self.report.add(Overrun { partition: key_text(&key_columns), row: row as u64, budget });
                continue;
            }
            let partition = self.partitions.entry(key.clone()).or_insert_with(|| Partition::new(key_columns, &recognizer));
            let columns = columns.iter().map(|array| take(array, &places, None)).collect::<Result<Vec<_>, _>>()?;
            partition.kept.push(columns, places.len())?;
            self.kept_rows += places.len();
            self.touched.insert(key);
        }
        Ok(())
    }

    /// Every row to come, of any partition, has at least this time (the first column of the order). Where a span bounds matches, searches need
    /// not wait longer than that.
    pub fn advance(&mut self, micros: i64) {
        if self.recognizer.time.is_some() && self.watermark.is_none_or(|known| micros > known) {
            self.watermark = Some(micros);
            let open = self.partitions.iter().filter(|(_, partition)| !partition.is_idle());
            self.touched.extend(open.map(|(key, _)| key.clone()));
        }
    }

    /// No row will follow.
    pub fn complete(&mut self) {
        for (key, partition) in &mut self.partitions {
            partition.complete = true;
            self.touched.insert(key.clone());
        }
    }

    /// The matches that have become decidable, partition by partition.
    ///
    /// # Errors
    /// An expression that fails, or a match that cannot be skipped from.
    pub fn find(&mut self) -> Result<RecordBatch> {
        let mut output = Output::default();
        for key in std::mem::take(&mut self.touched) {
            let Some(partition) = self.partitions.get_mut(&key) else { continue };
            partition.watermark = self.watermark;
            partition.find(&self.recognizer, &self.report, &mut output)?;
            let before = partition.kept.end() - partition.kept.first();
            partition.forget(&self.recognizer);
            let after = partition.kept.end() - partition.kept.first();
            self.kept_rows -= before - after;
            if after == 0 && partition.is_idle() && self.recognizer.can_begin_anew() {
                self.partitions.remove(&key);
            }
        }
        output.take_ready(&self.recognizer)
    }

    /// Rows kept now.
    #[must_use]
    pub fn kept_rows(&self) -> usize {
        self.kept_rows
    }

    /// Partitions kept now.
    #[must_use]
    pub fn kept_partitions(&self) -> usize {
        self.partitions.len()
    }

    /// The state. Matches that were handed out are not in it; matches that wait for rows are found again.
    ///
    /// # Errors
    /// None that is expected.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let partitions = self.partitions.values().map(|partition| self.snapshot_of(partition)).collect::<Result<_>>()?;
        Ok(Snapshot { partitions, watermark: self.watermark })
    }

    fn snapshot_of(&self, partition: &Partition) -> Result<PartitionSnapshot> {
        let Saved { position, matches } = partition.save();
        let first = partition.needed_from(&self.recognizer).max(partition.kept.first());
        let key_schema = self.recognizer.schema.project(&(0..partition.key.len()).collect::<Vec<_>>())?;
        let key = batch(Arc::new(key_schema), partition.key.clone(), 1)?;
        let columns = partition.kept.columns_from(first, &self.recognizer.column_types)?;
        let rows = batch(self.kept_schema(), columns, partition.kept.end() - first)?;
        Ok(PartitionSnapshot { key, start_row: position, matches, first_row: first as u64, rows })
    }

    /// Goes on from a state of the same query.
    ///
    /// # Errors
    /// A state of another query.
    pub fn restore(recognizer: Arc<Recognizer>, report: Report, snapshot: Snapshot) -> Result<Self> {
        let mut streaming = Self::new(recognizer, report)?;
        streaming.watermark = snapshot.watermark;
        for saved in snapshot.partitions {
            let keys = streaming.by_partition(saved.key.columns(), 1)?;
            let Some((key, _)) = keys.into_iter().next() else { continue };
            let stood = Saved { position: saved.start_row, matches: saved.matches };
            let first = usize::try_from(saved.first_row).unwrap_or(usize::MAX);
            let mut partition = Partition::restore(saved.key.columns().to_vec(), &streaming.recognizer, stood, first);
            let rows = batch(streaming.kept_schema(), saved.rows.columns().to_vec(), saved.rows.num_rows())?;
            partition.kept.push(rows.columns().to_vec(), rows.num_rows())?;
            streaming.kept_rows += rows.num_rows();
            streaming.partitions.insert(key.clone(), partition);
            streaming.touched.insert(key);
        }
        Ok(streaming)
    }

    /// By partition: the places of its rows, in order.
    fn by_partition(&self, keys: &[ArrayRef], rows: usize) -> Result<BTreeMap<Key, Vec<u64>>> {
        let mut partitions: BTreeMap<Key, Vec<u64>> = BTreeMap::new();
        let Some(converter) = &self.converter else {
            partitions.insert(None, (0..rows as u64).collect());
            return Ok(partitions);
        };
        for (place, row) in converter.convert_columns(keys)?.iter().enumerate() {
            partitions.entry(Some(row.owned())).or_default().push(place as u64);
        }
        Ok(partitions)
    }

    fn kept_schema(&self) -> SchemaRef {
        let fields = self.recognizer.column_types.iter().enumerate();
        let fields = fields.map(|(index, data_type)| Field::new(format!("kept_{index}"), data_type.clone(), true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }
}

fn batch(schema: SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
}
