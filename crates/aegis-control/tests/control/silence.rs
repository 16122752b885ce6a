//! Edges that fall silent: each of their tenants is told once, also over a restart of control; who stops as it should is not missed.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::house::{House, key_text};
use aegis_bus::{Bus, Message, Stream, subject};
use aegis_keys::{SigningKey, sign_notice};
use aegis_ledger::{Draft, Ledger, LedgerConfig};
use aegis_model::{EventKind, Heartbeat, Phase, SecurityEvent, TenantId};
use aegis_store::EdgeLife;
use bytes::Bytes;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::time::Instant;

/// Notices of a flood at once, of each kind: fewer than the embedded bus holds for who hears, and many times what can be checked meanwhile.
const FLOOD: usize = 100;

/// How often an edge says that it lives.
const A_BEAT: Duration = Duration::from_millis(200);

/// An enrolled edge, as far as control hears it.
struct Edge {
    id: &'static str,
    key: SigningKey,
    boot: &'static str,
    /// Of its lanes; an edge of before this version does not say it.
    epoch: Option<String>,
    said: u64,
}

impl Edge {
    async fn enroll(house: &House, id: &'static str, seed: u8, tenants: &[&TenantId]) -> Self {
        let tenants: BTreeSet<TenantId> = tenants.iter().map(|tenant| (*tenant).clone()).collect();
        let token = house.store.invite_edge(id, &tenants, house.now().plus_seconds(60)).await.unwrap();
        let nkey = format!("U{}", "A".repeat(55));
        let body = json!({"token": token.expose(), "receipt_key": key_text(seed), "nkey": nkey});
        house.send("POST", "/v1/edges/enroll", None, Some(body.to_string().as_bytes())).await.expect(200);
        Self { id, key: SigningKey::from_seed(&[seed; 32]), boot: "one", epoch: None, said: 0 }
    }

    async fn beat(&mut self, house: &House, leaving: bool) {
        let signed = self.heartbeat(house, leaving);
        house.bus.tell(&subject::heartbeat(self.id), signed).await.unwrap();
    }

    /// Its next heartbeat, signed.
    fn heartbeat(&mut self, house: &House, leaving: bool) -> Bytes {
        let heartbeat = Heartbeat {
            edge_id: self.id.to_owned(),
            boot: self.boot.to_owned(),
            after: None,
            epoch: self.epoch.clone(),
            seq: self.said,
            at: house.now(),
            clock_offset_us: None,
            clock_suspect: false,
            feed_age_s: None,
            backlog: 7,
            enforced: vec![],
            leaving,
        };
        self.said += 1;
        sign_notice(&self.key, &heartbeat).unwrap().into()
    }

    /// Beats until control knows that it lives.
    async fn live(&mut self, house: &House) {
        let id = self.id;
        // One at a time: of an edge that does not name its lanes, what is not read when their end is would be taken for another life.
        let mut last: Option<Instant> = None;
        house
            .until("the edge is heard", async || {
                if last.is_none_or(|last| last.elapsed() > A_BEAT) {
                    self.beat(house, false).await;
                    last = Some(Instant::now());
                }
                life(house, id).await == Some(EdgeLife::Live)
            })
            .await;
    }
}

/// The ledger of a life of the edge's, which served one call and stopped as it should.
async fn whole_life(house: &House, edge: &Edge, tenant: &TenantId) -> Ledger {
    let config = LedgerConfig::new(house.folder.path().join(format!("{}.db", edge.id)), edge.id, "edge");
    let ledger = Ledger::open(config, edge.key.clone(), house.clock.clone()).await.unwrap();
    let event = SecurityEvent::new(tenant.clone(), edge.id, "edge", EventKind::AuthorizeDecision, house.now());
    ledger.submit(Draft::new(event, Phase::Decision)).await.unwrap();
    ledger.close().await.unwrap();
    ledger
}

