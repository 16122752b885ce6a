//! Deciding one call: the call as a Cedar request, Cedar's answer as an outcome with the ids and words of the policies behind it.
//! Whatever goes wrong here is a deny with a code.

use std::collections::{BTreeSet, HashSet};

use aegis_model::{Decision, Visibility};
use cedar_policy::{Context, Entity, Request, Response, RestrictedExpression, Schema};

use crate::annotations::PolicyMeta;
use crate::bundle::{BundledAction, PolicyBundle};
use crate::entity::{agent_id, resource_id, uid};
use crate::input::{PolicyInput, PolicyOutcome};
use crate::parameters::{Represented, represent};
use crate::{POLICY_ERROR, UNKNOWN_ACTION, UNREPRESENTABLE_PARAMETER};

/// Reasons quoted in one outcome; more policies are counted.
const MAX_REASONS: usize = 3;
/// Longest name quoted in a reason, in characters.
const MAX_NAME_CHARS: usize = 64;
/// The reason of a deny that no policy made.
const NO_PERMIT: &str = "no policy permits this action";

impl PolicyBundle {
    /// Decides one call. Pure: the same bundle and input give the same outcome.
    #[must_use]
    pub fn evaluate(&self, input: &PolicyInput<'_>) -> PolicyOutcome {
        let Some(action) = self.actions.get(input.tool).and_then(|actions| actions.get(input.action)) else {
            return deny(UNKNOWN_ACTION, "the action is not registered".to_owned(), BTreeSet::new());
        };
        // The strictest of what is said: a registry that is newer than the bundle counts as well.
        let written = action.mutates || input.registered_mutates;
        let mutates = written || input.mutates_state;
        let blinded = mutates && !(action.readers.is_empty() && action.readers_of_all.is_empty());
        let mut unrepresentable = Vec::new();
        if blinded || action.memo.reads_unrepresentable() {
            let represented = represent(input.parameters, &action.parameters);
            if mutates && let Some(denied) = deny_unrepresentable(action, &represented) {
                return denied;
            }
            unrepresentable = represented.unrepresentable;
        }
        let record = input.resource_record.filter(|record| record.tool.as_deref().is_none_or(|tool| tool == input.tool));
        let visibility = record.map_or(Visibility::Unknown, |record| record.visibility);
        let owner = record.and_then(|record| record.owner.as_deref());
        let visibilities: &[Visibility] = match visibility {
            Visibility::Public => &[Visibility::Public],
            Visibility::Private => &[Visibility::Private],
            Visibility::Unknown if written => &[Visibility::Public],
            // Registered as a read, called as a write: it is both, so the stricter of both answers holds.
            Visibility::Unknown if mutates => &[Visibility::Private, Visibility::Public],
            Visibility::Unknown => &[Visibility::Private],
        };
        let Some(key) = action.memo.key(input, mutates, visibilities, owner, &unrepresentable) else {
            return self.ask(input, action, mutates, visibilities, owner);
        };
        if let Some(known) = action.memo.recall(&key) {
            if cfg!(any(test, debug_assertions)) {
                assert_eq!(known, self.ask(input, action, mutates, visibilities, owner), "L-MEMO");
            }
            return known;
        }
        let outcome = self.ask(input, action, mutates, visibilities, owner);
        // An error may come of the moment (a short stack), so it is never remembered.
        if outcome.code.is_none() {
            action.memo.remember(key, outcome.clone());
        }
        outcome
    }

    /// Puts the call to Cedar, and keeps the strictest answer over the visibilities that the resource may have.
    fn ask(
        &self,
        input: &PolicyInput<'_>,
        action: &BundledAction,
        mutates: bool,
        visibilities: &[Visibility],
        owner: Option<&str>,
    ) -> PolicyOutcome {
        let represented = represent(input.parameters, &action.parameters);
        let Ok(context) = context_of(input, mutates, represented) else {
            return deny(POLICY_ERROR, "the call could not be put to the policies".to_owned(), BTreeSet::new());
        };
        let mut strictest: Option<PolicyOutcome> = None;
        for visibility in visibilities {
            let outcome = self.decide(input, action, context.clone(), *visibility, owner);
            let stricter =
                strictest.as_ref().is_none_or(|known| (outcome.decision, outcome.approvals) > (known.decision, known.approvals));
            if stricter {
                strictest = Some(outcome);
            }
        }
        strictest.unwrap_or_else(|| deny(POLICY_ERROR, NO_PERMIT.to_owned(), BTreeSet::new()))
    }

    fn decide(
        &self,
        input: &PolicyInput<'_>,
        action: &BundledAction,
        context: Context,
        visibility: Visibility,
        owner: Option<&str>,
    ) -> PolicyOutcome {
        let failed = || deny(POLICY_ERROR, "the call could not be put to the policies".to_owned(), BTreeSet::new());
        // The request is right by construction: action, context and types come from the registry the schema was built from.
        let schema: Option<&Schema> = if cfg!(any(test, debug_assertions)) { Some(&self.schema) } else { None };
        let name = input.resource.unwrap_or_default();
        let resource = uid(&self.types.resource, &resource_id(input.tenant_id.as_str(), name));
        let principal = uid(&self.types.agent, &agent_id(input.tenant_id.as_str(), input.agent_id));
        let container = name.split_once('#').map_or(name, |(container, _)| container);
        let mut attributes = vec![
            text("tool", input.tool),
            text("name", name),
            text("container", container),
            text("visibility", visibility.as_str()),
        ];
        attributes.extend(owner.map(|owner| text("owner", owner)));
        let Ok(entity) = Entity::new_with_tags(resource.clone(), attributes, HashSet::new(), []) else { return failed() };
        let Ok(entities) = action.entities.clone().add_entities([entity], schema) else { return failed() };
        let Ok(request) = Request::new(principal, action.uid.clone(), resource, context, schema) else { return failed() };
        self.outcome_of(&self.authorizer.is_authorized(&request, &action.policies, &entities))
    }

