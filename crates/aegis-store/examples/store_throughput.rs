//! How fast the store takes history, in batches, and durable changes, one by one:
//! `cargo run --release --workspace --example store_throughput`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::sync::Arc;

use aegis_model::{Clock, EventKind, SystemClock, TenantId, new_event_id};
use aegis_store::{HistoryRow, Standing, Store, Wire};
use tokio::time::Instant;

const BATCH: usize = 512;
const BATCHES: usize = 100;
const COMMANDS: usize = 1000;

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let store = Store::open(&folder.path().join("store.db"), Arc::new(SystemClock)).await.unwrap();
    let tenants: Vec<_> = (0..10).map(|n| TenantId::new(&format!("tenant-{n}")).unwrap()).collect();
    for tenant in &tenants {
        store.create_tenant(tenant, "t").await.unwrap();
    }
    let row = |n: usize| HistoryRow {
        tenant_id: tenants[n % tenants.len()].clone(),
        event_id: new_event_id(),
        kind: EventKind::AuthorizeDecision,
        ts: SystemClock.now(),
        lane: Some(format!("tenant-{}.edge-1.1", n % tenants.len())),
        seq: Some(i64::try_from(n).unwrap()),
        agent_id: Some(format!("agent-{}", n % 1000)),
        run_id: Some(format!("run-{}", n % 5000)),
        decision: Some(aegis_model::Decision::Allow),
        receipt_hash: Some(format!("{n:064x}")),
        bus_seq: n as u64,
        bus_ts: Some(SystemClock.now()),
        standing: Standing::Own,
        wire: Wire::Text("x".repeat(2500).into()),
    };
    let batches: Vec<Vec<_>> = (0..BATCHES).map(|b| (0..BATCH).map(|n| row(b * BATCH + n)).collect()).collect();
    let begun = Instant::now();
    for batch in &batches {
        store.insert_history(batch, &[]).await.unwrap();
    }
    let taken = begun.elapsed();
    println!("history: {:.0} rows/s in batches of {BATCH}", (BATCH * BATCHES) as f64 / taken.as_secs_f64());
    let begun = Instant::now();
    for n in 0..COMMANDS {
        assert!(store.apply_command(&tenants[0], &format!("command-{n}")).await.unwrap());
    }
    println!("durable single changes: {:.0} /s", COMMANDS as f64 / begun.elapsed().as_secs_f64());
}
