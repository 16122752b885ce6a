//! A tenant's own rule whose window is longer than what detection keeps: filled with what lies before, from a record of the log on.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, BusError, EmbeddedBus, EmbeddedLimits, Message, Stream, subject};
use aegis_detect::{EventBatch, Past, PastAsked, PastEvents, RuleSet, RuleWaits, WarmRecords, Worker, WorkerConfig, events_of};
use aegis_keys::{SigningKey, sign_notice};
use aegis_model::{
    Clock, CommonRuleWarmRecord, Decision, EventId, ManualClock, Notice, RuleWarmRecord, SecurityEvent, TenantId, Timestamp,
    partition_of,
};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::own_rules::{Texts, own_rule, place, put, record};
use super::warm_lanes::Receipts;
use super::{DEADLINE, Line, common_rules};
use crate::ground::{caught_up, control_key, read_all};

const START: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);
const PAST: &str = "past";

/// What the stream had, as another consumer of it has written it down.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) events: Mutex<Vec<SecurityEvent>>,
    asked: Mutex<Vec<String>>,
    pub(super) fails: Mutex<bool>,
    /// Fewer than are asked for are handed on.
    most: Mutex<Option<usize>>,
    /// Of whom there is more than anybody may ask for.
    pub(super) too_much_of: Mutex<Option<String>>,
    /// Whose never come, and who waits for them.
    pub(super) hangs_of: Mutex<Option<String>>,
    waiting: Mutex<Vec<oneshot::Sender<Past>>>,
    /// True: tenants are mixed up.
    pub(super) mixes: Mutex<bool>,
}

impl Kept {
    pub(super) fn keep(&self, wires: &[Value]) {
        let shown = |wire: &Value| {
            let event: SecurityEvent = serde_json::from_value(wire.clone()).unwrap();
            SecurityEvent { verified: true, bus_ts: Some(event.ts), ..event }
        };
        self.events.lock().extend(wires.iter().map(shown));
    }

    fn asked(&self) -> usize {
        self.asked.lock().len()
    }

    /// Of whom it was asked, in order.
    pub(super) fn asked_of(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

impl PastEvents for Kept {
    fn consumer(&self) -> &'static str {
        PAST
    }

    fn ask(&self, asked: PastAsked) -> oneshot::Receiver<Past> {
        let PastAsked { tenant, from, to, most, sieve, .. } = asked;
        self.asked.lock().push(tenant.to_string());
        let (answers, answer) = oneshot::channel();
        if self.hangs_of.lock().as_deref() == Some(tenant.as_str()) {
            self.waiting.lock().push(answers);
            return answer;
        }
        let mixes = *self.mixes.lock();
        let is_asked = |event: &&SecurityEvent| (mixes || event.tenant_id == tenant) && from <= event.ts && event.ts < to;
        let mut events: Vec<SecurityEvent> = self.events.lock().iter().filter(is_asked).cloned().collect();
        if let Some(sieve) = sieve {
            let rows = EventBatch::new(events.into_iter().map(Arc::new).collect()).to_record_batch().unwrap();
            events = events_of(&sieve.sift(rows)).unwrap().into_iter().map(Arc::unwrap_or_clone).collect();
        }
        let most = self.most.lock().unwrap_or(most);
        let is_too_much = events.len() > most || self.too_much_of.lock().as_deref() == Some(tenant.as_str());
        let past = if *self.fails.lock() { Err("on purpose".to_owned()) } else { Ok((!is_too_much).then_some(events)) };
        answers.send(past).unwrap();
        answer
    }
}

/// Control, as far as it signs that a rule knows its window.
#[derive(Debug)]
struct AsControl(Arc<EmbeddedBus>);

impl AsControl {
    async fn sign<T: Notice + Serialize + Sync>(&self, tenant: &TenantId, record: &T) -> Result<(), BusError> {
        let payload = sign_notice(&control_key(), record).unwrap();
        let message = Message::new(subject::ruleset(partition_of(tenant)), payload);
        self.0.publish(Stream::Ase, vec![message]).await.remove(0).map(drop)
    }
}

#[async_trait::async_trait]
impl WarmRecords for AsControl {
    async fn put(&self, record: &RuleWarmRecord) -> Result<(), BusError> {
        self.sign(&record.tenant_id, record).await
    }

