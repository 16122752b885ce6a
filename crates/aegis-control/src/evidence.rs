//! Decisions, receipts and the audit trail, from the history of events.
//! Promises that what is called verified was verified just now, against the keys this process trusts.

use crate::reply::Json;
use aegis_ledger::verify::verify_wire;
use aegis_model::{EventId, EventKind, TenantId};
use aegis_store::{HistoryFilter, HistoryRow};
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::auth::Caller;
use crate::control::Control;
use crate::problem::Problem;
use crate::routes::Call;

/// How old a UUIDv7 may be for its event to be waited for, milliseconds.
const FRESH_MS: i64 = 30_000;

/// The header that says how many other events have a receipt's id.
const SAME_ID: &str = "aegis-same-id";

/// An event's wire form through the strict door: a lenient reader could be shown another event than the one that was sealed.
pub(crate) fn read_wire(text: &str) -> Result<Value, Problem> {
    aegis_canon::parse_strict(text.as_bytes()).map_err(Problem::internal)
}

impl Control {
    /// All that the history has under an id, of one lane where one is named. One whose id was made a moment ago may still be on the bus: until one
    /// that is wanted is there, it is waited for.
    pub(crate) async fn history_soon(
        &self,
        tenant: &TenantId,
        id: EventId,
        lane: Option<&str>,
        is_wanted: impl Fn(&HistoryRow) -> bool + Send + Sync,
    ) -> Result<Vec<HistoryRow>, Problem> {
        let deadline = tokio::time::Instant::now() + self.config.arrival_wait;
        loop {
            let arrived = self.arrived.notified();
            let rows = self.store.history_events(tenant, id, lane).await?;
            let is_there = rows.iter().any(&is_wanted);
            if is_there || !self.is_fresh(id) || tokio::time::timeout_at(deadline, arrived).await.is_err() {
                return Ok(rows);
            }
        }
    }

    fn is_fresh(&self, id: EventId) -> bool {
        let Some(made) = id.get_timestamp() else { return false };
        let (seconds, nanos) = made.to_unix();
        let made_ms =
            i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000).saturating_add(i64::from(nanos / 1_000_000));
        let now_ms = self.clock.now().as_micros() / 1000;
        now_ms.saturating_sub(made_ms).abs() < FRESH_MS
    }

    /// An event as the API shows it: its columns, `verified` as found now, without receipt and proof.
    fn event_view(&self, row: &HistoryRow, wire: &str) -> Result<Map<String, Value>, Problem> {
        let wire = read_wire(wire)?;
        let verified = is_for_its_lane_to_say(row) && verify_wire(&wire, Some(&self.ring)).is_ok();
        let Value::Object(mut columns) = wire else { return Err(Problem::internal("an event in the history is no object")) };
        columns.remove("receipt");
        columns.remove("proof");
        columns.insert("verified".to_owned(), json!(verified));
        if row.kind == EventKind::AuthorizeDecision {
            columns.insert("decision_id".to_owned(), json!(row.event_id));
        }
        Ok(columns)
    }

    async fn events(&self, call: &Call, kinds: &[EventKind], run_id: Option<&str>) -> Result<Vec<Value>, Problem> {
        let page = call.query.page()?;
        let agent_id = call.query.filter("agent_id")?;
        let run_id = match run_id {
            Some(run_id) => Some(run_id),
            None => call.query.filter("run_id")?,
        };
        let filter = HistoryFilter { kinds, receipts_only: false, agent_id, run_id };
        let rows = self.store.list_history(call.tenant(), filter, page.limit, page.offset).await?;
        self.views(&rows, |row, wire| self.event_view(row, wire).map(Value::Object)).await
    }

    /// What `view` makes of each event, and what is known of those that are gone.
    async fn views(
        &self,
        rows: &[HistoryRow],
        view: impl Fn(&HistoryRow, &str) -> Result<Value, Problem>,
    ) -> Result<Vec<Value>, Problem> {
        let wires = self.wires(rows).await?;
        let views = rows.iter().zip(&wires).map(|(row, wire)| match wire {
            Some(wire) => view(row, wire),
            None => Ok(missing_view(row)),
        });
        views.collect()
    }
}

