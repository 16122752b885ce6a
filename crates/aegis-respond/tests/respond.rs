//! Responding over the real bus and the real store, with a control that can fail, hang, and count.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, EmbeddedBus, EmbeddedLimits, Message, Stream, subject};
use aegis_model::{
    Alert, Clock, ContainmentKind, EventId, Hold, Incident, IncidentStatus, Retraction, RuleMode, Severity, SystemClock,
    TargetType, TenantId, Timestamp, Verdict, new_event_id,
};
use aegis_respond::{
    CONSUMER, ContainmentRequest, ContainmentRequests, RequestOutcome, RespondError, Responder, ResponseRecord, ResponseStatus,
    command_id,
};
use aegis_store::{AutomaticHold, Store};
use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

/// Nothing here takes this long; a test that reaches it has failed.
const DEADLINE: Duration = Duration::from_secs(30);
const START: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

fn alert(n: usize, agent: &str) -> Alert {
    Alert {
        alert_id: format!("{n:064x}"),
        tenant_id: acme(),
        rule_id: "AEG-3001".into(),
        rule_name: "deny-storm".into(),
        rule_version: 1,
        rule_hash: "ab".repeat(32),
        severity: Severity::High,
        mode: RuleMode::Active,
        key: json!({"agent_id": agent}).as_object().unwrap().clone(),
        first_ts: START,
        last_ts: START,
        event_ids: vec![new_event_id(), new_event_id()],
        receipt_hashes: vec![],
        fields: serde_json::Map::new(),
        respond: vec!["freeze_agent".into()],
        atlas: vec![],
        owasp: vec![],
        runbook: None,
        detected_at: START,
    }
}

/// What control does with the next requests.
#[derive(Clone, Debug, Default)]
enum Mood {
    #[default]
    Works,
    Unreachable,
    Refuses,
    /// Applies the command, and then the answer is lost.
    LosesAnswers,
}

/// Control, with its real store behind it and its real cap.
struct FakeControl {
    store: Store,
    clock: Arc<dyn Clock>,
    cap: u32,
    mood: Mutex<Mood>,
    asked: Mutex<Vec<ContainmentRequest>>,
}

#[async_trait]
impl ContainmentRequests for FakeControl {
    async fn request(&self, request: ContainmentRequest) -> Result<RequestOutcome, RespondError> {
        self.asked.lock().push(request.clone());
        let mood = self.mood.lock().clone();
        match mood {
            Mood::Unreachable => return Err(RespondError::Unavailable("connection refused".into())),
            Mood::Refuses => return Ok(RequestOutcome::Refused("agent is not registered".into())),
            Mood::Works | Mood::LosesAnswers => {}
        }
        let hold = Hold {
            hold_id: request.command_id.clone(),
            kind: request.kind,
            reason: request.reason,
            by: request.by,
            since: self.clock.now(),
            until: None,
        };
        let (tenant, command) = (&request.tenant_id, &request.command_id);
        let outcome =
            self.store.add_automatic_hold(tenant, command, request.target_type, &request.target_id, &hold, self.cap, &[]).await?;
        if matches!(mood, Mood::LosesAnswers) {
            return Err(RespondError::Unavailable("the answer was lost".into()));
        }
        Ok(match outcome {
            AutomaticHold::Applied(state) => RequestOutcome::Applied { revision: state.revision },
            AutomaticHold::AlreadyApplied => RequestOutcome::AlreadyApplied,
            AutomaticHold::CapReached => RequestOutcome::CapReached,
        })
    }
}

/// One life of a process: bus, store, control, responder over one data folder.
struct Life {
    bus: Arc<EmbeddedBus>,
    store: Store,
    control: Arc<FakeControl>,
    clock: Arc<dyn Clock>,
    responder: Option<Responder>,
}

impl Life {
    async fn begin(folder: &Path) -> Self {
        Self::begin_with(folder, 100, Mood::Works).await
    }

    async fn begin_with(folder: &Path, cap: u32, mood: Mood) -> Self {
        let mut life = Self::begin_idle(folder, cap, mood).await;
        life.respond();
        life
    }

