//! Texts that others chose, as what a database can keep and look up.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

/// Longest text that an index keeps, in bytes. Postgres has room for some 2,700 in all columns of an entry together.
const MAX_KEY: usize = 1024;
/// How much of a longer one is kept beside its hash, in bytes.
const KEPT: usize = 512;

/// A text as a column that is looked up by: itself, where it is of a length to be kept and has no NUL (which Postgres refuses); otherwise its
/// beginning and the SHA-256 of all of it. Two texts have the same only if they are the same.
pub(crate) fn keyed(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_KEY && !text.contains('\0') {
        return Cow::Borrowed(text);
    }
    let kept = &text[..text.floor_char_boundary(KEPT)];
    let digest = hex::encode(Sha256::digest(text.as_bytes()));
    Cow::Owned(format!("{} sha256:{digest}", kept.replace('\0', "\u{fffd}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_index_can_keep_is_kept_as_it_is_and_the_rest_by_its_hash() {
        assert_eq!(keyed("run-1"), "run-1");
        let longest = "x".repeat(MAX_KEY);
        assert_eq!(keyed(&longest), longest);
        let mut seen = std::collections::BTreeSet::new();
        for text in ["a\0", "a\0\0", "a\u{fffd}", &"ä".repeat(600), &format!("{}b", "ä".repeat(600))] {
            let key = keyed(text);
            assert!(key.len() <= MAX_KEY && !key.contains('\0'), "{key}");
            assert!(seen.insert(key.into_owned()), "{text}");
        }
    }
}
