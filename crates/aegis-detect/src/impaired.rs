//! Detection that is impaired says so: an alert of the engine's own where a rule did not look at what it should have looked at, or where no rule
//! looked. Decided on the log, as far as quotas are. Promises at most one alert for each tenant, cause and hour of event time, and that what is told
//! to one tenant makes nothing of another's be forgotten. Contains nobody.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aegis_model::{Alert, RuleMode, SecurityEvent, Severity, TenantId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::alert::alert_id;
use crate::output::Evidence;
use crate::rule::Header;

/// The id under which the engine speaks of itself; no rule may have it.
pub const IMPAIRED_RULE: &str = "AEG-0001";
/// The name that goes with it.
pub const IMPAIRED_NAME: &str = "detection-impaired";
/// How bad that is.
pub const IMPAIRED_SEVERITY: Severity = Severity::High;
/// What stands where a rule's file is hashed; another version of it has another text.
const IDENTITY: &str = "AEG-0001 detection-impaired 1";
const RULE_VERSION: u32 = 1;
const RUNBOOK: &str = "docs/runbooks/detection-impaired.md";

/// The same is told again after this much event time, microseconds.
const HOUR: i64 = 3_600_000_000;
/// Keys of a tenant, of lanes and of rules, of which is remembered when they were told; beyond it the one that was told of the earliest time is
/// forgotten.
const MOST_KEYS: usize = 1024;
/// How the texts of keys begin. Lanes are an edge's to open, as many as it wants: they make nothing of the rules' be forgotten.
const OF_LANE: &str = "{\"lane\":";
const OF_RULE: &str = "{\"rule\":";

/// How a rule is impaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    QuotaFull,
    EventsGivenUp,
    InstantsGivenUp,
    SetAside,
    Quarantined,
    Unwritten,
    WindowLost,
}

impl Cause {
    /// The word in the alert's key.
    const fn word(self) -> &'static str {
        match self {
            Self::QuotaFull => "quota_full",
            Self::EventsGivenUp => "events_given_up",
            Self::InstantsGivenUp => "instants_given_up",
            Self::SetAside => "set_aside",
            Self::Quarantined => "quarantined",
            Self::Unwritten => "unwritten",
            Self::WindowLost => "window_lost",
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::QuotaFull => "a quota of the rule is full: it does not look at events of new keys",
            Self::EventsGivenUp => "a key has more events than the rule keeps: its oldest are given up",
            Self::InstantsGivenUp => "instants cost more than the rule may: a match there may be missing",
            Self::SetAside => "the rule failed on the tenant's events, and does not look at them any more",
            Self::Quarantined => "the rule failed, and does not run any more",
            Self::Unwritten => "what was told of the tenant's keys is more than a checkpoint has room for: a restart forgets it",
            Self::WindowLost => {
                "a restart lost some of the events that the rule looks back to: what they would make a match of is missed"
            }
        }
    }
}

/// What a rule lost of a tenant, and at which event.
#[derive(Debug)]
pub(crate) struct Loss {
    pub(crate) tenant: TenantId,
    pub(crate) cause: Cause,
    pub(crate) at: Evidence,
}

/// What a rule lost since it was asked last: of each tenant, cause and hour the first.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// Of each tenant the causes that there were, few, and their newest hours. A busy key loses an event with each that comes: its tenant's name is not
    /// copied to look.
    hours: HashMap<TenantId, Vec<(Cause, i64)>>,
    /// What was noted last of those: the next event of a busy key is mostly the same again.
    last: Option<(TenantId, Cause, i64)>,
    lost: Vec<Loss>,
}

impl Losses {
    /// Takes note of a loss at an event of its tenant.
    pub(crate) fn note(&mut self, cause: Cause, event: &SecurityEvent) {
        if self.is_news(&event.tenant_id, cause, event.ts) {
            self.lost.push(Loss { tenant: event.tenant_id.clone(), cause, at: Evidence::of(event) });
        }
    }

