//! L-LOOKED: what detection says that rules were shown of a lane is what was sealed in it, each receipt once, however it came and whoever crashed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use aegis_bus::{EmbeddedBus, EmbeddedLimits, Stream};
use aegis_detect::{FollowedLane, LaneLooks, LanesAsked, Worker};
use aegis_model::{Clock, Decision, EventId, ManualClock, TenantId, Timestamp};
use proptest::prelude::*;
use serde_json::Value;

use crate::ground::{Edge, caught_up, checkpoint, message, open_bus, publish, put_checkpoint, start_with};
use crate::upgrade::rules;

const START: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);
const TENANTS: [&str; 2] = ["acme", "beta"];
const EDGES: [&str; 2] = ["edge-1", "edge-2"];
/// A lane waits longer than any of these logs lasts.
const LONG_MS: i64 = 24 * 3600 * 1000;

/// Edges, a bus, and what asks a worker over it.
struct House {
    bus: Arc<EmbeddedBus>,
    manual: Arc<ManualClock>,
    edges: Vec<Edge>,
    looks: Arc<LaneLooks>,
    hold_ms: i64,
}

impl House {
    async fn open(folder: &Path, hold_ms: i64) -> Self {
        let manual = Arc::new(ManualClock::new(START));
        let bus = open_bus(folder, EmbeddedLimits::default(), manual.clone()).await;
        let mut edges = Vec::new();
        for name in EDGES {
            edges.push(Edge::open(folder, name, manual.clone()).await);
        }
        Self { bus, manual, edges, looks: Arc::default(), hold_ms }
    }

    async fn worker(&self) -> Worker {
        // By a clock that stands still: what the bus's does in the middle of a look is not the time that this takes.
        let still: Arc<dyn Clock> = Arc::new(ManualClock::new(START));
        let worker = start_with(&self.bus, rules(), &still, |config| {
            config.hold_ms = self.hold_ms;
            config.looks = Some(self.looks.clone());
        });
        caught_up(&self.bus, &worker).await;
        worker
    }

    /// A second later an edge has sealed a call, and what comes before it.
    async fn seal(&mut self, edge: usize, tenant: &str) -> Vec<Value> {
        self.manual.advance_seconds(1);
        self.edges[edge].seal(tenant, Some("agent"), Decision::Allow).await
    }

    async fn send(&self, wires: &[Value]) {
        if !wires.is_empty() {
            publish(&self.bus, Stream::Ase, wires.iter().map(message).collect()).await;
        }
    }

    async fn lanes(&self, worker: &Worker, tenant: &str, edge_id: Option<&str>) -> Vec<FollowedLane> {
        caught_up(&self.bus, worker).await;
        self.page(tenant, edge_id, 0, 100).await
    }

    async fn page(&self, tenant: &str, edge_id: Option<&str>, offset: usize, limit: usize) -> Vec<FollowedLane> {
        let asked = LanesAsked { edge_id: edge_id.map(str::to_owned), offset, limit };
        self.looks.of(&TenantId::new(tenant).unwrap(), asked).await.unwrap()
    }
}

/// The head of a lane, how many receipts go up to it, and the sum of their events' ids.
type Whole = (i64, String, i64, EventId);

fn sum(ids: impl Iterator<Item = EventId>) -> EventId {
    EventId::from_u128(ids.fold(0_u128, |sum, id| sum.wrapping_add(id.as_u128())))
}

/// What was sealed, by lane.
fn sealed_in_each(wires: &[Value]) -> BTreeMap<String, Whole> {
    let mut by_lane: BTreeMap<String, BTreeMap<i64, &Value>> = BTreeMap::new();
    for wire in wires {
        let (lane, seq) = (wire["lane"].as_str().unwrap(), wire["seq"].as_i64().unwrap());
        by_lane.entry(lane.to_owned()).or_default().insert(seq, wire);
    }
    let whole = |of_lane: BTreeMap<i64, &Value>| {
        let ids = of_lane.values().map(|wire| wire["event_id"].as_str().unwrap().parse::<EventId>().unwrap());
        let (head, wire) = of_lane.last_key_value().unwrap();
        (*head, wire["receipt_hash"].as_str().unwrap().to_owned(), of_lane.len() as i64, sum(ids))
    };
    by_lane.into_iter().map(|(lane, of_lane)| (lane, whole(of_lane))).collect()
}

