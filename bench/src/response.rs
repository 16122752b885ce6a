//! From the fifth deny to the alert, and to the first call that the edge denies because the agent is frozen.

use std::time::Duration;

use aegis_model::Timestamp;
use anyhow::{Context, bail};
use serde::Serialize;
use tokio::time::Instant;

use crate::instance::{Aegis, authorize_body};
use crate::load::Connection;

/// Longest wait for one freeze.
const PATIENCE: Duration = Duration::from_secs(20);

/// Milliseconds, sorted.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Response {
    /// Event time of the fifth deny → time the alert was made.
    pub(crate) event_to_alert_ms: Vec<f64>,
    /// Fifth deny answered → first answer `agent_frozen`, as a polling client sees it.
    pub(crate) deny_to_frozen_ms: Vec<f64>,
}

/// Five calls that are denied: what the rule `deny-storm` looks for.
pub(crate) async fn storm_of_denies(connection: &mut Connection, token: &str) -> anyhow::Result<()> {
    let denied = authorize_body("update_note", true, "malicious_suspected");
    for _ in 0..5 {
        let (status, reply) = connection.call("POST", "/v1/authorize", token, denied.clone()).await?;
        if status != 200 || !String::from_utf8_lossy(&reply).contains("\"decision\":\"deny\"") {
            bail!("a storm's call was not denied: {status} {}", String::from_utf8_lossy(&reply));
        }
    }
    Ok(())
}

pub(crate) async fn measure(storms: usize) -> anyhow::Result<Response> {
    let aegis = Aegis::start().await?;
    let mut response = Response::default();
    let mut connection = Connection::open(aegis.server.address).await?;
    for storm in 0..storms {
        let (agent_id, token) = aegis.agent(&format!("storm-{storm}")).await?;
        storm_of_denies(&mut connection, &token).await?;
        let fifth = Instant::now();
        let read = authorize_body("read_note", false, "trusted_internal_unsigned");
        let mut frozen = false;
        while !frozen && fifth.elapsed() < PATIENCE {
            let (_, reply) = connection.call("POST", "/v1/authorize", &token, read.clone()).await?;
            frozen = String::from_utf8_lossy(&reply).contains("agent_frozen");
            if !frozen {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        if !frozen {
            bail!("storm {storm}: agent {agent_id} was not frozen within {PATIENCE:?}");
        }
        response.deny_to_frozen_ms.push(fifth.elapsed().as_secs_f64() * 1e3);
    }
    let mut offset = 0;
    loop {
        let alerts = aegis.get(&format!("/v1/alerts?limit=500&offset={offset}")).await?;
        let page = alerts.as_array().context("alerts are no array")?;
        for alert in page.iter().filter(|alert| alert["rule_name"] == "deny-storm") {
            let time = |field: &str| {
                alert[field].as_str().and_then(|t| Timestamp::parse_rfc3339(t).ok()).context("an alert without times")
            };
            let delay = time("detected_at")?.as_micros() - time("last_ts")?.as_micros();
            response.event_to_alert_ms.push(delay as f64 / 1e3);
        }
        if page.len() < 500 {
            break;
        }
        offset += 500;
    }
    response.event_to_alert_ms.sort_by(f64::total_cmp);
    response.deny_to_frozen_ms.sort_by(f64::total_cmp);
    Ok(response)
}
