//! What carries events and state: a file of the process, or NATS servers, where each role has a user and a connection of its own. Promises that a role
//! gets no more than its own user may, where it has one, and that a start without one of them says so.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::users::{Part, inbox_prefix};
use aegis_bus::{Bus, BusError, EmbeddedBus, EmbeddedLimits, JetStreamBus, Keeper, Stream};
use aegis_ledger::Ledger;
use aegis_model::Clock;
use aegis_shipper::{LedgerKeeper, Shipper, ShipperConfig};
use anyhow::{Context, bail};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::config::Config;
use crate::nats::NatsSection;

/// How long a start waits for a NATS server that does not answer, and how long between two tries.
const START_PATIENCE: Duration = Duration::from_secs(30);
const START_PAUSE: Duration = Duration::from_secs(1);

/// How long it waits for the server to let in the roles, behind control: one that does not know them never does.
const ROLES_PATIENCE: Duration = Duration::from_secs(10);
const ROLES_LOOK: Duration = Duration::from_millis(20);

/// How often it is seen whether a stream that roles read is nearly full.
const ROOM_EVERY: Duration = Duration::from_secs(5);

/// A file of this process, or servers.
pub(crate) enum Carrier {
    File(Arc<EmbeddedBus>),
    /// `parts`: what has a user of its own. Without any, all are control's user.
    Nats {
        control: Arc<JetStreamBus>,
        parts: BTreeMap<Part, Arc<JetStreamBus>>,
    },
}

impl Carrier {
    pub(crate) async fn open(config: &Config, data: &Path, clock: &Arc<dyn Clock>) -> anyhow::Result<Self> {
        if config.nats.is_used() {
            return over_nats(&config.nats, data).await.with_context(|| format!("NATS at {}", config.nats.servers));
        }
        let mut limits = EmbeddedLimits::default();
        limits.streams[0].max_bytes = config.bus.max_stream_bytes;
        Ok(Self::File(EmbeddedBus::open(&data.join("bus.db"), limits, clock.clone()).await.context("bus")?))
    }

    /// The bus as control has it, and the edge that is in its process.
    pub(crate) fn control(&self) -> Arc<dyn Bus> {
        match self {
            Self::File(bus) => bus.clone(),
            Self::Nats { control, .. } => control.clone(),
        }
    }

    /// The bus as a part has it.
    pub(crate) fn of(&self, part: Part) -> Arc<dyn Bus> {
        if let Self::Nats { parts, .. } = self
            && let Some(bus) = parts.get(&part)
        {
            return bus.clone();
        }
        self.control()
    }

    /// The connections by whose they are; none of a file.
    pub(crate) fn connections(&self) -> Vec<(&'static str, Arc<dyn Bus>)> {
        let Self::Nats { parts, .. } = self else { return Vec::new() };
        let parts = parts.keys().map(|part| (part.as_str(), self.of(*part)));
        [("control", self.control())].into_iter().chain(parts).collect()
    }

    /// Makes room in the streams that parts read, none of which may; nothing to do where whoever moves on does it.
    pub(crate) fn make_room(&self) -> Option<JoinHandle<()>> {
        match self {
            Self::Nats { control, parts } if !parts.is_empty() => Some(tokio::spawn(make_room(control.clone()))),
            Self::Nats { .. } | Self::File(_) => None,
        }
    }

    /// A ledger as the history of this machine reads it: over servers what it named when the bus was a file, and no more.
    pub(crate) fn keeper_of_history(&self, ledger: &Ledger) -> Arc<dyn Keeper> {
        match self {
            Self::File(_) => keeper(ledger),
            Self::Nats { .. } => Arc::new(LedgerKeeper::of_earlier(ledger.clone())),
        }
    }

    /// Ships what a ledger seals. Where the bus is a file of this process, an event stands on the disk once: bus and history read it from
    /// the ledger when somebody asks for it later.
    pub(crate) async fn ship(&self, name: &str, ledger: &Ledger) -> anyhow::Result<Shipper> {
        let mut config = ShipperConfig::default();
        if let Self::File(bus) = self {
            config.kept_to = bus.keep_with(name, keeper(ledger)).await.with_context(|| format!("the {name} ledger"))?;
            config.kept_as = Some(name.into());
        }
        Shipper::spawn(ledger.clone(), self.control(), config).context("shipping")
    }
}

fn keeper(ledger: &Ledger) -> Arc<dyn Keeper> {
    Arc::new(LedgerKeeper::new(ledger.clone()))
}

async fn over_nats(section: &NatsSection, data: &Path) -> anyhow::Result<Carrier> {
    let mut section = section.clone();
    let nkey_file = crate::users::control_nkey_file(data);
    if nkey_file.exists() {
        section.log_in_as("control", nkey_file);
    }
    let files = crate::users::part_nkey_files(&section.role_nkeys, data)?;
    if files.is_empty() && !section.nkey_file.as_os_str().is_empty() {
        tracing::warn!(
            "control, detection, response, history, ingest and the lake are one NATS user: `aegis streams users --data {}` makes a login for each",
            data.display()
        );
    }
    let options = section.options(if files.is_empty() { "aegis-up" } else { "aegis-control" })?;
    let control = JetStreamBus::connect(&options).await?;
    wait_for_streams(&control).await?;
    let mut parts = BTreeMap::new();
    for (part, nkey_file) in files {
        let of_part = NatsSection { nkey_file, inbox_prefix: inbox_prefix(part.user()), ..section.clone() };
        let mut options = of_part.options(&format!("aegis-{}", part.as_str()))?;
        options.makes_room = false;
        parts.insert(part, control.connect_beside(&options).await?);
    }
    wait_for_parts(&parts, data).await?;
    Ok(Carrier::Nats { control, parts })
}

/// A server that cannot be reached, or has no streams, is told of now and not by every part in its own way. One that is starting, or whose
/// streams have no leader yet, is waited for.
async fn wait_for_streams(bus: &JetStreamBus) -> Result<(), BusError> {
    let give_up = Instant::now() + START_PATIENCE;
    loop {
        match bus.last_seq(Stream::Ase).await {
            Err(error @ BusError::Unavailable { .. }) if Instant::now() < give_up => {
                tracing::warn!(%error, "waiting for NATS");
                sleep(START_PAUSE).await;
            }
            answered => return answered.map(drop),
        }
    }
}

/// A server that lets in control and not the others has users of before, and each of them would stand still in its own way.
async fn wait_for_parts(parts: &BTreeMap<Part, Arc<JetStreamBus>>, data: &Path) -> anyhow::Result<()> {
    let give_up = Instant::now() + ROLES_PATIENCE;
    loop {
        let outside: Vec<&str> = parts.iter().filter(|(_, bus)| !bus.is_connected()).map(|(part, _)| part.as_str()).collect();
        if outside.is_empty() {
            return Ok(());
        }
        if Instant::now() >= give_up {
            bail!(
                "the server lets in control, and not its roles {}: it has not read their users. Write them where it reads them (`aegis streams users --data {} \
                 --write FILE`), restart it or reload it twice, and start again",
                outside.join(", "),
                data.display()
            );
        }
        sleep(ROLES_LOOK).await;
    }
}

async fn make_room(control: Arc<JetStreamBus>) {
    loop {
        if control.is_connected() {
            for stream in [Stream::Ase, Stream::Alerts] {
                control.make_room(stream).await;
            }
        }
        sleep(ROOM_EVERY).await;
    }
}
