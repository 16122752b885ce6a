//! How far the lake says it has lanes: what is in its files, and nothing that only waits to be; what it lacks it asks for, unless it cannot write.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{AskForMissing, Bus, LanesInLake, Stream};
use aegis_lake::{LakeConfig, LakeLanes, LakeWorker};
use aegis_model::{LaneReach, Timestamp, WireEvent};
use object_store::ObjectStore;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::follow::{DEADLINE, Line};
use crate::house::tenant;

#[derive(Debug, Default)]
struct Asked(Mutex<Vec<(String, i64, i64)>>);

impl AskForMissing for Asked {
    fn ask(&self, lane: &str, from_seq: i64, to_seq: i64) {
        self.0.lock().push((lane.to_owned(), from_seq, to_seq));
    }
}

/// What a lake is asked about.
struct Followed {
    lanes: Arc<LakeLanes>,
    asked: Arc<Asked>,
}

impl Followed {
    fn start(line: &Line, flush_ms: u64) -> (Self, LakeWorker) {
        let (lanes, asked) = (Arc::new(LakeLanes::default()), Arc::new(Asked::default()));
        let worker = line.worker_with(LakeConfig {
            flush_ms,
            lanes: Some(Arc::clone(&lanes)),
            missing: Some(Arc::clone(&asked) as Arc<dyn AskForMissing>),
            ask_after_ms: 0,
            look_ms: 200,
            ..LakeConfig::default()
        });
        (Self { lanes, asked }, worker)
    }

