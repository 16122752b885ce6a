//! What the measurements over NATS run on: a server, a control plane and edges of their own, all on this machine.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::instance::{Aegis, Server, data_folder, program};

/// A NATS server on loopback.
pub(crate) struct Nats {
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

    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
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

    /// Its process id; 0 while it does not run.
    pub(crate) fn id(&self) -> u32 {
        self.process.as_ref().map_or(0, Child::id)
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn end(&mut self) {
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
pub(crate) fn signal(process: u32, name: &str) -> anyhow::Result<()> {
    let done = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().context("kill")?;
    if done.success() { Ok(()) } else { bail!("process {process} takes no {name}") }
}

/// Puts a process, all its threads and those to come on one core.
pub(crate) fn pin(process: u32, core: u32) -> anyhow::Result<()> {
    let mut command = Command::new("taskset");
    command.args(["--all-tasks", "--cpu-list", "--pid", &core.to_string(), &process.to_string()]);
    let done = command.stdout(Stdio::null()).status().context("taskset")?;
    if done.success() { Ok(()) } else { bail!("process {process} cannot be put on core {core}") }
}

/// Everything that runs.
pub(crate) struct Stage {
    pub(crate) nats: Nats,
    pub(crate) control: Aegis,
    pub(crate) edges: Vec<Edge>,
}

/// An edge, with its data folder.
pub(crate) struct Edge {
    pub(crate) server: Server,
    _folder: tempfile::TempDir,
}

impl Stage {
    pub(crate) async fn start(edges: usize) -> anyhow::Result<Self> {
        let nats = Nats::start()?;
        let applied = Command::new(program()?)
            .args(["streams", "apply", "--nats", &nats.url(), "--max-bytes", "ASE=32GiB"])
            .output()
            .context("aegis streams apply")?;
        if !applied.status.success() {
            bail!("aegis streams apply: {}", String::from_utf8_lossy(&applied.stderr));
        }
        let control = Aegis::start_as("control", &["--nats", &nats.url()]).await?;
        let edges = (0..edges).map(|n| Edge::start(&nats, &control, &format!("bench-{n}"))).collect::<anyhow::Result<_>>()?;
        Ok(Self { nats, control, edges })
    }
}

impl Edge {
    fn start(nats: &Nats, control: &Aegis, edge_id: &str) -> anyhow::Result<Self> {
        let folder = data_folder()?;
        enroll(control, edge_id, folder.path())?;
        let mut command = Command::new(program()?);
        command.args(["edge", "--listen", "127.0.0.1:0", "--nats", &nats.url(), "--data"]).arg(folder.path());
        Ok(Self { server: Server::start(command.env("AEGIS_LOG", "error"))?, _folder: folder })
    }

    /// Receipts that the edge has not shipped.
    pub(crate) async fn backlog(&self) -> anyhow::Result<f64> {
        self.server.metric("ase_spool_backlog").await
    }
}

fn enroll(control: &Aegis, edge_id: &str, folder: &Path) -> anyhow::Result<()> {
    let invited = Command::new(program()?)
        .args(["edge", "invite", "--id", edge_id, "--tenant", "bench", "--data"])
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