    /// Without a responder: what is published waits.
    async fn begin_idle(folder: &Path, cap: u32, mood: Mood) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let bus = EmbeddedBus::open(&folder.join("bus.db"), EmbeddedLimits::default(), clock.clone()).await.unwrap();
        let store = Store::open(&folder.join("store.db"), clock.clone()).await.unwrap();
        store.create_tenant(&acme(), "Acme").await.unwrap();
        let control = Arc::new(FakeControl {
            store: store.clone(),
            clock: clock.clone(),
            cap,
            mood: Mutex::new(mood),
            asked: Mutex::default(),
        });
        Self { bus, store, control, clock, responder: None }
    }

    fn respond(&mut self) {
        self.responder = Some(Responder::spawn(self.bus.clone(), self.store.clone(), self.control.clone(), self.clock.clone()));
    }

    async fn end(mut self) {
        if let Some(responder) = self.responder.take() {
            responder.stop().await;
        }
        self.bus.close().await;
        self.store.close().await;
    }

    /// Publishes as the detector does: the alert is stored once.
    async fn publish(&self, alert: &Alert) {
        let text = serde_json::to_string(alert).unwrap();
        self.publish_raw(&subject::alert(&alert.tenant_id, &alert.alert_id), text).await;
    }

    async fn publish_raw(&self, subject: &str, text: String) {
        let ack = self.bus.publish(Stream::Alerts, vec![Message::new(subject, text).expecting(0)]).await;
        assert!(ack[0].is_ok(), "{ack:?}");
    }

    /// Waits until the responder has passed everything that is in the stream.
    async fn passed(&self) {
        until("the responder passes the stream", async || {
            self.bus.consumer_position(Stream::Alerts, CONSUMER).await.unwrap()
                == self.bus.last_seq(Stream::Alerts).await.unwrap()
        })
        .await;
    }

    async fn incidents(&self) -> Vec<Incident> {
        self.store.list_incidents(&acme(), 1000, 0).await.unwrap()
    }

    async fn only_record(&self) -> (Incident, ResponseRecord) {
        let mut incidents = self.incidents().await;
        assert_eq!(incidents.len(), 1, "{incidents:?}");
        let incident = incidents.remove(0);
        assert_eq!(incident.actions.len(), 1, "{incident:?}");
        let record = serde_json::from_value(incident.actions[0].clone()).unwrap();
        (incident, record)
    }

    async fn verdict(&self, agent: &str) -> Verdict {
        let state = self.store.containment(&acme(), TargetType::Agent, agent).await.unwrap();
        state.map_or(Verdict::Free, |state| state.verdict_at(self.clock.now()))
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < DEADLINE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_active_alert_opens_an_incident_and_freezes_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin(folder.path()).await;
    let first = alert(1, "agent-1");
    life.publish(&first).await;
    life.passed().await;
    let (incident, record) = life.only_record().await;
    assert_eq!((incident.status, incident.entity.as_str()), (IncidentStatus::Contained, "agent_id=agent-1"));
    assert_eq!((record.status, record.attempts), (ResponseStatus::Applied, 1));
    assert!(record.revision.is_some());
    assert_eq!(life.verdict("agent-1").await, Verdict::Frozen);
    let asked = life.control.asked.lock().clone();
    let expected = ContainmentRequest {
        tenant_id: acme(),
        command_id: command_id(&first.alert_id, "freeze_agent", "agent-1"),
        target_type: TargetType::Agent,
        target_id: "agent-1".into(),
        kind: ContainmentKind::Freeze,
        reason: format!("deny-storm (AEG-3001), alert {}", first.alert_id),
        by: "rule:AEG-3001".into(),
        alert_id: first.alert_id.clone(),
        incident_id: incident.incident_id.clone(),
        event_ids: first.event_ids.clone(),
    };
    assert_eq!(asked, [expected]);

    // A second alert of the same agent and rule joins; another agent's opens its own.
    life.publish(&alert(2, "agent-1")).await;
    life.publish(&alert(3, "agent-2")).await;
    life.passed().await;
    let incidents = life.incidents().await;
    assert_eq!(incidents.len(), 2);
    assert_eq!(incidents.iter().map(|i| i.alert_ids.len()).sum::<usize>(), 3);
    let counts = life.responder.as_ref().unwrap().counts();
    assert_eq!((counts.alerts, counts.incidents, counts.requests, counts.failed_requests), (3, 2, 3, 0));
    life.end().await;
}

