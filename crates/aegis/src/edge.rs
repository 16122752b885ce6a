//! `aegis edge`: authorize alone, over NATS. It believes what control signed, answers from memory and its ledger, and needs nobody for it: not
//! NATS, not control, not detection.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, EdgeBus};
use aegis_edge::{CorrectedClock, Edge, EdgeConfig, EdgeMetrics, EdgeView, FeedConfig, FeedFollower, Pulse};
use aegis_keys::{KeyRing, SigningKey, TrustTokenKey};
use aegis_ledger::Ledger;
use aegis_model::{Clock, SystemClock};
use aegis_shipper::{Shipper, ShipperConfig};
use anyhow::{Context, bail};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::again::{Again, Asked};
use crate::config::Config;
use crate::confirmed::{Meter, OverBus};
use crate::confirming::Confirming;
use crate::enrolled::{self, Enrolled};
use crate::exposition::Exposition;
use crate::forward::{Forward, forward};
use crate::parts::{open_ledger, prepare_folder};
use crate::peers::Peers;
use crate::serve::serve;

/// How long a stop waits for what was sealed to reach the bus.
const SHIP_DRAIN: Duration = Duration::from_secs(5);

/// Longest name of a start, bytes.
const MAX_BOOT: usize = 64;

/// How long a start waits for control's sign of life, which says what time it is.
const CLOCK_WAIT: Duration = Duration::from_secs(5);

/// How often it is looked whether the next start should know of another correction, and which is worth it.
const KEEP_OFFSET_EVERY: Duration = Duration::from_secs(2);
const WORTH_KEEPING_US: u64 = 250_000;

/// A running edge.
#[derive(Debug)]
pub(crate) struct RunningEdge {
    address: SocketAddr,
    data: PathBuf,
    edge_id: String,
    stop_serving: watch::Sender<bool>,
    server: JoinHandle<()>,
    feed: FeedFollower,
    pulse: Arc<Pulse>,
    beating: JoinHandle<()>,
    view: Arc<EdgeView>,
    bus: Arc<EdgeBus>,
    /// Ships again what control says that it lacks.
    again: JoinHandle<()>,
    /// And what the history lacks without knowing, and the lake; prunes where a setting says how long receipts are kept.
    confirming: Vec<JoinHandle<()>>,
    keep_offset: JoinHandle<()>,
    ledger: Ledger,
    shipper: Shipper,
}

