//! `aegis keys create`: the first key of a tenant on the data folder, further ones through the control plane.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use aegis_model::{SystemClock, TenantId};
use aegis_store::Role;
use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::arguments::running::KeysCreateArgs;

/// The variable that holds the admin key for `--url`: a key never stands in the arguments, where others can read it.
pub(super) const ADMIN_KEY: &str = "AEGIS_ADMIN_KEY";
/// Longest key taken from standard input, bytes.
const MAX_VALUE: u64 = 1024;

pub(crate) fn create(args: KeysCreateArgs) -> anyhow::Result<ExitCode> {
    let tenant = TenantId::new(&args.tenant).context("--tenant")?;
    let Ok(role) = Role::from_str(&args.role) else {
        bail!("--role {}: must be admin, registrar, approver, analyst or auditor", args.role);
    };
    let value = if args.value_stdin { Some(read_value()?) } else { None };
    let made = super::runtime()?.block_on(async {
        match &args.url {
            Some(url) => through_control(url, &args, value.as_deref()).await,
            None => {
                let data = args.data.clone().unwrap_or_else(|| PathBuf::from("aegis-data"));
                on_folder(&data, &tenant, role, &args, value.as_deref()).await
            }
        }
    })?;
    if args.json {
        println!("{made}");
    } else {
        println!("{}", made["key"].as_str().unwrap_or_default());
        eprintln!(
            "key {} of tenant {tenant}, role {}; it is not shown again",
            made["key_id"].as_str().unwrap_or_default(),
            args.role
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn on_folder(
    data: &Path,
    tenant: &TenantId,
    role: Role,
    args: &KeysCreateArgs,
    value: Option<&str>,
) -> anyhow::Result<Value> {
    if !data.is_dir() {
        bail!("there is no data folder {}; start `aegis up` once, or name it with --data", data.display());
    }
    let store = crate::store::open_beside(data, Arc::new(SystemClock)).await?;
    store.create_tenant(tenant, tenant.as_str()).await?;
    let (principal, secret) = store.create_key(tenant, role, &args.name, &args.groups, value).await?;
    Ok(json!({
        "key": secret.expose(), "key_id": principal.key_id, "tenant_id": tenant, "role": args.role, "name": args.name, "groups": args.groups
    }))
}

#[cfg(feature = "soc")]
async fn through_control(url: &str, args: &KeysCreateArgs, value: Option<&str>) -> anyhow::Result<Value> {
    let Ok(admin) = std::env::var(ADMIN_KEY) else {
        bail!("--url needs the admin key in the variable {ADMIN_KEY}");
    };
    let body = json!({"role": args.role, "name": args.name, "groups": args.groups, "value": value});
    let reply = crate::client::Client::new(url).post("/v1/keys", &admin, &body).await?;
    if reply.status != 201 {
        bail!("{url} answered {}: {}", reply.status, reply.json()["error"]["message"].as_str().unwrap_or("no reason given"));
    }
    Ok(reply.json())
}

#[cfg(not(feature = "soc"))]
async fn through_control(_url: &str, _args: &KeysCreateArgs, _value: Option<&str>) -> anyhow::Result<Value> {
    bail!("this build has no HTTP client for {ADMIN_KEY}; use --data")
}

fn read_value() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().take(MAX_VALUE + 1).read_to_string(&mut text).context("cannot read the key from standard input")?;
    let value = text.trim().to_owned();
    if value.len() > MAX_VALUE as usize {
        bail!("the key on standard input is longer than {MAX_VALUE} bytes");
    }
    Ok(value)
}
