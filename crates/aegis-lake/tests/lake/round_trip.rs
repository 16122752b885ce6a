//! What is written is what is read, in every column and in order; before files are merged and after.

use proptest::prelude::*;

use crate::house::{RUNTIME, as_rows, expected, logs, memory, rows, rows_as_they_lie, take, tenant, writer};

/// Long after all hours of the tests' logs are over.
fn much_later() -> aegis_model::Timestamp {
    crate::house::base().plus_seconds(30 * 24 * 3600)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rows_are_the_events_in_order_however_they_were_batched(log in logs(), batch in 1..40usize) {
        RUNTIME.block_on(async {
            let store = memory();
            let mut writer = writer(&store, &log);
            for part in log.chunks(batch) {
                take(&mut writer, part);
                writer.flush().await.unwrap();
                prop_assert_eq!(writer.hours_waiting(), 0);
            }
            for of in ["acme", "acme-2", "b"].map(tenant) {
                prop_assert_eq!(rows(&store, &of).await, as_rows(expected(&log, &of)));
            }
            // Merged until there is nothing left to merge.
            while writer.tidy(much_later(), 1).await.unwrap() > 0 {}
            for of in ["acme", "acme-2", "b"].map(tenant) {
                let events = expected(&log, &of);
                prop_assert_eq!(rows(&store, &of).await, as_rows(events.clone()));
                // What is of no hour of its own lies behind all hours.
                let (astray, of_hours): (Vec<_>, Vec<_>) =
                    events.into_iter().partition(|event| aegis_lake::Hour::of(event).folder().ends_with("/astray"));
                let of_hours = as_rows(of_hours);
                let lie = rows_as_they_lie(&store, &of).await;
                prop_assert_eq!(lie.num_rows(), of_hours.num_rows() + astray.len());
                prop_assert_eq!(lie.slice(0, of_hours.num_rows()), of_hours);
            }
            Ok(())
        })?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_too_much_that_waits_is_written_and_the_others_wait() {
    use crate::house::{log_of, proved};
    use aegis_lake::{Writer, WriterLimits};
    let store = memory();
    let limits = WriterLimits { rows: 100, bytes: 1 << 20, tenant_rows: 10, tenant_bytes: 1 << 20 };
    let mut writer = Writer::new(store.clone(), "s", [], limits);
    let log = log_of((1..=10).map(|seq| proved("acme", "acme.e.1", seq, seq)).chain([proved("b", "b.e.1", 1, 1)]));
    take(&mut writer, &log);
    assert!(!writer.is_full());
    writer.relieve().await.unwrap();
    assert_eq!(rows(&store, &tenant("acme")).await.num_rows(), 10);
    assert_eq!(rows(&store, &tenant("b")).await.num_rows(), 0);
    assert_eq!(writer.hours_waiting(), 1);
    take(&mut writer, &log_of((1..=100).map(|seq| proved("c", "c.e.1", seq, seq))));
    assert!(writer.is_full());
}
