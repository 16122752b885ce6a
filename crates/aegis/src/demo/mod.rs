//! `aegis demo`: a confused-deputy attack against a fresh instance, played through the real HTTP API.
//! Every claim it prints is a check on what the server answered; its exit code says whether all held.
#![allow(clippy::print_stdout)]

mod evidence;
mod setup;
mod story;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::client::Client;
use crate::config::Config;

/// How long the demo waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The checks so far, and how they are shown.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    passed: u32,
    failed: u32,
    colour: bool,
}

impl Checks {
    fn step(&self, number: u32, title: &str) {
        println!("\n{}", self.paint("1", &format!("{number}. {title}")));
    }

    fn note(&self, text: &str) {
        println!("   {}", self.paint("2", text));
    }

    /// One claim and what proves it.
    fn check(&mut self, claim: &str, holds: bool, proof: &str) {
        let (mark, colour) = if holds { ("ok  ", "32") } else { ("FAIL", "31;1") };
        if holds {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
        println!("   {} {claim}\n        {}", self.paint(colour, mark), self.paint("2", proof));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// What every step works with.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) api: Client,
    pub(crate) checks: Checks,
    pub(crate) keys: setup::ApiKeys,
    pub(crate) agent_token: String,
    pub(crate) folder: PathBuf,
    /// What the agent was denied, in its order.
    pub(crate) denies: Vec<story::Deny>,
}

/// Plays the story; returns how many checks failed.
pub(crate) async fn play(keep: Option<PathBuf>) -> anyhow::Result<u32> {
    use std::io::IsTerminal;
    let temporary = tempfile::Builder::new().prefix("aegis-demo-").tempdir().context("cannot make a temporary folder")?;
    let folder = keep.unwrap_or_else(|| temporary.path().to_owned());
    let config = Config { listen: ([127, 0, 0, 1], 0).into(), data: folder.clone(), ..Config::default() };
    let running = crate::up::start(config, crate::up::Role::Whole).await.context("the demo instance does not start")?;
    let checks = Checks { colour: std::io::stdout().is_terminal(), ..Checks::default() };
    println!("{}", checks.paint("1", "AegisAgent demo: an injected instruction, and what becomes of it"));
    println!(
        "instance  http://{} (edge, control plane and SOC in this process)\nstate     {}",
        running.address(),
        folder.display()
    );

    let mut stage = setup::prepare(&running, checks, folder).await?;
    story::injected_issue(&mut stage).await?;
    story::untrusted_calls(&mut stage).await?;
    story::approved_and_swapped(&mut stage).await?;
    let times = story::probing(&mut stage).await?;
    evidence::exported(&mut stage).await?;
    evidence::times(&mut stage, &times);
    let Checks { passed, failed, .. } = stage.checks;
    running.stop().await?;
    println!("\ndemo: {passed} checks passed, {failed} failed");
    Ok(failed)
}

impl Stage {
    /// Asks until `found` says what it looked for; null when patience ends.
    async fn wait_for(&self, path: &str, key: &str, found: impl Fn(&Value) -> Option<Value>) -> anyhow::Result<Value> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < deadline {
            if let Some(value) = found(&self.api.get(path, key).await?.json()) {
                return Ok(value);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(Value::Null)
    }
}

/// A field of JSON as text; empty where there is none.
fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// The beginning of a hash or an id, for people.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
