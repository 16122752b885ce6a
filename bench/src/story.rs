//! Authorize against the echo: throughput, then latency at half of each one's own saturation, in alternating rounds.

use std::time::Duration;

use serde::Serialize;

use crate::instance::{Aegis, Server, authorize_body};
use crate::load::{Plan, Target, percentile, throughput};
use crate::paced::latencies;

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

/// Calls of one kind at one rate, and what it came to.
pub(crate) async fn hold(plan: &Plan, read: bool, rate: f64) -> anyhow::Result<()> {
    let aegis = Aegis::start().await?;
    let (_, token) = aegis.agent("bench-agent").await?;
    let action = if read { "read_note" } else { "update_note" };
    let body = authorize_body(action, !read, "trusted_internal_unsigned");
    let target = Target { address: aegis.server.address, token, body, expect: "\"decision\":\"allow\"" };
    println!("{} at {}, data in {}", aegis.server.id(), target.address, aegis.folder.path().display());
    // A first second that nobody counts: caches, statements and the allocator's pages are cold in it.
    throughput(&Plan { duration: WARM_UP, ..plan.clone() }, &target).await?;
    aegis.server.settle().await?;
    let busy_before = aegis.server.cpu_time()?;
    let (calls, latency) = if rate <= 0.0 {
        let per_second = throughput(plan, &target).await?;
        (per_second * plan.duration.as_secs_f64(), format!("{per_second:.0} requests a second"))
    } else {
        let taken = latencies(plan, &target, rate).await?;
        let at = |share| percentile(&taken, share) / 1e3;
        let figures = [at(0.5), at(0.95), at(0.99), at(0.999), at(1.0)].map(|ms| format!("{ms:.2}"));
        let [p50, p95, p99, p999, most] = figures;
        (taken.len() as f64, format!("ms: p50 {p50} p95 {p95} p99 {p99} p99.9 {p999} most {most}"))
    };
    aegis.server.settle().await?;
    let busy = aegis.server.cpu_time()?.saturating_sub(busy_before);
    println!(
        "{latency}; the server's processor time, all that follows a call included: {:.0} µs a call",
        busy.as_secs_f64() * 1e6 / calls
    );
    Ok(())
}
