//! Authorize against the echo: throughput, then latency at half of each one's own saturation, in alternating rounds.

use std::time::Duration;

use serde::Serialize;

use crate::instance::{Aegis, Server, authorize_body};
use crate::load::{Plan, Target, latencies, percentile, throughput};

/// One round of one subject.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Round {
    /// Requests a second at saturation.
    pub(crate) per_second: f64,
    /// Latency on a fixed schedule at `Served::rate`, microseconds.
    pub(crate) p50_us: f64,
    pub(crate) p95_us: f64,
    pub(crate) p99_us: f64,
}

/// All rounds of the four subjects, and the rate at which latency was taken.
#[derive(Debug, Serialize)]
pub(crate) struct Served {
    /// Requests a second of the latency measurement: half of what authorize reaches when it mutates.
    pub(crate) rate: f64,
    pub(crate) echo: Vec<Round>,
    /// The echo that syncs a file before it answers: this disk's own share.
    pub(crate) durable_echo: Vec<Round>,
    pub(crate) mutating: Vec<Round>,
    pub(crate) read: Vec<Round>,
    /// After each mutating round at saturation: seconds until everything behind the answers had caught up.
    pub(crate) catch_up_s: Vec<f64>,
}

/// Place of the mutating calls among the subjects.
const MUTATING: usize = 2;

pub(crate) async fn authorize_against_echo(plan: &Plan) -> anyhow::Result<Served> {
    let echo = Server::echo()?;
    let (durable_echo, _folder) = Server::durable_echo()?;
    let aegis = Aegis::start().await?;
    let (_, token) = aegis.agent("bench-agent").await?;
    let mutating = authorize_body("update_note", true, "trusted_internal_unsigned");
    let read = authorize_body("read_note", false, "trusted_internal_unsigned");
    let targets = [
        Target { address: echo.address, token: token.clone(), body: mutating.clone(), expect: "update_note" },
        Target { address: durable_echo.address, token: token.clone(), body: mutating.clone(), expect: "update_note" },
        Target { address: aegis.server.address, token: token.clone(), body: mutating, expect: "\"decision\":\"allow\"" },
        Target { address: aegis.server.address, token, body: read, expect: "\"decision\":\"allow\"" },
    ];
    let mut saturation: [Vec<f64>; 4] = Default::default();
    let mut catch_up_s = Vec::new();
    for _ in 0..plan.rounds {
        for (subject, target) in targets.iter().enumerate() {
            saturation[subject].push(throughput(plan, target).await?);
            let behind = aegis.server.settle().await?.as_secs_f64();
            if subject == MUTATING {
                catch_up_s.push(behind);
            }
        }
    }
    let mut sorted = saturation[MUTATING].clone();
    sorted.sort_by(f64::total_cmp);
    let rate = percentile(&sorted, 0.5) / 2.0;
    let mut rounds: [Vec<Round>; 4] = Default::default();
    for round in 0..plan.rounds {
        for ((target, most), rounds) in targets.iter().zip(&saturation).zip(&mut rounds) {
            let taken = latencies(plan, target, rate).await?;
            aegis.server.settle().await?;
            rounds.push(Round {
                per_second: most[round],
                p50_us: percentile(&taken, 0.50),
                p95_us: percentile(&taken, 0.95),
                p99_us: percentile(&taken, 0.99),
            });
        }
    }
    let [echo, durable_echo, mutating, read] = rounds;
    Ok(Served { rate, echo, durable_echo, mutating, read, catch_up_s })
}

/// How long a server is used before `hold` measures it.
const WARM_UP: Duration = Duration::from_secs(1);

/// Mutating calls at one rate, and what it came to.
pub(crate) async fn hold(plan: &Plan, rate: f64) -> anyhow::Result<()> {
    let aegis = Aegis::start().await?;
    let (_, token) = aegis.agent("bench-agent").await?;
    let body = authorize_body("update_note", true, "trusted_internal_unsigned");
    let target = Target { address: aegis.server.address, token, body, expect: "\"decision\":\"allow\"" };
    println!("{} at {}, data in {}", aegis.server.id(), target.address, aegis.folder.path().display());
    // A first second that nobody counts: caches, statements and the allocator's pages are cold in it.
    throughput(&Plan { duration: WARM_UP, ..plan.clone() }, &target).await?;
    aegis.server.settle().await?;
    if rate <= 0.0 {
        println!("{:.0} requests a second", throughput(plan, &target).await?);
        return Ok(());
    }
    let taken = latencies(plan, &target, rate).await?;
    let at = |share| percentile(&taken, share) / 1e3;
    println!("ms: p50 {:.2} p95 {:.2} p99 {:.2} p99.9 {:.2} most {:.2}", at(0.5), at(0.95), at(0.99), at(0.999), at(1.0));
    Ok(())
}
