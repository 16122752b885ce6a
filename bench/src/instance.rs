//! Server processes of the benchmark: started on a free port, stopped when dropped.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::load::Connection;

/// How long the server must be quiet to count as settled.
const SETTLE_STEP: Duration = Duration::from_millis(250);

/// A server that is busy for longer after a load does not keep up.
const SETTLE_MOST: Duration = Duration::from_secs(120);

/// A server process.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// Held open, so that what the server says later finds a reader.
    _output: BufReader<ChildStdout>,
}

impl Server {
    /// Starts `command`, whose first line of output ends with its address.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {command:?}"))?;
        let stdout = child.stdout.take().context("no output")?;
        let mut line = String::new();
        let mut output = BufReader::new(stdout);
        output.read_line(&mut line)?;
        let Some(address) = line.trim().rsplit("http://").next().and_then(|a| a.parse().ok()) else {
            bail!("{command:?} said `{}` instead of an address", line.trim());
        };
        Ok(Self { child, address, _output: output })
    }

    /// The bare echo.
    pub(crate) fn echo() -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("where is this program?")?);
        command.arg("echo");
        Self::start(&mut command)
    }

    /// The echo that syncs a file before it answers; with the folder of that file, on the disk where the ledger would be.
    pub(crate) fn durable_echo() -> anyhow::Result<(Self, tempfile::TempDir)> {
        let folder = data_folder()?;
        let mut command = Command::new(std::env::current_exe().context("where is this program?")?);
        command.args(["echo", "--durable"]).arg(folder.path().join("bodies"));
        Ok((Self::start(&mut command)?, folder))
    }
}

impl Server {
    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the server has worked off what it was given (it uses less than a twentieth of a core); how long that took.
    pub(crate) async fn settle(&self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        loop {
            let before = self.cpu_ticks()?;
            tokio::time::sleep(SETTLE_STEP).await;
            if self.cpu_ticks()? - before <= 1 {
                return Ok(started.elapsed().saturating_sub(SETTLE_STEP));
            }
            if started.elapsed() > SETTLE_MOST {
                bail!("the server is still busy {} s after the load ended", SETTLE_MOST.as_secs());
            }
        }
    }

    /// What `/metrics` says of a metric, over all its labels.
    pub(crate) async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let mut connection = Connection::open(self.address).await?;
        let (_, body) = connection.call("GET", "/metrics", "", bytes::Bytes::new()).await?;
        let text = String::from_utf8_lossy(&body);
        let of_it =
            text.lines().filter_map(|line| line.rsplit_once(' ')).filter(|(series, _)| series.split('{').next() == Some(name));
        let values = of_it.map(|(_, value)| value.parse()).collect::<Result<Vec<f64>, _>>()?;
        if values.is_empty() {
            bail!("{} names no {name}", self.address);
        }
        Ok(values.into_iter().sum())
    }

    /// CPU time used so far, to ten milliseconds.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        Ok(Duration::from_millis(10 * self.cpu_ticks()?))
    }

    /// CPU time used so far, in ticks of 10 ms: user and system time of `/proc/<pid>/stat`.
    fn cpu_ticks(&self) -> anyhow::Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).context("the server is gone")?;
        let (_, fields) = stat.rsplit_once(')').context("no /proc stat")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// `aegis up` on a temporary folder, with one tenant set up.
#[derive(Debug)]
pub(crate) struct Aegis {
    pub(crate) server: Server,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) registrar: String,
    pub(crate) auditor: String,
}

/// On a real disk: a receipt is durable when fsync says so, and tmpfs would flatter.
pub(crate) fn data_folder() -> anyhow::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("aegis-bench-").tempdir_in(".").context("cannot make a folder here")
}

/// The program, beside this one.
pub(crate) fn program() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("where is this program?")?.with_file_name("aegis");
    if !path.exists() {
        bail!("{} is missing; run: cargo build --release", path.display());
    }
    Ok(path)
}

