//! Tools, channels and resources: the facts a caller may only tighten.
//! Promises that a tool with which the tenant's policies no longer load changes nothing.

mod actions;
pub(crate) mod drift;
pub(crate) mod mcp;

use std::collections::HashSet;
use std::sync::Arc;

use crate::reply::Json;
use aegis_model::limits::MAX_RESOURCE;
use aegis_model::{ActionRecord, ChannelRecord, EntryKind, ResourceRecord, TenantId, Timestamp, ToolRecord, Visibility};
use aegis_policy::PolicyBundle;
use aegis_store::{Principal, Role};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::auth::Caller;
use crate::control::{Control, ControlError};
use crate::input::{MAX_ID, MAX_TEXT, check_optional, check_resource_name, check_text, parse};
use crate::problem::Problem;
use crate::routes::Call;

/// Most actions of one tool.
const MAX_ACTIONS: usize = 500;
/// How receipts name the adapter that registers what webhooks say.
const WEBHOOK_ADAPTER: &str = "github-webhook";

pub(crate) async fn put_tool(control: &Control, call: &Call) -> Result<Response, Problem> {
    let tool: ToolRecord = parse(&call.body, control.config.max_body_bytes)?;
    check_tool(&tool)?;
    let _turn = control.registry_turn.lock().await;
    store_tool(control, &call.caller, &tool).await?;
    Ok((StatusCode::CREATED, Json(tool)).into_response())
}

/// Stores a tool if the tenant's policies load with it. The caller holds the registry's turn.
async fn store_tool(control: &Control, caller: &Caller, tool: &ToolRecord) -> Result<(), Problem> {
    let tenant = caller.tenant();
    control.check_entry(tenant, EntryKind::Tool, &tool.tool, tool)?;
    let bundle = bundle_with(control, tenant, tool).await?;
    let before = control.store.tool(tenant, &tool.tool).await?;
    let pending = actions::prepare(control, actions::drafts(control, caller, before.as_ref(), tool, &bundle))?;
    let revision = control.store.put_tool(tenant, tool, &actions::rows_of(&pending)).await?;
    control.bundles.set(tenant, bundle);
    let sealed = actions::seal(control, pending).await;
    control.publish(tenant, EntryKind::Tool, &tool.tool, revision, tool).await;
    sealed
}

async fn bundle_with(control: &Control, tenant: &TenantId, tool: &ToolRecord) -> Result<Arc<PolicyBundle>, Problem> {
    let mut tools = control.store.list_tools(tenant).await?;
    tools.retain(|other| other.tool != tool.tool);
    tools.push(tool.clone());
    let text = control.store.policies(tenant).await?.unwrap_or_default();
    control.load_bundle(text, tools).await
}

/// The canonical hash of a registered record: receipts name what was registered without carrying it whole.
fn record_hash(record: &impl serde::Serialize) -> Option<String> {
    serde_json::to_value(record).ok().and_then(|value| aegis_canon::hash_value(&value).ok())
}

fn check_tool(tool: &ToolRecord) -> Result<(), Problem> {
    check_text("tool", &tool.tool, MAX_ID)?;
    check_text("name", &tool.name, MAX_ID)?;
    if tool.actions.len() > MAX_ACTIONS {
        return Err(Problem::bad_request("invalid_field", format!("a tool has at most {MAX_ACTIONS} actions")));
    }
    let mut seen = HashSet::new();
    for action in &tool.actions {
        check_action(action)?;
        if !seen.insert(action.action.as_str()) {
            return Err(Problem::bad_request("invalid_field", "an action is listed twice"));
        }
    }
    Ok(())
}

fn check_action(action: &ActionRecord) -> Result<(), Problem> {
    check_text("action", &action.action, MAX_ID)?;
    check_optional("target_parameter", action.target_parameter.as_deref(), MAX_ID)?;
    if action.description.as_ref().is_some_and(|text| text.chars().count() > MAX_TEXT) {
        return Err(Problem::bad_request("invalid_field", format!("`description` is longer than {MAX_TEXT} characters")));
    }
    match &action.parameters {
        Some(schema) if !schema.is_object() => {
            Err(Problem::bad_request("invalid_field", "`parameters` must be a JSON Schema object"))
        }
        _ => Ok(()),
    }
}

