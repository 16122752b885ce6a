//! Source trust: six deterministic labels and the one order in which they combine (CONTRACTS §2).
//! Combining always takes the stricter, so a label can only tighten along a run.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How far the origin of what triggered an action may be trusted.
///
/// The derived order is the order of strictness: later variants are stricter.
/// INVARIANT: `Unknown` sits above `SemiTrustedCustomer` and below `UntrustedExternal`, so a missing label never softens a tainted run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceTrust {
    /// Internal, with a verified signature of a registered channel.
    TrustedInternalSigned,
    /// Internal, without a signature.
    TrustedInternalUnsigned,
    /// A known customer's content.
    SemiTrustedCustomer,
    /// No label, or one this version does not know.
    #[default]
    Unknown,
    /// Anyone on the internet could have written it.
    UntrustedExternal,
    /// Marked as an attack by a deterministic check or by an operator.
    MaliciousSuspected,
}

impl SourceTrust {
    /// Every label, from the least to the most strict.
    pub const ALL: [Self; 6] = [
        Self::TrustedInternalSigned,
        Self::TrustedInternalUnsigned,
        Self::SemiTrustedCustomer,
        Self::Unknown,
        Self::UntrustedExternal,
        Self::MaliciousSuspected,
    ];

    /// The label on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TrustedInternalSigned => "trusted_internal_signed",
            Self::TrustedInternalUnsigned => "trusted_internal_unsigned",
            Self::SemiTrustedCustomer => "semi_trusted_customer",
            Self::Unknown => "unknown",
            Self::UntrustedExternal => "untrusted_external",
            Self::MaliciousSuspected => "malicious_suspected",
        }
    }

    /// Reads a label; whatever is not one of the six is `unknown`.
    #[must_use]
    pub fn from_label(label: &str) -> Self {
        Self::ALL.into_iter().find(|t| t.as_str() == label).unwrap_or(Self::Unknown)
    }

    /// The stricter of two labels.
    #[must_use]
    pub fn combine(self, other: Self) -> Self {
        self.max(other)
    }
}

impl std::fmt::Display for SourceTrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for SourceTrust {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for SourceTrust {
    /// Any string is accepted (an unrecognised one is `unknown`); another JSON type is an error.
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let label = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Ok(Self::from_label(&label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_trust() -> impl Strategy<Value = SourceTrust> {
        (0..6usize).prop_map(|i| SourceTrust::ALL[i])
    }

    proptest! {
        #[test]
        fn combining_is_associative_commutative_idempotent_and_never_loosens(a in any_trust(), b in any_trust(), c in any_trust()) {
            prop_assert_eq!(a.combine(b), b.combine(a));
            prop_assert_eq!(a.combine(b).combine(c), a.combine(b.combine(c)));
            prop_assert_eq!(a.combine(a), a);
            prop_assert!(a.combine(b) >= a && a.combine(b) >= b);
        }
    }

    #[test]
    fn the_order_is_the_contract_s() {
        let words: Vec<_> = SourceTrust::ALL.iter().map(|t| t.as_str()).collect();
        assert_eq!(
            words,
            [
                "trusted_internal_signed",
                "trusted_internal_unsigned",
                "semi_trusted_customer",
                "unknown",
                "untrusted_external",
                "malicious_suspected"
            ]
        );
        assert!(SourceTrust::ALL.windows(2).all(|w| w[0] < w[1]));
    }

    #[test]
    fn an_unrecognised_label_is_unknown() {
        assert_eq!(SourceTrust::from_label("Trusted_Internal_Signed"), SourceTrust::Unknown);
        assert_eq!(SourceTrust::from_label(""), SourceTrust::Unknown);
    }
}
