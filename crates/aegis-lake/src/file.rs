//! Rows as a Parquet file, and a file as rows again: sorted by (ts, lane, seq, event_id), and read column by column.
//! Promises the columns of the table `events` whatever version wrote the file: a column that it has not is null.

use std::collections::VecDeque;
use std::sync::Arc;

use aegis_detect::events_schema;
use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use datafusion::arrow::compute::{SortColumn, SortOptions, concat_batches, lexsort_to_indices, take_record_batch};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::Compression;
use parquet::file::metadata::{ParquetMetaData, SortingColumn};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::ChunkReader;
use parquet::file::statistics::Statistics;
use parquet::schema::types::{ColumnPath, SchemaDescriptor};

use crate::bounds::Span;
use crate::content::{Content, Elsewhere};
use crate::error::LakeError;

/// The columns of the order of events.
const ORDER: [&str; 4] = ["ts", "lane", "seq", "event_id"];
/// Rows of a group, which is read or left out as a whole.
const GROUP_ROWS: usize = 32 * 1024;
/// Rows read at a time.
const BATCH_ROWS: usize = 2048;
/// A small column, read where none is asked for: rows are counted by it.
const COUNTED_BY: &str = "late";

/// Columns that have hardly a value twice: a dictionary of them is looked up for each row, and makes the file larger.
const DIFFERENT: [&str; 4] = ["event_id", "ref_event_id", "receipt_hash", "nonce_hash"];

/// A file that is not stored yet.
pub(crate) struct Encoded {
    pub(crate) bytes: Bytes,
    pub(crate) rows: u64,
    /// What the rows take in memory, bytes.
    pub(crate) weight: u64,
}

/// The file of some rows, which must be in order. They are asked for some at a time, and let go of once they are in it.
pub(crate) fn encode(batches: impl IntoIterator<Item = Result<RecordBatch, ArrowError>>) -> Result<Encoded, LakeError> {
    let schema = events_schema();
    let mut sorting = Vec::new();
    for name in ORDER {
        // The place among all leaves is that among the columns: none of several leaves stands before these.
        let column_idx = i32::try_from(schema.index_of(name)?).unwrap_or(i32::MAX);
        sorting.push(SortingColumn { column_idx, descending: false, nulls_first: true });
    }
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::LZ4_RAW)
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_sorting_columns(Some(sorting))
        .set_created_by("aegis".to_owned());
    for name in DIFFERENT {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(name), false);
    }
    let mut writer = ArrowWriter::try_new(Vec::<u8>::new(), schema, Some(properties.build()))?;
    let (mut rows, mut weight) = (0, 0);
    for batch in batches {
        let batch = batch?;
        writer.write(&batch)?;
        rows += batch.num_rows() as u64;
        weight += batch.get_array_memory_size() as u64;
    }
    Ok(Encoded { bytes: Bytes::from(writer.into_inner()?), rows, weight })
}

/// All of these rows in order.
pub(crate) fn in_order(batches: &[RecordBatch]) -> Result<RecordBatch, LakeError> {
    let rows = concat_batches(&events_schema(), batches)?;
    let mut columns = Vec::new();
    for name in ORDER {
        let values = Arc::clone(rows.column(rows.schema_ref().index_of(name)?));
        columns.push(SortColumn { values, options: Some(SortOptions { descending: false, nulls_first: true }) });
    }
    let order = lexsort_to_indices(&columns, None)?;
    Ok(take_record_batch(&rows, &order)?)
}

/// The rows of a file, batch by batch.
pub(crate) struct Rows {
    /// Of what is fetched: all of a file of this machine, a group of another.
    reader: Option<ParquetRecordBatchReader>,
    left: Option<Left>,
    wanted: SchemaRef,
}

/// What is still to be fetched.
struct Left {
    file: Elsewhere,
    description: ArrowReaderMetadata,
    columns: ProjectionMask,
    groups: VecDeque<usize>,
}

impl Rows {
    /// Opens a file for some columns of its rows of some times, or of more times. What is not in memory is read group by group.
    pub(crate) async fn open(content: Content, wanted: &SchemaRef, span: Span) -> Result<Self, LakeError> {
        match content {
            Content::OnDisk(file) => Self::here(file, wanted, span),
            Content::InMemory(bytes) => Self::here(bytes, wanted, span),
            Content::Elsewhere(file) => {
                let description = file.description().await?;
                let columns = columns_of(description.schema(), description.parquet_schema(), wanted)?;
                let groups = groups_of(description.metadata(), span).into();
                let left = Some(Left { file, description, columns, groups });
                Ok(Self { reader: None, left, wanted: Arc::clone(wanted) })
            }
        }
    }

    fn here(file: impl ChunkReader + 'static, wanted: &SchemaRef, span: Span) -> Result<Self, LakeError> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
        let columns = columns_of(builder.schema(), builder.parquet_schema(), wanted)?;
        let groups = groups_of(builder.metadata(), span);
        let reader = builder.with_projection(columns).with_row_groups(groups).with_batch_size(BATCH_ROWS).build()?;
        Ok(Self { reader: Some(reader), left: None, wanted: Arc::clone(wanted) })
    }