pub(crate) async fn list_tools(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    let tools = control.store.list_tools(call.tenant()).await?;
    let shown: Vec<_> = tools.into_iter().skip(page.offset as usize).take(page.limit as usize).collect();
    Ok(Json(shown).into_response())
}

pub(crate) async fn get_tool(control: &Control, call: &Call) -> Result<Response, Problem> {
    let tool = control.store.tool(call.tenant(), call.param("tool")).await?.ok_or_else(|| Problem::not_found("tool"))?;
    Ok(Json(tool).into_response())
}

pub(crate) async fn put_channel(control: &Control, call: &Call) -> Result<Response, Problem> {
    let channel: ChannelRecord = parse(&call.body, control.config.max_body_bytes)?;
    check_text("channel", &channel.channel, MAX_ID)?;
    if let Some(key) = &channel.public_key {
        aegis_keys::VerifyingKey::from_base64(key)
            .map_err(|_| Problem::bad_request("invalid_field", "`public_key` must be an Ed25519 public key in base64"))?;
    }
    control.check_entry(call.tenant(), EntryKind::Channel, &channel.channel, &channel)?;
    let _turn = control.registry_turn.lock().await;
    let detail = json!({"channel": channel.channel, "source_trust": channel.source_trust, "record_hash": record_hash(&channel)});
    let pending = control.prepare(control.config_draft(&call.caller, "channel_registered", detail))?;
    let revision = control.store.put_channel(call.tenant(), &channel, pending.rows()).await?;
    let sealed = control.seal(pending).await;
    control.publish(call.tenant(), EntryKind::Channel, &channel.channel, revision, &channel).await;
    sealed?;
    Ok((StatusCode::CREATED, Json(channel)).into_response())
}

pub(crate) async fn list_channels(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    Ok(Json(control.store.list_channels(call.tenant(), page.limit, page.offset).await?).into_response())
}

pub(crate) async fn put_resource(control: &Control, call: &Call) -> Result<Response, Problem> {
    let mut resource: ResourceRecord = parse(&call.body, control.config.max_body_bytes)?;
    check_text("resource", &resource.resource, MAX_RESOURCE)?;
    check_resource_name("resource", &resource.resource)?;
    check_optional("tool", resource.tool.as_deref(), MAX_ID)?;
    check_optional("owner", resource.owner.as_deref(), MAX_ID)?;
    // A person's word; only a source's own has a time.
    resource.observed_at = None;
    control.put_resource(&call.caller, &resource).await?;
    Ok((StatusCode::CREATED, Json(resource)).into_response())
}

impl Control {
    async fn put_resource(&self, caller: &Caller, resource: &ResourceRecord) -> Result<(), Problem> {
        let _turn = self.registry_turn.lock().await;
        self.put_resource_in_turn(caller, resource).await
    }

    /// The caller holds the registry's turn.
    async fn put_resource_in_turn(&self, caller: &Caller, resource: &ResourceRecord) -> Result<(), Problem> {
        self.check_entry(caller.tenant(), EntryKind::Resource, &resource.resource, resource)?;
        let detail =
            json!({"resource": resource.resource, "visibility": resource.visibility, "record_hash": record_hash(resource)});
        let pending = self.prepare(self.config_draft(caller, "resource_registered", detail))?;
        let revision = self.store.put_resource(caller.tenant(), resource, pending.rows()).await?;
        let sealed = self.seal(pending).await;
        self.publish(caller.tenant(), EntryKind::Resource, &resource.resource, revision, resource).await;
        sealed.map(|_| ())
    }

