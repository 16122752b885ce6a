//! Whether the process lives, and whether it can do its work.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use crate::reply::Json;
use aegis_bus::Stream;
use aegis_ledger::Ledger;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::control::Control;

/// `GET /health`: the process answers.
pub(crate) fn alive() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

/// `GET /readyz`: 200 only if receipts can be written, by all that write any here, the bus answers and every role is connected to it, the store answers and the consumers run.
/// With what the servers are that carry the bus, if any do.
pub(crate) async fn ready(control: &Control) -> Response {
    let ledger = control.ledger.is_writable() && control.config.ledgers_beside.iter().all(Ledger::is_writable);
    let bus = control.bus.last_seq(Stream::Ase).await.is_ok();
    let store = control.store.ping().await.is_ok();
    let tasks = control.tasks_running();
    let archive = tasks && control.archive_ok.load(Ordering::SeqCst);
    let approvals = tasks && control.approvals_ok.load(Ordering::SeqCst);
    let connections: BTreeMap<&str, bool> =
        control.config.connections.iter().map(|(role, bus)| (*role, bus.is_connected())).collect();
    let ready = ledger && bus && store && archive && approvals && connections.values().all(|connected| *connected);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let checks = json!({
        "ledger_writable": ledger,
        "bus_reachable": bus,
        "store_readable": store,
        "archive_consumer": archive,
        "approvals_consumer": approvals,
        // Behind is not down: edges enforce what they hold.
        "control_feed_current": !control.feed.is_behind(),
    });
    let body = json!({"ready": ready, "checks": checks, "connections": connections, "bus": control.bus.servers()});
    (status, Json(body)).into_response()
}
