//! A tenant's settings, and the secrets that its GitHub webhooks and its callbacks are signed with.
//! Promises that a secret goes in and never comes out.

use crate::reply::Json;
use aegis_model::{EntryKind, MAX_RUN_IDLE_S, TenantSettings};
use aegis_store::Secret;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::callbacks::target::Target;
use crate::control::Control;
use crate::input::{MAX_ID, MAX_TEXT, check_text, parse};
use crate::problem::Problem;
use crate::routes::Call;

/// Name of the one entry of this kind a tenant has in the control feed.
const ENTRY: &str = "settings";
/// The adapter the secret belongs to.
const GITHUB: &str = "github";
/// Shortest and longest webhook secret, characters.
const SECRET_LENGTH: std::ops::RangeInclusive<usize> = 16..=1024;
/// Shortest and longest callback secret, bytes: what is signed with it is believed.
const CALLBACK_SECRET_LENGTH: std::ops::RangeInclusive<usize> = 32..=1024;
/// How long the secret before a new one signs too, seconds, unless the request says otherwise; and the longest.
const OVERLAP_S: i64 = 24 * 3600;
const MAX_OVERLAP_S: i64 = 30 * 24 * 3600;
/// Longest time any setting may name, seconds: a year.
const MAX_SECONDS: i64 = 366 * 24 * 3600;
/// Most entries of a list.
const MAX_LISTED: usize = 1000;

pub(crate) async fn put(control: &Control, call: &Call) -> Result<Response, Problem> {
    let settings: TenantSettings = parse(&call.body, control.config.max_body_bytes)?;
    check(&settings)?;
    check_callbacks(&settings, control.config.callback_loopback)?;
    control.check_entry(call.tenant(), EntryKind::Settings, ENTRY, &settings)?;
    let _turn = control.registry_turn.lock().await;
    let detail = json!({"settings": settings});
    let pending = control.prepare(control.config_draft(&call.caller, "settings_changed", detail))?;
    let revision = control.store.put_settings(call.tenant(), &settings, pending.rows()).await?;
    let sealed = control.seal(pending).await;
    control.publish(call.tenant(), EntryKind::Settings, ENTRY, revision, &settings).await;
    sealed?;
    Ok(Json(settings).into_response())
}

fn check(settings: &TenantSettings) -> Result<(), Problem> {
    let times = [
        // No edge could keep a label for longer than that over a restart.
        ("run_idle_s", settings.run_idle_s, MAX_RUN_IDLE_S),
        ("implicit_run_idle_s", settings.implicit_run_idle_s, MAX_RUN_IDLE_S),
        ("approval_ttl_s", settings.approval_ttl_s, MAX_SECONDS),
    ];
    for (name, seconds, most) in times {
        if !(1..=most).contains(&seconds) {
            return Err(Problem::bad_request("invalid_field", format!("`{name}` must be 1 to {most}")));
        }
    }
    if settings.agent_rate_per_s == 0 || settings.tenant_rate_per_s == 0 {
        return Err(Problem::bad_request("invalid_field", "a rate must be at least 1"));
    }
    check_text("approver_group", &settings.approver_group, MAX_ID)?;
    if settings.callback_allow_list.len() > MAX_LISTED || settings.force_approval_agents.len() > MAX_LISTED {
        return Err(Problem::bad_request("invalid_field", format!("a list has at most {MAX_LISTED} entries")));
    }
    for prefix in &settings.callback_allow_list {
        check_text("callback_allow_list", prefix, MAX_TEXT)?;
    }
    for agent in &settings.force_approval_agents {
        check_text("force_approval_agents", agent, MAX_ID)?;
    }
    Ok(())
}

/// A URL that could never be called is refused when it is listed; each is looked at again whenever it is called.
fn check_callbacks(settings: &TenantSettings, may_be_plain: bool) -> Result<(), Problem> {
    for (place, url) in settings.callback_allow_list.iter().enumerate() {
        // By its place: a URL with credentials in it is not repeated.
        Target::read(url, may_be_plain)
            .map_err(|why| Problem::bad_request("invalid_field", format!("`callback_allow_list`: entry {} {why}", place + 1)))?;
    }
    Ok(())
}