/// Publishes what was sealed; whoever has it can do so again.
async fn publish(house: &House, ledger: &Ledger) {
    for item in ledger.read_outbox(0, 10).await.unwrap() {
        let message = Message::new(subject::ase(&item.sealed.tenant_id, item.sealed.kind), item.sealed.wire.to_string());
        house.bus.publish(Stream::Ase, vec![message]).await.pop().unwrap().unwrap();
    }
}

async fn life(house: &House, edge_id: &str) -> Option<EdgeLife> {
    let lives = house.store.edge_lives().await.unwrap();
    lives.into_iter().find(|(known, _)| known == edge_id).map(|(_, life)| life)
}

/// The events of `kind` about an edge, as a tenant has them.
async fn told(house: &House, tenant: &TenantId, kind: EventKind, edge_id: &str) -> Vec<Value> {
    let rows = house.events(tenant, kind).await;
    let wires = rows.iter().map(|row| serde_json::from_str::<Value>(row.wire.text().unwrap()).unwrap());
    wires.filter(|wire| wire["resource"] == edge_id).collect()
}

async fn until_told(house: &House, tenant: &TenantId, kind: EventKind, edge_id: &str, times: usize) {
    house.until("tenants are told", async || told(house, tenant, kind, edge_id).await.len() >= times).await;
    assert_eq!(told(house, tenant, kind, edge_id).await.len(), times, "{tenant} {kind}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tenant_of_an_edge_is_told_once_that_it_is_silent_and_once_that_it_is_back_also_by_a_later_start() {
    let mut house = House::build().await;
    let (acme, other) = (house.acme.id.clone(), house.other.id.clone());
    let mut both = Edge::enroll(&house, "edge-7", 1, &[&acme, &other]).await;
    let mut one = Edge::enroll(&house, "edge-8", 2, &[&acme]).await;
    both.live(&house).await;
    // The clock of this house stands still: no clock has a say.
    for tenant in [&acme, &other] {
        until_told(&house, tenant, EventKind::EdgeSilent, "edge-7", 1).await;
    }
    let wire = told(&house, &acme, EventKind::EdgeSilent, "edge-7").await.remove(0);
    assert_eq!((&wire["source"], &wire["edge_id"], &wire["reason"]), (&json!("control"), &json!("control"), &json!("not_heard")));
    let detail = &wire["receipt"]["detail"];
    assert_eq!((&detail["edge_id"], &detail["last_heartbeat"]["boot"]), (&json!("edge-7"), &json!("one")), "{wire}");
    aegis_ledger::verify::verify_wire(&wire, Some(&house.ring)).unwrap();

    // A later start knows what was told, and misses who lived when the one before it ended.
    one.live(&house).await;
    house.restart_control().await;
    until_told(&house, &acme, EventKind::EdgeSilent, "edge-8", 1).await;
    both.live(&house).await;
    for tenant in [&acme, &other] {
        until_told(&house, tenant, EventKind::EdgeBack, "edge-7", 1).await;
        // And again: so much time has passed that whatever was to be told of the first silence has been.
        until_told(&house, tenant, EventKind::EdgeSilent, "edge-7", 2).await;
    }
    assert_eq!(told(&house, &acme, EventKind::EdgeSilent, "edge-8").await.len(), 1);
    assert!(told(&house, &other, EventKind::EdgeSilent, "edge-8").await.is_empty(), "an edge that does not serve it");
    for (tenant, edge_id) in [(&acme, "edge-8"), (&other, "edge-8")] {
        assert!(told(&house, tenant, EventKind::EdgeBack, edge_id).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_leave_or_closes_its_lanes_is_not_missed() {
    let mut house = House::build().await;
    let acme = house.acme.id.clone();
    let mut polite = Edge::enroll(&house, "edge-7", 1, &[&acme]).await;
    let mut closing = Edge::enroll(&house, "edge-8", 2, &[&acme]).await;
    let mut killed = Edge::enroll(&house, "edge-9", 3, &[&acme]).await;
    let ledger = whole_life(&house, &closing, &acme).await;
    polite.live(&house).await;
    closing.live(&house).await;
    // Its farewell is lost; what it sealed arrives.
    publish(&house, &ledger).await;
    house
        .until("what closed its lanes is known to have left", async || life(&house, "edge-8").await == Some(EdgeLife::Left))
        .await;
    // A notice is for whoever hears it: on a busy machine one of them may find no room.
    house
        .until("who took leave is known to have left", async || {
            polite.beat(&house, true).await;
            life(&house, "edge-7").await == Some(EdgeLife::Left)
        })
        .await;
    house.restart_control().await;
    killed.live(&house).await;
    until_told(&house, &acme, EventKind::EdgeSilent, "edge-9", 1).await;
    // Whoever was not missed by then is missed by nobody: they were silent for longer.
    for edge_id in ["edge-7", "edge-8"] {
        assert!(told(&house, &acme, EventKind::EdgeSilent, edge_id).await.is_empty(), "{edge_id}");
    }
    polite.live(&house).await;
    assert!(told(&house, &acme, EventKind::EdgeBack, "edge-7").await.is_empty(), "it was never said to be silent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_that_is_read_behind_the_end_of_its_lanes_is_no_other_life() {
    let house = House::build().await;
    let acme = house.acme.id.clone();
    let mut closing = Edge::enroll(&house, "edge-7", 1, &[&acme]).await;
    let mut killed = Edge::enroll(&house, "edge-8", 2, &[&acme]).await;
    let ledger = whole_life(&house, &closing, &acme).await;
    closing.epoch = Some(ledger.epoch().to_owned());
    closing.live(&house).await;
    // Its farewell is lost, and what it said before comes late.
    publish(&house, &ledger).await;
    house.until("it is known to have left", async || life(&house, "edge-7").await == Some(EdgeLife::Left)).await;
    for _ in 0..3 {
        closing.beat(&house, false).await;
    }
    killed.live(&house).await;
    until_told(&house, &acme, EventKind::EdgeSilent, "edge-8", 1).await;
    assert_eq!(life(&house, "edge-7").await, Some(EdgeLife::Left));
    assert!(told(&house, &acme, EventKind::EdgeSilent, "edge-7").await.is_empty());
    // Its next start opens other lanes, and is missed again.
    (closing.boot, closing.epoch) = ("two", Some("another".to_owned()));
    closing.live(&house).await;
    until_told(&house, &acme, EventKind::EdgeSilent, "edge-7", 1).await;
}

/// Every edge of a tenant may publish for it, and has its receipts from an export.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_end_of_an_edge_s_lanes_that_is_sent_again_excuses_no_silence() {
    let house = House::build().await;
    let acme = house.acme.id.clone();
    let mut edge = Edge::enroll(&house, "edge-7", 1, &[&acme]).await;
    let ledger = whole_life(&house, &edge, &acme).await;
    edge.live(&house).await;
    publish(&house, &ledger).await;
    house.until("it is known to have left", async || life(&house, "edge-7").await == Some(EdgeLife::Left)).await;
    edge.live(&house).await;
    publish(&house, &ledger).await;
    until_told(&house, &acme, EventKind::EdgeSilent, "edge-7", 1).await;
}

/// Whoever has the bus can hold it back until then.
#[tokio::test(flavor = "multi_thread")]
async fn the_leave_of_an_earlier_start_excuses_no_later_one() {
    let house = House::build().await;
    let acme = house.acme.id.clone();
    let mut edge = Edge::enroll(&house, "edge-7", 1, &[&acme]).await;
    edge.live(&house).await;
    edge.boot = "two";
    edge.beat(&house, false).await;
    edge.boot = "one";
    edge.beat(&house, true).await;
    until_told(&house, &acme, EventKind::EdgeSilent, "edge-7", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_receipted_is_told_when_it_can_be() {
    let house = House::build().await;
    let acme = house.acme.id.clone();
    let mut edge = Edge::enroll(&house, "edge-7", 1, &[&acme]).await;
    house.fill_control_ledger().await;
    edge.live(&house).await;
    // It is not heard for longer than its tenants wait to be told.
    house
        .until("the edge is not heard", async || {
            let edges = house.get("/v1/edges", &house.acme.auditor).await.expect(200).body;
            edges.as_array().unwrap().iter().any(|edge| edge["edge_id"] == "edge-7" && edge["live"] == false)
        })
        .await;
    assert_eq!(life(&house, "edge-7").await, Some(EdgeLife::Live), "what is not told is not kept");
    house.ledger_pages.store(0, std::sync::atomic::Ordering::SeqCst);
    until_told(&house, &acme, EventKind::EdgeSilent, "edge-7", 1).await;
    assert_eq!(life(&house, "edge-7").await, Some(EdgeLife::Silent));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_learns_the_load_of_an_edge_of_its_own_alone() {
    let house = House::build().await;
    let (acme, other) = (house.acme.id.clone(), house.other.id.clone());
    let mut shared = Edge::enroll(&house, "edge-7", 1, &[&acme, &other]).await;
    let mut own = Edge::enroll(&house, "edge-8", 2, &[&acme]).await;
    shared.live(&house).await;
    own.live(&house).await;
    let edges = house.get("/v1/edges", &house.acme.auditor).await.expect(200).body;
    let shown = |edge_id: &str| edges.as_array().unwrap().iter().find(|edge| edge["edge_id"] == edge_id).unwrap().clone();
    assert!(shown("edge-7")["heard_at"].is_string() && shown("edge-7").get("backlog").is_none(), "{edges}");
    assert_eq!(shown("edge-8")["backlog"], 7, "{edges}");
    for (edge_id, backlog) in [("edge-7", None), ("edge-8", Some(&json!(7)))] {
        until_told(&house, &acme, EventKind::EdgeSilent, edge_id, 1).await;
        let wire = told(&house, &acme, EventKind::EdgeSilent, edge_id).await.remove(0);
        let last = &wire["receipt"]["detail"]["last_heartbeat"];
        assert_eq!((&last["boot"], last.get("backlog")), (&json!("one"), backlog), "{wire}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_floods_its_subjects_makes_no_other_silent() {
    let house = House::build().await;
    let acme = house.acme.id.clone();
    let mut flooding = Edge::enroll(&house, "edge-7", 1, &[&acme]).await;
    let mut quiet = Edge::enroll(&house, "edge-8", 2, &[&acme]).await;
    let mut gone = Edge::enroll(&house, "edge-9", 3, &[&acme]).await;
    for edge in [&mut flooding, &mut quiet, &mut gone] {
        edge.live(&house).await;
    }
    // Signed, so that each has to be checked.
    let (bus, said) = (house.bus.clone(), flooding.heartbeat(&house, false));
    let flood = tokio::spawn(async move {
        loop {
            for _ in 0..FLOOD {
                for subject in [subject::heartbeat("edge-7"), subject::ack("edge-7")] {
                    bus.tell(&subject, said.clone()).await.unwrap();
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    // Whoever says nothing is told as silent meanwhile; who says little, a few times within the bound, is not.
    let mut beaten: Option<Instant> = None;
    house
        .until("who says nothing is silent", async || {
            if beaten.is_none_or(|at| at.elapsed() >= Duration::from_millis(300)) {
                quiet.beat(&house, false).await;
                beaten = Some(Instant::now());
            }
            life(&house, "edge-9").await == Some(EdgeLife::Silent)
        })
        .await;
    assert_eq!(life(&house, "edge-8").await, Some(EdgeLife::Live));
    assert!(told(&house, &acme, EventKind::EdgeSilent, "edge-8").await.is_empty());
    flood.abort();
    let (mut registry, mut text) = (Registry::default(), String::new());
    house.control.metrics().register(&mut registry);
    encode(&mut text, &registry).unwrap();
    let refused = text.lines().find_map(|line| line.strip_prefix("control_notices_refused_total ")).unwrap();
    assert!(refused.parse::<u64>().unwrap() > 1000, "the flood was none: {refused}");
}
