//! What is wrong with the control feed, counted until it is told: entries that were refused, by whose they are and why, and a feed that is too old.
//! Promises that however much is refused, and however often, of each tenant and reason one report falls due in ten minutes, and that nothing free
//! of whoever wrote an entry is in it.

use std::collections::BTreeMap;
use std::time::Duration;

use aegis_bus::{Bucket, subject};
use aegis_canon::sha256_hex;
use aegis_keys::KeyError;
use aegis_model::{EntryKind, EventKind, Phase, TargetType, TenantId};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::view::RefusedEntry;

/// The same of the same is told again after so long, if it goes on.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// An older entry may have been overtaken on its way: what reads a bucket, what hears of a change and what waits behind either is not ordered. One
/// that is read or heard when the newer has been held for longer was put back by somebody; how long it then waited says nothing.
pub(super) const OVERTAKEN: Duration = Duration::from_secs(30);
/// So many looks in a row find the feed too old before it is told: a machine that was suspended wakes with an old feed, and reads it.
const STALE_LOOKS: u32 = 10;

/// Why an entry is not believed. The words stand in events; rules and runbooks name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// Signed by nobody: what stands there is not what the key in it signed.
    BadSignature,
    /// By a key that is not control's.
    UnknownKey,
    /// No entry at all.
    Malformed,
    /// One that belongs elsewhere.
    Misplaced,
    /// Control's, and older than what it said since.
    Older,
    /// Control's, and nothing that can hold here.
    Unusable,
}

impl Reason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::BadSignature => "bad_signature",
            Self::UnknownKey => "unknown_key",
            Self::Malformed => "malformed",
            Self::Misplaced => "misplaced",
            Self::Older => "older",
            Self::Unusable => "unusable",
        }
    }

    /// Why an entry was refused, if there is anything to tell: one that was `overtaken` within that time says nothing.
    pub(super) fn of(refused: &RefusedEntry, overtaken: Duration) -> Option<Self> {
        match refused {
            RefusedEntry::Signature(KeyError::BadSignature) => Some(Self::BadSignature),
            RefusedEntry::Signature(KeyError::UnknownKey(_)) => Some(Self::UnknownKey),
            RefusedEntry::Signature(_) => Some(Self::Malformed),
            RefusedEntry::Older { held_for, .. } => (*held_for >= overtaken).then_some(Self::Older),
            RefusedEntry::Body { .. } | RefusedEntry::Policies(_) => Some(Self::Unusable),
        }
    }
}

/// An entry that was refused: where it stood, and of an older one which revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    bucket: Bucket,
    place: String,
    revisions: Option<(i64, i64)>,
}

impl Refused {
    pub(super) fn new(bucket: Bucket, key: &str, refused: Option<&RefusedEntry>) -> Self {
        let revisions = match refused {
            Some(RefusedEntry::Older { offered, held, .. }) => Some((*offered, *held)),
            _ => None,
        };
        Self { bucket, place: shown(key), revisions }
    }
}

/// A key as control makes them stands as it is, so that it can be looked at; of any other its hash.
fn shown(key: &str) -> String {
    let is_hash = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let is_kind = |word: &str| word.parse::<EntryKind>().is_ok() || word.parse::<TargetType>().is_ok();
    let tokens: Vec<&str> = key.split('.').collect();
    let is_ours = match tokens.as_slice() {
        [tenant, run] => TenantId::new(tenant).is_ok() && is_hash(run),
        [tenant, kind, name] => TenantId::new(tenant).is_ok() && is_kind(kind) && is_hash(name),
        _ => key == subject::BEAT,
    };
    if is_ours { key.to_owned() } else { format!("sha256:{}", sha256_hex(key.as_bytes())) }
}

/// What is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// Entries were refused: how many since the last report, and the last of them.
    Refused { reason: Reason, count: u64, last: Refused },
    /// The feed has been as old as that, at most.
    Stale { age_s: i64, after_s: i64 },
    /// It is young again.
    Fresh { age_s: i64, after_s: i64 },
}

impl Report {
    /// True if it is of the feed's age.
    pub(super) const fn is_of_age(&self) -> bool {
        matches!(self, Self::Stale { .. } | Self::Fresh { .. })
    }

    /// The event's kind, its phase, reason and attributes.
    pub(super) fn facts(&self) -> (EventKind, Phase, &'static str, Value) {
        match self {
            Self::Refused { reason, count, last } => {
                let mut facts = json!({"count": count, "bucket": last.bucket.as_str(), "key": last.place});
                if let Some((offered, held)) = last.revisions {
                    (facts["offered"], facts["held"]) = (json!(offered), json!(held));
                }
                (EventKind::ControlFeedRefused, Phase::Attempt, reason.as_str(), facts)
            }
            Self::Stale { age_s, after_s } => {
                (EventKind::ControlFeedStale, Phase::Config, "stale", json!({"feed_age_s": age_s, "stale_after_s": after_s}))
            }
            Self::Fresh { age_s, after_s } => (
                EventKind::ControlFeedStale,
                Phase::Config,
                "fresh_again",
                json!({"feed_age_s": age_s, "stale_after_s": after_s}),
            ),
        }
    }
}

