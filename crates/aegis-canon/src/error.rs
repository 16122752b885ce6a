//! Why an input has no canonical form. Owns the reason codes, which are part of the scheme: stable, the same in every
//! language, and named by the vectors of `corpus/canonical/`. Never repeats the input, which may be secret.

use std::fmt;

/// Why an input was rejected and, where it came as bytes, at which of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}{}", Place(*offset))]
pub struct CanonError {
    reason: Reason,
    what: &'static str,
    offset: Option<usize>,
}

/// The reason codes, in the order in which the strict door checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    SizeExceeded,
    InvalidUtf8,
    Syntax,
    TrailingData,
    DepthExceeded,
    DuplicateKey,
    LoneSurrogate,
    IntegerOutOfRange,
    NumberOutOfRange,
    NonFiniteNumber,
}

impl CanonError {
    pub(crate) fn at(offset: usize, reason: Reason, what: &'static str) -> Self {
        CanonError { reason, what, offset: Some(offset) }
    }

    pub(crate) fn in_value(reason: Reason, what: &'static str) -> Self {
        CanonError { reason, what, offset: None }
    }

    /// The stable reason: `size_exceeded`, `invalid_utf8`, `syntax`, `trailing_data`, `depth_exceeded`, `duplicate_key`,
    /// `lone_surrogate`, `integer_out_of_range`, `number_out_of_range` or `non_finite_number`.
    pub fn code(&self) -> &'static str {
        match self.reason {
            Reason::SizeExceeded => "size_exceeded",
            Reason::InvalidUtf8 => "invalid_utf8",
            Reason::Syntax => "syntax",
            Reason::TrailingData => "trailing_data",
            Reason::DepthExceeded => "depth_exceeded",
            Reason::DuplicateKey => "duplicate_key",
            Reason::LoneSurrogate => "lone_surrogate",
            Reason::IntegerOutOfRange => "integer_out_of_range",
            Reason::NumberOutOfRange => "number_out_of_range",
            Reason::NonFiniteNumber => "non_finite_number",
        }
    }

    /// The byte at which the offence begins (0 is the first; the input's length means that the input ended too early).
    /// None where a value was rejected rather than bytes.
    pub fn offset(&self) -> Option<usize> {
        self.offset
    }
}

struct Place(Option<usize>);

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(offset) => write!(formatter, " (at byte {offset})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_and_where() {
        let at_byte = CanonError::at(17, Reason::DuplicateKey, "an object has this key twice; give each key once");
        assert_eq!(at_byte.to_string(), "an object has this key twice; give each key once (at byte 17)");
        assert_eq!((at_byte.code(), at_byte.offset()), ("duplicate_key", Some(17)));
        let in_value = CanonError::in_value(Reason::DepthExceeded, "too deep");
        assert_eq!(in_value.to_string(), "too deep");
        assert_eq!(in_value.offset(), None);
    }
}
