//! The kept rows of one partition: of each row the columns that conditions and measures read, in chunks as they came.
//!
//! Rows have the partition's numbers, the first that ever came being 0. Rows that no match can need are forgotten from the front.

use datafusion::arrow::array::{Array, ArrayRef, UInt64Array, new_null_array};
use datafusion::arrow::compute::{concat, interleave, take};
use datafusion::arrow::datatypes::DataType;
use datafusion::error::Result;

/// A chunk up to this many rows is joined with a neighbour that is no longer: rows that come one by one make few chunks.
const SMALL: usize = 4096;

#[derive(Clone, Debug)]
struct Chunk {
    start: usize,
    len: usize,
    columns: Vec<ArrayRef>,
}

#[derive(Clone, Debug)]
pub(crate) struct Kept {
    chunks: Vec<Chunk>,
    end: usize,
}

impl Kept {
    /// No rows; the next has this number.
    pub(crate) fn starting_at(first: usize) -> Self {
        Self { chunks: Vec::new(), end: first }
    }

    /// The number of the row after the last.
    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// The number of the first row that is kept.
    pub(crate) fn first(&self) -> usize {
        self.chunks.first().map_or(self.end, |chunk| chunk.start)
    }

    pub(crate) fn push(&mut self, columns: Vec<ArrayRef>, len: usize) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.chunks.push(Chunk { start: self.end, len, columns });
        self.end += len;
        while let [.., before, last] = self.chunks.as_slice()
            && before.len <= last.len
            && before.len + last.len <= SMALL
        {
            let columns = before.columns.iter().zip(&last.columns).map(|(before, last)| concat(&[before, last]));
            let joined = Chunk { start: before.start, len: before.len + last.len, columns: columns.collect::<Result<_, _>>()? };
            self.chunks.truncate(self.chunks.len() - 2);
            self.chunks.push(joined);
        }
        Ok(())
    }

    /// Forgets the rows from this one on.
    pub(crate) fn take_back(&mut self, end: usize) {
        self.chunks.retain(|chunk| chunk.start < end);
        if let Some(last) = self.chunks.last_mut().filter(|last| last.start + last.len > end) {
            last.len = end - last.start;
            for column in &mut last.columns {
                *column = column.slice(0, last.len);
            }
        }
        self.end = self.end.min(end);
    }

    /// Rows before this one are not needed any more. Some may stay.
    pub(crate) fn forget_before(&mut self, row: usize) {
        let gone = self.chunks.iter().take_while(|chunk| chunk.start + chunk.len <= row).count();
        self.chunks.drain(..gone);
        if let Some(first) = self.chunks.first_mut().filter(|chunk| row > chunk.start && row - chunk.start > chunk.len / 2) {
            let skipped = row - first.start;
            let len = first.len - skipped;
            // A copy, so that what was skipped is freed.
            let rows = UInt64Array::from_iter_values(skipped as u64..first.len as u64);
            if let Ok(columns) = first.columns.iter().map(|column| take(column, &rows, None)).collect::<Result<Vec<_>, _>>() {
                *first = Chunk { start: row, len, columns };
            }
        }
    }

    /// A column at some rows; null where there is no row. INVARIANT: the rows are kept.
    pub(crate) fn gather(&self, column: usize, data_type: &DataType, rows: &[Option<usize>]) -> Result<ArrayRef> {
        if let [chunk] = self.chunks.as_slice() {
            let indices: UInt64Array = rows.iter().map(|row| row.map(|row| row.saturating_sub(chunk.start) as u64)).collect();
            return Ok(take(&chunk.columns[column], &indices, None)?);
        }
        let null = new_null_array(data_type, 1);
        let arrays: Vec<&dyn Array> =
            self.chunks.iter().map(|chunk| chunk.columns[column].as_ref()).chain([null.as_ref()]).collect();
        let nowhere = (self.chunks.len(), 0);
        let places: Vec<(usize, usize)> =
            rows.iter().map(|row| row.and_then(|row| self.locate(row)).unwrap_or(nowhere)).collect();
        Ok(interleave(&arrays, &places)?)
    }

    /// A column at one row, as an array of one.
    pub(crate) fn cell(&self, column: usize, row: usize) -> Option<ArrayRef> {
        let (chunk, offset) = self.locate(row)?;
        Some(self.chunks[chunk].columns[column].slice(offset, 1))
    }

    /// A column's array that holds a row, and the place in it.
    pub(crate) fn at(&self, column: usize, row: usize) -> Option<(&ArrayRef, usize)> {
        let (chunk, offset) = self.locate(row)?;
        Some((&self.chunks[chunk].columns[column], offset))
    }

    fn locate(&self, row: usize) -> Option<(usize, usize)> {
        let index = self.chunks.partition_point(|chunk| chunk.start <= row).checked_sub(1)?;
        let offset = row - self.chunks[index].start;
        (offset < self.chunks[index].len).then_some((index, offset))
    }
}

/// Bytes of arrays, shared buffers counted once for each slice of them.
pub(crate) fn bytes_of(columns: &[ArrayRef]) -> usize {
    columns.iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use datafusion::arrow::array::{AsArray, Int64Array};
    use datafusion::arrow::datatypes::Int64Type;

    fn push(kept: &mut Kept, values: std::ops::Range<i64>) {
        let len = values.clone().count();
        kept.push(vec![Arc::new(Int64Array::from_iter_values(values))], len).unwrap();
    }

    fn values(kept: &Kept, rows: &[Option<usize>]) -> Vec<Option<i64>> {
        kept.gather(0, &DataType::Int64, rows).unwrap().as_primitive::<Int64Type>().iter().collect()
    }

    #[test]
    fn a_row_is_found_by_its_number_however_rows_came_and_went() {
        let mut kept = Kept::starting_at(10);
        push(&mut kept, 0..5000);
        for more in 5000..5100 {
            push(&mut kept, more..more + 1);
        }
        assert!(kept.chunks.len() < 10, "{}", kept.chunks.len());
        assert_eq!((kept.first(), kept.end()), (10, 5110));
        assert_eq!(values(&kept, &[Some(5109), None, Some(10), Some(5010)]), [Some(5099), None, Some(0), Some(5000)]);
        kept.forget_before(4000);
        assert_eq!(kept.first(), 4000);
        assert_eq!(values(&kept, &[Some(4000), Some(5109)]), [Some(3990), Some(5099)]);
        assert_eq!(kept.cell(0, 5109).unwrap().as_primitive::<Int64Type>().value(0), 5099);
        assert!(kept.cell(0, 3999).is_none() && kept.cell(0, 5110).is_none());
        kept.forget_before(9999);
        assert_eq!((kept.first(), kept.end()), (5110, 5110));
        assert_eq!(values(&kept, &[None]), [None]);
        push(&mut kept, 7..8);
        assert_eq!(values(&kept, &[Some(5110)]), [Some(7)]);
    }

    #[test]
    fn rows_that_were_taken_back_are_not_there_and_others_come_in_their_place() {
        let mut kept = Kept::starting_at(3);
        push(&mut kept, 0..5000);
        push(&mut kept, 5000..5001);
        kept.take_back(1003);
        assert_eq!((kept.first(), kept.end()), (3, 1003));
        assert!(kept.cell(0, 1003).is_none());
        push(&mut kept, 7..9);
        assert_eq!(values(&kept, &[Some(1002), Some(1003), Some(1004)]), [Some(999), Some(7), Some(8)]);
        kept.take_back(2);
        assert_eq!((kept.first(), kept.end()), (2, 2));
    }
}
