//! What the tests share: logs of events as a bus has them, and the rows of a lake.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use aegis_detect::{EventBatch, events_schema};
use aegis_lake::{Answer, Bounds, Hour, QueryError, Writer, WriterLimits, query};
use aegis_model::{Decision, EventKind, SecurityEvent, SourceTrust, TenantId, Timestamp};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use proptest::prelude::*;
use tokio::runtime::Runtime;

/// The stream that the tests' logs are of.
pub(crate) const STREAM: &str = "stream-1";
pub(crate) const MINUTE: i64 = 60_000_000;

/// For tests that are no tasks themselves.
pub(crate) static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());

pub(crate) fn base() -> Timestamp {
    Timestamp::parse_rfc3339("2026-11-26T10:00:00Z").unwrap()
}

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

pub(crate) fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

/// An event of a log, at a sequence of the stream.
pub(crate) type Logged = (u64, SecurityEvent);

/// A proved event of a tenant's lane, so many microseconds after the base.
pub(crate) fn proved(of: &str, lane: &str, seq: i64, micros: i64) -> SecurityEvent {
    let ts = base().plus_micros(micros);
    let mut event = SecurityEvent::new(tenant(of), "edge-1", "edge", EventKind::AuthorizeDecision, ts);
    (event.lane, event.seq) = (Some(lane.to_owned()), Some(seq));
    (event.verified, event.bus_ts) = (true, Some(ts.plus_micros(1_000)));
    event.agent_id = Some(format!("agent-{}", seq % 3));
    event.decision = Some(if seq % 2 == 0 { Decision::Allow } else { Decision::Deny });
    event
}

/// An observation, which has no lane.
pub(crate) fn observed(of: &str, micros: i64) -> SecurityEvent {
    let ts = base().plus_micros(micros);
    let mut event = SecurityEvent::new(tenant(of), "ingest", "github", EventKind::ExternalGithubWebhook, ts);
    event.bus_ts = Some(ts.plus_micros(1_000));
    event
}

/// The events at the sequences from 1 on.
pub(crate) fn log_of(events: impl IntoIterator<Item = SecurityEvent>) -> Vec<Logged> {
    (1..).zip(events).collect()
}

/// Logs with all that a bus may bring: several tenants and lanes, events out of order, of other days, unproved, and the same receipt twice.
pub(crate) fn logs() -> impl Strategy<Value = Vec<Logged>> {
    let event = (0..3usize, 0..4usize, -180i64..180, any::<u16>(), 0..20usize, "\\PC{0,6}");
    prop::collection::vec(event, 1..80).prop_map(|picked| {
        let mut seqs = std::collections::HashMap::new();
        let mut events: Vec<SecurityEvent> = Vec::new();
        for (of, lane, minutes, micros, chance, text) in picked {
            let of = ["acme", "acme-2", "b"][of];
            let micros = minutes * MINUTE + i64::from(micros);
            if chance == 0
                && let Some(again) = events.iter().rev().find(|event| event.verified).cloned()
            {
                events.push(again);
                continue;
            }
            let mut event = if lane == 0 {
                observed(of, micros)
            } else {
                let seq = seqs.entry((of, lane)).and_modify(|seq| *seq += 1).or_insert(1i64);
                proved(of, &format!("{of}.edge-{lane}.1"), *seq, micros)
            };
            if chance == 1 {
                // Says it is of a lane, and proves nothing; of any time.
                (event.verified, event.lane, event.seq) = (false, Some("forged".into()), Some(1));
                event.ts = Timestamp::from_micros(micros);
            }
            event.late = chance == 2;
            event.source_trust = (chance > 10).then_some(SourceTrust::UntrustedExternal);
            event.resource = (!text.is_empty()).then_some(text);
            event.matched_policies = vec!["p".to_owned(); chance % 3];
            event.risk_score = (chance > 3).then_some(chance as i32);
            events.push(event);
        }
        log_of(events)
    })
}

/// What a lake that was filled from a log has of a tenant, in the order of events.
pub(crate) fn expected(log: &[Logged], of: &TenantId) -> Vec<SecurityEvent> {
    let mut known = HashSet::new();
    let mut events: Vec<SecurityEvent> = Vec::new();
    for (seq, event) in log.iter().filter(|(_, event)| event.tenant_id == *of) {
        let is_receipt = event.verified && event.lane.is_some();
        let key = if is_receipt { (event.lane.clone(), event.seq, 0) } else { (None, None, *seq) };
        if known.insert(key) {
            events.push(event.clone());
        }
    }
    events.sort_by(|a, b| a.order_key().cmp(&b.order_key()));
    events
}

pub(crate) fn as_rows(events: Vec<SecurityEvent>) -> RecordBatch {
    EventBatch::new(events.into_iter().map(Arc::new).collect()).to_record_batch().unwrap()
}

/// A writer as a process that starts has it: it may have to tidy any hour of the log.
pub(crate) fn writer(store: &Arc<dyn ObjectStore>, log: &[Logged]) -> Writer {
    let hours: HashSet<Hour> = log.iter().map(|(_, event)| Hour::of(event)).collect();
    Writer::new(Arc::clone(store), STREAM, hours, WriterLimits::default())
}

pub(crate) fn take(writer: &mut Writer, log: &[Logged]) {
    log.iter().for_each(|(seq, event)| writer.take(*seq, event.clone(), 500));
}

/// Writes a log at once.
pub(crate) async fn fill(store: &Arc<dyn ObjectStore>, log: &[Logged]) {
    let mut writer = writer(store, log);
    take(&mut writer, log);
    writer.flush().await.unwrap();
}

pub(crate) async fn ask(store: &Arc<dyn ObjectStore>, of: &str, text: &str) -> Result<Answer, QueryError> {
    let bounds = Bounds { rows: 1_000_000, ..Bounds::default() };
    query(Arc::clone(store), &tenant(of), text, bounds).await
}

pub(crate) async fn all_of(mut answer: Answer) -> Result<RecordBatch, QueryError> {
    let schema = answer.schema();
    let mut rows = Vec::new();
    while let Some(batch) = answer.next().await? {
        rows.push(batch);
    }
    Ok(concat_batches(&schema, &rows).unwrap())
}

/// All rows of a tenant, as the files have them.
pub(crate) async fn rows_as_they_lie(store: &Arc<dyn ObjectStore>, of: &TenantId) -> RecordBatch {
    let rows = all_of(ask(store, of.as_str(), "SELECT * FROM events").await.unwrap()).await.unwrap();
    RecordBatch::try_new(events_schema(), rows.columns().to_vec()).unwrap()
}

/// All rows of a tenant in the order of events.
pub(crate) async fn rows(store: &Arc<dyn ObjectStore>, of: &TenantId) -> RecordBatch {
    let text = "SELECT * FROM events ORDER BY ts, lane NULLS FIRST, seq NULLS FIRST, event_id";
    let rows = all_of(ask(store, of.as_str(), text).await.unwrap()).await.unwrap();
    RecordBatch::try_new(events_schema(), rows.columns().to_vec()).unwrap()
}
