//! The schema's versions, carried in the program. A migration never changes once released: its SHA-256 is kept in the database.

use aegis_model::Timestamp;
use sha2::{Digest, Sha256};
use sqlx::{Any, Transaction};

use crate::StoreError;

pub(crate) struct Migration {
    version: i64,
    name: &'static str,
    sql: &'static str,
}

/// Of the tables of the control plane.
pub(crate) const STORE: &[Migration] = &[
    Migration { version: 1, name: "tables", sql: include_str!("../migrations/sqlite/0001_tables.sql") },
    Migration { version: 2, name: "edges", sql: include_str!("../migrations/sqlite/0002_edges.sql") },
    Migration { version: 3, name: "edge_enrolment", sql: include_str!("../migrations/sqlite/0003_edge_enrolment.sql") },
    Migration { version: 4, name: "agent_issuers", sql: include_str!("../migrations/sqlite/0004_agent_issuers.sql") },
    Migration { version: 5, name: "callbacks", sql: include_str!("../migrations/sqlite/0005_callbacks.sql") },
    Migration { version: 6, name: "rule_versions", sql: include_str!("../migrations/sqlite/0006_rule_versions.sql") },
    Migration { version: 7, name: "consume_requests", sql: include_str!("../migrations/sqlite/0007_consume_requests.sql") },
    Migration { version: 9, name: "edge_lives", sql: include_str!("../migrations/sqlite/0009_edge_lives.sql") },
    Migration {
        version: 10,
        name: "common_rule_versions",
        sql: include_str!("../migrations/sqlite/0010_common_rule_versions.sql"),
    },
    Migration { version: 11, name: "rule_sets", sql: include_str!("../migrations/sqlite/0011_rule_sets.sql") },
    Migration { version: 12, name: "drifted_tools", sql: include_str!("../migrations/sqlite/0012_drifted_tools.sql") },
];

/// Of the history, a file of its own.
pub(crate) const HISTORY: &[Migration] = &[
    Migration { version: 1, name: "history", sql: include_str!("../migrations/sqlite/history_0001_tables.sql") },
    Migration { version: 2, name: "kept_elsewhere", sql: include_str!("../migrations/sqlite/history_0002_kept_elsewhere.sql") },
    Migration { version: 3, name: "lanes", sql: include_str!("../migrations/sqlite/history_0003_lanes.sql") },
    Migration { version: 4, name: "by_lane_and_seq", sql: include_str!("../migrations/sqlite/history_0004_by_lane_and_seq.sql") },
];

/// The same tables and history on Postgres, in one database.
pub(crate) const POSTGRES: &[Migration] = &[
    Migration { version: 1, name: "tables", sql: include_str!("../migrations/postgres/0001_tables.sql") },
    Migration { version: 2, name: "history_lanes", sql: include_str!("../migrations/postgres/0002_history_lanes.sql") },
    Migration { version: 3, name: "agent_issuers", sql: include_str!("../migrations/postgres/0003_agent_issuers.sql") },
    Migration { version: 4, name: "callbacks", sql: include_str!("../migrations/postgres/0004_callbacks.sql") },
    Migration { version: 5, name: "rule_versions", sql: include_str!("../migrations/postgres/0005_rule_versions.sql") },
    Migration { version: 6, name: "consume_requests", sql: include_str!("../migrations/postgres/0006_consume_requests.sql") },
    Migration { version: 8, name: "edge_lives", sql: include_str!("../migrations/postgres/0008_edge_lives.sql") },
    Migration {
        version: 9,
        name: "common_rule_versions",
        sql: include_str!("../migrations/postgres/0009_common_rule_versions.sql"),
    },
    Migration { version: 10, name: "rule_sets", sql: include_str!("../migrations/postgres/0010_rule_sets.sql") },
    Migration {
        version: 11,
        name: "history_by_lane_and_seq",
        sql: include_str!("../migrations/postgres/0011_history_by_lane_and_seq.sql"),
    },
    Migration { version: 12, name: "drifted_tools", sql: include_str!("../migrations/postgres/0012_drifted_tools.sql") },
];

/// Brings the database to the newest of `migrations`, in a transaction that no other writer runs beside: either every missing one is applied
/// or none is.
pub(crate) async fn migrate(
    mut tx: Transaction<'_, Any>,
    make_table: &'static str,
    migrations: &[Migration],
    place: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let supported = migrations.last().map_or(0, |newest| newest.version);
    sqlx::query(make_table).execute(&mut *tx).await?;
    let applied: Vec<(i64, String)> =
        sqlx::query_as("SELECT version, sha256 FROM schema_versions ORDER BY version").fetch_all(&mut *tx).await?;
    // Any that is not carried is of a newer program: not only the last one can be.
    let unknown = applied.iter().rev().find(|(version, _)| migrations.iter().all(|carried| carried.version != *version));
    if let Some((found, _)) = unknown {
        return Err(StoreError::SchemaTooNew { place: place.to_owned(), found: *found, supported });
    }
    for migration in migrations {
        let digest = hex::encode(Sha256::digest(migration.sql.as_bytes()));
        match applied.iter().find(|(version, _)| *version == migration.version) {
            Some((_, recorded)) if *recorded == digest => {}
            Some(_) => return Err(StoreError::SchemaChanged { place: place.to_owned(), version: migration.version }),
            None => {
                sqlx::raw_sql(migration.sql).execute(&mut *tx).await?;
                sqlx::query("INSERT INTO schema_versions (version, name, sha256, applied_at) VALUES ($1, $2, $3, $4)")
                    .bind(migration.version)
                    .bind(migration.name)
                    .bind(digest)
                    .bind(now.as_micros())
                    .execute(&mut *tx)
                    .await?;
            }
        }
    }
    tx.commit().await?;
    Ok(())
}
