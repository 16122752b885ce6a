//! Columns of every type that the engine's events have, as operands, in conditions and in measures.

use std::sync::Arc;

use aegis_match::Limits;
use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Int32Type, Schema, TimeUnit};

use crate::harness::Session;

fn session() -> Session {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), Some(vec![]), None]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("text", Arc::new(StringArray::from(vec![Some("one"), None, Some("three")]))),
        ("truth", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("small", Arc::new(Int32Array::from(vec![Some(1), None, Some(3)]))),
        ("large", Arc::new(Int64Array::from(vec![Some(10), None, Some(30)]))),
        ("time", Arc::new(TimestampMicrosecondArray::from(vec![Some(1), None, Some(3)]).with_timezone("UTC"))),
        ("list", Arc::new(list)),
        ("place", Arc::new(Int64Array::from(vec![0, 1, 2]))),
    ];
    let fields = columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect::<Vec<_>>();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
    // In two batches, so that a row is looked for in several.
    Session::over(vec![batch.slice(0, 2), batch.slice(2, 1)], Limits::default())
}

#[test]
fn every_type_can_be_navigated_aggregated_and_compared() {
    let session = session();
    for (column, first, last, all) in [
        ("text", "one", "three", "[one, -, three]"),
        ("truth", "true", "false", "[true, -, false]"),
        ("small", "1", "3", "[1, -, 3]"),
        ("large", "10", "30", "[10, -, 30]"),
        (
            "time",
            "1970-01-01T00:00:00.000001Z",
            "1970-01-01T00:00:00.000003Z",
            "[1970-01-01T00:00:00.000001Z, -, 1970-01-01T00:00:00.000003Z]",
        ),
        ("list", "[1, -]", "-", "[[1, -], [], -]"),
    ] {
        let sql = format!(
            "SELECT f, l, p, all_of, some FROM t MATCH_RECOGNIZE (ORDER BY place MEASURES FIRST({column}) AS f, LAST({column}) AS l, \
             PREV(LAST({column})) AS p, array_agg({column}) AS all_of, array_agg(b.{column}) AS some PATTERN (a+ b) \
             DEFINE b AS b.{column} IS NULL OR FIRST({column}) IS DISTINCT FROM PREV({column}))"
        );
        assert_eq!(
            session.rows(&sql),
            [format!("{first}|{last}|{}|{all}|[{last}]", if column == "list" { "[]" } else { "-" })],
            "{column}"
        );
    }
}

#[test]
fn types_are_made_to_fit() {
    let session = session();
    let sql = "SELECT d, s, n FROM t MATCH_RECOGNIZE (ORDER BY place
               MEASURES large - small AS d, sum(small) AS s, array_length(FIRST(list)) AS n
               PATTERN (a b c) DEFINE c AS c.large / 10 = small AND time > FIRST(time) AND c.large > 29.5)";
    assert_eq!(session.rows(sql), ["27|4|2"]);
    let schema = session.physical(sql).unwrap().schema();
    let types: Vec<_> = schema.fields().iter().map(|field| field.data_type().clone()).collect();
    assert_eq!(types, [DataType::Int64, DataType::Int64, DataType::UInt64]);
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let times =
        session.physical("SELECT l FROM t MATCH_RECOGNIZE (MEASURES LAST(time) AS l PATTERN (a) DEFINE a AS true)").unwrap();
    assert_eq!(*times.schema().field(0).data_type(), time);
}
