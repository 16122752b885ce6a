//! Agent tokens: JWTs (RFC 7519) signed with EdDSA (RFC 8037), verifiable at an edge without a lookup.
//! The algorithm and the type are pinned, so a token cannot choose how it is checked.

use aegis_model::{RiskLevel, SourceTrust, TenantId, Timestamp};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::{KeyError, KeyRing, SigningKey};

/// Longest token accepted, bytes.
const MAX_TOKEN: usize = 4096;
const ALGORITHM: &str = "EdDSA";
const TOKEN_TYPE: &str = "aegis-agent+jwt";
const ISSUER: &str = "aegis-control";

/// What an agent token says.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentClaims {
    pub token_id: String,
    pub tenant_id: TenantId,
    pub agent_id: String,
    pub agent_key: String,
    pub environment: String,
    pub owner_team: Option<String>,
    pub risk_tier: RiskLevel,
    /// Calls with this token are never taken as more trusted than this.
    pub trust_ceiling: SourceTrust,
    /// Id of the API key that registered the agent.
    pub issued_by: String,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

#[derive(Serialize, Deserialize)]
struct Payload {
    iss: String,
    sub: String,
    jti: String,
    /// Seconds since the epoch (RFC 7519 NumericDate).
    iat: i64,
    exp: i64,
    tenant: TenantId,
    agent_key: String,
    env: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    tier: RiskLevel,
    /// A ceiling this version does not know reads as `unknown`, which is stricter than any internal label.
    ceiling: SourceTrust,
    registrar: String,
}

const MICROS: i64 = 1_000_000;

/// Signs a token for an agent.
pub fn mint_agent_token(key: &SigningKey, claims: &AgentClaims) -> Result<String, KeyError> {
    let header = Header { alg: ALGORITHM.into(), typ: TOKEN_TYPE.into(), kid: key.key_id().to_owned() };
    let payload = Payload {
        iss: ISSUER.into(),
        sub: claims.agent_id.clone(),
        jti: claims.token_id.clone(),
        iat: claims.issued_at.as_micros() / MICROS,
        exp: claims.expires_at.as_micros() / MICROS,
        tenant: claims.tenant_id.clone(),
        agent_key: claims.agent_key.clone(),
        env: claims.environment.clone(),
        owner: claims.owner_team.clone(),
        tier: claims.risk_tier,
        ceiling: claims.trust_ceiling,
        registrar: claims.issued_by.clone(),
    };
    let mut token = format!("{}.{}", encode(&header)?, encode(&payload)?);
    let signature = URL_SAFE_NO_PAD.encode(key.sign(token.as_bytes()));
    token.push('.');
    token.push_str(&signature);
    Ok(token)
}

/// Checks form, algorithm, key, signature and end, in that order, and returns the claims.
pub fn verify_agent_token(ring: &KeyRing, token: &str, now: Timestamp) -> Result<AgentClaims, KeyError> {
    if token.len() > MAX_TOKEN {
        return Err(KeyError::Malformed("too long"));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(KeyError::Malformed("not a JWT"))?;
    let (header, payload) = signed.split_once('.').ok_or(KeyError::Malformed("not a JWT"))?;
    let header: Header = decode(header)?;
    if header.alg != ALGORITHM || header.typ != TOKEN_TYPE {
        return Err(KeyError::Malformed("not an agent token"));
    }
    let key = ring.control_key(&header.kid)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| KeyError::Malformed("signature is not base64url"))?;
    if !key.key.verify(signed.as_bytes(), &signature) {
        return Err(KeyError::BadSignature);
    }
    let payload: Payload = decode(payload)?;
    if payload.iss != ISSUER {
        return Err(KeyError::Malformed("another issuer"));
    }
    let expires_at = Timestamp::from_micros(payload.exp.saturating_mul(MICROS));
    if expires_at <= now {
        return Err(KeyError::Expired(expires_at));
    }
    Ok(AgentClaims {
        token_id: payload.jti,
        tenant_id: payload.tenant,
        agent_id: payload.sub,
        agent_key: payload.agent_key,
        environment: payload.env,
        owner_team: payload.owner,
        risk_tier: payload.tier,
        trust_ceiling: payload.ceiling,
        issued_by: payload.registrar,
        issued_at: Timestamp::from_micros(payload.iat.saturating_mul(MICROS)),
        expires_at,
    })
}

fn encode(part: &impl Serialize) -> Result<String, KeyError> {
    let json = serde_json::to_vec(part).map_err(|_| KeyError::Malformed("part has no JSON form"))?;
    Ok(URL_SAFE_NO_PAD.encode(json))
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, KeyError> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| KeyError::Malformed("part is not base64url"))?;
    serde_json::from_slice(&json).map_err(|_| KeyError::Malformed("part is not the expected JSON"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claims() -> AgentClaims {
        AgentClaims {
            token_id: "tok".into(),
            tenant_id: TenantId::new("acme").unwrap(),
            agent_id: "a-1".into(),
            agent_key: "release-bot".into(),
            environment: "production".into(),
            owner_team: Some("platform".into()),
            risk_tier: RiskLevel::Medium,
            trust_ceiling: SourceTrust::TrustedInternalUnsigned,
            issued_by: "key-1".into(),
            issued_at: Timestamp::from_micros(1_000_000),
            expires_at: Timestamp::from_micros(9_000_000),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * MICROS)
    }

    #[test]
    fn a_token_says_what_was_signed_until_it_expires() {
        let key = SigningKey::from_seed(&[3; 32]);
        let ring = KeyRing::new([key.verifying_key()]);
        let token = mint_agent_token(&key, &claims()).unwrap();
        assert_eq!(verify_agent_token(&ring, &token, at(8)).unwrap(), claims());
        assert!(matches!(verify_agent_token(&ring, &token, at(9)), Err(KeyError::Expired(_))));
    }

    #[test]
    fn a_token_cannot_choose_its_algorithm_or_its_key() {
        let key = SigningKey::from_seed(&[3; 32]);
        let ring = KeyRing::new([key.verifying_key()]);
        let token = mint_agent_token(&key, &claims()).unwrap();
        let payload = token.split('.').nth(1).unwrap();
        let none = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"none","typ":"{TOKEN_TYPE}","kid":"{}"}}"#, key.key_id()));
        assert!(verify_agent_token(&ring, &format!("{none}.{payload}."), at(2)).is_err());
        let stranger = mint_agent_token(&SigningKey::from_seed(&[4; 32]), &claims()).unwrap();
        assert!(matches!(verify_agent_token(&ring, &stranger, at(2)), Err(KeyError::UnknownKey(_))));
    }

    proptest! {
        #[test]
        fn no_changed_token_verifies(place in 0usize..400, byte in any::<u8>()) {
            let key = SigningKey::from_seed(&[3; 32]);
            let ring = KeyRing::new([key.verifying_key()]);
            let token = mint_agent_token(&key, &claims()).unwrap();
            let mut bytes = token.clone().into_bytes();
            let place = place % bytes.len();
            prop_assume!(bytes[place] != byte);
            bytes[place] = byte;
            if let Ok(changed) = String::from_utf8(bytes) {
                prop_assert!(verify_agent_token(&ring, &changed, at(2)).is_err());
            }
        }

        #[test]
        fn garbage_never_panics(text in ".{0,200}") {
            prop_assert!(verify_agent_token(&KeyRing::default(), &text, at(2)).is_err());
        }
    }
}
