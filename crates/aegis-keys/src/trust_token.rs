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

/// Bytes that hold every token: the longest label, ten digits of seconds and 43 of the MAC.
const TOKEN_BYTES: usize = 96;

/// The key under which a deployment's edges MAC trust tokens.
#[derive(Clone)]
pub struct TrustTokenKey {
    seed: Zeroizing<[u8; 32]>,
    /// Made ready once: with every answer goes a token.
    keyed: Hmac<Sha256>,
}

impl std::fmt::Debug for TrustTokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TrustTokenKey(..)")
    }
}

impl TrustTokenKey {
    /// A key from 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self::with_seed(Zeroizing::new(bytes))
    }

    fn with_seed(seed: Zeroizing<[u8; 32]>) -> Self {
        #[allow(clippy::expect_used)] // HMAC takes keys of any length
        let keyed = Hmac::<Sha256>::new_from_slice(seed.as_ref()).expect("a key of any length");
        Self { seed, keyed }
    }

    /// Reads the key file (mode 0600), or makes one.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        Ok(Self::with_seed(crate::signing::load_or_create_seed(path)?))
    }

    /// The key as its file has it, for an edge that is enrolled.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.seed.as_ref()))
    }

    /// `<label>.<expiry, seconds>.<MAC>` over (tenant, run, label, expiry).
    #[must_use]
    pub fn mint(&self, tenant: &TenantId, run: &str, trust: SourceTrust, expires: Timestamp) -> String {
        let mut token = String::with_capacity(TOKEN_BYTES);
        token.push_str(trust.as_str());
        token.push('.');
        token.push_str(&(expires.as_micros() / 1_000_000).to_string());
        let tag = self.mac(tenant, run, &token).finalize().into_bytes();
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(tag, &mut token);
        token
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
        let mut mac = self.keyed.clone();
        let length = head.len().to_string();
        // The tenant id has a fixed alphabet and the head's length is given, so no two inputs share one text.
        for part in ["aegis-trust-1", tenant.as_str(), &length, head] {
            mac.update(part.as_bytes());
            mac.update(b"\0");
        }
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
        assert_eq!(key.mint(&acme, "run-1", SourceTrust::UntrustedExternal, end), token, "the one before leaves no trace");
        // Edges of other versions read it: the form is fixed.
        let text = "aegis-trust-1\0acme\x0021\x00untrusted_external.10\0run-1";
        let mac = Hmac::<Sha256>::new_from_slice(&[9; 32]).unwrap().chain_update(text).finalize().into_bytes();
        assert_eq!(token, format!("untrusted_external.10.{}", URL_SAFE_NO_PAD.encode(mac)));
    }
}
