//! Who is on the side of an approval's action: who asked for it, whose key the agent is registered under, who handed out a token of it.
//! Promises that nobody of that side decides it (T-A7), whatever became of their keys; where the side is not known, nobody does. What an agent
//! claims of its user keeps that person from deciding, and is no proof against them.

use aegis_model::{FrozenAction, TenantId};
use aegis_store::{AgentKey, Principal, same_person};

use crate::auth::person;
use crate::control::Control;
use crate::problem::Problem;

/// How long after its end a token may still have been in use, seconds: the clocks of an edge and of control differ.
const TOKEN_GRACE_S: i64 = 3600;

/// Where somebody stands to an action that is up for approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Free to decide.
    Apart,
    /// It is their own request, or of an agent of theirs.
    Own,
    /// The agent claims that it is their request.
    Claimed,
    /// Nobody knows whose agent it is, or who handed out the token with which it asked.
    Unknown,
}

impl Control {
    /// Where this person stands to the action.
    pub(crate) async fn side_of(&self, principal: &Principal, frozen: &FrozenAction) -> Result<Side, Problem> {
        let keys = self.store.agent_keys(&principal.tenant_id, &frozen.agent_id).await?;
        let issuer = match &frozen.issued_by {
            None => None,
            Some(key_id) => {
                let name = self.store.key_name(&principal.tenant_id, key_id).await?;
                Some(AgentKey { key_id: key_id.clone(), name, tokens_until: Some(frozen.requested_at) })
            }
        };
        Ok(side(principal, frozen, issuer.as_ref(), &keys))
    }

    /// The person behind a key, whether or not it is kept for which agents it handed out tokens; the key's id where nobody is known.
    pub(crate) async fn issuer(&self, tenant: &TenantId, key_id: &str) -> Result<String, Problem> {
        let name = self.store.key_name(tenant, key_id).await?;
        Ok(name.filter(|name| !name.trim().is_empty()).unwrap_or_else(|| key_id.to_owned()))
    }
}

