//! Keys of a fixed size for what callers name: a long name costs as much memory as a short one, and none is kept.

use sha2::{Digest, Sha256};

/// Half a SHA-256. Nobody finds a second name for somebody else's key; who seeks two of his own for 2^64 tries has mistaken one for the other.
pub(crate) type Key = [u8; 16];

/// The key of a name that has these parts.
pub(crate) fn key_of(parts: &[&str]) -> Key {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    half(hasher.finalize().into())
}

/// The key of a run: the first half of what it is called in the bucket `trust`.
pub(crate) fn run_key(run: &str) -> Key {
    half(Sha256::digest(run.as_bytes()).into())
}

/// The 32 bytes of a hash in hex; of any other text, its SHA-256.
pub(crate) fn hash_bytes(hex: &str) -> [u8; 32] {
    fn nibble(digit: u8) -> Option<u8> {
        match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        }
    }
    let mut bytes = [0; 32];
    let digits = hex.as_bytes();
    let is_hash = digits.len() == 64
        && bytes.iter_mut().zip(digits.chunks_exact(2)).all(|(byte, pair)| match (nibble(pair[0]), nibble(pair[1])) {
            (Some(high), Some(low)) => {
                *byte = (high << 4) | low;
                true
            }
            _ => false,
        });
    if is_hash { bytes } else { Sha256::digest(digits).into() }
}

fn half(hash: [u8; 32]) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(&hash[..16]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other_and_hashes_are_read_as_they_are() {
        assert_ne!(key_of(&["ab", "c"]), key_of(&["a", "bc"]));
        assert_eq!(key_of(&["ab", "c"]), key_of(&["ab", "c"]));
        assert_eq!(hash_bytes(&"0f".repeat(32)), [0x0f; 32]);
        assert_ne!(hash_bytes(&"0F".repeat(32)), [0x0f; 32], "no hash of ours");
        assert_ne!(hash_bytes("x"), hash_bytes("y"));
    }
}
