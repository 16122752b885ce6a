//! Where crates meet that do not know each other: each adapter gives one crate's trait the other's behaviour, and nothing else.

use std::path::PathBuf;
use std::sync::Arc;

use aegis_bus::{Bus, BusError, Message, Stream, subject};
use aegis_control::{ContainmentOutcome, Control, RefusedRuleRecord};
use aegis_detect::{LaneLooks, LanesAsked, Past, PastAsked, RefusedRecord, RuleWaits, bytes_of, is_ahead_of_time};
use aegis_edge::EdgeView;
use aegis_ingest::{NotRegistered, ResourceSink, SecretsUnavailable, WebhookSecrets};
use aegis_keys::{SigningKey, sign_notice};
use aegis_lake::{Lake, LakeError, Replay, Span};
use aegis_model::{
    CommonRuleWarmRecord, EntryKind, Notice, ResourceRecord, RuleWarmRecord, SecurityEvent, TenantId, partition_of,
};
use aegis_respond::{ContainmentRequest, ContainmentRequests, RequestOutcome, RespondError};
use aegis_store::Store;
use async_trait::async_trait;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::config::LakeSection;

/// Tells control when the edge of this process enforces a revision.
#[derive(Debug)]
pub(crate) struct LocalEdge(pub(crate) Arc<EdgeView>);

#[async_trait]
impl aegis_control::AppliedWatch for LocalEdge {
    async fn wait_applied(&self, revision: i64, _kind: EntryKind, timeout: std::time::Duration) -> bool {
        self.0.wait_applied(revision, timeout).await
    }
}

/// Response asks control to contain.
#[derive(Debug)]
pub(crate) struct Containments(pub(crate) Arc<Control>);

#[async_trait]
impl ContainmentRequests for Containments {
    async fn request(&self, request: ContainmentRequest) -> Result<RequestOutcome, RespondError> {
        let asked = aegis_control::ContainmentRequest {
            tenant_id: request.tenant_id,
            command_id: request.command_id,
            target_type: request.target_type,
            target_id: request.target_id,
            kind: request.kind,
            reason: request.reason,
            by: request.by,
            evidence_ids: request.event_ids,
        };
        match self.0.request_containment(asked).await {
            Ok(ContainmentOutcome::Applied { state, .. }) => Ok(RequestOutcome::Applied { revision: state.revision }),
            Ok(ContainmentOutcome::AlreadyApplied) => Ok(RequestOutcome::AlreadyApplied),
            Ok(ContainmentOutcome::CapReached) => Ok(RequestOutcome::CapReached),
            Ok(ContainmentOutcome::UnknownTarget) => Ok(RequestOutcome::Refused("the target is not registered".to_owned())),
            Err(error) => Err(RespondError::Unavailable(error.to_string())),
        }
    }
}

/// Ingest finds webhook secrets in the store.
#[derive(Debug)]
pub(crate) struct StoredSecrets(pub(crate) Store);

#[async_trait]
impl WebhookSecrets for StoredSecrets {
    async fn secret(&self, tenant: &TenantId, adapter: &str) -> Result<Option<Vec<u8>>, SecretsUnavailable> {
        match self.0.webhook_secret(tenant, adapter).await {
            Ok(secret) => Ok(secret.map(|secret| secret.expose().as_bytes().to_vec())),
            Err(error) => Err(SecretsUnavailable { reason: error.to_string() }),
        }
    }
}

/// Detection finds the texts of rules that changed in the store.
#[derive(Debug)]
pub(crate) struct StoredRules(pub(crate) Store);

#[async_trait]
impl aegis_detect::RuleTexts for StoredRules {
    async fn text(&self, tenant: &TenantId, rule_id: &str, hash: &str) -> Result<Option<String>, String> {
        self.0.rule_text(tenant, rule_id, hash).await.map_err(|error| error.to_string())
    }

    async fn common_text(&self, rule_id: &str, hash: &str) -> Result<Option<String>, String> {
        self.0.common_rule_text(rule_id, hash).await.map_err(|error| error.to_string())
    }
}

