//! Loading: parse every source, read annotations, check what policies name, validate against the schema, and compile per action.
//! A bundle is immutable; one that fails to load says everything that is wrong with it and leaves the caller's running one alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use aegis_model::ToolRecord;
use cedar_policy::{ActionConstraint, Authorizer, Entities, Entity, EntityUid, PolicyId, PolicySet, Schema};
use serde_json::json;

use crate::annotations::PolicyMeta;
use crate::checks::{check_ids, check_labels, check_parameters, validate};
use crate::entity::{EntityTypes, uid};
use crate::error::{PolicyError, PolicyProblem};
use crate::memo::Memo;
use crate::parameters::{Parameters, parameters_type};
use crate::schema::{ActionSchema, cedar_schema, declared_actions};
use crate::source::{LoadedPolicy, PolicySource, check_source, parse};

/// Validated policies over a registry, ready to decide.
pub struct PolicyBundle {
    digest: String,
    warnings: Vec<PolicyProblem>,
    pub(crate) metas: HashMap<PolicyId, PolicyMeta>,
    /// tool → action
    pub(crate) actions: HashMap<String, HashMap<String, BundledAction>>,
    pub(crate) types: EntityTypes,
    pub(crate) authorizer: Authorizer,
    /// Requests are checked against it in tests and debug builds; in release they are right by construction.
    pub(crate) schema: Schema,
}

/// A registered action with what its calls need.
pub(crate) struct BundledAction {
    pub(crate) uid: EntityUid,
    pub(crate) mutates: bool,
    pub(crate) parameters: Parameters,
    /// The action's own entity with its groups, and no other: it is cloned for every call.
    pub(crate) entities: Entities,
    /// The policies whose action scope covers the action; the others cannot apply.
    pub(crate) policies: Arc<PolicySet>,
    /// parameter → ids of those policies that read it
    pub(crate) readers: BTreeMap<String, Vec<String>>,
    /// ids of those policies that use `context` or `context.parameters` as a whole
    pub(crate) readers_of_all: Vec<String>,
    pub(crate) memo: Memo,
}

impl PolicyBundle {
    /// Parses and validates `sources` for the registered `tools`. Reports all problems it can find at once.
    pub fn load(sources: &[PolicySource], tools: &[ToolRecord]) -> Result<Self, PolicyError> {
        let mut names = BTreeSet::new();
        for source in sources {
            check_source(source, &mut names)?;
        }
        let types = EntityTypes::new()?;
        let actions = declared_actions(tools)?;
        let schema = cedar_schema(&actions)?;

        let mut problems = Vec::new();
        let mut loaded = parse(sources, &mut problems);
        if loaded.is_empty() && problems.is_empty() {
            let message = "the bundle has no policy";
            return Err(PolicyProblem::general(
                "bundle",
                message,
                Some("load at least default.cedar; without a policy everything is denied"),
            )
            .into());
        }
        check_ids(&loaded, &mut problems);
        if !problems.is_empty() {
            // What follows would only repeat them.
            return Err(PolicyError::new(problems));
        }
        let mut scopes: Vec<(EntityUid, Vec<EntityUid>)> = Vec::with_capacity(actions.len());
        for action in &actions {
            let groups = action.groups.iter().map(|group| uid(&types.action, group)).collect();
            scopes.push((uid(&types.action, &action.id), groups));
        }
        for policy in &mut loaded {
            let constraint = policy.policy.action_constraint();
            policy.covers = (0..scopes.len()).filter(|index| in_scope(&constraint, &scopes[*index])).collect();
            check_parameters(policy, &actions, &mut problems);
            check_labels(policy, &mut problems);
        }
        let warnings = validate(&loaded, &schema, &mut problems)?;
        if !problems.is_empty() {
            return Err(PolicyError::new(problems));
        }

        let digest = digest(sources, &actions)?;
        let actions = compile(&actions, scopes, &loaded)?;
        let metas = loaded.into_iter().map(|policy| (PolicyId::new(&policy.meta.id), policy.meta)).collect();
        Ok(Self { digest, warnings, metas, actions, types, authorizer: Authorizer::new(), schema })
    }

