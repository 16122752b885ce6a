//! A rule that contains, and whose window is longer than what detection keeps: filled where the lanes of what lies before prove it, and nowhere else.

use std::collections::BTreeMap;
use std::time::Duration;

use aegis_detect::{Followed, PastLanes, PastReceipts, Worker};
use aegis_keys::{KeyRing, VerifyingKey};
use aegis_model::{CommonRuleWarmRecord, EventId, Notice, SecurityEvent, Timestamp};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::own_rules::record;
use super::warm::{House, rule_of_ten_minutes, until_rule_warms, until_warming};
use super::{DEADLINE, common_rules};

/// A receipt as it was published, and when the bus had it.
#[derive(Clone, Debug)]
struct Published {
    wire: Value,
    bus_ts: Timestamp,
}

impl Published {
    fn event(&self) -> SecurityEvent {
        serde_json::from_value(self.wire.clone()).unwrap()
    }
}

/// The receipts that were published.
#[derive(Debug)]
pub(super) struct Receipts {
    key: VerifyingKey,
    all: Mutex<Vec<Published>>,
    /// What came of each that was followed.
    followed: Mutex<Vec<Result<usize, String>>>,
}

impl Receipts {
    fn of(key: VerifyingKey) -> Self {
        Self { key, all: Mutex::default(), followed: Mutex::default() }
    }

    pub(super) fn keep(&self, wires: &[Value], bus_ts: Timestamp) {
        self.all.lock().extend(wires.iter().map(|wire| Published { wire: wire.clone(), bus_ts }));
    }

    fn answer(&self, lanes: PastLanes) -> Result<Vec<SecurityEvent>, String> {
        let (from, heads) = (lanes.since(), lanes.lanes());
        let mut by_lane: BTreeMap<String, Vec<(SecurityEvent, Published)>> = BTreeMap::new();
        for published in self.all.lock().iter() {
            let event = published.event();
            by_lane.entry(event.lane.clone().unwrap()).or_default().push((event, published.clone()));
        }
        let mut following = lanes.begin(KeyRing::new([self.key.clone()]));
        for (lane, head) in heads {
            let mut its = by_lane.remove(&lane).unwrap_or_default();
            its.sort_by_key(|(event, _)| event.seq);
            let begins = its.iter().position(|(event, _)| event.ts >= from).unwrap_or(its.len()).saturating_sub(1);
            for (event, published) in its.drain(begins..).filter(|(event, _)| event.seq.unwrap() <= head) {
                following
                    .take(&published.wire.to_string(), Some(published.bus_ts))
                    .map_err(|why| format!("{why} ({:?})", event.seq))?;
            }
        }
        following.finish()
    }
}

impl PastReceipts for Receipts {
    fn follow(&self, lanes: PastLanes) -> oneshot::Receiver<Followed> {
        let (answers, answer) = oneshot::channel();
        let shown = self.answer(lanes);
        self.followed.lock().push(shown.as_ref().map(Vec::len).map_err(Clone::clone));
        answers.send(Ok(shown)).unwrap();
        answer
    }
}

/// Acme's own rule that freezes: four denies of an agent within ten minutes.
fn freezes() -> String {
    rule_of_ten_minutes().replace("suppress: 1h\n", "suppress: 1h\nrespond: [freeze_agent]\n")
}

async fn house(folder: &std::path::Path, text: String) -> House {
    let mut house = House::open_with(folder, text).await;
    house.receipts = Some(std::sync::Arc::new(Receipts::of(house.line.key.verifying_key())));
    house
}

/// Three denies each of two agents, and five minutes later the rule.
async fn begin(house: &mut House, worker: &Worker) {
    for agent in ["over", "again"] {
        house.deny_in("acme", worker, agent, 3).await;
    }
    house.clock.advance_seconds(300);
    house.deny_in("acme", worker, "other", 1).await;
    record(&house.line, &freezes(), 1).await;
    house.line.caught_up(worker).await;
    until_warming(worker, 1).await;
}

#[tokio::test]
async fn one_that_contains_is_filled_with_what_its_lanes_prove_in_every_life_and_replay() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = house(folder.path(), freezes()).await;
    let worker = house.worker();
    begin(&mut house, &worker).await;
    house.clock.advance_seconds(1);
    house.pass().await;
    until_warming(&worker, 0).await;
    assert!(house.told().await.is_empty(), "nothing of before the record acts");
    house.deny_in("acme", &worker, "over", 1).await;
    let alert = house.line.alerts(1).await.remove(0);
    assert_eq!((alert.event_ids.len(), alert.respond.as_slice()), (4, ["freeze_agent".to_owned()].as_slice()));
    worker.stop().await;
    // A life later.
    let worker = house.worker();
    house.deny_in("acme", &worker, "again", 1).await;
    let alerts = house.line.alerts(2).await;
    assert!(alerts.iter().all(|alert| alert.event_ids.len() == 4 && alert.respond == ["freeze_agent"]), "{alerts:#?}");
    worker.stop().await;
    assert_eq!(house.told_by_replay().await, house.told().await);
    let followed = house.receipts.as_ref().unwrap().followed.lock().clone();
    assert!(followed.len() >= 3 && followed.iter().all(Result::is_ok), "{followed:?}");
}

