//! Several publishes under way at once: what comes back in any order, late, refused or never, and what the ledger is told of it meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;
#[path = "../ground/mod.rs"]
mod ground;
#[path = "../../../aegis-bus/tests/nats/mod.rs"]
mod nats;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{AskForMissing, Stream, message_id};
use aegis_ledger::{Durability, Ledger, OutboxItem};
use aegis_model::{FrozenAction, TenantId};
use aegis_shipper::{Shipper, ShipperConfig};
use fake::{Fake, full, never, taken};
use ground::{draft, draft_of, freeze, ledger, quick, seal, until};
use tempfile::TempDir;

/// Small publishes, one right behind the other.
fn small() -> ShipperConfig {
    let at_once = Duration::from_millis(1);
    // However slow the machine is, no acknowledgement is late.
    let late = Duration::from_secs(3600);
    ShipperConfig { batch: 10, window: 1000, late, spacing: at_once, busy_spacing: at_once, ..quick() }
}

/// The ids of items' messages, by row.
fn by_row(items: Vec<OutboxItem>) -> BTreeMap<i64, String> {
    items.into_iter().map(|item| (item.row, message_id::of_sealed(&item.sealed))).collect()
}

/// The event that is in the message of this id.
fn event_of(id: &str) -> &str {
    id.split('.').next().unwrap()
}

/// A ledger of so many events behind the receipt that opens the lane, and the ids of their messages by row.
struct Sealed {
    _folder: TempDir,
    ledger: Ledger,
    rows: BTreeMap<i64, String>,
}

impl Sealed {
    async fn new(events: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ledger = ledger(folder.path(), 4).await;
        seal(&ledger, events).await;
        Self::of(folder, ledger).await
    }

    async fn of(folder: TempDir, ledger: Ledger) -> Self {
        let rows = by_row(ledger.read_outbox(0, 5000).await.unwrap());
        Self { _folder: folder, ledger, rows }
    }

    fn ship(&self, bus: &Arc<Fake>, config: ShipperConfig) -> Shipper {
        Shipper::spawn(self.ledger.clone(), bus.clone(), config).unwrap()
    }

    /// The ids of the `count` rows behind the first `skipped`.
    fn ids(&self, skipped: usize, count: usize) -> Vec<String> {
        self.rows.values().skip(skipped).take(count).cloned().collect()
    }

    /// The row of the nth item, from 1.
    fn row(&self, n: usize) -> i64 {
        *self.rows.keys().nth(n - 1).unwrap()
    }

    async fn until_shipped(&self, n: usize) {
        let row = self.row(n);
        until(&format!("row {row}"), async || self.ledger.shipped_row().await >= row).await;
        assert_eq!(self.ledger.shipped_row().await, row);
    }
}

/// Acknowledges publish after publish, until four are under way: those of the rows 31 to 40, 41 to 50, 51 to 60 and 61 to 70.
async fn open_to_four(bus: &Fake) -> [usize; 4] {
    for (n, under_way) in [(0, 1), (1, 2), (2, 3)] {
        bus.nth(n + under_way - 1).await;
        bus.take(n);
    }
    bus.nth(6).await;
    [3, 4, 5, 6]
}

