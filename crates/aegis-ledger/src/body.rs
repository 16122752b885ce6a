//! What a row holds of a receipt's body: what nothing else in the file says. The rest stands in the event's text, and the body is made
//! again from both when the row is read. Promises the very bytes that were sealed, known by their hash, or to say that it has others.

use std::borrow::Cow;
use std::sync::Arc;

use aegis_canon::{Members, ObjectText, is_canonical, outline, sha256_hex};
use aegis_model::RECEIPT_SCHEMA;

use crate::canonical::Seal;
use crate::draft::Draft;
use crate::members::InOrder;

/// Bytes of a body beside the event's values and what is kept: keys, nulls, hashes.
const BODY_BYTES: usize = 1024;

/// Where a member of a body comes from.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// The event's column of the same name.
    Event,
    /// What the row keeps.
    Kept,
    /// The hash of the event's text.
    Digest,
    /// The key of the commit.
    Key,
    /// The hash of the receipt before it.
    Link,
    Schema,
}

/// The members of a body, in the order of its text. A whole body begins with the first one, and nothing that is kept does.
const MEMBERS: [(&str, Source); 30] = [
    ("action", Source::Event),
    ("action_hash", Source::Event),
    ("agent_id", Source::Event),
    ("approval_id", Source::Event),
    ("approver", Source::Event),
    ("decision", Source::Event),
    ("detail", Source::Kept),
    ("event_digest", Source::Digest),
    ("event_id", Source::Event),
    ("executed_hash", Source::Kept),
    ("input_hash", Source::Kept),
    ("key_id", Source::Key),
    ("lane", Source::Event),
    ("matched_policies", Source::Event),
    ("mutates_state", Source::Event),
    ("output_hash", Source::Kept),
    ("phase", Source::Kept),
    ("policy_digest", Source::Event),
    ("prev_receipt_hash", Source::Link),
    ("ref_event_id", Source::Event),
    ("resource", Source::Event),
    ("run_id", Source::Event),
    ("schema", Source::Schema),
    ("seq", Source::Event),
    ("source_trust", Source::Event),
    ("tenant_id", Source::Event),
    ("tool", Source::Event),
    ("trace_id", Source::Event),
    ("ts", Source::Event),
    ("user_id", Source::Event),
];

/// How a whole body begins.
const WHOLE: &str = "{\"action\":";

/// What a row keeps of the body. None where that could not be read again as it stands (a detail with a fraction, or with keys that are not
/// plain ASCII): such a row keeps its body whole. Written in `room`.
pub(crate) fn kept_text(draft: &Draft, seal: Seal<'_>, room: &mut Vec<u8>) -> Option<Arc<str>> {
    let mut kept = ObjectText::in_room(room);
    if let Some(detail) = seal.detail {
        kept.raw("detail", detail);
    }
    let texts = [
        ("executed_hash", draft.executed_hash.as_deref()),
        ("input_hash", seal.input_hash),
        ("output_hash", seal.output_hash),
        ("phase", Some(draft.phase.as_str())),
    ];
    for (key, value) in texts {
        if let Some(value) = value {
            kept.text(key, value);
        }
    }
    let kept = kept.finish_in(room);
    is_canonical(&kept).then_some(kept)
}

/// What the file holds of a receipt beside its hash.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held<'a> {
    /// The event's canonical columns.
    pub(crate) event: &'a str,
    /// What is kept of the body, or all of it: rows of an earlier schema have no other form.
    pub(crate) receipt: &'a str,
    pub(crate) prev_receipt_hash: &'a str,
    pub(crate) key_id: &'a str,
}

/// The body, and whether it is the one that was sealed with this hash, for this event at this place. None where no body can be made of it.
pub(crate) fn body_of<'a>(held: Held<'a>, receipt_hash: &str) -> Option<(Cow<'a, str>, bool)> {
    let (body, is_of_these) = if held.receipt.starts_with(WHOLE) {
        (Cow::Borrowed(held.receipt), is_whole_of(held))
    } else {
        // Made of these, so that none of them can be another.
        (Cow::Owned(made_again(held)?), true)
    };
    let is_sealed = is_of_these && sha256_hex(body.as_bytes()) == receipt_hash;
    Some((body, is_sealed))
}

/// Whether a whole body says of the rest of the file what is put into one that is made again.
fn is_whole_of(held: Held<'_>) -> bool {
    let event_digest = sha256_hex(held.event.as_bytes());
    let said = [("event_digest", event_digest.as_str()), ("key_id", held.key_id), ("prev_receipt_hash", held.prev_receipt_hash)];
    // A key may stand in the detail too, which is before these. What is behind it are texts, in which quotes are escaped.
    said.iter().all(|(key, value)| {
        let behind = held.receipt.rsplit_once(&format!("\"{key}\":\"")).map(|(_, behind)| behind);
        behind.and_then(|behind| behind.split_once('"')).is_some_and(|(said, _)| said == *value)
    })
}

