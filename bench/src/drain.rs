//! A backlog: what an edge sealed while NATS was gone, and how long it takes until all of it is shipped, and stands in control's history.

use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::instance::authorize_body;
use crate::load::{Connection, Plan, Target, throughput};
use crate::stage::Stage;

/// Longest wait for the history.
const PATIENCE: Duration = Duration::from_secs(1800);

/// How often it is asked, and detection.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How far back a list of control goes.
const FURTHEST: f64 = 1_000_000.0;

#[derive(Debug, Serialize)]
pub(crate) struct Drained {
    /// Receipts that waited in the edge's ledger.
    pub(crate) backlog: f64,
    /// Seconds from NATS's start until the edge has shipped all of them.
    pub(crate) shipped_s: f64,
    /// Seconds until detection has read all, and the history has the last of them.
    pub(crate) caught_up_s: f64,
}

pub(crate) async fn measure(plan: &Plan, receipts: f64) -> anyhow::Result<Drained> {
    let mut stage = Stage::start(1).await?;
    let (_, token) = stage.control.agent("bench-agent").await?;
    let target = Target {
        address: stage.edges[0].server.address,
        token,
        body: authorize_body("update_note", true, "trusted_internal_unsigned"),
        expect: "\"decision\":\"allow\"",
    };
    throughput(&Plan { duration: Duration::from_secs(1), ..plan.clone() }, &target).await?;
    stage.edges[0].server.settle().await?;
    stage.nats.end();
    let mut backlog = 0.0;
    while backlog < receipts {
        throughput(&Plan { duration: Duration::from_secs(5), ..plan.clone() }, &target).await?;
        backlog = stage.edges[0].backlog().await?;
        eprintln!("{backlog:.0} receipts wait");
    }
    // Behind all others in the edge's lane, so that who has it has read them.
    let last = ask(&target).await?;
    let backlog = stage.edges[0].backlog().await?;
    let decided = stage.edges[0].server.metric("aegis_decisions_total").await?;
    stage.nats.run()?;
    let started = Instant::now();
    while stage.edges[0].backlog().await? > 0.0 {
        if started.elapsed() > PATIENCE {
            bail!("the edge has not shipped everything within {PATIENCE:?}");
        }
        sleep(LOOK_EVERY).await;
    }
    let shipped_s = started.elapsed().as_secs_f64();
    while !(has(&stage, &last).await && stage.control.server.metric("aegis_consumer_lag").await.is_ok_and(|lag| lag <= 0.0)) {
        if started.elapsed() > PATIENCE {
            bail!("detection and history have not caught up within {PATIENCE:?}");
        }
        sleep(LOOK_EVERY).await;
    }
    let caught_up_s = started.elapsed().as_secs_f64();
    // Each of them, and not the last alone.
    let oldest = (decided - 1.0).min(FURTHEST);
    let shown = stage.control.get(&format!("/v1/decisions?limit=1&offset={oldest:.0}")).await?;
    if shown[0]["event_id"].is_null() {
        bail!("the history has fewer than the {:.0} decisions that it should have", oldest + 1.0);
    }
    Ok(Drained { backlog, shipped_s, caught_up_s })
}

/// Asks once; the decision's id.
async fn ask(target: &Target) -> anyhow::Result<String> {
    let mut connection = Connection::open(target.address).await?;
    let (status, body) = connection.call("POST", "/v1/authorize", &target.token, target.body.clone()).await?;
    if status != 200 {
        bail!("authorize: {status} {}", String::from_utf8_lossy(&body));
    }
    let answer: Value = serde_json::from_slice(&body).context("an answer that is no JSON")?;
    answer["decision_id"].as_str().map(str::to_owned).context("an answer without a decision")
}

/// True once this is the newest decision of the history. Control may be too busy to answer.
async fn has(stage: &Stage, decision: &str) -> bool {
    stage.control.get("/v1/decisions?limit=1").await.is_ok_and(|newest| newest[0]["event_id"] == decision)
}
