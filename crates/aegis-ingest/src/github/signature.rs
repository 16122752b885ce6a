//! `X-Hub-Signature-256`: HMAC-SHA256 of the raw body under the tenant's own secret, `sha256=` and 64 hex digits.
//! Does the same work, whatever is missing or wrong, so that time tells a stranger nothing about which tenants exist.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

const PREFIX: &str = "sha256=";

/// Keys the HMAC when there is no secret. Not secret: its result is never accepted.
const NO_SECRET: &[u8] = b"no secret, so the result never counts";

/// True if the secret exists and the header is its signature over `body`.
pub(crate) fn verify(secret: Option<&[u8]>, header: Option<&str>, body: &[u8]) -> bool {
    // An empty secret is none: anybody could sign with it.
    let secret = secret.filter(|s| !s.is_empty());
    let presented = header.and_then(decode);
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.unwrap_or(NO_SECRET)) else { return false };
    mac.update(body);
    let expected: [u8; 32] = mac.finalize().into_bytes().into();
    let equal = expected.ct_eq(&presented.unwrap_or_default());
    bool::from(equal & flag(secret.is_some()) & flag(presented.is_some()))
}

fn flag(set: bool) -> Choice {
    Choice::from(u8::from(set))
}

fn decode(header: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    hex::decode_to_slice(header.strip_prefix(PREFIX)?, &mut digest).ok()?;
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of GitHub's documentation, "Validating webhook deliveries".
    const SECRET: &[u8] = b"It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    #[test]
    fn the_documented_example_verifies() {
        assert!(verify(Some(SECRET), Some(SIGNATURE), BODY));
    }

    #[test]
    fn anything_else_does_not() {
        assert!(!verify(Some(SECRET), Some(SIGNATURE), b"Hello, World"));
        assert!(!verify(Some(b"another"), Some(SIGNATURE), BODY));
        assert!(!verify(Some(SECRET), None, BODY));
        assert!(!verify(None, Some(SIGNATURE), BODY));
        assert!(!verify(Some(SECRET), Some(&SIGNATURE[7..]), BODY));
        assert!(!verify(Some(SECRET), Some(&SIGNATURE[..70]), BODY));
        assert!(!verify(Some(SECRET), Some(&SIGNATURE.replace('7', "g")), BODY));
        let zero = format!("sha256={}", "0".repeat(64));
        assert!(!verify(Some(SECRET), Some(&zero), BODY));
    }

    fn sign(secret: &[u8]) -> Option<String> {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
        mac.update(BODY);
        Some(format!("sha256={}", hex::encode(mac.finalize().into_bytes())))
    }

    #[test]
    fn no_secret_accepts_not_even_the_signature_of_its_stand_in() {
        assert!(sign(NO_SECRET).is_some_and(|s| !verify(None, Some(&s), BODY)));
        assert!(sign(b"").is_some_and(|s| !verify(Some(b""), Some(&s), BODY)));
    }
}