    fn outcome_of(&self, response: &Response) -> PolicyOutcome {
        let diagnostics = response.diagnostics();
        // Cedar skips a policy that fails, forbids included. The error text may quote arguments, so only ids are told.
        let failed: BTreeSet<String> = diagnostics
            .errors()
            .map(|error| match error {
                cedar_policy::AuthorizationError::PolicyEvaluationError(error) => error.policy_id().to_string(),
            })
            .collect();
        if let Some(first) = failed.first() {
            let reason = format!("policy `{first}` failed while it was evaluated");
            return deny(POLICY_ERROR, reason, failed);
        }
        let mut determining: Vec<&PolicyMeta> = diagnostics.reason().filter_map(|id| self.metas.get(id)).collect();
        determining.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        let matched_policies: Vec<String> = determining.iter().map(|meta| meta.id.clone()).collect();
        let mut outcome = PolicyOutcome {
            decision: Decision::Deny,
            reason: String::new(),
            matched_policies,
            approver_group: None,
            approvals: 1,
            code: None,
        };
        if response.decision() == cedar_policy::Decision::Deny {
            outcome.reason = if determining.is_empty() { NO_PERMIT.to_owned() } else { reason_of(&determining, "denied") };
            return outcome;
        }
        let asking: Vec<&PolicyMeta> = determining.iter().copied().filter(|meta| meta.approval.is_some()).collect();
        if asking.is_empty() {
            outcome.decision = Decision::Allow;
            outcome.reason = reason_of(&determining, "permitted");
            return outcome;
        }
        outcome.decision = Decision::RequireApproval;
        outcome.reason = reason_of(&asking, "approval asked for");
        let approvals = || asking.iter().filter_map(|meta| meta.approval.as_ref());
        outcome.approver_group = approvals().find_map(|approval| approval.group.clone());
        outcome.approvals = approvals().map(|approval| approval.approvals).max().unwrap_or(1);
        outcome
    }
}

fn deny(code: &'static str, reason: String, policies: BTreeSet<String>) -> PolicyOutcome {
    PolicyOutcome {
        decision: Decision::Deny,
        reason,
        matched_policies: policies.into_iter().collect(),
        approver_group: None,
        approvals: 1,
        code: Some(code),
    }
}

/// A policy cannot judge what it cannot see: a forbid over an amount would let a fraction of it pass.
fn deny_unrepresentable(action: &BundledAction, represented: &Represented<'_>) -> Option<PolicyOutcome> {
    let mut blind: BTreeSet<String> = BTreeSet::new();
    let mut first: Option<&str> = None;
    for name in &represented.incomplete {
        let readers = action.readers.get(*name).map(Vec::as_slice).unwrap_or_default();
        if readers.is_empty() && action.readers_of_all.is_empty() {
            continue;
        }
        first = first.or(Some(name));
        blind.extend(readers.iter().chain(&action.readers_of_all).cloned());
    }
    let name: String = first?.chars().take(MAX_NAME_CHARS).collect();
    let reason = format!(
        "parameter `{}` has a value that policies cannot see, and policy `{}` reads it",
        name.escape_debug(),
        blind.first()?
    );
    Some(deny(UNREPRESENTABLE_PARAMETER, reason, blind))
}

fn text(name: &str, value: &str) -> (String, RestrictedExpression) {
    (name.to_owned(), RestrictedExpression::new_string(value.to_owned()))
}

fn truth(name: &str, value: bool) -> (String, RestrictedExpression) {
    (name.to_owned(), RestrictedExpression::new_bool(value))
}

fn context_of(
    input: &PolicyInput<'_>,
    mutates: bool,
    represented: Represented<'_>,
) -> Result<Context, Box<dyn std::error::Error>> {
    let user = [input.user_id.map(|id| text("id", id)), input.user_role.map(|role| text("role", role))];
    let unrepresentable = represented.unrepresentable.into_iter().map(RestrictedExpression::new_string);
    let attributes = [
        text("trust_level", input.trust_level.as_str()),
        text("root_trust_level", input.root_trust.as_str()),
        truth("mutates_state", mutates),
        truth("contains_sensitive_data", input.contains_sensitive_data),
        text("environment", input.environment),
        text("risk_level", input.risk_level.as_str()),
        text("data_access", input.data_access.as_str()),
        text("destination", input.destination.as_str()),
        text("agent_risk_tier", input.agent_risk_tier.as_str()),
        ("user".to_owned(), RestrictedExpression::new_record(user.into_iter().flatten())?),
        ("unrepresentable".to_owned(), RestrictedExpression::new_set(unrepresentable)),
        ("parameters".to_owned(), RestrictedExpression::new_record(represented.fields)?),
    ];
    Ok(Context::from_pairs(attributes)?)
}

/// The words of the deciding policies, in the order of their ids.
fn reason_of(deciding: &[&PolicyMeta], verb: &str) -> String {
    let mut reasons: Vec<String> = Vec::new();
    for meta in deciding {
        let reason = meta.reason.clone().unwrap_or_else(|| format!("{verb} by policy `{}`", meta.id));
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    let hidden = reasons.len().saturating_sub(MAX_REASONS);
    reasons.truncate(MAX_REASONS);
    let mut joined = reasons.join("; ");
    if hidden > 0 {
        joined.push_str(&format!("; and {hidden} more"));
    }
    joined
}