    /// The next rows. None: that was all.
    pub(crate) async fn next(&mut self) -> Result<Option<RecordBatch>, LakeError> {
        loop {
            if let Some(batch) = self.reader.as_mut().and_then(Iterator::next) {
                return Ok(Some(as_wanted(&batch?, &self.wanted)?));
            }
            self.reader = match &mut self.left {
                Some(left) => left.next().await?,
                None => None,
            };
            if self.reader.is_none() {
                return Ok(None);
            }
        }
    }
}

impl Left {
    /// The rows of the next group.
    async fn next(&mut self) -> Result<Option<ParquetRecordBatchReader>, LakeError> {
        let Some(group) = self.groups.pop_front() else { return Ok(None) };
        let parts = self.file.group(&self.description, group, &self.columns).await?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(parts, self.description.clone());
        let builder = builder.with_projection(self.columns.clone()).with_row_groups(vec![group]);
        Ok(Some(builder.with_batch_size(BATCH_ROWS).build()?))
    }
}

/// The columns of a file that are read.
fn columns_of(there: &Schema, leaves: &SchemaDescriptor, wanted: &Schema) -> Result<ProjectionMask, LakeError> {
    let mut columns: Vec<usize> = wanted.fields().iter().filter_map(|field| there.index_of(field.name()).ok()).collect();
    if columns.is_empty() {
        columns.push(there.index_of(COUNTED_BY)?);
    }
    Ok(ProjectionMask::roots(leaves, columns))
}

fn as_wanted(batch: &RecordBatch, wanted: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(wanted.fields().len());
    for field in wanted.fields() {
        columns.push(match batch.column_by_name(field.name()) {
            Some(column) if column.data_type() == field.data_type() => Arc::clone(column),
            Some(column) => {
                let message = format!("column {} is {}, not {}", field.name(), column.data_type(), field.data_type());
                return Err(ArrowError::SchemaError(message));
            }
            None => new_null_array(field.data_type(), batch.num_rows()),
        });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(wanted), columns, &options)
}