/// `issuer`: whose key handed out the token that asked, which is not among `keys` for one of a version that did not note it.
fn side(principal: &Principal, frozen: &FrozenAction, issuer: Option<&AgentKey>, keys: &[AgentKey]) -> Side {
    let is_own = |other: &str| other == principal.key_id || same_person(other, person(principal));
    // Every token that may have been in use when the action was asked for: another one of the same agent does as well.
    let asked_at = frozen.requested_at.plus_seconds(-TOKEN_GRACE_S);
    let registrar = keys.iter().find(|key| key.tokens_until.is_none());
    let mut holders: Vec<&AgentKey> = keys.iter().filter(|key| key.tokens_until.is_some_and(|until| until >= asked_at)).collect();
    let has_issuer = !holders.is_empty();
    holders.extend(registrar);
    holders.extend(issuer);
    if is_own(&frozen.agent_id) || holders.iter().any(|key| is_own(&key.key_id) || key.name.as_deref().is_some_and(is_own)) {
        return Side::Own;
    }
    if frozen.user_id.as_deref().is_some_and(is_own) {
        return Side::Claimed;
    }
    // A blank name, which no new key can have, is nobody's.
    let are_known = holders.iter().all(|key| key.name.as_deref().is_some_and(|name| !name.trim().is_empty()));
    let all_known = registrar.is_some() && has_issuer && are_known;
    if all_known { Side::Apart } else { Side::Unknown }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::Timestamp;
    use aegis_store::Role;
    use serde_json::json;

    const ASKED: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

    fn approver(name: &str) -> Principal {
        Principal {
            tenant_id: TenantId::new("acme").unwrap(),
            key_id: "key_approver".to_owned(),
            role: Role::Approver,
            name: name.to_owned(),
            groups: Vec::new(),
        }
    }

    fn frozen() -> FrozenAction {
        serde_json::from_value(json!({
            "approval_id": "a", "tenant_id": "acme", "event_id": "0190aaaa-0000-7000-8000-000000000000", "agent_id": "agent-1",
            "token_id": "t", "user_id": "Mallory", "run_id": null, "environment": "production",
            "tool_call": {"tool": "t", "action": "a", "resource": null, "mutates_state": true, "parameters": {}},
            "action_hash": "h", "source_trust": "unknown", "root_trust": "unknown", "contains_sensitive_data": false,
            "risk_level": "low", "reason": "r", "matched_policies": [], "policy_digest": "d", "approver_group": "g",
            "approvals_needed": 1, "requested_at": ASKED, "expires_at": ASKED.plus_seconds(900), "callback_url": null,
        }))
        .unwrap()
    }

    fn key(key_id: &str, name: Option<&str>, tokens_until: Option<Timestamp>) -> AgentKey {
        AgentKey { key_id: key_id.to_owned(), name: name.map(str::to_owned), tokens_until }
    }

    #[test]
    fn nobody_of_the_agent_s_side_is_apart_from_it() {
        let until = Some(ASKED.plus_seconds(60));
        let keys = [key("key_r", Some("Rita"), None), key("key_r", Some("Rita"), until), key("key_a", Some("Ada"), until)];
        let stands = |name: &str| side(&approver(name), &frozen(), None, &keys);
        for own in ["Rita", "rita", " RITA ", "R\u{456}ta", "ada", "agent-1", "key_r"] {
            assert_eq!(stands(own), Side::Own, "{own}");
        }
        assert_eq!(stands("mallory"), Side::Claimed);
        assert_eq!(stands("paul"), Side::Apart);
        // What is known of them goes before what the agent claims.
        let of_rita = FrozenAction { user_id: Some("rita".to_owned()), ..frozen() };
        assert_eq!(side(&approver("rita"), &of_rita, None, &keys), Side::Own);
    }

    #[test]
    fn whose_key_handed_out_the_token_that_asked_is_on_its_side_whether_or_not_that_was_noted() {
        let until = Some(ASKED.plus_seconds(60));
        let noted = [key("key_r", Some("rita"), None), key("key_r", Some("rita"), until)];
        let of_ada = key("key_a", Some("ada"), Some(ASKED));
        let stands = |name: &str| side(&approver(name), &frozen(), Some(&of_ada), &noted);
        assert_eq!((stands("Ada"), stands("rita"), stands("paul")), (Side::Own, Side::Own, Side::Apart));
        let of_nobody = key("key_gone", None, Some(ASKED));
        assert_eq!(side(&approver("paul"), &frozen(), Some(&of_nobody), &noted), Side::Unknown);
        assert_eq!(side(&approver("paul"), &frozen(), Some(&of_ada), &noted[..1]), Side::Unknown, "other tokens may be about");
    }

    #[test]
    fn a_token_that_had_ended_is_nobody_s_side_and_one_that_nobody_knows_is_everybody_s() {
        let (ended, until) = (Some(ASKED.plus_seconds(-TOKEN_GRACE_S - 1)), Some(ASKED.plus_seconds(60)));
        let registrar = key("key_r", Some("rita"), None);
        let stands = |keys: &[AgentKey], name: &str| side(&approver(name), &frozen(), None, keys);
        let in_use = key("key_r", Some("rita"), until);
        assert_eq!(stands(&[registrar.clone(), in_use.clone(), key("key_a", Some("ada"), ended)], "ada"), Side::Apart);
        for unknown in [
            vec![],
            vec![registrar.clone()],
            vec![registrar.clone(), key("key_a", Some("ada"), ended)],
            vec![registrar.clone(), key("key_gone", None, until)],
            vec![registrar, key("key_blank", Some(" "), until)],
            vec![key("key_gone", None, None), in_use],
        ] {
            assert_eq!(stands(&unknown, "paul"), Side::Unknown, "{unknown:?}");
        }
    }
}
