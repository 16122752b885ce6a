//! `aegis up`: edge, control, ingest and SOC composed in one process, all state in one folder; over the embedded bus, or a NATS server.
//! `aegis control`: the same without an edge.
//! Owns the order in which parts start and stop; no part knows another but through its interface.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::users::Part;
use aegis_bus::{AskForMissing, LanesInLake, Stream};
use aegis_control::{AppliedWatch, Control, ControlConfig, NoLocalEdge, RuleTrials};
use aegis_detect::{LaneLooks, RuleSet, RuleWaits, Worker, WorkerConfig};
use aegis_edge::{Edge, EdgeConfig, EdgeMetrics, EdgeView, FeedConfig, FeedFollower};
use aegis_ingest::IngestState;
use aegis_keys::{KeyRing, SigningKey, TrustTokenKey};
use aegis_lake::{LakeConfig, LakeLanes, LakeWorker};
use aegis_ledger::Ledger;
use aegis_model::{Clock, SystemClock};
use aegis_respond::Responder;
use aegis_shipper::Shipper;
use aegis_store::Store;
use anyhow::{Context, bail};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::adapters::{
    Containments, LanesOfDetection, LocalEdge, PastInTheLake, RefusedToControl, RepositoryRegistry, StoredRules, StoredSecrets,
    WaitsOfDetection, WarmAsControl,
};
use crate::carrier::Carrier;
use crate::changed_rules;
use crate::config::Config;
use crate::confirming::MICROS_PER_DAY;
use crate::exposition::{Carried, Exposition};
use crate::own_ledgers::{Behind, OwnLedger};
use crate::parts::{make_private_folder, open_ledger, prepare_folder, write_public_key};
use crate::past_lanes::LanesInHistory;
use crate::peers::Peers;
use crate::rule_trial::{By, RuleTrial};
use crate::serve::serve;

/// How long a stop waits for what was sealed to reach the bus.
const SHIP_DRAIN: Duration = Duration::from_secs(5);

/// How long detection waits for a receipt that is missing in its lane: longer than a publisher takes to send it again.
const HOLD_MS: i64 = 15_000;

/// A running instance.
#[derive(Debug)]
pub(crate) struct Running {
    address: SocketAddr,
    data: PathBuf,
    stop_serving: watch::Sender<bool>,
    server: JoinHandle<()>,
    feed: Option<FeedFollower>,
    /// Writes the NATS server's users.
    users: Option<JoinHandle<()>>,
    /// Makes room in its streams.
    room: Option<JoinHandle<()>>,
    control: Arc<Control>,
    worker: Arc<Worker>,
    responder: Responder,
    lake: Option<Arc<LakeWorker>>,
    ledgers: Vec<Ledger>,
    /// What ships again of these ledgers, and prunes them.
    own_ledgers: Vec<JoinHandle<()>>,
    shippers: Vec<Shipper>,
    pub(crate) store: Store,
}

/// What of it all a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Edge, control and SOC.
    Whole,
    /// Control and SOC: edges are processes of their own.
    Control,
}