    /// The same, where only the evidence is at hand.
    pub(crate) fn note_at(&mut self, tenant: &TenantId, cause: Cause, at: &Evidence) {
        if self.is_news(tenant, cause, at.ts) {
            self.lost.push(Loss { tenant: tenant.clone(), cause, at: at.clone() });
        }
    }

    fn is_news(&mut self, tenant: &TenantId, cause: Cause, ts: Timestamp) -> bool {
        let hour = hour_of(ts);
        let is_noted = |(of, what, noted): &(TenantId, Cause, i64)| *what == cause && hour <= *noted && of == tenant;
        if self.last.as_ref().is_some_and(is_noted) {
            return false;
        }
        self.last = Some((tenant.clone(), cause, hour));
        let Some(causes) = self.hours.get_mut(tenant) else {
            self.hours.insert(tenant.clone(), vec![(cause, hour)]);
            return true;
        };
        let Some((_, newest)) = causes.iter_mut().find(|(known, _)| *known == cause) else {
            causes.push((cause, hour));
            return true;
        };
        let is_news = hour > *newest;
        *newest = hour.max(*newest);
        is_news
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lost.is_empty()
    }

    /// Of whom something is lost.
    pub(crate) fn tenants(&self) -> BTreeSet<TenantId> {
        self.lost.iter().map(|loss| loss.tenant.clone()).collect()
    }

    /// What was lost, which is then forgotten.
    pub(crate) fn take(&mut self) -> Vec<Loss> {
        self.hours.clear();
        self.last = None;
        std::mem::take(&mut self.lost)
    }
}

/// What was told: of each tenant and key the newest hour of event time. Under the bare beginning of keys stands up to which hour such were
/// forgotten: of those, nothing up to it is told.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Impaired(BTreeMap<TenantId, BTreeMap<String, i64>>);