/// Detection finds in the lake what lies before what it keeps, and what came too late for it. Each question, of which it has two at a time at most, is read
/// on a thread of its own, behind the others, and opens the lake for itself: a connection to a bucket ends with the thread that made it.
#[derive(Debug)]
pub(crate) struct PastInTheLake {
    pub(crate) section: LakeSection,
    pub(crate) data: PathBuf,
}

impl aegis_detect::PastEvents for PastInTheLake {
    fn consumer(&self) -> &'static str {
        aegis_lake::CONSUMER
    }

    fn ask(&self, asked: PastAsked) -> oneshot::Receiver<Past> {
        let (answers, answer) = oneshot::channel();
        let (section, data) = (self.section.clone(), self.data.clone());
        let work = move || async move {
            let past = match crate::lake::open_again(&section, &data) {
                Ok(lake) => {
                    let read = events_in(lake, asked, MOST_BYTES, || !answers.is_closed()).await;
                    read.map_err(|error| format!("the lake: {error}"))
                }
                Err(error) => Err(format!("{error:#}")),
            };
            let _nobody_waits = answers.send(past);
        };
        // Where it does not start nobody answers, and it is asked again.
        if let Err(error) = aegis_threads::spawn("aegis-warm-up", work) {
            tracing::warn!(%error, "the lake cannot be read for detection");
        }
        answer
    }
}

/// What the texts of all that is read take at most: no rule keeps more of a tenant.
const MOST_BYTES: usize = 512 << 20;

/// None: there are more, or nobody waits for them any more.
async fn events_in(
    lake: Lake,
    asked: PastAsked,
    most_bytes: usize,
    is_waited_for: impl Fn() -> bool,
) -> Result<Option<Vec<SecurityEvent>>, LakeError> {
    let PastAsked { tenant, from, to, most, with_late, sieve } = asked;
    let span = Span { from: from.as_micros(), to: to.as_micros().saturating_sub(1) };
    let mut replay = Replay::open(lake, &tenant, None, span).await?;
    if let Some(sieve) = &sieve {
        replay = replay.sifted_by(sieve);
    }
    let (mut events, mut bytes): (Vec<SecurityEvent>, usize) = (Vec::new(), 0);
    while let Some(page) = replay.next().await? {
        if !is_waited_for() {
            return Ok(None);
        }
        // As rules are shown them.
        let shown = page.into_iter().filter(|event| (with_late || !event.late) && !is_ahead_of_time(event));
        let before = events.len();
        events.extend(shown.map(Arc::unwrap_or_clone));
        bytes += events[before..].iter().map(bytes_of).sum::<usize>();
        if events.len() > most || bytes > most_bytes {
            return Ok(None);
        }
    }
    Ok(Some(events))
}

/// Detection says with control's word that a rule knows its window: it takes nobody else's on rules, and has no key.
#[derive(Debug)]
pub(crate) struct WarmAsControl {
    pub(crate) key: SigningKey,
    pub(crate) bus: Arc<dyn Bus>,
}

impl WarmAsControl {
    async fn put_signed<T: Notice + Serialize + Sync>(&self, tenant: &TenantId, record: &T) -> Result<(), BusError> {
        let refused = |error: aegis_keys::KeyError| BusError::Invalid { what: "record of a rule", reason: error.to_string() };
        let payload = sign_notice(&self.key, record).map_err(refused)?;
        // Without an id: one that could be told ahead is anybody's to use first.
        let message = Message::new(subject::ruleset(partition_of(tenant)), payload);
        self.bus.publish(Stream::Ase, vec![message]).await.into_iter().try_for_each(|result| result.map(drop))
    }
}

#[async_trait]
impl aegis_detect::WarmRecords for WarmAsControl {
    async fn put(&self, record: &RuleWarmRecord) -> Result<(), BusError> {
        self.put_signed(&record.tenant_id, record).await
    }

    async fn put_common(&self, record: &CommonRuleWarmRecord) -> Result<(), BusError> {
        self.put_signed(&record.0.tenant_id, record).await
    }
}

/// Detection has control tell tenants of records of rules that are refused: it seals nothing. Done on control's threads, not on detection's.
#[derive(Debug)]
pub(crate) struct RefusedToControl {
    pub(crate) control: Arc<Control>,
    pub(crate) runtime: Handle,
}