    /// Registers what a signed webhook said of a resource, if it is news. Receipted as the adapter's change.
    pub async fn observe_resource(&self, tenant: &TenantId, seen: &ResourceRecord) -> Result<(), ControlError> {
        // From the read to the write, so that of two deliveries the older cannot be written last.
        let _turn = self.registry_turn.lock().await;
        let known = self.store.resource(tenant, &seen.resource).await?;
        let news = match news(known.as_ref(), seen) {
            News::Nothing => return Ok(()),
            News::Again(at) => return Ok(self.store.raise_observed_at(tenant, &seen.resource, at).await?),
            News::Record(record) => record,
        };
        let adapter = Principal {
            tenant_id: tenant.clone(),
            key_id: WEBHOOK_ADAPTER.to_owned(),
            role: Role::Registrar,
            name: WEBHOOK_ADAPTER.to_owned(),
            groups: Vec::new(),
        };
        Ok(self.put_resource_in_turn(&Caller::Key(adapter), &news).await?)
    }

    /// What is known of a resource; the part before `#` stands for the whole when that is not registered.
    pub(crate) async fn resource_record(&self, tenant: &TenantId, name: &str) -> Result<Option<ResourceRecord>, Problem> {
        if let Some(record) = self.store.resource(tenant, name).await? {
            return Ok(Some(record));
        }
        match name.split_once('#') {
            Some((whole, _)) => Ok(self.store.resource(tenant, whole).await?),
            None => Ok(None),
        }
    }
}

/// What a delivery says of a resource that is known.
#[derive(Debug, PartialEq)]
enum News {
    Nothing,
    /// What is known, at a later time: an older delivery says nothing from now on.
    Again(Timestamp),
    Record(ResourceRecord),
}

/// What becomes of a record when a delivery says something of its resource.
///
/// Deliveries can be captured and sent again, so an older one says nothing. One that contradicts without being newer, or that
/// contradicts a person, proves only that it is not certain who can see the resource: that is taken at its most harmful.
fn news(known: Option<&ResourceRecord>, seen: &ResourceRecord) -> News {
    let Some(known) = known else { return News::Record(seen.clone()) };
    let same = (known.visibility, &known.tool, &known.owner) == (seen.visibility, &seen.tool, &seen.owner);
    match (known.observed_at, seen.observed_at) {
        (Some(held), Some(said)) if said > held && same => News::Again(said),
        (Some(held), Some(said)) if said > held => News::Record(seen.clone()),
        (Some(held), Some(said)) if said < held => News::Nothing,
        _ if same || known.visibility == seen.visibility || known.visibility == Visibility::Unknown => News::Nothing,
        _ => News::Record(ResourceRecord { visibility: Visibility::Unknown, ..known.clone() }),
    }
}

pub(crate) async fn list_resources(control: &Control, call: &Call) -> Result<Response, Problem> {
    let page = call.query.page()?;
    Ok(Json(control.store.list_resources(call.tenant(), page.limit, page.offset).await?).into_response())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use Visibility::{Private, Public, Unknown};

    fn record(visibility: Visibility, at: Option<i64>) -> ResourceRecord {
        ResourceRecord {
            resource: "acme/shop".to_owned(),
            tool: Some("github".to_owned()),
            visibility,
            owner: Some("acme".to_owned()),
            observed_at: at.map(Timestamp::from_micros),
        }
    }

    #[test]
    fn a_delivery_that_was_captured_never_restores_an_older_visibility() {
        let at = Timestamp::from_micros;
        let after = |known, seen| news(Some(&known), &seen);
        assert_eq!(after(record(Private, Some(2)), record(Public, Some(1))), News::Nothing, "older");
        assert_eq!(after(record(Private, Some(2)), record(Public, Some(3))), News::Record(record(Public, Some(3))), "newer");
        assert_eq!(after(record(Private, Some(2)), record(Private, Some(3))), News::Again(at(3)), "the same, later");
        for (known, said) in [(Some(2), Some(2)), (Some(2), None), (None, Some(9)), (None, None)] {
            let contradicted = after(record(Private, known), record(Public, said));
            assert_eq!(contradicted, News::Record(record(Unknown, known)), "{known:?} {said:?}");
            assert_eq!(after(record(Unknown, None), record(Public, said)), News::Nothing, "{known:?} {said:?}");
            assert_eq!(after(record(Private, known), record(Private, said)), News::Nothing, "{known:?} {said:?}");
        }
        assert_eq!(news(None, &record(Public, None)), News::Record(record(Public, None)));
    }
}
