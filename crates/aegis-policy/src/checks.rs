//! What a parsed policy may say: its own id, parameters that its actions have, words that exist, and what Cedar's validator finds.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cedar_policy::{PolicyId, PolicySet, Schema, ValidationError, ValidationMode, Validator};

use crate::error::{PolicyError, PolicyProblem, Position};
use crate::labels::{nearest, words_of};
use crate::parameters::{Known, Parameters, lookup};
use crate::schema::ActionSchema;
use crate::source::{LoadedPolicy, find_word};

/// Names listed in a hint.
const MAX_NAMES_IN_HINT: usize = 12;

pub(crate) fn check_ids(loaded: &[LoadedPolicy<'_>], problems: &mut Vec<PolicyProblem>) {
    let mut first_of: HashMap<&str, &LoadedPolicy<'_>> = HashMap::new();
    for policy in loaded {
        if let Some(first) = first_of.insert(&policy.meta.id, policy) {
            let message = format!("policy id `{}` is used twice", policy.meta.id);
            let hint = format!("give each policy its own @id; the other one is in {}", first.source.name);
            problems.push(policy.problem(&["@id".to_owned()], message).hint(hint));
        }
    }
}

/// A parameter that no action in the policy's scope has is a typing error. Cedar would only see that `has` is always false.
pub(crate) fn check_parameters(policy: &LoadedPolicy<'_>, actions: &[ActionSchema], problems: &mut Vec<PolicyProblem>) {
    if policy.covers.is_empty() {
        // An unknown action; Cedar says so.
        return;
    }
    let covered = || policy.covers.iter().map(|index| &actions[*index].parameters);
    for path in &policy.mentions.paths {
        let known = covered().map(|parameters| lookup(parameters, path)).max().unwrap_or(Known::No);
        let name = path.join(".");
        let (message, hint) = match known {
            Known::Held => continue,
            Known::NotHeld => (
                format!("parameter `{name}` is registered with a type that policies cannot hold"),
                "register it as string, boolean, integer, array with one type of items, or object with properties".to_owned(),
            ),
            Known::No => (
                format!("no registered action in the scope of this policy has the parameter `{name}`"),
                parameter_hint(&path[0], covered()),
            ),
        };
        problems.push(policy.problem_at(parameter_place(&policy.text, path), message).hint(hint));
    }
}

/// Where a policy's text names a parameter. Cedar's JSON form has no positions, so this looks for the ways to write it.
fn parameter_place(text: &str, path: &[String]) -> usize {
    let name = path.join(".");
    let last = path.last().map_or("", String::as_str);
    let plain = [format!("parameters.{name}"), format!("parameters has {name}")];
    let usual = plain.iter().filter_map(|written| Some(find_word(text, written)? + written.len() - last.len())).min();
    // `has` below a member, index notation, or spread over lines.
    let others = [format!("has {last}"), format!(".{last}"), format!("\"{last}\""), last.to_owned()];
    let other = || others.iter().find_map(|written| Some(find_word(text, written)? + written.find(last)?));
    usual.or_else(other).unwrap_or(0)
}

fn parameter_hint<'a>(name: &str, covered: impl Iterator<Item = &'a Parameters>) -> String {
    let names: BTreeSet<&str> = covered.flat_map(|parameters| parameters.keys().map(String::as_str)).collect();
    if let Some(near) = nearest(name, names.iter().copied().filter(|known| *known != name)) {
        return format!("did you mean `{near}`?");
    }
    if names.is_empty() {
        return "the actions in its scope are registered without parameters; register their JSON Schema first".to_owned();
    }
    let listed: Vec<String> = names.iter().take(MAX_NAMES_IN_HINT).map(|known| format!("`{known}`")).collect();
    let more = if names.len() > MAX_NAMES_IN_HINT { ", …" } else { "" };
    format!("registered there: {}{more}; or register the parameter first", listed.join(", "))
}

/// A word that a closed attribute never has is a typing error.
pub(crate) fn check_labels(policy: &LoadedPolicy<'_>, problems: &mut Vec<PolicyProblem>) {
    for (path, word) in &policy.mentions.compared {
        let Some(words) = words_of(path).filter(|words| !words.contains(&word.as_str())) else { continue };
        let hint = match nearest(word, words.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("it is one of {}", words.join(", ")),
        };
        let message = format!("`{}` is never \"{}\"", path.join("."), word.escape_debug());
        problems.push(policy.problem(&[format!("\"{word}\"")], message).hint(hint));
    }
}

/// Cedar's strict validation. Returns the warnings; errors go to `problems`, less those about policies that already have one.
pub(crate) fn validate(
    loaded: &[LoadedPolicy<'_>],
    schema: &Schema,
    problems: &mut Vec<PolicyProblem>,
) -> Result<Vec<PolicyProblem>, PolicyError> {
    let set = PolicySet::from_policies(loaded.iter().map(|policy| policy.policy.clone()))
        .map_err(|error| PolicyProblem::internal(&error))?;
    let by_id: HashMap<&str, &LoadedPolicy<'_>> = loaded.iter().map(|policy| (policy.meta.id.as_str(), policy)).collect();
    let already: BTreeSet<String> = problems.iter().filter_map(|problem| problem.policy_id.clone()).collect();
    let found = |id: &PolicyId, diagnostic: &dyn miette::Diagnostic| match by_id.get(id.as_ref() as &str) {
        Some(policy) => PolicyProblem::from_cedar(&policy.source.name, &policy.source.text, diagnostic).policy(&policy.meta.id),
        None => PolicyProblem::general("bundle", diagnostic.to_string(), None),
    };
    let result = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
    // Cedar checks a policy once per action in its scope and finds the same thing each time: told once, with the number of actions.
    let mut by_place: BTreeMap<(Option<String>, Option<Position>), Vec<PolicyProblem>> = BTreeMap::new();
    for error in result.validation_errors().filter(|error| !already.contains(error.policy_id().as_ref() as &str)) {
        let mut problem = found(error.policy_id(), error);
        if matches!(error, ValidationError::UnrecognizedActionId(_)) {
            let hint = "register the action first, or scope the policy by a group and its context";
            problem.hint = Some(problem.hint.map_or_else(|| hint.to_owned(), |known| format!("{known}; or {hint}")));
        }
        by_place.entry((problem.policy_id.clone(), problem.position)).or_default().push(problem);
    }
    for mut alike in by_place.into_values() {
        alike.sort_by(|a, b| a.message.cmp(&b.message));
        let others = alike.len() - 1;
        problems.extend(alike.into_iter().next().map(|mut first| {
            if others > 0 {
                first.message.push_str(&format!(" (and {others} more like it)"));
            }
            first
        }));
    }
    Ok(result.validation_warnings().map(|warning| found(warning.policy_id(), warning)).collect())
}