impl Aegis {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::start_in(data_folder()?, "up", &[], &[]).await
    }

    /// As one of the program's roles that have a control plane, in this folder.
    pub(crate) async fn start_in(
        folder: tempfile::TempDir,
        role: &str,
        more: &[&str],
        variables: &[(&str, &Path)],
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(program()?);
        command.args([role, "--listen", "127.0.0.1:0"]).args(more).arg("--data").arg(folder.path()).env("AEGIS_LOG", "error");
        command.envs(variables.iter().copied());
        let server = Server::start(&mut command)?;
        let registrar = create_key(folder.path(), "registrar")?;
        let auditor = create_key(folder.path(), "auditor")?;
        let aegis = Self { server, folder, registrar, auditor };
        let tool = json!({
            "tool": "crm", "name": "CRM", "default_risk": "low",
            "actions": [
                {"action": "read_note", "risk": "low", "mutates_state": false, "approval_required": false, "default_decision": "policy"},
                {"action": "update_note", "risk": "medium", "mutates_state": true, "approval_required": false, "default_decision": "policy"},
            ]
        });
        aegis.send("POST", "/v1/tools", &aegis.registrar, &tool).await?;
        // The hourly cap on automatic freezes would end the storms early, and one agent sends more than the default rate.
        let admin = create_key(aegis.folder.path(), "admin")?;
        aegis
            .send(
                "PUT",
                "/v1/settings",
                &admin,
                &json!({"automatic_freezes_per_hour": 100_000, "agent_rate_per_s": 1_000_000, "tenant_rate_per_s": 1_000_000}),
            )
            .await?;
        Ok(aegis)
    }

    /// Registers an agent; its id and token.
    pub(crate) async fn agent(&self, key: &str) -> anyhow::Result<(String, String)> {
        let body = json!({"agent_key": key, "name": key, "environment": "production", "risk_tier": "low"});
        let reply = self.send("POST", "/v1/agents/register", &self.registrar, &body).await?;
        let field = |name: &str| reply[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {reply}"));
        Ok((field("id")?, field("agent_token")?))
    }

    async fn send(&self, method: &str, path: &str, key: &str, body: &Value) -> anyhow::Result<Value> {
        let mut connection = Connection::open(self.server.address).await?;
        let (status, reply) = connection.call(method, path, key, body.to_string().into()).await?;
        let text = String::from_utf8_lossy(&reply).into_owned();
        if !(200..300).contains(&status) {
            bail!("{method} {path}: {status} {text}");
        }
        serde_json::from_str(&text).with_context(|| format!("{method} {path}: no JSON"))
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let mut connection = Connection::open(self.server.address).await?;
        let (status, reply) = connection.call("GET", path, &self.auditor, bytes::Bytes::new()).await?;
        if status != 200 {
            bail!("GET {path}: {status}");
        }
        serde_json::from_slice(&reply).with_context(|| format!("GET {path}: no JSON"))
    }
}

fn create_key(data: &Path, role: &str) -> anyhow::Result<String> {
    let output = Command::new(program()?)
        .args(["keys", "create", "--tenant", "bench", "--role", role, "--name", "bench", "--json", "--data"])
        .arg(data)
        .output()
        .context("cannot run aegis keys create")?;
    let reply: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("aegis keys create: {}", String::from_utf8_lossy(&output.stderr)))?;
    reply["key"].as_str().map(str::to_owned).context("aegis keys create printed no key")
}

/// An authorize body of about half a kilobyte, as an SDK sends it.
pub(crate) fn authorize_body(action: &str, mutates_state: bool, source_trust: &str) -> bytes::Bytes {
    json!({
        "agent": {"id": "bench-agent", "environment": "production"},
        "user": {"id": "u-4711", "role": "support"},
        "tool_call": {
            "tool": "crm", "action": action, "resource": "customer/4711", "mutates_state": mutates_state,
            "parameters": {"note": "The customer asked for a copy of the March invoice; sent to the address on file.", "priority": 3, "tags": ["billing", "invoice"]}
        },
        "context": {"source_trust": source_trust},
        "trace": {"run_id": "run-2026-11-22-0001", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
    })
    .to_string()
    .into()
}
