//! After a start: nonces, request ids and run labels are read back from the ledger, so that a restart forgets no taint.

use aegis_model::{EventKind, MAX_RUN_IDLE_S, SecurityEvent, SourceTrust};
use serde_json::Value;

use crate::bounded::Named;
use crate::digest::run_key;
use crate::{Edge, EdgeError};

/// Rows read at a time.
const PAGE: usize = 2000;

pub(crate) async fn from_ledger(edge: &Edge) -> Result<(), EdgeError> {
    let kinds = [EventKind::AuthorizeDecision];
    let Some(last) = edge.ledger.latest(&kinds).await? else { return Ok(()) };
    // A clock that is ahead until control is heard must not have ended what lasts.
    let newest = edge.clock.now().min(last);
    let since = newest.plus_seconds(-edge.config.replay_memory_s.max(MAX_RUN_IDLE_S));
    let mut after_row = 0;
    loop {
        let page = edge.ledger.recent(since, &kinds, after_row, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after_row = last.row;
        for item in &page {
            let Ok(wire) = serde_json::from_str::<Value>(&item.sealed.wire) else { continue };
            let detail = wire.pointer("/receipt/detail").cloned().unwrap_or(Value::Null);
            if let Ok(event) = serde_json::from_value::<SecurityEvent>(wire) {
                remember(edge, &event, &detail);
            }
        }
    }
}

fn remember(edge: &Edge, event: &SecurityEvent, detail: &Value) {
    let text = |name: &str| detail.get(name).and_then(Value::as_str);
    let Some(agent_id) = event.agent_id.as_deref() else { return };
    let settings = edge.view.settings(&event.tenant_id);
    let (run, idle_s) = match &event.run_id {
        Some(run_id) => (format!("run:{run_id}"), settings.run_idle_s),
        None => (format!("agent:{agent_id}"), settings.implicit_run_idle_s),
    };
    let label = event.source_trust.unwrap_or(SourceTrust::Unknown);
    edge.runs.tighten(&event.tenant_id, run_key(&run), label, idle_s, event.ts);

    let Some(content) = text("request_hash") else { return };
    if let Some(request_id) = text("request_id") {
        let request = Named::new(&event.tenant_id, agent_id, request_id);
        edge.replay.bind_request(&request, content, event.ts);
        if let Some(decision) = event.decision {
            edge.replay.tighten_answer(&request, decision, event.ts);
        }
    }
    if let Some(nonce_hash) = &event.nonce_hash {
        edge.replay.bind_nonce(&Named::new(&event.tenant_id, agent_id, nonce_hash), content, event.ts);
    }
}
