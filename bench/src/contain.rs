//! From the fifth deny at one edge to the moment when every edge denies, because detection has frozen the agent.

use std::net::SocketAddr;
use std::time::Duration;

use aegis_model::{Clock, SystemClock, Timestamp};
use anyhow::{Context, bail};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::instance::{Aegis, authorize_body};
use crate::load::Connection;
use crate::response::storm_of_denies;
use crate::stage::Stage;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two questions to an edge.
const POLL: Duration = Duration::from_millis(2);

/// Milliseconds, sorted.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Contained {
    pub(crate) edges: usize,
    /// Fifth deny answered → alert made: through JetStream, by the clock of the machine that both are on.
    pub(crate) deny_to_alert_ms: Vec<f64>,
    /// Alert made → the last edge denies.
    pub(crate) detection_to_all_ms: Vec<f64>,
    /// Fifth deny answered → the last edge denies.
    pub(crate) deny_to_all_ms: Vec<f64>,
}

pub(crate) async fn measure(edges: usize, storms: usize) -> anyhow::Result<Contained> {
    let stage = Stage::start(edges).await?;
    wait_for("every edge is heard", async || {
        let shown = stage.control.get("/v1/edges?limit=100").await?;
        Ok(shown.as_array().is_some_and(|all| all.len() == edges && all.iter().all(|edge| edge["live"] == true)))
    })
    .await?;
    let mut contained = Contained { edges, ..Contained::default() };
    for storm in 0..storms {
        let (agent_id, token) = stage.control.agent(&format!("storm-{storm}")).await?;
        for edge in &stage.edges {
            let mut connection = Connection::open(edge.server.address).await?;
            wait_for("the edge knows the agent", async || {
                Ok(answer(&mut connection, &token).await?.contains("\"decision\":\"allow\""))
            })
            .await?;
        }
        let at = &stage.edges[storm % edges];
        let mut connection = Connection::open(at.server.address).await?;
        storm_of_denies(&mut connection, &token).await?;
        let (fifth, fifth_at) = (Instant::now(), SystemClock.now());
        let mut waiting = JoinSet::new();
        for edge in &stage.edges {
            waiting.spawn(until_frozen(edge.server.address, token.clone()));
        }
        while let Some(denies) = waiting.join_next().await {
            denies??;
        }
        let (taken, now) = (fifth.elapsed(), SystemClock.now());
        contained.deny_to_all_ms.push(taken.as_secs_f64() * 1e3);
        let detected_us = detected_at(&stage.control, &agent_id).await?.as_micros();
        contained.detection_to_all_ms.push((now.as_micros() - detected_us) as f64 / 1e3);
        contained.deny_to_alert_ms.push((detected_us - fifth_at.as_micros()) as f64 / 1e3);
    }
    contained.deny_to_all_ms.sort_by(f64::total_cmp);
    contained.deny_to_alert_ms.sort_by(f64::total_cmp);
    contained.detection_to_all_ms.sort_by(f64::total_cmp);
    Ok(contained)
}

async fn until_frozen(edge: SocketAddr, token: String) -> anyhow::Result<()> {
    let mut connection = Connection::open(edge).await?;
    let started = Instant::now();
    while !answer(&mut connection, &token).await?.contains("agent_frozen") {
        if started.elapsed() > PATIENCE {
            bail!("not within {PATIENCE:?}: the edge at {edge} denies");
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// What an edge would say to a harmless read, which leaves no trace.
async fn answer(connection: &mut Connection, token: &str) -> anyhow::Result<String> {
    let mut body: Value = serde_json::from_slice(&authorize_body("read_note", false, "trusted_internal_unsigned"))?;
    body["dry_run"] = true.into();
    let (_, reply) = connection.call("POST", "/v1/authorize", token, Bytes::from(body.to_string())).await?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

/// When detection made the alert of this agent.
async fn detected_at(control: &Aegis, agent_id: &str) -> anyhow::Result<Timestamp> {
    let alerts = control.get("/v1/alerts?limit=50").await?;
    let of_agent = |alert: &&Value| alert["rule_name"] == "deny-storm" && alert["key"]["agent_id"] == agent_id;
    let alert = alerts.as_array().and_then(|all| all.iter().find(of_agent)).context("no alert of the agent")?;
    alert["detected_at"].as_str().and_then(|text| Timestamp::parse_rfc3339(text).ok()).context("an alert without a time")
}

async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let started = Instant::now();
    while !holds().await? {
        if started.elapsed() > PATIENCE {
            bail!("not within {PATIENCE:?}: {what}");
        }
        sleep(POLL).await;
    }
    Ok(())
}
