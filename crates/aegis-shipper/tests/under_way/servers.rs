//! The same over real servers: one that is far away, one that hangs, one that dies.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::definitions::{self, Settings};
use aegis_bus::{Bus, JetStreamBus, JetStreamOptions, Stream};
use aegis_shipper::ShipperConfig;
use serde_json::Value;

use crate::fake::Fake;
use crate::ground::{seal, until};
use crate::nats::{Server, servers, slow_way};
use crate::{Sealed, by_row, event_of, small};

/// A server with empty streams, and a connection to it.
async fn start(binary: &Path) -> (Server, Arc<JetStreamBus>) {
    let server = Server::start(binary);
    let max_bytes = ["APPROVALS", "ALERTS", "EPISODES", "CKPT", "DLQ", "KV_containment", "KV_control", "KV_leases", "KV_trust"];
    let max_bytes = max_bytes.into_iter().map(|name| (name, 8)).chain([("ASE", 64)]);
    let max_bytes = max_bytes.map(|(name, mib)| (name.to_owned(), mib << 20)).collect();
    let wanted = definitions::wanted(&Settings { max_bytes, ..Settings::default() }).unwrap();
    let bus = JetStreamBus::connect(&JetStreamOptions::new(server.url())).await.unwrap();
    bus.apply_streams(&wanted, &[]).await.unwrap();
    (server, bus)
}

/// A connection that soon gives up what is not answered; whoever ships sends it again.
async fn impatient(url: String) -> Arc<JetStreamBus> {
    let options = JetStreamOptions { timeout: Duration::from_secs(1), ..JetStreamOptions::new(url) };
    JetStreamBus::connect(&options).await.unwrap()
}

/// The ids of all events of the ledger, in its order.
fn all_of(sealed: &Sealed) -> Vec<String> {
    sealed.rows.values().map(|id| event_of(id).to_owned()).collect()
}

/// The ids of all events on the stream, in its order.
async fn arrived(bus: &JetStreamBus) -> Vec<String> {
    let last = bus.last_seq(Stream::Ase).await.unwrap();
    let mut subscription = bus.subscribe(Stream::Ase, ">", 1).await.unwrap();
    let (mut read, mut ids) = (0, Vec::new());
    while read < last {
        let batch = subscription.next_batch(1000, Duration::from_secs(60)).await.unwrap();
        read = batch.last().expect("what the stream has").seq;
        let events = batch.into_iter().map(|delivered| serde_json::from_slice::<Value>(&delivered.payload).unwrap());
        ids.extend(events.map(|event| event["event_id"].as_str().unwrap().to_owned()));
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_a_server_far_away_several_are_under_way_and_arrive_once_in_their_order() {
    for binary in servers() {
        let (server, near) = start(&binary).await;
        let far = slow_way(&server, Duration::from_millis(100)).await;
        let options = JetStreamOptions { timeout: Duration::from_secs(20), ..JetStreamOptions::new(far) };
        let (sealed, bus) = (Sealed::new(500).await, Arc::new(Fake::before(JetStreamBus::connect(&options).await.unwrap())));
        let shipper = sealed.ship(&bus, ShipperConfig { batch: 20, ..small() });
        until("everything shipped", async || shipper.backlog() == 0).await;
        shipper.stop().await;
        assert!(bus.most().publishes >= 3, "{:?}", bus.most());
        assert_eq!(arrived(&near).await, all_of(&sealed), "{}", binary.display());
        assert!(bus.needless().is_empty());
    }
}

/// Ships over a server that hangs while several publishes are under way, and then dies or goes on.
async fn ship_over_one_that_hangs(binary: &Path, dies: bool) -> (Vec<String>, Vec<String>) {
    let (mut server, near) = start(binary).await;
    let (mut sealed, bus) = (Sealed::new(500).await, Arc::new(Fake::before(impatient(server.url()).await)));
    let shipper = sealed.ship(&bus, ShipperConfig { batch: 20, window: 200, ..small() });
    until("some of it shipped", async || sealed.ledger.shipped_row().await >= sealed.row(100)).await;
    server.signal("STOP");
    seal(&sealed.ledger, 200).await;
    sealed.rows = by_row(sealed.ledger.read_outbox(0, 5000).await.unwrap());
    until("several under way", async || bus.waiting().len() >= 2).await;
    until("one given up", async || shipper.meter().retries_total() > 0).await;
    let shipped = sealed.ledger.shipped_row().await;
    assert!(shipped < sealed.ledger.last_row());
    assert!(sealed.rows.range(..=shipped).all(|(_, id)| bus.is_taken(id)), "row {shipped} was passed");
    if dies {
        server.kill();
        server.start_again();
    } else {
        server.signal("CONT");
    }
    until("everything shipped", async || shipper.backlog() == 0).await;
    shipper.stop().await;
    assert!(sealed.rows.values().all(|id| bus.is_taken(id)));
    (arrived(&near).await, all_of(&sealed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_loses_nothing_and_stores_nothing_twice() {
    for binary in servers() {
        let (mut arrived, mut all) = ship_over_one_that_hangs(&binary, false).await;
        arrived.sort_unstable();
        all.sort_unstable();
        assert_eq!(arrived, all, "{}", binary.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_with_several_under_way_loses_nothing() {
    for binary in servers() {
        let (arrived, all) = ship_over_one_that_hangs(&binary, true).await;
        let (arrived, all): (BTreeSet<_>, BTreeSet<_>) = (arrived.into_iter().collect(), all.into_iter().collect());
        assert_eq!(arrived, all, "{}", binary.display());
    }
}