/// Whom something concerns; None: every tenant that the edge serves.
pub(super) type Whom = Option<TenantId>;

/// The refusals of one reason.
#[derive(Debug)]
struct Episode {
    untold: u64,
    last: Refused,
    told_at: Option<Instant>,
}

/// Entries that were refused and not told yet. As large as there are tenants, whom its user bounds, times reasons.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    episodes: Mutex<BTreeMap<(Whom, Reason), Episode>>,
}

impl Trouble {
    /// An entry was refused. Costs no more than counting it.
    pub(super) fn note(&self, whom: Whom, reason: Reason, refused: Refused) {
        let mut episodes = self.episodes.lock();
        match episodes.get_mut(&(whom.clone(), reason)) {
            Some(episode) => {
                episode.untold = episode.untold.saturating_add(1);
                episode.last = refused;
            }
            None => {
                episodes.insert((whom, reason), Episode { untold: 1, last: refused, told_at: None });
            }
        }
    }

    /// What is due at `now`, at most so much, and is told by that. What was never told, and what was told longest ago, comes first: who has much to
    /// tell keeps nobody from being told of something else.
    pub(super) fn take_due(&self, now: Instant, most: usize) -> Vec<(Whom, Report)> {
        let rests = |told_at: Option<Instant>| told_at.is_some_and(|told| now.duration_since(told) < AGAIN_AFTER);
        let mut episodes = self.episodes.lock();
        episodes.retain(|_, episode| episode.untold > 0 || rests(episode.told_at));
        let mut due: Vec<(&(Whom, Reason), &mut Episode)> =
            episodes.iter_mut().filter(|(_, episode)| episode.untold > 0 && !rests(episode.told_at)).collect();
        due.sort_by_key(|(_, episode)| episode.told_at);
        due.truncate(most);
        let told = due.into_iter().map(|((whom, reason), episode)| {
            let report = Report::Refused { reason: *reason, count: episode.untold, last: episode.last.clone() };
            (episode.untold, episode.told_at) = (0, Some(now));
            (whom.clone(), report)
        });
        told.collect()
    }
}

/// Whether the feed is too old, as its tenants know it.
#[derive(Debug)]
pub(super) struct Staleness {
    /// Older is too old, seconds; 0: nothing is.
    after_s: i64,
    looks: u32,
    /// The oldest that it was meanwhile.
    worst_s: i64,
    told_at: Option<Instant>,
    /// That it is so now was told.
    is_told: bool,
}

impl Staleness {
    pub(super) const fn new(after_s: i64) -> Self {
        Self { after_s, looks: 0, worst_s: 0, told_at: None, is_told: false }
    }

