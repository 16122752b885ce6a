//! A query opens the hours and files that its conditions on `ts` can want, and no others; and finds in them what it would find in all.

use std::sync::{Arc, LazyLock};

use aegis_lake::{Read, Span};
use object_store::ObjectStore;
use proptest::prelude::*;

use crate::house::{MINUTE, RUNTIME, ask, base, fill, log_of, memory, observed, proved, take, writer};

/// One event a minute for six hours, two files an hour.
async fn six_hours() -> Arc<dyn ObjectStore> {
    let store = memory();
    let log = log_of((0..360).map(|minute| proved("acme", "acme.e.1", minute + 1, minute * MINUTE)));
    let mut writer = writer(&store, &log);
    for part in log.chunks(30) {
        take(&mut writer, part);
        writer.flush().await.unwrap();
    }
    store
}

static SIX_HOURS: LazyLock<Arc<dyn ObjectStore>> = LazyLock::new(|| RUNTIME.block_on(six_hours()));

/// How many rows the condition finds, and what was read for it.
async fn found(store: &Arc<dyn ObjectStore>, condition: &str) -> (usize, Read) {
    let mut answer = ask(store, "acme", &format!("SELECT agent_id FROM events WHERE {condition}")).await.unwrap();
    let mut rows = 0;
    while let Some(batch) = answer.next().await.unwrap() {
        rows += batch.num_rows();
    }
    (rows, answer.table().read())
}

#[tokio::test(flavor = "multi_thread")]
async fn hours_and_files_of_other_times_are_not_opened() {
    let store = six_hours().await;
    let read = |hours, files, rows| Read { hours, files, rows };
    assert_eq!(found(&store, "true").await, (360, read(6, 12, 360)));
    assert_eq!(found(&store, "ts >= '2026-11-26T14:00:00Z'").await, (120, read(2, 4, 120)));
    assert_eq!(found(&store, "ts < TIMESTAMP '2026-11-26 10:30:00'").await.0, 30);
    assert_eq!(found(&store, "ts BETWEEN '2026-11-26T11:00:00Z' AND '2026-11-26T11:10:00Z'").await, (11, read(1, 1, 30)));
    assert_eq!(found(&store, "ts > '2027-01-01T00:00:00Z'").await, (0, read(0, 0, 0)));
    assert_eq!(found(&store, "ts >= '2026-11-26T15:45:00Z' OR agent_id = 'agent-0'").await.1, read(6, 12, 360));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_claims_a_time_far_off_is_found_by_it() {
    let store = memory();
    let mut forged = observed("acme", 0);
    forged.ts = base().plus_seconds(-400 * 24 * 3600);
    fill(&store, &log_of([forged, proved("acme", "acme.e.1", 1, 0)])).await;
    assert_eq!(found(&store, "ts < '2026-01-01T00:00:00Z'").await, (1, Read { hours: 1, files: 1, rows: 1 }));
    assert_eq!(found(&store, "ts > '2026-01-01T00:00:00Z'").await.0, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_left_out_has_nothing_that_passes(from in -30i64..400, length in 0i64..120, op in 0..4usize) {
        let store = Arc::clone(&SIX_HOURS);
        RUNTIME.block_on(async {
            let (low, high) = (base().plus_micros(from * MINUTE), base().plus_micros((from + length) * MINUTE));
            let condition = match op {
                0 => format!("ts >= '{low}' AND ts <= '{high}'"),
                1 => format!("'{low}' < ts AND '{high}' > ts"),
                2 => format!("ts BETWEEN '{low}' AND '{high}'"),
                _ => format!("ts = '{low}'"),
            };
            let wanted = (0..360).filter(|minute| match op {
                0 | 2 => (from..=from + length).contains(minute),
                1 => *minute > from && *minute < from + length,
                _ => *minute == from,
            });
            prop_assert_eq!(found(&store, &condition).await.0, wanted.count());
            Ok(())
        })?;
    }

    #[test]
    fn a_span_meets_what_has_a_time_in_it(from in -5i64..5, to in -5i64..5, first in -5i64..5, length in 0i64..5) {
        let last = first + length;
        let has_one = (first..=last).any(|time| (from..=to).contains(&time));
        // More than is needed only where the span is empty.
        let meets = Span { from, to }.meets(first, last);
        prop_assert!(!has_one || meets);
    }
}
