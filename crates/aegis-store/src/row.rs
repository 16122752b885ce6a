//! Reads columns back into the model's types. A value that does not fit says which column it stands in.

use std::fmt::Display;
use std::str::FromStr;

use aegis_model::{EventId, SourceTrust, TenantId, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;
use sqlx::{Any, Decode, Row, Type};

use crate::StoreError;

fn unreadable(column: &'static str) -> impl Fn(&dyn Display) -> StoreError {
    move |detail| StoreError::Unreadable { column, detail: detail.to_string() }
}

/// A column as the database holds it.
pub(crate) fn get<'r, T>(row: &'r AnyRow, column: &'static str) -> Result<T, StoreError>
where
    T: Decode<'r, Any> + Type<Any>,
{
    Ok(row.try_get(column)?)
}

/// A yes or no: 1 or 0, as both databases hold it.
pub(crate) fn flag(row: &AnyRow, column: &'static str) -> Result<bool, StoreError> {
    Ok(get::<i64>(row, column)? != 0)
}

/// A yes or no as a bind value.
pub(crate) fn flag_value(flag: bool) -> i64 {
    i64::from(flag)
}

/// One of a field's words.
pub(crate) fn word<T>(row: &AnyRow, column: &'static str) -> Result<T, StoreError>
where
    T: FromStr,
    T::Err: Display,
{
    let text: &str = row.try_get(column)?;
    text.parse().map_err(|error| unreadable(column)(&error))
}

/// One of a field's words, or null.
pub(crate) fn optional_word<T>(row: &AnyRow, column: &'static str) -> Result<Option<T>, StoreError>
where
    T: FromStr,
    T::Err: Display,
{
    let text: Option<&str> = row.try_get(column)?;
    text.map(|text| text.parse().map_err(|error| unreadable(column)(&error))).transpose()
}

pub(crate) fn tenant(row: &AnyRow) -> Result<TenantId, StoreError> {
    word(row, "tenant_id")
}

pub(crate) fn event_id(row: &AnyRow, column: &'static str) -> Result<EventId, StoreError> {
    word(row, column)
}

/// An event id kept as its 16 bytes.
pub(crate) fn event_id_bytes(row: &AnyRow, column: &'static str) -> Result<EventId, StoreError> {
    EventId::from_slice(row.try_get(column)?).map_err(|error| unreadable(column)(&error))
}

pub(crate) fn trust(row: &AnyRow, column: &'static str) -> Result<SourceTrust, StoreError> {
    Ok(SourceTrust::from_label(row.try_get(column)?))
}

pub(crate) fn time(row: &AnyRow, column: &'static str) -> Result<Timestamp, StoreError> {
    Ok(Timestamp::from_micros(row.try_get(column)?))
}

pub(crate) fn optional_time(row: &AnyRow, column: &'static str) -> Result<Option<Timestamp>, StoreError> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_micros))
}

/// A JSON column.
pub(crate) fn json<T: DeserializeOwned>(row: &AnyRow, column: &'static str) -> Result<T, StoreError> {
    from_json(row.try_get(column)?, column)
}

/// A JSON column, or null.
pub(crate) fn optional_json<T: DeserializeOwned>(row: &AnyRow, column: &'static str) -> Result<Option<T>, StoreError> {
    let text: Option<&str> = row.try_get(column)?;
    text.map(|text| from_json(text, column)).transpose()
}

fn from_json<T: DeserializeOwned>(text: &str, column: &'static str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| unreadable(column)(&error))
}

/// A value as the JSON text a column keeps.
pub(crate) fn to_json<T: Serialize>(value: &T, column: &'static str) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| unreadable(column)(&error))
}
