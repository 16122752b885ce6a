//! The words a decision is made of, as they stand on the wire, and the orders in which they tighten.

use serde::{Deserialize, Serialize};

macro_rules! wire_words {
    ($name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $name {
            /// Every word on the wire.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::decision::UnknownWord;
            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word { $($word => Ok(Self::$variant),)+ _ => Err($crate::decision::UnknownWord { word: word.chars().take(64).collect(), allowed: Self::WORDS }) }
            }
        }
    };
}
pub(crate) use wire_words;

/// A word that is none of those the field allows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is none of {allowed:?}")]
pub struct UnknownWord {
    pub(crate) word: String,
    pub(crate) allowed: &'static [&'static str],
}

/// What the edge answered. The derived order is the order of strictness: a later variant is stricter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The action may run.
    Allow,
    /// A person must approve exactly this action first.
    RequireApproval,
    /// The action must not run.
    Deny,
}
wire_words!(Decision { Allow = "allow", RequireApproval = "require_approval", Deny = "deny" });

impl Decision {
    /// The stricter of two decisions.
    #[must_use]
    pub fn tighten(self, other: Self) -> Self {
        self.max(other)
    }
}

/// How much harm an action could do; ordered, later is riskier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RiskLevel {
    /// No lasting harm.
    #[default]
    Low,
    /// Harm that is easily undone.
    Medium,
    /// Harm that is hard to undo.
    High,
    /// Harm that cannot be undone; always needs a person.
    Critical,
}
wire_words!(RiskLevel { Low = "low", Medium = "medium", High = "high", Critical = "critical" });

impl RiskLevel {
    /// A number for people to sort by. Display only: it never decides anything.
    #[must_use]
    pub const fn display_score(self) -> i32 {
        match self {
            Self::Low => 10,
            Self::Medium => 40,
            Self::High => 75,
            Self::Critical => 95,
        }
    }
}

/// What data an action reads; ordered, later is more sensitive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataAccess {
    /// Reads no data worth naming.
    #[default]
    None,
    /// Reads internal data.
    Internal,
    /// Reads data whose disclosure would hurt.
    Sensitive,
}
wire_words!(DataAccess { None = "none", Internal = "internal", Sensitive = "sensitive" });

/// Where an action sends data; ordered, later is further away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// It stays inside the organisation.
    #[default]
    Internal,
    /// It can leave the organisation.
    External,
}
wire_words!(Destination { Internal = "internal", External = "external" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_wins_over_approval_and_approval_over_allow() {
        assert_eq!(Decision::Allow.tighten(Decision::RequireApproval), Decision::RequireApproval);
        assert_eq!(Decision::Deny.tighten(Decision::RequireApproval), Decision::Deny);
        assert_eq!(Decision::Allow.tighten(Decision::Allow), Decision::Allow);
    }
}