    /// Looks at the age of the feed; what there is to tell of it now.
    pub(super) fn look(&mut self, age_s: i64, now: Instant) -> Option<Report> {
        if self.after_s == 0 || age_s <= self.after_s {
            let worst_s = std::mem::take(&mut self.worst_s);
            self.looks = 0;
            let was_told = std::mem::take(&mut self.is_told);
            return was_told.then_some(Report::Fresh { age_s: worst_s, after_s: self.after_s });
        }
        self.looks = self.looks.saturating_add(1);
        self.worst_s = self.worst_s.max(age_s);
        let rests = self.told_at.is_some_and(|told| now.duration_since(told) < AGAIN_AFTER);
        if self.looks < STALE_LOOKS || rests {
            return None;
        }
        (self.told_at, self.is_told) = (Some(now), true);
        Some(Report::Stale { age_s, after_s: self.after_s })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    fn refused(key: &str) -> Refused {
        Refused::new(Bucket::Control, key, None)
    }

    #[test]
    fn a_flood_of_one_tenant_and_reason_is_one_report_in_ten_minutes_and_hides_no_other() {
        let (trouble, start) = (Trouble::default(), Instant::now());
        let mut told: Vec<(Whom, Report)> = Vec::new();
        for second in 0..1800 {
            for _ in 0..100 {
                trouble.note(Some(tenant("loud")), Reason::BadSignature, refused("k"));
            }
            if second == 700 {
                trouble.note(Some(tenant("loud")), Reason::Older, refused("k"));
                trouble.note(Some(tenant("quiet")), Reason::BadSignature, refused("k"));
                trouble.note(None, Reason::BadSignature, refused(subject::BEAT));
            }
            told.extend(trouble.take_due(start + Duration::from_secs(second), 1));
        }
        let counts: Vec<(Option<&str>, Reason, u64)> = told
            .iter()
            .map(|(whom, report)| match report {
                Report::Refused { reason, count, .. } => (whom.as_ref().map(TenantId::as_str), *reason, *count),
                other => panic!("{other:?}"),
            })
            .collect();
        let loud = |count| (Some("loud"), Reason::BadSignature, count);
        assert_eq!(counts[..2], [loud(100), loud(60_000)]);
        let once = [(None, Reason::BadSignature, 1), (Some("loud"), Reason::Older, 1), (Some("quiet"), Reason::BadSignature, 1)];
        assert_eq!(counts[2..5], once, "each in a look of its own");
        assert_eq!(counts[5..], [loud(60_000)]);
    }

    #[test]
    fn an_episode_that_was_quiet_is_forgotten_and_the_next_is_told_at_once() {
        let (trouble, start) = (Trouble::default(), Instant::now());
        trouble.note(None, Reason::Malformed, refused("k"));
        assert_eq!(trouble.take_due(start, 9).len(), 1);
        assert!(trouble.take_due(start + AGAIN_AFTER, 9).is_empty());
        assert!(trouble.episodes.lock().is_empty(), "nothing of it is kept");
        trouble.note(None, Reason::Malformed, refused("k"));
        assert_eq!(trouble.take_due(start + AGAIN_AFTER, 9).len(), 1);
    }

    #[test]
    fn what_never_was_told_comes_before_what_was() {
        let (trouble, start) = (Trouble::default(), Instant::now());
        for name in ["a", "b"] {
            trouble.note(Some(tenant(name)), Reason::Older, refused("k"));
        }
        trouble.take_due(start, 9);
        for name in ["a", "b", "c"] {
            trouble.note(Some(tenant(name)), Reason::Older, refused("k"));
        }
        let due = trouble.take_due(start + AGAIN_AFTER, 2);
        let whom: Vec<_> = due.iter().map(|(whom, _)| whom.as_ref().unwrap().as_str()).collect();
        assert_eq!(whom, ["c", "a"]);
    }

    #[test]
    fn an_entry_that_was_overtaken_on_its_way_was_put_back_by_nobody() {
        let older = |held_for| RefusedEntry::Older { kind: EntryKind::Tool, name: "t".into(), offered: 3, held: 7, held_for };
        assert_eq!(Reason::of(&older(OVERTAKEN - Duration::from_millis(1)), OVERTAKEN), None);
        assert_eq!(Reason::of(&older(OVERTAKEN), OVERTAKEN), Some(Reason::Older));
        let told = Report::Refused {
            reason: Reason::Older,
            count: 1,
            last: Refused::new(Bucket::Control, "k", Some(&older(OVERTAKEN))),
        };
        let (kind, _, reason, facts) = told.facts();
        assert_eq!((kind, reason), (EventKind::ControlFeedRefused, "older"));
        assert_eq!((&facts["offered"], &facts["held"]), (&json!(3), &json!(7)));
    }

    #[test]
    fn no_text_of_whoever_wrote_an_entry_is_told() {
        let ours = [subject::kv_control(&tenant("acme"), EntryKind::Tool, "x"), subject::kv_trust(&tenant("acme"), "run:r")];
        for key in ours.iter().map(String::as_str).chain([subject::BEAT]) {
            assert_eq!(shown(key), key);
        }
        let target = subject::kv_containment(&tenant("acme"), TargetType::Agent, "a");
        assert_eq!(shown(&target), target);
        for key in ["acme.tool.ignore-what-was-said-before", "acme.approve.everything", "", "acme", "acme.x.y.z"] {
            assert_eq!(shown(key), format!("sha256:{}", sha256_hex(key.as_bytes())));
        }
    }

    #[test]
    fn a_feed_that_stays_too_old_is_told_and_that_it_is_young_again() {
        let (mut staleness, start) = (Staleness::new(60), Instant::now());
        let mut told = Vec::new();
        for second in 0..2000_u64 {
            // Of a machine that slept, one look finds an old feed; from 100 on the feed grows old for good.
            let age_s = if second == 50 { 90_000 } else { i64::try_from(second.saturating_sub(100)).unwrap() };
            told.extend(staleness.look(age_s, start + Duration::from_secs(second)).map(|report| (second, report)));
        }
        let stale = |age_s| Report::Stale { age_s, after_s: 60 };
        assert_eq!(told, [(170, stale(70)), (770, stale(670)), (1370, stale(1270)), (1970, stale(1870))]);
        let fresh = Report::Fresh { age_s: 1899, after_s: 60 };
        assert_eq!(staleness.look(0, start + Duration::from_secs(2000)), Some(fresh));
        assert_eq!(staleness.look(0, start + Duration::from_secs(2001)), None, "once");
    }

    #[test]
    fn a_feed_that_is_old_and_young_in_turn_is_told_of_no_more_often() {
        let (mut staleness, start) = (Staleness::new(60), Instant::now());
        let looks = (0..6000_u64).map(|second| (if second % 40 < 20 { 100 } else { 0 }, start + Duration::from_secs(second)));
        let told = looks.filter_map(|(age_s, now)| staleness.look(age_s, now)).count();
        assert!(told <= 2 * 11, "{told} within 6000 seconds");
        let mut nobody = Staleness::new(0);
        assert!((0..100).all(|second| nobody.look(i64::MAX, start + Duration::from_secs(second)).is_none()));
    }
}
