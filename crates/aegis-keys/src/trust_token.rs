//! Trust tokens: a run's worst label under a MAC, which an SDK echoes so that another edge cannot forget it.
//! A token that is missing or does not verify says nothing; it can only tighten.

use std::path::Path;

use aegis_model::{SourceTrust, TenantId, Timestamp};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::KeyError;

/// The key under which a deployment's edges MAC trust tokens.
#[derive(Clone)]
pub struct TrustTokenKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for TrustTokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TrustTokenKey(..)")
    }
}

impl TrustTokenKey {
    /// A key from 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads the key file (mode 0600), or makes one.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        Ok(Self(crate::signing::load_or_create_seed(path)?))
    }

    /// The key as its file has it, for an edge that is enrolled.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.0.as_ref()))
    }

    /// `<label>.<expiry, seconds>.<MAC>` over (tenant, run, label, expiry).
    #[must_use]
    pub fn mint(&self, tenant: &TenantId, run: &str, trust: SourceTrust, expires: Timestamp) -> String {
        let head = format!("{}.{}", trust.as_str(), expires.as_micros() / 1_000_000);
        let tag = URL_SAFE_NO_PAD.encode(self.mac(tenant, run, &head).finalize().into_bytes());
        format!("{head}.{tag}")
    }

    /// The label, if the token is this run's, unexpired and authentic. Compared in constant time.
    #[must_use]
    pub fn verify(&self, tenant: &TenantId, run: &str, token: &str, now: Timestamp) -> Option<SourceTrust> {
        let (head, tag) = token.rsplit_once('.')?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        self.mac(tenant, run, head).verify_slice(&tag).ok()?;
        let (label, expires) = head.split_once('.')?;
        let expires: i64 = expires.parse().ok()?;
        (expires.saturating_mul(1_000_000) > now.as_micros()).then(|| SourceTrust::from_label(label))
    }

    fn mac(&self, tenant: &TenantId, run: &str, head: &str) -> Hmac<Sha256> {
        #[allow(clippy::expect_used)] // HMAC takes keys of any length
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_ref()).expect("a key of any length");
        // The tenant id has a fixed alphabet and the head's length is given, so no two inputs share one text.
        mac.update(format!("aegis-trust-1\0{tenant}\0{}\0{head}\0", head.len()).as_bytes());
        mac.update(run.as_bytes());
        mac
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_trust_token_belongs_to_one_run_of_one_tenant() {
        let key = TrustTokenKey::from_bytes([9; 32]);
        let (acme, evil) = (TenantId::new("acme").unwrap(), TenantId::new("evil").unwrap());
        let (now, end) = (Timestamp::from_micros(0), Timestamp::from_micros(10_000_000));
        let token = key.mint(&acme, "run-1", SourceTrust::UntrustedExternal, end);
        assert_eq!(key.verify(&acme, "run-1", &token, now), Some(SourceTrust::UntrustedExternal));
        assert_eq!(key.verify(&acme, "run-2", &token, now), None);
        assert_eq!(key.verify(&evil, "run-1", &token, now), None);
        assert_eq!(key.verify(&acme, "run-1", &token, end), None);
        assert_eq!(key.verify(&acme, "run-1", &token.replace("untrusted_external", "trusted_internal_signed"), now), None);
        assert_eq!(TrustTokenKey::from_bytes([8; 32]).verify(&acme, "run-1", &token, now), None);
    }
}
