//! Policy sources as text: bounded, parsed, split into policies with their annotations and what they mention, each with its place.

use std::collections::BTreeSet;

use cedar_policy::{Policy, PolicyId, PolicySet};

use crate::annotations::PolicyMeta;
use crate::error::{PolicyError, PolicyProblem};
use crate::mentions::Mentions;
use crate::nesting::find_excess;

/// Longest policy source, in bytes.
const MAX_SOURCE_BYTES: usize = 256 * 1024;
/// Most policies of a bundle.
const MAX_POLICIES: usize = 5_000;

/// The text of some policies, and what people call it (a file name, a pack's name).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySource {
    pub name: String,
    pub text: String,
}

/// A policy that parsed and whose annotations are right.
pub(crate) struct LoadedPolicy<'a> {
    pub(crate) source: &'a PolicySource,
    /// Where its text starts in the source, and the text.
    offset: usize,
    pub(crate) text: String,
    pub(crate) meta: PolicyMeta,
    pub(crate) policy: Policy,
    pub(crate) mentions: Mentions,
    /// Indices of the declared actions in its scope.
    pub(crate) covers: Vec<usize>,
}

pub(crate) fn check_source<'a>(source: &'a PolicySource, names: &mut BTreeSet<&'a str>) -> Result<(), PolicyError> {
    if !names.insert(&source.name) {
        return Err(
            PolicyProblem::general(&source.name, "two sources have this name", Some("give each source its own name")).into()
        );
    }
    if source.text.len() > MAX_SOURCE_BYTES {
        let message = format!("source has {} bytes, more than {MAX_SOURCE_BYTES}", source.text.len());
        return Err(PolicyProblem::general(&source.name, message, Some("split it into several sources")).into());
    }
    if let Some((offset, message)) = find_excess(&source.text) {
        return Err(PolicyProblem::at(&source.name, &source.text, offset, message).hint("split the policy into several").into());
    }
    Ok(())
}

pub(crate) fn parse<'a>(sources: &'a [PolicySource], problems: &mut Vec<PolicyProblem>) -> Vec<LoadedPolicy<'a>> {
    let mut loaded = Vec::new();
    for source in sources {
        let set: PolicySet = match source.text.parse() {
            Ok(set) => set,
            Err(errors) => {
                problems.extend(errors.iter().map(|error| PolicyProblem::from_cedar(&source.name, &source.text, error)));
                continue;
            }
        };
        if set.templates().next().is_some() {
            let hint = "write the principal or resource out; `?principal` and `?resource` need linking, which bundles do not do";
            problems.push(PolicyProblem::general(&source.name, "policy templates are not supported", Some(hint)));
        }
        for policy in set.policies() {
            match load_policy(source, policy) {
                Ok(policy) => loaded.push(policy),
                Err(error) => problems.extend_from_slice(error.problems()),
            }
        }
    }
    if loaded.len() > MAX_POLICIES {
        let message = format!("the bundle has {} policies, more than {MAX_POLICIES}", loaded.len());
        problems.push(PolicyProblem::general("bundle", message, None));
    }
    loaded
}

fn load_policy<'a>(source: &'a PolicySource, policy: &Policy) -> Result<LoadedPolicy<'a>, PolicyError> {
    // Cedar keeps the very slice of the source that the policy was parsed from.
    let text = policy.to_cedar().unwrap_or_default();
    let offset = source.text.find(&text).unwrap_or(0);
    let meta = PolicyMeta::read(policy).map_err(|bad| {
        let at = bad.name.as_ref().and_then(|name| text.find(&format!("@{name}"))).unwrap_or(0);
        let mut problem = PolicyProblem::at(&source.name, &source.text, offset + at, bad.message).hint(bad.hint);
        problem.policy_id = policy.annotation("id").map(|id| id.chars().take(64).collect());
        problem
    })?;
    let json = policy
        .to_json()
        .map_err(|error| PolicyProblem::at(&source.name, &source.text, offset, error.to_string()).policy(&meta.id))?;
    let policy = policy.new_id(PolicyId::new(&meta.id));
    Ok(LoadedPolicy { source, offset, text, mentions: Mentions::of(&json), meta, policy, covers: Vec::new() })
}

impl LoadedPolicy<'_> {
    /// A problem where the first of `candidates` that occurs stands in the policy's text, or else at its start.
    pub(crate) fn problem(&self, candidates: &[String], message: String) -> PolicyProblem {
        let at = candidates.iter().find_map(|candidate| find_word(&self.text, candidate)).unwrap_or(0);
        self.problem_at(at, message)
    }

    pub(crate) fn problem_at(&self, at: usize, message: String) -> PolicyProblem {
        PolicyProblem::at(&self.source.name, &self.source.text, self.offset + at, message).policy(&self.meta.id)
    }
}

/// `needle` in `text` where it is not part of a longer name.
pub(crate) fn find_word(text: &str, needle: &str) -> Option<usize> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(needle).map(|(at, _)| at).find(|at| {
        let starts = !needle.starts_with(is_name) || !text[..*at].ends_with(is_name);
        let ends = !needle.ends_with(is_name) || !text[at + needle.len()..].starts_with(is_name);
        starts && ends
    })
}
