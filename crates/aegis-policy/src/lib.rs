//! Cedar policy bundles: load, validate against a schema generated from the tool registry, evaluate, simulate.
//! Promises: deny is the answer to everything it does not know or cannot evaluate, and every answer names the policies behind it.
//! Never reads a clock, a file or a network, and never decides from a score.

mod annotations;
mod bundle;
mod checks;
mod entity;
mod error;
mod evaluate;
mod github;
mod input;
mod labels;
mod memo;
mod mentions;
mod nesting;
mod parameters;
mod schema;
mod source;

pub use bundle::PolicyBundle;
pub use entity::{action_id, agent_id, resource_id, tool_group_id};
pub use error::{PolicyError, PolicyProblem, Position};
pub use github::github_tool;
pub use input::{Change, PolicyInput, PolicyOutcome, RecordedCall, compare, simulate};
pub use source::PolicySource;

/// Code of a deny because a policy failed while it was evaluated.
pub const POLICY_ERROR: &str = "policy_error";
/// Code of a deny because the bundle's registry does not have the action.
pub const UNKNOWN_ACTION: &str = "unknown_action";
/// Code of a deny because a mutating call carries a value that policies cannot see and one of them reads.
pub const UNREPRESENTABLE_PARAMETER: &str = "unrepresentable_parameter";

/// The Cedar schema that every bundle starts from, for editors and for people; actions come from the registry.
pub const BASE_SCHEMA: &str = include_str!("../../../policies/aegis.cedarschema");

/// The default pack: what each trust label may change (`policies/default.cedar`).
#[must_use]
pub fn default_pack() -> PolicySource {
    PolicySource { name: "default.cedar".to_owned(), text: include_str!("../../../policies/default.cedar").to_owned() }
}

/// The GitHub pack, to be loaded beside the default pack (`policies/github.cedar`).
#[must_use]
pub fn github_pack() -> PolicySource {
    PolicySource { name: "github.cedar".to_owned(), text: include_str!("../../../policies/github.cedar").to_owned() }
}

#[cfg(test)]
mod tests;