/// What rules were shown, by lane. Nothing else may be said of any.
fn looked_at(lanes: Vec<FollowedLane>) -> BTreeMap<String, Whole> {
    let whole = |lane: FollowedLane| {
        assert!((lane.before, lane.unproved) == (0, 0) && lane.missing.is_empty(), "{lane:?}");
        (lane.lane, (lane.seq, lane.receipt_hash, lane.in_time + lane.late, lane.event_id_sum))
    };
    lanes.into_iter().map(whole).collect()
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Send(usize, usize),
    KeepBack(usize, usize),
    /// What was kept back, the newest first.
    SendKept,
    /// So many of the last once more.
    SendAgain(usize),
    Restart,
    /// What was written down since the last restart is lost.
    Crash,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..EDGES.len(), 0..TENANTS.len()).prop_map(|(edge, tenant)| Step::Send(edge, tenant)),
        3 => (0..EDGES.len(), 0..TENANTS.len()).prop_map(|(edge, tenant)| Step::KeepBack(edge, tenant)),
        1 => Just(Step::SendKept),
        2 => (1..9_usize).prop_map(Step::SendAgain),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ]
}

/// What was sealed, and what rules were shown, where all of it came in the end.
async fn both(steps: &[Step]) -> (BTreeMap<String, Whole>, BTreeMap<String, Whole>) {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path(), LONG_MS).await;
    let (mut sent, mut kept): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    let mut written: Option<Value> = None;
    let mut worker = house.worker().await;
    for step in steps.iter().chain(&[Step::SendKept]) {
        match *step {
            Step::Send(edge, tenant) => {
                let wires = house.seal(edge, TENANTS[tenant]).await;
                house.send(&wires).await;
                sent.extend(wires);
            }
            Step::KeepBack(edge, tenant) => kept.extend(house.seal(edge, TENANTS[tenant]).await),
            Step::SendKept => {
                kept.reverse();
                house.send(&kept).await;
                sent.append(&mut kept);
            }
            Step::SendAgain(count) => house.send(&sent[sent.len().saturating_sub(count)..]).await,
            Step::Restart | Step::Crash => {
                caught_up(&house.bus, &worker).await;
                worker.stop().await;
                match &written {
                    Some(before) if matches!(step, Step::Crash) => put_checkpoint(&house.bus, before).await,
                    _ => written = checkpoint(&house.bus).await,
                }
                worker = house.worker().await;
            }
        }
    }
    let mut lanes = Vec::new();
    for tenant in TENANTS {
        lanes.extend(house.lanes(&worker, tenant, None).await);
    }
    worker.stop().await;
    (sealed_in_each(&sent), looked_at(lanes))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn l_looked_rules_were_shown_each_receipt_once_however_it_came(steps in prop::collection::vec(any_step(), 1..32)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (sealed, shown) = runtime.block_on(both(&steps));
        prop_assert_eq!(shown, sealed);
    }
}