/// Starts everything and listens. What is missing in the data folder is made; what is damaged or newer is refused.
pub(crate) async fn start(config: Config, role: Role) -> anyhow::Result<Running> {
    if role == Role::Control && !config.nats.is_used() {
        bail!("a control plane without an edge needs NATS: name its server with --nats, or as nats.servers in the configuration");
    }
    if config.ledger.keep_days > 0 && !(config.nats.is_used() && config.lake.enabled) {
        tracing::warn!(
            "ledger.keep_days prunes over NATS what history and lake both have; without a lake, or a server, the ledgers keep every receipt"
        );
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let data = prepare_folder(&config.data, &["edge", "control"])?;
    let packs = crate::commands::policy::read_packs(&config.policies)?;
    let rules = read_rules(&config.detect.rules)?;
    let common = rules.common();
    let keys = Keys::load(&data)?;
    // Before anything starts: settings that cannot be are told of at once. Whether the store answers is another matter.
    let lake_store = if config.lake.enabled { Some(crate::lake::open(&config.lake, &data)?) } else { None };

    let carrier = Carrier::open(&config, &data, &clock).await?;
    let (bus, room) = (carrier.control(), carrier.make_room());
    let store = crate::store::open(&data, &config.store, clock.clone()).await?;
    for told in changed_rules::told(&common, &store.standing_common_rules().await?) {
        told.log();
    }
    let control_ledger = open_ledger(&config, &data, "control", "control", keys.control.clone(), &clock).await?;
    let mut ledgers = vec![("control", control_ledger.clone())];
    // A control plane whose folder was a whole instance's before: what its edge sealed is still shipped, and shown.
    if role == Role::Whole || data.join("edge").join("ledger.db").exists() {
        ledgers.push(("edge", open_ledger(&config, &data, "edge", &config.edge.id, keys.edge.clone(), &clock).await?));
    }
    let mut shippers = Vec::new();
    let mut ships_again: HashMap<String, Arc<dyn AskForMissing>> = HashMap::new();
    let mut own_ledgers = Vec::new();
    for (name, ledger) in &ledgers {
        let shipper = carrier.ship(name, ledger).await?;
        let edge_id = if *name == "edge" { config.edge.id.clone() } else { (*name).to_owned() };
        let (own, asks) = OwnLedger::new(edge_id.clone(), ledger.clone(), shipper.again());
        ships_again.insert(edge_id, asks);
        own_ledgers.push(own);
        shippers.push(shipper);
    }

    let mut registry = Registry::default();
    let control_ring = KeyRing::new([keys.control.verifying_key()]);
    let receipt_ring = KeyRing::new([keys.control.verifying_key(), keys.edge.verifying_key()]);
    let mut local = None;
    if role == Role::Whole {
        let metrics = EdgeMetrics::register(&mut registry);
        let view = Arc::new(EdgeView::with_packs(control_ring.clone(), packs.clone()).context("policies")?);
        let (has_others, stale_after_s) = (config.nats.is_used(), config.edge.feed_stale_after_s);
        let following = FeedConfig { has_others, stale_after_s, ..FeedConfig::default() };
        // What was contained before the stop is enforced before the first answer.
        let feed = FeedFollower::start(bus.clone(), view.clone(), metrics.clone(), clock.clone(), following);
        local = Some((feed.await.context("control feed")?, view, metrics));
    }
    let applied: Arc<dyn AppliedWatch> = match &local {
        Some((_, view, _)) => Arc::new(LocalEdge(view.clone())),
        None => Arc::new(NoLocalEdge),
    };
    let rule_set = Some(common.set());
    let trial = RuleTrial::new(store.clone(), &data, common, By::Tenant, clock.clone());
    let rule_trials: Option<Arc<dyn RuleTrials>> = if config.detect.own_rules { Some(Arc::new(trial)) } else { None };
    let (waits, looks) = (Arc::new(RuleWaits::default()), Arc::new(LaneLooks::default()));
    // The embedded bus loses nothing, and has no edges elsewhere that would prune.
    let lake_lanes = (config.lake.enabled && config.nats.is_used()).then(|| Arc::new(LakeLanes::default()));
    let control_config = ControlConfig {
        agent_token_ttl_s: config.control.agent_token_ttl_s,
        callback_loopback: config.control.callback_loopback,
        edge_silent_after: Duration::from_secs(config.control.edge_silent_after_s),
        packs,
        // A history that other machines read too holds every event itself.
        keepers: match store.is_on_this_machine() {
            true => ledgers.iter().map(|(name, ledger)| ((*name).into(), carrier.keeper_of_history(ledger))).collect(),
            false => HashMap::new(),
        },
        ships_again,
        lake: lake_lanes.clone().map(|lanes| lanes as Arc<dyn LanesInLake>),
        // Edges of their own can reach what a server carries, and no file of this process.
        edge_trust_key: config.nats.is_used().then(|| keys.trust.clone()),
        rule_trials,
        waiting_rules: Some(Arc::new(WaitsOfDetection(waits.clone()))),
        followed_lanes: Some(Arc::new(LanesOfDetection(looks.clone()))),
        history_bus: Some(carrier.of(Part::History)),
        connections: carrier.connections(),
        ledgers_beside: ledgers.iter().filter(|(name, _)| *name != "control").map(|(_, ledger)| ledger.clone()).collect(),
        rule_set,
        ..ControlConfig::default()
    };
    let control = Control::start(
        control_config,
        store.clone(),
        control_ledger.clone(),
        bus.clone(),
        keys.control.clone(),
        receipt_ring.clone(),
        clock.clone(),
        applied,
    )
    .await
    .context("control")?;
    let behind = Behind {
        settled: Duration::from_secs(config.edge.confirm_after_s),
        keep_days: config.ledger.keep_days,
        clock: clock.clone(),
        meter: Arc::default(),
        is_over_servers: config.nats.is_used(),
    };
    let own_ledgers: Vec<JoinHandle<()>> = own_ledgers.into_iter().flat_map(|own| own.spawn(&control, &behind)).collect();
    let mut users = None;
    if !config.nats.users_file.as_os_str().is_empty() {
        let (file, named) = (config.nats.users_file.clone(), config.nats.role_nkeys.clone());
        crate::users::write(&file, &crate::users::of(&data, &named, &store).await?)?;
        users = Some(tokio::spawn(keep_users(control.clone(), store.clone(), data.clone(), named, file)));
    }
    let mut router = axum::Router::new();
    let (mut feed, mut calls) = (None, None);
    if let Some((mut follower, view, metrics)) = local
        && let Some((_, ledger)) = ledgers.iter().find(|(name, _)| *name == "edge")
    {
        let edge_config = EdgeConfig {
            max_body_bytes: config.edge.max_body_bytes,
            timestamp_skew_s: config.edge.timestamp_skew_s,
            commit_wait_ms: config.edge.commit_wait_ms,
            max_feed_age_s: config.edge.max_feed_age_s,
            ..EdgeConfig::new(&config.edge.id)
        };
        let edge = Edge::open(edge_config, view, ledger.clone(), control_ring.clone(), keys.trust, clock.clone(), metrics);
        let edge = edge.await.context("edge")?;
        router = router.merge(aegis_edge::router(edge.clone()));
        calls = Some(edge);
        follower.tell_with(ledger.clone(), &config.edge.id);
        feed = Some(follower);
    }

    let mut watching = WorkerConfig::new(clock.clone());
    watching.texts = Some(Arc::new(StoredRules(store.clone())));
    watching.control = control_ring;
    watching.waits = Some(waits);
    watching.looks = Some(looks);
    let runtime = tokio::runtime::Handle::current();
    watching.refused_records = Some(Arc::new(RefusedToControl { control: control.clone(), runtime }));
    if config.lake.enabled {
        watching.past = Some(Arc::new(PastInTheLake { section: config.lake.clone(), data: data.clone() }));
        watching.past_receipts = Some(Arc::new(LanesInHistory::new(control.clone(), receipt_ring.clone())));
        watching.warm_records = Some(Arc::new(WarmAsControl { key: keys.control.clone(), bus: bus.clone() }));
    }
    if config.nats.is_used() {
        watching.hold_ms = HOLD_MS;
        watching.missing = Some(control.clone());
    }
    let lateness_micros = watching.engine.lateness_s.saturating_mul(1_000_000);
    let worker = Worker::spawn(carrier.of(Part::Detect), receipt_ring.clone(), rules, clock.clone(), watching);
    let worker = worker.context("detection")?;
    let mut lake = None;
    if let Some(store) = lake_store {
        let keep_days = i64::try_from(config.lake.keep_days).unwrap_or(0);
        let writing = LakeConfig {
            flush_ms: config.lake.flush_s.saturating_mul(1000),
            lateness_micros,
            keep_micros: (keep_days > 0).then(|| keep_days.saturating_mul(MICROS_PER_DAY)),
            keepers: ledgers.iter().map(|(name, _)| (*name).to_owned()).collect(),
            missing: lake_lanes.is_some().then(|| control.clone() as Arc<dyn AskForMissing>),
            lanes: lake_lanes,
            ..LakeConfig::default()
        };
        let writer = LakeWorker::spawn(carrier.of(Part::Lake), store, receipt_ring, clock.clone(), writing);
        lake = Some(Arc::new(writer.context("the lake")?));
    } else {
        // What nobody writes is not kept for it.
        bus.forget_consumer(Stream::Ase, aegis_lake::CONSUMER).await.context("bus")?;
    }
    let containments = Arc::new(Containments(control.clone()));
    let responder = Responder::spawn(carrier.of(Part::Respond), store.clone(), containments, clock.clone());
    let ingest = IngestState::new(Arc::new(StoredSecrets(store.clone())), carrier.of(Part::Ingest), clock.clone())
        .with_max_body_bytes(config.ingest.max_body_bytes)
        .with_resources(Arc::new(RepositoryRegistry(control.clone())));

    control.metrics().register(&mut registry);
    let peers = Peers::new(config.connections_per_peer, &mut registry);
    let worker = Arc::new(worker);
    let ledgers: Vec<Ledger> = ledgers.into_iter().map(|(_, ledger)| ledger).collect();
    let carried = Carried { bus, connections: carrier.connections() };
    let exposition = Exposition::new(registry, carried, ledgers.clone(), behind.meter, worker.clone(), lake.clone());
    let router = router
        .merge(aegis_ingest::router(ingest))
        .merge(exposition.router())
        .merge(aegis_control::router(control.clone()))
        // Control's fallbacks hold for its own paths only; a path of another part gets the same answer to a wrong method.
        .method_not_allowed_fallback(method_not_allowed);
    let listener = TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr().context("no local address")?;
    let (stop_serving, stopped) = watch::channel(false);
    let server = tokio::spawn(serve(listener, peers, calls, router, stopped));
    Ok(Running {
        address,
        data,
        stop_serving,
        server,
        feed,
        users,
        room,
        control,
        worker,
        responder,
        lake,
        ledgers,
        own_ledgers,
        shippers,
        store,
    })
}

impl Running {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Ends in the order of the data: no new requests, lanes closed, the outbox drained, then the consumers.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let _nobody_listens = self.stop_serving.send(true);
        self.server.await.context("the server ended badly")?;
        if let Some(feed) = self.feed {
            feed.stop();
        }
        for task in [self.users, self.room].into_iter().flatten().chain(self.own_ledgers) {
            task.abort();
        }
        self.responder.stop().await;
        self.control.stop().await;
        for ledger in &self.ledgers {
            ledger.close().await.context("a ledger could not be closed; its lanes get a gap receipt at the next start")?;
        }
        for shipper in self.shippers {
            if tokio::time::timeout(SHIP_DRAIN, shipper.stop()).await.is_err() {
                tracing::warn!("not everything was shipped; the rest follows at the next start");
            }
        }
        if let Some(worker) = Arc::into_inner(self.worker) {
            worker.stop().await;
        }
        if let Some(lake) = self.lake.and_then(Arc::into_inner) {
            lake.stop().await;
        }
        Ok(())
    }
}

