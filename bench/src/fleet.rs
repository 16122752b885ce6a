//! An edge of its own over NATS, all on this machine: authorize while NATS and control work, while control stands still, while NATS does, and
//! while there is none. The edge must not notice; what it notices here is who else uses the same cores.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::time::Instant;

use crate::instance::{Aegis, Server, authorize_body, data_folder, program};
use crate::load::{Plan, Target, latencies, percentile, throughput};
use crate::story::Round;

/// What stands behind the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Behind {
    /// NATS and control, with detection and history.
    All,
    /// NATS alone: control stands still.
    Nats,
    /// NATS stands still.
    Stopped,
    /// No NATS at all.
    Nothing,
}

const STATES: [(Behind, &str); 4] = [
    (Behind::All, "NATS and control work"),
    (Behind::Nats, "control stands still"),
    (Behind::Stopped, "NATS stands still too"),
    (Behind::Nothing, "NATS is gone"),
];

/// All rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Fleet {
    rate: f64,
    echo: Vec<Round>,
    mutating: Vec<(Behind, Vec<Round>)>,
    read: Vec<(Behind, Vec<Round>)>,
    /// After each round: receipts that waited in the edge's ledger, and how many of them reached NATS each second once it was back.
    drained: Vec<(f64, f64)>,
}

/// A NATS server on loopback.
struct Nats {
    process: Option<Child>,
    folder: tempfile::TempDir,
    port: u16,
}

impl Nats {
    fn start() -> anyhow::Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut nats = Self { process: None, folder: data_folder()?, port };
        nats.run()?;
        Ok(nats)
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let cache = std::env::var_os("AEGIS_CACHE").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/aegis"))).context("no HOME")?;
        let program = cache.join("bin/nats-server");
        let mut command = Command::new(&program);
        command.args(["-a", "127.0.0.1", "-p", &self.port.to_string(), "-js", "-sd"]).arg(self.folder.path());
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.process = Some(process.with_context(|| format!("cannot start {}; run scripts/setup.sh", program.display()))?);
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        bail!("nats-server does not listen")
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _gone_already = process.kill();
            let _reaped = process.wait();
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.end();
    }
}

/// `SIGSTOP` or `SIGCONT`.
fn signal(process: u32, name: &str) -> anyhow::Result<()> {
    let done = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().context("kill")?;
    if done.success() { Ok(()) } else { bail!("process {process} takes no {name}") }
}

/// Everything that runs.
struct Running {
    nats: Nats,
    control: Aegis,
    edge: Server,
    _edge_folder: tempfile::TempDir,
}

impl Running {
    async fn start() -> anyhow::Result<Self> {
        let nats = Nats::start()?;
        let applied = Command::new(program()?)
            .args(["streams", "apply", "--nats", &nats.url(), "--max-bytes", "ASE=32GiB"])
            .output()
            .context("aegis streams apply")?;
        if !applied.status.success() {
            bail!("aegis streams apply: {}", String::from_utf8_lossy(&applied.stderr));
        }
        let control = Aegis::start_as("control", &["--nats", &nats.url()]).await?;
        let folder = data_folder()?;
        enroll(&control, folder.path())?;
        let mut command = Command::new(program()?);
        command.args(["edge", "--listen", "127.0.0.1:0", "--nats", &nats.url(), "--data"]).arg(folder.path());
        let edge = Server::start(command.env("AEGIS_LOG", "error"))?;
        Ok(Self { nats, control, edge, _edge_folder: folder })
    }

    /// Brings what stands behind the edge from everything to `behind`.
    fn reduce_to(&mut self, behind: Behind) -> anyhow::Result<()> {
        match behind {
            Behind::All => Ok(()),
            Behind::Nats => signal(self.control.server.id(), "STOP"),
            Behind::Stopped => signal(self.nats.process.as_ref().map_or(0, Child::id), "STOP"),
            Behind::Nothing => {
                self.nats.end();
                Ok(())
            }
        }
    }

    /// Everything works again, and has caught up; how many receipts waited, and how many a second were shipped.
    async fn restore(&mut self) -> anyhow::Result<(f64, f64)> {
        let waiting = self.backlog().await?;
        self.nats.run()?;
        let started = Instant::now();
        while self.backlog().await? > 0.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let per_second = waiting / started.elapsed().as_secs_f64();
        signal(self.control.server.id(), "CONT")?;
        self.control.server.settle().await?;
        self.edge.settle().await?;
        Ok((waiting, per_second))
    }