    /// Hex SHA-256 over the sources, the schema, and what is registered of each action that a decision depends on: what exactly decided.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What is legal but probably not meant, such as a policy that can never apply.
    #[must_use]
    pub fn warnings(&self) -> &[PolicyProblem] {
        &self.warnings
    }

    /// Sorted ids of the policies.
    #[must_use]
    pub fn policy_ids(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = self.metas.values().map(|meta| meta.id.as_str()).collect();
        ids.sort_unstable();
        ids
    }
}

impl fmt::Debug for PolicyBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actions: usize = self.actions.values().map(HashMap::len).sum();
        f.debug_struct("PolicyBundle")
            .field("digest", &self.digest)
            .field("policies", &self.metas.len())
            .field("actions", &actions)
            .finish()
    }
}

/// SHA-256 over the base schema, each source and each declared action, one line each. Order of the sources does not change a
/// decision, so it does not change the digest either.
fn digest(sources: &[PolicySource], actions: &[ActionSchema]) -> Result<String, PolicyError> {
    let sha256 = |text: &str| aegis_canon::sha256_hex(text.as_bytes());
    let mut lines = format!("schema {}\n", sha256(crate::BASE_SCHEMA));
    let mut texts: Vec<String> =
        sources.iter().map(|source| format!("source {} {}\n", sha256(&source.name), sha256(&source.text))).collect();
    texts.sort_unstable();
    lines.extend(texts);
    for action in actions {
        let declared = json!({
            "id": action.id, "groups": action.groups, "registered": action.registered, "parameters": parameters_type(&action.parameters),
            "decides": action.decides,
        });
        let hash = aegis_canon::hash_value(&declared).map_err(|error| PolicyProblem::internal(&error))?;
        lines.push_str(&format!("action {hash}\n"));
    }
    Ok(sha256(&lines))
}

fn in_scope(constraint: &ActionConstraint, (action, groups): &(EntityUid, Vec<EntityUid>)) -> bool {
    match constraint {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(one) => one == action,
        ActionConstraint::In(several) => several.iter().any(|one| one == action || groups.contains(one)),
    }
}

fn compile(
    actions: &[ActionSchema],
    scopes: Vec<(EntityUid, Vec<EntityUid>)>,
    loaded: &[LoadedPolicy<'_>],
) -> Result<HashMap<String, HashMap<String, BundledAction>>, PolicyError> {
    // Most actions are covered by the same policies: they share one set.
    let mut sets: HashMap<Vec<usize>, Arc<PolicySet>> = HashMap::new();
    let mut compiled: HashMap<String, HashMap<String, BundledAction>> = HashMap::new();
    for (index, (action, (uid, groups))) in actions.iter().zip(scopes).enumerate() {
        if !action.registered {
            continue;
        }
        let covering: Vec<usize> =
            (0..loaded.len()).filter(|policy| loaded[*policy].covers.binary_search(&index).is_ok()).collect();
        let mut readers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut readers_of_all = Vec::new();
        for policy in covering.iter().map(|policy| &loaded[*policy]) {
            let names: BTreeSet<&String> = policy.mentions.paths.iter().filter_map(|path| path.first()).collect();
            for name in names {
                readers.entry(name.clone()).or_default().push(policy.meta.id.clone());
            }
            if policy.mentions.whole {
                readers_of_all.push(policy.meta.id.clone());
            }
        }
        let memo = Memo::over(covering.iter().map(|policy| &loaded[*policy].mentions));
        let policies = match sets.get(&covering) {
            Some(set) => Arc::clone(set),
            None => {
                let set = PolicySet::from_policies(covering.iter().map(|policy| loaded[*policy].policy.clone()));
                let set = Arc::new(set.map_err(|error| PolicyProblem::internal(&error))?);
                sets.insert(covering, Arc::clone(&set));
                set
            }
        };
        let entity = Entity::new_no_attrs(uid.clone(), groups.into_iter().collect());
        let entities = Entities::from_entities([entity], None).map_err(|error| PolicyProblem::internal(&error))?;
        let bundled = BundledAction {
            uid,
            mutates: action.mutates,
            parameters: action.parameters.clone(),
            entities,
            policies,
            readers,
            readers_of_all,
            memo,
        };
        compiled.entry(action.tool.clone()).or_default().insert(action.action.clone(), bundled);
    }
    Ok(compiled)
}
