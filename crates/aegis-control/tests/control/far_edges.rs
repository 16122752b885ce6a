//! Control and edges over real NATS servers. A flood by one edge: their client holds so many messages for a listener that is behind, and drops what comes
//! after them: nobody else's notice may be among those. And what is confirmed to an edge: of its own lanes alone, signed, and said of now.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::nats::{Server, servers};
use aegis_bus::feed::MOST_NONCE;
use aegis_bus::{Bus, EdgeBus, JetStreamBus, JetStreamOptions, LanesInLake, definitions, subject, users};
use aegis_control::{Control, ControlConfig, NoLocalEdge};
use aegis_keys::{KeyRing, SigningKey, TrustTokenKey, sign_notice, verify_notice};
use aegis_ledger::{Ledger, LedgerConfig};
use aegis_model::{Clock, Confirmed, Heartbeat, LaneConfirmed, LaneReach, SystemClock, TenantId};
use aegis_store::{EdgeKey, EdgeLife, EdgePublicKeys, Store};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

/// Nearly twice what the client holds for one listener (65,536): by far more than that and the signatures that can be checked while it comes.
const FLOOD: usize = 120_000;
/// The bus promises nobody that each of its notices arrives.
const TRIES: usize = 3;

/// An enrolled edge, as far as control hears it.
struct Edge {
    id: &'static str,
    key: SigningKey,
    said: u64,
}

impl Edge {
    async fn enroll(store: &Store, id: &'static str, seed: u8) -> Self {
        let key = SigningKey::from_seed(&[seed; 32]);
        let token = store.invite_edge(id, &BTreeSet::from([acme()]), SystemClock.now().plus_seconds(60)).await.unwrap();
        let (public, nkey) = (key.verifying_key(), format!("U{}", "A".repeat(55)));
        let text = public.to_base64();
        let keys = EdgePublicKeys { key_id: public.key_id(), public_key: &text, nkey: &nkey };
        let facts = |_: &EdgeKey| Ok(Vec::new());
        store.enroll_edge(token.expose(), keys, &facts).await.unwrap().unwrap();
        Self { id, key, said: 0 }
    }

    /// Its next heartbeat, signed.
    fn heartbeat(&mut self) -> Bytes {
        let heartbeat = Heartbeat {
            edge_id: self.id.to_owned(),
            boot: "one".to_owned(),
            after: None,
            epoch: None,
            seq: self.said,
            at: SystemClock.now(),
            clock_offset_us: None,
            clock_suspect: false,
            feed_age_s: None,
            backlog: 0,
            enforced: vec![],
            leaving: false,
        };
        self.said += 1;
        sign_notice(&self.key, &heartbeat).unwrap().into()
    }
}

fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

async fn connect(server: &Server) -> Arc<JetStreamBus> {
    JetStreamBus::connect(&JetStreamOptions::new(server.url())).await.unwrap()
}

/// A control plane on the server, with what it stands on in `folder`.
async fn control(folder: &std::path::Path, server: &Server, store: &Store, lake: Option<Arc<dyn LanesInLake>>) -> Arc<Control> {
    let bus = connect(server).await;
    let names = ["ASE", "APPROVALS", "ALERTS", "EPISODES", "CKPT", "DLQ"].into_iter();
    let names = names.chain(["KV_containment", "KV_control", "KV_leases", "KV_trust"]);
    let max_bytes = names.map(|name| (name.to_owned(), 8 << 20)).collect();
    let small = definitions::Settings { max_bytes, ..definitions::Settings::default() };
    bus.apply_streams(&definitions::wanted(&small).unwrap(), &[]).await.unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let key = SigningKey::generate().unwrap();
    let config = LedgerConfig::new(folder.join("ledger.db"), "control", "control");
    let ledger = Ledger::open(config, key.clone(), clock.clone()).await.unwrap();
    let config = ControlConfig {
        beat_every: Duration::from_millis(100),
        edge_trust_key: Some(TrustTokenKey::from_bytes([9; 32])),
        lake,
        ..ControlConfig::default()
    };
    let ring = KeyRing::new([key.verifying_key()]);
    Control::start(config, store.clone(), ledger, bus, key, ring, clock, Arc::new(NoLocalEdge)).await.unwrap()
}