#[tokio::test]
async fn of_a_lane_that_went_on_without_a_receipt_it_is_said_which_and_what_was_not_shown_as_proved() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path(), 0).await;
    let worker = house.worker().await;
    let mut wires = Vec::new();
    for _ in 0..5 {
        wires.extend(house.seal(0, "acme").await);
    }
    let (missing, sent): (Vec<Value>, Vec<Value>) = wires.into_iter().partition(|wire| wire["seq"] == 3);
    house.send(&sent).await;
    let lane = house.lanes(&worker, "acme", None).await.remove(0);
    assert_eq!(
        (lane.seq, lane.missing, lane.in_time, lane.unproved),
        (6, vec![(3, 3)], 4, 1),
        "the one behind the gap is held against nothing"
    );
    house.send(&missing).await;
    let lane = house.lanes(&worker, "acme", None).await.remove(0);
    assert_eq!(
        (lane.seq, lane.missing, lane.in_time, lane.unproved),
        (6, Vec::new(), 4, 2),
        "it came after its lane had gone on"
    );
    worker.stop().await;
}

#[tokio::test]
async fn what_did_not_prove_itself_at_the_start_of_a_lane_is_counted_as_that() {
    for (order, expected) in [([2, 1, 0], (0, 0, 3)), ([1, 0, 2], (0, 1, 2))] {
        let folder = tempfile::tempdir().unwrap();
        let mut house = House::open(folder.path(), 0).await;
        let worker = house.worker().await;
        let mut wires = Vec::new();
        while wires.len() < 3 {
            wires.extend(house.seal(0, "acme").await);
        }
        house.send(&order.map(|place| wires[place].clone())).await;
        let lane = house.lanes(&worker, "acme", None).await.remove(0);
        assert_eq!((lane.before, lane.in_time, lane.unproved), expected, "{order:?}: {lane:?}");
        worker.stop().await;
    }
}

#[tokio::test]
async fn what_came_too_late_is_counted_as_late_and_each_edge_and_page_is_asked_for_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path(), 0).await;
    let worker = house.worker().await;
    let mut cut_off = house.seal(1, "acme").await;
    cut_off.extend(house.seal(1, "acme").await);
    house.manual.advance_seconds(600);
    let wires = house.seal(0, "acme").await;
    house.send(&wires).await;
    house.send(&cut_off).await;
    let all = house.lanes(&worker, "acme", None).await;
    assert_eq!(all.iter().map(|lane| (lane.in_time, lane.late)).collect::<Vec<_>>(), [(2, 0), (0, 3)], "{all:?}");
    let sealed = [wires, cut_off].concat();
    assert_eq!(looked_at(all.clone()), sealed_in_each(&sealed));
    assert_eq!(house.page("acme", Some("edge-2"), 0, 100).await, all[1..]);
    assert_eq!(house.page("acme", None, 1, 1).await, all[1..]);
    assert_eq!(house.page("acme", None, 0, 1).await, all[..1]);
    assert!(house.page("acme", Some("edge"), 0, 100).await.is_empty(), "an edge is asked for by its whole name");
    assert!(house.page("beta", None, 0, 100).await.is_empty(), "no tenant sees another's");
    worker.stop().await;
}

#[tokio::test]
async fn behind_a_checkpoint_without_counts_they_begin_at_the_head_of_each_lane() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path(), 0).await;
    let worker = house.worker().await;
    let wires = house.seal(0, "acme").await;
    house.send(&wires).await;
    caught_up(&house.bus, &worker).await;
    worker.stop().await;
    let mut older = checkpoint(&house.bus).await.unwrap();
    older["engine"].as_object_mut().unwrap().remove("looks").unwrap();
    put_checkpoint(&house.bus, &older).await;

    let worker = house.worker().await;
    let counts = |lane: &FollowedLane| (lane.seq, lane.before, lane.in_time, lane.unproved, lane.event_id_sum);
    let lane = house.lanes(&worker, "acme", None).await.remove(0);
    assert_eq!(counts(&lane), (2, 2, 0, 0, EventId::nil()));
    let wires = house.seal(0, "acme").await;
    house.send(&wires).await;
    let lane = house.lanes(&worker, "acme", None).await.remove(0);
    let shown = wires[0]["event_id"].as_str().unwrap().parse::<EventId>().unwrap();
    assert_eq!(counts(&lane), (3, 2, 1, 0, shown));
    worker.stop().await;
}
