//! API keys of the caller's own tenant: made, listed, revoked by its admins.
//! Promises that a key is shown once, when it is made and its receipt is sealed.

use std::str::FromStr;

use crate::reply::Json;
use aegis_store::{NewKey, Principal, Role};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::Control;
use crate::input::{MAX_ID, check_text, parse};
use crate::problem::Problem;
use crate::routes::Call;

/// Most groups of a key.
const MAX_GROUPS: usize = 64;

/// `POST /v1/keys`.
#[derive(Deserialize)]
struct KeyBody {
    role: String,
    name: String,
    #[serde(default)]
    groups: Vec<String>,
    /// A given secret, at least 32 characters; otherwise one is made.
    #[serde(default)]
    value: Option<String>,
}

pub(crate) async fn create(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body: KeyBody = parse(&call.body, control.config.max_body_bytes).map_err(without_values)?;
    let role = Role::from_str(&body.role).map_err(|_| {
        Problem::bad_request("invalid_field", "`role` must be one of admin, registrar, approver, analyst, auditor")
    })?;
    check_text("name", &body.name, MAX_ID)?;
    if body.groups.len() > MAX_GROUPS {
        return Err(Problem::bad_request("invalid_field", format!("a key has at most {MAX_GROUPS} groups")));
    }
    for group in &body.groups {
        check_text("groups", group, MAX_ID)?;
    }
    let key = NewKey::make(call.tenant(), role, &body.name, &body.groups, body.value.as_deref())?;
    let draft = control.config_draft(&call.caller, "key_created", json!({"key": view(key.principal())}));
    let pending = control.prepare(draft)?;
    let (principal, secret) = control.store.put_key(key, pending.rows()).await?;
    control.seal(pending).await?;
    let mut reply = view(&principal);
    if let Some(object) = reply.as_object_mut() {
        object.insert("key".to_owned(), json!(secret.expose()));
    }
    Ok((StatusCode::CREATED, Json(reply)).into_response())
}

pub(crate) async fn list(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    let keys = control.store.list_keys(call.tenant()).await?;
    // The store lists the oldest first.
    let shown: Vec<Value> = keys.iter().rev().skip(page.offset as usize).take(page.limit as usize).map(view).collect();
    Ok(Json(shown).into_response())
}

pub(crate) async fn revoke(control: &Control, call: &Call) -> Result<Response, Problem> {
    let id = call.param("id");
    // Revoking never waits for the ledger; its receipt does.
    let pending = control.prepare_anyway(control.config_draft(&call.caller, "key_revoked", json!({"key_id": id})))?;
    if !control.store.revoke_key(call.tenant(), id, pending.rows()).await? {
        return Err(Problem::not_found("key"));
    }
    control.seal(pending).await?;
    Ok(Json(json!({"key_id": id, "status": "revoked"})).into_response())
}

fn view(principal: &Principal) -> Value {
    json!({
        "key_id": principal.key_id,
        "role": principal.role.as_str(),
        "name": principal.name,
        "groups": principal.groups,
    })
}

/// A complaint about a body with a secret must not repeat what stood there.
fn without_values(problem: Problem) -> Problem {
    if problem.code == "invalid_body" {
        return Problem::bad_request("invalid_body", "send {\"role\", \"name\", \"groups\"?: [\"…\"], \"value\"?: \"…\"}");
    }
    problem
}
