//! What rules can read of a tool's registration: columns of events, and not receipts. Promises that each action that is registered, or not any more, stands in one of the
//! events, beside what was registered of it before where that was something else, and that no event grows with the tool.

use std::collections::{HashMap, HashSet};

use aegis_ledger::Draft;
use aegis_model::{ActionRecord, ToolRecord};
use aegis_policy::PolicyBundle;
use aegis_store::OutboxRow;
use serde_json::{Value, json};

use super::record_hash;
use crate::auth::Caller;
use crate::control::Control;
use crate::outbox::Pending;
use crate::problem::Problem;

/// About as many bytes of `attributes` one event has; what is more stands in further ones.
const PART_BYTES: usize = 16 * 1024;

/// Some of a tool's actions.
#[derive(Debug, Default)]
struct Part {
    actions: Vec<Value>,
    removed: Vec<Value>,
    bytes: usize,
}

/// The facts of a tool's registration, which makes this bundle, in the place of what was registered before.
pub(super) fn drafts(
    control: &Control,
    caller: &Caller,
    before: Option<&ToolRecord>,
    tool: &ToolRecord,
    bundle: &PolicyBundle,
) -> Vec<Draft> {
    let parts = parts_of(before, tool);
    let count = parts.len();
    let draft_of = |(place, part): (usize, Part)| {
        let mut detail = json!({"tool": tool.tool, "record_hash": record_hash(tool), "actions": tool.actions.len()});
        if count > 1 {
            (detail["part"], detail["parts"]) = (json!(place + 1), json!(count));
        }
        let change = if place == 0 { "tool_registered" } else { "tool_registered_more" };
        let mut draft = control.config_draft(caller, change, detail);
        let Part { actions, removed, .. } = part;
        draft.event.attributes = Some(json!({"tool": tool.tool, "actions": actions, "removed": removed}).to_string());
        if place == 0 {
            // As a change of policies says it: decisions name the digest that they were made under.
            draft.event.policy_digest = Some(bundle.digest().to_owned());
        }
        draft
    };
    parts.into_iter().enumerate().map(draft_of).collect()
}

fn parts_of(before: Option<&ToolRecord>, tool: &ToolRecord) -> Vec<Part> {
    let of_before = before.map(|tool| tool.actions.as_slice()).unwrap_or_default();
    let known: HashMap<&str, &ActionRecord> = of_before.iter().map(|action| (action.action.as_str(), action)).collect();
    let stays: HashSet<&str> = tool.actions.iter().map(|action| action.action.as_str()).collect();
    let registered = tool.actions.iter().map(|action| {
        let facts = facts_of(action);
        let was = known.get(action.action.as_str()).map(|was| facts_of(was)).filter(|was| *was != facts);
        (true, named(action, facts, was))
    });
    let removed = of_before.iter().filter(|action| !stays.contains(action.action.as_str()));
    let removed = removed.map(|action| (false, named(action, facts_of(action), None)));
    let mut parts = Vec::new();
    let mut part = Part::default();
    for (is_registered, said) in registered.chain(removed) {
        let bytes = said.to_string().len() + 1;
        if part.bytes > 0 && part.bytes + bytes > PART_BYTES {
            parts.push(std::mem::take(&mut part));
        }
        part.bytes += bytes;
        if is_registered { part.actions.push(said) } else { part.removed.push(said) }
    }
    parts.push(part);
    parts
}

fn facts_of(action: &ActionRecord) -> Value {
    let ActionRecord { risk, mutates_state, data_access, destination, approval_required, default_decision, .. } = action;
    json!({
        "risk": risk, "mutates_state": mutates_state, "data_access": data_access, "destination": destination,
        "approval_required": approval_required, "default_decision": default_decision,
    })
}

fn named(action: &ActionRecord, mut facts: Value, was: Option<Value>) -> Value {
    facts["action"] = json!(action.action);
    if let Some(was) = was {
        facts["was"] = was;
    }
    facts
}

/// Prepares them all, or none where the ledger cannot be written.
pub(super) fn prepare(control: &Control, drafts: Vec<Draft>) -> Result<Vec<Pending>, Problem> {
    drafts.into_iter().map(|draft| control.prepare(draft)).collect()
}

/// What the store writes with the change.
pub(super) fn rows_of(pending: &[Pending]) -> Vec<OutboxRow> {
    pending.iter().flat_map(|pending| pending.rows().iter().cloned()).collect()
}

/// Seals them, each whatever became of the others.
pub(super) async fn seal(control: &Control, pending: Vec<Pending>) -> Result<(), Problem> {
    let mut sealed = Ok(());
    for pending in pending {
        sealed = sealed.and(control.seal(pending).await.map(drop));
    }
    sealed
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::{DataAccess, DefaultDecision, Destination, RiskLevel};

    fn action(name: &str, risk: RiskLevel) -> ActionRecord {
        ActionRecord {
            action: name.to_owned(),
            description: Some("a text that no rule reads".to_owned()),
            risk,
            mutates_state: true,
            data_access: DataAccess::Sensitive,
            destination: Destination::External,
            target_parameter: None,
            parameters: None,
            approval_required: false,
            default_decision: DefaultDecision::Policy,
        }
    }

    fn tool(actions: Vec<ActionRecord>) -> ToolRecord {
        ToolRecord { tool: "crm".to_owned(), name: "CRM".to_owned(), default_risk: RiskLevel::Medium, actions }
    }

    #[test]
    fn each_action_is_told_with_what_it_was_and_one_that_is_gone_too() {
        let before =
            tool(vec![action("same", RiskLevel::High), action("lower", RiskLevel::High), action("gone", RiskLevel::Low)]);
        let now = tool(vec![action("same", RiskLevel::High), action("lower", RiskLevel::Low), action("new", RiskLevel::Low)]);
        let facts = |risk: &str| {
            json!({"risk": risk, "mutates_state": true, "data_access": "sensitive", "destination": "external",
                   "approval_required": false, "default_decision": "policy"})
        };
        let with = |name: &str, risk: &str, was: Option<&str>| {
            let mut said = facts(risk);
            said["action"] = json!(name);
            if let Some(was) = was {
                said["was"] = facts(was);
            }
            said
        };
        let [part] = <[Part; 1]>::try_from(parts_of(Some(&before), &now)).unwrap();
        assert_eq!(part.actions, [with("same", "high", None), with("lower", "low", Some("high")), with("new", "low", None)]);
        assert_eq!(part.removed, [with("gone", "low", None)]);
        let [first] = <[Part; 1]>::try_from(parts_of(None, &before)).unwrap();
        assert_eq!((first.actions.len(), first.removed.len()), (3, 0));
        let [none] = <[Part; 1]>::try_from(parts_of(None, &tool(Vec::new()))).unwrap();
        assert!(none.actions.is_empty(), "a tool without actions is registered too");
    }

    #[test]
    fn a_large_tool_is_told_in_parts_that_are_bounded_and_have_all_of_it() {
        let names: Vec<String> = (0..500).map(|n| format!("{}-{n:03}", "\u{1}".repeat(200))).collect();
        let of = |risk| tool(names.iter().map(|name| action(name, risk)).collect());
        let parts = parts_of(Some(&of(RiskLevel::High)), &of(RiskLevel::Low));
        assert!(parts.len() > 10);
        let sizes = parts.iter().map(|part| json!({"actions": part.actions, "removed": part.removed}).to_string().len());
        assert!(sizes.max().unwrap() < PART_BYTES + 100);
        let told: Vec<&str> = parts.iter().flat_map(|part| &part.actions).filter_map(|said| said["action"].as_str()).collect();
        assert_eq!(told, names);
    }
}
