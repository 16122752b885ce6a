//! Before the story: a tenant with its people's keys, the GitHub tool, two repositories, and one agent.

use std::path::PathBuf;

use aegis_model::TenantId;
use aegis_store::Role;
use anyhow::bail;
use serde_json::{Value, json};

use super::{Checks, Stage, text};
use crate::client::{Client, Reply};
use crate::up::Running;

/// The demo's tenant.
pub(crate) const TENANT: &str = "acme";
/// The secret that the demo's GitHub signs webhooks with.
pub(crate) const WEBHOOK_SECRET: &str = "demo-webhook-secret-not-for-production";

/// One API key for each role the story needs.
#[derive(Debug)]
pub(crate) struct ApiKeys {
    pub(crate) admin: String,
    pub(crate) registrar: String,
    pub(crate) approver: String,
    pub(crate) auditor: String,
}

pub(crate) async fn prepare(running: &Running, checks: Checks, folder: PathBuf) -> anyhow::Result<Stage> {
    let tenant = TenantId::new(TENANT)?;
    running.store.create_tenant(&tenant, "Acme").await?;
    let all_groups = ["*".to_owned()];
    let key = async |role, name: &str, groups: &[String]| -> anyhow::Result<String> {
        let (_, secret) = running.store.create_key(&tenant, role, name, groups, None).await?;
        Ok(secret.expose().to_owned())
    };
    let keys = ApiKeys {
        admin: key(Role::Admin, "ada", &[]).await?,
        registrar: key(Role::Registrar, "deploy-pipeline", &[]).await?,
        approver: key(Role::Approver, "dana", &all_groups).await?,
        auditor: key(Role::Auditor, "otto", &[]).await?,
    };
    let api = Client::new(&format!("http://{}", running.address()));

    expect(
        201,
        api.post("/v1/tools", &keys.registrar, &serde_json::to_value(aegis_policy::github_tool())?).await?,
        "registering GitHub",
    )?;
    for (resource, visibility) in [("acme/payments", "private"), ("acme/website", "public")] {
        let body = json!({"resource": resource, "tool": "github", "visibility": visibility, "owner": "acme"});
        expect(201, api.post("/v1/resources", &keys.registrar, &body).await?, "registering a repository")?;
    }
    let secret = json!({"secret": WEBHOOK_SECRET});
    expect(200, api.put("/v1/webhooks/github/secret", &keys.admin, &secret).await?, "setting the webhook secret")?;
    let agent = json!({
        "agent_key": "repo-assistant", "name": "Repository assistant", "owner_team": "platform",
        "environment": "production", "risk_tier": "medium"
    });
    let agent = expect(201, api.post("/v1/agents/register", &keys.registrar, &agent).await?, "registering the agent")?;
    Ok(Stage { agent_token: text(&agent, "/agent_token").to_owned(), api, checks, keys, folder, denies: Vec::new() })
}

fn expect(status: u16, reply: Reply, doing: &str) -> anyhow::Result<Value> {
    let fits = reply.status == status || (status == 201 && reply.status == 200) || (status == 200 && reply.status == 204);
    if !fits {
        bail!("{doing}: expected {status}, got {}: {}", reply.status, String::from_utf8_lossy(&reply.body));
    }
    Ok(reply.json())
}
