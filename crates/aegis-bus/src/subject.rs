//! Subjects and keys (CONTRACTS §6), the one place that spells them, and NATS wildcard matching.
//! Promises that no free text stands in a subject: what is not a plain token is hashed.

use aegis_canon::sha256_hex;
use aegis_model::{EntryKind, EventKind, TargetType, TenantId, partition_of};

use crate::{BusError, Stream};

/// Longest subject or key, in bytes.
pub const MAX_LEN: usize = 512;

/// Longest free text that stands as it is; a hashed one is longer, so no text can pass for another's hash.
const MAX_PLAIN_TOKEN: usize = 64;

/// `ase.<pp>.<tenant>.<kind>`
#[must_use]
pub fn ase(tenant: &TenantId, kind: EventKind) -> String {
    let (number, name, word) = (partition_of(tenant), tenant.as_str(), kind.as_str());
    // Of each event: put together without the machinery of formatting.
    let mut subject = String::with_capacity("ase.00..".len() + name.len() + word.len());
    subject.push_str("ase.");
    subject.extend([number / 10, number % 10].into_iter().filter_map(|digit| char::from_digit(digit, 10)));
    for part in [".", name, "."] {
        subject.push_str(part);
    }
    for (place, part) in word.split(':').enumerate() {
        subject.push_str(if place > 0 { "-" } else { "" });
        subject.push_str(part);
    }
    subject
}

/// True if the subject is `ase`'s of these.
#[must_use]
pub fn is_ase(subject: &str, tenant: &TenantId, kind: EventKind) -> bool {
    let as_token = |token: &str| {
        let kind = kind.as_str().bytes().map(|byte| if byte == b':' { b'-' } else { byte });
        token.bytes().eq(kind)
    };
    let number = partition_of(tenant);
    let [tens, ones] = [number / 10, number % 10].map(|digit| char::from_digit(digit, 10));
    // Of each event and reader: held against what it is to be, and not taken apart. No tenant's name has a dot.
    let behind_tenant = |rest: &str| {
        let rest = rest.strip_prefix(tens?)?.strip_prefix(ones?)?.strip_prefix('.')?;
        rest.strip_prefix(tenant.as_str())?.strip_prefix('.').map(as_token)
    };
    subject.strip_prefix("ase.").and_then(behind_tenant).unwrap_or(false)
}

/// True for the subject of an event, whichever: others of its stream are records.
#[must_use]
pub fn is_event(subject: &str) -> bool {
    subject.starts_with("ase.")
}

/// The filter for every event of a partition.
#[must_use]
pub fn ase_partition(pp: u32) -> String {
    format!("ase.{pp:02}.>")
}

/// The filter for every event of a tenant.
#[must_use]
pub fn ase_tenant(tenant: &TenantId) -> String {
    format!("ase.{:02}.{tenant}.>", partition_of(tenant))
}

/// `approval.<tenant>.<approval_id>`
#[must_use]
pub fn approval(tenant: &TenantId, approval_id: &str) -> String {
    format!("approval.{tenant}.{}", token(approval_id))
}

/// `alert.<tenant>.<alert_id>`
#[must_use]
pub fn alert(tenant: &TenantId, alert_id: &str) -> String {
    format!("alert.{tenant}.{}", token(alert_id))
}

/// `retract.<tenant>.<alert_id>`
#[must_use]
pub fn retract(tenant: &TenantId, alert_id: &str) -> String {
    format!("retract.{tenant}.{}", token(alert_id))
}

/// `episode.<tenant>.<alert_id>`
#[must_use]
pub fn episode(tenant: &TenantId, alert_id: &str) -> String {
    format!("episode.{tenant}.{}", token(alert_id))
}

/// `tick.<pp>`
#[must_use]
pub fn tick(pp: u32) -> String {
    format!("tick.{pp:02}")
}

/// `ruleset.<pp>`
#[must_use]
pub fn ruleset(pp: u32) -> String {
    format!("ruleset.{pp:02}")
}

/// `ckpt.<pp>`
#[must_use]
pub fn ckpt(pp: u32) -> String {
    format!("ckpt.{pp:02}")
}

/// `ckpt.<pp>-<slot>-<part>`: a part of a checkpoint that is larger than a message.
#[must_use]
pub fn ckpt_part(pp: u32, slot: u32, part: usize) -> String {
    format!("ckpt.{pp:02}-{slot}-{part:03}")
}

