//! The annotations a policy may carry, read and checked when it loads: a misspelt one would otherwise weaken a policy in silence.

use cedar_policy::{Effect, Policy};

/// Longest `@id`, in bytes.
const MAX_ID_LEN: usize = 128;
/// Longest `@reason`, in characters.
const MAX_REASON_CHARS: usize = 300;
/// Longest `@approver_group`, in characters.
const MAX_GROUP_CHARS: usize = 64;
/// Most people one approval may need.
const MAX_APPROVALS: u32 = 10;

/// What the annotations of one policy say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyMeta {
    pub(crate) id: String,
    pub(crate) effect: Effect,
    pub(crate) reason: Option<String>,
    pub(crate) approval: Option<ApprovalMeta>,
}

/// What a permit with `@decision("require_approval")` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApprovalMeta {
    pub(crate) group: Option<String>,
    /// 1..=10
    pub(crate) approvals: u32,
}

/// A wrong annotation: its name (none: something is missing), what is wrong, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadAnnotation {
    pub(crate) name: Option<String>,
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl BadAnnotation {
    fn new(name: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name: Some(name.to_owned()), message: message.into(), hint: hint.into() }
    }
}

const KNOWN: &str = "known annotations are @id, @decision, @approver_group, @approvals and @reason";

impl PolicyMeta {
    pub(crate) fn read(policy: &Policy) -> Result<Self, BadAnnotation> {
        let Some(id) = policy.annotation("id") else {
            return Err(BadAnnotation {
                name: None,
                message: "policy has no `@id`".to_owned(),
                hint: "put @id(\"…\") in front of it: decisions, receipts and alerts name policies by id".to_owned(),
            });
        };
        check_id(id)?;
        let mut reason = None;
        let mut decision = false;
        let mut group = None;
        let mut approvals = None;
        // Sorted, so that of several wrong annotations always the same one is named.
        let mut annotations: Vec<(&str, &str)> = policy.annotations().collect();
        annotations.sort_unstable();
        for (name, value) in annotations {
            match name {
                "id" => {}
                "reason" => {
                    check_text(name, value, MAX_REASON_CHARS)?;
                    reason = Some(value.to_owned());
                }
                "decision" if value == "require_approval" => decision = true,
                "decision" => {
                    let message = format!("`@decision` is \"{}\"", value.escape_debug());
                    return Err(BadAnnotation::new(
                        name,
                        message,
                        "the only value is \"require_approval\"; leave it out for a plain permit",
                    ));
                }
                "approver_group" => {
                    check_text(name, value, MAX_GROUP_CHARS)?;
                    group = Some(value.to_owned());
                }
                "approvals" => approvals = Some(read_approvals(value)?),
                unknown => return Err(BadAnnotation::new(unknown, format!("unknown annotation `@{unknown}`"), KNOWN)),
            }
        }
        let effect = policy.effect();
        for (name, present) in [("decision", decision), ("approver_group", group.is_some()), ("approvals", approvals.is_some())] {
            if present && effect == Effect::Forbid {
                return Err(BadAnnotation::new(
                    name,
                    format!("a forbid cannot carry `@{name}`"),
                    "only a permit can ask for approval; a forbid denies",
                ));
            }
            if present && !decision {
                let hint = "add @decision(\"require_approval\"), without which this permit allows at once";
                return Err(BadAnnotation::new(name, format!("`@{name}` without `@decision`"), hint));
            }
        }
        let approval = decision.then(|| ApprovalMeta { group, approvals: approvals.unwrap_or(1) });
        Ok(Self { id: id.to_owned(), effect, reason, approval })
    }
}

fn check_id(id: &str) -> Result<(), BadAnnotation> {
    let well_formed = !id.is_empty()
        && id.len() <= MAX_ID_LEN
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/'));
    if well_formed {
        return Ok(());
    }
    let hint = format!("use 1 to {MAX_ID_LEN} of the characters a-z A-Z 0-9 - _ . : /");
    Err(BadAnnotation::new("id", "`@id` has not the form of a policy id", hint))
}

fn check_text(name: &str, value: &str, max_chars: usize) -> Result<(), BadAnnotation> {
    let well_formed = !value.trim().is_empty() && value.chars().count() <= max_chars && !value.chars().any(char::is_control);
    if well_formed {
        return Ok(());
    }
    let message = format!("`@{name}` is empty, too long or has control characters");
    Err(BadAnnotation::new(name, message, format!("write 1 to {max_chars} characters on one line")))
}

fn read_approvals(value: &str) -> Result<u32, BadAnnotation> {
    let digits_only = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    match value.parse::<u32>() {
        Ok(count) if digits_only && (1..=MAX_APPROVALS).contains(&count) => Ok(count),
        _ => {
            let message = format!("`@approvals` is \"{}\"", value.escape_debug());
            Err(BadAnnotation::new("approvals", message, format!("write a whole number from 1 to {MAX_APPROVALS}, in quotes")))
        }
    }
}