fn made_again(held: Held<'_>) -> Option<String> {
    let (columns, members) = (outline(held.event, &[])?, outline(held.receipt, &[])?);
    let event = InOrder::new(Members::new(held.event, &columns.places));
    let kept = InOrder::new(Members::new(held.receipt, &members.places));
    let event_digest = sha256_hex(held.event.as_bytes());
    let mut body = ObjectText::with_capacity(held.event.len() + held.receipt.len() + BODY_BYTES);
    for (key, source) in MEMBERS {
        match source {
            Source::Event => body.raw(key, event.value(key)),
            Source::Kept => body.raw(key, kept.value(key)),
            Source::Digest => body.text(key, &event_digest),
            Source::Key => body.text(key, held.key_id),
            Source::Link => body.text(key, held.prev_receipt_hash),
            Source::Schema => body.text(key, RECEIPT_SCHEMA),
        }
    }
    Some(body.finish())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aegis_model::{
        DataAccess, Decision, Destination, EventKind, Phase, RiskLevel, SecurityEvent, SourceTrust, TenantId, Timestamp,
        new_event_id,
    };
    use proptest::prelude::*;
    use proptest::sample::Index;
    use serde_json::{Value, json};

    use super::*;
    use crate::canonical::{Place, body_text, event_text};

    const PLACE: Place<'static> = Place { lane: "acme.edge.0", seq: 7, ts: "2026-11-22T10:00:00.000000Z" };

    /// What a draft is made of: which columns it has (bit by bit), their text, and the rest.
    #[derive(Clone, Debug)]
    struct Seed {
        has: u64,
        text: String,
        policies: Vec<String>,
        words: [u8; 3],
        score: i32,
        detail: Option<Value>,
    }

    fn seed() -> impl Strategy<Value = Seed> {
        let policies = prop::collection::vec(any::<String>(), 0..3);
        (any::<u64>(), any::<String>(), policies, any::<[u8; 3]>(), any::<i32>(), prop::option::of(detail()))
            .prop_map(|(has, text, policies, words, score, detail)| Seed { has, text, policies, words, score, detail })
    }

    /// Whatever has a canonical form, also what is not recognised as it stands.
    fn detail() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-(1i64 << 53) + 1..1i64 << 53).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a-zé\"]{0,6}", inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn draft_of(seed: &Seed) -> Draft {
        let has = |bit: u32| (seed.has >> bit) & 1 == 1;
        let some = |bit: u32| has(bit).then(|| format!("{}{bit}", seed.text));
        let word = |place: usize, words: &[&'static str]| words[usize::from(seed.words[place]) % words.len()];
        let kind: EventKind = word(0, EventKind::WORDS).parse().unwrap();
        let phase: Phase = word(1, Phase::WORDS).parse().unwrap();
        let trust = SourceTrust::ALL[usize::from(seed.words[2]) % SourceTrust::ALL.len()];
        let event = SecurityEvent {
            ref_event_id: has(0).then(new_event_id),
            clock_suspect: has(1),
            agent_id: some(2),
            token_id: some(3),
            user_id: some(4),
            run_id: some(5),
            trace_id: some(6),
            environment: some(7),
            tool: some(8),
            action: some(9),
            resource: some(10),
            target: some(11),
            destination: has(12).then_some(Destination::External),
            data_access: has(13).then_some(DataAccess::Sensitive),
            mutates_state: has(14).then_some(has(15)),
            contains_sensitive_data: has(16).then_some(has(17)),
            source_trust: has(18).then_some(trust),
            root_trust: has(19).then_some(trust),
            decision: has(20).then_some(Decision::RequireApproval),
            risk_level: has(21).then_some(RiskLevel::High),
            reason: some(22),
            status: some(23),
            risk_score: has(24).then_some(seed.score),
            matched_policies: seed.policies.clone(),
            policy_digest: some(25),
            action_hash: some(26),
            approval_id: some(27),
            approver: some(28),
            nonce_hash: some(29),
            attributes: some(30),
            ..SecurityEvent::new(TenantId::new("acme").unwrap(), "edge", "edge", kind, Timestamp::from_micros(0))
        };
        Draft { executed_hash: some(31), detail: seed.detail.clone(), ..Draft::new(event, phase) }
    }

    /// A draft sealed as the writer does it.
    struct Sealed {
        event: String,
        body: String,
        hash: String,
        kept: Option<String>,
        plain_detail: bool,
    }

    const KEY: &str = "key-1";
    const PREVIOUS: &str = "00ab";

    fn seal(seed: &Seed) -> Sealed {
        let draft = draft_of(seed);
        let detail =
            draft.detail.as_ref().map(|detail| String::from_utf8(aegis_canon::canonicalize_value(detail).unwrap()).unwrap());
        let mut room = Vec::new();
        let event = event_text(&draft.event, PLACE, &mut room).to_string();
        let event_digest = sha256_hex(event.as_bytes());
        let has = |bit: u32| (seed.has >> bit) & 1 == 1;
        let seal = Seal {
            event_digest: &event_digest,
            detail: detail.as_deref(),
            input_hash: has(32).then_some("input"),
            output_hash: has(33).then_some("output"),
            key_id: KEY,
            prev_receipt_hash: PREVIOUS,
        };
        let body = body_text(&draft, PLACE, seal, &mut room).to_string();
        let plain_detail = detail.as_deref().is_none_or(is_canonical);
        let kept = kept_text(&draft, seal, &mut room).as_deref().map(str::to_owned);
        Sealed { hash: sha256_hex(body.as_bytes()), kept, event, body, plain_detail }
    }

    fn held<'a>(sealed: &'a Sealed, receipt: &'a str) -> Held<'a> {
        Held { event: &sealed.event, receipt, prev_receipt_hash: PREVIOUS, key_id: KEY }
    }

    proptest! {
        /// L-BODY: of any event of any kind, with any detail that has a canonical form.
        #[test]
        fn a_body_comes_back_byte_for_byte_as_it_was_hashed(seed in seed()) {
            let sealed = seal(&seed);
            prop_assert_eq!(sealed.kept.is_some(), sealed.plain_detail, "what can be made again is not stored");
            let stored = sealed.kept.as_deref().unwrap_or(&sealed.body);
            for receipt in [stored, sealed.body.as_str()] {
                let (body, is_sealed) = body_of(held(&sealed, receipt), &sealed.hash).unwrap();
                prop_assert_eq!(&*body, sealed.body.as_str());
                prop_assert!(is_sealed);
            }
        }

        /// L-BODY: whatever changes in what the file holds, it is not taken for what was sealed.
        #[test]
        fn what_was_changed_is_not_what_was_sealed(seed in seed(), at in any::<Index>(), bit in 0..8u32, whole: bool) {
            let sealed = seal(&Seed { detail: seed.detail.clone().filter(|detail| !detail.is_null()), ..seed });
            let stored = sealed.kept.as_deref().filter(|_| !whole).unwrap_or(&sealed.body).to_owned();
            let texts = [sealed.event.clone(), stored, PREVIOUS.to_owned(), KEY.to_owned(), sealed.hash.clone()];
            let at = at.index(texts.iter().map(String::len).sum());
            let mut before = 0;
            let changed = texts.clone().map(|text| {
                let mut bytes = text.into_bytes();
                let length = bytes.len();
                if let Some(byte) = at.checked_sub(before).and_then(|place| bytes.get_mut(place)) {
                    *byte ^= 1 << bit;
                }
                before += length;
                String::from_utf8(bytes).ok()
            });
            let [Some(event), Some(receipt), Some(previous), Some(key_id), Some(hash)] = changed else { return Ok(()) };
            let held = Held { event: &event, receipt: &receipt, prev_receipt_hash: &previous, key_id: &key_id };
            let read = body_of(held, &hash).filter(|(_, is_sealed)| *is_sealed);
            // A whole body has all that another row keeps, and may be read as such a row: it is the same body then.
            let is_whole = texts[1].starts_with(WHOLE);
            let rest_stands = [&event, &previous, &key_id] == [&texts[0], &texts[2], &texts[3]];
            prop_assert!(read.is_none_or(|(body, _)| is_whole && body == sealed.body && rest_stands));
        }
    }

    #[test]
    fn a_whole_body_is_of_its_own_event_whatever_its_detail_says() {
        let detail = |digest: &str| json!({"x": 0.5, "event_digest": digest, "key_id": "key-2", "prev_receipt_hash": "11cd"});
        let seed = |digest: &str| Seed {
            has: u64::MAX,
            text: "\"event_digest\":\"".to_owned(),
            policies: vec!["\",\"key_id\":\"key-2".to_owned()],
            words: [0; 3],
            score: 0,
            detail: Some(detail(digest)),
        };
        let other = seal(&seed("")).event.replace("edge", "egde");
        let sealed = seal(&seed(&sha256_hex(other.as_bytes())));
        assert!(sealed.kept.is_none());
        let held = held(&sealed, &sealed.body);
        let is_sealed = |held: Held<'_>| body_of(held, &sealed.hash).unwrap().1;
        assert!(is_sealed(held));
        assert!(!is_sealed(Held { event: &other, ..held }));
        assert!(!is_sealed(Held { key_id: "key-2", ..held }));
        assert!(!is_sealed(Held { prev_receipt_hash: "11cd", ..held }));
    }

    #[test]
    fn nothing_that_is_kept_looks_like_a_whole_body() {
        let seed = Seed {
            has: u64::MAX,
            text: String::new(),
            policies: vec![],
            words: [0; 3],
            score: 0,
            detail: Some(json!({"action": "x"})),
        };
        let sealed = seal(&seed);
        assert!(sealed.body.starts_with(WHOLE) && !sealed.kept.unwrap().starts_with(WHOLE));
        for nonsense in ["", "{", "null", "[]", "{}x"] {
            let held = Held { event: &sealed.event, receipt: nonsense, prev_receipt_hash: PREVIOUS, key_id: KEY };
            assert!(body_of(held, &sealed.hash).is_none());
            assert!(body_of(Held { event: nonsense, receipt: "{}", ..held }, &sealed.hash).is_none());
        }
    }
}