/// False without a lane, too: what has no receipt proves nothing.
fn is_for_its_lane_to_say(row: &HistoryRow) -> bool {
    row.lane.as_deref().is_some_and(|lane| row.kind.may_stand_in(lane))
}

pub(crate) async fn list_decisions(control: &Control, call: &Call) -> Result<Response, Problem> {
    Ok(Json(control.events(call, &[EventKind::AuthorizeDecision], None).await?).into_response())
}

pub(crate) async fn get_decision(control: &Control, call: &Call) -> Result<Response, Problem> {
    control.refuse_revoked(&call.caller).await?;
    let is_own = |row: &HistoryRow| match &call.caller {
        Caller::Agent(claims) => row.agent_id.as_deref() == Some(claims.agent_id.as_str()),
        Caller::Key(_) => true,
    };
    let is_wanted = |row: &HistoryRow| row.kind == EventKind::AuthorizeDecision && is_own(row);
    let Found { row, others } = find(control, call, "decision", is_wanted).await?;
    let wire = control.wire(&row).await?;
    let mut view = control.event_view(&row, &wire)?;
    // Not an agent's to know: they may be another's.
    if matches!(call.caller, Caller::Key(_)) && !others.is_empty() {
        view.insert("same_id".to_owned(), same_id_view(&others));
    }
    Ok(Json(view).into_response())
}

pub(crate) async fn list_receipts(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    let (agent_id, run_id) = (call.query.filter("agent_id")?, call.query.filter("run_id")?);
    let filter = HistoryFilter { kinds: &[], receipts_only: true, agent_id, run_id };
    let rows = control.store.list_history(call.tenant(), filter, page.limit, page.offset).await?;
    Ok(Json(control.views(&rows, receipt_of).await?).into_response())
}

/// What the history itself knows of an event that the ledger no longer has: listed, so that nobody takes it for one that never was.
pub(crate) fn missing_view(row: &HistoryRow) -> Value {
    json!({
        "event_id": row.event_id, "receipt_id": row.event_id, "tenant_id": row.tenant_id, "kind": row.kind, "ts": row.ts,
        "lane": row.lane, "seq": row.seq, "agent_id": row.agent_id, "run_id": row.run_id, "decision": row.decision,
        "receipt_hash": row.receipt_hash, "verified": false, "evidence": "missing",
    })
}

/// The receipt within an event: body and hash.
fn receipt_of(row: &HistoryRow, wire: &str) -> Result<Value, Problem> {
    let mut wire = read_wire(wire)?;
    let mut receipt = wire["receipt"].take();
    if let Some(object) = receipt.as_object_mut() {
        object.insert("receipt_id".to_owned(), json!(row.event_id));
        object.insert("receipt_hash".to_owned(), json!(row.receipt_hash));
    }
    Ok(receipt)
}

pub(crate) async fn get_receipt(control: &Control, call: &Call) -> Result<Response, Problem> {
    let Found { row, others } = find(control, call, "receipt", is_of_lane).await?;
    let wire = read_wire(&control.wire(&row).await?)?;
    let mut reply = Json(wire).into_response();
    // Not in the body: no digest would cover it.
    if !others.is_empty() {
        reply.headers_mut().insert(SAME_ID, HeaderValue::from(others.len()));
    }
    Ok(reply)
}

