//! What can go wrong in the store, as types. Messages say what, where, and what to do; they never carry a secret.

use std::path::PathBuf;

use aegis_model::TenantId;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file cannot be created, read or protected.
    #[error("store file {path}: {source}; check that its folder exists and is writable", path = path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A newer program wrote it.
    #[error("store {place} has schema {found}, this program knows up to {supported}; start a newer aegis")]
    SchemaTooNew { place: String, found: i64, supported: i64 },
    /// A Postgres server that cannot be reached or is no place for a store. The name is without the password.
    #[error("store {place}: {why}")]
    Server { place: String, why: String },
    /// A migration that was applied is not the one this program carries.
    #[error("store {place}: migration {version} differs from the one that was applied; start the aegis that made this store")]
    SchemaChanged { place: String, version: i64 },
    /// The file is damaged, or is no SQLite database.
    #[error("store {place} is damaged or not a store ({detail}); restore it from a backup")]
    Corrupt { place: String, detail: String },
    /// A stored value that this program cannot read.
    #[error("store: column {column} holds a value this program cannot read: {detail}")]
    Unreadable { column: &'static str, detail: String },
    /// No such tenant.
    #[error("tenant `{0}` does not exist; create it first")]
    UnknownTenant(TenantId),
    /// An outbox row, alert or record of one tenant handed in for another.
    #[error("a record of tenant `{found}` was handed in for tenant `{expected}`")]
    WrongTenant { expected: TenantId, found: TenantId },
    /// A unique name, id or key that is taken.
    #[error("{0} is already taken")]
    Taken(&'static str),
    /// A value the store does not accept.
    #[error("{what} {why}")]
    Invalid { what: &'static str, why: &'static str },
    /// A quota is used up.
    #[error("tenant has {limit} {what} already, the most the store keeps; remove some first")]
    LimitReached { what: &'static str, limit: i64 },
    /// Whoever asked for the change took it back while it was made.
    #[error("nothing was changed: {0}")]
    TakenBack(String),
    /// The system's random source failed.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
    /// A server that says nothing any more.
    #[error("store: {0}; what was asked of the database may have been done")]
    NoAnswer(String),
    /// What the database said when the store's files were opened: their disk is full, read-only or gone.
    #[error("store {place} cannot be opened: {source}; check that its disk is writable and has room")]
    Opening {
        place: String,
        #[source]
        source: sqlx::Error,
    },
    /// Anything else the database said: busy, full, read-only, gone.
    #[error("store: {0}")]
    Database(#[source] sqlx::Error),
}

impl StoreError {
    /// True when the same call may succeed later without anybody changing its arguments: busy, disk full, connection lost.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Database(_) | Self::NoAnswer(_) | Self::Random(_))
    }
}

/// SQLite's primary result codes for a damaged file and for a file that is no database.
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_NOTADB: i32 = 26;

/// Postgres' classes of a value that it cannot keep: no such text or number, or more than fits.
const POSTGRES_VALUE: [&str; 2] = ["22", "54"];

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if let Some(SQLITE_CORRUPT | SQLITE_NOTADB) = sqlite_code(&error) {
            let detail = error.as_database_error().map_or_else(String::new, |inner| inner.message().to_owned());
            return Self::Corrupt { place: "file".to_owned(), detail };
        }
        if error
            .as_database_error()
            .and_then(|inner| inner.try_downcast_ref::<sqlx::postgres::PgDatabaseError>())
            .is_some_and(is_of_a_value)
        {
            return Self::Invalid { what: "a value", why: "is none that the database can keep" };
        }
        match error {
            sqlx::Error::Io(inner) if inner.kind() == std::io::ErrorKind::TimedOut => Self::NoAnswer(inner.to_string()),
            error => Self::Database(error),
        }
    }
}

fn is_of_a_value(error: &sqlx::postgres::PgDatabaseError) -> bool {
    POSTGRES_VALUE.iter().any(|class| error.code().starts_with(class))
}

/// SQLite's primary result code, of an error that is SQLite's.
pub(crate) fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    let inner = error.as_database_error()?.try_downcast_ref::<sqlx::sqlite::SqliteError>()?;
    let extended: i32 = sqlx::error::DatabaseError::code(inner)?.parse().ok()?;
    Some(extended & 0xff)
}

/// Names the tenant when a foreign key to it failed, and what is taken when a unique key did.
pub(crate) fn on_insert(tenant: &TenantId, what: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    let tenant = tenant.clone();
    move |error| match error.as_database_error().map(sqlx::error::DatabaseError::kind) {
        Some(sqlx::error::ErrorKind::ForeignKeyViolation) => StoreError::UnknownTenant(tenant),
        Some(sqlx::error::ErrorKind::UniqueViolation) => StoreError::Taken(what),
        _ => error.into(),
    }
}

/// Refuses a record that belongs to another tenant than the call.
pub(crate) fn same_tenant(expected: &TenantId, found: &TenantId) -> Result<(), StoreError> {
    if expected == found { Ok(()) } else { Err(StoreError::WrongTenant { expected: expected.clone(), found: found.clone() }) }
}
