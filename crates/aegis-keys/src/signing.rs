//! One Ed25519 key of a process, and the public half that others pin.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::KeyError;

/// Number of hex digits of a key id.
const KEY_ID_HEX: usize = 16;

/// A private key.
#[derive(Clone)]
pub struct SigningKey {
    key: ed25519_dalek::SigningKey,
    key_id: String,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A fresh key from the operating system's randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0u8; 32]);
        getrandom::fill(seed.as_mut()).map_err(|e| KeyError::Random(e.to_string()))?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of a 32-byte seed (RFC 8032).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = ed25519_dalek::SigningKey::from_bytes(seed);
        let key_id = key_id_of(&key.verifying_key());
        Self { key, key_id }
    }

    /// Reads the key file, or makes one (mode 0600, hex seed) where there is none. A file others can read is refused.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        load_or_create_seed(path).map(|seed| Self::from_seed(&seed))
    }

    /// First 16 hex digits of SHA-256 of the public key.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The public half.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey { key: self.key.verifying_key(), key_id: self.key_id.clone() }
    }

    /// Signs `message` (pure Ed25519).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

/// Reads 32 secret bytes from a hex file of mode 0600, or makes them. Concurrent first starts agree on one file.
pub(crate) fn load_or_create_seed(path: &Path) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let failed = |reason: String| KeyError::File { path: path.display().to_string(), reason };
    if !path.exists() {
        let mut seed = Zeroizing::new([0u8; 32]);
        getrandom::fill(seed.as_mut()).map_err(|e| KeyError::Random(e.to_string()))?;
        let text = Zeroizing::new(hex::encode(seed.as_ref()));
        let partial = path.with_extension(format!("{}.partial", std::process::id()));
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .map_err(|e| failed(format!("cannot be created: {e}")))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| failed(format!("cannot be written: {e}")))?;
        // A hard link fails where the name exists, so a key another process made meanwhile is never replaced.
        let linked = std::fs::hard_link(&partial, path);
        std::fs::remove_file(&partial).map_err(|e| failed(format!("cannot be tidied up: {e}")))?;
        if let Err(e) = linked
            && e.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(failed(format!("cannot be put in place: {e}")));
        }
        if let Some(folder) = path.parent() {
            std::fs::File::open(folder)
                .and_then(|d| d.sync_all())
                .map_err(|e| failed(format!("folder cannot be synced: {e}")))?;
        }
    }
    let mode = std::fs::metadata(path).map_err(|e| failed(format!("cannot be read: {e}")))?.mode();
    if mode & 0o077 != 0 {
        return Err(failed(format!("has mode {:o}; others can read it. run: chmod 600 {}", mode & 0o777, path.display())));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|e| failed(format!("cannot be read: {e}")))?);
    let mut seed = Zeroizing::new([0u8; 32]);
    hex::decode_to_slice(text.trim(), seed.as_mut()).map_err(|_| failed("is not 64 hex digits".to_owned()))?;
    Ok(seed)
}

/// A public key that verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey {
    key: ed25519_dalek::VerifyingKey,
    key_id: String,
}

impl VerifyingKey {
    /// First 16 hex digits of SHA-256 of the public key.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Strict verification (RFC 8032, no malleable or small-order forms).
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match ed25519_dalek::Signature::from_slice(signature) {
            Ok(signature) => self.key.verify_strict(message, &signature).is_ok(),
            Err(_) => false,
        }
    }

    /// Standard base64, padded.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.key.as_bytes())
    }

    /// Reads standard base64, padded.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| KeyError::Encoding("not base64"))?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| KeyError::Encoding("not 32 bytes"))?;
        let key = ed25519_dalek::VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::Encoding("not a point of the curve"))?;
        if key.is_weak() {
            return Err(KeyError::Encoding("a weak key"));
        }
        if !is_reduced(&bytes) {
            return Err(KeyError::Encoding("not a point of the curve in its one spelling"));
        }
        Ok(Self { key_id: key_id_of(&key), key })
    }
}

/// Whether the ordinate, without the sign bit, is below 2^255 - 19: each point has one such spelling (RFC 8032, 5.1.3).
fn is_reduced(bytes: &[u8; 32]) -> bool {
    bytes[31] & 0x7f != 0x7f || bytes[1..31].iter().any(|byte| *byte != 0xff) || bytes[0] < 0xed
}

fn key_id_of(key: &ed25519_dalek::VerifyingKey) -> String {
    let mut id = hex::encode(Sha256::digest(key.as_bytes()));
    id.truncate(KEY_ID_HEX);
    id
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_point_has_one_spelling() {
        let spelt = |low: u8| {
            let mut bytes = [0xff; 32];
            (bytes[0], bytes[31]) = (low, 0x7f);
            VerifyingKey::from_base64(&STANDARD.encode(bytes)).map(|key| key.key_id().to_owned())
        };
        // 2^255 - 19 + n, as n would be: some are points of the curve, and the key of n already has a spelling.
        for low in 0xed..=0xff {
            assert!(spelt(low).is_err(), "{low:x}");
        }
        assert!((0..0xed).any(|low| spelt(low).is_ok()));
    }

    #[test]
    fn a_key_file_is_made_once_private_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.key");
        let first = SigningKey::load_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(SigningKey::load_or_create(&path).unwrap().key_id(), first.key_id());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let refused = SigningKey::load_or_create(&path).unwrap_err().to_string();
        assert!(refused.contains("chmod 600"), "{refused}");
    }

    #[test]
    fn rfc_8032_test_vector_2() {
        let seed = hex::decode("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb").unwrap();
        let key = SigningKey::from_seed(&seed.try_into().unwrap());
        let signature = key.sign(&[0x72]);
        assert_eq!(
            hex::encode(signature),
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        );
        assert!(key.verifying_key().verify(&[0x72], &signature));
        assert!(!key.verifying_key().verify(&[0x73], &signature));
        assert!(!key.verifying_key().verify(&[0x72], &signature[..63]));
    }

    #[test]
    fn debug_shows_no_private_key() {
        let shown = format!("{:?}", SigningKey::from_seed(&[7; 32]));
        assert!(!shown.contains("0707") && !shown.contains("7, 7"), "{shown}");
    }
}