    async fn put_common(&self, record: &CommonRuleWarmRecord) -> Result<(), BusError> {
        self.sign(&record.0.tenant_id, record).await
    }
}

/// That a version of acme's own rule knows its window.
fn warm_record(revision: i64) -> RuleWarmRecord {
    RuleWarmRecord { tenant_id: TenantId::new("acme").unwrap(), rule_id: "OWN-1".into(), revision }
}

/// Acme's own rule over ten minutes: four denies of an agent.
pub(super) fn rule_of_ten_minutes() -> String {
    own_rule(4, "active").replace("window: 60s", "window: 10m").replace("INTERVAL '60' SECOND", "INTERVAL '600' SECOND")
}

/// What every tenant has looks back a minute.
fn common() -> RuleSet {
    RuleSet::from_texts([("never/rule.sql".into(), never())]).unwrap()
}

pub(super) fn never() -> String {
    own_rule(1000, "active").replace("OWN-1", "T-9").replace("own-denies", "never")
}

pub(super) struct House {
    pub(super) line: Line,
    pub(super) clock: Arc<ManualClock>,
    pub(super) past: Arc<Kept>,
    /// Who has lanes followed, if anybody has.
    pub(super) receipts: Option<Arc<Receipts>>,
    /// The rules that every tenant has.
    pub(super) program: fn() -> RuleSet,
    pub(super) waits: Arc<RuleWaits>,
    texts: Arc<Texts>,
}

impl House {
    async fn open(folder: &Path) -> Self {
        Self::open_with(folder, rule_of_ten_minutes()).await
    }

    /// Where this text is in the store.
    pub(super) async fn open_with(folder: &Path, text: String) -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let line = Line::open_with(folder, EmbeddedLimits::default(), clock.clone()).await;
        let (past, waits, texts) = (Arc::default(), Arc::default(), Arc::new(Texts(vec![text])));
        Self { line, clock, past, receipts: None, program: common, waits, texts }
    }

    fn worker_over(&self, bus: &Arc<EmbeddedBus>) -> Worker {
        let clock: Arc<dyn Clock> = self.clock.clone();
        let mut config = WorkerConfig::new(clock);
        config.checkpoint_ms = 50;
        config.texts = Some(self.texts.clone());
        config.past = Some(self.past.clone());
        config.waits = Some(self.waits.clone());
        if let Some(receipts) = &self.receipts {
            config.past_receipts = Some(receipts.clone());
        }
        config.warm_records = Some(Arc::new(AsControl(Arc::clone(bus))));
        self.line.worker_over(bus, (self.program)(), config)
    }

    pub(super) fn worker(&self) -> Worker {
        self.worker_over(&self.line.bus)
    }

    /// Denies of an agent a second later, which the worker has taken.
    async fn deny(&mut self, worker: &Worker, agent: &str, count: usize) {
        self.deny_in("acme", worker, agent, count).await;
    }

    pub(super) async fn deny_in(&mut self, tenant: &str, worker: &Worker, agent: &str, count: usize) {
        self.clock.advance_seconds(1);
        let denies = self.line.seal_denies(tenant, agent, count).await;
        self.past.keep(&denies);
        if let Some(receipts) = &self.receipts {
            receipts.keep(&denies, self.clock.now());
        }
        self.line.publish(&denies).await;
        self.line.caught_up(worker).await;
    }

    /// Three denies each of two agents, and five minutes later, which is more than is kept, a rule that asks for them.
    async fn begin(&mut self, worker: &Worker) {
        self.deny(worker, "over", 3).await;
        self.deny(worker, "again", 3).await;
        self.clock.advance_seconds(300);
        self.deny(worker, "other", 1).await;
        record(&self.line, &rule_of_ten_minutes(), 1).await;
        self.line.caught_up(worker).await;
        until_warming(worker, 1).await;
    }

    /// The other consumer has passed all that there is.
    pub(super) async fn pass(&self) {
        let last = self.line.bus.last_seq(Stream::Ase).await.unwrap();
        self.line.bus.set_consumer_position(Stream::Ase, PAST, last).await.unwrap();
    }