    fn reach(&self, lane: &str) -> Option<LaneReach> {
        self.lanes.reach(&tenant("acme"), lane)
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            assert!(start.elapsed() < DEADLINE, "{what}: not after {DEADLINE:?}; asked for {:?}", self.asked.0.lock());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A lake that has a lane of five receipts.
struct OfFive {
    line: Line,
    lane: String,
    lake: Followed,
    worker: LakeWorker,
}

impl OfFive {
    async fn start(folder: &Path) -> Self {
        let mut line = Line::open(folder).await;
        let sealed = line.seal(4).await;
        let lane = lane_of(&sealed[0]);
        line.publish(&sealed).await;
        let (lake, worker) = Followed::start(&line, 20);
        lake.until("it has the lane", |lake| lake.reach(&lane).is_some_and(|reach| reach.head == 5)).await;
        lake.until("all is there", |lake| lake.lanes.behind().is_some()).await;
        Self { line, lane, lake, worker }
    }
}

fn lane_of(wire: &str) -> String {
    WireEvent::read(wire.as_bytes()).unwrap().event().unwrap().lane.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_to_be_written_is_not_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let sealed = line.seal(5).await;
    let lane = lane_of(&sealed[0]);
    line.publish(&sealed).await;
    // It writes once an hour, and at its end.
    let (lake, worker) = Followed::start(&line, 3_600_000);
    lake.until("it has been read", |lake| lake.reach(&lane).is_some() && worker.stats().lag == 0).await;
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(lake.reach(&lane).map(|reach| reach.head), Some(0), "read, and nowhere but in memory");
    assert_eq!(lake.lanes.behind(), None, "nor is all of it there");
    worker.stop().await;
    assert_eq!(lake.reach(&lane).map(|reach| (reach.through(), reach.head)), Some((6, 6)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_is_asked_for_and_confirmed_when_it_came_also_by_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let sealed = line.seal(9).await;
    let lane = lane_of(&sealed[0]);
    line.publish(&sealed[..3]).await;
    line.publish(&sealed[6..]).await;
    let (lake, worker) = Followed::start(&line, 20);
    lake.until("it has the lane", |lake| lake.reach(&lane).is_some_and(|reach| reach.head == 10)).await;
    assert_eq!(lake.reach(&lane).unwrap().missing, [(4, 6)]);
    assert_eq!(lake.reach(&lane).unwrap().through(), 3, "up to the hole");
    let hole = (lane.clone(), 4, 6);
    lake.until("it asks", |lake| lake.asked.0.lock().contains(&hole)).await;
    worker.stop().await;

    // Nothing comes any more: the next one asks for it all the same.
    let (lake, worker) = Followed::start(&line, 20);
    lake.until("it asks again", |lake| lake.asked.0.lock().contains(&hole)).await;
    assert_eq!(worker.stats().gaps, 1);
    line.publish(&sealed[3..6]).await;
    lake.until("it came", |lake| lake.reach(&lane).is_some_and(|reach| reach.through() == 10)).await;
    lake.until("all is there", |lake| lake.lanes.behind().is_some()).await;
    worker.stop().await;
    assert_eq!(line.bus.last_seq(Stream::Ase).await.unwrap(), 10, "nobody else shipped anything");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_was_lost_says_that_it_has_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let OfFive { lane, worker, .. } = OfFive::start(folder.path()).await;
    worker.stop().await;
    // The bus has none of it any more either, as far as the new one is told.
    let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Line::open_on(elsewhere.path(), store).await;
    let (lake, worker) = Followed::start(&other, 20);
    lake.until("it was read", |lake| lake.reach(&lane).is_some()).await;
    assert_eq!(lake.reach(&lane), Some(LaneReach::none(tenant("acme"), lane.clone())));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_is_emptied_while_nothing_comes_is_seen_and_filled_from_the_bus() {
    let folder = tempfile::tempdir().unwrap();
    let OfFive { line, lane, lake, worker } = OfFive::start(folder.path()).await;
    let place = folder.path().join("lake");
    std::fs::rename(&place, folder.path().join("gone")).unwrap();
    std::fs::create_dir_all(&place).unwrap();
    lake.until("it is seen", |_| worker.stats().failures > 0).await;
    lake.until("it is filled again", |lake| {
        place.join("lanes").is_dir() && lake.reach(&lane).is_some_and(|reach| reach.through() == 5)
    })
    .await;
    worker.stop().await;
    assert_eq!(line.number("SELECT count(*) FROM events WHERE verified").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_for_a_while_is_missed_and_found_again_while_nothing_comes() {
    let folder = tempfile::tempdir().unwrap();
    let OfFive { line, lane, lake, worker } = OfFive::start(folder.path()).await;
    let (place, away) = (folder.path().join("lake"), folder.path().join("away"));
    std::fs::rename(&place, &away).unwrap();
    lake.until("it is missed", |_| worker.stats().trouble.is_some()).await;
    std::fs::rename(&away, &place).unwrap();
    lake.until("it goes on", |_| worker.stats().trouble.is_none()).await;
    assert_eq!(lake.reach(&lane).unwrap().through(), 5);
    worker.stop().await;
    assert_eq!(line.number("SELECT count(*) FROM events WHERE verified").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_lake_lacks_stays_in_the_ledger_and_the_rest_may_go() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let mut sealed = line.seal(9).await;
    line.ledger.close().await.unwrap();
    sealed.extend(line.seal(0).await);
    line.ledger.mark_shipped(line.ledger.last_row()).await;
    let lane = lane_of(&sealed[0]);
    assert_eq!(lane_of(&sealed[10]), lane, "its close");
    line.publish(&sealed[..3]).await;
    line.publish(&sealed[6..]).await;
    let (lake, worker) = Followed::start(&line, 20);
    lake.until("it has the lane", |lake| lake.reach(&lane).is_some_and(|reach| reach.head == 11)).await;
    let prune =
        async |through_seq: i64| line.ledger.prune_confirmed(&lane, through_seq, Timestamp::from_micros(i64::MAX)).await.unwrap();
    assert_eq!(prune(lake.reach(&lane).unwrap().through()).await, 3);
    assert_eq!(line.ledger.pruned_through(&lane).await.unwrap(), Some(3));
    let left = line.ledger.read_lane(&lane, 1, 6, 100).await.unwrap();
    let left: Vec<String> = left.iter().map(|item| item.sealed.wire.to_string()).collect();
    assert_eq!(left, sealed[3..6], "what is asked for is there");
    line.publish(&left).await;
    lake.until("it came", |lake| lake.reach(&lane).is_some_and(|reach| reach.through() == 11)).await;
    assert_eq!(prune(lake.reach(&lane).unwrap().through()).await, 7, "all but its end");
    worker.stop().await;
    assert_eq!(line.number("SELECT count(*) FROM events WHERE verified").await, 11);
}