/// Acknowledges whatever waits, until everything is shipped.
async fn take_the_rest(bus: &Fake, shipper: &Shipper) {
    until("everything shipped", async || {
        for n in bus.waiting() {
            bus.take(n);
        }
        shipper.backlog() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_before_what_was_begun_earlier_moves_nothing_past_it() {
    let (sealed, bus) = (Sealed::new(100).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, ShipperConfig { drain: Duration::from_millis(300), ..small() });
    let [a, b, c, d] = open_to_four(&bus).await;
    sealed.until_shipped(30).await;
    for n in [d, b, c] {
        bus.take(n);
    }
    // Until its time to stop is over it looks at all that comes.
    shipper.stop().await;
    assert_eq!(sealed.ledger.shipped_row().await, sealed.row(30), "publish {a} is not acknowledged");

    // The next start goes on where the place is: what is behind it may be there already, and comes again.
    let next = Arc::new(Fake::default());
    let shipper = sealed.ship(&next, small());
    assert_eq!(next.nth(0).await, (Stream::Ase, sealed.ids(30, 10)));
    take_the_rest(&next, &shipper).await;
    shipper.stop().await;
    assert!(next.needless().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_out_once_whichever_acknowledgement_comes_first() {
    let (sealed, bus) = (Sealed::new(100).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, small());
    let [a, b, c, d] = open_to_four(&bus).await;
    for n in [c, d, b] {
        bus.take(n);
    }
    bus.take(a);
    until("all four", async || sealed.ledger.shipped_row().await >= sealed.row(70)).await;
    take_the_rest(&bus, &shipper).await;
    shipper.stop().await;
    let mut published = Vec::new();
    for n in 0..bus.begun() {
        published.extend(bus.nth(n).await.1);
    }
    assert_eq!(published, sealed.ids(0, sealed.rows.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_in_the_middle_is_published_again_before_anything_new() {
    let (sealed, bus) = (Sealed::new(100).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, small());
    let [a, b, c, d] = open_to_four(&bus).await;
    bus.lose(b);
    bus.take(c);
    bus.take(d);
    bus.take(a);
    assert_eq!(bus.nth(7).await, (Stream::Ase, sealed.ids(40, 10)), "nothing but what is missing");
    sealed.until_shipped(40).await;
    bus.take(7);
    assert_eq!(bus.nth(8).await.1, sealed.ids(70, 10));
    assert_eq!(sealed.ledger.shipped_row().await, sealed.row(70), "those behind it count, once it does");
    take_the_rest(&bus, &shipper).await;
    assert_eq!(shipper.meter().retries_total(), 1);
    shipper.stop().await;
    assert!(bus.needless().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_goes_again_in_order_with_all_that_was_refused_behind_it() {
    let (sealed, bus) = (Sealed::new(100).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, small());
    let [a, b, c, d] = open_to_four(&bus).await;
    bus.answer(d, vec![full(); 10]);
    bus.answer(c, vec![full(); 10]);
    bus.take(b);
    bus.answer(a, [vec![taken(); 4], vec![full(); 6]].concat());
    for (n, rest) in [(7, sealed.ids(34, 6)), (8, sealed.ids(50, 10)), (9, sealed.ids(60, 10))] {
        assert_eq!(bus.nth(n).await, (Stream::Ase, rest));
        assert_eq!(bus.begun(), n + 1, "nothing new beside it");
        let passed = sealed.row([30, 50, 60][n - 7]);
        assert_eq!(sealed.ledger.shipped_row().await, passed, "no half of a publish, and no acknowledged one behind it");
        bus.take(n);
    }
    assert_eq!(bus.nth(10).await.1, sealed.ids(70, 10));
    take_the_rest(&bus, &shipper).await;
    shipper.stop().await;
    assert!(bus.needless().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_takes_nothing_is_sent_a_few_until_it_does() {
    let (sealed, bus) = (Sealed::new(100).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, ShipperConfig { batch: 50, ..small() });
    assert_eq!(bus.nth(0).await.1, sealed.ids(0, 50));
    bus.lose(0);
    for n in [1, 2, 3] {
        assert_eq!(bus.nth(n).await.1, sealed.ids(0, 16));
        bus.lose(n);
    }
    assert_eq!(bus.nth(4).await.1, sealed.ids(0, 16));
    bus.take(4);
    assert_eq!(bus.nth(5).await.1, sealed.ids(16, 34), "then the rest of it, all at once");
    assert_eq!(sealed.ledger.shipped_row().await, 0);
    bus.answer(5, [vec![taken(); 4], vec![full(); 30]].concat());
    assert_eq!(bus.nth(6).await.1, sealed.ids(20, 30), "one that takes some is sent the others");
    take_the_rest(&bus, &shipper).await;
    assert_eq!(shipper.meter().retries_total(), 5);
    shipper.stop().await;
    assert!(bus.needless().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_answers_acknowledge_nothing_that_has_none() {
    let (sealed, bus) = (Sealed::new(30).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, small());
    bus.nth(0).await;
    bus.answer(0, vec![taken(); 7]);
    assert_eq!(bus.nth(1).await.1, sealed.ids(7, 3));
    assert_eq!(sealed.ledger.shipped_row().await, 0);
    take_the_rest(&bus, &shipper).await;
    assert_eq!(shipper.emitted_total(), 31);
    shipper.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_never_taken_is_passed_once_its_dead_letter_is_there() {
    let (sealed, bus) = (Sealed::new(100).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, small());
    let [a, b, ..] = open_to_four(&bus).await;
    bus.take(b);
    bus.answer(a, [vec![taken(); 3], vec![never()], vec![taken(); 6]].concat());
    let (stream, letters) = bus.nth(7).await;
    assert_eq!((stream, letters.len()), (Stream::Dlq, 1));
    assert!(letters[0].contains(event_of(&sealed.ids(33, 1)[0])), "{letters:?}");
    assert_eq!(sealed.ledger.shipped_row().await, sealed.row(30));
    bus.lose(7);
    assert_eq!(bus.nth(8).await, (Stream::Dlq, letters));
    assert_eq!(sealed.ledger.shipped_row().await, sealed.row(30));
    bus.take(8);
    until("those behind it", async || sealed.ledger.shipped_row().await >= sealed.row(50)).await;
    take_the_rest(&bus, &shipper).await;
    assert_eq!(shipper.meter().dead_lettered_total(), 1);
    shipper.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_is_bounded_in_events() {
    let (sealed, bus) = (Sealed::new(300).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, ShipperConfig { window: 40, ..small() });
    for n in 0..20 {
        // One more with each acknowledgement, up to four.
        bus.nth(n + n.min(3)).await;
        bus.take(n);
    }
    take_the_rest(&bus, &shipper).await;
    shipper.stop().await;
    let most = bus.most();
    assert_eq!((most.publishes, most.events), (4, 40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_is_bounded_in_bytes() {
    let (sealed, bus) = (Sealed::new(200).await, Arc::new(Fake::default()));
    let items = sealed.ledger.read_outbox(0, 5000).await.unwrap();
    let largest = items.iter().map(|item| item.sealed.wire.len()).max().unwrap();
    let shipper = sealed.ship(&bus, ShipperConfig { batch_bytes: largest * 3, window_bytes: largest * 7, ..small() });
    for n in 0..20 {
        bus.nth(n + n.min(1)).await;
        bus.take(n);
    }
    take_the_rest(&bus, &shipper).await;
    shipper.stop().await;
    let most = bus.most();
    assert!(most.publishes >= 2 && most.bytes <= largest * 7 && most.bytes_of_one <= largest * 3, "of {largest} bytes: {most:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_larger_than_the_window_goes_alone() {
    let (sealed, bus) = (Sealed::new(50).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, ShipperConfig { batch_bytes: 1, window_bytes: 1, ..small() });
    take_the_rest(&bus, &shipper).await;
    shipper.stop().await;
    assert_eq!((bus.begun(), bus.most().publishes, bus.most().events), (sealed.rows.len(), 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_action_is_frozen_waits_for_its_approval_and_what_follows_for_the_event() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = ledger(folder.path(), 4).await;
    seal(&ledger, 25).await;
    let mut asks = draft();
    let frozen = freeze(&mut asks);
    ledger.try_submit(asks, Durability::Required).unwrap().await.unwrap();
    seal(&ledger, 20).await;
    let (sealed, bus) = (Sealed::of(folder, ledger).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, small());
    bus.nth(0).await;
    bus.take(0);
    assert_eq!(bus.nth(1).await, (Stream::Ase, sealed.ids(10, 10)));
    assert_eq!(bus.nth(2).await, (Stream::Approvals, vec![frozen.approval_id.clone()]), "beside what was begun before");
    // Lost, while the event before it is there.
    bus.lose(2);
    bus.take(1);
    assert_eq!(bus.nth(3).await, (Stream::Approvals, vec![frozen.approval_id]), "again, and before its event");
    sealed.until_shipped(20).await;
    bus.take(3);
    assert_eq!(bus.nth(4).await, (Stream::Ase, sealed.ids(20, 10)));
    take_the_rest(&bus, &shipper).await;
    shipper.stop().await;
    assert!(bus.needless().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_again_goes_out_beside_what_is_under_way() {
    let (sealed, bus) = (Sealed::new(100).await, Arc::new(Fake::default()));
    let lane = sealed.ledger.read_outbox(0, 1).await.unwrap().pop().unwrap().sealed.lane;
    let shipper = sealed.ship(&bus, small());
    let [a, ..] = open_to_four(&bus).await;
    shipper.again().ask(&lane, 2, 4);
    bus.take(a);
    // There is room for two now: what was asked for is one of them, whatever its turn was.
    let next = [bus.nth(7).await.1, bus.nth(8).await.1];
    assert!(next.contains(&sealed.ids(1, 3)) && next.contains(&sealed.ids(70, 10)), "{next:?}");
    sealed.until_shipped(40).await;
    take_the_rest(&bus, &shipper).await;
    assert_eq!(shipper.meter().again_total(), 3);
    shipper.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_has_little_goes_first_and_nothing_passes_it_that_is_not_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = ledger(folder.path(), 4).await;
    seal(&ledger, 100).await;
    let quiet = TenantId::new("quiet").unwrap();
    ledger.try_submit(draft_of(quiet), Durability::Required).unwrap().await.unwrap();
    let (sealed, bus) = (Sealed::of(folder, ledger).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, small());
    let of_the_quiet = sealed.ids(101, 2);
    assert_eq!(bus.nth(0).await.1, of_the_quiet);
    bus.lose(0);
    assert_eq!(bus.nth(1).await.1, of_the_quiet);
    bus.take(1);
    assert_eq!(bus.nth(2).await.1, sealed.ids(0, 10));
    assert_eq!(sealed.ledger.shipped_row().await, 0, "rows before it are not shipped");
    take_the_rest(&bus, &shipper).await;
    assert_eq!(sealed.ledger.shipped_row().await, sealed.row(103));
    shipper.stop().await;
    assert!(bus.needless().is_empty(), "what went first does not go again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_of_lanes_that_have_little_is_bounded_with_their_frozen_actions() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = ledger(folder.path(), 4).await;
    seal(&ledger, 100).await;
    for n in 0..4 {
        let tenant = TenantId::new(&format!("quiet-{n}")).unwrap();
        let mut asks = draft_of(tenant.clone());
        let mut frozen = FrozenAction { approval_id: format!("approval-{n}"), tenant_id: tenant, ..freeze(&mut asks) };
        // As text some hundred KiB, as values ten MiB.
        frozen.tool_call.parameters.insert("zeros".to_owned(), vec![0; 150_000].into());
        asks.event.approval_id = Some(frozen.approval_id.clone());
        asks.frozen = Some(Box::new(frozen));
        ledger.try_submit(asks, Durability::Required).unwrap().await.unwrap();
    }
    let (sealed, bus) = (Sealed::of(folder, ledger).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, small());
    take_the_rest(&bus, &shipper).await;
    shipper.stop().await;
    let mut approvals = Vec::new();
    for n in 0..bus.begun() {
        let (stream, ids) = bus.nth(n).await;
        approvals.extend((stream == Stream::Approvals).then_some(ids.len()));
    }
    assert_eq!(approvals, [1; 4], "of one lane at a time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_for_what_is_under_way_and_ships_what_is_left() {
    let (sealed, bus) = (Sealed::new(100).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, ShipperConfig { drain: Duration::from_secs(30), ..small() });
    let meter = shipper.meter();
    let [a, ..] = open_to_four(&bus).await;
    let stopping = tokio::spawn(shipper.stop());
    bus.take(a);
    until("everything shipped", async || {
        for n in bus.waiting() {
            bus.take(n);
        }
        meter.backlog() == 0
    })
    .await;
    stopping.await.unwrap();
    assert_eq!(sealed.ledger.shipped_row().await, sealed.row(101));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_never_answers_does_not_hold_up_a_stop() {
    let (sealed, bus) = (Sealed::new(100).await, Arc::new(Fake::default()));
    let shipper = sealed.ship(&bus, ShipperConfig { drain: Duration::from_millis(50), ..small() });
    bus.nth(0).await;
    tokio::time::timeout(Duration::from_secs(20), shipper.stop()).await.expect("the stop ends by itself");
    assert_eq!(sealed.ledger.shipped_row().await, 0);
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_answered_in_whichever_order_the_place_never_passes_what_is_not_acknowledged() {
    for seed in 0..6 {
        let (sealed, bus, mut dice) = (Sealed::new(400).await, Arc::new(Fake::default()), Dice(seed));
        let shipper = sealed.ship(&bus, ShipperConfig { batch: 20, window: 90, ..small() });
        let mut answered = BTreeSet::new();
        for turn in 0..150 {
            until("a publish", async || shipper.backlog() == 0 || !bus.waiting().is_empty()).await;
            let waiting = bus.waiting();
            if waiting.is_empty() {
                break;
            }
            let n = waiting[dice.roll(waiting.len())];
            assert!(answered.insert(n), "turn {turn}");
            let count = bus.nth(n).await.1.len();
            let first = dice.roll(count + 1);
            match dice.roll(8) {
                0 => bus.lose(n),
                1 => bus.answer(n, [vec![taken(); first], vec![full(); count - first]].concat()),
                2 => bus.answer(n, (0..count).map(|i| if i == first { never() } else { taken() }).collect()),
                3 => bus.answer(n, vec![taken(); first]),
                _ => bus.take(n),
            }
            let shipped = sealed.ledger.shipped_row().await;
            let mut passed = sealed.rows.range(..=shipped);
            assert!(passed.all(|(_, id)| bus.is_taken(id)), "seed {seed}, turn {turn}: row {shipped}");
        }
        take_the_rest(&bus, &shipper).await;
        assert!(sealed.rows.values().all(|id| bus.is_taken(id)), "seed {seed}");
        assert_eq!(bus.needless(), Vec::<String>::new(), "seed {seed}");
        assert!(bus.most().events <= 90);
        shipper.stop().await;
    }
}
