//! Remembered outcomes. A policy's answer is a function of what it reads, so calls that are alike in all that the action's policies
//! read get the same outcome, and Cedar is asked once. What cannot be followed in a policy turns remembering off for its actions.
//! Bounded; never wrong: the key holds the values themselves, not a hash of them (L-MEMO).

use std::collections::{BTreeSet, HashMap};

use aegis_model::Visibility;
use parking_lot::RwLock;

use crate::input::{PolicyInput, PolicyOutcome};
use crate::mentions::Mentions;

/// Outcomes remembered for one action; a full memory is emptied, so that a caller who invents values costs what it did without.
const MOST_OUTCOMES: usize = 1024;
/// A longer key is not remembered.
const LONGEST_KEY: usize = 512;

/// One thing of a call that policies can read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fact {
    Agent,
    ResourceName,
    Visibility,
    Owner,
    TrustLevel,
    RootTrust,
    MutatesState,
    SensitiveData,
    Environment,
    RiskLevel,
    DataAccess,
    Destination,
    RiskTier,
    User,
    Unrepresentable,
    Parameter(String),
}

/// What the policies of an action read, and what they said before.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    /// None: it cannot be told, so nothing is remembered.
    facts: Option<Vec<Fact>>,
    outcomes: RwLock<HashMap<Box<[u8]>, PolicyOutcome>>,
}

/// A call's values of what is read, one after the other, each with its length.
pub(crate) type Key = Vec<u8>;

/// Bytes that hold most keys.
const KEY_BYTES: usize = 192;

impl Memo {
    /// For an action that these policies cover.
    pub(crate) fn over<'a>(policies: impl Iterator<Item = &'a Mentions>) -> Self {
        let mut facts = BTreeSet::new();
        for path in policies.flat_map(|mentions| &mentions.reads) {
            match facts_of(path) {
                Some(read) => facts.extend(read),
                None => return Self::default(),
            }
        }
        Self { facts: Some(facts.into_iter().collect()), outcomes: RwLock::default() }
    }

    pub(crate) fn reads_unrepresentable(&self) -> bool {
        self.facts.as_ref().is_some_and(|facts| facts.contains(&Fact::Unrepresentable))
    }

    /// The key of a call, if it can be remembered. `unrepresentable` and `mutates` as the policies would see them.
    pub(crate) fn key(
        &self,
        input: &PolicyInput<'_>,
        mutates: bool,
        visibilities: &[Visibility],
        owner: Option<&str>,
        unrepresentable: &[String],
    ) -> Option<Key> {
        let mut key = Vec::with_capacity(KEY_BYTES);
        let mut put = |value: Option<&[u8]>| {
            // Length first, so that no two lists of values write the same key; absent and empty differ.
            key.extend_from_slice(&value.map_or(u32::MAX, |v| u32::try_from(v.len()).unwrap_or(u32::MAX - 1)).to_le_bytes());
            key.extend_from_slice(value.unwrap_or_default());
        };
        for fact in self.facts.as_ref()? {
            match fact {
                Fact::Agent => {
                    put(Some(input.tenant_id.as_str().as_bytes()));
                    put(Some(input.agent_id.as_bytes()));
                }
                Fact::ResourceName => {
                    put(Some(input.tenant_id.as_str().as_bytes()));
                    put(Some(input.resource.unwrap_or_default().as_bytes()));
                }
                Fact::Visibility => {
                    put(Some(&u32::try_from(visibilities.len()).unwrap_or(u32::MAX).to_le_bytes()));
                    visibilities.iter().for_each(|visibility| put(Some(visibility.as_str().as_bytes())));
                }
                Fact::Owner => put(owner.map(str::as_bytes)),
                Fact::TrustLevel => put(Some(input.trust_level.as_str().as_bytes())),
                Fact::RootTrust => put(Some(input.root_trust.as_str().as_bytes())),
                Fact::MutatesState => put(Some(&[u8::from(mutates)])),
                Fact::SensitiveData => put(Some(&[u8::from(input.contains_sensitive_data)])),
                Fact::Environment => put(Some(input.environment.as_bytes())),
                Fact::RiskLevel => put(Some(input.risk_level.as_str().as_bytes())),
                Fact::DataAccess => put(Some(input.data_access.as_str().as_bytes())),
                Fact::Destination => put(Some(input.destination.as_str().as_bytes())),
                Fact::RiskTier => put(Some(input.agent_risk_tier.as_str().as_bytes())),
                Fact::User => {
                    put(input.user_id.map(str::as_bytes));
                    put(input.user_role.map(str::as_bytes));
                }
                Fact::Unrepresentable => {
                    put(Some(&u32::try_from(unrepresentable.len()).unwrap_or(u32::MAX).to_le_bytes()));
                    unrepresentable.iter().for_each(|name| put(Some(name.as_bytes())));
                }
                Fact::Parameter(name) => {
                    let value = input.parameters.get(name).map(serde_json::to_vec).transpose().ok()?;
                    put(value.as_deref());
                }
            }
        }
        (key.len() <= LONGEST_KEY).then_some(key)
    }

    pub(crate) fn recall(&self, key: &[u8]) -> Option<PolicyOutcome> {
        self.outcomes.read().get(key).cloned()
    }

    pub(crate) fn remember(&self, key: Key, outcome: PolicyOutcome) {
        let mut outcomes = self.outcomes.write();
        if outcomes.len() >= MOST_OUTCOMES {
            outcomes.clear();
        }
        outcomes.insert(key.into_boxed_slice(), outcome);
    }

    #[cfg(test)]
    pub(crate) fn forget(&self) {
        self.outcomes.write().clear();
    }
}

/// The facts behind a path that a policy reads; none if it could be anything.
fn facts_of(path: &[String]) -> Option<Vec<Fact>> {
    let mut names = path.iter().map(String::as_str);
    let one = match (names.next()?, names.next()) {
        ("principal", None) => Fact::Agent,
        // The action is the same for every call that asks this memory.
        ("action", None) => return Some(Vec::new()),
        ("resource", None | Some("name" | "container")) => Fact::ResourceName,
        // The tool is the action's.
        ("resource", Some("tool")) => return Some(Vec::new()),
        ("resource", Some("visibility")) => Fact::Visibility,
        ("resource", Some("owner")) => Fact::Owner,
        ("context", Some(name)) => match name {
            "trust_level" => Fact::TrustLevel,
            "root_trust_level" => Fact::RootTrust,
            "mutates_state" => Fact::MutatesState,
            "contains_sensitive_data" => Fact::SensitiveData,
            "environment" => Fact::Environment,
            "risk_level" => Fact::RiskLevel,
            "data_access" => Fact::DataAccess,
            "destination" => Fact::Destination,
            "agent_risk_tier" => Fact::RiskTier,
            "user" => Fact::User,
            "unrepresentable" => Fact::Unrepresentable,
            "parameters" => Fact::Parameter(names.next()?.to_owned()),
            _ => return None,
        },
        _ => return None,
    };
    // An entity compared as a whole is its name; its attributes may be read through the comparison's other side.
    Some(match (one, path.len()) {
        (Fact::ResourceName, 1) => vec![Fact::ResourceName, Fact::Visibility, Fact::Owner],
        (one, _) => vec![one],
    })
}
