//! Who is asking: an API key of a person or a program, or an agent's token, and what its role may do.
//! Promises that a tenant comes from the credential alone; never logs a credential.

use aegis_keys::AgentClaims;
use aegis_model::{TenantId, Verdict};
use aegis_store::{Principal, Role};
use axum::http::{HeaderMap, header};
use serde_json::{Value, json};

use crate::control::Control;
use crate::problem::Problem;

/// What an endpoint asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anyone who can reach the listener.
    Public,
    /// Whoever has an invitation in the body: the endpoint checks it.
    Invitation,
    /// An API key of one of these roles.
    Roles(&'static [Role]),
    /// An agent's token, or an API key of one of these roles. The endpoint narrows both to what is theirs.
    AgentOr(&'static [Role]),
}

/// The authenticated caller.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    Key(Principal),
    Agent(Box<AgentClaims>),
}

impl Caller {
    pub(crate) fn tenant(&self) -> &TenantId {
        match self {
            Self::Key(principal) => &principal.tenant_id,
            Self::Agent(claims) => &claims.tenant_id,
        }
    }

    /// The person or program as receipts name it. Two keys of one name are one person: votes count people.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Key(principal) => person(principal),
            Self::Agent(claims) => &claims.agent_id,
        }
    }

    /// The caller as `detail.by` of a receipt.
    pub(crate) fn as_detail(&self) -> Value {
        match self {
            Self::Key(principal) => {
                json!({"type": "key", "key_id": principal.key_id, "name": principal.name, "role": principal.role.as_str()})
            }
            Self::Agent(claims) => json!({"type": "agent", "agent_id": claims.agent_id, "token_id": claims.token_id}),
        }
    }

    /// The API key behind an endpoint that agents cannot reach.
    pub(crate) fn key(&self) -> Result<&Principal, Problem> {
        match self {
            Self::Key(principal) => Ok(principal),
            Self::Agent(_) => Err(wrong_role()),
        }
    }
}

/// The name votes and self-approval checks go by.
pub(crate) fn person(principal: &Principal) -> &str {
    if principal.name.trim().is_empty() { &principal.key_id } else { &principal.name }
}

fn wrong_role() -> Problem {
    Problem::forbidden("wrong_role", "this credential's role may not use this endpoint; docs/api.md names the roles")
}

impl Control {
    /// The caller behind `headers`, if the endpoint's `access` lets it in. 401 without a valid credential, 403 for another role.
    pub(crate) async fn authenticate(&self, headers: &HeaderMap, access: Access) -> Result<Option<Caller>, Problem> {
        let (roles, agents_too) = match access {
            Access::Public | Access::Invitation => return Ok(None),
            Access::Roles(roles) => (roles, false),
            Access::AgentOr(roles) => (roles, true),
        };
        let token = bearer_token(headers)?;
        let caller = self.identify(token).await?;
        if let Some(asked) = headers.get("x-aegis-tenant-id")
            && asked.as_bytes() != caller.tenant().as_str().as_bytes()
        {
            return Err(Problem::unauthorized("tenant_mismatch", "X-Aegis-Tenant-ID is not the tenant of this credential"));
        }
        let admitted = match &caller {
            Caller::Key(principal) => roles.contains(&principal.role),
            Caller::Agent(_) => agents_too,
        };
        if admitted { Ok(Some(caller)) } else { Err(wrong_role()) }
    }

    async fn identify(&self, token: &str) -> Result<Caller, Problem> {
        // Agent tokens are JWTs; an API key may be any text of 32 characters and more, so a token that is none is looked up.
        if token.bytes().filter(|b| *b == b'.').count() == 2
            && let Ok(claims) = aegis_keys::verify_agent_token(&self.token_ring, token, self.clock.now())
        {
            return Ok(Caller::Agent(Box::new(claims)));
        }
        match self.store.verify_key(token).await? {
            Some(principal) => Ok(Caller::Key(principal)),
            None => Err(Problem::unauthorized("invalid_credential", "the credential is not valid (unknown, revoked or expired)")),
        }
    }

    /// Refuses an agent whose token control has revoked. Frozen agents may still read and report: that is evidence.
    pub(crate) async fn refuse_revoked(&self, caller: &Caller) -> Result<(), Problem> {
        let Caller::Agent(claims) = caller else { return Ok(()) };
        match self.agent_verdict(&claims.tenant_id, &claims.agent_id).await? {
            Verdict::Revoked => Err(Problem::forbidden("agent_revoked", "this agent is revoked")),
            _ => Ok(()),
        }
    }
}

/// RFC 6750: `Authorization: Bearer <token>`.
fn bearer_token(headers: &HeaderMap) -> Result<&str, Problem> {
    let missing = || Problem::unauthorized("unauthenticated", "send `Authorization: Bearer <API key or agent token>`");
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or_else(missing)?;
    let (scheme, token) = value.split_once(' ').ok_or_else(missing)?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() { Ok(token) } else { Err(missing()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_token_is_a_credential() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            bearer_token(&headers).map(str::to_owned)
        };
        assert_eq!(with("bearer  abc").unwrap(), "abc");
        for bad in ["abc", "Basic abc", "Bearer ", "Bearer"] {
            assert_eq!(with(bad).unwrap_err().code, "unauthenticated", "{bad}");
        }
    }
}