    /// How often the log says that a rule knows its window.
    async fn warm_records(&self) -> usize {
        self.records_of(RuleWarmRecord::SCHEMA).await
    }

    pub(super) async fn records_of(&self, schema: &str) -> usize {
        let records = read_all(&self.line.bus, Stream::Ase, "ruleset.>").await;
        records.iter().filter(|record| record["schema"] == schema).count()
    }

    pub(super) async fn told(&self) -> BTreeSet<String> {
        ids(&self.line.bus).await
    }

    /// What the same log tells from its beginning, all at once.
    pub(super) async fn told_by_replay(&self) -> BTreeSet<String> {
        let again = tempfile::tempdir().unwrap();
        let bus = EmbeddedBus::open(&again.path().join("bus.db"), EmbeddedLimits::default(), self.clock.clone()).await.unwrap();
        let mut subscription = self.line.bus.subscribe(Stream::Ase, ">", 0).await.unwrap();
        for delivered in subscription.next_batch(1000, Duration::from_millis(50)).await.unwrap() {
            self.clock.advance_micros(delivered.bus_ts.as_micros() - self.clock.now().as_micros());
            bus.publish(Stream::Ase, vec![Message::new(delivered.subject, delivered.payload)]).await.remove(0).unwrap();
        }
        let worker = self.worker_over(&bus);
        caught_up(&bus, &worker).await;
        worker.stop().await;
        ids(&bus).await
    }
}

async fn ids(bus: &EmbeddedBus) -> BTreeSet<String> {
    let alerts = read_all(bus, Stream::Alerts, "alert.>").await;
    alerts.iter().map(|alert| alert["alert_id"].as_str().unwrap().to_owned()).collect()
}

/// Waits until acme's own rule waits for its window, or does not.
pub(super) async fn until_warming(worker: &Worker, warming: u64) {
    until_rule_warms(worker, "OWN-1", warming).await;
}

/// Waits until a rule waits for the windows of so many tenants.
pub(super) async fn until_rule_warms(worker: &Worker, id: &str, warming: u64) {
    let start = Instant::now();
    loop {
        let stats = worker.stats();
        let own = stats.rules.iter().find(|rule| rule.rule_id == id);
        if own.is_some_and(|own| own.warming == warming) {
            return;
        }
        assert!(start.elapsed() < DEADLINE, "{own:?} {:?}", stats.trouble);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_rule_is_filled_with_what_lies_before_and_acts_from_the_record_on_in_every_life_and_replay() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path()).await;
    let worker = house.worker();
    house.begin(&worker).await;
    // The fourth within the window; what lies before is not there to be read yet.
    house.deny(&worker, "over", 1).await;
    assert_eq!((house.told().await, house.past.asked(), house.warm_records().await), (BTreeSet::new(), 0, 0));
    house.clock.advance_seconds(1);
    house.pass().await;
    until_warming(&worker, 0).await;
    assert_eq!((house.past.asked(), house.warm_records().await), (1, 1));
    assert!(house.told().await.is_empty(), "nothing of before the record acts");
    house.deny(&worker, "over", 1).await;
    let alert = house.line.alerts(1).await.remove(0);
    assert_eq!(
        (alert.rule_name.as_str(), alert.key["agent_id"].as_str(), alert.event_ids.len()),
        ("own-denies", Some("over"), 5)
    );
    worker.stop().await;

    // A life later it still knows what lies before.
    let worker = house.worker();
    house.deny(&worker, "again", 1).await;
    let alerts = house.line.alerts(2).await;
    let of_again = alerts.iter().find(|alert| alert.key["agent_id"] == "again").expect("an alert of the other agent");
    assert_eq!(of_again.event_ids.len(), 4);
    worker.stop().await;

    assert_eq!(house.told_by_replay().await, house.told().await);
}

/// The attack: an agent makes so many events that no rule which comes is filled with what lies before it.
#[tokio::test]
async fn what_a_rule_does_not_look_at_keeps_it_not_from_being_filled_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path()).await;
    let worker = house.worker();
    house.begin(&worker).await;
    let first = house.past.events.lock()[0].clone();
    let allowed = |n: u128| SecurityEvent { event_id: EventId::from_u128(n), decision: Some(Decision::Allow), ..first.clone() };
    house.past.events.lock().extend((0..50).map(allowed));
    *house.past.most.lock() = Some(10);
    house.clock.advance_seconds(1);
    house.pass().await;
    until_warming(&worker, 0).await;
    worker.stop().await;
    let worker = house.worker();
    house.deny(&worker, "over", 1).await;
    assert_eq!(house.line.alerts(1).await[0].event_ids.len(), 4);
    worker.stop().await;
}

