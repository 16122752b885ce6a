//! An edge of its own over NATS, all on this machine: authorize while NATS and control work, while control stands still, while NATS does, and
//! while there is none. The edge must not notice; what it notices here is who else uses the same cores, unless each side has one of its own.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::instance::{Server, authorize_body};
use crate::load::{Plan, Target, percentile, throughput};
use crate::paced::latencies;
use crate::stage::{Stage, pin, signal};
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

/// Cores, where each side has one.
const BEFORE: u32 = 0;
const BEHIND: u32 = 1;

/// All rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Fleet {
    /// The edge and the load on one core, what is behind the edge on another.
    apart: bool,
    rate: f64,
    echo: Vec<Round>,
    mutating: Vec<(Behind, Vec<Round>)>,
    read: Vec<(Behind, Vec<Round>)>,
    /// After each round: receipts that waited in the edge's ledger, and how many of them reached NATS each second once it was back.
    drained: Vec<(f64, f64)>,
}

impl Stage {
    /// Brings what stands behind the edge from everything to `behind`.
    fn reduce_to(&mut self, behind: Behind) -> anyhow::Result<()> {
        match behind {
            Behind::All => Ok(()),
            Behind::Nats => signal(self.control.server.id(), "STOP"),
            Behind::Stopped => signal(self.nats.id(), "STOP"),
            Behind::Nothing => {
                self.nats.end();
                Ok(())
            }
        }
    }

    /// Everything works again, and has caught up; how many receipts waited, and how many a second were shipped.
    async fn restore(&mut self, apart: bool) -> anyhow::Result<(f64, f64)> {
        let waiting = self.edges[0].backlog().await?;
        self.nats.run()?;
        if apart {
            pin(self.nats.id(), BEHIND)?;
        }
        let started = Instant::now();
        while self.edges[0].backlog().await? > 0.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let per_second = waiting / started.elapsed().as_secs_f64();
        signal(self.control.server.id(), "CONT")?;
        self.control.server.settle().await?;
        self.edges[0].server.settle().await?;
        Ok((waiting, per_second))
    }
}

pub(crate) async fn measure(plan: &Plan, apart: bool) -> anyhow::Result<Fleet> {
    let echo_server = Server::echo()?;
    let mut running = Stage::start(1).await?;
    if apart {
        for before in [std::process::id(), echo_server.id(), running.edges[0].server.id()] {
            pin(before, BEFORE)?;
        }
        for behind in [running.nats.id(), running.control.server.id()] {
            pin(behind, BEHIND)?;
        }
    }
    let (_, token) = running.control.agent("bench-agent").await?;
    let target = |address, action: &str, mutates, expect| Target {
        address,
        token: token.clone(),
        body: authorize_body(action, mutates, "trusted_internal_unsigned"),
        expect,
    };
    let echo = target(echo_server.address, "update_note", true, "update_note");
    let mutating = target(running.edges[0].server.address, "update_note", true, "\"decision\":\"allow\"");
    let read = target(running.edges[0].server.address, "read_note", false, "\"decision\":\"allow\"");
    throughput(&Plan { duration: Duration::from_secs(1), ..plan.clone() }, &mutating).await?;

    let mut most: Vec<[f64; 9]> = Vec::new();
    let mut drained = Vec::new();
    for _ in 0..plan.rounds {
        let mut round = [0.0; 9];
        round[8] = throughput(plan, &echo).await?;
        for (place, (behind, _)) in STATES.into_iter().enumerate() {
            running.reduce_to(behind)?;
            round[2 * place] = throughput(plan, &mutating).await?;
            running.edges[0].server.settle().await?;
            round[2 * place + 1] = throughput(plan, &read).await?;
            running.edges[0].server.settle().await?;
        }
        most.push(round);
        drained.push(running.restore(apart).await?);
    }
    let mut of_all: Vec<f64> = most.iter().map(|round| round[0]).collect();
    of_all.sort_by(f64::total_cmp);
    let rate = percentile(&of_all, 0.5) / 2.0;
    let mut fleet = Fleet { apart, rate, echo: Vec::new(), mutating: Vec::new(), read: Vec::new(), drained };
    fleet.mutating = STATES.map(|(behind, _)| (behind, Vec::new())).into();
    fleet.read = STATES.map(|(behind, _)| (behind, Vec::new())).into();
    for round in &most {
        fleet.echo.push(taken(plan, &echo, rate, round[8]).await?);
        for (place, (behind, _)) in STATES.into_iter().enumerate() {
            running.reduce_to(behind)?;
            fleet.mutating[place].1.push(taken(plan, &mutating, rate, round[2 * place]).await?);
            running.edges[0].server.settle().await?;
            fleet.read[place].1.push(taken(plan, &read, rate, round[2 * place + 1]).await?);
            running.edges[0].server.settle().await?;
        }
        fleet.drained.push(running.restore(apart).await?);
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