/// Whether control knows within that time that the edge lives.
async fn is_heard(store: &Store, edge_id: &str, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    while Instant::now() < deadline {
        let lives = store.edge_lives().await.unwrap();
        if lives.iter().any(|(known, life)| known == edge_id && *life == EdgeLife::Live) {
            return true;
        }
        sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_heartbeat_behind_a_flood_of_another_edge_s_is_heard() {
    for binary in servers() {
        let (server, folder) = (Server::start(&binary), tempfile::tempdir().unwrap());
        let store = Store::open(&folder.path().join("control.db"), Arc::new(SystemClock)).await.unwrap();
        store.create_tenant(&acme(), "acme").await.unwrap();
        let mut flooding = Edge::enroll(&store, "edge-7", 1).await;
        let mut quiet = Edge::enroll(&store, "edge-8", 2).await;
        let control = control(folder.path(), &server, &store, None).await;
        let edges = connect(&server).await;
        let (flooded, other) = (subject::heartbeat(flooding.id), subject::heartbeat(quiet.id));

        let mut listens = false;
        for _ in 0..100 {
            edges.tell(&flooded, flooding.heartbeat()).await.unwrap();
            listens = is_heard(&store, flooding.id, Duration::from_millis(200)).await;
            if listens {
                break;
            }
        }
        assert!(listens, "control hears nobody on {}", binary.display());

        let again = flooding.heartbeat();
        let mut heard = false;
        for _ in 0..TRIES {
            for _ in 0..FLOOD {
                edges.tell(&flooded, again.clone()).await.unwrap();
            }
            edges.tell(&other, quiet.heartbeat()).await.unwrap();
            heard = is_heard(&store, quiet.id, Duration::from_secs(60)).await;
            if heard {
                break;
            }
        }
        assert!(heard, "the flood of one edge has the heartbeats of another lost on {}", binary.display());
        control.stop().await;
    }
}

/// A lake that has one lane, with a hole.
#[derive(Debug, Default)]
struct OneLane {
    behind: Mutex<Option<Duration>>,
}

impl LanesInLake for OneLane {
    fn reach(&self, tenant: &TenantId, lane: &str) -> Option<LaneReach> {
        let reach = LaneReach { head: 9, missing: vec![(4, 6)], ..LaneReach::none(tenant.clone(), lane.to_owned()) };
        (lane != "acme.edge-7.given-up").then_some(reach)
    }

    fn behind(&self) -> Option<Duration> {
        *self.behind.lock()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_is_confirmed_what_history_and_lake_have_of_its_own_lanes() {
    for binary in servers() {
        let (server, folder) = (Server::start(&binary), tempfile::tempdir().unwrap());
        let store = Store::open(&folder.path().join("control.db"), Arc::new(SystemClock)).await.unwrap();
        store.create_tenant(&acme(), "acme").await.unwrap();
        let edge = Edge::enroll(&store, "edge-7", 1).await;
        let lane = "acme.edge-7.1".to_owned();
        let known = LaneReach { head: 7, missing: vec![(6, 6)], ..LaneReach::none(acme(), lane.clone()) };
        store.insert_history(&[], &[known]).await.unwrap();
        let lake = Arc::new(OneLane::default());
        let control = control(folder.path(), &server, &store, Some(lake.clone())).await;
        let options = JetStreamOptions {
            inbox_prefix: users::inbox_prefix(edge.id),
            timeout: Duration::from_secs(1),
            ..JetStreamOptions::new(server.url())
        };
        let bus = EdgeBus::connect(&options, edge.id).await.unwrap();
        let mut hearing = bus.hear(&subject::lake(edge.id)).await.unwrap();
        let of_others = ["other.edge-7.1", "acme.edge-8.1", "acme.control.1", "acme", "", "acme.edge-7.given-up"];
        let asked: Vec<String> = of_others.iter().map(|name| (*name).to_owned()).chain([lane.clone()]).collect();

        // Until control listens; and then as long as the lake does not know where it is.
        let mut refused = String::new();
        for _ in 0..100 {
            refused = bus.confirm(&asked, "early").await.unwrap_err().to_string();
            if refused.contains("the lake does not know yet") {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        assert!(refused.contains("the lake does not know yet"), "{refused}");
        *lake.behind.lock() = Some(Duration::from_millis(1500));
        let too_long = "n".repeat(MOST_NONCE + 1);
        assert!(bus.confirm(&asked, &too_long).await.unwrap_err().to_string().contains("nonce"));
        bus.confirm(&asked, "now").await.unwrap();
        let heard = hearing.next().await.unwrap();
        let (told, _) = verify_notice::<Confirmed>(&KeyRing::new([control.verifying_key()]), &heard.payload).unwrap();
        let confirmed = LaneConfirmed { lane, history: 5, lake: 3, lake_head: 9 };
        assert_eq!(told, Confirmed { edge_id: "edge-7".into(), nonce: "now".into(), behind_ms: 1500, lanes: vec![confirmed] });
        control.stop().await;
    }
}
