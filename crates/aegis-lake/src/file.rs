//! Rows as a Parquet file, and a file as rows again: sorted by (ts, lane, seq, event_id), and read column by column.
//! Promises the columns of the table `events` whatever version wrote the file: a column that it has not is null.

use std::sync::Arc;

use aegis_detect::events_schema;
use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use datafusion::arrow::compute::{SortColumn, SortOptions, concat_batches, lexsort_to_indices, take_record_batch};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::error::ArrowError;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::Compression;
use parquet::file::metadata::{ParquetMetaData, SortingColumn};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::ChunkReader;
use parquet::file::statistics::Statistics;

use crate::bounds::Span;
use crate::error::LakeError;

/// The columns of the order of events.
const ORDER: [&str; 4] = ["ts", "lane", "seq", "event_id"];
/// Rows of a group, which is read or left out as a whole.
const GROUP_ROWS: usize = 32 * 1024;
/// Rows read at a time.
const BATCH_ROWS: usize = 2048;
/// A small column, read where none is asked for: rows are counted by it.
const COUNTED_BY: &str = "late";

/// The file of some rows, which must be in order.
pub(crate) fn encode(rows: &RecordBatch) -> Result<Bytes, LakeError> {
    let schema = rows.schema();
    let mut sorting = Vec::new();
    for name in ORDER {
        // The place among all leaves is that among the columns: none of several leaves stands before these.
        let column_idx = i32::try_from(schema.index_of(name)?).unwrap_or(i32::MAX);
        sorting.push(SortingColumn { column_idx, descending: false, nulls_first: true });
    }
    let properties = WriterProperties::builder()
        .set_compression(Compression::LZ4_RAW)
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_sorting_columns(Some(sorting))
        .set_created_by("aegis".to_owned())
        .build();
    let mut writer = ArrowWriter::try_new(Vec::<u8>::new(), schema, Some(properties))?;
    writer.write(rows)?;
    Ok(Bytes::from(writer.into_inner()?))
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
    reader: ParquetRecordBatchReader,
    wanted: SchemaRef,
}

impl Rows {
    /// Opens a file for some columns of its rows of some times, or of more times. What is not in memory is read group by group.
    pub(crate) fn open(file: impl ChunkReader + 'static, wanted: &SchemaRef, span: Span) -> Result<Self, LakeError> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
        let there = Arc::clone(builder.schema());
        let mut columns: Vec<usize> = wanted.fields().iter().filter_map(|field| there.index_of(field.name()).ok()).collect();
        if columns.is_empty() {
            columns.push(there.index_of(COUNTED_BY)?);
        }
        let mask = ProjectionMask::roots(builder.parquet_schema(), columns);
        let groups = groups_of(builder.metadata(), span);
        let reader = builder.with_projection(mask).with_row_groups(groups).with_batch_size(BATCH_ROWS).build()?;
        Ok(Self { reader, wanted: Arc::clone(wanted) })
    }
}

impl Iterator for Rows {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.reader.next()?.and_then(|batch| as_wanted(&batch, &self.wanted)))
    }
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
    use aegis_detect::EventBatch;
    use aegis_model::{EventKind, SecurityEvent, TenantId, Timestamp};
    use datafusion::arrow::array::{Array, AsArray};
    use datafusion::arrow::datatypes::{DataType, Field, Schema, TimestampMicrosecondType};

    fn rows(count: i64) -> RecordBatch {
        let event = |second: i64| {
            let ts = Timestamp::from_micros(second * 1_000_000);
            let mut event = SecurityEvent::new(TenantId::new("t").unwrap(), "e", "edge", EventKind::AuthorizeDecision, ts);
            event.matched_policies = vec!["p".to_owned(); usize::try_from(second % 3).unwrap()];
            Arc::new(event)
        };
        EventBatch::new((0..count).map(event).collect()).to_record_batch().unwrap()
    }

    #[test]
    fn a_file_gives_back_its_rows_and_leaves_out_groups_of_other_times() {
        let count = 2 * GROUP_ROWS as i64;
        let all = rows(count);
        let file = encode(&all).unwrap();
        let read: Vec<RecordBatch> = Rows::open(file.clone(), &events_schema(), Span::ALL).unwrap().map(Result::unwrap).collect();
        assert_eq!(concat_batches(&events_schema(), &read).unwrap(), all);

        let wanted: SchemaRef = Arc::new(events_schema().project(&[4]).unwrap());
        let second_half = Span { from: (count - 1) * 1_000_000, to: i64::MAX };
        let read: Vec<RecordBatch> = Rows::open(file.clone(), &wanted, second_half).unwrap().map(Result::unwrap).collect();
        let first = read[0].column(0).as_primitive::<TimestampMicrosecondType>().value(0);
        assert_eq!((first, read.iter().map(RecordBatch::num_rows).sum::<usize>()), (GROUP_ROWS as i64 * 1_000_000, GROUP_ROWS));

        let none: SchemaRef = Arc::new(Schema::empty());
        let counted = Rows::open(file, &none, Span::ALL).unwrap().map(|batch| batch.unwrap().num_rows()).sum::<usize>();
        assert_eq!(counted, 2 * GROUP_ROWS);
    }

    #[test]
    fn a_column_that_the_file_has_not_is_null_and_one_of_another_type_is_refused() {
        let file = encode(&rows(3)).unwrap();
        let newer: SchemaRef = Arc::new(Schema::new(vec![Field::new("of_tomorrow", DataType::Utf8, true)]));
        let read = Rows::open(file.clone(), &newer, Span::ALL).unwrap().next().unwrap().unwrap();
        assert_eq!((read.num_rows(), read.column(0).null_count()), (3, 3));
        let other: SchemaRef = Arc::new(Schema::new(vec![Field::new("kind", DataType::Int64, true)]));
        assert!(Rows::open(file, &other, Span::ALL).unwrap().next().unwrap().is_err());
    }
}
