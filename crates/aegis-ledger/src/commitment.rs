//! Commitments to what went in and out of an action: HMAC-SHA256 under a random key per tenant, so that low-entropy values
//! cannot be guessed, and deleting the key shreds every commitment made under it.

use std::collections::HashMap;

use aegis_model::TenantId;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

pub(crate) type CommitmentKey = Zeroizing<[u8; 32]>;

/// The keys of all tenants that ever committed to something, less the shredded ones.
#[derive(Default)]
pub(crate) struct CommitmentKeys(pub(crate) HashMap<TenantId, CommitmentKey>);

// Written by hand: no log may show a key.
impl std::fmt::Debug for CommitmentKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitmentKeys").field("tenants", &self.0.len()).finish_non_exhaustive()
    }
}

/// A key made ready: half of what a short commitment costs. As secret as the key, so it lasts no longer than a batch.
pub(crate) struct Keyed(Hmac<Sha256>);

impl std::fmt::Debug for Keyed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyed(..)")
    }
}

impl Keyed {
    pub(crate) fn with(key: &CommitmentKey) -> Self {
        #[allow(clippy::expect_used)] // HMAC takes keys of any length
        Self(Hmac::<Sha256>::new_from_slice(key.as_ref()).expect("a key of any length"))
    }

    /// The commitment to `bytes`, in lower-case hex.
    pub(crate) fn commit_to(&self, bytes: &[u8]) -> String {
        aegis_canon::hex_text(&self.0.clone().chain_update(bytes).finalize().into_bytes())
    }
}

/// True if `commitment` (hex) is the commitment to `bytes`; compared in constant time.
pub(crate) fn opens(key: &CommitmentKey, commitment: &str, bytes: &[u8]) -> bool {
    hex::decode(commitment).is_ok_and(|tag| Keyed::with(key).0.chain_update(bytes).verify_slice(&tag).is_ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_commitment_is_hmac_sha256() {
        // RFC 4231 test case 2 needs a short key; padded with zeros it is the same HMAC key.
        let mut key = Zeroizing::new([0u8; 32]);
        key[..4].copy_from_slice(b"Jefe");
        let keyed = Keyed::with(&key);
        let commitment = keyed.commit_to(b"what do ya want for nothing?");
        assert_eq!(commitment, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert_eq!(keyed.commit_to(b"what do ya want for nothing?"), commitment, "the one before leaves no trace");
        assert!(opens(&key, &commitment, b"what do ya want for nothing?"));
        assert!(!opens(&key, &commitment, b"what do ya want for nothing!"));
        assert!(!opens(&Zeroizing::new([1; 32]), &commitment, b"what do ya want for nothing?"));
    }

    #[test]
    fn debug_shows_no_key() {
        let keys = CommitmentKeys([(TenantId::new("a").unwrap(), Zeroizing::new([7u8; 32]))].into_iter().collect());
        assert_eq!(format!("{keys:?}"), "CommitmentKeys { tenants: 1, .. }");
        assert_eq!(format!("{:?}", Keyed::with(&Zeroizing::new([7u8; 32]))), "Keyed(..)");
    }
}