/// The groups that may have rows of these times.
fn groups_of(file: &ParquetMetaData, span: Span) -> Vec<usize> {
    let may_have = |group: &usize| {
        let columns = file.row_group(*group).columns();
        let ts = columns.iter().find(|column| column.column_path().string() == ORDER[0]);
        match ts.and_then(|column| column.statistics()) {
            Some(Statistics::Int64(times)) => match (times.min_opt(), times.max_opt()) {
                (Some(first), Some(last)) => span.meets(*first, *last),
                _ => true,
            },
            _ => true,
        }
    };
    (0..file.num_row_groups()).filter(may_have).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::watched::{Seen, Watched};
    use aegis_detect::EventBatch;
    use aegis_model::{EventKind, SecurityEvent, TenantId, Timestamp};
    use datafusion::arrow::array::{Array, AsArray};
    use datafusion::arrow::datatypes::{DataType, Field, TimestampMicrosecondType};
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

    fn rows(count: i64) -> RecordBatch {
        let event = |second: i64| {
            let ts = Timestamp::from_micros(second * 1_000_000);
            let mut event = SecurityEvent::new(TenantId::new("t").unwrap(), "e", "edge", EventKind::AuthorizeDecision, ts);
            event.matched_policies = vec!["p".to_owned(); usize::try_from(second % 3).unwrap()];
            Arc::new(event)
        };
        EventBatch::new((0..count).map(event).collect()).to_record_batch().unwrap()
    }

    async fn all_of(content: Content, wanted: &SchemaRef, span: Span) -> Result<Vec<RecordBatch>, LakeError> {
        let mut rows = Rows::open(content, wanted, span).await?;
        let mut batches = Vec::new();
        while let Some(batch) = rows.next().await? {
            batches.push(batch);
        }
        Ok(batches)
    }

    #[tokio::test]
    async fn a_file_gives_back_its_rows_and_leaves_out_groups_of_other_times() {
        let count = 2 * GROUP_ROWS as i64;
        let all = rows(count);
        let file = encode([Ok(all.clone())]).unwrap().bytes;
        let (store, seen) = Watched::new();
        let place = Path::from("file.parquet");
        store.put(&place, PutPayload::from(file.clone())).await.unwrap();
        let store: Arc<dyn ObjectStore> = store;
        for is_elsewhere in [false, true] {
            let content = async || match is_elsewhere {
                false => Content::InMemory(file.clone()),
                true => Content::find(&store, &place).await.unwrap(),
            };
            let read = all_of(content().await, &events_schema(), Span::ALL).await.unwrap();
            assert_eq!(concat_batches(&events_schema(), &read).unwrap(), all);

            let wanted: SchemaRef = Arc::new(events_schema().project(&[4]).unwrap());
            let second_half = Span { from: (count - 1) * 1_000_000, to: i64::MAX };
            let read = all_of(content().await, &wanted, second_half).await.unwrap();
            let first = read[0].column(0).as_primitive::<TimestampMicrosecondType>().value(0);
            assert_eq!(
                (first, read.iter().map(RecordBatch::num_rows).sum::<usize>()),
                (GROUP_ROWS as i64 * 1_000_000, GROUP_ROWS)
            );

            let none: SchemaRef = Arc::new(Schema::empty());
            let counted = all_of(content().await, &none, Span::ALL).await.unwrap();
            assert_eq!(counted.iter().map(RecordBatch::num_rows).sum::<usize>(), 2 * GROUP_ROWS);
        }
        // One column of one group is little of the file, and the file is read from its end.
        let Seen { bytes: before, .. } = *seen.lock();
        let content = Content::find(&store, &place).await.unwrap();
        assert!(matches!(content, Content::Elsewhere(_)), "{} bytes are all read at once", file.len());
        let late: SchemaRef = Arc::new(Schema::new(vec![Field::new("late", DataType::Boolean, false)]));
        let early = Span { from: 0, to: 0 };
        assert_eq!(all_of(content, &late, early).await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), GROUP_ROWS);
        let Seen { bytes, whole } = *seen.lock();
        assert_eq!(whole, 0, "no file is read as a whole");
        assert!(bytes - before < file.len() as u64 / 4, "{} of {} bytes", bytes - before, file.len());
    }

    #[tokio::test]
    async fn rows_that_come_some_at_a_time_are_one_file_and_an_error_among_them_is_none() {
        let count = GROUP_ROWS + 3;
        let all = rows(count as i64);
        let parts = |size: usize| (0..count).step_by(size).map(move |from| (from, size.min(count - from)));
        for size in [700, count] {
            let encoded = encode(parts(size).map(|(from, size)| Ok(all.slice(from, size)))).unwrap();
            assert_eq!(encoded.rows, count as u64);
            let read = all_of(Content::InMemory(encoded.bytes), &events_schema(), Span::ALL).await.unwrap();
            assert_eq!(concat_batches(&events_schema(), &read).unwrap(), all);
        }
        let broken = [Ok(rows(3)), Err(ArrowError::ComputeError("no such row".to_owned()))];
        assert!(encode(broken).is_err());
    }

    #[test]
    fn what_differs_in_each_row_has_no_dictionary_and_what_does_not_has_one() {
        let file = encode([Ok(rows(50))]).unwrap().bytes;
        let read = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let columns = read.metadata().row_group(0).columns();
        let has_dictionary = |name: &str| {
            let column = columns.iter().find(|column| column.column_path().string() == name).unwrap();
            column.dictionary_page_offset().is_some()
        };
        assert!(!DIFFERENT.into_iter().any(has_dictionary));
        assert!(["tenant_id", "kind", "edge_id"].into_iter().all(has_dictionary));
    }

    #[tokio::test]
    async fn a_column_that_the_file_has_not_is_null_and_one_of_another_type_is_refused() {
        let file = Content::InMemory(encode([Ok(rows(3))]).unwrap().bytes);
        let newer: SchemaRef = Arc::new(Schema::new(vec![Field::new("of_tomorrow", DataType::Utf8, true)]));
        let read = all_of(file, &newer, Span::ALL).await.unwrap().remove(0);
        assert_eq!((read.num_rows(), read.column(0).null_count()), (3, 3));
        let file = Content::InMemory(encode([Ok(rows(3))]).unwrap().bytes);
        let other: SchemaRef = Arc::new(Schema::new(vec![Field::new("kind", DataType::Int64, true)]));
        assert!(all_of(file, &other, Span::ALL).await.is_err());
    }

    #[tokio::test]
    async fn a_file_elsewhere_that_is_cut_gone_or_lies_about_itself_is_an_error() {
        let file = encode([Ok(rows(GROUP_ROWS as i64))]).unwrap().bytes;
        let (store, _) = Watched::new();
        let place = Path::from("file.parquet");
        let dyn_store: Arc<dyn ObjectStore> = store.clone();
        let put = async |bytes: Bytes| store.put(&place, PutPayload::from(bytes)).await.unwrap();
        // The length of its description is larger than it.
        let mut lying = file.to_vec();
        let end = lying.len();
        lying[end - 8..end - 4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        for damaged in [file.slice(..file.len() / 2), Bytes::from(lying)] {
            put(damaged).await;
            let content = Content::find(&dyn_store, &place).await.unwrap();
            assert!(all_of(content, &events_schema(), Span::ALL).await.is_err());
        }
        put(file.clone()).await;
        let content = Content::find(&dyn_store, &place).await.unwrap();
        // Another, shorter file in its place: what was described lies outside of it.
        put(file.slice(..1000)).await;
        assert!(all_of(content, &events_schema(), Span::ALL).await.is_err());
        put(file.clone()).await;
        let content = Content::find(&dyn_store, &place).await.unwrap();
        store.delete(&place).await.unwrap();
        let gone = all_of(content, &events_schema(), Span::ALL).await.unwrap_err();
        assert!(matches!(gone, LakeError::Gone { .. }), "{gone}");
    }
}