#[tokio::test]
async fn a_restart_before_the_record_asks_anew() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path()).await;
    let worker = house.worker();
    house.begin(&worker).await;
    worker.stop().await;
    let worker = house.worker();
    house.deny(&worker, "other", 1).await;
    until_warming(&worker, 1).await;
    house.clock.advance_seconds(1);
    house.pass().await;
    until_warming(&worker, 0).await;
    house.deny(&worker, "over", 1).await;
    assert_eq!(house.line.alerts(1).await[0].event_ids.len(), 4);
    worker.stop().await;
}

#[tokio::test]
async fn where_nothing_can_be_read_the_rule_waits_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path()).await;
    *house.past.fails.lock() = true;
    let worker = house.worker();
    house.begin(&worker).await;
    house.pass().await;
    let start = Instant::now();
    while house.past.asked() < 2 {
        assert!(start.elapsed() < DEADLINE, "it is asked again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    house.deny(&worker, "over", 1).await;
    assert_eq!((house.told().await, house.warm_records().await), (BTreeSet::new(), 0));
    // Nor does control's word that it can be read make anything of it, where that is not so.
    put(&house.line, place(), sign_notice(&control_key(), &warm_record(1)).unwrap()).await;
    house.deny(&worker, "over", 1).await;
    until_warming(&worker, 1).await;
    assert!(house.told().await.is_empty());
    // Once it knows its window by itself, it acts.
    house.clock.advance_seconds(600);
    house.deny(&worker, "over", 4).await;
    until_warming(&worker, 0).await;
    assert_eq!(house.line.alerts(1).await[0].event_ids.len(), 4);
    worker.stop().await;
}

/// The attack: whoever can publish where records of rules stand sends one that control signed again and again, and everybody's ticks wait for the lake.
#[tokio::test]
async fn a_record_that_is_sent_again_and_again_makes_ticks_wait_for_the_lake_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path()).await;
    let worker = house.worker();
    house.begin(&worker).await;
    *house.past.too_much_of.lock() = Some("acme".to_owned());
    house.clock.advance_seconds(1);
    house.pass().await;
    let start = Instant::now();
    while house.past.asked() < 1 {
        assert!(start.elapsed() < DEADLINE, "it is asked for");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..5 {
        put(&house.line, place(), sign_notice(&control_key(), &warm_record(1)).unwrap()).await;
    }
    house.deny(&worker, "over", 1).await;
    until_warming(&worker, 1).await;
    assert_eq!((house.past.asked(), house.told().await), (2, BTreeSet::new()));
    worker.stop().await;
}