/// The filter for checkpoints and their parts.
pub const CKPT_ALL: &str = "ckpt.*";

/// `dlq.<pp>`
#[must_use]
pub fn dlq(pp: u32) -> String {
    format!("dlq.{pp:02}")
}

/// The key of control's sign of life, in the bucket `control`. No tenant's: those have more tokens.
pub const BEAT: &str = "beat";

/// `hb.<edge>`: an edge's sign of life.
#[must_use]
pub fn heartbeat(edge_id: &str) -> String {
    format!("hb.{}", token(edge_id))
}

/// `ack.<edge>`: what an edge enforces.
#[must_use]
pub fn ack(edge_id: &str) -> String {
    format!("ack.{}", token(edge_id))
}

/// `backfill.<edge>`: what control asks an edge to ship again.
#[must_use]
pub fn backfill(edge_id: &str) -> String {
    format!("backfill.{}", token(edge_id))
}

/// `lake.<edge>`: what control confirms to an edge that history and lake have.
#[must_use]
pub fn lake(edge_id: &str) -> String {
    format!("lake.{}", token(edge_id))
}

/// `feed.<edge>`: what an edge asks of control's feed.
#[must_use]
pub fn feed(edge_id: &str) -> String {
    format!("feed.{}", token(edge_id))
}

/// `<tenant>.<target type>.<hash(target)>`
#[must_use]
pub fn kv_containment(tenant: &TenantId, target_type: TargetType, target: &str) -> String {
    format!("{tenant}.{target_type}.{}", sha256_hex(target.as_bytes()))
}

/// `<tenant>.<entry kind>.<hash(name)>`
#[must_use]
pub fn kv_control(tenant: &TenantId, kind: EntryKind, name: &str) -> String {
    format!("{tenant}.{kind}.{}", sha256_hex(name.as_bytes()))
}

/// `<tenant>.<hash(run)>`
#[must_use]
pub fn kv_trust(tenant: &TenantId, run_id: &str) -> String {
    format!("{tenant}.{}", sha256_hex(run_id.as_bytes()))
}

/// `<role>.<pp>`
#[must_use]
pub fn kv_lease(role: &str, pp: u32) -> String {
    format!("{}.{pp:02}", token(role))
}

/// True if `subject` matches `filter`: `*` stands for one token, a final `>` for one or more.
#[must_use]
pub fn matches(filter: &str, subject: &str) -> bool {
    let mut subject_tokens = subject.split('.');
    let mut filter_tokens = filter.split('.');
    loop {
        match (filter_tokens.next(), subject_tokens.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(_)) => {}
            (Some(expected), Some(actual)) if expected == actual => {}
            _ => return false,
        }
    }
}

/// Refuses what can be told to nobody.
pub(crate) fn check_told(subject: &str) -> Result<(), BusError> {
    check_tokens("subject", subject)?;
    if subject.split('.').any(|t| t == "*" || t == ">") {
        return Err(BusError::invalid("subject", "a wildcard cannot be told to"));
    }
    Ok(())
}

/// Refuses what is not a subject of the stream: empty or wildcard tokens, white space, control characters, foreign roots.
pub(crate) fn check_subject(stream: Stream, subject: &str) -> Result<(), BusError> {
    check_tokens("subject", subject)?;
    if subject.split('.').any(|t| t == "*" || t == ">") {
        return Err(BusError::invalid("subject", "a wildcard cannot be published to"));
    }
    let root = subject.split('.').next().unwrap_or_default();
    if subject.len() == root.len() || !stream.subject_roots().contains(&root) {
        return Err(BusError::invalid(
            "subject",
            format!("stream {stream} takes {:?} and more tokens only", stream.subject_roots()),
        ));
    }
    Ok(())
}

/// Refuses a filter with empty tokens, or with `>` anywhere but last.
pub(crate) fn check_filter(filter: &str) -> Result<(), BusError> {
    check_tokens("filter", filter)?;
    let mut tokens = filter.split('.').rev();
    tokens.next();
    if tokens.any(|t| t == ">") {
        return Err(BusError::invalid("filter", "`>` can only stand last"));
    }
    Ok(())
}

/// Refuses a key that JetStream would refuse: `[-/_=.a-zA-Z0-9]+`, no empty token.
pub(crate) fn check_key(key: &str) -> Result<(), BusError> {
    check_tokens("key", key)?;
    if !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-/_=.".contains(&b)) {
        return Err(BusError::invalid("key", "only letters, digits and -/_=. may stand in a key"));
    }
    Ok(())
}