impl aegis_detect::RefusedRecords for RefusedToControl {
    fn tell(&self, refused: &RefusedRecord) -> oneshot::Receiver<()> {
        let (told, answer) = oneshot::channel();
        let control = Arc::clone(&self.control);
        let record = RefusedRuleRecord {
            partition: refused.partition,
            tenant_id: refused.tenant_id.clone(),
            fault: refused.fault.as_str(),
            seq: refused.seq,
            bus_ts: refused.bus_ts,
            hour: refused.hour(),
        };
        self.runtime.spawn(async move {
            match control.tell_refused_rule_record(&record).await {
                Ok(()) => {
                    let _nobody_waits = told.send(());
                }
                // Without an answer it is asked again.
                Err(error) => {
                    tracing::warn!(%error, partition = record.partition, "a refused record of rules is not told of yet")
                }
            }
        });
        answer
    }
}

/// Control asks detection which rules wait.
#[derive(Debug)]
pub(crate) struct WaitsOfDetection(pub(crate) Arc<RuleWaits>);

#[async_trait]
impl aegis_control::WaitingRules for WaitsOfDetection {
    async fn of(&self, tenant: &TenantId) -> Option<serde_json::Value> {
        serde_json::to_value(self.0.of(tenant).await?).ok()
    }
}

/// Control asks detection how far it has followed lanes.
#[derive(Debug)]
pub(crate) struct LanesOfDetection(pub(crate) Arc<LaneLooks>);

#[async_trait]
impl aegis_control::FollowedLanes for LanesOfDetection {
    async fn of(&self, tenant: &TenantId, edge_id: Option<&str>, offset: u32, limit: u32) -> Option<serde_json::Value> {
        let asked = LanesAsked { edge_id: edge_id.map(str::to_owned), offset: offset as usize, limit: limit as usize };
        serde_json::to_value(self.0.of(tenant, asked).await?).ok()
    }
}

/// What webhooks say of repositories keeps the registry current.
#[derive(Debug)]
pub(crate) struct RepositoryRegistry(pub(crate) Arc<Control>);

#[async_trait]
impl ResourceSink for RepositoryRegistry {
    async fn observed(&self, tenant: &TenantId, record: ResourceRecord) -> Result<(), NotRegistered> {
        self.0.observe_resource(tenant, &record).await.map_err(|error| NotRegistered { reason: error.to_string() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_lake::{Folder, Writer, WriterLimits};
    use aegis_model::{EventKind, Timestamp};

    #[tokio::test]
    async fn what_lies_before_a_rule_is_read_up_to_its_bounds_and_as_long_as_somebody_waits() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Folder::open(folder.path()).unwrap();
        let (tenant, start) = (TenantId::new("acme").unwrap(), Timestamp::from_micros(1_767_225_600_000_000));
        let mut writer = Writer::new(Arc::clone(&lake), "stream", [], WriterLimits::default());
        for seq in 1..=10 {
            let ts = start.plus_seconds(seq);
            let mut event = SecurityEvent::new(tenant.clone(), "edge-1", "edge", EventKind::AuthorizeDecision, ts);
            (event.bus_ts, event.resource, event.late) = (Some(ts), Some("r".repeat(1000)), seq == 5);
            writer.take(seq.unsigned_abs(), event, 1500);
        }
        writer.flush().await.unwrap();
        let to = start.plus_seconds(10);
        let all = |most: usize| PastAsked { tenant: tenant.clone(), from: start, to, most, with_late: true, sieve: None };
        let read = async |asked: PastAsked, bytes: usize, is_waited_for: bool| {
            let read = events_in(Arc::clone(&lake), asked, bytes, || is_waited_for).await.unwrap();
            read.map(|events| (events.len(), events.iter().filter(|event| event.late).count()))
        };
        assert_eq!(read(all(9), 10_000, true).await, Some((9, 1)), "the last is not before the end");
        assert_eq!(read(PastAsked { with_late: false, ..all(8) }, 10_000, true).await, Some((8, 0)));
        assert_eq!(read(all(8), 10_000, true).await, None);
        assert_eq!(read(all(9), 8_000, true).await, None);
        assert_eq!(read(all(9), 10_000, false).await, None);
    }
}