    /// Receipts that the edge has not shipped.
    async fn backlog(&self) -> anyhow::Result<f64> {
        let mut connection = crate::load::Connection::open(self.edge.address).await?;
        let (_, body) = connection.call("GET", "/metrics", "", bytes::Bytes::new()).await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("ase_spool_backlog "));
        line.and_then(|number| number.trim().parse().ok()).context("the edge names no backlog")
    }
}

fn enroll(control: &Aegis, folder: &Path) -> anyhow::Result<()> {
    let invited = Command::new(program()?)
        .args(["edge", "invite", "--id", "bench", "--tenant", "bench", "--data"])
        .arg(control.folder.path())
        .output()
        .context("aegis edge invite")?;
    let url = format!("http://{}", control.server.address);
    let mut command = Command::new(program()?);
    command.args(["edge", "enroll", "--control", &url, "--data"]).arg(folder);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("aegis edge enroll")?;
    if let Some(mut stdin) = process.stdin.take() {
        std::io::Write::write_all(&mut stdin, &invited.stdout)?;
    }
    if !process.wait()?.success() {
        bail!("the edge could not be enrolled: {}", String::from_utf8_lossy(&invited.stderr));
    }
    Ok(())
}

pub(crate) async fn measure(plan: &Plan) -> anyhow::Result<Fleet> {
    let echo_server = Server::echo()?;
    let mut running = Running::start().await?;
    let (_, token) = running.control.agent("bench-agent").await?;
    let target = |address, action: &str, mutates, expect| Target {
        address,
        token: token.clone(),
        body: authorize_body(action, mutates, "trusted_internal_unsigned"),
        expect,
    };
    let echo = target(echo_server.address, "update_note", true, "update_note");
    let mutating = target(running.edge.address, "update_note", true, "\"decision\":\"allow\"");
    let read = target(running.edge.address, "read_note", false, "\"decision\":\"allow\"");
    throughput(&Plan { duration: Duration::from_secs(1), ..plan.clone() }, &mutating).await?;

    let mut most: Vec<[f64; 9]> = Vec::new();
    let mut drained = Vec::new();
    for _ in 0..plan.rounds {
        let mut round = [0.0; 9];
        round[8] = throughput(plan, &echo).await?;
        for (place, (behind, _)) in STATES.into_iter().enumerate() {
            running.reduce_to(behind)?;
            round[2 * place] = throughput(plan, &mutating).await?;
            running.edge.settle().await?;
            round[2 * place + 1] = throughput(plan, &read).await?;
            running.edge.settle().await?;
        }
        most.push(round);
        drained.push(running.restore().await?);
    }
    let mut of_all: Vec<f64> = most.iter().map(|round| round[0]).collect();
    of_all.sort_by(f64::total_cmp);
    let rate = percentile(&of_all, 0.5) / 2.0;
    let mut fleet = Fleet { rate, echo: Vec::new(), mutating: Vec::new(), read: Vec::new(), drained };
    fleet.mutating = STATES.map(|(behind, _)| (behind, Vec::new())).into();
    fleet.read = STATES.map(|(behind, _)| (behind, Vec::new())).into();
    for round in &most {
        fleet.echo.push(taken(plan, &echo, rate, round[8]).await?);
        for (place, (behind, _)) in STATES.into_iter().enumerate() {
            running.reduce_to(behind)?;
            fleet.mutating[place].1.push(taken(plan, &mutating, rate, round[2 * place]).await?);
            running.edge.settle().await?;
            fleet.read[place].1.push(taken(plan, &read, rate, round[2 * place + 1]).await?);
            running.edge.settle().await?;
        }
        fleet.drained.push(running.restore().await?);
    }
    Ok(fleet)
}

async fn taken(plan: &Plan, target: &Target, rate: f64, per_second: f64) -> anyhow::Result<Round> {
    let taken = latencies(plan, target, rate).await?;
    let at = |share| percentile(&taken, share);
    Ok(Round { per_second, p50_us: at(0.50), p95_us: at(0.95), p99_us: at(0.99) })
}

impl Fleet {
    /// Name and rounds of each subject, the echo first.
    pub(crate) fn subjects(&self) -> Vec<(String, &Vec<Round>)> {
        let named = |kind: &str, place: usize| format!("{kind}, {}", STATES[place].1);
        let mutating = self.mutating.iter().enumerate().map(|(place, (_, rounds))| (named("mutating", place), rounds));
        let read = self.read.iter().enumerate().map(|(place, (_, rounds))| (named("read", place), rounds));
        std::iter::once(("echo".to_owned(), &self.echo)).chain(mutating).chain(read).collect()
    }

    pub(crate) const fn rate(&self) -> f64 {
        self.rate
    }

    pub(crate) fn drained(&self) -> &[(f64, f64)] {
        &self.drained
    }
}