/// The keys of one data folder.
struct Keys {
    control: SigningKey,
    edge: SigningKey,
    trust: TrustTokenKey,
}

impl Keys {
    fn load(data: &Path) -> anyhow::Result<Self> {
        let folder = data.join("keys");
        make_private_folder(&folder)?;
        let keys = Self {
            control: SigningKey::load_or_create(&folder.join("control.key"))?,
            edge: SigningKey::load_or_create(&folder.join("edge.key"))?,
            trust: TrustTokenKey::load_or_create(&folder.join("trust.key"))?,
        };
        for (name, key) in [("control.pub", &keys.control), ("edge.pub", &keys.edge)] {
            write_public_key(&folder, name, key)?;
        }
        Ok(keys)
    }
}

/// Writes the NATS server's users again whenever an edge has enrolled.
async fn keep_users(control: Arc<Control>, store: Store, data: PathBuf, named: PathBuf, file: PathBuf) {
    loop {
        control.edge_enrolled().await;
        let written = match crate::users::of(&data, &named, &store).await {
            Ok(text) => crate::users::write(&file, &text),
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => {
                tracing::info!(file = %file.display(), "the NATS server's users were written; it takes them when it is reloaded")
            }
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "the NATS server's users cannot be written; `aegis streams users` does it too"
            ),
        }
    }
}

fn read_rules(folder: &Path) -> anyhow::Result<RuleSet> {
    if folder.as_os_str().is_empty() {
        return RuleSet::shipped().context("the shipped rules");
    }
    RuleSet::load_dir(folder).with_context(|| format!("the rules in {}", folder.display()))
}

async fn method_not_allowed() -> axum::response::Response {
    use axum::http::{StatusCode, header};
    use axum::response::IntoResponse;
    let body = r#"{"error":{"code":"method_not_allowed","message":"this path does not take that method"}}"#;
    (StatusCode::METHOD_NOT_ALLOWED, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
