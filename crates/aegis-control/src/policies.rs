//! A tenant's own Cedar policies, beside the shipped packs.
//! Promises that text which does not load changes nothing and says where it is wrong.

use std::sync::Arc;

use crate::reply::Json;
use aegis_model::EntryKind;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use crate::control::Control;
use crate::input::parse;
use crate::problem::Problem;
use crate::routes::Call;

/// Name of the one entry of this kind a tenant has in the control feed.
const ENTRY: &str = "policies";

/// `PUT /v1/policies`.
#[derive(Debug, Deserialize)]
struct PoliciesBody {
    policies: String,
}

pub(crate) async fn put(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body: PoliciesBody = parse(&call.body, control.config.max_body_bytes)?;
    let tenant = call.tenant();
    let entry = json!({"policies": body.policies});
    control.check_entry(tenant, EntryKind::Policies, ENTRY, &entry)?;
    let _turn = control.registry_turn.lock().await;
    let tools = control.store.list_tools(tenant).await?;
    let bundle = control.load_bundle(body.policies.clone(), tools).await?;
    let digest = bundle.digest().to_owned();
    let detail = json!({"policy_digest": digest, "text_hash": aegis_canon::sha256_hex(body.policies.as_bytes())});
    let mut draft = control.config_draft(&call.caller, "policies_changed", detail);
    draft.event.policy_digest = Some(digest.clone());
    let pending = control.prepare(draft)?;
    let revision = control.store.put_policies(tenant, &body.policies, pending.rows()).await?;
    control.bundles.set(tenant, Arc::clone(&bundle));
    let sealed = control.seal(pending).await;
    let enforced = control.publish(tenant, EntryKind::Policies, ENTRY, revision, &entry).await;
    sealed?;
    Ok(Json(json!({"digest": digest, "revision": revision, "enforced": enforced})).into_response())
}

pub(crate) async fn get(control: &Control, call: &Call) -> Result<Response, Problem> {
    let text = control.store.policies(call.tenant()).await?.unwrap_or_default();
    let bundle = control.bundle(call.tenant()).await?;
    Ok(Json(json!({"policies": text, "digest": bundle.digest()})).into_response())
}