/// The attack: whoever can publish where records of rules stand has a rule act before it knows its window, and tell what is not so.
#[tokio::test]
async fn that_a_rule_knows_its_window_is_control_s_word_and_nobody_else_s() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path()).await;
    let worker = house.worker();
    house.begin(&worker).await;
    let signed = sign_notice(&control_key(), &warm_record(1)).unwrap();
    let changed = |bytes: &[u8], name: &str, to: Value| {
        let mut value: Value = serde_json::from_slice(bytes).unwrap();
        value[name] = to;
        serde_json::to_vec(&value).unwrap()
    };
    let of_other_version = sign_notice(&control_key(), &warm_record(7)).unwrap();
    let forged = [
        ("without a signature", serde_json::to_vec(&warm_record(1)).unwrap()),
        ("by a stranger", sign_notice(&SigningKey::from_seed(&[66; 32]), &warm_record(1)).unwrap()),
        ("by an edge, whose receipts are believed", sign_notice(&house.line.key, &warm_record(1)).unwrap()),
        ("of another version than was signed", changed(&of_other_version, "revision", json!(1))),
        ("of another rule than was signed", changed(&signed, "rule_id", json!("OWN-2"))),
        ("a notice of another kind", changed(&signed, "schema", json!("aegis-beat-1"))),
    ];
    for (_, payload) in &forged {
        put(&house.line, place(), payload.clone()).await;
    }
    // As signed, and where another partition's stand.
    let elsewhere = if place() == subject::ruleset(0) { subject::ruleset(1) } else { subject::ruleset(0) };
    put(&house.line, elsewhere, signed.clone()).await;
    // Control's word, of a version that does not stand.
    put(&house.line, place(), of_other_version).await;
    house.deny(&worker, "over", 1).await;
    let refused = u64::try_from(forged.len()).unwrap() + 1;
    let stats = house.line.caught_up(&worker).await;
    assert_eq!((stats.rule_records_refused, stats.malformed), (refused, refused));
    assert_eq!(house.line.read_stream(Stream::Dlq, "dlq.>").await.len(), forged.len() + 1, "each is put aside");
    until_warming(&worker, 1).await;
    assert_eq!((house.told().await, house.past.asked()), (BTreeSet::new(), 0));
    // The same as control signed it is taken.
    house.clock.advance_seconds(1);
    put(&house.line, place(), signed).await;
    house.deny(&worker, "over", 1).await;
    until_warming(&worker, 0).await;
    assert_eq!(house.line.alerts(1).await[0].event_ids.len(), 5);
    worker.stop().await;
}

#[tokio::test]
async fn without_anybody_who_signs_that_it_knows_its_window_a_rule_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path()).await;
    let clock: Arc<dyn Clock> = house.clock.clone();
    let mut config = WorkerConfig::new(clock);
    config.past = Some(house.past.clone());
    let worker = house.line.worker_over(&house.line.bus, common(), config);
    house.begin(&worker).await;
    house.pass().await;
    house.deny(&worker, "over", 1).await;
    house.pass().await;
    house.deny(&worker, "over", 1).await;
    until_warming(&worker, 1).await;
    assert_eq!((house.told().await, house.past.asked(), house.warm_records().await), (BTreeSet::new(), 0, 0));
    worker.stop().await;
}

/// An operator's version that looks back further does not bring back what was let go of before it: that is read, too.
#[tokio::test]
async fn behind_an_operator_s_longer_rule_a_tenant_s_own_is_filled_with_all_that_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path()).await;
    let worker = house.worker();
    house.deny(&worker, "over", 3).await;
    house.clock.advance_seconds(300);
    house.deny(&worker, "other", 1).await;
    let longer =
        own_rule(1000, "active").replace("OWN-1", "T-9").replace("own-denies", "never").replace("version: 1", "version: 2");
    let longer = longer.replace("window: 60s", "window: 5m").replace("INTERVAL '60' SECOND", "INTERVAL '300' SECOND");
    common_rules::record(&house.line, "acme", "T-9", &longer, 1).await;
    record(&house.line, &rule_of_ten_minutes(), 1).await;
    house.line.caught_up(&worker).await;
    until_warming(&worker, 1).await;
    house.pass().await;
    // Until what is read is final.
    house.clock.advance_seconds(120);
    house.deny(&worker, "other", 1).await;
    until_warming(&worker, 0).await;
    assert_eq!(house.warm_records().await, 1);
    house.deny(&worker, "over", 1).await;
    assert_eq!(house.line.alerts(1).await[0].event_ids.len(), 4);
    worker.stop().await;
}

#[tokio::test]
async fn a_rule_that_contains_is_not_filled_since_nobody_followed_the_lanes_of_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path()).await;
    let worker = house.worker();
    house.deny(&worker, "over", 3).await;
    house.clock.advance_seconds(300);
    house.deny(&worker, "other", 1).await;
    house.pass().await;
    let containing = rule_of_ten_minutes().replace("suppress: 1h\n", "suppress: 1h\nrespond: [freeze_agent]\n");
    record(&house.line, &containing, 1).await;
    house.line.caught_up(&worker).await;
    until_warming(&worker, 1).await;
    house.deny(&worker, "over", 2).await;
    house.pass().await;
    house.deny(&worker, "over", 2).await;
    assert_eq!((house.told().await, house.past.asked(), house.warm_records().await), (BTreeSet::new(), 0, 0));
    worker.stop().await;
}
