//! A backlog: what an edge sealed while NATS was gone, and how long it takes until all of it is shipped, and stands in control's history.

use std::time::Duration;

use anyhow::bail;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::instance::authorize_body;
use crate::load::{Plan, Target, throughput};
use crate::stage::Stage;

/// Longest wait for the history.
const PATIENCE: Duration = Duration::from_secs(1800);

#[derive(Debug, Serialize)]
pub(crate) struct Drained {
    /// Receipts that waited in the edge's ledger.
    pub(crate) backlog: f64,
    /// Seconds from NATS's start until the edge has shipped all of them.
    pub(crate) shipped_s: f64,
    /// Seconds until detection and history have them too: until control rests.
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
    stage.nats.run()?;
    let started = Instant::now();
    while stage.edges[0].backlog().await? > 0.0 {
        if started.elapsed() > PATIENCE {
            bail!("the edge has not shipped everything within {PATIENCE:?}");
        }
        sleep(Duration::from_millis(50)).await;
    }
    let shipped_s = started.elapsed().as_secs_f64();
    while stage.control.server.settle().await.is_err() {
        if started.elapsed() > PATIENCE {
            bail!("control does not rest within {PATIENCE:?}");
        }
    }
    Ok(Drained { backlog, shipped_s, caught_up_s: started.elapsed().as_secs_f64() })
}
