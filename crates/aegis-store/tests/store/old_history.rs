//! A history as programs before wrote it: with a key on the id of an event, and proved or not, whatever its lane.

use aegis_model::{EventId, EventKind, external_event_id};
use aegis_store::{HistoryFilter, HistoryRow, Standing, Store, Wire};
use sha2::{Digest, Sha256};

use crate::fixtures::*;

/// A statement that notes a migration as applied.
pub(crate) fn applied(version: i64, name: &str, sql: &str) -> String {
    let digest = hex::encode(Sha256::digest(sql.as_bytes()));
    format!("INSERT INTO schema_versions (version, name, sha256, applied_at) VALUES ({version}, '{name}', '{digest}', 0)")
}

/// A statement of that program that keeps a row; `bytes` writes an id.
pub(crate) fn kept(row: &HistoryRow, bytes: fn(EventId) -> String) -> String {
    let text = |value: Option<&str>| value.map_or("NULL".to_owned(), |value| format!("'{value}'"));
    let number = |value: Option<i64>| value.map_or("NULL".to_owned(), |value| value.to_string());
    let (wire, kept_by, kept_at) = match &row.wire {
        Wire::Text(wire) => (&**wire, None, None),
        Wire::Kept { by, position } => ("", Some(&**by), Some(*position)),
    };
    let values = [
        text(Some(row.tenant_id.as_str())),
        bytes(row.event_id),
        text(Some(row.kind.as_str())),
        row.ts.as_micros().to_string(),
        text(row.lane.as_deref()),
        number(row.seq),
        text(row.agent_id.as_deref()),
        text(row.run_id.as_deref()),
        text(row.decision.map(aegis_model::Decision::as_str)),
        text(row.receipt_hash.as_deref()),
        row.bus_seq.to_string(),
        text(Some(wire)),
        text(kept_by),
        number(kept_at),
        i64::from(row.standing == Standing::Own).to_string(),
        number(row.bus_ts.map(aegis_model::Timestamp::as_micros)),
    ];
    format!(
        "INSERT INTO history (tenant_id, event_id, kind, ts, lane, seq, agent_id, run_id, decision, receipt_hash, bus_seq, wire, kept_by, kept_at, proved, bus_ts)
         VALUES ({})",
        values.join(", ")
    )
}

/// What such a history can have: receipts of three lanes, some kept elsewhere, observations, and what claims what it is not.
pub(crate) fn rows() -> Vec<HistoryRow> {
    let mut rows: Vec<HistoryRow> = (0..300).map(|n| event(&acme(), EventKind::AuthorizeDecision, n / 3 + 1)).collect();
    for (nth, row) in rows.iter_mut().enumerate() {
        row.lane = Some(format!("acme.edge-{}.7", nth % 3));
        if nth % 2 == 0 {
            row.wire = Wire::Kept { by: "ledger".into(), position: i64::try_from(nth).unwrap() };
        }
    }
    // Of before it was noted whether something proved itself.
    let seen = HistoryRow {
        event_id: external_event_id(&acme(), "github", "1"),
        standing: Standing::Own,
        ..event(&acme(), EventKind::ExternalGithubWebhook, 7)
    };
    // Under the place and the hash of a receipt: one before it came, and two behind it.
    let claim = || HistoryRow { event_id: aegis_model::new_event_id(), standing: Standing::Unproved, ..rows[150].clone() };
    let (first, others) = (claim(), [claim(), claim()]);
    let nowhere = HistoryRow { seq: None, ..claim() };
    rows.insert(0, first);
    rows.extend(others);
    rows.extend([seen, nowhere]);
    rows
}

/// What a store says of these rows once it has taken them over.
pub(crate) async fn holds(store: &Store, rows: &[HistoryRow]) {
    let always = (START.plus_seconds(-10_000), START.plus_seconds(10_000));
    let read = store.history_in_order(&acme(), 0, always, 1000).await.unwrap();
    let places: Vec<i64> = (1..).take(rows.len()).collect();
    assert_eq!(read.iter().map(|(place, _)| *place).collect::<Vec<_>>(), places);
    assert_eq!(read.into_iter().map(|(_, row)| row).collect::<Vec<_>>(), rows);
    assert_eq!(store.list_history(&acme(), HistoryFilter::default(), 1000, 0).await.unwrap().len(), rows.len());
    let exported = store.export_lanes(&acme(), None, 1000).await.unwrap();
    assert_eq!(exported.len(), 303, "all that has a place in a lane");
    // What comes again is there; what claimed a receipt's place goes when it comes again, and no place is given twice.
    let receipts: Vec<HistoryRow> = rows.iter().filter(|row| row.is_proved()).cloned().collect();
    assert_eq!(store.insert_history(&receipts, &[]).await.unwrap(), 0);
    assert_eq!(store.export_lanes(&acme(), None, 1000).await.unwrap().len(), 300);
    assert_eq!(store.history_event(&acme(), receipts[150].event_id).await.unwrap().as_ref(), Some(&receipts[150]));
    let stolen = HistoryRow { lane: Some("acme.edge-9.1".into()), ..receipts[150].clone() };
    assert_eq!(store.insert_history(std::slice::from_ref(&stolen), &[]).await.unwrap(), 1);
    let last = i64::try_from(rows.len()).unwrap();
    let (place, row) = store.history_in_order(&acme(), last, always, 10).await.unwrap().remove(0);
    assert_eq!((place > last, row), (true, stolen));
}