/// Hash, event digest, signature and place in the lane, each by its name.
pub(crate) async fn verify_receipt(control: &Control, call: &Call) -> Result<Response, Problem> {
    let Found { row, others } = find(control, call, "receipt", is_of_lane).await?;
    let wire = read_wire(&control.wire(&row).await?)?;
    let sound = verify_wire(&wire, Some(&control.ring));
    let link = link_of(control, &row, &wire).await?;
    let failure = match (&sound, link) {
        (Err(failure), _) => Some(failure.to_string()),
        (Ok(_), "failed") => Some("prev_receipt_hash is not the hash of the receipt before it in its lane".to_owned()),
        (Ok(_), _) if !is_for_its_lane_to_say(&row) => Some(format!(
            "foreign_kind: an event of kind {} is sealed by {}, and not in this lane",
            row.kind,
            row.kind.sealer().as_str()
        )),
        _ => None,
    };
    if failure.is_some() {
        control.metrics.verify_failures.inc();
    }
    let proven = if sound.is_ok() { "ok" } else { "failed" };
    let mut reply = json!({
        "receipt_id": row.event_id,
        "receipt_hash": row.receipt_hash,
        "lane": row.lane,
        "seq": row.seq,
        "verdict": if failure.is_none() { "valid" } else { "invalid" },
        "checks": {"receipt_hash_event_digest_proof": proven, "link": link},
        "failure": failure,
    });
    if !others.is_empty() {
        reply["same_id"] = same_id_view(&others);
    }
    Ok(Json(reply).into_response())
}

/// Whether the receipt follows the one before it: `ok`, `failed`, or `not_checked` while that one has not arrived.
async fn link_of(control: &Control, row: &HistoryRow, wire: &Value) -> Result<&'static str, Problem> {
    let previous = wire["receipt"]["prev_receipt_hash"].as_str().unwrap_or("");
    let (Some(lane), Some(seq)) = (row.lane.as_deref(), row.seq) else { return Ok("failed") };
    if seq == 1 {
        return Ok(if previous.is_empty() { "ok" } else { "failed" });
    }
    // Whoever may publish for the tenant can put something else under that place: what proves nothing is not the receipt before it.
    let before = control.store.proved_of_lane(&row.tenant_id, lane, seq - 2, 1).await?;
    match before.first() {
        Some(before) if before.seq == Some(seq - 1) => {
            Ok(if before.receipt_hash.as_deref() == Some(previous) { "ok" } else { "failed" })
        }
        _ => Ok("not_checked"),
    }
}

/// What is answered for an id, and what else has it: whoever seals events of the tenant can give one an id of another's.
struct Found {
    row: HistoryRow,
    others: Vec<HistoryRow>,
}

fn is_of_lane(row: &HistoryRow) -> bool {
    row.lane.is_some()
}

/// The first that is wanted of an id, in the order of `Store::history_events`: of the lane that the query names, if it names one.
async fn find(
    control: &Control,
    call: &Call,
    what: &str,
    is_wanted: impl Fn(&HistoryRow) -> bool + Send + Sync,
) -> Result<Found, Problem> {
    let id: EventId = call.param("id").parse().map_err(|_| Problem::not_found(what))?;
    let lane = call.query.filter("lane")?;
    let found = control.history_soon(call.tenant(), id, lane, &is_wanted).await?;
    let row = found.iter().find(|row| is_wanted(row)).cloned().ok_or_else(|| Problem::not_found(what))?;
    let all = if lane.is_some() { control.store.history_events(call.tenant(), id, None).await? } else { found };
    let others = all.into_iter().filter(|other| *other != row).collect();
    Ok(Found { row, others })
}

fn same_id_view(others: &[HistoryRow]) -> Value {
    let view = |row: &HistoryRow| {
        json!({
            "kind": row.kind, "ts": row.ts, "lane": row.lane, "seq": row.seq, "receipt_hash": row.receipt_hash,
            "proved": row.is_proved(),
        })
    };
    others.iter().map(view).collect()
}

/// The newest part of a run, oldest first: how it came to what it did.
pub(crate) async fn timeline(control: &Control, call: &Call) -> Result<Response, Problem> {
    let mut events = control.events(call, &[], Some(call.param("id"))).await?;
    if events.is_empty() {
        return Err(Problem::not_found("run"));
    }
    events.reverse();
    Ok(Json(events).into_response())
}

pub(crate) async fn audit_events(control: &Control, call: &Call) -> Result<Response, Problem> {
    let kinds: Vec<EventKind> = match call.query.filter("kind")? {
        None => Vec::new(),
        Some(word) => {
            vec![word.parse().map_err(|_| Problem::bad_request("invalid_query", "`kind` is not a kind of event"))?]
        }
    };
    Ok(Json(control.events(call, &kinds, None).await?).into_response())
}