#[tokio::test]
async fn one_that_every_tenant_has_and_that_contains_is_filled_too() {
    let folder = tempfile::tempdir().unwrap();
    let text = freezes().replace("OWN-1", "OPS-1").replace("own-denies", "ops-denies");
    let mut house = house(folder.path(), text.clone()).await;
    let worker = house.worker();
    for tenant in ["acme", "beta"] {
        house.deny_in(tenant, &worker, "over", 3).await;
    }
    house.clock.advance_seconds(300);
    house.deny_in("acme", &worker, "other", 1).await;
    for tenant in ["acme", "beta"] {
        common_rules::record(&house.line, tenant, "OPS-1", &text, 1).await;
    }
    house.line.caught_up(&worker).await;
    until_rule_warms(&worker, "OPS-1", 2).await;
    house.clock.advance_seconds(1);
    house.pass().await;
    until_rule_warms(&worker, "OPS-1", 0).await;
    for tenant in ["acme", "beta"] {
        house.deny_in(tenant, &worker, "over", 1).await;
    }
    let alerts = house.line.alerts(2).await;
    assert!(alerts.iter().all(|alert| alert.event_ids.len() == 4 && alert.respond == ["freeze_agent"]), "{alerts:#?}");
    assert_eq!(house.records_of(CommonRuleWarmRecord::SCHEMA).await, 2);
    worker.stop().await;
}

/// The attack: whoever can write to the lake has an agent frozen that did nothing. What a row says beside its id is not asked.
#[tokio::test]
async fn rows_that_were_altered_count_as_what_was_sealed() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = house(folder.path(), freezes()).await;
    let worker = house.worker();
    begin(&mut house, &worker).await;
    for event in house.past.events.lock().iter_mut().filter(|event| event.agent_id.as_deref() == Some("over")) {
        event.agent_id = Some("victim".into());
    }
    house.clock.advance_seconds(1);
    house.pass().await;
    until_warming(&worker, 0).await;
    house.deny_in("acme", &worker, "victim", 1).await;
    house.deny_in("acme", &worker, "over", 1).await;
    let alert = house.line.alerts(1).await.remove(0);
    assert_eq!(alert.key["agent_id"], "over");
    worker.stop().await;
}

/// Waits until lanes were followed, and answers why they were not believed.
async fn refused(house: &House) -> String {
    let start = Instant::now();
    loop {
        let last = house.receipts.as_ref().unwrap().followed.lock().last().cloned();
        if let Some(followed) = last {
            return followed.unwrap_err();
        }
        assert!(start.elapsed() < DEADLINE, "nobody followed the lanes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What somebody does to the lake and to the receipts.
type Tampering = fn(&mut Vec<SecurityEvent>, &mut Vec<Published>);

/// The attack, by whoever can write to the lake or to the history: rows are made up, taken away, or another tenant's, and receipts are.
#[tokio::test]
async fn where_the_lanes_do_not_prove_what_lies_before_the_rule_waits() {
    fn places(receipts: &[Published], agent: &str) -> Vec<usize> {
        let is_its = |published: &Published| published.event().agent_id.as_deref() == Some(agent);
        (0..receipts.len()).filter(|place| is_its(&receipts[*place])).collect()
    }
    let cases: [(&str, Tampering, &str); 7] = [
        (
            "a row is made up",
            |rows, _| rows.push(SecurityEvent { event_id: EventId::from_u128(9), ..rows[1].clone() }),
            "no receipt of its lane",
        ),
        // Said of the receipt itself: those that have no row are not held, which a flood of late ones would fill memory with.
        ("a row is taken away", |rows, _| drop(rows.remove(2)), "is not there, or came late (Some("),
        ("a row stands there twice", |rows, _| rows.push(rows[1].clone()), "no receipt of its lane"),
        ("a receipt is taken away", |_, receipts| drop(receipts.remove(places(receipts, "over")[1])), "missing"),
        (
            "a receipt is altered",
            |_, receipts| {
                let place = places(receipts, "over")[1];
                receipts[place].wire["agent_id"] = json!("victim");
            },
            "digest",
        ),
        ("the newest receipts are taken away", |_, receipts| receipts.truncate(places(receipts, "other")[0]), "does not lead to"),
        (
            "a receipt came behind those that follow it",
            |_, receipts| {
                let place = places(receipts, "over")[1];
                receipts[place].bus_ts = receipts[place].bus_ts.plus_seconds(5);
            },
            "came behind those that follow it",
        ),
    ];
    for (what, tamper, why) in cases {
        let folder = tempfile::tempdir().unwrap();
        let mut house = house(folder.path(), freezes()).await;
        let worker = house.worker();
        begin(&mut house, &worker).await;
        {
            let receipts = house.receipts.as_ref().unwrap();
            tamper(&mut house.past.events.lock(), &mut receipts.all.lock());
        }
        house.clock.advance_seconds(1);
        house.pass().await;
        let reason = refused(&house).await;
        assert!(reason.contains(why), "{what}: {reason}");
        for agent in ["over", "victim", "again"] {
            house.deny_in("acme", &worker, agent, 1).await;
        }
        until_warming(&worker, 1).await;
        assert!(house.told().await.is_empty(), "{what}");
        worker.stop().await;
    }
}

/// The attack, or a lake that mixes tenants up: nobody is frozen for what another tenant's agent of the same name did.
#[tokio::test]
async fn rows_of_another_tenant_fill_no_rule() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = house(folder.path(), freezes()).await;
    *house.past.mixes.lock() = true;
    let worker = house.worker();
    house.deny_in("beta", &worker, "over", 3).await;
    begin(&mut house, &worker).await;
    house.clock.advance_seconds(1);
    house.pass().await;
    let reason = refused(&house).await;
    assert!(reason.contains("another tenant's"), "{reason}");
    house.deny_in("acme", &worker, "over", 1).await;
    until_warming(&worker, 1).await;
    assert!(house.told().await.is_empty());
    worker.stop().await;
}
