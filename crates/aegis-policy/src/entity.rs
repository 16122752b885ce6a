//! How agents, actions and resources are named in Cedar. Every part is percent-encoded, so no two tuples of parts share a name.

use cedar_policy::{EntityId, EntityTypeName, EntityUid};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::{PolicyError, PolicyProblem};

/// Everything but RFC 3986 §2.3 unreserved characters is encoded, `/` and `:` above all: they separate parts.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn join(first: &str, second: &str) -> String {
    let mut id = String::with_capacity(first.len() + second.len() + 1);
    id.extend(utf8_percent_encode(first, ENCODED));
    id.push('/');
    id.extend(utf8_percent_encode(second, ENCODED));
    id
}

/// The id of `Agent::"<tenant>/<agent id>"`.
#[must_use]
pub fn agent_id(tenant: &str, agent: &str) -> String {
    join(tenant, agent)
}

/// The id of `Resource::"<tenant>/<resource>"`. A call without a resource has the empty one.
#[must_use]
pub fn resource_id(tenant: &str, resource: &str) -> String {
    join(tenant, resource)
}

/// The id of `Action::"<tool>/<action>"`.
#[must_use]
pub fn action_id(tool: &str, action: &str) -> String {
    join(tool, action)
}

/// The id of the group of all actions of a tool, `Action::"tool:<tool>"`. It has no `/`, so it is never an action's own id.
#[must_use]
pub fn tool_group_id(tool: &str) -> String {
    let mut id = "tool:".to_owned();
    id.extend(utf8_percent_encode(tool, ENCODED));
    id
}

/// The entity types of the schema, parsed once.
#[derive(Clone, Debug)]
pub(crate) struct EntityTypes {
    pub(crate) agent: EntityTypeName,
    pub(crate) resource: EntityTypeName,
    pub(crate) action: EntityTypeName,
}

impl EntityTypes {
    pub(crate) fn new() -> Result<Self, PolicyError> {
        let parse = |name: &str| name.parse().map_err(|error| PolicyError::from(PolicyProblem::internal(&error)));
        Ok(Self { agent: parse("Agent")?, resource: parse("Resource")?, action: parse("Action")? })
    }
}

pub(crate) fn uid(entity_type: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(entity_type.clone(), EntityId::new(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_cannot_pose_as_others() {
        assert_eq!(agent_id("a", "b/c"), "a/b%2Fc");
        assert_ne!(agent_id("a", "b/c"), agent_id("a/b", "c"));
        assert_ne!(agent_id("a", "%2F"), agent_id("a", "/"));
        assert_eq!(resource_id("acme", "payments-service#482"), "acme/payments-service%23482");
        assert_eq!(action_id("mcp:github", "get_me"), "mcp%3Agithub/get_me");
        assert_eq!(tool_group_id("mcp:github"), "tool:mcp%3Agithub");
    }

    proptest! {
        #[test]
        fn different_parts_have_different_ids(a in ".{0,8}", b in ".{0,8}", c in ".{0,8}", d in ".{0,8}") {
            prop_assert_eq!((&a, &b) == (&c, &d), join(&a, &b) == join(&c, &d));
        }

        #[test]
        fn separators_in_parts_never_move_a_boundary(a in "[ab/%]{0,4}", b in "[ab/%]{0,4}", c in "[ab/%]{0,4}", d in "[ab/%]{0,4}") {
            prop_assert_eq!((&a, &b) == (&c, &d), join(&a, &b) == join(&c, &d));
            prop_assert_ne!(join(&a, &b), tool_group_id(&c));
        }
    }
}