impl Impaired {
    /// The alert about a rule, unless the same was told already. `bus_time` is when the bus stored the tenant's newest event: a time beyond that
    /// must not silence what comes until then.
    pub(crate) fn of_rule(
        &mut self,
        rule: &Header,
        tenant: &TenantId,
        cause: Cause,
        at: &Evidence,
        bus_time: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<Alert> {
        let key = object([("rule", rule.id.as_str()), ("what", cause.word())]);
        let fields = object([("rule_name", rule.name.as_str()), ("reason", cause.reason())]);
        self.tell(tenant, key, fields, at, bus_time, now)
    }

    /// The alert about a proved event that came too late to be looked at, unless the same was told of its lane already.
    pub(crate) fn of_late(&mut self, event: &SecurityEvent, now: Timestamp) -> Option<Alert> {
        let lane = event.lane.as_deref()?;
        let key = object([("lane", lane), ("what", "late")]);
        let reason = "events of the lane proved themselves, and came too late for any rule to look at them";
        let fields = object([("edge_id", event.edge_id.as_str()), ("reason", reason)]);
        self.tell(&event.tenant_id, key, fields, &Evidence::of(event), event.bus_ts, now)
    }

    fn tell(
        &mut self,
        tenant: &TenantId,
        key: Map<String, Value>,
        fields: Map<String, Value>,
        at: &Evidence,
        bus_time: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<Alert> {
        let hour = hour_of(bus_time.map_or(at.ts, |bus_time| at.ts.min(bus_time)));
        let text = Value::Object(key.clone()).to_string();
        let told = self.0.entry(tenant.clone()).or_default();
        let beginning = if text.starts_with(OF_LANE) { OF_LANE } else { OF_RULE };
        if told.get(&text).or_else(|| told.get(beginning)).is_some_and(|known| *known >= hour) {
            return None;
        }
        let alert_id = match alert_id(tenant, IMPAIRED_RULE, &key, at.event_id) {
            Ok(alert_id) => alert_id,
            Err(error) => {
                tracing::error!(%tenant, key = text, %error, "detection is impaired, and no alert can say so");
                return None;
            }
        };
        tracing::warn!(%tenant, key = text, event_id = %at.event_id, "detection is impaired");
        told.insert(text, hour);
        forget_oldest(told, beginning);
        Some(Alert {
            alert_id,
            tenant_id: tenant.clone(),
            rule_id: IMPAIRED_RULE.to_owned(),
            rule_name: IMPAIRED_NAME.to_owned(),
            rule_version: RULE_VERSION,
            rule_hash: aegis_canon::sha256_hex(IDENTITY.as_bytes()),
            severity: IMPAIRED_SEVERITY,
            mode: RuleMode::Active,
            key,
            first_ts: at.ts,
            last_ts: at.ts,
            event_ids: vec![at.event_id],
            receipt_hashes: at.receipt_hash.iter().cloned().collect(),
            fields,
            respond: Vec::new(),
            atlas: Vec::new(),
            owasp: Vec::new(),
            runbook: Some(RUNBOOK.to_owned()),
            detected_at: now,
            found_late: false,
        })
    }
}

/// Forgets of the keys with this beginning the one of the earliest hour, where there are too many, but not the hour: else each of many keys would
/// be told again and again.
fn forget_oldest(told: &mut BTreeMap<String, i64>, beginning: &str) {
    let of_kind = told.iter().filter(|(known, _)| known.len() > beginning.len() && known.starts_with(beginning));
    let keys: Vec<(&String, i64)> = of_kind.map(|(known, hour)| (known, *hour)).collect();
    if keys.len() <= MOST_KEYS {
        return;
    }
    let oldest = keys.iter().min_by_key(|(_, hour)| *hour).map(|(known, hour)| ((*known).clone(), *hour));
    if let Some((oldest, hour)) = oldest {
        told.remove(&oldest);
        let floor = told.entry(beginning.to_owned()).or_insert(hour);
        *floor = hour.max(*floor);
    }
}

fn hour_of(ts: Timestamp) -> i64 {
    ts.as_micros().div_euclid(HOUR)
}

fn object(pairs: [(&str, &str); 2]) -> Map<String, Value> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::EventKind;

    fn late(tenant: &str, lane: &str, second: i64) -> SecurityEvent {
        let ts = Timestamp::from_micros(second * 1_000_000);
        let mut event = SecurityEvent::new(TenantId::new(tenant).unwrap(), "e", "edge", EventKind::AuthorizeDecision, ts);
        event.lane = Some(lane.to_owned());
        event
    }

    fn is_told(impaired: &mut Impaired, event: &SecurityEvent) -> bool {
        impaired.of_late(event, Timestamp::from_micros(0)).is_some()
    }

    #[test]
    fn the_same_is_told_once_an_hour_and_never_of_an_hour_before() {
        let mut impaired = Impaired::default();
        let told =
            [7200, 7201, 10_799, 10_800, 7202, 100, 14_400].map(|second| is_told(&mut impaired, &late("a", "a.e.1", second)));
        assert_eq!(told, [true, false, false, true, false, false, true]);
        assert!(is_told(&mut impaired, &late("a", "a.e.2", 7203)), "another lane");
        assert!(is_told(&mut impaired, &late("b", "a.e.1", 7203)), "another tenant");
    }

    #[test]
    fn a_time_that_is_not_yet_silences_nothing() {
        let mut impaired = Impaired::default();
        let stored = |second: i64, bus: i64| {
            let mut event = late("a", "a.e.1", second);
            event.bus_ts = Some(Timestamp::from_micros(bus * 1_000_000));
            event
        };
        assert!(is_told(&mut impaired, &stored(1_000_000_000, 7200)));
        assert!(!is_told(&mut impaired, &stored(7300, 7300)));
        assert!(is_told(&mut impaired, &stored(10_900, 10_900)));
    }

    #[test]
    fn what_is_remembered_of_a_tenant_is_bounded_and_its_own() {
        let mut impaired = Impaired::default();
        assert!(is_told(&mut impaired, &late("quiet", "lane", 100)));
        for lane in 0..MOST_KEYS as i64 + 10 {
            assert!(is_told(&mut impaired, &late("loud", &format!("lane {lane}"), lane * 3600)));
        }
        assert_eq!(impaired.0.values().map(BTreeMap::len).collect::<Vec<_>>(), [MOST_KEYS + 1, 1]);
        assert!(!is_told(&mut impaired, &late("quiet", "lane", 100)));
        assert!(!is_told(&mut impaired, &late("loud", "lane 0", 9 * 3600)), "it is forgotten, and the hours up to it are not");
        assert!(is_told(&mut impaired, &late("loud", "lane 0", 10 * 3600)), "the oldest is forgotten first");
    }

    #[test]
    fn a_lane_beyond_the_bound_is_not_told_with_each_event() {
        let mut impaired = Impaired::default();
        for lane in 0..MOST_KEYS {
            assert!(is_told(&mut impaired, &late("a", &format!("lane {lane}"), 10 * 3600)));
        }
        let told = [0, 1, 2].map(|second| is_told(&mut impaired, &late("a", "another", 5 * 3600 + second)));
        assert_eq!(told, [true, false, false]);
        assert!(!is_told(&mut impaired, &late("a", "one more", 5 * 3600)));
        assert!(is_told(&mut impaired, &late("a", "one more", 6 * 3600)));
        let again: Impaired = serde_json::from_value(serde_json::to_value(&impaired).unwrap()).unwrap();
        for mut impaired in [impaired, again] {
            assert!(!is_told(&mut impaired, &late("a", "another", 5 * 3600 + 3)), "also after a restart");
        }
    }

    #[test]
    fn lanes_make_nothing_be_forgotten_of_rules() {
        let mut impaired = Impaired::default();
        let (tenant, now) = (TenantId::new("a").unwrap(), Timestamp::from_micros(0));
        for lane in 0..MOST_KEYS * 2 {
            assert!(is_told(&mut impaired, &late("a", &format!("lane {lane}"), 10 * 3600 + 3600 * lane as i64)));
        }
        let key = object([("rule", "T-1"), ("what", "quota_full")]);
        let mut of_rule = |second: i64| {
            let at = Evidence::of(&late("a", "lane", second));
            impaired.tell(&tenant, key.clone(), Map::new(), &at, None, now).is_some()
        };
        assert_eq!([100, 200, 3600].map(&mut of_rule), [true, false, true]);
    }

    #[test]
    fn of_a_rule_the_first_loss_of_each_tenant_cause_and_hour_counts() {
        let mut losses = Losses::default();
        let event = |tenant: &str, second: i64| late(tenant, "lane", second);
        losses.note(Cause::QuotaFull, &event("a", 7200));
        losses.note(Cause::QuotaFull, &event("a", 7300));
        losses.note(Cause::QuotaFull, &event("a", 100));
        losses.note(Cause::QuotaFull, &event("a", 7301));
        losses.note(Cause::QuotaFull, &event("b", 7302));
        losses.note(Cause::EventsGivenUp, &event("a", 7303));
        losses.note(Cause::QuotaFull, &event("a", 10_800));
        assert_eq!(losses.tenants().len(), 2);
        let seconds: Vec<i64> = losses.take().iter().map(|loss| loss.at.ts.as_micros() / 1_000_000).collect();
        assert_eq!(seconds, [7200, 7302, 7303, 10_800]);
        assert!(losses.is_empty() && losses.take().is_empty());
        // What was taken is news again, whatever was noted last.
        losses.note(Cause::QuotaFull, &event("a", 10_800));
        assert!(!losses.is_empty());
    }
}
