//! An answer as text: a table for people, or a JSON object a row for programs.
//! Promises that a table has nothing that a terminal obeys: what events say was written by whoever caused them.

use std::io::Write;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::writer::{LineDelimited, WriterBuilder};
use datafusion::arrow::util::pretty::pretty_format_batches_with_schema;

use crate::error::{QueryError, harmless};
use crate::query::Answer;

/// Rows for people to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub text: String,
    pub rows: usize,
}

impl Answer {
    /// Writes the rows as they come, one JSON object a line. Each has all of the columns: null is written.
    pub async fn write_lines(&mut self, out: impl Write) -> Result<(), QueryError> {
        let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(out);
        while let Some(rows) = self.next().await? {
            writer.write(&rows).map_err(not_shown)?;
        }
        writer.finish().map_err(not_shown)?;
        writer.into_inner().flush().map_err(|error| not_shown(ArrowError::from(error)))
    }

    /// The rows as a table.
    pub async fn read_table(&mut self) -> Result<Table, QueryError> {
        let mut rows: Vec<RecordBatch> = Vec::new();
        while let Some(batch) = self.next().await? {
            rows.push(batch);
        }
        let count = rows.iter().map(RecordBatch::num_rows).sum();
        let table = pretty_format_batches_with_schema(self.schema(), &rows).map_err(not_shown)?.to_string();
        Ok(Table { text: harmless(&table), rows: count })
    }
}

fn not_shown(error: ArrowError) -> QueryError {
    QueryError::Engine { message: format!("the answer cannot be shown: {error}"), place: None }
}