pub(crate) async fn get(control: &Control, call: &Call) -> Result<Response, Problem> {
    Ok(Json(control.store.settings(call.tenant()).await?).into_response())
}

/// `PUT /v1/webhooks/github/secret`.
#[derive(Deserialize)]
struct SecretBody {
    secret: String,
}

pub(crate) async fn put_webhook_secret(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body: SecretBody = parse(&call.body, control.config.max_body_bytes).map_err(without_values)?;
    if !SECRET_LENGTH.contains(&body.secret.chars().count()) {
        return Err(Problem::bad_request("invalid_field", "`secret` must have 16 to 1024 characters"));
    }
    // The store takes no outbox row with a secret, so the receipt comes first: what cannot be receipted is not done.
    control.record(control.config_draft(&call.caller, "webhook_secret_changed", json!({"adapter": GITHUB}))).await?;
    control.store.put_webhook_secret(call.tenant(), GITHUB, &body.secret).await?;
    let reply: Value = json!({"adapter": GITHUB, "status": "set"});
    Ok(Json(reply).into_response())
}

/// `PUT /v1/callbacks/secret`.
#[derive(Deserialize)]
struct CallbackSecretBody {
    secret: String,
    /// How long the secret before this one signs too, seconds; 0: it ends at once.
    #[serde(default)]
    overlap_s: Option<i64>,
}

pub(crate) async fn put_callback_secret(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body: CallbackSecretBody = parse(&call.body, control.config.max_body_bytes).map_err(without_values)?;
    if !CALLBACK_SECRET_LENGTH.contains(&body.secret.len()) {
        return Err(Problem::bad_request("invalid_field", "`secret` must have 32 to 1024 bytes"));
    }
    let overlap_s = body.overlap_s.unwrap_or(OVERLAP_S);
    if !(0..=MAX_OVERLAP_S).contains(&overlap_s) {
        return Err(Problem::bad_request("invalid_field", format!("`overlap_s` must be 0 to {MAX_OVERLAP_S}")));
    }
    let detail = json!({"overlap_s": overlap_s});
    let pending = control.prepare(control.config_draft(&call.caller, "callback_secret_changed", detail))?;
    let (secret, until) = (Secret::new(body.secret), control.clock.now().plus_seconds(overlap_s));
    let previous_until = control.store.put_callback_secret(call.tenant(), &secret, until, pending.rows()).await?;
    control.seal(pending).await?;
    Ok(Json(json!({"status": "set", "previous_until": previous_until})).into_response())
}

/// A complaint about a body with a secret must not repeat what stood there.
fn without_values(problem: Problem) -> Problem {
    if problem.code == "invalid_body" {
        return Problem::bad_request("invalid_body", "send {\"secret\": \"…\"}");
    }
    problem
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_run_is_promised_to_last_longer_idle_than_an_edge_reads_back_and_the_bucket_keeps() {
        let file: Value = serde_json::from_str(include_str!("../../../streams/KV_trust.json")).unwrap();
        assert_eq!(file["max_age"], json!(MAX_RUN_IDLE_S * 1_000_000_000));
        check(&TenantSettings::default()).unwrap();
        let [too_long, longest] = [MAX_RUN_IDLE_S + 1, MAX_RUN_IDLE_S];
        for settings in [
            TenantSettings { run_idle_s: too_long, ..TenantSettings::default() },
            TenantSettings { implicit_run_idle_s: too_long, ..TenantSettings::default() },
        ] {
            let problem = check(&settings).unwrap_err();
            assert!(problem.message.ends_with(&format!("must be 1 to {longest}")), "{}", problem.message);
        }
        check(&TenantSettings { implicit_run_idle_s: longest, ..TenantSettings::default() }).unwrap();
    }
}
