//! Control away, slow, unwilling or lost in between: nothing is forgotten, nothing is done twice.

use crate::life::*;

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