#[test]
fn a_command_id_is_the_hash_of_alert_action_and_target() {
    // printf 'a\0freeze_agent\0b' | sha256sum
    assert_eq!(command_id("a", "freeze_agent", "b"), "e30b42a78f62e33c101cc2b5caea7c6460c626dc977b67eb45d43a94a4431fe5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_only_alert_is_recorded_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin(folder.path()).await;
    let mut quiet = alert(1, "agent-1");
    quiet.mode = RuleMode::LogOnly;
    life.publish(&quiet).await;
    life.passed().await;
    assert_eq!(life.store.alert(&acme(), &quiet.alert_id).await.unwrap().unwrap().alert, quiet);
    assert!(life.incidents().await.is_empty());
    assert!(life.control.asked.lock().is_empty());
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_nobody_knows_is_visible_and_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin(folder.path()).await;
    let mut mixed = alert(1, "agent-1");
    mixed.respond = vec!["page_the_moon".into(), "freeze_agent".into()];
    let mut nameless = alert(2, "unused");
    nameless.key = json!({"tool": "github"}).as_object().unwrap().clone();
    life.publish(&mixed).await;
    life.publish(&nameless).await;
    life.passed().await;
    let records: Vec<ResponseRecord> = life
        .incidents()
        .await
        .into_iter()
        .flat_map(|incident| incident.actions)
        .map(|action| serde_json::from_value(action).unwrap())
        .collect();
    let mut found: Vec<_> = records.iter().map(|r| (r.action.as_str(), r.status, r.reason.clone().unwrap_or_default())).collect();
    found.sort_by_key(|(action, _, reason)| (action.to_string(), reason.clone()));
    assert_eq!(found[0], ("freeze_agent", ResponseStatus::Applied, String::new()));
    assert_eq!(found[1], ("freeze_agent", ResponseStatus::Unsupported, "the alert names no agent_id".to_owned()));
    assert_eq!((found[2].0, found[2].1), ("page_the_moon", ResponseStatus::Unsupported));
    assert_eq!(life.verdict("agent-1").await, Verdict::Frozen);
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_control_is_away_the_request_stands_as_pending_and_the_stream_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin_with(folder.path(), 100, Mood::Unreachable).await;
    life.publish(&alert(1, "agent-1")).await;
    life.passed().await;
    until("the error is visible", async || life.only_record().await.1.reason.is_some()).await;
    let (incident, record) = life.only_record().await;
    assert_eq!((incident.status, record.status), (IncidentStatus::Open, ResponseStatus::Pending));
    assert!(record.reason.unwrap().contains("connection refused"));
    assert_eq!(life.verdict("agent-1").await, Verdict::Free);

    *life.control.mood.lock() = Mood::Works;
    until("the freeze arrives", async || life.verdict("agent-1").await == Verdict::Frozen).await;
    until("its outcome is written", async || life.only_record().await.1.status == ResponseStatus::Applied).await;
    let (incident, record) = life.only_record().await;
    assert_eq!(incident.status, IncidentStatus::Contained);
    assert!(record.attempts >= 2);
    assert!(life.store.pending_incident_actions(10).await.unwrap().is_empty());
    let ids: BTreeSet<_> = life.control.asked.lock().iter().map(|r| r.command_id.clone()).collect();
    assert_eq!(ids.len(), 1, "every attempt is the same command");
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pending_request_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin_with(folder.path(), 100, Mood::Unreachable).await;
    life.publish(&alert(1, "agent-1")).await;
    life.passed().await;
    life.end().await;

    let life = Life::begin(folder.path()).await;
    until("the freeze arrives", async || life.verdict("agent-1").await == Verdict::Frozen).await;
    until("its outcome is written", async || life.only_record().await.1.status == ResponseStatus::Applied).await;
    assert_eq!(life.responder.as_ref().unwrap().counts().alerts, 0, "the stream was not read again");
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_asked_for_again_and_applied_once() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin_with(folder.path(), 100, Mood::LosesAnswers).await;
    life.publish(&alert(1, "agent-1")).await;
    until("control has applied it", async || life.verdict("agent-1").await == Verdict::Frozen).await;
    *life.control.mood.lock() = Mood::Works;
    until("the outcome is known", async || {
        matches!(life.incidents().await.first().map(|i| i.status), Some(IncidentStatus::Contained))
    })
    .await;
    let state = life.store.containment(&acme(), TargetType::Agent, "agent-1").await.unwrap().unwrap();
    assert_eq!(state.holds.len(), 1);
    assert_eq!(life.only_record().await.1.status, ResponseStatus::AlreadyApplied);
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_the_cap_and_when_refused_the_incident_says_so_and_stays_open() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin_with(folder.path(), 2, Mood::Works).await;
    for n in 0..4 {
        life.publish(&alert(n, &format!("agent-{n}"))).await;
    }
    life.passed().await;
    *life.control.mood.lock() = Mood::Refuses;
    life.publish(&alert(9, "agent-9")).await;
    life.passed().await;
    let mut standing: BTreeMap<String, usize> = BTreeMap::new();
    for incident in life.incidents().await {
        let record: ResponseRecord = serde_json::from_value(incident.actions[0].clone()).unwrap();
        *standing.entry(format!("{:?} {:?}", incident.status, record.status)).or_default() += 1;
    }
    let expected = [("Contained Applied", 2), ("Open CapReached", 2), ("Open Refused", 1)];
    assert_eq!(standing, expected.into_iter().map(|(k, n)| (k.to_owned(), n)).collect());
    assert!(life.store.pending_incident_actions(10).await.unwrap().is_empty(), "neither is tried again");
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retraction_marks_the_alert_and_leaves_the_agent_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin(folder.path()).await;
    let first = alert(1, "agent-1");
    life.publish(&first).await;
    life.passed().await;
    let retraction = Retraction {
        alert_id: first.alert_id.clone(),
        tenant_id: acme(),
        rule_id: first.rule_id.clone(),
        detected_at: START.plus_seconds(9),
    };
    life.publish_raw(&subject::retract(&acme(), &first.alert_id), serde_json::to_string(&retraction).unwrap()).await;
    life.passed().await;
    let kept = life.store.alert(&acme(), &first.alert_id).await.unwrap().unwrap();
    assert_eq!(kept.retracted_at, Some(START.plus_seconds(9)));
    assert_eq!(life.verdict("agent-1").await, Verdict::Frozen);
    let incident = life.incidents().await.remove(0);
    assert_eq!(incident.status, IncidentStatus::Contained);
    let note: ResponseRecord = serde_json::from_value(incident.actions[1].clone()).unwrap();
    assert_eq!(note.status, ResponseStatus::AlertRetracted);
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_closed_or_retracted_while_control_was_away_is_not_contained_later() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin_with(folder.path(), 100, Mood::Unreachable).await;
    let (closed, retracted) = (alert(1, "agent-1"), alert(2, "agent-2"));
    life.publish(&closed).await;
    life.publish(&retracted).await;
    life.passed().await;
    let incident_id = life.store.alert(&acme(), &closed.alert_id).await.unwrap().unwrap().incident_id.unwrap();
    assert!(life.store.close_incident(&acme(), &incident_id, "ann").await.unwrap());
    let retraction = Retraction {
        alert_id: retracted.alert_id.clone(),
        tenant_id: acme(),
        rule_id: retracted.rule_id.clone(),
        detected_at: START,
    };
    life.publish_raw(&subject::retract(&acme(), &retracted.alert_id), serde_json::to_string(&retraction).unwrap()).await;
    life.passed().await;
    *life.control.mood.lock() = Mood::Works;
    until("nothing is pending", async || life.store.pending_incident_actions(10).await.unwrap().is_empty()).await;
    for incident in life.incidents().await {
        let record: ResponseRecord = serde_json::from_value(incident.actions[0].clone()).unwrap();
        assert_eq!(record.status, ResponseStatus::Cancelled, "{incident:?}");
    }
    assert_eq!((life.verdict("agent-1").await, life.verdict("agent-2").await), (Verdict::Free, Verdict::Free));
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_or_lies_about_its_tenant_goes_to_the_dead_letters() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin(folder.path()).await;
    let other = TenantId::new("other").unwrap();
    life.store.create_tenant(&other, "Other").await.unwrap();
    life.publish_raw("alert.acme.torn", "{\"alert_id\": ".into()).await;
    // Published on acme's subject, but about another tenant.
    let mut forged = alert(1, "agent-1");
    forged.tenant_id = other.clone();
    life.publish_raw(&subject::alert(&acme(), &forged.alert_id), serde_json::to_string(&forged).unwrap()).await;
    life.publish(&alert(2, "agent-2")).await;
    life.passed().await;
    assert_eq!(life.verdict("agent-2").await, Verdict::Frozen, "the stream goes on");
    assert!(life.store.list_alerts(&other, 10, 0).await.unwrap().is_empty());
    assert_eq!(life.responder.as_ref().unwrap().counts().dead_letters, 2);
    let mut letters = life.bus.subscribe(Stream::Dlq, ">", 1).await.unwrap();
    let letters = letters.next_batch(10, Duration::from_secs(5)).await.unwrap();
    let bodies: Vec<serde_json::Value> = letters.iter().map(|l| serde_json::from_slice(&l.payload).unwrap()).collect();
    assert_eq!(bodies.len(), 2);
    assert_eq!(bodies[0]["payload"], "{\"alert_id\": ");
    assert!(bodies[1]["reason"].as_str().unwrap().contains("alert.other."));
    life.end().await;
}

/// Runs lives that end at any await point, as a crash would end them, until one is left to finish.
#[test]
fn a_crash_between_any_two_steps_duplicates_no_incident_and_no_hold() {
    const ALERTS: usize = 40;
    const AGENTS: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().to_owned();
    let published: Vec<Alert> = (0..ALERTS).map(|n| alert(n, &format!("agent-{}", n % AGENTS))).collect();
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();

    let first = runtime();
    first.block_on(async {
        let life = Life::begin_idle(&path, 1000, Mood::Works).await;
        for alert in &published {
            life.publish(alert).await;
        }
        life.end().await;
    });
    drop(first);

    let (mut before_the_end, mut while_pending) = (0, 0);
    for crash in 0..30u64 {
        let runtime = runtime();
        let life = runtime.block_on(async {
            let mood = match crash % 3 {
                0 => Mood::LosesAnswers,
                1 => Mood::Unreachable,
                _ => Mood::Works,
            };
            let life = Life::begin_with(&path, 1000, mood).await;
            // Not a wait for something: how far this life gets.
            tokio::time::sleep(Duration::from_millis(crash % 7 * 3)).await;
            let position = life.bus.consumer_position(Stream::Alerts, CONSUMER).await.unwrap();
            before_the_end += usize::from(position < life.bus.last_seq(Stream::Alerts).await.unwrap());
            while_pending += usize::from(!life.store.pending_incident_actions(1).await.unwrap().is_empty());
            life
        });
        // Every task stops at its next await point; nothing is closed in order.
        runtime.shutdown_timeout(Duration::ZERO);
        drop(life);
    }
    assert!(before_the_end > 0 && while_pending > 0, "no crash interrupted anything: {before_the_end}, {while_pending}");

    runtime().block_on(async {
        let life = Life::begin_with(&path, 1000, Mood::Works).await;
        life.passed().await;
        until("nothing is pending", async || life.store.pending_incident_actions(10).await.unwrap().is_empty()).await;
        let incidents = life.incidents().await;
        assert_eq!(incidents.len(), AGENTS);
        assert!(incidents.iter().all(|i| i.status == IncidentStatus::Contained && i.alert_ids.len() == ALERTS / AGENTS));
        assert!(incidents.iter().all(|i| i.actions.len() == ALERTS / AGENTS), "one action for each alert");
        for n in 0..AGENTS {
            let state = life.store.containment(&acme(), TargetType::Agent, &format!("agent-{n}")).await.unwrap().unwrap();
            let ids: BTreeSet<_> = state.holds.iter().map(|hold| hold.hold_id.clone()).collect();
            assert_eq!((state.holds.len(), ids.len()), (ALERTS / AGENTS, ALERTS / AGENTS), "one hold for each command");
        }
        let evidence: BTreeSet<EventId> = published.iter().flat_map(|a| a.event_ids.clone()).collect();
        assert!(life.control.asked.lock().iter().all(|r| r.event_ids.iter().all(|id| evidence.contains(id))));
        life.end().await;
    });
}
