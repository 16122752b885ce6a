//! The Cedar schema of a bundle: the base schema plus one action per registered action, with its groups and typed parameters.
//! The GitHub pack's actions are always declared, so that the pack validates before the tool is registered.

use std::collections::BTreeMap;

use aegis_model::{DefaultDecision, ToolRecord};
use cedar_policy::{Schema, SchemaFragment};
use serde_json::{Value, json};

use crate::entity::{action_id, tool_group_id};
use crate::error::{PolicyError, PolicyProblem};
use crate::github::{TOOLS, built_in_parameters, github_tool};
use crate::parameters::{Parameters, parameters_of, parameters_type};

/// Source name of problems that the registry has.
const REGISTRY: &str = "registry";

/// An action that policies may name.
#[derive(Clone, Debug)]
pub(crate) struct ActionSchema {
    pub(crate) tool: String,
    pub(crate) action: String,
    /// The id of its Cedar entity.
    pub(crate) id: String,
    /// The ids of the groups it is a member of.
    pub(crate) groups: Vec<String>,
    pub(crate) mutates: bool,
    pub(crate) parameters: Parameters,
    /// False: declared for the pack only; a call of it is unknown.
    pub(crate) registered: bool,
    /// What else of the registration a decision depends on: what policies read of it, and what tightens their word. In the digest alone.
    pub(crate) decides: Value,
}

impl ActionSchema {
    fn new(tool: &str, action: &aegis_model::ActionRecord, registered: bool) -> Self {
        let mut parameters = built_in_parameters(tool, &action.action);
        // The registration has the last word on a parameter's type.
        parameters.extend(action.parameters.as_ref().map(parameters_of).unwrap_or_default());
        let direction = if action.mutates_state { "write" } else { "read" };
        Self {
            tool: tool.to_owned(),
            action: action.action.clone(),
            id: action_id(tool, &action.action),
            groups: vec!["tool_call".to_owned(), direction.to_owned(), tool_group_id(tool)],
            mutates: action.mutates_state,
            parameters,
            registered,
            decides: json!({
                "risk": action.risk, "data_access": action.data_access, "destination": action.destination,
                "approval_required": action.approval_required,
                // `allow` and `policy` are one: neither widens.
                "denied": action.default_decision == DefaultDecision::Deny,
            }),
        }
    }
}

/// All actions that policies may name, in a fixed order.
pub(crate) fn declared_actions(tools: &[ToolRecord]) -> Result<Vec<ActionSchema>, PolicyError> {
    let mut actions: BTreeMap<String, ActionSchema> = BTreeMap::new();
    for tool in tools {
        for record in &tool.actions {
            let action = ActionSchema::new(&tool.tool, record, true);
            if let Some(twice) = actions.insert(action.id.clone(), action) {
                let message = format!("action `{}` is registered twice", twice.id);
                return Err(PolicyProblem::general(REGISTRY, message, Some("keep one registration of it")).into());
            }
        }
    }
    let usual = github_tool();
    for tool in TOOLS {
        for record in &usual.actions {
            let action = ActionSchema::new(tool, record, false);
            actions.entry(action.id.clone()).or_insert(action);
        }
    }
    Ok(actions.into_values().collect())
}

/// The schema for Cedar.
pub(crate) fn cedar_schema(actions: &[ActionSchema]) -> Result<Schema, PolicyError> {
    let broken = |error: &dyn std::fmt::Display| {
        PolicyProblem::general("aegis.cedarschema", format!("the schema cannot be built: {error}"), None)
    };
    let (fragment, _warnings) = SchemaFragment::from_cedarschema_str(crate::BASE_SCHEMA).map_err(|error| broken(&error))?;
    let mut schema = fragment.to_json_value().map_err(|error| broken(&error))?;
    let call_context = schema[""]["commonTypes"].get("CallContext");
    let call_context = call_context.cloned().ok_or_else(|| broken(&"CallContext is missing"))?;
    let Some(declared) = schema[""]["actions"].as_object_mut() else {
        return Err(broken(&"the action groups are missing").into());
    };
    for action in actions {
        for group in &action.groups {
            declared.entry(group.clone()).or_insert_with(|| json!({}));
        }
        let mut context = call_context.clone();
        context["attributes"]["parameters"] = parameters_type(&action.parameters);
        let groups: Vec<Value> = action.groups.iter().map(|group| json!({"id": group})).collect();
        let declaration = json!({
            "memberOf": groups,
            "appliesTo": {"principalTypes": ["Agent"], "resourceTypes": ["Resource"], "context": context},
        });
        declared.insert(action.id.clone(), declaration);
    }
    Ok(Schema::from_json_value(schema).map_err(|error| broken(&error))?)
}
