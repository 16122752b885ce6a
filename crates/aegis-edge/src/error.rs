//! What an edge answers instead of a decision, and what stops it from starting.

/// Why a request got no decision. Each has a status, a stable code and a message that shows no internals.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Malformed(String),
    #[error("the body cannot be canonicalised: {message}")]
    Canon { code: &'static str, message: String },
    #[error("canon_version `{0}` is not known here; send aegis-jcs-1 or leave it out")]
    CanonicalizationSkew(String),
    #[error("the callback url is not on the tenant's allow-list")]
    CallbackNotAllowed,
    #[error("a valid agent token is needed: Authorization: Bearer <agent token>")]
    BadToken,
    #[error("X-Aegis-Tenant-ID is not the token's tenant")]
    WrongTenant,
    #[error("this edge does not serve the token's tenant")]
    TenantNotServed,
    #[error("this nonce was used before with other content")]
    NonceReused,
    #[error("the timestamp is outside the accepted window")]
    TimestampExpired,
    #[error("this request_id was used before with other content")]
    IdempotencyMismatch,
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the body did not arrive in time")]
    BodyTooSlow,
    #[error("send content-type application/json")]
    NotJson,
    #[error("too many requests; retry after a second")]
    RateLimited,
}

impl Refusal {
    pub(crate) const fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Canon { .. } | Self::CanonicalizationSkew(_) | Self::CallbackNotAllowed => 400,
            Self::BadToken | Self::WrongTenant | Self::TenantNotServed => 401,
            Self::NonceReused | Self::TimestampExpired | Self::IdempotencyMismatch => 409,
            Self::BodyTooSlow => 408,
            Self::TooLarge(_) => 413,
            Self::NotJson => 415,
            Self::RateLimited => 429,
        }
    }

    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed_request",
            Self::Canon { code, .. } => code,
            Self::CanonicalizationSkew(_) => "canonicalization_skew",
            Self::CallbackNotAllowed => "callback_not_allowed",
            Self::BadToken => "invalid_token",
            Self::WrongTenant => "tenant_mismatch",
            Self::TenantNotServed => "tenant_not_served",
            Self::NonceReused => "replay_nonce_reused",
            Self::TimestampExpired => "replay_timestamp_expired",
            Self::IdempotencyMismatch => "idempotency_payload_mismatch",
            Self::BodyTooSlow => "body_too_slow",
            Self::TooLarge(_) => "body_too_large",
            Self::NotJson => "unsupported_media_type",
            Self::RateLimited => "rate_limited",
        }
    }
}

/// What stops an edge from starting or following its feed.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// The ledger could not be read back.
    #[error("ledger: {0}")]
    Ledger(#[from] aegis_ledger::LedgerError),
    /// The control feed could not be read.
    #[error("control feed: {0}")]
    Bus(#[from] aegis_bus::BusError),
    /// Neither the control feed nor its copy on disk could be read.
    #[error(
        "the control feed cannot be read ({cause}), and its copy on disk is of no use: {reason}; an edge that knows nothing denies everything and does not start"
    )]
    Snapshot { reason: String, cause: aegis_bus::BusError },
}