fn check_tokens(what: &'static str, text: &str) -> Result<(), BusError> {
    if text.len() > MAX_LEN {
        return Err(BusError::invalid(what, format!("longer than {MAX_LEN} bytes")));
    }
    if text.split('.').any(str::is_empty) {
        return Err(BusError::invalid(what, "an empty token"));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(BusError::invalid(what, "white space or a control character"));
    }
    Ok(())
}

/// A text as one subject token: itself if it is plain, else its hash.
fn token(text: &str) -> String {
    let plain = !text.is_empty()
        && text.len() <= MAX_PLAIN_TOKEN
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if plain { text.to_owned() } else { format!("x{}", sha256_hex(text.as_bytes())) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wildcards_match_as_nats_documents_them() {
        for (filter, subject, expected) in [
            ("time.us.east", "time.us.east", true),
            ("time.*.east", "time.us.east", true),
            ("time.us.*", "time.us.east.atlanta", false),
            ("time.us.>", "time.us.east.atlanta", true),
            ("time.us.>", "time.us", false),
            (">", "time", true),
            (">", "time.us", true),
            ("*", "time", true),
            ("*", "time.us", false),
            ("*.*.>", "a.b.c", true),
            ("*.*.>", "a.b", false),
            ("time.us", "time.us.east", false),
        ] {
            assert_eq!(matches(filter, subject), expected, "{filter} {subject}");
        }
    }

    #[test]
    fn a_hashed_token_is_never_a_plain_one() {
        let tenant = TenantId::new("t").unwrap();
        let hashed = approval(&tenant, "a b");
        let token_text = hashed.rsplit('.').next().unwrap();
        assert_ne!(approval(&tenant, token_text), hashed);
    }

    #[test]
    fn streams_take_their_own_subjects_only() {
        assert!(check_subject(Stream::Ase, "ase.00.t.x").is_ok());
        for bad in ["ase", "alert.t.x", "ase..x", "ase.*.x", "ase.>", "ase.a b", "", "."] {
            assert!(check_subject(Stream::Ase, bad).is_err(), "{bad}");
        }
        assert!(check_filter("ase.*.t.>").is_ok());
        assert!(check_filter("ase.>.t").is_err());
        assert!(check_key("t.agent.abc").is_ok());
        assert!(check_key(".a").is_err() && check_key("a*").is_err());
    }

    proptest! {
        #[test]
        fn an_event_s_subject_is_known_without_writing_it(
            (tenant, other) in ("[a-z0-9_-]{1,9}", "[a-z0-9_-]{1,9}"),
            kinds in prop::sample::subsequence(EventKind::WORDS.to_vec(), 2),
            (at, put) in (any::<prop::sample::Index>(), "[a-z0-9.é:-]{0,2}"),
        ) {
            let (tenant, other) = (TenantId::new(&tenant).unwrap(), TenantId::new(&other).unwrap());
            let [kind, another] = [kinds[0], kinds[1]].map(|word| word.parse::<EventKind>().unwrap());
            let own = ase(&tenant, kind);
            prop_assert_eq!(&own, &format!("ase.{:02}.{tenant}.{}", partition_of(&tenant), kind.subject_token()));
            let at = at.index(own.len() + 1);
            let changed = [format!("{}{put}{}", &own[..at], &own[at..]), format!("{}{put}{}", &own[..at], own[at..].get(1..).unwrap_or_default())];
            let subjects = [own.clone(), ase(&tenant, another), ase(&other, kind), tick(0), String::new()];
            for subject in subjects.into_iter().chain(changed) {
                prop_assert_eq!(is_ase(&subject, &tenant, kind), subject == own, "{}", subject);
                prop_assert!(is_event(&subject) || subject != own);
            }
        }

        #[test]
        fn whatever_the_text_the_subject_is_one_the_stream_takes(text in ".*") {
            let tenant = TenantId::new("t-1").unwrap();
            prop_assert!(check_subject(Stream::Approvals, &approval(&tenant, &text)).is_ok());
            prop_assert!(check_subject(Stream::Alerts, &retract(&tenant, &text)).is_ok());
            prop_assert!(check_key(&kv_control(&tenant, EntryKind::Agent, &text)).is_ok());
            prop_assert!(check_key(&kv_trust(&tenant, &text)).is_ok());
        }
    }
}
