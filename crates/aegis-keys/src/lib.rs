//! Keys and what is signed with them: Ed25519 process keys, control-feed entries, agent tokens, trust tokens.
//! Promises that a private key never appears in a log, an error or a `Debug`; never decides what a signature allows.

mod agent_token;
mod entry;
mod notice;
mod ring;
mod signing;
mod trust_token;

pub use agent_token::{AgentClaims, mint_agent_token, verify_agent_token};
pub use entry::{sign_entry, verify_entry};
pub use notice::{sign_notice, verify_notice};
pub use ring::{KeyRing, Pinned, Scope};
pub use signing::{SigningKey, VerifyingKey};
pub use trust_token::TrustTokenKey;

/// What can go wrong with keys, signatures and tokens. Messages never contain key or token material.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The operating system gave no randomness.
    #[error("the operating system gave no random bytes: {0}")]
    Random(String),
    /// A key file could not be read or written.
    #[error("key file {path}: {reason}")]
    File { path: String, reason: String },
    /// Not a key in the expected encoding.
    #[error("not an Ed25519 key: {0}")]
    Encoding(&'static str),
    /// The key id is not one of those this process trusts.
    #[error("key `{0}` is not among the pinned keys")]
    UnknownKey(String),
    /// The signature does not match.
    #[error("the signature does not verify")]
    BadSignature,
    /// A token that has not the expected form.
    #[error("malformed token: {0}")]
    Malformed(&'static str),
    /// A token used after its end.
    #[error("the token expired at {0}")]
    Expired(aegis_model::Timestamp),
    /// A value that has no canonical form.
    #[error(transparent)]
    Canon(#[from] aegis_canon::CanonError),
}
