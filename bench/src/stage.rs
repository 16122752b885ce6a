//! What the measurements over NATS run on: a server, a control plane and edges of their own, all on this machine.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::instance::{Aegis, Server, data_folder, program};

/// A NATS server on loopback, with the users and accounts that `aegis streams users` writes; without TLS.
pub(crate) struct Nats {
    process: Option<Child>,
    folder: tempfile::TempDir,
    port: u16,
}

impl Nats {
    /// Does not run before somebody has written its users.
    fn new() -> anyhow::Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self { process: None, folder: data_folder()?, port })
    }

    fn users(&self) -> PathBuf {
        self.folder.path().join("users.conf")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
        let cache = std::env::var_os("AEGIS_CACHE").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/aegis"))).context("no HOME")?;
        let program = cache.join("bin/nats-server");
        let configuration = self.folder.path().join("server.conf");
        let store = self.folder.path().join("jetstream");
        let text = format!(
            "listen: \"127.0.0.1:{}\"\njetstream {{ store_dir: \"{}\" }}\ninclude \"users.conf\"\n",
            self.port,
            store.display()
        );
        std::fs::write(&configuration, text)?;
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let process = Command::new(&program).arg("-c").arg(&configuration).stdout(Stdio::null()).stderr(log).spawn();
        self.process = Some(process.with_context(|| format!("cannot start {}; run scripts/setup.sh", program.display()))?);
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        bail!("nats-server does not listen")
    }

    /// Has it read its users again.
    fn reload(&self) -> anyhow::Result<()> {
        let reloads = || Ok::<_, std::io::Error>(std::fs::read_to_string(self.log())?.matches("Reloaded").count());
        let before = reloads()?;
        signal(self.id(), "HUP")?;
        for _ in 0..200 {
            if reloads()? > before {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        bail!("nats-server does not read its users again; {}", self.log().display())
    }

    /// Waits until control has written these edges among the users.
    fn wait_for_users(&self, edges: &[String]) -> anyhow::Result<()> {
        for _ in 0..400 {
            let written = std::fs::read_to_string(self.users())?;
            if edges.iter().all(|edge| written.contains(&format!("# {edge}:"))) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        bail!("control does not write the edges into {}", self.users().display())
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
        let mut nats = Nats::new()?;
        let folder = data_folder()?;
        streams(&["users", "--write"], &nats.users(), folder.path())?;
        nats.run()?;
        streams(&["apply", "--max-bytes", "ASE=32GiB", "--nats"], Path::new(&nats.url()), folder.path())?;
        let users = nats.users();
        let control =
            Aegis::start_in(folder, "control", &["--nats", &nats.url()], &[("AEGIS_NATS_USERS_FILE", users.as_path())]).await?;
        let ids: Vec<String> = (0..edges).map(|n| format!("bench-{n}")).collect();
        let folders = ids.iter().map(|id| enroll(&control, id)).collect::<anyhow::Result<Vec<_>>>()?;
        nats.wait_for_users(&ids)?;
        // What new accounts import, beyond those that were spare, is wired by the second reload alone.
        nats.reload()?;
        nats.reload()?;
        let edges = folders.into_iter().map(|folder| Edge::start(&nats, folder)).collect::<anyhow::Result<_>>()?;
        Ok(Self { nats, control, edges })
    }
}

/// `aegis streams`, of which the last word is `last`, for the control plane of this folder.
fn streams(words: &[&str], last: &Path, data: &Path) -> anyhow::Result<()> {
    let done = Command::new(program()?).arg("streams").args(words).arg(last).arg("--data").arg(data).output();
    let done = done.context("aegis streams")?;
    if !done.status.success() {
        bail!("aegis streams {}: {}", words[0], String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}

impl Edge {
    fn start(nats: &Nats, folder: tempfile::TempDir) -> anyhow::Result<Self> {
        let mut command = Command::new(program()?);
        command.args(["edge", "--listen", "127.0.0.1:0", "--nats", &nats.url(), "--data"]).arg(folder.path());
        Ok(Self { server: Server::start(command.env("AEGIS_LOG", "error"))?, _folder: folder })
    }

    /// Receipts that the edge has not shipped.
    pub(crate) async fn backlog(&self) -> anyhow::Result<f64> {
        self.server.metric("ase_spool_backlog").await
    }
}

/// The data folder of an edge that control knows from now on.
fn enroll(control: &Aegis, edge_id: &str) -> anyhow::Result<tempfile::TempDir> {
    let folder = data_folder()?;
    let invited = Command::new(program()?)
        .args(["edge", "invite", "--id", edge_id, "--tenant", "bench", "--data"])
        .arg(control.folder.path())
        .output()
        .context("aegis edge invite")?;
    let url = format!("http://{}", control.server.address);
    let mut command = Command::new(program()?);
    command.args(["edge", "enroll", "--control", &url, "--data"]).arg(folder.path());
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("aegis edge enroll")?;
    if let Some(mut stdin) = process.stdin.take() {
        std::io::Write::write_all(&mut stdin, &invited.stdout)?;
    }
    if !process.wait()?.success() {
        bail!("the edge could not be enrolled: {}", String::from_utf8_lossy(&invited.stderr));
    }
    Ok(folder)
}