/// Starts the edge that is enrolled in the data folder.
pub(crate) async fn start(config: Config) -> anyhow::Result<RunningEdge> {
    if !config.nats.is_used() {
        bail!("an edge needs NATS: name its server with --nats, or as nats.servers in the configuration");
    }
    let data = prepare_folder(&config.data, &["edge"])?;
    // Its machine's clock may be off: it follows control's.
    let offset_file = data.join("edge").join("clock_offset_us");
    let corrected = Arc::new(CorrectedClock::new(Arc::new(SystemClock), read_offset(&offset_file)));
    let clock: Arc<dyn Clock> = corrected.clone();
    let enrolled = Enrolled::load(&data)?;
    let packs = crate::commands::policy::read_packs(&config.policies)?;
    let key = SigningKey::load_or_create(&enrolled::receipt_key_file(&data))?;
    let trust = TrustTokenKey::load_or_create(&enrolled::trust_key_file(&data))?;
    let control_ring = KeyRing::new(enrolled.control_keys()?);

    let mut nats = config.nats.clone();
    nats.log_in_as(&enrolled.edge_id, enrolled::nkey_file(&data));
    let options = nats.options(&format!("aegis-{}", enrolled.edge_id))?;
    let edge_bus = EdgeBus::connect(&options, &enrolled.edge_id).await.context("NATS")?;
    let bus: Arc<dyn Bus> = edge_bus.clone();
    let mut registry = Registry::default();
    let metrics = EdgeMetrics::register(&mut registry);
    let peers = Peers::new(config.connections_per_peer, &mut registry);
    let view = Arc::new(EdgeView::with_packs(control_ring.clone(), packs).context("policies")?.far_from_control());
    let boot_file = data.join("edge").join("boot");
    let before = std::fs::read_to_string(&boot_file).ok().filter(|boot| boot.len() <= MAX_BOOT);
    let pulse = Pulse::new(&enrolled.edge_id, key.clone(), corrected.clone(), before);
    let follow = FeedConfig {
        tenants: Some(enrolled.tenants.iter().cloned().collect()),
        snapshot: Some(data.clone()),
        has_others: true,
        pulse: Some(pulse.clone()),
        stale_after_s: config.edge.feed_stale_after_s,
        ..FeedConfig::default()
    };
    // What was contained before is enforced before the first answer.
    let mut feed =
        FeedFollower::start(bus.clone(), view.clone(), metrics.clone(), clock.clone(), follow).await.context("control feed")?;

    // A hold must not end, and nothing be dated, by a clock that is wrong. Without control, by what the start before knew.
    let _gone_without = timeout(CLOCK_WAIT, corrected.until_heard()).await;
    let receipt_key = key.clone();
    let ledger = open_ledger(&config, &data, "edge", &enrolled.edge_id, key, &clock).await?;
    feed.tell_with(ledger.clone(), &enrolled.edge_id);
    let keep_offset = tokio::spawn(keep_offset(corrected, offset_file));
    if let Err(error) = std::fs::write(&boot_file, pulse.boot()) {
        tracing::warn!(%error, "the next start of this edge will not know of this one, and count beside it for some seconds");
    }
    let beating = pulse.clone().spawn(bus.clone(), view.clone(), ledger.clone());
    let shipper = Shipper::spawn(ledger.clone(), bus.clone(), ShipperConfig::default()).context("shipping")?;
    let confirmed = Arc::new(Meter::default());
    let asked = Arc::new(OverBus {
        bus: edge_bus.clone(),
        ring: control_ring.clone(),
        edge_id: enrolled.edge_id.clone(),
        meter: confirmed.clone(),
    });
    let confirming = Confirming {
        asked,
        ledger: ledger.clone(),
        again: shipper.again(),
        settled: Duration::from_secs(config.edge.confirm_after_s),
        keep_days: config.ledger.keep_days,
        decides: true,
        clock: clock.clone(),
        meter: confirmed.clone(),
    };
    let confirming = confirming.spawn();
    let again = Again {
        bus,
        ring: control_ring.clone(),
        edge_id: enrolled.edge_id.clone(),
        key: receipt_key,
        asked: Asked { ledger: ledger.clone(), shipper: shipper.again(), meter: confirmed.clone() },
    };
    let again = again.spawn();
    let edge_config = EdgeConfig {
        max_body_bytes: config.edge.max_body_bytes,
        timestamp_skew_s: config.edge.timestamp_skew_s,
        commit_wait_ms: config.edge.commit_wait_ms,
        max_feed_age_s: config.edge.max_feed_age_s,
        max_snapshot_age_s: config.edge.max_snapshot_age_s,
        tenants: Some(enrolled.tenants.clone()),
        ..EdgeConfig::new(&enrolled.edge_id)
    };
    let edge =
        Edge::open(edge_config, view.clone(), ledger.clone(), control_ring, trust, clock, metrics).await.context("edge")?;

    let exposition = Exposition::of_edge(registry, edge_bus.clone(), ledger.clone(), confirmed);
    let control_url =
        if config.edge.control_url.is_empty() { enrolled.control_url.clone() } else { config.edge.control_url.clone() };
    let router = Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/readyz", get(ready).with_state(ledger.clone()))
        .merge(aegis_edge::router(edge.clone()))
        .merge(exposition.router())
        .merge(forward(Forward::new(&control_url, config.edge.max_body_bytes)));
    let listener = TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr().context("no local address")?;
    let (stop_serving, stopped) = watch::channel(false);
    let server = tokio::spawn(serve(listener, peers, Some(edge), router, stopped));
    Ok(RunningEdge {
        address,
        data,
        edge_id: enrolled.edge_id,
        stop_serving,
        server,
        feed,
        pulse,
        beating,
        view,
        bus: edge_bus,
        again,
        confirming,
        keep_offset,
        ledger,
        shipper,
    })
}

fn read_offset(file: &Path) -> i64 {
    std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Keeps what the machine's clock is corrected by, for the next start.
async fn keep_offset(clock: Arc<CorrectedClock>, file: PathBuf) {
    let mut kept = read_offset(&file);
    loop {
        tokio::time::sleep(KEEP_OFFSET_EVERY).await;
        let Some(offset) = clock.offset_us().filter(|offset| offset.abs_diff(kept) > WORTH_KEEPING_US) else { continue };
        match std::fs::write(&file, format!("{offset}\n")) {
            Ok(()) => kept = offset,
            Err(error) => tracing::warn!(%error, "the correction of the clock cannot be kept for the next start"),
        }
    }
}

async fn ready(State(ledger): State<Ledger>) -> Response {
    if ledger.is_writable() {
        return (StatusCode::OK, "ready").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the ledger cannot be written: whatever changes something is denied").into_response()
}

impl RunningEdge {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn edge_id(&self) -> &str {
        &self.edge_id
    }

    /// No new requests, the lanes closed, the outbox drained.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let _nobody_listens = self.stop_serving.send(true);
        self.server.await.context("the server ended badly")?;
        self.feed.stop();
        self.beating.abort();
        self.again.abort();
        self.confirming.iter().for_each(JoinHandle::abort);
        self.keep_offset.abort();
        self.ledger.close().await.context("the ledger could not be closed; its lanes get a gap receipt at the next start")?;
        // Only now: an edge whose lanes are not closed is to be missed.
        let (pulse, bus, view, ledger) = (&self.pulse, &self.bus, &self.view, &self.ledger);
        let leave = async {
            pulse.leave(&**bus, view, ledger).await;
            if let Err(error) = bus.flush().await {
                tracing::warn!(%error, "control may not have heard that this edge stops, and miss it");
            }
        };
        let ((), shipped) = tokio::join!(leave, timeout(SHIP_DRAIN, self.shipper.stop()));
        if shipped.is_err() {
            tracing::warn!("not everything was shipped; the rest follows at the next start");
        }
        Ok(())
    }
}
