//! One life of a process, and a control that can fail, hang, and count.

pub(crate) use std::collections::{BTreeMap, BTreeSet};
pub(crate) use std::path::{Path, PathBuf};
pub(crate) use std::sync::Arc;
pub(crate) use std::time::Duration;

pub(crate) use aegis_bus::{Bus, EmbeddedBus, EmbeddedLimits, Message, Stream, subject};
pub(crate) use aegis_model::{
    Alert, Clock, ContainmentKind, EventId, Hold, Incident, IncidentStatus, Retraction, RuleMode, Severity, SystemClock,
    TargetType, TenantId, Timestamp, Verdict, new_event_id,
};
pub(crate) use aegis_respond::{
    CONSUMER, ContainmentRequest, ContainmentRequests, RequestOutcome, RespondError, Responder, ResponseRecord, ResponseStatus,
    command_id,
};
pub(crate) use aegis_store::{AutomaticHold, Store};
pub(crate) use async_trait::async_trait;
pub(crate) use parking_lot::Mutex;
pub(crate) use serde_json::json;
pub(crate) use tokio::time::Instant;

/// Nothing here takes this long; a test that reaches it has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const START: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

pub(crate) fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

pub(crate) fn alert(n: usize, agent: &str) -> Alert {
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
        found_late: false,
    }
}

/// What control does with the next requests.
#[derive(Clone, Debug, Default)]
pub(crate) enum Mood {
    #[default]
    Works,
    Unreachable,
    Refuses,
    /// Applies the command, and then the answer is lost.
    LosesAnswers,
}

/// Control, with its real store behind it and its real cap.
pub(crate) struct FakeControl {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) cap: u32,
    pub(crate) mood: Mutex<Mood>,
    pub(crate) asked: Mutex<Vec<ContainmentRequest>>,
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
pub(crate) struct Life {
    pub(crate) bus: Arc<EmbeddedBus>,
    pub(crate) store: Store,
    pub(crate) control: Arc<FakeControl>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) responder: Option<Responder>,
}

impl Life {
    pub(crate) async fn begin(folder: &Path) -> Self {
        Self::begin_with(folder, 100, Mood::Works).await
    }

    pub(crate) async fn begin_with(folder: &Path, cap: u32, mood: Mood) -> Self {
        let mut life = Self::begin_idle(folder, cap, mood).await;
        life.respond();
        life
    }

    /// Without a responder: what is published waits.
    pub(crate) async fn begin_idle(folder: &Path, cap: u32, mood: Mood) -> Self {
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

    pub(crate) fn respond(&mut self) {
        self.responder = Some(Responder::spawn(self.bus.clone(), self.store.clone(), self.control.clone(), self.clock.clone()));
    }

    pub(crate) async fn end(mut self) {
        if let Some(responder) = self.responder.take() {
            responder.stop().await;
        }
        self.bus.close().await;
        self.store.close().await;
    }

    /// Publishes as the detector does: the alert is stored once.
    pub(crate) async fn publish(&self, alert: &Alert) {
        let text = serde_json::to_string(alert).unwrap();
        self.publish_raw(&subject::alert(&alert.tenant_id, &alert.alert_id), text).await;
    }

    pub(crate) async fn publish_raw(&self, subject: &str, text: String) {
        let ack = self.bus.publish(Stream::Alerts, vec![Message::new(subject, text).expecting(0)]).await;
        assert!(ack[0].is_ok(), "{ack:?}");
    }

    /// Waits until the responder has passed everything that is in the stream.
    pub(crate) async fn passed(&self) {
        until("the responder passes the stream", async || {
            self.bus.consumer_position(Stream::Alerts, CONSUMER).await.unwrap()
                == self.bus.last_seq(Stream::Alerts).await.unwrap()
        })
        .await;
    }

    pub(crate) async fn incidents(&self) -> Vec<Incident> {
        self.store.list_incidents(&acme(), 1000, 0).await.unwrap()
    }

    pub(crate) async fn only_record(&self) -> (Incident, ResponseRecord) {
        let mut incidents = self.incidents().await;
        assert_eq!(incidents.len(), 1, "{incidents:?}");
        let incident = incidents.remove(0);
        assert_eq!(incident.actions.len(), 1, "{incident:?}");
        let record = serde_json::from_value(incident.actions[0].clone()).unwrap();
        (incident, record)
    }

    pub(crate) async fn verdict(&self, agent: &str) -> Verdict {
        let state = self.store.containment(&acme(), TargetType::Agent, agent).await.unwrap();
        state.map_or(Verdict::Free, |state| state.verdict_at(self.clock.now()))
    }
}

pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < DEADLINE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
