//! L-TENANT: a query sees its own tenant's rows, whatever it says and whatever others are called.

use std::sync::Arc;

use aegis_lake::{Hour, tenants};
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use crate::house::{all_of, ask, fill, log_of, memory, observed, proved, tenant};

/// Names of which each could be taken for a part of another.
const NAMES: [&str; 4] = ["acme", "acme-2", "acm", "date"];

async fn count(store: &Arc<dyn ObjectStore>, of: &str, condition: &str) -> i64 {
    let text = format!("SELECT count(*) FROM events WHERE {condition}");
    let rows = all_of(ask(store, of, &text).await.unwrap()).await.unwrap();
    rows.column(0).as_primitive::<Int64Type>().value(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_condition_reaches_another_tenants_rows() {
    let store = memory();
    let of = |name: &'static str, count: i64| (1..=count).map(move |seq| proved(name, &format!("{name}.e.1"), seq, seq));
    let log = log_of(NAMES.into_iter().zip(1..).flat_map(|(name, count)| of(name, count)).chain([observed("acme", 1)]));
    fill(&store, &log).await;
    for (name, rows) in NAMES.into_iter().zip([2, 2, 3, 4]) {
        assert_eq!(count(&store, name, "true").await, rows, "{name}");
        assert_eq!(count(&store, name, &format!("tenant_id = '{name}'")).await, rows, "{name}");
        assert_eq!(count(&store, name, &format!("tenant_id <> '{name}' OR tenant_id IS NULL")).await, 0, "{name}");
    }
    assert_eq!(count(&store, "nobody", "true").await, 0);
    assert_eq!(tenants(&store).await.unwrap(), NAMES.map(tenant).into_iter().collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_holds_another_tenants_manifest_is_not_read() {
    let store = memory();
    let event = proved("acme", "acme.e.1", 1, 1);
    let theirs = Hour::of(&event).folder();
    let mine = Hour::of(&proved("b", "b.e.1", 1, 1)).folder();
    fill(&store, &log_of([event])).await;
    let manifest = store.get(&Path::from(format!("{theirs}/manifest.json"))).await.unwrap().bytes().await.unwrap();
    store.put(&Path::from(format!("{mine}/manifest.json")), PutPayload::from(manifest)).await.unwrap();
    let error = all_of(ask(&store, "b", "SELECT * FROM events").await.unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("another tenant's"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_table_is_there() {
    let store = memory();
    fill(&store, &log_of([proved("acme", "acme.e.1", 1, 1)])).await;
    for table in ["other", "information_schema.tables", "datafusion.public.other", "'/etc/passwd'", "generate_series(1, 10)"] {
        assert!(ask(&store, "acme", &format!("SELECT * FROM {table}")).await.is_err(), "{table}");
    }
}
